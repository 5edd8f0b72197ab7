"""An .npy file with an array of rows, mapped into memory; conditions are arrays of other such files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vae_runtime.arrays import map_npy
from vae_runtime.errors import InputError, counted

from ..part import MAX_LABEL, Condition, Rows
from ..source import Addressed


def npy(path: Path, conditions: Mapping[str, str]) -> Addressed:
    """Map an array and its conditions.

    Args:
        path: numbers, [n, *shape]. uint8 are 8-bit values, other integers are what they are, such as counts.
        conditions: the .npy file of each condition by its name; integers [n] are classes, floats [n, …] are vectors.

    Raises:
        InputError: a file is missing or damaged, or does not hold such an array.
    """
    values = map_npy(path)
    if values.ndim < 2 or not values.size:
        raise InputError(f"{path}: expected an array [n, *shape] with at least one value, got {list(values.shape)}")
    if values.dtype.kind not in "iuf":
        raise InputError(f"{path}: expected numbers, got {values.dtype}; convert them with astype(numpy.uint8)")
    read = {name: _condition(name, Path(place), len(values)) for name, place in conditions.items()}
    return Addressed(Rows(path.stem, values, 255 if values.dtype == np.uint8 else 0, read))


def _condition(name: str, path: Path, n: int) -> Condition:
    if path.suffix != ".npy":
        raise InputError(f"{name}: expected a file beside the array, got {path}; write {name}=C.npy")
    values = map_npy(path)
    if not values.ndim or len(values) != n:
        raise InputError(
            f"{path}: expected {counted(n, 'row')}, as many as observations, got {list(values.shape)}; give others"
        )
    if values.dtype.kind == "f":
        array = np.asarray(values, np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{path}: expected finite numbers, got NaN or infinity; correct them")
        return Condition(array)
    classes = np.asarray(values)
    if classes.ndim > 1 or classes.min() < 0 or classes.max() >= MAX_LABEL:
        raise InputError(
            f"{path}: expected numbers of classes from 0 as [n], or floats, got {classes.dtype} {list(classes.shape)} "
            f"from {classes.min()}; convert them"
        )
    return Condition(classes.astype(np.int64))
