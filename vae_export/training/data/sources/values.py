"""Turn the values of one row, as libraries give them, into an observation and its conditions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError, error_line

from ..part import require_exact
from ..pictures import decoded, values
from ..source import Batch, Damaged


def row(
    place: str,
    found: Mapping[str, Any],
    conditions: Mapping[str, str],
    columns: Sequence[str],
    uint8: Sequence[str] = (),
) -> Batch | Damaged:
    """Return a row of named values as a batch of one.

    Args:
        place: what to call it in errors.
        found: the values: numbers, arrays, nested lists, tensors, pictures of Pillow or in the bytes of their files.
        conditions: the column of each condition by its name.
        columns: those of the observation; several are numbers, which become its features.
        uint8: columns whose lists are of 8-bit values.

    Raises:
        InputError: it holds integers that float32 does not.
    """
    try:
        missing = [name for name in (*columns, *conditions.values()) if found.get(name) is None]
        if missing:
            raise ValueError(f"expected a value of {missing[0]}, got none")
        arrays = [_array(name, found[name], name in uint8) for name in columns]
        if len(arrays) > 1:
            wide = next((name for name, each in zip(columns, arrays, strict=True) if each.ndim), None)
            if wide is not None:
                raise ValueError(f"expected a number in each of several columns, got more in {wide}")
            for name, each in zip(columns, arrays, strict=True):
                require_exact(each[None], f"{place}: {name}")
            arrays = [np.array(arrays, np.float32)]
        x = arrays[0] if arrays[0].ndim else arrays[0].reshape(1)
        return Batch(place, x[None], {name: condition(found[where]) for name, where in conditions.items()})
    except InputError:
        # As of an array: not one row is damaged, but the data are not what training takes.
        raise
    except (TypeError, ValueError, OverflowError) as error:
        return Damaged(place, error_line(error))


def condition(value: Any) -> NDArray[Any] | list[str]:
    """Return the condition of one row as that of a batch of one: a class by its name or number, or numbers.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str):
        return [value]
    return _array("a condition", value, False)[None]


def _array(name: str, value: Any, uint8: bool) -> NDArray[Any]:
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    if isinstance(value, bytes):
        return decoded(io.BytesIO(value), len(value))
    if hasattr(value, "convert") and hasattr(value, "getbands"):
        return values(value)
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value, np.uint8 if uint8 else None)
    except (TypeError, ValueError, OverflowError):
        # numpy's words name its own insides.
        array = np.empty(0)
    if array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"expected numbers or a picture in {name}, got {str(value)!r:.99}")
    return array
