/** The sheet of samples, its controls, and the samples that were kept. */
import { type App, decode, report, sliceOf } from "./app.js";
import { button, choice, element, labelled, save, section, tell } from "./dom.js";
import { MAX_COUNT, readIndex, readNumber, readNumbers, readSeed } from "./link.js";
import { writeNpy } from "./npy.js";
import { grid, png } from "./picture.js";
import type { Rows } from "./protocol.js";
import { type Address, type Key, addressText, isSame } from "./state.js";

const MAX_KEPT = 24;
const SHOWN: readonly Key[] = ["seed", "start", "count", "temperature", "truncation", "conditions", "variant"];

/** A text field that changes the state once its text is valid. */
function field<T>(label: string, id: string, value: string, read: (text: string) => T | null, take: (value: T) => void, hint: string) {
  const input = element("input", { id, value, size: 8, autocomplete: "off", spellcheck: "false", placeholder: id === "truncation" ? "none" : "" });
  input.addEventListener("input", () => {
    const value = read(input.value);
    input.setAttribute("aria-invalid", String(value === null));
    if (value === null) tell(`${label}: expected ${hint}, got ${input.value || "nothing"}`);
    else {
      tell("");
      take(value);
    }
  });
  return labelled(label, input, hint);
}

/** The controls of how samples are drawn. */
export function controls(app: App): HTMLElement {
  const { about, store } = app;
  const { seed, start, count, temperature, truncation, conditions, variant } = store.state;
  const parts: HTMLElement[] = [];
  if (!about.noPrior && about.size) {
    const random = button("New seed", () => {
      const [fresh] = crypto.getRandomValues(new Uint32Array(1));
      (document.getElementById("seed") as HTMLInputElement).value = String(fresh);
      store.set({ seed: BigInt(fresh) });
    }, { id: "new-seed" });
    parts.push(
      element("span", { class: "pair" },
        field("Seed", "seed", String(seed), readSeed, (seed) => store.set({ seed }), "an integer from -2**63 to 2**64 - 1"), random),
      field("Start", "start", String(start), readIndex, (start) => store.set({ start }), "the index of the first sample, 0 … 2**64 - 1"),
      field("Samples", "count", String(count), (text) => {
        const many = readNumber(text, 1, MAX_COUNT);
        return many !== null && Number.isInteger(many) ? many : null;
      }, (count) => store.set({ count }), `an integer from 1 to ${MAX_COUNT}`),
    );
    if (about.latents.every(({ prior }) => prior !== "sphere")) {
      parts.push(
        field("Temperature", "temperature", String(temperature), (text) => readNumber(text, 0, 1e6), (temperature) => store.set({ temperature }), "a number from 0"),
        field("Truncation", "truncation", truncation === null ? "" : String(truncation), (text) => {
          return text.trim() === "" ? { none: true } : readNumber(text, 0.01, 1e6);
        }, (value) => store.set({ truncation: typeof value === "number" ? value : null }), "nothing, or a number from 0.01"),
      );
    }
  }
  about.conditions.forEach((condition, number) => {
    const { name, classes } = condition;
    const id = `condition-${number}`;
    const take = (value: string | number[]) => store.set({ conditions: { ...store.state.conditions, [name]: value } });
    const now = conditions[name];
    if (classes) {
      const list = choice(classes.map((each) => [each, each] as const), take, { id });
      list.value = now as string;
      parts.push(labelled(name, list, `condition ${name}`));
    } else {
      const form = condition.shape.length ? `one number, or [${condition.shape.join(", ")}] of them` : "a number";
      parts.push(field(name, id, (now as number[]).join(", "), (text) => readNumbers(text, condition), take, form));
    }
  });
  if (about.variants.length > 1) {
    const list = choice(about.variants.map((each) => [each, each] as const), (value) => store.set({ variant: value }), { id: "variant" });
    list.value = variant ?? about.variants[0];
    parts.push(labelled("Variant", list, "the graph that computes"));
  }
  return element("div", { class: "controls", role: "group", "aria-label": "How to draw" }, ...parts);
}

/** The sheet of samples. */
export function sheet(app: App): HTMLElement {
  const { about, store, drawer, point } = app;
  if (about.noPrior || !about.size) {
    const why = about.noPrior ?? "the latents are codes, which have no prior";
    return section("samples", "Samples", `This bundle has no prior to draw from: ${why}.`);
  }
  const cells = element("div", { class: `cells${drawer.picture ? "" : " plots"}`, role: "group", "aria-label": "Samples; arrow keys move, Enter keeps" });
  const kept = element("div", { class: "cells kept", role: "group", "aria-label": "Kept samples" });
  const keptNote = element("p", { class: "note", id: "kept-note" }, "");
  let shown: Rows = { data: new Float32Array(0), shape: [0] };
  let turn = 0;

  function cell(address: Address, isKept: boolean): HTMLButtonElement {
    const text = addressText(address);
    const label = isKept ? `${address.seed} · ${address.index}` : String(address.index);
    const made = button("", () => {
      const isIn = store.state.kept.some((each) => isSame(each, address));
      const room = store.state.kept.length < MAX_KEPT;
      if (!isIn && !room) tell(`At most ${MAX_KEPT} samples are kept; remove one first.`);
      store.set({ at: address, edits: new Map(), ...(isIn || !room ? {} : { kept: [...store.state.kept, address] }) });
    }, { class: "cell", title: text, "aria-label": text, "data-address": text });
    made.append(drawer.blank(), element("span", {}, label));
    return made;
  }

  function addressAt(row: number): Address {
    const { seed, start, temperature, truncation } = store.state;
    return { seed, index: BigInt.asUintN(64, start + BigInt(row)), temperature, truncation };
  }

  function mark(): void {
    const { at, kept: all } = store.state;
    for (const each of document.querySelectorAll<HTMLElement>(".cell")) {
      const isAt = at !== null && each.dataset.address === addressText(at);
      each.classList.toggle("at", isAt);
      each.setAttribute("aria-pressed", String(all.some((address) => addressText(address) === each.dataset.address)));
    }
  }

  async function draw(): Promise<void> {
    const own = ++turn;
    const { seed, start, count, temperature, truncation } = store.state;
    cells.setAttribute("aria-busy", "true");
    while (cells.childElementCount > count) cells.lastElementChild!.remove();
    while (cells.childElementCount < count) {
      cells.append(element("span", { class: "cell" }, drawer.blank(), element("span", {}, "…")));
    }
    const z = await app.client.ask("prior", { seed, start, n: count, temperature, truncation }, "sheet prior", 2);
    if (!z || own !== turn) return;
    const size = about.size;
    let data = new Float32Array(0);
    for (let first = 0, n = 0; first < count; first += n) {
      n = Math.min(sliceOf(app), count - first);
      const rows = await decode(app, z.slice(first * size, (first + n) * size), n, "sheet", 1);
      if (!rows || own !== turn) return;
      const each = rows.data.length / n;
      if (!data.length) data = new Float32Array(each * count);
      data.set(rows.data, first * each);
      shown = { data, shape: [count, ...rows.shape.slice(1)] };
      if (first === 0) drawer.scaleTo(rows.data);
      for (let row = first; row < first + n; row++) {
        const address = addressAt(row);
        point.learn(address, z.slice(row * size, (row + 1) * size));
        const old = cells.children[row] as HTMLElement | undefined;
        const hadFocus = old === document.activeElement;
        const made = cell(address, false);
        if (old) old.replaceWith(made);
        else cells.append(made);
        made.tabIndex = row === 0 || hadFocus ? 0 : -1;
        drawer.draw(made.querySelector("canvas")!, rows, row - first);
        if (hadFocus) made.focus();
      }
    }
    drawer.scaleTo(data);
    cells.setAttribute("aria-busy", "false");
    mark();
    sheetDrawn.forEach((listener) => listener());
  }

  const keptRows = new Map<string, Rows>();
  async function drawKept(): Promise<void> {
    const all = store.state.kept;
    const focused = [...kept.querySelectorAll(".remove")].indexOf(document.activeElement!);
    keptNote.textContent = all.length ? "Kept" : "Click a sample to explore and keep it.";
    kept.replaceChildren(
      ...all.map((address) => {
        const remove = button("×", () => store.set({ kept: store.state.kept.filter((each) => !isSame(each, address)) }), {
          class: "remove", "aria-label": `Remove ${addressText(address)}`,
        });
        const made = element("div", { class: "keeper" }, cell(address, true), remove);
        const rows = keptRows.get(addressText(address));
        if (rows) drawer.draw(made.querySelector("canvas")!, rows);
        return made;
      }),
    );
    if (focused >= 0) {
      // Whoever removes samples by keyboard stays where they were.
      const left = kept.querySelectorAll<HTMLElement>(".remove");
      (left[Math.min(focused, left.length - 1)] ?? cells.querySelector<HTMLElement>("[tabindex='0']"))?.focus();
    }
    mark();
    for (const address of all) {
      const name = addressText(address);
      if (keptRows.has(name)) continue;
      const rows = await decode(app, await point.latentOf(app, address), 1, `kept ${name}`, 1);
      if (!rows) continue;
      keptRows.set(name, rows);
      const made = [...kept.querySelectorAll<HTMLElement>(".cell")].find((each) => each.dataset.address === name);
      if (made) drawer.draw(made.querySelector("canvas")!, rows);
    }
  }

  cells.addEventListener("keydown", (event) => moveFocus(cells, event));
  const columns = () => Math.ceil(Math.sqrt(shown.shape[0]));
  const name = () => `${store.state.seed}-${store.state.start}-${store.state.count}`;
  const savings = element("p", { class: "buttons" },
    drawer.picture && button("Save PNG", () => {
      png(grid(shown, drawer.picture!, columns(), drawer.range)).then((file) => save(`samples-${name()}.png`, file)).catch(report);
    }, { id: "save-sheet-png" }),
    button("Save .npy", () => save(`samples-${name()}.npy`, writeNpy(shown.data, shown.shape)), { id: "save-sheet-npy" }),
  );
  store.on(SHOWN, () => draw().catch(report));
  store.on(["at"], mark);
  store.on(["kept"], () => drawKept().catch(report));
  store.on(["conditions", "variant"], () => {
    keptRows.clear();
    drawKept().catch(report);
  });
  draw().then(drawKept).catch(report);
  return section("samples", "Samples", "", cells, savings, keptNote, kept);
}

/** Called whenever a sheet is complete. */
export const sheetDrawn: (() => void)[] = [];

/** Move the focus among cells by the arrow keys. */
export function moveFocus(cells: HTMLElement, event: KeyboardEvent): void {
  const all = [...cells.querySelectorAll<HTMLElement>("button")];
  const now = all.indexOf(document.activeElement as HTMLElement);
  const top = all[0]?.offsetTop;
  const columns = Math.max(1, all.filter((each) => each.offsetTop === top).length);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -now, End: all.length - 1 - now }[event.key];
  if (step === undefined || now < 0) return;
  event.preventDefault();
  const next = all[now + step];
  if (!next) return;
  all[now].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}
