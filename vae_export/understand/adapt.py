"""Any VAE → two pure functions, encode and decode, and what their tensors mean.

What is not declared is found out by running the model; docs/bring-your-own.md is the description.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Laplace, Normal

from vae_runtime.manifest import (
    Condition,
    Latent,
    LatentPosterior,
    LatentPrior,
    Likelihood,
    Observation,
    Output,
    Signature,
)

from ..errors import ExportError
from .adapted import Adapted
from .declaration import SECOND, Declaration
from .draws import Draws
from .families.registry import family_of
from .reading import DecoderReading, EncoderReading, Part, base_of, fields_of, mean_of, second_to

__all__ = ["adapt", "declared"]

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_RESERVED = {"x", "z", "codes", "mu", "logvar", "std", "logits", "scale"}

# How far two computations of the same numbers in float32 may be apart, as a share of the largest of them.
_SAME = 1e-4


def declared(model: nn.Module) -> tuple[str | None, Declaration]:
    """What the model says of itself in `__vae_export__`, else what its family says; and who said so.

    Raises:
        ExportError: the model's declaration is no mapping of arguments of `export`.
    """
    own = getattr(model, "__vae_export__", None)
    if callable(own):
        said = own()
        known = {field.name for field in dataclasses.fields(Declaration)}
        if not isinstance(said, Mapping) or not set(said) <= known:
            got = sorted(set(said) - known) if isinstance(said, Mapping) else type(said).__name__
            raise ExportError(
                f"{type(model).__name__}.__vae_export__: a mapping with some of {', '.join(sorted(known))} is "
                f"expected, got {got}"
            )
        return f"{type(model).__name__}.__vae_export__", Declaration(**said)
    found = family_of(model)
    return (found[0], found[1]) if found else (None, Declaration())


def adapt(
    model: nn.Module,
    example: Tensor,
    said: Declaration,
    *,
    source: str | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Adapted:
    """Find a VAE's pure functions and what they mean.

    Args:
        model: in evaluation mode, float32, on the CPU (see `state.unchanged`).
        example: observations [n, …], float32 or int64, n at least 2.
        said: what is known already.
        source: who said it, for the record.
        conditions: values [n, …] by name, float32 or int64.
        classes: names of the values 0, 1, … of integer conditions.

    Raises:
        ExportError: something is unknown, and the error names the argument that settles it; or the model does
            something that no pure function does, such as drawing noise in its encoder.
    """
    conditions = dict(conditions or {})
    recognised = [f"declared by {source}"] if source else []
    encode = _callable(model, "encode", said.encode, recognised)
    decode = _callable(model, "decode", said.decode, recognised)
    by_component = {
        "encoder": _taken(encode, conditions),
        "decoder": _taken(decode, conditions),
    }
    _require_taken("encode", encode, 1, conditions)
    reserved = sorted(set(conditions) & _RESERVED)
    if reserved:
        raise ExportError(f"condition {reserved[0]!r}: another name is expected, this one is taken; rename it")

    def encoded(draws: Draws, x: Tensor = example, given: Mapping[str, Tensor] = conditions) -> Any:
        with draws:
            # A copy: some models change their input in place.
            return encode(x.clone(), **{name: given[name] for name in by_component["encoder"]})

    # Random draws first: whatever else is asked of the encoder needs an answer that stays the same.
    quiet = Draws.constant(0.0)
    try:
        output = encoded(quiet)
    except ExportError:
        raise
    except Exception as error:
        advice = _shape_advice(
            model, said, encode, example, {name: conditions[name] for name in by_component["encoder"]}
        )
        if not advice and not example.is_floating_point():
            advice = "; integers are taken as integers: scale pixels to floats first"
        raise ExportError(f"encode: fails on the example, {list(example.shape)}: {_said(error)}{advice}") from error
    _refuse_other_draws("encode", quiet)
    keep = None
    if isinstance(output, (tuple, list)) and all(isinstance(item, Tensor) for item in output):
        keep = _parameters_of(output, encoded(Draws.constant(1.0)) if quiet.normal else output)
    parts = EncoderReading(said, keep=keep).read(output)
    doubled = None
    if len(parts) == 1 and parts[0].kind == "none" and said.posterior not in ("none", "codes"):
        doubled = _doubled(parts[0], decode, {name: conditions[name] for name in by_component["decoder"]}, recognised)
    _require_taken("decode", decode, len(parts), conditions)
    plan = EncoderReading(said, doubled, keep)
    parts = plan.read(output)
    parts = _as_said(parts, said)
    lifted = _lifted(encoded, quiet, plan, parts)
    if [part.kind for part in parts] == ["none"] and said.posterior is None:
        _refuse_hidden_posterior(model, example, conditions)
    # Where a posterior depends on a draw, forward's is that of the draw that the probe sets.
    ones = plan.read(encoded(Draws.constant(1.0))) if lifted else parts
    meanings = _meanings(
        model, example, conditions, ones, decode, by_component["decoder"], said, recognised, guessed=doubled is not None
    )
    plan = dataclasses.replace(plan, meanings=meanings)

    latents = _latents(model, parts, lifted, said, example)
    encoder = _Encode(model, encode, plan, latents, tuple(by_component["encoder"]), lifted)
    decoded, values = _decoded(decode, parts, conditions, by_component["decoder"])
    noises = _noises(decode, values, {name: conditions[name] for name in by_component["decoder"]}, decoded)
    latents = (*latents, *(latent for latent, _ in noises))
    likelihood, reading = _likelihood(
        decoded, _far_answer(decode, values, conditions, by_component["decoder"]), values, example, said, recognised
    )
    decoder = _Decode(
        model, decode, reading, len(values), tuple(by_component["decoder"]), tuple(index for _, index in noises)
    )
    observation = _observation(model, example, said)
    if likelihood.kind == "bernoulli" and observation.range is None:
        # Beyond it there is no such likelihood, and a score would be none.
        observation = dataclasses.replace(observation, range=(0.0, 1.0))
    examples = {observation.name: example, **conditions}
    examples |= {latent.name: value for latent, value in zip(latents, values, strict=False)}
    for latent in latents:
        for name in [latent.posterior.noise] + ([latent.name] if latent.posterior.outputs == () else []):
            if name:
                generator = torch.Generator().manual_seed(0)
                examples[name] = torch.randn(len(example), *latent.shape, generator=generator)
    signature = Signature(
        observation=observation,
        latents=latents,
        likelihood=likelihood,
        conditions=tuple(
            _condition(name, tensor, by_component, (classes or {}).get(name)) for name, tensor in conditions.items()
        ),
    )
    recognised += _described(signature, said)
    return Adapted({"encoder": encoder, "decoder": decoder}, signature, examples, tuple(recognised))


def _shape_advice(
    model: nn.Module, said: Declaration, encode: Callable[..., Any], example: Tensor, given: Mapping[str, Tensor]
) -> str:
    """What to do about an example that `encode` fails on, if another shape of it is what the model means."""
    seen: list[Tensor] = []

    def watch(x: Tensor, *others: Any, **named: Any) -> Any:
        seen.append(x)
        return encode(x, *others, **named)

    name = said.encode if isinstance(said.encode, str) else "encode"
    if not callable(said.encode) and name not in model._modules:
        own = vars(model).get(name)
        object.__setattr__(model, name, watch)
        try:
            with Draws.constant(0.0):
                model(example.clone(), **{key: value for key, value in given.items() if key in _taken(model, given)})
        except Exception:
            seen = seen[:1] if seen and seen[0].shape != example.shape else []
        finally:
            if own is None:
                object.__delattr__(model, name)
            else:
                object.__setattr__(model, name, own)
    if seen and seen[0].shape != example.shape:
        return f"; forward hands {list(seen[0].shape)} to {name}: give the example in that shape"
    # Of an example with one row a second one was made.
    for one in (example[None], example[:1][None]):
        with contextlib.suppress(Exception), Draws.constant(0.0):
            encode(one.clone(), **given)
            return "; it takes the same with one axis more: give observations [n, …], as example[None] is for one"
    return ""


# Finding encode and decode.


def _callable(
    model: nn.Module, what: str, said: Callable[..., Any] | str | None, recognised: list[str]
) -> Callable[..., Any]:
    if callable(said):
        return said
    names = [said] if said else [what, f"{what}r"]
    for name in names:
        found = getattr(model, name, None)
        if callable(found):
            recognised.append(f"{what}: {type(model).__name__}.{name}")
            return found  # type: ignore[no-any-return]
    raise ExportError(
        f"{type(model).__name__}: a method {what} or a submodule {what}r is expected, got neither; pass {what}=, the "
        f"name of a method or a function of {'x' if what == 'encode' else 'z'}"
        if said is None
        else f"{type(model).__name__}: a method {said} is expected from {what}={said!r}, got none"
    )


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return []


def _taken(function: Callable[..., Any], conditions: Mapping[str, Tensor]) -> list[str]:
    """The conditions that a function takes by name, in the order given."""
    parameters = _parameters(function)
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return list(conditions)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return [name for name in conditions if name in names]


def _require_taken(what: str, function: Callable[..., Any], first: int, conditions: Mapping[str, Tensor]) -> None:
    """Refuse a function that needs more than its first arguments and the conditions of its parameters' names."""
    parameters = [p for p in _parameters(function)[first:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in conditions]
    if missing:
        named = {p.name for p in parameters}
        other = [name for name in conditions if name not in named]
        advice = (
            f"the conditions have {', '.join(other)}; give each condition the name of its parameter"
            if other
            else f"pass conditions={{{missing[0]!r}: …}}"
        )
        raise ExportError(f"{what}: takes {', '.join(missing)} too; {advice}")


def _doubled(part: Part, decode: Callable[..., Any], given: Mapping[str, Tensor], recognised: list[str]) -> int | None:
    """The axis along which an encoder's only tensor is twice as long as the decoder takes, if it is."""
    try:
        with Draws.constant(0.0):
            decode(part.value, **given)
        return None
    except Exception:
        pass
    for axis in range(1, part.value.dim()):
        if part.value.shape[axis] % 2 == 0:
            try:
                with Draws.constant(0.0):
                    decode(part.value.chunk(2, dim=axis)[0].contiguous(), **given)
            except Exception:
                continue
            recognised.append(f"posterior: the encoder's tensor is mean and second tensor along axis {axis}")
            return axis
    return None


def _parameters_of(output: Sequence[Tensor], loud: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Of a flat tuple, which tensors are neither samples, which move with the draws, nor numbers for the whole batch.

    Where an odd number is left, a tensor that is the same as one before is a sample too: many models give the mean for
    it in evaluation mode. None where nothing goes, or too little stays.
    """
    keep = [j for j, (a, b) in enumerate(zip(output, loud, strict=True)) if a.dim() and _equal(a, b)]
    if len(keep) % 2:
        keep = [j for number, j in enumerate(keep) if not any(_same(output[i], output[j]) for i in keep[:number])]
    return tuple(keep) if 2 <= len(keep) < len(output) else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _refuse_hidden_posterior(model: nn.Module, example: Tensor, conditions: Mapping[str, Tensor]) -> None:
    """Refuse an encoder that gives one tensor where `forward` samples: its posterior would be lost without a word."""
    try:
        _, drawn = _forward(model, example, {name: conditions[name] for name in _taken(model, conditions)})
    except Exception:
        # Not every model has a forward, and none is needed.
        return
    if drawn:
        raise ExportError(
            "encode: gives one tensor, while forward draws normal noise; let it return the posterior's parameters too, "
            'such as (mu, logvar), or pass posterior="none" if there is no posterior'
        )


def _refuse_other_draws(what: str, draws: Draws) -> None:
    if draws.other:
        advice = (
            "make it depend on self.training"
            if "training mode" in draws.other[0]
            else "take the numbers as a condition, or draw them outside"
        )
        raise ExportError(f"{what}: calls {draws.other[0]}, which is random in evaluation mode too; {advice}")


def _lifted(encoded: Callable[[Draws], Any], quiet: Draws, plan: EncoderReading, parts: list[Part]) -> dict[int, int]:
    """Which latent's noise each draw of the encoder is, of the draws that its outputs depend on."""
    found: dict[int, int] = {}
    for index, shape in enumerate(quiet.normal):
        moved = plan.read(encoded(Draws.constant(1.0, only=index)))
        if all(_equal(a.value, b.value) and _equal(a.second, b.second) for a, b in zip(parts, moved, strict=True)):
            continue
        if len(parts) == 1 or any(part.kind != "normal" for part in parts):
            raise ExportError(
                "encode: samples inside, its result depends on noise that it draws itself; return the posterior's "
                "parameters, (mu, logvar), or pass encode=, a function that does"
            )
        # A latent's own posterior does not move with its noise; those below it do.
        fitting = [
            j
            for j, (a, b) in enumerate(zip(parts, moved, strict=True))
            if j not in found.values()
            and tuple(a.value.shape) == shape
            and _equal(a.value, b.value)
            and _equal(a.second, b.second)
        ]
        if len(fitting) != 1:
            raise ExportError(
                f"encode: draw {index + 1}, of shape {list(shape)}, is expected to be the noise of one latent, it fits "
                f"{len(fitting)}; draw each latent's noise with randn_like(mu), the one that others depend on first"
            )
        found[index] = fitting[0]
    return found


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is None or b is None or torch.equal(a, b)


# What the second tensor is.


def _meanings(
    model: nn.Module,
    example: Tensor,
    conditions: Mapping[str, Tensor],
    parts: list[Part],
    decode: Callable[..., Any],
    takes: Sequence[str],
    said: Declaration,
    recognised: list[str],
    *,
    guessed: bool,
) -> tuple[str | None, ...]:
    """What each latent's second tensor is: said, named, or found by running `forward` with every draw set to 1."""
    meanings = [part.meaning for part in parts]
    if said.posterior in SECOND:
        if any(part.distribution for part in parts) and said.posterior != "std":
            raise ExportError(
                f"posterior: encode gives a Normal, which says it; leave posterior={said.posterior!r} out"
            )
        # Before the names that an encoder gives its tensors: they may mislead.
        meanings = [said.posterior if part.kind == "normal" else None for part in parts]
    if any(meanings) and not any(part.distribution for part in parts):
        _refuse_contradiction(model, example, conditions, parts, decode, takes, meanings, guessed)
    unknown = [j for j, part in enumerate(parts) if part.kind == "normal" and meanings[j] is None]
    if not unknown:
        return tuple(meanings)
    if said.posterior is not None:
        raise ExportError(
            f"posterior: one of {', '.join(SECOND)} is expected, since encode gives a second tensor; got "
            f"{said.posterior!r}"
        )
    settle = f"pass posterior=, one of {', '.join(SECOND)}"
    errors = _probe(model, example, conditions, parts, decode, takes, unknown, settle)
    ranked = sorted(errors, key=lambda meaning: errors[meaning])
    if errors[ranked[0]] > _SAME:
        _refuse_swapped(model, example, conditions, parts, decode, takes)
    if errors[ranked[0]] > _SAME or errors[ranked[1]] < 10 * max(errors[ranked[0]], _SAME):
        shown = ", ".join(f"{meaning} {errors[meaning]:.1e}" for meaning in ranked[:3])
        raise ExportError(
            "posterior: what encode's second tensor is does not show in forward (difference from forward with every "
            f"draw set to 1: {shown}); {settle}"
        )
    recognised.append(
        f"posterior: the second tensor is the {ranked[0]}, since forward with every normal draw set to 1 gives "
        f"decode(mu + std) within {errors[ranked[0]]:.0e} (next best: {ranked[1]}, {errors[ranked[1]]:.0e})"
    )
    return tuple(ranked[0] if j in unknown else meaning for j, meaning in enumerate(meanings))


def _refuse_swapped(
    model: nn.Module,
    example: Tensor,
    conditions: Mapping[str, Tensor],
    parts: list[Part],
    decode: Callable[..., Any],
    takes: Sequence[str],
) -> None:
    """Refuse pairs whose mean stands second, as `forward` shows."""
    if any(part.second is None or part.second.shape != part.value.shape for part in parts):
        return
    other = [dataclasses.replace(part, value=part.second, second=part.value) for part in parts]  # type: ignore[arg-type]
    try:
        errors = _probe(model, example, conditions, other, decode, takes, list(range(len(parts))), "")
    except ExportError:
        return
    best = min(errors, key=lambda meaning: errors[meaning])
    if errors[best] <= _SAME:
        raise ExportError(
            f"encode: gives the {best} first and the mean second, as forward shows; the mean is expected first: pass "
            "encode=, a function that gives (mu, second)"
        )


def _refuse_contradiction(
    model: nn.Module,
    example: Tensor,
    conditions: Mapping[str, Tensor],
    parts: list[Part],
    decode: Callable[..., Any],
    takes: Sequence[str],
    meanings: Sequence[str | None],
    guessed: bool,
) -> None:
    """Refuse a meaning that was said, or named, where `forward` shows another; or none, of halves that were guessed."""
    unknown = [j for j, part in enumerate(parts) if part.kind == "normal"]
    try:
        errors = _probe(model, example, conditions, parts, decode, takes, unknown, "")
    except ExportError:
        # Where forward shows nothing, what was said stands.
        return
    said = str(next(meaning for meaning in meanings if meaning))
    best = min(errors, key=lambda meaning: errors[meaning])
    if errors[said] <= _SAME:
        return
    if errors[best] <= _SAME:
        raise ExportError(
            f"posterior: {said} is said or named, and forward with every normal draw set to 1 gives decode(mu + std) "
            f"for {best} (difference {errors[best]:.0e}; {said}: {errors[said]:.0e}); pass posterior={best!r}"
        )
    _refuse_swapped(model, example, conditions, parts, decode, takes)
    if guessed:
        raise ExportError(
            "encode: the encoder's tensor, halved, is not the posterior that forward samples from; pass encode=, a "
            "function that gives (mu, logvar), such as lambda x: (m.fc_mu(m.encoder(x)), m.fc_logvar(m.encoder(x)))"
        )


def _probe(
    model: nn.Module,
    example: Tensor,
    conditions: Mapping[str, Tensor],
    parts: list[Part],
    decode: Callable[..., Any],
    takes: Sequence[str],
    unknown: list[int],
    settle: str,
) -> dict[str, float]:
    """How far `forward`, every draw being 1, is from decode(mean + std) for each meaning of the second tensor."""
    given = {name: conditions[name] for name in takes}
    if type(model).forward is nn.Module.forward:
        raise ExportError(f"posterior: what encode's second tensor is cannot be found, there is no forward; {settle}")
    try:
        forward_takes = {name: conditions[name] for name in _taken(model, conditions)}
        answer, drawn = _forward(model, example, forward_takes)
    except Exception as error:
        raise ExportError(f"posterior: forward fails on the example: {_said(error)}; {settle}") from error
    if not drawn:
        raise ExportError(
            f"posterior: what encode's second tensor is cannot be found, forward draws no normal noise; {settle}"
        )
    errors = {}
    for meaning in SECOND:
        zs = []
        for j, part in enumerate(parts):
            assert part.second is not None
            kind = meaning if j in unknown else part.meaning
            zs.append(part.value + second_to(str(kind), part.second)[1])
        try:
            with Draws.constant(1.0):
                expected = mean_of(decode(*zs, **given))
        except Exception as error:
            raise ExportError(f"decode: fails on a latent of shape {list(zs[0].shape)}: {_said(error)}") from error
        found = [tensor for tensor in answer if tensor.shape == expected.shape]
        if not found:
            raise ExportError(f"posterior: forward gives nothing of the shape of decode's answer; {settle}")
        errors[meaning] = min(_distance(tensor, expected) for tensor in found)
    return errors


def _forward(model: nn.Module, example: Tensor, given: Mapping[str, Tensor]) -> tuple[list[Tensor], bool]:
    """The tensors that `forward` gives with every normal draw set to 1, and whether it drew.

    Some models sample in training mode only: then the mode of the module itself, not of its layers, is set to that.
    """
    for training in (False, True):
        draws = Draws.constant(1.0)
        samplers = [model, *(module for module in model.modules() if _may_sample(module))]
        for module in samplers:
            module.training = training
        try:
            with draws:
                output = model(example.clone(), **given)
        finally:
            for module in samplers:
                module.training = False
        if draws.normal:
            break
    return _tensors(output), bool(draws.normal)


def _may_sample(module: nn.Module) -> bool:
    """Whether a submodule may be one that samples, and looks at its own mode: it holds nothing, and drops nothing."""
    holds = [*module._parameters.values(), *module._buffers.values(), *module._modules.values()]
    return not holds and not isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase)


def _tensors(output: Any) -> list[Tensor]:
    """Every tensor in an answer; of a distribution its mean."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Distribution):
        return [output.mean]
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in _tensors(item)]
    return [tensor for item in (fields_of(output) or {}).values() for tensor in _tensors(item)]


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference as a share of the largest magnitude; infinite where anything is not finite."""
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))


# The latents.


def _as_said(parts: list[Part], said: Declaration) -> list[Part]:
    """One tensor as what it was said to be."""
    if len(parts) != 1 or parts[0].kind != "none":
        return parts
    value = parts[0].value
    if said.posterior in SECOND:
        raise ExportError(
            f"posterior: {said.posterior} is what a second tensor can be, encode gives one; let it give (mu, "
            f"{said.posterior}), or pass encode=, a function that does"
        )
    if said.posterior == "codes":
        if not torch.equal(value, value.round()):
            raise ExportError("posterior: codes are whole numbers, encode gives others; let it give the indices")
        return [Part("codes", value.long())]
    return parts


def _codebook(model: nn.Module, codes: Tensor, said: Declaration) -> int:
    """How many codes there are: as said, or as the model's only table of embeddings has rows."""
    most = int(codes.max())
    if said.codebook is not None:
        if said.codebook <= most:
            raise ExportError(f"codebook: more than {most} codes are expected from the example, got {said.codebook}")
        return int(said.codebook)
    tables = {table.num_embeddings for table in model.modules() if isinstance(table, nn.Embedding)}
    if len(tables) == 1 and max(tables) > most:
        return max(tables)
    raise ExportError("codebook: how many codes there are does not show; pass codebook=")


def _latents(
    model: nn.Module, parts: list[Part], lifted: Mapping[int, int], said: Declaration, example: Tensor
) -> tuple[Latent, ...]:
    latents = []
    for j, part in enumerate(parts):
        kind = said.posterior if said.posterior in ("codes", "none") else part.kind
        single = len(parts) == 1
        name = ("codes" if kind == "codes" else "z") if single else part.name or f"z{j + 1}"
        end = "" if single else f"_{name}"
        shape = tuple(part.value.shape[1:])
        if len(part.value) != len(example) or not shape:
            raise ExportError(
                f"encode: a latent [{len(example)}, …] is expected for {len(example)} observations, got "
                f"{list(part.value.shape)}; pass encode=, a function that gives one row for each observation"
            )
        noise = f"eps_{name}" if j in lifted.values() else None
        prior = LatentPrior(said.prior or ("normal" if kind == "normal" else "none"), reason=said.prior_reason)
        if kind == "normal":
            posterior = LatentPosterior("normal", f"mu{end}", f"logvar{end}", f"std{end}", noise=noise)
        elif kind == "codes":
            codebook = _codebook(model, part.value, said)
            if said.prior not in (None, "none"):
                raise ExportError(f"prior: none is expected of codes, got {said.prior!r}; leave it out")
            posterior = LatentPosterior("codes", value=name, codebook=codebook)
            prior = LatentPrior(
                "none", reason=said.prior_reason or "a vector-quantised model has no prior over its codes"
            )
        else:
            reason = said.posterior_reason or "the encoder is deterministic, it gives one latent and no distribution"
            posterior = LatentPosterior("none", value=name, reason=reason)
        if prior.kind == "none" and prior.reason is None:
            prior = dataclasses.replace(prior, reason="a deterministic autoencoder has no prior over its latents")
        elif prior.kind != "none":
            prior = dataclasses.replace(prior, reason=None)
        axes = tuple(said.latent_axes) if said.latent_axes else _axes(shape, example, latent=True)
        if len(axes) != len(shape):
            raise ExportError(
                f"latent_axes: {len(shape)} names for the latent {list(shape)} are expected, got {list(axes)}"
            )
        latents.append(
            Latent(
                name,
                shape,
                posterior,
                prior,
                dtype="int64" if kind == "codes" else "float32",
                axes=axes,
                scale=_number_or_list(said.latent_scale, 1.0),
                shift=_number_or_list(said.latent_shift, 0.0),
            )
        )
    if said.codebook is not None and not any(latent.posterior.kind == "codes" for latent in latents):
        kind = latents[0].posterior.kind
        raise ExportError(f"codebook: only with codes, got {said.codebook} for a posterior {kind}; leave it out")
    return tuple(latents)


def _number_or_list(value: float | Sequence[float] | None, default: float) -> float | tuple[float, ...]:
    if value is None:
        return default
    return float(value) if isinstance(value, (int, float)) else tuple(float(number) for number in value)


def _axes(shape: tuple[int, ...], example: Tensor, *, latent: bool = False) -> tuple[str, ...]:
    if len(shape) == 1:
        return ("latent",) if latent else ("feature",)
    if len(shape) == 3:
        return ("channel", "height", "width")
    if len(shape) == 2 and not latent:
        return ("height", "width")
    return tuple(f"axis_{number}" for number in range(1, len(shape) + 1))


def _observation(model: nn.Module, example: Tensor, said: Declaration) -> Observation:
    shape = tuple(example.shape[1:])
    axes = tuple(said.axes) if said.axes else _axes(shape, example)
    if not said.axes and any(isinstance(module, _RECURRENT) for module in model.modules()) and len(shape) < 3:
        axes = ("time", "feature")[: len(shape)]
    if len(axes) != len(shape):
        raise ExportError(f"axes: {len(shape)} names for an observation {list(shape)} are expected, got {list(axes)}")
    dtype = "float32" if example.is_floating_point() else "int64"
    bounds = tuple(said.range) if said.range else None
    return Observation("x", shape, axes, bounds, dtype=dtype)  # type: ignore[arg-type]


def _condition(
    name: str, tensor: Tensor, by_component: Mapping[str, Sequence[str]], names: Sequence[str] | None
) -> Condition:
    shape = tuple(tensor.shape[1:])
    whole = not tensor.is_floating_point()
    # Of integers, those that were seen: others may be beyond a table of embeddings.
    seen = (float(min(0, int(tensor.min()))), float(tensor.max())) if whole and not names else None
    return Condition(
        name,
        shape,
        "int64" if whole else "float32",
        classes=tuple(names) if names else None,
        range=seen if seen and seen[0] < seen[1] else None,
        components=tuple(component for component, taken in by_component.items() if name in taken),
    )


# What the decoder gives.


def _decoded(
    decode: Callable[..., Any], parts: list[Part], conditions: Mapping[str, Tensor], takes: Sequence[str]
) -> tuple[Any, list[Tensor]]:
    values = [part.value.contiguous() for part in parts]
    draws = Draws.constant(0.0)
    try:
        with draws:
            output = decode(*values, **{name: conditions[name] for name in takes})
    except ExportError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise ExportError(
            f"decode: fails on latents {shapes}: {_said(error)}; pass decode=, a function of the latents and conditions"
        ) from error
    _refuse_other_draws("decode", draws)
    return (output, draws), values


def _noises(
    decode: Callable[..., Any], values: list[Tensor], given: Mapping[str, Tensor], decoded: tuple[Any, Draws]
) -> list[tuple[Latent, int]]:
    """A latent for each draw of the decoder that its answer depends on, with the draw's number."""
    output, quiet = decoded
    reference = mean_of(output)
    found: list[tuple[Latent, int]] = []
    for index, shape in enumerate(quiet.normal):
        with Draws.constant(1.0, only=index):
            moved = mean_of(decode(*values, **given))
        if torch.equal(moved, reference):
            continue
        if shape[0] != len(values[0]):
            raise ExportError(
                f"decode: draw {index + 1} has shape {list(shape)}, a row for each latent is expected; draw it with "
                "randn_like"
            )
        reason = "noise that the decoder adds"
        found.append((Latent(f"noise{len(found) + 1}", shape[1:], LatentPosterior("none", reason=reason)), index))
    return found


def _far_answer(
    decode: Callable[..., Any], values: list[Tensor], conditions: Mapping[str, Tensor], takes: Sequence[str]
) -> Any:
    """The decoder's answer to latents far from the example's: what it gives there is of the same kind."""
    generator = torch.Generator().manual_seed(0)
    far = [
        5.0 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value for value in values
    ]
    with Draws.constant(0.0):
        return decode(*far, **{name: conditions[name] for name in takes})


def _likelihood(
    decoded: tuple[Any, Draws],
    far: Any,
    values: Sequence[Tensor],
    example: Tensor,
    said: Declaration,
    recognised: list[str],
) -> tuple[Likelihood, DecoderReading]:
    output, draws = decoded
    if isinstance(output, (tuple, list)) and len(output) > 1:
        recognised.append(f"decode: gives {len(output)} things, the first is taken (decode=)")
    if (
        said.scale is not None
        and said.likelihood not in ("gaussian", "laplace")
        and isinstance(base_of(output), Tensor)
    ):
        raise ExportError(f"scale: only with likelihood gaussian or laplace, got {said.scale:g}; pass likelihood= too")
    base, mean = base_of(output), mean_of(output)
    shape = None if mean.shape[1:] == example.shape[1:] else tuple(mean.shape[1:])
    axes: tuple[str, ...] = () if shape is None else tuple(f"axis_{number}" for number in range(1, len(shape) + 1))
    fields = output if isinstance(output, dict) else {}
    further = {n: t for n, t in fields.items() if isinstance(t, Tensor) and t is not mean and t.is_floating_point()}
    # What only goes through is no answer.
    further = {n: t for n, t in further.items() if not any(t is value for value in values)}
    clash = sorted(set(further) & _RESERVED)
    if clash:
        raise ExportError(
            f"decode: gives {clash[0]!r} beside the mean, a name that is taken; pass decode=, a function that gives "
            "the mean or a torch.distributions.Bernoulli(logits=…)"
        )
    outputs = tuple(Output(name, tuple(tensor.shape[1:])) for name, tensor in further.items())
    common: dict[str, Any] = {"shape": shape, "axes": axes, "outputs": outputs}
    reading = DecoderReading(further=tuple(further))
    if said.likelihood not in (None, "bernoulli", "gaussian", "laplace", "none"):
        raise ExportError(f"likelihood: bernoulli, gaussian, laplace or none is expected, got {said.likelihood!r}")
    for kind, distribution in (("bernoulli", Bernoulli), ("gaussian", Normal), ("laplace", Laplace)):
        if isinstance(base, distribution) and said.likelihood not in (None, kind):
            raise ExportError(
                f"likelihood: {kind} is expected, since decode gives a {type(base).__name__}; got {said.likelihood!r}"
            )
    if isinstance(base, Distribution) and not isinstance(base, (Bernoulli, Normal, Laplace)):
        if said.likelihood not in (None, "none"):
            raise ExportError(
                f"likelihood: decode gives a {type(base).__name__}, which is no {said.likelihood}; leave likelihood= "
                "out (samples are its means then), or pass decode="
            )
        recognised.append(f"likelihood: decode gives a {type(base).__name__}, of which the mean alone is exported")
    if isinstance(base, Bernoulli):
        recognised.append("likelihood: decode gives a Bernoulli")
        return Likelihood("bernoulli", logits="logits", **common), dataclasses.replace(reading, bernoulli="logits")
    if isinstance(base, (Normal, Laplace)):
        recognised.append(f"likelihood: decode gives a {type(base).__name__}")
        kind = "gaussian" if isinstance(base, Normal) else "laplace"
        spread = base.scale
        constant = all(bool((each == spread.flatten()[0]).all()) for each in (spread, base_of(far).scale))
        own = float(spread.flatten()[0])
        if said.scale is not None and not (constant and math.isclose(said.scale, own, rel_tol=1e-6)):
            found = f"{own:g}" if constant else "one for each value"
            raise ExportError(
                f"scale: decode gives a {type(base).__name__} with its own scale, {found}; leave "
                f"scale={said.scale:g} out"
            )
        if constant:
            return Likelihood(kind, scale=own, **common), reading
        return Likelihood(kind, scale_output="scale", **common), dataclasses.replace(reading, scale=True)
    if said.likelihood == "bernoulli":
        if not bool(((example >= 0) & (example <= 1)).all()):
            raise ExportError(
                f"likelihood: under a bernoulli, observations from 0 to 1 are expected, the example has "
                f"{float(example.min()):g} … {float(example.max()):g}; scale it, or pass another likelihood="
            )
        answers = (mean, mean_of(far))
        if not all(bool(((answer >= 0) & (answer <= 1)).all()) for answer in answers):
            recognised.append("likelihood: bernoulli; decode gives logits, since values lie outside 0 … 1")
            return Likelihood("bernoulli", logits="logits", **common), dataclasses.replace(reading, bernoulli="logits")
        if (
            draws.sigmoid is not None
            and draws.sigmoid[1].numel() == mean.numel()
            and torch.equal(draws.sigmoid[1].reshape(mean.shape), mean)
        ):
            recognised.append("likelihood: bernoulli; decode ends in a sigmoid, whose argument is exported as logits")
            return Likelihood("bernoulli", logits="logits", **common), dataclasses.replace(reading, bernoulli="sigmoid")
        recognised.append("likelihood: bernoulli; decode gives probabilities, without logits")
        return Likelihood("bernoulli", **common), reading
    if said.likelihood in ("gaussian", "laplace"):
        scale = 1.0 if said.scale is None else float(said.scale)
        recognised.append(f"likelihood: {said.likelihood}, scale {scale:g}" + ("" if said.scale else " (not stated)"))
        return Likelihood(said.likelihood, scale=scale, **common), reading
    recognised.append("likelihood: not stated; there are samples and no scores (likelihood=)")
    return Likelihood(
        "none", reason="no likelihood was stated at export; export again with likelihood=", **common
    ), reading


# The modules that are exported.


class _Encode(nn.Module):
    def __init__(
        self,
        model: nn.Module,
        encode: Callable[..., Any],
        plan: EncoderReading,
        latents: Sequence[Latent],
        conditions: tuple[str, ...],
        lifted: Mapping[int, int],
    ) -> None:
        super().__init__()
        self.model = model
        self._encode = (encode,)
        self._plan = plan
        self._kinds = [latent.posterior.kind for latent in latents]
        self._conditions = conditions
        self._lifted = dict(lifted)
        # Noise inputs come in the order of the latents, draws in that of the model.
        self._noises = sorted(lifted.values())
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        x, *rest = tensors
        given = dict(zip(self._conditions, rest, strict=False))
        noises = dict(zip(self._noises, rest[len(given) :], strict=True))
        with Draws.inputs({index: noises[latent] for index, latent in self._lifted.items()}):
            parts = self._plan.read(self._encode[0](x, **given))
        outputs: list[Tensor] = []
        for part, kind, meaning in zip(parts, self._kinds, self._plan.meanings, strict=True):
            if kind == "normal":
                assert part.second is not None
                outputs += [part.value, *second_to(str(meaning), part.second)]
            else:
                outputs.append(part.value.long() if kind == "codes" else part.value)
        return tuple(outputs)


class _Decode(nn.Module):
    def __init__(
        self,
        model: nn.Module,
        decode: Callable[..., Any],
        reading: DecoderReading,
        latents: int,
        conditions: tuple[str, ...],
        noises: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.model = model
        self._decode = (decode,)
        self._reading = reading
        self._latents = latents
        self._conditions = conditions
        self._noises = noises
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        values, rest = tensors[: self._latents], tensors[self._latents :]
        noises, rest = rest[: len(self._noises)], rest[len(self._noises) :]
        draws = Draws.inputs(dict(zip(self._noises, noises, strict=True)))
        with draws:
            output = self._decode[0](*values, **dict(zip(self._conditions, rest, strict=True)))
            return self._reading.read(output, draws)


def _described(signature: Signature, said: Declaration) -> list[str]:
    lines = []
    for latent in signature.latents:
        reasons = [latent.posterior.reason or said.posterior_reason, latent.prior.reason]
        reason = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
        lines.append(
            f"latent {latent.name} {list(latent.shape)}: posterior {latent.posterior.kind}, prior {latent.prior.kind}"
            + (f" ({reason})" if reason else "")
        )
    for condition in signature.conditions:
        lines.append(
            f"condition {condition.name} {condition.dtype} {list(condition.shape)}: "
            f"{' and '.join(condition.components)}"
        )
    return lines


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:200]} … {text[-90:]}"
