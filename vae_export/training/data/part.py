"""Rows of data, addressed by number: all that a source holds, and the parts of them as a model takes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.manifest import Normalisation

Observations = NDArray[np.float32]

MAX_LABEL = 2**31
"""Numbers of classes are below this."""
NAMED = 5
"""Damaged rows that are named; the others are counted."""
# float32 holds all integers up to this size.
_EXACT = 2**24
# Values that are in memory at once where a whole part is gone through.
_CHUNK = 2**21


@dataclass(frozen=True)
class Condition:
    """What is known of each observation beside its values: a class, or a vector."""

    values: NDArray[Any]
    """int64 [n], numbers of classes; or float32 [n, …]."""
    classes: tuple[str, ...] = ()
    """The names of the classes by their numbers; empty where they have none."""


@dataclass(frozen=True)
class Skipped:
    """Rows that were left out because they are damaged."""

    count: int = 0
    named: tuple[str, ...] = ()
    """The first few: the place of each, and why."""


@dataclass(frozen=True)
class Rows:
    """All rows of a source, in memory or mapped from a file."""

    name: str
    observations: NDArray[Any]
    """uint8, or other numbers, which float32 holds, [n, *shape]."""
    divisor: int = 0
    """The largest value that integers may have; 0 where the source holds floats."""
    conditions: Mapping[str, Condition] = dataclasses.field(default_factory=dict)
    skipped: Skipped = Skipped()
    keep: object = None
    """What has to live as long as the arrays."""
    labels: Condition | None = None
    """Classes that color a picture of the rows, and that no model is told."""

    def __len__(self) -> int:
        return len(self.observations)

    def canonical(self, chosen: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Return rows as they are hashed: uint8, or little-endian float32 without negative zeros, [k, *shape]."""
        values = self.observations[chosen]
        if values.dtype == np.uint8:
            return np.ascontiguousarray(values)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, "<f4") + np.float32(0)


class Part:
    """Some rows of a source, as a model takes them. A row is read when it is asked for.

    Args:
        source: all rows.
        numbers: those of this part, int64 [n].
        normalisation: from the values of the source to those of the model; None leaves them.
    """

    def __init__(self, source: Rows, numbers: NDArray[np.int64], normalisation: Normalisation | None = None) -> None:
        self.source, self.numbers = source, numbers
        """Where the rows are, and their numbers there."""
        self.shape: tuple[int, ...] = source.observations.shape[1:]
        """Shape of one observation."""
        raw = normalisation or Normalisation(0.0, 1.0)
        self._offset, self._divisor = (_spread(number, self.shape) for number in (raw.offset, raw.divisor))

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, indices: NDArray[np.int64] | slice) -> Observations:
        """Return observations, float32 [k, *shape].

        Args:
            indices: integers [k] from 0 to the length of the part, in any order; or a slice.
        """
        values = self.source.observations[self.numbers[indices]]
        if values.dtype != np.uint8:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32, copy=False)
        if self._offset.any():
            values = np.subtract(values, self._offset, dtype=np.float32)
        divided: Observations = np.divide(values, self._divisor, dtype=np.float32)
        return divided

    def conditions(self, indices: NDArray[np.int64] | slice) -> dict[str, NDArray[Any]]:
        """Return the conditions of observations by name, each int64 [k] or float32 [k, …].

        Args:
            indices: as `rows` takes them.
        """
        numbers = self.numbers[indices]
        return {name: np.asarray(each.values[numbers]) for name, each in self.source.conditions.items()}

    def chunks(self) -> Iterator[tuple[int, Observations]]:
        """Go through the part in its order, with bounded memory: the index of the first row, and rows from there."""
        rows = max(1, _CHUNK // math.prod(self.shape))
        for start in range(0, len(self), rows):
            yield start, self.rows(slice(start, start + rows))

    def mean(self) -> Observations:
        """Return the mean observation, float32 [*shape]."""
        total = np.zeros(self.shape)
        for _, rows in self.chunks():
            total += rows.sum(0, dtype=np.float64)
        mean: Observations = (total / len(self)).astype(np.float32)
        return mean

    def frequencies(self, classes: int) -> Observations:
        """Return how often each class is each value, float32 [*shape, classes]."""
        total = np.zeros((*self.shape, classes))
        for _, rows in self.chunks():
            for number in range(classes):
                total[..., number] += (rows == number).sum(0)
        frequencies: Observations = (total / len(self)).astype(np.float32)
        return frequencies


def chunks_of(source: Rows) -> Iterator[tuple[int, NDArray[Any]]]:
    """Go through a source with bounded memory: the number of the first row, and rows as `canonical` gives them."""
    rows = max(1, _CHUNK // math.prod(source.observations.shape[1:]))
    for start in range(0, len(source), rows):
        yield start, source.canonical(slice(start, start + rows))


def first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the index of the first true value."""
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))


def require_exact(values: NDArray[Any], place: str, start: int = 0) -> None:
    """Refuse integers that float32 does not hold; bytes fit, and numbers of other kinds are none.

    Args:
        values: rows.
        place: where they come from.
        start: the number of the first row there.

    Raises:
        InputError: one is too large; the message states it and its index.
    """
    if values.dtype.kind not in "iu" or values.dtype == np.uint8:
        return
    wrong = (values > _EXACT) | (values < -_EXACT)
    if wrong.any():
        row, *inner = first(wrong)
        raise InputError(
            f"{place}: expected integers between {-_EXACT} and {_EXACT}, which float32 holds exactly, got "
            f"{values[(row, *inner)]} at {[start + row, *inner]}; scale them, and save them as floats"
        )


def _spread(number: float | tuple[float, ...], shape: tuple[int, ...]) -> Observations:
    """Return a number, or one for each index of axis 0, so that it broadcasts over observations."""
    array = np.asarray(number, np.float32)
    return array.reshape(-1, *[1] * (len(shape) - 1)) if array.ndim else array
