"""Let Python read what no input reaches, in a trace too: small buffers of a model, and what is computed of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._python_dispatch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Functions that turn a tensor's values into Python's, as a branch on them does. What operators read to check their
# arguments is not among them.
VALUES_READ = {
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__complex__,
    Tensor.__array__,
    Tensor.__contains__,
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.is_nonzero,
    Tensor.equal,
    Tensor.allclose,
    torch.is_nonzero,
    torch.equal,
    torch.allclose,
}
# Buffers with more elements are no sizes, flags or the like.
_SMALL = 16
# Functions whose result is known where all of their tensors are.
_COMPUTED = {
    name
    for base in (
        "add", "sub", "mul", "div", "floordiv", "truediv", "mod", "pow", "neg", "pos", "abs", "eq", "ne", "lt", "le",
        "gt", "ge", "and", "or", "xor", "invert", "getitem", "floor_divide",
        "true_divide", "remainder", "ceil", "floor",
        "round", "sqrt", "clamp", "min", "max", "minimum", "maximum", "sum", "prod", "all", "any", "to", "int", "long",
        "float", "double", "bool", "reshape", "view", "flatten", "squeeze", "unsqueeze", "logical_not", "logical_and",
        "logical_or", "clone", "detach", "tensor", "rsub", "radd", "rmul", "rdiv", "rtruediv", "rfloordiv", "rpow",
    )
    for name in (base, f"__{base}__")
}  # fmt: skip


class Constants:
    """The small buffers of a model, with their values as they were before any trace."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [
            (module, name, buffer.detach().clone())
            for module in model.modules()
            # Python reads no statistics.
            if not isinstance(module, nn.modules.batchnorm._NormBase)
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.numel() <= _SMALL
        ]

    def folded(self) -> contextlib.AbstractContextManager[object]:
        """A mode in which Python reads these buffers, and what is computed of them, as the numbers that they are."""
        # In a trace, modules hold other tensors under the same names.
        held = [(module._buffers.get(name), value) for module, name, value in self._buffers]
        known = [(buffer, value) for buffer, value in held if buffer is not None]
        # Without any there is nothing to read, and exporters follow sizes further without another mode.
        return _Folded(known) if known else contextlib.nullcontext()


class _Folded(TorchFunctionMode):
    def __init__(self, known: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        # With the tensors themselves, so that no other gets the identity of one.
        self._known = {id(tensor): (tensor, value) for tensor, value in known}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = bool(tensors) and all(id(tensor) in self._known for tensor in tensors)
        if func in VALUES_READ and known:
            arguments = (_valued(argument, self._known) for argument in args)
            with _outside_of_modes():
                return func(*arguments, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i"):
            # What is changed in place is known no more.
            self._known.pop(id(args[0]) if args else 0, None)
            return func(*args, **kwargs)
        if not (known and name in _COMPUTED):
            return func(
                *(_plain(a, self._known) for a in args), **{k: _plain(v, self._known) for k, v in kwargs.items()}
            )
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.numel() <= _SMALL:
            arguments = (_valued(argument, self._known) for argument in args)
            with _outside_of_modes():
                value = func(*arguments, **{k: _valued(argument, self._known) for k, argument in kwargs.items()})
            self._known[id(result)] = (result, value)
        return result


@contextlib.contextmanager
def _outside_of_modes() -> Iterator[None]:
    """Compute with real numbers while a trace, whose tensors have none, goes on."""
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        yield


def _plain(argument: Any, known: Mapping[int, tuple[Tensor, Tensor]]) -> Any:
    """An argument with integers in the place of known tensors in lists of sizes and in slices."""

    def size(item: Any) -> Any:
        value = known[id(item)][1] if id(item) in known else None
        whole = value is not None and value.numel() == 1 and not value.is_floating_point()
        if value is None or not whole:
            return _plain(item, known)
        with _outside_of_modes():
            return int(value)

    if isinstance(argument, slice):
        return slice(size(argument.start), size(argument.stop), size(argument.step))
    if type(argument) in (tuple, list):
        return type(argument)(size(item) for item in argument)
    return argument


def _valued(argument: Any, known: Mapping[int, tuple[Tensor, Tensor]]) -> Any:
    """An argument with the values of known tensors."""
    if isinstance(argument, Tensor):
        return known[id(argument)][1]
    if isinstance(argument, slice):
        return slice(*(_valued(item, known) for item in (argument.start, argument.stop, argument.step)))
    if type(argument) in (tuple, list):
        return type(argument)(_valued(item, known) for item in argument)
    return argument
