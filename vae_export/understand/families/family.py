"""The record that describes one class of another library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
