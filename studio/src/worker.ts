/** The worker: opens the bundle with vae-runtime and computes what the page asks for, one call after the other. */
import * as ort from "onnxruntime-web/wasm";
import { VAE, VaeError, interpolate, load } from "vae-runtime";

import type { About, CallName, Calls, ConditionValues, Draw, LatentInfo, Rows, Scored } from "./protocol.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", self.location.href).href };

const CLASSES = "categorical";

let source = { url: "", digest: "" };
let about: About;
const opened = new Map<string | null, Promise<VAE>>();

function vaeOf(variant: string | null): Promise<VAE> {
  let vae = opened.get(variant);
  if (!vae) {
    vae = load(source.url, { ort, digest: source.digest, variant });
    vae.catch(() => opened.delete(variant));
    opened.set(variant, vae);
  }
  return vae;
}

function described(vae: VAE): About {
  const { manifest } = vae;
  let size = 0;
  const latents = manifest.latents.map(({ name, dtype, shape, prior }): LatentInfo => {
    const first = size;
    const own = shape.reduce((all, each) => all * each, 1);
    size += own;
    return { name, dtype, shape, first, size: own, prior: prior.kind, reason: prior.reason };
  });
  const without = latents.find(({ prior }) => prior === "none");
  const hasCodes = latents.some(({ dtype }) => dtype !== "float32");
  // The page sees one value for each of an observation: of probabilities the most likely class.
  const { likelihood } = manifest;
  const shown = likelihood.kind === CLASSES ? { ...likelihood, shape: null, axes: [] } : likelihood;
  const runnable = (component: "encoder" | "decoder") =>
    [...manifest[component].values()].filter(({ executor }) => executor === "ort").map(({ name }) => name);
  const packed = (component: string) => `The ${component} was left out when this bundle was packed.`;
  const refused = manifest.refused.find(({ component }) => component === "encoder");
  return {
    name: manifest.name, description: manifest.description, license: manifest.license, digest: vae.info.digest,
    observation: manifest.observation, likelihood: shown, table: manifest.table,
    conditions: manifest.conditions.map(({ name, dtype, shape, classes, range }) => ({ name, dtype, shape, classes, range })),
    latents, size: hasCodes ? 0 : size, variants: runnable("decoder"),
    noPrior: without ? (without.reason ?? "its prior is not known") : null,
    noDecoder: manifest.decoder.size ? null : packed("decoder"),
    noEncoder: manifest.encoder.size ? null : refused ? `The model has no encoder: ${refused.reason}.` : packed("encoder"),
  };
}

/** The most likely class of each value, where rows hold the probabilities of classes. */
function shownOf({ data, shape }: Rows): Rows {
  if (about.likelihood.kind !== CLASSES) return { data, shape };
  const classes = shape.at(-1)!;
  const likely = Float32Array.from({ length: data.length / classes }, (_, at) => {
    const row = data.subarray(at * classes, (at + 1) * classes);
    return row.indexOf(row.reduce((a, b) => Math.max(a, b)));
  });
  return { data: likely, shape: shape.slice(0, -1) };
}

/** What the page holds as an observation, as the encoder and the likelihood take it: whole numbers, or levels. */
function observed(x: Float32Array): Float32Array | Int32Array {
  const { dtype, range } = about.observation;
  if (dtype === "int64") return Int32Array.from(x, Math.round);
  if (about.likelihood.kind === CLASSES) return x.map(Math.round);
  if (about.likelihood.kind !== "logistic" || !range) return x;
  const step = (range[1] - range[0]) / 255;
  return x.map((each) => range[0] + Math.round((each - range[0]) / step) * step);
}

function product(shape: readonly number[]): number {
  return shape.reduce((all, each) => all * each, 1);
}

/** Rows of latents as the runtime takes them. */
function latentsOf(z: Float32Array, n: number): any {
  const parts = about.latents.map(({ name, shape, first, size }) => {
    const data = new Float32Array(n * size);
    for (let row = 0; row < n; row++) data.set(z.subarray(row * about.size + first, row * about.size + first + size), row * size);
    return [name, { data, shape: [n, ...shape] }];
  });
  return parts.length > 1 ? Object.fromEntries(parts) : parts[0][1];
}

/** The runtime's latents as rows. */
function rowsOfLatents(z: any, n: number): Float32Array {
  const rows = new Float32Array(n * about.size);
  for (const { name, first, size } of about.latents) {
    const { data } = about.latents.length > 1 ? z[name] : z;
    for (let row = 0; row < n; row++) rows.set(data.subarray(row * size, (row + 1) * size), row * about.size + first);
  }
  return rows;
}

function conditionsOf(values: ConditionValues, n: number): any {
  return Object.fromEntries(
    about.conditions.map(({ name, dtype, shape }) => {
      const value = values[name];
      if (typeof value === "string") return [name, value];
      const numbers = value.length === 1 ? new Array<number>(product(shape)).fill(value[0]) : value;
      const all = Array.from({ length: n }, () => numbers).flat();
      const data = dtype === "int64" ? BigInt64Array.from(all, BigInt) : Float32Array.from(all);
      return [name, { data, shape: [n, ...shape] }];
    }),
  );
}

/** The most probable latents, those of all latents one after the other. */
function numbersOf(z: any): number[] {
  const all = about.latents.length > 1 ? about.latents.map(({ name }) => z[name]) : [z];
  return all.flatMap(({ data }) => Array.from<number | bigint, number>(data, Number));
}

const calls: { [K in CallName]: (args: Calls[K][0]) => Promise<Calls[K][1]> } = {
  async open(where) {
    source = where;
    about = described(await vaeOf(null));
    return about;
  },

  async prior({ n, ...draw }: Draw) {
    return rowsOfLatents(await (await vaeOf(null)).prior(n, draw), n);
  },

  async decode({ z, n, conditions, variant }) {
    const vae = await vaeOf(variant);
    const began = performance.now();
    const rows = await vae.decode(latentsOf(z, n), { conditions: conditionsOf(conditions, n) });
    return { ...shownOf(rows), milliseconds: performance.now() - began };
  },

  async score({ x, conditions, variant }): Promise<Scored> {
    const vae = await vaeOf(variant);
    const rows = { data: observed(x), shape: [1, ...about.observation.shape] };
    const given = { conditions: conditionsOf(conditions, 1) };
    const q = await vae.encode(rows, { ...given, seed: 0n });
    const scores = about.noDecoder ? null : await vae.score(rows, { ...given, seed: 0n });
    const terms = scores?.klPerDimension ?? null;
    const parts = !terms ? [] : "data" in terms ? [terms] : about.latents.map(({ name }) => (terms as any)[name]);
    return {
      reconstruction: about.noDecoder ? null : shownOf(await vae.reconstruct(rows, given)),
      latent: numbersOf(q.mode()),
      mean: about.size ? rowsOfLatents(q.mode(), 1) : null,
      elbo: scores?.elbo?.[0] ?? null, kl: scores?.kl?.[0] ?? null,
      likelihood: scores?.reconstruction?.[0] ?? null, mse: scores?.mse?.[0] ?? null,
      klPerDimension: parts.length ? Float64Array.from(parts.flatMap((part: any) => [...part.data])) : null,
      reason: scores ? scores.reason : about.noDecoder,
    };
  },

  async interpolate({ a, b, steps, spherical }) {
    const z = new Float32Array(steps * about.size);
    for (const { shape, first, size } of about.latents) {
      const end = (row: Float32Array) => ({ data: row.slice(first, first + size), shape });
      const { data } = interpolate(end(a), end(b), steps, { spherical });
      for (let step = 0; step < steps; step++) z.set(data.subarray(step * size, (step + 1) * size), step * about.size + first);
    }
    return z;
  },

  async compare({ z, conditions }) {
    const results = [];
    for (const name of about.variants) {
      try {
        const vae = await load(source.url, { ort, digest: source.digest, variant: name });
        const decoded = () => vae.decode(latentsOf(z, 1), { conditions: conditionsOf(conditions, 1) });
        const rows = await decoded();
        const times = [];
        for (let turn = 0; turn < 9; turn++) {
          const began = performance.now();
          await decoded();
          times.push(performance.now() - began);
        }
        await vae.close();
        results.push({ name, rows: shownOf(rows), milliseconds: times.sort((a, b) => a - b)[4], error: null });
      } catch (error) {
        results.push({ name, rows: null, milliseconds: 0, error: messageOf(error) });
      }
    }
    return results;
  },

  async verify() {
    const report = await (await vaeOf(null)).verify();
    return [...report.checks];
  },
};

function messageOf(error: unknown): string {
  if (error instanceof VaeError) return error.message;
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

self.addEventListener("message", async ({ data }: MessageEvent<{ id: number; call: CallName; args: any }>) => {
  try {
    self.postMessage({ id: data.id, result: await calls[data.call](data.args as never) });
  } catch (error) {
    self.postMessage({ id: data.id, error: messageOf(error) });
  }
});
