"""The VAE: two networks, encode and decode, that hold no randomness and export as they are."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from vae_runtime.errors import InputError
from vae_runtime.likelihood import KINDS

from .config import ModelConfig
from .likelihood import kind_named

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


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

    `mlp` is dense layers. `conv` halves the resolution twice by 4×4 convolutions of stride 2, with residual blocks
    (3×3 then 1×1 convolution) at both resolutions, then dense layers; the decoder mirrors the encoder.

    Raises:
        InputError: the configuration has no observation shape.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.observation_shape:
            raise InputError("model.observation_shape: expected a shape such as [1, 28, 28], got none")
        self.config = config
        build = _mlp if config.architecture == "mlp" else _conv
        self.encoder, self.decoder = build(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)), requires_grad=config.learn_scale)

    @property
    def likelihood(self) -> str:
        """Name of the kind of p(x|z)."""
        return self.config.likelihood

    @property
    def scale(self) -> Tensor:
        """Scale of p(x|z), a scalar: standard deviation (gaussian) or b (laplace); other kinds ignore it."""
        return self.log_scale.exp()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of observations x, float32 [n, *observation_shape] → mu and logvar, float32 [n, latent] each."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Parameters of p(x|z) for latents z, float32 [n, latent] → float32 [n, *observation_shape].

        The kind of likelihood decides what they are: see `training.likelihood`.
        """
        parameters: Tensor = self.decoder(z)
        return parameters

    def __vae_export__(self) -> dict[str, Any]:
        """Return what `export` cannot see by itself; docs/bring-your-own.md describes this protocol."""
        wrap = kind_named(self.likelihood).distribution
        # A fixed scale is passed on as it was given: exp(log(scale)) may differ in the last digit.
        scale = float(self.scale) if self.config.learn_scale else self.config.scale
        return {
            "decode": (lambda z: wrap(self.decode(z))) if wrap else self.decode,
            "posterior": "logvar",
            "likelihood": self.likelihood,
            "scale": scale if KINDS[self.likelihood].scale else None,
        }

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the mean of p(x|z) in data space for an answer of `decode`; same shape."""
        return kind_named(self.likelihood).mean(parameters)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, reparameterize with `eps` (float32 [n, latent]) and decode: parameters, mu, logvar."""
        mu, logvar = self.encode(x)
        return self.decode(reparameterize(mu, logvar, eps)), mu, logvar

    def for_cpu(self) -> Self:
        """Lay convolution weights out as CPUs are fastest with (channels last), in place; no number changes."""
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        """Set the bias of the decoder's last layer so that an untrained decoder gives the mean of the data.

        Args:
            mean: mean observation, float32 [*observation_shape]; the convolutional decoder takes it per channel.
        """
        last = [layer for layer in self.decoder.modules() if isinstance(layer, nn.Linear | nn.ConvTranspose2d)][-1]
        mean = mean.flatten() if isinstance(last, nn.Linear) else mean.mean((1, 2))
        last.get_parameter("bias").copy_(kind_named(self.likelihood).parameters(mean))


class _Residual(nn.Module):
    """x + f(x) with f = 3×3 then 1×1 convolution, each after the activation."""

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.body(x)
        return x + residual


def _dense(widths: tuple[int, ...], activation: type[nn.Module]) -> list[nn.Module]:
    """Linear layers from each width to the next, with the activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return layers[:-1]


def _mlp(config: ModelConfig) -> tuple[nn.Sequential, nn.Sequential]:
    activation = _ACTIVATIONS[config.activation]
    size = math.prod(config.observation_shape)
    encoder = _dense((size, *config.hidden, 2 * config.latent), activation)
    decoder = _dense((config.latent, *reversed(config.hidden), size), activation)
    return nn.Sequential(nn.Flatten(), *encoder), nn.Sequential(*decoder, nn.Unflatten(1, config.observation_shape))


def _conv(config: ModelConfig) -> tuple[nn.Sequential, nn.Sequential]:
    activation = _ACTIVATIONS[config.activation]
    image_channels, height, width = config.observation_shape
    half, quarter = config.channels
    features = (quarter, height // 4, width // 4)
    size = math.prod(features)

    def blocks(channels: int, count: int) -> list[nn.Module]:
        return [*(_Residual(channels, activation) for _ in range(count)), activation()]

    encoder = nn.Sequential(
        nn.Conv2d(image_channels, half, 4, stride=2, padding=1),
        *blocks(half, config.encoder_blocks),
        nn.Conv2d(half, quarter, 4, stride=2, padding=1),
        *blocks(quarter, config.encoder_blocks),
        nn.Flatten(),
        *_dense((size, *config.hidden, 2 * config.latent), activation),
    )
    decoder = nn.Sequential(
        *_dense((config.latent, *reversed(config.hidden), size), activation),
        nn.Unflatten(1, features),
        *blocks(quarter, config.decoder_blocks),
        nn.ConvTranspose2d(quarter, half, 4, stride=2, padding=1),
        *blocks(half, config.decoder_blocks),
        nn.ConvTranspose2d(half, image_channels, 4, stride=2, padding=1),
    )
    return encoder, decoder
