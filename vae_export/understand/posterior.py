"""Find the meaning of an encoder's second tensor: declared, named, or found by comparing `forward` with decode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vae_runtime.errors import error_line

from ..errors import ExportError
from .declaration import SECOND, Declaration
from .draws import Draws
from .edges import as_float32
from .functions import Functions
from .reading import AS_CODES, Part, mean_of, second_to


class ForwardDiffers(ExportError):
    """`forward` does something else than decode the latents that encode gives."""


# How far two computations of the same numbers in float32 may be apart, as a share of the largest of them.
SAME = 1e-4
# How far apart roundings alone put the same computation.
_ROUNDING = 3e-6


def second_tensors(
    functions: Functions, parts: Sequence[Part], declaration: Declaration, *, halved: bool
) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """Find the meaning of each latent's second tensor.

    Args:
        functions: encode and decode.
        parts: the latents that encode returns with every draw set to 1.
        declaration: the known facts.
        halved: whether mean and second tensor are guessed to be the halves of one tensor.

    Returns:
        For each latent one of `SECOND`, or None where there is no second tensor; and lines that say how it was
        recognised.

    Raises:
        ExportError: the meaning is unknown, or `forward` shows another one than is declared or named.
    """
    meanings = [part.meaning for part in parts]
    distributions = any(part.distribution for part in parts)
    if declaration.posterior in SECOND:
        if distributions and declaration.posterior != "std":
            raise ExportError(
                f"posterior: encode returns a Normal, which already says it; leave "
                f"posterior={declaration.posterior!r} out"
            )
        # A declaration overrides the names of an encoder's tensors, which may mislead.
        meanings = [declaration.posterior if part.kind == "normal" else None for part in parts]
    if any(meanings) and not distributions:
        _refuse_contradiction(functions, parts, next(meaning for meaning in meanings if meaning), halved)
    unknown = [j for j, part in enumerate(parts) if part.kind == "normal" and meanings[j] is None]
    if not unknown:
        return tuple(meanings), ()
    if declaration.posterior is not None:
        raise ExportError(
            f"posterior: expected one of {', '.join(SECOND)}, since encode returns a second tensor; got "
            f"{declaration.posterior!r}"
        )
    meaning, line = _found(functions, parts, unknown)
    return tuple(meaning if j in unknown else known for j, known in enumerate(meanings)), (line,)


def refuse_hidden_posterior(functions: Functions) -> None:
    """Refuse an encoder that returns one tensor where `forward` samples: its posterior would be lost silently.

    Raises:
        ForwardDiffers: the encoder hides a posterior, or `forward` draws from another one in training mode.
    """
    try:
        forward = functions.forward()
    except Exception:
        # Not every model has a forward, and none is needed.
        return
    if not forward.normal and forward.other and not functions.forward(training=False).other:
        raise ForwardDiffers(
            f"forward: draws with {forward.other[0]} in training mode; if these are latents, {AS_CODES}; if not, such "
            'as a mask of the observation, pass posterior="none"'
        )
    if forward.normal:
        raise ForwardDiffers(
            "encode: returns one tensor, while forward draws normal noise; return the posterior's parameters too, "
            'such as (mu, logvar), or pass posterior="none" if there is no posterior'
        )


def _found(functions: Functions, parts: Sequence[Part], unknown: Sequence[int]) -> tuple[str, str]:
    """The meaning of the unknown second tensors that `forward` shows, and the line that says how."""
    settle = f"pass posterior=, one of {', '.join(SECOND)}, if encode returns the mean first"
    errors = _errors(functions, parts, unknown, settle)
    best, next_best, *_ = ranked = sorted(errors, key=lambda meaning: errors[meaning])
    if errors[best] > SAME:
        _refuse_swapped(functions, parts)
    if errors[best] > SAME or errors[next_best] < 10 * max(errors[best], _ROUNDING):
        shown = ", ".join(f"{meaning} {errors[meaning]:.1e}" for meaning in ranked[:3])
        if errors[best] > SAME:
            raise ForwardDiffers(
                "forward: with every normal draw set to 1, it gives decode(mu + std) for no meaning of encode's second "
                f"tensor (difference: {shown}): it changes the latents or the noise in between; pass encode= and "
                "decode=, functions that do the same"
            )
        raise ExportError(
            "posterior: forward does not show what encode's second tensor is (difference from forward with every "
            f"draw set to 1: {shown}); {settle}"
        )
    return best, (
        f"posterior: the second tensor is the {best}, since forward with every normal draw set to 1 gives "
        f"decode(mu + std) within {errors[best]:.0e} (next best: {next_best}, {errors[next_best]:.0e})"
    )


def _refuse_swapped(functions: Functions, parts: Sequence[Part]) -> None:
    """Refuse pairs where `forward` shows that the mean is second."""
    swapped = []
    for part in parts:
        if part.second is None or part.second.shape != part.value.shape:
            return
        swapped.append(replace(part, value=part.second, second=part.value))
    try:
        errors = _errors(functions, swapped, range(len(parts)), "")
    except ExportError:
        return
    best = min(errors, key=lambda meaning: errors[meaning])
    if errors[best] <= SAME:
        raise ExportError(
            f"encode: expected the mean first; forward shows that it returns the {best} first and the mean second; "
            f"pass encode=, a function that returns (mu, {best})"
        )


def _refuse_contradiction(functions: Functions, parts: Sequence[Part], meaning: str, halved: bool) -> None:
    """Refuse a declared or named meaning where `forward` shows another, and guessed halves where it shows none."""
    try:
        errors = _errors(functions, parts, [j for j, part in enumerate(parts) if part.kind == "normal"], "")
    except ExportError:
        # Where forward shows nothing, the declaration stands.
        return
    best = min(errors, key=lambda meaning: errors[meaning])
    if errors[meaning] <= SAME:
        return
    if errors[best] <= SAME:
        raise ExportError(
            f"posterior: declared or named {meaning}, but forward with every normal draw set to 1 gives "
            f"decode(mu + std) for {best} (difference {errors[best]:.0e}; {meaning}: {errors[meaning]:.0e}); pass "
            f"posterior={best!r}"
        )
    _refuse_swapped(functions, parts)
    if halved:
        raise ForwardDiffers(
            "encode: the two halves of the encoder's tensor are not the posterior that forward samples from; pass "
            "encode=, a function that returns (mu, logvar), such as "
            "lambda x: (m.fc_mu(m.encoder(x)), m.fc_logvar(m.encoder(x)))"
        )


def _errors(functions: Functions, parts: Sequence[Part], unknown: Sequence[int], settle: str) -> dict[str, float]:
    """The distance of `forward`, with every draw set to 1, from decode(mean + std) for each possible meaning."""
    if type(functions.model).forward is torch.nn.Module.forward:
        raise ExportError(f"posterior: cannot find out what encode's second tensor is, there is no forward; {settle}")
    try:
        forward = functions.forward()
    except Exception as error:
        raise ExportError(f"posterior: forward fails on the example: {error_line(error)}; {settle}") from error
    if not forward.normal and forward.other:
        raise ForwardDiffers(f"forward: draws latents with {forward.other[0]}, which are not normal; {AS_CODES}")
    if not forward.normal:
        raise ExportError(
            f"posterior: cannot find out what encode's second tensor is, forward draws no normal noise; {settle}"
        )
    errors = {}
    for meaning in SECOND:
        latents = []
        for j, part in enumerate(parts):
            assert part.second is not None
            own = meaning if j in unknown else part.meaning
            latents.append(part.value + second_to(str(own), part.second)[1])
        try:
            expected = mean_of(functions.decoded(latents, Draws.constant(1.0)))
        except Exception as error:
            # Where forward decodes, its halves may serve.
            raise ForwardDiffers(
                f"decode: fails on a latent of shape {list(latents[0].shape)}: {error_line(error)}; pass decode=, a "
                "function of the latents and conditions"
            ) from error
        # What forward decodes shows more than its answer, to which a decoder may hardly pass it on.
        decoded = _like(forward.decoded, latents[0]) if len(latents) == 1 else []
        if decoded:
            errors[meaning] = min(distance(z, latents[0]) for z in decoded)
            continue
        comparable = _like(forward.tensors, expected)
        if not comparable:
            raise ExportError(f"posterior: forward returns nothing of the shape of decode's answer; {settle}")
        errors[meaning] = min(distance(tensor, expected) for tensor in comparable)
    return errors


def _like(tensors: Sequence[Tensor], expected: Tensor) -> list[Tensor]:
    """The tensors of this shape in float32, among them the first of several samples."""
    single = [each for tensor in tensors for each in (tensor, *one_sample(tensor, expected.shape))]
    return [as_float32(tensor) for tensor in single if tensor.shape == expected.shape]


def sample_axes(shape: Sequence[int], single: Sequence[int]) -> list[tuple[int, ...]]:
    """Return which axes count samples, if a tensor of this shape may hold several of a single one.

    This is one of the first two axes, or the two behind the first.
    """
    known = {1: ((0,), (1,)), 2: ((1, 2),)}.get(len(shape) - len(single), ())
    return [axes for axes in known if tuple(n for i, n in enumerate(shape) if i not in axes) == tuple(single)]


def first_sample(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Return a view of the first of several samples that these axes count."""
    return tensor[tuple(0 if axis in axes else slice(None) for axis in range(tensor.dim()))]


def one_sample(tensor: Tensor, single: Sequence[int]) -> list[Tensor]:
    """Return the first of several samples that a tensor may hold, such as those of an importance-weighted model."""
    return [first_sample(tensor, axes) for axes in sample_axes(tensor.shape, single)]


def joins(a: Sequence[int], b: Sequence[int]) -> bool:
    """Return whether one shape has several neighboring axes of the other as one, and as many numbers."""
    products = [{math.prod(shape[: 1 + axis]) for axis in range(len(shape))} for shape in (a, b)]
    return math.prod(a) == math.prod(b) and (products[0] <= products[1] or products[1] <= products[0])


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference as a share of the largest magnitude at its place in any row.

    Infinite where anything is not finite. A magnitude counts as a thirtieth of the largest of all at least.
    """
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    if not a.numel():
        return 0.0
    largest = b.abs().max().clamp(min=1e-6)
    magnitude = b.abs().amax(dim=0, keepdim=True).clamp(min=float(largest) / 30)
    return float(((a - b).abs() / magnitude).max())
