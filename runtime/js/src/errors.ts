/** What to do about a bundle that is damaged, or was written wrongly. */
export const COPY = "copy the bundle again";
export const EXPORT = "export the bundle again";

/** Whether a value is a list. */
export const isList = Array.isArray;

/** Sizes as errors show them: [2, 3]. */
export function listed(sizes: readonly unknown[]): string {
  return `[${sizes.join(", ")}]`;
}

/** The base of every error that this package raises on purpose: `place: expected X, got Y; next step`. */
export class VaeError extends Error {
  override name = "VaeError";

  /** A message as it stands, or its parts. */
  constructor(place: string, expected?: string, got?: unknown, next?: string) {
    const list = isList(got) ? listed(got) : got;
    super(expected === undefined ? place : `${place}: expected ${expected}, got ${list}${next ? `; ${next}` : ""}`);
  }
}

/** A bundle is missing, damaged, altered, or of a format this version does not read. */
export class BundleError extends VaeError {
  override name = "BundleError";
}

/** An argument or an array is not as expected. */
export class InputError extends VaeError {
  override name = "InputError";
}

/** @throws {BundleError} always. */
export function refuseBundle(place: string, expected?: string, got?: unknown, next?: string): never {
  throw new BundleError(place, expected, got, next);
}

/** @throws {InputError} always. */
export function refuseInput(place: string, expected?: string, got?: unknown, next?: string): never {
  throw new InputError(place, expected, got, next);
}

/** A device, an execution provider, ONNX Runtime or WebCrypto is unavailable. */
export class DeviceError extends VaeError {
  override name = "DeviceError";
}

/** The text in one line without control characters, its middle left out where it is long. */
export function oneLine(text: unknown, limit = 2000): string {
  const line = String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0)!.toString(16).padStart(4, "0")}`);
  const half = limit >> 1;
  return line.length <= limit ? line : `${line.slice(0, half)} … ${line.slice(line.length - half)}`;
}

/** A value as errors show it: short, in one line. */
export function shown(value: unknown): string {
  if (value === undefined) return "nothing";
  if (isList(value)) return `a list of ${value.length}`;
  if (typeof value === "object" && value) return value instanceof Map ? "an object" : (value.constructor?.name ?? "an object");
  return oneLine(typeof value === "string" ? JSON.stringify(value) : value, 80);
}

/** The message of anything that was thrown, in one line. */
export function errorLine(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return oneLine(text.trim().replace(/\s+/g, " "), 400);
}

/**
 * Check an integer, which may be a bigint.
 *
 * @throws {InputError} it is not an integer from `low` to `high`.
 */
export function requireBigInt(name: string, value: unknown, low: bigint, high: bigint): bigint {
  if (typeof value !== "bigint" && !Number.isSafeInteger(value)) {
    refuseInput(name, "an integer, from 2**53 on as bigint", shown(value));
  }
  const number = BigInt(value as number);
  if (number < low || number > high) refuseInput(name, `${low} … ${high}`, oneLine(number, 80));
  return number;
}

/**
 * Check an integer that is a number, at most 2**53 - 1.
 *
 * @throws {InputError} it is not an integer from `low` to `high`.
 */
export function requireInteger(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== "number") refuseInput(name, `a number from ${low} to ${high}`, shown(value));
  return Number(requireBigInt(name, value, BigInt(low), BigInt(high)));
}

/**
 * Check a number.
 *
 * @throws {InputError} it is not a number from `low` to `high`.
 */
export function requireNumber(name: string, value: unknown, low: number, high: number): number {
  if (typeof value === "number" && value >= low && value <= high) return value;
  refuseInput(name, `a number from ${low} to ${high}`, shown(value));
}

/**
 * Check a boolean.
 *
 * @throws {InputError} it is neither true nor false.
 */
export function requireBool(name: string, value: unknown): boolean {
  if (typeof value === "boolean") return value;
  refuseInput(name, "true or false", shown(value));
}

/**
 * Check that a value is an object, all of whose names are known.
 *
 * @throws {InputError} it is no object, or has another name.
 */
export function requireNames(place: string, value: unknown, known: readonly string[]): asserts value is object {
  if (typeof value !== "object" || !value || isList(value)) {
    refuseInput(place, "an object of values by name", shown(value));
  }
  for (const name of Object.keys(value)) {
    if (!known.includes(name)) {
      refuseInput(place, known.length ? `one of ${known.join(", ")}` : "no names", shown(name), "leave it out");
    }
  }
}
