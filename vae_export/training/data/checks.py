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


def kind_of(likelihood: str, classes: int) -> Kind:
    """Return the kind of likelihood that a model is trained on; `classes` is their number, 0 where there are none."""
    return KINDS[likelihood].of((0.0, 1.0), (classes,))


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


def require_range(part: Part, place: str) -> None:
    """Refuse values outside of [0, 1], which cannot be binarized.

    Args:
        part: the observations.
        place: where the observations come from.

    Raises:
        InputError: there is one; the message states the first such value, its row and its index.
    """
    found = _first(part, _beyond)
    if found:
        number, row = found
        raise InputError(
            f"{place}: row {number}: {_range_misfit(row)}; scale the data, or choose {_KINDS_OF_ANY_NUMBER} without "
            "binarization"
        )


def misfit(x: Observations, kind: Kind, binarise: str) -> str | None:
    """Describe, for an error, the first value that a likelihood or a binarization is not defined for; None without one.

    Args:
        x: float32 [n, …].
        kind: the kind of likelihood.
        binarise: `TrainConfig.binarise`.
    """
    return kind.misfit(x) or (None if binarise == "none" else _range_misfit(x))


def _beyond(x: Observations) -> NDArray[np.bool_]:
    return (x < 0) | (x > 1)


def _range_misfit(x: Observations) -> str | None:
    beyond = _beyond(x)
    if not beyond.any():
        return None
    index = first(beyond)
    return f"expected values in [0, 1] for binarization, got {x[index]:.8g} at {list(index)}"


def _first(part: Part, outside: Callable[[Observations], NDArray[np.bool_]]) -> tuple[int, Observations] | None:
    """Return the number in the source and the values of the first row with a value that is outside."""
    for start, rows in part.chunks():
        mask = outside(rows)
        if mask.any():
            index = first(mask)[0]
            return int(part.numbers[start + index]), rows[index]
    return None
