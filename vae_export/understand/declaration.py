"""The known facts about a model, declared by its author, its family or the arguments of `export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The meanings that an encoder's second tensor, beside the mean, may have.
SECOND = ("logvar", "std", "var", "log_std", "softplus")

# Names that a bundle's own tensors have: conditions and further outputs take others.
RESERVED = {"x", "z", "codes", "mu", "logvar", "std", "logits", "scale"}


@dataclass(frozen=True)
class Mixture:
    """A prior that is a mixture of normals over the numbers of one latent."""

    weights: NDArray[np.float64]
    """[K]."""
    means: NDArray[np.float64]
    """[K, D]."""
    factors: NDArray[np.float64]
    """The standard deviations [K, D], or the Cholesky factors of the covariances [K, D, D]."""
    origin: str
    """Where it comes from, for the record."""


@dataclass(frozen=True)
class Declaration:
    """Arguments of `export`; None is left to be found out. docs/bring-your-own.md describes the fields.

    `encode` is called with x, and with the conditions that it takes by keyword; `decode` with the latents in order, and
    with its conditions likewise. The same document says what they may return.
    """

    encode: Callable[..., Any] | str | None = None
    decode: Callable[..., Any] | str | None = None
    posterior: str | None = None
    posterior_reason: str | None = None
    likelihood: str | None = None
    scale: float | None = None
    prior: str | Mixture | None = None
    prior_reason: str | None = None
    axes: Sequence[str] | None = None
    latent_axes: Sequence[str] | None = None
    dynamic: Sequence[str] | None = None
    range: tuple[float, float] | None = None
    latent_scale: float | Sequence[float] | None = None
    latent_shift: float | Sequence[float] | None = None
    codebook: int | None = None

    def over(self, other: Declaration) -> Declaration:
        """Return this declaration, with the other's values for the fields that are None here."""
        return Declaration(
            **{
                field.name: getattr(other if getattr(self, field.name) is None else self, field.name)
                for field in fields(self)
            }
        )
