// The tests in Node: the shared ones with both builds of ONNX Runtime, and what is Node's alone.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync, cpSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import test from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

import { tests } from "./shared.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");
const js = join(root, "runtime", "js");
// Where scripts/test.mjs installed what was packed.
const installed = process.env.INSTALLED;
const vr = await import(pathToFileURL(join(installed, "dist", "index.js")));
const plain = join(root, "conformance", "bundles", "plain");

for (const name of ["onnxruntime-node", "onnxruntime-web"]) {
  const { default: ort } = await import(name);
  const host = {
    vr,
    ort,
    bytes: async (path) => new Uint8Array(readFileSync(join(root, path))),
    json: async (path) => JSON.parse(readFileSync(join(root, path), "utf-8")),
    source: (path) => join(root, path),
  };
  for (const [what, run] of Object.entries(tests)) test(`${name}: ${what}`, () => run(host));
}

const { default: ort } = await import("onnxruntime-node");

function copied(context) {
  const folder = mkdtempSync(join(tmpdir(), "vae-runtime-"));
  context.after(() => rmSync(folder, { recursive: true }));
  cpSync(plain, join(folder, "plain"), { recursive: true });
  return join(folder, "plain");
}

test("a folder has plain files, and no others", async (context) => {
  const folder = copied(context);
  assert.ok((await vr.verify(folder, { ort })).passed);
  assert.ok((await vr.verify(pathToFileURL(folder), { ort })).passed);
  // Links are what the caches of hubs consist of.
  const graph = join(folder, "decoder", "fp32", "model.onnx");
  writeFileSync(join(folder, "..", "graph"), readFileSync(graph));
  rmSync(graph);
  symlinkSync(join(folder, "..", "graph"), graph);
  assert.ok((await vr.verify(folder, { ort })).passed);
  rmSync(graph);
  symlinkSync("/dev/zero", graph);
  await assert.rejects(vr.load(folder, { ort }), /BundleError: .*expected a plain file/);
  rmSync(graph);
  await assert.rejects(vr.load(folder, { ort }), /BundleError: .*model.onnx: expected a file, got nothing/);
  execFileSync("mkfifo", [graph]);
  await assert.rejects(vr.load(folder, { ort }), /BundleError: .*expected a plain file/);
});

test("a sparse file is refused unread", async (context) => {
  const folder = copied(context);
  const graph = join(folder, "decoder", "fp32", "model.onnx");
  const content = readFileSync(graph);
  for (const part of [content, ""]) {
    writeFileSync(graph, part);
    truncateSync(graph, 2 ** 26);
    await assert.rejects(vr.load(folder, { ort }), /model.onnx: expected 67108864 bytes, got a sparse file; copy/);
  }
  // As large, but on the disk: it is read.
  writeFileSync(graph, new Uint8Array(2 ** 21).fill(1));
  await assert.rejects(vr.load(folder, { ort }), /model.onnx: expected the SHA-256/);
  writeFileSync(graph, content);
  await vr.load(folder, { ort });
});

test("files that are not listed are found", async (context) => {
  const folder = copied(context);
  writeFileSync(join(folder, ".gitattributes"), "");
  writeFileSync(join(folder, "model.sig"), "");
  assert.ok((await vr.verify(folder, { ort })).passed);
  writeFileSync(join(folder, "decoder", "notes"), "");
  symlinkSync(".", join(folder, "decoder", "circle"));
  const report = await vr.verify(folder, { ort });
  assert.deepEqual(report.checks.filter((check) => check.passed === false).map((check) => check.detail.split("/").at(-1)), [
    "notes: not listed in SHA256SUMS; remove it",
  ]);
});

test("a file that cannot be read is told", { skip: process.getuid?.() === 0 && "root reads all files" }, async (context) => {
  const folder = copied(context);
  chmodSync(join(folder, "manifest.json"), 0);
  await assert.rejects(vr.load(folder, { ort }), /BundleError: .*manifest.json: expected a file, got EACCES/);
});

test("a bundle is loaded by URL", async (context) => {
  const { served } = await import("../scripts/serve.mjs");
  const { url, close } = await served(root);
  context.after(close);
  for (const path of ["conformance/bundles/plain", "conformance/bundles/plain/", "conformance/bundles/plain.zip"]) {
    for (const source of [`${url}${path}`, new URL(path, url)]) assert.equal((await vr.load(source, { ort })).info.name, "plain");
  }
  assert.ok((await vr.verify(`${url}conformance/bundles/plain`, { ort })).passed);
  await assert.rejects(vr.load(`${url}conformance/bundles/none`, { ort }), /BundleError: .*SHA256SUMS: expected a file, got status 404; check the URL/);
  await assert.rejects(vr.load("http://127.0.0.1:9/none", { ort }), /BundleError: .*expected a file, got fetch failed/);
});

const kib = (path) => statSync(path).size / 1024;

test("the package is small, and only what is needed is in it", () => {
  const files = readdirSync(installed, { recursive: true }).filter((name) => statSync(join(installed, name)).isFile());
  const code = files.filter((name) => name.endsWith(".js")).sort();
  assert.deepEqual(code, ["dist/bundle_schema.js", "dist/fflate.js", "dist/index.js", "dist/noise_table.js", "dist/operators.js"]);
  assert.ok(files.every((name) => /^(dist\/[a-z0-9_]+\.(js|d\.ts)|package\.json|README\.md|LICENSE)$/.test(name)), files.join());
  assert.ok(kib(join(installed, "dist/index.js")) <= 80, `own code: ${kib(join(installed, "dist/index.js"))} KiB`);
  assert.ok(kib(join(installed, "dist/noise_table.js")) <= 96);
  const { dependencies, version } = JSON.parse(readFileSync(join(installed, "package.json"), "utf-8"));
  assert.equal(dependencies, undefined);
  const python = readFileSync(join(root, "runtime", "vae_runtime", "_version.py"), "utf-8");
  assert.equal(python.match(/__version__ = "(.*)"/)[1], version);
  assert.equal(vr.VERSION, version);
});

test("nothing is evaluated, and no registry is named", () => {
  const source = readFileSync(join(installed, "dist/index.js"), "utf-8");
  const evaluates = (text) => /\beval\(|\bnew Function\b|\bFunction\(|document\.write|innerHTML/.test(text);
  assert.ok(!evaluates(source));
  assert.ok(evaluates(`${source}\neval("1")`));
  const lock = readFileSync(join(js, "package-lock.json"), "utf-8");
  assert.ok(!/"resolved"/.test(lock));
});

test("the lines of the documents run", async (context) => {
  const texts = [join(js, "README.md"), join(root, "README.md")].map((path) => readFileSync(path, "utf-8"));
  const blocks = texts.flatMap((text) => [...text.matchAll(/^```js\n([^]*?)^```$/gm)].map((match) => match[1]));
  assert.equal(blocks.length, 2);
  const script = join(js, "test", ".readme.mjs");
  context.after(() => rmSync(script, { force: true }));
  const run = (code) => {
    writeFileSync(script, `${code.replace('"vae-runtime"', JSON.stringify(pathToFileURL(join(installed, "dist/index.js")).href))}\nprocess.exit(0);\n`);
    execFileSync(process.execPath, [script], { cwd: root, stdio: "pipe" });
  };
  blocks.forEach(run);
  assert.throws(() => run(blocks[0].replace("models/mnist", "models/none")));
});

test("its types are those that README.md tells", (context) => {
  const file = join(installed, "check.ts");
  context.after(() => rmSync(file, { force: true }));
  const check = (code) => {
    writeFileSync(file, code);
    const tsc = join(js, "node_modules", "typescript", "bin", "tsc");
    execFileSync(process.execPath, [tsc, "--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck", "false", "--types", "node", "--typeRoots", join(js, "node_modules", "@types"), file], { cwd: installed, stdio: "pipe" });
  };
  const code = `
    import * as web from "onnxruntime-web";
    import * as node from "onnxruntime-node";
    import { type Posterior, load, noise } from "./dist/index.js";
    for (const ort of [web, node]) {
      const vae = await load("models/mnist", { ort, variant: "int8", digest: null });
      const { data, shape } = await vae.sample(16, { seed: 7n, conditions: { label: ["one", 2] } });
      const q = (await vae.encode({ data, shape })) as Posterior;
      const n: number = noise.normal(1, 2n, 3, [4], { truncation: 2 }).data.length + q.kl().length + shape.length;
      console.log(n);
    }`;
  check(code);
  assert.throws(() => check(code.replace("seed: 7n", 'seed: "7"')));
});
