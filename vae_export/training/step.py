"""One step's objective as a module: observations and noise → what is maximized, and the figures that are shown."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import objective
from .model import VAE, reparameterize

FIGURES = ("elbo", "reconstruction", "kl", "bound")
"""The figures of a step, by their order: nats per observation."""


class Objective(nn.Module):
    """The objective of a batch, a function of the VAE's weights, observations and noise alone.

    Args:
        vae: whose weights it holds.
        precision: the dtype that encode and decode compute in; all else is float32.
    """

    def __init__(self, vae: VAE, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vae, self.precision = vae, precision

    def _networks(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and logvar of observations: float32 [n, latent] each."""
        with self._networks(x):
            mu, logvar = self.vae.encode(x)
        return mu.float(), logvar.float()

    def kl(self, x: Tensor) -> Tensor:
        """Return the KL of the posteriors of observations, of each latent dimension: float32 [n, latent], nats."""
        return objective.kl_standard_normal(*self.posterior(x))

    def forward(
        self, x: Tensor, eps: Tensor, weight: float, free_bits: float = 0.0, costing: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the objective to maximize, a scalar, and the figures: float32 [4], means over the batch.

        Args:
            x: observations, [n, *shape].
            eps: noise, [k, n, latent]; k > 1 makes it the importance-weighted bound.
            weight: of the KL term.
            free_bits: nats per latent dimension that cost nothing more; with k = 1 only.
            costing: see `objective.with_free_bits`.
        """
        vae = self.vae
        mu, logvar = self.posterior(x)
        z = reparameterize(mu, logvar, eps)
        with self._networks(x):
            answer = vae.decode(z.flatten(0, 1))
        parameters = answer.float().unflatten(0, eps.shape[:2])
        reconstruction = objective.log_likelihood(x, parameters, vae.likelihood, vae.scale)
        kl = objective.kl_standard_normal(mu, logvar)
        elbo = reconstruction.mean() - kl.sum(-1).mean()
        if len(eps) == 1:
            goal, bound = reconstruction.mean() - weight * objective.with_free_bits(kl, free_bits, costing), elbo
        else:
            ratio = objective.log_normal(z) - objective.log_normal(z, mu, logvar)
            goal = objective.importance_weighted_bound(reconstruction, weight * ratio).mean()
            bound = objective.importance_weighted_bound(reconstruction.detach(), ratio.detach()).mean()
        figures = torch.stack([elbo, reconstruction.mean(), kl.sum(-1).mean(), bound])
        return goal, figures.detach()
