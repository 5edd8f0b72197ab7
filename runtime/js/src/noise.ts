/**
 * vnoise-1: seeded standard-normal noise with the same bits on every platform. docs/noise.md is the specification.
 *
 * A number is addressed by (seed, stream, sample, element). All steps are integers of 32 bits but for one exact
 * scaling by a power of two.
 */
import { type FloatArray, allocate, product } from "./arrays.js";
import { isList, refuseInput, requireBigInt, requireInteger, requireNames, requireNumber } from "./errors.js";
import { packedTable } from "./noise_table.js";
import { inflateSync } from "fflate";

export const TABLE_SHA256 = "43fd00c422474ae1034c4abb7591abbeca5d0a63f1b591f1ea5b8e25eb66bc3c";

/** What a draw is for: the low byte of its stream. */
export const PRIOR = 0;
export const POSTERIOR = 1;
export const OBSERVATION = 2;
export const IMPORTANCE = 3;
export const CHOICE = 4;

const ENTRIES = 32768;
const UINT64 = 2n ** 64n;

/** An integer; those of 2**53 and more as bigint. */
export type Integer = number | bigint;

/** The stream, and the bound of the noise. */
export interface NoiseOptions {
  stream?: number;
  truncation?: number | null;
}

/** A fresh seed below 2**53. */
export function newSeed(): number {
  const [low, high] = crypto.getRandomValues(new Uint32Array(2));
  return (high >>> 11) * 2 ** 32 + low;
}

/** The stream of a purpose and the number of the latent it is for. */
export function streamOf(purpose: number, latent = 0): number {
  return purpose + 256 * latent;
}

/** The index `by` samples after `start`; indices wrap at 2**64. */
export function advance(start: Integer, by: number): Integer {
  return by ? (requireBigInt("start", start, 0n, UINT64 - 1n) + BigInt(by)) % UINT64 : start;
}

/**
 * Draw standard-normal noise.
 *
 * @param seed - -2**63 … 2**64 - 1; a negative seed is its two's complement.
 * @param start - global index of the first sample, 0 … 2**64 - 1; indices wrap at 2**64.
 * @param n - number of samples.
 * @param shape - shape of one sample, at most 2**34 elements.
 * @param options - `stream`, 0 unless given; `truncation`, 0.01 … 1e6: no number is beyond ± this.
 * @returns float32 [n, *shape]; row i is sample `start + i` of the seed.
 * @throws {InputError} an argument is out of its range.
 */
export function normal(
  seed: Integer, start: Integer, n: number, shape: readonly number[], options: NoiseOptions = {},
): FloatArray {
  requireNames("normal", options, ["stream", "truncation"]);
  const { stream = 0, truncation = null } = options;
  let nearest = 0;
  if (truncation !== null) {
    nearest = nearestTail(Math.floor(requireNumber("truncation", truncation, 0.01, 1e6) * 2 ** 21));
  }
  const [out, elements, sizes] = allocated(Float32Array, n, shape);
  draw(seed, start, stream, out.length / (elements || 1), elements, (words, at, count) => {
    normalOf(words, out, at, count, nearest);
  });
  return { data: out, shape: [n, ...sizes] };
}

/** Draw uniform noise in [0, 1), a multiple of 2**-24, from the same words as `normal`. */
export function uniform(
  seed: Integer, start: Integer, n: number, shape: readonly number[], options: { stream?: number } = {},
): FloatArray {
  requireNames("uniform", options, ["stream"]);
  const [out, elements, sizes] = allocated(Float32Array, n, shape);
  draw(seed, start, options.stream ?? 0, out.length / (elements || 1), elements, (words, at, count) => {
    for (let i = 0; i < count; i++) out[at + i] = (words[i] >>> 8) * 2 ** -24;
  });
  return { data: out, shape: [n, ...sizes] };
}

/** Draw the words themselves. */
export function words(
  seed: Integer, start: Integer, n: number, shape: readonly number[], options: { stream?: number } = {},
): { data: Uint32Array; shape: number[] } {
  requireNames("words", options, ["stream"]);
  const [out, elements, sizes] = allocated(Uint32Array, n, shape);
  draw(seed, start, options.stream ?? 0, out.length / (elements || 1), elements, (part, at, count) => {
    for (let i = 0; i < count; i++) out[at + i] = part[i];
  });
  return { data: out, shape: [n, ...sizes] };
}

function allocated<T>(
  type: new (length: number) => T, n: number, shape: readonly number[],
): [T, number, number[]] {
  const count = requireInteger("n", n, 0, 2 ** 48);
  if (!isList(shape) || shape.length > 32) refuseInput("shape", "a list of at most 32 sizes", shape);
  const sizes = Array.from(shape, (size, axis) => requireInteger(`shape[${axis}]`, size, 0, 2 ** 34));
  const largest = product(sizes.filter(Boolean));
  if (largest > 2 ** 34) refuseInput("shape", "at most 2**34 elements in one sample", largest);
  const elements = product(sizes);
  return [allocate(type, "n", count, elements, "draw fewer at a time and move start on"), elements, sizes];
}

// Words that are worked on at once: they and their numbers stay in the caches.
const CHUNK = 4096;

function draw(
  seed: Integer, start: Integer, stream: number, n: number, elements: number,
  take: (words: Int32Array, at: number, count: number) => void,
): void {
  const key = BigInt.asUintN(64, requireBigInt("seed", seed, -(2n ** 63n), UINT64 - 1n));
  const first = requireBigInt("start", start, 0n, UINT64 - 1n);
  requireInteger("stream", stream, 0, 2 ** 32 - 1);
  if (!elements) return;
  const keys = roundKeys(Number(key & 0xffffffffn) | 0, Number(key >> 32n) | 0);
  let low = Number(first & 0xffffffffn);
  let high = Number(first >> 32n);
  const blocks = Math.ceil(elements / 4);
  // Whole rows at once where no word of them is dropped.
  const together = elements % 4 ? 1 : Math.max(1, Math.min(n, Math.floor(CHUNK / elements)));
  const words = new Int32Array(Math.min(Math.max(CHUNK, 4), 4 * blocks * together));
  for (let row = 0; row < n; row += together) {
    const rows = Math.min(together, n - row);
    for (let element = 0; element < elements; element += CHUNK) {
      const count = Math.min(CHUNK, elements - element);
      const each = Math.ceil(count / 4);
      for (let i = 0; i < rows; i++) {
        philox(words, 4 * each * i, each, element / 4, stream | 0, low | 0, high | 0, keys);
        if (element + count === elements) {
          low = (low + 1) >>> 0;
          if (low === 0) high = (high + 1) >>> 0;
        }
      }
      take(words, row * elements + element, rows * count);
    }
  }
}

function roundKeys(key0: number, key1: number): Int32Array {
  const keys = new Int32Array(20);
  for (let round = 0; round < 10; round++) {
    keys[2 * round] = key0 + Math.imul(round, 0x9e3779b9);
    keys[2 * round + 1] = key1 + Math.imul(round, 0xbb67ae85);
  }
  return keys;
}

/** Philox4x32-10: the words of `blocks` blocks from `block` on, from the index `at` on. */
function philox(
  words: Int32Array, at: number, blocks: number, block: number, stream: number, low: number, high: number,
  keys: Int32Array,
): void {
  for (let index = 0; index < blocks; index++, at += 4) {
    let a = (block + index) | 0;
    let b = stream;
    let c = low;
    let d = high;
    for (let round = 0; round < 20; round += 2) {
      // The upper halves of 0xD2511F53 · a and 0xCD9E8D57 · c, by halves of 16 bits, of which no sum passes 2**32.
      const a0 = a & 0xffff;
      const a1 = a >>> 16;
      const s = (Math.imul(a1, 0x1f53) + (Math.imul(a0, 0x1f53) >>> 16)) | 0;
      const t = (Math.imul(a0, 0xd251) + (s & 0xffff)) | 0;
      const p = (Math.imul(a1, 0xd251) + (s >>> 16) + (t >>> 16)) | 0;
      const c0 = c & 0xffff;
      const c1 = c >>> 16;
      const u = (Math.imul(c1, 0x8d57) + (Math.imul(c0, 0x8d57) >>> 16)) | 0;
      const v = (Math.imul(c0, 0xcd9e) + (u & 0xffff)) | 0;
      const q = (Math.imul(c1, 0xcd9e) + (u >>> 16) + (v >>> 16)) | 0;
      const lower = Math.imul(a, 0xd2511f53 | 0);
      a = q ^ b ^ keys[round];
      b = Math.imul(c, 0xcd9e8d57 | 0);
      c = p ^ d ^ keys[round + 1];
      d = lower;
    }
    words[at] = a;
    words[at + 1] = b;
    words[at + 2] = c;
    words[at + 3] = d;
  }
}

let table: Int32Array | undefined;

/** The quantile table Q, and from 32768 on its differences D (specification, section 3). */
export function quantiles(): Int32Array {
  if (table) return table;
  const packed = inflateSync(Uint8Array.from(atob(packedTable), (c) => c.charCodeAt(0)));
  const both = new Int32Array(2 * ENTRIES);
  // The second difference of each entry, modulo 2**24, as three planes of bytes, most of which are equal.
  for (let i = 0, first = 0, value = 0; i < ENTRIES; i++) {
    const second = packed[i] | (packed[ENTRIES + i] << 8) | (packed[2 * ENTRIES + i] << 16);
    first = (first + second) & 0xffffff;
    value = (value + first) & 0xffffff;
    both[i] = value;
  }
  for (let i = 0; i < 3 * 8192; i++) {
    // After the last entry of a level comes entry 128 of the level before it; after that of the first, 0.
    const next = (i & 8191) < 8191 ? both[i + 1] : i > 8191 ? both[i - 16383 + 128] : 0;
    both[ENTRIES + i] = (i & 8191) < 128 ? 0 : both[i] - next;
  }
  return (table = both);
}

/** The normal number of one word, in units of 2**-21. */
function fixed(word: number, both: Int32Array): number {
  const m = word & 0x7fffffff;
  const level = (m < 1 << 25 ? 1 : 0) + (m < 1 << 19 ? 1 : 0) + (m < 1 << 13 ? 1 : 0);
  const t = m << (6 * level);
  const i = (t >> 18) + 8192 * level;
  const y = both[i] - ((both[i + ENTRIES] * ((t >> 3) & 0x7fff)) >> 15);
  return word < 0 ? -y : y;
}

function normalOf(words: Int32Array, out: Float32Array, at: number, count: number, nearest: number): void {
  const both = quantiles();
  if (nearest) {
    for (let i = 0; i < count; i++) words[i] = truncated(words[i], nearest);
  }
  for (let i = 0; i < count; i++) {
    const word = words[i];
    const m = word & 0x7fffffff;
    const j = m >> 18;
    // One word in 64 lies in a tail, where the table is finer.
    const y = j < 128 ? fixed(m, both) : both[j] - (Math.imul(both[j + ENTRIES], (m >> 3) & 0x7fff) >> 15);
    const sign = word >> 31;
    out[at + i] = ((y ^ sign) - sign) * 2 ** -21;
  }
}

/** The smallest tail distance of which the normal number is at most `bound` units of 2**-21. */
function nearestTail(bound: number): number {
  const both = quantiles();
  let low = 0;
  let high = 2 ** 31 - 1;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (fixed(middle, both) <= bound) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The word with its tail distance moved from 0 … 2**31 - 1 to `nearest` … 2**31 - 1, evenly. */
function truncated(word: number, nearest: number): number {
  // The product of 62 bits in two parts, each exact in a double.
  const range = 2 ** 31 - nearest;
  const m = word & 0x7fffffff;
  const moved = Math.floor(((m >>> 16) * range + Math.floor(((m & 0xffff) * range) / 65536)) / 32768);
  return (word & 0x80000000) | (nearest + moved);
}
