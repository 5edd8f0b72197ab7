"""A VAE as two pure modules with what their tensors mean, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_runtime.manifest import Signature


@dataclass(frozen=True)
class Adapted:
    """A VAE as two modules without randomness, with what their tensors mean.

    `modules` has "encoder" and "decoder", or the decoder alone: each takes the tensors of `signature.inputs` and
    returns a tuple of those of `signature.outputs`, in order. They share the model's weights. `examples` holds a value
    [n, …] for every input.
    """

    modules: Mapping[str, nn.Module]
    signature: Signature
    examples: Mapping[str, Tensor]
    recognised: tuple[str, ...] = ()
    prior_file: bytes | None = None
    """The content of the file of a prior that is a mixture."""

    def given(self, component: str, examples: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """The example's tensors for a component, in the order of its inputs."""
        return tuple((examples or self.examples)[tensor.name] for tensor in self.signature.inputs(component))

    def outputs(self, component: str) -> tuple[str, ...]:
        """The names of a component's outputs, in order."""
        return tuple(tensor.name for tensor in self.signature.outputs(component))


def run_module(module: nn.Module, given: Sequence[Tensor]) -> list[Tensor]:
    """A component's outputs from eager PyTorch, in order."""
    with torch.no_grad():
        # Copies: some models change their input in place.
        return list(module(*(tensor.clone() for tensor in given)))


def resized(tensor: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """A tensor with other sizes of some axes, by repeating and cutting, so that its values stay of their kind."""
    for axis, size in sizes.items():
        repeats = [1] * tensor.dim()
        repeats[axis] = -(-size // tensor.shape[axis])
        tensor = tensor.repeat(repeats).narrow(axis, 0, size)
    return tensor.contiguous()
