// The driver of the package in headless Chromium: `node runtime/js/conformance/chromium.mjs REQUESTS`.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { opened } from "../scripts/browser.mjs";

const js = join(dirname(fileURLToPath(import.meta.url)), "..");
const bundles = join(js, "..", "..", "conformance", "bundles");
const requests = process.argv[2];
const folders = { "/bundles/": bundles, "/altered/": dirname(requests), "/conformance/": join(js, "conformance") };
const { page, close } = await opened(js, folders);
await page.evaluate(
  async ([own, altered]) => {
    const { answerer } = await import("/conformance/answers.mjs");
    const source = (path) => (path.startsWith(own) ? path.replace(own, "/bundles") : path.replace(altered, "/altered"));
    window.answer = answerer(window.vr, window.ort, "wasm", source);
  },
  [bundles, dirname(requests)],
);
for (const line of readFileSync(requests, "utf-8").trim().split("\n")) {
  console.log(JSON.stringify(await page.evaluate((request) => window.answer(request), JSON.parse(line))));
}
await close();
