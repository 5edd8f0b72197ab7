// Open a page in headless Chromium, with the package and onnxruntime-web as modules, served on 127.0.0.1.
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

import { served } from "./serve.mjs";

const js = join(dirname(fileURLToPath(import.meta.url)), "..");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

/** Where Chromium is, or undefined. */
export const executablePath = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser"].find(
  (path) => path && existsSync(path),
);

/** Open a page; `folders` are further ones to serve, by their paths in URLs, and `installed` that of the package. */
export async function opened(installed, folders) {
  const page = `<!doctype html><meta charset="utf-8"><title>vae-runtime</title><script type="module">
    import * as vr from "/vae-runtime/dist/index.js";
    import * as ort from "/ort/ort.wasm.bundle.min.mjs";
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = "/ort/";
    Object.assign(window, { vr, ort });
  </script>`;
  const { url, close } = await served(js, {
    "/": page,
    "/vae-runtime/": { folder: installed },
    "/ort/": { folder: join(js, "node_modules", "onnxruntime-web", "dist") },
    ...Object.fromEntries(Object.entries(folders).map(([path, folder]) => [path, { folder }])),
  });
  const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS });
  const tab = await browser.newPage();
  const requests = [];
  tab.on("request", (request) => requests.push(request.url()));
  await tab.goto(url);
  await tab.waitForFunction(() => window.vr && window.ort);
  return {
    page: tab,
    url,
    requests,
    async close() {
      await browser.close();
      close();
    },
  };
}
