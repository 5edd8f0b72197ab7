/** Observations that are rows of a table: named columns with numbers and categories, as vae_runtime.to_table gives them. */
import { element } from "./dom.js";
import { brief } from "./numbers.js";
import { roundHalfEven } from "./picture.js";
import type { Column } from "./protocol.js";

/** The text of each column of one observation. */
export function textsOf(columns: readonly Column[], data: ArrayLike<number>): string[] {
  let first = 0;
  return columns.map((column) => {
    const { kind, means, scales, rounding, categories } = column;
    const count = kind === "categories" ? categories.length : means.length;
    const start = kind === "categories" ? first : first + 1;
    let best = 0;
    for (let at = 1; at < count; at++) if (data[start + at] > data[start + best]) best = at;
    const value = data[first];
    first = start + count;
    if (kind === "categories") return categories[best] === null ? "missing" : String(categories[best]);
    const number = Math.min(1, Math.max(-1, value)) * scales[best] + means[best];
    return rounding === null ? brief(number) : String((rounding === "nearest" ? roundHalfEven(number) : Math.trunc(number)) + 0);
  });
}

/** A table with a line for each column, and the texts of some observations beside each other. */
export function tableOf(columns: readonly Column[], observations: readonly (readonly [string, ArrayLike<number>])[]): HTMLElement {
  const texts = observations.map(([, data]) => textsOf(columns, data));
  const head = ["column", ...observations.map(([name]) => name)].map((name) => element("th", { scope: "col" }, name));
  const lines = columns.map(({ name }, at) =>
    element("tr", {}, element("th", { scope: "row" }, name), ...texts.map((each) => element("td", {}, each[at]))));
  return element("div", { class: "row-of-table", tabindex: 0, role: "region", "aria-label": "Columns of the table" },
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...lines)));
}
