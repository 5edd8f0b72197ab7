"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, require_number
from .arrays import read_npy

if TYPE_CHECKING:
    from ..manifest import Condition
    from ..vae import VAE

__all__ = [
    "SEED",
    "argument",
    "condition",
    "conditions_of",
    "device",
    "digest",
    "file_name",
    "integer",
    "integers",
    "load_vae",
    "number",
    "require_png",
    "require_seed",
]


def argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type for argparse: its errors are misuse, with the reader's own words."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except (InputError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def integer(name: str, low: int, high: int) -> Callable[[str], Any]:
    """A type for argparse: an integer from low to high."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise InputError(f"{name}: an integer is expected, got {text!r}") from None
        if not low <= value <= high:
            raise InputError(f"{name}: {low} … {high} is expected, got {value}")
        return value

    return argument(read)


def device(text: str) -> str:
    """A type for argparse: a device or an execution provider."""
    from ..devices import parse_device

    return parse_device(text)


def digest(text: str) -> str:
    """A type for argparse: a bundle's digest."""
    from ..bundle import parse_digest

    return parse_digest(text)


def number(name: str, low: float, high: float) -> Callable[[str], Any]:
    """A type for argparse: a number from low to high."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"{name}: a number is expected, got {text!r}") from None
        return require_number(name, value, low, high)

    return argument(read)


def integers(name: str, low: int, high: int) -> Callable[[str], Any]:
    """A type for argparse: integers from low to high, joined by commas."""
    one = integer(name, low, high)
    return lambda text: [one(part) for part in text.split(",")]


def condition(text: str) -> tuple[str, str]:
    """A type for argparse: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise InputError(f"condition: NAME=VALUE is expected, got {text!r}")
    return name, value


def file_name(*suffixes: str) -> Callable[[str], Any]:
    """A type for argparse: a path that ends in one of the suffixes."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix not in suffixes:
            raise InputError(f"{text}: a file name ending in {' or '.join(suffixes)} is expected")
        return path

    return argument(read)


SEED = integer("seed", -(2**63), 2**64 - 1)


def load_vae(options: argparse.Namespace) -> VAE:
    """Load the bundle as the options say; a PNG is refused first where Pillow is missing."""
    from ..vae import load

    if getattr(options, "out", None) is not None and options.out.suffix == ".png":
        from ..image import require_pillow

        require_pillow()
    return load(
        options.bundle,
        device=options.device,
        threads=options.threads,
        variant=options.variant,
        digest=options.digest,
    )


def conditions_of(options: argparse.Namespace, vae: VAE, *, files: bool = False) -> dict[str, Any]:
    """The values of --condition by name; with `files`, paths of .npy files stay paths."""
    known = {condition.name: condition for condition in vae.conditions}
    found: dict[str, Any] = {}
    for name, text in options.condition:
        if name in found:
            options.misuse(f"argument --condition: {name} once is expected, got it twice")
        # An unknown name is refused by the VAE.
        plain = name not in known or (files and text.endswith(".npy"))
        found[name] = text if plain else _condition_value(known[name], text)
    return found


def _condition_value(condition: Condition, text: str) -> Any:
    import numpy as np

    names = text.split(",")
    if condition.classes and text in condition.classes:
        return text
    if condition.classes and set(names) <= set(condition.classes):
        return names
    if text.endswith(".npy"):
        return read_npy(Path(text))
    try:
        numbers = np.array([int(each) if condition.dtype == "int64" else float(each) for each in names])
        values = numbers.astype(condition.dtype)
    except (ValueError, OverflowError):
        classes = f"a class ({', '.join(condition.classes)}), " if condition.classes else ""
        kind = "integers" if condition.dtype == "int64" else "numbers"
        raise InputError(
            f"--condition {condition.name}: {classes}{kind} joined by commas or an .npy file is expected, got {text!r}"
        ) from None
    return values.reshape(condition.shape) if values.size == math.prod(condition.shape) else values


def require_seed(options: argparse.Namespace) -> int:
    """The start; misuse where there is no seed that it could count from."""
    if options.start is not None and options.seed is None:
        options.misuse("argument --start: only with --seed, whose samples it counts")
    return options.start or 0


def require_png(options: argparse.Namespace) -> None:
    """Refuse --columns as misuse where no PNG is written."""
    if options.columns is not None and options.out.suffix != ".png":
        options.misuse("argument --columns: only with --out *.png")
