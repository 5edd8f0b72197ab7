"""Functions that PyTorch's exporters cannot translate, written in others that they can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# PyTorch multiplies matrices where either side has more rows than this, and subtracts rows elsewhere.
_FEW = 25


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    """The distances of all pairs of rows, [..., P, M] and [..., R, M] → [..., P, R], as `torch.cdist` computes them."""
    if p != 2.0:
        return torch.cdist(x1, x2, p, compute_mode)
    few = x2.shape[-2] <= _FEW and "if_necessary" in compute_mode
    if few or compute_mode == "donot_use_mm_for_euclid_dist":
        return (x1.unsqueeze(-2) - x2.unsqueeze(-3)).pow(2).sum(-1).sqrt()
    a, b = x1.pow(2).sum(-1, keepdim=True), x2.pow(2).sum(-1, keepdim=True)
    left = torch.cat([-2 * x1, a, torch.ones_like(a)], -1)
    right = torch.cat([x2, torch.ones_like(b), b], -1)
    return (left @ right.transpose(-1, -2)).clamp(min=0).sqrt()


TRANSLATABLE: Mapping[Any, Callable[..., Any]] = {torch.cdist: _cdist}
