"""Change a model and PyTorch for an export, and restore them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, float32, on the CPU and without gradients; restore everything at the end.

    Restored, also after an error: each submodule's attributes (mode, hooks, what it caches), parameters and
    buffers with their values, dtype and device, the state of every random generator, PyTorch's default dtype, and
    whether its distributions check their arguments.
    """
    state, surroundings = _ModelState(model), _Surroundings()
    cuda = {tensor.device.index or 0 for tensor in state.tensors if tensor.device.type == "cuda"}
    try:
        with (
            torch.random.fork_rng(devices=cuda),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            _eager(),
            _plain(),
        ):
            torch.set_default_dtype(torch.float32)
            torch.distributions.Distribution.set_default_validate_args(False)
            model.eval()
            _to_float32_on_cpu(model)
            for module in state.modules:
                # There are no gradients for them to see, and TorchScript takes no module that has any.
                module._backward_hooks.clear()
                module._backward_pre_hooks.clear()
                _detach(module)
                if isinstance(module, nn.DataParallel):
                    # It would send the rows to the GPUs that it knows, which no longer have the weights.
                    module.device_ids = []
            yield
    finally:
        state.restore()
        surroundings.restore()


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put each submodule back in its mode, training or evaluation, at the end of the block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Restore modes and buffers at the end of the block."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with modes_kept(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextlib.contextmanager
def replaced(model: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function in the place of a model's method.

    Args:
        model: whose method.
        name: of the method.
        function: what is called instead.
    """
    own = vars(model).get(name)
    object.__setattr__(model, name, function)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(model, name)
        else:
            object.__setattr__(model, name, own)


# How many multiplications one row may take at most, by the number of weights and values, to run with one thread.
_SMALL_RUN = 2**32


@contextlib.contextmanager
def fitting_threads(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Run a small model in one of PyTorch's threads, and restore their number.

    An operation ends when the last of its threads does. Where another program uses the core of one, each short
    operation waits for it, and an export of a small model took twice the processor time.

    Args:
        model: in evaluation mode.
        example: observations or latents [n, …].
    """
    threads = torch.get_num_threads()
    weights = sum(tensor.numel() for tensor in model.parameters())
    if weights * example[:1].numel() <= _SMALL_RUN:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _detach(module: nn.Module) -> None:
    """Let a LightningModule log nothing: outside of a training loop its `log` fails or warns."""
    if callable(getattr(module, "training_step", None)):
        for name in ("log", "log_dict"):
            if callable(getattr(module, name, None)):
                object.__setattr__(module, name, lambda *given, **named: None)


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Let what torch.compile made run as it was written: compiled code hides its draws of noise from the exporter."""
    # PyTorch's compiler takes long to import, and nothing is compiled before it is.
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Let a checkpoint call its function: without gradients it saves nothing, and PyTorch's exporters fail on some."""
    own = vars(CheckpointFunction).get("apply")
    setattr(CheckpointFunction, "apply", staticmethod(lambda function, preserve, *given: function(*given)))  # noqa: B010
    try:
        yield
    finally:
        if own is None:
            del CheckpointFunction.apply
        else:
            setattr(CheckpointFunction, "apply", own)  # noqa: B010


class _ModelState:
    """The attributes, containers and tensors of a model's modules."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self._attributes = [dict(vars(module)) for module in self.modules]
        self._modes = [module.training for module in self.modules]
        # The very container objects are refilled: a hook's handle removes it from the dictionary that it was put in.
        self._containers: dict[int, tuple[Any, Any]] = {}
        loose: list[Tensor] = []
        for saved in self._attributes:
            _collect(list(saved.values()), self._containers, loose)
        tensors = list({id(t): t for t in (*model.parameters(), *model.buffers())}.values())
        self.tensors = [tensor for tensor in tensors if tensor.layout == torch.strided]
        self._data = [tensor.data for tensor in self.tensors]
        # Large models' weights are not copied: the copy would be as large.
        small = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) < LARGE
        copied = {id(t): t for t in (*model.buffers(), *((*model.parameters(), *loose) if small else ()))}.values()
        self._values = [(tensor, tensor.detach().clone()) for tensor in copied]

    def restore(self) -> None:
        """Put everything back."""
        for tensor, original in zip(self.tensors, self._data, strict=True):
            if tensor.data_ptr() != original.data_ptr() or tensor.shape != original.shape:
                tensor.data = original
        for module, saved in zip(self.modules, self._attributes, strict=True):
            vars(module).clear()
            vars(module).update(saved)
        for container, content in self._containers.values():
            if isinstance(container, np.ndarray):
                container[...] = content
                continue
            container.clear()
            if isinstance(container, (list, deque)):
                container.extend(content)
            else:
                container.update(content)
        for module, mode in zip(self.modules, self._modes, strict=True):
            # A scripted module keeps its mode elsewhere.
            if module.training != mode:
                module.training = mode
        for tensor, before in self._values:
            # NaN is not equal to itself; putting it back does no harm.
            if tensor.layout != torch.strided or not torch.equal(tensor.detach(), before):
                tensor.data.copy_(before)


class _Surroundings:
    """Global state: PyTorch's default dtype, the checks of its distributions, Python's and NumPy's generators."""

    def __init__(self) -> None:
        self._validate = torch.distributions.Distribution._validate_args
        self._default_dtype = torch.get_default_dtype()
        self._random, self._numpy = random.getstate(), np.random.get_state()

    def restore(self) -> None:
        """Put everything back."""
        torch.distributions.Distribution.set_default_validate_args(self._validate)
        torch.set_default_dtype(self._default_dtype)
        random.setstate(self._random)
        np.random.set_state(self._numpy)


_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque, np.ndarray)


def _collect(parts: list[Any], containers: dict[int, tuple[Any, Any]], loose: list[Tensor]) -> None:
    """Copies of plain containers, nested ones too, and the tensors that are in them."""
    for part in parts:
        # Other kinds of containers may refuse to be changed.
        if type(part) in _CONTAINERS and id(part) not in containers:
            containers[id(part)] = (part, part.copy())
            if not isinstance(part, np.ndarray):
                _collect(list(part.values() if isinstance(part, dict) else part), containers, loose)
        elif type(part) is Tensor:
            loose.append(part)


# Bytes of weights from which on a model is large, and memory is saved.
LARGE = 2**26


def release(modules: Iterable[nn.Module]) -> None:
    """Give free memory that the C library (glibc) keeps back to the system; only for large models."""
    tensors = {id(tensor): tensor for module in modules for tensor in module.parameters()}.values()
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) < LARGE:
        return
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _to_float32_on_cpu(model: nn.Module) -> None:
    replaced: dict[int, Tensor] = {}
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or (
                tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.int64, torch.bool)
            ):
                continue
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            if id(tensor) not in replaced:
                moved = tensor.detach().to("cpu", dtype)
                replaced[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
            # Not by the dictionary: a recurrent module keeps a second list of its weights.
            setattr(module, name, replaced[id(tensor)])


def used_tensors(call: Any, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors whose storage a call reads."""
    storages: set[int] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for value in torch.utils._pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and value.layout == torch.strided:
                    storages.add(value.untyped_storage().data_ptr())
            return func(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        call()
    return [
        tensor
        for tensor in tensors
        if tensor.layout != torch.strided or tensor.untyped_storage().data_ptr() in storages
    ]


class _Widened(TorchFunctionMode):
    """Make new tensors float64 where a model asks for float32 by name."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.float:
            return Tensor.double(*args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if func is Tensor.to and len(args) > 1:
            args = tuple(torch.float64 if argument is torch.float32 else argument for argument in args)
        return func(*args, **kwargs)


@contextlib.contextmanager
def in_float64(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Widen these parameters and buffers in place, and put their own storage back at the end."""
    floating = [(tensor, tensor.data) for tensor in tensors if tensor.dtype == torch.float32]
    try:
        for tensor, data in floating:
            tensor.data = data.double()
        torch.set_default_dtype(torch.float64)
        with _Widened():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        for tensor, data in floating:
            tensor.data = data
