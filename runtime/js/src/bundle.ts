/** Open a bundle. SHA256SUMS lists each of its files with its SHA-256. */
import { BundleError, COPY, oneLine, refuseBundle, refuseInput, shown } from "./errors.js";
import { parseManifest } from "./document.js";
import { type Component, type Manifest, type Variant, PATH, componentsOf, pathOf, pathsOf, variantsOf } from "./manifest.js";
import { type Place, type Source, isBeside, openPlace } from "./places.js";
import { isDecoderAlone } from "./rules.js";
import { sha256 } from "./sha256.js";

const SUMS = "SHA256SUMS";
const MANIFEST = "manifest.json";
const MAX_BYTES = 2 ** 20;
const MAX_GRAPH = 2 ** 31;
const MAX_PROBLEMS = 20;
const LINE = new RegExp(`^([0-9a-f]{64})  (${PATH})$`);

/** An opened bundle: SHA256SUMS and the manifest have been read. */
export class Bundle {
  constructor(
    readonly manifest: Manifest, readonly digest: string, readonly files: Place, readonly sums: Map<string, string>,
  ) {}

  /** The path of a file, for errors. */
  place(relative: string): string {
    return `${this.files.root}/${relative}`;
  }

  /**
   * The content of a listed file after checking its hash.
   *
   * @throws {BundleError} the file is not listed, missing, too large or not a plain file, or its hash is another.
   */
  read(relative: string, limit?: number): Promise<Uint8Array> {
    return readListed(this.files, relative, this.sums, limit);
  }

  /** The content of a graph, of at most 2 GiB, and its file of weights by name. */
  async graph(variant: Variant): Promise<{ content: Uint8Array; data: Map<string, Uint8Array> }> {
    const content = await this.read(pathOf(variant), MAX_GRAPH);
    const data = new Map<string, Uint8Array>();
    if (variant.data) data.set(variant.data, await this.read(pathOf(variant, variant.data)));
    return { content, data };
  }

  /** The content of the graph of a variant that takes latents in chunks, of at most 2 GiB. */
  chunks(variant: Variant, file: string): Promise<Uint8Array> {
    return this.read(pathOf(variant, file), MAX_GRAPH);
  }

  /**
   * The variant of each component: the one of this name, or the first where a component has none of it.
   *
   * @throws {BundleError} no component has such a variant, or it is for another program.
   */
  choose(name?: string | null): Map<Component, Variant> {
    const { manifest } = this;
    const components = componentsOf(manifest);
    if (name != null && typeof name !== "string") refuseInput("variant", "a name", shown(name));
    const named = name != null ? components.filter((component) => manifest[component].has(name)) : [];
    const runnable = variantsOf(manifest).filter((each) => each.executor === "ort");
    if (name != null && !named.length) {
      const known = [...new Set(runnable.map((each) => each.name))].join(", ");
      refuseBundle(this.files.root, `one of the variants ${known}`, shown(name));
    }
    return new Map(
      components.map((component) => {
        const first = runnable.find((each) => each.component === component)!;
        const chosen = named.includes(component) ? manifest[component].get(name!)! : first;
        if (chosen.executor !== "ort") {
          refuseBundle(
            this.files.root, `a variant of ${component} for ONNX Runtime, such as ${first.name}`, shown(name),
          );
        }
        return [component, chosen];
      }),
    );
  }

  /** Why the bundle lacks a component, and what to do. */
  absence(component: Component): BundleError {
    const why =
      component === "encoder" && isDecoderAlone(this.manifest)
        ? "the model was exported without an encoder; export it with one to encode or score"
        : `the ${component} was left out in packing; use the original, ${this.manifest.packed_from}`;
    return new BundleError(`${this.files.root}: ${why}`);
  }

  /** Read every file, and return what is wrong: altered, missing, unlisted or not plain files; the first 20. */
  async problems(): Promise<string[]> {
    const names = (await this.files.names()) ?? [];
    const problems = names
      .filter((name) => !this.sums.has(name) && name !== SUMS && !isBeside(name))
      .map((name) => `${this.place(oneLine(name, 400))}: not listed in ${SUMS}; remove it`)
      .slice(0, MAX_PROBLEMS);
    for (const relative of this.sums.keys()) {
      if (problems.length === MAX_PROBLEMS) break;
      try {
        await this.read(relative);
      } catch (error) {
        if (!(error instanceof BundleError)) throw error;
        problems.push(error.message);
      }
    }
    return problems;
  }
}

/**
 * Open a bundle and check SHA256SUMS and the manifest.
 *
 * @throws {BundleError} there is no bundle, a file is damaged, the manifest has problems, or the digest differs.
 * @throws {InputError} the source or the digest is not of the right form.
 */
export async function openBundle(source: Source, digest?: string | null): Promise<Bundle> {
  const form = digest == null ? null : /^(?:sha256:)?([0-9a-f]{64})$/.exec(String(digest));
  if (digest != null && !form) {
    refuseInput("digest", '"sha256:" and 64 hexadecimal digits', shown(digest));
  }
  const files = await openPlace(source);
  const content = await files.read(SUMS, MAX_BYTES);
  const actual = await sha256(content);
  if (form && form[1] !== actual) {
    refuseBundle(files.root, `the digest sha256:${form[1]}`, actual, "use the bundle that it belongs to");
  }
  const place = `${files.root}/${SUMS}`;
  const sums = readSums(content, place);
  const manifest = parseManifest(await readListed(files, MANIFEST, sums, MAX_BYTES), `${files.root}/${MANIFEST}`);
  const needed = [
    ...variantsOf(manifest).flatMap(pathsOf),
    manifest.golden.file,
    ...manifest.latents.map((latent) => latent.prior.file),
  ];
  for (const each of needed) {
    if (each && !sums.has(each)) refuseBundle(place, `a line for ${each}`, "none", COPY);
  }
  return new Bundle(manifest, `sha256:${actual}`, files, sums);
}

function readSums(content: Uint8Array, place: string): Map<string, string> {
  const lines = new TextDecoder("latin1").decode(content).split("\n");
  if (lines.pop() !== "" || !lines.length) {
    refuseBundle(place, "lines that each end in a newline", "another end", COPY);
  }
  const sums = new Map<string, string>();
  let before = "";
  lines.forEach((line, index) => {
    const match = LINE.exec(line);
    if (!match) {
      refuseBundle(`${place}:${index + 1}`, "<64 hex digits>  <path>", shown(line), COPY);
    }
    if (match[2] <= before) refuseBundle(place, "paths in order, each once", match[2], COPY);
    sums.set((before = match[2]), match[1]);
  });
  return sums;
}

async function readListed(
  files: Place, relative: string, sums: Map<string, string>, limit?: number,
): Promise<Uint8Array> {
  const place = `${files.root}/${relative}`;
  const expected = sums.get(relative);
  if (!expected) refuseBundle(place, `a line in ${SUMS}`, "none", COPY);
  const content = await files.read(relative, limit);
  const actual = await sha256(content);
  if (actual !== expected) refuseBundle(place, `the SHA-256 ${expected}`, actual, COPY);
  return content;
}
