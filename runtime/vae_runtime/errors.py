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


_MAX_LINE, _MAX_LINES = 2000, 100


def counted(n: int, noun: str) -> str:
    """Return a number with its noun: "1 sample", "2 samples"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def one_line(text: object) -> str:
    """Return the text as it is printed: no bundle can forge a line of output, or flood a terminal.

    Line ends and terminal commands are spelled out, and a text of more than 2000 characters loses its middle.
    """
    whole = str(text)
    if len(whole) > _MAX_LINE:
        whole = _without_middle(whole, _MAX_LINE)
    if whole.isprintable():
        return whole
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in whole)
    return line if len(line) <= _MAX_LINE else _without_middle(line, _MAX_LINE)


def lines_of(message: str) -> str:
    """Return a message of several lines as it is printed: each is `one_line`, and they are at most 100."""
    lines = message.splitlines()
    more = [f"  and {len(lines) - _MAX_LINES} lines more"] if len(lines) > _MAX_LINES else []
    return "\n".join([*map(one_line, lines[:_MAX_LINES]), *more])


def _without_middle(line: str, length: int) -> str:
    half = length // 2
    return f"{line[:half]} … {line[3 + half - length :]}"


def error_line(error: BaseException) -> str:
    """Return an error's message in one line of at most 400 characters; the name of its class where it has none."""
    # The words of the system alone: its number and the path stand elsewhere in our messages.
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = one_line(" ".join(message.split())) or type(error).__name__
    # Some libraries say first what failed, others where.
    return line if len(line) <= 400 else _without_middle(line, 400)


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
    # To Python, a bool is the number 0 or 1.
    number: Any = value if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:
        raise InputError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
    return float(number)
