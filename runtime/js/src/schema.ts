/**
 * Read a JSON document by its JSON Schema: the keywords that docs/bundle-format.schema.json uses. Every problem is noted,
 * and reading goes on.
 */
import { isList, oneLine, shown } from "./errors.js";
import type { JsonObject } from "./json.js";

/** One error in a document. `newer` says that a newer version may know the value. */
export class Problem {
  constructor(readonly place: string, readonly expected: string, readonly got: string, readonly newer = false) {}

  toString(): string {
    const [place, expected, got] = [this.place || "the document", this.expected, this.got].map((part) => oneLine(part, 400));
    return `${place}: expected ${expected}, got ${got}`;
  }
}

type Rule = any;

/** Ends reading: each further problem would take time. */
class TooManyProblems extends Error {}

const TYPES: Record<string, (value: any) => boolean> = {
  object: (value) => value instanceof Map,
  array: Array.isArray,
  string: (value) => typeof value === "string",
  number: (value) => typeof value === "number",
  integer: Number.isInteger,
  boolean: (value) => typeof value === "boolean",
  null: (value) => value === null,
};

/** What a rule expects, for errors. */
function described(rule: Rule): string {
  const choices: unknown[] | undefined = rule.enum ?? ("const" in rule ? [rule.const] : undefined);
  if (choices) {
    const more = choices.length > 12 ? ` or … (${choices.length} in all)` : "";
    return choices.slice(0, 12).map((each) => JSON.stringify(each)).join(" or ") + more;
  }
  const types = [rule.type ?? []].flat().map((type: string) => (type === "null" ? type : `${/^[aio]/.test(type) ? "an" : "a"} ${type}`));
  const text = types.join(" or ");
  if (rule.pattern) return `text of the form ${rule.pattern.slice(0, -6)}`;
  if (rule.minItems || rule.maxItems) return `${text} of ${rule.minItems ?? 0} to ${rule.maxItems ?? "any number of"} items`;
  if (rule.exclusiveMinimum === 0) return "a positive number";
  if (!(rule.minimum > -1e300)) return text || "another value";
  return `${text} from ${rule.minimum}${rule.maximum < 1e300 ? ` to ${rule.maximum}` : " on"}`;
}

/** Reads one document, until there are `max` problems. */
export class Reader {
  readonly problems: Problem[] = [];

  constructor(private readonly _rules: Record<string, Rule>, private readonly _max = 1000) {}

  /** The document with members that the schema knows alone; objects of members of any name are maps. */
  document(rule: Rule, value: unknown): any {
    try {
      return this._read(rule, value, "");
    } catch (error) {
      if (!(error instanceof TooManyProblems)) throw error;
    }
  }

  private _note(place: string, expected: string, value: unknown, isNewer = false): void {
    this.problems.push(new Problem(place, expected, shown(value), isNewer));
    if (this.problems.length === this._max) throw new TooManyProblems();
  }

  private _passes(rule: Rule, value: unknown): boolean {
    const reader = new Reader(this._rules, 1);
    reader.document(rule, value);
    return !reader.problems.length;
  }

  private _read(rule: Rule, value: any, place: string): any {
    if (rule.$ref) return this._read(this._rules[rule.$ref.slice(8)], value, place);
    const types: string[] = [rule.type ?? []].flat();
    const isText = typeof value === "string";
    const isItems = isList(value);
    const isObject = value instanceof Map;
    const isRight =
      (!types.length || types.some((type) => TYPES[type](value))) &&
      (!rule.enum || rule.enum.includes(value)) &&
      (!("const" in rule) || rule.const === value) &&
      !(typeof value === "number" && (value < rule.minimum || value > rule.maximum || value <= rule.exclusiveMinimum)) &&
      !(isText && rule.pattern && !new RegExp(rule.pattern, "u").test(value)) &&
      !(isItems && (value.length < rule.minItems || value.length > rule.maxItems)) &&
      !(isItems && rule.uniqueItems && new Set(value).size < value.length) &&
      !(isItems && rule.contains && !value.some((item) => this._passes(rule.contains, item))) &&
      !(isObject && value.size < rule.minProperties) &&
      !(rule.not && this._passes(rule.not, value));
    if (!isRight) {
      this._note(place, described(rule), value, isText && /(^|\.)(kind|noise)$/.test(place));
      return null;
    }
    const branch = rule.if && (this._passes(rule.if, value) ? rule.then : rule.else);
    const read = rule.items && isItems
      ? value.map((item, index) => this._read(rule.items, item, `${place}[${index}]`))
      : isObject ? this._object(rule, value, place) : value;
    const more = branch ? this._read(branch, value, place) : value;
    if (more === value || read instanceof Map || !isObject) return more === value ? read : more;
    // What the branch only checks stays as the rule read it.
    for (const [key, each] of Object.entries(more ?? {})) if (each !== value.get(key) || !(key in read)) read[key] = each;
    return read;
  }

  private _object(rule: Rule, value: JsonObject, place: string): unknown {
    const { required = [], properties, additionalProperties: others, propertyNames: names } = rule;
    for (const key of required) if (!value.has(key)) this._note(join(place, key), "this field", undefined);
    const members: Record<string, unknown> = {};
    const further = new Map<string, unknown>();
    for (const [key, member] of value) {
      const where = join(place, key);
      if (names) this._read(names, key, where);
      // An empty rule is of objects of other kinds.
      if (properties && Object.hasOwn(properties, key)) {
        if (Object.keys(properties[key]).length) members[key] = this._read(properties[key], member, where);
      } else if (others === false) this._note(where, "no field of this name", member);
      else if (others) further.set(key, this._read(others, member, where));
    }
    return properties ? members : others ? further : value;
  }
}

/** The place of a member. */
export function join(place: string, name: string): string {
  const short = name.length > 80 ? `${name.slice(0, 79)}…` : name;
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(short)) return `${place}[${JSON.stringify(short)}]`;
  return place ? `${place}.${short}` : short;
}
