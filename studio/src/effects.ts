/** How much each number of the latent changes what is decoded. */
import { type App, decode, extentOf } from "./app.js";

const BUDGET = 3000;
const SLICE = 32;

/** The mean change of the result between two values of each number, at zeros; null where it would take too long. */
export async function measureEffects(app: App): Promise<Float32Array | null> {
  const { size } = app.about;
  if (app.cost === null || app.cost * size * 2 > BUDGET) return null;
  const effects = new Float32Array(size);
  for (let first = 0; first < size; first += SLICE) {
    const n = Math.min(SLICE, size - first);
    const z = new Float32Array(2 * n * size);
    for (let i = 0; i < n; i++) {
      const half = extentOf(app, first + i)[1] / 2;
      z[2 * i * size + first + i] = half;
      z[(2 * i + 1) * size + first + i] = -half;
    }
    const rows = await decode(app, z, 2 * n, "effects", 0);
    if (!rows) return null;
    const each = rows.data.length / (2 * n);
    for (let i = 0; i < n; i++) {
      let total = 0;
      for (let k = 0; k < each; k++) total += Math.abs(rows.data[2 * i * each + k] - rows.data[(2 * i + 1) * each + k]);
      effects[first + i] = total / each;
    }
  }
  return effects;
}

/** The `many` strongest places, the strongest first; without effects, the first ones. */
export function strongest(effects: Float32Array | null, size: number, many: number): number[] {
  const places = Array.from({ length: size }, (_, place) => place);
  if (effects) places.sort((a, b) => effects[b] - effects[a] || a - b);
  return places.slice(0, many);
}
