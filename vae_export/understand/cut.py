"""Cut a model's `forward` at its one draw of normal noise: the encoder is what comes before, the decoder what follows.

This serves a model without encode and decode, and one whose `forward` does more between the two: a softmax or a flow of
the latents, a factor on the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from .draws import Draws, fixed_noise
from .functions import Functions, sampling, tensors_in
from .halves import Halves, checked
from .posterior import SAME, distance
from .state import used_tensors

# Functions that add noise to a mean.
_SUMS = {"add", "__add__", "__radd__", "addcmul"}
_DIFFERENCES = {"sub", "__sub__"}
# The same, where the result takes the place of the first operand.
_IN_PLACE = {"add_": "add", "__iadd__": "add", "addcmul_": "addcmul", "sub_": "sub", "__isub__": "sub"}


class _Reached(Exception):
    """The sum of mean and noise was reached, and nothing after it is needed."""


class _AtSum(Draws):
    """Find the first sum of a mean and a term with the noise in it; stop there, or put a latent in its place.

    With every draw set to 1 the term is the standard deviation. `drawn` says that `torch.normal` is called with the
    posterior's own mean and standard deviation, and adds them itself; None finds it out.
    """

    def __init__(self, noise: float | None = 1.0, latent: Tensor | None = None, drawn: bool | None = None) -> None:
        super().__init__(lambda index, shape: fixed_noise(shape) if noise is None else torch.full(shape, noise))
        self.latent = latent
        self.drawn = drawn
        self.mean: Tensor | None = None
        self.term: Tensor | None = None
        # The tensors that depend on the noise; held, so that no other tensor gets the identity of one.
        self._noisy: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        before = len(self.normal)
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        noisy = [tensor for tensor in tensors if id(tensor) in self._noisy]
        name = getattr(func, "__name__", "")
        summing = self.mean is None and bool(noisy) and _IN_PLACE.get(name, name) in _SUMS | _DIFFERENCES
        # The operands as they are before a call that writes into the first.
        operands = [tensor.clone() for tensor in tensors] if summing and name in _IN_PLACE else tensors
        result = super().__torch_function__(func, types, args, kwargs)
        if self.mean is not None:
            return result
        if len(self.normal) > before:
            if before == 0 and func is torch.normal and self._adds(args, kwargs, result):
                return self._reached(result)
            self._noisy[id(result)] = result
            return result
        if summing and isinstance(result, Tensor):
            clean = [j for j, tensor in enumerate(tensors) if not any(tensor is other for other in noisy)]
            if clean and self._is_sum(operands, clean[0], kwargs, result, name):
                return self._reached(result)
        if noisy:
            self._noisy |= {
                id(leaf): leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)
            }
        return result

    def _adds(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> bool:
        """Whether a call of `torch.normal` has the posterior's own mean and standard deviation."""
        mean = args[0] if args else kwargs.get("mean")
        std = args[1] if len(args) > 1 else kwargs.get("std")
        if not isinstance(mean, Tensor) or not isinstance(std, Tensor):
            return False
        if self.drawn is None:
            # torch.distributions may draw a standard normal in this way.
            self.drawn = not (bool((mean == 0).all()) and bool((std == 1).all()))
        if self.drawn:
            self.mean, self.term = mean.expand(result.shape), std.expand(result.shape)
        return self.drawn

    def _is_sum(
        self, operands: Sequence[Tensor], clean: int, kwargs: Mapping[str, Any], result: Tensor, name: str
    ) -> bool:
        """Whether a mean without noise, the operand of number `clean`, is added to a term as large as the draw."""
        mean = operands[clean]
        if tuple(result.shape) != self.normal[0] or not mean.is_floating_point():
            return False
        if mean.shape != result.shape:
            raise ExportError(
                f"it adds noise of the shape {list(result.shape)} to a mean of the shape {list(mean.shape)}"
            )
        if _IN_PLACE.get(name, name) in _DIFFERENCES and clean > 0:
            mean = -mean
        self.mean = mean
        plain = len(operands) == 2 and not kwargs
        self.term = operands[1 - clean].expand(result.shape) if plain else result - mean
        return True

    def _reached(self, result: Tensor) -> Tensor:
        if self.latent is None:
            raise _Reached
        return self.latent.to(result.dtype)


class _Forward(Halves):
    """The two halves of a model's `forward`."""

    def __init__(self, model: nn.Module, example: Tensor, given: Mapping[str, Tensor]) -> None:
        super().__init__(model, example, given)
        self.drawn: bool | None = None
        self.training = False
        # How often the last answer drew.
        self.draws = 0

    def encode(self, x: Tensor, **conditions: Tensor) -> dict[str, Tensor]:
        """The mean and the standard deviation of the posterior that `forward` samples from."""
        mean, term = self.stop(x, 1.0, conditions)
        # A model that subtracts the noise, or has a negative factor, samples from the same normal.
        return {"mean": mean, "std": term.abs()}

    def stop(self, x: Tensor, noise: float | None, conditions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Run `forward` up to the sum, and return the mean and the term with the noise, `fixed_noise` if it is None."""
        at = _AtSum(noise, drawn=self.drawn)
        try:
            with sampling(self.model, self.training), at:
                self.model(x, **conditions)
        except _Reached:
            self.drawn = bool(at.drawn)
            assert at.mean is not None
            assert at.term is not None
            return at.mean, at.term
        raise ExportError("it adds normal noise to no mean" if at.normal else "it draws no normal noise")

    def answer(self, latents: Sequence[Tensor], x: Tensor, conditions: Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors that `forward` returns with this latent in the place of the sum."""
        at = _AtSum(latent=latents[0], drawn=self.drawn)
        with sampling(self.model, self.training), at:
            output = self.model(x, **conditions)
        self.draws = len(at.normal)
        return [leaf for leaf in tensors_in(output) if leaf.dim()]

    def cut(self) -> None:
        """Check that forward can be cut, and find the reconstruction."""
        latent = self._latent()
        self.find_reconstruction([latent], [latent + fixed_noise(latent.shape)], "latent")
        if self.draws > 1:
            raise ExportError(f"it draws normal noise {self.draws} times")

    def _latent(self) -> Tensor:
        """The latents of the example, with every draw set to 1."""

        def stop(noise: float | None = 1.0) -> tuple[Tensor, Tensor]:
            return self.stop(self.example.clone(), noise, self.taken)

        try:
            mean, term = stop()
        except ExportError:
            # Many models sample in training mode alone.
            self.training = True
            mean, term = stop()
        same_mean, scaled = stop(None)
        # The term of `torch.normal` is its standard deviation, whatever the noise.
        if not _close(same_mean, mean) or not _close(scaled, term if self.drawn else term * fixed_noise(term.shape)):
            raise ExportError("its latent is no mean plus noise times a standard deviation, each number for itself")
        if len(mean) != len(self.example):
            raise ExportError(f"it draws noise of the shape {list(mean.shape)}, not a row for each observation")
        if not used_tensors(stop, list(self.model.parameters())):
            raise ExportError("it adds noise to the observation, before any layer")
        return mean + term


def cut_forward(model: nn.Module, example: Tensor, given: Mapping[str, Tensor]) -> Functions:
    """Return the halves of a model's `forward` as encode and decode.

    Args:
        model: in evaluation mode.
        example: observations [n, …].
        given: the conditions' values [n, …] by name.

    Raises:
        ExportError: `forward` does not draw one latent's noise and add it to a mean, or its second half depends on more
            than the latent and the conditions; the message says which.
    """
    forward = _Forward(model, example, given)
    checked(forward.cut)
    return forward.functions("where it adds noise to the mean")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and distance(a, b) <= SAME
