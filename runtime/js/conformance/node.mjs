// The driver of the package in Node: `node runtime/js/conformance/node.mjs REQUESTS [onnxruntime-web]`.
import { readFileSync } from "node:fs";

import * as vaeRuntime from "../dist/index.js";
import { answerer } from "./answers.mjs";

const [requests, name = "onnxruntime-node"] = process.argv.slice(2);
const ort = await import(name);
const answer = answerer(vaeRuntime, ort.default ?? ort, "cpu", (path) => path);
for (const line of readFileSync(requests, "utf-8").trim().split("\n")) {
  console.log(JSON.stringify(await answer(JSON.parse(line))));
}
process.exit(0);
