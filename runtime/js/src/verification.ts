/** Verify a bundle: hash every file, then replay the golden vectors on the device. */
import type { NumberArray } from "./arrays.js";
import type { Bundle } from "./bundle.js";
import { BundleError, DeviceError, VaeError, oneLine } from "./errors.js";
import { type Golden, contradictions, goldenInputs, readGolden } from "./golden.js";
import { type Variant, outputsOfComponent, variantsOf } from "./manifest.js";
import { type Networks, openVariant } from "./networks.js";
import type { Device } from "./session.js";
import { replayStream } from "./streams.js";

/** The result of one check; `passed` is null where it was skipped, and `detail` says why. */
export interface Check {
  what: string;
  passed: boolean | null;
  detail: string;
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
  const checks: Check[] = problems.map((detail) => ({ what: "files", passed: false, detail }));
  if (!problems.length) {
    const detail = `${bundle.sums.size} files, every SHA-256 as listed; ${bundle.digest}`;
    checks.push({ what: "files", passed: true, detail });
  }
  let golden: Golden | undefined;
  try {
    golden = await readGolden(bundle);
  } catch (error) {
    if (!(error instanceof BundleError)) throw error;
    checks.push({ what: "golden vectors", passed: false, detail: error.message });
  }
  if (golden) {
    const swapped = contradictions(bundle.manifest, golden);
    checks.push(...swapped.map((detail) => ({ what: "golden vectors", passed: false, detail })));
    for (const variant of variantsOf(bundle.manifest)) checks.push(...(await replay(variant, golden, networks)));
  }
  return new Report(checks);
}

async function replay(variant: Variant, golden: Golden, networks: Networks): Promise<Check[]> {
  const { bundle, device, variants } = networks;
  const { component, name, executor } = variant;
  const what = `${component}/${name}`;
  if (executor !== "ort") return [{ what, passed: null, detail: `not run: ${executor} needs PyTorch` }];
  const { manifest } = bundle;
  const outputs = outputsOfComponent(manifest, component).map((output) => output.name);
  try {
    const isInUse = variants.get(component) === variant;
    const session = isInUse ? await networks.session(component) : await openVariant(bundle, variant, device);
    try {
      const inputs = goldenInputs(manifest, component, golden);
      const answers = await session.run(outputs, inputs, manifest.golden.n);
      const checks = outputs.map((output, index) => ({
        what: `${what} ${output}`, ...compared(variant, output, answers[index].data, golden),
      }));
      return [...checks, ...(await replayChunks(bundle, variant, golden, inputs, device))];
    } finally {
      if (!isInUse) await session.release();
    }
  } catch (error) {
    if (error instanceof DeviceError || !(error instanceof VaeError)) throw error;
    return [{ what, passed: false, detail: error.message }];
  }
}

/** The check of a variant's stream, if it has one. */
async function replayChunks(
  bundle: Bundle, variant: Variant, golden: Golden, inputs: Map<string, NumberArray>, device: Device,
): Promise<Check[]> {
  const { stream, component, name } = variant;
  if (!stream?.file) return [];
  const { mean } = bundle.manifest.likelihood;
  const { data } = await replayStream(bundle, variant, stream, device, inputs);
  return [{ what: `${component}/${name} stream ${mean}`, ...compared(variant, mean, data, golden) }];
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

function compared(variant: Variant, output: string, answer: Numbers, golden: Golden): Omit<Check, "what"> {
  const own: Numbers = golden.get(`${variant.component}/${variant.name}/${output}`)!;
  const expected: Numbers = golden.get(`${variant.component}/pytorch/${output}`)!;
  const [tolerance, declared] = [variant.tolerance.get(output)!, variant.error.get(output)!];
  if (answer.length !== own.length) return { passed: false, detail: `expected ${own.length} numbers, got ${answer.length}` };
  const [difference, place] = largest(answer, own);
  const digits = (value: number) => value.toPrecision(2);
  if (!(difference <= tolerance)) {
    let many = 0;
    for (let i = 0; i < own.length; i++) many += Math.abs(Number(answer[i]) - Number(own[i])) <= tolerance ? 0 : 1;
    const detail =
      `disagrees with ${many} of ${own.length} golden values; worst at ${place}: expected ${own[place]}, got ` +
      `${answer[place]}, difference ${digits(difference)}, tolerance ${digits(tolerance)}`;
    return { passed: false, detail };
  }
  const [distance] = largest(own, expected);
  if (!(distance <= declared)) {
    const detail = `golden.npz: the stored answer is ${digits(distance)} from PyTorch's, the manifest declares ${digits(declared)}`;
    return { passed: false, detail };
  }
  return { passed: true, detail: `max difference ${digits(difference)}, tolerance ${digits(tolerance)}; from PyTorch ${digits(declared)}` };
}
