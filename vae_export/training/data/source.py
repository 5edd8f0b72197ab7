"""What a source gives: rows that can be addressed at once, or a stream of rows, which is converted first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .part import Rows


@dataclass(frozen=True)
class Addressed:
    """A source whose rows can be addressed by number."""

    rows: Rows
    test: Rows | None = None
    """Its own test set, if it has one."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a stream, of one shape."""

    place: str
    """What to call the first of them in errors."""
    observations: NDArray[Any]
    """uint8 or numbers that become float32, [k, *shape]."""
    conditions: Mapping[str, NDArray[Any] | Sequence[str]]
    """By name: integers [k], names of classes [k], or floats [k, …]."""


@dataclass(frozen=True)
class Damaged:
    """A row of a stream that cannot be read."""

    place: str
    reason: str
    """What was expected, and what was got."""


@dataclass(frozen=True)
class Stream:
    """A source that is gone through from front to back."""

    name: str
    items: Iterator[Batch | Damaged]
    classes: Mapping[str, Sequence[str]]
    """The names of classes that the source states, by condition; `items` then gives their numbers."""
