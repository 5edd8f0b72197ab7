/** The latents of observations as an encoder gives them: a distribution of each, or the latent itself. */
import { type FloatArray, type NumberArray, isSameShape, isWhole } from "./arrays.js";
import { InputError, listed, refuseInput, requireNames, shown } from "./errors.js";
import type { Latent } from "./manifest.js";
import { type Integer, POSTERIOR, newSeed, streamOf } from "./noise.js";
import { drawNormal } from "./prior.js";

const LOG_2PI = Math.log(2 * Math.PI);
const SAMPLE = ["seed", "start", "temperature"];

/** How to draw from a posterior: row i uses sample `start + i` of the seed. */
export interface SampleOptions {
  seed?: Integer | null;
  start?: Integer;
  temperature?: number;
}

/** The noise that an encoder was given where latents depend on samples of others; without a seed it was zeros. */
export interface Drawn {
  seed: Integer | null;
  start: Integer;
}

/** q(z|x), a diagonal normal for each observation of a batch; every array is float32 [batch, *latent shape]. */
export class Posterior {
  constructor(
    readonly mean: FloatArray, readonly std: FloatArray, readonly logvar: FloatArray, readonly latent = 0,
    readonly drawn: Drawn | null = null,
  ) {
    for (const [name, part] of Object.entries({ mean, std, logvar })) {
      if (!isWhole(part) || !(part.data instanceof Float32Array)) refuseInput(name, "{ data: Float32Array, shape }", shown(part?.data));
      if (!isSameShape(part.shape, mean.shape)) refuseInput(name, `the shape of mean, ${listed(mean.shape)}`, part.shape);
    }
    if (!mean.shape.length) refuseInput("mean", "a batch axis", mean.shape);
  }

  /** The most probable latents: the means. */
  mode(): FloatArray {
    return this.mean;
  }

  /**
   * Draw one latent for each observation: mean + std · eps (Kingma & Welling, arXiv 1312.6114).
   *
   * @param options - `seed`, a fresh one unless given; `start`, 0; `temperature`, which scales eps, 1.
   * @returns float32 [batch, *latent shape]; the same bits wherever mean and std are the same bits.
   * @throws {InputError} an argument is out of its range, or is not what `encode` drew with.
   */
  sample(options: SampleOptions = {}): FloatArray {
    requireNames("sample", options, SAMPLE);
    let { seed = null, start = 0 } = options;
    const { temperature = 1 } = options;
    if (this.drawn) ({ seed, start } = asDrawn(this.drawn, seed, start, temperature));
    const { data, shape } = this.mean;
    const eps = drawNormal(seed, start, shape[0], shape.slice(1), streamOf(POSTERIOR, this.latent), temperature);
    const std = this.std.data;
    // The product is rounded, then the sum: a fused multiply-add would give other bits.
    for (let i = 0; i < data.length; i++) eps.data[i] = data[i] + Math.fround(std[i] * eps.data[i]);
    return eps;
  }

  /** KL(q(z|x) ‖ standard normal) in nats, [batch] (Kingma & Welling, arXiv 1312.6114, appendix B). */
  kl(): Float64Array {
    return rowSums(this.klPerDimension().data, this.mean.shape[0]);
  }

  /** The terms of `kl`, [batch, *latent shape]. */
  klPerDimension(): { data: Float64Array; shape: number[] } {
    const [mean, std, logvar] = [this.mean.data, this.std.data, this.logvar.data];
    const data = Float64Array.from(mean, (each, i) => 0.5 * (each * each + std[i] * std[i] - 1 - logvar[i]));
    return { data, shape: this.mean.shape };
  }

  /**
   * log q(z|x), the log density of one latent for each observation, in nats.
   *
   * @throws {InputError} the shape is another.
   */
  logProb(z: { data: ArrayLike<number>; shape: readonly number[] }): Float64Array {
    const { data: mean, shape } = this.mean;
    if (!isWhole(z) || !isSameShape(z.shape, shape)) {
      refuseInput("z", `the shape ${listed(shape)}`, z?.shape ?? "nothing");
    }
    const logvar = this.logvar.data;
    const terms = Float64Array.from(mean, (each, i) =>
      -0.5 * (LOG_2PI + logvar[i] + (z.data[i] - each) ** 2 * Math.exp(-logvar[i])),
    );
    return rowSums(terms, shape[0]);
  }
}

function asDrawn(drawn: Drawn, seed: Integer | null, start: Integer, temperature: number): Drawn {
  const place = "sample: the encoder took samples of some latents to find others";
  if (drawn.seed === null) refuseInput(place, "encode() with a seed", "none", "encode(x, { seed: … }), then sample()");
  const isSame = (a: Integer, b: Integer) => BigInt(a) === BigInt(b);
  const isStart = isSame(start, drawn.start) || (seed === null && isSame(start, 0));
  if (!isStart || (seed !== null && !isSame(seed, drawn.seed)) || temperature !== 1) {
    refuseInput(
      place, `the seed ${drawn.seed}, start ${drawn.start} and temperature 1 of encode()`, "others", "leave them out",
    );
  }
  return drawn;
}

/** The latents of a batch where there is no distribution: codes, or a deterministic autoencoder's. */
export class Encoding {
  constructor(readonly value: NumberArray, readonly reason: string) {}

  /** The latents themselves. */
  mode(): NumberArray {
    return this.value;
  }

  /** @throws {InputError} always: there is nothing to draw. */
  sample(_options?: SampleOptions): never {
    throw this._refusal("sample");
  }

  /** @throws {InputError} always: there is no distribution. */
  kl(): never {
    throw this._refusal("kl");
  }

  /** @throws {InputError} always: there is no distribution. */
  klPerDimension(): never {
    throw this._refusal("klPerDimension");
  }

  /** @throws {InputError} always: there is no distribution. */
  logProb(_z?: unknown): never {
    throw this._refusal("logProb");
  }

  private _refusal(what: string): InputError {
    return new InputError(`${what}: there is no posterior distribution: ${this.reason}; take mode()`);
  }
}

/** The posteriors of several latents, by name. */
export class Posteriors {
  constructor(readonly parts: Readonly<Record<string, Posterior | Encoding>>) {}

  /** The most probable latents, by name. */
  mode(): Record<string, NumberArray> {
    return this._byName((part) => part.mode());
  }

  /**
   * Draw of every latent as `Posterior.sample` does, all of one seed; by name.
   *
   * @throws {InputError} an argument is out of its range, or a latent has no distribution.
   */
  sample(options: SampleOptions = {}): Record<string, FloatArray> {
    requireNames("sample", options, SAMPLE);
    const isDrawn = Object.values(this.parts).some((part) => part instanceof Posterior && part.drawn);
    const seed = options.seed ?? (isDrawn ? null : newSeed());
    return this._byName((part) => part.sample({ ...options, seed }));
  }

  /** The sum of every latent's KL to the standard normal, [batch], in nats. */
  kl(): Float64Array {
    const all = Object.values(this.parts).map((part): Float64Array => part.kl());
    return all[0].map((_, row) => all.reduce((total, each) => total + each[row], 0));
  }

  private _byName<T>(take: (part: Posterior | Encoding) => T): Record<string, T> {
    return Object.fromEntries(Object.entries(this.parts).map(([name, part]) => [name, take(part)]));
  }
}

/** The sums of equal parts of an array. */
export function rowSums(terms: Float64Array, rows: number): Float64Array {
  const size = terms.length / rows;
  return Float64Array.from({ length: rows }, (_, row) => {
    let total = 0;
    for (let at = row * size; at < (row + 1) * size; at++) total += terms[at];
    return total;
  });
}

/** Why a latent has no posterior distribution. */
export function whyNoDistribution({ posterior }: Latent): string {
  const codes = posterior.kind === "codes" ? "the encoder gives codes" : "the encoder gives the latent itself";
  return posterior.reason || codes;
}
