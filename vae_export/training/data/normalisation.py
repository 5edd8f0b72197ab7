"""Find how raw values become those that a model is trained on: x = (raw − offset) / divisor."""

from __future__ import annotations

import numpy as np

from vae_runtime.errors import InputError
from vae_runtime.manifest import Normalisation

from .part import Part


def normalisation_of(train: Part, how: str, place: str) -> Normalisation | None:
    """Return the normalization of a source; None where values stay as they are.

    Args:
        train: the training part, with raw values.
        how: none; unit: integers by the largest that they may be, floats stay; or standard: by the mean and the
            standard deviation of each index of the observation's axis 0.
        place: where the data come from.

    Raises:
        InputError: standard, and a channel has one value alone, or values beyond float32.
    """
    divisor = train.source.divisor
    if how == "none" or (how == "unit" and not divisor):
        return None
    if how == "unit":
        return Normalisation(0.0, float(divisor))
    # Shifted by the first row, sums of squares lose no digits to a large mean; sums stay exact enough in float64.
    channels = train.shape[0]
    shift = train.rows(slice(0, 1)).astype(np.float64).reshape(channels, -1).mean(1)
    total, squares, count = np.zeros(channels), np.zeros(channels), 0
    for _, rows in train.chunks():
        values = rows.reshape(len(rows), channels, -1).astype(np.float64) - shift[:, None]
        total += values.sum((0, 2))
        squares += np.square(values).sum((0, 2))
        count += len(rows) * values.shape[2]
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    offset = shift + mean
    constant = np.flatnonzero(~(deviation > 1e-9 * np.maximum(1, np.abs(offset))))
    if len(constant):
        raise InputError(
            f"{place}: expected values that differ in each channel or feature for data.normalise standard, got "
            f"{offset[constant[0]]:g} throughout in {constant[0]}; remove it, or choose unit or none"
        )
    numbers = [tuple(each.astype(np.float32).astype(float).tolist()) for each in (offset, deviation)]
    return Normalisation(numbers[0], numbers[1])


def require_channels(known: Normalisation, channels: int, place: str) -> None:
    """Refuse data with another number of channels or features than a normalization was found for.

    Raises:
        InputError: they have.
    """
    expected = max(len(each) if isinstance(each, tuple) else 1 for each in (known.offset, known.divisor))
    if expected not in (1, channels):
        raise InputError(
            f"{place}: expected observations of {expected} channels or features, as those that the normalization was "
            f"found in, got {channels}; choose other data"
        )
