"""Check the structure of an ONNX graph before ONNX Runtime reads it; docs/security.md lists what is refused."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .errors import BundleError, counted
from .graph_rules import (
    FREE_SIZES,
    KEEP_SIZES,
    OPERATORS,
    OPTIONS_KEY,
    POSITIVE,
    SPATIAL,
    Limits,
    Tensors,
    Values,
    alike,
    float_results,
    min_axes,
    require_safe,
)
from .onnx_file import Frame, Malformed, check_external_data, refuse, shown

# The wire type of bytes.
_LENGTH = 2


def _schema(once: str = "", repeated: str = "") -> dict[int, int]:
    """Return the fields of a message by their tags: "number/wire type"; the number is negative if it may repeat."""
    fields = {}
    for text, sign in ((once, 1), (repeated, -1)):
        for field in text.split():
            number, _, wire = field.partition("/")
            fields[int(number) << 3 | int(wire or _LENGTH)] = sign * int(number)
    return fields


# The fields of ONNX's messages that a graph may have; onnx.proto is the specification. What is absent is refused:
# training information (20), local functions (25), sparse tensors, references to a function's attributes, and others.
_MODEL = _schema("1/0 2 3 4 5/0 6 7", "8 14")
_GRAPH = _schema("2 10", "1 5 11 12 13 14 16")
_NODE = _schema("3 4 6 7 8", "1 2 5 9")
_ATTRIBUTE = _schema("1 2/5 3/0 4 5 6 13 20/0", "7/5 7 8/0 8 9")
_TENSOR = _schema("2/0 4 5 7 8 9 10 11 12 14/0", "1/0 1 13 16")
_VALUE_INFO = _schema("1 2 3", "4")
_TYPE = _schema("1 6")
_TENSOR_TYPE = _schema("1/0 2")
_SHAPE = _schema("", "1")
_DIMENSION = _schema("1/0 2 3")
_OPSET = _schema("1 2/0")
_ENTRY = _schema("1 2")
_ANNOTATION = _schema("1", "2")

# The types of tensors: their bits, and the field that holds their values where that is not raw_data.
_FLOATS, _INTS, _LONGS, _DOUBLES, _UNSIGNED, _RAW = 4, 5, 7, 10, 11, 9
_TYPES = {
    1: (32, _FLOATS), 2: (8, _INTS), 3: (8, _INTS), 4: (16, _INTS), 5: (16, _INTS), 6: (32, _INTS), 7: (64, _LONGS),
    9: (8, _INTS), 10: (16, _INTS), 11: (64, _DOUBLES), 12: (32, _UNSIGNED), 13: (64, _UNSIGNED), 16: (16, _INTS),
    17: (8, _INTS), 18: (8, _INTS), 19: (8, _INTS), 20: (8, _INTS), 21: (4, _INTS), 22: (4, _INTS),
}  # fmt: skip
_VALUE_FIELDS = (_RAW, _FLOATS, _INTS, _LONGS, _DOUBLES, _UNSIGNED)
# The formats of values that a constant may give an operator as sizes.
_FORMATS = {1: "<%df", 6: "<%di", 7: "<%dq", 11: "<%dd"}
# The types of attributes, and the field that holds the value of each.
_ATTRIBUTE_FIELDS = {1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, 8: 9}
_MAY_BE_ABSENT = {1, 2, 3, 6, 7, 8}
_CONTINUATIONS = bytes(range(128, 256))


def check_graph(content: Any, place: str, data: Mapping[str, bytes], elements: int = 0) -> set[bytes]:
    """Refuse a graph that ONNX Runtime must not see: malformed, beyond the limits, or with operators not allowed.

    Args:
        content: the bytes of the ONNX file, or a memory map of them.
        place: what to call the graph in errors.
        data: the bytes of each file of weights that the graph may refer to, by name.
        elements: how many elements the inputs and outputs have for one row, as far as the manifest says.

    Returns:
        The names of the operators, those in branches included.

    Raises:
        BundleError: the graph is refused; the message names the node, if any, and what was expected.
    """
    size = len(content) + sum(map(len, data.values()))
    check = _Check(content, Limits.max_elements(size, elements))
    try:
        check.model()
    except (Malformed, IndexError, struct.error) as error:
        why = str(error) if isinstance(error, Malformed) else "expected an ONNX graph, got a file that is cut short"
        if len(content) <= Limits.EXPLAINED:
            check_external_data(content, place, data)
        raise BundleError(f"{place}: {check.where}{why}; export the bundle again") from None
    if check.is_external:
        check_external_data(content, place, data)
    return check.operators


class _Tensors(Frame):
    """Checks tensors, their descriptions, and metadata."""

    is_external = False
    """Whether the values of a tensor are in another file."""

    def _metadata(self, spans: Any, what: str) -> None:
        """Check metadata of a model, a graph, a node or a tensor."""
        if len(spans) > Limits.METADATA:
            refuse(f"at most {Limits.METADATA} entries of metadata of {what}", len(spans))
        keys = set()
        for span in spans:
            entry = self.message(span, _ENTRY, "metadata")
            key = self.bytes(entry.get(1), "a key of metadata")
            self.bytes(entry.get(2), "an entry of metadata", Limits.TEXT)
            if key in keys:
                refuse("each key of metadata once", f"{shown(key)} twice")
            if key.lower() == OPTIONS_KEY:
                refuse("metadata without options of ONNX Runtime", shown(key))
            keys.add(key)

    def _value_info(self, span: tuple[int, int]) -> tuple[bytes, int, int, int]:
        """Check an input, an output or a tensor's description.

        Returns:
            Its name, its min. number of elements, its type, and the number of its axes.
        """
        value = self.message(span, _VALUE_INFO, "a tensor's description")
        name = self.bytes(value.get(1), "a name")
        self._metadata(value.get(4, ()), "a tensor's description")
        count, element, axes = 1, 0, 0
        if 2 in value:
            kind = self.message(value[2], _TYPE, "a tensor's type")
            if 1 in kind:
                tensor = self.message(kind[1], _TENSOR_TYPE, "a tensor's type")
                element = tensor.get(1, 0)
                if element not in _TYPES:
                    refuse("a tensor of numbers", f"{shown(name)} of type {element}")
                dimensions = self.message(tensor[2], _SHAPE, "a shape").get(1, ()) if 2 in tensor else ()
                axes = len(dimensions)
                if axes > Limits.RANK:
                    refuse(f"at most {Limits.RANK} axes", axes)
                for dimension in dimensions:
                    axis = self.message(dimension, _DIMENSION, "an axis")
                    self.bytes(axis.get(2), "a name of an axis")
                    size = axis.get(1, 1)
                    # Size 0 says nothing, and sizes of 64 bits are negative.
                    count *= size if 0 < size < 1 << 63 else 1
                if count > Limits.DECLARED:
                    refuse(f"a tensor of at most {Limits.DECLARED} elements", f"{shown(name)} of {count}")
        return name, count, element, axes

    def _tensor(self, tensor: dict[int, Any]) -> tuple[int, int]:
        """Check a tensor's type, and its shape against its values; return how many elements and axes it has."""
        kind = tensor.get(2, 0)
        if kind not in _TYPES:
            refuse("a tensor of numbers", f"one of type {kind}")
        bits, typed = _TYPES[kind]
        count, rank = 1, 0
        for size in tensor.get(1, ()):
            for each in (size,) if isinstance(size, int) else self.packed_integers(size):
                count *= each
                rank += 1
                if rank > Limits.RANK or each >= 1 << 63 or count >= 1 << 62:
                    refuse(f"at most {Limits.RANK} axes of possible sizes", "others")
        if 16 in tensor:
            self._metadata(tensor[16], "a tensor")
        if 13 in tensor or tensor.get(14):
            if 13 not in tensor or any(field in tensor for field in _VALUE_FIELDS):
                refuse("a tensor's values in one place", "several or none")
            self._external(tensor[13], count * bits // 8)
            return count, rank
        used = [field for field in _VALUE_FIELDS if field in tensor]
        if len(used) > 1 or (used and used[0] not in (_RAW, typed)):
            refuse("a tensor's values in one field of its type", f"them in the fields {used}")
        if not used:
            if count:
                refuse(counted(count, "value"), "none")
            return 0, rank
        start, end = tensor[used[0]]
        length = end - start
        if used[0] == _RAW:
            right = length == (count * bits + 7) // 8
        elif typed in (_FLOATS, _DOUBLES):
            right = length == count * bits // 8
        else:
            integers = len(self.content[start:end].translate(None, _CONTINUATIONS))
            right = integers == (count if bits > 4 else (count + 1) // 2)
        if not right:
            refuse(f"{counted(count, 'value')} of {bits} bits", counted(length, "byte"))
        return count, rank

    def _external(self, entries: Any, size: int) -> None:
        """Check how many bytes a tensor takes from a file of weights; `onnx_file` checks which."""
        self.is_external = True
        if len(entries) > 8:
            refuse("at most 8 entries that say where a tensor's values are", len(entries))
        for span in entries:
            entry = self.message(span, _schema("", "1 2"), "an entry")
            key, value = (self.bytes(entry.get(field, [None])[-1], "an entry") for field in (1, 2))
            if key == b"length" and value.isdigit() and int(value) and int(value) != size:
                refuse(f"{size} bytes of values", shown(value))

    def _integers(self, value: Any) -> list[int]:
        values: list[int] = []
        for each in value if isinstance(value, list) else [value or 0]:
            values.extend([each] if isinstance(each, int) else self.packed_integers(each))
        if len(values) > Limits.INTEGERS:
            refuse(f"at most {Limits.INTEGERS} integers", len(values))
        return [each - (1 << 64) if each >= 1 << 63 else each for each in values]


class _Check(_Tensors):
    """One pass over a model."""

    def __init__(self, content: Any, max_elements: int) -> None:
        super().__init__(content, Limits.FIELDS)
        self.max_elements = max_elements
        self.where = ""
        """The node that is being checked, for errors."""
        self.operators: set[bytes] = set()
        """The names of the operators so far."""
        self._nodes = 0
        self._known = Tensors()

    def model(self) -> None:
        """Check the model."""
        model = self.message((0, len(self.content)), _MODEL, "a model")
        if 7 not in model:
            refuse("an ONNX graph", "a file without one")
        low, high = Limits.IR_VERSIONS
        if not low <= model.get(1, 0) <= high:
            refuse(f"an IR version from {low} to {high}", model.get(1, 0))
        self._metadata(model.get(14, ()), "the model")
        for field in (2, 3, 4, 6):
            self.bytes(model.get(field), "a text of the model", Limits.TEXT)
        domains = set()
        for span in model.get(8, ()):
            opset = self.message(span, _OPSET, "an operator set")
            domain = self.bytes(opset.get(1), "a domain") or b"ai.onnx"
            if domain in domains:
                refuse("each operator set once", f"{shown(domain)} twice")
            domains.add(domain)
            low, high = Limits.OPSETS
            if domain == b"ai.onnx" and not low <= opset.get(2, 0) <= high:
                refuse(f"an operator set of ai.onnx from {low} to {high}", opset.get(2, 0))
            if len(domains) > Limits.OPERATOR_SETS:
                refuse(f"at most {Limits.OPERATOR_SETS} operator sets", "more")
        self._domains = domains
        self._graph(model[7], 0)

    def _graph(self, span: tuple[int, int], depth: int) -> list[bool]:
        """Check a graph or a branch; return for each output whether it is known to hold floating-point numbers."""
        if depth > Limits.DEPTH:
            refuse(f"branches at most {Limits.DEPTH} deep", "deeper ones")
        graph = self.message(span, _GRAPH, "a graph")
        self.bytes(graph.get(2), "a graph's name", Limits.TEXT)
        self.bytes(graph.get(10), "a graph's text", Limits.TEXT)
        self._metadata(graph.get(16, ()), "a graph")
        inputs = graph.get(11, ())
        outputs = graph.get(12, ())
        for what, spans, limit in (("inputs", inputs, Limits.ARGUMENTS), ("outputs", outputs, Limits.ARGUMENTS),
                                   ("nodes", graph.get(1, ()), Limits.NODES)):  # fmt: skip
            if len(spans) > limit:
                refuse(f"at most {limit} {what}", len(spans))
        before = len(self._known.counts)
        initialized = set()
        for span in graph.get(5, ()):
            tensor = self.message(span, _TENSOR, "a tensor")
            name = self.bytes(tensor.get(8), "a name")
            self.where = f"tensor {shown(name)}: "
            count, axes = self._tensor(tensor)
            self._known.define(name, count, axes, tensor.get(2, 0))
            initialized.add(name)
            if count <= Limits.CONSTANT:
                self._known.constants[name] = tensor
            if count:
                self._known.weights.add(name)
        self.where = ""
        for span in inputs:
            name, count, kind, axes = self._value_info(span)
            # Before IR version 4, an initializer was also listed as an input.
            if name in initialized:
                initialized.remove(name)
            else:
                self._known.define(name, count, axes, kind)
                self._known.numbers.add(name)
        for span in graph.get(13, ()):
            self._value_info(span)
        for span in graph.get(14, ()):
            annotation = self.message(span, _ANNOTATION, "an annotation")
            self._metadata(annotation.get(2, ()), "an annotation")
        for index, span in enumerate(graph.get(1, ())):
            self.where = f"node {index}: "
            self._node(span, index, depth)
        self.where = ""
        seen = set()
        floats = []
        for span in outputs:
            name, *_ = self._value_info(span)
            if name not in self._known.counts:
                refuse("outputs that a node defines", shown(name))
            if name in seen:
                refuse("each output once", f"{shown(name)} twice")
            seen.add(name)
            floats.append(name in self._known.floats)
        if not outputs:
            refuse("a graph with outputs", "none")
        if depth:
            self._known.forget(before)
        return floats

    def _node(self, span: tuple[int, int], index: int, depth: int) -> None:
        self._nodes += 1
        if self._nodes > Limits.NODES:
            refuse(f"at most {Limits.NODES} nodes", "more")
        content = self.content
        node = self.message(span, _NODE, "a node")
        operator = self.bytes(node.get(4), "an operator")
        self.operators.add(operator)
        domain = self.bytes(node.get(7), "a domain") or b"ai.onnx"
        try:
            is_known = operator in OPERATORS.get(domain, ()) and domain in self._domains
            if not is_known or node.get(8, (0, 0))[0] != node.get(8, (0, 0))[1]:
                name = operator if domain == b"ai.onnx" else domain + b"." + operator
                refuse("an operator that is allowed, of a declared set", shown(name))
            names = [content[start:end] for start, end in node.get(1, ())]
            results = [self.bytes(each, "a name") for each in node.get(2, ())]
            if len(names) > Limits.ARGUMENTS or len(results) > Limits.ARGUMENTS:
                refuse(f"at most {Limits.ARGUMENTS} inputs and outputs", f"{len(names)} and {len(results)}")
            known = self._known
            counts = known.counts
            for name in names:
                if name and name not in counts:
                    refuse("inputs that are defined before", shown(name))
            attributes = self._attributes(node[5], operator, depth) if 5 in node else {}
            for field in (3, 6):
                if field in node:
                    self.bytes(node[field], "a node's text", Limits.TEXT)
            if 9 in node:
                self._metadata(node[9], "a node")
            values = functools.partial(self._value, names)
            count = 1
            if operator in KEEP_SIZES:
                count = max([counts[name] for name in names if name], default=1)
            elif operator in FREE_SIZES:
                count = self._count(FREE_SIZES[operator], values, names)
            elif operator == b"Constant":
                count = self._constant(attributes, results)
            elif operator == b"If":
                known.floats.update(self._branches(attributes, names, results, depth))
            require_safe(operator, names, known, values, attributes, len(results))
            if count > self.max_elements:
                refuse(f"tensors of at most {self.max_elements} elements", count)
            floats = [name in known.floats for name in names]
            known.floats.update(float_results(operator, attributes, floats, results))
            known.follow(operator, names, results, values)
            axes = min_axes(operator, attributes, values, [known.axes.get(name, 0) for name in names])
            for name in results:
                if name:
                    known.define(name, count, axes)
                axes = axes if alike(operator) else 0
            if not any(results):
                refuse("a node with outputs", "none")
        except Malformed:
            if self.where == f"node {index}: ":
                name = self.bytes(node.get(3), "a name", Limits.TEXT)
                self.where = f"node {index} ({shown(operator)[1:-1]} {shown(name)}): "
            raise

    def _attributes(self, spans: Any, operator: bytes, depth: int) -> dict[bytes, tuple[int, Any]]:
        """Check the attributes of a node; return the type and the value of each by its name."""
        if len(spans) > Limits.ATTRIBUTES:
            refuse(f"at most {Limits.ATTRIBUTES} attributes", len(spans))
        attributes: dict[bytes, tuple[int, Any]] = {}
        for span in spans:
            attribute = self.message(span, _ATTRIBUTE, "an attribute")
            name = self.bytes(attribute.pop(1, None), "an attribute's name")
            kind = attribute.pop(20, 0)
            if 13 in attribute:
                self.bytes(attribute.pop(13), "an attribute's text", Limits.TEXT)
            if not name or name in attributes:
                refuse("each attribute with a name, once", shown(name))
            field = _ATTRIBUTE_FIELDS.get(kind)
            if field is None or (kind == 5) != (operator == b"If"):
                refuse("an attribute of a known type", f"{shown(name)} of type {kind}")
            if attribute.keys() - {field} or (not attribute and kind not in _MAY_BE_ABSENT):
                refuse(f"the value of the attribute {shown(name)} in field {field}", sorted(attribute))
            value: Any = attribute.get(field)
            if kind in (2, 7):
                value = self._integers(value)
                if name in SPATIAL and any(abs(each) > Limits.SPATIAL for each in value):
                    refuse(f"{shown(name)[1:-1]} of at most {Limits.SPATIAL}", max(map(abs, value)))
                if name in POSITIVE and any(each < 1 for each in value):
                    refuse(f"{shown(name)[1:-1]} of at least 1", min(value))
                if name == b"batch_dims" and not 0 <= value[0] <= Limits.RANK:
                    refuse(f"batch_dims from 0 to {Limits.RANK}", value[0])
                if name in (b"pads", b"output_shape"):
                    self._require_spatial(name, value)
            elif kind == 4:
                value = self.message(value, _TENSOR, "a tensor")
                self._tensor(value)
                if self.is_external and 13 in value:
                    refuse("a tensor's values inline in attributes", "them in another file")
            elif kind == 3:
                value = self.bytes(value, "an attribute", Limits.TEXT)
            attributes[name] = kind, value
        return attributes

    def _require_spatial(self, name: bytes, values: list[int]) -> None:
        half = len(values) // 2
        sizes = (
            [1 + max(0, low + high) for low, high in zip(values[:half], values[half:], strict=False)]
            if name == b"pads"
            else values
        )
        if math.prod(max(1, size) for size in sizes) > self.max_elements:
            refuse(f"{shown(name)[1:-1]} for at most {self.max_elements} elements", values[:8])

    def _branches(
        self, attributes: Mapping[bytes, Any], names: list[bytes], results: list[bytes], depth: int
    ) -> Iterator[bytes]:
        """Check both branches of an If; yield the outputs that hold floating-point numbers in both."""
        if attributes.keys() != {b"then_branch", b"else_branch"} or len(names) != 1 or not names[0]:
            refuse("If with a condition, then_branch and else_branch", sorted(map(shown, attributes)))
        where = self.where
        floats = [self._graph(attributes[branch][1], depth + 1) for branch in (b"then_branch", b"else_branch")]
        if any(len(each) != len(results) for each in floats):
            refuse(f"branches with {len(results)} outputs", "others")
        self.where = where
        return (name for name, *known in zip(results, *floats, strict=True) if all(known))

    def _constant(self, attributes: Mapping[bytes, Any], results: list[bytes]) -> int:
        """Check a Constant and keep its value if it is small; return the number of its elements."""
        value: Any
        name, (kind, value) = next(iter(attributes.items()), (b"", (0, None)))
        known = {b"value": 4, b"value_float": 1, b"value_int": 2, b"value_floats": 6, b"value_ints": 7}
        if len(attributes) != 1 or known.get(name) != kind or len(results) != 1:
            refuse("a constant of one value", ", ".join(map(shown, attributes)) or "none")
        if kind == 4:
            count, _ = self._tensor(value)
            if count <= Limits.CONSTANT:
                self._known.constants[results[0]] = value
            return count
        if kind in (1, 6):
            # An absent number is 0.
            spans = ([value] if value else []) if kind == 1 else value or ()
            content = b"".join(self.content[start:end] for start, end in spans) or b"\0" * (4 if kind == 1 else 0)
            value = list(struct.unpack(f"<{len(content) // 4}f", content))
        if len(value) <= Limits.CONSTANT:
            self._known.constants[results[0]] = value
        return len(value)

    def _values(self, name: bytes) -> list[Any] | None:
        """Return the values of a small constant, or None where the tensor is none."""
        constant = self._known.constants.get(name)
        if constant is None or isinstance(constant, list):
            return constant
        kind = constant.get(2, 0)
        if 13 in constant:
            return None
        for field in (_LONGS, _INTS):
            if field in constant:
                values = self._integers([constant[field]])
                # Other types are read from this field by their bits, of which an integer may have more.
                if field == _LONGS or (kind in (6, 9) and all(-(1 << 31) <= value < 1 << 31 for value in values)):
                    return values
                return None
        if kind == 9 and _RAW in constant:
            return list(self.content[slice(*constant[_RAW])])
        span = constant.get(_RAW) or constant.get(_FLOATS) or constant.get(_DOUBLES)
        if kind not in _FORMATS:
            return None
        if span is None:
            return []
        content = self.content[slice(*span)]
        bits = _TYPES[kind][0]
        return list(struct.unpack(_FORMATS[kind] % (8 * len(content) // bits), content))

    def _value(self, names: list[bytes], index: int) -> list[Any] | None:
        return self._values(names[index]) if index < len(names) else None

    def _count(self, rule: Callable[..., float], values: Values, names: list[bytes]) -> int:
        """Return the min. number of elements of an operator's output, as far as constants say it."""
        counts = [self._known.counts[name] if name else 1 for name in names]
        try:
            return int(rule(values, counts))
        except (ArithmeticError, ValueError):
            return refuse("sizes that are numbers", "others")
