/** Read protobuf messages of which each field is known, and each that may not repeat stands once. */

/** Where the bytes of a field begin and end. */
export type Span = [number, number];

/** The fields of a message by number: an integer, or a span; a list of these if the field may repeat. */
export type Message = any[];

/** The number of a field by its tag, negative if it may repeat. */
export type Schema = Map<number, number>;

const MAX_FIELDS = 524288;
const MAX_INTEGERS = 16384;
export const MAX_NAME = 4096;
export const MAX_TEXT = 65536;

/** What was expected of a graph, and what was found. */
export class Malformed extends Error {}

/** @throws {Malformed} always. */
export function refuse(expected: string, got: unknown): never {
  throw new Malformed(`expected ${expected}, got ${got}`);
}

/** @throws {Malformed} there are more than `max`. */
export function limit(count: number, max: number, what: string): void {
  if (!(count <= max)) refuse(`at most ${max} ${what}`, count);
}

/** The fields of a message: "number/wire type", by default 2, for bytes. */
export function schema(once: string, repeated = ""): Schema {
  const fields = (text: string, sign: number) =>
    (text ? text.split(" ") : []).map((each): [number, number] => {
      const [number, wire = "2"] = each.split("/");
      return [+number * 8 + +wire, sign * +number];
    });
  return new Map([...fields(once, 1), ...fields(repeated, -1)]);
}

export class Frame {
  private _fields = 0;
  private _at = 0;

  constructor(readonly content: Uint8Array) {}

  protected _message([start, end]: Span, schema: Schema): Message {
    const fields: Message = [];
    this._at = start;
    while (this._at < end) {
      limit(++this._fields, MAX_FIELDS, "fields");
      const tag = this._varint();
      const number = schema.get(tag) ?? refuse("a known field", tag / 8);
      let value: number | Span;
      if (tag & 7) {
        const length = tag & 2 ? this._varint() : 4;
        // An integer of 64 bits may be negative.
        if (!(length >= 0 && length <= end - this._at)) refuse("a field that ends within its bytes", length);
        value = [this._at, (this._at += length)];
      } else value = this._varint();
      if (number < 0) (fields[-number] ??= []).push(value);
      else if (fields[number] !== undefined) refuse(`field ${number} once`, "it twice");
      else fields[number] = value;
    }
    if (this._at !== end) refuse("a field that ends within its bytes", this._at);
    return fields;
  }

  /** An integer of 64 bits with its sign; those beyond 2**53 are rounded. */
  private _varint(): number {
    let low = 0;
    let high = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = this.content[this._at++] ?? refuse("an ONNX graph", "a file that is cut short");
      const bits = byte & 127;
      if (shift < 32) low |= bits << shift;
      if (shift === 28) high = bits >> 4;
      if (shift > 28) high |= bits << (shift - 32);
      if (byte < 128) {
        if ((!byte && shift) || (shift === 63 && bits > 1)) break;
        return high * 2 ** 32 + (low >>> 0);
      }
    }
    return refuse("integers of 64 bits in their shortest form", "a longer one");
  }

  /** A text field, one character for each byte; empty where it is absent. */
  protected _text([start, end]: Span = [0, 0], max = MAX_NAME): string {
    limit(end - start, max, "bytes of text");
    let text = "";
    for (let at = start; at < end; at++) text += String.fromCharCode(this.content[at]);
    return text;
  }

  /** The integers of fields, packed or not. */
  protected _integers(fields: (number | Span)[] = []): number[] {
    const values: number[] = [];
    for (const each of fields) {
      if (typeof each === "number") values.push(each);
      else {
        this._at = each[0];
        while (this._at < each[1] && values.length <= MAX_INTEGERS) values.push(this._varint());
        if (this._at > each[1]) refuse("integers within their bytes", "others");
      }
    }
    limit(values.length, MAX_INTEGERS, "integers");
    return values;
  }
}
