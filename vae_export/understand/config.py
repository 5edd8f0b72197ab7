"""Read the configuration that diffusers writes beside a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def configured_size(config: Mapping[str, Any], number: int, rank: int) -> int | None:
    """Return the size of an axis of a picture, as diffusers' configuration says it."""
    value = config.get("in_channels" if number == 0 else "sample_size") if rank == 3 else None
    if isinstance(value, (list, tuple)) and len(value) == rank - 1:
        value = value[number - 1]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def configured_scaling(config: Mapping[str, Any]) -> tuple[Any, Any, bool]:
    """Return scale and shift such that a diffusion model takes (z - shift) · scale, and whether there is one."""

    def number(name: str, default: float) -> float:
        value = config.get(name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else default

    mean, std = config.get("latents_mean"), config.get("latents_std")
    factor = number("scaling_factor", 1.0)
    if isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) and mean:
        return [factor / float(each) for each in std], mean, True
    return factor, number("shift_factor", 0.0), "scaling_factor" in config
