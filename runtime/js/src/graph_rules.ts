/** What a graph may have: operators, and the sizes that constants give to their outputs; for `graph_check`. */
import { DIVISORS, FIRST, KEEP, LENGTHS, MICROSOFT, SHAPED_BY_0, SHAPED_BY_1, STANDARD } from "./operators.js";

/** How many elements a tensor may have that constants alone make, for files of `size` bytes. */
export function maxElements(size: number, elements: number): number {
  return 2 ** 24 + 16 * size + 1024 * elements;
}

const words = (text: string) => text.split(" ");

export const OPERATORS = new Map([["ai.onnx", new Set(words(STANDARD))], ["com.microsoft", new Set(words(MICROSOFT))]]);

/** Outputs with at least as many elements as the largest input. */
export const KEEP_SIZES = new Set(words(KEEP));

/** Attributes that are smaller in any real graph, and those by which ONNX Runtime divides. */
export const SPATIAL = new Set(words(LENGTHS));
export const POSITIVE = new Set(words(DIVISORS));

type Values = (number[] | null)[];
type Rule = (values: Values, counts: number[]) => number;

// An axis of size 0, or -1 for "as it is", counts as 1.
const product = (values?: number[] | null): number => (values ?? []).reduce((all, value) => all * Math.max(1, value), 1);
const shapeIn = (index: number): Rule => (values) => product(values[index]);
const resize: Rule = (values, counts) => {
  const scales = values[values.length === 2 ? 1 : 2];
  const scaled = scales?.length ? scales.reduce((all, scale) => all * scale, counts[0]) : 1;
  return Math.max(scaled, product(values[3]));
};
const pad: Rule = (values) => {
  const pads = values[1] ?? [];
  const half = pads.length >> 1;
  return product(pads.slice(0, half).map((low, axis) => 1 + low + pads[half + axis]));
};
const range: Rule = (values) => {
  const [start, limit, step] = values.map((value) => value?.[0]);
  if (start === undefined || limit === undefined || step === undefined) return 1;
  return Math.max(0, (limit - start) / step);
};

const each = (names: string, rule: Rule): [string, Rule][] => words(names).map((name) => [name, rule]);

/** How many elements an output has at least, from the values of constant inputs and the inputs' numbers of elements. */
export const FREE_SIZES: Map<string, Rule> = new Map([
  ...each("Expand", (values, counts) => Math.max(counts[0], product(values[1]))),
  ...each("Tile", (values, counts) => Math.max(1, counts[0]) * product(values[1])),
  ...each("Range", range),
  ...each("Pad", pad),
  ...each("Resize Upsample", resize),
  ...each("OneHot", (values, counts) => counts[0] * product(values[1])),
  ...each("Concat", (_, counts) => counts.reduce((all, count) => all + count, 0)),
  ...each("Gather GatherElements", (_, counts) => counts[1]),
  ...each(SHAPED_BY_0, shapeIn(0)),
  ...each(SHAPED_BY_1, shapeIn(1)),
  ...each("MaxUnpool", shapeIn(2)),
  ...each(FIRST, (_, counts) => counts[0]),
]);
