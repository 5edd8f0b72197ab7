"""Write the fields of protobuf messages, of which ONNX files consist."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """Return an integer as protobuf writes it: 7 bits in a byte, the lowest first."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def integer_field(number: int, value: int) -> bytes:
    """Return a field that holds an integer."""
    return varint(number << 3) + varint(value)


def bytes_field(number: int, content: bytes) -> bytes:
    """Return a field that holds bytes, a text or another message."""
    return varint(number << 3 | 2) + varint(len(content)) + content
