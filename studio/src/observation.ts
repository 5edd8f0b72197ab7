/** Draw observations of this bundle: pictures where they are such, else plots. */
import { type Range, drawPixels, grid, pictureShape, rangeOf } from "./picture.js";
import { drawPlot } from "./plots.js";
import type { About, Rows } from "./protocol.js";

const PLOT = 120;

/** Draws all observations of the page in one scale. */
export class Drawer {
  /** Channels, height and width; null where observations are no pictures. */
  readonly picture: [number, number, number] | null;
  /** The values shown darkest and brightest: the manifest's, or those of the sheet. */
  range: Range;

  constructor(about: About, rowShape: readonly number[]) {
    const { observation, likelihood } = about;
    this.picture = pictureShape(rowShape, likelihood.shape ? likelihood.axes : observation.axes);
    this.range = observation.range ?? [-1, 1];
    this.isFixed = observation.range !== null;
  }

  private readonly isFixed: boolean;

  /** Take the scale of a sheet, where the manifest gives none. */
  scaleTo(data: ArrayLike<number>): void {
    if (!this.isFixed) this.range = rangeOf(data);
  }

  /** Draw one row on a canvas: a picture in its own pixels, a plot in those of the screen, or `width` of them. */
  draw(canvas: HTMLCanvasElement, rows: Rows, row = 0, width = canvas.clientWidth * devicePixelRatio): void {
    const size = rows.data.length / rows.shape[0];
    const data = rows.data.subarray(row * size, (row + 1) * size);
    const shape = rows.shape.slice(1);
    canvas.classList.toggle("plot", !this.picture);
    if (this.picture) drawPixels(canvas, grid({ data, shape: [1, ...shape] }, this.picture, 1, this.range));
    else drawPlot(canvas, data, shape, this.range, Math.round(width) || PLOT);
  }

  /** The width of observations by their height, for style sheets. */
  get aspect(): string {
    return this.picture ? `${this.picture[2]} / ${this.picture[1]}` : "8 / 5";
  }

  /** A canvas that takes its place before anything is drawn on it; whoever puts it on the page describes it. */
  blank(): HTMLCanvasElement {
    const made = document.createElement("canvas");
    made.setAttribute("aria-hidden", "true");
    made.style.aspectRatio = this.aspect;
    return made;
  }

  /** A canvas with one row. */
  canvas(rows: Rows, row = 0, width = 0): HTMLCanvasElement {
    const made = document.createElement("canvas");
    this.draw(made, rows, row, width);
    return made;
  }
}

/** One row of several. */
export function rowOf({ data, shape }: Rows, row: number): Rows {
  const size = data.length / shape[0];
  return { data: data.slice(row * size, (row + 1) * size), shape: [1, ...shape.slice(1)] };
}
