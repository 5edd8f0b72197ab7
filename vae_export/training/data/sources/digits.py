"""The digits of scikit-learn, which come with it."""

from __future__ import annotations

import numpy as np

from ..part import Condition, Rows
from ..source import Addressed


def digits() -> Addressed:
    """Return the 1,797 digits, 8×8, with their `label`."""
    from sklearn.datasets import load_digits

    found = load_digits()
    label = Condition(found.target.astype(np.int64), tuple(map(str, range(10))))
    return Addressed(Rows("digits", found.images.astype(np.uint8)[:, None], 16, {"label": label}))
