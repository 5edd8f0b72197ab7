"""The formulas of scores, in nats, in float64, as pure functions of arrays.

The ELBO is from Kingma & Welling, arXiv 1312.6114; the importance-weighted bound from Burda et al., arXiv 1509.00519.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .likelihood import Parameters, kind_named
from .manifest import Likelihood

__all__ = ["Scores", "importance_weighted_bound", "log_likelihood", "log_standard_normal"]

Floats = NDArray[np.float64]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Scores:
    """How well a VAE explains observations: float64 [n] each, in nats per observation where not said otherwise.

    Where there is no likelihood, no posterior distribution or no normal prior, only `mse` and `mae` are there; the rest
    is None, and `reason` says why.
    """

    elbo: Floats | None
    """The evidence lower bound, reconstruction − kl, with one posterior sample."""
    reconstruction: Floats | None
    """log p(x|z) of that sample."""
    kl: Floats | None
    """KL(q(z|x) ‖ p(z)), analytic, of all latents together."""
    kl_per_dimension: Floats | Mapping[str, Floats] | None
    """Its terms, [n, *latent shape]; of several latents by name."""
    log_likelihood: Floats | None
    """The importance-weighted bound of log p(x) with k samples; None where no k was given."""
    mse: Floats | None
    """Mean squared difference between x and its reconstruction through the posterior's mean, per value; None where the
    decoder's answer has another shape than x."""
    mae: Floats | None
    """Mean absolute difference, likewise."""
    reason: str | None = None


def log_likelihood(x: NDArray[Any], answers: Mapping[str, NDArray[Any]], likelihood: Likelihood) -> Floats:
    """log p(x|z), summed over the observation, with all constants.

    Args:
        x: observations [n, *shape]; under a bernoulli in [0, 1], where only 0 and 1 make it a likelihood.
        answers: the decoder's outputs by name, [n, *shape]: of a bernoulli the logits or the mean, else the mean and,
            if an output holds it, the scale.
        likelihood: of a kind in `likelihood.KINDS`.

    Returns:
        float64 [n], nats.

    Raises:
        InputError: the kind is unknown.
    """
    values = {name: answer.astype(np.float64) for name, answer in answers.items()}
    parameters = Parameters(
        mean=values.get(likelihood.mean),
        logits=values.get(likelihood.logits or ""),
        scale=values.get(likelihood.scale_output or "", likelihood.scale),
    )
    terms = kind_named(likelihood.kind).log_prob(x.astype(np.float64), parameters)
    total: Floats = terms.reshape(len(x), -1).sum(axis=1)
    return total


def log_standard_normal(z: NDArray[Any]) -> Floats:
    """log N(z; 0, 1), summed over all axes but the first: [n, *shape] → float64 [n], nats."""
    terms = -0.5 * (_LOG_2PI + z.astype(np.float64) ** 2)
    total: Floats = terms.reshape(len(z), -1).sum(axis=1)
    return total


def importance_weighted_bound(log_weights: Floats) -> Floats:
    """log 1/k Σ_i w_i, a lower bound of log p(x) (arXiv 1509.00519, equation 8).

    Args:
        log_weights: log p(x|z_i) + log p(z_i) − log q(z_i|x), float64 [n, k].

    Returns:
        float64 [n], nats per observation.
    """
    greatest = log_weights.max(axis=1, keepdims=True)
    # Where no weight is finite there is nothing to take out.
    greatest[~np.isfinite(greatest)] = 0.0
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(log_weights - greatest).sum(axis=1)) + greatest[:, 0]
    bound: Floats = total - math.log(log_weights.shape[1])
    return bound
