/** Check observations, latents and conditions against the manifest, and name them as the graphs' inputs. */
import { type FloatArray, type NumberArray, isSameShape, product, repeatedRows, rowsOf } from "./arrays.js";
import { isList, listed, refuseInput, requireInteger, requireNames, shown } from "./errors.js";
import {
  type ArraySpec, type Component, type Condition, type Dtype, type Latent, type Manifest, type PerChannel, type Sizes,
  outputsOf,
} from "./manifest.js";
import type { Feeds, Rows } from "./networks.js";
import { type Integer, POSTERIOR, advance, normal, streamOf } from "./noise.js";
import type { Prior } from "./prior.js";
import { hasSize, sizesText } from "./rules.js";
import { isOfType } from "./session.js";

/** Numbers, and their shape as `shape` or, as tensors of ONNX Runtime have it, as `dims`. */
export interface ArrayInput {
  readonly data: unknown;
  readonly shape?: readonly number[];
  readonly dims?: readonly number[];
}

/** One latent's array, or arrays by the latents' names. */
export type Latents = ArrayInput | Readonly<Record<string, ArrayInput>>;
/** Values by the conditions' names: one for all rows, an array [n, ...], or names of classes. */
export type Conditions = Readonly<
  Record<string, ArrayInput | number | bigint | boolean | string | readonly (number | bigint | string)[]>
>;
export type LatentShape = readonly number[] | Readonly<Record<string, readonly number[]>>;

const MAX_FLOAT = 3.4028234663852886e38;

export class Inputs {
  /** Whether latents are taken and given by name. */
  readonly hasSeveral: boolean;
  /** Whether the encoder takes noise, since some latents depend on samples of others. */
  readonly encoderNoise: boolean;

  constructor(private readonly _manifest: Manifest, private readonly _prior: Prior) {
    this.hasSeveral = _manifest.latents.length > 1;
    this.encoderNoise = _manifest.latents.some((latent) => latent.posterior.noise);
  }

  /** Check observations and give them in the manifest's dtype. */
  observations(x: ArrayInput): NumberArray {
    const { observation } = this._manifest;
    return checkedRows(observation, x, observation.range);
  }

  /** Latents by name; of several, only those that are given. */
  latents(z: Latents): Map<string, NumberArray> {
    const { latents } = this._manifest;
    if (isArray(z)) {
      if (this.hasSeveral) refuseInput("z", `arrays by the names ${namesOf(latents)}`, "one array");
      return new Map([[latents[0].name, latentRows(latents[0], z)]]);
    }
    requireNames("z", z, namesOf(latents));
    return new Map(
      latents.filter(({ name }) => Object.hasOwn(z, name)).map((latent) => [latent.name, latentRows(latent, z[latent.name])]),
    );
  }

  /** The conditions that a component takes, or with null every condition. */
  conditions(component: Component | null, conditions: Conditions | null | undefined, n: number): Feeds {
    const given = conditions ?? {};
    requireNames("conditions", given, namesOf(this._manifest.conditions));
    const feeds: Feeds = new Map();
    for (const condition of this._manifest.conditions) {
      const { name, shape, classes, dtype, components } = condition;
      const isGiven = Object.hasOwn(given, name);
      const rows = isGiven ? conditionRows(condition, given[name], n) : null;
      if (component && !components.includes(component)) continue;
      if (!rows) {
        const kind = classes ? `one of ${classes.length} classes` : `${dtype} [${shape}]`;
        refuseInput("conditions", `${name}, ${kind}`, "nothing", `give conditions: { ${name}: … }`);
      }
      feeds.set(name, rows);
    }
    return feeds;
  }

  /** The shape of each latent. */
  shapes(latentShape: LatentShape | null | undefined): number[][] {
    const { latents } = this._manifest;
    if (latentShape == null) return latents.map((latent) => latent.shape);
    const shapes = (
      isList(latentShape) && !this.hasSeveral ? { [latents[0].name]: latentShape } : latentShape
    ) as Record<string, number[]>;
    requireNames("latentShape", shapes, namesOf(latents));
    return latents.map((latent) => (Object.hasOwn(shapes, latent.name) ? otherShape(latent, shapes[latent.name]) : latent.shape));
  }

  /** The decoder's inputs and their number of rows; latents that are its noise may be missing from `z`. */
  decoder(
    z: Latents, conditions: Conditions | null | undefined, seed: Integer | null, start: Integer, out?: Float32Array,
  ): [Feeds, number] {
    const arrays = this.latents(z);
    // One batch must not write into an array that a later one reads.
    for (const [name, { data, shape }] of arrays) {
      if (data.buffer === out?.buffer) arrays.set(name, { data: data.slice(), shape } as NumberArray);
    }
    const missing = this._manifest.latents.filter(
      ({ name, posterior }) => !arrays.has(name) && (outputsOf(posterior).length || !arrays.size),
    );
    if (missing.length) refuseInput("z", `every latent: ${namesOf(missing)}`, "nothing");
    const counts = [...arrays.values()].map((array) => array.shape[0]);
    if (new Set(counts).size > 1) refuseInput("z", "as many rows of each latent", counts);
    return [this.decoderOfChecked(arrays, this.conditions("decoder", conditions, counts[0]), seed, start), counts[0]];
  }

  /** As `decoder`, of latents and conditions that are checked; `rows` may hold the encoder's conditions too. */
  decoderOfChecked(arrays: Map<string, NumberArray>, rows: Feeds, seed: Integer | null, start: Integer): Feeds {
    const feeds: Feeds = new Map();
    const { latents, conditions } = this._manifest;
    const sizes = new Map<string, number>();
    for (const { name, axes } of latents) {
      axes.forEach((axis, index) => arrays.has(name) && sizes.set(axis, arrays.get(name)!.shape[1 + index]));
    }
    latents.forEach((latent, number) => {
      const array = arrays.get(latent.name);
      feeds.set(latent.name, array ? rowsFrom(array) : this._noiseOf(latent, number, sizes, seed, start));
    });
    for (const { name, components } of conditions) if (components.includes("decoder")) feeds.set(name, rows.get(name)!);
    return feeds;
  }

  private _noiseOf(
    latent: Latent, number: number, sizes: Map<string, number>, seed: Integer | null, start: Integer,
  ): Rows {
    const shape = withSizes(latent, sizes);
    return (first, last) =>
      seed === null
        ? zeros([last - first, ...shape])
        : this._prior.drawOne(number, seed, advance(start, first), last - first, shape);
  }

  /** The encoder's inputs, of checked observations and conditions; noise is drawn with a seed, and zeros without. */
  encoder(x: NumberArray, rows: Feeds, seed: Integer | null, start: Integer): Feeds {
    const { observation, latents, conditions } = this._manifest;
    const feeds: Feeds = new Map([[observation.name, rowsFrom(x)]]);
    for (const { name, components } of conditions) if (components.includes("encoder")) feeds.set(name, rows.get(name)!);
    const sizes = new Map<string, number>();
    latents.forEach((latent, number) => {
      if (!latent.posterior.noise) return;
      observation.axes.forEach((axis, index) => {
        if (!latent.dynamic.has(axis)) return;
        // Latents grow in proportion to observations.
        const usual = latent.shape[latent.axes.indexOf(axis)];
        sizes.set(axis, Math.floor((usual * x.shape[1 + index]) / observation.shape[index]));
      });
      const shape = withSizes(latent, sizes);
      feeds.set(latent.posterior.noise, (first, last) =>
        seed === null
          ? zeros([last - first, ...shape])
          : normal(seed, advance(start, first), last - first, shape, { stream: streamOf(POSTERIOR, number) }),
      );
    });
    return feeds;
  }

  /** Latents changed by their scale and shift, in float32, in the form of `z`; codes stay. */
  rescaled(z: Latents, change: (part: number, scale: number, shift: number) => number): NumberArray | Record<string, NumberArray> {
    const arrays = this.latents(z);
    for (const { name, scale, shift, posterior } of this._manifest.latents) {
      const array = arrays.get(name);
      if (!array || posterior.kind === "codes") continue;
      const { data, shape } = array as FloatArray;
      const size = product(shape.slice(2));
      const at = (numbers: PerChannel, index: number) =>
        Math.fround(isList(numbers) ? numbers[Math.floor(index / size) % shape[1]] : numbers);
      arrays.set(name, { data: data.map((each, index) => change(each, at(scale, index), at(shift, index))), shape });
    }
    return isArray(z) ? [...arrays.values()][0] : Object.fromEntries(arrays);
  }
}

/** Gives rows of a whole array. */
export function rowsFrom(array: NumberArray): Rows {
  return (first, last) => (last - first === array.shape[0] ? array : rowsOf(array, first, last));
}

/** Check latents and give them in the manifest's dtype. */
export function latentRows(latent: Latent, z: ArrayInput): NumberArray {
  const { codebook } = latent.posterior;
  return checkedRows(latent, z, codebook ? [0, codebook - 1] : null);
}

function isArray(value: unknown): value is ArrayInput {
  const { data, shape, dims } = (value ?? {}) as Partial<ArrayInput>;
  return data !== undefined && isList(shape ?? dims);
}

function zeros(shape: number[]): FloatArray {
  return { data: new Float32Array(product(shape)), shape };
}

function namesOf(each: readonly { name: string }[]): string[] {
  return each.map(({ name }) => name);
}

/** A latent's shape with these sizes of its dynamic axes; a size that is not named is the usual one. */
function withSizes({ shape, axes, dynamic }: ArraySpec, sizes: Map<string, number>): number[] {
  return shape.map((usual, index) => (dynamic.has(axes[index]) ? (sizes.get(axes[index]) ?? usual) : usual));
}

function otherShape(latent: Latent, shape: readonly number[]): number[] {
  const place = `latentShape of ${latent.name}`;
  if (!isList(shape)) refuseInput(place, "a list of sizes", shown(shape));
  const sizes = shape.map((size, axis) => requireInteger(`${place}[${axis}]`, size, 1, 2 ** 31));
  const problem = misfit(sizes, latent, 0);
  if (problem !== null) refuseInput(place, described(latent), sizes, problem);
  return sizes;
}

function described({ shape, axes, dynamic }: ArraySpec, dtype = "", n = "n"): string {
  const sizes = shape.map((size, index) => (dynamic.has(axes[index]) ? axes[index] : String(size)));
  const proven = [...dynamic].map(([axis, each]) => `${axis} ${sizesText(each)}`).join("; ");
  return `${dtype ? `${dtype} ${listed([n, ...sizes])}` : listed(sizes)}${proven ? ` (${proven})` : ""}`;
}

/** The end of the message on sizes that do not fit a shape; null if they fit. Axes count from `from`. */
function misfit(sizes: readonly number[], { shape, axes, dynamic }: ArraySpec, from: number): string | null {
  if (sizes.length !== shape.length) return "give as many axes";
  for (let axis = 0; axis < sizes.length; axis++) {
    const proven: Sizes | undefined = dynamic.get(axes[axis]);
    if (!proven && sizes[axis] !== shape[axis]) return `axis ${axis + from} must be ${shape[axis]}, is ${sizes[axis]}`;
    if (proven && !hasSize(proven, sizes[axis])) {
      return `${axes[axis]} ${sizes[axis]} was not proven: choose another, or export for others`;
    }
  }
  return null;
}

function checkedRows(spec: ArraySpec, value: ArrayInput, bounds: [number, number] | null): NumberArray {
  const { name, dtype } = spec;
  const expected = described(spec, dtype);
  if (!isArray(value)) refuseInput(name, expected, shown(value), "give { data, shape }");
  const array = typed(name, value, dtype, expected);
  const isOneRow = misfit(array.shape, spec, 0) === null;
  const problem = isOneRow ? `add the batch axis: [1, ${array.shape.join(", ")}]` : misfit(array.shape.slice(1), spec, 1);
  if (problem !== null) refuseInput(name, expected, array.shape, problem);
  if (!array.shape[0]) refuseInput(name, "at least one row", array.shape);
  requireWithin(name, array.data, bounds, "scale or clean the data");
  return array;
}

/** An array in a dtype: any integers serve for int64, and any floats for float32. */
function typed(name: string, value: ArrayInput, dtype: Dtype, expected: string): NumberArray {
  const shape = Array.from((value.shape ?? value.dims)!);
  if (!shape.every((size) => Number.isInteger(size) && size >= 0)) refuseInput(name, expected, shown(shape), "give sizes of at least 0");
  const { data } = value;
  const isPlain = isList(data);
  // Gaps in a list become undefined.
  const numbers = (isPlain ? Array.from(data) : ArrayBuffer.isView(data) ? data : []) as ArrayLike<number | bigint>;
  if (numbers.length !== product(shape)) {
    refuseInput(name, expected, `${numbers.length} numbers for ${shape}`, "give as many as the shape has");
  }
  // ONNX Runtime takes no memory that other threads may change.
  if (isOfType(data, dtype)) return { data: data.buffer instanceof ArrayBuffer ? data : data.slice(), shape } as NumberArray;
  const kind = isPlain ? "numbers" : shown(data);
  const isFloat32 = dtype === "float32";
  const isInteger = (each: unknown) =>
    typeof each === "bigint" ? BigInt.asIntN(64, each) === each : Number.isSafeInteger(each);
  const isRight = isPlain
    ? (numbers as unknown[]).every(isFloat32 ? (each) => typeof each === "number" : isInteger)
    : (isFloat32 ? /Float/ : /int/i).test(kind) && !(data instanceof BigUint64Array && !data.every(isInteger));
  if (!isRight) refuseInput(name, expected, kind, isFloat32 ? "convert with Float32Array.from" : "give integers");
  if (!isFloat32) return { data: BigInt64Array.from(numbers as ArrayLike<number>, BigInt), shape };
  const floats = Float32Array.from(numbers as ArrayLike<number>);
  const wrong = floats.findIndex((each, index) => !Number.isFinite(each) && Number.isFinite(numbers[index]));
  if (wrong >= 0) refuseInput(`${name}[${wrong}]`, `at most ${MAX_FLOAT}`, numbers[wrong], "scale the data");
  return { data: floats, shape };
}

function requireWithin(name: string, data: ArrayLike<number | bigint>, bounds: [number, number] | null, advice: string): void {
  const [low, high] = bounds ?? [-MAX_FLOAT, MAX_FLOAT];
  for (let index = 0; index < data.length; index++) {
    const value = data[index];
    // Written so that NaN fails.
    if (value >= low && value <= high) continue;
    refuseInput(`${name}[${index}]`, bounds ? `values from ${low} to ${high}` : "finite values", value, advice);
  }
}

function conditionRows(condition: Condition, value: Conditions[string], n: number): Rows {
  const { name, shape, classes, dtype, range } = condition;
  const own = shape.length ? ` of shape ${listed(shape)}` : "";
  let expected = `${dtype} ${listed([n, ...shape])} or one value${own}`;
  if (classes) {
    const more = classes.length > 12 ? `, … (${classes.length} in all)` : "";
    expected += `, of the classes ${classes.slice(0, 12).join(", ")}${more}`;
  }
  const numbered = (each: unknown) => {
    if (!classes || typeof each !== "string") return each;
    const index = classes.indexOf(each);
    if (index < 0) refuseInput(name, expected, shown(each));
    return index;
  };
  let array: ArrayInput;
  if (isArray(value)) array = value;
  else if (isList(value)) array = { data: value.map(numbered), shape: [value.length] };
  else {
    const one = numbered(value);
    array = { data: [typeof one === "boolean" && dtype === "int64" ? Number(one) : one], shape: [] };
  }
  const rows = typed(name, array, dtype, expected);
  if (!isSameShape(rows.shape, shape) && !isSameShape(rows.shape, [n, ...shape])) {
    refuseInput(name, expected, rows.shape);
  }
  requireWithin(name, rows.data, classes ? [0, classes.length - 1] : range, "choose another value");
  if (!isSameShape(rows.shape, shape)) return rowsFrom(rows);
  const single = { data: rows.data, shape: [1, ...shape] } as NumberArray;
  return (first, last) => repeatedRows(single, last - first);
}
