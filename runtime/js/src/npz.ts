/** Read .npz files of a bundle: arrays of known dtypes and shapes, never anything else. */
import { inflateSync } from "fflate";

import { product } from "./arrays.js";
import { BundleError, EXPORT, errorLine, listed, refuseBundle } from "./errors.js";
import { type Member, crc32, readDirectory } from "./zip.js";

export type NpzData = Float32Array | Float64Array | BigInt64Array;

/** The dtype and the shape of an array. */
export interface Expected {
  dtype: "float32" | "float64" | "int64";
  shape: number[];
}

const HEADER = 4096;
const MAX_UNPACKED = 2 ** 25;
const TYPES = {
  float32: [4, "<f4", Float32Array], float64: [8, "<f8", Float64Array], int64: [8, "<i8", BigInt64Array],
} as const;

const sizeOf = ({ dtype, shape }: Expected): number => TYPES[dtype][0] * product(shape);

/** How many bytes an .npz file of these arrays has at most. */
export function packedLimit(expected: Map<string, Expected>): number {
  const values = [...expected.values()].reduce((all, each) => all + sizeOf(each), 0);
  return 2 * values + expected.size * 4 * HEADER + 2 ** 20;
}

/**
 * Read arrays from an .npz file.
 *
 * @throws {BundleError} the file is damaged, or an array is missing or of another dtype or shape.
 */
export function unpackNpz(content: Uint8Array, place: string, expected: Map<string, Expected>): Map<string, NpzData> {
  const arrays = new Map<string, NpzData>();
  try {
    const members = readDirectory(content, (isRight, what, got = "another") => {
      if (!isRight) refuseBundle(place, `an .npz file: ${what}`, got, EXPORT);
    }, false);
    const wanted = [...expected].map(([name, own]) => [name, own, members.get(`${name}.npy`)] as const);
    const total = wanted.reduce((all, [, , member]) => all + (member?.size ?? 0), 0);
    if (total > MAX_UNPACKED + 256 * content.length) throw new Error("it unpacks to far more than its own size");
    for (const [name, own, member] of wanted) {
      // Never more bytes than the array may have.
      const isLarge = member && member.size > sizeOf(own) + HEADER;
      const got = !member ? "nothing" : isLarge ? "a larger array" : read(unpacked(name, member), own);
      if (typeof got === "string") {
        refuseBundle(`${place}: ${name}`, `${own.dtype} ${listed(own.shape)}`, got, EXPORT);
      }
      arrays.set(name, got);
    }
  } catch (error) {
    if (error instanceof BundleError) throw error;
    refuseBundle(place, "an .npz file", errorLine(error), EXPORT);
  }
  return arrays;
}

function unpacked(name: string, { content, isPacked, size, crc }: Member): Uint8Array {
  const bytes = isPacked ? inflateSync(content, { out: new Uint8Array(size) }) : content;
  if (bytes.length !== size || crc32(bytes) !== crc) throw new Error(`the CRC-32 of ${name} is another`);
  return bytes;
}

/** The values of an .npy file, or what it is instead. */
function read(content: Uint8Array, { dtype, shape }: Expected): NpzData | string {
  const [size, descr, type] = TYPES[dtype];
  const view = new DataView(content.buffer, content.byteOffset, content.length);
  const magic = String.fromCharCode(...content.subarray(0, 6));
  if (content.length < 12 || magic !== "\u0093NUMPY") return "bytes that are no array";
  const start = content[6] === 1 ? 10 : 12;
  const end = start + (start === 10 ? view.getUint16(8, true) : view.getUint32(8, true));
  if (end > content.length || end > HEADER) return "bytes that are no array";
  const header = new TextDecoder("latin1").decode(content.subarray(start, end));
  const form = /^\{'descr': '([^']{1,9})', 'fortran_order': (False|True), 'shape': \(([0-9, ]*)\), ?\}\s*$/.exec(header);
  if (!form) return "bytes that are no array";
  const sizes = form[3].split(",").map((each) => each.trim()).filter(Boolean).map(Number);
  const isSame = sizes.length === shape.length && sizes.every((each, axis) => each === shape[axis]);
  const isColumns = form[2] === "True" && sizes.length > 1;
  if (form[1] !== descr || !isSame || isColumns) return `${form[1]} ${listed(sizes)}${isColumns ? " by columns" : ""}`;
  if (content.length - end < size * product(shape)) return "fewer values";
  return new type(content.slice(end, end + size * product(shape)).buffer);
}
