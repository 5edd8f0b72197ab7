/** A VAE out of a bundle: draw latents, decode, encode, reconstruct, score. */
import { type FloatArray, type NumberArray } from "./arrays.js";
import { type Bundle, openBundle } from "./bundle.js";
import { refuseBundle, refuseInput, requireBool, requireInteger, requireNames, shown } from "./errors.js";
import { type ArrayInput, type Conditions, type Latents, type LatentShape, Inputs } from "./inputs.js";
import { drawObservations, kindOf } from "./likelihood.js";
import { plain } from "./json.js";
import { type Manifest, outputsOf, outputsOfComponent, variantsOf } from "./manifest.js";
import { type BatchOptions, type Feeds, Networks } from "./networks.js";
import { type Integer, TABLE_SHA256, advance, newSeed, quantiles } from "./noise.js";
import type { Source } from "./places.js";
import { Encoding, Posterior, Posteriors, whyNoDistribution } from "./posterior.js";
import { Prior } from "./prior.js";
import { type Parts, type Scores, Scorer } from "./score.js";
import { type Ort, resolveDevice } from "./session.js";
import { sha256 } from "./sha256.js";
import { type ChunkSource, decodeChunks } from "./streams.js";
import { type Report, verifyBundle } from "./verification.js";

/** How to open a bundle. */
export interface LoadOptions {
  /** `onnxruntime-web` or `onnxruntime-node`. */
  ort: Ort;
  /** ONNX Runtime's name of an execution provider, "cpu" unless given; "cpu" is "wasm" in a page. */
  device?: string;
  /** The variant to run, such as "int8"; a component without it runs in its first one. */
  variant?: string | null;
  /** "sha256:…" of the bundle; any other is refused. */
  digest?: string | null;
  /** Threads of one call in Node, 1 unless given. */
  threads?: number;
  /** Further options of ONNX Runtime's sessions. */
  sessionOptions?: Record<string, unknown>;
}

/** Options of a call that computes. */
export interface CallOptions extends BatchOptions {
  /** By name: an array, one value for all rows, or names of classes. */
  conditions?: Conditions | null;
  /** The seed of vnoise-1; a fresh one, or what the method says, unless given. */
  seed?: Integer | null;
  /** The index of the first row: row i is sample `start + i` of the seed. */
  start?: Integer;
}

/** Options of draws from the prior. */
export interface PriorOptions {
  seed?: Integer | null;
  start?: Integer;
  /** Scales the noise, 0 … 1e6. */
  temperature?: number;
  /** Bounds the noise before that: no number is beyond ± this. */
  truncation?: number | null;
  /** Another shape of a latent with dynamic axes; of several, by name. */
  latentShape?: LatentShape | null;
}

const LOAD = ["ort", "device", "variant", "digest", "threads", "sessionOptions"];
const PRIOR = ["seed", "start", "temperature", "truncation", "latentShape"];
const BATCH = ["batchSize", "onProgress", "signal"];
const CALL = ["conditions", "seed", "start", ...BATCH];

/**
 * Open a bundle for sampling.
 *
 * @param source - a URL, a path in Node, or a .zip file as a Blob or bytes.
 * @throws {BundleError} the bundle is missing, damaged or of a newer format, or no component has such a variant.
 * @throws {DeviceError} the device or WebCrypto is unavailable; nothing falls back silently.
 * @throws {InputError} an argument is not of the right form.
 */
export async function load(source: Source, options: LoadOptions): Promise<VAE> {
  const [bundle, networks] = await opened(source, options);
  const vae = new VAE(bundle, networks);
  await networks.session(bundle.manifest.decoder.size ? "decoder" : "encoder");
  return vae;
}

/**
 * Check every file of a bundle and what its graphs compute on this device. Options are those of `load`.
 *
 * @throws {BundleError} there is no bundle, or its manifest cannot be read; later failures are in the report.
 * @throws {DeviceError} the device is unavailable.
 */
export async function verify(source: Source, options: LoadOptions): Promise<Report> {
  const [bundle, networks] = await opened(source, options);
  try {
    return await verifyBundle(bundle, networks);
  } finally {
    await networks.close();
  }
}

async function opened(source: Source, options: LoadOptions): Promise<[Bundle, Networks]> {
  requireNames("load", options ?? null, LOAD);
  const { ort, device = "cpu", variant, digest, threads = 1, sessionOptions = {} } = options;
  requireInteger("threads", threads, 1, 1024);
  if (typeof sessionOptions !== "object" || !sessionOptions) refuseInput("sessionOptions", "an object", shown(sessionOptions));
  if ("executionProviders" in sessionOptions) refuseInput("sessionOptions", "no executionProviders", "them", "give device");
  const target = await resolveDevice(ort, device, { intraOpNumThreads: threads, ...sessionOptions });
  const table = quantiles();
  if ((await sha256(new Uint8Array(table.buffer))) !== TABLE_SHA256) {
    refuseBundle("vae-runtime", "the noise table of vnoise-1", "another", "install vae-runtime again");
  }
  const bundle = await openBundle(source, digest);
  return [bundle, new Networks(bundle, target, bundle.choose(variant))];
}

/** A Variational Autoencoder, ready to sample; made by `load`. */
export class VAE {
  /** The bundle's description of itself. */
  readonly manifest: Manifest;
  private readonly _priors: Prior;
  private readonly _inputs: Inputs;

  constructor(private readonly _bundle: Bundle, private readonly _networks: Networks) {
    this.manifest = _bundle.manifest;
    this._priors = new Prior(_bundle);
    this._inputs = new Inputs(this.manifest, this._priors);
  }

  /** What the bundle is, and what runs it. */
  get info() {
    const { name, description, license, observation, conditions, latents, likelihood, metrics, training } = this.manifest;
    return {
      name, description, license, observation, conditions, latents, likelihood,
      digest: this._bundle.digest,
      device: this._networks.device.name,
      /** The variant in use by component. */
      variant: Object.fromEntries([...this._networks.variants].map(([component, { name }]) => [component, name])),
      /** What ONNX Runtime can run, as "component/name". */
      variants: variantsOf(this.manifest)
        .filter((each) => each.executor === "ort")
        .map((each) => `${each.component}/${each.name}`),
      metrics: plain(metrics),
      training: plain(training),
    };
  }

  /**
   * Draw latents from the prior.
   *
   * @returns float32 [n, *latent shape]; of several latents, such arrays by name.
   * @throws {InputError} there is no prior to draw from; the message says why.
   */
  async prior(n: number, options: PriorOptions = {}): Promise<FloatArray | Record<string, FloatArray>> {
    requireNames("prior", options, PRIOR);
    const feeds = await this._drawn(n, options);
    const arrays = [...feeds].map(([name, rows]): [string, FloatArray] => [name, rows(0, n) as FloatArray]);
    return this._inputs.hasSeveral ? Object.fromEntries(arrays) : arrays[0][1];
  }

  /**
   * Draw latents from the prior and decode them.
   *
   * @param options - `observe` draws each observation from the likelihood; `out` takes the result.
   * @returns float32 [n, *observation shape].
   * @throws {InputError} there is no prior to draw from.
   */
  async sample(n: number, options: CallOptions & PriorOptions & { observe?: boolean } = {}): Promise<FloatArray> {
    requireNames("sample", options, [...CALL, ...PRIOR, "observe", "out"]);
    const { conditions, start = 0 } = options;
    const seed = options.seed ?? newSeed();
    const feeds = await this._drawn(n, { ...options, seed });
    for (const [name, rows] of this._inputs.conditions("decoder", conditions, n)) feeds.set(name, rows);
    return this._decoded(feeds, n, seed, start, options);
  }

  /**
   * Give the likelihood's mean for each latent, in data space.
   *
   * @param z - [n, *latent shape]; of several latents, arrays by name, where those that are noise of the decoder may be
   * left out: `seed` draws them, and without one they are zeros.
   * @returns float32 [n, *observation shape].
   */
  async decode(z: Latents, options: CallOptions & { observe?: boolean } = {}): Promise<FloatArray> {
    requireNames("decode", options, [...CALL, "observe", "out"]);
    const { conditions, start = 0, observe } = options;
    const seed = options.seed ?? (observe ? newSeed() : null);
    await this._priors.read();
    const [feeds, n] = this._inputs.decoder(z, conditions, seed, start, options.out);
    return this._decoded(feeds, n, seed, start, options);
  }

  /**
   * Decode latents that come in chunks of any length along time, as `decode` would decode all of them at once.
   *
   * @param chunks - latents [n, …] whose dynamic axis has any length of at least 1; n and the conditions stay.
   * @returns gives float32 [n, *observation shape] for each chunk, once it is there.
   * @throws {InputError} the variant has no stream, for example since its decoder is not causal; the message says why.
   */
  decodeStream(chunks: ChunkSource, options: { conditions?: Conditions | null } = {}): AsyncGenerator<FloatArray, void, void> {
    requireNames("decodeStream", options, ["conditions"]);
    return decodeChunks(this._networks, this._inputs, chunks, options.conditions);
  }

  /** Give every output of the decoder for each latent, by the outputs' names; arguments as of `decode`. */
  async decoderOutputs(z: Latents, options: CallOptions = {}): Promise<Record<string, FloatArray>> {
    requireNames("decoderOutputs", options, CALL);
    const { conditions, seed = null, start = 0 } = options;
    await this._priors.read();
    const [feeds, n] = this._inputs.decoder(z, conditions, seed, start);
    const outputs = outputsOfComponent(this.manifest, "decoder").map((output) => output.name);
    const results = await this._networks.run("decoder", outputs, feeds, n, options);
    return Object.fromEntries(outputs.map((name, index) => [name, results[index] as FloatArray]));
  }

  /**
   * Give the posterior of each observation.
   *
   * @param x - [n, *observation shape], within the manifest's range.
   * @param options - where some latents depend on samples of others, `seed` draws these as `sample` of the result does.
   * @returns a `Posterior`; an `Encoding` where the latent is a code or has no distribution; of several latents
   * `Posteriors`.
   */
  async encode(x: ArrayInput, options: CallOptions = {}): Promise<Posterior | Encoding | Posteriors> {
    requireNames("encode", options, CALL);
    const { seed = null, start = 0 } = options;
    const checked = this._inputs.observations(x);
    const rows = this._inputs.conditions("encoder", options.conditions, checked.shape[0]);
    const parts = await this._encoded(checked, rows, seed, start, options);
    return this._inputs.hasSeveral ? new Posteriors(Object.fromEntries(parts)) : [...parts.values()][0];
  }

  /**
   * Encode and decode: through the posterior's mean, or with a seed through a sample of it.
   *
   * @returns float32 [n, *observation shape].
   * @throws {InputError} a seed is given where there is no distribution to draw from.
   */
  async reconstruct(x: ArrayInput, options: CallOptions = {}): Promise<FloatArray> {
    requireNames("reconstruct", options, [...CALL, "out"]);
    const { seed = null, start } = options;
    const { out: _, onProgress: __, ...encoding } = options;
    const q = await this.encode(x, encoding);
    return this.decode(seed === null ? q.mode() : q.sample({ seed, start }), options);
  }

  /** Give latents as other models take them, (z - shift) · scale, float32, in the form of `z`; codes stay. */
  scaled(z: Latents): NumberArray | Record<string, NumberArray> {
    return this._inputs.rescaled(z, (part, scale, shift) => Math.fround(part - shift) * scale);
  }

  /** Give latents of another model as `decode` takes them, the inverse of `scaled`. */
  unscaled(w: Latents): NumberArray | Record<string, NumberArray> {
    return this._inputs.rescaled(w, (part, scale, shift) => Math.fround(part / scale) + shift);
  }

  /**
   * Score how well the VAE explains each observation, in nats.
   *
   * @param options - `k`: how many importance samples; without it `logLikelihood` is null. `seed`: by default that of
   * the bundle's held-out scores, with which `pValue` compares, or a new one. `contributions`: also give the terms of
   * `reconstruction`.
   * @throws {InputError} k is given where encoder or decoder draw noise of their own.
   */
  async score(x: ArrayInput, options: CallOptions & { k?: number | null; contributions?: boolean } = {}): Promise<Scores> {
    requireNames("score", options, [...CALL, "k", "contributions"]);
    const contributions = requireBool("contributions", options.contributions ?? false);
    const { conditions, k = null, start = 0 } = options;
    const checked = this._inputs.observations(x);
    const rows = this._inputs.conditions(null, conditions, checked.shape[0]);
    await this._priors.read();
    const encode = (part: NumberArray, own: Feeds, seed: Integer | null, first: Integer) =>
      this._encoded(part, own, seed, first, { batchSize: options.batchSize });
    const seed = options.seed ?? this.manifest.scores?.seed ?? newSeed();
    const scorer = new Scorer(this._networks, this._inputs, this._priors, encode, seed, options);
    return scorer.score(checked, rows, k, start, contributions);
  }

  /** Check every file, and what every graph computes on this device. */
  verify(): Promise<Report> {
    return verifyBundle(this._bundle, this._networks);
  }

  /** Free the graphs once the calls that use them have ended; a later call loads them again. */
  close(): Promise<void> {
    return this._networks.close();
  }

  private async _drawn(n: number, options: PriorOptions): Promise<Feeds> {
    const { start = 0, temperature, truncation } = options;
    requireInteger("n", n, 1, 2 ** 48);
    const seed = options.seed ?? newSeed();
    await this._priors.read();
    const shapes = this._inputs.shapes(options.latentShape);
    return new Map(
      this.manifest.latents.map(({ name }, number) => [
        name,
        (first: number, last: number) =>
          this._priors.drawOne(number, seed, advance(start, first), last - first, shapes[number], temperature, truncation),
      ]),
    );
  }

  private async _decoded(
    feeds: Feeds, n: number, seed: Integer | null, start: Integer, options: BatchOptions & { observe?: boolean },
  ): Promise<FloatArray> {
    const { mean, scale, scale_output, reason } = this.manifest.likelihood;
    if (!requireBool("observe", options.observe ?? false)) return this._networks.runOne(mean, feeds, n, options);
    const known = kindOf(this.manifest);
    if (!known) {
      const why = reason ?? "none was stated at export";
      refuseInput(`observe: no likelihood to draw from: ${why}; leave it out for the mean`);
    }
    const outputs = scale_output ? [mean, scale_output] : [mean];
    const [result] = await this._networks.run("decoder", outputs, feeds, n, options, (first, parts) => {
      const [means, scales] = parts as FloatArray[];
      return [drawObservations(known, means, scales ?? scale ?? 1, seed!, advance(start, first))];
    });
    return result as FloatArray;
  }

  private async _encoded(
    x: NumberArray, rows: Feeds, seed: Integer | null, start: Integer, options: BatchOptions,
  ): Promise<Parts> {
    const { latents } = this.manifest;
    const outputs = outputsOfComponent(this.manifest, "encoder").map((output) => output.name);
    const feeds = this._inputs.encoder(x, rows, seed, start);
    const results = await this._networks.run("encoder", outputs, feeds, x.shape[0], options);
    const named = new Map(outputs.map((name, index) => [name, results[index]]));
    const drawn = this._inputs.encoderNoise ? { seed, start } : null;
    const parts: Parts = new Map();
    latents.forEach((latent, number) => {
      const arrays = outputsOf(latent.posterior).map((name) => named.get(name)!);
      if (arrays.length === 3) {
        const [mean, logvar, std] = arrays as FloatArray[];
        parts.set(latent.name, new Posterior(mean, std, logvar, number, drawn));
      } else if (arrays.length) parts.set(latent.name, new Encoding(arrays[0], whyNoDistribution(latent)));
    });
    return parts;
  }
}

