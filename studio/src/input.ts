/** An observation of the reader's own: its reconstruction, its scores, its place on the map. */
import { type App, dimensionName, edit, report } from "./app.js";
import { INPUT_FILE } from "./code.js";
import { button, element, save, section, tell } from "./dom.js";
import { readNpy, writeNpy } from "./npy.js";
import { brief } from "./numbers.js";
import type { Scored } from "./protocol.js";
import { tableOf } from "./table.js";

const MAX_FILE = 64 * 2 ** 20;
const MAX_BARS = 64;
const MAX_DRAWN = 256;
const MAX_NUMBERS = 64;

/** The part for inputs; `placed` takes the place of the last one on the map. */
export function input(app: App, placed: { z: Float32Array | null; listeners: (() => void)[] }): HTMLElement {
  const { about, store, point, drawer, client } = app;
  if (about.noEncoder) return section("input", "Input", about.noEncoder);
  const { observation } = about;
  const size = observation.shape.reduce((all, each) => all * each, 1);
  const [low, high] = observation.range ?? [0, 1];
  const isPicture = drawer.picture !== null && drawer.picture.reduce((all, each) => all * each, 1) === size;
  const [channels, height, width] = isPicture ? drawer.picture! : [0, 0, 0];
  const canDraw = isPicture && channels === 1 && Math.max(height, width) <= MAX_DRAWN;
  let x: Float32Array | null = null;
  let scored: Scored | null = null;

  const canvases = { input: element("canvas", { role: "img", "aria-label": "The input" }), reconstruction: element("canvas", { role: "img", "aria-label": "Its reconstruction" }) };
  const figure = (canvas: HTMLCanvasElement, text: string) => {
    canvas.style.aspectRatio = isPicture ? `${width} / ${height}` : "8 / 5";
    return element("figure", {}, canvas, element("figcaption", {}, text));
  };
  const scores = element("dl", { class: "scores", id: "scores" });
  const bars = element("div", { class: "bars", id: "kl-bars", role: "img" });
  const columns = element("div", { id: "columns-of-input" });
  const result = element("div", { hidden: true },
    element("div", { class: "pair-of-figures" }, figure(canvases.input, "input"), figure(canvases.reconstruction, "reconstruction")),
    columns, scores, bars);
  const visit = button("Explore its latent", () => {
    if (scored?.mean) edit(app, [...scored.mean].map((value, place) => [place, value] as const));
  }, { id: "visit", disabled: true });

  const saving = button("Save .npy", () => x && save(INPUT_FILE, writeNpy(x, [1, ...observation.shape])), { id: "save-input", disabled: true });

  function row(name: string, value: number | null): HTMLElement[] {
    return value === null ? [] : [element("dt", {}, name), element("dd", {}, brief(value))];
  }

  /** The latent, where no slider shows it. */
  function numbersOf(name: string, all: readonly number[]): HTMLElement[] {
    const rest = all.length > MAX_NUMBERS ? `, … ${all.length} in all` : "";
    return [element("dt", {}, name), element("dd", {}, all.slice(0, MAX_NUMBERS).map(brief).join(", ") + rest)];
  }

  function showScores({ latent, elbo, kl, likelihood, mse, klPerDimension, reason }: Scored): void {
    scores.replaceChildren(
      ...(about.size && !about.noDecoder ? [] : numbersOf(about.size ? "latent" : "codes", latent)),
      ...row("ELBO, nats", elbo), ...row("log p(x|z), nats", likelihood), ...row("KL, nats", kl), ...row("mean squared error", mse),
    );
    if (reason) scores.append(element("dt", {}, "no ELBO"), element("dd", {}, reason));
    bars.hidden = !klPerDimension;
    if (!klPerDimension) return;
    const most = klPerDimension.reduce((a, b) => Math.max(a, b), 1e-9);
    const shown = [...klPerDimension.slice(0, MAX_BARS)];
    bars.setAttribute("aria-label", `KL of each number of the latent: ${shown.map(brief).join(", ")}`);
    bars.replaceChildren(...shown.map((value, place) => {
      const bar = element("span", { title: `${dimensionName(app, place)}: KL ${brief(value)} nats` });
      bar.style.height = `${Math.max(2, (value / most) * 100)}%`;
      return bar;
    }));
  }

  async function run(): Promise<void> {
    if (!x) return;
    const { conditions, variant } = store.state;
    const answer = await client.ask("score", { x, conditions, variant }, "score", 2);
    if (!answer) return;
    scored = answer;
    result.hidden = false;
    drawer.draw(canvases.input, { data: x, shape: [1, ...observation.shape] });
    canvases.reconstruction.parentElement!.hidden = !answer.reconstruction;
    if (answer.reconstruction) drawer.draw(canvases.reconstruction, answer.reconstruction);
    if (about.table.length) {
      const decoded = answer.reconstruction;
      columns.replaceChildren(tableOf(about.table, [["input", x], ...(decoded ? [["reconstruction", decoded.data] as const] : [])]));
    }
    showScores(answer);
    placed.z = answer.mean;
    visit.disabled = !answer.mean || about.noDecoder !== null;
    saving.disabled = false;
    for (const listener of placed.listeners) listener();
    result.dataset.runs = String(Number(result.dataset.runs ?? 0) + 1);
  }

  function take(values: Float32Array): void {
    x = values;
    tell("");
    run().catch(report);
  }

  /** A picture as values: fitted into the model's size, from its darkest to its brightest value. */
  async function ofPicture(file: Blob): Promise<Float32Array> {
    if (!isPicture) throw new Error("the file: expected a .npy file, since observations of this bundle are no pictures, got a picture; save an array");
    const bitmap = await createImageBitmap(file);
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true })!;
    context.fillStyle = "black";
    if (channels < 4) context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    const scale = Math.min(width / bitmap.width, height / bitmap.height);
    const [w, h] = [bitmap.width * scale, bitmap.height * scale];
    context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
    return ofPixels(context.getImageData(0, 0, width, height).data);
  }

  function ofPixels(pixels: Uint8ClampedArray): Float32Array {
    const values = new Float32Array(size);
    for (let at = 0; at < width * height; at++) {
      const [r, g, b, a] = pixels.subarray(at * 4, at * 4 + 4);
      // Gray as Pillow makes it: ITU-R BT.601.
      const levels = channels === 1 ? [(19595 * r + 38470 * g + 7471 * b + 32768) >> 16] : [r, g, b, a];
      for (let channel = 0; channel < channels; channel++) values[channel * width * height + at] = low + (levels[channel] / 255) * (high - low);
    }
    return values;
  }

  async function ofFile(file: File): Promise<Float32Array> {
    if (file.size > MAX_FILE) throw new Error("the file: expected at most 64 MiB, got more; choose a smaller one");
    if (!file.name.endsWith(".npy")) return ofPicture(file);
    const { data, shape } = readNpy(await file.arrayBuffer());
    if (data.length < size || data.length % size) {
      throw new Error(`the file: expected an array [${observation.shape.join(", ")}], or rows of such, got [${shape.join(", ")}]; choose another`);
    }
    return data.slice(0, size);
  }

  const openFile = (file: File | null | undefined) => {
    if (file) ofFile(file).then(take).catch((error) => report(error instanceof DOMException ? new Error("the file: expected a picture or a .npy file, got another; choose another") : error));
  };
  const picker = element("input", { type: "file", id: "file", class: "hidden-file", accept: isPicture ? "image/*,.npy" : ".npy", "aria-label": "File of an input" });
  picker.addEventListener("change", () => {
    openFile(picker.files?.[0]);
    picker.value = "";
  });
  const drop = element("div", { class: "drop", id: "drop" }, picker, element("label", { class: "as-button", for: "file" }, "Open a file"),
    element("span", {}, ` or drop ${isPicture ? "a picture or " : ""}a .npy file of shape [${observation.shape.join(", ")}] here`));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") openFile((event as DragEvent).dataTransfer?.files[0]);
    });
  }

  const asInput = button("Take the explored sample", () => {
    if (point.rows && point.rows.data.length === size) take(point.rows.data.map((value) => (observation.range ? Math.min(high, Math.max(low, value)) : value)));
  }, { id: "take-point" });
  asInput.hidden = visit.hidden = about.noDecoder !== null || !about.size;

  function pad(): HTMLElement {
    const canvas = element("canvas", { class: "pad", id: "pad", width, height, role: "img", "aria-label": "Draw an input here by pointer" });
    canvas.style.aspectRatio = `${width} / ${height}`;
    const context = canvas.getContext("2d", { willReadFrequently: true })!;
    const clear = () => {
      context.fillStyle = "black";
      context.fillRect(0, 0, width, height);
    };
    clear();
    context.strokeStyle = "white";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = Math.max(1, Math.min(width, height) / 13);
    let last: [number, number] | null = null;
    const draw = (event: PointerEvent) => {
      const box = canvas.getBoundingClientRect();
      const now: [number, number] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
      context.beginPath();
      context.moveTo(...(last ?? now));
      context.lineTo(...now);
      context.stroke();
      last = now;
      take(ofPixels(context.getImageData(0, 0, width, height).data));
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      last = null;
      draw(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) draw(event);
    });
    return element("div", { class: "pad-box" }, canvas, button("Clear", clear, { id: "clear-pad" }), element("span", { class: "note" }, "draw here"));
  }

  store.on(["conditions", "variant"], () => run().catch(report));
  const decoded = about.noDecoder ? "" : "its reconstruction and its scores";
  const encoded = !about.size ? "its codes" : about.noDecoder ? "its latent" : "";
  return section("input", "Input", `What the model makes of an observation: ${[encoded, decoded].filter(Boolean).join(", ")}.`,
    element("div", { class: "inputs" }, canDraw && pad(), element("div", { class: "ways" }, drop, element("p", { class: "buttons" }, asInput, visit, saving))), result);
}
