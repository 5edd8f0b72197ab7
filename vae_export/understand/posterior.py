"""What an encoder's second tensor is: declared, named, or found by comparing `forward` with decode(mean + std)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vae_runtime.errors import error_line

from ..errors import ExportError
from .declaration import SECOND, Declaration
from .draws import Draws
from .functions import Functions
from .reading import Part, mean_of, second_to

__all__ = ["refuse_hidden_posterior", "second_tensors"]

# How far two computations of the same numbers in float32 may be apart, as a share of the largest of them.
_SAME = 1e-4


def second_tensors(
    functions: Functions, parts: Sequence[Part], declaration: Declaration, *, halved: bool
) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """Find what each latent's second tensor is.

    Args:
        functions: the model's.
        parts: the latents, as encode gives them with every draw set to 1.
        declaration: what is declared.
        halved: whether mean and second tensor are the halves of one tensor, cut on a guess.

    Returns:
        For each latent one of `SECOND`, or None where there is no second tensor; and the lines that say from what.

    Raises:
        ExportError: it does not show, or `forward` shows another one than is declared or named.
    """
    meanings = [part.meaning for part in parts]
    distributions = any(part.distribution for part in parts)
    if declaration.posterior in SECOND:
        if distributions and declaration.posterior != "std":
            raise ExportError(
                f"posterior: encode gives a Normal, which says it; leave posterior={declaration.posterior!r} out"
            )
        # Before the names that an encoder gives its tensors: they may mislead.
        meanings = [declaration.posterior if part.kind == "normal" else None for part in parts]
    if any(meanings) and not distributions:
        _refuse_contradiction(functions, parts, next(meaning for meaning in meanings if meaning), halved)
    unknown = [j for j, part in enumerate(parts) if part.kind == "normal" and meanings[j] is None]
    if not unknown:
        return tuple(meanings), ()
    if declaration.posterior is not None:
        raise ExportError(
            f"posterior: one of {', '.join(SECOND)} is expected, since encode gives a second tensor; got "
            f"{declaration.posterior!r}"
        )
    meaning, line = _found(functions, parts, unknown)
    return tuple(meaning if j in unknown else known for j, known in enumerate(meanings)), (line,)


def refuse_hidden_posterior(functions: Functions) -> None:
    """Refuse an encoder that gives one tensor where `forward` samples: its posterior would be lost without a word.

    Raises:
        ExportError: it is one.
    """
    try:
        _, drawn = functions.forward()
    except Exception:
        # Not every model has a forward, and none is needed.
        return
    if drawn:
        raise ExportError(
            "encode: gives one tensor, while forward draws normal noise; let it return the posterior's parameters too, "
            'such as (mu, logvar), or pass posterior="none" if there is no posterior'
        )


def _found(functions: Functions, parts: Sequence[Part], unknown: Sequence[int]) -> tuple[str, str]:
    """The meaning of the unknown second tensors that `forward` shows, and the line that says how."""
    settle = f"pass posterior=, one of {', '.join(SECOND)}"
    errors = _errors(functions, parts, unknown, settle)
    best, next_best, *_ = ranked = sorted(errors, key=lambda meaning: errors[meaning])
    if errors[best] > _SAME:
        _refuse_swapped(functions, parts)
    if errors[best] > _SAME or errors[next_best] < 10 * max(errors[best], _SAME):
        shown = ", ".join(f"{meaning} {errors[meaning]:.1e}" for meaning in ranked[:3])
        raise ExportError(
            "posterior: what encode's second tensor is does not show in forward (difference from forward with every "
            f"draw set to 1: {shown}); {settle}"
        )
    return best, (
        f"posterior: the second tensor is the {best}, since forward with every normal draw set to 1 gives "
        f"decode(mu + std) within {errors[best]:.0e} (next best: {next_best}, {errors[next_best]:.0e})"
    )


def _refuse_swapped(functions: Functions, parts: Sequence[Part]) -> None:
    """Refuse pairs whose mean stands second, as `forward` shows."""
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
    if errors[best] <= _SAME:
        raise ExportError(
            f"encode: gives the {best} first and the mean second, as forward shows; the mean is expected first: pass "
            "encode=, a function that gives (mu, second)"
        )


def _refuse_contradiction(functions: Functions, parts: Sequence[Part], meaning: str, halved: bool) -> None:
    """Refuse a meaning that is declared or named where `forward` shows another; or none, for halves cut on a guess."""
    try:
        errors = _errors(functions, parts, [j for j, part in enumerate(parts) if part.kind == "normal"], "")
    except ExportError:
        # Where forward shows nothing, the declaration stands.
        return
    best = min(errors, key=lambda meaning: errors[meaning])
    if errors[meaning] <= _SAME:
        return
    if errors[best] <= _SAME:
        raise ExportError(
            f"posterior: {meaning} is said or named, and forward with every normal draw set to 1 gives "
            f"decode(mu + std) for {best} (difference {errors[best]:.0e}; {meaning}: {errors[meaning]:.0e}); pass "
            f"posterior={best!r}"
        )
    _refuse_swapped(functions, parts)
    if halved:
        raise ExportError(
            "encode: the encoder's tensor, halved, is not the posterior that forward samples from; pass encode=, a "
            "function that gives (mu, logvar), such as lambda x: (m.fc_mu(m.encoder(x)), m.fc_logvar(m.encoder(x)))"
        )


def _errors(functions: Functions, parts: Sequence[Part], unknown: Sequence[int], settle: str) -> dict[str, float]:
    """How far `forward`, every draw being 1, is from decode(mean + std) for each meaning of the unknown tensors."""
    if type(functions.model).forward is torch.nn.Module.forward:
        raise ExportError(f"posterior: what encode's second tensor is cannot be found, there is no forward; {settle}")
    try:
        answer, drawn = functions.forward()
    except Exception as error:
        raise ExportError(f"posterior: forward fails on the example: {error_line(error)}; {settle}") from error
    if not drawn:
        raise ExportError(
            f"posterior: what encode's second tensor is cannot be found, forward draws no normal noise; {settle}"
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
            shape = list(latents[0].shape)
            raise ExportError(f"decode: fails on a latent of shape {shape}: {error_line(error)}") from error
        comparable = [tensor for tensor in answer if tensor.shape == expected.shape]
        if not comparable:
            raise ExportError(f"posterior: forward gives nothing of the shape of decode's answer; {settle}")
        errors[meaning] = min(_distance(tensor, expected) for tensor in comparable)
    return errors


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference as a share of the largest magnitude; infinite where anything is not finite."""
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))
