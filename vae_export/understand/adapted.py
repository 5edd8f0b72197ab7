"""A VAE as two pure modules with what their tensors mean, and how to run them."""

from __future__ import annotations

import hashlib
import time
import weakref
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

    def forms(self, answers: Sequence[Tensor]) -> list[Tensor]:
        """Return answers of the decoder in each layout in which the model itself may give them.

        The model may have the classes along any axis; in a component they are the last one.
        """
        found = list(answers)
        if self.signature.likelihood.has_classes:
            found += [each.movedim(-1, axis) for each in answers for axis in range(1, each.dim() - 1)]
        return found


# A component's answers by a digest of its inputs, with the seconds that they took: several questions about a model are
# asked of the same observations, and a large one takes seconds for each. Only answers that took long are kept.
_kept: weakref.WeakKeyDictionary[nn.Module, dict[bytes, tuple[list[Tensor], float]]] = weakref.WeakKeyDictionary()
_LONG, _MAX_VALUES = 0.1, 2**20


def run_module(module: nn.Module, given: Sequence[Tensor], *, again: bool = False) -> list[Tensor]:
    """Return a component's outputs from eager PyTorch, in order: see `timed_run`."""
    return timed_run(module, given, again=again)[0]


def timed_run(module: nn.Module, given: Sequence[Tensor], *, again: bool = False) -> tuple[list[Tensor], float]:
    """Return a component's outputs from eager PyTorch, in order, and the seconds that they took.

    The answer of a slow component is kept for the next run on the same inputs; a run `again` is a run of its own. The
    processor's time is not that of other programs, and several threads take more of it than of the clock: the seconds
    are the smaller of both.
    """
    kept = {} if again else _kept.get(module, {})
    key = _digest(given) if kept else b""
    if key in kept:
        outputs, seconds = kept[key]
        return [output.clone() for output in outputs], seconds
    start, processor = time.perf_counter(), time.process_time()
    with torch.no_grad():
        # Copies: some models change their input in place.
        outputs = list(module(*(tensor.clone() for tensor in given)))
    seconds = min(time.perf_counter() - start, time.process_time() - processor)
    if seconds > _LONG and not again and sum(output.numel() for output in outputs) <= _MAX_VALUES:
        _kept.setdefault(module, {})[key or _digest(given)] = [output.clone() for output in outputs], seconds
    return outputs, seconds


def _digest(tensors: Sequence[Tensor]) -> bytes:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.digest()


def resized(tensor: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """A tensor with other sizes of some axes, by repeating and cutting, so that its values stay of their kind."""
    for axis, size in sizes.items():
        repeats = [1] * tensor.dim()
        repeats[axis] = -(-size // tensor.shape[axis])
        tensor = tensor.repeat(repeats).narrow(axis, 0, size)
    return tensor.contiguous()
