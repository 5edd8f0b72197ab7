/** The kinds of likelihood p(x|z): what each takes, its log density and its draws. Only this module names a kind. */
import type { FloatArray } from "./arrays.js";
import { refuseInput } from "./errors.js";
import { type Integer, OBSERVATION, normal, streamOf, uniform } from "./noise.js";

const LOG_2PI = Math.log(2 * Math.PI);
const MIN_LOG = -100;
const LARGE_RATE = 1024;

/** One kind of likelihood. */
export interface Kind {
  /** Whether the decoder may also give logits, which `logProb` then takes instead of the mean. */
  logits: boolean;
  /** Whether it has a scale: one positive number, or an output of the decoder. */
  scale: boolean;
  /** The values of x that it is defined for, for errors; any finite number where there is none. */
  values: string;
  isValue(x: number): boolean;
  /** log p of one value, in nats; `parameter` is the logit where there are logits, and else the mean. */
  logProb(x: number, parameter: number, scale: number, isLogit: boolean): number;
  /** The mean that belongs to a logit. */
  meanOf?(logit: number): number;
  /** Draw a value from its mean; `u` is uniform, and `eps` normal noise of the same word. */
  draw(mean: number, scale: number, u: number, eps: number): number;
}

const bernoulli: Kind = {
  logits: true,
  scale: false,
  values: "values in [0, 1]",
  isValue: (x) => x >= 0 && x <= 1,
  logProb(x, parameter, _, isLogit) {
    if (isLogit) return x * parameter - Math.max(parameter, 0) - Math.log1p(Math.exp(-Math.abs(parameter)));
    return x * Math.max(Math.log(parameter), MIN_LOG) + (1 - x) * Math.max(Math.log1p(-parameter), MIN_LOG);
  },
  meanOf: (logit) => 1 / (1 + Math.exp(-logit)),
  draw: (mean, _, u) => (u < mean ? 1 : 0),
};

const gaussian: Kind = {
  logits: false,
  scale: true,
  values: "finite values",
  isValue: Number.isFinite,
  logProb: (x, mean, scale) => -0.5 * ((x - mean) / scale) ** 2 - Math.log(scale) - 0.5 * LOG_2PI,
  draw: (mean, scale, _, eps) => mean + Math.fround(Math.fround(scale) * eps),
};

const laplace: Kind = {
  logits: false,
  scale: true,
  values: "finite values",
  isValue: Number.isFinite,
  logProb: (x, mean, scale) => -Math.abs((x - mean) / scale) - Math.log(2 * scale),
  draw(mean, scale, u) {
    const centered = u + 2 ** -25 - 0.5;
    return mean - scale * Math.sign(centered) * Math.log1p(-2 * Math.abs(centered));
  },
};

const poisson: Kind = {
  logits: false,
  scale: false,
  values: "counts (0, 1, 2, …)",
  isValue: (x) => Number.isInteger(x) && x >= 0,
  logProb(x, rate) {
    if (!this.isValue(x)) return -Infinity;
    return (x > 0 ? x * Math.log(rate) : 0) - rate - logFactorial(x);
  },
  draw(rate, _, u, eps) {
    if (!(rate >= 0 && rate < Infinity)) return NaN;
    return rate < LARGE_RATE ? countAt(u + 2 ** -25, rate) : largeCountAt(eps, rate);
  },
};

/** log count!: a sum of logarithms, then Stirling's series, whose error is below 1e-13. */
function logFactorial(count: number): number {
  if (count < 32) {
    let factorial = 1;
    for (let each = 2; each <= count; each++) factorial *= each;
    return Math.log(factorial);
  }
  const n = count + 1;
  return (n - 0.5) * Math.log(n) - n + 0.5 * LOG_2PI + (1 / 12 - (1 / 360 - 1 / 1260 / n ** 2) / n ** 2) / n;
}

/** The smallest count whose distribution function exceeds uniform noise; the sum begins 8 deviations below the rate. */
function countAt(u: number, rate: number): number {
  let count = Math.max(0, Math.floor(rate - 8 * Math.sqrt(rate)));
  let term = Math.exp(count * Math.log(Math.max(rate, 1)) - rate - logFactorial(count));
  for (let total = term; total <= u; total += term) term *= rate / ++count;
  return count;
}

/** Giles, Algorithm 955, ACM Transactions on Mathematical Software 42 (1), 2016, equation for Q_N2. */
function largeCountAt(eps: number, rate: number): number {
  const root = Math.sqrt(rate);
  const square = eps * eps;
  const first = rate + root * eps + (2 + square) / 6 - (eps * (2 + square)) / 72 / root;
  return Math.floor(first + (-8 / 405 + (7 / 810) * square + (square * square) / 270) / rate);
}

/** Every kind by its name in a manifest; "none" is the absence of a likelihood, and no kind. */
export const KINDS: ReadonlyMap<string, Kind> = new Map(Object.entries({ bernoulli, gaussian, laplace, poisson }));

/**
 * Draw one observation for each row (docs/noise.md, section 6).
 *
 * @param mean - [n, *shape].
 * @param scale - a number, or [n, *shape]; anything where the kind has none.
 * @returns float32 [n, *shape]; row i is sample `start + i` of the seed.
 */
export function drawObservations(
  kind: Kind, mean: FloatArray, scale: number | FloatArray, seed: Integer, start: Integer,
): FloatArray {
  const [n, ...shape] = mean.shape;
  const options = { stream: streamOf(OBSERVATION) };
  const u = uniform(seed, start, n, shape, options).data;
  const eps = normal(seed, start, n, shape, options).data;
  const data = mean.data.map((each, index) =>
    kind.draw(each, typeof scale === "number" ? scale : scale.data[index], u[index], eps[index]),
  );
  return { data, shape: mean.shape };
}

/**
 * log p(x|z), summed over each observation.
 *
 * @param answer - the decoder's mean, or its logits where `isLogit`; [n, *shape] as `x`.
 * @returns float64 [n], nats.
 */
export function logLikelihood(
  kind: Kind, x: ArrayLike<number | bigint>, n: number, answer: Float32Array, scale: number | Float32Array,
  isLogit: boolean,
): Float64Array {
  const size = answer.length / n;
  const total = new Float64Array(n);
  for (let index = 0; index < answer.length; index++) {
    const own = typeof scale === "number" ? scale : scale[index];
    total[Math.floor(index / size)] += kind.logProb(Number(x[index]), answer[index], own, isLogit);
  }
  return total;
}

/** @throws {InputError} the kind is not defined for a value. */
export function requireValues(kind: Kind, place: string, x: ArrayLike<number | bigint>): void {
  for (let index = 0; index < x.length; index++) {
    if (!kind.isValue(Number(x[index]))) {
      refuseInput(`${place}[${index}]`, `${kind.values} for this likelihood`, x[index], "give them as in training");
    }
  }
}
