"""Training mode and evaluation mode of a module of the user's: whether it means the same in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ExportError, TrainingError
from ..understand.draws import Draws
from ..understand.functions import sampling
from ..understand.state import restored

# Layers that differ in training mode as they should, in classes of the user's, too.
_LAYERS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
# How far the answers of the two modes may be apart, relative to one.
_SAME = 1e-3


def require_same_in_training(module: nn.Module, functions: Mapping[str, Callable[[], Sequence[Tensor]]]) -> None:
    """Refuse functions that answer otherwise in training mode: another meaning would be trained than is exported.

    PyTorch's own layers stay in evaluation mode, dropout gives what it takes, and normal noise is 0. A function that
    draws otherwise in training mode or changes a buffer, as running statistics do, is taken as it is.

    Args:
        module: in evaluation mode.
        functions: encode and decode by name, without arguments.

    Raises:
        ExportError: one fails in training mode, or gives other values.
    """
    for name, run in functions.items():
        expected = run()
        # Integers count steps, and floats may be running statistics.
        statistics = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        before = [buffer.clone() for buffer in statistics]
        advice = f"let it answer alike in both modes, or pass {name}=, the name of a method that does"
        with restored(module), sampling(module, True), Draws.constant(0.0) as draws:
            draws.drops = False
            for layer in (each for each in module.modules() if isinstance(each, _LAYERS)):
                layer.training = False
            try:
                answers = run()
            except TrainingError as error:
                raise ExportError(f"{str(error).partition('; correct')[0]}; {advice}") from error
            kept = all(map(torch.equal, before, statistics))
        if draws.other or not kept:
            continue
        for one, other in zip(expected, answers, strict=True):
            if not torch.allclose(one, other, rtol=_SAME, atol=_SAME):
                raise ExportError(
                    f"{name}: expected the values of evaluation mode in training mode, got others, up to "
                    f"{float((one - other).abs().max()):.2g} apart; {advice}"
                )
