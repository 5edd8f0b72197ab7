"""vnoise-1 in PyTorch: the same bits as `vae_runtime.noise`, on any torch device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_runtime import noise

_MASK32 = 0xFFFFFFFF


def normal(
    seed: int, start: int, n: int, shape: Sequence[int], stream: int = 0, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw standard-normal noise, bit for bit what `vae_runtime.noise.normal` gives for the same arguments.

    Returns:
        float32 [n, *shape] on `device`.
    """
    size = math.prod(shape)
    blocks = torch.arange(-(-size // 4), dtype=torch.int64, device=device)[None, :]
    # Python's integers wrap where torch's would overflow.
    samples = [(start + row) % 2**64 for row in range(n)]
    low = torch.tensor([sample & _MASK32 for sample in samples], dtype=torch.int64, device=device)[:, None]
    high = torch.tensor([sample >> 32 for sample in samples], dtype=torch.int64, device=device)[:, None]
    a, b, c, d = torch.broadcast_tensors(blocks, torch.full_like(blocks, stream), low, high)
    key_0, key_1 = (seed % 2**64) & _MASK32, (seed % 2**64) >> 32
    for _ in range(10):
        (p_high, p_low), (q_high, q_low) = _product(a, 0xD2511F53), _product(c, 0xCD9E8D57)
        a, b, c, d = q_high ^ b ^ key_0, q_low, p_high ^ d ^ key_1, p_low
        key_0, key_1 = (key_0 + 0x9E3779B9) & _MASK32, (key_1 + 0xBB67AE85) & _MASK32
    words = torch.stack([a, b, c, d], dim=-1).reshape(n, -1)[:, :size]
    return _normal_of_words(words).reshape(n, *shape)


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of a product; int64 wraps, so the shifted high half is masked."""
    product = word * multiplier
    return (product >> 32) & _MASK32, product & _MASK32


def _normal_of_words(words: Tensor) -> Tensor:
    quantile, difference = (torch.tensor(part, dtype=torch.int64, device=words.device) for part in noise.table())
    magnitude = words & 0x7FFFFFFF
    level = sum((magnitude < 1 << bits).long() for bits in (25, 19, 13))
    t = magnitude << (6 * level)
    index, fraction = (t >> 18) + 8192 * level, (t >> 3) & 0x7FFF
    fixed = quantile[index] - ((difference[index] * fraction) >> 15)
    return torch.where(words >> 31 == 1, -fixed, fixed).to(torch.float32) * 2.0**-21
