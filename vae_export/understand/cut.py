"""Cut a model's `forward` at its draws of normal noise: the encoder is what comes before, the decoder what follows.

This serves a model without encode and decode, and one whose `forward` does more between the two: a softmax or a flow of
the latents, a factor on the noise, layers that join several latents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from .draws import Draws, fixed_noise
from .functions import Functions, sampling
from .halves import Halves, checked
from .posterior import SAME, distance
from .state import used_tensors

# Functions that add noise to a mean.
_SUMS = {"add", "__add__", "__radd__", "addcmul"}
_DIFFERENCES = {"sub", "__sub__"}
# The same, where the result takes the place of the first operand.
_IN_PLACE = {"add_": "add", "__iadd__": "add", "addcmul_": "addcmul", "sub_": "sub", "__isub__": "sub"}
_MAX_LATENTS = 32


class _Reached(Exception):
    """The last sum of a mean and noise was reached, and nothing after it is needed."""


class _AtSums(Draws):
    """Find the sums of a mean and a term with one draw in it; put a latent in the place of each.

    With every draw set to 1 the term is the standard deviation. Latents take the places of the first sums. The run
    stops at sum number `last`; a sum before it, without a latent, becomes mean + standard deviation · noise, where the
    noise is drawn as if the model did, so that a caller may steer it.

    Args:
        noise: what each draw is set to; None takes `fixed_noise`.
        latents: of the first sums.
        last: the number of the sum to stop at; None runs to the end.
        drawn: says that `torch.normal` is called with a posterior's own mean and standard deviation, and adds them
            itself; None finds it out.
    """

    def __init__(
        self,
        noise: float | None = 1.0,
        latents: Sequence[Tensor] = (),
        last: int | None = None,
        drawn: bool | None = None,
    ) -> None:
        super().__init__(lambda index, shape: fixed_noise(shape) if noise is None else torch.full(shape, noise))
        self.latents = latents
        self.last = last
        self.drawn = drawn
        self.sums: list[tuple[Tensor, Tensor]] = []
        """The mean and the term of each sum."""
        # The tensors that depend on noise, with the numbers of its draws; held, so that no other tensor gets the
        # identity of one.
        self._noisy: dict[int, tuple[Tensor, frozenset[int]]] = {}
        # The draws that a latent has taken up.
        self._summed: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        before = len(self.normal)
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        noisy = [tensor for tensor in tensors if self._draws_of(tensor)]
        draws = frozenset().union(*(self._draws_of(tensor) for tensor in noisy))
        name = getattr(func, "__name__", "")
        summing = len(draws) == 1 and _IN_PLACE.get(name, name) in _SUMS | _DIFFERENCES
        # The operands as they are before a call that writes into the first.
        operands = [tensor.clone() for tensor in tensors] if summing and name in _IN_PLACE else tensors
        result = super().__torch_function__(func, types, args, kwargs)
        if len(self.normal) > before:
            parts = self._drawn_sum(args, kwargs, result) if func is torch.normal else None
            if parts is not None:
                return self._reached(*parts, result, before)
            self._noisy[id(result)] = result, frozenset({before})
            return result
        if summing and isinstance(result, Tensor):
            (draw,) = draws
            clean = [j for j, tensor in enumerate(tensors) if not any(tensor is other for other in noisy)]
            parts = self._parts(operands, clean[0], kwargs, result, name, draw) if clean else None
            if parts is not None:
                return self._reached(*parts, result, draw)
        if noisy:
            leaves = torch.utils._pytree.tree_leaves(result)
            self._noisy |= {id(leaf): (leaf, draws) for leaf in leaves if isinstance(leaf, Tensor)}
        return result

    def _draws_of(self, tensor: Tensor) -> frozenset[int]:
        """The draws that a tensor depends on, but for those that a latent has taken up."""
        known = self._noisy.get(id(tensor))
        return known[1] - self._summed if known else frozenset()

    def _drawn_sum(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The mean and the standard deviation of a call of `torch.normal`, where they are a posterior's own."""
        mean = args[0] if args else kwargs.get("mean")
        std = args[1] if len(args) > 1 else kwargs.get("std")
        if not isinstance(mean, Tensor) or not isinstance(std, Tensor):
            return None
        if self.drawn is None:
            # torch.distributions may draw a standard normal in this way.
            self.drawn = not (bool((mean == 0).all()) and bool((std == 1).all()))
        return (mean.expand(result.shape), std.expand(result.shape)) if self.drawn else None

    def _parts(
        self, operands: Sequence[Tensor], clean: int, kwargs: Mapping[str, Any], result: Tensor, name: str, draw: int
    ) -> tuple[Tensor, Tensor] | None:
        """The mean without noise, the operand of number `clean`, and the term as large as the draw that it is added to.

        None if the call adds something else.
        """
        mean = operands[clean]
        if tuple(result.shape) != self.normal[draw] or not mean.is_floating_point():
            return None
        if mean.shape != result.shape:
            raise ExportError(
                f"it adds noise of the shape {list(result.shape)} to a mean of the shape {list(mean.shape)}"
            )
        if _IN_PLACE.get(name, name) in _DIFFERENCES and clean > 0:
            mean = -mean
        plain = len(operands) == 2 and not kwargs
        return mean, operands[1 - clean].expand(result.shape) if plain else result - mean

    def _reached(self, mean: Tensor, term: Tensor, result: Tensor, draw: int) -> Tensor:
        number = len(self.sums)
        self.sums.append((mean, term))
        self._summed.add(draw)
        if number < len(self.latents):
            return self.latents[number].to(result.dtype)
        # An exception would leave the modules that it passes on the stack of torch.export, which then fails. What runs
        # beyond the sum reaches no output, so the exporter drops it.
        if number == self.last and not torch.compiler.is_exporting():
            raise _Reached
        # This mode is off while it serves a call: the draw is the caller's.
        return mean + term.abs() * torch.randn_like(mean)


class _Forward(Halves):
    """The two halves of a model's `forward`."""

    def __init__(self, model: nn.Module, example: Tensor, given: Mapping[str, Tensor]) -> None:
        super().__init__(model, example, given)
        self.drawn: bool | None = None
        self.training = False
        self.count = 1
        """The number of latents."""

    def encode(self, x: Tensor, **conditions: Tensor) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """The mean and the standard deviation of the posterior of each latent that `forward` samples."""
        sums = self.stop(x, 1.0, conditions, last=self.count - 1)
        # A model that subtracts the noise, or has a negative factor, samples from the same normal.
        posteriors = [{"mean": mean, "std": term.abs()} for mean, term in sums]
        return posteriors if len(posteriors) > 1 else posteriors[0]

    def stop(
        self,
        x: Tensor,
        noise: float | None,
        conditions: Mapping[str, Tensor],
        *,
        latents: Sequence[Tensor] = (),
        last: int = 0,
    ) -> list[tuple[Tensor, Tensor]]:
        """Run `forward` up to the sum of this number, and return the means and the terms with noise.

        Args:
            x: observations.
            noise: what each draw is set to; None takes `fixed_noise`.
            conditions: by name.
            latents: in the place of the first sums.
            last: the number of the sum to stop at.
        """
        at = _AtSums(noise, latents, last, drawn=self.drawn)
        with sampling(self.model, self.training), at, contextlib.suppress(_Reached):
            self.model(x, **conditions)
        if len(at.sums) <= last:
            raise ExportError("it adds normal noise to no mean" if at.normal else "it draws no normal noise")
        self.drawn = bool(at.drawn)
        return at.sums[: last + 1]

    def answer(self, latents: Sequence[Tensor], x: Tensor, conditions: Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors that `forward` returns with these latents in the place of the sums."""
        with sampling(self.model, self.training), _AtSums(latents=latents, drawn=self.drawn):
            output = self.model(x, **conditions)
        return self.tensors(output)

    def cut(self) -> None:
        """Check that forward can be cut, and find the reconstruction."""
        latents = [self._latent([])]
        self.count = self._number_of_latents()
        while len(latents) < self.count:
            latents.append(self._latent(latents))
        moved = [latent + fixed_noise(latent.shape) for latent in latents]
        self.find_reconstruction(latents, moved, "latent")
        if self.count > 1:
            self._require_each(latents, moved)

    def _number_of_latents(self) -> int:
        """How often `forward` adds noise to a mean, which is what it draws for."""
        at = _AtSums(drawn=self.drawn)
        with sampling(self.model, self.training), at, torch.no_grad():
            self.model(self.example.clone(), **self.taken)
        if at.other:
            raise ExportError(f"it draws with {at.other[0]}, too")
        if len(at.sums) != len(at.normal) or len(at.sums) > _MAX_LATENTS:
            raise ExportError(f"it draws normal noise {len(at.normal)} times")
        return len(at.sums)

    def _require_each(self, latents: Sequence[Tensor], moved: Sequence[Tensor]) -> None:
        """Require that the reconstruction depends on each latent, given the others.

        Noise that is added to the reconstruction itself would be taken for a latent otherwise.
        """
        own = self.answer(latents, self.example.clone(), self.taken)[self.item]
        for number in range(len(latents)):
            changed = [moved[j] if j == number else latent for j, latent in enumerate(latents)]
            if torch.equal(self.answer(changed, self.example.clone(), self.taken)[self.item], own):
                raise ExportError(
                    f"it draws normal noise {len(latents)} times, and its reconstruction does not depend on draw "
                    f"{number + 1} where the others are given"
                )

    def _latent(self, before: Sequence[Tensor]) -> Tensor:
        """The next latent of the example after these, with every draw set to 1."""
        number = len(before)

        def stop(noise: float | None = 1.0) -> tuple[Tensor, Tensor]:
            return self.stop(self.example.clone(), noise, self.taken, latents=before, last=number)[number]

        try:
            mean, term = stop()
        except ExportError:
            # Many models sample in training mode alone.
            if number:
                raise
            self.training = True
            mean, term = stop()
        same_mean, scaled = stop(None)
        # The term of `torch.normal` is its standard deviation, whatever the noise.
        if not _close(same_mean, mean) or not _close(scaled, term if self.drawn else term * fixed_noise(term.shape)):
            raise ExportError("its latent is no mean plus noise times a standard deviation, each number for itself")
        if len(mean) != len(self.example):
            raise ExportError(f"it draws noise of the shape {list(mean.shape)}, not a row for each observation")
        for axis in range(1, mean.dim()):
            if mean.shape[axis] > 1 and _repeats(mean, axis) and _repeats(term, axis):
                raise ExportError(f"it draws several latents of each observation, along axis {axis} of its noise")
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
        ExportError: `forward` does not draw the noise of each latent once and add it to a mean, or its second half
            depends on more than the latents and the conditions; the message says which.
    """
    forward = _Forward(model, example, given)
    checked(forward.cut)
    return forward.functions("where it adds noise to the mean")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and distance(a, b) <= SAME


def _repeats(tensor: Tensor, axis: int) -> bool:
    """Whether a tensor holds the same along an axis, and is no constant."""
    return bool((tensor == tensor.narrow(axis, 0, 1)).all()) and not bool((tensor == tensor.flatten()[0]).all())
