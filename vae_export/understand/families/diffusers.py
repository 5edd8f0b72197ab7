"""diffusers: AutoencoderKL, AutoencoderTiny, AutoencoderDC, VQModel, AutoencoderOobleck.

The models' own `encode` and `decode` may cut a large image into tiles, which changes the answer, or a batch into rows,
which does not. Both only save memory, and both are left out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ExportError
from ..declaration import Declaration
from .family import Family

_IMAGE = ("channel", "height", "width")
_NOT_NORMAL = "the latents are not standard normal: another model, such as a diffusion model, supplies them"


def _autoencoder_kl(model: Any) -> Declaration:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        h = model.encoder(x)
        if model.quant_conv is not None:
            h = model.quant_conv(h)
        mean, logvar = h.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(z: Tensor) -> Tensor:
        if model.post_quant_conv is not None:
            z = model.post_quant_conv(z)
        return model.decoder(z)  # type: ignore[no-any-return]

    scale, shift = _scaling(model.config)
    return Declaration(
        encode=encode,
        decode=decode,
        posterior="logvar",
        prior="none",
        prior_reason=_NOT_NORMAL,
        axes=_IMAGE,
        latent_axes=_IMAGE,
        dynamic=("height", "width"),
        latent_scale=scale,
        latent_shift=shift,
    )


def _scaling(config: Any) -> tuple[float | Sequence[float], float | Sequence[float]]:
    """Scale and shift such that a diffusion model takes (z - shift) · scale, as the library's pipelines compute it."""
    factor = _number(config, "scaling_factor", 1.0)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return [factor / float(value) for value in std], [float(value) for value in mean]
    return factor, _number(config, "shift_factor", 0.0)


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)


def _deterministic_image(model: Any) -> Declaration:
    """AutoencoderTiny and AutoencoderDC. Their encoder returns the latent itself."""
    scale, shift = _scaling(model.config)
    return Declaration(
        encode=lambda x: model.encoder(x),
        decode=lambda z: model.decoder(z),
        posterior="none",
        prior="none",
        prior_reason=_NOT_NORMAL,
        axes=_IMAGE,
        latent_axes=_IMAGE,
        dynamic=("height", "width"),
        latent_scale=scale,
        latent_shift=shift,
    )


def _vq_model(model: Any) -> Declaration:
    quantize = model.quantize
    if getattr(quantize, "remap", None) is not None:
        raise ExportError(
            "diffusers VQModel: expected a quantizer without remap=, which draws unknown codes at random; export a "
            "model without it"
        )

    def encode(x: Tensor) -> Tensor:
        h = model.quant_conv(model.encoder(x))
        batch, channels, height, width = h.shape
        rows = h.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
        # The library leaves the choice of the mode to PyTorch, which takes this one beyond 25 rows or codes; the other
        # exports as an array of all differences, rows by codes by channels.
        distances = torch.cdist(rows, quantize.embedding.weight, compute_mode="use_mm_for_euclid_dist")
        return distances.argmin(dim=1).reshape(batch, height, width)

    def decode(codes: Tensor) -> Tensor:
        quantized = quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()
        spatial = quantized if model.config.norm_type == "spatial" else None
        return model.decoder(model.post_quant_conv(quantized), spatial)  # type: ignore[no-any-return]

    return Declaration(
        encode=encode,
        decode=decode,
        posterior="codes",
        prior="none",
        axes=_IMAGE,
        latent_axes=("height", "width"),
        dynamic=("height", "width"),
        codebook=int(quantize.embedding.num_embeddings),
    )


def _oobleck(model: Any) -> Declaration:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = model.encoder(x).chunk(2, dim=1)
        return mean, functional.softplus(scale) + 1e-4

    return Declaration(
        encode=encode,
        decode=lambda z: model.decoder(z),
        posterior="std",
        prior="none",
        prior_reason=_NOT_NORMAL,
        axes=("channel", "time"),
        latent_axes=("channel", "time"),
        dynamic=("time",),
    )


MODELS = {
    "AutoencoderKL": Family(_autoencoder_kl),
    "AutoencoderTiny": Family(_deterministic_image),
    "AutoencoderDC": Family(_deterministic_image),
    "VQModel": Family(_vq_model),
    "AutoencoderOobleck": Family(_oobleck),
}
