"""Rows as a table: a column of indices, and one of fixed-size binary for each field."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, VaeError
from .row_types import Rows, expect, group_size, regrouped, row_bytes, row_fields

_METADATA = b"vae_runtime"

COMPRESSED = True


def require() -> None:
    """See that pyarrow is installed.

    Raises:
        VaeError: it is not; the message names the extra.
    """
    _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise VaeError(
            "format: parquet needs pyarrow, which is not installed: pip install 'vae-runtime[parquet]', or write npy"
        ) from error
    return pyarrow


def _schema(shape: tuple[int, ...], dtype: np.dtype[Any], about: Mapping[str, str]) -> Any:
    pa, fields = _pyarrow(), row_fields(shape, dtype)
    if "index" in fields:
        raise InputError("format: expected no field called index, which is a column of every Parquet file")
    columns = [pa.field("index", pa.int64(), nullable=False)]
    for name, (kind, row) in fields.items():
        width = math.prod(row) * kind.itemsize
        if width >= 2**31:
            raise InputError(
                f"format: expected rows of less than 2 GiB for parquet, got {width} bytes; choose another format"
            )
        columns.append(pa.field(name, pa.binary(width), nullable=False))
    return pa.schema(columns, metadata={_METADATA: json.dumps({**about, "fields": _described(fields)}, sort_keys=True)})


def _described(fields: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> dict[str, Any]:
    return {name: {"dtype": kind.name, "shape": list(row)} for name, (kind, row) in fields.items()}


def write(
    file: io.RawIOBase, shape: tuple[int, ...], dtype: np.dtype[Any], batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    """Write the rows in groups of about 1 MB."""
    pa = _pyarrow()
    schema, first = _schema(shape, dtype, about), int(about["start"])
    with pa.parquet.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=False, write_statistics=["index"], write_page_checksum=True
    ) as writer:
        for rows in regrouped(batches, shape, dtype, group_size(shape, dtype)):
            columns = [pa.array(np.arange(first, first + len(rows)))]
            for column in schema.names[1:]:
                values = pa.py_buffer(row_bytes(rows if dtype.names is None else rows[column]))
                kind = schema.field(column).type
                columns.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, values]))
            writer.write_batch(pa.record_batch(columns, schema=schema))
            first += len(rows)


def read(source: Path | bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    """Open a shard; rows are decoded a group at a time."""
    pa, fields = _pyarrow(), row_fields(shape, dtype)
    try:
        file = pa.parquet.ParquetFile(
            pa.BufferReader(source) if isinstance(source, bytes) else source, memory_map=True,
            page_checksum_verification=True,
        )  # fmt: skip
        about = json.loads((file.schema_arrow.metadata or {}).get(_METADATA, "{}"))
        actual = {column.name: str(column.type) for column in file.schema_arrow}
        expected = {column.name: str(column.type) for column in _schema(shape, dtype, {})}
        expect({"rows": shape[0], **expected}, {"rows": file.metadata.num_rows, **actual})
        expect(_described(fields), about.get("fields") if isinstance(about, dict) else about)
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    except (pa.ArrowException, RecursionError) as error:
        raise ValueError(str(error)) from error
    starts = np.cumsum([0, *groups])
    # An Arrow file serves one thread at a time. The last decoded group is kept for neighboring rows.
    lock, last = threading.Lock(), (-1, np.empty(0, dtype))

    def decoded(group: int) -> NDArray[Any]:
        nonlocal last
        if last[0] == group:
            return last[1]
        try:
            table = file.read_row_group(group, columns=list(fields), use_threads=False)
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
        out = np.empty((groups[group], *shape[1:]), dtype)
        for name, (kind, row) in fields.items():
            column, width = table.column(name).combine_chunks(), math.prod(row)
            values = np.frombuffer(column.buffers()[1], kind, len(out) * width, column.offset * width * kind.itemsize)
            (out if dtype.names is None else out[name])[...] = values.reshape(len(out), *row)
        last = group, out
        return out

    def rows(which: slice | NDArray[np.int64]) -> NDArray[Any]:
        numbers = np.arange(which.start, which.stop) if isinstance(which, slice) else which
        out = np.empty((len(numbers), *shape[1:]), dtype)
        cuts = np.searchsorted(numbers, starts)
        with lock:
            for group in np.flatnonzero(np.diff(cuts)).tolist():
                chosen = slice(cuts[group], cuts[group + 1])
                out[chosen] = decoded(group)[numbers[chosen] - starts[group]]
        return out

    return rows
