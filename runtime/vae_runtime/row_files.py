"""Read rows of observations from files of any length: .npy, CSV and Parquet, a part of the rows at a time."""

from __future__ import annotations

import errno
import io
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import require_npy
from .errors import InputError, VaeError, counted, error_line
from .input_files import open_plain
from .manifest import Condition

Array = NDArray[Any]

SUFFIXES = (".npy", ".csv", ".parquet")
# Columns that number the rows, as this package writes them, and that are no values.
_NUMBERS = ("row", "index")
_KINDS = "biuf"
# Numbers of the system's errors that do not pass; `open_plain` refuses what is no plain file by the last.
_LASTING = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
# float32 holds all integers up to this size.
_EXACT = 2**24


class RowFile:
    """A file of rows [n, *shape].

    A CSV file has a row in each line, of numbers, behind a header or none. A Parquet file has a column for each value,
    or one column of lists, nested as the shape is or flat, or of float32 in binary, as `generate` writes them; a column
    `row` or `index` beside the values is passed over. Integers that float32 does not hold are refused where the model
    takes float32.
    """

    def __init__(self, path: str | os.PathLike[str], shape: Sequence[int], dtype: str) -> None:
        """Open a file of rows of this shape and dtype.

        Raises:
            InputError: there is no such file, or it holds something else.
            VaeError: pyarrow is missing, for a Parquet file.
        """
        self.path, self.shape = Path(path), tuple(shape)
        self._dtype = np.dtype(np.int64 if dtype == "int64" else np.float64)
        readers = {".npy": _npy_parts, ".csv": _csv_parts, ".parquet": _parquet_parts}
        self._read: Callable[..., Iterator[Array]] = readers[self.path.suffix]

    def stamp(self) -> dict[str, Any]:
        """What changes with the file's content: its absolute path, size and time of change."""
        status = self._checked(lambda: os.stat(self.path))
        return {"path": os.path.abspath(self.path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}

    def parts(self, size: int, first: int = 0) -> Iterator[Array]:
        """Give the rows from row `first` on, `size` of them at a time, the last part shorter.

        Raises:
            InputError: the file is missing or damaged, or a row has another number of values; the message names it.
        """
        parts = self._read(self, size, first)
        while True:
            part = self._checked(lambda: next(parts, None))
            if part is None:
                return
            yield part

    def rows(self, numbers: Sequence[int], size: int) -> Array:
        """Give some rows, in the order of their numbers, by one pass over the file in parts of `size` rows."""
        wanted, found, first = sorted(numbers), [], 0
        for part in self.parts(size):
            found += [part[number - first] for number in wanted if first <= number < first + len(part)]
            first += len(part)
            if not wanted or first > wanted[-1]:
                break
        by_number = dict(zip(wanted, found, strict=True))
        return np.array([by_number[number] for number in numbers])

    def _checked(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (VaeError, MemoryError, KeyboardInterrupt):
            raise
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such file; give a file of rows ({', '.join(SUFFIXES)})") from None
        except Exception as error:  # numpy and pyarrow raise errors of many kinds
            if isinstance(error, OSError) and error.errno and error.errno not in _LASTING:
                # The system's, such as one of a network: the content may be as expected.
                raise VaeError(f"{self.path}: cannot be read: {error_line(error)}; try it again") from None
            raise InputError(
                f"{self.path}: expected a {self.path.suffix} file of rows: {error_line(error)}; write it again"
            ) from None

    def shaped(self, values: Array, first: int) -> Array:
        """Give values [n, D] the shape of rows; `first` is the number of the first, for errors."""
        expected = math.prod(self.shape)
        if values.shape[1:] != (expected,):
            got = f"got {values.shape[1]}"
            raise InputError(
                f"{self.path}: row {first}: expected {counted(expected, 'value')}, {got}; write a row for each line"
            )
        return values.reshape(len(values), *self.shape)

    def parsed(self, lines: list[str], first: int) -> Array:
        """Parse lines of a CSV file; the error names the first row that is wrong."""
        try:
            # A blank line is a row without values, not nothing.
            if not any(not line.strip() for line in lines):
                values: Array = np.loadtxt(lines, self._dtype, delimiter=",", ndmin=2, comments=None, quotechar='"')
                return self.shaped(values, first)
        except ValueError:
            pass
        for number, line in enumerate(lines, first):
            if not self.is_row(line):
                raise InputError(
                    f"{self.path}: row {number}: expected {counted(math.prod(self.shape), 'number')} joined by "
                    f"commas, got {line.strip()[:60]!r}; correct the row, or remove it"
                )
        raise InputError(f"{self.path}: rows from {first} on: expected numbers joined by commas; write the file again")

    def exact(self, values: Array, first: int) -> Array:
        """Give integers [n, …] as the floats that the model takes.

        Raises:
            InputError: float32 does not hold one of them.
        """
        if self._dtype.kind != "f" or values.dtype.kind not in "biu":
            return values
        floats = values.astype(np.float32)
        for index in map(tuple, np.argwhere(np.abs(floats) >= _EXACT)):
            self._require_exact(int(values[index]), first + int(index[0]))
        return floats

    def require_exact_lines(self, lines: list[str], values: Array, first: int) -> None:
        """As `exact`, of the lines of a CSV file and the values in them; a number with a point is none of these."""
        if self._dtype.kind != "f":
            return
        for number in np.flatnonzero((np.abs(values) > _EXACT).reshape(len(values), -1).any(1)):
            for cell in lines[number].split(","):
                text = cell.strip().strip('"')
                if re.fullmatch(r"[+-]?\d{1,38}", text):
                    self._require_exact(int(text), first + int(number))

    def _require_exact(self, value: int, row: int) -> None:
        if int(np.float32(value)) != value:
            raise InputError(
                f"{self.path}: row {row}: expected integers that float32 holds exactly, as all up to {_EXACT} are, got "
                f"{value}; scale them as those that the model was trained on"
            )

    def is_row(self, line: str) -> bool:
        """Whether a line holds as many numbers as a row has."""
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        read = int if self._dtype.kind == "i" else float
        try:
            return len([read(cell) for cell in cells]) == math.prod(self.shape)
        except ValueError:
            return False


def _npy_parts(file: RowFile, size: int, first: int) -> Iterator[Array]:
    with open_plain(file.path) as opened:
        shape, dtype = require_npy(opened, os.fstat(opened.fileno()).st_size)
    if dtype.kind not in _KINDS:
        raise InputError(f"{file.path}: expected numbers, got dtype {dtype!s:.99}; write them with numpy.save")
    if not shape:
        raise InputError(f"{file.path}: expected rows {['n', *file.shape]}, got one number; give an array of rows")
    mapped = np.lib.format.open_memmap(file.path, mode="r")
    for start in range(first, shape[0], size):
        yield np.array(mapped[start : start + size])


def _csv_parts(file: RowFile, size: int, first: int) -> Iterator[Array]:
    with io.TextIOWrapper(open_plain(file.path), encoding="utf-8-sig") as lines:
        head = next(lines, "")
        cells = [cell.strip().strip('"') for cell in head.split(",")]
        # A header has at least one cell that is no number.
        is_header = bool(head.strip()) and not all(_is_number(cell) for cell in cells)
        rest: Iterable[str] = lines if is_header or not head else itertools.chain([head], lines)
        rest = itertools.islice(rest, first, None)
        start = first
        while part := list(itertools.islice(rest, size)):
            values = file.parsed(part, start)
            file.require_exact_lines(part, values, start)
            yield values
            start += len(part)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet_parts(file: RowFile, size: int, first: int) -> Iterator[Array]:
    pa = pyarrow("reading .parquet")
    with open_plain(file.path) as opened:
        table = pa.parquet.ParquetFile(opened)
        names = [name for name in table.schema_arrow.names if name not in _NUMBERS]
        counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        ends = list(itertools.accumulate(counts))
        skipped = sum(end <= first for end in ends)
        start = ends[skipped - 1] if skipped else 0
        left: list[Array] = []
        for batch in table.iter_batches(size, row_groups=range(skipped, len(counts)), columns=names):
            values = _values(file, batch, start)[max(0, first - start) :]
            start += batch.num_rows
            left.append(values)
            while sum(map(len, left)) >= size:
                whole = np.concatenate(left)
                yield whole[:size]
                left = [whole[size:]]
        if left and len(last := np.concatenate(left)):
            yield last


def _values(file: RowFile, batch: Any, first: int) -> Array:
    """The rows of a record batch; `first` is the number of the first, for errors."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            number = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise InputError(f"{file.path}: row {number}: expected a value in {name!r}, got null; fill or remove it")
    if batch.num_columns == 1 and (kind := str(batch.schema.types[0])).startswith(("list", "fixed_size", "large_list")):
        column, n = batch.columns[0], batch.num_rows
        if "binary" in kind:
            values = np.frombuffer(b"".join(column.to_pylist()), np.float32)
        else:
            values = _of_lists(file, column, first)
            _require_numbers(file, batch.schema.names[0], values)
        values = values.reshape(n, -1)
        # Lists of bytes are 8-bit values, such as those of pictures, which are scaled later.
        return file.shaped(values if values.dtype == np.uint8 else file.exact(values, first), first)
    columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
    for number, (name, column) in enumerate(zip(batch.schema.names, columns, strict=True)):
        _require_numbers(file, name, column)
        columns[number] = file.exact(column, first)
    return file.shaped(np.stack(columns, axis=1) if columns else np.empty((batch.num_rows, 0)), first)


def _of_lists(file: RowFile, column: Any, first: int) -> Array:
    """The values of a column of lists: flat ones of all values of a row, or nested as the shape of a row is."""
    depth, kind = 0, column.type
    while hasattr(kind, "value_type"):
        depth, kind = depth + 1, kind.value_type
    nested = depth > 1
    if nested and depth != len(file.shape):
        raise InputError(
            f"{file.path}: expected lists nested as {list(file.shape)} is, or flat ones of {math.prod(file.shape)} "
            f"values, got lists in {depth} levels; write the column so"
        )
    many = 1
    for size in file.shape if nested else (math.prod(file.shape),):
        fixed = getattr(column.type, "list_size", None)
        lengths = np.diff(column.offsets.to_numpy()) if fixed is None else np.full(len(column), fixed)
        missing = column.is_null().to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero((lengths != size) | missing)
        if len(wrong):
            got = "null" if missing[wrong[0]] else lengths[wrong[0]]
            lists = f" in each list of {list(file.shape)}" if nested else ""
            raise InputError(
                f"{file.path}: row {first + wrong[0] // many}: expected {counted(size, 'value')}{lists}, got {got}; "
                "correct or remove it"
            )
        many *= size
        column = column.flatten()
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


def _require_numbers(file: RowFile, name: str, values: Array) -> None:
    if values.dtype.kind not in _KINDS:
        raise InputError(f"{file.path}: expected numbers in {name!r}, got {values.dtype}; leave the column out")


def pyarrow(purpose: str) -> Any:
    """Return pyarrow with its module for Parquet.

    Raises:
        VaeError: it is not installed; the message names the extra.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise VaeError(
            f"{purpose} needs pyarrow, which is not installed: pip install 'vae-runtime[parquet]', or use .npy or .csv"
        ) from error
    return pyarrow


def open_rows(path: str | os.PathLike[str], shape: Sequence[int], dtype: str) -> RowFile:
    """Open a file of rows by the end of its name.

    Raises:
        InputError: its name ends in something else.
    """
    if Path(path).suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a file name ending in {' or '.join(SUFFIXES)}")
    return RowFile(path, shape, dtype)


def conditions_of_rows(
    known: Sequence[Condition], conditions: Mapping[str, Any], first: int, last: int
) -> dict[str, Any] | None:
    """The conditions of rows `first` to before `last`: a part of those given for each row, and what is given for all.

    Args:
        known: the bundle's conditions.
        conditions: as in `VAE.score`, of all rows.
        first, last: the numbers of the rows.
    """
    shapes = {condition.name: condition.shape for condition in known}
    given = {}
    for name, value in conditions.items():
        by_row = _axes(value) == len(shapes.get(name, ())) + 1
        given[name] = value[first:last] if by_row and name in shapes else value
    return given or None


def _axes(value: Any) -> int:
    """The number of axes of an array, or of lists by their first values."""
    if isinstance(value, (list, tuple)):
        return 1 + (_axes(value[0]) if len(value) else 0)
    return np.ndim(value)
