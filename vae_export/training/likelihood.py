"""The kinds of likelihood p(x|z) in PyTorch. Only this module of the training names a kind.

A new kind is one class here, in the table `KINDS`, beside its class in `vae_runtime.likelihood`, which states its
support and whether it has a scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, distributions
from torch.nn import functional

from vae_runtime.errors import InputError

_LOG_2PI = math.log(2 * math.pi)
# How far a mean stays from the ends of its range, where the decoder's answer would be infinite.
_MARGIN = 1e-3
# Levels of 8-bit values.
_LEVELS = 256
# Below this, log(softplus(a)) is a to the precision of float32.
_LOW = -20.0


def _of_logits(logits: Tensor) -> distributions.Distribution:
    return distributions.Bernoulli(logits=logits)


def _of_classes(answer: Tensor) -> distributions.Distribution:
    return distributions.Categorical(logits=answer)


def _of_rates(answer: Tensor) -> distributions.Distribution:
    return distributions.Poisson(functional.softplus(answer))


class Kind:
    """One kind of likelihood. By itself, a decoder gives the mean."""

    name: str
    """The kind in a configuration and in a manifest."""
    binary: bool = False
    """Whether it covers 0 and 1 alone, so that figures of other values are of a surrogate."""
    distribution: Callable[[Tensor], distributions.Distribution] | None = None
    """Wraps the decoder's answer for `export`, which then knows its meaning; None where the answer is the mean."""

    def log_prob(self, x: Tensor, parameters: Tensor, scale: Tensor) -> Tensor:
        """Return log p of each value of x, in nats, with all constants.

        Args:
            x: observations, float [n, *shape].
            parameters: the decoder's answer, float [..., n, *shape]; of classes [..., n, *shape, K].
            scale: a scalar, which a kind without a scale ignores.

        Returns:
            float [..., n, *shape].
        """
        raise NotImplementedError

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the mean of p(x|z) that the decoder's answer stands for; same shape."""
        return parameters

    def parameters(self, mean: Tensor, margin: float = _MARGIN) -> Tensor:
        """Return the decoder's answer that stands for a mean, as near to it as is finite; same shape.

        Args:
            mean: of p(x|z).
            margin: how far it is kept away from the ends of its range, where the answer would be infinite.
        """
        return mean

    def point(self, parameters: Tensor) -> Tensor:
        """Return one value for each of an observation, [..., n, *shape]: the mean, or the most likely class."""
        return self.mean(parameters)


class Bernoulli(Kind):
    """Each value is 0 or 1; the decoder gives logits."""

    name = "bernoulli"
    binary = True
    distribution = staticmethod(_of_logits)

    def log_prob(self, x: Tensor, parameters: Tensor, scale: Tensor) -> Tensor:
        """x · l − softplus(l)."""
        # log σ(l) = l − softplus(l), log(1 − σ(l)) = −softplus(l): no sigmoid that could saturate
        return x * parameters - functional.softplus(parameters)

    def mean(self, parameters: Tensor) -> Tensor:
        """σ(l)."""
        return parameters.sigmoid()

    def parameters(self, mean: Tensor, margin: float = _MARGIN) -> Tensor:
        """log(mean / (1 − mean)), of a mean kept away from 0 and 1."""
        return mean.clamp(margin, 1 - margin).logit()


class Gaussian(Kind):
    """Each value is normal about the mean; the scale is its standard deviation."""

    name = "gaussian"

    def log_prob(self, x: Tensor, parameters: Tensor, scale: Tensor) -> Tensor:
        """−½ ((x − mean) / scale)² − log scale − ½ log 2π."""
        return -0.5 * ((x - parameters) / scale).square() - scale.log() - 0.5 * _LOG_2PI


class Laplace(Kind):
    """Each value has a Laplace distribution about the mean; the scale is its b."""

    name = "laplace"

    def log_prob(self, x: Tensor, parameters: Tensor, scale: Tensor) -> Tensor:
        """−|x − mean| / scale − log(2 scale)."""
        return -((x - parameters) / scale).abs() - (2 * scale).log()


class Poisson(Kind):
    """Each value is a count, 0, 1, 2, …; the decoder gives a, and the rate is softplus(a) = log(1 + exp(a)).

    The rate grows with a as the mean of other kinds does, so that a step too far cannot overflow it as exp(a) would.
    """

    name = "poisson"
    distribution = staticmethod(_of_rates)

    def log_prob(self, x: Tensor, parameters: Tensor, scale: Tensor) -> Tensor:
        """x · log rate − rate − log x!."""
        rate = functional.softplus(parameters)
        # Far below 0 the rate is exp(a), and would round to 0.
        log_rate = torch.where(parameters < _LOW, parameters, functional.softplus(parameters.clamp(min=_LOW)).log())
        return x * log_rate - rate - torch.lgamma(x + 1)

    def mean(self, parameters: Tensor) -> Tensor:
        """softplus(a)."""
        return functional.softplus(parameters)

    def parameters(self, mean: Tensor, margin: float = _MARGIN) -> Tensor:
        """log(exp(mean) − 1), of a mean kept away from 0."""
        mean = mean.clamp(min=margin)
        return mean + (-torch.expm1(-mean)).log()


class Logistic(Kind):
    """Each value is one of 256 levels of [0, 1]: a logistic variable about the mean, rounded to the nearest level.

    arXiv 1701.05517, equation 2, with one component.
    """

    name = "logistic"

    def log_prob(self, x: Tensor, parameters: Tensor, scale: Tensor) -> Tensor:
        """log(σ(a) − σ(b)), with a and b the ends of the level about the mean, in scales."""
        step = 1 / (_LEVELS - 1)
        above, below = (x + step / 2 - parameters) / scale, (x - step / 2 - parameters) / scale
        # σ(a) − σ(b) = σ(a) · σ(−b) · (1 − exp(b − a)), without digits lost in a difference; what lies beyond the first
        # and the last level belongs to these.
        first, last = x < step / 2, x > 1 - step / 2
        terms = torch.where(last, 0.0, functional.logsigmoid(above)) + torch.where(
            first, 0.0, functional.logsigmoid(-below)
        )
        return terms + torch.where(first | last, 0.0, (-torch.expm1(-step / scale)).log())


class Categorical(Kind):
    """Each value is the number of one of K classes; the decoder gives their logits along its last axis."""

    name = "categorical"
    distribution = staticmethod(_of_classes)

    def log_prob(self, x: Tensor, parameters: Tensor, scale: Tensor) -> Tensor:
        """The log-softmax of the class's logit."""
        terms = functional.log_softmax(parameters, -1)
        number = x.long().unsqueeze(-1).expand(*terms.shape[:-1], 1)
        return terms.gather(-1, number).squeeze(-1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The probabilities."""
        return parameters.softmax(-1)

    def parameters(self, mean: Tensor, margin: float = _MARGIN) -> Tensor:
        """log(mean), of probabilities kept away from 0."""
        return mean.clamp(min=margin).log()

    def point(self, parameters: Tensor) -> Tensor:
        """The most likely class, as a float."""
        return parameters.argmax(-1).to(parameters.dtype)


KINDS: Mapping[str, Kind] = {
    kind.name: kind for kind in (Bernoulli(), Gaussian(), Laplace(), Poisson(), Logistic(), Categorical())
}
"""Every kind that can be trained, by its name."""


def kind_named(name: str) -> Kind:
    """Return the kind of this name.

    Raises:
        InputError: there is none.
    """
    if name not in KINDS:
        raise InputError(f"likelihood: expected one of {', '.join(KINDS)}, got {name!r}; choose one of these")
    return KINDS[name]
