"""Run a bundle with vae-runtime before it is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vae_runtime.vae import load

from .errors import ExportError


def require_runnable(folder: Path, examples: Mapping[str, NDArray[Any]]) -> None:
    """Load a bundle with vae-runtime, then encode, if it has an encoder, and decode a row of the example.

    Where there is a prior, sample too.

    Args:
        folder: the bundle.
        examples: values [n, …] of every input of both components, by name; the first row is taken.

    Raises:
        ExportError: the runtime refuses the bundle, or one of its graphs fails.
    """
    row = {name: array[:1] for name, array in examples.items()}
    try:
        vae = load(folder)
        signature = vae.manifest
        conditions = {condition.name: row[condition.name] for condition in signature.conditions} or None
        latents = {latent.name: row[latent.name] for latent in signature.latents}
        if signature.encoder:
            vae.encode(row[signature.observation.name], conditions=conditions)
        vae.decode(latents if len(latents) > 1 else latents[signature.latent.name], conditions=conditions)
        if all(latent.prior.kind != "none" for latent in signature.latents):
            vae.sample(1, conditions=conditions, seed=0)
    except Exception as error:
        # Without the place of the folder, which is not kept, and without advice to the reader of a bundle.
        reason, _, advice = str(error).replace(f"{folder}/", "").rpartition("; ")
        raise ExportError(
            f"the bundle is not written, since vae-runtime cannot run it: {reason or advice or type(error).__name__}; "
            "report this with the model"
        ) from error
