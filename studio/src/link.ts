/** The state as the fragment of a link, and back. What a link says is checked before it is used. */
import { shortest } from "./numbers.js";
import type { About, ConditionInfo } from "./protocol.js";
import { type Address, type State, initialState } from "./state.js";

const LOWEST = -(2n ** 63n);
const HIGHEST = 2n ** 64n - 1n;
export const MAX_COUNT = 400;
const MAX_KEPT = 24;
const MAX_EDITS = 512;

/** A seed as it is typed; null where it is none. */
export function readSeed(text: string): bigint | null {
  return readInteger(text, LOWEST, HIGHEST);
}

/** The index of a sample; null where it is none. */
export function readIndex(text: string): bigint | null {
  return readInteger(text, 0n, HIGHEST);
}

function readInteger(text: string, low: bigint, high: bigint): bigint | null {
  if (!/^-?\d{1,20}$/.test(text.trim())) return null;
  const value = BigInt(text.trim());
  return value >= low && value <= high ? value : null;
}

/** A number from `low` to `high`; null where it is none. */
export function readNumber(text: string, low: number, high: number): number | null {
  const value = /^[-+.\deE]{1,40}$/.test(text.trim()) ? Number(text) : NaN;
  return value >= low && value <= high ? value : null;
}

/** A condition's numbers as they are typed, one for all or one for each; null where they are not such. */
export function readNumbers(text: string, { dtype, shape, range }: ConditionInfo): number[] | null {
  const [low, high] = range ?? [-1e9, 1e9];
  const numbers = text.split(/[\s,]+/).filter(Boolean).map((each) => readNumber(each, low, high));
  const size = shape.reduce((all, each) => all * each, 1);
  const isWhole = dtype === "float32" || numbers.every((each) => Number.isInteger(each));
  return isWhole && !numbers.includes(null) && [1, size].includes(numbers.length) ? (numbers as number[]) : null;
}

function addressOf({ seed, index, temperature, truncation }: Address): string {
  const rest = truncation === null ? (temperature === 1 ? [] : [temperature]) : [temperature, truncation];
  return [seed, index, ...rest].join(":");
}

function readAddress(text: string): Address | null {
  const [first, second, third = "1", fourth] = text.split(":");
  const [seed, index] = [readSeed(first ?? ""), readIndex(second ?? "")];
  const temperature = readNumber(third, 0, 1e6);
  const truncation = fourth === undefined ? null : readNumber(fourth, 0.01, 1e6);
  const isWhole = seed !== null && index !== null && temperature !== null && (fourth === undefined || truncation !== null);
  return isWhole ? { seed, index, temperature, truncation } : null;
}

/** The fragment of a link, without its "#". Changes of the latent are left out where they are too many. */
export function written(state: State, about: About): string {
  const { seed, start, count, temperature, truncation, conditions, variant, at, edits, kept, axes } = state;
  const parts = new URLSearchParams({ seed: String(seed), start: String(start), n: String(count) });
  if (temperature !== 1) parts.set("temperature", String(temperature));
  if (truncation !== null) parts.set("truncation", String(truncation));
  for (const { name } of about.conditions) {
    const value = conditions[name];
    parts.set(`condition.${name}`, typeof value === "string" ? value : value.join(","));
  }
  if (variant !== null) parts.set("variant", variant);
  parts.set("at", at ? addressOf(at) : "zeros");
  if (edits.size && edits.size <= MAX_EDITS) parts.set("z", [...edits].map(([place, value]) => `${place}:${shortest(value)}`).join(","));
  if (kept.length) parts.set("kept", kept.map(addressOf).join(","));
  if (axes) parts.set("axes", axes.join(","));
  return parts.toString().replaceAll("%3A", ":").replaceAll("%2C", ",");
}

/** Whether a link carries every change of the latent. */
export function isWhole(state: State): boolean {
  return state.edits.size <= MAX_EDITS;
}

/** The state of a fragment, and the names of its parts that are not valid and were left out. */
export function read(fragment: string, about: About): [State, string[]] {
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = initialState(about);
  const refused: string[] = [];
  const take = <T>(name: string, reader: (text: string) => T | null, use: (value: T) => void) => {
    const text = parts.get(name);
    if (text === null) return;
    const value = reader(text);
    if (value === null) refused.push(name);
    else use(value);
  };
  take("seed", readSeed, (seed) => (state.seed = seed));
  take("start", readIndex, (start) => (state.start = start));
  take("n", (text) => readInteger(text, 1n, BigInt(MAX_COUNT)), (count) => (state.count = Number(count)));
  take("temperature", (text) => readNumber(text, 0, 1e6), (temperature) => (state.temperature = temperature));
  take("truncation", (text) => readNumber(text, 0.01, 1e6), (truncation) => (state.truncation = truncation));
  for (const condition of about.conditions) {
    const reader = (text: string) =>
      condition.classes ? (condition.classes.includes(text) ? text : null) : readNumbers(text, condition);
    take(`condition.${condition.name}`, reader, (value) => (state.conditions[condition.name] = value));
  }
  take("variant", (text) => (about.variants.includes(text) ? text : null), (variant) => (state.variant = variant));
  if (!about.noPrior) {
    state.at = { seed: state.seed, index: state.start, temperature: state.temperature, truncation: state.truncation };
    take("at", (text) => (text === "zeros" ? { zeros: true } : readAddress(text)), (at) => (state.at = "zeros" in at ? null : at));
    const addresses = (text: string) => {
      const each = text.split(",").map(readAddress);
      return each.includes(null) || each.length > MAX_KEPT ? null : (each as Address[]);
    };
    take("kept", addresses, (kept) => (state.kept = kept));
  }
  take("z", (text) => readEdits(text, about), (edits) => (state.edits = edits));
  take("axes", (text) => readAxes(text, about), (axes) => (state.axes = axes));
  return [state, refused];
}

function readEdits(text: string, about: About): Map<number, number> | null {
  const edits = new Map<number, number>();
  for (const part of text.split(",")) {
    const [place, value] = part.split(":");
    const [at, to] = [readPlace(place, about), readNumber(value ?? "", -1e6, 1e6)];
    if (at === null || to === null) return null;
    edits.set(at, Math.fround(to));
  }
  return edits.size <= MAX_EDITS ? edits : null;
}

function readAxes(text: string, about: About): readonly [number, number] | null {
  const [x, y] = text.split(",").map((each) => readPlace(each, about));
  return x == null || y == null || x === y ? null : [x, y];
}

function readPlace(text: string | undefined, { size }: About): number | null {
  return text !== undefined && /^\d{1,7}$/.test(text) && Number(text) < size ? Number(text) : null;
}
