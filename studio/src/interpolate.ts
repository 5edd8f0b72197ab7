/** An interpolation between two kept samples that plays. */
import { type App, decode, report } from "./app.js";
import { button, choice, element, labelled, section, setOptions } from "./dom.js";
import type { Rows } from "./protocol.js";
import { addressText } from "./state.js";

/** Frames that are computed and played. */
export const FRAMES = 33;
const PER_SECOND = 16;

/** What is interpolated, for the code. */
export interface Interpolation {
  from: number;
  to: number;
  spherical: boolean;
}

/** The player; `chosen` holds the choice. */
export function interpolate(app: App, chosen: Interpolation & { listeners: (() => void)[] }): HTMLElement {
  const { store, point, drawer } = app;
  const canvas = element("canvas", { class: "portrait", id: "frame", role: "img", "aria-label": "Frame of the interpolation" });
  canvas.style.aspectRatio = drawer.aspect;
  const scrub = element("input", { type: "range", id: "scrub", min: 0, max: FRAMES - 1, value: 0, "aria-label": "Frame", disabled: true });
  const need = element("p", { class: "note" }, "Keep two samples to see one become the other.");
  const wait = (): void => {
    chosen.spherical = spherical.checked;
    draw().catch(report);
  };
  const spherical = element("input", { type: "checkbox", id: "spherical", checked: true, change: wait });
  const lists = (["from", "to"] as const).map((end) =>
    choice([], (value) => {
      chosen[end] = Number(value);
      draw().catch(report);
    }, { id: `interpolate-${end}` }));
  let frames: Rows | null = null;
  let turn = 0;
  let playing = 0;

  function show(): void {
    if (frames) drawer.draw(canvas, frames, Number(scrub.value));
  }

  async function draw(): Promise<void> {
    const own = ++turn;
    const { kept } = store.state;
    chosen.listeners.forEach((listener) => listener());
    const [a, b] = [kept[chosen.from], kept[chosen.to]];
    if (!a || !b) return;
    const [first, last] = [await point.latentOf(app, a), await point.latentOf(app, b)];
    const z = await app.client.ask("interpolate", { a: first, b: last, steps: FRAMES, spherical: chosen.spherical }, "path", 1);
    if (!z || own !== turn) return;
    const result = await decode(app, z, FRAMES, "interpolate", 0);
    if (!result || own !== turn) return;
    frames = result;
    scrub.disabled = play.disabled = false;
    canvas.dataset.pair = `${addressText(a)} to ${addressText(b)}`;
    show();
  }

  function stop(): void {
    cancelAnimationFrame(playing);
    playing = 0;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }

  const play = button("Play", () => {
    if (playing) {
      stop();
      return;
    }
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    const began = performance.now() - (Number(scrub.value) / PER_SECOND) * 1000;
    const step = (now: number) => {
      // To the last frame and back.
      const at = Math.floor(((now - began) / 1000) * PER_SECOND) % (2 * FRAMES - 2);
      scrub.value = String(at < FRAMES ? at : 2 * FRAMES - 2 - at);
      show();
      playing = requestAnimationFrame(step);
    };
    playing = requestAnimationFrame(step);
  }, { id: "play", disabled: true, "aria-pressed": "false" });
  scrub.addEventListener("input", () => {
    stop();
    show();
  });

  function follow(): void {
    const { kept } = store.state;
    const options = kept.map((address, index) => [String(index), addressText(address)] as const);
    for (const list of lists) setOptions(list, options);
    const isEnough = kept.length >= 2;
    need.hidden = isEnough;
    player.hidden = !isEnough;
    if (!isEnough) {
      stop();
      return;
    }
    if (chosen.to >= kept.length || chosen.to === chosen.from) [chosen.from, chosen.to] = [0, kept.length - 1];
    lists[0].value = String(chosen.from);
    lists[1].value = String(chosen.to);
    draw().catch(report);
  }
  const player = element("div", {},
    element("div", { class: "controls" }, labelled("From", lists[0]), labelled("To", lists[1]),
      element("label", { class: "check" }, spherical, "along the sphere")),
    canvas, element("div", { class: "transport" }, play, scrub));
  store.on(["kept", "conditions", "variant"], follow);
  follow();
  return section("interpolation", "Interpolation", "", need, player);
}
