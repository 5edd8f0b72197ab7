"""What a decoder's answer is: the kind of likelihood for a manifest's observations, and the range of its mean."""

from __future__ import annotations

from .likelihood import Kind, kind_named
from .manifest import Signature


def kind_of(manifest: Signature) -> Kind:
    """The kind of likelihood, for the observations of a manifest.

    Raises:
        InputError: there is none, or it is unknown.
    """
    return kind_named(manifest.likelihood.kind).of(manifest.observation.range, manifest.likelihood.shape)


def range_of_mean(manifest: Signature) -> tuple[float, float] | None:
    """The range of what a decoder gives as its mean, as far as it is stated; draws have the observation's."""
    return kind_of(manifest).mean_support if manifest.likelihood.has_classes else manifest.observation.range
