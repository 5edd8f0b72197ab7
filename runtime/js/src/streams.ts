/** Decode latents that come in chunks along time: the values of the undivided answer, as soon as each chunk is there. */
import { type FloatArray, type NumberArray, joined, partsOf } from "./arrays.js";
import type { Bundle } from "./bundle.js";
import { refuseInput, shown } from "./errors.js";
import { type ArrayInput, type Conditions, type Inputs, latentRows } from "./inputs.js";
import type { Latent, Manifest, Stream, Variant } from "./manifest.js";
import { type Networks, Chunks, openStream } from "./networks.js";
import type { Device } from "./session.js";

/** The chunks of a stream, as an array or a generator of them. */
export type ChunkSource = Iterable<ArrayInput> | AsyncIterable<ArrayInput>;

/** Give the likelihood's mean for each chunk of latents; the rest as of `VAE.decodeStream`. */
export function decodeChunks(
  networks: Networks, inputs: Inputs, chunks: ChunkSource, conditions: Conditions | null | undefined,
): AsyncGenerator<FloatArray, void, void> {
  const { manifest } = networks.bundle;
  const variant = networks.variants.get("decoder");
  if (!variant) throw networks.bundle.absence("decoder");
  const source = Object(chunks) as object;
  if (!(Symbol.asyncIterator in source || Symbol.iterator in source)) {
    refuseInput("chunks", "an iterable of latents", shown(chunks), "give [z] for one chunk");
  }
  return decoded(networks, inputs, variant, streamOf(manifest, variant), chunks, conditions);
}

/** Compute the mean of golden inputs in chunks of 1, 2, 3 … values of time. */
export async function replayStream(
  bundle: Bundle, variant: Variant, stream: Stream, device: Device, feeds: Map<string, NumberArray>,
): Promise<FloatArray> {
  const { manifest } = bundle;
  const [latent] = manifest.latents;
  const z = feeds.get(latent.name)!;
  const [axis, answerAxis] = axesOf(manifest);
  const lengths: number[] = [];
  for (let rest = z.shape[axis]; rest > 0; rest -= lengths.at(-1)!) lengths.push(Math.min(rest, lengths.length + 1));
  const session = await openStream(bundle, variant, stream, device);
  const computation = new Chunks((...values) => session.run(...values), stream, manifest.likelihood.mean);
  try {
    const answers: FloatArray[] = [];
    for (const part of partsOf(z, axis, lengths)) {
      answers.push(await computation.run(new Map(feeds).set(latent.name, part), z.shape[0]));
    }
    return joined(answers, answerAxis);
  } finally {
    await session.release();
  }
}

function streamOf({ decoder }: Manifest, { name, stream }: Variant): Stream {
  if (stream?.file) return stream;
  const other = [...decoder.values()].find((each) => each.stream?.file);
  if (other) refuseInput("decodeStream", "a variant with a stream", name, `load ${other.name}`);
  const reason = stream ? (stream.reason ?? "no reason is stated") : "latents have no single dynamic axis of time";
  refuseInput("decodeStream", "a causal decoder", `one that takes no chunks: ${reason}`, "use decode");
}

/** The numbers of the time axis in arrays of latents and of observations, whose axis 0 is the batch. */
function axesOf({ latents: [latent], likelihood, observation }: Manifest): [number, number] {
  const [name] = latent.dynamic.keys();
  const axes = likelihood.shape ? likelihood.axes : observation.axes;
  return [latent.axes.indexOf(name) + 1, axes.indexOf(name) + 1];
}

async function* decoded(
  networks: Networks, inputs: Inputs, variant: Variant, stream: Stream, chunks: ChunkSource,
  conditions: Conditions | null | undefined,
): AsyncGenerator<FloatArray, void, void> {
  const { manifest } = networks.bundle;
  const [axis, answerAxis] = axesOf(manifest);
  const [[name, sizes]] = manifest.latents[0].dynamic;
  const latent: Latent = { ...manifest.latents[0], dynamic: new Map([[name, { min: 1, max: 2 ** 31 - 1, step: 1 }]]) };
  const computation = networks.chunks(variant, stream);
  let given = new Map<string, NumberArray>();
  let [rows, number] = [0, 0];
  for await (const chunk of chunks) {
    const z = latentRows(latent, chunk);
    if (!number) {
      rows = z.shape[0];
      given = new Map([...inputs.conditions("decoder", conditions, rows)].map(([key, each]) => [key, each(0, rows)]));
    } else if (z.shape[0] !== rows) {
      refuseInput(`chunks[${number}]`, `${rows} rows as in the first chunk`, z.shape[0], "start another stream");
    }
    number += 1;
    // A longer chunk than any that the export tried is divided, which changes no value.
    const lengths: number[] = [];
    for (let rest = z.shape[axis]; rest > 0; rest -= sizes.max) lengths.push(Math.min(rest, sizes.max));
    const answers: FloatArray[] = [];
    for (const part of partsOf(z, axis, lengths)) answers.push(await computation.run(new Map(given).set(latent.name, part), rows));
    yield joined(answers, answerAxis);
  }
}
