"""The built-in model that a run begins with, and whether this machine has the memory to train it."""

from __future__ import annotations

import os

import torch

from vae_runtime.errors import InputError

from . import resume
from .checkpoint import RunInfo
from .config import ModelConfig
from .data.dataset import Dataset
from .model import VAE
from .randomness import generator


def untrained(info: RunInfo, dataset: Dataset) -> VAE:
    """Return a built-in VAE with the weights that its run begins with: drawn by the seed, and the mean of the data."""
    assert isinstance(info.model, ModelConfig)
    seed = generator(info.train.seed, "weights").initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(info.model)
    classes = info.model.classes
    vae.start_from_mean(torch.from_numpy(dataset.train.frequencies(classes) if classes else dataset.train.mean()))
    return vae.for_cpu()


def require_memory(info: RunInfo) -> None:
    """Refuse a model whose weights alone, as often as a training keeps them, exceed this machine's memory.

    Raises:
        InputError: it is one.
    """
    model = info.model
    assert isinstance(model, ModelConfig)
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    with torch.device("meta"):
        weights = VAE(model).parameters()
    # Weights, gradients, the moments, the best weights so far, and their average.
    copies = 3 + len(resume.MOMENTS) + (info.train.ema > 0)
    size = copies * sum(weight.numel() * weight.element_size() for weight in weights)
    if size > memory:
        sizes = "model.hidden" if model.architecture == "mlp" else "model.hidden or model.channels"
        raise InputError(
            f"{sizes}: expected weights, gradients and moments within this machine's {memory / 2**30:,.1f} GiB of "
            f"memory, got {size / 2**30:,.1f} GiB; lower them"
        )
