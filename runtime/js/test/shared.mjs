// Tests that run in Node and in a page: each takes a host with the package `vr`, `ort`, `bytes(path)` of a file of the
// repository, `source(path)` of a bundle there, and `json(path)`.
import { entriesOf, zipped } from "./zip.mjs";

export const tests = {};

const digits = "conformance/bundles/digits";
const plain = "conformance/bundles/plain";

function equal(actual, expected, what = "value") {
  const [a, b] = [actual, expected].map((each) => JSON.stringify(each, (_, value) => (typeof value === "bigint" ? `${value}n` : value)));
  if (a !== b) throw new Error(`${what}: expected ${b}, got ${a}`);
}

async function refused(kind, words, call) {
  let error = null;
  try {
    await call();
  } catch (thrown) {
    error = thrown;
  }
  const text = error ? `${error.name}: ${error.message}` : "nothing";
  if (error?.name !== kind || !words.test(error.message) || /[\n\r]/.test(error.message)) {
    throw new Error(`expected ${kind} ${words}, got ${text}`);
  }
}

const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
const array = (data, shape) => ({ data: Float32Array.from(data), shape });

/** Results as expected.json has them. */
function comparable(vr, value) {
  if (value instanceof vr.Posteriors) return comparable(vr, value.parts);
  if (value instanceof vr.Posterior) return comparable(vr, { mean: value.mean, std: value.std, logvar: value.logvar, kl: value.kl() });
  if (ArrayBuffer.isView(value)) return { shape: [value.length], data: [...value] };
  if (value?.data) return { shape: value.shape, data: [...value.data] };
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, comparable(vr, part)]));
}

function near(expected, actual, place) {
  if (expected === null || typeof expected !== "object") return equal(actual, expected, place);
  const numbers = Array.isArray(expected);
  equal(Object.keys(actual ?? {}).sort(), Object.keys(expected).sort(), place);
  for (const [key, each] of Object.entries(expected)) {
    if (!numbers) near(each, actual[key], `${place}.${key}`);
    else if (!(Math.abs(each - actual[key]) <= 2e-5 + 2e-5 * Math.abs(each))) {
      throw new Error(`${place}[${key}]: expected ${each}, got ${actual[key]}`);
    }
  }
}

const SNAKE = {
  klPerDimension: "kl_per_dimension", logLikelihood: "log_likelihood", pValue: "p_value", pValueReason: "p_value_reason",
};
const snake = (value) => Object.fromEntries(Object.entries(value).map(([key, each]) => [SNAKE[key] ?? key, each]));

function argument(value) {
  if (Array.isArray(value) || typeof value !== "object") return value;
  return { data: (value.dtype === "int64" ? Int32Array : Float32Array).from(value.data), shape: value.shape };
}

async function answered({ vr, ort, source }, { bundle, method, arguments: given, options }) {
  const taken = Object.fromEntries(Object.entries(options).map(([key, value]) => [camel(key), key === "start" ? BigInt(value) : value]));
  const values = given.map(argument);
  if (!bundle) return vr[method](...(method === "traverse" ? [values[0], values[1], values[2].data] : [...values, taken]));
  const vae = await vr.load(source(bundle), { ort });
  const result = await vae[camel(method)](...values, taken);
  await vae.close();
  return method === "score" ? snake(result) : result;
}

tests["the numbers are those of Python"] = async (host) => {
  const cases = await host.json("runtime/js/test/expected.json");
  equal(cases.length > 30, true, "cases");
  for (const each of cases) near(each.expect, comparable(host.vr, await answered(host, each)), each.name);
};

tests["another number is seen"] = async (host) => {
  const [first] = await host.json("runtime/js/test/expected.json");
  first.expect.elbo.data[0] += 0.01;
  await refused("Error", /elbo/, async () => near(first.expect, comparable(host.vr, await answered(host, first)), "scores"));
};

tests["noise does not depend on how it is drawn"] = async ({ vr: { noise } }) => {
  const whole = noise.normal(7, 5, 300, [17]);
  for (const [first, n] of [[0, 1], [1, 250], [299, 1]]) {
    equal([...noise.normal(7, 5 + first, n, [17]).data], [...whole.data.subarray(17 * first, 17 * (first + n))]);
  }
  equal([...noise.normal(7, 5, 2, [8]).data.subarray(8)], [...whole.data.subarray(17, 25)]);
  const large = noise.normal(7n, 2n ** 64n - 1n, 2, [5000]);
  equal([...large.data.subarray(5000, 5004)], [...noise.normal(7, 0, 1, [4]).data], "after the last index");
  equal([...large.data.subarray(4096, 4100)], [...noise.normal(7n, 2n ** 64n - 1n, 1, [4100]).data.subarray(4096)]);
  equal(noise.normal(7, 0, 0, [3]).shape, [0, 3]);
  equal(noise.normal(7, 0, 2, []).shape, [2]);
  const seed = noise.newSeed();
  equal(Number.isSafeInteger(seed) && seed !== noise.newSeed(), true, "seed");
};

tests["the table is that of the specification"] = async ({ vr: { noise } }) => {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", new Uint8Array(noise.quantiles().buffer)));
  equal(Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join(""), noise.TABLE_SHA256);
};

tests["noise refuses what is out of range"] = async ({ vr: { noise } }) => {
  const refuses = (words, ...given) => refused("InputError", words, () => noise.normal(...given));
  await refuses(/^seed: expected -9223372036854775808 … 18446744073709551615, got 18446744073709551616$/, 2n ** 64n, 0, 1, [1]);
  await refuses(/^seed: expected an integer/, 0.5, 0, 1, [1]);
  await refuses(/^seed: expected an integer/, 2 ** 60, 0, 1, [1]);
  await refuses(/^start: expected 0/, 0, -1, 1, [1]);
  await refuses(/^n: expected/, 0, 0, -1, [1]);
  await refuses(/^n: expected as many as fit/, 0, 0, 2 ** 40, [2 ** 20]);
  await refuses(/^shape\[0\]/, 0, 0, 1, ["1"]);
  await refuses(/^shape: expected/, 0, 0, 1, [2 ** 20, 2 ** 20]);
  await refuses(/^truncation: expected a number from 0.01/, 0, 0, 1, [1], { truncation: 0 });
  await refuses(/^stream: expected/, 0, 0, 1, [1], { stream: -1 });
  await refuses(/^shape\[0\]: expected/, 0, 0, 1, [, 2]);
  for (const name of ["normal", "uniform", "words"]) {
    await refused("InputError", /^\w+: expected one of stream.*, got "steam"/, () => noise[name](0, 0, 1, [1], { steam: 1 }));
  }
};

tests["every way to name a .zip file opens it"] = async ({ vr, ort, bytes, source }) => {
  const content = await bytes(`${plain}.zip`);
  const copies = [source(`${plain}.zip`), content, content.slice().buffer, new Blob([content])];
  for (const each of [...copies, source(plain)]) {
    const vae = await vr.load(each, { ort });
    equal(vae.info.name, "plain");
    equal((await vae.verify()).passed, true);
  }
};

tests["a bundle is described"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source(digits), { ort, variant: "int8" });
  const { variant, variants, device, digest, likelihood } = vae.info;
  equal(variant, { encoder: "fp32", decoder: "int8" });
  equal(variants, ["encoder/fp32", "decoder/fp32", "decoder/fp16", "decoder/int8"]);
  equal([device, likelihood.kind, digest.length], ["cpu", "bernoulli", 71]);
  const measured = (await vae.verify()).checks.map(({ what, difference }) => [what.split("/")[0], typeof difference]);
  equal(measured.slice(0, 2), [["files", "object"], ["encoder", "number"]]);
  const text = String(await vae.verify());
  equal(/^ok {6}files .*sha256:/.test(text) && /ok {6}decoder\/int8 x /.test(text), true, text);
  await refused("BundleError", /expected the digest/, () => vr.load(source(digits), { ort, digest: `sha256:${"0".repeat(64)}` }));
  await vr.load(source(digits), { ort, digest });
};

tests["graphs are loaded once, and the encoder when it is needed"] = async ({ vr, ort, source }) => {
  let opened = 0;
  const counting = {
    Tensor: ort.Tensor,
    env: ort.env,
    InferenceSession: { create: (...given) => ((opened += 1), ort.InferenceSession.create(...given)) },
  };
  const vae = await vr.load(source(plain), { ort: counting });
  equal(opened, 1);
  const q = await Promise.all([1, 2, 3].map(() => vae.encode(array([1, 2, 3, 4, 5, 6], [1, 6]))));
  await Promise.all([vae.sample(2), vae.decode(q[0].mode()), vae.verify()]);
  equal(opened, 2);
};

tests["calls at the same time give what they give one by one"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source(digits), { ort });
  const one = [];
  for (let seed = 0; seed < 4; seed++) one.push([...(await vae.sample(70, { seed })).data]);
  const all = await Promise.all([0, 1, 2, 3].map((seed) => vae.sample(70, { seed })));
  equal(all.map(({ data }) => [...data]), one);
};

tests["results go into a buffer on request"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source(plain), { ort });
  const out = new Float32Array(5 * 6);
  for (const batchSize of [2, 64]) {
    const x = await vae.sample(5, { seed: 1, out: out.fill(9), batchSize });
    equal(x.data === out, true, "the buffer");
    equal([...out], [...(await vae.sample(5, { seed: 1, batchSize })).data]);
  }
  // Latents that lie in the buffer itself.
  const z = await vae.prior(6, { seed: 2 });
  const expected = [...(await vae.decode(z)).data];
  const shared = new Float32Array(36);
  shared.set(z.data);
  await vae.decode({ data: shared.subarray(0, 18), shape: [6, 3] }, { out: shared, batchSize: 1 });
  equal([...shared], expected);
  await refused("InputError", /^out: expected a Float32Array of 30 numbers, got 29$/, () => vae.sample(5, { out: new Float32Array(29) }));
  await refused("InputError", /^out: expected/, () => vae.sample(5, { out: [1] }));
};

tests["progress is told and a signal ends a call"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source(plain), { ort });
  const told = [];
  const onProgress = (done, rows) => told.push([done, rows]);
  await vae.sample(5, { batchSize: 2, onProgress });
  equal(told, [[2, 5], [4, 5], [5, 5]]);
  const x = array(Array(24).fill(0.5), [4, 6]);
  await vae.score(x, { batchSize: 3, onProgress });
  equal(told.slice(3), [[3, 4], [4, 4]]);
  for (const call of [
    (signal) => vae.sample(500, { batchSize: 1, signal }),
    (signal) => vae.encode(x, { batchSize: 1, signal }),
    (signal) => vae.score(x, { batchSize: 1, signal }),
    (signal) => vae.reconstruct(x, { batchSize: 1, signal }),
  ]) {
    const controller = new AbortController();
    const result = call(controller.signal);
    controller.abort(new Error("enough"));
    await refused("Error", /^enough$/, () => result);
    await refused("AbortError", /abort/, () => call(AbortSignal.abort()));
    await call(new AbortController().signal);
  }
  const controller = new AbortController();
  const stop = (done) => done === 2 && controller.abort();
  await refused("AbortError", /abort/, () => vae.sample(9, { batchSize: 1, signal: controller.signal, onProgress: stop }));
};

tests["arguments that are wrong are refused"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source(plain), { ort });
  const input = (words, call) => refused("InputError", words, call);
  await input(/^sample: expected one of .*batchSize.*, got "batch_size"; leave it out$/, () => vae.sample(1, { batch_size: 2 }));
  await input(/^sample: expected one of/, () => vae.sample(1, { tile: "auto" }));
  await input(/^n: expected 1/, () => vae.sample(0));
  await input(/^n: expected a number from 1 to \d+, got 2$/, () => vae.sample(2n));
  await input(/^batchSize: expected 1/, () => vae.sample(1, { batchSize: 0 }));
  await input(/^temperature: expected a number/, () => vae.sample(1, { temperature: NaN }));
  await input(/^observe: expected true or false/, () => vae.sample(1, { observe: 1 }));
  await input(/^conditions: expected no names, got "label"/, () => vae.sample(1, { conditions: { label: 1 } }));
  await input(/^z: expected float32 \[n, 3\], got \[3\]; add the batch axis: \[1, 3\]$/, () => vae.decode(array([1, 2, 3], [3])));
  await input(/^z: expected float32 \[n, 3\], got \[1, 4\]; axis 1 must be 3, is 4$/, () => vae.decode(array([1, 2, 3, 4], [1, 4])));
  await input(/^z: expected float32 \[n, 3\], got 2 numbers for 1,3/, () => vae.decode(array([1, 2], [1, 3])));
  await input(/^z: expected float32 \[n, 3\], got Int32Array; convert/, () => vae.decode({ data: new Int32Array(3), shape: [1, 3] }));
  await input(/^z\[1\]: expected finite values, got NaN/, () => vae.decode(array([1, NaN, 3], [1, 3])));
  await input(/^z\[2\]: expected at most/, () => vae.decode({ data: new Float64Array([1, 2, 1e39]), shape: [1, 3] }));
  await input(/^z: expected an object/, () => vae.decode(null));
  await input(/^x: expected float32 \[n, 6\], got nothing/, () => vae.encode(undefined));
  await input(/^k: expected 1/, () => vae.score(array(Array(6).fill(0), [1, 6]), { k: 0 }));
  await input(/^latentShape of z: expected \[3\], got \[4\]; axis 0 must be 3, is 4$/, () => vae.prior(1, { latentShape: [4] }));
  const q = await vae.encode(array(Array(6).fill(0), [1, 6]));
  await input(/^z: expected the shape \[1, 3\], got \[1, 2\]$/, async () => q.logProb(array([1, 2], [1, 2])));
  await input(/^sample: expected one of seed/, async () => q.sample({ sed: 1 }));
  await input(/^b: expected the shape of a/, async () => vr.interpolate(array([1], [1]), array([1, 2], [2]), 2));
  await input(/^steps: expected 2/, async () => vr.interpolate(array([1], [1]), array([2], [1]), 1));
  // A page may have less memory than Node, but nobody has this much.
  const wide = array(Array(2 ** 16).fill(1), [2 ** 16]);
  await input(/^steps: expected as many as fit in memory, got 2147483648; ask for fewer$/, async () => vr.interpolate(wide, wide, 2 ** 31));
  for (const beyond of [1e39, NaN, -Infinity, null, "a"]) {
    await input(/^a: expected finite numbers of float32/, async () => vr.interpolate({ data: [beyond], shape: [1] }, array([1], [1]), 2));
    await input(/^values: expected finite numbers of float32/, async () => vr.traverse(array([1], [1]), 0, [beyond]));
  }
  await input(/^dimension: expected 0 … 0/, async () => vr.traverse(array([1], [1]), 1, [0]));
  await input(/^source: expected/, () => vr.load(5, { ort }));
  await input(/^ort: expected ONNX Runtime/, () => vr.load(source(plain), {}));
  await input(/^load: expected one of ort/, () => vr.load(source(plain), { ort, key: "k" }));
  await input(/^digest: expected/, () => vr.load(source(plain), { ort, digest: "abc" }));
  await input(/^sessionOptions: expected no executionProviders, got them; give device$/, () =>
    vr.load(source(plain), { ort, sessionOptions: { executionProviders: ["cpu"] } }));
  await input(/^device: expected/, () => vr.load(source(plain), { ort, device: "CUDA 0" }));
  await refused("DeviceError", /^device (webgl|webnn|dml|coreml|qnn)/, () => vr.load(source(plain), { ort, device: ort.env.versions.web ? "qnn" : "webnn" }));
  await refused("BundleError", /^.*: expected one of the variants fp32, got "int2"$/, () => vr.load(source(plain), { ort, variant: "int2" }));
  await refused("BundleError", /./, () => vr.load(source("conformance/bundles/none"), { ort }));
};

tests["a posterior holds arrays of one shape"] = async ({ vr }) => {
  const [two, three] = [array([1, 2], [1, 2]), array([1, 2, 3], [1, 3])];
  equal([...new vr.Posterior(two, two, two).mode().data], [1, 2]);
  const input = (words, ...parts) => refused("InputError", words, async () => new vr.Posterior(...parts));
  await input(/^std: expected the shape of mean, \[1, 2\], got \[1, 3\]$/, two, three, two);
  await input(/^logvar: expected \{ data: Float32Array, shape \}, got Float32Array$/, two, two, { data: two.data, shape: [1, 3] });
  await input(/^logvar: expected .*, got nothing$/, two, two);
  await input(/^mean: expected .*, got a list of 2$/, { data: [1, 2], shape: [1, 2] }, two, two);
  await input(/^mean: expected a batch axis/, array([1], []), array([1], []), array([1], []));
};

tests["arrays of odd forms are refused, and never wrapped or stretched"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source(plain), { ort });
  const input = (words, call) => refused("InputError", words, call);
  for (const shape of [[0.5, 6], ["2", 3], [2n, 3n], [-2, -3], [NaN, 3]]) {
    await input(/^z: expected float32 \[n, 3\], got a list of 2; give sizes of at least 0$/, () => vae.decode({ data: new Float32Array(6), shape }));
  }
  for (const data of [null, Object.create(null), 5, "abc", [1, , 3], [1, undefined, 3], new DataView(new ArrayBuffer(12))]) {
    await input(/^z: expected float32 \[n, 3\], got /, () => vae.decode({ data, shape: [1, 3] }));
  }
  for (const data of [null, Object.create(null)]) await input(/^z: expected /, () => vae.decode({ data, shape: [0, 3] }));
  const codes = await vr.load(source("conformance/bundles/codes"), { ort });
  for (const data of [[2n ** 64n + 1n, 0n, 0n, 0n], [1, , 3, 1], new BigUint64Array([2n ** 63n, 0n, 0n, 0n])]) {
    await input(/^codes: expected int64 .*give integers$/, () => codes.decode({ data, shape: [1, 4] }));
  }
  const conditional = await vr.load(source("conformance/bundles/conditional"), { ort });
  await input(/^label: expected int64/, () => conditional.sample(1, { conditions: { label: 2n ** 64n } }));
  await input(/^signal: expected an AbortSignal, got 5$/, () => vae.sample(1, { signal: 5 }));
  await input(/^signal: expected an AbortSignal/, () => vae.score(array(Array(6).fill(0), [1, 6]), { signal: {} }));
  await input(/^onProgress: expected a function, got 5$/, () => vae.sample(1, { onProgress: 5 }));
  await input(/^sessionOptions: expected an object, got 5$/, () => vr.load(source(plain), { ort, sessionOptions: 5 }));
  const q = await vae.encode(array(Array(6).fill(0), [1, 6]));
  await input(/^z: expected the shape \[1, 3\], got nothing$/, async () => q.logProb(null));
  await input(/^source: expected the URL|^source: expected a URL/, () => vr.load(new URL("data:text/plain,x"), { ort }));
};

tests["memory that others may change or take is copied or refused"] = async ({ vr, ort, bytes, source }) => {
  const content = await bytes(`${plain}.zip`);
  const transferred = content.slice();
  structuredClone(transferred.buffer, { transfer: [transferred.buffer] });
  await refused("BundleError", /ends without a comment/, () => vr.load(transferred, { ort }));
  await refused("BundleError", /ends without a comment/, () => vr.load(transferred.buffer, { ort }));
  const vae = await vr.load(source(plain), { ort });
  const gone = new Float32Array(3);
  structuredClone(gone.buffer, { transfer: [gone.buffer] });
  await refused("InputError", /^z: .*got 0 numbers/, () => vae.decode({ data: gone, shape: [1, 3] }));
  // Pages have it with certain headers alone.
  if (typeof SharedArrayBuffer === "undefined") return;
  const shared = new Uint8Array(new SharedArrayBuffer(content.length));
  shared.set(content);
  equal((await vr.load(shared, { ort })).info.name, "plain");
  const z = new Float32Array(new SharedArrayBuffer(12));
  equal([...(await vae.decode({ data: z, shape: [1, 3] })).data], [...(await vae.decode(array([0, 0, 0], [1, 3]))).data]);
};

tests["close waits for calls, and later calls load again"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source(plain), { ort });
  const expected = [...(await vae.sample(90, { seed: 1 })).data];
  const results = [vae.sample(90, { seed: 1, batchSize: 1 }), vae.sample(90, { seed: 1, batchSize: 3 })];
  await Promise.all([vae.close(), vae.close()]);
  for (const result of results) equal((await result).data.length, expected.length);
  equal([...(await vae.sample(90, { seed: 1 })).data], expected);
  let isBroken = false;
  const create = async (...given) => {
    if (isBroken) throw new Error("no graph");
    return ort.InferenceSession.create(...given);
  };
  const other = await vr.load(source(plain), { ort: { Tensor: ort.Tensor, env: ort.env, InferenceSession: { create } } });
  isBroken = true;
  const failing = other.encode(array(Array(6).fill(0), [1, 6]));
  await Promise.all([refused("BundleError", /no graph/, () => failing), other.close()]);
};

tests["arrays of other kinds are taken"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source(plain), { ort });
  const x = [...(await vae.decode(array([0.5, 1, 2], [1, 3]))).data];
  for (const data of [[0.5, 1, 2], new Float64Array([0.5, 1, 2])]) equal([...(await vae.decode({ data, shape: [1, 3] })).data], x);
  equal([...(await vae.decode(new ort.Tensor("float32", new Float32Array([0.5, 1, 2]), [1, 3]))).data], x);
  const codes = await vr.load(source("conformance/bundles/codes"), { ort });
  const y = [...(await codes.decode({ data: new BigInt64Array([0n, 1n, 2n, 7n]), shape: [1, 4] })).data];
  for (const data of [[0, 1, 2, 7], new Uint8Array([0, 1, 2, 7]), [0n, 1n, 2n, 7n]]) equal([...(await codes.decode({ data, shape: [1, 4] })).data], y);
  for (const data of [[0.5, 1, 2, 7], new Float32Array(4)]) {
    await refused("InputError", /^codes: expected int64 .*give integers$/, () => codes.decode({ data, shape: [1, 4] }));
  }
  const q = await codes.encode(array(Array(8).fill(0.25), [1, 8]));
  equal([q instanceof vr.Encoding, q.mode().data instanceof BigInt64Array], [true, true]);
  for (const name of ["sample", "kl", "klPerDimension", "logProb"]) {
    await refused("InputError", /^\w+: there is no posterior distribution: the encoder gives codes; take mode\(\)$/, async () => q[name]());
  }
  await refused("InputError", /has no prior to draw from/, () => codes.sample(1));
};

tests["conditions have many forms"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source("conformance/bundles/conditional"), { ort });
  const z = await vae.prior(2, { seed: 1 });
  const decoded = async (label) => [...(await vae.decode(z, { conditions: { label } })).data];
  const both = await decoded("seven");
  for (const label of [7, 7n, [7, 7], ["seven", "seven"], ["seven", 7], { data: new BigInt64Array([7n, 7n]), shape: [2] }]) equal(await decoded(label), both);
  equal((await decoded(["seven", "two"])).slice(0, 64), both.slice(0, 64));
  equal((await decoded(["two", "seven"])).slice(64), both.slice(64));
  await refused("InputError", /^label: expected int64 \[2\] or one value, of the classes zero, .*, got "eleven"$/, () => decoded("eleven"));
  await refused("InputError", /^label: expected .*, got \[3\]$/, () => decoded([1, 2, 3]));
  await refused("InputError", /^label\[0\]: expected values from 0 to 9, got 10; choose/, () => decoded(10));
  await refused("InputError", /^conditions: expected label, one of 10 classes, got nothing; give/, () => vae.sample(1));
  await refused("InputError", /^conditions: expected one of label, got "labels"/, () => vae.sample(1, { conditions: { labels: 1 } }));
};

tests["several latents are taken and given by name"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source("conformance/bundles/two-latents"), { ort });
  const z = await vae.prior(2, { seed: 1 });
  equal(Object.entries(z).map(([name, { shape }]) => [name, shape]), [["z1", [2, 2]], ["z2", [2, 3]]]);
  equal([...(await vae.decode(z)).data], [...(await vae.sample(2, { seed: 1 })).data]);
  const q = await vae.encode(array(Array(12).fill(0.1), [2, 6]));
  equal(Object.keys(q.mode()), ["z1", "z2"]);
  equal([...q.sample({ seed: 3 }).z2.data], [...q.parts.z2.sample({ seed: 3 }).data]);
  equal(q.kl().length, 2);
  await refused("InputError", /^z: expected every latent: z2, got nothing$/, () => vae.decode({ z1: z.z1 }));
  await refused("InputError", /^z: expected one of z1, z2, got "z3"/, () => vae.decode({ ...z, z3: z.z1 }));
  await refused("InputError", /^z: expected arrays by the names z1,z2, got one array$/, () => vae.decode(z.z1));
  const { z1, z2 } = await vae.prior(3, { seed: 1 });
  await refused("InputError", /^z: expected as many rows of each latent, got \[3, 2\]$/, () => vae.decode({ z1, z2: z.z2 }));
  equal(z2.shape, [3, 3]);
};

tests["an encoder that draws says with what"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source("runtime/js/test/bundles/levels.zip"), { ort });
  const x = array([1, 2, 3], [1, 3]);
  const q = await vae.encode(x, { seed: 4, start: 2 });
  equal([...q.sample().z_1.data], [...q.sample({ seed: 4, start: 2n }).z_1.data]);
  equal([...q.parts.z_2.mean.data], [...q.sample().z_1.data], "the second level starts from the sample of the first");
  await refused("InputError", /expected the seed 4, start 2 and temperature 1/, async () => q.sample({ seed: 5 }));
  const means = await vae.encode(x);
  await refused("InputError", /expected encode\(\) with a seed/, async () => means.sample({ seed: 1 }));
  await refused("InputError", /^k: expected/, () => vae.score(x, { k: 2 }));
};

const vaeOf = (manifest) => manifest.additional_metadata.vae;

/** A .zip file of a bundle with an altered manifest, and with other files. */
async function altered({ bytes }, change, files = {}) {
  const entries = entriesOf(await bytes(`${plain}.zip`));
  const manifest = JSON.parse(new TextDecoder().decode(entries.get("manifest.json")));
  const text = change(manifest);
  entries.set("manifest.json", new TextEncoder().encode(typeof text === "string" ? text : JSON.stringify(manifest)));
  for (const [name, content] of Object.entries(files)) entries.set(name, content);
  return zipped(entries);
}

tests["scale and shift are those of other models' latents"] = async (host) => {
  const bundle = await altered(host, (manifest) => Object.assign(vaeOf(manifest).latents[0], { scale: [2, 4, 0.5], shift: 1 }));
  const vae = await host.vr.load(bundle, { ort: host.ort });
  const w = vae.scaled(array([1, 2, 3], [1, 3]));
  equal([...w.data], [0, 4, 1]);
  equal([...vae.unscaled(w).data], [1, 2, 3]);
};

tests["what an adopted bundle is compared with is its graph"] = async (host) => {
  for (const [change, words] of [
    [() => {}, /from PyTorch [\d.e-]+$/],
    [(manifest) => Object.assign(vaeOf(manifest).producer, { adopted: {} }), /from the graph that was given [\d.e-]+$/],
  ]) {
    const { checks } = await host.vr.verify(await altered(host, change), { ort: host.ort });
    equal(checks.slice(1).map(({ passed, detail }) => passed && words.test(detail)), Array(checks.length - 1).fill(true), String(checks.at(-1).detail));
  }
};

tests["a manifest cannot touch prototypes"] = async (host) => {
  const { vr, ort } = host;
  const bundle = await altered(host, (manifest) => {
    const text = JSON.stringify(manifest);
    const poison = '"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}';
    return text.replace(/"training": ?\{/, `"training": {${poison}, `).replace(/"vae": ?\{"format/, `"vae": {${poison}, "format`);
  });
  const vae = await vr.load(bundle, { ort });
  equal([{}.polluted, [].polluted, vae.manifest.polluted, vae.polluted], [undefined, undefined, undefined, undefined]);
  const { training } = vae.info;
  equal([Object.getPrototypeOf(training), Object.keys(training).includes("__proto__"), {}.polluted], [null, true, undefined]);
  for (const change of [
    (manifest) => Object.assign(manifest, JSON.parse('{"__proto__x": 1}')),
    (manifest) => JSON.stringify(manifest).replace("{", '{"__proto__": {}, '),
    (manifest) => JSON.stringify(manifest).replace("{", '{"constructor": {}, '),
  ]) {
    await refused("BundleError", /expected no field of this name/, async () => vr.load(await altered(host, change), { ort }));
  }
  // Names of objects' own methods are names like all others.
  await refused("InputError", /^conditions: expected no names, got "toString"/, () => vae.sample(1, { conditions: { toString: 1 } }));
  await refused("BundleError", /expected one of the variants/, () => vr.load(bundle, { ort, variant: "__proto__" }));
};

tests["JSON is read strictly"] = async (host) => {
  for (const [change, words] of [
    [(text) => text.replace('"layout"', '"layout":"portable","layout"'), /the key "layout" stands twice/],
    [(text) => text.replace('"layout"', '"x":NaN,"layout"'), /expected a value/],
    [(text) => text.replace('"layout"', '"x":-Infinity,"layout"'), /expected/],
    [(text) => text.replace('"layout"', '"x":1e999,"layout"'), /a number that a double holds/],
    [(text) => text.replace('"layout"', '"x":01,"layout"'), /expected ,/],
    [(text) => text.replace('"layout"', '"\\ud800":1,"layout"'), /half of a surrogate pair/],
    [(text) => `\ufeff${text}`, /expected a value at character 0/],
    [(text) => `${text}x`, /expected the end/],
    [(text) => text.slice(0, -1), /expected ,/],
    [(text) => text.replace('"layout"', "'layout'"), /expected a string/],
    [(text) => text.replace('"layout"', `"x":${"[".repeat(70)}${"]".repeat(70)},"layout"`), /too deeply nested/],
    [(text) => text.replace('"layout"', '"x\u0001":1,"layout"'), /expected a string/],
  ]) {
    const bundle = await altered(host, (manifest) => change(JSON.stringify(manifest)));
    await refused("BundleError", words, () => host.vr.load(bundle, { ort: host.ort }));
  }
};

tests["what is nested 64 deep is read"] = async (host) => {
  const nested = (open, value, close) => altered(host, (manifest) => {
    // The value is in four objects.
    const text = JSON.stringify(manifest);
    return text.replace(/"training": ?\{/, `"training":{"deep":${open.repeat(60)}${value}${close.repeat(60)}${/"training": ?\{\}/.test(text) ? "" : ","}`);
  });
  await host.vr.load(await nested("[", "1", "]"), { ort: host.ort });
  await refused("BundleError", /too deeply nested/, async () => host.vr.load(await nested("[", "[]", "]"), { ort: host.ort }));
};

tests["forged headers of an .npz file are seen"] = async (host) => {
  const whole = entriesOf(await host.bytes(`${plain}.zip`)).get("golden.npz");
  const end = whole.length - 22;
  const entry = new DataView(whole.buffer).getUint32(end + 16, true);
  const local = new DataView(whole.buffer).getUint32(entry + 42, true);
  const other = (at) => (view) => view.setUint8(at, view.getUint8(at) ^ 1);
  const both = (inLocal, inEntry, value) => (view) => {
    view.setUint16(local + inLocal, value, true);
    view.setUint16(entry + inEntry, value, true);
  };
  for (const [words, change] of [
    [/its header, as in the directory/, other(local)],
    [/its header, as in the directory/, other(local + 6)],
    [/its header, as in the directory/, other(local + 8)],
    [/its header, as in the directory/, other(local + 14)],
    [/its header, as in the directory/, other(local + 18)],
    [/its header, as in the directory/, other(local + 22)],
    [/its header, as in the directory/, other(local + 26)],
    [/its header, as in the directory/, other(local + 30)],
    [/neither encrypted nor packed but by deflate/, both(6, 8, 1)],
    [/neither encrypted nor packed but by deflate/, both(8, 10, 12)],
    [/neither encrypted nor packed but by deflate/, both(8, 10, 0)],
    [/expected an .npz file: \d+ files, got 0/, other(entry)],
    [/its header, as in the directory/, (view) => view.setUint16(entry + 28, 65535, true)],
    [/its header, as in the directory/, (view) => view.setUint32(entry + 42, end, true)],
    [/its header, as in the directory/, (view) => [entry + 20, local + 18].forEach((at) => view.setUint32(at, end, true))],
    [/ends without a comment/, other(end)],
    [/" once, got it twice/, (view) => {
      // The directory's second entry becomes the first again, behind the second member.
      const length = view.getUint16(entry + 28, true);
      const second = entry + 46 + length;
      for (let at = 0; at < 46 + length; at++) view.setUint8(second + at, view.getUint8(entry + at));
      view.setUint32(second + 42, local + 30 + length + view.getUint32(entry + 20, true), true);
    }],
  ]) {
    const forged = whole.slice();
    change(new DataView(forged.buffer));
    const report = await host.vr.verify(await altered(host, () => {}, { "golden.npz": forged }), { ort: host.ort });
    const detail = report.checks.find(({ passed }) => passed === false)?.detail ?? "nothing";
    equal([words.test(detail), /golden.npz: expected an .npz file: .*, got .*; export the bundle again$/.test(detail)], [true, true], `${words} in ${detail}`);
  }
};

tests["a damaged member of an .npz file is seen"] = async (host) => {
  const golden = entriesOf(await host.bytes(`${plain}.zip`)).get("golden.npz");
  const view = new DataView(golden.buffer);
  const end = golden.length - 22;
  const entry = view.getUint32(end + 16, true);
  for (const at of [entry + 16, view.getUint32(entry + 42, true) + 14]) view.setUint8(at, view.getUint8(at) ^ 1);
  const report = await host.vr.verify(await altered(host, () => {}, { "golden.npz": golden }), { ort: host.ort });
  const detail = report.checks.find(({ passed }) => passed === false)?.detail ?? "nothing";
  equal(/golden.npz: expected an .npz file, got the CRC-32 of .* is another/.test(detail), true, detail);
};

tests["problems of a manifest are told with their places"] = async (host) => {
  const told = async (change, ...words) => {
    let message = "nothing";
    try {
      await host.vr.load(await altered(host, (manifest) => void change(manifest)), { ort: host.ort });
    } catch (error) {
      message = `${error.name}: ${error.message}`;
    }
    for (const each of words) if (!message.includes(each)) throw new Error(`expected ${each}, got ${message}`);
  };
  await told(
    (manifest) => Object.assign(vaeOf(manifest), { name: 5, golden: { file: "golden.npz", seed: -1, n: 2 } }),
    "BundleError", "2 problems; export the bundle again", "vae.name: expected a string, got 5",
    "vae.golden.seed: expected an integer from 0 to 9007199254740991, got -1",
  );
  await told((manifest) => (vaeOf(manifest).latents[0].prior = { kind: "flow" }), 'prior.kind: expected "normal"', "npm install");
  await told((manifest) => (vaeOf(manifest).format_version = "3.0"), "newer: npm install vae-runtime@latest");
  await told((manifest) => (vaeOf(manifest).format_version = "1.0"), "older: export the bundle again");
  await told((manifest) => (vaeOf(manifest).reader = "vae-runtime>=99.1"), "it asks for vae-runtime>=99.1, this is");
  await told((manifest) => (vaeOf(manifest).must_understand = ["latents.prior", "streams"]), 'got "streams"');
  await told((manifest) => (vaeOf(manifest).observation.range = [1, "2"]), "observation.range[1]: expected a number, got");
  await told((manifest) => (vaeOf(manifest).latents[0].name = "a b"), "latents[0].name: expected text of the form ^[A-Za-z_]");
  await told((manifest) => delete vaeOf(manifest).golden.n, "golden.n: expected this field, got nothing");
  await told((manifest) => (vaeOf(manifest).likelihood.scale_output = "s"), "likelihood: expected another value, got an object");
  await told((manifest) => (vaeOf(manifest).latents[0].dtype = "int64"), "latents[0].dtype: expected int64 for codes");
  const streamed = (stream) => (manifest) => (manifest.components.decoder.variants.fp32.additional_metadata.vae.stream = stream);
  await told(streamed({ file: "README.md", hop: 2, error: 0 }), "stream: expected a stream of a decoder of one latent");
  await told(streamed({ hop: 0 }), "stream.hop: expected an integer from 1 to 2147483647, got 0");
  await host.vr.load(await altered(host, (manifest) => void streamed({ reason: "no time" })(manifest)), { ort: host.ort });
  await told((manifest) => (vaeOf(manifest).observation.axes = []), "observation.axes: expected an array of 1 to 8 items, got a list of 0");
};

tests["what is damaged or forged is refused"] = async (host) => {
  const { vr, ort, bytes } = host;
  const load = (content) => () => vr.load(content, { ort });
  const whole = await bytes(`${plain}.zip`);
  await refused("BundleError", /that ends without a comment/, load(whole.slice(0, -1)));
  await refused("BundleError", /with its directory right before its end/, load(Uint8Array.from([0, ...whole])));
  const damaged = whole.slice();
  damaged[whole.length >> 1] ^= 1;
  await refused("BundleError", /./, async () => {
    const vae = await load(damaged)();
    const report = await vae.verify();
    if (!report.passed) throw new vr.BundleError("found by verify");
  });
  const entries = entriesOf(whole);
  const other = (change, sums = true) => {
    const copy = new Map(entries);
    change(copy);
    return zipped(copy, sums);
  };
  await load(await other(() => {}))();
  await refused("BundleError", /expected the SHA-256/, load(await other((files) => files.set("decoder/fp32/model.onnx", new Uint8Array(9)), false)));
  await refused("BundleError", /expected an ONNX graph|a known field/, load(await other((files) => files.set("decoder/fp32/model.onnx", new Uint8Array(9).fill(255)))));
  await refused("BundleError", /paths of names/, load(await other((files) => files.set("../x", new Uint8Array(1)))));
  await refused("BundleError", /differ by more than case/, load(await other((files) => files.set("readme.md", new Uint8Array(1)))));
  const graph = entries.get("decoder/fp32/model.onnx");
  const loop = Uint8Array.from(graph);
  loop.set(new TextEncoder().encode("Loop"), new TextDecoder("latin1").decode(graph).indexOf("Tanh"));
  await refused("BundleError", /node \d+ \("Loop" .*expected an operator that is allowed/, load(await other((files) => files.set("decoder/fp32/model.onnx", loop))));
  // ONNX Runtime can read its options from this entry of metadata (field 14 of the model), in any case of letters.
  const options = [10, 10, ...new TextEncoder().encode("ORT_config"), 18, 2, ...new TextEncoder().encode("{}")];
  const configured = Uint8Array.from([...graph, 114, options.length, ...options]);
  await refused("BundleError", /metadata without options of ONNX Runtime/, load(await other((files) => files.set("decoder/fp32/model.onnx", configured))));
  for (const change of [(lines) => [lines[0], ...lines], (lines) => [...lines].reverse()]) {
    const lines = new TextDecoder().decode(entries.get("SHA256SUMS")).trim().split("\n");
    const sums = new TextEncoder().encode(`${change(lines).join("\n")}\n`);
    await refused("BundleError", /expected paths in order, each once/, load(await other((files) => files.set("SHA256SUMS", sums), false)));
  }
  // The type of a file is in the upper bits of the attributes of its entry in the directory: 0xa for a link.
  const link = whole.slice();
  link[new DataView(whole.buffer, whole.byteOffset).getUint32(whole.length - 6, true) + 41] = 0xa0;
  await refused("BundleError", /a plain file, got a link, a folder or the like/, load(link));
  const report = await (await load(await other((files) => files.set("extra.txt", new Uint8Array(3))))()).verify();
  equal(report.passed, true, "a further file that is listed");
};

tests["verify tells which check failed"] = async (host) => {
  const { vr, ort } = host;
  const sound = await altered(host, () => {});
  equal((await vr.verify(sound, { ort })).passed, true);
  const tight = await altered(host, (manifest) => {
    const { vae } = manifest.components.decoder.variants.fp32.additional_metadata;
    vae.error = { x: 0 };
  });
  const report = await vr.verify(tight, { ort });
  const failed = report.checks.filter((check) => check.passed === false).map((check) => check.what);
  equal([report.passed, failed], [false, ["decoder/fp32 x"]]);
  equal(/FAILED  decoder\/fp32 x/.test(String(report)), true);
  const swapped = await altered(host, (manifest) => {
    const { posterior } = vaeOf(manifest).latents[0];
    [posterior.std, posterior.logvar] = [posterior.logvar, posterior.std];
  });
  const { checks } = await vr.verify(swapped, { ort });
  equal(checks.some(({ what, passed, detail }) => what === "golden vectors" && passed === false && /roles/.test(detail)), true);
};

tests["a packed bundle may lack its encoder"] = async (host) => {
  const { vr, ort } = host;
  const bundle = await altered(host, (manifest) => {
    delete manifest.components.encoder;
    vaeOf(manifest).packed_from = `sha256:${"1".repeat(64)}`;
  });
  const vae = await vr.load(bundle, { ort });
  equal((await vae.sample(1, { seed: 1 })).shape, [1, 6]);
  await refused("BundleError", /the encoder was left out in packing; use the original, sha256:1/, () => vae.encode(array(Array(6).fill(0), [1, 6])));
  equal((await vae.verify()).passed, true);
};

tests["chunks of latents give the undivided answer"] = async ({ vr, ort, source }) => {
  const vae = await vr.load(source("conformance/bundles/stream"), { ort });
  const options = { conditions: { speaker: 1 } };
  const z = { data: Float32Array.from({ length: 16 }, (_, index) => Math.sin(index)), shape: [1, 2, 8] };
  const part = (first, last) => ({
    data: Float32Array.of(...z.data.subarray(first, last), ...z.data.subarray(8 + first, 8 + last)), shape: [1, 2, last - first],
  });
  const whole = await vae.decode(z, options);
  async function* arriving(borders) {
    for (let index = 1; index < borders.length; index++) yield part(borders[index - 1], borders[index]);
  }
  const streams = [[0, 8], [0, 1, 2, 3, 8], [0, 5, 8]].map((borders) => vae.decodeStream(arriving(borders), options));
  const numbers = streams.map(() => []);
  // Each goes on beside the others.
  for (let turn = 0; turn < 4; turn++) {
    for (const [index, stream] of streams.entries()) {
      const { value } = await stream.next();
      if (value) numbers[index].push(...value.data);
    }
  }
  for (const each of numbers) {
    equal(each.length, 32);
    equal(each.every((value, index) => Math.abs(value - whole.data[index]) < 1e-6), true);
  }
  const first = (chunks, given = options) => async () => {
    for await (const _ of vae.decodeStream(chunks, given));
  };
  const two = { data: new Float32Array(8), shape: [2, 2, 2] };
  await refused("InputError", /chunks\[1\]: expected 1 rows as in the first chunk, got 2/, first([part(0, 1), two]));
  await refused("InputError", /conditions: expected speaker/, first([part(0, 1)], {}));
  const ahead = await vr.load(source("conformance/bundles/dynamic"), { ort });
  await refused("InputError", /expected a causal decoder, .*looks 1 value ahead/, async () => ahead.decodeStream([]));
  for (const chunks of [part(0, 1), 5, null]) {
    await refused("InputError", /chunks: expected an iterable of latents, .*give \[z\] for one chunk/, async () => vae.decodeStream(chunks, options));
  }
  // What was closed between two chunks is loaded again, and the stream goes on where it was.
  const stream = vae.decodeStream([part(0, 3), part(3, 8)], options);
  const before = await stream.next();
  const pending = stream.next();
  await vae.close();
  const after = [...before.value.data, ...(await pending).value.data];
  equal(after.every((value, index) => Math.abs(value - whole.data[index]) < 1e-6), true);
  const again = vae.decodeStream([part(0, 3), part(3, 8)], options);
  await again.next();
  await vae.close();
  const rest = (await again.next()).value.data;
  equal(rest.every((value, index) => Math.abs(value - whole.data[12 + index]) < 1e-6), true);
  const { checks } = await vae.verify();
  equal(checks.map(({ what, passed }) => passed && what).includes("decoder/fp32 stream x"), true);
};
