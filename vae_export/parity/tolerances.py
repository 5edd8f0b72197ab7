"""How far an answer may be from its reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# The allowed difference, as a share of the larger of 1 and the tensor's largest magnitude: about eighty roundings of
# float32. Sound graphs of VAEs differ by one to thirty.
RELATIVE = 1e-5
# The share of codes, and of answers that are whole numbers, that may differ: at a border rounding decides.
CODES = 1e-3


def tolerance(reference: Array) -> float:
    """Return the largest allowed difference from a reference tensor: 1e-5 of its largest finite magnitude, or of 1.

    For integer codes, return the share that may differ: 0.001.
    """
    if reference.dtype.kind in "iu":
        return CODES
    return RELATIVE * float(np.max(np.abs(reference), where=np.isfinite(reference), initial=1.0))


def is_whole(answer: Array) -> bool:
    """Return whether an answer holds whole numbers alone, as codes, an argmax and pixels of 8 bits do."""
    return answer.dtype.kind in "iu" or bool(np.array_equal(answer, np.rint(answer)))
