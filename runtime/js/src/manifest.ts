/** The records of a bundle's manifest; docs/bundle-format.md is the specification. */
export type Component = "encoder" | "decoder";
export type Dtype = "float32" | "int64";
export const COMPONENTS: readonly Component[] = ["encoder", "decoder"];

/** The proven sizes of a dynamic axis. */
export interface Sizes {
  min: number;
  max: number;
  step: number;
}

/** One input or output of a graph, without its batch axis. `dynamic` holds the axes that may have other sizes. */
export interface TensorSpec {
  name: string;
  dtype: Dtype;
  shape: number[];
  dynamic: ReadonlySet<number>;
}

/** What is said of any array: its name, dtype, shape and axes. */
export interface ArraySpec {
  name: string;
  dtype: Dtype;
  shape: number[];
  axes: string[];
  dynamic: Map<string, Sizes>;
}

export type PerChannel = number | number[];

/** One observation. `range` is null where any finite number is valid. */
export interface Observation extends ArraySpec {
  range: [number, number] | null;
  normalisation: { offset: PerChannel; divisor: PerChannel } | null;
}

/** An input beside observations or latents. */
export interface Condition {
  name: string;
  dtype: Dtype;
  shape: number[];
  classes: string[] | null;
  range: [number, number] | null;
  components: Component[];
}

/** The prior of one latent. */
export interface LatentPrior {
  kind: "normal" | "mixture" | "sphere" | "none";
  file: string | null;
  components: number | null;
  covariance: "diagonal" | "full" | null;
  reason: string | null;
  assumed: boolean;
}

/** The posterior of one latent. */
export interface LatentPosterior {
  kind: "normal" | "codes" | "none";
  mu: string | null;
  logvar: string | null;
  std: string | null;
  value: string | null;
  codebook: number | null;
  noise: string | null;
  reason: string | null;
}

/** One latent. Models that were trained on it take (z - shift) · scale. */
export interface Latent extends ArraySpec {
  prior: LatentPrior;
  posterior: LatentPosterior;
  scale: PerChannel;
  shift: PerChannel;
}

/** The likelihood, and the decoder's outputs that are its parameters. */
export interface Likelihood {
  kind: string;
  mean: string;
  logits: string | null;
  scale: number | null;
  scale_output: string | null;
  shape: number[] | null;
  axes: string[];
  outputs: { name: string; shape: number[]; axes: string[] }[];
  reason: string | null;
}

/** One graph. */
export interface Variant {
  component: Component;
  name: string;
  folder: string;
  file: string;
  executor: string;
  precision: string;
  tolerance: Map<string, number>;
  error: Map<string, number>;
  data: string | null;
  quality: Record<string, unknown> | null;
  /** How it takes latents in chunks, or why not. */
  stream: Stream | null;
}

/** A graph for chunks of latents, and its states; or the reason why there is none. */
export interface Stream {
  file: string | null;
  hop: number | null;
  error: number | null;
  states: { name: string; shape: number[] }[];
  reason: string | null;
}

/** Quantiles of the scores of observations that the model was not trained on. */
export interface HeldOut {
  kind: "elbo" | "log_likelihood";
  k: number | null;
  seed: number;
  n: number;
  data: string;
  encoder: string;
  decoder: string;
  shares: number[];
  values: number[];
}

/** The description of a bundle; the variants in the order of declaration. */
export interface Manifest {
  package_name: string;
  package_version: string | null;
  format_version: string;
  reader: string | null;
  name: string;
  description: string;
  license: string | null;
  observation: Observation;
  conditions: Condition[];
  latents: Latent[];
  likelihood: Likelihood;
  tiles: { component: Component; halo: Map<string, number>; reason?: string }[];
  table: {
    name: string; kind: string; means: number[]; scales: number[]; rounding: "nearest" | "zero" | null;
    categories: (string | number | bigint | boolean | null)[];
  }[];
  batch_of_one: Component[];
  encoder: Map<string, Variant>;
  decoder: Map<string, Variant>;
  golden: { file: string; seed: number; n: number };
  scores: HeldOut | null;
  refused: { component: Component; variant: string; reason: string }[];
  training: Map<string, any>;
  metrics: Map<string, any>;
  producer: Map<string, any>;
  packed_from: string | null;
}

const SEGMENT = "[A-Za-z0-9_-][A-Za-z0-9._-]*";
export const PATH = `${SEGMENT}(?:/${SEGMENT})*`;

// The values of fields that are absent.
const ARRAY = { axes: [], dynamic: new Map<string, Sizes>() };
const LATENT = { ...ARRAY, scale: 1, shift: 0 };
const PRIOR = { file: null, components: null, covariance: null, reason: null, assumed: false };
const POSTERIOR = {
  mu: null, logvar: null, std: null, value: null, codebook: null, noise: null, reason: null,
};
const LIKELIHOOD = { logits: null, scale: null, scale_output: null, shape: null, axes: [], outputs: [], reason: null };
const COLUMN = { means: [], scales: [], rounding: null, categories: [] };
const VARIANT = { data: null, quality: null, stream: null };
const MANIFEST = {
  reader: null, description: "", license: null, conditions: [], tiles: [], table: [], batch_of_one: [], refused: [], scores: null,
  training: new Map(), metrics: new Map(), producer: new Map(), packed_from: null,
};

const EXECUTORS = ["ort", "torchscript", "torch_export"];

/** The manifest of a document without problems, as `Reader` gives it. */
export function manifestOf({ package_name, package_version = null, components, additional_metadata }: any): Manifest {
  const { vae } = additional_metadata;
  const arrays = (spec: any) => ({
    ...ARRAY, ...spec, dynamic: new Map([...(spec.dynamic ?? [])].map(([axis, sizes]) => [axis, { step: 1, ...sizes }])),
  });
  const variants = COMPONENTS.map((component) => {
    const own = new Map<string, Variant>();
    for (const [name, each] of (components[component]?.variants as Map<string, any>) ?? []) {
      const executor = EXECUTORS.find((key) => each.executor_info[key]);
      // A variant with none of these is another program's.
      if (!executor) continue;
      const stream = each.additional_metadata.vae.stream;
      own.set(name, {
        ...VARIANT, ...each.additional_metadata.vae, component, name, executor, folder: each.variant_directory,
        file: each.executor_info[executor].model_file,
        stream: stream ? { file: null, hop: null, error: null, states: [], reason: null, ...stream } : null,
      });
    }
    return [component, own];
  });
  return {
    ...MANIFEST, ...vae, package_name, package_version, ...Object.fromEntries(variants),
    observation: { normalisation: null, ...arrays(vae.observation) },
    conditions: (vae.conditions ?? []).map((each: any) => ({ classes: null, range: null, ...each })),
    latents: vae.latents.map((each: any) => ({
      ...LATENT, ...arrays(each), prior: { ...PRIOR, ...each.prior }, posterior: { ...POSTERIOR, ...each.posterior },
    })),
    likelihood: {
      ...LIKELIHOOD, ...vae.likelihood, outputs: (vae.likelihood.outputs ?? []).map((each: any) => ({ axes: [], ...each })),
    },
    tiles: (vae.tiles ?? []).map((each: any) => ({ halo: new Map(), ...each })),
    table: (vae.table ?? []).map((each: any) => ({ ...COLUMN, ...each })),
    scores: vae.scores ? { k: null, ...vae.scores } : null,
  };
}

/** The components of a bundle: both, unless one was left out. */
export function componentsOf(manifest: Manifest): Component[] {
  return COMPONENTS.filter((component) => manifest[component].size > 0);
}

/** All variants, the encoder's first. */
export function variantsOf(manifest: Manifest): Variant[] {
  return [...manifest.encoder.values(), ...manifest.decoder.values()];
}

/** The output of a graph for chunks that holds a state for the next chunk. */
export function nextOf(state: string): string {
  return `${state}.next`;
}

/** The paths of a variant's files: the graph, its weights if they are elsewhere, and the graph for chunks. */
export function pathsOf(variant: Variant): string[] {
  const names = [variant.file, variant.data, variant.stream?.file];
  return names.flatMap((name) => (name ? [pathOf(variant, name)] : []));
}

/** The path of a variant's graph, or of the file `name` beside it. */
export function pathOf(variant: Variant, name = variant.file): string {
  return `${variant.folder}/${name}`;
}

/** The encoder's outputs of one latent. */
export function outputsOf(posterior: LatentPosterior): string[] {
  const names = posterior.kind === "normal" ? [posterior.mu, posterior.logvar, posterior.std] : [posterior.value];
  return names.filter((name) => name !== null);
}

function tensor(
  name: string, dtype: Dtype, shape: number[], axes: string[] = [], dynamic: Map<string, Sizes> = new Map(),
): TensorSpec {
  return { name, dtype, shape, dynamic: new Set(axes.flatMap((axis, index) => (dynamic.has(axis) ? [index] : []))) };
}

/** A component's inputs: the observation or the latents, then its conditions, then the encoder's noise. */
export function inputsOf(manifest: Manifest, component: Component): TensorSpec[] {
  const conditions = manifest.conditions
    .filter((each) => each.components.includes(component))
    .map((each) => tensor(each.name, each.dtype, each.shape));
  const whole = ({ name, dtype, shape, axes, dynamic }: ArraySpec) => tensor(name, dtype, shape, axes, dynamic);
  if (component === "decoder") return [...manifest.latents.map(whole), ...conditions];
  const noises = manifest.latents
    .filter((latent) => latent.posterior.noise)
    .map((latent) => tensor(latent.posterior.noise!, "float32", latent.shape, latent.axes, latent.dynamic));
  return [whole(manifest.observation), ...conditions, ...noises];
}

/** A component's outputs: the posteriors' parameters; or mean, logits, scale and further outputs. */
export function outputsOfComponent(manifest: Manifest, component: Component): TensorSpec[] {
  if (component === "encoder") {
    return manifest.latents.flatMap(({ dtype, shape, axes, dynamic, posterior }) =>
      outputsOf(posterior).map((name) => tensor(name, dtype, shape, axes, dynamic)),
    );
  }
  const { likelihood, observation } = manifest;
  const dynamic = new Map([observation, ...manifest.latents].flatMap((each) => [...each.dynamic]));
  const { mean, logits, scale_output } = likelihood;
  const own = [mean, logits, scale_output]
    .filter((name) => name !== null)
    .map((name) =>
      likelihood.shape
        ? tensor(name, "float32", likelihood.shape, likelihood.axes, dynamic)
        : tensor(name, "float32", observation.shape, observation.axes, observation.dynamic),
    );
  return [...own, ...likelihood.outputs.map(({ name, shape, axes }) => tensor(name, "float32", shape, axes, dynamic))];
}
