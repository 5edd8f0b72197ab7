"""The kinds of likelihood p(x|z): what each takes, its log density and its draws. Only this module names a kind.

A new kind is one class here, in the table `KINDS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import noise
from .errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Floats = NDArray[np.float64]

_LOG_2PI = math.log(2 * math.pi)
# The smallest logarithm of a probability where a decoder gives no logits, as in PyTorch's binary_cross_entropy.
_MIN_LOG = -100.0


class Parameters(NamedTuple):
    """The parameters of p(x|z) for a batch: arrays [n, *shape], and a scale that may be one number for all values."""

    mean: Any = None
    logits: Any = None
    scale: Any = None


class Kind:
    """One kind of likelihood."""

    name: str
    """The kind in a manifest."""
    support: tuple[float, float] | None = None
    """The range of the values of x that it is a density or a probability on; None for every finite number."""
    logits: bool = False
    """Whether the decoder may also give logits, which `log_prob` then takes instead of the mean."""
    scale: bool = False
    """Whether it has a scale: one positive number, or an output of the decoder."""

    def log_prob(self, x: Floats, parameters: Parameters) -> Floats:
        """log p of each value of x, with all constants.

        Args:
            x: float64 [n, *shape].
            parameters: in float64.

        Returns:
            float64 [n, *shape], nats.
        """
        raise NotImplementedError

    def draw(self, parameters: Parameters, seed: int, start: int) -> Array:
        """Draw one observation for each row (docs/noise.md, section 6).

        Args:
            parameters: `mean`, float32 [n, *shape], and `scale` where the kind has one.
            seed: of vnoise-1.
            start: index of the first row: row i is sample `start + i` of the seed.

        Returns:
            float32 [n, *shape].
        """
        raise NotImplementedError


class Bernoulli(Kind):
    """Each value is 0 or 1; grey values between them give a surrogate."""

    name = "bernoulli"
    support = (0.0, 1.0)
    logits = True

    def log_prob(self, x: Floats, parameters: Parameters) -> Floats:
        """x · log p + (1 − x) · log(1 − p)."""
        terms: Floats
        if parameters.logits is not None:
            # log σ(l) = l − softplus(l), log(1 − σ(l)) = −softplus(l): no sigmoid that could saturate
            terms = x * parameters.logits - np.logaddexp(0.0, parameters.logits)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                yes = np.maximum(np.log(parameters.mean), _MIN_LOG)
                no = np.maximum(np.log1p(-parameters.mean), _MIN_LOG)
            terms = x * yes + (1 - x) * no
        return terms

    def draw(self, parameters: Parameters, seed: int, start: int) -> Array:
        """1 where uniform noise is below the mean."""
        drawn: Array = (_uniform(parameters.mean, seed, start) < parameters.mean).astype(np.float32)
        return drawn


class Gaussian(Kind):
    """Each value is normal about the mean; the scale is its standard deviation."""

    name = "gaussian"
    scale = True

    def log_prob(self, x: Floats, parameters: Parameters) -> Floats:
        """−½ ((x − mean) / scale)² − log scale − ½ log 2π."""
        # A scale of 0 from a decoder has an infinite density, or none: the score then says so.
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (x - parameters.mean) / parameters.scale
            terms: Floats = -0.5 * distance**2 - np.log(parameters.scale) - 0.5 * _LOG_2PI
        return terms

    def draw(self, parameters: Parameters, seed: int, start: int) -> Array:
        """mean + scale · eps."""
        mean = parameters.mean
        eps = noise.normal(seed, start, len(mean), mean.shape[1:], noise.stream_of(noise.OBSERVATION))
        drawn: Array = mean + np.asarray(parameters.scale, np.float32) * eps
        return drawn


class Laplace(Kind):
    """Each value has a Laplace distribution about the mean; the scale is its b."""

    name = "laplace"
    scale = True

    def log_prob(self, x: Floats, parameters: Parameters) -> Floats:
        """−|x − mean| / scale − log(2 scale)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (x - parameters.mean) / parameters.scale
            terms: Floats = -np.abs(distance) - np.log(2 * parameters.scale)
        return terms

    def draw(self, parameters: Parameters, seed: int, start: int) -> Array:
        """The mean plus the inverse of the distribution function at uniform noise."""
        # Noise is moved off 0, where the inverse is infinite, by half of its step.
        centred = _uniform(parameters.mean, seed, start).astype(np.float64) + 2.0**-25 - 0.5
        scale = np.asarray(parameters.scale, np.float64)
        difference = -scale * np.sign(centred) * np.log1p(-2.0 * np.abs(centred))
        drawn: Array = (parameters.mean + difference).astype(np.float32)
        return drawn


def _uniform(mean: Array, seed: int, start: int) -> Array:
    return noise.uniform(seed, start, len(mean), mean.shape[1:], noise.stream_of(noise.OBSERVATION))


KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (Bernoulli(), Gaussian(), Laplace())}
"""Every kind by its name in a manifest. "none" is the absence of a likelihood, and no kind."""


def kind_named(name: str) -> Kind:
    """The kind of this name.

    Raises:
        InputError: there is none.
    """
    if name not in KINDS:
        raise InputError(
            f"likelihood: expected one of {', '.join(KINDS)}, got {name!r}; use a version of vae-runtime that knows "
            "this kind"
        )
    return KINDS[name]
