"""Quick checks of arrays: whether all numbers are finite, or within bounds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

Bounds = tuple[float, float] | None
# Says whether the numbers that an array holds now are right.
Check = Callable[[], bool]
_FINITE = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))
_UINT32, _INT32 = np.dtype(np.uint32), np.dtype(np.int32)
_INFINITE, _NEGATIVE_INFINITE = 0x7F800000, 0xFF800000
# Up to this many numbers, Python adds them in less time than numpy takes for two calls.
_FEW = 16


def finite(array: Array) -> Check:
    """A check of an array, not empty, that may be called whenever its numbers have changed: none is NaN or infinite."""
    numbers = array.reshape(-1)
    if numbers.size <= _FEW:
        # A sum is finite only if all numbers are.
        listed = numbers.tolist
        return lambda: isfinite(sum(listed()))
    # The bits of infinity and of NaN are above those of all other numbers of their sign. As unsigned integers those of
    # negative numbers are the highest, as signed ones those of positive numbers.
    unsigned: NDArray[Any] = numbers.view(_UINT32)
    signed: NDArray[Any] = numbers.view(_INT32)
    highest, negative, at, negative_at = signed.item, unsigned.item, signed.argmax, unsigned.argmax
    return lambda: highest(at()) < _INFINITE and not negative(negative_at()) >= _NEGATIVE_INFINITE


def within(array: Array, bounds: Bounds) -> Check:
    """A check of an array, not empty, that may be called whenever its numbers have changed: NaN is within no bounds."""
    numbers = array.reshape(-1)
    low, high = bounds or _FINITE
    highest = _bits(low, high)
    if highest is not None:
        bits: NDArray[Any] = numbers.view(_UINT32)
        # Faster than the maximum itself.
        item, argmax = bits.item, bits.argmax
        return lambda: item(argmax()) <= highest
    # Both are NaN where any number is, and no comparison holds.
    return lambda: bool(np.minimum.reduce(numbers) >= low and np.maximum.reduce(numbers) <= high)


def all_finite(array: Array) -> bool:
    """Whether all numbers of an array, not empty, are finite; may be False where squares are beyond float32's range."""
    # One call of numpy: after a large graph each takes a microsecond, since the caches hold the graph's data.
    return isfinite(np.vdot(array, array))


def all_within(array: Array, bounds: Bounds) -> bool:
    """Whether all numbers of an array, not empty, are within bounds; without bounds, whether they are finite."""
    low, high = bounds or _FINITE
    highest = _bits(low, high)
    if highest is not None:
        bits: NDArray[Any] = array.view(_UINT32)
        return bool(bits.item(bits.argmax()) <= highest)
    return bool(np.minimum.reduce(array, axis=None) >= low and np.maximum.reduce(array, axis=None) <= high)


@functools.lru_cache(maxsize=64)
def _bits(low: float, high: float) -> int | None:
    """The bits of the upper bound as float32, where the lower is 0; None elsewhere.

    The bits of numbers that are not negative are in the numbers' order; those of negative numbers and NaN are greater.
    """
    return int(np.float32(high).view(_UINT32)) if low == 0 < high else None
