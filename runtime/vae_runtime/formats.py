"""How the rows of a shard lie in its file: written batch by batch, read without loading more than is asked for."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMATS", "read", "write"]

FORMATS = ("npy",)


def write(
    name: str, file: io.RawIOBase, shape: tuple[int, ...], dtype: str, batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    """Write a shard.

    Args:
        name: of the format, one of FORMATS.
        file: written from front to end, never sought in.
        shape: [rows, ...] of all batches together.
        dtype: of the rows.
        batches: the rows, in order.
        about: what a reader may want to know, for formats that keep such words.
    """
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )
    for batch in batches:
        file.write(batch.data if batch.flags.c_contiguous else batch.tobytes())


def read(name: str, source: Path | bytes) -> NDArray[Any]:
    """The rows of a shard: mapped from a file, or out of its bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold rows of this format.
    """
    if isinstance(source, bytes):
        rows: NDArray[Any] = np.load(io.BytesIO(source), allow_pickle=False)
    else:
        rows = np.load(source, mmap_mode="r", allow_pickle=False)
    return rows
