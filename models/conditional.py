"""A VAE that is told the digit: a plain PyTorch module of one's own, trained in a few lines and exported as it is."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from vae_export import Exported, export
from vae_export.graphs.variants import VARIANTS

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EPOCHS, BATCH, LEARNING_RATE = 200, 64, 2e-3


class ConditionalVAE(nn.Module):
    """q(z|x, label) and p(x|z, label) on 8×8 grey digits (Sohn et al., NeurIPS 2015): dense layers, 8 latents."""

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


def train() -> tuple[ConditionalVAE, Tensor, Tensor, float]:
    """Train on four fifths of scikit-learn's digits; the model, the other fifth with its labels, and their ELBO."""
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    label = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    kept, test = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    model = ConditionalVAE()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    steps = EPOCHS * math.ceil(len(kept) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for batch in kept[torch.randperm(len(kept))].split(BATCH):
            loss = -_elbo(model, x[batch], label[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        elbo = float(torch.stack([_elbo(model, x[test], label[test]) for _ in range(20)]).mean())
    return model, x[test], label[test], elbo


def _elbo(model: ConditionalVAE, x: Tensor, label: Tensor) -> Tensor:
    logits, mu, logvar = model(x, label)
    reconstruction = -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
    return reconstruction - 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def build(out: Path) -> Exported:
    """Train and export into a folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, x, label, elbo = train()
    finally:
        torch.set_num_threads(threads)
    return export(
        model,
        out,
        example=x,
        conditions={"label": label},
        class_names=CLASSES,
        likelihood="bernoulli",
        range=(0.0, 1.0),
        variants=VARIANTS,
        name="digits-conditional",
        description=(
            "Digits by name: 8×8 grey digits of scikit-learn (UCI, CC BY 4.0) under a bernoulli likelihood, a "
            f"surrogate for grey values; trained on 1,437, surrogate ELBO on the other 360 {elbo:.2f} nats; "
            "models/conditional.py"
        ),
        license="Apache-2.0",
        force=True,
    )
