/** Paths between latents and along one of their dimensions. */
import { type FloatArray, allocate, isSameShape, isWhole } from "./arrays.js";
import { listed, refuseInput, requireBool, requireInteger, requireNames, shown } from "./errors.js";

/** One latent. */
export interface OneLatent {
  readonly data: ArrayLike<number>;
  readonly shape: readonly number[];
}

/**
 * Give latents on the way from one to another. The spherical path keeps to the lengths that a normal prior draws
 * (Shoemake, SIGGRAPH 1985; White, arXiv 1609.04468).
 *
 * @param a - [*latent shape], the first latent; `b` - the last.
 * @param steps - how many latents to give, both ends included; at least 2.
 * @param options - `spherical`: go along the sphere, true unless given; else straight.
 * @returns float32 [steps, *latent shape].
 * @throws {InputError} the shapes differ, a number is not finite, or `steps` is below 2.
 */
export function interpolate(
  a: OneLatent, b: OneLatent, steps: number, options: { spherical?: boolean } = {},
): FloatArray {
  requireNames("interpolate", options, ["spherical"]);
  const isSpherical = requireBool("spherical", options.spherical ?? true);
  requireInteger("steps", steps, 2, 2 ** 31);
  const [first, last] = [numbersOf("a", a), numbersOf("b", b)];
  if (!isSameShape(a.shape, b.shape)) refuseInput("b", `the shape of a, ${listed(a.shape)}`, b.shape);
  const size = first.length;
  const dot = (x: Float64Array, y: Float64Array) => x.reduce((all, each, i) => all + each * y[i], 0);
  const [lengthA, lengthB] = [Math.sqrt(dot(first, first)), Math.sqrt(dot(last, last))];
  const cosine = dot(first, last) / (lengthA * lengthB);
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  // Between parallel or opposite latents the sphere has no single shortest path: go straight.
  const isCurved = isSpherical && lengthA > 0 && lengthB > 0 && angle > 1e-6 && angle < Math.PI - 1e-6;
  const data = allocate(Float32Array, "steps", steps, size, "ask for fewer");
  for (let step = 0; step < steps; step++) {
    const t = step / (steps - 1);
    const length = isCurved ? ((1 - t) * lengthA + t * lengthB) / Math.sin(angle) : 1;
    const from = isCurved ? (Math.sin((1 - t) * angle) / lengthA) * length : 1 - t;
    const to = isCurved ? (Math.sin(t * angle) / lengthB) * length : t;
    for (let d = 0; d < size; d++) data[step * size + d] = from * first[d] + to * last[d];
  }
  return { data, shape: [steps, ...a.shape] };
}

/**
 * Copy one latent and let one of its numbers take one value after the other.
 *
 * @param z - [*latent shape], one latent.
 * @param dimension - which number, counted row-major from 0.
 * @param values - its values, at least one.
 * @returns float32 [values, *latent shape].
 * @throws {InputError} there is no such number, or a value is not finite.
 */
export function traverse(z: OneLatent, dimension: number, values: ArrayLike<number>): FloatArray {
  const latent = numbersOf("z", z);
  const steps = numbersOf("values", { data: values, shape: [values?.length ?? 0] });
  if (!steps.length) refuseInput("values", "at least one number", "none");
  const index = requireInteger("dimension", dimension, 0, latent.length - 1);
  const data = allocate(Float32Array, "values", steps.length, latent.length, "give fewer");
  steps.forEach((value, step) => {
    data.set(latent, step * latent.length);
    data[step * latent.length + index] = value;
  });
  return { data, shape: [steps.length, ...z.shape] };
}

function numbersOf(place: string, array: OneLatent): Float64Array {
  if (!isWhole(array)) refuseInput(place, "{ data, shape } of one latent", shown(array));
  const numbers = Float64Array.from(array.data, (each: unknown) => (each === null ? NaN : Number(each)));
  if (!numbers.every((each) => Number.isFinite(Math.fround(each)))) refuseInput(place, "finite numbers of float32", "others");
  return numbers;
}
