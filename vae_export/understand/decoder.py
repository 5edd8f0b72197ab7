"""Understand a decoder: its likelihood, the noise that it adds, and the module that is exported for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_runtime.errors import error_line
from vae_runtime.manifest import Latent, LatentPosterior, Likelihood

from ..errors import ExportError
from .constants import Constants
from .declaration import Declaration
from .draws import Draws
from .edges import as_float32, written_for
from .functions import Functions
from .likelihood import Decoded, find_likelihood
from .posterior import ForwardDiffers
from .reading import DecoderReading, mean_of


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
    found = find_likelihood(decoded, functions.example, declaration)
    module = _Decode(functions, found.reading, tuple(noises))
    lines = (*found.recognised, *draws.widened_line("decode"))
    return UnderstoodDecoder(module, found.likelihood, tuple(noises.values()), lines)


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


class _Decode(nn.Module):
    """A decoder as it is exported."""

    def __init__(self, functions: Functions, reading: DecoderReading, noises: tuple[int, ...]) -> None:
        super().__init__()
        self.model = functions.model
        # In a tuple, since a module as an attribute would be registered a second time.
        self._decode = (functions.decode,)
        self._reading = reading
        self._latents = functions.latent_dtypes
        self._conditions = {name: tensor.dtype for name, tensor in functions.decode_conditions.items()}
        self._noises = noises
        self._constants = Constants(functions.model)
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        latents = [written_for(tensor, dtype) for tensor, dtype in zip(tensors, self._latents, strict=False)]
        rest = tensors[len(latents) :]
        noises, rest = rest[: len(self._noises)], rest[len(self._noises) :]
        draws = Draws.inputs(dict(zip(self._noises, noises, strict=True)))
        with draws, self._constants.folded():
            conditions = {
                name: written_for(tensor, dtype)
                for (name, dtype), tensor in zip(self._conditions.items(), rest, strict=True)
            }
            output = self._decode[0](*latents, **conditions)
            return tuple(as_float32(tensor) for tensor in self._reading.read(output, draws))
