"""Understand a decoder: its likelihood, the noise that it adds, and the module that is exported for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_runtime.errors import error_line
from vae_runtime.likelihood import KINDS
from vae_runtime.manifest import Latent, LatentPosterior, Likelihood

from ..errors import ExportError
from .adapted import Adapted
from .constants import Constants
from .declaration import Declaration
from .draws import Draws, Sigmoids
from .edges import as_float32, written_for
from .functions import Functions
from .halves import Halves
from .likelihood import Decoded, LikelihoodFound, find_likelihood
from .posterior import ForwardDiffers, joins
from .reading import DecoderReading, base_of, beside_of, mean_of
from .shapes import shows_shape


@dataclass(frozen=True)
class UnderstoodDecoder:
    """A decoder as a module without randomness."""

    module: nn.Module
    """Takes the latents, the noise and the conditions; returns the mean, logits or scale, and the further outputs."""
    likelihood: Likelihood
    noises: tuple[Latent, ...]
    """A latent for each draw that the decoder's answer depends on."""
    recognised: tuple[str, ...]


def understand_decoder(functions: Functions, latents: Sequence[Tensor], declaration: Declaration) -> UnderstoodDecoder:
    """Find a decoder's likelihood and the noise that it adds.

    Args:
        functions: encode and decode.
        latents: those of the example, [n, …].
        declaration: the known facts.

    Raises:
        ExportError: decode fails, something in it is unknown or random, or its answer contradicts the declaration.
    """
    try:
        output, draws = functions.decoded_quietly(latents)
    except ExportError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(latent.shape)) for latent in latents)
        message = (
            f"decode: fails on latents {shapes}: {error_line(error)}; pass decode=, a function of the latents and "
        )
        # Where forward takes the example, its halves may serve.
        raise (ForwardDiffers if functions.forward_runs() else ExportError)(f"{message}conditions") from error
    draws.require_normal_alone("decode")
    noises = _noises(functions, latents, mean_of(output), draws)
    # Its answer to latents far from the example's is of the same kind, and shows more of its range.
    generator = torch.Generator().manual_seed(0)
    far = [5 * torch.randn(z.shape, generator=generator) if z.is_floating_point() else z for z in latents]
    decoded = Decoded(output, draws, functions.decoded(far, Draws.constant(0.0)), latents)
    found = _of_observations(find_likelihood(decoded, functions.example, declaration), functions)
    module = _Decode(functions, found.reading, tuple(noises))
    lines = (*found.recognised, *draws.widened_line("decode"))
    return UnderstoodDecoder(module, found.likelihood, tuple(noises.values()), lines)


def _of_observations(found: LikelihoodFound, functions: Functions) -> LikelihoodFound:
    """Return the same with an answer of the observations' shape, where it has a likelihood and its order is known.

    It is known where the two shapes differ by axes of size 1 alone, or where one has several axes of the other as one,
    and the model itself puts observations into the shape of the answer.
    """
    shape, observed = found.likelihood.shape, tuple(functions.example.shape[1:])
    scored = found.likelihood.kind in KINDS and found.reading.class_axis is None
    if shape is None or not scored or not joins(shape, observed):
        return found
    alike = [size for size in shape if size != 1] == [size for size in observed if size != 1]
    if not alike and not shows_shape(functions, shape):
        return found
    why = "the same but for axes of size 1" if alike else "which the model itself puts into that of the answer"
    line = f"decode: its answer {list(shape)} is given the shape of an observation, {list(observed)}, {why}"
    return replace(
        found,
        likelihood=replace(found.likelihood, shape=None, axes=()),
        reading=replace(found.reading, shape=observed),
        recognised=(*found.recognised, line),
    )


def _noises(functions: Functions, latents: Sequence[Tensor], mean: Tensor, quiet: Draws) -> dict[int, Latent]:
    """A latent for each draw that the decoder's mean depends on, by the draw's number."""
    noises: dict[int, Latent] = {}
    for index, shape in enumerate(quiet.normal):
        moved = mean_of(functions.decoded(latents, Draws.constant(1.0, only=index)))
        if torch.equal(moved, mean):
            continue
        if shape[0] != len(latents[0]):
            raise ExportError(
                f"decode: draw {index + 1}: expected a row for each latent, got shape {list(shape)}; draw it with "
                "randn_like"
            )
        posterior = LatentPosterior("none", reason="noise that the decoder adds")
        noises[index] = Latent(f"noise{len(noises) + 1}", shape[1:], posterior)
    return noises


def answers(
    decoder: nn.Module, latents: Sequence[Tensor], conditions: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Return what the model's own decode gives, with its gradients: a component's outputs, and a scale of its own.

    Nothing steers its draws, its precision or its mode, so that the model may be trained. The scale is that of a
    distribution which decode returns.

    Args:
        decoder: what `understand_decoder` made, of a decode that draws nothing.
        latents: [n, …] each.
        conditions: values [n, …] by name, of which decode takes its own.
    """
    assert isinstance(decoder, _Decode)
    # Not `as seen`: torch.compile gives no object to it.
    seen = Sigmoids()
    with seen if decoder.reading.logits == "sigmoid" else contextlib.nullcontext():
        output = decoder.output(latents, conditions)
        outputs = tuple(as_float32(tensor) for tensor in decoder.reading.read(output, seen))
    base = base_of(output)
    scale = getattr(base, "scale", None) if isinstance(base, Distribution) else None
    return outputs, decoder.reading.observed(as_float32(scale)) if isinstance(scale, Tensor) else None


def beside(adapted: Adapted) -> list[str]:
    """Name what decode returns beside the observation that may be a scale of it, or a second mean.

    Args:
        adapted: its decoder is what `understand_decoder` made.
    """
    signature, decoder = adapted.signature, adapted.modules["decoder"]
    assert isinstance(decoder, _Decode)
    if isinstance(halves := getattr(decoder.decode, "__self__", None), Halves):
        return list(halves.beside)
    # Without the noise that decode adds, which comes last.
    latents = [adapted.examples[latent.name] for latent in signature.latents[: decoder.count]]
    conditions = {condition.name: adapted.examples[condition.name] for condition in signature.conditions}
    with torch.no_grad(), Draws.constant(0.0):
        return beside_of(decoder.output(latents, conditions), [*latents, *conditions.values()])


def require_no_scale(adapted: Adapted, declared: str | None) -> None:
    """Refuse a kind with a scale where decode returns a tensor that may be the scale: another one would be scored.

    Args:
        adapted: as `beside` takes it.
        declared: the kind, if it is declared.

    Raises:
        ExportError: decode returns such a tensor.
    """
    if declared is None or declared not in KINDS or not KINDS[declared].scale:
        return
    found = beside(adapted)
    if found:
        raise ExportError(
            f"likelihood: {declared} has a scale, and decode returns {found[0]} beside the mean, which may be it; "
            "pass decode=, a function that returns a torch.distributions.Normal(mean, std), or the mean alone"
        )


class _Decode(nn.Module):
    """A decoder as it is exported."""

    def __init__(self, functions: Functions, reading: DecoderReading, noises: tuple[int, ...]) -> None:
        super().__init__()
        self.model = functions.model
        # In a tuple, since a module as an attribute would be registered a second time.
        self._decode = (functions.decode,)
        self.reading = reading
        self._latents = functions.latent_dtypes
        self._conditions = {name: tensor.dtype for name, tensor in functions.decode_conditions.items()}
        self._noises = noises
        self._constants = Constants(functions.model)
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        latents, rest = tensors[: len(self._latents)], tensors[len(self._latents) :]
        noises, rest = rest[: len(self._noises)], rest[len(self._noises) :]
        draws = Draws.inputs(dict(zip(self._noises, noises, strict=True)))
        with draws, self._constants.folded():
            output = self.output(latents, dict(zip(self._conditions, rest, strict=True)))
            return tuple(as_float32(tensor) for tensor in self.reading.read(output, draws))

    @property
    def count(self) -> int:
        """The number of latents that decode takes."""
        return len(self._latents)

    @property
    def decode(self) -> Callable[..., Any]:
        """The model's own decode."""
        return self._decode[0]

    def output(self, latents: Sequence[Tensor], conditions: Mapping[str, Tensor]) -> Any:
        """The answer of the model's own decode."""
        taken = {name: written_for(conditions[name], dtype) for name, dtype in self._conditions.items()}
        given = (written_for(tensor, dtype) for tensor, dtype in zip(latents, self._latents, strict=True))
        return self._decode[0](*given, **taken)
