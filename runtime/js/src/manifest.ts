/** The records of a bundle's manifest; docs/bundle-format.md is the specification. */
import {
  type Field, type Type, choice, either, flag, integer, list, map, nullable, number, scalar, struct, text,
} from "./fields.js";
import { KINDS } from "./likelihood.js";

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
  tiles: { component: Component; halo: Map<string, number>; reason: string | null }[];
  table: { name: string; kind: string; means: number[]; scales: number[]; categories: unknown[] }[];
  batch_of_one: Component[];
  encoder: Map<string, Variant>;
  decoder: Map<string, Variant>;
  golden: { file: string; seed: number; n: number };
  refused: { component: Component; variant: string; reason: string }[];
  training: Map<string, any>;
  metrics: Map<string, any>;
  producer: Map<string, any>;
  packed_from: string | null;
}

const SEGMENT = "[A-Za-z0-9_-][A-Za-z0-9._-]*";
export const PATH = `${SEGMENT}(?:/${SEGMENT})*`;
export const NAME = text(SEGMENT, "a name of letters, digits, '.', '_' and '-'");
export const FILE = text(SEGMENT, "a file name");
export const FOLDER = text(PATH, "a relative path inside the bundle, with '/' and without '..'");
export const VARIANT_NAME = text(
  SEGMENT, "a variant named with letters, digits, '.', '_' and '-', and not 'pytorch'", "pytorch",
);
export const TEXT = text();
export const FREE: Type<Map<string, any>> = map();
const TENSOR = text("[A-Za-z_][A-Za-z0-9_.]*", "a tensor name of letters, digits, '_' and '.'");
const DTYPE = choice(["float32", "int64"]);
const COMPONENT = choice(COMPONENTS);
const COMPONENT_NAMES = list(COMPONENT, "a list of components", 1, Infinity, true);
const SIZE = integer(1, 2 ** 31 - 1);
const NUMBER = number();
const POSITIVE = number("a positive number", (value) => value > 0);
const NUMBERS = map(number("a number of at least 0", (value) => value >= 0));
const SHAPE = list(SIZE, "a list of 1 to 8 sizes", 1, 8);
const ANY_SHAPE = list(SIZE, "a list of 0 to 8 sizes", 0, 8);
const AXES = list(TEXT, "a list of 1 to 8 axis names", 1, 8);
const RANGE = nullable(list(NUMBER, "[min, max] or null", 2, 2));
const LINE = text("[^\\u0000-\\u001f\\u007f-\\u009f\\u2028\\u2029]+", "one line of text");
const CLASSES = list(LINE, "a list of names of classes", 1, Infinity, true);
const FACTOR = number("a number other than 0", (value) => value !== 0);

const field = (type: Type): Field => ({ type });
const may = (type: Type, usual: unknown = null): Field => ({ type, required: false, usual });
const of = (kinds: string[], type: Type): Field => ({ type, required: kinds, usual: null });
const mayOf = (kinds: string[], type: Type, usual: unknown = null): Field => ({
  type, required: false, optional: kinds, usual,
});

const DYNAMIC = map(struct<Sizes>({ min: field(SIZE), max: field(SIZE), step: may(SIZE, 1) }));
const NO_SIZES: Map<string, Sizes> = new Map();

const OBSERVATION = struct<Observation>({
  name: field(TENSOR),
  shape: field(SHAPE),
  axes: field(AXES),
  range: field(RANGE),
  normalisation: may(
    struct({
      offset: field(either(NUMBER, "a number, or a list of numbers")),
      divisor: field(either(POSITIVE, "a positive number, or a list of such")),
    }),
  ),
  dtype: field(DTYPE),
  dynamic: may(DYNAMIC, NO_SIZES),
});

const CONDITION = struct<Condition>({
  name: field(TENSOR),
  shape: field(ANY_SHAPE),
  dtype: field(DTYPE),
  classes: may(CLASSES),
  range: may(RANGE),
  components: field(COMPONENT_NAMES),
});

const MIXTURE = ["mixture"];
const PRIOR = struct<LatentPrior>({
  kind: field(choice(["normal", "mixture", "sphere", "none"], true)),
  file: of(MIXTURE, FILE),
  components: of(MIXTURE, integer(1, 4096)),
  covariance: of(MIXTURE, choice(["diagonal", "full"])),
  reason: mayOf(["none"], TEXT),
  assumed: mayOf(["normal"], flag, false),
});

const NORMAL = ["normal"];
const POSTERIOR = struct<LatentPosterior>({
  kind: field(choice(["normal", "codes", "none"], true)),
  mu: of(NORMAL, TENSOR),
  logvar: of(NORMAL, TENSOR),
  std: of(NORMAL, TENSOR),
  value: { type: TENSOR, required: ["codes"], optional: ["none"], usual: null },
  codebook: of(["codes"], SIZE),
  noise: mayOf(NORMAL, TENSOR),
  reason: mayOf(["none"], TEXT),
});

const LATENT = struct<Latent>({
  name: field(TENSOR),
  shape: field(SHAPE),
  posterior: field(POSTERIOR),
  prior: field(PRIOR),
  dtype: field(DTYPE),
  axes: may(AXES, []),
  dynamic: may(DYNAMIC, NO_SIZES),
  scale: may(either(FACTOR, "a number, or a list of numbers"), 1),
  shift: may(either(NUMBER, "a number, or a list of numbers"), 0),
});

const kinds = (test: (kind: { logits: boolean; scale: boolean }) => boolean): string[] =>
  [...KINDS].filter(([, kind]) => test(kind)).map(([name]) => name);
const WITH_SCALE = kinds((kind) => kind.scale);

const LIKELIHOOD = struct<Likelihood>({
  kind: field(choice([...KINDS.keys(), "none"], true)),
  mean: field(TENSOR),
  logits: mayOf(kinds((kind) => kind.logits), TENSOR),
  scale: { type: POSITIVE, required: WITH_SCALE, unless: "scale_output", usual: null },
  scale_output: mayOf(WITH_SCALE, TENSOR),
  shape: may(SHAPE),
  axes: may(AXES, []),
  outputs: may(
    list(
      struct({ name: field(TENSOR), shape: field(ANY_SHAPE), axes: may(AXES, []) }), "a list of at most 64 outputs", 0,
      64,
    ),
    [],
  ),
  reason: mayOf(["none"], TEXT),
});

const COLUMN = struct<Manifest["table"][number]>({
  name: field(TEXT),
  kind: field(choice(["modes", "categories"], true)),
  means: { ...of(["modes"], list(NUMBER, "a list of numbers", 1)), usual: [] },
  scales: { ...of(["modes"], list(POSITIVE, "a list of positive numbers", 1)), usual: [] },
  rounding: mayOf(["modes"], choice(["nearest", "zero"])),
  categories: { ...of(["categories"], list(scalar, "a list of categories", 1)), usual: [] },
});

const DIGEST = text("sha256:[0-9a-f]{64}", 'a digest, "sha256:" and 64 hexadecimal digits');
export const VERSION_PATTERN = "2\\.(?:0|[1-9][0-9]*)";
export const READER_PATTERN = "vae-runtime>=[0-9]{1,9}(?:\\.[0-9]{1,9}){0,7}";

/** The fields of `additional_metadata.vae` of the package. */
export const VAE: Record<string, Field> = {
  format_version: field(text(VERSION_PATTERN, 'a version "2.x"')),
  reader: may(text(READER_PATTERN, 'a requirement such as "vae-runtime>=0.1"')),
  name: field(TEXT),
  description: may(TEXT, ""),
  license: may(TEXT),
  observation: field(OBSERVATION),
  conditions: may(list(CONDITION, "a list of at most 64 conditions", 0, 64), []),
  latents: field(list(LATENT, "a list of 1 to 64 latents", 1, 64)),
  likelihood: field(LIKELIHOOD),
  tiles: may(
    list(
      struct({
        component: field(COMPONENT),
        halo: may(map(integer(0, 2 ** 31 - 1)), new Map()),
        reason: may(TEXT),
      }),
      "a list of at most 2 objects", 0, 2,
    ),
    [],
  ),
  table: may(list(COLUMN, "a list of columns"), []),
  batch_of_one: may(COMPONENT_NAMES, []),
  noise: field(choice(["vnoise-1"], true)),
  golden: field(struct({ file: field(FILE), seed: field(integer(0, 2 ** 53 - 1)), n: field(integer(1, 2 ** 20)) })),
  refused: may(list(struct({ component: field(COMPONENT), variant: field(NAME), reason: field(TEXT) })), []),
  training: may(FREE, new Map()),
  metrics: may(FREE, new Map()),
  producer: may(FREE, new Map()),
  packed_from: may(DIGEST),
};

/** The fields of `additional_metadata.vae` of a variant. */
export const VARIANT: Record<string, Field> = {
  precision: field(TEXT),
  tolerance: field(NUMBERS),
  error: field(NUMBERS),
  exporter: may(TEXT),
  data: may(FILE),
  quality: may(
    struct({
      method: field(TEXT),
      size: field(integer(1, 2 ** 53 - 1)),
      psnr: field(nullable(NUMBER)),
      peak: field(POSITIVE),
      elbo_change: field(nullable(NUMBER)),
      measured: field(TEXT),
      calibration: may(TEXT),
      reason: may(TEXT),
    }),
  ),
};

/** The components of a bundle: both, unless one was left out. */
export function componentsOf(manifest: Manifest): Component[] {
  return COMPONENTS.filter((component) => manifest[component].size > 0);
}

/** All variants, the encoder's first. */
export function variantsOf(manifest: Manifest): Variant[] {
  return [...manifest.encoder.values(), ...manifest.decoder.values()];
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
  name: string, dtype: Dtype, shape: number[], axes: string[] = [], dynamic: Map<string, Sizes> = NO_SIZES,
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
