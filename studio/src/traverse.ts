/** The traversal sheet: each row changes one number of the latent. */
import { type App, decode, dimensionName, edit, extentOf, report } from "./app.js";
import { button, choice, element, labelled, section } from "./dom.js";
import { strongest } from "./effects.js";
import { shortest } from "./numbers.js";
import { moveFocus } from "./sheet.js";

const STEPS = 9;
const ROWS = 6;

/** The sheet; `effects` chooses its rows. */
export function traverse(app: App, effects: Promise<Float32Array | null>): HTMLElement {
  const { about, store, point, drawer } = app;
  const table = element("div", { class: "traversal", role: "group", "aria-label": "Traversals; arrow keys move, Enter takes the value" });
  let places = strongest(null, about.size, ROWS);
  let turn = 0;
  let wait: ReturnType<typeof setTimeout> | undefined;
  const steps = Math.min(STEPS, 9);

  const valueOf = (place: number, step: number) => {
    const [low, high] = extentOf(app, place);
    return Number((low + (step / (steps - 1)) * (high - low)).toFixed(4));
  };

  function build(): void {
    table.replaceChildren();
    places.forEach((place, row) => {
      const name = dimensionName(app, place);
      const cells = Array.from({ length: steps }, (_, step) => {
        const value = valueOf(place, step);
        const made = button("", () => edit(app, [[place, value]]), {
          class: "cell", title: `${name} = ${shortest(value)}`, "aria-label": `${name} = ${shortest(value)}`, tabindex: row || step ? -1 : 0,
        });
        made.append(drawer.blank());
        return made;
      });
      table.append(element("span", { class: "name", title: name }, name), ...cells);
    });
  }

  async function draw(): Promise<void> {
    const own = ++turn;
    const z = point.latent(store.state.edits);
    for (const [row, place] of places.entries()) {
      const latents = new Float32Array(steps * z.length);
      for (let step = 0; step < steps; step++) {
        latents.set(z, step * z.length);
        latents[step * z.length + place] = valueOf(place, step);
      }
      const rows = await decode(app, latents, steps, "traverse", 0);
      if (!rows || own !== turn) return;
      const cells = table.querySelectorAll<HTMLElement>("button");
      for (let step = 0; step < steps; step++) drawer.draw(cells[row * steps + step].querySelector("canvas")!, rows, step);
    }
    table.dataset.drawn = String(own);
  }

  function later(): void {
    clearTimeout(wait);
    wait = setTimeout(() => draw().catch(report), 250);
  }

  const pages = Array.from({ length: Math.ceil(about.size / ROWS) }, (_, page) => {
    const end = Math.min(about.size, (page + 1) * ROWS) - 1;
    return [String(page), `${dimensionName(app, page * ROWS)} to ${dimensionName(app, end)}`] as const;
  });
  let known: Float32Array | null = null;
  const list = choice([["strongest", "the strongest"], ...pages], (page) => {
    places = page === "strongest"
      ? strongest(known, about.size, ROWS)
      : Array.from({ length: Math.min(ROWS, about.size - Number(page) * ROWS) }, (_, row) => Number(page) * ROWS + row);
    build();
    later();
  }, { id: "traverse-page" });
  table.addEventListener("keydown", (event) => moveFocus(table, event));
  point.onMove(later);
  effects.then((result) => {
    known = result;
    if (known) places = strongest(known, about.size, ROWS);
    build();
    later();
  }).catch(report);
  build();
  return section("traversal", "Traversal", "Each row changes one number of the latent. Click a picture to take its value.",
    about.size > ROWS && element("div", { class: "controls" }, labelled("Numbers", list)), table);
}
