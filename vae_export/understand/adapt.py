"""Any VAE → two pure functions, encode and decode, or a decoder alone, and what their tensors mean.

Facts that are not declared are found by running the model: see docs/bring-your-own.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vae_runtime.manifest import Latent, Signature

from ..errors import ExportError, MissingCondition
from .adapted import Adapted, run_module
from .agreement import nearest, require_forward
from .between import require_between
from .checks import with_class_axis
from .choices import cut_at_choices
from .cut import cut_forward
from .declaration import SECOND, Declaration
from .decoder import require_no_scale, understand_decoder
from .decoding import decoding_codes, decoding_observations
from .draws import Draws, fixed_noise, in_training
from .edges import at_edge
from .encoder import describe_latents, understand_encoder
from .evidence import find_prior, require_posterior, with_prior, with_scaling
from .families.registry import family_of
from .functions import (
    Functions,
    MissingFunction,
    conditions_taken,
    find_decode,
    find_functions,
    own_decode,
    require_parameters,
    tensors_in,
)
from .likelihood import zeros_like_observations
from .memory import Memory, require_no_memory
from .observation import conditions_of, observation_of
from .posterior import SAME, ForwardDiffers
from .quantizer import cut_at_quantizers
from .reading import AS_CODES, Part
from .reads import layers_before, maps_latents

# The reason why an encoder, and a posterior, is missing.
WITHOUT_ENCODER = "the model was exported without an encoder"

_CHECKED = "checked: forward, which decodes the same latents and gives the same reconstruction, with the same noise"


def declared(model: nn.Module) -> tuple[str | None, Declaration]:
    """Return who declares a model, and the declaration: its own `__vae_export__`, or else its family's.

    Raises:
        ExportError: the model's own declaration is no mapping of arguments of `export`.
    """
    own = getattr(model, "__vae_export__", None)
    if callable(own):
        arguments = own()
        known = {field.name for field in dataclasses.fields(Declaration)}
        if not isinstance(arguments, Mapping) or not set(arguments) <= known:
            got = sorted(set(arguments) - known) if isinstance(arguments, Mapping) else type(arguments).__name__
            raise ExportError(
                f"{type(model).__name__}.__vae_export__: expected a mapping with some of "
                f"{', '.join(sorted(known))}, got {got}"
            )
        return f"{type(model).__name__}.__vae_export__", Declaration(**arguments)
    return family_of(model) or (None, Declaration())


def adapt(
    model: nn.Module,
    example: Tensor,
    declaration: Declaration,
    *,
    source: str | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    holder: object = None,
) -> Adapted:
    """Find a VAE's pure functions and what they mean.

    Args:
        model: in evaluation mode, float32, on the CPU (see `state.unchanged`).
        example: observations [n, …], float32, integers or bools, n at least 2.
        declaration: the known facts; the model is run to find the others.
        source: who declared them, for the record.
        conditions: values [n, …] by name, as the example.
        classes: names of the values 0, 1, … of integer conditions.
        holder: an object or a module that holds the model, and may show its prior.

    Raises:
        ExportError: a fact stays unknown, and the error names the argument that settles it; or the model is no pair of
            pure functions, since it draws noise in its encoder, for example.
    """
    model_data = _Data(model, example, dict(conditions or {}), classes or {})
    stated = callable(declaration.encode) or callable(declaration.decode)
    try:
        functions = find_functions(model, example, model_data.conditions, declaration)
        functions, adapted = _adapted(functions, model_data, declaration)
        adapted, shown = _held(functions, adapted, stated)
        settled = True
    except (ForwardDiffers, MissingFunction, MissingCondition) as reason:
        # A forward may make what encode and decode take, such as vectors of classes, of the conditions that are given.
        lacking = isinstance(reason, MissingCondition)
        if stated or declaration.posterior == "none" or (lacking and not _takes_all(model, model_data.conditions)):
            raise
        functions, adapted = _from_halves(model_data, declaration, reason)
        settled, shown = _decodes_alike(functions, adapted), True
    require_no_scale(adapted, declaration.likelihood)
    if (
        declaration.posterior is None
        and not shown
        and all(latent.posterior.kind == "none" for latent in adapted.signature.latents)
    ):
        require_posterior(functions, adapted)
    if source:
        adapted = dataclasses.replace(adapted, recognised=(f"declared by {source}", *adapted.recognised))
    if declaration.prior is None and any(latent.posterior.kind != "codes" for latent in adapted.signature.latents):
        adapted = with_prior(adapted, find_prior(functions, adapted, settled=settled, holder=holder))
    elif declaration.latent_scale is None and declaration.latent_shift is None:
        adapted = with_scaling(adapted, model if holder is None else holder, model)
    lines = _described(adapted.signature, declaration)
    return dataclasses.replace(adapted, recognised=(*adapted.recognised, *lines))


def adapt_decoder(
    model: nn.Module,
    latents: Mapping[str, Tensor],
    declaration: Declaration,
    *,
    source: str | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    holder: object = None,
) -> Adapted:
    """Find a decoder's pure function and what it means, for a model that is exported without an encoder.

    Args:
        model: as in `adapt`: it has a decode, or is the decoder itself.
        latents: examples [n, …] by name, n at least 2, in the order in which decode takes them; integers are codes.
        declaration: as in `adapt`; what it says of an encoder is left out.
        source: as in `adapt`.
        conditions: as in `adapt`.
        classes: as in `adapt`.
        holder: as in `adapt`.

    Raises:
        ExportError: as in `adapt`.
    """
    conditions = dict(conditions or {})
    own = list(latents.values())
    values = [at_edge(value) for value in own]
    functions = find_decode(model, own[0], conditions, declaration)
    parts = [
        Part("none" if value.is_floating_point() else "codes", edge, name=name)
        for (name, value), edge in zip(latents.items(), values, strict=True)
    ]
    if all(part.kind == "codes" for part in parts):
        functions = decoding_codes(functions, own)
    require_parameters("decode", functions.decode, len(own), conditions)
    functions = decoding_observations(functions.for_latents(own, values), values, None)
    with contextlib.suppress(Exception):
        # Zeros of the shape of an observation, since no likelihood refuses them; where decode fails, the next says why.
        answer = functions.decoded(values, Draws.constant(0.0))
        functions = dataclasses.replace(functions, example=zeros_like_observations(answer, declaration))
    decoder = understand_decoder(functions, values, declaration)
    reason = declaration.prior_reason or f"{WITHOUT_ENCODER}, and no prior was stated"
    declaration = dataclasses.replace(
        declaration, posterior=None, posterior_reason=WITHOUT_ENCODER, prior_reason=reason
    )
    described = describe_latents(functions, parts, set(), declaration)
    observation = observation_of(model, functions.example, declaration, decoder.likelihood)
    signature = Signature(
        observation=observation,
        latents=(*described, *decoder.noises),
        likelihood=with_class_axis(decoder.likelihood, observation),
        conditions=conditions_of(functions.conditions, {"decoder": functions.decode_conditions}, classes or {}),
    )
    examples = {name: at_edge(tensor) for name, tensor in conditions.items()}
    examples |= {latent.name: value for latent, value in zip(described, values, strict=True)}
    for latent in decoder.noises:
        examples |= _noise(latent, len(own[0]))
    lines = (*([f"declared by {source}"] if source else []), *functions.recognised, *decoder.recognised)
    adapted = Adapted({"decoder": decoder.module}, signature, examples, lines)
    require_no_scale(adapted, declaration.likelihood)
    if declaration.prior is None and any(part.kind != "codes" for part in parts):
        adapted = with_prior(adapted, find_prior(functions, adapted, holder=holder))
    lines = (*adapted.recognised, *_described(adapted.signature, declaration))
    return dataclasses.replace(adapted, recognised=lines)


@dataclasses.dataclass(frozen=True)
class _Data:
    """A model with the example and the conditions that it is run on."""

    model: nn.Module
    example: Tensor
    conditions: Mapping[str, Tensor]
    classes: Mapping[str, Sequence[str]]


def _takes_all(model: nn.Module, conditions: Mapping[str, Tensor]) -> bool:
    """Whether a model's `forward` takes each of these conditions by its name, and there are some."""
    return bool(conditions) and conditions_taken(model, conditions).keys() == conditions.keys()


def _adapted(functions: Functions, data: _Data, declaration: Declaration) -> tuple[Functions, Adapted]:
    """Make modules of a pair of functions, and describe their tensors; the functions get the dtypes that they take."""
    memory = Memory(functions.model)
    encoder = understand_encoder(functions, declaration)
    functions = encoder.functions
    require_no_memory(functions, encoder.values, memory.changed())
    decoder = understand_decoder(functions, encoder.values, declaration)
    observation = observation_of(data.model, functions.example, declaration, decoder.likelihood)
    by_component = {"encoder": functions.encode_conditions, "decoder": functions.decode_conditions}
    signature = Signature(
        observation=observation,
        latents=(*encoder.latents, *decoder.noises),
        likelihood=with_class_axis(decoder.likelihood, observation),
        conditions=conditions_of(functions.conditions, by_component, data.classes),
    )
    given = {observation.name: data.example, **data.conditions}
    examples = {name: at_edge(tensor) for name, tensor in given.items()}
    examples |= {latent.name: value for latent, value in zip(encoder.latents, encoder.values, strict=True)}
    examples |= {
        name: tensor for latent in signature.latents for name, tensor in _noise(latent, len(data.example)).items()
    }
    recognised = (*functions.recognised, *encoder.recognised, *decoder.recognised)
    modules = {"encoder": encoder.module, "decoder": decoder.module}
    return functions, Adapted(modules, signature, examples, recognised)


def _held(functions: Functions, adapted: Adapted, stated: bool) -> tuple[Adapted, bool]:
    """Require that `forward` does the same; functions that were stated win, and the difference is noted.

    Returns:
        The same with that note, and whether `forward` showed anything or need not.
    """
    try:
        held = require_forward(functions, adapted)
        if held:
            require_between(functions, adapted)
    except ForwardDiffers as difference:
        if not stated:
            raise
        line = f"the stated functions win: {difference}".partition("; pass ")[0]
        return dataclasses.replace(adapted, recognised=(*adapted.recognised, line)), True
    return (_checked(adapted) if held else adapted), held or stated


def _checked(adapted: Adapted) -> Adapted:
    """Return the same with a line that `forward` was compared."""
    return dataclasses.replace(adapted, recognised=(*adapted.recognised, _CHECKED))


def _from_halves(data: _Data, declaration: Declaration, reason: ExportError) -> tuple[Functions, Adapted]:
    """Take the two halves of `forward` for encode and decode, in the place of a pair that does something else.

    Raises:
        MissingCondition: that was the reason, and `forward` is no help either.
        ExportError: `forward` cannot be cut in two, or does not do what its halves do.
    """
    reasons = []
    if declaration.posterior in (None, *SECOND):
        try:
            functions = cut_forward(data.model, data.example, data.conditions)
            # The halves show the standard deviation itself.
            return _proven(functions, data, dataclasses.replace(declaration, posterior=None))
        except ExportError as error:
            reasons.append(str(error))
    if declaration.posterior in (None, "codes"):
        try:
            functions = cut_at_quantizers(data.model, data.example, data.conditions)
            return _proven(functions, data, dataclasses.replace(declaration, posterior=None))
        except ExportError as error:
            reasons.append(str(error))
        try:
            functions, count = cut_at_choices(data.model, data.example, data.conditions)
            codebook = count if declaration.codebook is None else declaration.codebook
            return _proven(functions, data, dataclasses.replace(declaration, posterior=None, codebook=codebook))
        except ExportError as error:
            reasons.append(str(error))
    if isinstance(reason, MissingCondition):
        raise reason
    drawn = _drawn_otherwise(data)
    if drawn is not None and drawn not in str(reason):
        reason = ExportError(f"forward: draws latents with {drawn}, which are not normal; {AS_CODES}")
    raise ExportError(f"{reason} (nor can forward itself be cut in two: {'; '.join(reasons)})") from reason


def _drawn_otherwise(data: _Data) -> str | None:
    """The random function, other than one that draws normal noise, that `forward` calls; None if it calls none."""
    draws = Draws.constant(0.0)
    with contextlib.suppress(Exception), torch.no_grad(), draws:
        data.model(data.example.clone(), **conditions_taken(data.model, data.conditions))
    return next((name for name in draws.other if not in_training(name)), None)


def _proven(functions: Functions, data: _Data, declaration: Declaration) -> tuple[Functions, Adapted]:
    functions, adapted = _adapted(functions, data, declaration)
    return functions, _checked(adapted) if require_forward(functions, adapted) else adapted


def _decodes_alike(functions: Functions, adapted: Adapted) -> bool:
    """Whether the model's own decode, if it has one, does what the second half of `forward` does."""
    try:
        own = own_decode(functions)
    except ExportError:
        # What weights make of the latents, in their own shape, may still be a flow.
        return not maps_latents(adapted)
    # Other latents than the means, which something in between may leave as they are.
    trials = [_moved(adapted, by) for by in (1.0, 2.0)]
    rests: list[list[Tensor | None]] = []
    same_shape = True
    for moved in trials:
        latents, seen = list(moved.values()), list[Tensor]()
        with own.watching(seen.append):
            outputs = run_module(adapted.modules["decoder"], adapted.given("decoder", {**adapted.examples, **moved}))
        if len(latents) == 1:
            # What has as many numbers may hold the latent in another shape.
            seen = [z.reshape(latents[0].shape) if z.numel() == latents[0].numel() else z for z in seen]
        rests.append([_beside(z, latents) for z in seen])
        same_shape = not seen or any(z.shape == latent.shape for z in seen for latent in latents)
    for first, second in zip(*rests, strict=False):
        if first is not None and second is not None and torch.equal(first, second):
            # What forward does behind it changes the observation, not the latent.
            return True
    if not same_shape and layers_before(adapted, {**adapted.examples, **moved}, own.watching):
        return True
    try:
        answer = own.decoded(latents, Draws.constant(0.0))
    except Exception:
        return False
    gap = nearest(tensors_in(answer), outputs, reshaped=True)
    return gap is not None and gap <= SAME


def _moved(adapted: Adapted, by: float) -> dict[str, Tensor]:
    """Return examples of the latents by name, moved by so much noise where they are no codes."""
    examples = {latent.name: adapted.examples[latent.name] for latent in adapted.signature.latents}
    return {name: z + by * fixed_noise(z.shape) if z.is_floating_point() else z for name, z in examples.items()}


def _beside(given: Tensor, latents: Sequence[Tensor]) -> Tensor | None:
    """Return what stands in a tensor beside the latents, along one axis; None unless each latent is in it as it is."""
    if any(latent.dim() != given.dim() for latent in latents):
        return None
    for axis in range(1, given.dim()):
        rest = given
        for latent in latents:
            size = latent.shape[axis]
            starts = range(rest.shape[axis] - size + 1)
            start = next((at for at in starts if torch.equal(rest.narrow(axis, at, size), latent)), None)
            if start is None:
                break
            before, _, after = rest.tensor_split((start, start + size), axis)
            rest = torch.cat([before, after], axis)
        else:
            return rest
    return None


def _noise(latent: Latent, n: int) -> dict[str, Tensor]:
    """Example values of the inputs that are standard normal noise, by name."""
    names = [latent.posterior.noise, latent.name if latent.posterior.outputs == () else None]
    return {name: torch.randn(n, *latent.shape, generator=torch.Generator().manual_seed(0)) for name in names if name}


def _described(signature: Signature, declaration: Declaration) -> list[str]:
    """A line for each latent and condition."""
    lines = []
    for latent in signature.latents:
        reasons = [latent.posterior.reason or declaration.posterior_reason, latent.prior.reason]
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
