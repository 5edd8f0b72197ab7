"""Turn a VAE into the two pure functions that are exported: encode and decode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_runtime.manifest import Likelihood

from .model import VAE

__all__ = ["Adapted", "adapt"]


@dataclass(frozen=True)
class Adapted:
    """A VAE as two modules without randomness, in evaluation mode, with what their tensors mean.

    `encode` maps x, float32 [batch, *observation_shape], to mu, logvar and std, float32 [batch, *latent_shape] each.
    `decode` maps z, float32 [batch, *latent_shape], to the likelihood's mean and, of a bernoulli, its logits,
    float32 [batch, *observation_shape] each.
    """

    encode: nn.Module
    decode: nn.Module
    observation_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    likelihood: Likelihood

    @property
    def components(self) -> dict[str, nn.Module]:
        """Both modules by the component they become."""
        return {"encoder": self.encode, "decoder": self.decode}

    def inputs(self, component: str) -> str:
        """The name of a component's input."""
        return "x" if component == "encoder" else "z"

    def outputs(self, component: str) -> tuple[str, ...]:
        """The names of a component's outputs, in order."""
        if component == "encoder":
            return ("mu", "logvar", "std")
        return ("x", "logits") if self.likelihood.logits else ("x",)

    def example(self, component: str, batch: int) -> Tensor:
        """Zeros of a component's input shape."""
        return torch.zeros(batch, *(self.observation_shape if component == "encoder" else self.latent_shape))


class _Encode(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.encoder = vae.encoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        # In the graph, because the exp of host libraries differs from build to build.
        return mu, logvar, torch.exp(0.5 * logvar)


class _Decode(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.decoder = vae.decoder

    def forward(self, z: Tensor) -> Tensor:
        mean: Tensor = self.decoder(z)
        return mean


class _DecodeLogits(_Decode):
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.decoder(z)
        # Both: in float32 the sigmoid is 1 from a logit of 16.7 on, and a likelihood cannot be had from it.
        return torch.sigmoid(logits), logits


def adapt(vae: VAE) -> Adapted:
    """The pure functions of a VAE of this package; they share its weights."""
    bernoulli = vae.likelihood == "bernoulli"
    # A scale that was not learned is said as it was given: exp(log(scale)) may differ in the last digit.
    scale = float(vae.scale) if vae.config.learn_scale else vae.config.scale
    likelihood = Likelihood("bernoulli", logits="logits") if bernoulli else Likelihood(vae.likelihood, scale=scale)
    decode = _DecodeLogits(vae) if bernoulli else _Decode(vae)
    return Adapted(
        encode=_Encode(vae).eval(),
        decode=decode.eval(),
        observation_shape=vae.config.observation_shape,
        latent_shape=(vae.config.latent,),
        likelihood=likelihood,
    )
