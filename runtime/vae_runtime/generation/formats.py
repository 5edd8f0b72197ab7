"""How the rows of a shard lie in its file: written batch by batch, read without loading more than is asked for.

Rows are numbers of one type, or structured: one array for each field. docs/offline-generation.md describes the files.
"""

from __future__ import annotations

import io
import json
import math
import re
import threading
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import InputError, VaeError

__all__ = ["FORMATS", "Rows", "dtype_from_json", "dtype_to_json", "read", "require", "write"]

FORMATS = ("npy", "parquet", "safetensors")
# At least one row of a shard, by a slice of step 1 or by numbers in ascending order; what is given may be a view.
Rows = Callable[[slice | NDArray[np.int64]], NDArray[Any]]

# The types that every format has, with safetensors' names of them.
_TYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "uint32": "U32",
    "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip
# What a field may be called: as the tensors of a bundle.
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_.]*")
# Bytes of a Parquet row group, about: decoding one row decodes its group.
_GROUP_BYTES = 2**20
_METADATA = b"vae_runtime"


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
    if isinstance(value, str) and value in _TYPES:
        return np.dtype(value)
    fields: list[tuple[str, str, tuple[int, ...]]] = []
    for field in value if isinstance(value, list) else [value]:
        match field:
            case [str(name), str(kind), list(sizes)] if (
                _NAME.fullmatch(name) and kind in _TYPES and all(type(size) is int and size > 0 for size in sizes)
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


def require(name: str) -> None:
    """See that a format is known and can be written here.

    Raises:
        InputError: it is not known.
        VaeError: its library is not installed; the message names the extra.
    """
    if name not in FORMATS:
        raise InputError(f"format: {', '.join(FORMATS)} is expected, got {name!r}")
    if name == "parquet":
        _pyarrow()


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
    writers = {"npy": _write_npy, "parquet": _write_parquet, "safetensors": _write_safetensors}
    writers[name](file, shape, np.dtype(dtype), _checked(batches, shape, np.dtype(dtype)), about)


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
    readers = {"npy": _read_npy, "parquet": _read_parquet, "safetensors": _read_safetensors}
    return readers[name](source, shape, np.dtype(dtype))


def _fields(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The arrays that the rows consist of, by name: their type, and the shape of one row."""
    if dtype.names is None:
        return {"x": (dtype, shape[1:])}
    return {name: (dtype[name].base, (*shape[1:], *dtype[name].shape)) for name in dtype.names}


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


def _regrouped(
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


def _group_size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return min(shape[0], max(1, _GROUP_BYTES // (math.prod(shape[1:]) * dtype.itemsize)))


def _bytes(rows: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


# npy.


def _write_npy(
    file: io.RawIOBase, shape: tuple[int, ...], dtype: np.dtype[Any], batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    for batch in batches:
        file.write(_bytes(batch))


def _read_npy(source: Path | bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    try:
        if isinstance(source, bytes):
            rows: NDArray[Any] = np.lib.format.read_array(io.BytesIO(source), allow_pickle=False)
        else:
            rows = np.lib.format.open_memmap(source, mode="r")
    except (SyntaxError, TypeError, tokenize.TokenError) as error:  # of a damaged header, which numpy reads as Python
        raise ValueError(f"a header of npy is expected: {error}") from error
    _expect(f"{dtype} {list(shape)}", f"{rows.dtype} {list(rows.shape)}")
    return rows.__getitem__


# safetensors.


def _write_safetensors(
    file: io.RawIOBase, shape: tuple[int, ...], dtype: np.dtype[Any], batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    # The library serialises only what lies in memory as a whole, and orders `about` differently in each process.
    # Wide types first, so that every tensor is aligned.
    fields = sorted(_fields(shape, dtype).items(), key=lambda field: (-field[1][0].itemsize, field[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(about.items()))}
    end = 0
    for name, (kind, row) in fields:
        begin, end = end, end + shape[0] * math.prod(row) * kind.itemsize
        header[name] = {"dtype": _TYPES[kind.name], "shape": [shape[0], *row], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    if dtype.names is None:
        for batch in batches:
            file.write(_bytes(batch))
        return
    # One tensor lies after the other: all rows must be there before the second begins.
    size = _group_size(shape, dtype)
    for rows in _regrouped(batches, shape, dtype, shape[0]):
        for name, _ in fields:
            for first in range(0, len(rows), size):
                file.write(_bytes(rows[name][first : first + size]))


def _read_safetensors(source: Path | bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise VaeError(
            "format: safetensors is read with its library, which is not installed: "
            "pip install 'vae-runtime[safetensors]', or write npy"
        ) from error
    tensors: dict[str, Any]
    try:
        if isinstance(source, bytes):
            tensors = safetensors.numpy.load(source)
            found = {name: (_TYPES.get(tensor.dtype.name), list(tensor.shape)) for name, tensor in tensors.items()}
        else:
            file: Any = safetensors.safe_open(source, framework="numpy")
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
            found = {name: (each.get_dtype(), list(each.get_shape())) for name, each in tensors.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    fields = _fields(shape, dtype)
    _expect({name: (_TYPES[kind.name], [shape[0], *row]) for name, (kind, row) in fields.items()}, found)

    def take(tensor: Any, which: slice | NDArray[np.int64]) -> NDArray[Any]:
        # A mapped tensor gives slices alone.
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


# Parquet.


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
    pa, fields = _pyarrow(), _fields(shape, dtype)
    if "index" in fields:
        raise InputError("format: a field of another name than index is expected, which is a column of its own")
    columns = [pa.field("index", pa.int64(), nullable=False)]
    for name, (kind, row) in fields.items():
        width = math.prod(row) * kind.itemsize
        if width >= 2**31:
            raise InputError(f"format: parquet holds rows of less than 2 GiB, got {width} bytes; choose another format")
        columns.append(pa.field(name, pa.binary(width), nullable=False))
    return pa.schema(columns, metadata={_METADATA: json.dumps({**about, "fields": _described(fields)}, sort_keys=True)})


def _described(fields: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> dict[str, Any]:
    return {name: {"dtype": kind.name, "shape": list(row)} for name, (kind, row) in fields.items()}


def _write_parquet(
    file: io.RawIOBase, shape: tuple[int, ...], dtype: np.dtype[Any], batches: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:  # fmt: skip
    pa = _pyarrow()
    schema, first = _schema(shape, dtype, about), int(about["start"])
    with pa.parquet.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=False, write_statistics=["index"], write_page_checksum=True
    ) as writer:
        for rows in _regrouped(batches, shape, dtype, _group_size(shape, dtype)):
            columns = [pa.array(np.arange(first, first + len(rows)))]
            for column in schema.names[1:]:
                values = pa.py_buffer(_bytes(rows if dtype.names is None else rows[column]))
                kind = schema.field(column).type
                columns.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, values]))
            writer.write_batch(pa.record_batch(columns, schema=schema))
            first += len(rows)


def _read_parquet(source: Path | bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    pa, fields = _pyarrow(), _fields(shape, dtype)
    try:
        file = pa.parquet.ParquetFile(
            pa.BufferReader(source) if isinstance(source, bytes) else source, memory_map=True,
            page_checksum_verification=True,
        )  # fmt: skip
        about = json.loads((file.schema_arrow.metadata or {}).get(_METADATA, "{}"))
        found = {column.name: str(column.type) for column in file.schema_arrow}
        wanted = {column.name: str(column.type) for column in _schema(shape, dtype, {})}
        _expect({"rows": shape[0], **wanted}, {"rows": file.metadata.num_rows, **found})
        _expect(_described(fields), about.get("fields") if isinstance(about, dict) else about)
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    except (pa.ArrowException, RecursionError) as error:
        raise ValueError(str(error)) from error
    starts = np.cumsum([0, *groups])
    # A file of Arrow's serves one thread at a time. The group that was decoded last serves its neighbours.
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
                here = slice(cuts[group], cuts[group + 1])
                out[here] = decoded(group)[numbers[here] - starts[group]]
        return out

    return rows


def _expect(wanted: object, found: object) -> None:
    if wanted != found:
        raise ValueError(f"{wanted} is expected, got {found}")
