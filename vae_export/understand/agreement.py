"""Hold encode and decode against the model's own `forward`: what it does between the two must not get lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .adapted import Adapted, run_module
from .draws import fixed_noise
from .edges import at_edge
from .functions import Forward, Functions, another
from .posterior import SAME, ForwardDiffers, distance, first_sample, joins, one_sample, sample_axes
from .reading import AS_CODES


def require_forward(functions: Functions, adapted: Adapted) -> bool:
    """Compare `forward` with the components, both with the same noise: what it decodes, and its reconstruction.

    Returns:
        Whether there was anything to compare.

    Raises:
        ForwardDiffers: the two differ, or `forward` draws and shows neither.
    """
    if type(functions.model).forward is torch.nn.Module.forward:
        return False
    forward = _compared(functions, adapted, training=False)
    # An example may hide what other observations show, such as zeros that are added.
    other = another(functions.example)
    examples = {**adapted.examples, adapted.signature.observation.name: at_edge(other)}
    _compared(replace(functions, example=other), replace(adapted, examples=examples), training=False)
    sampled = any(latent.posterior.kind == "normal" for latent in adapted.signature.latents)
    if forward is not None and sampled and not forward.normal:
        # Many models sample in training mode alone.
        _compared(functions, adapted, training=True)
    return forward is not None


def _compared(functions: Functions, adapted: Adapted, *, training: bool) -> Forward | None:
    """Compare one run of `forward`, and return it; None where there is nothing to compare."""
    # Not every model has a forward that takes the example, and none is needed. A failure of the components has a reason
    # of its own, which is looked for later, and so has an answer that is not finite or not stable.
    try:
        forward = functions.forward(in_first_sample(adapted), training=training)
    except Exception:
        return None
    if training and not forward.normal:
        if forward.other:
            raise ForwardDiffers(_reason(0, forward.other))
        return None
    if forward.dropout or (training and forward.other):
        return None
    try:
        expected = _reconstructed(adapted, float(forward.normal))
    except Exception:
        return None
    gaps = _gaps(forward, expected)
    if max(gaps, default=math.inf) > SAME:
        # Each run of a large model takes seconds, so that what follows is for models that seem to differ.
        again = _reconstructed(adapted, float(forward.normal))
        if not all(torch.isfinite(a).all() and torch.equal(a, b) for a, b in zip(expected[1], again[1], strict=True)):
            return None
        if forward.normal:
            # A model may subtract its noise, which is as good: the normal is symmetric.
            other = _gaps(forward, _reconstructed(adapted, -1.0))
            gaps = [min(pair) for pair in zip(gaps, other, strict=True)]
    for gap in gaps:
        if gap > SAME:
            raise ForwardDiffers(_reason(gap, forward.other))
    if not gaps:
        if not (forward.normal or forward.other):
            return None
        raise ForwardDiffers(
            "forward: returns no reconstruction, so that nothing shows what it does with the latents that it draws; "
            "pass encode= and decode=, functions that do the same"
        )
    return forward


def in_first_sample(adapted: Adapted) -> Callable[[int, tuple[int, ...]], Tensor]:
    """Return what gives each draw of `forward` its fixed noise.

    Where it draws several samples of a latent, the first one gets it alone; the others are 0, so that an average over
    samples is seen.
    """
    values = [adapted.examples[latent.name] for latent in adapted.signature.latents]

    def give(number: int, shape: tuple[int, ...]) -> Tensor:
        for value in values:
            for axes in sample_axes(shape, value.shape):
                noise = torch.zeros(shape)
                first_sample(noise, axes).copy_(fixed_noise(value.shape))
                return noise
        return fixed_noise(shape)

    return give


def _gaps(forward: Forward, expected: tuple[Sequence[Tensor], Sequence[Tensor]]) -> list[float]:
    """How far `forward` is from these latents in what it decodes, and from these answers; nothing of what it hides."""
    gaps = nearest(forward.decoded, expected[0]), nearest(forward.tensors, expected[1], reshaped=True)
    return [gap for gap in gaps if gap is not None]


def nearest(shown: Sequence[Tensor], expected: Sequence[Tensor], *, reshaped: bool = False) -> float | None:
    """Return the smallest distance of a tensor from an expected one; None if none has its shape.

    Args:
        shown: tensors of any shapes, such as several samples of an expected one.
        expected: the tensors that are looked for.
        reshaped: whether a shape that has several of the axes as one, or the reverse, will do.
    """
    pairs = [
        (a.float(), b)
        for whole in shown
        for b in expected
        for a in (whole, *one_sample(whole, b.shape))
        if a.shape == b.shape
    ]
    if reshaped:
        rows = [(a, b) for a in shown for b in expected if a.dim() and len(a) == len(b) and a.shape != b.shape]
        pairs += [(a.float().reshape(b.shape), b) for a, b in rows if joins(a.shape[1:], b.shape[1:])]
    return min((distance(a, b) for a, b in pairs), default=None)


def _reason(gap: float, other: Sequence[str]) -> str:
    if other:
        return (
            f"forward: draws latents with {other[0]}, which are not normal, and a bundle would decode what encode "
            f"returns as it is; {AS_CODES}"
        )
    return (
        f"forward: its reconstruction differs from decode(encode(x)), with the same noise, by {gap:.1e} of the largest "
        "value: it changes the latents or the answer in between; pass encode= and decode=, functions that do the same"
    )


def _reconstructed(adapted: Adapted, sign: float) -> tuple[list[Tensor], list[Tensor]]:
    """The latents of the example and the decoder's outputs for them, with fixed noise times this sign."""
    signature = adapted.signature
    examples = dict(adapted.examples)
    names = [latent.posterior.noise for latent in signature.latents]
    names += [latent.name for latent in signature.latents if not latent.posterior.outputs]
    for name in names:
        if name is not None:
            examples[name] = fixed_noise(examples[name].shape) * abs(sign)
    encoded = run_module(adapted.modules["encoder"], adapted.given("encoder", examples))
    outputs = dict(zip(adapted.outputs("encoder"), encoded, strict=True))
    latents = []
    for latent in signature.latents:
        posterior = latent.posterior
        if posterior.kind == "normal":
            mean, std = outputs[str(posterior.mu)], outputs[str(posterior.std)]
            examples[latent.name] = mean + std * fixed_noise(mean.shape) * sign
        elif posterior.value:
            examples[latent.name] = outputs[posterior.value]
        latents.append(examples[latent.name])
    answers = run_module(adapted.modules["decoder"], adapted.given("decoder", examples))
    return latents, adapted.forms(answers)
