/** Numbers as the page writes them. */

/** The shortest decimal that is this float32. */
export function shortest(value: number): string {
  const exact = Math.fround(value);
  for (let digits = 1; digits < 9; digits++) {
    const text = String(Number(exact.toPrecision(digits)));
    if (Math.fround(Number(text)) === exact) return text;
  }
  return String(Number(exact.toPrecision(9)));
}

/** A number in a table: four significant digits, and never fewer than its whole part has, as reports have them, too. */
export function brief(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e4 && size < 1e6) return value.toFixed(0);
  const rounded = Number(value.toPrecision(4));
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? rounded.toExponential() : String(rounded);
}

/** A number of milliseconds. */
export function briefTime(milliseconds: number): string {
  return `${brief(milliseconds)} ms`;
}
