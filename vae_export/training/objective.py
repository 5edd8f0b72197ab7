"""The objectives, in nats per observation, as pure functions.

`log_likelihood` and `log_normal` are log densities with all constants, or log probabilities of discrete observations.
The ELBO is from Kingma & Welling, arXiv 1312.6114; the importance-weighted bound from Burda et al., arXiv 1509.00519;
free bits from Kingma et al., arXiv 1606.04934.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .likelihood import kind_named

_LOG_2PI = math.log(2 * math.pi)


class Elbo(NamedTuple):
    """The evidence lower bound and its two terms, `elbo = reconstruction − kl`; each [n], in nats per observation."""

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor


def log_likelihood(x: Tensor, parameters: Tensor, likelihood: str, scale: Tensor | float = 1.0) -> Tensor:
    """log p(x|z), summed over the observation.

    Args:
        x: observations, float [n, *shape]; in [0, 1] under bernoulli, where only 0 and 1 make it a likelihood and
            gray values give a surrogate; counts under poisson; k / 255 under logistic; classes under categorical.
        parameters: the decoder's answer, float [..., n, *shape]: logits (bernoulli), the mean (gaussian, laplace,
            logistic), or a for the rate softplus(a) (poisson); the classes' logits (categorical), [..., n, *shape, K].
        likelihood: name of the kind.
        scale: standard deviation (gaussian), b (laplace) or s (logistic); other kinds ignore it.

    Returns:
        float [..., n], nats per observation.

    Raises:
        InputError: no kind has this name.
    """
    terms = kind_named(likelihood).log_prob(x, parameters, torch.as_tensor(scale, dtype=parameters.dtype))
    return terms.flatten(terms.dim() - x.dim() + 1).sum(-1)


def log_normal(z: Tensor, mu: Tensor | float = 0.0, logvar: Tensor | float = 0.0) -> Tensor:
    """log N(z; mu, exp(logvar)), summed over the last dimension: [..., latent] → [...]; by default the prior's."""
    logvar = torch.as_tensor(logvar, dtype=z.dtype)
    return (-0.5 * (_LOG_2PI + logvar + (z - mu).square() * torch.exp(-logvar))).sum(-1)


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(0, 1)) of each latent dimension (arXiv 1312.6114, appendix B); shape kept, nats."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def elbo(
    x: Tensor, parameters: Tensor, mu: Tensor, logvar: Tensor, likelihood: str, scale: Tensor | float = 1.0
) -> Elbo:
    """The ELBO with one posterior sample and the analytic KL (arXiv 1312.6114, equation 10).

    Args:
        x: observations, float [n, *shape].
        parameters: the decoder's answer to one sample of each posterior, float [n, *shape].
        mu, logvar: the posteriors, float [n, latent].
        likelihood, scale: see `log_likelihood`.
    """
    reconstruction = log_likelihood(x, parameters, likelihood, scale)
    kl = kl_standard_normal(mu, logvar).sum(-1)
    return Elbo(reconstruction - kl, reconstruction, kl)


def with_free_bits(kl: Tensor, free_bits: float, costing: Tensor | None = None) -> Tensor:
    """The KL term that is trained: Σ_j max(free_bits, mean over the batch of kl[:, j]) (arXiv 1606.04934, eq. 15).

    Args:
        kl: KL per observation and latent dimension, [n, latent], nats.
        free_bits: nats per latent dimension that cost nothing more.
        costing: bool [latent], where the rows are a part of a batch: whether the mean over all of the batch is at least
            `free_bits`. The terms of the parts, weighted by their rows, then sum up to that of the batch.

    Returns:
        A scalar, nats per observation.
    """
    if costing is None:
        return kl.mean(0).clamp(min=free_bits).sum()
    return torch.where(costing, kl.mean(0), free_bits).sum()


def importance_weighted_bound(log_likelihood: Tensor, log_ratio: Tensor) -> Tensor:
    """log 1/k Σ_i p(x|z_i) p(z_i) / q(z_i|x), a lower bound of log p(x) (arXiv 1509.00519, equation 8).

    Args:
        log_likelihood: log p(x|z_i), [k, n].
        log_ratio: log p(z_i) − log q(z_i|x), [k, n].

    Returns:
        [n], nats per observation; with k = 1, an ELBO whose KL is estimated from the sample.
    """
    return torch.logsumexp(log_likelihood + log_ratio, 0) - math.log(len(log_likelihood))


def kl_weight(epoch: float, beta: float, warmup_epochs: int) -> float:
    """Weight of the KL term after `epoch` epochs: from 0, linearly, to `beta` at `warmup_epochs`."""
    return beta if epoch >= warmup_epochs else beta * epoch / warmup_epochs
