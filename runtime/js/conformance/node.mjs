// The driver of the package in Node: `node runtime/js/conformance/node.mjs onnxruntime-node REQUESTS`, or onnxruntime-web.
import { readFileSync } from "node:fs";

import * as vaeRuntime from "../dist/index.js";
import { answerer } from "./answers.mjs";

const [name, requests] = process.argv.slice(2);
const { default: ort } = await import(name);
const answer = answerer(vaeRuntime, ort, "cpu", (path) => path);
for (const line of readFileSync(requests, "utf-8").trim().split("\n")) {
  console.log(JSON.stringify(await answer(JSON.parse(line))));
}
process.exit(0);
