"""Find the shape in which a model takes and gives observations, where it is not that of the example.

Many a `forward` flattens pictures before it encodes them, and its decode gives them flat.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .draws import Draws
from .functions import Functions, another, conditions_taken, tensors_in, watching


def encoding_reshaped(functions: Functions) -> Functions | None:
    """Return the functions with an encode that takes observations in the shape in which `forward` passes them to it.

    None where `forward` passes encode anything else than the observation itself in another shape, row by row.

    Args:
        functions: of which encode fails on the example.
    """
    shapes = set()
    # An example may hide what other observations show, such as another order of equal values, or a bound.
    others = [another(functions.example)]
    if functions.example.is_floating_point():
        others += [255 * others[0], -others[0]]
    for x in (functions.example, *others):
        passed = _passed_to_encode(functions, x)
        if passed is None or not _is_reshaped(passed, x):
            return None
        shapes.add(tuple(passed.shape[1:]))
    if len(shapes) > 1:
        return None
    (shape,), own = shapes, functions.encode

    def encode(x: Tensor, **conditions: Any) -> Any:
        return own(x.reshape(x.shape[0], *shape), **conditions)

    # The model's own encode is what its forward calls.
    functools.update_wrapper(encode, own, updated=())
    line = f"encode: takes each observation in the shape {list(shape)}, as forward passes it"
    return replace(functions, encode=encode, recognised=(*functions.recognised, line))


def shows_shape(functions: Functions, shape: Sequence[int]) -> bool:
    """Whether the model itself puts observations into this shape: in `forward`, or in encode, and in the same order.

    A model that has observations in another order anywhere, or returns as many numbers in a third shape, shows no order
    of its answers.
    """
    x = another(functions.example)
    seen = _Reshaped(x, shape)
    known = {tuple(size for size in each if size != 1) for each in (shape, x.shape[1:])}
    taken = conditions_taken(functions.model, functions.conditions)
    runs: tuple[tuple[Callable[..., Any], Mapping[str, Tensor]], ...] = (
        (functions.model, taken),
        (functions.encode, functions.encode_conditions),
    )
    for run, conditions in runs:
        with contextlib.suppress(Exception), torch.no_grad(), Draws.constant(0.0), seen:
            for tensor in tensors_in(run(x.clone(), **conditions)):
                third = tuple(size for size in tensor.shape[1:] if size != 1) not in known
                seen.other = seen.other or (third and tensor.numel() == x.numel() and len(tensor) == len(x))
        if seen.found or seen.other:
            return not seen.other
    return False


def shape_advice(functions: Functions) -> str:
    """Return advice on an example that encode fails on, if another shape of it works; else an empty text."""
    example = functions.example
    passed = _passed_to_encode(functions, example)
    if passed is not None and passed.shape != example.shape:
        return f"; forward passes {list(passed.shape)} to encode; give the example in that shape"
    # The second row of an example with one row is a copy of the first.
    for one in (example[None], example[:1][None]):
        with contextlib.suppress(Exception), Draws.constant(0.0):
            functions.encode(one.clone(), **functions.encode_conditions)
            return "; it takes the same with one more axis; give observations [n, …], such as example[None] for one"
    flat = example.flatten(1)
    with contextlib.suppress(Exception), Draws.constant(0.0):
        functions.encode(flat.clone(), **functions.encode_conditions)
        return f"; it takes the same flattened; give the example in that shape, {list(flat.shape)}"
    return ""


def _passed_to_encode(functions: Functions, x: Tensor) -> Tensor | None:
    """What `forward` first passes to the model's own encode; None if it passes nothing."""
    seen: list[Tensor] = []
    taken = conditions_taken(functions.model, functions.conditions)
    with (
        watching(functions.model, functions.encode, seen.append),
        contextlib.suppress(Exception),
        torch.no_grad(),
        Draws.constant(0.0),
    ):
        functions.model(x.clone(), **taken)
    return seen[0] if seen else None


def _is_reshaped(tensor: Tensor, x: Tensor) -> bool:
    """Whether a tensor holds observations in another shape, row by row and in the same order."""
    alike = tensor.shape[:1] == x.shape[:1] and tensor.numel() == x.numel() and tensor.shape != x.shape
    return alike and torch.equal(tensor, x.reshape(tensor.shape))


class _Reshaped(TorchFunctionMode):
    """Find observations in a shape among what is computed."""

    def __init__(self, x: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.x, self.shape = x, (len(x), *shape)
        self.found = False
        self.other = False
        """Whether observations were seen in another order."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape[:1] == self.x.shape[:1] and result.numel() == self.x.numel():
            self.found = self.found or (tuple(result.shape) == self.shape and _is_reshaped(result, self.x))
            rows = result.flatten(1).to(self.x.dtype), self.x.flatten(1)
            moved = not torch.equal(*rows) and torch.equal(*(each.sort(1).values for each in rows))
            self.other = self.other or moved
        return result
