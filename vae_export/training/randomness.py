"""The random numbers of a training: a generator of PyTorch for each seed and purpose."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .config import TrainConfig


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return the random generator of a seed for one purpose, such as `epoch 3`."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def binarised(x: Tensor, how: str, random: torch.Generator, rows: slice = slice(None), n: int | None = None) -> Tensor:
    """Return observations as a model is to see them.

    Args:
        x: float32 in [0, 1], [rows, *shape].
        how: none; threshold (at 0.5); or stochastic: 1 with the value as probability.
        random: of the draws; one number for each value.
        rows: which rows of a batch `x` is, by default all.
        n: rows of that batch, for all of which numbers are drawn.
    """
    if how == "stochastic":
        return (torch.rand((len(x) if n is None else n, *x.shape[1:]), generator=random)[rows] < x).float()
    return (x > 0.5).float() if how == "threshold" else x


def validated(x: Tensor, config: TrainConfig, number: int) -> Tensor:
    """Return the observations of one validation batch as the model sees them, the same in every epoch.

    Args:
        x: float32, of any shape.
        config: says how they are binarised, and by which seed.
        number: of the batch.
    """
    return binarised(x, config.binarise, generator(config.seed, f"binarise validation {number}"))
