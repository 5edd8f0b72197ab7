"""Check what a model must do in PyTorch before its export; docs/bring-your-own.md lists the refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vae_runtime.errors import error_line

from ..errors import ExportError
from .adapted import Adapted, resized, run_module
from .axis_sizes import Shapes, with_dynamic_axes
from .likelihood import mean_range
from .state import in_float64

# How far two computations of the same row may be apart, as a share of the largest magnitude: other batch sizes take
# other kernels, whose roundings differ.
_SAME = 1e-4
# The share of whole numbers that may differ: where a value lies at the border of two, rounding decides.
_FLIPPED = 1e-3
_ROWS = 4
TRAINED = "check that the model is trained"
"""The advice on an output that does not depend on an input."""


def probe(adapted: Adapted, dynamic: Sequence[str] = (), *, trained: bool = True) -> Adapted:
    """Check the pure functions in eager PyTorch, and find which sizes of the dynamic axes they take.

    Args:
        adapted: the functions, of a model in evaluation mode.
        dynamic: the names of the axes that may have other sizes.
        trained: whether the weights show which conditions a component reads: those of an embedding may begin at 0.

    Returns:
        The same, with the dynamic axes' sizes in its signature, and without the conditions that a trained component
        ignores.

    Raises:
        ExportError: an answer is not finite, differs from itself, depends on the other rows of the batch, on the batch
            size, or not at all on an input; or a dynamic axis takes no other size.
    """
    for component, module in adapted.modules.items():
        _batch_norm(component, module)
        given = adapted.given(component)
        outputs = run_module(module, given)
        names = adapted.outputs(component)
        _finite(component, names, outputs)
        _in_range(adapted, component, names, outputs)
        _stable(component, names, outputs, run_module(module, given, again=True))
        _rows(adapted, component, given, outputs)
        adapted = _inputs(adapted, component, outputs, trained)
    left = [condition.name for condition in adapted.signature.conditions if not condition.components]
    if left:
        raise ExportError(
            f"condition {left[0]!r}: encode and decode do not depend on it; leave it out, or check that "
            "the model uses it"
        )
    if not dynamic:
        return adapted
    signature = with_dynamic_axes(adapted.signature, dynamic, partial(_round_trip, adapted, {}))
    return dataclasses.replace(adapted, signature=signature)


def _batch_norm(component: str, module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            where = f"{component}: {name.removeprefix('model.')}"
            if layer.training:
                raise ExportError(
                    f"{where}: batch normalization stays in training mode, so that rows of a batch influence each "
                    "other; let eval() reach it"
                )
            if layer.running_mean is None:
                raise ExportError(
                    f"{where}: batch normalization without running statistics normalizes by the batch at hand, so "
                    "that rows of a batch influence each other; build it with track_running_stats=True"
                )


def _finite(component: str, names: Sequence[str], outputs: Sequence[Tensor]) -> None:
    for name, output in zip(names, outputs, strict=True):
        if name.startswith("std") and bool((output < 0).any()):
            raise ExportError(
                f"{component}: {name}{_first(output < 0)}: expected a standard deviation of at least 0, got "
                f"{float(output.min()):g}; pass another posterior="
            )
    for name, output in zip(names, outputs, strict=True):
        wrong = ~torch.isfinite(output)
        if wrong.any():
            advice = "; another posterior= may help" if name.startswith(("logvar", "std")) else ""
            raise ExportError(
                f"{component}: {name}{_first(wrong)}: expected finite numbers, got {float(output[wrong][0])}; "
                f"check the weights and the example{advice}"
            )


def _first(wrong: Tensor) -> list[int]:
    """The first index of what is wrong."""
    return [int(i) for i in wrong.nonzero()[0]]


def _in_range(adapted: Adapted, component: str, names: Sequence[str], outputs: Sequence[Tensor]) -> None:
    bounds = adapted.signature.observation.range
    if component == "encoder":
        x = adapted.examples[adapted.signature.observation.name]
        if bounds and not bool(((x >= bounds[0]) & (x <= bounds[1])).all()):
            raise ExportError(
                f"example: expected values from {bounds[0]:g} to {bounds[1]:g}, the range of the observations, got "
                f"{float(x.min()):g} … {float(x.max()):g}; scale the example as in training, or pass another range="
            )
        return
    # Answers to integers are numbers of another kind, such as a logit for each.
    whole = adapted.signature.observation.dtype == "int64"
    bounds = mean_range(adapted.signature.likelihood.kind, None if whole else bounds)
    mean = outputs[0]
    if bounds and (float(mean.min()) < bounds[0] or float(mean.max()) > bounds[1]):
        raise ExportError(
            f"decoder: {names[0]}: expected values from {bounds[0]:g} to {bounds[1]:g}, got "
            f'{float(mean.min()):g} … {float(mean.max()):g}; if these are logits, pass likelihood="bernoulli", '
            "else another range="
        )


def _stable(component: str, names: Sequence[str], first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    for name, a, b in zip(names, first, second, strict=True):
        if not torch.equal(a, b) and _far(a, b):
            raise ExportError(
                f"{component}: {name}: two runs on the same input differ by {_gap(a, b):.1e}; remove what is "
                "random, such as a dropout that is always on or numpy's generator"
            )


def _rows(adapted: Adapted, component: str, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    module, names = adapted.modules[component], adapted.outputs(component)
    n = len(given[0])
    for output, name in zip(outputs, names, strict=True):
        if len(output) != n:
            raise ExportError(f"{component}: {name}: expected a row for each of {n}, got {list(output.shape)}")
    for row in range(min(n, _ROWS)):
        try:
            alone = run_module(module, [tensor[row : row + 1] for tensor in given])
        except Exception as error:
            raise ExportError(
                f"{component}: works on a batch of {n} and fails on a batch of 1: {error_line(error)}; the batch size "
                "is baked in, write -1 or x.shape[0] where it stands"
            ) from error
        for name, whole, single in zip(names, outputs, alone, strict=True):
            if single.shape[1:] != whole.shape[1:] or len(single) != 1:
                raise ExportError(
                    f"{component}: {name}: expected shape {[1, *whole.shape[1:]]} for a batch of 1, got "
                    f"{list(single.shape)}; the batch size is baked in, write -1 or x.shape[0] where it stands"
                )
            if _far(whole[row : row + 1], single) and not _alike_in_float64(module, given, row):
                raise ExportError(
                    f"{component}: {name}: row {row} differs by {_gap(whole[row : row + 1], single):.1e} when run "
                    "alone: rows of a batch influence each other (normalization by the batch, a mean over axis 0); "
                    "make each row's result its own"
                )


def _alike_in_float64(module: nn.Module, given: Sequence[Tensor], row: int) -> bool:
    """Whether a row has the same answers alone and in its batch in float64: a deep model may round as much as this."""
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in given]
    try:
        with in_float64([*module.parameters(), *module.buffers()]):
            whole = run_module(module, wide, again=True)
            alone = run_module(module, [tensor[row : row + 1] for tensor in wide], again=True)
    except RuntimeError:
        # Some models insist on float32.
        return False
    floats = all(output.dtype == torch.float64 for output in whole)
    return floats and not any(_far(a[row : row + 1], b) for a, b in zip(whole, alone, strict=True))


def _inputs(adapted: Adapted, component: str, outputs: Sequence[Tensor], trained: bool) -> Adapted:
    """Require that the outputs depend on every input; a condition that one component ignores is taken from it.

    One that is not trained keeps its conditions.
    """
    signature, module = adapted.signature, adapted.modules[component]
    inputs = signature.inputs(component)
    if len(inputs) == 1 and any(_far(output[:1], output[-1:]) for output in outputs):
        # Rows do not influence each other, so that two answers are those to two values of the only input.
        return adapted
    for number, tensor in enumerate(inputs):
        condition = next((c for c in signature.conditions if c.name == tensor.name), None)
        if condition and not trained:
            continue
        given = list(adapted.given(component))
        given[number] = _moved(given[number])
        try:
            moved = run_module(module, given)
        except Exception as error:
            raise ExportError(f"{component}: fails on other values of {tensor.name}: {error_line(error)}") from error
        if any(not torch.equal(a, b) for a, b in zip(outputs, moved, strict=True)):
            continue
        if condition is None:
            raise ExportError(
                f"{component}: no output depends on {tensor.name}; {TRAINED}, and "
                f"that {'encode' if component == 'encoder' else 'decode'}= is the right function"
            )
        left = tuple(c for c in condition.components if c != component)
        conditions = tuple(
            dataclasses.replace(c, components=left) if c is condition else c for c in signature.conditions
        )
        return _inputs(
            dataclasses.replace(
                adapted,
                signature=dataclasses.replace(signature, conditions=conditions),
                modules={
                    **adapted.modules,
                    component: _Without(module, number, tensor.name, adapted.examples[tensor.name][:1]),
                },
            ),
            component,
            outputs,
            trained,
        )
    return adapted


class _Without(nn.Module):
    """A component without an input that its outputs do not depend on."""

    def __init__(self, module: nn.Module, number: int, name: str, value: Tensor) -> None:
        super().__init__()
        self.module = module
        self._number = number
        self.unused: Tensor
        # Not the example's own: nothing depends on it, and the user's data are theirs.
        self.register_buffer("unused", torch.zeros_like(value), persistent=False)
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        unused = self.unused.expand(len(tensors[0]), *self.unused.shape[1:])
        result: tuple[Tensor, ...] = self.module(*tensors[: self._number], unused, *tensors[self._number :])
        return result


def _moved(tensor: Tensor) -> Tensor:
    """Other values of the same kind: the rows in another order, or, where they are all alike, moved on."""
    rolled = tensor.roll(1, 0)
    if not torch.equal(rolled, tensor):
        return rolled
    if tensor.is_floating_point():
        return tensor * 0.5 + 0.25
    return torch.where(tensor > 0, tensor - 1, tensor + 1)


def _round_trip(adapted: Adapted, decoded: dict[Any, Sequence[tuple[int, ...]]], sizes: Mapping[str, int]) -> Shapes:
    """The shapes of the latents and of the decoder's outputs for an observation of other sizes.

    `decoded` keeps the outputs' shapes by those of the latents: many sizes are rounded to the same latents.
    """
    signature = adapted.signature
    observation = signature.observation
    axes = {observation.axes.index(name) + 1: size for name, size in sizes.items()}
    # One row shows the shapes, and large models take seconds for a row.
    examples = {name: tensor[:1] for name, tensor in adapted.examples.items()}
    examples[observation.name] = resized(examples[observation.name], axes)
    encoded = run_module(adapted.modules["encoder"], adapted.given("encoder", examples))
    by_name = dict(zip(adapted.outputs("encoder"), encoded, strict=True))
    for latent in signature.latents:
        if latent.posterior.outputs:
            examples[latent.name] = by_name[latent.posterior.outputs[0]]
    shapes = {
        latent.name: tuple(examples[latent.name].shape[1:]) for latent in signature.latents if latent.posterior.outputs
    }
    key = tuple(shapes.values())
    if key not in decoded:
        outputs = run_module(adapted.modules["decoder"], adapted.given("decoder", examples))
        decoded[key] = [tuple(output.shape[1:]) for output in outputs]
    return shapes, decoded[key]


def _far(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return True
    if all(torch.equal(each, each.round()) for each in (a, b)):
        return float((a != b).double().mean()) > _FLIPPED
    return _gap(a, b) > _SAME * max(1.0, float(b.abs().max()))


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())
