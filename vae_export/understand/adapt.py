"""Any VAE → two pure functions, encode and decode, and what their tensors mean.

Facts that are not declared are found by running the model: see docs/bring-your-own.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vae_runtime.manifest import Latent, Signature

from ..errors import ExportError
from .adapted import Adapted
from .declaration import Declaration
from .decoder import understand_decoder
from .edges import at_edge
from .encoder import understand_encoder
from .families.registry import family_of
from .functions import find_functions
from .observation import conditions_of, observation_of


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
) -> Adapted:
    """Find a VAE's pure functions and what they mean.

    Args:
        model: in evaluation mode, float32, on the CPU (see `state.unchanged`).
        example: observations [n, …], float32, integers or bools, n at least 2.
        declaration: the known facts; the model is run to find the others.
        source: who declared them, for the record.
        conditions: values [n, …] by name, as the example.
        classes: names of the values 0, 1, … of integer conditions.

    Raises:
        ExportError: a fact stays unknown, and the error names the argument that settles it; or the model is no pair of
            pure functions, since it draws noise in its encoder, for example.
    """
    conditions = dict(conditions or {})
    functions = find_functions(model, example, conditions, declaration)
    encoder = understand_encoder(functions, declaration)
    functions = encoder.functions
    decoder = understand_decoder(functions, encoder.values, declaration)
    observation = observation_of(model, functions.example, declaration, decoder.likelihood.kind)
    by_component = {"encoder": functions.encode_conditions, "decoder": functions.decode_conditions}
    signature = Signature(
        observation=observation,
        latents=(*encoder.latents, *decoder.noises),
        likelihood=decoder.likelihood,
        conditions=conditions_of(functions.conditions, by_component, classes or {}),
    )
    examples = {name: at_edge(tensor) for name, tensor in {observation.name: example, **conditions}.items()}
    examples |= {latent.name: value for latent, value in zip(encoder.latents, encoder.values, strict=True)}
    examples |= {name: tensor for latent in signature.latents for name, tensor in _noise(latent, len(example)).items()}
    recognised = (
        *([f"declared by {source}"] if source else []),
        *functions.recognised,
        *encoder.recognised,
        *decoder.recognised,
        *_described(signature, declaration),
    )
    return Adapted({"encoder": encoder.module, "decoder": decoder.module}, signature, examples, recognised)


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
