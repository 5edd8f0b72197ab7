// How long the noise takes beside `Math.random` and the Box–Muller transform, in turns, by medians; as JSON with --json.
import { noise } from "../dist/index.js";

const [rows, size, turns] = [4096, 64, 41];
const out = new Float32Array(rows * size);

function boxMuller() {
  for (let i = 0; i < out.length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    const angle = 2 * Math.PI * Math.random();
    out[i] = radius * Math.cos(angle);
    out[i + 1] = radius * Math.sin(angle);
  }
}

const calls = { "vnoise-1": () => noise.normal(7, 0, rows, [size]), "Math.random": boxMuller };
const times = { "vnoise-1": [], "Math.random": [] };
for (let turn = -5; turn < turns; turn++) {
  const names = turn % 2 ? Object.keys(calls) : Object.keys(calls).reverse();
  for (const name of names) {
    const start = performance.now();
    calls[name]();
    if (turn >= 0) times[name].push(performance.now() - start);
  }
}
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
const [own, other] = Object.values(times).map(median);
const [ours, theirs] = [own, other].map((time) => (time * 1e6) / out.length);
if (process.argv.includes("--json")) console.log(JSON.stringify({ noise: ours, random: theirs }));
else {
  console.log(`${ours.toFixed(1)} ns for a number of vnoise-1, ${theirs.toFixed(1)} ns for one of Math.random and Box–Muller`);
  console.log(`vnoise-1 is ${(other / own).toFixed(2)} times as fast`);
}
