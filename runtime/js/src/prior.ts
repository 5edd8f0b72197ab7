/** Draw latents from a prior, with the same bits on every platform (docs/noise.md, section 5). */
import { type FloatArray, product } from "./arrays.js";
import type { Bundle } from "./bundle.js";
import { EXPORT, refuseBundle, refuseInput, requireNumber } from "./errors.js";
import type { Latent } from "./manifest.js";
import { type Integer, CHOICE, PRIOR, newSeed, normal, streamOf, uniform } from "./noise.js";
import { type Expected, packedLimit, unpackNpz } from "./npz.js";

const LOG_2PI = Math.log(2 * Math.PI);
const ROUNDING = 1e-6;

/**
 * Standard-normal noise, scaled.
 *
 * @param temperature - 0 … 1e6.
 * @returns float32 [n, *shape].
 */
export function drawNormal(
  seed: Integer | null, start: Integer, n: number, shape: readonly number[], stream: number, temperature = 1,
  truncation: number | null = null,
): FloatArray {
  requireNumber("temperature", temperature, 0, 1e6);
  const eps = normal(seed ?? newSeed(), start, n, shape, { stream, truncation });
  if (temperature !== 1) {
    const factor = Math.fround(temperature);
    eps.data.forEach((each, index) => (eps.data[index] = each * factor));
  }
  return eps;
}

/** A mixture of K normal distributions over latents of D elements; the factors are [K, D], or [K, D, D] if full. */
interface Mixture {
  weights: Float64Array;
  means: Float64Array;
  factors: Float64Array;
  isFull: boolean;
}

/** The priors of a bundle's latents. */
export class Prior {
  private readonly _mixtures = new Map<string, Mixture>();

  constructor(private readonly _bundle: Bundle) {}

  /**
   * Read the parameters of mixtures, which all draws need.
   *
   * @throws {BundleError} a file is damaged, or is not the one that the manifest describes.
   */
  async read(): Promise<void> {
    for (const latent of this._bundle.manifest.latents) {
      if (latent.prior.kind === "mixture" && !this._mixtures.has(latent.name)) {
        this._mixtures.set(latent.name, await readMixture(latent, this._bundle));
      }
    }
  }

  /**
   * Draw the latent of this number in the manifest.
   *
   * @returns float32 [n, *shape].
   * @throws {InputError} an argument is out of its range, or there is no prior to draw from.
   */
  drawOne(
    number: number, seed: Integer, start: Integer, n: number, shape: number[], temperature = 1,
    truncation: number | null = null,
  ): FloatArray {
    const latent = this._bundle.manifest.latents[number];
    const { name, prior } = latent;
    const stream = streamOf(PRIOR, number);
    if (prior.kind === "normal") return drawNormal(seed, start, n, shape, stream, temperature, truncation);
    if (prior.kind === "mixture") {
      const elements = product(latent.shape);
      const eps = drawNormal(seed, start, n, [elements], stream, temperature, truncation).data;
      const u = uniform(seed, start, n, [1], { stream: streamOf(CHOICE, number) }).data;
      return { data: mixed(this._mixtures.get(name)!, elements, eps, u), shape: [n, ...shape] };
    }
    if (prior.kind === "sphere") {
      if (temperature !== 1 || truncation !== null) {
        const expected = `neither, since the prior of ${name} is uniform on a sphere`;
        refuseInput("temperature and truncation", expected, [temperature, truncation], "leave them out");
      }
      return { data: onSphere(normal(seed, start, n, [product(shape)], { stream }).data, n), shape: [n, ...shape] };
    }
    const why = prior.reason ?? "no reason is given";
    refuseInput(`${name}: the bundle has no prior to draw from: ${why}; give latents to decode()`);
  }

  /** log p(z) of one latent in nats; minus infinity where a component has no spread. */
  logProb(latent: Latent, z: ArrayLike<number>): number {
    if (latent.prior.kind === "normal") {
      let total = 0;
      for (let d = 0; d < z.length; d++) total += -0.5 * (LOG_2PI + z[d] * z[d]);
      return total;
    }
    const { weights, means, factors, isFull } = this._mixtures.get(latent.name)!;
    const size = z.length;
    const eps = new Float64Array(size);
    const terms = Array.from(weights, (weight, k) => {
      let total = 0;
      for (let d = 0; d < size; d++) {
        const row = isFull ? (k * size + d) * size : k * size;
        let away = z[d] - means[k * size + d];
        if (isFull) for (let e = 0; e < d; e++) away -= factors[row + e] * eps[e];
        const factor = factors[row + d];
        eps[d] = away / factor;
        total += -0.5 * (eps[d] * eps[d] + LOG_2PI) - Math.log(Math.abs(factor));
      }
      return (Number.isNaN(total) ? -Infinity : total) + Math.log(weight);
    });
    return logSumExp(terms);
  }

  /** The mean and the standard deviation of a mixture of one diagonal component; null of any other prior. */
  oneNormal({ name, prior }: Latent): { mean: Float64Array; std: Float64Array } | null {
    if (prior.components !== 1 || prior.covariance !== "diagonal") return null;
    const { means, factors } = this._mixtures.get(name)!;
    return { mean: means, std: factors };
  }
}

/** log Σ exp of terms, of which none may be finite. */
export function logSumExp(terms: readonly number[]): number {
  const max = terms.reduce((a, b) => Math.max(a, b), -Infinity);
  const greatest = Number.isFinite(max) ? max : 0;
  return Math.log(terms.reduce((all, each) => all + Math.exp(each - greatest), 0)) + greatest;
}

/** In double, every product and every sum rounded, in the order of the elements. */
function mixed({ weights, means, factors, isFull }: Mixture, size: number, eps: Float32Array, u: Float32Array): Float32Array {
  const z = new Float32Array(eps.length);
  for (let row = 0; row < u.length; row++) {
    let k = 0;
    for (let sum = weights[0]; k < weights.length - 1 && !(sum > u[row]); sum += weights[k]) k++;
    for (let d = 0; d < size; d++) {
      let value = means[k * size + d];
      if (isFull) {
        for (let e = 0; e < size; e++) value += factors[(k * size + d) * size + e] * eps[row * size + e];
      } else value += factors[k * size + d] * eps[row * size + d];
      z[row * size + d] = value;
    }
  }
  return z;
}

function onSphere(eps: Float32Array, n: number): Float32Array {
  const size = eps.length / n;
  const points = new Float32Array(eps.length);
  for (let row = 0; row < n; row++) {
    let squares = 0;
    for (let at = row * size; at < (row + 1) * size; at++) squares += eps[at] * eps[at];
    for (let at = row * size; at < (row + 1) * size; at++) points[at] = eps[at] / Math.sqrt(squares);
  }
  return points;
}

async function readMixture({ name, shape, prior }: Latent, bundle: Bundle): Promise<Mixture> {
  const { components: count, covariance, file } = prior;
  const size = product(shape);
  const isFull = covariance === "full";
  const shapes = { weights: [count!], means: [count!, size], factors: isFull ? [count!, size, size] : [count!, size] };
  const expected = new Map(
    Object.entries(shapes).map(([key, each]): [string, Expected] => [`${name}/${key}`, { dtype: "float64", shape: each }]),
  );
  const place = bundle.place(file!);
  const arrays = unpackNpz(await bundle.read(file!, packedLimit(expected)), place, expected) as Map<string, Float64Array>;
  for (const [key, array] of arrays) {
    if (!array.every(Number.isFinite)) {
      refuseBundle(`${place}: ${key}`, "finite numbers", "NaN or infinity", EXPORT);
    }
  }
  const [weights, means, factors] = [...arrays.values()];
  const sum = weights.reduce((all, each) => all + each, 0);
  if (!weights.every((weight) => weight >= 0) || Math.abs(sum - 1) > ROUNDING) {
    refuseBundle(`${place}: ${name}/weights`, "numbers of at least 0 that add up to 1", `a sum of ${sum}`, EXPORT);
  }
  return { weights, means, factors, isFull };
}
