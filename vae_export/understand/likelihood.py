"""Find a decoder's likelihood, in its answer or by declaration. Only this module of the exporter names a kind.

A new kind is one entry of `_DISTRIBUTIONS`, beside its class in `vae_runtime.likelihood`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Laplace, Normal, OneHotCategorical, Poisson

from vae_runtime.likelihood import KINDS
from vae_runtime.manifest import Likelihood, Output

from ..errors import ExportError
from .checks import observation_range, require_likelihood
from .declaration import RESERVED, Declaration
from .draws import Draws
from .edges import as_float32, at_edge, range_of
from .reading import DecoderReading, base_of, mean_of

# The classes of PyTorch for a kind, where it has some.
_DISTRIBUTIONS: Mapping[str, tuple[type[Distribution], ...]] = {
    "bernoulli": (Bernoulli,),
    "gaussian": (Normal,),
    "laplace": (Laplace,),
    "poisson": (Poisson,),
    "categorical": (Categorical, OneHotCategorical),
}
# How far the sum of probabilities in float32 may be from 1.
_SUM = 1e-3
NOT_DECLARED = "no likelihood was declared at export; export again with likelihood="
"""The reason for no likelihood where decode returns a tensor."""


@dataclass(frozen=True)
class Decoded:
    """A decoder's answers to the latents of the example, and to latents far from these."""

    output: Any
    draws: Draws
    """Active while the decoder returned `output`."""
    far: Any
    latents: Sequence[Tensor]


@dataclass(frozen=True)
class LikelihoodFound:
    """A decoder's likelihood, how to read its parameters, and lines that say how they were recognised."""

    likelihood: Likelihood
    reading: DecoderReading
    recognised: tuple[str, ...]


@dataclass(frozen=True)
class _Parameters:
    """A kind, and where its parameters come from."""

    kind: str
    line: str
    """Says how the kind was recognised."""
    logits: str | None = None
    """As in `DecoderReading`."""
    scale: float | None = None
    scale_output: bool = False
    class_axis: int | None = None
    has_channel: bool = False
    shape: tuple[int, ...] | None = None
    """The shape of the answer, where it has an axis of classes."""


def mean_range(kind: str, observations: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the range that a decoder's mean must keep, None if it may be any number.

    Args:
        kind: of the likelihood, or "none".
        observations: the range of the observations.
    """
    # A mean may leave the range of the data where the likelihood is a density on all numbers.
    return KINDS[kind].mean_support if kind in KINDS else observations


def zeros_like_observations(output: Any, declaration: Declaration) -> Tensor:
    """Return zeros of the shape of the observations that a decoder's answer belongs to; classes are its last axis."""
    base, mean = base_of(output), mean_of(output)
    kind = _kind_of(base) or declaration.likelihood
    if kind is not None and kind in KINDS and KINDS[kind].classes:
        return torch.zeros(mean.shape[:-1], dtype=torch.int64)
    return torch.zeros(mean.shape)


def _kind_of(base: Any) -> str | None:
    """The kind of a distribution; None for others, and for tensors."""
    return next((name for name, classes in _DISTRIBUTIONS.items() if isinstance(base, classes)), None)


def find_likelihood(decoded: Decoded, example: Tensor, declaration: Declaration) -> LikelihoodFound:
    """Find the likelihood in a decoder's answer and in what is declared.

    Raises:
        ExportError: the two contradict each other, or the example lies outside the likelihood's range.
    """
    base, mean = base_of(decoded.output), mean_of(decoded.output)
    _require_scale_fits(base, declaration)
    further = _further_outputs(decoded, mean)
    kind = _kind_of(base)
    _require_kind_fits(base, kind, declaration.likelihood)
    lines = []
    if isinstance(decoded.output, (tuple, list)) and len(decoded.output) > 1:
        lines.append(f"decode: returns {len(decoded.output)} things, of which the first is taken (decode=)")
    classes = kind or declaration.likelihood
    if classes is not None and classes in KINDS and KINDS[classes].classes:
        parameters = _of_classes(classes, base, base_of(decoded.far), example)
    elif kind:
        parameters = _of_distribution(kind, base, base_of(decoded.far), declaration)
    elif declaration.likelihood and declaration.likelihood in KINDS:
        parameters = _of_tensor(declaration.likelihood, decoded, mean, declaration)
    else:
        line = "likelihood: not declared; the bundle gives samples and no scores (likelihood=)"
        if isinstance(base, Distribution):
            line = f"likelihood: {_reason(base)}; the bundle gives samples, its mean, and no scores"
        parameters = _Parameters("none", line)
    # The mean's shape is stated only where it is not the observation's.
    shape = parameters.shape or (None if mean.shape[1:] == example.shape[1:] else tuple(mean.shape[1:]))
    _require_values(parameters, shape, example, declaration, found=kind is not None)
    likelihood = Likelihood(
        parameters.kind,
        logits="logits" if parameters.logits else None,
        scale=parameters.scale,
        scale_output="scale" if parameters.scale_output else None,
        shape=shape,
        axes=tuple(f"axis_{number}" for number in range(1, len(shape or ()) + 1)),
        outputs=tuple(Output(name, tuple(tensor.shape[1:])) for name, tensor in further.items()),
        reason=None if parameters.kind in KINDS else _reason(base),
    )
    reading = DecoderReading(
        parameters.logits, parameters.scale_output, tuple(further), parameters.class_axis, parameters.has_channel
    )
    return LikelihoodFound(likelihood, reading, (*lines, parameters.line))


def _reason(base: Any) -> str:
    """Why no likelihood is known of what a decoder returns."""
    if not isinstance(base, Distribution):
        return NOT_DECLARED
    return f"decode returns a {type(base).__name__}, which is none of {', '.join(KINDS)}"


def _require_values(
    parameters: _Parameters,
    shape: tuple[int, ...] | None,
    example: Tensor,
    declaration: Declaration,
    *,
    found: bool,
) -> None:
    """Refuse an example with values that the kind is not defined for, and a range that is not that of the classes."""
    known = KINDS.get(parameters.kind)
    if known is None or not known.support:
        return
    declared = (float(declaration.range[0]), float(declaration.range[1])) if declaration.range else None
    bounds = observation_range(parameters.kind, declared, range_of(example.dtype), shape)
    if known.classes and declared not in (None, bounds):
        raise ExportError(
            f"range: expected {bounds}, the classes that decode tells apart, got {declared}; leave it out"
        )
    misfit = known.of(bounds, shape).misfit(at_edge(example).numpy(force=True))
    if misfit:
        other = "decode=, a function that returns only the mean" if found else "another likelihood="
        advice = "give the numbers of the classes" if known.classes else "scale it as in training"
        if known.levels:
            advice += ", pass range=, the first and the last level"
        raise ExportError(f"example: {misfit}; {advice}, or pass {other}")


def _require_scale_fits(base: Any, declaration: Declaration) -> None:
    scaled = [name for name, kind in KINDS.items() if kind.scale]
    if declaration.scale is not None and declaration.likelihood not in scaled and isinstance(base, Tensor):
        raise ExportError(
            f"scale: expected only with one of the likelihoods {', '.join(scaled)}, got {declaration.scale:g}; pass "
            "likelihood= too"
        )


def _require_kind_fits(base: Any, kind: str | None, declared: str | None) -> None:
    """Refuse a declared kind that is unknown, or not that of the distribution that the decoder returns."""
    require_likelihood(declared)
    if kind and declared not in (None, kind):
        raise ExportError(
            f"likelihood: expected {kind}, since decode returns a {type(base).__name__}; got {declared!r}"
        )
    if isinstance(base, Distribution) and not kind and declared not in (None, "none"):
        raise ExportError(
            f"likelihood: expected {declared}, but {_reason(base)}; pass decode=, a function that returns the tensor "
            f"of a {declared} likelihood, or export without likelihood= (samples are then its means)"
        )


def _further_outputs(decoded: Decoded, mean: Tensor) -> dict[str, Tensor]:
    """The other floating-point tensors of a mapping; those that are latents, passed through, are no answer."""
    fields = decoded.output if isinstance(decoded.output, dict) else {}
    known = (base_of(decoded.output), mean, *decoded.latents)
    further = {
        name: tensor
        for name, tensor in fields.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not any(tensor is other for other in known)
    }
    clash = sorted(set(further) & RESERVED)
    if clash:
        raise ExportError(
            f"decode: returns {clash[0]!r} with the mean, a name that is taken; pass decode=, a function that returns "
            "the mean, a torch.distributions.Normal(mean, scale) or a Bernoulli(logits=…)"
        )
    return further


def _of_distribution(kind: str, base: Any, far: Any, declaration: Declaration) -> _Parameters:
    name = type(base).__name__
    found = _Parameters(kind, f"likelihood: decode returns a {name}")
    if KINDS[kind].logits:
        return replace(found, logits="answer")
    if not KINDS[kind].scale:
        return found
    own = float(base.scale.flatten()[0])
    constant = all(bool((scale == own).all()) for scale in (base.scale, far.scale))
    declared = declaration.scale
    if declared is not None and not (constant and math.isclose(declared, own, rel_tol=1e-6)):
        described = f"{own:g}" if constant else "one for each value"
        raise ExportError(
            f"scale: decode returns a {name} with its own scale, {described}; leave scale={declared:g} out"
        )
    return replace(found, scale=own) if constant else replace(found, scale_output=True)


def _of_classes(kind: str, base: Any, far: Any, example: Tensor) -> _Parameters:
    """The parameters of classes: logits or probabilities, along the axis that the observation does not have."""
    observed = tuple(example.shape[1:])
    if not isinstance(base, Tensor):
        axis, answer = base.logits.dim() - 1, base.logits
        line = f"likelihood: decode returns a {type(base).__name__}"
    else:
        axis, answer, line = _class_axis(tuple(base.shape[1:]), observed), base, ""
    found = None if axis is None else answer.movedim(axis, -1)
    has_channel = found is not None and observed[:1] == (1,) and tuple(found.shape[1:-1]) == observed[1:]
    if found is None or found.shape[-1] < 2 or not (has_channel or tuple(found.shape[1:-1]) == observed):
        raise ExportError(
            f"decode: expected an axis of 2 or more classes beside those of the observations, {list(observed)}, got "
            f"{list(answer.shape[1:])}; give the numbers of the classes as observations, and pass decode=, a function "
            "that returns a torch.distributions.Categorical of their logits, or of another likelihood"
        )
    own = _Parameters(
        kind, line, logits="answer", class_axis=axis, has_channel=has_channel, shape=(*observed, found.shape[-1])
    )
    if line:
        return own
    assert axis is not None
    where = "the last axis" if axis == base.dim() - 1 else f"axis {axis}"
    if all(_are_probabilities(each.movedim(axis, -1)) for each in (base, far)):
        return replace(own, logits=None, line=f"likelihood: {kind}; decode returns probabilities along {where}")
    return replace(own, line=f"likelihood: {kind}; decode returns logits along {where}")


def _class_axis(answer: tuple[int, ...], observed: tuple[int, ...]) -> int | None:
    """The axis of an answer, which counts the batch, that the observation does not have.

    None where there is none. The classes may also stand where the observation has one channel.

    Raises:
        ExportError: several axes would do: neighbours of one size.
    """
    axes = [axis + 1 for axis in range(len(answer)) if answer[:axis] + answer[axis + 1 :] == observed]
    if len(axes) > 1:
        raise ExportError(
            f"decode: any of the axes {axes} of its answer {list(answer)} may be that of the classes; pass decode=, a "
            "function that returns a torch.distributions.Categorical of their logits, whose last axis it is"
        )
    if axes:
        return axes[0]
    return 1 if len(answer) > 1 and observed[:1] == (1,) and answer[1:] == observed[1:] else None


def _are_probabilities(answer: Tensor) -> bool:
    return _within(answer, (0.0, 1.0)) and bool(((answer.sum(-1) - 1).abs() <= _SUM).all())


def _of_tensor(kind: str, decoded: Decoded, mean: Tensor, declaration: Declaration) -> _Parameters:
    support = KINDS[kind].mean_support
    if KINDS[kind].scale:
        scale = 1.0 if declaration.scale is None else float(declaration.scale)
        return _Parameters(
            kind, f"likelihood: {kind}, scale {scale:g}" + ("" if declaration.scale else " (the default)"), scale=scale
        )
    if support and not KINDS[kind].logits:
        for answer in (mean, mean_of(decoded.far)):
            if not _within(answer, support):
                raise ExportError(
                    f"decode: expected a mean from {support[0]:g} to {support[1]:g} for a {kind} likelihood, got "
                    f"{float(answer.min()):g} … {float(answer.max()):g}; pass decode=, a function that applies the "
                    f"decoder's last activation and returns a torch.distributions.{_DISTRIBUTIONS[kind][0].__name__}"
                )
    if not KINDS[kind].logits or support is None:
        return _Parameters(kind, f"likelihood: {kind}; decode returns the mean")
    if not all(_within(answer, support) for answer in (mean, mean_of(decoded.far))):
        name, last = decoded.draws.activation or ("", None)
        if last is not None and _are_moved(last, mean):
            raise ExportError(
                f"decode: expected logits or probabilities for a {kind} likelihood, got the values of a {name}, "
                f"{float(mean.min()):.2g} … {float(mean.max()):.2g}; let decode end in a "
                "sigmoid, or return what the sigmoid takes"
            )
        line = f"likelihood: {kind}; decode returns logits, since values lie outside {support[0]:g} … {support[1]:g}"
        return _Parameters(kind, line, logits="answer")
    sigmoid = decoded.draws.sigmoid
    if sigmoid is not None and _is_answer(sigmoid[1], mean):
        line = f"likelihood: {kind}; decode ends in a sigmoid, and its argument is exported as logits"
        return _Parameters(kind, line, logits="sigmoid")
    return _Parameters(kind, f"likelihood: {kind}; decode returns probabilities, without logits")


def _is_answer(result: Tensor, mean: Tensor) -> bool:
    """Whether the result of an activation is decode's answer, in this shape or another."""
    return result.numel() == mean.numel() and torch.equal(as_float32(result).reshape(mean.shape), mean)


def _are_moved(result: Tensor, mean: Tensor) -> bool:
    """Whether decode's answer has the numbers of a result, in any order."""
    return result.numel() == mean.numel() and torch.equal(
        as_float32(result).flatten().sort().values, mean.flatten().sort().values
    )


def _within(tensor: Tensor, bounds: tuple[float, float]) -> bool:
    return bool(((tensor >= bounds[0]) & (tensor <= bounds[1])).all())
