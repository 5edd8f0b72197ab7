/** Read the directory of a .zip file, and hold it against the header before each member. */
import { shown } from "./errors.js";
import { PATH } from "./manifest.js";

// Sizes of the header before each file's bytes, of its entry in the directory, and of the end (APPNOTE.TXT of PKWARE).
const [LOCAL, ENTRY, END] = [30, 46, 22];
const MAX_DIRECTORY = 2 ** 20;
const PATH_PATTERN = new RegExp(`^${PATH}$`);

/** A file, as the .zip file holds it. */
export interface Member {
  content: Uint8Array;
  isPacked: boolean;
  /** In bytes, once unpacked. */
  size: number;
  crc: number;
}

/** Refuse the .zip file unless something is right. */
export type Require = (isRight: boolean, expected: string, got?: unknown) => void;

/**
 * Give the members of a .zip file by name.
 *
 * @param isBundle - the file holds what the format says: each header with its file, which is not compressed, the
 *   directory, the end, and not a byte more. Else it is an .npz file, which numpy may have compressed.
 */
export function readDirectory(content: Uint8Array, require: Require, isBundle: boolean): Map<string, Member> {
  const members = new Map<string, Member>();
  const view = new DataView(content.buffer, content.byteOffset, content.length);
  const short = (at: number) => view.getUint16(at, true);
  const long = (at: number) => view.getUint32(at, true);
  const isEqual = (at: number, other: number, length: number) => {
    while (length && content[at + length - 1] === content[other + length - 1]) length--;
    return !length;
  };
  const end = content.length - END;
  require(end >= 0 && long(end) === 0x06054b50, "one that ends without a comment");
  const [count, size, start] = [short(end + 10), long(end + 12), long(end + 16)];
  const isOne = !long(end + 4) && short(end + 8) === count && !short(end + 20);
  require(isOne && start + size === end, "one below 4 GiB, with its directory right before its end");
  require(size <= MAX_DIRECTORY, `a directory of at most ${MAX_DIRECTORY} bytes`, size);
  let entry = start;
  let position = 0;
  for (let number = 0; number < count; number++) {
    require(entry + ENTRY <= end && long(entry) === 0x02014b50, `${count} files`, number);
    const [packed, bytes, length] = [long(entry + 20), long(entry + 24), short(entry + 28)];
    const name = String.fromCharCode(...content.subarray(entry + ENTRY, Math.min(end, entry + ENTRY + length)));
    const place = isBundle ? name : shown(name);
    require(!isBundle || PATH_PATTERN.test(name), "paths of names of A-Za-z0-9._-", place);
    require(!members.has(name), `${place} once`, "it twice");
    const type = long(entry + 38) >>> 28;
    require(type === 0 || type === 8, `${place}: a plain file`, "a link, a folder or the like");
    const isPacked = !isBundle && short(entry + 10) === 8;
    // Version needed, flags (bit 11: a name in UTF-8), method and packed size.
    const isStored = !short(entry + 10) && packed === bytes;
    const isRead = short(entry + 6) <= (isBundle ? 20 : 45) && !(short(entry + 8) & ~0x800) && (isPacked || isStored);
    require(isRead, `${place}: neither ${isBundle ? "compressed nor encrypted (zip -0)" : "encrypted nor packed but by deflate"}`);
    const extra = short(entry + 30) + short(entry + 32);
    require(!isBundle || (!extra && !short(entry + 34)), `${place}: no extra fields and no comment (zip -X)`);
    // Both headers agree from the version to the length of the name; numpy may write sizes of 64 bits behind the name.
    const local = long(entry + 42);
    const isHeader = (isBundle ? local === position : local >= position) && local + LOCAL + length <= start && long(local) === 0x04034b50;
    const first = isHeader ? local + LOCAL + length + short(local + 28) : Infinity;
    const isLong = !isBundle && long(local + 18) === 2 ** 32 - 1 && long(local + 22) === 2 ** 32 - 1;
    const isSame =
      first + packed <= start && isEqual(local + 4, entry + 6, 14) && (isLong || isEqual(local + 18, entry + 20, 8)) &&
      isEqual(local + 26, entry + 28, 2) && isEqual(local + LOCAL, entry + ENTRY, length) &&
      (!isBundle || !short(local + 28));
    require(isSame, `${place}: its header, as in the directory, at byte ${position}`);
    position = first + packed;
    members.set(name, { content: content.subarray(first, position), isPacked, size: bytes, crc: long(entry + 16) });
    entry += ENTRY + length + extra;
  }
  require(entry === end && (!isBundle || position === start), "files, directory and end without a gap");
  return members;
}

let crcTable: Int32Array | undefined;

/** The CRC-32 of .zip files. */
export function crc32(content: Uint8Array): number {
  crcTable ??= Int32Array.from({ length: 256 }, (_, byte) => {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    return value;
  });
  let crc = -1;
  for (let at = 0; at < content.length; at++) crc = crcTable[(crc ^ content[at]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
