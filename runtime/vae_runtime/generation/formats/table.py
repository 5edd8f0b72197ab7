"""The table of formats: write a shard batch by batch, read it without loading more than is asked for.

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

__all__ = ["FORMATS", "Format", "read", "require", "write"]


class Format(Protocol):
    """The interface of a format's module."""

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
    """See that a format is known and can be written here.

    Raises:
        InputError: it is not known.
        VaeError: its library is not installed; the message names the extra.
    """
    if name not in FORMATS:
        raise InputError(f"format: {', '.join(FORMATS)} is expected, got {name!r}")
    _TABLE[name].require()


def write(
    name: str, file: io.RawIOBase, shape: tuple[int, ...], dtype: DTypeLike, batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    """Write a shard; no more than a batch is held, of safetensors with several fields the whole shard.

    Args:
        name: of the format, one of FORMATS.
        file: written from front to end, never sought in.
        shape: [rows, ...] of all batches together.
        dtype: of the rows, structured or not.
        batches: the rows, in order; each may lie where the one before it did.
        about: what a reader may want to know, for formats that keep such words; `start` is the first row's index.

    Raises:
        OSError: the file cannot be written.
        InputError: the batches are not of this shape and dtype, or the format has none for them.
        VaeError: the format's library is not installed.
    """
    _TABLE[name].write(file, shape, np.dtype(dtype), _checked(batches, shape, np.dtype(dtype)), about)


def read(name: str, source: Path | bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Rows:
    """The rows of a shard, without loading a file that lies on this machine.

    Args:
        name: of the format, one of FORMATS.
        source: the file, or its content.
        shape: [rows, ...] that is expected.
        dtype: that is expected.

    Returns:
        A function that gives rows; it may be called by several threads at once.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else; the rows' function raises it too.
        VaeError: the format's library is not installed.
    """
    return _TABLE[name].read(source, shape, np.dtype(dtype))


def _checked(batches: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """The batches; a header that was written for others would make numbers of another meaning of them."""
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
    raise InputError(f"batches: {dtype} {list(shape)} in all is expected, got {batch.dtype} {[rows, *batch.shape[1:]]}")
