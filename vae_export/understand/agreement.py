"""Hold encode and decode against the model's own `forward`: what it does between the two must not get lost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adapted import Adapted, run_module
from .functions import Forward, Functions
from .posterior import SAME, ForwardDiffers, distance
from .reading import AS_CODES

# What every draw is set to: two numbers, since a function of the noise may leave one of them as it is.
_NOISES = (1.0, -0.6)


def require_forward(functions: Functions, adapted: Adapted) -> None:
    """Compare `forward`, with every normal draw set to the same number, with the reconstruction by both components.

    Where `forward` fails, or returns nothing of the shape of the decoder's answer, there is nothing to compare.

    Raises:
        ForwardDiffers: the two differ.
    """
    if type(functions.model).forward is torch.nn.Module.forward:
        return
    sampled = any(latent.posterior.kind == "normal" for latent in adapted.signature.latents)
    normal = False
    for noise in _NOISES if sampled else (0.0,):
        forward = _compared(functions, adapted, noise, training=False)
        if forward is None:
            return
        normal |= forward.normal
    # Many models sample in training mode alone.
    for noise in _NOISES if sampled and not normal else ():
        if _compared(functions, adapted, noise, training=True) is None:
            return


def _compared(functions: Functions, adapted: Adapted, noise: float, *, training: bool) -> Forward | None:
    """Compare one run of `forward`, and return it; None where there is nothing to compare."""
    try:
        forward = functions.forward(noise, training=training)
        drawn = noise if forward.normal else 0.0
        expected, again = _reconstructed(adapted, drawn), _reconstructed(adapted, drawn)
        # A model may subtract its noise, which is as good: the normal is symmetric.
        either = [*expected, *_reconstructed(adapted, -drawn)]
    except Exception:
        # Not every model has a forward that takes the example, and none is needed. A failure of the components has a
        # reason of its own, which is looked for later, and so has an answer that is not finite or not stable.
        return None
    if forward.dropout or (training and not forward.normal):
        return None
    if not all(torch.isfinite(a).all() and torch.equal(a, b) for a, b in zip(expected, again, strict=True)):
        return None
    comparable = [(tensor.float(), own) for own in either for tensor in forward.tensors if tensor.shape == own.shape]
    if not comparable:
        return None
    gap = min(distance(tensor, own) for tensor, own in comparable)
    if gap > SAME:
        raise ForwardDiffers(_reason(gap, forward.other))
    return forward


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


def _reconstructed(adapted: Adapted, noise: float) -> list[Tensor]:
    """The decoder's outputs for the example, with every noise set to this number."""
    signature = adapted.signature
    examples = dict(adapted.examples)
    names = [latent.posterior.noise for latent in signature.latents]
    names += [latent.name for latent in signature.latents if not latent.posterior.outputs]
    for name in names:
        if name is not None:
            examples[name] = torch.full_like(examples[name], noise)
    encoded = run_module(adapted.modules["encoder"], adapted.given("encoder", examples))
    outputs = dict(zip(adapted.outputs("encoder"), encoded, strict=True))
    for latent in signature.latents:
        posterior = latent.posterior
        if posterior.kind == "normal":
            examples[latent.name] = outputs[str(posterior.mu)] + outputs[str(posterior.std)] * noise
        elif posterior.value:
            examples[latent.name] = outputs[posterior.value]
    return run_module(adapted.modules["decoder"], adapted.given("decoder", examples))
