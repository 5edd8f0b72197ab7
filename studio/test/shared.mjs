// What the tests share: the command that serves a bundle, a browser, and Python to compare with.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { executablePath } from "../../runtime/js/scripts/browser.mjs";

export const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const js = join(root, "runtime", "js");
export const skip = executablePath ? false : "expected Chromium, got nothing; install it, or name it by CHROMIUM";

const folders = [];
process.on("exit", () => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true })));

const interpreter = process.env.PYTHON ?? join(root, ".venv", "bin", "python");
const env = { ...process.env, VAE_RUNTIME_CACHE: temporary(), PYTHONPATH: [join(root, "runtime"), root, join(root, "studio")].join(":"), PYTHONWARNINGS: "error" };
const flags = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

/** A folder that goes when the tests end. */
export function temporary() {
  const folder = mkdtempSync(join(tmpdir(), "studio-"));
  folders.push(folder);
  return folder;
}

/** Run Python with the runtime of this tree. */
export function python(...words) {
  const done = spawnSync(interpreter, words, { cwd: root, env, encoding: "utf-8", maxBuffer: 2 ** 28 });
  if (done.status !== 0) throw new Error(done.stderr || done.stdout);
  return done.stdout;
}

/** The numbers that lines of Python leave in `x`, and its shape. */
export function numbersOf(lines) {
  const tail = "\nimport json\nprint(json.dumps([list(x.shape), x.ravel().tolist()]))\n";
  const [shape, data] = JSON.parse(python("-c", lines + tail).trim().split("\n").at(-1));
  return { shape, data };
}

/** The numbers of lines of JavaScript, run in Node. */
export function numbersOfNode(lines) {
  const local = lines
    .replace('"onnxruntime-node"', JSON.stringify(join(js, "node_modules", "onnxruntime-node", "dist", "index.js")))
    .replace('"vae-runtime"', JSON.stringify(join(js, "dist", "index.js")));
  const code = `${local.replace("import * as ort", "import ort")}\nprocess.stdout.write(JSON.stringify([x.shape, [...x.data]]), () => process.exit(0));`;
  const done = spawnSync(process.execPath, ["--input-type=module", "-e", code], { cwd: root, encoding: "utf-8", maxBuffer: 2 ** 28 });
  if (done.status !== 0) throw new Error(done.stderr);
  const [shape, data] = JSON.parse(done.stdout);
  return { shape, data };
}

/** Whether a compiler of C is here. */
export const hasC = spawnSync("cc", ["--version"]).status === 0;

/** Check lines of C against the header of runtime/c, as strictly as that is built. */
export function compiled(lines) {
  const words = ["-x", "c", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I", join(root, "runtime", "c"), "-"];
  const done = spawnSync("cc", words, { input: lines, encoding: "utf-8" });
  if (done.status !== 0) throw new Error(`${done.stderr}\n${lines}`);
}

/** Start a server and give its address; `close` ends it as Ctrl-C does and gives its exit status. */
export async function started(command, words, isReady) {
  const process_ = spawn(command, words, { cwd: root, env, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  const url = await new Promise((done, failed) => {
    const read = (part) => {
      text += part;
      const found = isReady.exec(text);
      if (found) done(found[1]);
    };
    process_.stdout.on("data", read);
    process_.stderr.on("data", read);
    process_.on("exit", (status) => failed(new Error(`ended with ${status}: ${text}`)));
  });
  const close = () =>
    new Promise((done) => {
      process_.on("exit", (status) => done(status));
      process_.kill("SIGINT");
    });
  return { url, close };
}

/** Serve a bundle as `vae-runtime studio` does. */
export function studio(...words) {
  return started(interpreter, ["-m", "vae_runtime", "studio", ...words], /(http:\/\/127\.0\.0\.1:\d+\/)/);
}

/** Serve a folder as any web server does. */
export function plainServer(folder) {
  const words = ["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder];
  return started(interpreter, words, /\((http:\/\/127\.0\.0\.1:\d+\/)\)/);
}

/** Start the browser. */
export function browser() {
  const { chromium } = createRequire(join(js, "package.json"))("playwright-core");
  return chromium.launch({ executablePath, args: flags });
}

/** Open a page and wait for its verdict; errors of the page and requests to other hosts are collected. */
export async function opened(context, url, hash = "") {
  const page = await context.newPage();
  page.problems = [];
  page.foreign = [];
  page.on("pageerror", (error) => page.problems.push(error.message));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(blob|data):/.test(request.url())) page.foreign.push(request.url());
  });
  await page.goto(url + hash);
  await page.waitForSelector("#badge.good, #badge.bad", { timeout: 60_000 });
  return page;
}

/** What one canvas shows, channel by channel. */
export function pixels(page, selector) {
  return page.locator(selector).first().evaluate((canvas) => {
    const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return { width, height, data: [...data] };
  });
}

/** The red channel of every picture of the sheet, one after the other. */
export function sheetPixels(page) {
  return page.locator("#samples .cells:not(.kept) canvas").evaluateAll((all) =>
    all.flatMap((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return Array.from({ length: data.length / 4 }, (_, at) => data[4 * at]);
    }),
  );
}

/** What the reader would save by a click. */
export async function saved(page, selector) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(selector)]);
  return { name: download.suggestedFilename(), path: await download.path() };
}
