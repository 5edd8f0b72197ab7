/** Read the golden vectors of a bundle: fixed inputs, and the answers of PyTorch and every variant at export. */
import type { NumberArray } from "./arrays.js";
import type { Bundle } from "./bundle.js";
import { type Component, type Manifest, type TensorSpec, componentsOf, inputsOf, outputsOfComponent } from "./manifest.js";
import { PRIOR, normal, streamOf } from "./noise.js";
import { type NpzData, packedLimit, unpackNpz } from "./npz.js";

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
