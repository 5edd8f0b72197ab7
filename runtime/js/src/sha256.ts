import { DeviceError } from "./errors.js";

/**
 * SHA-256 as 64 hexadecimal digits, by WebCrypto.
 *
 * @throws {DeviceError} there is no WebCrypto.
 */
export async function sha256(content: Uint8Array): Promise<string> {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) throw new DeviceError("crypto.subtle", "WebCrypto", "nothing", "serve the page by https or from localhost");
  const digest = new Uint8Array(await subtle.digest("SHA-256", content as Uint8Array<ArrayBuffer>));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
