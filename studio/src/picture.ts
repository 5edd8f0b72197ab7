/** Observations as pictures, with the pixels that vae_runtime.image gives them. */
import type { Rows } from "./protocol.js";

/** Pixels of a picture, as ImageData has them. */
export interface Pixels {
  data: Uint8ClampedArray<ArrayBuffer>;
  width: number;
  height: number;
}

/** The values shown darkest and brightest. */
export type Range = readonly [number, number];

const GAP = 64;

/** The level 0 … 255 of a value: in float32, and halves to even, as numpy computes it. */
export function levelOf(value: number, [low, high]: Range): number {
  const scaled = Math.fround(Math.fround(value - Math.fround(low)) / Math.fround(high > low ? high - low : 1));
  const level = Math.fround(Math.min(1, Math.max(0, scaled)) * 255);
  const down = Math.floor(level);
  const rest = level - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

/** The channels, the height and the width of observations that are pictures; null of others. */
export function pictureShape(shape: readonly number[], axes: readonly string[]): [number, number, number] | null {
  const [channels, height, width] = shape.length === 2 ? [1, ...shape] : shape;
  const isNamed = !axes.length || (axes.at(-1) === "width" && axes.at(-2) === "height");
  if (![2, 3].includes(shape.length) || ![1, 3, 4].includes(channels) || !isNamed) return null;
  return axes.length || Math.min(height, width) > 3 ? [channels, height, width] : null;
}

/** The least and the greatest value, as a range. */
export function rangeOf(data: ArrayLike<number>): Range {
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < data.length; i++) {
    if (data[i] < low) low = data[i];
    if (data[i] > high) high = data[i];
  }
  return low <= high ? [low, high] : [0, 1];
}

/** Lay pictures out in rows of `columns`, a dark line between them, as vae_runtime.image.grid does. */
export function grid({ data, shape }: Rows, [channels, height, width]: [number, number, number], columns: number, range: Range): Pixels {
  const n = shape[0];
  const across = Math.min(columns, n);
  const down = Math.ceil(n / across);
  const canvas = { width: across * (width + 1) - 1, height: down * (height + 1) - 1 };
  const pixels = new Uint8ClampedArray(canvas.width * canvas.height * 4);
  for (let at = 0; at < pixels.length; at++) pixels[at] = at % 4 === 3 && channels < 4 ? 255 : GAP;
  for (let index = 0; index < n; index++) {
    const top = Math.floor(index / across) * (height + 1);
    const left = (index % across) * (width + 1);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const to = ((top + y) * canvas.width + left + x) * 4;
        for (let channel = 0; channel < Math.max(3, channels); channel++) {
          const plane = channels === 1 ? 0 : channel;
          pixels[to + channel] = levelOf(data[((index * channels + plane) * height + y) * width + x], range);
        }
      }
    }
  }
  return { data: pixels, ...canvas };
}

/** Enlarge pixels by a whole factor. */
export function enlarged({ data, width, height }: Pixels, factor: number): Pixels {
  const large = { width: width * factor, height: height * factor };
  const [from, pixels] = [new Uint32Array(data.buffer), new Uint32Array(large.width * large.height)];
  for (let y = 0; y < large.height; y++) {
    const row = Math.floor(y / factor) * width;
    for (let x = 0; x < large.width; x++) pixels[y * large.width + x] = from[row + Math.floor(x / factor)];
  }
  return { data: new Uint8ClampedArray(pixels.buffer), ...large };
}

/** Draw pixels on a canvas of their size. */
export function drawPixels(canvas: HTMLCanvasElement, { data, width, height }: Pixels): void {
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d")!.putImageData(new ImageData(data, width, height), 0, 0);
}

/** A PNG file of pixels, small ones enlarged as the command line does. */
export function png(pixels: Pixels): Promise<Blob> {
  const canvas = document.createElement("canvas");
  drawPixels(canvas, enlarged(pixels, Math.max(1, roundHalfEven(400 / Math.min(pixels.width, pixels.height)))));
  return new Promise((done) => canvas.toBlob((blob) => done(blob!), "image/png"));
}

/** The nearest whole number, the even one of two. */
export function roundHalfEven(value: number): number {
  const down = Math.floor(value);
  return value - down < 0.5 || (value - down === 0.5 && down % 2 === 0) ? down : down + 1;
}
