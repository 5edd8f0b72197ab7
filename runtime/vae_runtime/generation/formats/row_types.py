"""The types of rows, and what formats share: the fields of a row, and rows in groups of a size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import InputError

# Reads rows of a shard, at least one: by a slice of step 1, or by numbers in ascending order. It may return a view.
Rows = Callable[[slice | NDArray[np.int64]], NDArray[Any]]

# The types that every format has, with their names in safetensors.
TYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "uint32": "U32",
    "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip
# Names of fields follow the rule for the names of tensors in a bundle.
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_.]*")
# Approximate bytes of a group of rows. To decode one row of Parquet is to decode its group.
_GROUP_BYTES = 2**20


def dtype_to_json(dtype: DTypeLike) -> str | list[Any]:
    """Return a dtype of rows in the form for JSON: its name, or a list of [field, name, shape]."""
    kind = np.dtype(dtype)
    if kind.names is None:
        return kind.name
    return [[name, kind[name].base.name, list(kind[name].shape)] for name in kind.names]


def dtype_from_json(value: object) -> np.dtype[Any]:
    """Return the dtype of rows that `dtype_to_json` wrote; fields lie side by side.

    Raises:
        InputError: the value describes no such dtype.
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
                raise InputError(f"dtype: expected a type of numbers or [[name, type, shape], …], got {field!r:.99}")
    try:
        if not fields:
            raise ValueError("the list is empty")
        return np.dtype(fields)
    except (ValueError, OverflowError) as error:
        raise InputError(f"dtype: expected the fields of a structured array: {error}") from error


def row_fields(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return the type and the shape of one row of each array that the rows consist of, by name."""
    if dtype.names is None:
        return {"x": (dtype, shape[1:])}
    return {name: (dtype[name].base, (*shape[1:], *dtype[name].shape)) for name in dtype.names}


def regrouped(
    batches: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any], size: int
) -> Iterator[NDArray[Any]]:
    """Yield the rows in groups of a size, the last one shorter; a group is valid until the next."""
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


def expect(expected: object, actual: object) -> None:
    """Raise ValueError if a file does not hold what was expected."""
    if expected != actual:
        raise ValueError(f"expected {expected}, got {actual}")
