// Build dist/: one module of JavaScript by esbuild, and its declarations by TypeScript.
import { createHash } from "node:crypto";
import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";
import { deflateSync } from "fflate";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const HASH = "43fd00c422474ae1034c4abb7591abbeca5d0a63f1b591f1ea5b8e25eb66bc3c";

/** The quantiles of the noise as text: second differences modulo 2**24 in three planes of bytes, deflated. */
function packedTable() {
  const content = readFileSync(join(root, "..", "vae_runtime", "vnoise1_table.bin"));
  const hash = createHash("sha256").update(content).digest("hex");
  if (hash !== HASH) throw new Error(`vnoise1_table.bin: expected sha256 ${HASH}, got ${hash}; check it out again`);
  const planes = new Uint8Array(3 * 32768);
  let value = 0;
  let first = 0;
  for (let i = 0; i < 32768; i++) {
    const next = content.readInt32LE(4 * i);
    const difference = (next - value) & 0xffffff;
    const second = (difference - first) & 0xffffff;
    for (let plane = 0; plane < 3; plane++) planes[plane * 32768 + i] = (second >>> (8 * plane)) & 255;
    value = next;
    first = difference;
  }
  return Buffer.from(deflateSync(planes, { level: 9, mem: 12 })).toString("base64");
}

rmSync(join(root, "dist"), { recursive: true, force: true });
const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin", "tsc");
execFileSync(process.execPath, [tsc, "-p", root], { stdio: "inherit" });
writeFileSync(join(root, "dist", "noise_table.js"), `export const packedTable = "${packedTable()}";\n`);
/** The schema of the manifest without its texts for people. */
function schema() {
  const content = readFileSync(join(root, "..", "..", "docs", "bundle-format.schema.json"), "utf-8");
  return JSON.stringify(JSON.parse(content, (key, value) => (key === "description" && typeof value === "string" ? undefined : value)));
}
writeFileSync(join(root, "dist", "bundle_schema.js"), `export const schema = ${schema()};\n`);

const { version: fflateVersion } = JSON.parse(readFileSync(join(root, "node_modules", "fflate", "package.json"), "utf-8"));
const common = { absWorkingDir: root, outdir: "dist", bundle: true, format: "esm", target: "es2022", minify: true, charset: "utf8" };
const license = readFileSync(join(root, "node_modules", "fflate", "LICENSE"), "utf-8").trim();
await build({
  ...common,
  stdin: { contents: 'export { inflateSync } from "fflate";', resolveDir: root, sourcefile: "fflate.js" },
  banner: { js: `/*! fflate ${fflateVersion}\n${license}\n*/` },
  outdir: undefined,
  outfile: "dist/fflate.js",
});
await build({ ...common, entryPoints: ["src/operators.ts"] });
await build({
  ...common,
  entryPoints: ["src/index.ts"],
  // Private names.
  mangleProps: /^_/,
  // Tables and fflate are files of their own; neither pages nor workers need a map of imports.
  external: ["node:*", "./bundle_schema.js", "./noise_table.js", "./operators.js"],
  plugins: [{
    name: "fflate",
    setup: (bundle) => bundle.onResolve({ filter: /^fflate$/ }, () => ({ path: "./fflate.js", external: true })),
  }],
});
