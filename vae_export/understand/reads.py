"""Follow what depends on a component's inputs: values that Python reads, which no graph can follow, and flows."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
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
    """Return whether the decoder makes of its latents, by its weights, others with as many numbers, as a flow does.

    Its answers are none of these, though they may have as many.
    """
    latents, given = _latents_of(adapted, adapted.examples)
    module = adapted.modules["decoder"]
    mapped = _Mapped(latents, [*module.parameters(), *module.buffers()])
    with torch.no_grad(), mapped:
        outputs = module(*given)
    return mapped.maps(outputs)


def layers_before(
    adapted: Adapted,
    examples: Mapping[str, Tensor],
    watching: Callable[[Callable[[Tensor], object]], AbstractContextManager[None]],
) -> bool:
    """Return whether layers of the decoder give what is watched, and make no others as large as the latents.

    Args:
        adapted: has the decoder.
        examples: of its inputs, with latents that nothing leaves as they are by chance.
        watching: while active, notes the tensors that are watched.
    """
    latents, given = _latents_of(adapted, examples)
    module = adapted.modules["decoder"]
    layered, mapped = _Mapped(latents, [*module.parameters(), *module.buffers()]), _Mapped(latents)
    noted: list[bool] = []
    with torch.no_grad(), watching(lambda tensor: noted.append(layered.weighs(tensor))), mapped, layered:
        outputs = module(*given)
    return bool(noted) and all(noted) and not (layered.maps(outputs) or mapped.maps(outputs))


def _latents_of(adapted: Adapted, examples: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of the examples of the decoder's latents, and of all its inputs."""
    given = [tensor.clone() for tensor in adapted.given("decoder", examples)]
    names = {latent.name for latent in adapted.signature.latents}
    inputs = adapted.signature.inputs("decoder")
    return [tensor for spec, tensor in zip(inputs, given, strict=True) if spec.name in names], given


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
    """Find other tensors with as many numbers as the inputs that are made of them.

    Args:
        inputs: latents.
        weights: those that have a part in it, whatever its values; None takes all that have other values.
    """

    def __init__(self, inputs: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> None:
        super().__init__(inputs)
        self._sizes = {tensor[:1].numel() for tensor in inputs}
        # Copies, since a model may change its inputs in place.
        self._own = [tensor.clone() for tensor in inputs] if weights is None else []
        parts = inputs if weights is None else weights
        self._weighted = {StorageWeakRef(tensor.untyped_storage()) for tensor in _strided(parts)}
        self.found: set[StorageWeakRef] = set()

    def weighs(self, tensor: Tensor) -> bool:
        """Whether weights had a part in a tensor that depends on an input."""
        return self.reaches(tensor) and StorageWeakRef(tensor.untyped_storage()) in self._weighted

    def maps(self, answers: Sequence[Tensor]) -> bool:
        """Whether such tensors were found, beside the answers."""
        return bool(self.found - {StorageWeakRef(answer.untyped_storage()) for answer in answers})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        given = {StorageWeakRef(tensor.untyped_storage()) for tensor in _strided((args, kwargs))}
        if self.reaches((args, kwargs)) and given & self._weighted:
            for tensor in _strided(result):
                storage = StorageWeakRef(tensor.untyped_storage())
                self._weighted.add(storage)
                kept = any(torch.equal(own.flatten(), tensor.flatten()) for own in self._own)
                if tensor.dim() and tensor[:1].numel() in self._sizes and not kept:
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
