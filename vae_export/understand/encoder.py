"""Understand an encoder: its latents, the noise that it draws, and the module that is exported for it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_runtime.errors import counted, error_line
from vae_runtime.manifest import Latent, LatentPosterior, LatentPrior

from ..errors import ExportError
from .constants import Constants
from .declaration import SECOND, Declaration, Mixture
from .decoding import decoding_codes, decoding_observations, decoding_samples, number_of_codes
from .draws import Draws
from .edges import as_float32, at_edge, written_for
from .functions import Functions, parameter_names, require_parameters
from .observation import axis_names
from .posterior import ForwardDiffers, refuse_hidden_posterior, second_tensors
from .reading import EncoderReading, Part, second_to
from .shapes import encoding_reshaped, shape_advice
from .state import restored

# Observations that show whether a spread is learned.
_ROWS = 4


@dataclass(frozen=True)
class UnderstoodEncoder:
    """An encoder as a module without randomness."""

    module: nn.Module
    """Takes x, the conditions and the noise; returns mu, logvar and std, codes or a value for each latent."""
    latents: tuple[Latent, ...]
    values: tuple[Tensor, ...]
    """The latents of the example: each mean, code or value, [n, …]."""
    functions: Functions
    """encode and decode, with the dtypes in which decode takes these latents."""
    recognised: tuple[str, ...]


def understand_encoder(functions: Functions, declaration: Declaration) -> UnderstoodEncoder:
    """Find an encoder's latents and the meaning of its tensors.

    Raises:
        ExportError: something is unknown, contradicts itself or is random.
    """
    # Random draws first: everything else needs an encoder that returns the same answer twice.
    functions, output, quiet = _answer(functions)
    quiet.require_normal_alone("encode")
    keep = None
    if isinstance(output, (tuple, list)) and all(isinstance(item, Tensor) for item in output):
        loud = functions.encoded(Draws.constant(1.0)) if quiet.normal else output
        keep = _kept(output, loud, functions.example.shape)
    reading = EncoderReading(declaration, keep=keep)
    parts = reading.read(output)
    reading = replace(reading, order=_order_of_decode(parts, functions))
    parts = reading.read(output)
    if _is_ambiguous(output, parts) and not callable(declaration.encode) and not functions.forward_runs():
        raise ExportError(
            f"encode: returns {2 * len(parts)} tensors of one shape, and no forward shows which of them belong "
            "together; pass encode=, a function that returns pairs, ((mu1, logvar1), (mu2, logvar2))"
        )
    if len(parts) == 1 and parts[0].kind == "codes" and len(parts[0].value) > len(functions.example):
        reading = replace(reading, rows=len(parts[0].value) // len(functions.example))
        parts = reading.read(output)
    lines: tuple[str, ...] = ()
    if len(parts) == 1 and parts[0].kind == "none" and declaration.posterior not in ("none", "codes"):
        axis = _halved_axis(parts[0].value, functions)
        if axis is not None:
            reading = replace(reading, doubled=axis)
            lines = (f"posterior: the encoder's tensor holds the mean and the second tensor along axis {axis}",)
    if all(part.kind == "codes" for part in parts):
        functions = decoding_codes(functions, [part.value for part in parts])
    require_parameters("decode", functions.decode, len(parts), functions.conditions, functions.observed)
    own = reading.read(output)
    parts = _as_declared(own, declaration)
    values = tuple(_at_edge(part).contiguous() for part in parts)
    functions = functions.for_latents([part.value for part in own], values)
    functions = decoding_samples(functions, values)
    functions = decoding_observations(functions, values, functions.example.shape)
    noises = _noises(functions, quiet, reading, parts)
    if [part.kind for part in parts] == ["none"] and declaration.posterior is None:
        refuse_hidden_posterior(functions)
    # A posterior that depends on draws is compared with forward, whose draws are 1.
    ones = reading.read(functions.encoded(Draws.constant(1.0))) if noises else parts
    meanings, found = second_tensors(functions, ones, declaration, halved=reading.doubled is not None)
    reading = replace(reading, meanings=meanings)
    latents = describe_latents(functions, parts, set(noises.values()), declaration)
    module = _Encode(functions, reading, latents, noises)
    return UnderstoodEncoder(module, latents, values, functions, (*lines, *found, *quiet.widened_line("encode")))


def _answer(functions: Functions) -> tuple[Functions, Any, Draws]:
    """Encode the example, in the shape in which `forward` passes it; if that fails, the error says what to do."""
    draws = Draws.constant(0.0)
    try:
        return functions, functions.encoded(draws), draws
    except ExportError:
        raise
    except Exception as error:
        reshaped = encoding_reshaped(functions)
        if reshaped is not None:
            draws = Draws.constant(0.0)
            with contextlib.suppress(Exception):
                return reshaped, reshaped.encoded(draws), draws
        example = functions.example
        advice = shape_advice(functions)
        if not advice and not example.is_floating_point():
            advice = "; integers are passed as integers; scale pixels to floats first"
        elif not advice and _encodes_integers(functions):
            advice = (
                "; it takes the same as integers; a training gives float32, so call x.long() in encode, or give an "
                "export integers as its example"
            )
        message = f"encode: fails on the example, {list(example.shape)}: {error_line(error)}{advice}"
        # Where forward takes the example, its halves may serve.
        raise (ForwardDiffers if functions.forward_runs() else ExportError)(message) from error


def _encodes_integers(functions: Functions) -> bool:
    """Whether encode takes an example of whole numbers as integers, such as tokens."""
    example = functions.example
    if not torch.equal(example, example.round()):
        return False
    try:
        replace(functions, example=example.long()).encoded(Draws.constant(0.0))
    except Exception:
        return False
    return True


def _kept(quiet: Sequence[Tensor], loud: Sequence[Tensor], shape: Sequence[int]) -> tuple[int, ...] | None:
    """The tensors of a flat tuple, by number, that are latents; None if all are, or fewer than two.

    Samples, which move with draws, and numbers for the batch are none. Nor is a tensor that follows from an earlier
    one, such as its exp. If an odd number is left, a tensor that equals an earlier one is a sample too, since many
    models return the mean as their sample in evaluation mode; and so is one of the observation's shape, `shape`, alone
    with that shape: a reconstruction.
    """
    keep = [j for j, (a, b) in enumerate(zip(quiet, loud, strict=True)) if a.dim() and torch.equal(a, b)]
    keep = [j for number, j in enumerate(keep) if not any(_follows(quiet[j], quiet[i]) for i in keep[:number])]
    if len(keep) % 2:
        keep = [j for number, j in enumerate(keep) if not any(_same(quiet[i], quiet[j]) for i in keep[:number])]
    if len(keep) % 2:
        whole = [j for j in keep if quiet[j].shape == shape]
        keep = [j for j in keep if j not in whole] if len(whole) == 1 else keep
    return tuple(keep) if 2 <= len(keep) < len(quiet) else None


def _order_of_decode(parts: Sequence[Part], functions: Functions) -> tuple[int, ...]:
    """The numbers of named latents in the order of decode's parameters of the same names; empty if these are others."""
    taken = parameter_names(functions.decode)[: len(parts)]
    numbers = {_bare(part.name): number for number, part in enumerate(parts) if part.name}
    if len(numbers) != len(parts) or {_bare(name) for name in taken} != numbers.keys():
        return ()
    return tuple(numbers[_bare(name)] for name in taken)


def _bare(name: str) -> str:
    """A latent's name without what says that it is one."""
    return re.sub(r"^(qz?|z|latents?)_(?=.)", "", name.lower())


def _is_ambiguous(output: Any, parts: Sequence[Part]) -> bool:
    """Whether parts are pairs of a flat tuple whose tensors all have one shape."""
    tensors = [tensor for part in parts for tensor in (part.value, part.second) if tensor is not None]
    flat = isinstance(output, (tuple, list)) and all(isinstance(item, Tensor) for item in output)
    pairs = len(parts) > 1 and all(part.kind == "normal" for part in parts)
    return flat and pairs and len({tensor.shape for tensor in tensors}) == 1


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _follows(second: Tensor, first: Tensor) -> bool:
    """Whether a tensor is the standard deviation or the variance that an earlier one is the logarithm of, or so."""
    if first.shape != second.shape or not (first.is_floating_point() and second.is_floating_point()):
        return False
    made = (first.exp(), (0.5 * first).exp(), (2 * first).exp(), first.log(), 2 * first.log(), 0.5 * first.log())
    further = (first**2, first.sqrt(), functional.softplus(first))
    return any(bool(torch.isfinite(each).all()) and torch.allclose(each, second) for each in (*made, *further))


def _halved_axis(value: Tensor, functions: Functions) -> int | None:
    """The axis along which an encoder's only tensor is twice as long as the decoder takes, if it is."""
    if _decodes(functions, value):
        return None
    for axis in range(1, value.dim()):
        if value.shape[axis] % 2 == 0 and _decodes(functions, value.chunk(2, dim=axis)[0].contiguous()):
            return axis
    return None


def _decodes(functions: Functions, value: Tensor) -> bool:
    try:
        functions.for_latents([value], [at_edge(value)]).decoded([value], Draws.constant(0.0))
    except Exception:
        return False
    return True


def _at_edge(part: Part) -> Tensor:
    """A latent in the dtype that graphs take and give."""
    return part.value.long() if part.kind == "codes" else as_float32(part.value)


def _as_declared(parts: list[Part], declaration: Declaration) -> list[Part]:
    """The parts; a single tensor becomes codes if it is declared so."""
    if len(parts) != 1 or parts[0].kind != "none":
        return parts
    value = parts[0].value
    if declaration.posterior in SECOND:
        raise ExportError(
            f"posterior: {declaration.posterior} is the meaning of a second tensor, encode returns only one; return "
            f"(mu, {declaration.posterior}), or pass encode=, a function that does"
        )
    if declaration.posterior == "codes":
        if not torch.equal(value, value.round()):
            raise ExportError("posterior: expected whole numbers as codes, got others from encode; return the indices")
        return [Part("codes", value.long())]
    return parts


def _noises(functions: Functions, quiet: Draws, reading: EncoderReading, parts: Sequence[Part]) -> dict[int, int]:
    """The number of the latent whose noise each draw is, for the draws that the encoder's answer depends on."""
    noises: dict[int, int] = {}
    for index, shape in enumerate(quiet.normal):
        moved = reading.read(functions.encoded(Draws.constant(1.0, only=index)))
        unmoved = [_equal(a, b) for a, b in zip(parts, moved, strict=True)]
        if all(unmoved):
            continue
        if len(parts) == 1 or any(part.kind != "normal" for part in parts):
            raise ForwardDiffers(
                "encode: samples inside: its result depends on noise that it draws itself; return the posterior's "
                "parameters, (mu, logvar), or pass encode=, a function that does"
            )
        # A latent's own posterior does not move with its noise; those below it do.
        fitting = [
            j
            for j, part in enumerate(parts)
            if unmoved[j] and j not in noises.values() and tuple(part.value.shape) == shape
        ]
        if len(fitting) != 1:
            raise ExportError(
                f"encode: draw {index + 1}, of shape {list(shape)}: expected the noise of one latent, it fits "
                f"{len(fitting)}; draw each latent's noise with randn_like(mu), the one that others depend on first"
            )
        noises[index] = fitting[0]
    return noises


def _equal(a: Part, b: Part) -> bool:
    return torch.equal(a.value, b.value) and (a.second is None or b.second is None or torch.equal(a.second, b.second))


def describe_latents(
    functions: Functions, parts: Sequence[Part], noisy: set[int], declaration: Declaration
) -> tuple[Latent, ...]:
    """Describe the latents of the example; `noisy` holds the numbers of those whose noise the encoder draws.

    Raises:
        ExportError: a latent has another number of rows than the example, or a declaration does not fit it.
    """
    n = len(functions.example)
    latents = []
    for j, part in enumerate(parts):
        kind = declaration.posterior if declaration.posterior in ("codes", "none") else part.kind
        single = len(parts) == 1
        usual = "codes" if kind == "codes" else "z"
        name = usual if single else part.name or f"{usual}{j + 1}"
        shape = tuple(part.value.shape[1:])
        if len(part.value) != n or not shape:
            raise ExportError(
                f"encode: expected a latent [{n}, …] for {counted(n, 'observation')}, got {list(part.value.shape)}; "
                "pass encode=, a function that returns one row for each observation"
            )
        codebook = None
        if kind == "codes":
            codebook = number_of_codes(functions, [each.value for each in parts], j, declaration.codebook)
        posterior = _posterior(kind, name, "" if single else f"_{name}", codebook, declaration)
        if j in noisy:
            posterior = replace(posterior, noise=f"eps_{name}")
        axes = tuple(declaration.latent_axes or axis_names(functions.model, shape, kind, functions.example.shape[1:]))
        if len(axes) != len(shape):
            raise ExportError(
                f"latent_axes: expected {counted(len(shape), 'name')} for the latent {list(shape)}, got {list(axes)}"
            )
        latents.append(
            Latent(
                name,
                shape,
                posterior,
                _prior(kind, declaration),
                dtype="int64" if kind == "codes" else "float32",
                axes=axes,
                scale=_number_or_tuple(declaration.latent_scale, 1.0),
                shift=_number_or_tuple(declaration.latent_shift, 0.0),
            )
        )
    if declaration.codebook is not None and not any(latent.posterior.kind == "codes" for latent in latents):
        kind = latents[0].posterior.kind
        raise ExportError(
            f"codebook: expected with codes only, got {declaration.codebook} for a posterior {kind}; leave it out"
        )
    return tuple(latents)


def _posterior(kind: str, name: str, suffix: str, codebook: int | None, declaration: Declaration) -> LatentPosterior:
    if kind == "normal":
        return LatentPosterior("normal", f"mu{suffix}", f"logvar{suffix}", f"std{suffix}")
    if kind == "codes":
        if declaration.prior not in (None, "none"):
            raise ExportError(f"prior: expected none for codes, got {declaration.prior!r}; leave it out")
        return LatentPosterior("codes", value=name, codebook=codebook)
    reason = declaration.posterior_reason or "the encoder is deterministic: it returns one latent and no distribution"
    return LatentPosterior("none", value=name, reason=reason)


def _prior(kind: str, declaration: Declaration) -> LatentPrior:
    if kind == "codes":
        reason = declaration.prior_reason or "a vector-quantized model has no prior over its codes"
        return LatentPrior("none", reason=reason)
    assert not isinstance(declaration.prior, Mixture)
    prior = declaration.prior or ("normal" if kind == "normal" else "none")
    if prior != "none":
        return LatentPrior(prior)
    return LatentPrior("none", reason=declaration.prior_reason or _NO_PRIOR)


_NO_PRIOR = "a deterministic autoencoder has no prior over its latents"


def _number_or_tuple(value: float | Sequence[float] | None, default: float) -> float | tuple[float, ...]:
    if value is None:
        return default
    return float(value) if isinstance(value, (int, float)) else tuple(float(number) for number in value)


def reading_of(encoder: nn.Module) -> EncoderReading:
    """Return how the answer of an encoder, as `understand_encoder` makes it, is read."""
    assert isinstance(encoder, _Encode)
    return encoder.reading


def encode_of(encoder: nn.Module) -> Callable[..., Any]:
    """Return the model's own encode, in an encoder as `understand_encoder` makes it."""
    assert isinstance(encoder, _Encode)
    return encoder.encode


def posteriors(encoder: nn.Module, x: Tensor, conditions: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return mean and log variance of each latent as the model's own encode gives them, with their gradients.

    Nothing steers its draws, its precision or its mode, so that the model may be trained.

    Args:
        encoder: what `understand_encoder` made, of an encode that draws nothing and gives normal posteriors.
        x: observations [n, …].
        conditions: values [n, …] by name, of which encode takes its own.
    """
    assert isinstance(encoder, _Encode)
    return [
        (as_float32(part.value), second_to(str(meaning), as_float32(part.second))[0])
        for part, meaning in zip(encoder.parts(x, conditions), encoder.reading.meanings, strict=True)
        if part.second is not None
    ]


def learns_spread(encoder: nn.Module, x: Tensor, conditions: Mapping[str, Tensor]) -> bool:
    """Return whether the log variance of one latent has other slopes by the weights for each observation.

    A layer that begins with zeros gives the same value for all, and another for each after a step of training.

    Args:
        encoder: as `posteriors` takes it.
        x: observations [n, …].
        conditions: values [n, …] by name, as `posteriors` takes them.
    """
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    few = {name: values[:_ROWS] for name, values in conditions.items()}

    def slopes(logvar: Tensor) -> Sequence[Tensor | None]:
        return torch.autograd.grad(logvar.sum(), weights, retain_graph=True, allow_unused=True)

    # A model that is exported need not have gradients at all, and may fail where they are asked for.
    with contextlib.suppress(Exception), restored(encoder), torch.enable_grad(), Draws.constant(0.0):
        ((_, logvar),) = posteriors(encoder, x[:_ROWS].clone(), few)
        if logvar.requires_grad:
            first = slopes(logvar[0])
            return any(_differ(first, slopes(row)) for row in logvar[1:])
    return False


def _differ(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> bool:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return any(bool((a.isfinite() & b.isfinite()).all()) and not torch.equal(a, b) for a, b in pairs)


class _Encode(nn.Module):
    """An encoder as it is exported."""

    def __init__(
        self,
        functions: Functions,
        reading: EncoderReading,
        latents: Sequence[Latent],
        noises: Mapping[int, int],
    ) -> None:
        super().__init__()
        self.model = functions.model
        # In a tuple, since a module as an attribute would be registered a second time.
        self._encode = (functions.encode,)
        self.reading = reading
        self._kinds = [latent.posterior.kind for latent in latents]
        self._dtype = functions.example.dtype
        self._conditions = {name: tensor.dtype for name, tensor in functions.encode_conditions.items()}
        self._latent_of_draw = dict(noises)
        self._constants = Constants(functions.model)
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        x, *rest = tensors
        conditions = dict(zip(self._conditions, rest, strict=False))
        # Noise inputs come in the order of the latents, draws in that of the model.
        noises = dict(zip(sorted(self._latent_of_draw.values()), rest[len(conditions) :], strict=True))
        draws = Draws.inputs({index: noises[latent] for index, latent in self._latent_of_draw.items()})
        with draws, self._constants.folded():
            parts = self.parts(x, conditions)
        outputs: list[Tensor] = []
        for part, kind, meaning in zip(parts, self._kinds, self.reading.meanings, strict=True):
            if kind == "normal":
                assert part.second is not None
                outputs += [as_float32(part.value), *second_to(str(meaning), as_float32(part.second))]
            else:
                outputs.append(part.value.long() if kind == "codes" else as_float32(part.value))
        return tuple(outputs)

    @property
    def encode(self) -> Callable[..., Any]:
        """The model's own encode."""
        return self._encode[0]

    def parts(self, x: Tensor, conditions: Mapping[str, Tensor]) -> list[Part]:
        """The latents in the answer of the model's own encode."""
        taken = {name: written_for(conditions[name], dtype) for name, dtype in self._conditions.items()}
        return self.reading.read(self._encode[0](written_for(x, self._dtype), **taken))
