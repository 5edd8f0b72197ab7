/** A bundle's two graphs: checked arrays in, arrays out, in batches. Only this module runs a session. */
import { type FloatArray, type NumberArray, product } from "./arrays.js";
import type { Bundle } from "./bundle.js";
import { EXPORT, refuseBundle, refuseInput, requireInteger, shown } from "./errors.js";
import {
  type Component, type Stream, type TensorSpec, type Variant, inputsOf, nextOf, outputsOfComponent, pathOf,
} from "./manifest.js";
import { type Device, Session } from "./session.js";

/** Gives the rows from `first` to `last` - 1 of one input. */
export type Rows = (first: number, last: number) => NumberArray;
/** A graph's inputs by name. */
export type Feeds = Map<string, Rows>;

/** How to compute many rows. */
export interface BatchOptions {
  /** Rows computed at once; 64 unless given. */
  batchSize?: number;
  /** Takes the first result: as many floats as it has. */
  out?: Float32Array;
  /** Called with (rows done, rows) after each batch. */
  onProgress?: (done: number, rows: number) => void;
  /** Looked at before each batch. */
  signal?: AbortSignal;
}

const BATCH_SIZE = 64;

/** Check what belongs to batches, and give their size: `batchSize`, or the one that suits most computers. */
export function batchSizeOf({ batchSize, onProgress, signal }: BatchOptions): number {
  if (onProgress != null && typeof onProgress !== "function") refuseInput("onProgress", "a function", shown(onProgress));
  if (signal != null && typeof signal.throwIfAborted !== "function") refuseInput("signal", "an AbortSignal", shown(signal));
  return batchSize == null ? BATCH_SIZE : requireInteger("batchSize", batchSize, 1, 2 ** 31);
}

/** Tell of progress and look for an end; a page gets the chance to draw and to listen in between. */
export async function between(done: number, rows: number, { onProgress, signal }: BatchOptions): Promise<void> {
  onProgress?.(done, rows);
  if (done === rows) return;
  if (onProgress || signal) await new Promise((resolve) => setTimeout(resolve));
  signal?.throwIfAborted();
}

/** Load one variant of a component. */
export async function openVariant(bundle: Bundle, variant: Variant, device: Device): Promise<Session> {
  const { manifest } = bundle;
  const { component } = variant;
  const { content, data } = await bundle.graph(variant);
  const expected = { input: inputsOf(manifest, component), output: outputsOfComponent(manifest, component) };
  return Session.open(
    device, bundle.place(pathOf(variant)), content, data, expected, manifest.batch_of_one.includes(component),
  );
}

/** Computes the likelihood's mean of one stream of latents, chunk by chunk. */
export class Chunks {
  private _held: Map<string, NumberArray> | null = null;

  /** `run` computes outputs by the stream's graph. */
  constructor(private readonly _run: Session["run"], private readonly _stream: Stream, private readonly _mean: string) {}

  /**
   * Compute the mean for the next chunk of latents, of as many rows as those before.
   *
   * @throws {BundleError} the graph was freed meanwhile, and cannot be loaded again.
   * @throws {VaeError} ONNX Runtime failed.
   */
  async run(feeds: Map<string, NumberArray>, n: number): Promise<FloatArray> {
    const { states } = this._stream;
    const zeros = ({ shape }: { shape: number[] }) => ({ data: new Float32Array(n * product(shape)), shape: [n, ...shape] });
    this._held ??= new Map(states.map((state) => [state.name, zeros(state)]));
    const outputs = [this._mean, ...states.map(({ name }) => nextOf(name))];
    const [mean, ...next] = await this._run(outputs, new Map([...feeds, ...this._held]), n);
    this._held = new Map(states.map(({ name }, index) => [name, next[index]]));
    return mean as FloatArray;
  }
}

/** Load the graph of a decoder's variant that takes latents in chunks. */
export async function openStream(bundle: Bundle, variant: Variant, stream: Stream, device: Device): Promise<Session> {
  const { manifest } = bundle;
  const file = stream.file!;
  const tensor = (name: string, shape: number[]): TensorSpec => ({ name, dtype: "float32", shape, dynamic: new Set() });
  const { mean } = manifest.likelihood;
  const expected = {
    input: [...inputsOf(manifest, "decoder"), ...stream.states.map(({ name, shape }) => tensor(name, shape))],
    output: [
      ...outputsOfComponent(manifest, "decoder").filter(({ name }) => name === mean),
      ...stream.states.map(({ name, shape }) => tensor(nextOf(name), shape)),
    ],
  };
  const content = await bundle.chunks(variant, file);
  const takesOneRow = manifest.batch_of_one.includes("decoder");
  return Session.open(device, bundle.place(pathOf(variant, file)), content, new Map(), expected, takesOneRow);
}

/** The encoder and the decoder of a bundle on one device; each is loaded once, when it is first needed. */
export class Networks {
  private readonly _sessions = new Map<Component | Stream, Promise<Session>>();
  private readonly _calls = new Set<Promise<unknown>>();

  constructor(
    readonly bundle: Bundle, readonly device: Device, readonly variants: ReadonlyMap<Component, Variant>,
  ) {}

  /**
   * A component's graph.
   *
   * @throws {BundleError} the component was left out, its file is damaged, or the graph is not the manifest's.
   * @throws {DeviceError} the device is unavailable.
   */
  session(component: Component): Promise<Session> {
    const variant = this.variants.get(component);
    return this._opened(component, () =>
      variant ? openVariant(this.bundle, variant, this.device) : Promise.reject(this.bundle.absence(component)),
    );
  }

  /** A new stream of the decoder's variant in use; streams share its graph, which `close` frees between two chunks. */
  chunks(variant: Variant, stream: Stream): Chunks {
    const open = () => this._opened(stream, () => openStream(this.bundle, variant, stream, this.device));
    const run: Session["run"] = (...values) => this._called(open().then((session) => session.run(...values)));
    return new Chunks(run, stream, this.bundle.manifest.likelihood.mean);
  }

  /** Note a call, for whose end `close` waits. */
  private _called<T>(call: Promise<T>): Promise<T> {
    const end = () => this._calls.delete(call);
    this._calls.add(call);
    call.then(end, end);
    return call;
  }

  private _opened(key: Component | Stream, open: () => Promise<Session>): Promise<Session> {
    let session = this._sessions.get(key);
    if (!session) {
      session = open();
      // What failed once, such as for a lost connection, may be tried again.
      const opened = session;
      opened.catch(() => this._sessions.get(key) === opened && this._sessions.delete(key));
      this._sessions.set(key, opened);
    }
    return session;
  }

  /**
   * Compute some outputs of a component for `n` rows.
   *
   * @param finish - turns the outputs of a batch into results; takes the batch's first row.
   * @returns an array [n, ...] for each output or result.
   * @throws {InputError} `out` or `batchSize` is wrong, or the memory does not suffice.
   * @throws {VaeError} ONNX Runtime failed.
   */
  run(
    component: Component, outputs: readonly string[], feeds: Feeds, n: number, options: BatchOptions,
    finish: (first: number, outputs: NumberArray[]) => NumberArray[] = (_, parts) => parts,
  ): Promise<NumberArray[]> {
    return this._called(this._inBatches(component, outputs, feeds, n, options, finish));
  }

  private async _inBatches(
    component: Component, outputs: readonly string[], feeds: Feeds, n: number, options: BatchOptions,
    finish: (first: number, outputs: NumberArray[]) => NumberArray[],
  ): Promise<NumberArray[]> {
    const size = batchSizeOf(options);
    const { out, signal } = options;
    signal?.throwIfAborted();
    const session = await this.session(component);
    const results: NumberArray[] = [];
    for (let first = 0; first < n; first += size) {
      const last = Math.min(first + size, n);
      const feed = new Map([...feeds].map(([name, rows]) => [name, rows(first, last)]));
      const answers = await session.run(outputs, feed, last - first);
      for (const { shape } of answers) {
        if (shape[0] !== last - first) {
          refuseBundle(session.place, `${last - first} rows of the graph`, shape[0], EXPORT);
        }
      }
      const parts = finish(first, answers);
      if (!results.length) {
        if (last === n && !out) results.push(...parts);
        else results.push(...parts.map((part, index) => empty(n, part, index === 0 ? out : undefined)));
      }
      parts.forEach((part, index) => {
        const whole = results[index].data as Float32Array;
        if (whole !== part.data) whole.set(part.data as Float32Array, first * product(part.shape.slice(1)));
      });
      await between(last, n, options);
    }
    return results;
  }

  /** As `run`, the one output. */
  async runOne(
    output: string, feeds: Feeds, n: number, options: BatchOptions,
  ): Promise<FloatArray> {
    return (await this.run("decoder", [output], feeds, n, options))[0] as FloatArray;
  }

  /** Free the graphs, once the calls that use them have ended. */
  async close(): Promise<void> {
    const sessions = [...this._sessions.values()];
    this._sessions.clear();
    await Promise.allSettled(this._calls);
    // A graph that was not loaded needs no release: its own call tells why.
    for (const session of sessions) await session.then((each) => each.release(), () => undefined);
  }
}

function empty(n: number, { data, shape }: NumberArray, out?: Float32Array): NumberArray {
  const whole = [n, ...shape.slice(1)];
  if (out !== undefined) {
    if (!(out instanceof Float32Array) || out.length !== product(whole)) {
      refuseInput("out", `a Float32Array of ${product(whole)} numbers`, (out as Float32Array)?.length ?? typeof out);
    }
    return { data: out, shape: whole };
  }
  try {
    return { data: new (data.constructor as Float32ArrayConstructor)(product(whole)), shape: whole };
  } catch {
    refuseInput("n", "as many as fit in memory", n, "take fewer at a time and move start on");
  }
}
