"""A VAE that is told the digit: a plain PyTorch module of one's own, trained and exported as it is."""

from __future__ import annotations

import torch
from shipped import Shipped
from torch import Tensor, nn

from vae_export import DataConfig, TrainConfig

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class ConditionalVAE(nn.Module):
    """q(z|x, label) and p(x|z, label) on 8×8 gray digits (Sohn et al., NeurIPS 2015): dense layers, 8 latents."""

    def __init__(self, latent: int = 8, width: int = 128) -> None:
        super().__init__()
        self.name = nn.Embedding(len(CLASSES), 16)
        self.body = nn.Sequential(nn.Linear(64 + 16, width), nn.SiLU(), nn.Linear(width, width // 2), nn.SiLU())
        self.mu, self.logvar = nn.Linear(width // 2, latent), nn.Linear(width // 2, latent)
        self.head = nn.Sequential(
            nn.Linear(latent + 16, width // 2), nn.SiLU(), nn.Linear(width // 2, width), nn.SiLU(), nn.Linear(width, 64)
        )

    def encode(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar, float32 [n, latent], of x, float32 [n, 1, 8, 8], and labels, int64 [n]."""
        h = self.body(torch.cat([x.flatten(1), self.name(label)], dim=1))
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor, label: Tensor) -> Tensor:
        """Logits, float32 [n, 1, 8, 8], of latents, float32 [n, latent], and labels, int64 [n]."""
        logits: Tensor = self.head(torch.cat([z, self.name(label)], dim=1))
        return logits.view(-1, 1, 8, 8)

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of a reconstruction through a posterior sample, mu and logvar."""
        mu, logvar = self.encode(x, label)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.decode(z, label), mu, logvar


SHIPPED = Shipped(
    "digits-conditional",
    f"{__name__}:{ConditionalVAE.__name__}",
    TrainConfig(epochs=200, batch_size=64, learning_rate=2e-3, patience=40, threads=1),
    DataConfig("digits", conditions=("label",)),
    class_names=CLASSES,
    likelihood="bernoulli",
    description="Digits by name: a module of one's own, models/conditional.py",
)
