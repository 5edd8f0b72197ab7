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

/** Whether two shapes are equal. */
export function isSameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}
