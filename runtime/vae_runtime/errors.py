"""The errors that this package raises on purpose.

    Exception
    └── VaeError                     all of these; itself: a file that cannot be written, a graph that fails, …
        ├── BundleError              a bundle is missing, damaged, altered, or of a format not read here
        ├── InputError (ValueError)  an argument, an array or a data file of the caller's is not as expected
        ├── DeviceError              a device, an execution provider or ONNX Runtime itself is unavailable
        ├── ExportError              in vae_export.errors, as the next two
        │   └── ParityError
        └── TrainingError

Every message starts with the place (a file, a field, a tensor or an index), says what was expected and what was got,
and ends with the next step: `place: expected X, got Y; next step`. Any other error from a public function is a defect.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


class VaeError(Exception):
    """The base of every error that vae-runtime and vae-export raise on purpose."""


class BundleError(VaeError):
    """A bundle is missing, damaged, altered, or of a format this version does not read."""


class InputError(VaeError, ValueError):
    """An argument, an array or a data file is not as expected."""


class DeviceError(VaeError):
    """A device, an execution provider or ONNX Runtime itself is unavailable."""


def one_line(text: object) -> str:
    """Return the text with line ends and terminal commands spelled out: no bundle can forge a line of output."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in str(text))


def error_line(error: BaseException) -> str:
    """Return an error's message in one line of at most 400 characters; the name of its class where it has none."""
    # The words of the system alone: its number and the path stand elsewhere in our messages.
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = one_line(" ".join(message.split())) or type(error).__name__
    # Some libraries say first what failed, others where.
    return line if len(line) <= 400 else f"{line[:200]} … {line[-197:]}"


def require_integer(name: str, value: object, low: int, high: int) -> int:
    """Return the value as an int; numpy's integers are accepted.

    Raises:
        InputError: it is not an integer from low to high.
    """
    if type(value) is int and low <= value <= high:
        return value
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name}: expected an integer, got {value!r}") from None
    if not low <= number <= high:
        # Python itself refuses to spell out an integer of thousands of digits
        got = number if number.bit_length() <= 128 else f"one of {number.bit_length()} bits"
        raise InputError(f"{name}: expected {low} … {high}, got {got}")
    return number


def require_bool(name: str, value: object) -> bool:
    """Return the value as a bool; numpy's bools are accepted.

    Raises:
        InputError: it is neither True nor False.
    """
    # numpy, which calls its own "bool" or "bool_", is not imported here.
    if isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")):
        return bool(value)
    raise InputError(f"{name}: expected True or False, got {value!r:.99}")


def require_number(name: str, value: object, low: float, high: float) -> float:
    """Return the value as a float; numpy's numbers are accepted.

    Raises:
        InputError: it is not a real number from low to high.
    """
    number: Any = value if isinstance(value, numbers.Real) else math.nan
    if not low <= number <= high:
        raise InputError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
    return float(number)
