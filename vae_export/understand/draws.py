"""See and steer the random draws of a model, without patching PyTorch: a mode that ends with its `with` block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import ExportError
from .edges import making_graph
from .operators import TRANSLATABLE

# Functions that draw a standard normal number for each element of their result, or scale one.
_NORMAL = {torch.randn, torch.randn_like, torch.normal, Tensor.normal_}
# Functions that draw in any other way. A dropout draws in training mode only.
_OTHER = {
    torch.rand,
    torch.rand_like,
    torch.bernoulli,
    torch.multinomial,
    torch.poisson,
    torch.randint,
    torch.randint_like,
    torch.randperm,
    torch.binomial,
    torch._standard_gamma,
    torch._sample_dirichlet,
    Tensor.bernoulli,
    Tensor.bernoulli_,
    Tensor.uniform_,
    Tensor.exponential_,
    Tensor.random_,
    Tensor.multinomial,
    Tensor.geometric_,
    Tensor.cauchy_,
    Tensor.log_normal_,
    functional.gumbel_softmax,
}
DRAWING = frozenset(function.__name__ for function in _NORMAL | _OTHER)
"""The names of functions that draw."""
# Functions that draw indices, which `choose` may give.
_INDICES = {torch.randint, torch.multinomial, Tensor.multinomial}
_DROPOUT = {
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
    torch.native_dropout,
}
# A copy to a GPU, which a model that is exported on the CPU does not need.
_TO_CUDA = {Tensor.cuda}
_TO_HALF = {Tensor.half, Tensor.bfloat16}
# The names of activations whose values are neither logits nor probabilities.
_NO_LOGITS = ("tanh", "tanh_", "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "softplus", "softsign", "exp")
_SIGMOID = {torch.sigmoid, Tensor.sigmoid, functional.sigmoid, torch.special.expit}


_IN_TRAINING = " in training mode"


def in_training(name: str) -> bool:
    """Whether a recorded name is that of a dropout in training mode."""
    return name.endswith(_IN_TRAINING)


def fixed_noise(shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers, the same for the same shape; no two are alike, so that none can be exchanged."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float32)


class Sigmoids(TorchFunctionMode):
    """While active, note the input and the output of the last sigmoid in `sigmoid`, and change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid: tuple[Tensor, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if func in _SIGMOID:
            self.sigmoid = (args[0] if args else kwargs["input"], result)
        return result


class Draws(Sigmoids):
    """While active, take each normal draw from `give`, and record the model's other draws.

    `give` is called with the number of the draw and its shape, and returns standard normal numbers. `choose` is called
    with the shape of a draw of indices, and returns them; without it the model draws them. `normal` records the shapes
    of the normal draws, `other` the names of other random functions, `weights` those of the indices that `choose` gave,
    `sigmoid` the last sigmoid's input and output, `activation` the name and the output of the last activation whose
    values are neither logits nor probabilities.
    """

    def __init__(
        self,
        give: Callable[[int, tuple[int, ...]], Tensor],
        choose: Callable[[tuple[int, ...]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.give = give
        self.choose = choose
        self.weights: list[Tensor] = []
        self.normal: list[tuple[int, ...]] = []
        self.other: list[str] = []
        self.activation: tuple[str, Tensor] | None = None
        self.drops = True
        """Whether dropout in training mode drops; if not, it gives what it takes."""
        self.widened = False
        """Whether the model asked for float16 or bfloat16, by a cast or by autocast, and got float32."""

    @classmethod
    def constant(cls, value: float, only: int | None = None) -> Draws:
        """Set every normal draw, or only the one with this number, to this value, and the others to 0."""
        return cls(lambda index, shape: torch.full(shape, value if only in (None, index) else 0.0))

    @classmethod
    def inputs(cls, tensors: Mapping[int, Tensor]) -> Draws:
        """Set the draws with these numbers to these tensors, and the others to 0."""

        def give(index: int, shape: tuple[int, ...]) -> Tensor:
            tensor = tensors.get(index)
            return torch.zeros(shape) if tensor is None else tensor

        return cls(give)

    def require_normal_alone(self, function: str) -> None:
        """Refuse a function with draws that are not normal.

        Args:
            function: its name, for the error.

        Raises:
            ExportError: it drew so, in evaluation mode.
        """
        if self.other:
            advice = (
                "make it depend on self.training"
                if in_training(self.other[0])
                else "take the numbers as a condition, or draw them outside"
            )
            raise ExportError(f"{function}: calls {self.other[0]}, which is random even in evaluation mode; {advice}")

    def widened_line(self, function: str) -> tuple[str, ...]:
        """Return a line that says so if a function asked for half precision."""
        return (f"{function}: asks for float16 or bfloat16, and computes in float32",) if self.widened else ()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        func, args, kwargs = self._in_float32(func, args, dict(kwargs or {}))
        if func in _NORMAL:
            return self._draw(func, args, kwargs)
        if func in _TO_CUDA:
            return args[0]
        if func in _INDICES and self.choose is not None:
            return self._indices(func, args, kwargs)
        if func in _OTHER:
            self.other.append(func.__name__)
        elif func in _DROPOUT and _drops(func, args, kwargs):
            if not self.drops and func is not torch.native_dropout:
                return args[0] if args else kwargs["input"]
            self.other.append(f"{func.__name__}{_IN_TRAINING}")
        result = TRANSLATABLE.get(func, func)(*args, **kwargs)
        if func in _SIGMOID:
            # A copy, since the model may change the result in place.
            self.sigmoid = (args[0] if args else kwargs["input"], result.clone())
        elif getattr(func, "__name__", "") in _NO_LOGITS and not making_graph():
            # Not in a graph, in which the copy fixes the batch size of PyTorch's transformers.
            self.activation = (func.__name__.rstrip("_"), result.clone())
        return result

    def _in_float32(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Any, Sequence[Any], dict[str, Any]]:
        """A call with float32 in place of half precision, whose roundings differ from one program to the next."""
        if torch.is_autocast_enabled("cpu"):
            # The model's own `with` block restores it.
            torch.set_autocast_enabled("cpu", False)
            self.widened = True
        if func in _TO_HALF:
            self.widened = True
            return Tensor.float, args[:1], {}
        # `view` takes a dtype for other numbers of the same bits.
        if func is not Tensor.view and any(_is_half(value) for value in (*args, *kwargs.values())):
            self.widened = True
            args = tuple(torch.float32 if _is_half(value) else value for value in args)
            kwargs = {name: torch.float32 if _is_half(value) else value for name, value in kwargs.items()}
        return func, args, kwargs

    def _draw(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        if func is torch.normal or func is Tensor.normal_:
            tensor: Any = args[0] if args else kwargs.get("mean")
            names = ("mean", "std")
            arguments = args[1:] if func is Tensor.normal_ else args
            mean, std = (
                arguments[index] if index < len(arguments) else kwargs.get(name, float(index))
                for index, name in enumerate(names)
            )
            size = kwargs.get("size", arguments[2] if len(arguments) > 2 else None)
            if func is Tensor.normal_:
                shape = tuple(tensor.shape)
            elif size is not None:
                shape = tuple(size)
            else:
                shape = tuple((mean + std).shape)
            result: Tensor = mean + std * self._next(shape)
            if func is Tensor.normal_:
                result = tensor.copy_(result)
            return result
        if func is torch.randn_like:
            like = args[0] if args else kwargs["input"]
            return self._next(tuple(like.shape)).to(kwargs.get("dtype") or like.dtype)
        size = kwargs.get("size", args)
        shape = tuple(size[0]) if len(size) == 1 and isinstance(size[0], (tuple, list, torch.Size)) else tuple(size)
        return self._next(shape).to(kwargs.get("dtype") or torch.get_default_dtype())

    def _indices(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Indices from `choose` in place of those that the model would draw; their weights are recorded."""
        assert self.choose is not None
        if func is torch.randint:
            *bounds, size = (*args, kwargs["size"]) if "size" in kwargs else args
            high = int(kwargs.get("high", bounds[-1] if bounds else 0))
            low = int(kwargs.get("low", bounds[0] if len(bounds) == 2 else 0))
            self.weights.append(torch.full((high - low,), 1.0 / (high - low)))
            return self.choose(tuple(size)) + low
        weights = args[0] if args else kwargs["input"]
        count = args[1] if len(args) > 1 else kwargs["num_samples"]
        # Each row of the weights has its own draws; a prior has the same weights in all rows.
        first = weights.reshape(-1, weights.shape[-1])[0].detach()
        self.weights.append(first / first.sum())
        return self.choose((*weights.shape[:-1], int(count)))

    def _next(self, shape: tuple[int, ...]) -> Tensor:
        index = len(self.normal)
        self.normal.append(shape)
        noise = self.give(index, shape)
        if noise.dim() != len(shape):
            raise ExportError(
                f"draw {index + 1} of the model: expected noise of shape {list(noise.shape)}, got {list(shape)}; "
                "draw it with randn_like"
            )
        return noise


def _is_half(value: Any) -> bool:
    return value is torch.float16 or value is torch.bfloat16


def _drops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a dropout's `training` is on; torch.dropout takes it third, without a default."""
    default = func not in (torch.dropout, torch.native_dropout)
    training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else default))
    probability = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return bool(training) and probability != 0
