"""A module of the user's as the objective takes it: its own encode and decode, understood as an export does."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_runtime.errors import InputError, error_line
from vae_runtime.likelihood import KINDS

from ..errors import ExportError, MissingCondition, TrainingError
from ..loading import load_model
from ..understand.adapt import adapt, declared
from ..understand.adapted import Adapted, run_module
from ..understand.checks import check_declaration
from ..understand.declaration import Declaration
from ..understand.decoder import answers
from ..understand.draws import Draws
from ..understand.encoder import encode_of, posteriors, reading_of
from ..understand.functions import conditions_taken
from ..understand.halves import Halves
from ..understand.inner import inner_model, module_of
from ..understand.probe import probe
from ..understand.soundness import faults_first
from ..understand.state import fitting_threads, modes_kept, restored, unchanged, used_tensors
from . import objective
from .config import ModelConfig, TrainConfig
from .data.batches import at_least_two, read
from .data.part import Part
from .likelihood import kind_named
from .modes import require_same_in_training
from .own_model import OwnModel
from .trainable import as_trained, methods_advice, require_plain_state, require_vae, unlike_observations

# How far a probability is kept from 0 and 1, where it has no logarithm: the spacing of float32 below 1.
_MARGIN = 1e-7
EXAMPLES = 8
"""Observations that a module is understood on."""
# How far two computations of the same may be apart, relative to one.
_SAME = 1e-3


class OwnVAE(nn.Module):
    """A module with what was understood of it; it holds the very weights of the module.

    Args:
        module: the user's.
        adapted: what was understood of it, by `understood`.
    """

    def __init__(self, module: nn.Module, adapted: Adapted) -> None:
        super().__init__()
        self.module = module
        # In a tuple, since they hold the same module once more.
        self.components = (adapted.modules["encoder"], adapted.modules["decoder"])
        """The encoder and the decoder of an export."""
        self._shapes = {latent.name: latent.shape for latent in adapted.signature.latents}
        self._kind = adapted.signature.likelihood
        self.recognised = adapted.recognised
        """What was found, and how, one line each."""
        self.warnings: tuple[str, ...] = ()
        """What may be wrong with it before it is trained."""
        self.home = torch.device("cpu")
        """The device that the module is on outside of a training."""
        self.left: tuple[str, ...] = ()
        """The names of weights that neither encode nor decode reads."""

    @property
    def halved(self) -> bool:
        """Whether encode and decode are the two halves of the module's `forward`."""
        return isinstance(getattr(encode_of(self.components[0]), "__self__", None), Halves)

    @property
    def likelihood(self) -> str:
        """Name of the kind of p(x|z)."""
        return self._kind.kind

    @property
    def latent(self) -> int:
        """Number of latent dimensions, those of all latents."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def posterior(self, x: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of observations x, float32 [n, *observation_shape] → mu and logvar, float32 [n, latent] each.

        Several latents, or one with several axes, are laid out as one vector.

        Raises:
            TrainingError: the module fails.
        """
        with _named(self.module, "encode"):
            parts = posteriors(self.components[0], x, conditions)
        mu, logvar = (torch.cat([pair[number].flatten(1) for pair in parts], 1) for number in (0, 1))
        return mu, logvar

    def answer(self, z: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of p(x|z) for latents z, float32 [n, latent], in the form that `training.likelihood` takes.

        Returns:
            The parameters, float32 [n, *observation_shape], and the scale, a scalar or of the same shape.

        Raises:
            TrainingError: the module fails.
        """
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        latents = [
            part.reshape(part.shape[0], *shape)
            for part, shape in zip(z.split(sizes, dim=1), self._shapes.values(), strict=True)
        ]
        with _named(self.module, "decode"):
            outputs, own = answers(self.components[1], latents, conditions)
        mean = outputs[0]
        answer = outputs[1] if self._kind.logits else kind_named(self.likelihood).parameters(mean, _MARGIN)
        if own is not None:
            return answer, own.expand(mean.shape)
        return answer, torch.tensor(self._kind.scale or 1.0, dtype=answer.dtype, device=answer.device)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the mean of p(x|z) in data space for the parameters in an `answer`; same shape."""
        return kind_named(self.likelihood).mean(parameters)

    def point(self, parameters: Tensor) -> Tensor:
        """Return one value for each of an observation: the mean, or the most likely class."""
        return kind_named(self.likelihood).point(parameters)

    def described(self, factory: str | None, declared: Mapping[str, Any], shape: tuple[int, ...]) -> OwnModel:
        """Return the record of this model for a run.

        Args:
            factory: how it was made, if by a name.
            declared: what was declared of it.
            shape: of one observation.
        """
        cls = type(self.module)
        return OwnModel(
            factory=factory,
            class_name=f"{cls.__module__}.{cls.__qualname__}",
            observation_shape=shape,
            latents=self._shapes,
            posterior=tuple(str(meaning) for meaning in reading_of(self.components[0]).meanings),
            likelihood=self.likelihood,
            classes=(self._kind.shape or (0,))[-1] if KINDS[self.likelihood].classes else 0,
            scale=self._kind.scale if not self._kind.scale_output and KINDS[self.likelihood].scale else None,
            declared=declared,
            recognised=self.recognised,
        )


@contextmanager
def _named(module: nn.Module, function: str) -> Iterator[None]:
    """Say which function of the user's failed; a lack of memory stays what it is."""
    try:
        yield
    except Exception as error:
        if "allocate" in str(error):
            raise
        mode = "training" if module.training else "evaluation"
        raise TrainingError(
            f"{function}: fails in {mode} mode: {type(error).__name__}: {error_line(error)}; correct the model, and "
            "the same command goes on"
        ) from error


def made(factory: str, seed: int) -> nn.Module:
    """Make a model by the name of its class or function, with initial weights that the seed decides.

    Args:
        factory: `package.module:name`; importing it runs its code.
        seed: of PyTorch's generator while it is made, which is restored.

    Raises:
        InputError: it cannot be imported or fails, or what it makes is no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module_of(load_model(factory, None))


def understood(
    module: nn.Module,
    x: Tensor,
    declaration: Declaration,
    conditions: Mapping[str, Tensor] | None = None,
    *,
    trained: bool = False,
) -> OwnVAE:
    """Find out what a module's encode and decode mean, and whether it can be trained on our objectives.

    Args:
        module: the user's, which is left unchanged.
        x: a few observations, float32 [n, *shape], n at least 2.
        declaration: the known facts.
        conditions: values [n, …] by name.
        trained: it was trained before, and needs no gradients.

    Raises:
        ExportError: a fact stays unknown, and the error names the argument that settles it; or the model has no normal
            posterior, no likelihood, another prior than N(0, I), or functions that draw.
        InputError: its weights are not float32, or what its state holds is no tensor.
    """
    require_plain_state(module)
    conditions = dict(conditions or {})
    with unchanged(module), fitting_threads(module, x), as_trained(trained):
        model, _ = inner_model(module, x, conditions)
        source, known = declared(model)
        declaration = declaration.over(known)
        with faults_first(model, x, conditions, declaration):
            adapted = adapt(
                model, x, declaration, source=source, conditions=conditions,
                holder=None if model is module else module,
            )  # fmt: skip
            require_vae(adapted, x)
        probe(adapted, trained=trained)
        # With every condition that a half takes: one that its weights ignore now may be what they learn.
        vae = OwnVAE(module, adapted)
        _require_halves_trainable(vae, model, x, conditions)
        z = torch.cat([adapted.examples[latent.name].flatten(1) for latent in adapted.signature.latents], 1)
        try:
            _require_same(vae, adapted, x, z, conditions)
        except TrainingError as error:
            raise ExportError(str(error).partition("; correct")[0] + "; give encode and decode to it") from error
        if not trained:
            vae.warnings = unlike_observations(adapted, x)
            functions = {
                "encode": lambda: vae.posterior(x, **conditions),
                "decode": lambda: vae.answer(z, **conditions),
            }
            require_same_in_training(module, functions)
    if trained:
        return vae
    left, frozen = _not_trained(vae, x, conditions)
    reasons = {"neither encode nor decode reads them": left, "they are frozen (requires_grad=False)": frozen}
    lines = (f"not trained, since {reason}: {', '.join(names)}" for reason, names in reasons.items() if names)
    vae.recognised = (*adapted.recognised, *lines)
    vae.left = tuple(left)
    return vae


def _examples(x: Tensor, conditions: Mapping[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a few observations, at least two, and their conditions."""
    few = {name: at_least_two(values[:EXAMPLES]) for name, values in (conditions or {}).items()}
    return at_least_two(x[:EXAMPLES]), few


class Asked(NamedTuple):
    """A user's model as `train` is asked for it."""

    model: nn.Module | str
    """The module, or the name of its factory."""
    declared: Mapping[str, Any]
    """What is declared of it, by the names in `own_model.DECLARED`, without what is None."""


def asked(model: ModelConfig | nn.Module | str, declared: Mapping[str, Any]) -> ModelConfig | Asked:
    """Return a model with what is declared of it, after a look at the declaration alone.

    Raises:
        InputError: a declaration is invalid in itself, or stands beside a built-in model.
        ExportError: the likelihood is unknown.
    """
    if isinstance(model, ModelConfig):
        if declared:
            raise InputError(f"{next(iter(declared))}: expected only with a module of your own; set it in ModelConfig")
        return model
    for name in ("encode", "decode"):
        if not isinstance(declared.get(name, ""), str):
            raise InputError(f"{name}: expected the name of a method, got {type(declared[name]).__name__}")
    if declared.get("prior", "normal") != "normal":
        raise InputError(
            f"prior: expected normal, which is what models are trained against, got {declared['prior']!r:.99}"
        )
    check_declaration(Declaration(**declared))
    return Asked(model, declared)


def for_run(
    wanted: Asked, x: Tensor, seed: int, *, progress: bool, conditions: Mapping[str, Tensor] | None = None,
    begin: Callable[[nn.Module], None] | None = None,
) -> tuple[OwnVAE, OwnModel]:  # fmt: skip
    """Return a user's model as a run trains it, and its record.

    Args:
        wanted: the model.
        x: a few observations of the run, [n, *shape].
        seed: of the weights that a factory draws.
        progress: print what was recognised on stderr.
        conditions: of these observations, [n, …] by name.
        begin: lets the model take the weights of another run.

    Raises:
        InputError: the model cannot be made, or the weights are not its own.
        ExportError: as `understood`.
    """
    model, declared = wanted
    declaration = Declaration(**declared)
    factory = model if isinstance(model, str) else None
    module = made(model, seed) if isinstance(model, str) else module_of(model)
    if begin:
        require_plain_state(module)
        begin(module)
    home = next((weight.device for weight in module.parameters()), x.device)
    module.to(x.device)
    rows, given = _examples(x, conditions)
    try:
        vae = understood(module, rows, declaration, given)
    except MissingCondition as error:
        if error.other:
            raise
        # Here conditions are those of the data.
        advice = f"name it in data.conditions, or pass {error.function}=, a method without it"
        raise MissingCondition(error.function, error.missing, advice) from error
    vae.home = home
    if progress:
        print(*vae.recognised, *vae.warnings, sep="\n", file=sys.stderr)
    return vae, vae.described(factory, declared, tuple(x.shape[1:]))


@contextmanager
def lent(vae: OwnVAE | None) -> Iterator[None]:
    """Train a module inside the block, but for weights that nothing reads; restore its flags, modes and device."""
    if vae is None:
        yield
        return
    flags = [(weight, weight.requires_grad) for weight in vae.module.parameters()]
    for name, weight in vae.module.named_parameters():
        if name in vae.left:
            weight.requires_grad_(False)
    with modes_kept(vae.module):
        try:
            yield
        finally:
            vae.module.to(vae.home)
            for weight, flag in flags:
                weight.requires_grad_(flag)


def require_small_parts(vae: OwnVAE, train: Part, config: TrainConfig, processes: int) -> None:
    """Refuse a size of batches that leaves one row alone, where a model fails on one, as batch normalization does.

    Args:
        vae: the model.
        train: the observations.
        config: how they are divided into batches, and these into parts.
        processes: each has its part of a batch.

    Raises:
        InputError: the last batch is too small.
    """
    parts = processes * config.accumulate

    def last(size: int) -> int:
        """Rows of the last batch."""
        return len(train) % size or size

    if last(config.batch_size) >= 2 * parts:
        return
    one = read(train, slice(1))
    try:
        with restored(vae.module), torch.random.fork_rng(devices=[]), torch.no_grad():
            vae.module.train()
            vae.answer(vae.posterior(one.x, **one.conditions)[0], **one.conditions)
    except TrainingError as error:
        larger = next((s for s in range(config.batch_size + 1, len(train) + 1) if last(s) >= 2 * parts), None)
        divided = f" in {processes} processes" * (processes > 1) + f" in {config.accumulate} parts" * (
            parts > processes
        )
        raise InputError(
            f"train.batch_size: expected at least {2 * parts} rows in the last batch, got {last(config.batch_size)} of "
            f"{len(train)}{divided}; one row alone does not do: {str(error).partition('; correct')[0]}; choose "
            + (f"{larger}, for example" if larger else "fewer parts")
        ) from error


def _require_halves_trainable(vae: OwnVAE, model: nn.Module, x: Tensor, conditions: Mapping[str, Tensor]) -> None:
    """Refuse halves of a `forward` that does more in training: each half runs it, the second on other observations."""
    if not vae.halved:
        return
    with restored(vae.module), Draws.constant(0.0) as draws:
        before = [buffer.clone() for buffer in model.buffers()]
        model.train()
        model(x.clone(), **conditions_taken(model, conditions))
        kept = all(map(torch.equal, before, model.buffers()))
    if draws.other or not kept:
        what = f"calls {draws.other[0]}" if draws.other else "changes buffers, such as those of batch normalization"
        raise ExportError(
            f"forward: {what}, and is cut in two, since there are no encode and decode that do the same; "
            f"{methods_advice(model)}"
        )


def _require_same(vae: OwnVAE, adapted: Adapted, x: Tensor, z: Tensor, conditions: Mapping[str, Tensor]) -> None:
    """Hold what is trained against what is exported, in evaluation mode; z are all latents of x, [n, latent]."""
    pairs = []
    outputs = run_module(adapted.modules["encoder"], adapted.given("encoder"))
    encoded = dict(zip(adapted.outputs("encoder"), outputs, strict=True))
    own = [
        encoded[str(name)].flatten(1)
        for latent in adapted.signature.latents
        for name in (latent.posterior.mu, latent.posterior.logvar)
    ]
    mu, logvar = vae.posterior(x, **conditions)
    pairs += [("encode", mu, torch.cat(own[::2], 1)), ("encode", logvar, torch.cat(own[1::2], 1))]
    decoded = run_module(adapted.modules["decoder"], adapted.given("decoder"))
    parameters, scale = vae.answer(z, **conditions)
    pairs.append(("decode", vae.mean(parameters), decoded[0]))
    likelihood = adapted.signature.likelihood
    if likelihood.scale_output:
        pairs.append(("decode", scale, decoded[1]))
    for function, trained, exported in pairs:
        if not torch.allclose(trained, exported, rtol=_SAME, atol=_SAME):
            raise ExportError(
                f"{function}: gives other values when nothing steers its draws and its precision; let it draw nothing, "
                "and compute in float32"
            )


def _not_trained(vae: OwnVAE, x: Tensor, conditions: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Return the names of the weights that the objective does not depend on in training mode, and of frozen ones.

    Raises:
        ExportError: encode or decode hides its weights or the latents from gradients, or all that they read is frozen.
    """
    weights = {name: weight for name, weight in vae.module.named_parameters() if weight.is_floating_point()}
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    with restored(vae.module), torch.random.fork_rng(devices=[]), torch.enable_grad():
        vae.module.train()
        try:
            # With gradients, frozen weights show whether a function reads them, or hides what it reads.
            for name in frozen:
                weights[name].requires_grad_(True)
            mu, logvar = vae.posterior(x, **conditions)
            parameters, scale = vae.answer(mu + torch.exp(0.5 * logvar), **conditions)
            bound = objective.log_likelihood(x, parameters, vae.likelihood, scale).mean()
            bound = bound - objective.kl_standard_normal(mu, logvar).sum(-1).mean()
            gradients: Sequence[Tensor | None] = [None] * len(weights)
            if bound.requires_grad:
                gradients = torch.autograd.grad(bound, list(weights.values()), allow_unused=True)
        finally:
            for name in frozen:
                weights[name].requires_grad_(False)
        read = [name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None]
        left = [name for name in weights if name not in read and name not in frozen]
        hidden = None if parameters.requires_grad else "decode"
        # An encode that reads no weight, or frozen ones, is one whose decoder is trained alone.
        if not hidden and not mu.requires_grad:
            held = used_tensors(lambda: vae.posterior(x, **conditions), [weights[name] for name in left])
            hidden = "encode" if held else None
    if hidden:
        raise ExportError(
            f"{hidden}: its answer has no gradient; take torch.no_grad() and detach() out of it; what is not to be "
            "trained is frozen by requires_grad_(False)"
        )
    if not set(read) - set(frozen):
        raise ExportError(
            "model: expected a weight to train, got frozen ones alone of those that encode and decode read; let some "
            "have requires_grad=True"
        )
    return left, frozen


def again(
    module: nn.Module, recorded: ModelConfig | OwnModel, x: Tensor, conditions: Mapping[str, Tensor] | None = None
) -> OwnVAE:
    """Understand the module of a run once more, and hold it against what the run states of it.

    Args:
        module: with the run's weights.
        recorded: what the run states.
        x: observations of the run, [n, *shape].
        conditions: of these observations, [n, …] by name.

    Raises:
        ExportError: as `understood`, or it is not the model that was trained.
    """
    assert isinstance(recorded, OwnModel)
    rows, given = _examples(x, conditions)
    vae = understood(module, rows, recorded.declaration, given, trained=True)
    found = vae.described(recorded.factory, recorded.declared, tuple(x.shape[1:]))
    for name, other in recorded.meaning.items():
        if (one := found.meaning[name]) != other:
            raise ExportError(
                f"model.{name}: expected {other!r:.99}, as in training, got {one!r:.99}; give the model of the run"
            )
    return vae
