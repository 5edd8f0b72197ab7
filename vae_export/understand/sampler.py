"""Run a model's own sampler with its draws given, and see which latents it makes of them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from ..errors import ExportError
from .adapted import Adapted, run_module
from .draws import DRAWING, Draws
from .functions import Functions, tensors_in
from .posterior import SAME, distance, one_sample

# Methods that draw observations or latents from the prior, given their number or nothing.
_SAMPLERS = (
    "sample", "generate", "sample_prior", "sample_from_prior", "prior_sample", "generate_samples", "random_sample",
    "sample_latent", "sample_latents", "sample_z",
)  # fmt: skip
# Distributions of the prior, or methods without arguments that give one.
_DISTRIBUTIONS = ("prior", "p_z", "pz", "prior_dist", "prior_distribution", "get_prior")
# What the code of a method that draws refers to.
_DRAWS = DRAWING | {"sample", "rsample"}
_PARAMETERS = ("prior_params", "prior_parameters", "get_prior_params", "get_prior_parameters")
_COUNTS = (
    "n", "num", "n_samples", "num_samples", "n_sample", "num_sample", "batch_size", "count", "k", "bs",
    "samples", "nsamples", "num_images", "n_images", "number", "N", "nb_samples", "sample_size", "how_many",
    "n_batch", "batch", "bsz", "size", "num_sampling", "sample_num", "amount",
)  # fmt: skip
# Parts of the names of other methods that draw.
_DRAWING = ("sample", "generate", "draw", "synth", "imagin", "dream")
# Parameters that are 1 where a sampler leaves the prior as it is.
_TEMPERATURES = ("temperature", "temp", "tau", "std", "sigma", "noise_scale", "scale", "eps_std")
# Far from 0 in places, so that a sampler that cuts off its noise is seen.
_SPREAD = 2.5
_MAX_DRAWS = 1000
# The most components and dimensions that are tried one by one.
_MAX_COMPONENTS, _MAX_DIMENSIONS = 4096, 512


# The most tensors of a sampler that are tried as the latents of its answer.
_MAX_CANDIDATES = 32


def decoded(adapted: Adapted, latents: Mapping[str, Tensor], row: int = 0) -> list[Tensor]:
    """Return the decoder's outputs for latents by name, all with the conditions of this row of the example."""
    n = len(next(iter(latents.values())))
    given = {name: tensor[row : row + 1].expand(n, *tensor.shape[1:]) for name, tensor in adapted.examples.items()}
    return run_module(adapted.modules["decoder"], adapted.given("decoder", {**given, **latents}))


def answers_to(adapted: Adapted, latents: Mapping[str, Tensor], row: int = 0) -> list[Tensor]:
    """Return what the model itself may give for such latents: the mean, or its logits where decode returns these."""
    has_logits = adapted.signature.likelihood.logits is not None
    return adapted.forms(decoded(adapted, latents, row)[: 1 + has_logits])


class _Computed(TorchFunctionMode):
    """Keep a copy of each of the first tensors of a shape [any, *shape] that are computed."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.tensors: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        fits = isinstance(result, Tensor) and tuple(result.shape[1:]) == self.shape
        if fits and len(self.tensors) < _MAX_CANDIDATES:
            self.tensors.append(result.clone())
        return result


class NotASampler(Exception):
    """A method draws nothing, or returns nothing."""


@dataclass(frozen=True)
class Trial:
    """One run of a sampler."""

    latents: Tensor | None
    """What was decoded, or returned in the place of observations: [rows, *latent shape]; None if nothing shows it."""
    noise: Tensor | None
    """The normal numbers of each row, of the same shape; None if they were of another."""
    given: Sequence[Tensor]
    """Every draw of normal numbers."""
    returned: Sequence[Tensor]
    draws: Draws
    other: Sequence[str]
    """The other random functions that it called before it decoded."""
    decoded: bool
    """Whether it called the model's own decode."""
    count: int
    """How many draws of normal numbers it had made when it last did, or in the end."""

    @property
    def answers(self) -> Sequence[Tensor]:
        """What it returned of its latents: nothing where it drew after it decoded, or decoded by none of its own."""
        return self.returned if self.decoded and len(self.other) == len(self.draws.other) else ()


class Sampler:
    """A model's way to draw from its prior."""

    def __init__(
        self,
        name: str,
        call: Callable[[int, int], Any],
        functions: Functions,
        adapted: Adapted,
        *,
        counted: bool = True,
        gives_latents: bool = False,
    ) -> None:
        """Take a call with a number of samples and a row of the conditions.

        Args:
            name: of the method, for messages.
            call: draws.
            functions: the model's own encode and decode.
            adapted: the same as modules.
            counted: whether the call heeds the number.
            gives_latents: whether it returns latents, for a call that might return observations of the same shape.
        """
        self.name = name
        self._call, self._functions, self._counted, self._adapted = call, functions, counted, adapted
        encoded = [latent for latent in adapted.signature.latents if latent.posterior.outputs]
        self._shape = encoded[0].shape
        self._name = encoded[0].name if len(adapted.signature.latents) == 1 else None
        self._apart = gives_latents or encoded[0].shape != adapted.signature.observation.shape

    def run(
        self,
        n: int,
        noise: Tensor | None = None,
        chosen: Sequence[int] = (0,),
        row: int = 0,
        count: int | None = None,
    ) -> Trial:
        """Sample `n` times.

        Args:
            n: how many.
            noise: the normal numbers [n, *latent shape]; the same random ones each time by default.
            chosen: the index that each row draws, where indices are drawn; the last for the rows beyond.
            row: the row of the example whose conditions are given.
            count: how many draws of normal numbers are made, and all after them are 0; None: as many as it makes.
        """
        usual = _SPREAD * torch.randn(n, *self._shape, generator=torch.Generator().manual_seed(1))
        own = usual if noise is None else noise
        indices = torch.tensor([*chosen, *[chosen[-1]] * n][:n])
        given: list[Tensor] = []

        def give(index: int, shape: tuple[int, ...]) -> Tensor:
            if index > _MAX_DRAWS:
                raise ExportError(f"it draws noise more than {_MAX_DRAWS} times")
            if count is not None and index >= count:
                return torch.zeros(shape)
            between = len(shape) - own.dim()
            # A sampler that rejects some of its noise draws until it is small.
            again = bool(given) and shape == tuple(given[-1].shape) and shape[:1] != (1,)
            if not again and own.dim() > 2 and shape == (n, int(np.prod(self._shape))):
                # Drawn in one row, and given the latent's shape after that.
                numbers = own.flatten(1)
            elif not again and between >= 0 and shape[:1] + shape[between + 1 :] == tuple(own.shape):
                # A mixture may draw a number for each component, of which one is chosen.
                numbers = own.reshape(n, *[1] * between, *self._shape).expand(shape)
            elif not again and shape == (1, *self._shape) and len(given) < n:
                numbers = own[len(given)][None]
            else:
                numbers = torch.randn(shape, generator=torch.Generator().manual_seed(2 + index)) / (1 + index)
            given.append(numbers)
            return numbers

        def choose(shape: tuple[int, ...]) -> Tensor:
            return indices.reshape(shape) if int(np.prod(shape)) == n else indices[:1].expand(shape)

        draws = Draws(give, choose)
        taken: list[Tensor] = []
        before = made = 0

        def note(z: Tensor) -> None:
            nonlocal before, made
            taken.append(z)
            before, made = len(draws.other), len(draws.normal)

        computed = _Computed(self._shape)
        with self._functions.watching(note), draws, computed, torch.no_grad():
            output = self._call(n, row)
        returned = tensors_in(output)
        by_model = bool(taken)
        if not taken and self._apart:
            taken = [tensor for tensor in returned if tuple(tensor.shape[1:]) == self._shape][:1]
        latents = self._joined(taken or self._decoded_to(returned, computed.tensors, row))
        numbers = self._noise_of(latents, given, own)
        other = draws.other[:before] if by_model else draws.other
        return Trial(latents, numbers, given, returned, draws, other, by_model, made if by_model else len(draws.normal))

    def _noise_of(self, latents: Tensor | None, given: Sequence[Tensor], own: Tensor) -> Tensor | None:
        """The normal numbers of each row, of those that were given; None if they are not of the latents' shape."""
        numbers = self._joined(given)
        if numbers is None and len(given) == 1 and given[0].dim() != len(self._shape) + 1:
            numbers = own
        return numbers if latents is not None and numbers is not None and numbers.shape == latents.shape else None

    def random(self) -> bool:
        """Whether two runs with the same draws of PyTorch decode different latents."""
        first, second = self.run(3), self.run(3)
        if first.latents is None or second.latents is None:
            return True
        return first.latents.shape != second.latents.shape or not torch.equal(first.latents, second.latents)

    def mixture(self, trial: Trial) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], str] | None:
        """The weights [K], means [K, D] and factors of the normals that latents are drawn from; None if they are not.

        The factors are standard deviations [K, D] where the covariance, the last item, is "diagonal", and lower
        triangular [K, D, D] where it is "full".
        """
        weights = trial.draws.weights
        count = len(weights[0]) if weights else 1
        if len(weights) > 1 or count > _MAX_COMPONENTS or (count > 1 and not self._counted):
            return None
        rows = range(count)
        zeros = self._latents(count, torch.zeros(count, *self._shape), rows)
        ones = self._latents(count, torch.ones(count, *self._shape), rows)
        again = self._latents(count, torch.zeros(count, *self._shape), rows, row=1)
        if zeros is None or ones is None or again is None or distance(again, zeros) > SAME:
            # A prior of its own for each value of the conditions is none of these.
            return None
        own = np.asarray(weights[0].double()) if weights else np.ones(1)
        means, factors = zeros.flatten(1), (ones - zeros).flatten(1)
        if all(self._is_affine(j, means[j], torch.diag(factors[j])) for j in {0, count - 1}):
            return own, _floats(means), np.abs(_floats(factors)), "diagonal"
        dimensions = means.shape[1]
        if not self._counted or dimensions > _MAX_DIMENSIONS or count * dimensions > _MAX_COMPONENTS:
            return None
        matrices = []
        for j in rows:
            basis = self._latents(dimensions, torch.eye(dimensions).reshape(-1, *self._shape), [j])
            if basis is None or not self._is_affine(j, means[j], basis.flatten(1) - means[j]):
                return None
            matrix = _floats(basis.flatten(1) - means[j])
            matrices.append(np.linalg.cholesky(matrix.T @ matrix + 1e-12 * np.eye(dimensions)))
        return own, _floats(means), np.stack(matrices), "full"

    def _decoded_to(self, returned: Sequence[Tensor], computed: Sequence[Tensor], row: int) -> list[Tensor]:
        """The first of the computed tensors that the decoder turns into one that was returned.

        A model whose `forward` was cut has no decode to be watched.
        """
        if self._name is None:
            return []
        for candidate in computed:
            answers = answers_to(self._adapted, {self._name: candidate}, row)
            pairs = [(each, answer) for each in returned for answer in answers if _as_many(each, answer)]
            if any(distance(each.float().reshape(answer.shape), answer) <= SAME for each, answer in pairs):
                return [candidate]
        return []

    def _latents(self, n: int, noise: Tensor, chosen: Sequence[int], row: int = 0) -> Tensor | None:
        latents = self.run(n, noise, list(chosen), row).latents
        return latents if latents is not None and (len(latents) == n or not self._counted) else None

    def _is_affine(self, component: int, mean: Tensor, matrix: Tensor) -> bool:
        """Whether the latents of a component are mean + noise · matrix."""
        trial = self.run(5, chosen=[component])
        if trial.latents is None or trial.noise is None:
            return False
        return distance(trial.latents.flatten(1), mean + trial.noise.flatten(1) @ matrix) <= SAME

    def _joined(self, parts: Sequence[Tensor]) -> Tensor | None:
        """The parts of the latent's shape as one tensor; of several batches the last, of single rows all."""
        single = [each for part in parts for each in (part, *one_sample(part, (*part.shape[:1], *self._shape)))]
        fitting = [part for part in single if tuple(part.shape[1:]) == self._shape]
        if not fitting:
            return None
        return torch.cat(fitting) if all(len(part) == 1 for part in fitting) else fitting[-1]


def _as_many(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have as many rows, and as many numbers in each."""
    return a.shape[:1] == b.shape[:1] and a.numel() == b.numel()


def samplers_of(model: object, functions: Functions, adapted: Adapted) -> Iterator[Sampler]:
    """Yield the ways in which a model, or an object that holds it, draws from its prior.

    Args:
        model: its methods come first, then its distributions.
        functions: the module's encode and decode.
        adapted: the same as modules.
    """
    owner = type(model).__name__
    shape = next(latent.shape for latent in adapted.signature.latents if latent.posterior.outputs)
    own = _own(model)
    drawing = [name for name in own if any(word in name.lower() for word in _DRAWING)]
    # A method of any other name may do anything: its code must draw and decode, and it must take a number of samples.
    unnamed = [name for name, value in own.items() if _decodes(value)]
    for name in dict.fromkeys([*_SAMPLERS, *drawing, *unnamed]):
        found = _call_of(model, name, functions.conditions, shape)
        if found is not None:
            yield Sampler(f"{owner}.{name}", found[0], functions, adapted, counted=found[1])
    for part, value in objects_of(model):
        if isinstance(value, Distribution) or "prior" not in part.lower():
            continue
        found = _call_of(value, "sample", {}, shape)
        if found is not None:
            name = f"{owner}.{part}.sample"
            yield Sampler(name, found[0], functions, adapted, counted=found[1], gives_latents=True)
    stated = [name for name, value in vars(model).items() if isinstance(value, Distribution)]
    for name in dict.fromkeys([*_DISTRIBUTIONS, *stated]):
        distribution = _distribution(model, name)
        if callable(distribution):
            draw = partial(_counted_samples, distribution)
            yield Sampler(f"{owner}.{name}", draw, functions, adapted, gives_latents=True)
        elif distribution is not None:
            draw = partial(_samples, distribution, shape)
            yield Sampler(f"{owner}.{name}", draw, functions, adapted, gives_latents=True)


def prior_numbers(model: object, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that a model's own methods, named as its prior, give in the place of a distribution."""
    found = {}
    for name in (*_DISTRIBUTIONS, *_PARAMETERS):
        call = _call_of(model, name, conditions, ())
        if call is not None:
            with contextlib.suppress(Exception), torch.no_grad(), Draws.constant(0.0):
                found[f"{name}()"] = torch.cat([tensor.flatten() for tensor in tensors_in(call[0](2, 0))])
    return found


def objects_of(owner: object) -> list[tuple[str, object]]:
    """Return the attributes of an object that have attributes of their own, submodules among them, by name."""
    attributes = {**vars(owner), **(owner._modules if isinstance(owner, nn.Module) else {})}
    plain = (type, FunctionType, MethodType, ModuleType)
    return [
        (name, value)
        for name, value in attributes.items()
        if hasattr(value, "__dict__") and not isinstance(value, plain)
    ]


def _own(model: object) -> dict[str, object]:
    """The attributes of a model's class and of those that it derives from, but for PyTorch's."""
    classes = [cls for cls in reversed(type(model).__mro__) if not cls.__module__.startswith("torch.")]
    return {name: value for cls in classes for name, value in vars(cls).items()}


def _called(function: object) -> set[str]:
    """The names that a function's code refers to."""
    return set(getattr(getattr(function, "__code__", None), "co_names", ()))


def _decodes(function: object) -> bool:
    """Whether a method draws and decodes, by its code, and takes a number of samples, whatever its name is."""
    code, names = getattr(function, "__code__", None), _called(function)
    counted = code is not None and bool(set(_COUNTS) & set(code.co_varnames[: code.co_argcount]))
    return counted and bool(names & _DRAWS) and any(name.startswith("dec") for name in names)


def drawing_methods(model: object) -> list[str]:
    """Return the names of a model's own methods whose code draws, but for those that sample from a prior."""
    return [
        name
        for name, value in _own(model).items()
        if _called(value) & _DRAWS and not any(word in name.lower() for word in _DRAWING)
    ]


def _samples(distribution: Distribution, shape: tuple[int, ...], n: int, row: int) -> Tensor:
    if distribution.batch_shape + distribution.event_shape == (1, *shape):
        # A distribution of a batch of one has an axis of its own.
        return distribution.sample((n,))[:, 0]
    if len(distribution.event_shape) < len(shape):
        batch = shape[: len(shape) - len(distribution.event_shape)]
        with contextlib.suppress(RuntimeError, NotImplementedError):
            distribution = distribution.expand(torch.Size(batch))
    return distribution.sample((n,))


def _counted_samples(distribution: Callable[[int], Distribution], n: int, row: int) -> Tensor:
    return distribution(n).sample()


def _distribution(model: object, name: str) -> Distribution | Callable[[int], Distribution] | None:
    """The distribution of this name, or a method that gives one for a number of samples."""
    found = getattr(model, name, None)
    if not inspect.isroutine(found):
        return found if isinstance(found, Distribution) else None
    required = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    named = [p for p in required if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if len(named) > 1 or any(p.name not in _COUNTS for p in named):
        return None
    try:
        with torch.no_grad(), Draws.constant(0.0):
            given = found(*[2] * len(named))
    except Exception:
        return None
    if not isinstance(given, Distribution):
        return None
    return found if named else given


def _call_of(
    model: object, name: str, conditions: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[Callable[[int, int], Any], bool] | None:
    """A call of a method with a number of samples and a row of the conditions, and whether it takes that number.

    A parameter of an unknown name may be that number; a call that fails with it is none of a sampler.

    Args:
        model: has the method.
        name: of the method.
        conditions: their values by name.
        shape: of a latent.

    Returns:
        None if the method takes something else.
    """
    method = getattr(model, name, None)
    if not inspect.isroutine(method):
        return None
    declared = inspect.signature(method).parameters.values()
    parameters = [p for p in declared if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    counts = [p.name for p in parameters if p.name in _COUNTS][:1]
    # Many a method looks for its conditions among its further keywords.
    further: dict[str, Any] = dict(conditions) if any(p.kind == p.VAR_KEYWORD for p in declared) else {}
    unknown = []
    for parameter in parameters:
        if parameter.name in counts:
            continue
        if parameter.name in conditions:
            further[parameter.name] = conditions[parameter.name]
        elif "device" in parameter.name:
            further[parameter.name] = "cpu"
        elif parameter.default is not parameter.empty:
            continue
        elif parameter.name in _TEMPERATURES:
            further[parameter.name] = 1.0
        else:
            unknown.append(parameter.name)
    if len(unknown) > 1 or (unknown and counts):
        return None

    def call(n: int, row: int) -> Any:
        given: dict[str, Any] = {
            key: value[row : row + 1].expand(n, *value.shape[1:]).clone() if isinstance(value, Tensor) else value
            for key, value in further.items()
        }
        if not unknown:
            return method(**dict.fromkeys(counts, n), **given)
        try:
            return method(**{unknown[0]: (n, *shape) if "shape" in unknown[0] else n}, **given)
        except Exception as error:
            raise NotASampler from error

    return call, bool(counts or unknown)


def _floats(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().double())
