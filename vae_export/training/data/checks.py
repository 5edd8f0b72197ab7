"""Check that the values of a part are such as a likelihood or a binarization is defined for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.likelihood import KINDS, Kind

from ..config import MAX_CLASSES, ModelConfig
from .part import Observations, Part, first

_KINDS_OF_ANY_NUMBER = " or ".join(name for name, kind in KINDS.items() if kind.support is None)


def with_conditions(model: ModelConfig, kinds: Mapping[str, Mapping[str, Any]], place: str) -> ModelConfig:
    """Return a model with the conditions of the data.

    Args:
        model: what is built.
        kinds: what the conditions are, as `ModelConfig.conditions` has it.
        place: where the observations come from.

    Raises:
        InputError: the model has others.
    """
    model = model if model.conditions else replace(model, conditions=kinds)
    if model.conditions != kinds:
        raise InputError(
            f"{place}: expected the conditions {json.dumps(model.conditions)} (model.conditions), got "
            f"{json.dumps(kinds)}; change model.conditions or data.conditions"
        )
    return model


def require_kind(part: Part, kind: Kind, place: str) -> None:
    """Refuse values that a likelihood is not defined for.

    Args:
        part: the observations.
        kind: the kind of likelihood.
        place: where the observations come from.

    Raises:
        InputError: there is one; the message states the first such value, its row and its index.
    """
    found = _first(part, kind.outside)
    if found:
        number, row = found
        remedy = "save counts as int32 or floats (uint8 become [0, 1])" if kind.counts else "scale the data"
        if kind.classes:
            remedy = "number classes from 0 on, and take uint8 as they are (--normalise none)"
        raise InputError(f"{place}: row {number}: {kind.misfit(row)}; {remedy}, or choose {_KINDS_OF_ANY_NUMBER}")


def count_classes(part: Part, place: str) -> int:
    """Return the number of classes: one more than the largest value, and at least 2.

    Raises:
        InputError: there would be more than a model can have.
    """
    largest = max(float(rows.max()) for _, rows in part.chunks())
    if largest >= MAX_CLASSES:
        raise InputError(f"{place}: expected classes below {MAX_CLASSES}, got {largest:g}; number classes from 0 on")
    return max(2, int(largest) + 1)


def require_range(part: Part, support: tuple[float, float], place: str, purpose: str) -> None:
    """Refuse values outside a range.

    Args:
        part: the observations.
        support: the min and the max allowed.
        place: where the observations come from.
        purpose: the part of the configuration that needs the range.

    Raises:
        InputError: there is one; the message states the first such value, its row and its index.
    """
    low, high = support

    def outside(rows: Observations) -> NDArray[np.bool_]:
        return (rows < low) | (rows > high)

    found = _first(part, outside)
    if found:
        number, row = found
        index = first(outside(row))
        raise InputError(
            f"{place}: row {number}: expected values in [{low:g}, {high:g}] for {purpose}, got {row[index]:.8g} at "
            f"{list(index)}; scale the data, or choose {_KINDS_OF_ANY_NUMBER} without binarization"
        )


def _first(part: Part, outside: Callable[[Observations], NDArray[np.bool_]]) -> tuple[int, Observations] | None:
    """Return the number in the source and the values of the first row with a value that is outside."""
    for start, rows in part.chunks():
        mask = outside(rows)
        if mask.any():
            index = first(mask)[0]
            return int(part.numbers[start + index]), rows[index]
    return None
