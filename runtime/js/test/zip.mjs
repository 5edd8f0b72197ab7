// Read and write the .zip files of bundles.

const u16 = (value) => [value & 255, value >> 8];
const u32 = (value) => [...u16(value & 65535), ...u16(value >>> 16)];

/** The files of a .zip file without compression, by path. */
export function entriesOf(content) {
  const view = new DataView(content.buffer, content.byteOffset, content.length);
  const files = new Map();
  for (let at = 0; view.getUint32(at, true) === 0x04034b50; ) {
    const [size, length] = [view.getUint32(at + 22, true), view.getUint16(at + 26, true)];
    const start = at + 30 + length;
    files.set(new TextDecoder().decode(content.subarray(at + 30, start)), content.slice(start, start + size));
    at = start + size;
  }
  return files;
}

function crc32(content) {
  let crc = -1;
  for (const byte of content) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return ~crc >>> 0;
}

/** A .zip file of these files, with SHA256SUMS made anew unless `sums` is false. */
export async function zipped(files, sums = true) {
  const all = new Map(files);
  if (sums) {
    all.delete("SHA256SUMS");
    const lines = [];
    for (const name of [...all.keys()].sort()) {
      const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", all.get(name)));
      lines.push(`${Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("")}  ${name}\n`);
    }
    all.set("SHA256SUMS", new TextEncoder().encode(lines.join("")));
  }
  const [parts, directory] = [[], []];
  let at = 0;
  for (const [name, content] of all) {
    const path = new TextEncoder().encode(name);
    const shared = [...u16(20), ...u16(0), ...u16(0), ...u32(0), ...u32(crc32(content)), ...u32(content.length), ...u32(content.length), ...u16(path.length), ...u16(0)];
    const header = [...u32(0x04034b50), ...shared, ...path];
    directory.push(...u32(0x02014b50), ...u16(20), ...shared, ...u16(0), ...u16(0), ...u16(0), ...u32(0), ...u32(at), ...path);
    parts.push(Uint8Array.from(header), content);
    at += header.length + content.length;
  }
  const end = [...u32(0x06054b50), ...u16(0), ...u16(0), ...u16(all.size), ...u16(all.size), ...u32(directory.length), ...u32(at), ...u16(0)];
  return new Uint8Array(await new Blob([...parts, Uint8Array.from([...directory, ...end])]).arrayBuffer());
}
