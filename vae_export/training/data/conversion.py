"""Convert a stream of rows once into a folder of .npy files, which are mapped from then on.

The folder is whole or absent: a conversion that was killed starts over. Memory is that of one batch.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.arrays import map_npy
from vae_runtime.errors import InputError, counted, error_line
from vae_runtime.files import write_folder
from vae_runtime.input_files import read_json

from .part import MAX_LABEL, NAMED, Condition, Rows, Skipped, require_exact
from .source import Batch, Damaged, Stream

_OBSERVATIONS, _ABOUT = "observations.npy", "data.json"
_AGAIN = "delete this folder, and the source is converted again"


def convert(stream: Stream, folder: Path, request: dict[str, Any], *, skip: bool) -> None:
    """Write the rows of a stream.

    Args:
        stream: the rows.
        folder: to make.
        request: what the rows depend on, which `converted` asks for; its `source` names them in errors.
        skip: leave out damaged rows, and count them; else the first one ends the conversion.

    Raises:
        InputError: a row is damaged or of another shape than the first, or there is none.
        VaeError: the folder cannot be written.
    """

    def fill(partial: Path) -> None:
        writer = _Writer(partial, stream.classes)
        with contextlib.closing(writer):
            for item in stream.items:
                damaged = item if isinstance(item, Damaged) else writer.add(item)
                if damaged and not skip:
                    raise InputError(
                        f"{damaged.place}: {damaged.reason}; replace or remove it, or skip such rows (--corrupt skip)"
                    )
                if damaged:
                    writer.skip(damaged)
            about = writer.finish(stream.name, request["source"])
        content = json.dumps({"request": request, **about}, indent=2, ensure_ascii=False) + "\n"
        with (partial / _ABOUT).open("xb") as file:
            file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())

    write_folder(folder, {}, check=fill)


def converted(folder: Path, request: dict[str, Any] | None) -> Rows | None:
    """Return the rows that a folder holds, mapped from its files; None if there is no such folder.

    Args:
        folder: what `convert` made.
        request: what it must have been made of; None takes whatever there is.

    Raises:
        InputError: it is damaged, or holds the rows of another request.
    """
    if not folder.exists():
        return None
    try:
        about: Any = read_json(folder / _ABOUT)
        found = about["request"]
        if request is not None and found != request:
            each = [(name, found.get(name), request.get(name)) for name in {**found, **request}]
            different = [f"{name} is {got!r:.99}, asked for {asked!r:.99}" for name, got, asked in each if got != asked]
            raise InputError(
                f"{folder}: holds rows of another source: {'; '.join(different)}; choose another folder for the run"
            )
        conditions = {
            name: Condition(map_npy(folder / _condition(name)), tuple(classes))
            for name, classes in about["classes"].items()
        }
        rows = Rows(
            str(about["name"]), map_npy(folder / _OBSERVATIONS), int(about["divisor"]), conditions,
            Skipped(int(about["skipped"]), tuple(about["named"])),
        )  # fmt: skip
        if any(len(each.values) != len(rows) for each in conditions.values()):
            raise ValueError("expected as many rows in each file")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: expected the rows of a run: {error_line(error)}; {_AGAIN}") from error
    return rows


def _condition(name: str) -> str:
    return f"condition.{name}.npy"


class _Writer:
    """Writes batches to .npy files of a folder, whose lengths are only known in the end."""

    def __init__(self, folder: Path, classes: Mapping[str, Sequence[str]]) -> None:
        self.folder = folder
        self.classes = {name: {each: number for number, each in enumerate(names)} for name, names in classes.items()}
        self.files: dict[str, _Growing] = {}
        self.stated = set(classes)
        self.skipped, self.named = 0, list[str]()

    def add(self, batch: Batch) -> Damaged | None:
        """Write a batch, or say what is wrong with it.

        Raises:
            InputError: it holds integers that float32 does not.
        """
        if not batch.observations.ndim:
            return Damaged(batch.place, f"expected observations [n, …], got {_kind(batch.observations)}")
        require_exact(batch.observations, batch.place)
        arrays = {_OBSERVATIONS: _values(batch.observations)}
        for name, given in batch.conditions.items():
            try:
                arrays[_condition(name)] = self._numbers(name, given)
            except ValueError as error:
                return Damaged(batch.place, error_line(error))
        for name, array in arrays.items():
            if array.dtype.kind not in "iuf" or not array.ndim or len(array) != len(batch.observations):
                what = "x" if name == _OBSERVATIONS else name.split(".")[1]
                return Damaged(
                    batch.place,
                    f"expected numbers or texts of {what} for {counted(len(batch.observations), 'row')}, got "
                    f"{_kind(array)}",
                )
        if not arrays[_OBSERVATIONS].size or arrays[_OBSERVATIONS].ndim < 2:
            return Damaged(batch.place, f"expected observations [n, …], got {_kind(arrays[_OBSERVATIONS])}")
        if self.files and self.files.keys() != arrays.keys():
            return Damaged(batch.place, f"expected {', '.join(self.files)}, got {', '.join(arrays)}")
        for name, array in arrays.items():
            grown = self.files.get(name)
            if grown and (grown.dtype != array.dtype or grown.shape != array.shape[1:]):
                what = "" if name == _OBSERVATIONS else f" of {name.split('.')[1]}"
                return Damaged(
                    batch.place,
                    f"expected {grown.dtype} {list(grown.shape)}{what} as the first row has, got {array.dtype} "
                    f"{list(array.shape[1:])}",
                )
        for name, array in arrays.items():
            if name not in self.files:
                self.files[name] = _Growing(self.folder / name, array)
            self.files[name].write(array)
        return None

    def skip(self, damaged: Damaged) -> None:
        """Count a damaged row."""
        self.skipped += 1
        if len(self.named) < NAMED:
            self.named.append(f"{damaged.place}: {damaged.reason}")

    def finish(self, name: str, source: str) -> dict[str, Any]:
        """Write the lengths, and return what the folder holds; errors name the source as the caller wrote it."""
        if not self.files:
            skipped = f", {self.skipped} damaged: {self.named[0]}" if self.skipped else ""
            raise InputError(f"{source}: expected at least one row, got none{skipped}; give other data")
        for file in self.files.values():
            file.finish()
        names = [file.split(".")[1] for file in self.files if file != _OBSERVATIONS]
        return {
            "name": name,
            "divisor": 255 if self.files[_OBSERVATIONS].dtype == np.uint8 else 0,
            "classes": {each: self._sorted(each) for each in names},
            "skipped": self.skipped,
            "named": self.named,
        }

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.file.close()

    def _numbers(self, name: str, given: Any) -> NDArray[Any]:
        """Return the values of a condition as they are written.

        Raises:
            ValueError: they are numbers after texts, texts after numbers, no numbers of classes, or not finite.
        """
        if isinstance(given, list) and given and all(isinstance(each, str) for each in given):
            if _condition(name) in self.files and name not in self.classes:
                raise ValueError(f"expected numbers of {name} as the first row has, got {given[0]!r:.99}")
            known = self.classes.setdefault(name, {})
            return np.array([known.setdefault(str(each), len(known)) for each in given], np.int64)
        array = np.asarray(given)
        if array.dtype.kind in "biuf" and array.size:
            if name in self.classes and name not in self.stated:
                raise ValueError(f"expected texts of {name} as the first row has, got {array.flat[0]}")
            if array.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    array = array.astype(np.float32)
                if not np.isfinite(array).all():
                    raise ValueError(f"expected finite numbers of {name}, got {array[~np.isfinite(array)][0]}")
                return array
            wrong = (array < 0) | (array >= MAX_LABEL)
            if wrong.any():
                raise ValueError(f"expected classes of {name} numbered from 0, got {array[wrong][0]}")
            return array.astype(np.int64)
        return array

    def _sorted(self, name: str) -> list[str]:
        """Number classes by the order of their names, not by the order in which they came; return the names."""
        classes = list(self.classes.get(name, ()))
        if name in self.stated or classes == sorted(classes):
            return classes
        order = sorted(range(len(classes)), key=classes.__getitem__)
        ranks = np.argsort(np.array(order))
        numbers = np.lib.format.open_memmap(self.folder / _condition(name), "r+")
        for start in range(0, len(numbers), 2**20):
            numbers[start : start + 2**20] = ranks[numbers[start : start + 2**20]]
        numbers.flush()
        return sorted(classes)


class _Growing:
    """An .npy file whose number of rows is written in the end."""

    def __init__(self, path: Path, first: NDArray[Any]) -> None:
        self.dtype, self.shape, self.rows = first.dtype, first.shape[1:], 0
        self.file: IO[bytes] = path.open("xb")
        self._header()

    def _header(self) -> None:
        # numpy leaves room in the header for a larger number.
        fields = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, fields)

    def write(self, array: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(array).data)
        self.rows += len(array)

    def finish(self) -> None:
        self.file.seek(0)
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())


def _kind(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _values(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint8 or array.dtype.kind not in "biuf":
        return array
    with np.errstate(over="ignore"):
        return array.astype("<f4")
