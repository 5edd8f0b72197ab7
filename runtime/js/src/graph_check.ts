/** Check the structure of an ONNX graph before ONNX Runtime reads it; docs/security.md lists what is refused. */
import { EXPORT, isList, refuseBundle, shown } from "./errors.js";
import { FREE_SIZES, KEEP_SIZES, OPERATORS, POSITIVE, SPATIAL, maxElements } from "./graph_rules.js";
import { type Message, type Span, Frame, MAX_TEXT, Malformed, limit, refuse, schema } from "./protobuf.js";

// The fields of ONNX's messages that a graph may have; onnx.proto is the specification. What is absent is refused:
// training information, local functions, sparse tensors, references to a function's attributes, and others.
const MODEL = schema("1/0 2 3 4 5/0 6 7", "8 14");
const GRAPH = schema("2 10", "1 5 11 12 13 14 16");
const NODE = schema("3 4 6 7 8", "1 2 5 9");
const ATTRIBUTE = schema("1 2/5 3/0 4 5 6 13 20/0", "7/5 7 8/0 8 9");
const TENSOR = schema("2/0 4 5 7 8 9 10 11 12 14/0", "1/0 1 13 16");
const VALUE_INFO = schema("1 2 3", "4");
const TYPE = schema("1 6");
const TENSOR_TYPE = schema("1/0 2");
const SHAPE = schema("", "1");
const DIMENSION = schema("1/0 2 3");
const OPSET = schema("1 2/0");
const ENTRY = schema("1 2");
const ANNOTATION = schema("1", "2");
const EXTERNAL = schema("", "1 2");

// What the supported versions of ONNX Runtime load between them, and far more than any real graph has.
const [MIN_IR, MAX_IR, MIN_OPSET, MAX_OPSET] = [3, 14, 9, 28];
const MAX_NODES = 16384;
const MAX_ARGUMENTS = 2048;
const MAX_METADATA = 256;
const MAX_RANK = 16;
const MAX_CONSTANT = 64;
const MAX_SPATIAL = 65536;

// The fields of a tensor's values by type: those of raw_data, of int32 and so on.
const FLOATS = 4;
const INTS = 5;
const LONGS = 7;
const RAW = 9;
const DOUBLES = 10;
const UNSIGNED = 11;
const VALUE_FIELDS = [RAW, FLOATS, INTS, LONGS, DOUBLES, UNSIGNED];
// The bits of a tensor's type, 0 if it is not of numbers, and the field of its values where that is not raw_data.
const BITS = [0, 32, 8, 8, 16, 16, 32, 64, 0, 8, 16, 64, 32, 64, 0, 0, 16, 8, 8, 8, 8, 4, 4];
const FIELDS = [0, FLOATS, INTS, INTS, INTS, INTS, INTS, LONGS, 0, INTS, INTS, DOUBLES, UNSIGNED, UNSIGNED];
// The types of attributes: their values are in the field after.
const [FLOAT, INT, STRING, TENSOR_VALUE, GRAPH_VALUE, FLOATS_VALUE, INTS_VALUE, STRINGS] = [1, 2, 3, 4, 5, 6, 7, 8];
const CONSTANTS = new Map([
  ["value", TENSOR_VALUE], ["value_float", FLOAT], ["value_int", INT], ["value_floats", FLOATS_VALUE],
  ["value_ints", INTS_VALUE],
]);
const DIGITS = /^[0-9]{1,19}$/;

type Attributes = Map<string, [number, any]>;

/**
 * Refuse a graph that ONNX Runtime must not see: malformed, beyond the limits, or with operators not allowed.
 *
 * @param content - the bytes of the ONNX file.
 * @param place - what to call the graph in errors.
 * @param data - the size of each file of weights that the graph may refer to, by name.
 * @param elements - how many elements the inputs and outputs have for one row.
 * @throws {BundleError} the graph is refused.
 */
export function checkGraph(content: Uint8Array, place: string, data: Map<string, number>, elements: number): void {
  const size = [...data.values()].reduce((all, each) => all + each, content.length);
  const check = new Check(content, data, maxElements(size, elements));
  try {
    check.model();
  } catch (error) {
    if (!(error instanceof Malformed)) throw error;
    refuseBundle(`${place}: ${check.where}${error.message}; ${EXPORT}`);
  }
}

class Check extends Frame {
  /** The node that is being checked, for errors. */
  where = "";
  private _nodes = 0;
  private _domains = new Set<string>();
  // The names that are defined so far, with a lower bound of each tensor's number of elements.
  private readonly _counts = new Map<string, number>();
  // The values of small constants, as the tensor's fields, or as values already.
  private readonly _constants = new Map<string, Message | { values: number[] }>();

  constructor(content: Uint8Array, private readonly _data: Map<string, number>, private readonly _maxElements: number) {
    super(content);
  }

  model(): void {
    const model = this._message([0, this.content.length], MODEL);
    const [, version = 0, ...texts] = model;
    if (!model[7] || !(version >= MIN_IR && version <= MAX_IR)) {
      refuse(`an ONNX graph of IR version ${MIN_IR} to ${MAX_IR}`, version);
    }
    this._metadata(model[14]);
    for (const field of [0, 1, 2, 4]) this._text(texts[field], MAX_TEXT);
    for (const span of model[8] ?? []) {
      const [, name, opset = 0] = this._message(span, OPSET);
      const domain = this._text(name) || "ai.onnx";
      this._once(this._domains, domain);
      if (domain === "ai.onnx" && !(opset >= MIN_OPSET && opset <= MAX_OPSET)) {
        refuse(`an operator set of ai.onnx from ${MIN_OPSET} to ${MAX_OPSET}`, opset);
      }
    }
    limit(this._domains.size, 32, "operator sets");
    this._graph(model[7], 0);
  }

  private _once(names: Set<string>, name: string): void {
    if (names.has(name)) refuse("each name once", `${shown(name)} twice`);
    names.add(name);
  }

  private _metadata(spans: Span[] = []): void {
    limit(spans.length, MAX_METADATA, "entries of metadata");
    const keys = new Set<string>();
    for (const span of spans) {
      const [, name, value] = this._message(span, ENTRY);
      const key = this._text(name);
      this._text(value, MAX_TEXT);
      this._once(keys, key);
      // ONNX Runtime can read session options from this key.
      if (key.toLowerCase() === "ort_config") refuse("metadata without options of ONNX Runtime", key);
    }
  }

  /** Check an input, an output or the description of a tensor; return its name and its min. number of elements. */
  private _valueInfo(span: Span): [string, number] {
    const [, label, type, , metadata] = this._message(span, VALUE_INFO);
    const name = this._text(label);
    this._metadata(metadata);
    let count = 1;
    const kind = type && this._message(type, TYPE)[1];
    if (kind) {
      const [, element, shape] = this._message(kind, TENSOR_TYPE);
      if (!BITS[element]) refuse("a tensor of numbers", `${shown(name)} of type ${element}`);
      const dimensions: Span[] = (shape && this._message(shape, SHAPE)[1]) ?? [];
      limit(dimensions.length, MAX_RANK, "axes");
      for (const dimension of dimensions) count *= Math.max(1, this._message(dimension, DIMENSION)[1] ?? 1);
      limit(count, 2 ** 40, "elements");
    }
    return [name, count];
  }

  /** Check a tensor's type, and its shape against its values; return the number of its elements. */
  private _tensor(tensor: Message, mayBeExternal: boolean): number {
    const kind: number = tensor[2];
    const bits = BITS[kind] || refuse("a tensor of numbers", `one of type ${kind}`);
    const typed = FIELDS[kind] ?? INTS;
    const sizes = this._integers(tensor[1]);
    limit(sizes.length, MAX_RANK, "axes");
    const count = sizes.reduce((all, size) => all * size, 1);
    if (sizes.some((size) => size < 0) || count >= 2 ** 62) refuse("possible sizes", sizes);
    this._metadata(tensor[16]);
    const used = VALUE_FIELDS.filter((field) => tensor[field]);
    if (tensor[13] || tensor[14]) {
      if (!tensor[13] || used.length || !mayBeExternal) refuse("a tensor's values in one place, inline", "them elsewhere");
      this._external(tensor[13], (count * bits) / 8);
      return count;
    }
    const field = used[0] ?? RAW;
    if (used.length > 1 || (field !== RAW && field !== typed)) refuse("values in one field of their type", `fields ${used}`);
    const [start, end]: Span = tensor[field] ?? [0, 0];
    let length = end - start;
    let expected = Math.ceil((count * bits) / 8);
    if (field === INTS || field === LONGS || field === UNSIGNED) {
      // Each integer ends with a byte below 128.
      for (let at = start; at < end; at++) length -= this.content[at] >> 7;
      expected = Math.ceil(bits > 4 ? count : count / 2);
    }
    if (length !== expected) refuse(`${count} values of ${bits} bits`, `${end - start} bytes`);
    return used.length ? count : 0;
  }

  /** ONNX Runtime must not open a file: values may only be in those that are given. */
  private _external(entries: Span[], size: number): void {
    limit(entries.length, 3, "entries that say where values are");
    const keys = new Set<string>();
    const values: Record<string, string> = { offset: "0", length: "", location: "" };
    for (const span of entries) {
      const [key, value] = this._message(span, EXTERNAL).slice(1).map((each: Span[]) => this._text(each.at(-1)));
      this._once(keys, key);
      if (!Object.hasOwn(values, key)) refuse("location, offset and length", shown(key));
      values[key] = value ?? "";
    }
    const { offset, length, location } = values;
    const isNumber = DIGITS.test(offset) && DIGITS.test(length) && +length > 0;
    const whole = this._data.get(location) ?? 0;
    if (!isNumber || +length !== size || +length + +offset > whole) {
      refuse(`${size} bytes within a file of weights of ${whole}`, `${length} from ${offset} in ${shown(location)}`);
    }
  }

  private _define(name: string, count: number, defined: string[]): void {
    if (!name || this._counts.has(name)) refuse("each name defined once", `${shown(name)} again`);
    this._counts.set(name, count);
    defined.push(name);
  }

  /** Check a graph or a branch; return the number of its outputs. */
  private _graph(span: Span, depth: number): number {
    limit(depth, 8, "branches in branches");
    const graph = this._message(span, GRAPH);
    for (const field of [2, 10]) this._text(graph[field], MAX_TEXT);
    this._metadata(graph[16]);
    const [nodes, tensors, inputs, outputs, infos, annotations]: Span[][] = [1, 5, 11, 12, 13, 14].map((field) => graph[field] ?? []);
    limit(Math.max(inputs.length, outputs.length), MAX_ARGUMENTS, "inputs and outputs");
    const defined: string[] = [];
    const initialized = new Set<string>();
    for (const each of tensors) {
      const tensor = this._message(each, TENSOR);
      const name = this._text(tensor[8]);
      this.where = `tensor ${shown(name)}: `;
      const count = this._tensor(tensor, !depth);
      this._define(name, count, defined);
      initialized.add(name);
      if (count <= MAX_CONSTANT) this._constants.set(name, tensor);
    }
    this.where = "";
    for (const each of inputs) {
      const [name, count] = this._valueInfo(each);
      // Before IR version 4, an initializer was also listed as an input.
      if (!initialized.delete(name)) this._define(name, count, defined);
    }
    for (const each of infos) this._valueInfo(each);
    for (const each of annotations) this._metadata(this._message(each, ANNOTATION)[2]);
    nodes.forEach((each, index) => this._node(each, `node ${index}`, depth, defined));
    this.where = "";
    const seen = new Set<string>();
    for (const each of outputs) {
      const [name] = this._valueInfo(each);
      this._once(seen, name);
      if (!this._counts.has(name)) refuse("outputs that a node defines", shown(name));
    }
    if (!outputs.length) refuse("a graph with outputs", "none");
    for (const name of depth ? defined : []) {
      this._counts.delete(name);
      this._constants.delete(name);
    }
    return outputs.length;
  }

  private _node(span: Span, place: string, depth: number, defined: string[]): void {
    this.where = `${place}: `;
    limit(++this._nodes, MAX_NODES, "nodes");
    const [, taken = [], given = [], label, type, attributes = [], text, set, overload, metadata] = this._message(span, NODE);
    const operator = this._text(type);
    const domain = this._text(set) || "ai.onnx";
    this.where = `${place} (${shown(operator)} ${shown(this._text(label, MAX_TEXT))}): `;
    // An overload is of a local function.
    if (!OPERATORS.get(domain)?.has(operator) || !this._domains.has(domain) || this._text(overload)) {
      refuse("an operator that is allowed, of a declared set", shown(`${domain}.${operator}`));
    }
    limit(Math.max(taken.length, given.length), MAX_ARGUMENTS, "inputs and outputs");
    const [names, results]: string[][] = [taken, given].map((spans) => spans.map((each: Span) => this._text(each)));
    const unknown = names.find((name) => name && !this._counts.has(name));
    if (unknown) refuse("inputs that are defined before", shown(unknown));
    const values = this._attributes(attributes, operator);
    // Kernels of ONNX Runtime take these for granted, and end the process.
    const parts = values.get("num_outputs")?.[1]?.[0] ?? results.length;
    const isBare = /^QLinear(Leak|Sig)/.test(operator) ? names.length < 5 : /^(DFT|Lay)/.test(operator) && names[2] === "";
    if (isBare || parts !== results.length) refuse("all inputs and outputs that it takes", "others");
    this._text(text, MAX_TEXT);
    this._metadata(metadata);
    let count = 1;
    if (KEEP_SIZES.has(operator)) count = Math.max(1, ...names.map((name) => this._counts.get(name) ?? 1));
    else if (FREE_SIZES.has(operator)) count = this._count(operator, names);
    else if (operator === "Constant") count = this._constant(values, results);
    else if (operator === "If") this._branches(values, names, results, depth);
    else if (operator === "Dropout" && names[2]) {
      const training = this._values(names[2]);
      if (!training?.length || training.some(Boolean)) refuse("Dropout that does not train", "another");
    }
    limit(count, this._maxElements, "elements of a tensor");
    const named = results.filter(Boolean);
    for (const name of named) this._define(name, count, defined);
    if (!named.length) refuse("a node with outputs", "none");
  }

  /** Check the attributes of a node; return the type and the value of each by its name. */
  private _attributes(spans: Span[], operator: string): Attributes {
    limit(spans.length, 64, "attributes");
    const attributes: Attributes = new Map();
    for (const span of spans) {
      const attribute = this._message(span, ATTRIBUTE);
      const name = this._text(attribute[1]);
      const kind: number = attribute[20];
      this._text(attribute[13], MAX_TEXT);
      if (!name || attributes.has(name)) refuse("each attribute with a name, once", shown(name));
      let value = attribute[kind + 1];
      const isOther = attribute.slice(2, 10).some((each, index) => each !== undefined && index !== kind - 1);
      const mayBeAbsent = kind !== TENSOR_VALUE && kind !== GRAPH_VALUE;
      if (!(kind >= FLOAT && kind <= STRINGS) || isOther || (value === undefined && !mayBeAbsent)) {
        refuse(`the value of the attribute ${shown(name)} in the field of its type`, `type ${kind}`);
      }
      if ((kind === GRAPH_VALUE) !== (operator === "If")) refuse("branches of If alone", shown(name));
      if (kind === INT || kind === INTS_VALUE) {
        value = this._integers(isList(value) ? value : [value ?? 0]);
        this._spatial(name, value);
      } else if (kind === TENSOR_VALUE) {
        value = this._message(value, TENSOR);
        this._tensor(value, false);
      } else if (kind === STRING) this._text(value, MAX_TEXT);
      attributes.set(name, [kind, value]);
    }
    return attributes;
  }

  private _spatial(name: string, values: number[]): void {
    if (SPATIAL.has(name)) limit(Math.max(0, ...values.map(Math.abs)), MAX_SPATIAL, name);
    if (name === "batch_dims") limit(values[0] < 0 ? 99 : values[0], MAX_RANK, name);
    if (POSITIVE.has(name) && !(Math.min(...values, 1) > 0)) refuse(`${name} of at least 1`, values);
    const half = values.length >> 1;
    const isPads = name === "pads";
    if (!isPads && name !== "output_shape") return;
    const sizes = isPads ? values.slice(0, half).map((low, axis) => 1 + low + values[half + axis]) : values;
    limit(sizes.reduce((all, size) => all * Math.max(1, size), 1), this._maxElements, `elements by ${name}`);
  }

  private _branches(attributes: Attributes, names: string[], results: string[], depth: number): void {
    const branches = ["then_branch", "else_branch"].map((name) => attributes.get(name));
    const isWhole = attributes.size === 2 && branches.every(Boolean) && names.length === 1 && names[0];
    const { where } = this;
    for (const branch of branches) {
      if (!isWhole || this._graph(branch![1], depth + 1) !== results.length) {
        refuse(`a condition and two branches with ${results.length} outputs`, "others");
      }
    }
    this.where = where;
  }

  /** Check a Constant and keep its value if it is small; return the number of its elements. */
  private _constant(attributes: Attributes, results: string[]): number {
    const [name, [kind, value]] = [...attributes][0] ?? ["", []];
    if (attributes.size !== 1 || !kind || CONSTANTS.get(name) !== kind || results.length !== 1) {
      refuse("a constant of one value", shown([...attributes.keys()].join()));
    }
    if (kind === FLOAT || kind === FLOATS_VALUE) return 1;
    const count = kind === TENSOR_VALUE ? this._tensor(value, false) : value.length;
    if (count <= MAX_CONSTANT) this._constants.set(results[0], kind === TENSOR_VALUE ? value : { values: value });
    return count;
  }

  /** The values of a small constant, or null where the tensor is none. */
  private _values(name: string): number[] | null {
    const constant = this._constants.get(name);
    if (!constant) return null;
    if (!isList(constant)) return constant.values;
    if (constant[13]) return null;
    const integers: Span = constant[LONGS] ?? constant[INTS];
    if (integers) return this._integers([integers]);
    const [start, end]: Span = constant[RAW] ?? constant[FLOATS] ?? constant[DOUBLES] ?? [0, 0];
    const types: Record<number, any> = { 1: Float32Array, 6: Int32Array, 7: BigInt64Array, 9: Uint8Array, 11: Float64Array };
    const type = types[constant[2]];
    return type ? Array.from(new type(this.content.slice(start, end).buffer), Number) : null;
  }

  /** The min. number of elements of an operator's output, as far as constants say it. */
  private _count(operator: string, names: string[]): number {
    const values = names.map((name) => (name ? this._values(name) : null));
    const counts = names.map((name) => (name ? this._counts.get(name)! : 1));
    return Math.floor(FREE_SIZES.get(operator)!(values, counts));
  }
}
