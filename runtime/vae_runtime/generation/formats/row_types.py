"""The types of rows, and what formats share: the fields of a row, and rows in groups of a size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import InputError

__all__ = [
    "TYPES", "Rows", "dtype_from_json", "dtype_to_json", "expect", "group_size", "regrouped", "row_bytes", "row_fields",
]  # fmt: skip

# At least one row of a shard, by a slice of step 1 or by numbers in ascending order; what is given may be a view.
Rows = Callable[[slice | NDArray[np.int64]], NDArray[Any]]

# The types that every format has, with safetensors' names of them.
TYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "uint32": "U32",
    "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip
# What a field may be called: as the tensors of a bundle.
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_.]*")
# Bytes of rows that lie together in a file, about: decoding one row of Parquet decodes its group.
_GROUP_BYTES = 2**20


def dtype_to_json(dtype: DTypeLike) -> str | list[Any]:
    """A dtype of rows as JSON has it: its name, or a list of [field, name, shape]."""
    kind = np.dtype(dtype)
    if kind.names is None:
        return kind.name
    return [[name, kind[name].base.name, list(kind[name].shape)] for name in kind.names]


def dtype_from_json(value: object) -> np.dtype[Any]:
    """The dtype of rows that `dtype_to_json` wrote; fields lie side by side.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, str) and value in TYPES:
        return np.dtype(value)
    fields: list[tuple[str, str, tuple[int, ...]]] = []
    for field in value if isinstance(value, list) else [value]:
        match field:
            case [str(name), str(kind), list(sizes)] if (
                _NAME.fullmatch(name) and kind in TYPES and all(type(size) is int and size > 0 for size in sizes)
            ):
                fields.append((name, kind, tuple(sizes)))
            case _:
                raise InputError(f"dtype: a type of numbers or [[name, type, shape], …] is expected, got {field!r:.99}")
    try:
        if not fields:
            raise ValueError("there is none")
        return np.dtype(fields)
    except (ValueError, OverflowError) as error:
        raise InputError(f"dtype: fields of a structured array are expected: {error}") from error


def row_fields(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The arrays that the rows consist of, by name: their type, and the shape of one row."""
    if dtype.names is None:
        return {"x": (dtype, shape[1:])}
    return {name: (dtype[name].base, (*shape[1:], *dtype[name].shape)) for name in dtype.names}


def regrouped(
    batches: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any], size: int
) -> Iterator[NDArray[Any]]:
    """The rows in groups of a size, the last one shorter, each where the one before it lay."""
    group, filled = np.empty((size, *shape[1:]), dtype), 0
    for batch in batches:
        done = 0
        while done < len(batch):
            rows = batch[done : done + size - filled]
            group[filled : filled + len(rows)] = rows
            done, filled = done + len(rows), filled + len(rows)
            if filled == size:
                yield group
                filled = 0
    if filled:
        yield group[:filled]


def group_size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return how many rows make up a group of about 1 MB."""
    return min(shape[0], max(1, _GROUP_BYTES // (math.prod(shape[1:]) * dtype.itemsize)))


def row_bytes(rows: NDArray[Any]) -> memoryview:
    """Return the bytes of the rows, in C order."""
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def expect(wanted: object, found: object) -> None:
    """Raise ValueError where a file holds something else than was expected."""
    if wanted != found:
        raise ValueError(f"{wanted} is expected, got {found}")
