// The shared tests in a page of headless Chromium, and what is a page's alone.
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import test, { after } from "node:test";
import { fileURLToPath } from "node:url";

import { executablePath, opened } from "../scripts/browser.mjs";
import { tests } from "./shared.mjs";

const js = join(dirname(fileURLToPath(import.meta.url)), "..");
const root = join(js, "..", "..");
const skip = executablePath ? false : "expected Chromium, got nothing; install it, or name it by CHROMIUM";

if (skip) test("Chromium", { skip }, () => undefined);
else {
  const { page, url, requests, close } = await opened(process.env.INSTALLED, { "/files/": root, "/test/": join(js, "test") });
  after(close);
  await page.evaluate(async () => {
    window.tests = (await import("/test/shared.mjs")).tests;
    const fetched = async (path) => {
      const response = await fetch(`/files/${path}`);
      if (!response.ok) throw new Error(`${path}: status ${response.status}`);
      return response;
    };
    window.host = {
      vr: window.vr,
      ort: window.ort,
      bytes: async (path) => new Uint8Array(await (await fetched(path)).arrayBuffer()),
      json: async (path) => (await fetched(path)).json(),
      source: (path) => `/files/${path}`,
    };
  });
  for (const name of Object.keys(tests)) {
    test(`Chromium: ${name}`, async () => {
      const problem = await page.evaluate((what) => window.tests[what](window.host).then(() => "", (error) => String(error?.stack ?? error)), name);
      assert.equal(problem, "");
    });
  }

  test("Chromium: a failing test is seen", async () => {
    const problem = await page.evaluate(() => window.tests["a bundle is described"]({ ...window.host, source: () => "/none" }).then(() => "", String));
    assert.match(problem, /BundleError: .*\/none\/SHA256SUMS: expected a file, got status 404/);
  });

  test("Chromium: WebGPU is used or refused, and never replaced", async () => {
    const answer = await page.evaluate(async () => {
      const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
      try {
        const vae = await window.vr.load("/files/conformance/bundles/plain", { ort: window.ort, device: "webgpu" });
        return `${Boolean(adapter)} ${vae.info.device}`;
      } catch (error) {
        return `${Boolean(adapter)} ${error.name}: ${error.message}`;
      }
    });
    assert.match(answer, /^false DeviceError: device webgpu: expected WebGPU, got nothing; choose the device wasm$|^true (webgpu|DeviceError)/);
  });

  test("Chromium: a worker needs no import map", async () => {
    const answer = await page.evaluate(() => new Promise((resolve, reject) => {
      const code = `
        import * as vr from "${location.origin}/vae-runtime/dist/index.js";
        import * as ort from "${location.origin}/ort/ort.wasm.bundle.min.mjs";
        ort.env.wasm.numThreads = 1;
        ort.env.wasm.wasmPaths = "${location.origin}/ort/";
        const vae = await vr.load("${location.origin}/files/conformance/bundles/plain.zip", { ort });
        const { data } = await vae.sample(1, { seed: 7 });
        postMessage([String((await vae.verify()).passed), ...data]);`;
      const worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = (event) => reject(new Error(event.message));
    }));
    const own = await page.evaluate(async () => {
      const vae = await window.vr.load("/files/conformance/bundles/plain", { ort: window.ort });
      return ["true", ...(await vae.sample(1, { seed: 7 })).data];
    });
    assert.deepEqual(answer, own);
  });

  test("Chromium: a page without WebCrypto is told", async () => {
    const answer = await page.evaluate(async () => {
      Object.defineProperty(crypto, "subtle", { value: undefined, configurable: true });
      try {
        return await window.vr.load("/files/conformance/bundles/plain", { ort: window.ort }).then(() => "loaded", String);
      } finally {
        delete crypto.subtle;
      }
    });
    assert.equal(answer, "DeviceError: crypto.subtle: expected WebCrypto, got nothing; serve the page by https or from localhost");
  });

  test("Chromium: nothing is fetched from elsewhere", () => {
    assert.ok(requests.length > 20);
    const others = requests.filter((each) => !each.startsWith(url) && !each.startsWith("blob:") && !each.startsWith("data:"));
    assert.deepEqual(others, []);
  });
}
