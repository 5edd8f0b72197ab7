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
# Factorials from a table, and the rate from which draws take an expansion instead of a sum.
_TABULATED = 32
_LARGE_RATE = 1024.0


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
    counts: bool = False
    """Whether the values of x are counts: whole numbers."""
    logits: bool = False
    """Whether the decoder may also give logits, which `log_prob` then takes instead of the mean."""
    scale: bool = False
    """Whether it has a scale: one positive number, or an output of the decoder."""

    def outside(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell for each value of x whether it is one that the kind is not defined for; NaN and infinity always are."""
        low, high = self.support or (-math.inf, math.inf)
        outside: NDArray[np.bool_] = ~(np.isfinite(x) & (x >= low) & (x <= high))
        return outside | (x != np.floor(x)) if self.counts else outside

    def misfit(self, x: NDArray[Any]) -> str | None:
        """Describe, for an error, the first value of x that the kind is not defined for; None if there is none."""
        outside = self.outside(x)
        if not outside.any():
            return None
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        values = f"values in [{self.support[0]:g}, {self.support[1]:g}]" if self.support else "finite values"
        values = "counts (0, 1, 2, …)" if self.counts else values
        return f"expected {values} for a {self.name} likelihood, got {x[index]:g} at {list(index)}"

    def mean_of(self, logits: Floats) -> Floats:
        """Return the mean that belongs to logits, float64; only where `logits` is true."""
        raise NotImplementedError

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

    def mean_of(self, logits: Floats) -> Floats:
        """σ(l), by the form that does not overflow."""
        mean: Floats = 0.5 + 0.5 * np.tanh(0.5 * logits)
        return mean

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
        centered = _uniform(parameters.mean, seed, start).astype(np.float64) + 2.0**-25 - 0.5
        scale = np.asarray(parameters.scale, np.float64)
        difference = -scale * np.sign(centered) * np.log1p(-2.0 * np.abs(centered))
        drawn: Array = (parameters.mean + difference).astype(np.float32)
        return drawn


class Poisson(Kind):
    """Each value is a count, 0, 1, 2, …; the mean is its rate. Any other value has the probability 0."""

    name = "poisson"
    support = (0.0, math.inf)
    counts = True

    def log_prob(self, x: Floats, parameters: Parameters) -> Floats:
        """x · log rate − rate − log x!; at the rate 0, 0 for x = 0 and −∞ for any other count."""
        impossible, rate = self.outside(x), parameters.mean
        count = np.where(impossible, 0.0, x)
        with np.errstate(divide="ignore", invalid="ignore"):
            power = np.where(count > 0, count * np.log(rate), 0.0)
        terms: Floats = power - rate - _log_factorial(count)
        terms[impossible] = -np.inf
        return terms

    def draw(self, parameters: Parameters, seed: int, start: int) -> Array:
        """The inverse of the distribution function at the noise; NaN where the rate is negative or not finite."""
        rate = np.asarray(parameters.mean, np.float64)
        drawn: Array = np.full(rate.shape, np.nan, np.float32)
        large = (rate >= _LARGE_RATE) & np.isfinite(rate)
        small = (rate >= 0) & (rate < _LARGE_RATE)
        if small.any():
            # Noise is moved off 0 by half of its step, as for Laplace.
            uniform = _uniform(parameters.mean, seed, start).astype(np.float64) + 2.0**-25
            drawn[small] = _count_at(uniform[small], rate[small])
        if large.any():
            eps = noise.normal(seed, start, len(rate), rate.shape[1:], noise.stream_of(noise.OBSERVATION))
            drawn[large] = _large_count_at(eps[large].astype(np.float64), rate[large])
        return drawn


def _log_factorial(count: Floats) -> Floats:
    """log count! of counts: a table, then Stirling's series, whose error is below 1e-13."""
    table = np.array([math.lgamma(each + 1.0) for each in range(_TABULATED)])
    n = np.maximum(count, _TABULATED) + 1
    series = (n - 0.5) * np.log(n) - n + 0.5 * _LOG_2PI + (1 / 12 - (1 / 360 - 1 / 1260 / n**2) / n**2) / n
    whole: Floats = np.where(count < _TABULATED, table[np.minimum(count, _TABULATED - 1).astype(np.int64)], series)
    return whole


def _count_at(uniform: Floats, rate: Floats) -> Floats:
    """The smallest count whose distribution function exceeds uniform noise.

    Its sum begins 8 standard deviations below the rate, where less than 2e-14 is missing from it.

    Args:
        uniform: [n], from 2⁻²⁵ to 1 − 2⁻²⁵, so that the sum has fewer than 500 terms.
        rate: [n], from 0 to below `_LARGE_RATE`.
    """
    drawn, rows = np.empty(len(rate)), np.arange(len(rate))
    count = np.maximum(np.floor(rate - 8 * np.sqrt(rate)), 0.0)
    term = np.exp(count * np.log(np.maximum(rate, 1.0)) - rate - _log_factorial(count))
    total, answer = term.copy(), count.copy()
    while len(rows):
        below = total <= uniform
        answer += below
        if 2 * np.count_nonzero(below) < len(rows):
            drawn[rows] = answer
            rows, uniform, rate, count, term, total, answer = (
                array[below] for array in (rows, uniform, rate, count, term, total, answer)
            )
        count += 1
        term *= rate / count
        total += term
    return drawn


def _large_count_at(eps: Floats, rate: Floats) -> Floats:
    """The floor of an expansion of the inverse of the distribution function in normal noise.

    Giles, Algorithm 955, ACM Transactions on Mathematical Software 42 (1), 2016, equation for Q_N2. From `_LARGE_RATE`
    on, the error of the distribution function is below 4e-9.
    """
    root, square = np.sqrt(rate), eps**2
    first = rate + root * eps + (2 + square) / 6
    counts: Floats = np.floor(
        first - eps * (2 + square) / 72 / root + (-8 / 405 + 7 / 810 * square + square**2 / 270) / rate
    )
    return counts


def _uniform(mean: Array, seed: int, start: int) -> Array:
    return noise.uniform(seed, start, len(mean), mean.shape[1:], noise.stream_of(noise.OBSERVATION))


KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (Bernoulli(), Gaussian(), Laplace(), Poisson())}
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
