"""The VAE: two networks, encode and decode, that hold no randomness and export as they are."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from vae_runtime.errors import InputError
from vae_runtime.likelihood import KINDS

from .config import ModelConfig
from .likelihood import kind_named
from .networks import LAST, Conditions, conv, mlp

# The layout of convolution weights by the axes of an observation; those over one axis have no other.
_CHANNELS_LAST = {3: torch.channels_last, 4: torch.channels_last_3d}


def reparameterize(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mu + exp(logvar / 2) · eps, a posterior sample that gradients pass through (arXiv 1312.6114, section 2.4).

    Args:
        mu, logvar: float [n, latent].
        eps: standard-normal noise, float [..., n, latent].

    Returns:
        float [..., n, latent].
    """
    return mu + torch.exp(0.5 * logvar) * eps


class VAE(nn.Module):
    """A variational autoencoder (Kingma & Welling, arXiv 1312.6114) with a diagonal normal posterior.

    `mlp` is dense layers. `conv` takes observations [C, L], [C, H, W] or [C, D, H, W]: each level halves the resolution
    by a convolution with a kernel of 4 and a stride of 2, residual blocks follow, and dense layers after the last
    level. A size is halved rounding down until it is 1. The decoder mirrors the encoder by transposed convolutions,
    padded to the sizes of the observation.

    Where `ModelConfig.conditions` names conditions, `encode`, `decode` and `forward` take each by its name: int64 [n]
    of classes, or float32 [n, *shape]. They join the input of the dense layers, and shift the feature maps of each
    level.

    Raises:
        InputError: the configuration has no observation shape, or a number of classes is missing.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.observation_shape:
            raise InputError("model.observation_shape: expected a shape such as [1, 28, 28], got none")
        if KINDS[config.likelihood].classes and not config.classes:
            raise InputError("model.classes: expected the number of classes, such as 10, got none")
        self.config = config
        self.conditions = Conditions(config.conditions)
        build = mlp if config.architecture == "mlp" else conv
        self.encoder, self.decoder = build(config, self.conditions.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)), requires_grad=config.learn_scale)

    @property
    def likelihood(self) -> str:
        """Name of the kind of p(x|z)."""
        return self.config.likelihood

    @property
    def scale(self) -> Tensor:
        """Scale of p(x|z), a scalar: standard deviation (gaussian), b (laplace) or s (logistic); others ignore it."""
        return self.log_scale.exp()

    @property
    def module(self) -> nn.Module:
        """The module whose weights are trained: itself."""
        return self

    @property
    def latent(self) -> int:
        """Number of latent dimensions."""
        return self.config.latent

    def posterior(self, x: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of observations: see `encode`."""
        return self.encode(x, **conditions)

    def answer(self, z: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of p(x|z) for latents, as `decode` gives them, and the scale, a scalar."""
        return self.decode(z, **conditions), self.scale

    def encode(self, x: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of observations x, float32 [n, *observation_shape] → mu and logvar, float32 [n, latent] each.

        Raises:
            InputError: a condition is missing, or is not the model's.
        """
        if self.config.classes:
            # Vectors of zeros and a one.
            x = (x.unsqueeze(-1) == torch.arange(self.config.classes, device=x.device)).float()
            x = x if self.config.architecture == "mlp" else x.movedim(-1, 2).flatten(1, 2)
        mu, logvar = self.encoder(x, self.conditions(conditions)).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor, **conditions: Tensor) -> Tensor:
        """Parameters of p(x|z) for latents z, float32 [n, latent] → float32 [n, *observation_shape].

        The kind of likelihood decides what they are: see `training.likelihood`. Classes have an axis more, the last.

        Raises:
            InputError: a condition is missing, or is not the model's.
        """
        parameters: Tensor = self.decoder(z, self.conditions(conditions))
        if self.config.classes and self.config.architecture != "mlp":
            parameters = parameters.unflatten(1, (-1, self.config.classes)).movedim(2, -1)
        return parameters

    def __vae_export__(self) -> dict[str, Any]:
        """Return what `export` cannot see by itself; docs/bring-your-own.md describes this protocol."""
        wrap = kind_named(self.likelihood).distribution
        # A fixed scale is passed on as it was given: exp(log(scale)) may differ in the last digit.
        scale = self.scale.item() if self.config.learn_scale else self.config.scale
        return {
            "decode": (lambda z, **conditions: wrap(self.decode(z, **conditions))) if wrap else self.decode,
            "posterior": "logvar",
            "likelihood": self.likelihood,
            "scale": scale if KINDS[self.likelihood].scale else None,
        }

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the mean of p(x|z) in data space for an answer of `decode`; same shape."""
        return kind_named(self.likelihood).mean(parameters)

    def point(self, parameters: Tensor) -> Tensor:
        """Return one value for each of an observation for an answer of `decode`: the mean, or the most likely class."""
        return kind_named(self.likelihood).point(parameters)

    def forward(self, x: Tensor, eps: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, reparameterize with `eps` (float32 [n, latent]) and decode: parameters, mu, logvar."""
        mu, logvar = self.encode(x, **conditions)
        return self.decode(reparameterize(mu, logvar, eps), **conditions), mu, logvar

    def for_cpu(self) -> Self:
        """Lay convolution weights out as CPUs are fastest with (channels last), in place; no number changes."""
        layout = _CHANNELS_LAST.get(len(self.config.observation_shape)) if self.config.architecture == "conv" else None
        if layout is not None:
            nn.Module.to(self, memory_format=layout)  # type: ignore[call-overload]
        return self

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        """Set the bias of the decoder's last layer so that an untrained decoder gives the mean of the data.

        Args:
            mean: mean observation, float32 [*observation_shape], or how often each class is each value, an axis more;
                the convolutional decoder takes it per channel.
        """
        last = [layer for layer in self.decoder.modules() if isinstance(layer, LAST)][-1]
        if not isinstance(last, nn.Linear):
            mean = mean.flatten(1, len(self.config.observation_shape) - 1).mean(1)
        last.get_parameter("bias").copy_(kind_named(self.likelihood).parameters(mean).flatten())
