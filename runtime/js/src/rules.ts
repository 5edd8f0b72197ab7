/** Rules between the fields of a manifest: docs/bundle-format.md lists them under "Cross-field rules". */
import { isList } from "./errors.js";
import { kindOf } from "./likelihood.js";
import {
  type Manifest, type PerChannel, type Sizes, type Variant, COMPONENTS, componentsOf, inputsOf, outputsOf,
  outputsOfComponent, pathsOf, variantsOf,
} from "./manifest.js";
import { Problem, join } from "./schema.js";

type Note = (isRight: unknown, place: string, expected: string, got: unknown) => void;

/** List the problems of fields that are valid by themselves and contradict each other. */
export function contradictions(manifest: Manifest): Problem[] {
  const found: Problem[] = [];
  const vae = "additional_metadata.vae.";
  const require: Note = (isRight, place, expected, got) => {
    if (!isRight) found.push(new Problem(place, expected, JSON.stringify(got)));
  };
  const { observation, conditions, latents, likelihood } = manifest;
  const place = `${vae}observation`;
  checkAxes(require, place, observation);
  checkRange(require, place, observation.range);
  const { offset, divisor } = observation.normalisation ?? {};
  checkCounts(require, `${place}.normalisation`, observation.shape, { offset, divisor });
  conditions.forEach(({ range, classes, dtype, shape }, index) => {
    const where = `${vae}conditions[${index}]`;
    checkRange(require, where, range);
    const isOne = dtype === "int64" && !shape.length;
    require(!classes || isOne, `${where}.classes`, "no classes unless the condition is int64 []", [dtype, shape]);
    require(!classes || !range, `${where}.range`, "no range beside classes", range);
  });
  latents.forEach((latent, index) => {
    const where = `${vae}latents[${index}]`;
    const { prior, posterior, dtype, dynamic, shape, scale, shift } = latent;
    const isCode = posterior.kind === "codes";
    checkAxes(require, where, latent);
    require((dtype === "int64") === isCode, `${where}.dtype`, "int64 for codes, and float32 for all else", dtype);
    const isNoise = posterior.kind === "none" && posterior.value === null;
    const isPrior =
      (!isCode || prior.kind === "none") && (!isNoise || prior.kind === "normal") && (prior.kind !== "mixture" || !dynamic.size);
    const expected = isCode ? '"none" for codes' : isNoise ? '"normal" for noise' : "another for dynamic axes";
    require(isPrior, `${where}.prior.kind`, expected, prior.kind);
    checkCounts(require, where, shape, { scale, shift });
  });
  const { shape, axes } = likelihood;
  const answer = `${vae}likelihood`;
  if (shape) checkAxes(require, answer, { shape, axes });
  else require(!axes.length, `${answer}.axes`, "no axes without a shape", axes);
  likelihood.outputs.forEach((each, index) => checkAxes(require, `${answer}.outputs[${index}]`, each));
  checkValues(require, vae, manifest);
  checkTiles(require, `${vae}tiles`, manifest);
  checkNames(require, vae, manifest);
  checkTable(require, `${vae}table`, manifest);
  checkScores(require, `${vae}scores`, manifest);
  checkVariants(require, vae, manifest);
  return found;
}

/** Kinds whose values are levels of a range, or classes. */
function checkValues(require: Note, vae: string, manifest: Manifest): void {
  const { observation, likelihood } = manifest;
  const kind = kindOf(manifest);
  if (kind?.levels) require(observation.range !== null, `${vae}observation.range`, "the first and the last level", null);
  if (!kind?.classes) return;
  const shape = likelihood.shape ?? [];
  const isShape = shape.slice(0, -1).join() === observation.shape.join() && shape.length > 1 && shape.at(-1)! > 1;
  require(isShape, `${vae}likelihood.shape`, `${JSON.stringify(observation.shape)} and behind it the number of classes`, shape);
  const isNamed = JSON.stringify(likelihood.axes.slice(0, -1)) === JSON.stringify(observation.axes);
  require(!isShape || isNamed, `${vae}likelihood.axes`, "the observation's and a name behind them", likelihood.axes);
  const [low, high] = observation.range ?? [];
  const isRange = low === 0 && high === (shape.at(-1) ?? 0) - 1;
  require(!isShape || !isNamed || isRange, `${vae}observation.range`, "the first and the last class", observation.range);
}

/** Whether the model was exported without an encoder, as `refused` then says. */
export function isDecoderAlone({ encoder, refused }: Manifest): boolean {
  return !encoder.size && refused.some(({ component, variant }) => component === "encoder" && variant === "fp32");
}

/** Whether a size is one of the proven ones. */
export function hasSize({ min, max, step }: Sizes, size: number): boolean {
  return size >= min && size <= max && (size - min) % step === 0;
}

/** Proven sizes as errors show them. */
export function sizesText({ min, max, step }: Sizes): string {
  return `${min} … ${max}${step > 1 ? ` in steps of ${step}` : ""}`;
}

function checkAxes(
  require: Note, place: string, { shape, axes, dynamic }: { shape: number[]; axes: string[]; dynamic?: Map<string, Sizes> },
): void {
  const isWhole = !axes.length || axes.length === shape.length;
  require(isWhole, `${place}.axes`, `one name for each of the ${shape.length} sizes of the shape`, axes.length);
  for (const [axis, sizes] of (isWhole && dynamic) || []) {
    const usual = axes.filter((each) => each === axis).length === 1 ? shape[axes.indexOf(axis)] : 0;
    const where = join(`${place}.dynamic`, axis);
    require(hasSize(sizes, usual), where, "the name of one axis, and sizes that include the one in the shape", sizesText(sizes));
  }
}

function checkRange(require: Note, place: string, range: [number, number] | null): void {
  require(!range || range[0] < range[1], `${place}.range`, "min below max", range);
}

function checkCounts(require: Note, place: string, shape: number[], fields: Record<string, PerChannel | undefined>): void {
  for (const [name, numbers] of Object.entries(fields)) {
    const isRight = !isList(numbers) || numbers.length === shape[0];
    require(isRight, `${place}.${name}`, `one number, or ${shape[0]} for the first axis of the shape`, numbers);
  }
}

function checkTiles(require: Note, place: string, { tiles, latents, observation }: Manifest): void {
  tiles.forEach(({ component, halo }, index) => {
    const isFirst = tiles.findIndex((other) => other.component === component) === index;
    require(isFirst, `${place}[${index}].component`, "each component once", component);
    for (const axis of halo.keys()) {
      const [whole, part] = [observation.dynamic.get(axis), latents[0].dynamic.get(axis)];
      const [large, small] = [observation, latents[0]].map(({ shape, axes }) => shape[axes.indexOf(axis)]);
      const ratio = large / small;
      const isMultiple =
        whole && part && whole.min === part.min * ratio && whole.step === part.step * ratio && part.min % part.step === 0;
      const expected = "a dynamic axis of the observation and the latent, whose sizes are multiples of the latent's";
      require(isMultiple && Number.isInteger(ratio), join(`${place}[${index}].halo`, axis), expected, ratio);
    }
    const isOne = latents.length === 1 || !halo.size;
    require(isOne, `${place}[${index}].halo`, "no tiles where there are several latents", latents.length);
  });
}

function checkNames(require: Note, vae: string, manifest: Manifest): void {
  const { observation, conditions, latents } = manifest;
  const encoded = latents.flatMap(({ posterior }) => outputsOf(posterior));
  const decoded = outputsOfComponent(manifest, "decoder").map(({ name }) => name);
  // Inputs of both components share their names: the golden vectors are named by input alone.
  const inputs = [observation, ...conditions, ...latents].map(({ name }) => name);
  for (const { posterior } of latents) if (posterior.noise) inputs.push(posterior.noise);
  for (const [place, names] of [["latents", encoded], ["likelihood", decoded], ["inputs", inputs]] as const) {
    const twice = names.find((name, index) => names.indexOf(name) !== index);
    require(twice === undefined, vae + place, "names that differ", twice);
  }
}

function checkScores(require: Note, place: string, { scores }: Manifest): void {
  if (!scores) return;
  const { shares, values } = scores;
  require(values.length === shares.length, `${place}.values`, `one for each of ${shares.length} shares`, values.length);
  const rises = shares.every((share, index) => index === 0 || share > shares[index - 1]);
  const ends = shares[shares.length - 1] === 1;
  require(rises && ends, `${place}.shares`, "shares that rise up to 1", shares.slice(0, 3));
  const falls = values.findIndex((value, index) => index > 0 && value < values[index - 1]);
  require(falls < 0, `${place}.values`, "scores that do not fall", values.slice(falls - 1, falls + 1));
}

function checkTable(require: Note, place: string, manifest: Manifest): void {
  const { table } = manifest;
  let width = 0;
  const names = new Set<string>();
  table.forEach(({ name, kind, means, scales, categories }, index) => {
    require(!names.has(name), `${place}[${index}].name`, "a name that no other column has", name);
    names.add(name);
    require(scales.length === means.length, `${place}[${index}].scales`, `one for each of ${means.length} means`, scales.length);
    width += kind === "categories" ? categories.length : 1 + means.length;
  });
  const { shape } = outputsOfComponent(manifest, "decoder")[0];
  const fits = !table.length || (shape.length === 1 && shape[0] === width);
  require(fits, place, `columns of as many values as the decoder's, ${shape}`, width);
}

function checkVariants(require: Note, vae: string, manifest: Manifest): void {
  const some = componentsOf(manifest);
  const mayLack = (manifest.packed_from || isDecoderAlone(manifest)) && some.length;
  for (const component of mayLack ? some : COMPONENTS) {
    const place = `components.${component}.variants`;
    const outputs = outputsOfComponent(manifest, component).map((output) => output.name).sort();
    const variants = [...manifest[component].values()];
    const isRunnable = variants.some(({ executor }) => executor === "ort");
    require(isRunnable, place, 'at least one variant with executor_info "ort"', variants.map(({ name }) => name));
    for (const variant of variants) {
      checkStream(require, `${join(place, variant.name)}.additional_metadata.vae.stream`, variant, manifest);
      for (const name of ["tolerance", "error"] as const) {
        const numbers = [...variant[name].keys()].sort();
        const where = `${join(place, variant.name)}.additional_metadata.vae.${name}`;
        require(JSON.stringify(numbers) === JSON.stringify(outputs), where, `a number for each of ${outputs}`, numbers);
      }
    }
  }
  manifest.refused.forEach(({ component, variant }, index) => {
    const isAbsent = !manifest[component].has(variant);
    require(isAbsent, `${vae}refused[${index}].variant`, `a variant that ${component} does not have`, variant);
  });
  const paths = variantsOf(manifest).flatMap(pathsOf);
  const twice = paths.find((path, index) => paths.indexOf(path) !== index);
  require(!twice, "components", "each file once", twice);
}

function checkStream(require: Note, place: string, { component, stream }: Variant, manifest: Manifest): void {
  const members = stream ? [stream.file, stream.hop, stream.error] : [];
  const absent = members.filter((value) => value === null).length;
  if (!stream || (absent === 3 && !stream.states.length)) return;
  require(!absent, place, "file, hop and error, or none of them", members);
  const { latents, likelihood, observation } = manifest;
  const [time] = latents[0].dynamic.keys();
  const isOne = component === "decoder" && latents.length === 1 && latents[0].dynamic.size === 1;
  const axes = likelihood.shape ? likelihood.axes : observation.axes;
  require(isOne && axes.includes(time), place, "a stream of a decoder of one latent with one dynamic axis", axes);
  const states = stream.states.map(({ name }) => name);
  const names = [...inputsOf(manifest, "decoder").map(({ name }) => name), ...states];
  const isDistinct = new Set(names).size === names.length && !states.some((name) => `${name}.next` === likelihood.mean);
  require(isDistinct, `${place}.states`, "names that no other input or output has", states);
}
