"""Write scores as a table, part by part: CSV, JSON lines, Parquet, .npy or .npz, with the number of each row."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .places import archive_entry
from .row_files import pyarrow

# The columns of a part of the rows by name: [m] each.
Columns = Mapping[str, NDArray[Any]]

# The dtype of each column, and of arrays in it the shape.
Kinds = Mapping[str, np.dtype[Any]]
# Goes through the parts, each time from the first.
Parts = Callable[[], Iterable[Columns]]

SUFFIXES = (".csv", ".jsonl", ".parquet", ".npy", ".npz")


def table_writer(path: Path) -> Callable[[IO[bytes], Kinds, int, Parts], None]:
    """The function that writes the columns of a file of this name, of known dtypes and number of rows.

    Raises:
        VaeError: pyarrow is missing, for a Parquet file.
    """
    if path.suffix == ".parquet":
        pyarrow("writing .parquet")
    writers = (_write_csv, _write_lines, _write_parquet, _write_npy, _write_npz)
    return dict(zip(SUFFIXES, writers, strict=True))[path.suffix]


def _write_csv(file: IO[bytes], kinds: Kinds, n: int, parts: Parts) -> None:
    file.write(f"{','.join(kinds)}\n".encode())
    for part in parts():
        rows = zip(*(part[name].tolist() for name in kinds), strict=True)
        file.write("".join(f"{','.join(map(repr, row))}\n" for row in rows).encode())


def _write_lines(file: IO[bytes], kinds: Kinds, n: int, parts: Parts) -> None:
    """A JSON object for each row; a number that JSON has not is null."""
    for part in parts():
        for row in zip(*(part[name].tolist() for name in kinds), strict=True):
            values = {name: value if math.isfinite(value) else None for name, value in zip(kinds, row, strict=True)}
            file.write(f"{json.dumps(values)}\n".encode())


def _write_parquet(file: IO[bytes], kinds: Kinds, n: int, parts: Parts) -> None:
    pa = pyarrow("writing .parquet")
    schema = pa.schema([pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in kinds.items()])
    with pa.parquet.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for part in parts():
            writer.write_batch(pa.record_batch([pa.array(part[name]) for name in kinds], schema=schema))


def _write_npy(file: IO[bytes], kinds: Kinds, n: int, parts: Parts) -> None:
    """A structured array with a field for each column."""
    kind = np.dtype(list(kinds.items()))
    write_header(file, kind, (n,))
    for part in parts():
        rows = np.empty(len(next(iter(part.values()))), kind)
        for name in kinds:
            rows[name] = part[name]
        file.write(rows.tobytes())


def _write_npz(file: IO[bytes], kinds: Kinds, n: int, parts: Parts) -> None:
    """An array for each column; they may have more axes."""
    import zipfile

    with zipfile.ZipFile(file, "w") as archive:
        for name, kind in kinds.items():
            with archive.open(archive_entry(f"{name}.npy"), "w", force_zip64=True) as member:
                write_header(member, kind.base, (n, *kind.shape))
                for part in parts():
                    member.write(np.ascontiguousarray(part[name]).tobytes())


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: Sequence[int]) -> None:
    """Write the header of an .npy file, behind which the values follow in the order of C."""
    header = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, about)
    file.write(header.getvalue())
