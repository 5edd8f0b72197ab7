/** The latent that is explored: its picture, and a slider for each of its numbers. */
import { type App, dimensionName, edit, extentOf, report } from "./app.js";
import { button, choice, element, labelled, save, section } from "./dom.js";
import { writeNpy } from "./npy.js";
import { shortest } from "./numbers.js";
import { grid, png } from "./picture.js";
import { addressText } from "./state.js";
import { tableOf } from "./table.js";

const PAGE = 64;

/** The picture of the latent, what it is, and what can be done with it, beginning with `buttons`. */
export function portrait(app: App, ...buttons: HTMLElement[]): HTMLElement {
  const { store, point, drawer } = app;
  const canvas = element("canvas", { class: "portrait", id: "portrait", role: "img" });
  const caption = element("p", { class: "caption", id: "address" });
  const name = () => {
    const { at, edits } = store.state;
    return `${at ? `${at.seed}-${at.index}` : "zeros"}${edits.size ? "-edited" : ""}`;
  };
  const reset = button("Undo changes", () => store.set({ edits: new Map() }), { id: "reset" });
  point.onMove(() => {
    const { at, edits } = store.state;
    const changes = edits.size ? `, ${edits.size} of ${point.base.length} numbers changed` : "";
    caption.textContent = `${at ? addressText(at) : "all zeros"}${changes}`;
    canvas.setAttribute("aria-label", `Decoded: ${caption.textContent}`);
    reset.disabled = !edits.size;
  });
  const { table } = app.about;
  const columns = element("div", { id: "columns-of-point" });
  point.onDecode(() => {
    drawer.draw(canvas, point.rows!);
    if (table.length) columns.replaceChildren(tableOf(table, [["value", point.rows!.data]]));
  });
  const picture = drawer.picture;
  // As decode takes it; several latents are one row, one after the other.
  const latentShape = app.about.latents.length > 1 ? [app.about.size] : app.about.latents[0].shape;
  canvas.style.aspectRatio = drawer.aspect;
  return element("div", { class: "portrait-box" }, canvas, caption, table.length > 0 && columns,
    element("p", { class: "buttons" },
      ...buttons, reset,
      picture && button("Save PNG", () => {
        if (point.rows) png(grid(point.rows, picture, 1, drawer.range)).then((file) => save(`sample-${name()}.png`, file)).catch(report);
      }, { id: "save-point-png" }),
      button("Save .npy", () => point.rows && save(`sample-${name()}.npy`, writeNpy(point.rows.data, point.rows.shape)), { id: "save-point-npy" }),
      button("Save latent", () => save(`latent-${name()}.npy`, writeNpy(point.latent(store.state.edits), [1, ...latentShape])), { id: "save-latent" }),
    ),
  );
}

/** A slider for each number of the latent; `effects` tells how much each changes the result. */
export function sliders(app: App, effects: Promise<Float32Array | null>): HTMLElement {
  const { about, store, point } = app;
  const list = element("div", { class: "sliders" });
  let first = 0;
  let rows: { place: number; input: HTMLInputElement; output: HTMLOutputElement; effect: HTMLElement }[] = [];
  let known: Float32Array | null = null;

  function showEffects(): void {
    if (!known) return;
    const most = known.reduce((a, b) => Math.max(a, b), 1e-12);
    for (const { place, effect } of rows) effect.style.width = `${Math.round((known[place] / most) * 100)}%`;
  }

  function build(): void {
    rows = [];
    const last = Math.min(first + PAGE, about.size);
    list.replaceChildren();
    for (let place = first; place < last; place++) {
      const name = dimensionName(app, place);
      const [low, high] = extentOf(app, place);
      const output = element("output", { for: `z-${place}` });
      const input = element("input", { type: "range", id: `z-${place}`, min: low, max: high, step: 0.01, "aria-label": name });
      input.addEventListener("input", () => edit(app, [[place, Number(input.value)]]));
      const effect = element("span", { class: "effect" });
      list.append(element("div", { class: "slider" },
        element("span", { class: "name", title: name }, name), input, output, element("span", { class: "track", title: "effect on the result" }, effect)));
      rows.push({ place, input, output, effect });
    }
    show();
    showEffects();
  }

  function show(): void {
    const z = point.latent(store.state.edits);
    for (const { place, input, output } of rows) {
      const value = z[place];
      const [low, high] = extentOf(app, place);
      if (value < Number(input.min) || value > Number(input.max)) {
        input.min = String(Math.min(low, Math.floor(value)));
        input.max = String(Math.max(high, Math.ceil(value)));
      }
      if (document.activeElement !== input || Math.abs(Number(input.value) - value) > 0.006) input.value = String(value);
      output.textContent = Math.abs(value) < 1000 ? value.toFixed(2) : shortest(value);
      input.parentElement!.classList.toggle("edited", store.state.edits.has(place));
    }
  }

  const pages = Array.from({ length: Math.ceil(about.size / PAGE) }, (_, page) => {
    const end = Math.min(about.size, (page + 1) * PAGE) - 1;
    return [String(page), `${dimensionName(app, page * PAGE)} to ${dimensionName(app, end)}`] as const;
  });
  const pager = pages.length > 1 && labelled("Show", choice(pages, (page) => {
    first = Number(page) * PAGE;
    build();
  }, { id: "page" }));
  point.onMove(show);
  effects.then((result) => {
    known = result;
    showEffects();
  }).catch(report);
  build();
  return section("latent", "Latent", "Each slider is one number of the latent. The thin bar tells how much it changes the result.", pager, list);
}
