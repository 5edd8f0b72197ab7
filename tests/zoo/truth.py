"""Hold a bundle against the model itself, asked as its library means it to be asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

import vae_runtime
from vae_export.parity.tolerances import tolerance
from vae_export.understand.draws import Draws

from .models import Entry


def differences(
    entry: Entry, model: Any, arguments: dict[str, Any], vae: vae_runtime.VAE, error: float = 0.0
) -> list[str]:
    """Return what of a bundle is not the model's own: empty where all of it is.

    Its latents, their standard deviations and its decoded observations are compared at another number of rows, and at
    another size of every dynamic axis; where the entry has `unscaled`, so are the latents that another model supplies.
    `error` is the one that the export measured against float64: PyTorch's answers in float32 are as far off, at each
    number of rows.
    """
    if entry.differ is not None:
        return entry.differ(model, arguments, vae)
    found = []
    example = arguments["example"]
    for x in (rows(example, 5), widened(rows(example, 3), vae.manifest.observation)):
        conditions = {name: rows(tensor, len(x)) for name, tensor in arguments.get("conditions", {}).items()}
        found += [f"{line} at {list(x.shape)}" for line in _rows_differ(entry, model, vae, x, conditions, error)]
    if entry.unscaled is not None:
        w = torch.randn(2, *vae.latents[0].shape, generator=torch.Generator().manual_seed(0))
        if not close(vae.unscaled(w.numpy()), entry.unscaled(model, w)):
            found.append("the latents that decode takes for those of another model")
    return found


def _rows_differ(
    entry: Entry, model: Any, vae: vae_runtime.VAE, x: Tensor, conditions: dict[str, Tensor], error: float
) -> list[str]:
    encoder, decoder = (
        {c.name: conditions[c.name].numpy() for c in vae.conditions if component in c.components}
        for component in ("encoder", "decoder")
    )
    # A model's own draws are 0, as the bundle's are without a seed.
    with torch.no_grad(), Draws.constant(0.0):
        encoded = entry.encode(model, x, conditions)
        latents, std = values_of(encoded), spread_of(encoded)
    q = vae.encode(x.numpy(), conditions=encoder or None)
    modes = q.mode()
    by_name = dict(modes) if isinstance(modes, dict) else {vae.latents[0].name: modes}
    if len(by_name) != len(latents):
        return [f"{len(by_name)} latents in the place of {len(latents)}"]
    differ = [
        f"latent {name}"
        for (name, mode), expected in zip(by_name.items(), latents, strict=True)
        if mode.size != expected.numel() or not close(mode.reshape(expected.shape), expected, error)
    ]
    if std is not None and not close(getattr(q, "std", np.zeros(0)), std, error):
        differ.append("the standard deviation")
    # From the bundle's own latents, so that a code that is as near as another does not matter.
    own = tuple(torch.from_numpy(mode) for mode in by_name.values())
    with torch.no_grad(), Draws.constant(0.0):
        mean = values_of(entry.decode(model, own, conditions))[0]
    if not close(vae.decode(modes, conditions=decoder or None), mean, error):
        differ.append("what is decoded")
    return differ


def values_of(output: Any) -> list[Tensor]:
    """The latents out of what a model gives: the mean of each posterior, codes, or a value."""
    if isinstance(output, Tensor):
        return [output]
    if not isinstance(output, (tuple, list)):
        return [output.mean]
    if isinstance(output[0], tuple):
        return [mean for mean, _ in output]
    return [output[0]]


def spread_of(output: Any) -> Tensor | None:
    """The standard deviation of a posterior, where a model gives it by its name."""
    if isinstance(output, (Tensor, tuple, list)):
        return None
    std = getattr(output, "stddev", None) if isinstance(output, Distribution) else getattr(output, "std", None)
    return std if isinstance(std, Tensor) else None


def rows(tensor: Tensor, n: int) -> Tensor:
    """So many rows, of which no two that follow each other are alike."""
    return torch.cat([tensor] * -(-n // len(tensor)))[:n]


def widened(x: Tensor, observation: Any) -> Tensor:
    """The observations at another size of every dynamic axis than that of the example."""
    for name, sizes in observation.dynamic.items():
        axis = observation.axes.index(name) + 1
        usual = x.shape[axis]
        size = usual + sizes.step if usual + sizes.step in sizes else usual - sizes.step
        x = torch.cat([x, x.flip(axis)], dim=axis).narrow(axis, 0, size)
    return x.contiguous()


def close(found: np.ndarray, expected: Tensor, error: float = 0.0) -> bool:
    """Whether a bundle's answer is the model's, by the tolerance of the parity check, doubled for this machine."""
    if found.shape != tuple(expected.shape):
        return False
    if not expected.is_floating_point():
        return bool(np.mean(found != expected.numpy()) <= 1e-2)
    return bool(np.max(np.abs(found - expected.numpy())) <= 2 * tolerance(expected.numpy()) + 4 * error)
