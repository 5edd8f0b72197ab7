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
# How far a value may be from a level, as a share of the distance of two: float32 rounds levels.
_OFF_LEVEL = 0.01
# Probabilities that are summed at once, in float64.
_SUMMED = 2**20
# Factorials from a table, and the rate from which draws take an expansion instead of a sum.
_TABULATED = 32
_LARGE_RATE = 1024.0


class Parameters(NamedTuple):
    """The parameters of p(x|z) for a batch: arrays [n, *shape], and a scale that may be one number for all values.

    The mean and the logits of classes have one axis more, the last: [n, *shape, K].
    """

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
    levels: int = 0
    """How many evenly spaced levels from the least to the largest value x lies on; 0 where it has none."""
    classes: bool = False
    """Whether x is the number of a class, and the decoder's answer has an axis of classes, the last one."""

    @property
    def mean_support(self) -> tuple[float, float] | None:
        """The range of the mean; None for every finite number."""
        return self.support

    @property
    def values(self) -> str:
        """The values of x, in the words of an error."""
        if self.counts:
            return "counts (0, 1, 2, …)"
        return f"values in [{self.support[0]:g}, {self.support[1]:g}]" if self.support else "finite values"

    def of(self, bounds: tuple[float, float] | None, answer: tuple[int, ...] | None) -> Kind:
        """Return the kind for observations of this range, and a decoder's answer of this shape; most need neither.

        Raises:
            InputError: it needs what is None.
        """
        return self

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
        return f"expected {self.values} for a {self.name} likelihood, got {x[index]:.8g} at {list(index)}"

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
            parameters: `mean`, float32, and `scale` where the kind has one.
            seed: of vnoise-1.
            start: index of the first row: row i is sample `start + i` of the seed.

        Returns:
            float32 [n, *shape].
        """
        raise NotImplementedError


class Bernoulli(Kind):
    """Each value is 0 or 1; gray values between them give a surrogate."""

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


class Logistic(Kind):
    """Each value is one of 256 levels: a logistic variable about the mean, rounded to the nearest level.

    The scale is the logistic's s. All that lies beyond the first and the last level is rounded to these (Salimans et
    al., PixelCNN++, arXiv 1701.05517, equation 2, with one component).
    """

    name = "logistic"
    scale = True
    levels = 256

    def __init__(self, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        """Take the first and the last level."""
        self.support = bounds

    @property
    def mean_support(self) -> None:
        """The mean may be any number."""
        return None

    @property
    def values(self) -> str:
        """The levels, in the words of an error."""
        low, high = self._ends
        return f"the {self.levels} levels {low:g} + k · {self._step:g} up to {high:g}"

    def of(self, bounds: tuple[float, float] | None, answer: tuple[int, ...] | None) -> Kind:
        """The kind on the levels of a range."""
        if bounds is None:
            raise InputError(
                "likelihood: expected a range of the observations, whose ends are the first and the last level, got "
                "none; state it (range=)"
            )
        return Logistic(bounds)

    def outside(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell for each value whether it is farther from every level than float32 rounds one."""
        number = self._number(np.asarray(x, np.float64))
        nearest = np.rint(np.clip(number, 0, self.levels - 1))
        outside: NDArray[np.bool_] = ~(np.abs(number - nearest) <= _OFF_LEVEL)
        return outside

    def log_prob(self, x: Floats, parameters: Parameters) -> Floats:
        """log(σ(a) − σ(b)), with a and b the ends of the level about the mean, in scales; −∞ off the levels.

        The difference is σ(a) · σ(−b) · (1 − exp(b − a)), whose factors lose no digits. At the first level b is −∞, and
        at the last a is ∞.
        """
        outside = self.outside(x)
        low, _ = self._ends
        number = np.rint(np.where(outside, 0.0, self._number(x)))
        level, half = low + number * self._step, 0.5 * self._step
        first, last = number == 0, number == self.levels - 1
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            above = (level + half - parameters.mean) / parameters.scale
            below = (level - half - parameters.mean) / parameters.scale
            between = np.log(-np.expm1(-self._step / np.asarray(parameters.scale, np.float64)))
            terms: Floats = np.where(last, 0.0, -np.logaddexp(0.0, -above))
            terms += np.where(first, 0.0, -np.logaddexp(0.0, below))
            terms += np.where(first | last, 0.0, between)
        terms[outside] = -np.inf
        return terms

    def draw(self, parameters: Parameters, seed: int, start: int) -> Array:
        """mean + scale · log(u / (1 − u)) of uniform noise, rounded to the nearest level; NaN where it is no number."""
        uniform = _uniform(parameters.mean, seed, start).astype(np.float64) + 2.0**-25
        value = np.log(uniform) - np.log1p(-uniform)
        value *= np.asarray(parameters.scale, np.float64)
        value += parameters.mean
        low, high = self._ends
        number = np.clip(np.floor(self._number(value) + 0.5), 0, self.levels - 1)
        drawn: Array = (low + number * (high - low) / (self.levels - 1)).astype(np.float32)
        return drawn

    @property
    def _ends(self) -> tuple[float, float]:
        assert self.support is not None
        return self.support

    @property
    def _step(self) -> float:
        low, high = self._ends
        return (high - low) / (self.levels - 1)

    def _number(self, x: Floats) -> Floats:
        """Values as numbers of levels, from 0; between two levels a fraction."""
        low, high = self._ends
        number: Floats = (x - low) * (self.levels - 1) / (high - low)
        return number


class Categorical(Kind):
    """Each value is the number of one of K classes, 0 … K − 1; the mean holds their probabilities, its last axis."""

    name = "categorical"
    logits = True
    classes = True

    def __init__(self, count: int = 2) -> None:
        """Take the number of classes."""
        self.support = (0.0, count - 1.0)

    @property
    def mean_support(self) -> tuple[float, float]:
        """Probabilities lie between 0 and 1."""
        return 0.0, 1.0

    @property
    def values(self) -> str:
        """The classes, in the words of an error."""
        return f"classes 0 … {self._last:g}"

    def of(self, bounds: tuple[float, float] | None, answer: tuple[int, ...] | None) -> Kind:
        """The kind with as many classes as the answer's last axis has."""
        if answer is None:
            raise InputError(
                "likelihood: expected the decoder's answer with an axis of classes, its last, got none; state its shape"
            )
        return Categorical(answer[-1])

    def outside(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell for each value whether it is no class."""
        outside: NDArray[np.bool_] = ~((x >= 0) & (x <= self._last) & (x == np.floor(x)))
        return outside

    def mean_of(self, logits: Floats) -> Floats:
        """The softmax along the last axis."""
        mean: Floats = np.exp(logits - _log_sum_exp(logits))
        return mean

    def log_prob(self, x: Floats, parameters: Parameters) -> Floats:
        """The log-softmax of the class's logit, or the logarithm of its probability; −∞ for what is no class.

        Args:
            x: float64 [n, *shape].
            parameters: in float64, [n, *shape, K].
        """
        outside = self.outside(x)
        number = np.where(outside, 0.0, x).astype(np.int64)[..., np.newaxis]
        if parameters.logits is not None:
            chosen = np.take_along_axis(parameters.logits, number, -1) - _log_sum_exp(parameters.logits)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                chosen = np.maximum(np.log(np.take_along_axis(parameters.mean, number, -1)), _MIN_LOG)
        terms: Floats = chosen[..., 0]
        terms[outside] = -np.inf
        return terms

    def draw(self, parameters: Parameters, seed: int, start: int) -> Array:
        """The inverse of the distribution function at uniform noise; NaN where the probabilities have no finite sum.

        Args:
            parameters: `mean`, float32 [n, *shape, K], whose sum need not be 1.

        Returns:
            float32 [n, *shape].
        """
        mean = parameters.mean
        uniform = noise.uniform(seed, start, len(mean), mean.shape[1:-1], noise.stream_of(noise.OBSERVATION))
        drawn: Array = np.empty(mean.shape[:-1], np.float32)
        rows = max(1, _SUMMED // max(1, mean[0].size)) if len(mean) else 1
        for first in range(0, len(mean), rows):
            part = slice(first, first + rows)
            # Sums from class 0 on, one after the other, in float64.
            sums = np.cumsum(mean[part], axis=-1, dtype=np.float64)
            total = sums[..., -1]
            number = np.argmax(sums > (uniform[part] * total)[..., np.newaxis], axis=-1)
            drawn[part] = np.where(np.isfinite(total) & (total > 0), number, np.nan)
        return drawn

    @property
    def _last(self) -> float:
        assert self.support is not None
        return self.support[1]


def _log_sum_exp(logits: Floats) -> Floats:
    """log Σ exp(l) along the last axis, which stays with one value."""
    greatest = logits.max(axis=-1, keepdims=True)
    total: Floats = greatest + np.log(np.exp(logits - greatest).sum(axis=-1, keepdims=True))
    return total


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


KINDS: Mapping[str, Kind] = {
    kind.name: kind for kind in (Bernoulli(), Gaussian(), Laplace(), Poisson(), Logistic(), Categorical())
}
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
