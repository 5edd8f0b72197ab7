"""The records that describe one class of another library, and the data of a trained object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_runtime.columns import Column

from ..declaration import Declaration

# Methods that a derived class must not replace where a family calls the modules behind them.
CODING = ("encode", "decode", "_encode", "_decode", "forward")


@dataclass(frozen=True)
class Family:
    """One class of a library."""

    describe: Callable[[Any], Declaration | None]
    """Gives the declaration of a model of this class; None for a model with settings that are not covered."""
    methods: tuple[str, ...] = CODING
    """The methods that the declaration replaces: it does not hold for a derived class with its own."""


@dataclass(frozen=True)
class ObjectData:
    """The data that a trained object holds for the module in it."""

    example: Tensor
    """[n, …]."""
    conditions: Mapping[str, Tensor]
    """Values [n, …] by name."""
    class_names: Mapping[str, Sequence[str]]
    """The names of the classes of integer conditions."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Offset and divisor of each feature, which the example was standardized with."""


@dataclass(frozen=True)
class DecoderData:
    """A trained object that keeps a decoder alone."""

    latents: Tensor
    """Examples [n, …]."""
    declaration: Declaration
    """How the object itself decodes."""
    table: tuple[Column, ...]
    """The columns of the table whose rows the observations are."""
    note: str
    """A line on what is exported."""
