/** A strict parser of JSON: JSON.parse hides a key that stands twice, and knows no limit of depth. */
import { isList } from "./errors.js";

/** An object is a Map, so that no name in it has a meaning to JavaScript, and the order of names stays. */
export type Json = null | boolean | number | string | Json[] | JsonObject;
export type JsonObject = Map<string, Json>;

const MAX_DEPTH = 64;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
// Strings without what must be escaped; the u flag would take half of a surrogate pair for a character.
const TEXT = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const SPACE = /[ \t\n\r]*/y;
const LITERALS: [string, Json][] = [["true", true], ["false", false], ["null", null]];

/**
 * Read JSON in UTF-8.
 *
 * @throws {SyntaxError} it is not JSON, has a key twice, a number that no double holds or half of a surrogate pair, or is
 * nested more than 64 deep.
 */
export function parseJson(content: Uint8Array): Json {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(content);
  } catch {
    throw new SyntaxError("it is not UTF-8");
  }
  let at = 0;

  const match = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = at;
    const found = pattern.exec(text)?.[0];
    at += found?.length ?? 0;
    return found;
  };
  const fail = (what: string): never => {
    throw new SyntaxError(`expected ${what} at character ${at}`);
  };
  const skip = (character: string): boolean => {
    match(SPACE);
    const is = text[at] === character;
    if (is) at++;
    match(SPACE);
    return is;
  };
  const string = (): string => {
    const raw = match(TEXT) ?? fail("a string");
    const value = JSON.parse(raw) as string;
    if (/\p{Cs}/u.test(value)) throw new SyntaxError("half of a surrogate pair is no text");
    return value;
  };
  const items = (end: string, item: () => void): void => {
    if (skip(end)) return;
    do item();
    while (skip(","));
    if (!skip(end)) fail(`, or ${end}`);
  };
  const value = (depth: number): Json => {
    match(SPACE);
    const first = text[at];
    if (depth > MAX_DEPTH && (first === "{" || first === "[")) throw new SyntaxError("too deeply nested");
    if (first === "{") {
      const members: JsonObject = new Map();
      at++;
      items("}", () => {
        const key = string();
        if (members.has(key)) {
          throw new SyntaxError(`the key ${JSON.stringify(key.slice(0, 80))} stands twice in one object`);
        }
        if (!skip(":")) fail(":");
        members.set(key, value(depth + 1));
      });
      return members;
    }
    if (first === "[") {
      const list: Json[] = [];
      at++;
      items("]", () => list.push(value(depth + 1)));
      return list;
    }
    if (first === '"') return string();
    for (const [name, literal] of LITERALS) {
      if (text.startsWith(name, at)) {
        at += name.length;
        return literal;
      }
    }
    const number = Number(match(NUMBER) ?? fail("a value"));
    return Number.isFinite(number) ? number : fail("a number that a double holds");
  };

  const document = value(1);
  match(SPACE);
  return at === text.length ? document : fail("the end");
}

/** A value of JSON with plain objects in place of maps, which have no prototype. */
export function plain(value: Json): unknown {
  if (isList(value)) return value.map(plain);
  if (!(value instanceof Map)) return value;
  const members = Object.create(null) as Record<string, unknown>;
  for (const [key, member] of value) members[key] = plain(member);
  return members;
}
