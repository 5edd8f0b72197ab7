"""Parquet: files of a table whose columns are the observation and the conditions, by the library pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae_runtime.errors import InputError, error_line

from ..part import require_exact
from ..source import Batch, Damaged, Stream
from .values import row

# Rows that are read at once.
_ROWS = 4096


def parquet(path: Path, conditions: Mapping[str, str], columns: Sequence[str]) -> Stream:
    """Read a file, or the files of a folder in the order of their names.

    Args:
        path: one .parquet file, or a folder with some.
        conditions: the column of each condition by its name.
        columns: those of the observation: one of lists or pictures, or several of numbers; empty: all others.

    Raises:
        InputError: pyarrow is not installed, or a file is damaged or lacks a column.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_schema
    except ImportError:
        raise InputError(
            f"{path}: reading Parquet needs the library pyarrow; install it with pip install 'vae-export[datasets]'"
        ) from None
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    for each in paths:
        try:
            schema = read_schema(each)
        except (ArrowException, OSError) as error:
            raise InputError(f"{each}: expected a Parquet file: {error_line(error)}; write it again") from error
        names = list(columns) or [name for name in schema.names if name not in conditions.values()]
        require_columns(str(each), names, conditions, schema.names)
    return Stream(path.stem, _items(paths, conditions, columns), {})


def require_columns(place: str, columns: Sequence[str], conditions: Mapping[str, str], there: Sequence[str]) -> None:
    """Refuse columns that are not there, or an observation without any.

    Raises:
        InputError: one is missing.
    """
    for name in (*columns, *conditions.values()):
        if name not in there:
            raise InputError(
                f"{place}: expected a column {name!r:.99}, got {', '.join(there)!s:.200}; name one of them"
            )
    if not columns:
        raise InputError(f"{place}: expected a column beside the conditions, got none; name it with --columns")


def _items(paths: list[Path], conditions: Mapping[str, str], columns: Sequence[str]) -> Iterator[Batch | Damaged]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in paths:
        try:
            with ParquetFile(path) as file:
                names = list(columns) or [n for n in file.schema_arrow.names if n not in conditions.values()]
                start = 0
                for table in file.iter_batches(_ROWS, columns=[*names, *conditions.values()]):
                    yield from _batches(table, f"{path}: row ", start, names, conditions)
                    start += len(table)
        except (ArrowException, OSError) as error:
            raise InputError(f"{path}: expected a Parquet file: {error_line(error)}; write it again") from error


def _batches(
    table: Any, place: str, start: int, columns: list[str], conditions: Mapping[str, str]
) -> Iterator[Batch | Damaged]:
    """The rows of a record batch; all at once where every column is of numbers."""
    from pyarrow import types

    def plain(name: str) -> bool:
        kind = table.schema.field(name).type
        return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind))

    labels = [table.column(name) for name in conditions.values()]
    if len(columns) > 1 and all(map(plain, columns)) and not any(each.null_count for each in labels):
        texts = (str, bytes)
        for name in columns:
            if types.is_integer((column := table.column(name)).type):
                # Beside a null they would come as float64, which may have rounded them.
                integers = column.fill_null(0).to_numpy(zero_copy_only=False)
                require_exact(integers, f"{place.removesuffix(': row ')}: {name}", start)
        values = [table.column(name).to_numpy(zero_copy_only=False) for name in columns]
        x = np.stack(values, 1).astype(np.float32)
        if all(plain(name) for name in conditions.values()):
            given = {name: table.column(place).to_numpy(zero_copy_only=False) for name, place in conditions.items()}
            yield Batch(f"{place}{start}", x, given)
            return
        if all(isinstance(value, texts) for each in labels for value in each.to_pylist()):
            yield Batch(f"{place}{start}", x, {name: table.column(c).to_pylist() for name, c in conditions.items()})
            return
    uint8 = [name for name in columns if _is_bytes(table.schema.field(name).type)]
    for number, found in enumerate(table.to_pylist(), start):
        yield row(f"{place}{number}", found, conditions, columns, uint8)


def _is_bytes(kind: Any) -> bool:
    """Whether a type of pyarrow is of lists, however deep, of 8-bit values."""
    from pyarrow import types

    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(types.is_uint8(kind))
