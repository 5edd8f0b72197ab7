"""One step's objective as a module: observations and noise → what is maximized, and the figures that are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from . import objective
from .model import reparameterize

FIGURES = ("elbo", "reconstruction", "kl", "bound")
"""The figures of a step, by their order: nats per observation."""


class Modelled(Protocol):
    """What the objective asks of a VAE: the built-in one is one, and a module of the user's by `own_vae`."""

    @property
    def module(self) -> nn.Module:
        """The module whose state is the checkpoint."""

    @property
    def likelihood(self) -> str:
        """Name of the kind of p(x|z)."""

    @property
    def latent(self) -> int:
        """Number of latent dimensions."""

    def posterior(self, x: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar of observations [n, *shape], float32 [n, latent] each."""

    def answer(self, z: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of p(x|z) for latents [n, latent], [n, *shape], and the scale, a scalar or of their shape."""

    def point(self, parameters: Tensor) -> Tensor:
        """One value for each of an observation, for the parameters in an answer: the mean, or the likeliest class."""


def answer_to(vae: Modelled, z: Tensor, conditions: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Decode several latents of each observation.

    Args:
        vae: the model.
        z: latents, [k, n, latent].
        conditions: of the observations, [n, …] by name.

    Returns:
        The parameters of p(x|z), [k, n, *shape], and the scale, a scalar or of the same shape.
    """
    given = {name: values.expand(len(z), *values.shape).flatten(0, 1) for name, values in (conditions or {}).items()}
    parameters, scale = vae.answer(z.flatten(0, 1), **given)
    return parameters.unflatten(0, z.shape[:2]), scale.unflatten(0, z.shape[:2]) if scale.dim() else scale


class Objective(nn.Module):
    """The objective of a batch, a function of the VAE's weights, observations and noise alone.

    Args:
        vae: whose weights it holds.
        precision: the dtype that encode and decode compute in; all else is float32.
    """

    def __init__(self, vae: Modelled, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vae, self.precision = vae, precision

    def _networks(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32)

    def posterior(self, x: Tensor, conditions: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return mu and logvar of observations with their conditions [n, …] by name: float32 [n, latent] each."""
        with self._networks(x):
            mu, logvar = self.vae.posterior(x, **(conditions or {}))
        return mu.float(), logvar.float()

    def kl(self, x: Tensor, conditions: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the KL of the posteriors of observations, of each latent dimension: float32 [n, latent], nats."""
        return objective.kl_standard_normal(*self.posterior(x, conditions))

    def forward(
        self,
        x: Tensor,
        eps: Tensor,
        weight: float,
        free_bits: float = 0.0,
        costing: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the objective to maximize, a scalar, and the figures: float32 [4], means over the batch.

        Args:
            x: observations, [n, *shape].
            eps: noise, [k, n, latent]; k > 1 makes it the importance-weighted bound.
            weight: of the KL term.
            free_bits: nats per latent dimension that cost nothing more; with k = 1 only.
            costing: see `objective.with_free_bits`.
            conditions: of the observations, [n, …] by name.
        """
        vae = self.vae
        mu, logvar = self.posterior(x, conditions)
        z = reparameterize(mu, logvar, eps)
        with self._networks(x):
            parameters, scale = answer_to(vae, z, conditions)
        reconstruction = objective.log_likelihood(x, parameters.float(), vae.likelihood, scale.float())
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
