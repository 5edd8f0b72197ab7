"""The table of formats: write a shard batch by batch, read rows without loading the whole file.

Rows are numbers of one type, or structured: one array for each field. docs/offline-generation.md describes the files.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import InputError
from . import npy, parquet, safetensors
from .row_types import Rows


class Format(Protocol):
    """The interface of a format's module."""

    COMPRESSED: bool
    """Whether the size of a shard depends on its numbers."""

    def require(self) -> None:
        """Raise VaeError if the library that writes the format is not installed."""

    def write(
        self, file: io.RawIOBase, shape: tuple[int, ...], dtype: np.dtype[Any], batches: Iterable[NDArray[Any]],
        about: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Write a shard, as the function `write` of this module describes it; the batches have been checked."""

    def read(self, source: Path | bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
        """Open a shard, as the function `read` of this module describes it."""


_TABLE: Mapping[str, Format] = {"npy": npy, "parquet": parquet, "safetensors": safetensors}
FORMATS = tuple(_TABLE)


def require(name: str) -> None:
    """Check that a format is known and can be written here.

    Raises:
        InputError: the format is unknown.
        VaeError: the library of the format is not installed; the message names the extra.
    """
    require_known(name)
    _TABLE[name].require()


def require_known(name: str) -> None:
    """Check that a format is known.

    Raises:
        InputError: it is unknown.
    """
    if name not in FORMATS:
        raise InputError(f"format: expected {', '.join(FORMATS)}, got {name!r}")


def is_compressed(name: str) -> bool:
    """Return whether the size of a shard in this format depends on its numbers."""
    return _TABLE[name].COMPRESSED


def write(
    name: str, file: io.RawIOBase, shape: tuple[int, ...], dtype: DTypeLike, batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    """Write a shard batch by batch; safetensors with several fields hold the whole shard in memory.

    Args:
        name: the format, one of FORMATS.
        file: written from front to end, never sought in.
        shape: [rows, ...] of all batches together.
        dtype: of the rows, structured or not.
        batches: the rows, in order; each may reuse the memory of the one before it.
        about: metadata, for formats that store them; `start` is the index of the first row.

    Raises:
        OSError: the file cannot be written.
        InputError: the batches have another shape or dtype, or the format cannot store them.
        VaeError: the format's library is not installed.
    """
    _TABLE[name].write(file, shape, np.dtype(dtype), _checked(batches, shape, np.dtype(dtype)), about)


def read(name: str, source: Path | bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Rows:
    """Open the rows of a shard; a file on this machine is mapped, not loaded.

    Args:
        name: the format, one of FORMATS.
        source: the file, or its content.
        shape: the expected shape, [rows, ...].
        dtype: the expected dtype.

    Returns:
        A function that returns rows; several threads may call it at once.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds something else; the returned function raises it, too.
        VaeError: the format's library is not installed.
    """
    return _TABLE[name].read(source, shape, np.dtype(dtype))


def _checked(batches: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Yield the batches, checked: behind a header for another dtype their bytes would read as other numbers."""
    rows = 0
    for batch in batches:
        rows += len(batch)
        if batch.dtype != dtype or batch.shape[1:] != shape[1:] or rows > shape[0]:
            break
        yield batch
    else:
        if rows == shape[0]:
            return
        batch = np.empty((0, *shape[1:]), dtype)
    raise InputError(f"batches: expected {dtype} {list(shape)} in total, got {batch.dtype} {[rows, *batch.shape[1:]]}")
