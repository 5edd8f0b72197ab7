// What the JavaScript package answers to a request: shared by the drivers of Node and of Chromium; README.md has the protocol.

const TYPES = { float32: Float32Array, int64: BigInt64Array, uint32: Uint32Array };

function packed({ data, shape }) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  const dtype = Object.keys(TYPES).find((name) => data instanceof TYPES[name]);
  return { dtype, shape, base64: btoa(text) };
}

function array({ dtype, shape, base64 }) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return { data: new TYPES[dtype](bytes.buffer), shape };
}

/** Chunks of these lengths along the last axis. */
function divided({ data, shape }, lengths) {
  const length = shape.at(-1);
  let start = 0;
  return lengths.map((size) => {
    const first = start;
    start += size;
    const part = data.filter((_, index) => index % length >= first && index % length < first + size);
    return { data: part, shape: [...shape.slice(0, -1), size] };
  });
}

const mapped = (object, change) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));

/** Answers requests: `vr` is the package, `ort` ONNX Runtime, and `source` gives what to load for a request's path. */
export function answerer(vr, ort, device, source) {
  const loaded = (request) => vr.load(source(request.path), { ort, device, variant: request.variant });
  const drawn = ({ seed, start, ...more }) => ({
    seed: BigInt(seed), start: BigInt(start), ...("temperature" in more ? { temperature: more.temperature } : {}),
  });
  const single = ({ manifest }, z) => ("data" in z ? { [manifest.latents[0].name]: z } : z);

  const conditions = (request) => mapped(request.conditions, (value) => (typeof value === "string" ? value : array(value)));
  const options = (request) => ({ conditions: conditions(request), ...("seed" in request ? drawn(request) : {}) });

  function draw({ ask, seed, start, n, shape, stream, truncation }) {
    const options = ask === "normal" ? { stream, truncation } : { stream };
    return { values: packed(vr.noise[ask](BigInt(seed), BigInt(start), n, shape, options)) };
  }

  function part(q) {
    if (q instanceof vr.Encoding) return { values: packed(q.mode()) };
    return { mean: packed(q.mean), std: packed(q.std), logvar: packed(q.logvar) };
  }

  const asks = {
    words: draw,
    uniform: draw,
    normal: draw,
    async prior(request) {
      const vae = await loaded(request);
      const z = await vae.prior(request.n, { ...drawn(request), truncation: request.truncation });
      return mapped(single(vae, z), packed);
    },
    reparameterize(request) {
      const [mean, std] = [array(request.mean), array(request.std)];
      const logvar = { data: new Float32Array(mean.data.length), shape: mean.shape };
      return { values: packed(new vr.Posterior(mean, std, logvar, request.latent).sample(drawn(request))) };
    },
    async decode(request) {
      const vae = await loaded(request);
      const latents = mapped(request.latents, array);
      const z = vae.manifest.latents.length > 1 ? latents : Object.values(latents)[0];
      return { values: packed(await vae.decode(z, options(request))) };
    },
    async decode_stream(request) {
      const vae = await loaded(request);
      const [z] = Object.values(request.latents).map(array);
      const answers = [];
      const chunks = divided(z, request.chunks);
      for await (const x of vae.decodeStream(chunks, { conditions: conditions(request) })) answers.push(packed(x));
      return { ...answers };
    },
    async encode(request) {
      const q = await (await loaded(request)).encode(array(request.x), options(request));
      if (!(q instanceof vr.Posteriors)) return part(q);
      const parts = Object.entries(q.parts).map(([name, each]) =>
        Object.entries(part(each)).map(([key, tensor]) => [`${name}/${key}`, tensor]),
      );
      return Object.fromEntries(parts.flat());
    },
    async verify(request) {
      return { passed: (await vr.verify(source(request.path), { ort, device })).passed };
    },
    async load(request) {
      const { info } = await loaded(request);
      return {
        name: info.name,
        latents: Object.fromEntries(info.latents.map((latent) => [latent.name, latent.shape])),
        observation: info.observation.shape,
        variants: [...info.variants].sort(),
      };
    },
  };
  const kinds = { BundleError: "bundle", InputError: "input", DeviceError: "device" };

  return async (request) => {
    const ask = Object.hasOwn(asks, request.ask) ? asks[request.ask] : null;
    if (!ask) return { id: request.id, unsupported: `unknown request ${request.ask}` };
    try {
      return { id: request.id, answer: await ask(request) };
    } catch (error) {
      const kind = Object.keys(kinds).find((name) => error instanceof vr[name]);
      if (!kind) throw error;
      return { id: request.id, refused: kinds[kind], why: error.message };
    }
  };
}
