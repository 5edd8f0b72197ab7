"""What is said of a model: by its author, by its family or by the arguments of `export`, in one vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["RESERVED", "SECOND", "Declaration"]

# What an encoder's second tensor can be, beside the mean.
SECOND = ("logvar", "std", "var", "log_std", "softplus")

# Names that a bundle's own tensors have: conditions and further outputs take others.
RESERVED = {"x", "z", "codes", "mu", "logvar", "std", "logits", "scale"}


@dataclass(frozen=True)
class Declaration:
    """Some of what `export` takes; None is left to be found out. docs/bring-your-own.md describes the fields.

    `encode` is called with x and the conditions it takes by keyword, `decode` with the latents in order and likewise.
    What they may return stands in the same document.
    """

    encode: Callable[..., Any] | str | None = None
    decode: Callable[..., Any] | str | None = None
    posterior: str | None = None
    posterior_reason: str | None = None
    likelihood: str | None = None
    scale: float | None = None
    prior: str | None = None
    prior_reason: str | None = None
    axes: Sequence[str] | None = None
    latent_axes: Sequence[str] | None = None
    dynamic: Sequence[str] | None = None
    range: tuple[float, float] | None = None
    latent_scale: float | Sequence[float] | None = None
    latent_shift: float | Sequence[float] | None = None
    codebook: int | None = None

    def over(self, other: Declaration) -> Declaration:
        """This, and where it says nothing, the other."""
        return Declaration(
            **{
                field.name: getattr(other if getattr(self, field.name) is None else self, field.name)
                for field in fields(self)
            }
        )
