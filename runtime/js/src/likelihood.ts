/** The kinds of likelihood p(x|z): what each takes, its log density and its draws. Only this module names a kind. */
import type { FloatArray } from "./arrays.js";
import { refuseInput } from "./errors.js";
import type { Manifest } from "./manifest.js";
import { type Integer, OBSERVATION, normal, streamOf, uniform } from "./noise.js";

const LOG_2PI = Math.log(2 * Math.PI);
const MIN_LOG = -100;
const LARGE_RATE = 1024;
const LEVELS = 256;
// How far a value may be from a level, in distances of two levels: float32 rounds levels.
const OFF_LEVEL = 0.01;

/** One kind of likelihood. */
export interface Kind {
  /** Whether the decoder may also give logits, which `logProb` then takes instead of the mean. */
  logits: boolean;
  /** Whether it has a scale: one positive number, or an output of the decoder. */
  scale: boolean;
  /** How many classes x is the number of, along the last axis of the decoder's answer; 0 where x is no class. */
  classes: number;
  /** Whether x lies on levels of the observation's range. */
  levels: boolean;
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

/** What a kind has where it says nothing else. */
const PLAIN = { logits: false, scale: false, classes: 0, levels: false };

const bernoulli: Kind = {
  ...PLAIN,
  logits: true,
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
  ...PLAIN,
  scale: true,
  values: "finite values",
  isValue: Number.isFinite,
  logProb: (x, mean, scale) => -0.5 * ((x - mean) / scale) ** 2 - Math.log(scale) - 0.5 * LOG_2PI,
  draw: (mean, scale, _, eps) => mean + Math.fround(Math.fround(scale) * eps),
};

const laplace: Kind = {
  ...PLAIN,
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
  ...PLAIN,
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

/** A logistic variable, rounded to the nearest of 256 levels of a range: arXiv 1701.05517, equation 2. */
function logistic([low, high]: readonly [number, number]): Kind {
  const step = (high - low) / (LEVELS - 1);
  const numberOf = (x: number) => ((x - low) * (LEVELS - 1)) / (high - low);
  const nearest = (x: number) => {
    const number = Math.round(numberOf(x));
    return number >= 0 && number < LEVELS && Math.abs(numberOf(x) - number) <= OFF_LEVEL ? number : -1;
  };
  return {
    ...PLAIN,
    scale: true,
    levels: true,
    values: `the ${LEVELS} levels ${low} + k · ${step} up to ${high}`,
    isValue: (x) => nearest(x) >= 0,
    logProb(x, mean, scale) {
      const number = nearest(x);
      if (number < 0) return -Infinity;
      const level = low + number * step;
      const above = number === LEVELS - 1 ? 0 : -softplus(-(level + step / 2 - mean) / scale);
      const below = number === 0 ? 0 : -softplus((level - step / 2 - mean) / scale);
      const isInside = number > 0 && number < LEVELS - 1;
      return above + below + (isInside ? Math.log(-Math.expm1(-step / scale)) : 0);
    },
    draw(mean, scale, u) {
      const moved = u + 2 ** -25;
      const value = (Math.log(moved) - Math.log1p(-moved)) * scale + mean;
      const number = Math.min(Math.max(Math.floor(numberOf(value) + 0.5), 0), LEVELS - 1);
      return low + (number * (high - low)) / (LEVELS - 1);
    },
  };
}

/** log(1 + exp(x)), without an overflow. */
function softplus(x: number): number {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** The number of one of several classes; its functions of all classes are `logProbOfClass`, `drawClass`, `softmax`. */
function categorical(classes: number): Kind {
  const takesRows = (): never => {
    throw new Error("classes are drawn and scored by rows");
  };
  return {
    ...PLAIN,
    logits: true,
    classes,
    values: `classes 0 … ${classes - 1}`,
    isValue: (x) => Number.isInteger(x) && x >= 0 && x < classes,
    logProb: takesRows,
    draw: takesRows,
  };
}

/** log p of a class, from the logits or the probabilities of all. */
function logProbOfClass(x: number, row: Float32Array, isLogit: boolean): number {
  if (!(x in row)) return -Infinity;
  if (!isLogit) return Math.max(Math.log(row[x]), MIN_LOG);
  const greatest = row.reduce((a, b) => Math.max(a, b));
  let total = 0;
  for (const each of row) total += Math.exp(each - greatest);
  return row[x] - greatest - Math.log(total);
}

/** The first class whose sum of probabilities from class 0 on exceeds its share of the whole sum. */
function drawClass(row: Float32Array, u: number): number {
  let total = 0;
  for (const each of row) total += each;
  if (!(total > 0 && total < Infinity)) return NaN;
  let sum = 0;
  return row.findIndex((each) => (sum += each) > u * total);
}

function softmax(row: Float32Array): number[] {
  const greatest = row.reduce((a, b) => Math.max(a, b));
  const exponentials = Array.from(row, (each) => Math.exp(each - greatest));
  const total = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((each) => each / total);
}

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

const KINDS: ReadonlyMap<string, Kind> = new Map(Object.entries({ bernoulli, gaussian, laplace, poisson }));

/** The kind of a manifest's likelihood, for its observations; null for "none", the absence of a likelihood. */
export function kindOf({ likelihood, observation }: Pick<Manifest, "likelihood" | "observation">): Kind | null {
  if (likelihood.kind === "logistic") return logistic(observation.range ?? [0, 1]);
  if (likelihood.kind === "categorical") return categorical(likelihood.shape?.at(-1) ?? 1);
  return KINDS.get(likelihood.kind) ?? null;
}

/** The mean that belongs to each of an answer's logits. */
export function meansOf(kind: Kind, logits: Float32Array): ArrayLike<number> {
  if (!kind.classes) return Array.from(logits, kind.meanOf!);
  return rowsOfClasses(kind, logits).flatMap(softmax);
}

/** The probabilities or logits of all classes, for each value. */
function rowsOfClasses({ classes }: Kind, answer: Float32Array): Float32Array[] {
  return Array.from({ length: answer.length / classes }, (_, at) => answer.subarray(at * classes, (at + 1) * classes));
}

/**
 * Draw one observation for each row (docs/noise.md, section 6).
 *
 * @param mean - [n, *shape]; of classes [n, *shape, K].
 * @param scale - a number, or [n, *shape]; anything where the kind has none.
 * @returns float32 [n, *shape]; row i is sample `start + i` of the seed.
 */
export function drawObservations(
  kind: Kind, mean: FloatArray, scale: number | FloatArray, seed: Integer, start: Integer,
): FloatArray {
  const [n, ...shape] = kind.classes ? mean.shape.slice(0, -1) : mean.shape;
  const options = { stream: streamOf(OBSERVATION) };
  const u = uniform(seed, start, n, shape, options).data;
  if (kind.classes) {
    return { data: Float32Array.from(rowsOfClasses(kind, mean.data), (row, at) => drawClass(row, u[at])), shape: [n, ...shape] };
  }
  const eps = normal(seed, start, n, shape, options).data;
  const data = mean.data.map((each, index) =>
    kind.draw(each, typeof scale === "number" ? scale : scale.data[index], u[index], eps[index]),
  );
  return { data, shape: mean.shape };
}

/**
 * The terms of log p(x|z), one for each value of x.
 *
 * @param answer - the decoder's mean, or its logits where `isLogit`; [n, *shape] as `x`, of classes [n, *shape, K].
 * @returns float64 [n · size of an observation], nats.
 */
export function logLikelihoodTerms(
  kind: Kind, x: ArrayLike<number | bigint>, answer: Float32Array, scale: number | Float32Array, isLogit: boolean,
): Float64Array {
  if (kind.classes) {
    return Float64Array.from(rowsOfClasses(kind, answer), (row, at) => logProbOfClass(Number(x[at]), row, isLogit));
  }
  return Float64Array.from(answer, (each, index) =>
    kind.logProb(Number(x[index]), each, typeof scale === "number" ? scale : scale[index], isLogit),
  );
}

/** @throws {InputError} the kind is not defined for a value. */
export function requireValues(kind: Kind, place: string, x: ArrayLike<number | bigint>): void {
  for (let index = 0; index < x.length; index++) {
    if (!kind.isValue(Number(x[index]))) {
      refuseInput(`${place}[${index}]`, `${kind.values} for this likelihood`, x[index], "give them as in training");
    }
  }
}
