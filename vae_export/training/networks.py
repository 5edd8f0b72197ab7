"""The networks of the built-in architectures: dense layers, and convolutions of any depth over one to three axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_runtime.errors import InputError

from .config import MIN_GROUP, ModelConfig

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}
# By the number of axes beside the channels.
_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LAST: tuple[type[nn.Module], ...] = (nn.Linear, *_TRANSPOSED.values())
"""What the last layer with weights of a decoder is one of; a ConvTranspose is nowhere but between levels and there."""

# Numbers that each condition becomes.
_CONDITION_WIDTH = 32
# Groups of a normalization at most, and channels of an attention head at least.
_GROUPS, _HEAD_CHANNELS = 32, 32


class Conditions(nn.Module):
    """Conditions by name → one vector: classes by an embedding each, numbers by a dense layer each.

    Args:
        conditions: as `ModelConfig.conditions` has them.
    """

    def __init__(self, conditions: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self.names = tuple(conditions)
        self.layers = nn.ModuleList(
            nn.Embedding(kind["classes"], _CONDITION_WIDTH)
            if "classes" in kind
            else nn.Linear(math.prod(kind["shape"]), _CONDITION_WIDTH)
            for kind in conditions.values()
        )

    @property
    def width(self) -> int:
        """Size of the vector."""
        return _CONDITION_WIDTH * len(self.names)

    def forward(self, given: Mapping[str, Tensor]) -> Tensor | None:
        """Return float32 [n, width], or None for a model without conditions.

        Raises:
            InputError: a condition is missing, or is not the model's.
        """
        if given.keys() != set(self.names):
            expected, got = (", ".join(names) or "none" for names in (self.names, given))
            raise InputError(f"conditions: expected {expected}, got {got}; pass each by its name")
        parts = []
        for name, layer in zip(self.names, self.layers, strict=True):
            value = given[name]
            if isinstance(layer, nn.Linear):
                value = value.flatten(1) if value.dim() > 1 else value.unsqueeze(1)
            parts.append(layer(value))
        return torch.cat(parts, 1) if parts else None


class Network(nn.Sequential):
    """Layers in sequence, of which some take the vector of the conditions, too."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the last layer's answer: x [n, …] and the vector [n, width] → [n, …]."""
        for layer in self:
            x = layer(x, condition) if isinstance(layer, _Joined | _Shifted) else layer(x)
        return x


def mlp(config: ModelConfig, width: int) -> tuple[Network, Network]:
    """Return encoder and decoder of dense layers.

    Args:
        config: with an observation shape.
        width: size of the conditions' vector.
    """
    activation = _ACTIVATIONS[config.activation]
    size = math.prod(config.network_shape)
    encoder = _dense((size, *config.hidden, 2 * config.latent), activation, width)
    decoder = _dense((config.latent, *reversed(config.hidden), size), activation, width)
    return Network(nn.Flatten(), *encoder), Network(*decoder, nn.Unflatten(1, config.network_shape))


def conv(config: ModelConfig, width: int) -> tuple[Network, Network]:
    """Return encoder and decoder of convolutions, with dense layers around the latent.

    Args:
        config: with an observation shape [C, …] of one to three axes beside C.
        width: size of the conditions' vector.
    """
    inputs = config.network_shape[0]
    activation = _ACTIVATIONS[config.activation]
    down = _Levels(
        config, width, config.encoder_channels or config.channels, config.encoder_blocks, config.encoder_kernels,
        config.encoder_attention,
    )  # fmt: skip
    up = _Levels(
        config, width, config.channels, config.decoder_blocks, config.decoder_kernels, config.decoder_attention
    )
    encoder: list[nn.Module] = []
    for level, (before, channels) in enumerate(pairwise((inputs, *down.channels))):
        encoder += [_halving(before, channels, down.sizes[level]), *down.layers(level)]
    features = math.prod(down.sizes[-1]) * down.channels[-1]
    encoder += [nn.Flatten(), *_dense((features, *config.hidden, 2 * config.latent), activation, width)]

    shape = (up.channels[-1], *up.sizes[-1])
    decoder = _dense((config.latent, *reversed(config.hidden), math.prod(shape)), activation, width)
    decoder.append(nn.Unflatten(1, shape))
    for level in reversed(range(len(up.channels))):
        outputs = (inputs, *up.channels)[level]
        decoder += [*up.layers(level), _doubling(up.channels[level], outputs, up.sizes[level])]
    return Network(*encoder), Network(*decoder)


class _Levels:
    """The resolutions of an encoder or a decoder, and the layers at each of them."""

    def __init__(
        self,
        config: ModelConfig,
        width: int,
        channels: Sequence[int],
        blocks: int,
        kernels: Sequence[int],
        attention: int,
    ) -> None:
        self.channels, self.width = channels, width
        self.blocks, self.kernels, self.attention = blocks, kernels, attention
        self.activation = _ACTIVATIONS[config.activation]
        self.normed = config.norm == "group"
        self.sizes = [tuple(config.observation_shape[1:])]
        """The sizes of the observation, then those after each level."""
        for _ in channels:
            self.sizes.append(tuple(max(1, size // 2) for size in self.sizes[-1]))

    def layers(self, level: int) -> list[nn.Module]:
        """Return what is between two changes of the resolution."""
        channels, sizes = self.channels[level], self.sizes[level + 1]
        layers: list[nn.Module] = [_Shifted(self.width, channels, len(sizes))] if self.width else []
        layers += [_Residual(self._body(channels, len(sizes))) for _ in range(self.blocks)]
        if len(self.channels) - level <= self.attention:
            layers.append(_Attention(channels, sizes))
        return [*layers, *self._active(channels)]

    def _body(self, channels: int, axes: int) -> list[nn.Module]:
        convolution = _CONVOLUTIONS[axes]
        return [
            layer
            for kernel in self.kernels
            for layer in (*self._active(channels), convolution(channels, channels, kernel, padding=kernel // 2))
        ]

    def _active(self, channels: int) -> list[nn.Module]:
        if not self.normed:
            return [self.activation()]
        groups = _divisor(channels, min(_GROUPS, channels // MIN_GROUP))
        return [nn.GroupNorm(groups, channels), self.activation()]


def _halving(inputs: int, outputs: int, sizes: Sequence[int]) -> nn.Module:
    return _CONVOLUTIONS[len(sizes)](inputs, outputs, **_strided(sizes))


def _doubling(inputs: int, outputs: int, sizes: Sequence[int]) -> nn.Module:
    """The transposed convolution whose answer has these sizes."""
    rest = tuple(size % 2 if size > 1 else 0 for size in sizes)
    return _TRANSPOSED[len(sizes)](inputs, outputs, **_strided(sizes), output_padding=rest)


def _strided(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Kernel, stride and padding that take each size to its half, rounded down; a size of 1 stays."""

    def each(larger: int, one: int) -> tuple[int, ...]:
        return tuple(larger if size > 1 else one for size in sizes)

    return {"kernel_size": each(4, 1), "stride": each(2, 1), "padding": each(1, 0)}


class _Residual(nn.Module):
    """x + f(x), with f = 0 at first, so that the depth of a network does not decide how it starts."""

    def __init__(self, body: Sequence[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        _silence(body[-1])

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.body(x)
        return x + residual


class _Attention(nn.Module):
    """x + f(x) with f = self-attention between all positions (arXiv 1706.03762), of layer-normalized features."""

    def __init__(self, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.heads = _divisor(channels, channels // _HEAD_CHANNELS)
        self.norm = nn.LayerNorm(channels)
        self.inputs = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        _silence(self.output)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.norm(x.flatten(2).transpose(1, 2))
        # [n, positions, 3 · channels] → three of [n, heads, positions, channels of a head]
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.inputs(positions).chunk(3, 2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        residual: Tensor = self.output(mixed).transpose(1, 2).unflatten(2, self.sizes)
        return x + residual


class _Joined(nn.Module):
    """Features [n, a] and the vector of the conditions [n, b] → [n, a + b]."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return torch.cat([x, condition], 1)


class _Shifted(nn.Module):
    """Feature maps plus a number for each channel, which a dense layer makes of the conditions' vector."""

    def __init__(self, width: int, channels: int, axes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, channels)
        self.axes = axes

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift: Tensor = self.layer(condition).unflatten(1, (-1, *[1] * self.axes))
        return x + shift


def _dense(widths: tuple[int, ...], activation: Callable[[], nn.Module], condition: int) -> list[nn.Module]:
    """Linear layers from each width to the next, with the activation between them; the first takes the conditions."""
    layers: list[nn.Module] = [_Joined()] if condition else []
    for inputs, outputs in pairwise((widths[0] + condition, *widths[1:])):
        layers += [nn.Linear(inputs, outputs), activation()]
    return layers[:-1]


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most so large, and 1 at least."""
    return next(divisor for divisor in range(max(1, most), 0, -1) if number % divisor == 0)


@torch.no_grad()
def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()
