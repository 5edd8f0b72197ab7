import { isList, refuseInput } from "./errors.js";

/** Numbers in row-major order, and their shape. */
export interface FloatArray {
  data: Float32Array;
  shape: number[];
}

/** Floats, or the integers of codes and classes. */
export interface NumberArray {
  data: Float32Array | BigInt64Array;
  shape: number[];
}

/** The product of sizes. */
export function product(sizes: readonly number[]): number {
  return sizes.reduce((all, size) => all * size, 1);
}

/**
 * Zeros for `count` parts of a size.
 *
 * @throws {InputError} they do not fit in memory.
 */
export function allocate<T>(type: new (length: number) => T, name: string, count: number, size: number, next: string): T {
  try {
    return new type(count * size);
  } catch {
    refuseInput(name, "as many as fit in memory", count, next);
  }
}

/** Whether a value is `{ data, shape }`, with as many values as its shape has. */
export function isWhole(array: { data: ArrayLike<unknown>; shape: readonly number[] } | undefined): boolean {
  return isList(array?.shape) && array.data?.length === product(array.shape);
}

/** Rows `first` to `last` - 1 of an array, as a view. */
export function rowsOf<T extends NumberArray>(array: T, first: number, last: number): T {
  const size = product(array.shape.slice(1));
  return { data: array.data.subarray(first * size, last * size), shape: [last - first, ...array.shape.slice(1)] } as T;
}

/** Each row `count` times. */
export function repeatedRows<T extends NumberArray>(array: T, count: number): T {
  const size = product(array.shape.slice(1));
  const rows = array.shape[0];
  const data = new (array.data.constructor as Float32ArrayConstructor)(rows * count * size);
  for (let row = 0; row < rows; row++) {
    const part = array.data.subarray(row * size, (row + 1) * size) as Float32Array;
    for (let copy = 0; copy < count; copy++) data.set(part, (row * count + copy) * size);
  }
  return { data, shape: [rows * count, ...array.shape.slice(1)] } as unknown as T;
}

/** An array divided along an axis into parts of these lengths. */
export function partsOf<T extends NumberArray>(array: T, axis: number, lengths: readonly number[]): T[] {
  const { data, shape } = array;
  const [before, after] = [product(shape.slice(0, axis)), product(shape.slice(axis + 1))];
  let start = 0;
  return lengths.map((length) => {
    const part = new (data.constructor as Float32ArrayConstructor)(before * length * after);
    for (let index = 0; index < before; index++) {
      const first = (index * shape[axis] + start) * after;
      part.set(data.subarray(first, first + length * after) as Float32Array, index * length * after);
    }
    start += length;
    return { data: part, shape: shape.map((size, index) => (index === axis ? length : size)) } as unknown as T;
  });
}

/** Arrays one after the other along an axis. */
export function joined(parts: readonly FloatArray[], axis: number): FloatArray {
  if (parts.length === 1) return parts[0];
  const shape = [...parts[0].shape];
  const [before, after] = [product(shape.slice(0, axis)), product(shape.slice(axis + 1))];
  shape[axis] = parts.reduce((all, part) => all + part.shape[axis], 0);
  const data = new Float32Array(product(shape));
  let start = 0;
  for (const part of parts) {
    const size = part.shape[axis] * after;
    for (let index = 0; index < before; index++) {
      data.set(part.data.subarray(index * size, (index + 1) * size), index * shape[axis] * after + start);
    }
    start += size;
  }
  return { data, shape };
}

/** Whether two shapes are equal. */
export function isSameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}
