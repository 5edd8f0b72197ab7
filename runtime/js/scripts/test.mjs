// Pack the package, install what was packed where nothing else is, and test that in Node and in headless Chromium.
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const folder = mkdtempSync(join(tmpdir(), "vae-runtime-"));
const npm = (where, ...words) => execFileSync("npm", words, { cwd: where, encoding: "utf-8", stdio: ["ignore", "pipe", "inherit"] });
let status = 1;
try {
  const tarball = npm(root, "pack", "--silent", "--pack-destination", folder).trim().split("\n").at(-1);
  writeFileSync(join(folder, "package.json"), '{ "private": true, "type": "module" }');
  npm(folder, "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--offline", "--omit=peer", `./${tarball}`);
  for (const name of ["onnxruntime-node", "onnxruntime-web", "onnxruntime-common"]) {
    symlinkSync(join(root, "node_modules", name), join(folder, "node_modules", name));
  }
  const env = { ...process.env, INSTALLED: join(folder, "node_modules", "vae-runtime") };
  const files = process.argv.slice(2).length ? process.argv.slice(2) : ["test/node.test.mjs", "test/chromium.test.mjs"];
  ({ status } = spawnSync(process.execPath, ["--test", "--test-concurrency=1", "--test-force-exit", ...files], { cwd: root, env, stdio: "inherit" }));
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(status ?? 1);
