"""Read a folder of samples that `generate` wrote, without loading all of it."""

from __future__ import annotations

import bisect
import functools
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, VaeError, require_integer
from .folder import INDEX, read_index
from .formats import row_types, table
from .store import Store, open_store

# How many shards are kept open: mapped files below the usual limit of a process, fetched ones as memory allows.
_MAPPED, _FETCHED = 64, 2
# Approximate bytes of rows that iteration reads at once.
_AHEAD = 2**20


class Samples:
    """The samples of a folder in order: `len`, indexing like an array's first axis, and iteration.

    Files are read on demand, and rows are copies. Several threads may share an instance; a pickled one opens the files
    anew.
    """

    def __init__(self, store: Store, job: Mapping[str, Any], shards: list[dict[str, Any]]) -> None:
        self._store = store
        self.job = job
        self.shards = shards
        self._dtype = row_types.dtype_from_json(job["dtype"])
        self._bounds: list[int] = [0, *(shard["stop"] for shard in shards)]
        kept = _FETCHED if store.remote else _MAPPED
        self._rows = functools.lru_cache(kept)(functools.partial(_open, store, job, shards))

    def __reduce__(self) -> tuple[Any, ...]:
        return Samples, (self._store, self.job, self.shards)

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, *observation shape]; [n] for structured rows."""
        return (len(self), *self.job["shape"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, uint8, or structured."""
        return self._dtype

    def __repr__(self) -> str:
        return f"<Samples {self._store}: {self.dtype} {list(self.shape)}, seed {self.job['seed']}>"

    def __len__(self) -> int:
        return self._bounds[-1]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            return self._between(first, last) if step == 1 else self._chosen(np.arange(first, last, step))
        try:
            number = operator.index(index)
        except TypeError:
            return self._chosen(self._numbers(index))
        if not -len(self) <= number < len(self):
            raise IndexError(f"index: expected {-len(self)} … {len(self) - 1}, got {number}")
        number %= len(self)
        row: NDArray[Any] = self._between(number, number + 1)[0]
        return row

    def __getitems__(self, indices: Sequence[int]) -> NDArray[Any]:
        """Return several rows at once; a DataLoader of torch calls this for a batch."""
        return self[np.asarray(indices, np.int64)]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for batch in self.batches(max(1, _AHEAD // (math.prod(self.shape[1:]) * self.dtype.itemsize))):
            for row in batch:
                yield row.copy()

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """Yield all rows in order, in batches of a size; the last one is shorter.

        Yields:
            [size, *observation shape].

        Raises:
            InputError: the size is not a positive integer.
        """
        size = require_integer("size", size, 1, 2**48)
        return (self._between(first, min(first + size, len(self))) for first in range(0, len(self), size))

    def _numbers(self, index: Any) -> NDArray[np.int64]:
        """Return the row numbers, from 0 on, of an array or a list of integers, or of a mask."""
        n, expected = len(self), "index: expected an integer, a slice, integers, or a mask of all rows"
        try:
            chosen = np.asarray(index)
        except ValueError:
            raise InputError(f"{expected}, got {index!r:.99}") from None
        if chosen.dtype == np.bool_ and chosen.shape == (n,):
            chosen = np.flatnonzero(chosen)
        if isinstance(index, tuple) or (chosen.dtype.kind not in "iu" and (chosen.size or chosen.dtype == np.bool_)):
            raise InputError(f"{expected}, got {chosen.dtype} {list(chosen.shape)}: {index!r:.99}")
        wrong = chosen[(chosen < -n) | (chosen >= n)]
        if wrong.size:
            raise IndexError(f"index: expected {-n} … {n - 1}, got {wrong.flat[0]}")
        numbers: NDArray[np.int64] = chosen.astype(np.int64) % n
        return numbers

    def _between(self, first: int, last: int) -> NDArray[Any]:
        out = np.empty((0, *self.shape[1:]), self.dtype)
        done = first
        while done < last:
            number = bisect.bisect_right(self._bounds, done) - 1
            start, stop = self._bounds[number], min(last, self._bounds[number + 1])
            rows = self._read(number, slice(done - start, stop - start))
            if done == first:
                # Only after a file was opened: a damaged index can claim any size.
                out = np.empty((last - first, *self.shape[1:]), self.dtype)
            out[done - first : stop - first] = rows
            done = stop
        return out

    def _chosen(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        # Shard by shard, whatever the order: each is opened, and each of its groups decoded, once.
        order = np.argsort(numbers, axis=None, kind="stable")
        ascending = numbers.reshape(-1)[order]
        cuts = np.searchsorted(ascending, self._bounds)
        out = np.empty((0, *self.shape[1:]), self.dtype)
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            chosen = slice(cuts[number], cuts[number + 1])
            rows = self._read(number, ascending[chosen] - self._bounds[number])
            if not len(out):
                out = np.empty((len(order), *self.shape[1:]), self.dtype)
            out[order[chosen]] = rows
        return out.reshape(*numbers.shape, *self.shape[1:])

    def _read(self, number: int, which: slice | NDArray[np.int64]) -> NDArray[Any]:
        try:
            return self._rows(number)(which)
        except (OSError, ValueError) as error:
            raise VaeError(
                f"{self._store}/{self.shards[number]['file']}: cannot be read: {error}; remove this file, and run the "
                "same `generate` again"
            ) from error


def _open(
    store: Store, job: Mapping[str, Any], shards: list[dict[str, Any]], number: int
) -> row_types.Rows:  # fmt: skip
    """Return the rows of a shard; raise ValueError if the file is not what the index says."""
    shard = shards[number]
    source = store.path(shard["file"]) or store.read(shard["file"])
    if source is None:
        raise ValueError("the file is missing")
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size != shard["bytes"]:
        raise ValueError(f"expected {shard['bytes']} bytes as {INDEX} says, got {size}")
    shape = (shard["stop"] - shard["start"], *job["shape"])
    return table.read(job["format"], source, shape, row_types.dtype_from_json(job["dtype"]))


def open_samples(folder: str | os.PathLike[str] | Store) -> Samples:
    """Open a finished folder of samples; this needs numpy and the library of the format alone.

    Args:
        folder: the folder, or the URL of a remote store.

    Raises:
        VaeError: the folder holds no samples, is not finished, or its index is damaged.
    """
    store = open_store(folder)
    return Samples(store, *read_index(store))
