/** Verify a bundle: hash every file, then replay the golden vectors on the device. */
import type { NumberArray } from "./arrays.js";
import type { Bundle } from "./bundle.js";
import { BundleError, DeviceError, VaeError, oneLine } from "./errors.js";
import { type Golden, contradictions, goldenInputs, readGolden } from "./golden.js";
import { type Manifest, type Variant, outputsOfComponent, variantsOf } from "./manifest.js";
import { type Networks, openVariant } from "./networks.js";
import type { Device } from "./session.js";
import { replayStream } from "./streams.js";

/**
 * The result of one check; `passed` is null where it was skipped, and `detail` says why. `difference` is the largest from
 * the golden answer, in units of the output; null for codes, and where none was measured.
 */
export interface Check {
  what: string;
  passed: boolean | null;
  detail: string;
  difference: number | null;
}

/** The checks of `verify`; as a string a table. */
export class Report {
  constructor(readonly checks: readonly Check[]) {}

  /** Whether nothing failed. */
  get passed(): boolean {
    return this.checks.every((check) => check.passed !== false);
  }

  toString(): string {
    const width = Math.min(80, Math.max(...this.checks.map(({ what }) => what.length)));
    const line = ({ what, passed, detail }: Check) => {
      const verdict = passed === null ? "skipped" : passed ? "ok" : "FAILED";
      return oneLine(`${verdict.padEnd(8)}${what.padEnd(width)}  ${detail}`);
    };
    return this.checks.map(line).join("\n");
  }
}

/**
 * Check every file of a bundle and what its graphs compute on this device.
 *
 * @throws {DeviceError} the device is unavailable; all other failures are in the report.
 */
export async function verifyBundle(bundle: Bundle, networks: Networks): Promise<Report> {
  const problems = await bundle.problems();
  const checks = problems.map((detail) => unmeasured("files", false, detail));
  if (!problems.length) {
    checks.push(unmeasured("files", true, `${bundle.sums.size} files, every SHA-256 as listed; ${bundle.digest}`));
  }
  let golden: Golden | undefined;
  try {
    golden = await readGolden(bundle);
  } catch (error) {
    if (!(error instanceof BundleError)) throw error;
    checks.push(unmeasured("golden vectors", false, error.message));
  }
  if (golden) {
    const swapped = contradictions(bundle.manifest, golden);
    checks.push(...swapped.map((detail) => unmeasured("golden vectors", false, detail)));
    for (const variant of variantsOf(bundle.manifest)) checks.push(...(await replay(variant, golden, networks)));
  }
  return new Report(checks);
}

function unmeasured(what: string, passed: boolean | null, detail: string): Check {
  return { what, passed, detail, difference: null };
}

async function replay(variant: Variant, golden: Golden, networks: Networks): Promise<Check[]> {
  const { bundle, device, variants } = networks;
  const { component, name, executor } = variant;
  const what = `${component}/${name}`;
  if (executor !== "ort") return [unmeasured(what, null, `not run: ${executor} needs PyTorch`)];
  const { manifest } = bundle;
  const outputs = outputsOfComponent(manifest, component).map((output) => output.name);
  try {
    const isInUse = variants.get(component) === variant;
    const session = isInUse ? await networks.session(component) : await openVariant(bundle, variant, device);
    try {
      const inputs = goldenInputs(manifest, component, golden);
      const answers = await session.run(outputs, inputs, manifest.golden.n);
      const checks = outputs.map((output, index) =>
        compared(manifest, `${what} ${output}`, variant, output, answers[index].data, golden),
      );
      return [...checks, ...(await replayChunks(bundle, variant, golden, inputs, device))];
    } finally {
      if (!isInUse) await session.release();
    }
  } catch (error) {
    if (error instanceof DeviceError || !(error instanceof VaeError)) throw error;
    return [unmeasured(what, false, error.message)];
  }
}

/** The check of a variant's stream, if it has one. */
async function replayChunks(
  bundle: Bundle, variant: Variant, golden: Golden, inputs: Map<string, NumberArray>, device: Device,
): Promise<Check[]> {
  const { stream, component, name } = variant;
  if (!stream?.file) return [];
  const { manifest } = bundle;
  const { mean } = manifest.likelihood;
  const { data } = await replayStream(bundle, variant, stream, device, inputs);
  return [compared(manifest, `${component}/${name} stream ${mean}`, variant, mean, data, golden)];
}

type Numbers = ArrayLike<number | bigint>;

/** The largest difference, written so that NaN is one; and its place. */
function largest(a: Numbers, b: Numbers): [number, number] {
  let worst = 0;
  let place = 0;
  for (let index = 0; index < b.length; index++) {
    const difference = Math.abs(Number(a[index]) - Number(b[index]));
    if (!(difference <= worst)) [worst, place] = [difference, index];
    if (Number.isNaN(worst)) break;
  }
  return [worst, place];
}

function compared(
  manifest: Manifest, what: string, variant: Variant, output: string, answer: Numbers, golden: Golden,
): Check {
  const reference = manifest.producer.has("adopted") ? "the graph that was given" : "PyTorch";
  const own: Numbers = golden.get(`${variant.component}/${variant.name}/${output}`)!;
  const expected: Numbers = golden.get(`${variant.component}/pytorch/${output}`)!;
  const [tolerance, declared] = [variant.tolerance.get(output)!, variant.error.get(output)!];
  if (answer.length !== own.length) return unmeasured(what, false, `expected ${own.length} numbers, got ${answer.length}`);
  const [most, place] = largest(answer, own);
  // Codes are labels, whose differences have no size.
  const difference = own instanceof BigInt64Array ? null : most;
  if (!(most <= tolerance)) {
    let many = 0;
    for (let i = 0; i < own.length; i++) many += Math.abs(Number(answer[i]) - Number(own[i])) <= tolerance ? 0 : 1;
    const detail =
      `disagrees with ${many} of ${own.length} golden values; worst at ${place}: expected ${own[place]}, got ` +
      `${answer[place]}, difference ${digits(most)}, tolerance ${digits(tolerance)}`;
    return { what, passed: false, detail, difference };
  }
  const [distance] = largest(own, expected);
  if (!(distance <= declared)) {
    const detail = `golden.npz: the stored answer is ${digits(distance)} from ${reference}'s, the manifest declares ${digits(declared)}`;
    return { what, passed: false, detail, difference };
  }
  const detail = `max difference ${digits(most)}, tolerance ${digits(tolerance)}; from ${reference} ${digits(declared)}`;
  return { what, passed: true, detail, difference };
}

/** A number with four significant digits at most. */
function digits(value: number): string {
  const rounded = Number(value.toPrecision(4));
  return value !== 0 && Math.abs(value) < 1e-3 ? rounded.toExponential() : String(rounded);
}
