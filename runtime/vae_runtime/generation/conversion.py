"""Check that decoded rows are finite, and take them to uint8: by the native core where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import VaeError
from ..noise import native_core

_LARGEST = float(np.finfo(np.float32).max)


def require_finite(x: NDArray[Any], first: int, subject: str) -> None:
    """Refuse NaN and infinity.

    Args:
        x: numbers, [rows, ...].
        first: the index of the first row.
        subject: what gave them, with its verb, such as "the decoder gives".

    Raises:
        VaeError: a number is not finite; the message has the row and the place.
    """
    # A sum is finite only if all numbers are; one that overflows is looked at again.
    with np.errstate(all="ignore"):
        flat = x.reshape(-1)
        if np.isfinite(np.vdot(flat, flat) if x.dtype == np.float32 and x.flags.c_contiguous else x.sum()):
            return
    _refuse(x, first, subject)


def to_uint8(
    x: NDArray[np.float32], bounds: tuple[float, float], out: NDArray[np.uint8], first: int, subject: str
) -> None:  # fmt: skip
    """Take a range to 0 … 255, rounded half to even; what is beyond the range gets its bounds.

    Args:
        x: [rows, ...], C-contiguous; overwritten.
        bounds: the range.
        out: uint8 of the same shape, C-contiguous.
        first: as in `require_finite`, like `subject`.

    Raises:
        VaeError: as in `require_finite`.
    """
    low, scale = np.float32(bounds[0]), np.float32(255 / (bounds[1] - bounds[0]))
    core = native_core()
    if core is not None:
        if not core.to_uint8(x, float(low), float(scale), out):
            _refuse(x, first, subject)
        return
    smallest, largest = x.min(), x.max()
    # Either is NaN where a number is.
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        _refuse(x, first, subject)
    # Sound numbers far beyond the range, or of a range wider than float32's, become infinite here.
    with np.errstate(over="ignore"):
        if low:
            np.subtract(x, low, out=x)
        np.multiply(x, scale, out=x)
    np.rint(x, out=x)
    if not (bounds[0] <= smallest <= largest <= bounds[1] and bounds[1] - bounds[0] <= _LARGEST):
        np.clip(x, 0, 255, out=x)
    np.copyto(out, x, casting="unsafe")


def _refuse(x: NDArray[Any], first: int, subject: str) -> None:
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        place = [int(number) for number in wrong[0]]
        raise VaeError(
            f"sample {first + place[0]}: expected finite values, {subject} {x[tuple(place)]} at {place[1:]}; check "
            "that observations, latents and conditions are like those that the model was trained on"
        )
