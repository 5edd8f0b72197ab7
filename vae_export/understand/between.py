"""Hold what `forward` does between encode and decode against posteriors that the example does not give.

A model may bound its log variances, its standard deviations or its means where it samples. An example whose posteriors
lie within the bounds does not show them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .adapted import Adapted
from .agreement import in_first_sample, nearest
from .draws import Draws, fixed_noise
from .encoder import reading_of
from .functions import Functions, conditions_taken, own_function, sampling
from .posterior import SAME, ForwardDiffers
from .reading import EncoderReading, Part, second_to
from .state import replaced

# The log variances and the size of the means that stand for wide and for narrow posteriors.
_WIDE, _NARROW = (-3.0, 12.0, 8.0), (-25.0, -3.0, 0.02)


def require_between(functions: Functions, adapted: Adapted) -> None:
    """Require that `forward` decodes mean + std · noise of wide and of narrow posteriors, too.

    Nothing is required where `forward` calls no encode or no decode of the model's own, or draws something else.

    Raises:
        ForwardDiffers: it decodes something else.
    """
    reading = reading_of(adapted.modules["encoder"])
    latents = adapted.signature.latents
    sampled = all(latent.posterior.kind == "normal" and not latent.posterior.noise for latent in latents)
    if not sampled or type(functions.model).forward is nn.Module.forward or not _is_own(functions):
        return
    for low, high, size in (_WIDE, _NARROW):
        with contextlib.suppress(RuntimeError, TypeError, ValueError):
            gap = _gap(functions, adapted, reading, low, high, size)
            if gap is None:
                return
            if gap > SAME:
                raise ForwardDiffers(
                    "forward: for posteriors other than those of the example, it decodes something else than mean + "
                    f"std · noise (difference: {gap:.1e} of the largest value), as a model does that bounds logvar, "
                    "std or the mean in between; pass encode=, a function that does so too"
                )


def _gap(
    functions: Functions, adapted: Adapted, reading: EncoderReading, low: float, high: float, size: float
) -> float | None:
    """How far what `forward` decodes is from mean + std · noise of such posteriors; None if nothing shows it."""
    expected: list[tuple[Tensor, Tensor]] = []

    def change(output: Any) -> None:
        parts = reading.read(output)
        if not expected and _may_be_written(functions.model, parts):
            for number, (part, meaning) in enumerate(zip(parts, reading.meanings, strict=True)):
                expected.append(_replace(part, str(meaning), low, high, size, seed=number))

    taken = conditions_taken(functions.model, functions.conditions)
    for training in (False, True):
        if functions.draws_nothing(training):
            continue
        draws, decoded = Draws(in_first_sample(adapted)), list[Tensor]()
        with (
            torch.no_grad(),
            sampling(functions.model, training),
            _changing(functions, change),
            functions.watching(decoded.append),
            draws,
        ):
            functions.model(functions.example.clone(), **taken)
        if draws.other or not expected:
            return None
        if draws.normal:
            return _nearest(decoded, expected)
        expected.clear()
    return None


def _nearest(decoded: Sequence[Tensor], expected: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """How far the nearest of the decoded tensors is from mean ± std · noise."""
    return min(
        (
            gap
            for sign in (1.0, -1.0)
            if (gap := nearest(decoded, [m + sign * s * fixed_noise(m.shape) for m, s in expected])) is not None
        ),
        default=None,
    )


def _is_own(functions: Functions) -> bool:
    """Whether encode is the model's own, a method or a submodule."""
    encode = own_function(functions.encode)
    return isinstance(encode, nn.Module) or getattr(encode, "__self__", None) is functions.model


@contextlib.contextmanager
def _changing(functions: Functions, change: Callable[[Any], None]) -> Iterator[None]:
    """Pass every answer of the model's own encode to a function, which changes its tensors in place."""
    encode, model = own_function(functions.encode), functions.model
    if isinstance(encode, nn.Module):
        hook = encode.register_forward_hook(lambda module, given, output: change(output))
        try:
            yield
        finally:
            hook.remove()
        return
    name = getattr(encode, "__name__", "")

    def changed(*given: Any, **named: Any) -> Any:
        output = encode(*given, **named)
        change(output)
        return output

    with replaced(model, name, changed):
        yield


def _may_be_written(model: nn.Module, parts: Sequence[Part]) -> bool:
    """Whether the tensors of an answer are its own: a model may return a weight as its standard deviation."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    tensors = [tensor for part in parts for tensor in (part.value, part.second) if tensor is not None]
    dense = all(0 not in tensor.stride() or tensor.numel() <= 1 for tensor in tensors)
    apart = len({(tensor.data_ptr(), tensor.shape) for tensor in tensors}) == len(tensors)
    return dense and apart and not any(tensor.untyped_storage().data_ptr() in weights for tensor in tensors)


def _replace(part: Part, meaning: str, low: float, high: float, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """Write another posterior into an encoder's answer, and return its mean and standard deviation."""
    assert part.second is not None
    # By NumPy, since the model's own draws are being counted.
    generator, shape = np.random.default_rng(seed), part.value.shape
    logvar = torch.as_tensor(generator.permutation(np.linspace(low, high, part.value.numel())).reshape(shape)).float()
    part.value.copy_(torch.as_tensor(size * generator.standard_normal(shape)))
    part.second.copy_(_second_of(meaning, logvar))
    return part.value.float().clone(), second_to(meaning, part.second.float().clone())[1]


def _second_of(meaning: str, logvar: Tensor) -> Tensor:
    """The second tensor of this meaning for a log variance."""
    std = torch.exp(0.5 * logvar)
    if meaning == "softplus":
        # The inverse of softplus, without a loss of digits for large and for small values.
        return std + torch.log(-torch.expm1(-std))
    return {"logvar": logvar, "log_std": 0.5 * logvar, "var": torch.exp(logvar), "std": std}[meaning]
