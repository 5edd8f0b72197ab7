/** The files of a bundle, wherever they are: in a folder of Node, under a URL, or in one .zip file. */
import { BundleError, COPY, errorLine, oneLine, refuseBundle, refuseInput, shown } from "./errors.js";
import { type Member, type Require, crc32, readDirectory } from "./zip.js";

const MAX_ZIP = 2 ** 32 - 2 ** 21;
const MAX_NAME = 1024;
const MAX_PARTS = 32;
const MAX_FOLDERS = 1000;

/** Where a bundle may be. */
export type Source = string | URL | Blob | Uint8Array | ArrayBuffer;

/** Where the files of a bundle are. A file's name is its path relative to `root`, with forward slashes. */
export interface Place {
  /** Its path or URL, for errors. */
  root: string;
  /** The name of everything that is not a folder; null where that is unknown. */
  names(): Promise<string[] | null>;
  /**
   * The content of a file of at most `limit` bytes.
   *
   * @throws {BundleError} the file is missing, not a plain file, too large, or cannot be read.
   */
  read(relative: string, limit?: number): Promise<Uint8Array>;
}

const isNode = typeof process !== "undefined" && Boolean(process.versions?.node);

/**
 * Open the folder or the .zip file of a bundle.
 *
 * @throws {BundleError} there is neither, or the file is not a bundle's .zip file.
 * @throws {InputError} the source is nothing of that kind.
 */
export async function openPlace(source: Source): Promise<Place> {
  if (source instanceof Blob) return new Archive("the .zip file", new Uint8Array(await source.arrayBuffer()));
  if (source instanceof ArrayBuffer || source instanceof Uint8Array) return new Archive("the .zip file", ownBytes(source));
  if (!(source instanceof URL) && (typeof source !== "string" || !source)) {
    refuseInput("source", "a URL, a path, a Blob or bytes", shown(source));
  }
  if (isNode && (source instanceof URL ? source.protocol === "file:" : !/^(?!file:)[a-z][a-z0-9+.-]+:\/\//i.test(source))) {
    const { fileURLToPath } = await import("node:url");
    let path = source as string;
    try {
      if (/^file:/i.test(String(source))) path = fileURLToPath(source);
    } catch {
      refuseInput("source", "the file: URL of a folder or a .zip file", oneLine(source, 80));
    }
    return openPath(path);
  }
  let url: URL | undefined;
  try {
    url = new URL(source, globalThis.document?.baseURI ?? globalThis.location?.href);
  } catch {
    // Told below.
  }
  // Paths without a slash, as of data: URLs, have no folders.
  if (!url?.pathname.startsWith("/")) refuseInput("source", "the URL of a bundle's folder or .zip file", oneLine(source, 80));
  if (url.pathname.toLowerCase().endsWith(".zip")) return new Archive(url.href, await fetched(url, url.href, MAX_ZIP));
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return {
    root: url.href.slice(0, -1),
    names: async () => null,
    read: (relative, limit) => fetched(new URL(relative, url), `${url.href}${relative}`, limit),
  };
}

/** The caller's bytes, a copy where other threads may change them; none where their memory was transferred. */
function ownBytes(source: ArrayBuffer | Uint8Array): Uint8Array {
  if (!source.byteLength) return new Uint8Array();
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  return source.buffer instanceof ArrayBuffer ? source : source.slice();
}

async function fetched(url: URL, place: string, limit = Infinity): Promise<Uint8Array> {
  let got = "nothing";
  try {
    const response = await fetch(url);
    got = `status ${response.status}`;
    if (response.ok && response.body) {
      const parts: Uint8Array[] = [];
      let size = 0;
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) return joined(parts, size);
        size += value.length;
        if (size > limit) {
          await reader.cancel();
          throw tooLarge(place, limit, "more");
        }
        parts.push(value);
      }
    }
  } catch (error) {
    if (error instanceof BundleError) throw error;
    got = errorLine(error);
  }
  refuseBundle(place, "a file", got, "check the URL");
}

function joined(parts: Uint8Array[], size: number): Uint8Array {
  const whole = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

async function openPath(path: string): Promise<Place> {
  const { stat, realpath } = await import("node:fs/promises");
  let kind: "file" | "folder" | undefined;
  let location = path;
  try {
    const status = await stat(path);
    kind = status.isDirectory() ? "folder" : status.isFile() ? "file" : undefined;
    location = await realpath(path);
  } catch {
    // Told below.
  }
  if (kind === "folder") return new Folder(path, location);
  if (kind === "file") return new Archive(path, await readPlain(path, location, MAX_ZIP));
  refuseBundle(path, "the folder or the .zip file of a bundle", "nothing of that kind");
}

async function readPlain(place: string, location: string, limit = Infinity): Promise<Uint8Array> {
  const { open, stat } = await import("node:fs/promises");
  const { O_RDONLY, O_NONBLOCK = 0, O_NOCTTY = 0 } = (await import("node:fs")).constants;
  try {
    // Opening a device may have effects, and opening a pipe may wait. What was opened is looked at once more.
    const require = (isPlain: boolean) => {
      if (!isPlain) refuseBundle(place, "a plain file", "something else", COPY);
    };
    require((await stat(location)).isFile());
    const file = await open(location, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    try {
      const status = await file.stat();
      require(status.isFile());
      if (status.size > limit) throw tooLarge(place, limit, status.size);
      // Node does not tell holes; a file without blocks is zeros, but where the file system counts none.
      const isSparse =
        status.size > 2 ** 20 && status.blocks * 2 ** 15 < status.size &&
        (status.blocks || !(await file.read(new Uint8Array(4096), 0, 4096, 0)).buffer.some(Boolean));
      if (isSparse) refuseBundle(place, `${status.size} bytes`, "a sparse file", COPY);
      return new Uint8Array(await file.readFile());
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof BundleError) throw error;
    refuseBundle(place, "a file", (error as { code?: string }).code === "ENOENT" ? "nothing" : errorLine(error), COPY);
  }
}

function tooLarge(place: string, limit: number, got: unknown): BundleError {
  return new BundleError(place, `at most ${limit} bytes`, got);
}

/** Whether a file or folder belongs to no bundle, but to a tool: .git, .cache, .gitattributes, model.sig. */
export function isBeside(name: string): boolean {
  return name.startsWith(".") || name === "model.sig";
}

class Folder implements Place {
  constructor(readonly root: string, private readonly _location: string) {}

  async names(): Promise<string[]> {
    const { readdir, stat } = await import("node:fs/promises");
    const names: string[] = [];
    const pending = [""];
    const seen = new Set<string>();
    for (let folder = pending.pop(); folder !== undefined; folder = pending.pop()) {
      for (const entry of await readdir(`${this._location}/${folder}`)) {
        const name = folder + entry;
        // Through links, which may lead in a circle, or nowhere.
        const status = await stat(`${this._location}/${name}`).catch(() => null);
        if (!status?.isDirectory() || isBeside(name)) {
          names.push(name);
          continue;
        }
        const identity = `${status.dev} ${status.ino}`;
        if (!seen.has(identity)) pending.push(`${name}/`);
        seen.add(identity);
        if (seen.size > MAX_FOLDERS) {
          refuseBundle(this.root, `at most ${MAX_FOLDERS} folders`, "more", COPY);
        }
      }
    }
    return names;
  }

  read(relative: string, limit?: number): Promise<Uint8Array> {
    return readPlain(`${this.root}/${relative}`, `${this._location}/${relative}`, limit);
  }
}

/**
 * The files of a bundle in a .zip file, which holds exactly what the format says: each header with its uncompressed
 * file, the directory, the end, and not a byte more. So two programs cannot read it differently.
 */
class Archive implements Place {
  private readonly _members: Map<string, Member>;

  constructor(readonly root: string, content: Uint8Array) {
    const require: Require = (isRight, expected, got) => {
      if (!isRight) refuseBundle(root, `a bundle's .zip file: ${expected}`, got ?? "another", "pack or copy it again");
    };
    this._members = readDirectory(content, require, true);
    this._requireDistinct(require);
  }

  names(): Promise<string[]> {
    return Promise.resolve([...this._members.keys()]);
  }

  async read(relative: string, limit = Infinity): Promise<Uint8Array> {
    const place = `${this.root}/${relative}`;
    const member = this._members.get(relative);
    if (!member) refuseBundle(place, "a file", "nothing", COPY);
    const { content, crc } = member;
    if (content.length > limit) throw tooLarge(place, limit, content.length);
    if (crc32(content) !== crc) refuseBundle(place, `the CRC-32 ${crc}`, "another", COPY);
    return content;
  }

  /** Check that the files can be in one .zip file on every system. */
  private _requireDistinct(require: Require): void {
    const spellings = new Map<string, string>();
    for (const path of this._members.keys()) {
      const parts = path.split("/");
      require(path.length <= MAX_NAME && parts.length <= MAX_PARTS, `at most ${MAX_PARTS - 1} folders`, path.slice(0, 200));
      parts.forEach((_, depth) => {
        const part = parts.slice(0, depth + 1).join("/");
        const other = spellings.get(part.toLowerCase()) ?? part;
        spellings.set(part.toLowerCase(), other);
        const isFile = depth + 1 < parts.length && this._members.has(part);
        require(other === part && !isFile, `names that differ by more than case, ${other}`, part);
      });
    }
  }
}
