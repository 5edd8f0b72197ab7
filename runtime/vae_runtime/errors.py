"""The exceptions this package raises on purpose.

Every message says what was expected, what was got and what to do next, and starts with the place: a file, a field,
a tensor or an index.
"""

from __future__ import annotations

import operator


class VaeError(Exception):
    """The base of every error raised on purpose by vae-runtime and vae-export."""


class BundleError(VaeError):
    """A bundle is missing, damaged, altered, or of a format this version does not read."""


class InputError(VaeError, ValueError):
    """An argument, an array or a data file is not what was asked for."""


class DeviceError(VaeError):
    """The device, execution provider or ONNX Runtime asked for is not there."""


def require_integer(name: str, value: object, low: int, high: int) -> int:
    """The value as an int, numpy's integers included.

    Raises:
        InputError: it is no integer, or not from low to high.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name}: an integer is expected, got {value!r}") from None
    if not low <= number <= high:
        raise InputError(f"{name}: {low} … {high} is expected, got {number}")
    return number
