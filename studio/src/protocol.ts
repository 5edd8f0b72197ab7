/** What the page and its worker tell each other. Latents are rows of numbers, those of all latents one after the other. */
import type { Likelihood, Manifest, Observation } from "vae-runtime";

/** A condition, of which the controls are made. */
export interface ConditionInfo {
  name: string;
  dtype: "float32" | "int64";
  shape: number[];
  classes: string[] | null;
  range: [number, number] | null;
}

/** A latent, and where its numbers are in a row. */
export interface LatentInfo {
  name: string;
  dtype: string;
  shape: number[];
  first: number;
  size: number;
  /** How its prior draws, or why it cannot. */
  prior: "normal" | "mixture" | "sphere" | "none";
  reason: string | null;
}

/** A column of a table, as the manifest has it. */
export type Column = Manifest["table"][number];

/** The bundle as the page needs it. */
export interface About {
  name: string;
  description: string;
  license: string | null;
  digest: string;
  observation: Observation;
  likelihood: Likelihood;
  conditions: ConditionInfo[];
  latents: LatentInfo[];
  /** The columns that observations are rows of; empty where they are no rows of a table. */
  table: Column[];
  /** Numbers in a row of latents; 0 where they are codes. */
  size: number;
  /** Names of the decoder's variants, the default first. */
  variants: string[];
  /** Why there are no samples, no decoder or no encoder; null where there are. */
  noPrior: string | null;
  noDecoder: string | null;
  noEncoder: string | null;
}

/** Values of conditions by name: the name of a class, or numbers. */
export type ConditionValues = Record<string, string | number[]>;

/** Rows of observations. */
export interface Rows {
  data: Float32Array;
  shape: number[];
}

/** Rows, and how long they took to compute. */
export interface TimedRows extends Rows {
  milliseconds: number;
}

/** How to draw latents. */
export interface Draw {
  seed: bigint;
  start: bigint;
  n: number;
  temperature: number;
  truncation: number | null;
}

/** An observation's scores and posterior. */
export interface Scored {
  reconstruction: Rows | null;
  /** The most probable latent, or the codes; those of all latents one after the other. */
  latent: number[];
  /** The posterior's mean, a row of latents; null of codes. */
  mean: Float32Array | null;
  elbo: number | null;
  kl: number | null;
  likelihood: number | null;
  mse: number | null;
  klPerDimension: Float64Array | null;
  /** Why there is no ELBO. */
  reason: string | null;
}

/** One variant beside the first. */
export interface Compared {
  name: string;
  rows: Rows | null;
  milliseconds: number;
  error: string | null;
}

/** One check of the verification. */
export interface Checked {
  what: string;
  passed: boolean | null;
  detail: string;
  difference: number | null;
}

/** The calls of the worker: arguments and results. */
export interface Calls {
  open: [{ url: string; digest: string }, About];
  prior: [Draw, Float32Array];
  decode: [{ z: Float32Array; n: number; conditions: ConditionValues; variant: string | null }, TimedRows];
  score: [{ x: Float32Array; conditions: ConditionValues; variant: string | null }, Scored];
  interpolate: [{ a: Float32Array; b: Float32Array; steps: number; spherical: boolean }, Float32Array];
  compare: [{ z: Float32Array; conditions: ConditionValues }, Compared[]];
  verify: [null, Checked[]];
}

export type CallName = keyof Calls;
