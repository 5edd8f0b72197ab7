"""Follow what depends on a component's inputs: values that Python reads, which no graph can follow, and flows."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .adapted import Adapted
from .constants import VALUES_READ

_PACKAGE = Path(__file__).parents[1]


def branch_of(adapted: Adapted, component: str) -> str | None:
    """Return where a component's path through Python depends on its inputs, and the remedy; None if nowhere."""
    reads = _reads(adapted, component)
    if reads.reached.packed:
        return (
            f"sequences are packed by their lengths at {reads.reached.packed[0]}, which a graph cannot follow; run the "
            "layer over the padded sequences, and take each row's state at its length with torch.gather"
        )
    if reads.places:
        return (
            f"a Python branch or loop depends on the values of a tensor at {reads.places[0]}, which a graph cannot "
            "follow; compute both sides and choose with torch.where"
        )
    return None


def maps_latents(adapted: Adapted) -> bool:
    """Return whether the decoder makes of its latents, by its weights, others of the same shape, as a flow does.

    Its answers are none of these, though they may have that shape.
    """
    module = adapted.modules["decoder"]
    given = [tensor.clone() for tensor in adapted.given("decoder")]
    shapes = {tuple(latent.shape) for latent in adapted.signature.latents}
    mapped = _Mapped(given, shapes, [*module.parameters(), *module.buffers()])
    with torch.no_grad(), mapped:
        outputs = module(*given)
    return bool(mapped.found - {StorageWeakRef(output.untyped_storage()) for output in outputs})


def _reads(adapted: Adapted, component: str) -> _Reads:
    """Run a component on two rows of its examples, and watch what it reads."""
    given = [tensor[:2].clone() for tensor in adapted.given(component)]
    reached = _Reached(given)
    reads = _Reads(reached)
    with torch.no_grad(), reads, reached:
        adapted.modules[component](*given)
    return reads


class _Reached(TorchDispatchMode):
    """Follow which tensors depend on the inputs, and record the lines where they pack sequences."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = {StorageWeakRef(tensor.untyped_storage()) for tensor in inputs}
        self.packed: list[str] = []

    def reaches(self, values: Any) -> bool:
        """Whether any tensor in these arguments depends on an input."""
        return any(StorageWeakRef(tensor.untyped_storage()) in self._storages for tensor in _strided(values))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.reaches((args, kwargs)):
            changed = (result, args, kwargs) if func._schema.is_mutable else result
            self._storages |= {StorageWeakRef(tensor.untyped_storage()) for tensor in _strided(changed)}
            if func is torch.ops.aten._pack_padded_sequence.default:
                self.packed.append(_place())
        return result


class _Mapped(_Reached):
    """Find the tensors of these shapes that weights make of the inputs."""

    def __init__(
        self, inputs: Sequence[Tensor], shapes: Collection[tuple[int, ...]], weights: Sequence[Tensor]
    ) -> None:
        super().__init__(inputs)
        self._shapes = shapes
        self._weighted = {StorageWeakRef(tensor.untyped_storage()) for tensor in _strided(weights)}
        self.found: set[StorageWeakRef] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        given = {StorageWeakRef(tensor.untyped_storage()) for tensor in _strided((args, kwargs))}
        if self.reaches((args, kwargs)) and given & self._weighted:
            for tensor in _strided(result):
                storage = StorageWeakRef(tensor.untyped_storage())
                self._weighted.add(storage)
                if tuple(tensor.shape[1:]) in self._shapes:
                    self.found.add(storage)
        return result


class _Reads(TorchFunctionMode):
    """Record the lines where values that depend on an input become Python's."""

    def __init__(self, reached: _Reached) -> None:
        super().__init__()
        self.reached = reached
        self.places: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in VALUES_READ and self.reached.reaches((args, kwargs)):
            self.places.append(_place())
        return result


def _strided(values: Any) -> list[Tensor]:
    """The tensors in a nest of values that have a storage."""
    leaves = torch.utils._pytree.tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def _place() -> str:
    """File and line of the innermost caller outside PyTorch and this package, without the folder."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if "torch" not in path.parts and not path.is_relative_to(_PACKAGE):
            return f"{path.name}:{frame.lineno}" + (f" ({frame.line})" if frame.line else "")
    return "an unknown line"
