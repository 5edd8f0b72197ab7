/** Sample Variational Autoencoders from bundles of vae-export, in browsers and Node. */
export type { FloatArray, NumberArray } from "./arrays.js";
export { BundleError, DeviceError, InputError, VaeError } from "./errors.js";
export type { ArrayInput, Conditions, Latents, LatentShape } from "./inputs.js";
export { interpolate, traverse } from "./latent_walks.js";
export type { Condition, Latent, Likelihood, Manifest, Observation } from "./manifest.js";
export type { BatchOptions } from "./networks.js";
export * as noise from "./noise.js";
export { newSeed } from "./noise.js";
export type { Source } from "./places.js";
export { Encoding, Posterior, Posteriors } from "./posterior.js";
export type { Scores } from "./score.js";
export type { Ort } from "./session.js";
export type { ChunkSource } from "./streams.js";
export { type Check, Report } from "./verification.js";
export { type CallOptions, type LoadOptions, type PriorOptions, VAE, load, verify } from "./vae.js";
export { VERSION } from "./version.js";
