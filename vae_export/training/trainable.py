"""Whether a module of the user's is a VAE that the objectives are of: its state, posterior, prior and likelihood."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vae_runtime.errors import InputError
from vae_runtime.likelihood import KINDS

from ..errors import ExportError
from ..understand.adapted import Adapted, run_module
from ..understand.decoder import beside
from ..understand.likelihood import NOT_DECLARED
from ..understand.probe import TRAINED
from ..understand.reading import AS_CODES

_AS_NORMAL = "return a normal posterior from encode, (mu, logvar), or train it elsewhere and export it then"

_NAMED = 12
# From how many times the largest observation on an answer of the decoder is of another size.
_FAR = 30
_FROM_RANDOM = (
    "if a layer begins with weights of zero, such as the last one, let them begin at small random numbers "
    "(nn.init.normal_(weight, std=1e-2)); else check that encode and decode use all that they are given"
)


@contextmanager
def as_trained(trained: bool) -> Iterator[None]:
    """Replace the advice of an export that is none for a training: here encode and decode are names of methods.

    Args:
        trained: whether the model was trained before.
    """
    try:
        yield
    except ExportError as error:
        advice = str(error).replace(AS_CODES, _AS_NORMAL)
        advice = advice if trained else advice.replace(TRAINED, _FROM_RANDOM)
        advice = re.sub(r"\bpass (encode|decode)=, a function", r"give the model a method for \1=, a function", advice)
        error.args = (
            advice.replace("pass encode= and decode=, f", "give the model methods for encode= and decode=, f"),
        )
        raise


def methods_advice(model: nn.Module) -> str:
    """Return the advice to give a model's two halves a name each, with the names of its submodules."""
    children = [name for name, _ in model.named_children()]
    has = (
        f" (its submodules are {', '.join(children[:_NAMED])}{', …' if children[_NAMED:] else ''})" if children else ""
    )
    return (
        "give the model methods encode and decode, or pass encode= and decode=, the names of a method or a submodule "
        f"each{has}"
    )


def unlike_observations(adapted: Adapted, x: Tensor) -> tuple[str, ...]:
    """Return a line that warns of a decoder whose answers are far larger than the observations, such as 0 … 255.

    Args:
        adapted: what was understood.
        x: the observations that it was understood on, [n, *shape].
    """
    kind = KINDS[adapted.signature.likelihood.kind]
    mean = run_module(adapted.modules["decoder"], adapted.given("decoder"))[0]
    usual, largest = float(mean.abs().median()), float(x.abs().max())
    if kind.mean_support is not None or usual <= _FAR * max(largest, 1e-6):
        return ()
    return (
        f"warning: decode gives {float(mean.min()):.3g} … {float(mean.max()):.3g} before the training, for "
        f"observations of {float(x.min()):.3g} … {float(x.max()):.3g}; let it give values of their size, or leave the "
        "data as the model was written for (--normalise none)",
    )


def require_plain_state(module: nn.Module) -> None:
    """Refuse a module whose state holds anything but tensors, or numbers that are not float32.

    Raises:
        InputError: it does.
    """
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(f"model: {name}: expected a tensor in state_dict(), got {type(value).__name__}")
        if value.is_floating_point() and value.dtype != torch.float32:
            dtype = str(value.dtype).removeprefix("torch.")
            raise InputError(f"model: {name}: expected float32, got {dtype}; train model.float()")


def require_vae(adapted: Adapted, x: Tensor) -> None:
    """Refuse what is no VAE with a normal posterior, a standard normal prior and a likelihood of the observations.

    Args:
        adapted: what was understood.
        x: the observations that it was understood on, [n, *shape].

    Raises:
        ExportError: it is none.
    """
    likelihood = adapted.signature.likelihood
    for latent in adapted.signature.latents:
        posterior, prior = latent.posterior, latent.prior
        if posterior.kind == "codes":
            raise ExportError(
                f"posterior: {latent.name} are codes, which no normal posterior is of; train it elsewhere"
            )
        if posterior.kind == "none" and posterior.value is None:
            raise ExportError(f"decode: draws {latent.name}, {posterior.reason}; let it draw nothing")
        if posterior.kind != "normal":
            raise ExportError(
                f"posterior: expected a normal one, {latent.name} has none: {posterior.reason}; return (mu, logvar) "
                "from encode"
            )
        if posterior.noise:
            raise ExportError(
                f"encode: draws the noise {posterior.noise} itself, since a posterior depends on a sample of another; "
                "such a hierarchy cannot be trained here"
            )
        if prior.kind != "normal":
            raise ExportError(
                f"prior: expected a standard normal one, {latent.name} has {prior.kind}"
                f"{f': {prior.reason}' if prior.reason else ''}; pass prior='normal' to train it "
                "against that one nevertheless"
            )
    if likelihood.kind not in KINDS:
        if likelihood.reason not in (None, NOT_DECLARED):
            raise ExportError(
                f"likelihood: {likelihood.reason}, those that are trained; return the distribution or the tensor of "
                "one of them from decode, or train it elsewhere and export it, for samples without scores"
            )
        raise ExportError(
            "likelihood: none is declared, and decode returns no distribution that shows one; pass likelihood= "
            f"(--likelihood), one of {', '.join(KINDS)}"
        )
    _require_observation_alone(adapted)
    kind = KINDS[likelihood.kind]
    if likelihood.shape is not None and not kind.classes:
        raise ExportError(
            f"decode: expected observations of shape {list(x.shape[1:])}, got {list(likelihood.shape)}; pass decode=, "
            "the name of a method that returns them"
        )


def _require_observation_alone(adapted: Adapted) -> None:
    """Refuse a decode that returns a scale, or a second mean, in a tensor of its own: training would drop it."""
    found = beside(adapted)
    if found:
        raise ExportError(
            f"decode: expected the mean alone, or a distribution, got {found[0]} beside it, which training would drop; "
            "return a torch.distributions.Normal(mean, std) if it is a scale, else pass decode=, the name of a method "
            "that returns the mean alone"
        )
