/** Read and check manifest.json as a whole. All problems are reported at once, each with its place. */
import { COPY, EXPORT, errorLine, oneLine, refuseBundle, shown } from "./errors.js";
import { type Field, type Type, Problem, Problems, TooManyProblems, choice, join, list, map, struct, text } from "./fields.js";
import { type Json, type JsonObject, parseJson } from "./json.js";
import {
  type Component, type Manifest, type Variant, COMPONENTS, FILE, FOLDER, FREE, NAME, READER_PATTERN, TEXT, VAE,
  VARIANT, VARIANT_NAME, VERSION_PATTERN,
} from "./manifest.js";
import { contradictions } from "./rules.js";
import { VERSION } from "./version.js";

const EXECUTORS = ["ort", "torchscript", "torch_export"];
const MAX_PROBLEMS = 20;
const MAX_VARIANTS = 64;
const OLDER = /^1\.(0|[1-9][0-9]*)$/;
const NEWER = /^([3-9]|[1-9][0-9]+)\.(0|[1-9][0-9]*)$/;

// Every field of this version, as `must_understand` names it, with those of its members; those of a table came later.
const KNOWN_FIELDS = ["must_understand", "table"];
for (const [key, { type }] of Object.entries(VAE)) {
  const members = key === "table" ? {} : ((type as { fields?: object }).fields ?? {});
  KNOWN_FIELDS.push(key, ...Object.keys(members).map((member) => `${key}.${member}`));
}

const MAY: { required: false; usual: null } = { required: false, usual: null };
const PAYLOADS = map(FREE, 1);
const GRAPH_FILE = struct<{ model_file: string }>({ model_file: { type: FILE } });

const executorInfo: Type<[string, string] | null> = (value, place, problems) => {
  const payloads = PAYLOADS(value, place, problems);
  const executor = EXECUTORS.find((key) => payloads.has(key));
  // A variant with none of these is another program's.
  if (!executor) return null;
  return [executor, GRAPH_FILE(payloads.get(executor), join(place, executor), problems)?.model_file];
};

interface VariantMembers {
  variant_directory: string;
  executor_info: [string, string] | null;
  additional_metadata: { vae: Omit<Variant, "component" | "name"> };
}

const VARIANT_TYPE = struct<VariantMembers>(
  {
    variant_directory: { type: FOLDER },
    ep: { type: TEXT, ...MAY },
    device: { type: TEXT, ...MAY },
    executor_info: { type: executorInfo },
    additional_metadata: { type: struct({ vae: { type: struct(VARIANT) } }) },
  },
  true,
);

const variants: Type<Map<string, VariantMembers>> = (value, place, problems) => {
  const read = new Map<string, VariantMembers>();
  if (!(value instanceof Map) || !value.size) {
    problems.note(place, "an object with at least one variant", value);
  } else if (value.size > MAX_VARIANTS) {
    problems.note(place, `at most ${MAX_VARIANTS} variants`, value.size);
  } else {
    for (const [name, item] of value) {
      VARIANT_NAME(name, join(place, name), problems);
      const members = VARIANT_TYPE(item, join(place, name), problems);
      if (members?.executor_info) read.set(name, members);
    }
  }
  return read;
};

const COMPONENT: Field = {
  type: struct<{ variants: Map<string, VariantMembers> }>(
    {
      component_name: { type: TEXT, ...MAY },
      variants: { type: variants },
      additional_metadata: { type: FREE, ...MAY },
    },
    true,
  ),
  ...MAY,
};

const DOCUMENT = struct<any>(
  {
    schema_version: { type: text("1\\.(?:0|[1-9][0-9]*)", 'ONNX Runtime\'s package schema "1.x"') },
    package_name: { type: NAME },
    package_version: {
      type: text(
        "(?:0|[1-9][0-9]{0,8})(?:\\.(?:0|[1-9][0-9]{0,8})){0,7}", 'a version of 1 to 8 integers, such as "1.2.0"',
      ),
      ...MAY,
    },
    description: { type: TEXT, ...MAY },
    layout: { type: choice(["portable"]) },
    components: { type: struct({ encoder: COMPONENT, decoder: COMPONENT }) },
    additional_metadata: {
      type: struct({
        vae: {
          type: struct({
            ...VAE, must_understand: { type: list(choice(KNOWN_FIELDS), "a list of field names"), ...MAY },
          }),
        },
      }),
    },
  },
  true,
);

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
    refuseBundle(place, "JSON in UTF-8", errorLine(error), COPY);
  }
  const vae = member(member(document, "additional_metadata"), "vae");
  const reader = member(vae, "reader");
  const version = versionProblem(vae);
  if (version) {
    const isOlder = OLDER.test(String(member(vae, "format_version")));
    refuseBundle(`${place}: ${version}; this bundle is ${isOlder ? `older: ${EXPORT}` : `newer: ${install(reader)}`}`);
  }
  const noted = new Problems();
  let outer;
  try {
    outer = DOCUMENT(document, "", noted);
    for (const component of missingComponents(document, vae)) noted.note(`components.${component}`, "this field", undefined);
  } catch (error) {
    if (!(error instanceof TooManyProblems)) throw error;
  }
  const problems = noted.found;
  const manifest = problems.length ? null : assembled(outer);
  if (manifest) problems.push(...contradictions(manifest));
  if (!problems.length && manifest?.reader && isNewer(manifest.reader)) {
    noted.note("additional_metadata.vae.reader", `a requirement that ${VERSION} meets`, manifest.reader, true);
  }
  if (manifest && !problems.length) return manifest;
  const remedy = problems.every((problem) => problem.newer) ? `${EXPORT}, or ${install(reader)}` : EXPORT;
  if (problems.length === 1) refuseBundle(`${place}: ${problems[0]}; ${remedy}`);
  const lines = problems.slice(0, MAX_PROBLEMS).map((problem) => `\n  ${problem}`);
  const more = problems.length > MAX_PROBLEMS ? `\n  and ${problems.length - MAX_PROBLEMS} more` : "";
  refuseBundle(`${place}: ${problems.length} problems; ${remedy}:${lines.join("")}${more}`);
}

function assembled(outer: any): Manifest {
  const components = Object.fromEntries(
    COMPONENTS.map((component) => [
      component,
      new Map(
        [...(outer.components[component]?.variants ?? [])].map(([name, members]) => [
          name, variantOf(component, name, members),
        ]),
      ),
    ]),
  );
  const { package_name, package_version, additional_metadata } = outer;
  return { package_name, package_version, ...components, ...additional_metadata.vae };
}

function variantOf(component: Component, name: string, members: VariantMembers): Variant {
  const [executor, file] = members.executor_info!;
  return { ...members.additional_metadata.vae, component, name, folder: members.variant_directory, file, executor };
}

function member(value: Json | undefined, key: string): Json | undefined {
  return value instanceof Map ? value.get(key) : undefined;
}

/** The components that are required and missing: a packed bundle needs one alone, a decoder alone has no encoder. */
function missingComponents(document: Json, vae: Json | undefined): Component[] {
  const components = member(document, "components");
  if (!(components instanceof Map)) return [];
  const missing = COMPONENTS.filter((component) => !components.has(component));
  if ((vae as JsonObject | undefined) instanceof Map && (vae as JsonObject).has("packed_from")) {
    return missing.length === COMPONENTS.length ? ["decoder"] : [];
  }
  const refused = member(vae, "refused");
  const isAlone =
    Array.isArray(refused) &&
    refused.some((each) => member(each, "component") === "encoder" && member(each, "variant") === "fp32");
  return missing.filter((component) => !isAlone || component !== "encoder");
}

/** The problem of a version that this one cannot read; nothing else can be judged then. */
function versionProblem(vae: Json | undefined): Problem | null {
  const place = "additional_metadata.vae";
  const version = member(vae, "format_version");
  if (typeof version !== "string") return null;
  if (!new RegExp(`^${VERSION_PATTERN}$`).test(version)) {
    const isPlain = OLDER.test(version) || NEWER.test(version);
    return isPlain ? new Problem(`${place}.format_version`, 'a version "2.x"', shown(version)) : null;
  }
  const needs = member(vae, "must_understand");
  const unknown = Array.isArray(needs)
    ? needs.filter((need) => typeof need === "string" && !KNOWN_FIELDS.includes(need))
    : [];
  if (!unknown.length) return null;
  return new Problem(`${place}.must_understand`, "a list of fields of format 2.0", unknown.map(shown).join(", "));
}

/** Whether a requirement needs a later version than this one. */
function isNewer(reader: string): boolean {
  const [needed, own] = [reader, VERSION].map((text) => text.match(/[0-9]+/g)!.map(Number));
  const at = needed.findIndex((number, index) => number !== (own[index] ?? 0));
  return at >= 0 && needed[at] > (own[at] ?? 0);
}

/** What to install: a bundle can name nothing but a version of this package. */
function install(reader: Json | undefined): string {
  const [version] = (typeof reader === "string" && new RegExp(`^${READER_PATTERN}$`).exec(reader)) || [""];
  return `npm install vae-runtime@latest${version && `; it asks for ${oneLine(version, 80)}, this is ${VERSION}`}`;
}
