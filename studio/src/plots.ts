/** Observations that are no pictures, as plots: bars of a vector, lines of sequences. */
import type { Range } from "./picture.js";

// Seen on light and on dark.
const COLORS = ["#3b82f6", "#e8833a", "#2ba471", "#c65bd3", "#d64550", "#8a94a6"];
const MAX_BARS = 48;
const MAX_LINES = 12;

/** Draw one observation: of shape [F] bars, or one line where they are many; else one line for each leading row. */
export function drawPlot(canvas: HTMLCanvasElement, data: Float32Array, shape: readonly number[], range: Range, size: number): void {
  canvas.width = size;
  canvas.height = Math.round(size * 0.625);
  const context = canvas.getContext("2d")!;
  const { width, height } = canvas;
  const [low, high] = [Math.min(0, range[0]), Math.max(range[1], range[0] + 1e-9)];
  const y = (value: number) => height - 2 - ((Math.min(high, Math.max(low, value)) - low) / (high - low || 1)) * (height - 4);
  context.clearRect(0, 0, width, height);
  context.fillStyle = "rgba(128, 128, 128, 0.6)";
  context.fillRect(0, Math.round(y(0)), width, 1);
  const length = shape.at(-1) ?? 1;
  const lines = Math.min(MAX_LINES, data.length / length);
  if (shape.length <= 1 && length <= MAX_BARS) {
    const step = width / length;
    context.fillStyle = COLORS[0];
    for (let i = 0; i < length; i++) {
      const top = y(data[i]);
      context.fillRect(i * step + step * 0.12, Math.min(top, y(0)), step * 0.76, Math.max(1, Math.abs(y(0) - top)));
    }
    return;
  }
  context.lineWidth = Math.max(1.25, size / 120);
  context.lineJoin = "round";
  for (let line = 0; line < lines; line++) {
    context.strokeStyle = COLORS[line % COLORS.length];
    context.beginPath();
    for (let i = 0; i < length; i++) {
      context.lineTo(length > 1 ? 1 + (i / (length - 1)) * (width - 2) : width / 2, y(data[line * length + i]));
    }
    context.stroke();
  }
}
