"""Read the protobuf frame of an ONNX file: the places of its tensors' numbers, its operators, its names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from .errors import BundleError, one_line

# Where ONNX's messages hold tensors, by field number; onnx.proto is the specification.
_HOLDS_TENSORS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "initializer", 15: "sparse"},
    "training": {1: "subgraph", 2: "subgraph"},
    "function": {7: "node", 11: "attribute"},
    "subgraph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "initializer": {},
    "tensor": {},
}
_EXTERNAL_DATA = 13
_WHOLE_NUMBER = "[0-9]{1,19}"


def check_external_data(content: Any, place: str, data: Mapping[str, bytes]) -> None:
    """Raise BundleError if a tensor's numbers are neither inline nor in `data`.

    ONNX Runtime would read them from the working directory. Some supported versions follow an absolute path, and take
    "*/_ORT_MEM_ADDR_/*" for this process's own memory. Given files in memory, ONNX Runtime uses them for initializers
    of the main graph, but reads those of a subgraph from the disk.
    """
    try:
        with memoryview(content) as whole:
            tensors = list(_external_tensors(whole, "model"))
    except (IndexError, ValueError, RecursionError):
        raise BundleError(f"{place}: expected an ONNX graph; copy or export the bundle again") from None
    if tensors and not data:
        raise BundleError(
            f"{place}: expected inline numbers, got a tensor whose numbers are in another file; export the bundle again"
        )
    for message, entries in tensors:
        if message != "initializer":
            raise BundleError(
                f"{place}: a tensor's numbers are in another file, which is allowed only for initializers of the "
                "main graph; export the bundle again"
            )
        keys = dict(entries)
        offset, length = keys.get("offset", "0"), keys.get("length", "")
        right = len(keys) == len(entries) and keys.keys() <= {"location", "offset", "length"}
        right = right and keys.get("location") in data
        right = right and bool(re.fullmatch(_WHOLE_NUMBER, offset) and re.fullmatch(_WHOLE_NUMBER, length))
        # ONNX Runtime takes the length 0 for no length.
        if not right or not 0 < int(length) <= len(data[keys["location"]]) - int(offset):
            got = ", ".join(f"{key} {value!r}" for key, value in entries)
            files = " or ".join(f"{name} ({len(part)} bytes)" for name, part in data.items())
            raise BundleError(
                f"{place}: expected a tensor's numbers within {files}, got {got[:300]}; export the bundle again"
            )


def _external_tensors(content: memoryview, message: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the kind of message of each tensor whose numbers are elsewhere, with the keys and values that say where."""
    entries = []
    for number, value in _fields(content):
        if number == _EXTERNAL_DATA and message in ("tensor", "initializer"):
            # Protobuf counts the last of a repeated key or value.
            entry = dict(_fields(value))
            key, text = (bytes(entry.get(number, b"")).decode(errors="replace") for number in (1, 2))
            entries.append((key, text))
        elif number in _HOLDS_TENSORS[message]:
            yield from _external_tensors(value, _HOLDS_TENSORS[message][number])
    if entries:
        yield message, entries


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the content of each field of a protobuf message that has a length."""
    return ((number, value) for number, kind, _, value in raw_fields(content) if kind == 2)


def raw_fields(content: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Yield the number, the wire type, all bytes and the content of each field of a protobuf message."""
    position = 0
    while position < len(content):
        start = position
        tag, position = _varint(content, position)
        # Protobuf's own reader keeps 32 bits of a tag.
        number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
        value = position
        if kind == 0:
            _, position = _varint(content, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, value = _varint(content, position)
            position = value + length
        else:
            raise ValueError(f"wire type {kind}")
        yield number, kind, content[start:position], content[value:position]


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a varint of more than ten bytes")


# The strict reader of `graph_check`.


class Malformed(Exception):
    """What was expected of a graph, and what was found."""


def refuse(expected: str, got: object) -> NoReturn:
    """Raise Malformed."""
    raise Malformed(f"expected {expected}, got {got}")


def shown(content: bytes) -> str:
    """Return a text from a graph as errors show it: short and printable."""
    text = one_line(content[:200].decode(errors="replace"))
    return f"'{text}'" if len(text) <= 80 else f"'{text[:79]}…'"


# More integers than any list of them in a real graph has, and more bytes than any name.
_MAX_INTEGERS = 2**14
_MAX_NAME = 2**12


class Frame:
    """Read messages of which each field is known, and each that may not repeat stands once."""

    def __init__(self, content: Any, max_fields: int) -> None:
        """Take the bytes of a file, or a memory map of them."""
        self.content = content
        self._fields, self._max_fields = 0, max_fields

    def message(self, span: tuple[int, int], schema: dict[int, int], kind: str) -> dict[int, Any]:
        """Return the fields of a message by number: an integer, or the span of bytes; a list of these if repeated."""
        content = self.content
        position, end = span
        fields: dict[int, Any] = {}
        total = self._fields
        for total in range(self._fields, self._max_fields):  # noqa: B007 (its last value is kept)
            if position >= end:
                break
            tag = content[position]
            position += 1
            if tag >= 0x80:
                tag, position = self._varint(position - 1)
            number = schema.get(tag)
            if number is None:
                refuse(f"a known field of {kind}", f"field {tag >> 3} of wire type {tag & 7}")
            wire = tag & 7
            if wire == 2:
                length = content[position]
                position += 1
                if length >= 0x80:
                    length, position = self._varint(position - 1)
                value: Any = (position, position + length)
                position += length
            elif wire == 0:
                value = content[position]
                position += 1
                if value >= 0x80:
                    value, position = self._varint(position - 1)
            else:
                value = (position, position + 4)
                position += 4
            if number < 0:
                if -number in fields:
                    fields[-number].append(value)
                else:
                    fields[-number] = [value]
            elif number in fields:
                refuse(f"field {number} of {kind} once", "it twice")
            else:
                fields[number] = value
        else:
            refuse(f"at most {self._max_fields} fields", "more")
        if position != end:
            refuse(f"{kind} that ends within its bytes", f"a field that ends {position - end} bytes later")
        self._fields = total
        return fields

    def _varint(self, position: int) -> tuple[int, int]:
        content, value = self.content, 0
        for shift in range(0, 70, 7):
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 or value >= 1 << 64:
                    break
                return value, position
        return refuse("integers of 64 bits in their shortest form", "a longer one")

    def bytes(self, span: tuple[int, int] | None, what: str, most: int = _MAX_NAME) -> bytes:
        """Return a text field, empty where it is absent."""
        if span is None:
            return b""
        start, end = span
        if end - start > most:
            refuse(f"{what} of at most {most} bytes", end - start)
        text: bytes = self.content[start:end]
        if not text.isascii():
            # ONNX Runtime takes any bytes, and its Python binding fails on them.
            try:
                text.decode()
            except UnicodeDecodeError:
                refuse(f"{what} in UTF-8", shown(text))
        return text

    def packed_integers(self, span: tuple[int, int]) -> list[int]:
        """Return the integers of a packed field, without signs."""
        position, end = span
        if end - position > 10 * _MAX_INTEGERS:
            refuse(f"at most {_MAX_INTEGERS} integers", "more")
        values = []
        while position < end:
            value, position = self._signed(position)
            values.append(value)
        if position != end:
            refuse("integers within their bytes", "others")
        # Each takes the time of a field.
        self._fields += len(values)
        if self._fields > self._max_fields:
            refuse(f"at most {self._max_fields} fields and integers", "more")
        return values

    def _signed(self, position: int) -> tuple[int, int]:
        byte = self.content[position]
        return (byte, position + 1) if byte < 0x80 else self._varint(position)


# An operator is a domain, the version of its operator set, and a name.

# Where ONNX's messages hold nodes, by field number; onnx.proto is the specification.
_HOLDS_NODES = {
    "model": {7: "graph"},
    "graph": {1: "node"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
}
# Numbers of other fields of a model, a function and a node.
_MODEL_OPSET, _MODEL_FUNCTION = 8, 25
_FUNCTION_NAME, _FUNCTION_OPSET, _FUNCTION_DOMAIN = 1, 9, 10
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7


def operators_of(content: bytes, place: str) -> set[tuple[str, int, str]]:
    """Return the operators of a graph, its subgraphs and its functions, without calls of those functions.

    Raises:
        BundleError: the content is not an ONNX graph.
    """
    try:
        with memoryview(content) as model:
            functions = [value for number, value in _fields(model) if number == _MODEL_FUNCTION]
            own = {(_text(each, _FUNCTION_DOMAIN), _text(each, _FUNCTION_NAME)) for each in functions}
            parts = [("model", model, _MODEL_OPSET), *(("function", each, _FUNCTION_OPSET) for each in functions)]
            operators = set()
            for kind, part, opset in parts:
                versions = dict(_version(value) for number, value in _fields(part) if number == opset)
                for node in _nodes(part, kind):
                    operator = _text(node, _NODE_DOMAIN), _text(node, _NODE_OPERATOR)
                    if operator not in own:
                        domain = operator[0] or "ai.onnx"
                        operators.add((domain, versions[domain], operator[1]))
    except (IndexError, KeyError, ValueError, RecursionError):
        raise BundleError(f"{place}: expected an ONNX graph; copy or export the bundle again") from None
    return operators


def names_of(content: bytes, place: str) -> tuple[list[str], list[str]]:
    """Return the names of a graph's inputs and outputs, in its own order.

    Raises:
        BundleError: the content is not an ONNX graph.
    """
    graph, initializers, inputs, outputs = 7, 5, 11, 12
    try:
        with memoryview(content) as model:
            fields = list(_fields(dict(_fields(model))[graph]))
            # Before IR version 4, the weights stand among the inputs.
            weights = {_text(value, 8) for number, value in fields if number == initializers}
            taken = [_text(value, 1) for number, value in fields if number == inputs]
            given = [_text(value, 1) for number, value in fields if number == outputs]
    except (IndexError, KeyError, ValueError):
        raise BundleError(f"{place}: expected an ONNX graph; copy or export the bundle again") from None
    return [name for name in taken if name not in weights], given


def _nodes(content: memoryview, message: str) -> Iterator[memoryview]:
    for number, value in _fields(content):
        below = _HOLDS_NODES[message].get(number)
        if below == "node":
            yield value
        if below is not None:
            yield from _nodes(value, below)


def _text(content: memoryview, field: int) -> str:
    """Return a text field of a message; protobuf counts the last where it is repeated."""
    return bytes(dict(_fields(content)).get(field, b"")).decode()


def _version(content: memoryview) -> tuple[str, int]:
    """Return the domain and version of an operator set, an OperatorSetIdProto."""
    domain, version, position = _text(content, 1), 0, 0
    while position < len(content):
        tag, position = _varint(content, position)
        value, position = _varint(content, position)
        if tag == 1 << 3 | 2:
            position += value
        elif tag == 2 << 3:
            version = value
        else:
            raise ValueError(f"tag {tag}")
    return domain or "ai.onnx", version
