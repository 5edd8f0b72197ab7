/**
 * Scores of observations, in nats. The ELBO is from Kingma & Welling, arXiv 1312.6114; the importance-weighted bound
 * from Burda et al., arXiv 1509.00519.
 */
import { type FloatArray, type NumberArray, product, repeatedRows, rowsOf } from "./arrays.js";
import { listed, refuseInput, requireInteger } from "./errors.js";
import type { Inputs } from "./inputs.js";
import { kindOf, logLikelihoodTerms, requireValues } from "./likelihood.js";
import { type Component, type HeldOut, type Manifest, type Variant, COMPONENTS, outputsOf } from "./manifest.js";
import { type BatchOptions, type Feeds, type Networks, batchSizeOf, between } from "./networks.js";
import { type Integer, IMPORTANCE, advance, normal, streamOf } from "./noise.js";
import { Encoding, Posterior, rowSums, whyNoDistribution } from "./posterior.js";
import { type Prior, logSumExp } from "./prior.js";

export interface Float64Rows {
  data: Float64Array;
  shape: number[];
}

/** How well a VAE explains observations: [n] each, in nats per observation where not said otherwise. */
export interface Scores {
  /** The evidence lower bound, reconstruction − kl, with one posterior sample. */
  elbo: Float64Array | null;
  /** log p(x|z) of that sample. */
  reconstruction: Float64Array | null;
  /** KL(q(z|x) ‖ p(z)) of all latents together. */
  kl: Float64Array | null;
  /** Its terms, [n, *latent shape]; of several latents by name; null where it is not analytic. */
  klPerDimension: Float64Rows | Record<string, Float64Rows> | null;
  /** The importance-weighted bound of log p(x) with k samples. */
  logLikelihood: Float64Array | null;
  /** Mean squared difference between x and its reconstruction through the posterior's mean, per value. */
  mse: Float64Array | null;
  /** Mean absolute difference, likewise. */
  mae: Float64Array | null;
  /** Why there is no ELBO. */
  reason: string | null;
  /** The share of held-out observations that score as low as this one or lower, 1 / (n + 1) … 1. */
  pValue: Float64Array | null;
  /** Why there are no p-values. */
  pValueReason: string | null;
  /**
   * The terms of `reconstruction`, one for each value of x, [n, *observation shape]: the lower a term, the worse this
   * value is explained; null where they were not asked for or there is no ELBO.
   */
  contributions: Float64Rows | null;
}

export type Parts = Map<string, Posterior | Encoding>;
type Encode = (x: NumberArray, rows: Feeds, seed: Integer | null, start: Integer) => Promise<Parts>;
type Column = "contributions" | "reconstruction" | "kl" | "logLikelihood" | "mse" | "mae";

const MAX_DRAWN = 2 ** 30;

/** Scores checked observations with the networks of one VAE. */
export class Scorer {
  constructor(
    private readonly _networks: Networks, private readonly _inputs: Inputs, private readonly _prior: Prior,
    private readonly _encode: Encode, private readonly _seed: Integer, private readonly _options: BatchOptions,
  ) {}

  private get _manifest(): Manifest {
    return this._networks.bundle.manifest;
  }

  /** Score in batches; `rows` holds the conditions of both components. */
  async score(
    x: NumberArray, rows: Feeds, k: number | null, start: Integer, contributions: boolean,
  ): Promise<Scores> {
    const [manifest, inputs] = [this._manifest, this._inputs];
    const { latents, observation } = manifest;
    const n = x.shape[0];
    const reason = whyNoElbo(manifest);
    if (reason === null) requireValues(kindOf(manifest)!, observation.name, x.data);
    if (k !== null) {
      requireInteger("k", k, 1, 1e6);
      if (inputs.encoderNoise || latents.some((latent) => !outputsOf(latent.posterior).length)) {
        refuseInput(
          "k", "an encoder and a decoder that take no noise of their own", "others", "leave k out: the ELBO is a bound too",
        );
      }
      const numbers = latents.reduce((all, latent) => all + product(latent.shape), 0);
      if (k * numbers > MAX_DRAWN) {
        refuseInput("k", `at most ${Math.floor(MAX_DRAWN / numbers)} for latents of ${numbers} numbers`, k);
      }
    }
    const size = batchSizeOf(this._options);
    const columns = new Map<Column, Float64Array>();
    const terms = new Map<string, Float64Rows>();
    this._options.signal?.throwIfAborted();
    for (let first = 0; first < n; first += size) {
      const last = Math.min(first + size, n);
      const part = rowsOf(x, first, last);
      const own: Feeds = new Map([...rows].map(([name, give]) => [name, (a, b) => give(first + a, first + b)]));
      const index = advance(start, first);
      let q = await this._encode(part, own, null, 0);
      const batch = await this._errors(part, q, own);
      if (reason === null) {
        if (inputs.encoderNoise) q = await this._encode(part, own, this._seed, index);
        for (const [name, column] of await this._bounds(part, q, own, k, index, contributions)) batch.set(name, column);
        for (const [name, { data, shape }] of this._klTerms(q)) {
          if (!terms.has(name)) terms.set(name, { data: new Float64Array(n * product(shape.slice(1))), shape: [n, ...shape.slice(1)] });
          terms.get(name)!.data.set(data, first * product(shape.slice(1)));
        }
      }
      for (const [name, column] of batch) {
        const width = column.length / (last - first);
        if (!columns.has(name)) columns.set(name, new Float64Array(n * width));
        columns.get(name)!.set(column, first * width);
      }
      await between(last, n, this._options);
    }
    const column = (name: Column) => columns.get(name) ?? null;
    const [reconstruction, kl] = [column("reconstruction"), column("kl")];
    const elbo = reconstruction && kl && reconstruction.map((each, row) => each - kl[row]);
    const pValueReason = reason ?? whyNoPValue(manifest.scores, this._networks.variants, k, this._seed);
    const scored = manifest.scores?.kind === "log_likelihood" ? column("logLikelihood") : elbo;
    const several = terms.size ? Object.fromEntries(terms) : null;
    return {
      elbo,
      reconstruction,
      kl,
      klPerDimension: inputs.hasSeveral ? several : ([...terms.values()][0] ?? null),
      logLikelihood: column("logLikelihood"),
      mse: column("mse"),
      mae: column("mae"),
      reason,
      pValue: pValueReason === null && manifest.scores && scored ? pValues(manifest.scores, scored) : null,
      pValueReason,
      contributions: columns.has("contributions") ? { data: column("contributions")!, shape: [...x.shape] } : null,
    };
  }

  private async _errors(x: NumberArray, q: Parts, rows: Feeds): Promise<Map<Column, Float64Array>> {
    const { mean, shape } = this._manifest.likelihood;
    const isOther = shape && shape.join() !== x.shape.slice(1).join();
    const z = new Map([...q].map(([name, part]) => [name, part.mode()]));
    const decoded = isOther ? null : (await this._decode(z, rows, [mean]))[0];
    if (!decoded || decoded.data.length !== x.data.length) return new Map();
    const away = Float64Array.from(decoded.data as Float32Array, (each, i) => Number(x.data[i]) - each);
    const means = (of: (each: number) => number) => rowSums(away.map(of), x.shape[0]).map((sum) => (sum * x.shape[0]) / away.length);
    return new Map([["mse", means((each) => each * each)], ["mae", means(Math.abs)]]);
  }

  private async _bounds(
    x: NumberArray, q: Parts, rows: Feeds, k: number | null, start: Integer, contributions: boolean,
  ): Promise<Map<Column, Float64Array>> {
    const z = new Map([...q].map(([name, part]): [string, FloatArray] => [name, part.sample({ seed: this._seed, start })]));
    const terms = await this._terms(x, z, rows, this._seed, start);
    const columns = new Map<Column, Float64Array>([["reconstruction", rowSums(terms, x.shape[0])], ["kl", this._kl(q, z)]]);
    if (contributions) columns.set("contributions", terms);
    if (k !== null) columns.set("logLikelihood", await this._importanceBound(x, q, rows, k, start));
    return columns;
  }

  private _kl(q: Parts, z: Map<string, FloatArray>): Float64Array {
    const terms = this._klTerms(q);
    const n = [...z.values()][0].shape[0];
    const total = new Float64Array(n);
    for (const [name, part] of q as Map<string, Posterior>) {
      const own = terms.get(name);
      const each = own ? rowSums(own.data, n) : part.logProb(z.get(name)!);
      const logPrior = own ? null : this._logPrior(name, z.get(name)!);
      for (let row = 0; row < n; row++) total[row] += each[row] - (logPrior ? logPrior[row] : 0);
    }
    return total;
  }

  /** The KL's terms for each number of a latent whose prior is one normal with a diagonal covariance. */
  private _klTerms(q: Parts): Map<string, Float64Rows> {
    const terms = new Map<string, Float64Rows>();
    for (const latent of this._manifest.latents) {
      const part = q.get(latent.name);
      if (!(part instanceof Posterior)) continue;
      const one = this._prior.oneNormal(latent);
      if (latent.prior.kind === "normal") terms.set(latent.name, part.klPerDimension());
      else if (one) terms.set(latent.name, { data: normalKl(part, one.mean, one.std), shape: part.mean.shape });
    }
    return terms;
  }

  private _logPrior(name: string, { data, shape }: FloatArray): Float64Array {
    const latent = this._manifest.latents.find((each) => each.name === name)!;
    const size = product(shape.slice(1));
    return Float64Array.from({ length: shape[0] }, (_, row) =>
      this._prior.logProb(latent, data.subarray(row * size, (row + 1) * size)),
    );
  }

  /** log 1/k Σ w of importance samples with log w = log p(x|z) + log p(z) − log q(z|x). */
  private async _importanceBound(x: NumberArray, q: Parts, rows: Feeds, k: number, start: Integer): Promise<Float64Array> {
    const bound = new Float64Array(x.shape[0]);
    const size = batchSizeOf(this._options);
    for (let row = 0; row < bound.length; row++) {
      const weights: number[] = [];
      const eps = new Map<string, Float32Array>();
      const parts = q as Map<string, Posterior>;
      for (const [name, { mean, latent }] of parts) {
        const shape = [k, ...mean.shape.slice(1)];
        eps.set(name, normal(this._seed, advance(start, row), 1, shape, { stream: streamOf(IMPORTANCE, latent) }).data);
      }
      for (let first = 0; first < k; first += size) {
        const count = Math.min(size, k - first);
        const total = new Float64Array(count);
        const z = new Map<string, FloatArray>();
        for (const [name, part] of parts) {
          const [mean, std, logvar] = [part.mean, part.std, part.logvar].map((each) =>
            repeatedRows(rowsOf(each, row, row + 1), count),
          );
          const own = eps.get(name)!.subarray((first * mean.data.length) / count);
          const drawn = { data: mean.data.map((each, i) => each + Math.fround(std.data[i] * own[i])), shape: mean.shape };
          const [logPrior, logQ] = [this._logPrior(name, drawn), new Posterior(mean, std, logvar).logProb(drawn)];
          for (let i = 0; i < count; i++) total[i] += logPrior[i] - logQ[i];
          z.set(name, drawn);
        }
        const repeated: Feeds = new Map(
          [...rows].map(([name, give]) => [name, (a: number, b: number) => repeatedRows(give(row, row + 1), b - a)]),
        );
        const terms = await this._terms(repeatedRows(rowsOf(x, row, row + 1), count), z, repeated, null, 0);
        const likelihood = rowSums(terms, count);
        weights.push(...total.map((each, i) => each + likelihood[i]));
      }
      bound[row] = logSumExp(weights) - Math.log(k);
      this._options.signal?.throwIfAborted();
    }
    return bound;
  }

  /** The terms of log p(x|z), one for each value of x. */
  private async _terms(
    x: NumberArray, z: Map<string, NumberArray>, rows: Feeds, seed: Integer | null, start: Integer,
  ): Promise<Float64Array> {
    const { logits, mean, scale, scale_output } = this._manifest.likelihood;
    const names = [logits ?? mean, ...(scale_output ? [scale_output] : [])];
    const [answer, scales] = (await this._decode(z, rows, names, seed, start)) as FloatArray[];
    return logLikelihoodTerms(kindOf(this._manifest)!, x.data, answer.data, scales?.data ?? scale ?? 1, logits !== null);
  }

  private _decode(
    z: Map<string, NumberArray>, rows: Feeds, outputs: string[], seed: Integer | null = null, start: Integer = 0,
  ): Promise<NumberArray[]> {
    const n = [...z.values()][0].shape[0];
    const feeds = this._inputs.decoderOfChecked(z, rows, seed, start);
    return this._networks.run("decoder", outputs, feeds, n, { batchSize: this._options.batchSize });
  }
}

/** Why there is no ELBO; null where there is one. */
function whyNoElbo(manifest: Manifest): string | null {
  const { likelihood, observation, latents } = manifest;
  if (likelihood.kind === "none") return likelihood.reason ?? "no likelihood was stated at export";
  if (likelihood.shape && likelihood.shape.join() !== observation.shape.join() && !kindOf(manifest)?.classes) {
    return `the decoder's answer has the shape ${listed(likelihood.shape)}, not that of an observation`;
  }
  for (const latent of latents) {
    const { name, prior, posterior } = latent;
    if (posterior.kind !== "normal" && outputsOf(posterior).length) return `${name}: ${whyNoDistribution(latent)}`;
    if (prior.kind !== "normal" && prior.kind !== "mixture") {
      const why = prior.reason ? `, ${prior.reason}` : "";
      return `${name}: the KL needs a prior with a density, and the prior is ${prior.kind}${why}`;
    }
  }
  return null;
}

/** Why scores cannot be compared with the held-out ones; null where they can be. */
function whyNoPValue(
  heldOut: HeldOut | null, variants: ReadonlyMap<Component, Variant>, k: number | null, seed: Integer,
): string | null {
  if (!heldOut) return "the bundle has no held-out scores; add some with `vae-runtime calibrate`";
  for (const component of COMPONENTS) {
    const own = variants.get(component)?.name ?? heldOut[component];
    if (own !== heldOut[component]) {
      return `the held-out scores are of the ${component}'s variant ${heldOut[component]}, in use is ${own}`;
    }
  }
  if (heldOut.kind === "log_likelihood" && k !== heldOut.k) {
    return `the held-out scores are log-likelihoods with k=${heldOut.k}, got k=${k}; give k=${heldOut.k}`;
  }
  if (BigInt(seed) !== BigInt(heldOut.seed)) {
    return `the held-out scores were drawn with seed=${heldOut.seed}, got seed=${seed}; leave the seed out`;
  }
  return null;
}

/** The p-value of each score: (1 + n · F) / (n + 1), F interpolated between the quantiles. */
export function pValues({ n, shares, values }: HeldOut, scores: Float64Array): Float64Array {
  return scores.map((score) => {
    // How many quantiles are at or below the score; one that is no number is below all.
    let [low, high] = [0, Number.isNaN(score) ? 0 : values.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] <= score) low = middle + 1;
      else high = middle;
    }
    let share = low === 0 ? 0 : 1;
    if (low > 0 && low < values.length) {
      const part = (score - values[low - 1]) / (values[low] - values[low - 1]);
      share = shares[low - 1] + (shares[low] - shares[low - 1]) * part;
    }
    return (1 + n * share) / (n + 1);
  });
}

/** The terms of KL(q ‖ N(mean, std²)) in nats. */
function normalKl(q: Posterior, mean: Float64Array, std: Float64Array): Float64Array {
  const [own, ownStd, logvar] = [q.mean.data, q.std.data, q.logvar.data];
  return Float64Array.from(own, (each, i) => {
    const d = i % mean.length;
    const ratio = (ownStd[i] ** 2 + (each - mean[d]) ** 2) / std[d] ** 2;
    return 0.5 * (ratio - 1 + 2 * Math.log(std[d]) - logvar[i]);
  });
}

