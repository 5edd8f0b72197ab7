/** Write and read .npy files, format 1.0 of numpy. */

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0];

function headerOf(shape: readonly number[]): { text: string; length: number } {
  const tuple = `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': ${tuple}, }`;
  return { text, length: Math.ceil((10 + text.length + 1) / 64) * 64 - 10 };
}

/** Where the numbers begin in a file that `writeNpy` wrote, in bytes. */
export function firstByte(shape: readonly number[]): number {
  return headerOf(shape).length + 10;
}

/** The file of a float32 array. */
export function writeNpy(data: Float32Array, shape: readonly number[]): Blob {
  const { text, length } = headerOf(shape);
  const header = new TextEncoder().encode(`${text.padEnd(length - 1)}\n`);
  const content = new DataView(new ArrayBuffer(data.length * 4));
  data.forEach((value, index) => content.setFloat32(index * 4, value, true));
  return new Blob([new Uint8Array([...MAGIC, length & 255, length >> 8]), header, content.buffer]);
}

/**
 * The numbers of a file as float32, and their shape.
 *
 * @throws {Error} it is no .npy file of numbers in C order.
 */
export function readNpy(file: ArrayBuffer): { data: Float32Array; shape: number[] } {
  const bytes = new Uint8Array(file);
  const refused = (got: string) => new Error(`the file: expected a .npy file of numbers in C order, got ${got}; save it with numpy.save`);
  if (!MAGIC.slice(0, 6).every((each, index) => bytes[index] === each)) throw refused("another file");
  const view = new DataView(file);
  const [length, first] = bytes[6] === 1 ? [view.getUint16(8, true), 10] : [view.getUint32(8, true), 12];
  const header = new TextDecoder().decode(bytes.subarray(first, first + Math.min(length, 4096)));
  const type = /'descr': '[<|]([fiub]\d)'/.exec(header)?.[1];
  const size = type && { f4: 4, f8: 8, u1: 1, i1: 1, i4: 4, i8: 8, b1: 1 }[type];
  const shape = /'shape': \(([\d, ]*)\)/.exec(header)?.[1].split(",").filter((each) => each.trim()).map(Number);
  if (!size || !shape || !header.includes("'fortran_order': False")) throw refused(header.trim().slice(0, 80));
  const count = shape.reduce((all, each) => all * each, 1);
  if (bytes.length - first - length !== count * size) throw refused(`${bytes.length} bytes`);
  const readers: Record<string, (at: number) => number> = {
    f4: (at) => view.getFloat32(at, true), f8: (at) => view.getFloat64(at, true), u1: (at) => view.getUint8(at),
    i1: (at) => view.getInt8(at), i4: (at) => view.getInt32(at, true), i8: (at) => Number(view.getBigInt64(at, true)),
    b1: (at) => view.getUint8(at),
  };
  const read = readers[type!];
  return { data: Float32Array.from({ length: count }, (_, index) => read(first + length + index * size)), shape };
}
