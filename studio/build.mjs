// Build the page into vae_runtime_studio/page: two modules by esbuild, and the files beside them. The tools are those of
// runtime/js, which `npm ci` there installs.
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(fileURLToPath(import.meta.url));
const js = join(root, "..", "runtime", "js");
const modules = join(js, "node_modules");
const page = join(root, "vae_runtime_studio", "page");
const require = createRequire(join(js, "package.json"));

if (!existsSync(modules)) throw new Error("runtime/js/node_modules: expected a folder, got nothing; run `npm ci --prefix runtime/js`");
if (!existsSync(join(js, "dist", "index.js"))) execFileSync(process.execPath, [join(js, "scripts", "build.mjs")], { stdio: "inherit" });
execFileSync(process.execPath, [join(dirname(require.resolve("typescript/package.json")), "bin", "tsc"), "-p", root], { stdio: "inherit" });

rmSync(page, { recursive: true, force: true });
mkdirSync(page);
await require("esbuild").build({
  absWorkingDir: root,
  entryPoints: { studio: "src/main.ts", worker: "src/worker.ts" },
  outdir: page,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  alias: { "vae-runtime": join(js, "dist", "index.js") },
  nodePaths: [modules],
  external: ["node:*"],
  logOverride: { "empty-import-meta": "silent" },
});
for (const name of ["index.html", "studio.css", "icon.svg"]) copyFileSync(join(root, name), join(page, name));
const ort = join(modules, "onnxruntime-web", "dist");
copyFileSync(join(ort, "ort-wasm-simd-threaded.wasm"), join(page, "ort-wasm-simd-threaded.wasm"));
const mit = readFileSync(join(modules, "fflate", "LICENSE"), "utf-8");
const terms = mit.slice(mit.indexOf("Permission is hereby granted"));
writeFileSync(
  join(page, "LICENSES.txt"),
  `onnxruntime-web: MIT License\n\nCopyright (c) Microsoft Corporation\n\n${terms}\n\nfflate: ${mit}`,
);
