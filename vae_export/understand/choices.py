"""Cut a model's `forward` at the choices of its codes: the encoder is what comes before, the decoder what follows.

This serves vector-quantized models whose encode and decode leave the codebook to `forward`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from .draws import Draws
from .functions import Functions
from .halves import Halves, checked

# Functions that choose an index along an axis; those of the second kind return the values too.
_INDEX = {torch.argmin, torch.argmax, Tensor.argmin, Tensor.argmax}
_VALUE_AND_INDEX = {torch.min, torch.max, Tensor.min, Tensor.max}
_MAX_CHOICES = 64


class _AtChoices(Draws):
    """Record the indices that a model chooses, or put others in their place."""

    def __init__(self, given: Sequence[Tensor] = ()) -> None:
        super().__init__(lambda index, shape: torch.zeros(shape))
        self.given = given
        self.chosen: list[Tensor] = []
        self.sizes: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        kwargs = kwargs or {}
        if func in _INDEX:
            indices, axis = result, args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        elif func in _VALUE_AND_INDEX and isinstance(result, tuple):
            indices, axis = result[1], args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        else:
            return result
        if axis is None:
            return result
        number = len(self.chosen)
        self.chosen.append(indices)
        self.sizes.append(int((args[0] if args else kwargs["input"]).shape[axis]))
        if number < len(self.given):
            indices = self.given[number].reshape(indices.shape)
            return indices if func in _INDEX else type(result)((result[0], indices))
        return result


class _Forward(Halves):
    """The two halves of a model's `forward`."""

    def encode(self, x: Tensor, **conditions: Tensor) -> Tensor | list[Tensor]:
        """The codes, [n, …], or those of each level."""
        at = _AtChoices()
        with at:
            self.model(x, **conditions)
        # A model that chooses for all positions of a batch at once has them in the order of the observations.
        levels = [
            chosen if chosen.dim() > 1 and chosen.shape[0] == x.shape[0] else chosen.reshape(x.shape[0], -1)
            for chosen in at.chosen
        ]
        return levels[0] if len(levels) == 1 else levels

    def answer(self, latents: Sequence[Tensor], x: Tensor, conditions: Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors that `forward` returns with these codes in the place of its choices."""
        with _AtChoices(latents):
            output = self.model(x, **conditions)
        return self.tensors(output)

    def cut(self) -> list[int]:
        """Check that forward can be cut, find the reconstruction, and return the codebooks' sizes."""
        recorder = _AtChoices()
        with recorder:
            self.model(self.example.clone(), **self.taken)
        if recorder.normal or recorder.other:
            raise ExportError("it draws noise")
        if not 0 < len(recorder.chosen) <= _MAX_CHOICES:
            times = f"more than {_MAX_CHOICES} times" if recorder.chosen else "nowhere, by no argmin or argmax"
            raise ExportError(f"it chooses codes {times}")
        levels = self.encode(self.example.clone(), **self.taken)
        codes = [levels] if isinstance(levels, Tensor) else levels
        moved = [(level + 1) % size for level, size in zip(codes, recorder.sizes, strict=True)]
        self.find_reconstruction(codes, moved, "codes")
        return recorder.sizes


def cut_at_choices(model: nn.Module, example: Tensor, given: Mapping[str, Tensor]) -> tuple[Functions, int]:
    """Return the halves of a model's `forward` as encode and decode, and the number of codes.

    Args:
        model: in evaluation mode.
        example: observations [n, …].
        given: the conditions' values [n, …] by name.

    Raises:
        ExportError: `forward` chooses no codes, or its second half depends on more than these.
    """
    forward = _Forward(model, example, given)
    sizes = checked(forward.cut)
    return forward.functions("where it chooses the codes"), max(sizes)
