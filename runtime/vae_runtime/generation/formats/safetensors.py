"""Rows as tensors, one for each field; written without the library, which only writes whole tensors."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import VaeError
from .row_types import TYPES, Rows, expect, group_size, regrouped, row_bytes, row_fields

COMPRESSED = False


def require() -> None:
    """Accept: the library is only needed for reading."""


def write(
    file: io.RawIOBase, shape: tuple[int, ...], dtype: np.dtype[Any], batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    """Write one tensor after the other; a shard of several fields is held in memory as a whole."""
    # The library only writes tensors that lie in memory, and orders `about` differently in each process.
    # Wide types first, so that every tensor is aligned.
    fields = sorted(row_fields(shape, dtype).items(), key=lambda field: (-field[1][0].itemsize, field[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(about.items()))}
    end = 0
    for name, (kind, row) in fields:
        begin, end = end, end + shape[0] * math.prod(row) * kind.itemsize
        header[name] = {"dtype": TYPES[kind.name], "shape": [shape[0], *row], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    if dtype.names is None:
        for batch in batches:
            file.write(row_bytes(batch))
        return
    # One tensor lies after the other: all rows must be there before the second begins.
    size = group_size(shape, dtype)
    for rows in regrouped(batches, shape, dtype, shape[0]):
        for name, _ in fields:
            for first in range(0, len(rows), size):
                file.write(row_bytes(rows[name][first : first + size]))


def read(source: Path | bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    """Open a shard: map the tensors of a file, or parse its content."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise VaeError(
            "format: reading safetensors needs its library, which is not installed: "
            "pip install 'vae-runtime[safetensors]', or write npy"
        ) from error
    tensors: dict[str, Any]
    try:
        if isinstance(source, bytes):
            tensors = safetensors.numpy.load(source)
            actual = {name: (TYPES.get(tensor.dtype.name), list(tensor.shape)) for name, tensor in tensors.items()}
        else:
            file: Any = safetensors.safe_open(source, framework="numpy")
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
            actual = {name: (each.get_dtype(), list(each.get_shape())) for name, each in tensors.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    fields = row_fields(shape, dtype)
    expect({name: (TYPES[kind.name], [shape[0], *row]) for name, (kind, row) in fields.items()}, actual)

    def take(tensor: Any, which: slice | NDArray[np.int64]) -> NDArray[Any]:
        # A mapped tensor only supports slices.
        if isinstance(which, slice) or isinstance(tensor, np.ndarray):
            rows: NDArray[Any] = tensor[which]
            return rows
        return np.concatenate([tensor[i : i + 1] for i in which.tolist()])

    def rows(which: slice | NDArray[np.int64]) -> NDArray[Any]:
        taken = {name: take(tensor, which) for name, tensor in tensors.items()}
        if dtype.names is None:
            return taken["x"]
        out = np.empty((len(taken[dtype.names[0]]), *shape[1:]), dtype)
        for name, values in taken.items():
            out[name] = values
        return out

    return rows
