"""Cut a model's `forward` at its one draw of normal noise: the encoder is what comes before, the decoder what follows.

This serves a model without encode and decode, and one whose `forward` does more between the two: a softmax or a flow of
the latents, a factor on the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_runtime.errors import error_line

from ..errors import ExportError
from .draws import Draws, fixed_noise
from .functions import Functions, another, conditions_taken, sampling, tensors_in
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


class _Forward:
    """The two halves of a model's `forward`."""

    def __init__(self, model: nn.Module, example: Tensor, conditions: Mapping[str, Tensor]) -> None:
        self.model = model
        self.item = 0
        # What the first half, whose result is replaced, is run on.
        self.row = example[:1].clone()
        self.taken = conditions_taken(model, conditions)
        self.drawn: bool | None = None
        self.training = False

    def encode(self, x: Tensor, **conditions: Tensor) -> dict[str, Tensor]:
        """The mean and the standard deviation of the posterior that `forward` samples from."""
        mean, term = self.stop(x, 1.0, conditions)
        # A model that subtracts the noise, or has a negative factor, samples from the same normal.
        return {"mean": mean, "std": term.abs()}

    def decode(self, z: Tensor, **conditions: Tensor) -> Tensor:
        """What `forward` makes of a latent."""
        return self.answer(z, self.row.expand(z.shape[0], *self.row.shape[1:]), conditions)[0][self.item]

    def stop(self, x: Tensor, noise: float | None, conditions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Run `forward` up to the sum, and return the mean and the term with the noise, `fixed_noise` if it is None."""
        at = _AtSum(noise, drawn=self.drawn)
        try:
            with sampling(self.model, self.training, keep=False), at:
                self.model(x, **conditions)
        except _Reached:
            self.drawn = bool(at.drawn)
            assert at.mean is not None
            assert at.term is not None
            return at.mean, at.term
        raise ExportError("it adds normal noise to no mean" if at.normal else "it draws no normal noise")

    def answer(self, z: Tensor, x: Tensor, conditions: Mapping[str, Tensor]) -> tuple[list[Tensor], int]:
        """The tensors that `forward` returns with this latent in the place of the sum, and how often it drew."""
        at = _AtSum(latent=z, drawn=self.drawn)
        with sampling(self.model, self.training, keep=False), at:
            output = self.model(x, **conditions)
        return [leaf for leaf in tensors_in(output) if leaf.dim()], len(at.normal)


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
    try:
        latent = _latent(forward, example)
        with torch.no_grad():
            forward.item = _reconstruction(forward, latent, example)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"forward fails on the example: {error_line(error)}") from error
    conditions = forward.taken
    return Functions(
        model=model,
        example=example,
        conditions=given,
        encode=forward.encode,
        decode=forward.decode,
        encode_conditions=conditions,
        decode_conditions=conditions,
        recognised=("encode and decode: the two halves of forward, cut where it adds noise to the mean",),
    )


def _latent(forward: _Forward, example: Tensor) -> Tensor:
    """The latents of the example, with every draw set to 1."""
    try:
        mean, term = forward.stop(example.clone(), 1.0, forward.taken)
    except ExportError:
        # Many models sample in training mode alone.
        forward.training = True
        mean, term = forward.stop(example.clone(), 1.0, forward.taken)
    same_mean, scaled = forward.stop(example.clone(), None, forward.taken)
    # The term of `torch.normal` is its standard deviation, whatever the noise.
    if not _close(same_mean, mean) or not _close(scaled, term if forward.drawn else term * fixed_noise(term.shape)):
        raise ExportError("its latent is no mean plus noise times a standard deviation, each number for itself")
    if len(mean) != len(example):
        raise ExportError(f"it draws noise of the shape {list(mean.shape)}, not a row for each observation")
    weights = list(forward.model.parameters())
    if not used_tensors(lambda: forward.stop(example.clone(), 1.0, forward.taken), weights):
        raise ExportError("it adds noise to the observation, before any layer")
    return mean + term


def _reconstruction(forward: _Forward, latent: Tensor, example: Tensor) -> int:
    """The number of the tensor that is the reconstruction, among those that `forward` returns."""
    own, draws = forward.answer(latent, example.clone(), forward.taken)
    if draws > 1:
        raise ExportError(f"it draws normal noise {draws} times")
    moved, _ = forward.answer(latent + fixed_noise(latent.shape), example.clone(), forward.taken)
    changed = [j for j, (a, b) in enumerate(zip(own, moved, strict=True)) if not torch.equal(a, b)]
    # The first that the latent changes and that looks like the observation, or else the first of any shape.
    item = next((j for j in changed if own[j].shape == example.shape), changed[0] if changed else None)
    if item is None:
        raise ExportError("nothing that it returns depends on the latent")
    elsewhere, _ = forward.answer(latent, another(example), forward.taken)
    if not _close(elsewhere[item], own[item]):
        raise ExportError("its reconstruction depends on the observation, too, and not on the latent alone")
    return item


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and distance(a, b) <= SAME
