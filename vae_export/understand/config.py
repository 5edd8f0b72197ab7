"""Read the configuration that diffusers writes beside a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vae_runtime.errors import InputError, counted

# Pictures are smaller.
_MAX_SIZE = 2**14


def configured_size(config: Mapping[str, Any], number: int, rank: int) -> int | None:
    """Return the size of an axis of a picture, as the configuration says it."""
    value = config.get("in_channels" if number == 0 else "sample_size") if rank == 3 else None
    if isinstance(value, list) and len(value) == rank - 1:
        value = value[number - 1]
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_SIZE else None


def configured_scaling(config: Mapping[str, Any], channels: int) -> tuple[Any, Any, bool]:
    """Return scale and shift such that a diffusion model takes (z - shift) · scale, and whether there is one.

    Raises:
        InputError: they are not numbers, or not one for each of the channels.
    """
    factor, shift = (_numbers(config, name, default, 1)[0] for name, default in _FACTORS)
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        _require_scale(factor)
        return factor, shift, "scaling_factor" in config
    mean, std = (_numbers(config, name, None, channels) for name in ("latents_mean", "latents_std"))
    scales = [factor / each if each else math.inf for each in std]
    for scale in scales:
        _require_scale(scale)
    return scales, mean, True


_FACTORS = (("scaling_factor", 1.0), ("shift_factor", 0.0))


def _require_scale(scale: float) -> None:
    if not math.isfinite(scale) or scale == 0:
        raise InputError(
            f"config.json: expected a finite scale of the latents other than 0, got {scale}; latent_scale= says it"
        )


def _numbers(config: Mapping[str, Any], name: str, default: float | None, count: int) -> list[float]:
    """Return the numbers of a member: one, or a list of `count`."""
    value = config.get(name)
    if value is None and default is not None:
        return [default]
    values = value if isinstance(value, list) else [value]
    numbers = [float(each) for each in values if isinstance(each, (int, float)) and abs(each) <= 1e300]
    if len(numbers) < len(values) or len(numbers) != count:
        raise InputError(
            f"config.json: {name}: expected {counted(count, 'number')}, got {value!r:.60}; remove it, or correct it"
        )
    return numbers
