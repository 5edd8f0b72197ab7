"""Find the pure functions of a source, check them in eager PyTorch, and fit a prior if one is requested."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vae_runtime.errors import counted

from .errors import ExportError
from .sources import EXAMPLES, Source
from .understand.adapt import adapt, adapt_decoder, declared
from .understand.adapted import Adapted, run_module
from .understand.checks import check_declaration
from .understand.declaration import Mixture
from .understand.evidence import unread
from .understand.inner import inner_model
from .understand.prior import fit_prior, is_fitted, mixture_prior
from .understand.probe import probe
from .understand.soundness import faults_first
from .understand.tiling import with_tiles


def understand_source(source: Source) -> Adapted:
    """Return the model's pure functions, checked in eager PyTorch, with the prior that is known, found or fitted."""
    model, held_as = source.model, None
    if not source.latents:
        model, held_as = inner_model(source.model, source.example, source.conditions)
    holder = source.holder if model is source.model else source.model
    by, known = declared(model)
    declaration = source.declaration.over(known)
    check_declaration(declaration)
    own = declaration.prior if isinstance(declaration.prior, Mixture) or is_fitted(declaration.prior) else None
    if own is not None:
        declaration = dataclasses.replace(declaration, prior="none")
    facts: dict[str, Any] = {
        "source": by, "conditions": source.conditions, "classes": source.classes, "holder": holder,
    }  # fmt: skip
    if source.latents:
        adapted = adapt_decoder(model, source.latents, declaration, **facts)
    else:
        with faults_first(model, source.example, source.conditions, declaration):
            adapted = adapt(model, source.example, declaration, **facts)
    adapted = dataclasses.replace(adapted, recognised=(*source.notes, *adapted.recognised))
    if holder is not None:
        adapted = dataclasses.replace(adapted, recognised=(_held_line(holder, model, held_as), *adapted.recognised))
    adapted = with_tiles(probe(adapted, tuple(declaration.dynamic or ())), model)
    adapted = _normalised(adapted, source)
    adapted = dataclasses.replace(adapted, recognised=(*adapted.recognised, *_left_out(source.model, adapted)))
    return adapted if own is None else _with_prior(adapted, source, own)


def _held_line(holder: object, model: nn.Module, name: str | None) -> str:
    """A line that says which module is exported in the place of the object that holds it."""
    what = f"its {name} ({type(model).__name__})" if name else f"the {type(model).__name__} that it holds"
    return f"{type(holder).__name__}: {what} is exported; what it does itself around that module is not in the bundle"


def _left_out(model: nn.Module, adapted: Adapted) -> list[str]:
    """Return a line that names the parameters that neither function reads, since the bundle loses them."""
    parameters = dict(model.named_parameters())
    left = [name for name in unread(model, adapted, rows=1) if name in parameters]
    more = f" and {len(left) - 4} more" if len(left) > 4 else ""
    neither = "neither encode nor decode reads" if "encoder" in adapted.modules else "decode does not read"
    return [f"left out, since {neither} them: {', '.join(left[:4])}{more}"] if left else []


def _normalised(adapted: Adapted, source: Source) -> Adapted:
    observation = dataclasses.replace(adapted.signature.observation, normalisation=source.normalisation)
    signature = dataclasses.replace(adapted.signature, observation=observation, table=source.table)
    return dataclasses.replace(adapted, signature=signature)


def _with_prior(adapted: Adapted, source: Source, own: str | Mixture) -> Adapted:
    """Return the same with a prior that is given, or fitted to the observations."""
    signature = adapted.signature
    own_kind = own if isinstance(own, str) else "a mixture"
    if len(signature.latents) > 1 or signature.latent.posterior.kind == "codes" or signature.latent.dynamic:
        raise ExportError(
            f"prior: {own_kind} is over one latent of a fixed size that is no code; this model has the latents "
            f"{[latent.name for latent in signature.latents]}, posterior {signature.latent.posterior.kind}, dynamic "
            f"axes {list(signature.latent.dynamic)}"
        )
    name, shape = signature.latent.name, signature.latent.shape
    if isinstance(own, str):
        prior, content = fit_prior(own, name, _means(adapted, source))
        count = len(source.observations)
        what = counted(count, "latent") if source.latents else f"the latents of {counted(count, 'observation')}"
        line = f"prior: {own}, fitted to {what}"
    else:
        if own.means.shape[1] != math.prod(shape):
            raise ExportError(
                f"prior: expected {counted(math.prod(shape), 'dimension')}, those of the latent {list(shape)}, got "
                f"{own.means.shape[1]} from {own.origin}"
            )
        covariance = "full" if own.factors.ndim > own.means.ndim else "diagonal"
        prior, content = mixture_prior(name, own.weights, own.means, own.factors, covariance)
        line = f"prior: a mixture of {len(own.weights)}, {own.origin}"
    latent = dataclasses.replace(signature.latent, prior=prior)
    return dataclasses.replace(
        adapted,
        signature=dataclasses.replace(signature, latents=(latent,)),
        recognised=(*adapted.recognised, line),
        prior_file=content,
    )


def _means(adapted: Adapted, source: Source) -> NDArray[np.float32]:
    """The posterior means of the observations, or the latents themselves."""
    if source.latents:
        return np.asarray(source.observations, np.float32)
    signature = adapted.signature
    rest = {name: tensor for name, tensor in adapted.examples.items() if name != signature.observation.name}
    if len(source.observations) > len(source.example) and any(c.components for c in signature.conditions):
        raise ExportError("prior: observations with conditions cannot be fitted; export without conditions")
    means = []
    for chunk in source.observations.split(EXAMPLES):
        given = {signature.observation.name: chunk, **{name: tensor[: len(chunk)] for name, tensor in rest.items()}}
        means.append(run_module(adapted.modules["encoder"], adapted.given("encoder", given))[0].numpy())
    return np.concatenate(means)
