/** Read the golden vectors of a bundle: fixed inputs, and the answers of PyTorch and every variant at export. */
import { type NumberArray, product } from "./arrays.js";
import type { Bundle } from "./bundle.js";
import { EXPORT, refuseBundle } from "./errors.js";
import { kindOf, meansOf } from "./likelihood.js";
import { type Component, type Manifest, type TensorSpec, componentsOf, inputsOf, outputsOfComponent } from "./manifest.js";
import { PRIOR, normal, streamOf } from "./noise.js";
import { type NpzData, packedLimit, unpackNpz } from "./npz.js";

// Values of one latent that are drawn and not stored.
const MAX_DRAWN = 2 ** 24;

export type Golden = Map<string, NpzData>;

/** The numbers of the latents that the golden vectors do not store, by name. */
function drawn({ latents }: Manifest): Map<string, number> {
  const numbered = latents.map((latent, number): [string, number] => [latent.name, number]);
  return new Map(numbered.filter(([, number]) => latents[number].prior.kind === "normal"));
}

/**
 * The arrays of the golden vectors by name: stored inputs, and outputs as "component/variant/output".
 *
 * @throws {BundleError} the file is damaged, or an array is missing or of another shape or dtype.
 */
export async function readGolden(bundle: Bundle): Promise<Golden> {
  const { manifest } = bundle;
  const { file, n } = manifest.golden;
  const tensors = new Map<string, TensorSpec>();
  const unstored = drawn(manifest);
  for (const { name, prior, shape } of manifest.latents) {
    if (prior.kind === "normal" && n * product(shape) > MAX_DRAWN) {
      refuseBundle(bundle.place(file), `at most ${MAX_DRAWN} values of ${name}`, n * product(shape), EXPORT);
    }
  }
  for (const component of componentsOf(manifest)) {
    for (const tensor of inputsOf(manifest, component)) if (!unstored.has(tensor.name)) tensors.set(tensor.name, tensor);
    for (const source of ["pytorch", ...manifest[component].keys()]) {
      for (const output of outputsOfComponent(manifest, component)) {
        tensors.set(`${component}/${source}/${output.name}`, output);
      }
    }
  }
  const expected = new Map([...tensors].map(([name, { dtype, shape }]) => [name, { dtype, shape: [n, ...shape] }]));
  return unpackNpz(await bundle.read(file, packedLimit(expected)), bundle.place(file), expected);
}

/** The inputs of a component's golden answers by name; latents with a normal prior are drawn, all others stored. */
export function goldenInputs(manifest: Manifest, component: Component, golden: Golden): Map<string, NumberArray> {
  const { seed, n } = manifest.golden;
  const unstored = drawn(manifest);
  return new Map(
    inputsOf(manifest, component).map(({ name, shape }): [string, NumberArray] => {
      const number = unstored.get(name);
      if (number !== undefined) return [name, normal(seed, 0, n, shape, { stream: streamOf(PRIOR, number) })];
      return [name, { data: golden.get(name), shape: [n, ...shape] } as NumberArray];
    }),
  );
}

/**
 * Which answers are not what the manifest says they are: std of a logvar, and the mean of logits. Outputs of one shape
 * whose roles are swapped pass every other check.
 */
export function contradictions(manifest: Manifest, golden: Golden): string[] {
  const { encoder, decoder, latents, likelihood } = manifest;
  const found: string[] = [];
  const hold = (name: string, of: string, formula: (values: Float32Array) => ArrayLike<number>) => {
    const answer = golden.get(name) as Float32Array;
    const expected = formula(golden.get(of) as Float32Array);
    // Wide enough for answers in float16: outputs whose roles are swapped are far outside.
    const at = answer.findIndex((each, i) => !(Math.abs(each - expected[i]) <= 1e-3 + 0.05 * Math.abs(expected[i])));
    if (at >= 0) {
      found.push(`${name}[${at}]: expected ${expected[at]} by ${of}, got ${answer[at]}: roles are swapped; ${EXPORT}`);
    }
  };
  for (const { kind, std, logvar } of encoder.size ? latents.map((latent) => latent.posterior) : []) {
    if (kind === "normal") hold(`encoder/pytorch/${std}`, `encoder/pytorch/${logvar}`, (values) => Array.from(values, (each) => Math.exp(each / 2)));
  }
  if (likelihood.logits && decoder.size) {
    hold(`decoder/pytorch/${likelihood.mean}`, `decoder/pytorch/${likelihood.logits}`, (values) => meansOf(kindOf(manifest)!, values));
  }
  return found;
}
