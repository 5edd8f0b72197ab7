/** What is on screen as code: the lines of Python, JavaScript and C that compute it. */
import { type Source, unravelled } from "./app.js";
import { FRAMES, type Interpolation } from "./interpolate.js";
import { firstByte } from "./npy.js";
import { shortest } from "./numbers.js";
import type { About, LatentInfo } from "./protocol.js";
import type { Address, State } from "./state.js";

// For languages that do not open a URL.
const COPY = "Make a copy: vae-runtime pack URL --digest DIGEST --out bundle.zip";

/** What the lines compute. */
export type Subject = "sample" | "sheet" | "interpolation" | "input";
/** The file of the input, as the page saves it. */
export const INPUT_FILE = "input.npy";

export type Language = "python" | "javascript" | "c";

/** What the writers know. */
export interface Scene {
  about: About;
  state: State;
  source: Source;
  interpolation: Interpolation;
}

interface Change {
  latent: LatentInfo;
  indices: number[];
  flat: number;
  value: string;
}

function changesOf({ about, state }: Scene): Change[] {
  return [...state.edits].sort(([a], [b]) => a - b).map(([place, value]) => {
    const latent = about.latents.find(({ first, size }) => place >= first && place < first + size)!;
    const flat = place - latent.first;
    return { latent, flat, indices: unravelled(flat, latent.shape), value: shortest(value) };
  });
}

/** The lines. */
export function codeOf(language: Language, subject: Subject, scene: Scene): string {
  return { python, javascript, c }[language](subject, scene).join("\n") + "\n";
}

/** A string literal; those of Python, JavaScript and C agree on these escapes, apart from Unicode's. */
function quoted(text: string, language: Language): string {
  let result = "";
  for (const character of text) {
    const code = character.codePointAt(0)!;
    // Two of C's question marks in a row begin a trigraph, one of which is a backslash.
    if (character === '"' || character === "\\" || (character === "?" && language === "c")) result += `\\${character}`;
    else if (code >= 32 && code < 127) result += character;
    else if (language === "c") result += [...new TextEncoder().encode(character)].map((byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("");
    else if (language === "javascript") result += code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, "0")}`;
    else result += code > 0xffff ? `\\U${code.toString(16).padStart(8, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  }
  return `"${result}"`;
}

/** Numbers as a nested list of Python; floats are written as such, since integers are refused for them. */
function nested(numbers: readonly number[], shape: readonly number[], isFloat: boolean): string {
  const number = shortest(numbers[0]);
  if (!shape.length) return isFloat && !/[.e]/.test(number) ? `${number}.0` : number;
  const size = numbers.length / shape[0];
  const rows = Array.from({ length: shape[0] }, (_, row) =>
    nested(numbers.slice(row * size, (row + 1) * size), shape.slice(1), isFloat));
  return `[${rows.join(", ")}]`;
}

function valueOf(scene: Scene, number: number): number[] {
  const { name, shape } = scene.about.conditions[number];
  const value = scene.state.conditions[name] as number[];
  return value.length === 1 ? new Array<number>(shape.reduce((all, each) => all * each, 1)).fill(value[0]) : value;
}

// Python.

function python(subject: Subject, scene: Scene): string[] {
  const { about, state, source } = scene;
  const text = (value: string) => quoted(value, "python");
  const variant = state.variant === null ? "" : `, variant=${text(state.variant)}`;
  const digest = source.digest === null ? "" : `, digest=${text(source.digest)}`;
  const lines = ["import vae_runtime", "", `vae = vae_runtime.load(${text(source.place)}${digest}${variant})`];
  const draw = ({ seed, index, temperature, truncation }: Address) =>
    `seed=${seed}, start=${index}` +
    `${temperature === 1 ? "" : `, temperature=${temperature}`}${truncation === null ? "" : `, truncation=${truncation}`}`;
  const conditions = (n: number) => {
    if (!about.conditions.length) return "";
    const values = about.conditions.map(({ name, classes, shape, dtype }, number) => {
      if (classes) return `${text(name)}: ${text(state.conditions[name] as string)}`;
      const row = nested(valueOf(scene, number), shape, dtype === "float32");
      return `${text(name)}: ${shape.length ? `np.full((${[n, ...shape].join(", ")}), ${row}, np.${dtype})` : row}`;
    });
    return `, conditions={${values.join(", ")}}`;
  };
  const isNumeric = about.conditions.some(({ classes, shape }) => !classes && shape.length);
  if (subject === "sheet") {
    lines.push(`x = vae.sample(${state.count}, ${draw(sheetAddress(state))}${conditions(state.count)})`);
  } else if (subject === "interpolation") {
    const { from, to, spherical } = scene.interpolation;
    const path = (a: string, b: string) => `vae_runtime.interpolate(${a}[0], ${b}[0], ${FRAMES}${spherical ? "" : ", spherical=False"})`;
    lines.push(`a = vae.prior(1, ${draw(state.kept[from])})`, `b = vae.prior(1, ${draw(state.kept[to])})`);
    lines.push(about.latents.length > 1 ? `z = {name: ${path("a[name]", "b[name]")} for name in a}` : `z = ${path("a", "b")}`);
    lines.push(`x = vae.decode(z${conditions(FRAMES)})`);
  } else if (subject === "input") {
    lines.unshift("import numpy as np");
    lines.push(`x = np.load("${INPUT_FILE}")  # Save .npy, under Input`, `q = vae.encode(x${conditions(1)})`);
    if (!about.noDecoder) lines.push(`y = vae.reconstruct(x${conditions(1)})`, `s = vae.score(x, seed=0${conditions(1)})`);
  } else if (state.at && !state.edits.size) {
    lines.push(`x = vae.sample(1, ${draw(state.at)}${conditions(1)})`);
  } else {
    const isSeveral = about.latents.length > 1;
    const zeros = ({ shape }: LatentInfo) => `np.zeros((${[1, ...shape].join(", ")}${shape.length ? "" : ","}), np.float32)`;
    if (state.at) lines.push(`z = vae.prior(1, ${draw(state.at)})`);
    else if (isSeveral) lines.push(`z = {${about.latents.map((latent) => `${text(latent.name)}: ${zeros(latent)}`).join(", ")}}`);
    else lines.push(`z = ${zeros(about.latents[0])}`);
    if (!state.at) lines.unshift("import numpy as np");
    for (const latent of about.latents) {
      const own = changesOf(scene).filter((change) => change.latent === latent);
      const z = isSeveral ? `z[${text(latent.name)}]` : "z";
      if (own.length === latent.size && own.length > 1) {
        const flat = `[${own.map(({ value }) => value).join(", ")}]`;
        lines.push(latent.shape.length === 1 ? `${z}[0] = ${flat}` : `${z}.reshape(-1)[:] = ${flat}`);
      } else lines.push(...own.map(({ indices, value }) => `${z}[${[0, ...indices].join(", ")}] = ${value}`));
    }
    lines.push(`x = vae.decode(z${conditions(1)})`);
  }
  if (isNumeric && lines[0] !== "import numpy as np") lines.unshift("import numpy as np");
  return lines;
}

function sheetAddress({ seed, start, temperature, truncation }: State): Address {
  return { seed, index: start, temperature, truncation };
}

// JavaScript.

function javascript(subject: Subject, scene: Scene): string[] {
  const { about, state, source } = scene;
  const text = (value: string) => quoted(value, "javascript");
  const variant = state.variant === null ? "" : `, variant: ${text(state.variant)}`;
  const lines = [
    'import * as ort from "onnxruntime-node"; // in a page: "onnxruntime-web"',
    'import { load } from "vae-runtime";',
    "",
  ];
  if (source.digest === null || /^https?:/i.test(source.place)) {
    const digest = source.digest === null ? "" : `, digest: ${text(source.digest)}`;
    lines.push(`const vae = await load(${text(source.place)}, { ort${digest}${variant} });`);
  } else lines.push(`// JavaScript opens no such URL. ${COPY}`, `const vae = await load("bundle.zip", { ort${variant} });`);
  const draw = ({ seed, index, temperature, truncation }: Address) =>
    `seed: ${seed}n, start: ${index}n` +
    `${temperature === 1 ? "" : `, temperature: ${temperature}`}${truncation === null ? "" : `, truncation: ${truncation}`}`;
  const conditions = (n: number) => {
    if (!about.conditions.length) return "";
    const values = about.conditions.map(({ name, classes, shape, dtype }, number) => {
      if (classes) return `${text(name)}: ${text(state.conditions[name] as string)}`;
      const row = valueOf(scene, number);
      if (!shape.length) return `${text(name)}: ${shortest(row[0])}`;
      const all = dtype === "int64"
        ? `BigInt64Array.from({ length: ${n * row.length} }, (_, i) => [${row.map((each) => `${each}n`).join(", ")}][i % ${row.length}])`
        : `Float32Array.from({ length: ${n * row.length} }, (_, i) => [${row.map(shortest).join(", ")}][i % ${row.length}])`;
      return `${text(name)}: { data: ${all}, shape: [${[n, ...shape].join(", ")}] }`;
    });
    return `conditions: { ${values.join(", ")} }`;
  };
  const options = (...parts: string[]) => {
    const known = parts.filter(Boolean);
    return known.length ? `, { ${known.join(", ")} }` : "";
  };
  if (subject === "sheet") {
    lines.push(`const x = await vae.sample(${state.count}${options(draw(sheetAddress(state)), conditions(state.count))});`);
  } else if (subject === "interpolation") {
    const { from, to, spherical } = scene.interpolation;
    lines[1] = 'import { interpolate, load } from "vae-runtime";';
    lines.push("const one = ({ data, shape }) => ({ data, shape: shape.slice(1) });");
    [from, to].forEach((end, index) => lines.push(`const ${"ab"[index]} = await vae.prior(1${options(draw(state.kept[end]))});`));
    const path = (a: string, b: string) => `interpolate(one(${a}), one(${b}), ${FRAMES}${options(spherical ? "" : "spherical: false")})`;
    if (about.latents.length > 1) lines.push(`const z = Object.fromEntries(Object.keys(a).map((name) => [name, ${path("a[name]", "b[name]")}]));`);
    else lines.push(`const z = ${path("a", "b")};`);
    lines.push(`const x = await vae.decode(z${options(conditions(FRAMES))});`);
  } else if (subject === "input") {
    const { shape } = about.observation;
    lines.unshift('import { readFileSync } from "node:fs";');
    lines.push(`const file = new Uint8Array(readFileSync("${INPUT_FILE}")); // Save .npy, under Input`,
      `const x = { data: new Float32Array(file.buffer, ${firstByte([1, ...shape])}), shape: [${[1, ...shape].join(", ")}] };`,
      `const q = await vae.encode(x${options(conditions(1))});`);
    if (!about.noDecoder) lines.push(`const y = await vae.reconstruct(x${options(conditions(1))});`, `const s = await vae.score(x${options("seed: 0", conditions(1))});`);
  } else if (state.at && !state.edits.size) {
    lines.push(`const x = await vae.sample(1${options(draw(state.at), conditions(1))});`);
  } else {
    const isSeveral = about.latents.length > 1;
    const zeros = ({ shape, size }: LatentInfo) => `{ data: new Float32Array(${size}), shape: [${[1, ...shape].join(", ")}] }`;
    if (state.at) lines.push(`const z = await vae.prior(1${options(draw(state.at))});`);
    else if (isSeveral) lines.push(`const z = { ${about.latents.map((latent) => `${text(latent.name)}: ${zeros(latent)}`).join(", ")} };`);
    else lines.push(`const z = ${zeros(about.latents[0])};`);
    for (const latent of about.latents) {
      const own = changesOf(scene).filter((change) => change.latent === latent);
      const data = isSeveral ? `z[${text(latent.name)}].data` : "z.data";
      if (own.length === latent.size && own.length > 1) lines.push(`${data}.set([${own.map(({ value }) => value).join(", ")}]);`);
      else lines.push(...own.map(({ flat, value }) => `${data}[${flat}] = ${value};`));
    }
    lines.push(`const x = await vae.decode(z${options(conditions(1))});`);
  }
  return lines;
}

// C.

function cInteger(value: bigint): string {
  return value < 0n ? `(uint64_t)${value === -(2n ** 63n) ? "INT64_MIN" : `INT64_C(${value})`}` : value < 2n ** 31n ? String(value) : `UINT64_C(${value})`;
}

function cNumber(value: string): string {
  return `${/[.e]/.test(value) ? value : `${value}.0`}f`;
}

function c(subject: Subject, scene: Scene): string[] {
  const { about, state, source } = scene;
  const text = (value: string) => quoted(value, "c");
  const n = subject === "sheet" ? state.count : 1;
  const lines = [
    "// cc app.c $(pkg-config --cflags --libs vae_runtime)",
    '#include "vae_runtime.h"', "#include <stdio.h>", "#include <stdlib.h>", "",
    "static void check(vae_status status) {",
    "    if (status != VAE_OK) {", '        fprintf(stderr, "%s\\n", vae_last_error());', "        exit(1);", "    }", "}", "",
    "int main(void) {",
  ];
  if (subject === "input" && about.noDecoder) return ["// vae_encode gives the latent; vae_runtime.h describes it."];
  if (subject === "interpolation") return ["// The C library interpolates nothing: compute the latents between a and b, then vae_decode."];
  const address = subject === "input" ? null : subject === "sheet" ? sheetAddress(state) : state.at;
  lines.push("    vae_options options = VAE_OPTIONS_INIT;");
  if (state.variant !== null) lines.push(`    options.variant = ${text(state.variant)};`);
  if (source.digest !== null) lines.push(`    // C opens no URLs. ${COPY}`);
  lines.push("    vae *v;", `    check(vae_open(${source.digest === null ? text(source.place) : '"bundle.zip"'}, &options, &v));`);
  const fields: string[] = [];
  if (address) {
    const { seed, index, temperature, truncation } = address;
    fields.push(`.seed = ${cInteger(seed)}`, `.start = ${cInteger(index)}`);
    if (temperature !== 1) fields.push(`.temperature = ${temperature === 0 ? "VAE_COLD" : temperature}`);
    if (truncation !== null) fields.push(`.truncation = ${truncation}`);
  }
  if (about.conditions.length) {
    const values = about.conditions.map(({ name, classes, dtype }, number) => {
      if (classes) return `{.name = ${text(name)}, .class_name = ${text(state.conditions[name] as string)}}`;
      const row = valueOf(scene, number);
      const [type, member, form] = dtype === "int64" ? ["int64_t", "integers", String] : ["float", "floats", (each: number) => cNumber(shortest(each))];
      const all = Array.from({ length: row.length === 1 ? 1 : n }, () => row).flat();
      return `{.name = ${text(name)}, .${member} = (${type}[]){${all.map((each) => (form as (value: number) => string)(each)).join(", ")}}, .count = ${all.length}}`;
    });
    lines.push(`    vae_array conditions[] = {${values.join(", ")}};`);
    fields.push(".conditions = conditions", `.condition_count = ${values.length}`);
  }
  lines.push(fields.length ? `    vae_draw draw = {${fields.join(", ")}};` : "    vae_draw draw = {0};");
  lines.push(`    size_t count = ${n} * vae_info(v)->output.count;`, "    float *x = malloc(count * sizeof *x);");
  if (subject === "input") {
    const { shape } = about.observation;
    const size = shape.reduce((all, each) => all * each, 1);
    lines.push(`    static float own[${size}];`, `    FILE *file = fopen("${INPUT_FILE}", "rb"); // Save .npy, under Input`,
      `    if (!file || fseek(file, ${firstByte([1, ...shape])}, SEEK_SET) || fread(own, sizeof *own, ${size}, file) != ${size}) {`,
      `        fprintf(stderr, "${INPUT_FILE}: expected ${size} numbers\\n");`, "        return 1;", "    }", "    fclose(file);",
      `    check(vae_reconstruct(v, 1, &(vae_array){.floats = own, .count = ${size}}, &draw, x, count));`);
  } else if (subject === "sheet" || (state.at && !state.edits.size)) lines.push(`    check(vae_sample(v, ${n}, &draw, x, count));`);
  else {
    const arrays = about.latents.map((latent, number) => {
      const own = changesOf(scene).filter((change) => change.latent === latent);
      lines.push(`    static float z${number}[${latent.size}];`);
      if (state.at) lines.push(`    check(vae_prior(v, ${text(latent.name)}, 1, &draw, z${number}, ${latent.size}));`);
      lines.push(...own.map(({ flat, value }) => `    z${number}[${flat}] = ${cNumber(value)};`));
      return `{.name = ${text(latent.name)}, .floats = z${number}, .count = ${latent.size}}`;
    });
    lines.push(`    vae_array z[] = {${arrays.join(", ")}};`, `    check(vae_decode(v, 1, z, ${arrays.length}, &draw, x, count));`);
  }
  lines.push('    printf("%zu numbers\\n", count); // in x');
  lines.push("    free(x);", "    vae_close(v);", "    return 0;", "}");
  return lines;
}
