"""The networks that are compared, apart from what trains them: PyTorch's cold start needs no more than these."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from vae_export.training.model import VAE


class Pure(nn.Module):
    """A VAE's two networks as functions of one tensor: encode → mu, logvar; decode → the likelihood's mean."""

    # diffusers' or one of ours, whose methods differ.
    vae: Any

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(self.vae, "quant_conv"):
            posterior = self.vae.encode(x).latent_dist
            return posterior.mean, posterior.logvar
        mu, logvar = self.vae.encode(x)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        if hasattr(self.vae, "quant_conv"):
            sample: Tensor = self.vae.decode(z).sample
            return sample
        decoded: Tensor = self.vae.decode(z)
        return self.vae.mean(decoded) if isinstance(self.vae, VAE) else decoded


class Component(nn.Module):
    """One of the two functions as a module of its own, as exporters want it."""

    def __init__(self, pure: Pure, component: str) -> None:
        super().__init__()
        self.pure = pure
        self.component = component

    def forward(self, value: Tensor) -> Any:
        return self.pure.encode(value) if self.component == "encoder" else self.pure.decode(value)


class Pictures(nn.Module):
    """A VAE of 3×64×64 pictures: four 4×4 convolutions of stride 2, and four layers that double the size.

    These are 4×4 transposed convolutions of stride 2, or nearest-neighbor upsampling before a 3×3 convolution.
    """

    def __init__(self, nearest: bool, latent: int = 64) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        down: list[nn.Module] = []
        for before, after in pairwise(widths):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(256 * 16, 2 * latent))
        up: list[nn.Module] = [nn.Linear(latent, 256 * 16), nn.ReLU(), nn.Unflatten(1, (256, 4, 4))]
        for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
            if nearest:
                up += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            else:
                up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*up[:-1], nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(z)
        return decoded
