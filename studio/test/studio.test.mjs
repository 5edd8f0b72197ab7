// The page in headless Chromium, held against Python: `node --test studio/test/`.
import assert from "node:assert/strict";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { after, before } from "node:test";

import {
  browser, compiled, hasC, numbersOf, numbersOfNode, opened, pixels, plainServer, python, root, saved, sheetPixels, skip, studio, temporary,
} from "./shared.mjs";

const TOLERANCE = 2e-5;
let chromium;
let context;
const servers = new Map();

async function addressOf(bundle) {
  if (!servers.has(bundle)) servers.set(bundle, await studio(bundle));
  return servers.get(bundle).url;
}

const open = async (bundle, hash) => opened(context, await addressOf(bundle), hash);
const cells = (page) => page.locator("#samples .cells:not(.kept) button.cell");
const hash = async (page) => page.evaluate(() => new Promise((done) => setTimeout(() => done(location.hash), 200)));
const code = (page) => page.textContent("#code");

/** Wait until what `look` gives is no longer `old`. */
async function changed(page, look, old) {
  for (let turn = 0; turn < 300; turn++) {
    const now = await look();
    if (JSON.stringify(now) !== JSON.stringify(old)) return now;
    await page.waitForTimeout(100);
  }
  throw new Error("expected a change, got none in thirty seconds");
}

/** Wait until `look` holds. */
async function holds(page, look, what) {
  for (let turn = 0; turn < 300; turn++) {
    if (await look()) return;
    await page.waitForTimeout(100);
  }
  throw new Error(`expected ${what}, got none in thirty seconds`);
}

/** Pixels are Python's: a level may differ by one, and only where Python's own value lies at the edge between two. */
function assertPixels(levels, values, tolerance = TOLERANCE) {
  assert.equal(levels.length, values.length);
  let differing = 0;
  levels.forEach((level, at) => {
    const exact = Math.min(1, Math.max(0, values[at])) * 255;
    assert.ok(Math.abs(level - exact) <= 0.5 + tolerance * 255, `pixel ${at}: ${level} is not the level of ${exact}`);
    differing += level === Math.round(exact) ? 0 : 1;
  });
  return differing;
}

function assertNear(a, b, tolerance = TOLERANCE) {
  assert.equal(a.length, b.length);
  a.forEach((each, at) => assert.ok(Math.abs(each - b[at]) <= tolerance, `number ${at}: ${each}, ${b[at]}`));
}

function red({ data }) {
  return Array.from({ length: data.length / 4 }, (_, at) => data[4 * at]);
}

async function npyOf(page, selector) {
  const bytes = readFileSync((await saved(page, selector)).path);
  const first = 10 + bytes.readUInt16LE(8);
  return [...new Float32Array(bytes.buffer.slice(bytes.byteOffset + first, bytes.byteOffset + bytes.length))];
}

before(async () => {
  if (skip) return;
  chromium = await browser();
  context = await chromium.newContext({ viewport: { width: 1280, height: 900 }, acceptDownloads: true });
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
});

after(async () => {
  await chromium?.close();
  for (const server of servers.values()) assert.equal(await server.close(), 0);
});

test("the sheet has Python's pixels, and the page says so", { skip }, async () => {
  const page = await open("models/mnist");
  assert.match(await page.textContent("#badge"), /^Verified here: worst difference \d/);
  await page.click("#badge");
  const rows = await page.locator(".report tbody tr").allTextContents();
  assert.ok(rows.some((row) => row.includes("decoder/fp32") && row.includes("ok")));
  await page.click("#badge");
  assert.equal(await cells(page).count(), 36);
  const { data } = numbersOf('import vae_runtime\nx = vae_runtime.load("models/mnist").sample(36, seed=7)');
  const levels = await sheetPixels(page);
  const differing = assertPixels(levels, data);
  assert.ok(differing <= 3, `${differing} of ${levels.length} pixels`);
  assert.throws(() => assertPixels(levels, numbersOf('import vae_runtime\nx = vae_runtime.load("models/mnist").sample(36, seed=8)').data));
  assert.deepEqual(page.problems, []);

  const folder = temporary();
  python("-m", "vae_runtime", "sample", "models/mnist", "-n", "36", "--seed", "7", "--out", join(folder, "python.png"));
  const picture = await saved(page, "#save-sheet-png");
  assert.equal(picture.name, "samples-7-0-36.png");
  const script = `
import sys, numpy as np
from PIL import Image
a, b = (np.asarray(Image.open(path).convert("L")).astype(int) for path in sys.argv[1:])
assert a.shape == b.shape, (a.shape, b.shape)
print(np.abs(a - b).max(), (a != b).mean())`;
  const [most, share] = python("-c", script, picture.path, join(folder, "python.png")).split(" ").map(Number);
  assert.ok(most <= 1 && share < 1e-4, `${most}, ${share}`);
  assertNear(await npyOf(page, "#save-sheet-npy"), data);
  await page.close();
});

test("each control of the sheet changes what it should", { skip }, async () => {
  const page = await open("models/digits-conditional");
  let levels = await sheetPixels(page);
  for (const [id, value, part] of [
    ["seed", "-5", "seed=-5"], ["start", "1000", "start=1000"], ["temperature", "0.5", "temperature=0.5"], ["truncation", "0.75", "truncation=0.75"],
  ]) {
    await page.fill(`#${id}`, value);
    levels = await changed(page, () => sheetPixels(page), levels);
    assert.ok((await hash(page)).includes(part), part);
  }
  await page.selectOption("#condition-0", "seven");
  levels = await changed(page, () => sheetPixels(page), levels);
  await page.selectOption("#variant", "int8");
  levels = await changed(page, () => sheetPixels(page), levels);
  await page.fill("#count", "5");
  await holds(page, async () => (await page.locator("#samples .cells:not(.kept) canvas").count()) === 5, "five samples");
  await page.waitForSelector('#samples .cells[aria-busy="false"]');
  assert.match(await cells(page).nth(2).getAttribute("aria-label"), /^seed -5, index 1002, temperature 0.5, truncation 0.75$/);
  await page.selectOption("#code-subject", "sheet");
  const lines = await code(page);
  assert.match(lines, /variant="int8"[^]*sample\(5, seed=-5, start=1000, temperature=0.5, truncation=0.75, conditions=\{"label": "seven"\}\)/);
  // The int8 graph has its own tolerance.
  assertPixels(await sheetPixels(page), numbersOf(lines).data, 0.02);
  const before = await hash(page);
  await page.fill("#seed", "many");
  assert.equal(await page.getAttribute("#seed", "aria-invalid"), "true");
  assert.match(await page.textContent("#status"), /Seed: expected an integer .* got many/);
  assert.equal(await hash(page), before);
  await page.click("#new-seed");
  assert.notEqual(await changed(page, () => hash(page), before), before);
  await page.close();
});

test("sliders, map and traversal change the latent, and code and link repeat it", { skip }, async () => {
  const page = await open("models/digits-conditional");
  await cells(page).nth(3).click();
  await holds(page, async () => (await page.textContent("#address")) === "seed 7, index 3", "the address");
  let shown = await pixels(page, "#portrait");
  const portrait = async () => (shown = await changed(page, () => pixels(page, "#portrait"), shown));
  await page.locator("#z-1").fill("1.5");
  await portrait();
  assert.match(await code(page), /z\[0, 1\] = 1\.5\n/);
  assert.match(await page.textContent("#address"), /1 of 8 numbers changed/);

  await page.locator("#axis-x").selectOption("7");
  await page.locator("#axis-y").selectOption("2");
  await page.waitForSelector("#map[data-cells]");
  const box = await page.locator("#map").boundingBox();
  await page.mouse.move(box.x + box.width * 0.5, box.y + box.height * 0.5);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.75, box.y + box.height * 0.25, { steps: 4 });
  await page.mouse.up();
  await portrait();
  assert.match(await code(page), /z\[0, 2\] = 1\.5\nz\[0, 7\] = 1\.5\n/);

  const cell = page.locator('.traversal button[title="z[3] = -3"], .traversal button[title="z[0] = -3"]').first();
  const name = await cell.getAttribute("title");
  await cell.click();
  await portrait();
  assert.ok((await code(page)).includes(`z[0, ${name[2]}] = -3\n`));

  await page.waitForTimeout(300);
  shown = await pixels(page, "#portrait");
  const values = await npyOf(page, "#save-point-npy");
  const lines = numbersOf(await code(page));
  assertNear(values, lines.data);
  assertPixels(red(shown), lines.data);
  await page.click("#code-javascript");
  assertNear(numbersOfNode(await code(page)).data, lines.data);
  await page.click("#code-c");
  assert.match(await code(page), /vae_prior\(v, "z", 1, &draw, z0, 8\)[^]*z0\[7\] = 1\.5f;[^]*vae_decode/);
  await page.click("#copy-python");
  assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^import vae_runtime\n[^]*z\[0, 7\] = 1\.5\n/);
  await page.click("#copy-code");
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), await code(page));

  await page.click("#copy-link");
  const link = await page.evaluate(() => navigator.clipboard.readText());
  assert.equal(link, page.url());
  const other = await opened(context, await addressOf("models/digits-conditional"), new URL(link).hash);
  await holds(other, async () => JSON.stringify(await pixels(other, "#portrait")) === JSON.stringify(shown), "the same picture");
  await other.close();

  await page.click("#reset");
  assert.match(await page.textContent("#address"), /^seed 7, index 3$/);
  await page.close();
});

test("the lines of C compile", { skip: skip || (!hasC && "expected a compiler of C, got nothing") }, async () => {
  for (const [bundle, links] of [
    ["models/digits-conditional", ["#seed=-9223372036854775808&n=3", "#at=18446744073709551615:5:0.5:2&condition.label=nine&variant=int8", "#z=1:1e-7,3:-2&temperature=0&at=7:3:0"]],
    ["conformance/bundles/two-latents", ["#z=0:1,4:0.25"]],
  ]) {
    for (const link of links) {
      const page = await open(bundle, link);
      await page.click("#code-c");
      for (const subject of ["sample", "sheet"]) {
        await page.selectOption("#code-subject", subject);
        compiled(await code(page));
      }
      await page.close();
    }
  }
  assert.throws(() => compiled('#include "vae_runtime.h"\nint main(void) { vae_draw draw = {.sead = 7}; return 0; }\n'));
});

test("kept samples interpolate and play", { skip }, async () => {
  const page = await open("models/mnist");
  assert.ok(await page.isHidden("#play"));
  await cells(page).nth(1).click();
  await cells(page).nth(5).click();
  await page.waitForSelector('#frame[data-pair="seed 7, index 1 to seed 7, index 5"]');
  await page.selectOption("#code-subject", "interpolation");
  const lines = numbersOf(await code(page));
  for (const frame of [0, 16, 32]) {
    await page.locator("#scrub").fill(String(frame));
    assertPixels(red(await pixels(page, "#frame")), lines.data.slice(frame * 784, (frame + 1) * 784));
  }
  await page.click("#code-javascript");
  assertNear(numbersOfNode(await code(page)).data, lines.data);
  await page.uncheck("#spherical");
  await holds(page, async () => (await code(page)).includes("spherical: false"), "the straight path");
  await page.locator("#scrub").fill("0");
  await page.click("#play");
  await holds(page, async () => Number(await page.inputValue("#scrub")) > 3, "the player to move");
  await page.click("#play");
  const still = await page.inputValue("#scrub");
  await page.waitForTimeout(300);
  assert.equal(await page.inputValue("#scrub"), still);
  await page.locator(".remove").first().click();
  await holds(page, async () => page.isHidden("#play"), "no interpolation of one sample");
  await page.close();
});

test("an input is reconstructed, scored and placed", { skip }, async () => {
  const page = await open("models/mnist");
  await page.waitForSelector("#map[data-cells]");
  await page.click("#take-point");
  await page.waitForSelector("#input [data-runs='1']");
  const expected = python("-c", `
import json, vae_runtime
vae = vae_runtime.load("models/mnist")
x = vae.sample(1, seed=7)
s = vae.score(x, seed=0)
print(json.dumps([s.elbo[0], s.reconstruction[0], s.kl[0], s.mse[0], vae.encode(x).mean[0].tolist(), vae.reconstruct(x).ravel().tolist()]))`);
  const [elbo, likelihood, kl, mse, mean, reconstruction] = JSON.parse(expected);
  const scores = (await page.locator("#scores dd").allTextContents()).map(Number);
  [elbo, likelihood, kl, mse].forEach((each, at) => assert.ok(Math.abs(scores[at] - each) <= Math.abs(each) * 1e-3, `${scores[at]}, ${each}`));
  assert.equal(await page.locator("#kl-bars span").count(), 32);
  assertPixels(red(await pixels(page, "#input figure:nth-child(2) canvas")), reconstruction, 1e-4);
  assert.equal(await page.locator("#map .dot.input").count(), 1);
  await page.click("#visit");
  await holds(page, async () => (await page.textContent("#address")).includes("32 of 32 numbers changed"), "the latent of the input");
  assertNear(await npyOf(page, "#save-latent"), mean, 1e-4);

  const folder = temporary();
  python("-c", `
import sys, numpy as np
from PIL import Image
x = np.zeros((28, 28), np.uint8); x[6:22, 12:16] = 255
Image.fromarray(x).save(sys.argv[1]); np.save(sys.argv[2], (x / 255.0).reshape(1, 1, 28, 28)); np.save(sys.argv[3], np.zeros(5))`,
    join(folder, "one.png"), join(folder, "one.npy"), join(folder, "wrong.npy"));
  await page.setInputFiles("#file", join(folder, "one.png"));
  await page.waitForSelector("#input [data-runs='2']");
  const one = await pixels(page, "#input figure:nth-child(1) canvas");
  assert.deepEqual([...new Set(red(one))].sort(), [0, 255]);
  const first = await page.locator("#scores").textContent();
  await page.setInputFiles("#file", join(folder, "one.npy"));
  await page.waitForSelector("#input [data-runs='3']");
  assert.equal(await page.locator("#scores").textContent(), first);
  await page.selectOption("#code-subject", "input");
  const own = (await saved(page, "#save-input")).path;
  const withOwn = (lines) => lines.replace('"input.npy"', JSON.stringify(own));
  const python_ = withOwn(await code(page));
  const again = numbersOf(`${python_}\nx = y`);
  assertPixels(red(await pixels(page, "#input figure:nth-child(2) canvas")), again.data, 1e-4);
  assert.ok(Math.abs(numbersOf(`${python_}\nx = s.elbo`).data[0] - Number(/ELBO, nats(-?[\d.]+?)log/.exec(first)[1])) < 0.1);
  await page.click("#code-javascript");
  const javascript = withOwn(await code(page)).replace("const x =", "const given =").replaceAll("(x", "(given").replace("const y =", "const x =");
  assertNear(numbersOfNode(javascript).data, again.data, 1e-4);
  await page.click("#code-c");
  assert.match(await code(page), /fseek\(file, 128, SEEK_SET\)[^]*vae_reconstruct/);
  if (hasC) compiled(await code(page));
  await page.setInputFiles("#file", join(folder, "wrong.npy"));
  await holds(page, async () => /expected an array \[1, 28, 28\].* got \[5\]/.test(await page.textContent("#status")), "a refusal");

  await page.locator("#pad").scrollIntoViewIfNeeded();
  const box = await page.locator("#pad").boundingBox();
  await page.mouse.move(box.x + 40, box.y + 40);
  await page.mouse.down();
  await page.mouse.move(box.x + 100, box.y + 100, { steps: 5 });
  await page.mouse.up();
  await holds(page, async () => (await page.locator("#scores").textContent()) !== first, "scores of the drawing");
  assert.deepEqual(page.problems, []);
  await page.close();
});

test("variants stand side by side", { skip }, async () => {
  const page = await open("models/digits");
  await page.click("#compare");
  await page.waitForSelector("#compared figure");
  const texts = await page.locator("#compared figcaption > *").allTextContents();
  const [names, differences, times] = [0, 1, 2].map((part) => texts.filter((_, at) => at % 3 === part));
  assert.deepEqual(names, ["fp32", "fp16", "int8"]);
  assert.ok(times.every((text) => /^[\d.]+ ms$/.test(text)), times);
  const { data } = numbersOf(`
import numpy as np, vae_runtime
a, *others = (vae_runtime.load("models/digits", variant=name).sample(1, seed=7) for name in ("fp32", "fp16", "int8"))
x = np.array([np.abs(a - b).max() for b in others])`);
  assert.equal(differences[0], "the reference");
  const shown = differences.slice(1).map((text) => Number(/^max difference (.+)$/.exec(text)[1]));
  shown.forEach((each, at) => assert.ok(each > 0 && Math.abs(each - data[at]) <= 0.2 * data[at] + 1e-6, `${shown}, ${data}`));
  await page.locator("#z-0").fill("1");
  await holds(page, async () => page.isVisible("text=Compare again."), "that these are old");
  await page.close();
});

test("what a link says is checked", { skip }, async () => {
  const page = await open("models/digits-conditional", "#seed=9&n=100000&condition.label=%3Cb%3E&at=3:1e9&z=99:1&axes=1,1&variant=huge&kept=7:3");
  assert.match(await page.textContent("#status"), /n, condition.label, variant, at, z, axes/);
  assert.equal(await page.inputValue("#seed"), "9");
  assert.equal(await page.locator(".keeper").count(), 1);
  await page.close();
});

test("several latents, vectors and sequences are explored too", { skip }, async () => {
  for (const [bundle, place, line] of [
    ["conformance/bundles/two-latents", 3, 'z["z2"][0, 1] = 0.5'], ["conformance/bundles/dynamic", 5, "z[0, 1, 1] = 0.5"],
    ["conformance/bundles/mixture", 1, "z[0, 1] = 0.5"], ["conformance/bundles/plain.zip", 2, "z[0, 2] = 0.5"], ["conformance/bundles/stream", 1, "z[0, 0, 1] = 0.5"],
    ["conformance/bundles/sphere", 2, "z[0, 2] = 0.5"],
  ]) {
    const page = await open(bundle);
    assert.ok(await page.locator("#portrait.plot").count(), bundle);
    await page.locator(`#z-${place}`).fill("0.5");
    await holds(page, async () => (await code(page)).includes(line), line);
    await page.waitForTimeout(300);
    const lines = numbersOf(await code(page));
    assertNear(await npyOf(page, "#save-point-npy"), lines.data);
    if (bundle.endsWith("dynamic")) {
      // A saved latent is what decode takes.
      const latent = JSON.stringify((await saved(page, "#save-latent")).path);
      const decoded = numbersOf(`import numpy as np, vae_runtime\nx = vae_runtime.load("${bundle}").decode(np.load(${latent}))`);
      assertNear(decoded.data, lines.data);
    }
    await page.click("#code-javascript");
    assertNear(numbersOfNode(await code(page)).data, lines.data);
    assert.deepEqual(page.problems, []);
    await page.close();
  }
});

test("rows of a table have their columns, as Python gives them", { skip }, async () => {
  const modes = { kind: "modes", means: [1.5, -300.25], scales: [0.75, 40] };
  for (const table of [
    [{ name: "age", ...modes, rounding: "nearest" }, { name: "<b>kind</b>", kind: "categories", categories: [null, "<i>a</i>", 7] }],
    [{ name: "income", ...modes }, { name: "rooms", ...modes, rounding: "zero" }],
  ]) {
    const bundle = altered(`vae["table"] = json.loads(r'''${JSON.stringify(table)}''')`, "conformance/bundles/plain");
    const page = await open(bundle);
    const texts = (place, column) => page.locator(`${place} tbody tr > :nth-child(${column})`).allTextContents();
    const rows = JSON.parse(python("-c", `
import json, sys, vae_runtime
vae = vae_runtime.load(sys.argv[1])
columns = vae_runtime.to_table(vae, vae.sample(6, seed=7))
print(json.dumps([[column.tolist()[row] for column in columns.values()] for row in range(6)]))`, bundle));
    const isShown = (text, value) => (Number.isInteger(value) || typeof value !== "number"
      ? text === (value === null ? "missing" : String(value)) : Math.abs(Number(text) - value) <= 5.1e-4 * Math.abs(value));
    const seen = new Set();
    for (const [index, row] of rows.entries()) {
      await cells(page).nth(index).click();
      await holds(page, async () => {
        const shown = await texts("#columns-of-point", 2);
        return (await page.textContent("#address")) === `seed 7, index ${index}` && shown.every((text, at) => isShown(text, row[at]));
      }, `${row}`);
      for (const text of await texts("#columns-of-point", 2)) seen.add(text);
    }
    assert.ok(seen.size > 4, [...seen].join());
    assert.deepEqual(await texts("#columns-of-point", 1), table.map(({ name }) => name));
    await page.click("#take-point");
    await page.waitForSelector("#input [data-runs='1']");
    assert.deepEqual(await texts("#columns-of-input", 2), await texts("#columns-of-point", 2));
    assert.equal((await texts("#columns-of-input", 3)).length, 2);
    assert.deepEqual(page.problems, []);
    await page.close();
  }
  const plain = await open("conformance/bundles/plain");
  assert.equal(await plain.locator("#columns-of-point, .row-of-table").count(), 0);
  await plain.close();
});

/** An input of a bundle that explores nothing has its latent shown, and lines of Python that give the same. */
async function encoded(page, bundle, name, mode) {
  const own = join(temporary(), "x.npy");
  python("-c", `
import sys, numpy as np, vae_runtime
shape = vae_runtime.load(sys.argv[1]).manifest.observation.shape
np.save(sys.argv[2], np.random.default_rng(0).random((1, *shape), np.float32))`, bundle, own);
  await page.setInputFiles("#file", own);
  await page.waitForSelector("#input [data-runs='1']");
  const texts = await page.locator("#scores > *").allTextContents();
  const shown = texts[texts.indexOf(name) + 1].split(", ").map(Number);
  const lines = (await code(page)).replace('"input.npy"', JSON.stringify((await saved(page, "#save-input")).path));
  assertNear(shown, numbersOf(`${lines}\nx = ${mode}.reshape(-1)`).data, 1e-3);
}

test("what a bundle cannot do is said", { skip }, async () => {
  const folder = temporary();
  for (const only of ["encoder", "decoder"]) python("-m", "vae_runtime", "pack", "models/digits", "--only", only, "--out", join(folder, only));
  const codes = await open("conformance/bundles/codes");
  assert.match(await codes.textContent("#limits"), /codes/);
  assert.match(await codes.textContent("#drop"), /\.npy file of shape \[\d+(, \d+)*\] here/);
  await encoded(codes, "conformance/bundles/codes", "codes", "q.value");
  await codes.waitForSelector("#input figure:nth-child(2) canvas", { state: "visible" });
  const alone = await open(join(folder, "decoder"));
  assert.match(await alone.textContent("#input"), /encoder was left out/);
  assert.equal(await cells(alone).count(), 36);
  const blind = await open(join(folder, "encoder"));
  assert.match(await blind.textContent("#limits"), /decoder was left out/);
  assert.match(await blind.textContent("#input"), /makes of an observation: its latent\./);
  await encoded(blind, join(folder, "encoder"), "latent", "q.mean");
  await blind.click("#code-c");
  assert.match(await code(blind), /vae_encode/);
  for (const page of [codes, alone, blind]) {
    assert.deepEqual(page.problems, []);
    await page.close();
  }
});

test("the page works by keyboard", { skip }, async () => {
  const page = await open("models/digits");
  for (let turn = 0; turn < 40; turn++) {
    await page.keyboard.press("Tab");
    if (await page.evaluate(() => document.activeElement.classList.contains("cell"))) break;
  }
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowUp");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Enter");
  await holds(page, async () => (await page.textContent("#address")) === "seed 7, index 2", "the third sample");
  assert.equal(await page.locator(".keeper").count(), 1);
  await page.focus("#map");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Shift+ArrowUp");
  await holds(page, async () => (await page.textContent("#address")).includes("2 of 8 numbers changed"), "a place on the map");
  await page.focus("#z-0");
  const old = await page.inputValue("#z-0");
  await page.keyboard.press("ArrowRight");
  assert.notEqual(await page.inputValue("#z-0"), old);

  const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.id);
  await cells(page).nth(4).click();
  await page.locator(".remove").first().focus();
  await page.keyboard.press("Enter");
  assert.equal(await focused(), "Remove seed 7, index 4");
  await page.keyboard.press("Enter");
  assert.equal(await page.locator(".keeper").count(), 0);
  assert.match(await focused(), /^seed 7, index \d+$/);
  await page.focus("#badge");
  await page.keyboard.press("Enter");
  assert.ok(await page.isVisible(".report"));
  await page.keyboard.press("Escape");
  assert.ok(await page.isHidden(".report"));
  assert.equal(await focused(), "badge");
  await page.evaluate(() => (navigator.clipboard.writeText = () => Promise.reject(new Error("no"))));
  await page.focus("#copy-link");
  await page.keyboard.press("Enter");
  await holds(page, async () => /did not allow copying/.test(await page.textContent("#status")), "a refusal");
  const named = await page.locator("button, select, input, [tabindex='0']").evaluateAll((all) =>
    all.filter((each) => !each.textContent.trim() && !each.getAttribute("aria-label") && !each.closest("label")?.textContent.trim()).map((each) => each.outerHTML));
  assert.deepEqual(named, []);
  await page.close();
});

test("nothing is wider than a phone, in light and in dark", { skip }, async () => {
  for (const [bundle, colorScheme] of [["models/mnist", "dark"], ["conformance/bundles/two-latents", "light"], ["conformance/bundles/codes", "dark"]]) {
    const phone = await chromium.newContext({ viewport: { width: 360, height: 740 }, colorScheme, hasTouch: true });
    const page = await opened(phone, await addressOf(bundle));
    if (await cells(page).count()) {
      await cells(page).nth(1).click();
      await cells(page).nth(2).click();
    }
    // From a sample to its code is not the whole page.
    const order = await page.locator("main section").evaluateAll((all) => all.map(({ id }) => id));
    if (order.includes("latent")) assert.ok(order.indexOf("as-code") < order.indexOf("latent"), order.join());
    const widths = () => page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
    assert.deepEqual(await widths(), [360, 360], bundle);
    const back = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(back, colorScheme === "dark" ? "rgb(17, 21, 28)" : "rgb(245, 246, 248)");
    await page.evaluate(() => document.getElementById("main").append(Object.assign(document.createElement("pre"), { textContent: "x".repeat(400) })));
    await page.evaluate(() => (document.querySelector("main > pre").style.overflow = "visible"));
    assert.ok((await widths())[0] > 360);
    await phone.close();
  }
});

test("nothing jumps while the page opens", { skip }, async () => {
  for (const [bundle, width] of [["models/mnist", 1280], ["models/digits-conditional", 360]]) {
    const other = await chromium.newContext({ viewport: { width, height: 800 } });
    await other.addInitScript(() => {
      window.jumped = 0;
      const add = (list) => list.getEntries().forEach(({ value }) => (window.jumped += value));
      new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });
    });
    const page = await opened(other, await addressOf(bundle));
    await page.waitForSelector("#map[data-cells]");
    const jumped = await page.evaluate(() => window.jumped);
    // Less than 0.1 is good: https://web.dev/articles/cls.
    assert.ok(jumped < 0.05, `${bundle}: ${jumped}`);
    await page.evaluate(() => document.getElementById("main").prepend(Object.assign(document.createElement("p"), { style: "height: 300px" })));
    await page.waitForTimeout(300);
    assert.ok((await page.evaluate(() => window.jumped)) > 0.05);
    await other.close();
  }
});

/** A copy of a bundle whose manifest is changed by lines of Python, and whose list of files agrees. */
function altered(lines, bundle = "models/digits-conditional") {
  const copy = join(temporary(), "bundle");
  cpSync(join(root, bundle), copy, { recursive: true });
  python("-c", `
import hashlib, json, pathlib, sys
bundle = pathlib.Path(sys.argv[1])
manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
vae = manifest["additional_metadata"]["vae"]
${lines}
(bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
sums = [line.split("  ") for line in (bundle / "SHA256SUMS").read_text().splitlines()]
(bundle / "SHA256SUMS").write_text("".join(f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\\n" for _, name in sums))`, copy);
  return copy;
}

test("without a prior, the latent starts at zeros or at an input", { skip }, async () => {
  const page = await open(altered('vae["latents"][0]["prior"] = {"kind": "none", "reason": "nobody fitted one"}'));
  assert.match(await page.textContent("#samples"), /no prior to draw from: nobody fitted one\./);
  assert.equal(await page.textContent("#address"), "all zeros");
  assert.equal(await page.locator("#seed, #interpolation, #save-sheet-npy").count(), 0);
  await page.locator("#z-4").fill("1.25");
  await holds(page, async () => (await code(page)).includes("z = np.zeros((1, 8), np.float32)\nz[0, 4] = 1.25\n"), "zeros in the code");
  await holds(page, async () => (await page.textContent("#address")).startsWith("all zeros, 1 of 8"), "the change");
  assertNear(await npyOf(page, "#save-point-npy"), numbersOf(await code(page)).data);
  await page.click("#code-javascript");
  assertNear(await npyOf(page, "#save-point-npy"), numbersOfNode(await code(page)).data);
  await page.click("#take-point");
  await page.waitForSelector("#input [data-runs='1']");
  await page.click("#visit");
  await holds(page, async () => (await page.textContent("#address")).startsWith("all zeros, 8 of 8"), "the latent of the input");
  assert.deepEqual(page.problems, []);
  await page.close();
});

test("names of a hostile bundle are shown as text", { skip }, async () => {
  const attack = '<img src=x onerror="document.title=1"><script>document.title=1</script>??/"}}; system("x"); //"\\\\';
  const bundle = altered(`
attack = '''${attack}'''
vae["description"] = attack
vae["license"] = attack
for condition in vae["conditions"]:
    condition["classes"] = [f"{number}{attack}" for number in range(10)]`);
  const page = await open(bundle);
  assert.equal(await page.locator("main img, main script, header img, header script").count(), 0);
  assert.ok((await page.textContent("#about")).includes(attack.slice(0, -1)));
  await page.selectOption("#condition-0", { index: 3 });
  await holds(page, async () => (await code(page)).includes("onerror"), "the condition in the code");
  assertNear(await npyOf(page, "#save-point-npy"), numbersOf(await code(page)).data);
  await page.click("#code-javascript");
  assertNear(await npyOf(page, "#save-point-npy"), numbersOfNode(await code(page)).data);
  if (hasC) {
    // A trigraph of a backslash would free the quote behind it.
    await page.click("#code-c");
    assert.ok((await code(page)).includes(String.raw`.class_name = "3<img`));
    compiled(await code(page));
    assert.ok(!(await code(page)).includes("??"));
  }
  assert.match(await page.title(), /vae-runtime studio$/);
  // The page itself forbids markup from text.
  const refused = await page.evaluate(() => {
    try {
      document.body.insertAdjacentHTML("beforeend", "<b>x</b>");
      return false;
    } catch (error) {
      return error instanceof TypeError;
    }
  });
  assert.ok(refused);
  await page.close();
});

test("no request leaves the page's own host", { skip }, async () => {
  const page = await open("models/digits");
  await cells(page).nth(2).click();
  await page.click("#take-point");
  await page.click("#compare");
  await page.waitForSelector("#compared figure");
  assert.deepEqual(page.foreign, []);
  // One that would is seen, and the page's policy stops it.
  const answer = await page.evaluate(() => fetch("http://localhost:9/").then(() => "sent", () => "stopped"));
  assert.equal(answer, "stopped");
  assert.ok(page.problems.some((problem) => problem.includes("Content Security Policy")));
  await page.close();
  const other = await open("models/digits");
  await other.goto("http://127.0.0.1:9/").catch(() => undefined);
  assert.deepEqual(other.foreign, ["http://127.0.0.1:9/"]);
  await other.close();
});

test("a damaged bundle is not shown as sound", { skip }, async () => {
  const copy = join(temporary(), "bundle");
  cpSync(join(root, "models", "digits"), copy, { recursive: true });
  const server = await studio(copy);
  const sound = await opened(context, server.url);
  assert.ok(await sound.locator("#badge.good").count());
  writeFileSync(join(copy, "samples.png"), "other");
  const damaged = await opened(context, server.url);
  assert.equal(await damaged.textContent("#badge"), "Verification failed");
  assert.match(await damaged.locator(".report").textContent(), /samples\.png/);
  writeFileSync(join(copy, "decoder", "fp32", "model.onnx"), "other");
  const broken = await opened(context, server.url);
  assert.match(await broken.textContent("#limits"), /decoder\/fp32\/model\.onnx/);
  assert.equal(await server.close(), 0);
});

test("the lines for a bundle of a URL have its digest", { skip }, async () => {
  const folder = temporary();
  python("-m", "vae_runtime", "pack", "models/digits", "--out", join(folder, "small.zip"));
  const server = await plainServer(folder);
  const digest = python("-c", `import vae_runtime; print(vae_runtime.load(${JSON.stringify(join(folder, "small.zip"))}).digest)`).trim();
  const served = await studio(`${server.url}small.zip`, "--digest", digest);
  const page = await opened(context, served.url);
  const lines = await code(page);
  const values = await npyOf(page, "#save-point-npy");
  assertNear(values, numbersOf(lines).data);
  assert.throws(() => numbersOf(lines.replace(/, digest="[^"]*"/, "")), /expected a digest/);
  await page.click("#code-javascript");
  assertNear(values, numbersOfNode(await code(page)).data);
  await page.click("#code-c");
  assert.match(await code(page), /C opens no URLs.*\n.*\n.*vae_open\("bundle\.zip"/);
  if (hasC) compiled(await code(page));
  assert.equal(await served.close(), 0);
  await server.close();
});

test("the static export works behind any web server", { skip }, async () => {
  const folder = temporary();
  const site = join(folder, "site", "deep");
  mkdirSync(join(folder, "site"));
  python("-m", "vae_runtime", "studio", "models/digits", "--export", site);
  const server = await plainServer(folder);
  const page = await opened(context, `${server.url}`, "site/deep/");
  assert.match(await page.textContent("#badge"), /^Verified here/);
  assertPixels(await sheetPixels(page), numbersOf('import vae_runtime\nx = vae_runtime.load("models/digits").sample(36, seed=7)').data);
  // Whoever reads the page has no folder of the bundle: the lines load it from this server.
  const lines = await code(page);
  const digest = await page.textContent("#digest");
  assert.ok(lines.includes(`load("${server.url}site/deep/bundle", digest="${digest}")`), lines);
  const values = await npyOf(page, "#save-point-npy");
  assertNear(values, numbersOf(lines).data);
  await page.click("#code-javascript");
  assertNear(values, numbersOfNode(await code(page)).data);
  assert.throws(() => numbersOf(lines.replace(digest, `sha256:${"0".repeat(64)}`)));
  assert.equal(await page.evaluate(() => typeof SharedArrayBuffer), "undefined");
  assert.deepEqual(page.foreign, []);
  await server.close();
});
