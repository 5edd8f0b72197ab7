/** ONNX Runtime, which the caller passes in: its devices, and one loaded graph. */
import { type NumberArray, product, rowsOf } from "./arrays.js";
import { DeviceError, EXPORT, VaeError, errorLine, listed, oneLine, refuseBundle, refuseInput, shown } from "./errors.js";
import { checkGraph } from "./graph_check.js";
import type { TensorSpec } from "./manifest.js";

interface OrtTensor {
  readonly data: unknown;
  readonly dims: readonly number[];
}

interface OrtSession {
  readonly inputMetadata: readonly unknown[];
  readonly outputMetadata: readonly unknown[];
  run(feeds: any, fetches: any): Promise<Readonly<Record<string, unknown>>>;
  release(): Promise<void>;
}

/** The part of `onnxruntime-web` and `onnxruntime-node` that is used. */
export interface Ort {
  readonly InferenceSession: { create(model: Uint8Array, options?: any): Promise<OrtSession> };
  readonly Tensor: new (type: any, data: any, dims: any) => OrtTensor;
  readonly env: { readonly versions?: { readonly node?: string; readonly web?: string } };
}

/** Where graphs run. */
export interface Device {
  ort: Ort;
  /** ONNX Runtime's name of the execution provider. */
  name: string;
  /** Options of every session. */
  options: Record<string, unknown>;
}

const TYPES = { float32: Float32Array, int64: BigInt64Array };

/**
 * The execution provider of a name; nothing falls back silently.
 *
 * @throws {InputError} the arguments are not of the right form.
 * @throws {DeviceError} the provider is unavailable.
 */
export async function resolveDevice(ort: unknown, name: unknown, options: Record<string, unknown>): Promise<Device> {
  const given = ort as Ort | undefined;
  if (!given?.InferenceSession?.create || !given.Tensor) {
    refuseInput("ort", "ONNX Runtime", shown(ort), 'import * as ort from "onnxruntime-web" or "onnxruntime-node"');
  }
  if (typeof name !== "string" || !/^[a-z]{1,20}$/.test(name)) {
    refuseInput("device", "cpu, wasm, webgpu or another execution provider", shown(name));
  }
  if (name === "webgpu" && !given.env?.versions?.node) {
    const adapter = await (globalThis.navigator as any)?.gpu?.requestAdapter().catch(() => null);
    if (!adapter) throw new DeviceError("device webgpu", "WebGPU", "nothing", "choose the device wasm");
  }
  if (typeof process !== "undefined" && process.env) process.env.ORT_DISABLE_TELEMETRY ??= "1";
  return { ort: given, name, options };
}

// Calls of ONNX Runtime wait for each other: sessions of onnxruntime-web do not run at the same time.
const queues = new WeakMap<object, Promise<unknown>>();

function queued<T>(ort: Ort, call: () => Promise<T>): Promise<T> {
  const result = (queues.get(ort.InferenceSession) ?? Promise.resolve()).then(call);
  queues.set(ort.InferenceSession, result.catch(() => undefined));
  return result;
}

/** One loaded graph on one device. */
export class Session {
  private constructor(
    private readonly _raw: OrtSession, private readonly _ort: Ort, readonly place: string,
    private readonly _takesOneRow: boolean,
  ) {}

  /**
   * Load a graph and check its inputs and outputs against the manifest.
   *
   * @throws {BundleError} the graph is refused, is not the manifest's, or ONNX Runtime does not load it.
   * @throws {DeviceError} the device is unavailable.
   */
  static async open(
    device: Device, place: string, content: Uint8Array, data: Map<string, Uint8Array>,
    expected: { input: TensorSpec[]; output: TensorSpec[] }, takesOneRow: boolean,
  ): Promise<Session> {
    const elements = [...expected.input, ...expected.output].reduce((all, each) => all + product(each.shape), 0);
    checkGraph(content, place, new Map([...data].map(([name, part]) => [name, part.length])), elements);
    // ONNX Runtime would take the file for one of its own format, which nobody checked.
    if (String.fromCharCode(...content.subarray(4, 8)) === "ORTM") {
      refuseBundle(place, "an ONNX graph", "ONNX Runtime's own format", EXPORT);
    }
    const options = {
      executionProviders: [device.name], graphOptimizationLevel: "all", logSeverityLevel: 4, interOpNumThreads: 1,
      ...device.options,
      ...(data.size ? { externalData: [...data].map(([path, part]) => ({ path, data: part })) } : {}),
    };
    let raw: OrtSession;
    try {
      raw = await queued(device.ort, () => device.ort.InferenceSession.create(content, options));
    } catch (error) {
      const why = errorLine(error);
      if (/no available backend|not supported|not available|backend not found/i.test(why)) {
        throw new DeviceError(`device ${device.name}`, "this execution provider", why, "choose another device");
      }
      refuseBundle(place, "a graph that ONNX Runtime loads", why, EXPORT);
    }
    if (!raw.inputMetadata) throw new DeviceError("ort", "ONNX Runtime 1.22 or newer", "an older one", "install a newer one");
    try {
      requireDescribed(place, "input", expected.input, raw.inputMetadata, takesOneRow);
      requireDescribed(place, "output", expected.output, raw.outputMetadata, takesOneRow);
    } catch (error) {
      await raw.release();
      throw error;
    }
    return new Session(raw, device.ort, place, takesOneRow);
  }

  /**
   * Compute the named outputs for `n` rows, in this order.
   *
   * @throws {VaeError} ONNX Runtime failed, for example for lack of memory.
   */
  async run(outputs: readonly string[], feeds: Map<string, NumberArray>, n: number): Promise<NumberArray[]> {
    if (!this._takesOneRow || n === 1) return this._runOnce(outputs, feeds);
    const rows: NumberArray[][] = [];
    for (let row = 0; row < n; row++) {
      const part = [...feeds].map(([name, array]): [string, NumberArray] => [name, rowsOf(array, row, row + 1)]);
      rows.push(await this._runOnce(outputs, new Map(part)));
    }
    return outputs.map((_, index) => {
      const { data, shape } = rows[0][index];
      const whole = new (data.constructor as Float32ArrayConstructor)(n * data.length);
      rows.forEach((row, number) => whole.set(row[index].data as Float32Array, number * data.length));
      return { data: whole, shape: [n, ...shape.slice(1)] };
    });
  }

  private async _runOnce(outputs: readonly string[], feeds: Map<string, NumberArray>): Promise<NumberArray[]> {
    const { Tensor } = this._ort;
    const tensors: Record<string, OrtTensor> = {};
    for (const [name, { data, shape }] of feeds) {
      tensors[name] = new Tensor(data instanceof Float32Array ? "float32" : "int64", data, shape);
    }
    try {
      const results = await queued(this._ort, () => this._raw.run(tensors, outputs));
      return outputs.map((name) => {
        const { data, dims } = results[name] as OrtTensor;
        return { data, shape: [...dims] } as NumberArray;
      });
    } catch (error) {
      const why = errorLine(error);
      // Mostly an index into a table of embeddings.
      const isRange = /out of/.test(why) && !/memory/.test(why);
      const advice = isRange ? "give integers from the model's range" : "compute fewer rows at a time";
      throw new VaeError(`${this.place}: ONNX Runtime failed: ${why}; ${advice}`);
    }
  }

  /** Free the graph. */
  release(): Promise<void> {
    return queued(this._ort, () => this._raw.release());
  }
}

function requireDescribed(
  place: string, kind: string, expected: TensorSpec[], metadata: readonly any[], takesOneRow: boolean,
): void {
  const text = (name: string, type: string, sizes: (number | string)[]) => `${name} ${type} ${listed(sizes)}`;
  // An axis without a fixed size has a name, which does not matter.
  const actual = metadata.map(({ name, type, shape }) =>
    text(name, type, shape.map((size: unknown) => ((size as number) >= 0 ? size : "dynamic"))),
  );
  const described = expected.map(({ name, dtype, shape, dynamic }) =>
    text(name, dtype, [takesOneRow ? 1 : "dynamic", ...shape.map((size, axis) => (dynamic.has(axis) ? "dynamic" : size))]),
  );
  if (actual.sort().join() !== described.sort().join()) {
    const got = oneLine(actual.join(", "), 400);
    refuseBundle(place, `the ${kind}s of the manifest, ${described.join(", ")}`, got, EXPORT);
  }
}

/** Whether an array has the type of a dtype. */
export function isOfType(data: unknown, dtype: keyof typeof TYPES): data is Float32Array | BigInt64Array {
  return data instanceof TYPES[dtype];
}
