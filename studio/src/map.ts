/** The 2-D map of the latent space: two of its numbers across and up, the others as they are. */
import { type App, type Extent, decode, dimensionName, edit, extentOf, report } from "./app.js";
import { choice, element, labelled, section } from "./dom.js";
import { strongest } from "./effects.js";
import { shortest } from "./numbers.js";

const BUDGET = 2500;
const MAX_CELLS = 11;
const MAX_PLOTS = 7;
const PLOT = 72;
const MAX_CHOICES = 1024;

/** The map; `effects` chooses its first dimensions, and `placed` gives where an input lies. */
export function map(app: App, effects: Promise<Float32Array | null>, placed: { z: Float32Array | null; listeners: (() => void)[] }): HTMLElement | null {
  const { about, store, point, drawer } = app;
  if (about.size < 2) return null;
  const canvas = element("canvas", { "aria-hidden": "true" });
  const marker = element("span", { class: "marker" });
  const others = element("span", { class: "others" });
  const board = element("div", {
    class: "map", id: "map", tabindex: 0, role: "application", "aria-roledescription": "map",
  }, canvas, others, marker);
  board.style.aspectRatio = drawer.aspect;
  const names = Array.from({ length: Math.min(MAX_CHOICES, about.size) }, (_, place) => [String(place), dimensionName(app, place)] as const);
  const choose = (axis: 0 | 1) => (value: string) => {
    const axes = [...(store.state.axes ?? [0, 1])] as [number, number];
    if (axes[1 - axis] === Number(value)) axes[1 - axis] = axes[axis];
    axes[axis] = Number(value);
    store.set({ axes });
  };
  const lists = [choice(names, choose(0), { id: "axis-x" }), choice(names, choose(1), { id: "axis-y" })];
  let axes: readonly [number, number] = store.state.axes ?? [0, 1];
  let turn = 0;
  let wait: ReturnType<typeof setTimeout> | undefined;
  let drawnFor = "";

  const extents = (): [Extent, Extent] => [extentOf(app, axes[0]), extentOf(app, axes[1])];
  const part = (value: number, [low, high]: Extent) => Math.min(1, Math.max(0, (value - low) / (high - low)));

  function place(dot: HTMLElement, z: Float32Array): void {
    const [x, y] = extents();
    dot.style.left = `${part(z[axes[0]], x) * 100}%`;
    dot.style.top = `${(1 - part(z[axes[1]], y)) * 100}%`;
  }

  function mark(): void {
    const z = point.latent(store.state.edits);
    place(marker, z);
    const where = axes.map((axis) => `${dimensionName(app, axis)} ${shortest(Number(z[axis].toFixed(2)))}`).join(", ");
    board.setAttribute("aria-label", `Map of the latent space: ${where}; arrow keys move`);
  }

  async function markOthers(): Promise<void> {
    const dots: HTMLElement[] = [];
    const { kept } = store.state;
    for (const address of kept) {
      const dot = element("span", { class: "dot" });
      place(dot, await point.latentOf(app, address));
      dots.push(dot);
    }
    if (placed.z) {
      const dot = element("span", { class: "dot input", title: "the input" });
      place(dot, placed.z);
      dots.push(dot);
    }
    if (kept === store.state.kept) others.replaceChildren(...dots);
  }

  async function draw(): Promise<void> {
    const own = ++turn;
    const cost = app.cost ?? 20;
    const cells = Math.min(drawer.picture ? MAX_CELLS : MAX_PLOTS, Math.floor(Math.sqrt(BUDGET / cost)));
    if (cells < 3) return;
    const z = point.latent(store.state.edits);
    const [x, y] = extents();
    const size = about.size;
    const [width, height] = drawer.picture ? [drawer.picture[2], drawer.picture[1]] : [PLOT, PLOT * 0.625];
    const scale = Math.min(1, 96 / Math.max(width, height));
    const cell = [Math.max(8, Math.round(width * scale)), Math.max(8, Math.round(height * scale))];
    const drawn = element("canvas", { width: cell[0] * cells, height: cell[1] * cells });
    const context = drawn.getContext("2d")!;
    context.imageSmoothingEnabled = scale < 1 || !drawer.picture;
    for (let row = 0; row < cells; row++) {
      const latents = new Float32Array(cells * size);
      for (let column = 0; column < cells; column++) {
        latents.set(z, column * size);
        latents[column * size + axes[0]] = x[0] + ((column + 0.5) / cells) * (x[1] - x[0]);
        latents[column * size + axes[1]] = y[1] - ((row + 0.5) / cells) * (y[1] - y[0]);
      }
      const rows = await decode(app, latents, cells, "map", 0);
      if (!rows || own !== turn) return;
      for (let column = 0; column < cells; column++) {
        context.drawImage(drawer.canvas(rows, column, PLOT), column * cell[0], row * cell[1], cell[0], cell[1]);
      }
    }
    canvas.width = drawn.width;
    canvas.height = drawn.height;
    canvas.classList.toggle("plot", !drawer.picture);
    canvas.getContext("2d")!.drawImage(drawn, 0, 0);
    board.dataset.cells = String(cells);
  }

  /** Draw again once the reader pauses, unless only the place on the map has changed. */
  function later(isForced: boolean): void {
    const rest = point.latent(store.state.edits);
    rest[axes[0]] = rest[axes[1]] = 0;
    const now = `${axes} ${rest}`;
    if (now === drawnFor && !isForced) return;
    drawnFor = now;
    clearTimeout(wait);
    wait = setTimeout(() => draw().catch(report), 150);
  }

  function moveTo(x: number, y: number): void {
    const [across, up] = extents();
    const value = (at: number, [low, high]: Extent) => Number((low + Math.min(1, Math.max(0, at)) * (high - low)).toFixed(2));
    edit(app, [[axes[0], value(x, across)], [axes[1], value(1 - y, up)]]);
  }

  function drag(event: PointerEvent): void {
    const box = board.getBoundingClientRect();
    moveTo((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }
  board.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    board.setPointerCapture(event.pointerId);
    drag(event);
  });
  board.addEventListener("pointermove", (event) => {
    if (board.hasPointerCapture(event.pointerId)) drag(event);
  });
  board.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const far = event.shiftKey ? 0.1 : 0.02;
    const z = point.latent(store.state.edits);
    const [x, y] = extents();
    moveTo(part(z[axes[0]], x) + step[0] * far, 1 - part(z[axes[1]], y) + step[1] * far);
  });

  function show(): void {
    lists.forEach((list, axis) => (list.value = String(axes[axis])));
    mark();
    markOthers().catch(report);
    later(false);
  }
  store.on(["axes"], () => {
    axes = store.state.axes ?? axes;
    show();
  });
  store.on(["kept"], () => markOthers().catch(report));
  store.on(["conditions", "variant"], () => later(true));
  placed.listeners.push(() => markOthers().catch(report));
  point.onMove(() => {
    mark();
    later(false);
  });
  effects.then((known) => {
    if (!store.state.axes) axes = strongest(known, Math.min(about.size, MAX_CHOICES), 2) as [number, number];
    show();
  }).catch(report);
  return section("space", "Map", "Drag across, or use the arrow keys. Dots are kept samples and the input.",
    board, element("div", { class: "controls" }, labelled("Across", lists[0]), labelled("Up", lists[1])));
}
