"""A model's encode and decode: which functions they are, which conditions they take, and how to call them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..errors import ExportError, MissingCondition
from .declaration import RESERVED, Declaration
from .draws import Draws, fixed_noise, in_training
from .edges import at_edge, fitting, making_graph
from .reading import fields_of, means_of
from .state import replaced
from .stated import returned_priors

_T = TypeVar("_T")


class MissingFunction(ExportError):
    """A model has no encode or no decode, and none is declared."""


@dataclass(frozen=True)
class Forward:
    """What a model's `forward` returned and drew."""

    tensors: Sequence[Tensor]
    """Every tensor in its answer, and the mean of every distribution."""
    normal: bool
    """Whether it drew normal noise."""
    other: Sequence[str]
    """The other random functions that it called; dropout in training mode is none of them."""
    dropout: bool
    """Whether dropout in training mode was among them."""
    decoded: Sequence[Tensor] = ()
    """What it called the model's own decode with."""

    @property
    def drew(self) -> bool:
        """Whether it called any random function."""
        return bool(self.normal or self.other or self.dropout)


@dataclass(frozen=True)
class Functions:
    """encode and decode of a model, with the example and the conditions that they are tried on.

    These have the dtypes in which the model takes them.
    """

    model: nn.Module
    encode: Callable[..., Any]
    decode: Callable[..., Any]
    example: Tensor
    conditions: Mapping[str, Tensor]
    encode_conditions: Mapping[str, Tensor]
    """The conditions that encode takes, in the order given."""
    decode_conditions: Mapping[str, Tensor]
    recognised: tuple[str, ...]
    latent_dtypes: tuple[torch.dtype, ...] = ()
    """The dtypes in which decode takes the latents; empty until an encoder's answer shows them."""
    _kept: dict[tuple[int, ...], tuple[tuple[object, ...], Any]] = field(default_factory=dict, repr=False)
    """Answers that no noise changes, with what they depend on, by its identities: a large model takes seconds."""
    returned_priors: set[str] = field(default_factory=set, repr=False)
    """The names of the fields of a prior in what `forward` returned."""

    def encoded(self, draws: Draws) -> Any:
        """Encode the example with these draws."""
        with draws:
            # A copy: some models change their input in place.
            return self.encode(self.example.clone(), **self.encode_conditions)

    def decoded(self, latents: Sequence[Tensor], draws: Draws) -> Any:
        """Decode the latents with these draws."""
        if self.latent_dtypes:
            latents = [latent.to(dtype) for latent, dtype in zip(latents, self.latent_dtypes, strict=True)]
        with draws:
            return self.decode(*latents, **self.decode_conditions)

    def decoded_quietly(self, latents: Sequence[Tensor]) -> tuple[Any, Draws]:
        """Decode the latents with every draw set to 0; return the answer, and the draws.

        The answer to the same latents is kept.
        """

        def decode() -> tuple[Any, Draws]:
            draws = Draws.constant(0.0)
            return self.decoded(latents, draws), draws

        parts = (self.decode, self.latent_dtypes, *latents, *self.decode_conditions.values())
        return self._once(parts, decode, lambda answer: True)

    def _once(self, parts: tuple[object, ...], run: Callable[[], _T], lasting: Callable[[_T], bool]) -> _T:
        """Return the answer that is kept for these parts, or else run; the answer is kept if it is lasting."""
        key = tuple(id(part) for part in parts)
        if key in self._kept:
            kept: _T = self._kept[key][1]
            return kept
        answer = run()
        if lasting(answer):
            # With the parts themselves, so that no other object gets the identity of one.
            self._kept[key] = (parts, answer)
        return answer

    def draws_nothing(self, training: bool) -> bool:
        """Whether `forward` was seen to draw nothing in this mode."""
        taken = conditions_taken(self.model, self.conditions)
        return tuple(id(part) for part in (self.decode, self.example, *taken.values(), training)) in self._kept

    def observed(self) -> set[str]:
        """Return the names of the parameters that take an observation: the first ones, and what decode is given."""
        names = {p.name for function in (self.encode, self.model.forward) for p in _parameters(function)[:1]}
        decode, x = own_function(self.decode), self.example.clone()

        def watch(*given: Any, **named: Any) -> Any:
            bound = inspect.signature(decode).bind(*given, **named).arguments
            names.update(name for name, value in bound.items() if _is_part(value, x))
            return decode(*given, **named)

        if getattr(decode, "__self__", None) is self.model:
            with replaced(self.model, decode.__name__, watch), contextlib.suppress(Exception), Draws.constant(0.0):
                self.model(x, **conditions_taken(self.model, self.conditions))
        return names

    def for_latents(self, own: Sequence[Tensor], edge: Sequence[Tensor]) -> Functions:
        """Return the functions with the dtypes in which decode takes the latents and its conditions.

        Args:
            own: the latents as encode returns them.
            edge: the same in the dtypes of a graph.
        """
        numbered = [str(number) for number in range(len(own))]

        def works(arguments: Mapping[str, Tensor]) -> bool:
            conditions = {name: arguments[name] for name in self.decode_conditions}
            return _runs(lambda: self.decode(*(arguments[number] for number in numbered), **conditions))

        arguments, changed = fitting(
            {**dict(zip(numbered, own, strict=True)), **self.decode_conditions},
            {**dict(zip(numbered, edge, strict=True)), **_at_edge(self.decode_conditions)},
            works,
        )
        return replace(
            self,
            conditions={**self.conditions, **{name: arguments[name] for name in changed if name in self.conditions}},
            decode_conditions={name: arguments[name] for name in self.decode_conditions},
            latent_dtypes=tuple(arguments[number].dtype for number in numbered),
            recognised=(*self.recognised, *_changed_lines("decode", self.decode_conditions, changed)),
        )

    def forward_runs(self) -> bool:
        """Whether the model has a `forward` that takes the example."""
        if type(self.model).forward is nn.Module.forward:
            return False
        try:
            self.forward(0.0, training=False)
        except Exception:
            return False
        return True

    def forward(
        self, noise: float | Callable[[int, tuple[int, ...]], Tensor] = 1.0, *, training: bool = True
    ) -> Forward:
        """Run `forward` on the example.

        Args:
            noise: what every normal draw is set to; a function gives each draw by its number and shape.
            training: whether a model that draws nothing is tried in training mode too: the model itself and submodules
                that may sample, but not its layers.
        """
        taken = conditions_taken(self.model, self.conditions)
        parts = (self.decode, self.example, *taken.values())

        for mode in (False, True) if training else (False,):
            run = partial(self._forward, noise, taken, mode)
            forward = self._once((*parts, mode), run, lambda forward: not forward.drew)
            if forward.normal or forward.other:
                break
        return forward

    def _forward(
        self, noise: float | Callable[[int, tuple[int, ...]], Tensor], taken: Mapping[str, Tensor], mode: bool
    ) -> Forward:
        draws = Draws(noise) if callable(noise) else Draws.constant(noise)
        decoded: list[Tensor] = []
        with sampling(self.model, mode), self.watching(decoded.append), draws:
            output = self.model(self.example.clone(), **taken)
        self.returned_priors.update(returned_priors(output))
        other = [name for name in draws.other if not in_training(name)]
        return Forward(tensors_in(output), bool(draws.normal), other, len(other) < len(draws.other), decoded)

    def watching(self, note: Callable[[Tensor], object]) -> contextlib.AbstractContextManager[None]:
        """Note what the model's own decode, a method or a submodule, is called with."""
        return watching(self.model, self.decode, note)


def own_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the model's own function that one of this package calls and names as `__wrapped__`, or the same."""
    while not inspect.ismethod(function) and not isinstance(function, nn.Module) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


@contextlib.contextmanager
def watching(model: nn.Module, function: Callable[..., Any], note: Callable[[Tensor], object]) -> Iterator[None]:
    """Note the first argument of each call of a model's own function, a method or a submodule.

    Args:
        model: calls it.
        function: its encode or decode; of one that is not its own nothing is noted.
        note: is given the argument, a tensor.
    """
    own = own_function(function)
    first = next(iter(parameter_names(own)), "")

    def look(given: Sequence[Any], named: Mapping[str, Any]) -> None:
        value = given[0] if given else named.get(first)
        if isinstance(value, Tensor):
            note(value)

    if isinstance(own, nn.Module):
        hook = own.register_forward_pre_hook(lambda module, given, named: look(given, named), with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
        return
    name = getattr(own, "__name__", "")
    if getattr(own, "__self__", None) is not model or not name:
        yield
        return

    def watch(*given: Any, **named: Any) -> Any:
        look(given, named)
        return own(*given, **named)

    with replaced(model, name, watch):
        yield


def _is_part(value: Any, x: Tensor) -> bool:
    """Whether a value is an observation, or a part of it, such as a sequence without its last step."""
    if not isinstance(value, Tensor):
        return False
    return value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() or torch.equal(value, x)


@contextlib.contextmanager
def sampling(model: nn.Module, mode: bool) -> Iterator[None]:
    """Put a model and its submodules into training mode or not; PyTorch's own layers stay as they are.

    A layer may keep averages in training mode, such as those of a codebook: weights are put back, except while a graph
    is made, which would hold the copies, and where gradients are computed, which would be lost.

    Args:
        model: its layers are in the mode that they are to be in.
        mode: whether to train.
    """
    looking = mode and not making_graph() and not torch.is_grad_enabled()
    kept = [(tensor, tensor.clone()) for tensor in (*model.parameters(), *model.buffers()) if looking]
    samplers = {each: each.training for each in model.modules() if each is model or _may_sample(each)}
    for module in samplers:
        module.training = mode
    try:
        yield
    finally:
        for module, before in samplers.items():
            module.training = before
        for tensor, value in kept:
            tensor.copy_(value)


def find_functions(
    model: nn.Module, example: Tensor, conditions: Mapping[str, Tensor], declaration: Declaration
) -> Functions:
    """Find encode and decode, by declaration or by name.

    Raises:
        MissingFunction: one is missing.
        MissingCondition: encode needs a condition that is not given.
        ExportError: a condition's name is taken.
    """
    encode, encode_line = _function(model, "encode", declaration.encode)
    decode, decode_line = _function(model, "decode", declaration.decode)
    require_parameters("encode", encode, 1, conditions)
    _require_free(conditions)
    taken = conditions_taken(encode, conditions)
    arguments, changed = fitting(
        {"x": example, **taken},
        {"x": at_edge(example), **_at_edge(taken)},
        lambda arguments: _runs(lambda: encode(arguments["x"].clone(), **{name: arguments[name] for name in taken})),
    )
    return Functions(
        model=model,
        encode=encode,
        decode=decode,
        example=arguments["x"],
        conditions={name: arguments.get(name, tensor) for name, tensor in conditions.items()},
        encode_conditions={name: arguments[name] for name in taken},
        decode_conditions=conditions_taken(decode, conditions),
        recognised=(*encode_line, *decode_line, *_changed_lines("encode", {"x": example, **taken}, changed)),
    )


def find_decode(
    model: nn.Module, latent: Tensor, conditions: Mapping[str, Tensor], declaration: Declaration
) -> Functions:
    """Find decode alone, by declaration, by name, or as the model's own `forward`.

    Args:
        model: a decoder, or a model that has one.
        latent: [n, …], in the place of the example, which the decoder's answer has yet to show.
        conditions: values [n, …] by name.
        declaration: the known facts.

    Raises:
        ExportError: the model has no decode and no forward, or a condition's name is taken.
    """
    try:
        decode, line = _function(model, "decode", declaration.decode)
    except MissingFunction:
        if type(model).forward is nn.Module.forward:
            raise
        decode, line = model, (f"decode: {type(model).__name__}.forward",)
    _require_free(conditions)
    return Functions(
        model=model,
        encode=_no_encode,
        decode=decode,
        example=latent,
        conditions=conditions,
        encode_conditions={},
        decode_conditions=conditions_taken(decode, conditions),
        recognised=line,
    )


def own_decode(functions: Functions) -> Functions:
    """Return the functions with the model's own decode, found by its name.

    Raises:
        MissingFunction: the model has none.
    """
    decode, _ = _function(functions.model, "decode", None)
    taken = conditions_taken(decode, functions.conditions)
    return replace(functions, decode=decode, decode_conditions=taken, latent_dtypes=())


def _no_encode(x: Tensor) -> Any:
    raise ExportError("encode: the model is exported without an encoder")


def _require_free(names: Iterable[str]) -> None:
    reserved = sorted(set(names) & RESERVED)
    if reserved:
        raise ExportError(f"condition {reserved[0]!r}: expected another name, this one is taken; rename it")


def _at_edge(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: at_edge(tensor) for name, tensor in tensors.items()}


def _runs(call: Callable[[], Any]) -> bool:
    try:
        with Draws.constant(0.0):
            call()
    except Exception:
        return False
    return True


def _changed_lines(function: str, own: Mapping[str, Tensor], changed: Sequence[str]) -> list[str]:
    """A line for each observation or condition that a function does not take in its own dtype."""
    return [
        f"{name}: {function} takes it as int64, since it fails on {str(own[name].dtype).removeprefix('torch.')}"
        for name in changed
        if name in own
    ]


def require_parameters(
    name: str,
    function: Callable[..., Any],
    first: int,
    conditions: Mapping[str, Tensor],
    observed: Callable[[], Collection[str]] = tuple,
) -> None:
    """Refuse a function that needs other arguments than its first ones and the conditions.

    Args:
        name: of the function, for the error.
        function: encode or decode.
        first: the number of its arguments that are no conditions.
        conditions: their values by name.
        observed: gives the names of parameters that take the observation itself.

    Raises:
        MissingCondition: it does.
        ExportError: it needs the observation itself.
    """
    parameters = [p for p in _parameters(function)[first:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in conditions]
    if missing:
        if missing[0] in observed():
            raise ExportError(
                f"{name}: also takes {missing[0]}, the observation itself, as in teacher forcing; pass {name}=, a "
                "function of the latents alone"
            )
        names = {p.name for p in parameters}
        other = [condition for condition in conditions if condition not in names]
        advice = f"pass conditions={{{missing[0]!r}: …}}, or {name}=, a function without it"
        if other:
            advice = f"the conditions have {', '.join(other)}; give each condition the name of its parameter"
        raise MissingCondition(name, missing, advice, other)


def _function(
    model: nn.Module, name: str, declared: Callable[..., Any] | str | None
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A function, and a line that says where it was found unless it was declared."""
    if callable(declared):
        return declared, ()
    owner = type(model).__name__
    for candidate in [declared] if declared else [name, f"{name}r", name[:3]]:
        function = getattr(model, candidate, None)
        if callable(function):
            return function, (f"{name}: {owner}.{candidate}",)
    if declared is not None:
        raise ExportError(f"{owner}: expected a method {declared} from {name}={declared!r}, got none")
    raise MissingFunction(
        f"{owner}: expected a method {name} or a submodule {name}r, got neither; pass {name}=, the name of a method "
        f"or a function of {'x' if name == 'encode' else 'z'}"
    )


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    function = own_function(function)
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return []


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's parameters, in order."""
    return [parameter.name for parameter in _parameters(function)]


def conditions_taken(function: Callable[..., Any], conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the conditions that a function takes by name, in the order given."""
    parameters = _parameters(function)
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return dict(conditions)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: tensor for name, tensor in conditions.items() if name in names}


def another(example: Tensor) -> Tensor:
    """Return other observations of the same kind: the rows in another order and, of floats, other values."""
    rolled = example.roll(1, 0)
    if not example.is_floating_point():
        return rolled.clone()
    return rolled * 0.7 + 0.1 + 0.05 * fixed_noise(example.shape).to(example.dtype)


def _may_sample(module: nn.Module) -> bool:
    """Whether a submodule may sample by its own mode: none of PyTorch's own layers does."""
    return not type(module).__module__.startswith("torch.")


def tensors_in(output: Any) -> list[Tensor]:
    """Return every tensor in an answer, in order, and the mean of every distribution."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Distribution):
        return means_of(output)
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in tensors_in(item)]
    return [tensor for item in (fields_of(output) or {}).values() for tensor in tensors_in(item)]
