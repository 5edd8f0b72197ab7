"""The exceptions this package raises on purpose.

Every message says what was expected, what was got and what to do next, and starts with the place: a file, a field,
a tensor or an index.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


class VaeError(Exception):
    """The base of every error raised on purpose by vae-runtime and vae-export."""


class BundleError(VaeError):
    """A bundle is missing, damaged, altered, or of a format this version does not read."""


class InputError(VaeError, ValueError):
    """An argument, an array or a data file is not what was asked for."""


class DeviceError(VaeError):
    """The device, execution provider or ONNX Runtime asked for is not there."""


def one_line(text: object) -> str:
    """The text with line ends and terminal commands spelled out: a bundle's words cannot forge a line of output."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in str(text))


def error_line(error: BaseException) -> str:
    """Return an error's message in one line of at most 400 characters; the name of its class where it has none."""
    # The words of the system alone: its number and the path stand elsewhere in our messages.
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = one_line(" ".join(message.split())) or type(error).__name__
    # Some libraries say first what failed, others where.
    return line if len(line) <= 400 else f"{line[:200]} … {line[-197:]}"


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
        # Python itself refuses to spell out an integer of thousands of digits
        got = number if number.bit_length() <= 128 else f"one of {number.bit_length()} bits"
        raise InputError(f"{name}: {low} … {high} is expected, got {got}")
    return number


def require_number(name: str, value: object, low: float, high: float) -> float:
    """The value as a float, numpy's numbers included.

    Raises:
        InputError: it is no real number, or not from low to high.
    """
    number: Any = value if isinstance(value, numbers.Real) else math.nan
    if not low <= number <= high:
        raise InputError(f"{name}: a number from {low:g} to {high:g} is expected, got {value!r}")
    return float(number)
