"""Two halves of a model's `forward` as encode and decode: what is common to all places where it can be cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vae_runtime.errors import error_line

from ..errors import ExportError
from .functions import Functions, another, conditions_taken, tensors_in
from .posterior import SAME, distance
from .reading import fields_of, follows

Result = TypeVar("Result")

# Names of a reconstruction in what `forward` returns.
_NAMED = re.compile(r"^(?!.*(loss|err|nll)).*(recon|x_?hat|x_?rec|rec_?x|decoded)", re.IGNORECASE)


class Halves:
    """The first half of a model's `forward` encodes, the second, run with given latents, decodes.

    Args:
        model: in evaluation mode.
        example: observations [n, …].
        given: the conditions' values [n, …] by name.
    """

    def __init__(self, model: nn.Module, example: Tensor, given: Mapping[str, Tensor]) -> None:
        self.model = model
        self.example = example
        self.given = given
        self.taken = conditions_taken(model, given)
        self.item = 0
        self.lines: tuple[str, ...] = ()
        self.beside: tuple[str, ...] = ()
        """What `forward` returns beside the reconstruction that may be a scale of it, or a second mean."""
        self._names: list[str] = []
        # What the first half, whose result is replaced, is run on.
        self.row = example[:1].clone()

    def encode(self, x: Tensor, **conditions: Tensor) -> object:
        """Return the answer of the first half."""
        raise NotImplementedError

    def answer(self, latents: Sequence[Tensor], x: Tensor, conditions: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tensors that `forward` returns with these latents in the place of those of the first half."""
        raise NotImplementedError

    def decode(self, *latents: Tensor, **conditions: Tensor) -> Tensor:
        """Return what `forward` makes of latents."""
        # The size of the shape, which stays free in a graph; len() would fix it.
        return self.answer(latents, self.row.expand(latents[0].shape[0], *self.row.shape[1:]), conditions)[self.item]

    def find_reconstruction(self, latents: Sequence[Tensor], others: Sequence[Tensor], name: str) -> None:
        """Find the tensor that is the reconstruction, among those that `forward` returns.

        Args:
            latents: of the example.
            others: others of the same shapes.
            name: of the latents, for errors.

        Raises:
            ExportError: no tensor depends on the latents, or the reconstruction also depends on the observation.
        """
        own = self.answer(latents, self.example.clone(), self.taken)
        named = [number for number, name in enumerate(self._names) if _NAMED.search(name)]
        moved = self.answer(others, self.example.clone(), self.taken)
        kinds = [j for j, tensor in enumerate(own) if tensor.is_floating_point() or tensor.dtype == self.example.dtype]
        rows = [j for j in kinds if len(own[j]) == len(self.example)]
        changed = [j for j in rows if not torch.equal(own[j], moved[j])]
        # One that is named so, the first that looks like the observation, if in another shape, or else the first.
        alike = [j for j in changed if own[j].shape == self.example.shape]
        alike = alike or [j for j in changed if own[j].numel() == self.example.numel()]
        # A model may return the latents, too, which may have the observation's shape.
        alike = [j for j in alike if not any(_same(own[j], latent) for latent in latents)] or alike
        item = next((j for j in (*[j for j in named if j in alike], *alike, *changed)), None)
        if item is None:
            raise ExportError(f"nothing that it returns depends on the {name}")
        if len(alike) > 1 and item not in named:
            self.lines = (
                f"decode: item {item + 1} of what forward returns, the first of {len(alike)} that have the "
                "observation's shape (decode=)",
            )
        # The first half sees another observation, so that nothing but the latents can lead to the same answer.
        elsewhere = self.answer(latents, another(self.example), self.taken)
        depends = [j for j in changed if elsewhere[j].shape != own[j].shape or distance(elsewhere[j], own[j]) > SAME]
        if item in depends:
            raise ExportError(f"its reconstruction depends on the observation, too, and not on the {name} alone")
        self.item = item
        self.beside = tuple(
            repr(self._names[j]) if self._names[j] else f"item {j + 1} of what forward returns"
            for j in alike
            if j not in (item, *depends) and own[j].is_floating_point() and not follows(own[j], own[item])
        )

    def tensors(self, output: Any) -> list[Tensor]:
        """Return the tensors in an answer of `forward` that have rows, and remember their names."""
        fields = fields_of(output) or {}
        leaves = [leaf for leaf in tensors_in(output) if leaf.dim()]
        self._names = [next((str(name) for name, value in fields.items() if value is leaf), "") for leaf in leaves]
        return leaves

    def functions(self, place: str) -> Functions:
        """Return the halves as encode and decode; `place` says where `forward` was cut."""
        return Functions(
            model=self.model,
            example=self.example,
            conditions=self.given,
            encode=self.encode,
            decode=self.decode,
            encode_conditions=self.taken,
            decode_conditions=self.taken,
            recognised=(f"encode and decode: the two halves of forward, cut {place}", *self.lines),
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def checked(cut: Callable[[], Result]) -> Result:
    """Run the checks of a cut without gradients, and return their result.

    Raises:
        ExportError: `forward` cannot be cut, or fails.
    """
    try:
        with torch.no_grad():
            return cut()
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"forward fails on the example: {error_line(error)}") from error
