"""Read a folder of samples that `generate` wrote, without loading all of it."""

from __future__ import annotations

import bisect
import json
import operator
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import formats
from .errors import InputError, VaeError
from .store import Folder, open_store

__all__ = ["INDEX", "JOB", "Samples", "open_samples", "read_json"]

JOB, INDEX = "job.json", "index.json"


class Samples:
    """The samples of a folder, in the order of their indices: `len`, indexing, slicing, iteration.

    Shards are mapped into memory as they are asked for; what is given is a copy, float32 or uint8.
    """

    def __init__(self, store: Folder, job: Mapping[str, Any], shards: list[Mapping[str, Any]]) -> None:
        self._store = store
        self.job = job
        self.shards = shards
        self._starts = [shard["start"] for shard in shards]
        self._last: tuple[int, NDArray[Any]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, *observation shape]."""
        return (len(self), *self.job["shape"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or uint8."""
        found: np.dtype[Any] = np.dtype(self.job["dtype"])
        return found

    def __repr__(self) -> str:
        return f"<Samples {self._store}: {self.dtype} {list(self.shape)}, seed {self.job['seed']}>"

    def __len__(self) -> int:
        count: int = self.shards[-1]["stop"]
        return count

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1:
                return self._rows(first, max(first, last))
            return np.stack([self[i] for i in range(first, last, step)]) if range(first, last, step) else self[0:0]
        try:
            number = operator.index(index)
        except TypeError:
            raise InputError(f"index: an integer or a slice is expected, got {index!r}") from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"index: {-len(self)} … {len(self) - 1} is expected, got {number}")
        number %= len(self)
        row: NDArray[Any] = self._rows(number, number + 1)[0]
        return row

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for number in range(len(self.shards)):
            for row in self._shard(number):
                yield np.array(row)

    def _rows(self, first: int, last: int) -> NDArray[Any]:
        out = np.empty((last - first, *self.job["shape"]), self.dtype)
        done = first
        while done < last:
            number = bisect.bisect_right(self._starts, done) - 1
            start, stop = self.shards[number]["start"], min(last, self.shards[number]["stop"])
            out[done - first : stop - first] = self._shard(number)[done - start : stop - start]
            done = stop
        return out

    def _shard(self, number: int) -> NDArray[Any]:
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        shard = self.shards[number]
        path = f"{self._store}/{shard['file']}"
        source = self._store.path(shard["file"]) or self._store.read(shard["file"])
        if source is None:
            raise VaeError(f"{path}: cannot be read: it is missing; generate again into the same folder")
        try:
            rows = formats.read(self.job["format"], source)
        except (OSError, ValueError) as error:
            raise VaeError(f"{path}: cannot be read: {error}; generate again into the same folder") from error
        if rows.shape != (shard["stop"] - shard["start"], *self.job["shape"]) or rows.dtype != self.dtype:
            raise VaeError(f"{path}: holds {rows.dtype} {list(rows.shape)}, which is not what {INDEX} says")
        self._last = number, rows
        return rows


def open_samples(folder: str | os.PathLike[str]) -> Samples:
    """Open a finished folder of samples; numpy is all that this needs.

    Raises:
        VaeError: it is no such folder, is not finished, or its index is damaged.
    """
    root = open_store(folder)
    names = root.names()
    if INDEX not in names:
        if JOB in names:
            raise VaeError(f"{root}: is not finished, there is no {INDEX}; run the same `generate` again to go on")
        raise VaeError(f"{root}: no folder of samples: there is no {INDEX}; give one that `generate` wrote")
    index = read_json(root, INDEX)
    try:
        job, shards = index["job"], index["shards"]
        stops = [0, *(shard["stop"] for shard in shards)]
        whole = all(shard["start"] == stop < shard["stop"] for shard, stop in zip(shards, stops, strict=False))
        plain = all(Path(shard["file"]).name == shard["file"] for shard in shards)
        right = bool(shards) and whole and plain and stops[-1] == job["n"]
        right = right and job["format"] in formats.FORMATS
        np.dtype(job["dtype"]), tuple(map(operator.index, job["shape"]))
    except (TypeError, KeyError, AttributeError):
        right = False
    if not right:
        raise VaeError(f"{root}/{INDEX}: shards that follow on one another up to n are expected; generate again")
    return Samples(root, job, shards)


def read_json(store: Folder, name: str) -> dict[str, Any]:
    """A JSON object from a file of a store.

    Raises:
        VaeError: it is missing, cannot be read, or holds something else.
    """
    path = f"{store}/{name}"
    content = store.read(name)
    if content is None:
        raise VaeError(f"{path}: is missing")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise VaeError(f"{path}: JSON is expected: {error}") from error
    if not isinstance(value, dict):
        raise VaeError(f"{path}: a JSON object is expected, got {type(value).__name__}")
    return value
