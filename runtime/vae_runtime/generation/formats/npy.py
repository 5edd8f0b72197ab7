"""Rows as one array behind numpy's header."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .row_types import Rows, expect, row_bytes

COMPRESSED = False


def require() -> None:
    """Accept: numpy is always installed."""


def write(
    file: io.RawIOBase, shape: tuple[int, ...], dtype: np.dtype[Any], batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    """Write a header, then the rows."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    for batch in batches:
        file.write(row_bytes(batch))


def read(source: Path | bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    """Map the array of a file, or read its content."""
    try:
        if isinstance(source, bytes):
            rows: NDArray[Any] = np.lib.format.read_array(io.BytesIO(source), allow_pickle=False)
        else:
            rows = np.lib.format.open_memmap(source, mode="r")
    except (
        SyntaxError,
        TypeError,
        tokenize.TokenError,
    ) as error:  # numpy parses headers as Python
        raise ValueError(f"expected a header of npy: {error}") from error
    expect(f"{dtype} {list(shape)}", f"{rows.dtype} {list(rows.shape)}")
    return rows.__getitem__
