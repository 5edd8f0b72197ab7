"""Training mode and evaluation mode of a module of the user's: whether it means the same in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import ExportError, TrainingError
from ..understand.draws import Draws
from ..understand.state import modes_kept

# How far the answers of the two modes may be apart, relative to one.
_SAME = 1e-3


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Restore modes and buffers at the end of the block."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with modes_kept(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def require_same_in_training(module: nn.Module, functions: Mapping[str, Callable[[], Sequence[Tensor]]]) -> None:
    """Refuse functions that answer otherwise in training mode: another meaning would be trained than is exported.

    PyTorch's own layers stay in evaluation mode. A function that draws in training mode or changes a buffer, as dropout
    and running statistics do, is taken as it is.

    Args:
        module: in evaluation mode.
        functions: encode and decode by name, without arguments.

    Raises:
        ExportError: one fails in training mode, or gives other values.
    """
    for name, run in functions.items():
        expected = run()
        before = [buffer.clone() for buffer in module.buffers()]
        advice = f"let it answer alike in both modes, or pass {name}=, the name of a method that does"
        with restored(module), Draws.constant(0.0) as draws:
            for each in module.modules():
                each.training = not type(each).__module__.startswith("torch.")
            try:
                answers = run()
            except TrainingError as error:
                raise ExportError(f"{str(error).partition('; correct')[0]}; {advice}") from error
            kept = all(map(torch.equal, before, module.buffers()))
        if draws.normal or draws.other or not kept:
            continue
        for one, other in zip(expected, answers, strict=True):
            if not torch.allclose(one, other, rtol=_SAME, atol=_SAME):
                raise ExportError(
                    f"{name}: expected the values of evaluation mode in training mode, got others, up to "
                    f"{float((one - other).abs().max()):.2g} apart; {advice}"
                )
