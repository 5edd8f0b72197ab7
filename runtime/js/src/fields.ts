/** Fields of JSON documents: a field's type says how a value is read. Reading notes every problem, and goes on. */
import { oneLine, shown } from "./errors.js";
import type { Json } from "./json.js";

const MAX_NUMBER = 1e300;

/** One error in a document. `newer` says that a newer version may know the value. */
export class Problem {
  constructor(readonly place: string, readonly expected: string, readonly got: string, readonly newer = false) {}

  toString(): string {
    const parts = [this.place || "the document", this.expected, this.got].map((part) => oneLine(part, 400));
    return `${parts[0]}: expected ${parts[1]}, got ${parts[2]}`;
  }
}

/** There are 1000 problems: reading ends, since each further one would take time. */
export class TooManyProblems extends Error {}

/** The problems found so far. */
export class Problems {
  readonly found: Problem[] = [];

  /** Add a problem with a value as errors show it. */
  note(place: string, expected: string, value: unknown, isNewer = false): void {
    if (this.found.push(new Problem(place, expected, shown(value), isNewer)) === 1000) throw new TooManyProblems();
  }
}

/** Reads a value; the result means nothing if a problem was noted. */
export type Type<T = any> = (value: Json | undefined, place: string, problems: Problems) => T;

type Test = (value: any) => boolean;

function checked<T>(expected: string, test: Test, isNewer: Test = () => false): Type<T> {
  return (value, place, problems) => {
    if (!test(value)) problems.note(place, expected, value, isNewer(value));
    return value as T;
  };
}

const isText = (value: unknown) => typeof value === "string";

/** Whether it is a number that a field may hold. */
export const isNumber: Test = (value) => typeof value === "number" && Math.abs(value) <= MAX_NUMBER;

/** A string that matches a pattern as a whole, and is not `but`. */
export function text(pattern = "[^]*", expected = "a string", but?: string): Type<string> {
  const whole = new RegExp(`^(?:${pattern})$`, "u");
  return checked(expected, (value) => isText(value) && value !== but && whole.test(value));
}

/** One of several strings; a newer version may know more of them if the choice is open. */
export function choice(choices: readonly string[], open = false): Type<string> {
  const listed = choices.slice(0, 12).map((each) => JSON.stringify(each)).join(" or ");
  const more = choices.length > 12 ? ` or … (${choices.length} in all)` : "";
  return checked(listed + more, (value) => choices.includes(value), (value) => open && isText(value));
}

/** A number of at most 1e300 in magnitude that passes a test. */
export function number(expected = "a number", test: Test = () => true): Type<number> {
  return checked(expected, (value) => isNumber(value) && test(value));
}

/** An integer from `min` to `max`. */
export function integer(min: number, max: number): Type<number> {
  const expected = `an integer from ${min} to ${max}`;
  return checked(expected, (value) => Number.isInteger(value) && value >= min && value <= max);
}

/** true or false. */
export const flag: Type<boolean> = checked("true or false", (value) => typeof value === "boolean");

/** A string, a number, true, false or null. */
export const scalar: Type = checked(
  "a string, a number, true, false or null",
  (value) => value === null || isText(value) || typeof value === "boolean" || isNumber(value),
);

/** A value or null. */
export function nullable<T>(item: Type<T>): Type<T | null> {
  return (value, place, problems) => (value === null ? null : item(value, place, problems));
}

/** A list of `min` to `max` items. */
export function list<T>(item: Type<T>, expected = "a list", min = 0, max = Infinity, distinct = false): Type<T[]> {
  const read: Type<T[]> = (value, place, problems) => {
    if (!Array.isArray(value) || value.length < min || value.length > max) {
      problems.note(place, expected, value);
      return [];
    }
    const before = problems.found.length;
    const items = value.map((each, index) => item(each, `${place}[${index}]`, problems));
    if (distinct && problems.found.length === before && new Set(items).size < items.length) {
      problems.note(place, `${expected}, each once`, value);
    }
    return items;
  };
  return Object.assign(read, { fields: (item as { fields?: Record<string, Field> }).fields });
}

/** One item, or a list of at least one. */
export function either<T>(item: Type<T>, expected: string): Type<T | T[]> {
  const items = list(item, expected, 1);
  return (value, place, problems) => (Array.isArray(value) ? items : item)(value, place, problems);
}

/** An object with members of one type under names of any kind. */
export function map<T>(item?: Type<T>, min = 0): Type<Map<string, T>> {
  return (value, place, problems) => {
    if (!(value instanceof Map) || value.size < min) {
      problems.note(place, `an object${min ? " with at least one member" : ""}`, value);
      return new Map();
    }
    if (!item) return value as Map<string, any>;
    const members = new Map<string, T>();
    for (const [name, each] of value) members.set(name, item(each, join(place, name), problems));
    return members;
  };
}

/** When an object has a field: always, where it likes to, or only objects of the kinds listed. */
export interface Field {
  type: Type;
  required?: boolean | readonly string[];
  optional?: readonly string[];
  /** It is not required, and must not be there, beside the field of this name. */
  unless?: string;
  /** The value where it is absent. */
  usual?: unknown;
}

/** An object with named members; a closed one has no others. */
export function struct<T>(fields: Record<string, Field>, closed = false): Type<T> & { fields: Record<string, Field> } {
  const byKind = Object.values(fields).some((field) => Array.isArray(field.required) || field.optional);
  const read: Type<T> = (value, place, problems) => {
    if (!(value instanceof Map)) {
      problems.note(place, "an object", value);
      return null as T;
    }
    const kind = byKind ? (value.get("kind") as string) : "";
    const members: Record<string, unknown> = {};
    const known = new Set<string>();
    for (const [key, { type, required = true, optional, unless, usual }] of Object.entries(fields)) {
      members[key] = usual;
      const kinds = [...(typeof required === "boolean" ? [] : required), ...(optional ?? [])];
      if (kinds.length && !kinds.includes(kind)) continue;
      known.add(key);
      const where = join(place, key);
      const isNeeded = typeof required === "boolean" ? required && !optional : required.includes(kind);
      if (unless && value.has(unless)) {
        if (value.has(key)) {
          problems.note(where, `no field of this name beside ${unless}`, value.get(key));
        }
      } else if (value.has(key)) {
        members[key] = type(value.get(key), where, problems);
      } else if (isNeeded) {
        problems.note(where, "this field", undefined);
      }
    }
    if (closed) {
      for (const [key, member] of value) {
        if (!known.has(key)) problems.note(join(place, key), "no field of this name", member);
      }
    }
    return members as T;
  };
  return Object.assign(read, { fields });
}

/** The place of a member. */
export function join(place: string, name: string): string {
  const short = name.length > 80 ? `${name.slice(0, 79)}…` : name;
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(short)) return `${place}[${JSON.stringify(short)}]`;
  return place ? `${place}.${short}` : short;
}
