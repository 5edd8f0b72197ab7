"""What a model makes of fixed latents and of fixed rows, as small pictures and numbers that a page can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import noise
from vae_runtime.errors import InputError
from vae_runtime.image import grid, pairs

from . import objective
from .data.batches import TensorBatch, ordered
from .data.part import Part
from .evaluation import ACTIVE
from .step import Modelled

ROWS = 1000
"""Rows of validation data at most that a look encodes."""
BATCH = 250
"""Rows that a validation encodes at once."""
# Latents that are decoded after an epoch, rows that are reconstructed, and pixels of a side of each picture at most.
_SAMPLES, _RECONSTRUCTED, _SIDE = 16, 20, 128


@dataclass(frozen=True)
class Look:
    """What a model makes of fixed rows."""

    reconstructions: NDArray[np.uint8] | None
    """The first rows, each with its reconstruction beneath; None where observations are no pictures."""
    kl: NDArray[np.float64]
    """KL of each latent dimension, the mean over the rows, in nats: [latent]."""
    active: NDArray[np.bool_]
    """Latent dimensions whose posterior mean has a variance above 0.01 over the rows: [latent]."""
    map: NDArray[np.float64] | None
    """Posterior means of the rows along their two principal axes, [n, 2]; None with fewer than two dimensions."""
    explained: float
    """Share of the variance of the posterior means that lies along these axes."""
    labels: NDArray[np.int64] | None = None
    """The class of each row, [n]; None where rows have none."""
    names: Sequence[str] = ()
    """Names of the classes by their numbers; empty where they have none."""


@torch.no_grad()
def look_at(
    vae: Modelled, batch: TensorBatch, labels: NDArray[np.int64] | None = None, names: Sequence[str] = ()
) -> Look:
    """Look at a model by means of fixed rows.

    Args:
        vae: in evaluation mode.
        batch: observations as the model sees them, float32 [n, *shape], at least one, with their conditions; `ROWS` of
            them are used.
        labels: their classes, int64 [n].
        names: of the classes.
    """
    device = next(vae.module.parameters()).device
    x = batch.x[:ROWS]
    given = {name: values[:ROWS].to(device) for name, values in batch.conditions.items()}
    encoded = []
    for start in range(0, len(x), BATCH):
        of_part = {name: values[start : start + BATCH] for name, values in given.items()}
        encoded.append(vae.posterior(x[start : start + BATCH].to(device), **of_part))
    mu, logvar = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    few = {name: values[:_RECONSTRUCTED] for name, values in given.items()}
    parameters, _ = vae.answer(mu[:_RECONSTRUCTED], **few)
    mu, logvar = mu.double().cpu(), logvar.double().cpu()
    means = mu.numpy()
    xy, explained = _principal(means)
    first = x[:_RECONSTRUCTED]
    return Look(
        reconstructions=_pairs(first, vae.point(parameters)),
        kl=objective.kl_standard_normal(mu, logvar).mean(0).numpy(),
        active=means.var(0) > ACTIVE,
        map=xy,
        explained=explained,
        labels=None if labels is None else labels[:ROWS],
        names=names,
    )


@torch.no_grad()
def samples(vae: Modelled, seed: int, part: Part | None = None) -> NDArray[np.uint8] | None:
    """Return a picture of what a model decodes latents of the prior to, the same latents for the same seed.

    Args:
        vae: in evaluation mode, on any device.
        seed: of the latents.
        part: whose first rows' conditions it is told, sorted by class; None for a model that takes none.

    Returns:
        uint8 [height, width] or [height, width, C]; None where observations are no pictures.
    """
    try:
        return grid(_small(drawn(vae, _SAMPLES, seed, part)))
    except InputError:
        return None


@torch.no_grad()
def drawn(vae: Modelled, n: int, seed: int, part: Part | None = None) -> Tensor:
    """Return what a model decodes n latents of the prior to, [n, *shape]; see `samples`."""
    z = torch.from_numpy(noise.normal(seed, 0, n, (vae.latent,), noise.PRIOR))
    device = next(vae.module.parameters()).device
    given = {name: values.to(device) for name, values in (ordered(part, n) if part else {}).items()}
    parameters, _ = vae.answer(z.to(device), **given)
    return vae.point(parameters)


def _pairs(x: Tensor, reconstructions: Tensor) -> NDArray[np.uint8] | None:
    try:
        return pairs(_small(x), _small(reconstructions))
    except (InputError, ValueError):
        return None


def _small(x: Tensor) -> NDArray[np.float32]:
    """Leave pixels out, so that no picture is large."""
    for axis in range(2, x.dim()):
        x = x[(slice(None),) * axis + (slice(None, None, -(-x.shape[axis] // _SIDE)),)]
    return x.float().cpu().numpy()


def _principal(means: NDArray[np.float64]) -> tuple[NDArray[np.float64] | None, float]:
    """Return points along their two principal axes and the share of their variance there."""
    if min(means.shape) < 2:
        return None, 0.0
    _, lengths, axes = np.linalg.svd(means - means.mean(0), full_matrices=False)
    variances = lengths**2
    # The sign of an axis is free: its largest part is positive.
    signs = np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(1)])
    total = float(variances.sum())
    return (means - means.mean(0)) @ (axes[:2].T * signs), float(variances[:2].sum()) / total if total > 0 else 0.0
