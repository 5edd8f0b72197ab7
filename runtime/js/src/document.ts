/** Read and check manifest.json as a whole. All problems are reported at once, each with its place. */
import { schema } from "./bundle_schema.js";
import { COPY, EXPORT, errorLine, isList, refuseBundle, shown } from "./errors.js";
import { type Json, parseJson } from "./json.js";
import { type Manifest, COMPONENTS, manifestOf } from "./manifest.js";
import { contradictions } from "./rules.js";
import { Problem, Reader } from "./schema.js";
import { VERSION } from "./version.js";

const MAX_SHOWN = 20;
const MAX_VARIANTS = 64;
const PLACE = "additional_metadata.vae.";
const RULES = schema.$defs;
const FIELDS: string[] = RULES.vae.properties.must_understand.items.enum;

/**
 * Read a manifest.
 *
 * @throws {BundleError} the text is not JSON, has another format version, or has problems, each on a line.
 */
export function parseManifest(content: Uint8Array, place: string): Manifest {
  let document: Json;
  try {
    document = parseJson(content);
  } catch (error) {
    return refuseBundle(place, "JSON in UTF-8", errorLine(error), COPY);
  }
  const vae = member(document, "additional_metadata", "vae");
  for (const component of COMPONENTS) {
    const variants = member(document, "components", component, "variants");
    if (variants instanceof Map && variants.size > MAX_VARIANTS) {
      refuseBundle(`${place}: components.${component}`, `at most ${MAX_VARIANTS} variants`, variants.size, EXPORT);
    }
  }
  const reader = member(vae, "reader");
  const version = versionProblem(vae);
  if (version) {
    const isOlder = /^1\./.test(String(member(vae, "format_version")));
    refuseBundle(`${place}: ${version}; this bundle is ${isOlder ? `older: ${EXPORT}` : `newer: ${install(reader)}`}`);
  }
  const reading = new Reader(RULES);
  const outer = reading.document(schema, document);
  const { problems } = reading;
  const manifest = problems.length ? null : manifestOf(outer);
  if (manifest) problems.push(...contradictions(manifest));
  if (!problems.length && manifest?.reader && isNewer(manifest.reader)) {
    problems.push(new Problem(`${PLACE}reader`, `a requirement that ${VERSION} meets`, manifest.reader, true));
  }
  if (manifest && !problems.length) return manifest;
  const remedy = problems.every((problem) => problem.newer) ? `${EXPORT}, or ${install(reader)}` : EXPORT;
  if (problems.length === 1) refuseBundle(`${place}: ${problems[0]}; ${remedy}`);
  const lines = problems.slice(0, MAX_SHOWN).map((problem) => `\n  ${problem}`);
  const more = problems.length > MAX_SHOWN ? `\n  and ${problems.length - MAX_SHOWN} more` : "";
  return refuseBundle(`${place}: ${problems.length} problems; ${remedy}:${lines.join("")}${more}`);
}

function member(value: Json | undefined, ...keys: string[]): Json | undefined {
  return keys.reduce<Json | undefined>((each, key) => (each instanceof Map ? each.get(key) : undefined), value);
}

/** The problem of a version that this one cannot read; nothing else can be judged then. */
function versionProblem(vae: Json | undefined): Problem | null {
  const version = member(vae, "format_version");
  if (typeof version === "string" && /^([13-9]|[1-9][0-9]+)\.(0|[1-9][0-9]*)$/.test(version)) {
    return new Problem(`${PLACE}format_version`, 'a version "2.x"', shown(version));
  }
  const needs = typeof version === "string" ? member(vae, "must_understand") : null;
  const unknown = isList(needs) ? needs.filter((need) => typeof need === "string" && !FIELDS.includes(need)) : [];
  if (!unknown.length) return null;
  return new Problem(`${PLACE}must_understand`, "a list of fields of format 2.0", unknown.map(shown).join(", "));
}

/** Whether a requirement needs a later version than this one. */
function isNewer(reader: string): boolean {
  const [needed, own] = [reader, VERSION].map((text) => text.match(/[0-9]+/g)!.map(Number));
  const at = needed.findIndex((number, index) => number !== (own[index] ?? 0));
  return at >= 0 && needed[at] > (own[at] ?? 0);
}

/** What to install: a bundle can name nothing but a version of this package. */
function install(reader: Json | undefined): string {
  const isReader = typeof reader === "string" && new RegExp(RULES.vae.properties.reader.pattern).test(reader);
  return `npm install vae-runtime@latest${isReader ? `; it asks for ${reader}, this is ${VERSION}` : ""}`;
}
