"""Decide which prior a model is sampled from: by its configuration, its own `sample`, and the weights that it keeps.

A prior that was declared or fitted, or that a family states, is taken as it is. A standard normal that nothing speaks
for or against is marked as assumed.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vae_runtime.errors import error_line
from vae_runtime.manifest import Latent, LatentPrior

from ..errors import ExportError
from .adapted import Adapted, run_module
from .agreement import nearest
from .draws import Draws
from .encoder import learns_spread
from .functions import Functions, another, conditions_taken
from .posterior import SAME, distance
from .prior import mixture_prior
from .reading import AS_CODES
from .sampler import (
    NotASampler,
    Sampler,
    Trial,
    answers_to,
    decoded,
    drawing_methods,
    objects_of,
    prior_numbers,
    samplers_of,
)
from .state import used_tensors
from .stated import (
    Setting,
    has_direction,
    numbers_in,
    scaling,
    stated_priors,
    states_numbers,
    supplied,
)

# Words in the names of weights that belong to a prior.
_PRIOR_WORDS = (
    "prior", "pseudo", "vamp", "flow", "mixture", "gmm", "cluster", "made", "realnvp", "coupling", "p_z", "pz", "p_net",
    "nf",
)  # fmt: skip
# Those of them, between dots, underscores and digits, that leave no doubt.
_OWN_PRIOR_WORDS = {"prior", "pseudo", "pseudoinput", "pseudoinputs", "vamp", "vampprior"}
# Words in the names of weights that serve training, or classify.
_OTHER_WORDS = (
    "disc", "critic", "classif", "clf", "loss", "percept", "lpips", "vgg", "ema", "teacher", "target", "pos_weight",
    "log_scale", "log_sigma_x", "x_mean", "x_std", "head_y",
)  # fmt: skip
# Words, between dots, underscores and digits, in the names of layers that give a posterior or its codes.
_POSTERIOR_WORDS = {
    "mu", "mean", "means", "var", "variance", "logvar", "lv", "sigma", "logsigma", "std", "logstd", "codebook", "vq",
    "quantize", "quantizer",
}  # fmt: skip
_ROWS = 5
_SETTLE = 'pass prior="normal" if the latents are standard normal, "none", or a prior to fit, such as prior="diagonal"'


@dataclass(frozen=True)
class Evidence:
    """The prior that a model shows."""

    prior: LatentPrior
    line: str
    """What was found, for the record."""
    file: bytes | None = None
    """The content of the prior's file, for a mixture."""
    scale: float | tuple[float, ...] = 1.0
    """The model that supplies the latents takes (z - shift) · scale."""
    shift: float | tuple[float, ...] = 0.0
    checked: tuple[str, ...] = ()
    """The model's own sampler, if it was run and draws this prior, for the record."""


def find_prior(functions: Functions, adapted: Adapted, *, settled: bool = True, holder: object = None) -> Evidence:
    """Find the prior of a model with one latent, or several, that are normal or points.

    Args:
        functions: encode and decode.
        adapted: the same as modules.
        settled: whether the decoder takes the latents that the model's own decode takes; if not, only its own `sample`
            shows which latents its prior is of.
        holder: an object or a module that holds the model; what it shows comes first.

    Raises:
        ExportError: the model's own `sample` draws latents that are not normal, and its encoder gives one tensor.
    """
    latents = [latent for latent in adapted.signature.latents if latent.posterior.outputs]
    owners = [owner for owner in (holder, functions.model) if owner is not None]
    for owner in owners:
        found = supplied(owner, (latents[0].shape[0], int(np.prod(latents[0].shape))))
        if found is not None:
            name = found if isinstance(found, str) else found.name
            if not has_direction(found):
                return _none(
                    f"another model supplies the latents, as {name} in this model says, and which way it takes them "
                    "is unknown: pass latent_scale= and latent_shift="
                )
            scale, shift, unscaled = scaling(owner, latents[0].shape[0], partial(_is_read, functions.model, adapted))
            reason = f"another model supplies the latents, as {name} in this model says"
            return _none("; ".join(part for part in (reason, unscaled) if part), scale, shift)
    for owner in owners:
        shown = _from_sampler(owner, functions, adapted, latents)
        if shown is not None:
            left = _of_a_prior(owner, adapted) if shown.prior.kind == "normal" else []
            if left:
                return _none(f"its own sampler draws a standard normal, but {_names(left)} may be a learned prior")
            return shown
    if "encoder" not in adapted.modules:
        return _none("nothing shows which latents the decoder is sampled from")
    if any(latent.posterior.kind != "normal" for latent in latents):
        reason = "a deterministic autoencoder has no prior over its latents"
        return Evidence(LatentPrior("none", reason=reason), f"prior: none, {reason}")
    if any(latent.posterior.noise for latent in latents):
        return _none("the posterior of one latent depends on a draw of another, and its prior may, too")
    if not settled:
        reason = (
            "forward changes the latents between the noise and decode, and nothing shows whether the prior is that of "
            "the latents before or after"
        )
        return _none(reason)
    left = [name for owner in owners for name in stated_priors(owner)]
    if left:
        return _none(f"the model states {_names(left)}, which may be another prior's than the standard normal")
    left = sorted(functions.returned_priors)
    if left:
        return _none(f"forward returns {_names(left)}, which may be another prior's than the standard normal")
    held = _supplied_within(functions.model)
    if held is not None:
        return _none(f"its part {held} says that another model supplies the latents")
    left = [name for owner in owners for name in _kept_numbers(owner, functions, adapted)]
    left += _left_over(holder if isinstance(holder, nn.Module) else functions.model, adapted)
    if left:
        return _none(f"neither encode nor decode reads {_names(left)}, which may be a learned prior")
    if len(latents) == 1 and _is_constant(adapted, latents[0]):
        return _none("the posterior has the same spread for every observation, as noise on an autoencoder has")
    return Evidence(
        LatentPrior("normal", assumed=True), "prior: normal, assumed, since nothing in the model speaks for another"
    )


def _none(reason: str, scale: float | tuple[float, ...] = 1.0, shift: float | tuple[float, ...] = 0.0) -> Evidence:
    return Evidence(LatentPrior("none", reason=reason), f"prior: none, {reason}; {_SETTLE}", None, scale, shift)


def _is_read(model: nn.Module, adapted: Adapted, setting: Setting) -> bool:
    """Whether encode or decode changes with a setting."""
    if isinstance(setting.value, Tensor) and setting.name in dict(model.named_buffers()):
        return setting.name not in unread(model, adapted, rows=2)

    def answers() -> list[Tensor]:
        return [
            output
            for name, module in adapted.modules.items()
            for output in run_module(module, [tensor[:2] for tensor in adapted.given(name)], again=True)
        ]

    numbers = numbers_in(setting.value)
    before = answers()
    if not setting.own or numbers is None or numbers.size != 1:
        return False
    own = vars(setting.holder)
    kept = own.get(setting.name)
    object.__setattr__(setting.holder, setting.name, 1.5 * float(numbers[0]) + 0.1)
    try:
        after = answers()
    except Exception:
        return True
    finally:
        if kept is None:
            object.__delattr__(setting.holder, setting.name)
        else:
            object.__setattr__(setting.holder, setting.name, kept)
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _supplied_within(model: nn.Module) -> str | None:
    """The name of a part that has a configuration of its own, with the scale of the latents that other models take."""
    for name, module in model.named_modules():
        settings = getattr(module, "config", None)
        if name and settings is not None and supplied(module, ()) is not None:
            return f"{name} ({type(module).__name__})"
    return None


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def unread(model: nn.Module, adapted: Adapted, rows: int | None = None) -> dict[str, Tensor]:
    """Return the weights that neither component reads, by name; buffers come last.

    Args:
        model: its weights.
        adapted: its components.
        rows: how many rows of the example they are run on; all by default.
    """
    buffers = {name: tensor for name, tensor in model.named_buffers() if tensor.numel()}
    tensors = {**dict(model.named_parameters()), **buffers}
    used = {id(tensor) for tensor in _read(adapted, tensors.values(), rows)}
    return {name: tensor for name, tensor in tensors.items() if id(tensor) not in used and tensor.is_floating_point()}


def _read(adapted: Adapted, tensors: Collection[Tensor], rows: int | None = None) -> list[Tensor]:
    """Those of the tensors that a component reads, run on so many rows of the example."""

    def run() -> None:
        for component, module in adapted.modules.items():
            run_module(module, [tensor[:rows] for tensor in adapted.given(component)], again=True)

    return used_tensors(run, tensors) if tensors else []


def require_posterior(functions: Functions, adapted: Adapted) -> None:
    """Refuse to take for an autoencoder a model with layers for a posterior, or a codebook, that nothing reads.

    Raises:
        ExportError: it has such layers, or a method that draws beside those that sample.
    """
    parameters = dict(functions.model.named_parameters())
    names = [name for name in unread(functions.model, adapted) if name in parameters]
    layers = [name for name in names if _POSTERIOR_WORDS & _words(name)]
    if layers:
        raise ExportError(
            f"encode: returns one tensor, and neither encode nor decode reads {_names(layers)}: the model has a "
            "posterior or a codebook that these do not use; pass encode= and decode=, functions that do"
        )
    # encode and decode were seen to draw nothing; what their code names sample may be the field of another's answer.
    seen = {getattr(function, "__name__", "") for function in (functions.encode, functions.decode)}
    drawing = [name for name in drawing_methods(functions.model) if name not in seen]
    if drawing:
        raise ExportError(
            f"encode: returns one tensor, forward gives nothing to compare, and {_names(drawing)} draws; if these are "
            f'latents, {AS_CODES}; if not, such as noise on the observation, pass posterior="none"'
        )


def _words(name: str) -> set[str]:
    """The words between dots, underscores and digits in a name of weights."""
    return set(re.split(r"[._0-9]+", name.lower()))


def _left_over(model: nn.Module, adapted: Adapted) -> list[str]:
    """The names of weights that neither component reads and that may be those of a prior."""
    buffers = dict(model.named_buffers())
    sizes = {size * factor for size in _latent_sizes(adapted) for factor in (1, 2)}
    observation = adapted.signature.observation.shape
    pixels = int(np.prod(observation))
    left = []
    for name, tensor in unread(model, adapted).items():
        if name in buffers and (bool((tensor == 0).all()) or bool((tensor == 1).all())):
            # The mean and the standard deviation of a standard normal.
            continue
        named = any(word in name.lower() for word in _PRIOR_WORDS)
        # Along the first axis a layer has its answers, along the last its inputs, and a parameter of its own numbers.
        ends = {tensor.shape[0], tensor.shape[-1]} if tensor.dim() else set()
        shaped = bool(ends & {*sizes, pixels}) or tuple(tensor.shape[1:]) == observation
        # What is trained and read by neither is the loss's: of a prior, unless its name says otherwise.
        if named or ((shaped or name not in buffers) and not any(word in name.lower() for word in _OTHER_WORDS)):
            left.append(name)
    return left


def _latent_sizes(adapted: Adapted) -> set[int]:
    """The number of all values of each latent, and that of its channels."""
    return {size for latent in adapted.signature.latents for size in (math.prod(latent.shape), latent.shape[0])}


def _of_a_prior(model: object, adapted: Adapted) -> list[str]:
    """The names of weights that neither component reads and that are named as a prior's."""
    names = _left_over(model, adapted) if isinstance(model, nn.Module) else []
    return [name for name in names if _OWN_PRIOR_WORDS & _words(name)]


def _kept_numbers(owner: object, functions: Functions, adapted: Adapted) -> list[str]:
    """What may be numbers of a prior, other than those of a standard normal, and is no weight and no setting.

    A method gives them that is named as the prior, or they lie in an object of such a name. Or there are as many as the
    latent has, and neither component reads them.
    """
    found: dict[str, object] = dict(prior_numbers(owner, functions.conditions))
    for part, value in objects_of(owner):
        # What a layer of PyTorch keeps beside its weights are sizes and settings.
        if "prior" in part.lower() and not type(value).__module__.startswith("torch.nn."):
            found |= {f"{part}.{name}": number for name, number in vars(value).items() if not name.startswith("_")}
    for name, value in vars(owner).items():
        if not name.startswith("_") and _size_of(value) in _latent_sizes(adapted):
            found[name] = value
    read = {id(tensor) for tensor in _read(adapted, [each for each in found.values() if isinstance(each, Tensor)])}
    for name in _records(owner, functions) if found else ():
        found.pop(name, None)
    return [name for name, value in found.items() if id(value) not in read and states_numbers(value)]


def _records(owner: object, functions: Functions) -> list[str]:
    """The names of what a run leaves in its model for each observation, such as a mean for the loss.

    What follows from the conditions alone may be a prior's.
    """
    taken = conditions_taken(functions.model, functions.conditions)

    def left_by(x: Tensor) -> dict[str, Tensor]:
        before = dict(vars(owner))
        with contextlib.suppress(Exception), torch.no_grad():
            functions.encoded(Draws.constant(0.0))
            with Draws.constant(0.0):
                functions.model(x, **taken)
        left = {name: value for name, value in vars(owner).items() if value is not before.get(name)}
        return {name: value for name, value in left.items() if isinstance(value, Tensor)}

    one, other = left_by(functions.example.clone()), left_by(another(functions.example))
    return [
        name
        for name, value in one.items()
        # A model may refuse the other observations.
        if value.shape[:1] == functions.example.shape[:1] and not (name in other and torch.equal(value, other[name]))
    ]


def _size_of(value: object) -> int | None:
    """The size of a tensor's last axis, or of a list of numbers of which some are no integers."""
    if isinstance(value, (list, tuple)):
        return len(value) if any(isinstance(number, float) for number in value) else None
    return value.shape[-1] if isinstance(value, Tensor) and value.dim() else None


def _is_constant(adapted: Adapted, latent: Latent) -> bool:
    """Whether the posterior's spread is the same for every observation and every number, and stays so in a training."""
    outputs = run_module(adapted.modules["encoder"], adapted.given("encoder"))
    std = dict(zip(adapted.outputs("encoder"), outputs, strict=True)).get(str(latent.posterior.std))
    same = std is not None and std.numel() > len(std) and bool((std == std.flatten()[0]).all())
    x = adapted.examples[adapted.signature.observation.name]
    return same and not learns_spread(adapted.modules["encoder"], x, adapted.examples)


# The model's own sampler.


def _from_sampler(owner: object, functions: Functions, adapted: Adapted, latents: Sequence[Latent]) -> Evidence | None:
    """The prior that the model's own `sample` draws from; None if it has none, or none that can be called."""
    for sampler in samplers_of(owner, functions, adapted):
        try:
            shown = _shown(sampler, functions, adapted, latents)
        except NotASampler:
            continue
        except ExportError:
            raise
        except Exception as error:
            return _none(f"{sampler.name} cannot be followed: {error_line(error)}")
        if shown.prior.kind == "none":
            return shown
        return replace(shown, checked=(f"checked: {sampler.name}, which draws this prior",))
    return None


def _shown(sampler: Sampler, functions: Functions, adapted: Adapted, latents: Sequence[Latent]) -> Evidence:
    """The prior of a sampler, found by giving it its draws."""
    trial = sampler.run(_ROWS)
    draws = trial.draws
    if not (draws.normal or draws.weights or draws.other):
        if trial.decoded and sampler.random():
            return _none(f"{sampler.name} draws with something other than PyTorch")
        raise NotASampler
    if not trial.returned and trial.latents is None:
        raise NotASampler
    if any(latent.posterior.kind != "normal" for latent in latents) and draws.weights:
        raise ExportError(f"{sampler.name}: draws classes as latents, and encode gives none; {AS_CODES}")
    if trial.other:
        return _none(f"{sampler.name} draws with {trial.other[0]}, neither normal noise nor the choice of a component")
    if draws.weights and functions.decode_conditions:
        return _none(f"{sampler.name} draws an index, which may be that of a condition")
    if len(latents) == 1 and trial.latents is not None and trial.answers:
        _require_answer(sampler, trial, adapted, latents[0])
    if not draws.weights and _is_noise(trial, adapted, latents):
        rows = range(1, min(_ROWS, len(functions.example)) if functions.conditions else 1)
        if not all(_is_noise(sampler.run(_ROWS, row=row), adapted, latents, row) for row in rows):
            return _none(f"{sampler.name} draws other latents where the conditions are others")
        return Evidence(LatentPrior("normal"), f"prior: normal, as {sampler.name} draws it")
    if trial.latents is None or len(latents) > 1:
        return _none(f"{sampler.name} draws something else than the standard normal that decode would be given")
    (latent,) = latents
    flat = trial.noise.flatten(1) if trial.noise is not None else None
    if flat is not None and not draws.weights:
        direction = (flat / flat.norm(dim=1, keepdim=True)).reshape(trial.latents.shape)
        if distance(trial.latents, direction) <= SAME:
            return Evidence(LatentPrior("sphere"), f"prior: uniform on the sphere, as {sampler.name} draws it")
    mixture = sampler.mixture(trial)
    if mixture is None:
        return _none(f"{sampler.name} draws neither a normal nor a mixture of normals, the same for every sample")
    weights, means, factors, covariance = mixture
    prior, file = mixture_prior(latent.name, weights, means, factors, covariance)
    what = (
        f"a mixture of {len(weights)} normals" if len(weights) > 1 else "a normal with a mean and variances of its own"
    )
    return Evidence(prior, f"prior: {what}, as {sampler.name} draws it", file)


def _require_answer(sampler: Sampler, trial: Trial, adapted: Adapted, latent: Latent) -> None:
    """Require that a sampler returns what the bundle's decoder gives for its latents: the mean, or logits of it.

    Raises:
        ExportError: it does something else with decode's answer.
    """
    if trial.count < len(trial.draws.normal):
        # It draws observations around the mean.
        trial = sampler.run(_ROWS, count=trial.count)
    assert trial.latents is not None
    mean, *others = answers_to(adapted, {latent.name: trial.latents.contiguous()})
    answers = [answer.float() for answer in trial.answers if answer.numel() == mean.numel()]
    if not answers or any(bool(((answer == 0) | (answer == 1)).all()) for answer in answers):
        # Binary pictures are drawn, or cut off, from the mean.
        return

    def gap(expected: Sequence[Tensor]) -> float:
        found = nearest(answers, expected, reshaped=True)
        return math.inf if found is None else found

    if gap([mean, *others]) <= SAME:
        return
    advice = "pass decode=, a function that does the same, or a prior of your own"
    if gap([torch.sigmoid(mean)]) <= SAME:
        advice = 'pass likelihood="bernoulli", since decode gives logits'
    raise ExportError(f"{sampler.name}: returns something other than decode's answer; {advice}")


def _is_noise(trial: Trial, adapted: Adapted, latents: Sequence[Latent], row: int = 0) -> bool:
    """Whether a sampler decodes its noise as it is, with the conditions of this row."""
    if len(latents) == 1 and trial.latents is not None and trial.noise is not None:
        return distance(trial.latents, trial.noise) <= SAME
    # Nothing shows the latents themselves, but the decoder's answer to the same noise does.
    given = [noise for noise in trial.given if noise.dim() > 1]
    if [tuple(noise.shape[1:]) for noise in given] != [latent.shape for latent in latents]:
        return False
    own = decoded(adapted, {latent.name: noise for latent, noise in zip(latents, given, strict=True)}, row)
    gap = nearest(trial.returned, own, reshaped=True)
    return gap is not None and gap <= SAME


def with_prior(adapted: Adapted, evidence: Evidence) -> Adapted:
    """Return the same with this prior for every latent that the encoder gives."""
    signature = adapted.signature
    latents = tuple(
        _with(latent, evidence) if latent.posterior.outputs and latent.posterior.kind != "codes" else latent
        for latent in signature.latents
    )
    return replace(
        adapted,
        signature=replace(signature, latents=latents),
        recognised=(*adapted.recognised, evidence.line, *evidence.checked),
        prior_file=evidence.file,
    )


def with_scaling(adapted: Adapted, owner: object, model: nn.Module) -> Adapted:
    """Return the same with the scale and the shift that a model states, where its prior was declared.

    Args:
        adapted: the model's functions.
        owner: the model, or an object that holds it.
        model: the model.
    """
    latents = list(adapted.signature.latents)
    for number, latent in enumerate(latents):
        found = supplied(owner, (latent.shape[0], math.prod(latent.shape)))
        if latent.posterior.outputs and latent.posterior.kind != "codes" and found is not None and has_direction(found):
            scale, shift, _ = scaling(owner, latent.shape[0], partial(_is_read, model, adapted))
            latents[number] = _with(latent, Evidence(latent.prior, "", scale=scale, shift=shift))
    return replace(adapted, signature=replace(adapted.signature, latents=tuple(latents)))


def _with(latent: Latent, evidence: Evidence) -> Latent:
    """The latent with this prior, and with this scale and shift unless they were declared."""
    declared = latent.scale != 1.0 or latent.shift != 0.0
    scale, shift = (latent.scale, latent.shift) if declared else (evidence.scale, evidence.shift)
    return replace(latent, prior=evidence.prior, scale=scale, shift=shift)
