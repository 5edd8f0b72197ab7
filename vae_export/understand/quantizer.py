"""Cut a model's `forward` at its quantizers: the encoder gives their codes, the decoder starts from codes.

A quantizer is a submodule that returns codes and vectors, such that the rows of a table of its own, or one of its
methods, give the vectors of the codes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import ExportError
from .decoding import sizes_named
from .draws import Draws
from .functions import Functions
from .halves import Halves, checked
from .posterior import SAME, distance

# Methods that turn codes into vectors. One of these is believed only where it gives those that the quantizer gave.
_LOOKUPS = (
    "get_output_from_indices", "get_codes_from_indices", "indices_to_codes", "from_codes", "get_codebook_entry",
    "lookup", "embed_code", "embed", "decode", "dequantize", "codes_to_vectors", "indices_to_embeddings",
)  # fmt: skip

# A table with more numbers is not made.
_MAX_TABLE = 2**26


@dataclass(frozen=True)
class _Quantizer:
    """A submodule that quantizes, and what its answer means."""

    module: nn.Module
    name: str
    leaf: int
    """The number of the tensor, in the answer, that holds the vectors."""
    codes: Callable[[list[Any]], Tensor]
    """Gives the codes, [n, …], of the leaves of an answer."""
    vectors: Callable[[Tensor], Tensor]
    """Gives the vectors of codes."""
    answer: Any
    """An answer, whose other tensors, such as losses, stand for those of any."""


def cut_at_quantizers(model: nn.Module, example: Tensor, given: Mapping[str, Tensor]) -> Functions:
    """Return what `forward` does before and after its quantizers as encode and decode.

    Args:
        model: in evaluation mode.
        example: observations [n, …].
        given: the conditions' values [n, …] by name.

    Raises:
        ExportError: `forward` has no quantizer, or fails, or what follows the quantizers depends on more than the codes
            and the conditions.
    """
    halves = _Halves(model, example, given)
    with Draws.constant(0.0):
        checked(halves.find_quantizers)
        checked(halves.cut)
    names = ", ".join(quantizer.name for quantizer in halves.quantizers)
    return halves.functions(f"at its quantizer, {names}")


class _Halves(Halves):
    """What a model's `forward` does before its quantizers have answered, and after."""

    quantizers: Sequence[_Quantizer] = ()

    def find_quantizers(self) -> None:
        """Find the quantizers.

        Raises:
            ExportError: there is none.
        """
        self.quantizers = _quantizers(self.model, self.example, self.taken)
        if not self.quantizers:
            raise ExportError("it has no submodule that quantizes")

    def cut(self) -> None:
        """Check that forward can be cut, and find the reconstruction."""
        codes = self.encode(self.example.clone(), **self.taken)
        # Every codebook has the codes 0 and 1.
        self.find_reconstruction(codes, [(code == 0).long() for code in codes], "codes")

    def encode(self, x: Tensor, **conditions: Tensor) -> tuple[Tensor, ...]:
        """The codes of each quantizer, in the order in which they answer."""
        codes: list[Tensor] = []
        # To its end, although nothing after the quantizers is needed: an exception would end a trace.
        with contextlib.ExitStack() as stack:
            for quantizer in self.quantizers:

                def collect(m: nn.Module, given: Any, output: Any, quantizer: _Quantizer = quantizer) -> None:
                    codes.append(quantizer.codes(tree_leaves(output)))

                stack.callback(quantizer.module.register_forward_hook(collect).remove)
            self.model(x, **conditions)
        return tuple(codes)

    def answer(self, latents: Sequence[Tensor], x: Tensor, conditions: Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors that `forward` returns where the quantizers give these codes."""

        with contextlib.ExitStack() as stack:
            for quantizer, code in zip(self.quantizers, latents, strict=True):
                leaves, spec = tree_flatten(quantizer.answer)
                leaves[quantizer.leaf] = quantizer.vectors(code)
                answer = tree_unflatten(leaves, spec)
                # The quantizer itself does not run: nothing depends on it, and some fix the size of a batch.
                object.__setattr__(quantizer.module, "forward", lambda *given, answer=answer, **named: answer)
                stack.callback(object.__delattr__, quantizer.module, "forward")
            output = self.model(x, **conditions)
        return self.tensors(output)


# Finding quantizers.


def _quantizers(model: nn.Module, example: Tensor, conditions: Mapping[str, Tensor]) -> list[_Quantizer]:
    """The quantizers of a model, outermost submodules first chosen, in the order in which they answer."""
    calls: dict[nn.Module, list[Any]] = {}
    takes_numbers: set[nn.Module] = set()

    def note(module: nn.Module, given: Any, named: Any, output: Any) -> None:
        calls.setdefault(module, []).append(output)
        # A table of embeddings of a label, say, takes integers alone.
        if any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves((given, named))):
            takes_numbers.add(module)

    names = {module: name for name, module in model.named_modules() if name}
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in names]
    try:
        model(example.clone(), **conditions)
    finally:
        for hook in hooks:
            hook.remove()
    chosen: dict[nn.Module, _Quantizer] = {}
    inside: set[nn.Module] = set()
    for module, name in names.items():
        if module in inside or module not in takes_numbers or len(calls[module]) != 1:
            continue
        quantizer = _quantizer(module, name, calls[module][0], len(example))
        if quantizer is not None:
            chosen[module] = quantizer
            inside.update(module.modules())
    # Hooks run when a module has answered, so that the order of calls is that of answers.
    return [chosen[module] for module in calls if module in chosen]


def _quantizer(module: nn.Module, name: str, output: Any, n: int) -> _Quantizer | None:
    """What a submodule's answer means if it quantizes."""
    leaves = tree_leaves(output)
    numbered = [
        (number, leaf)
        for number, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1 and len(leaf) == n
    ]
    # A quantizer owns its codebook; most submodules own nothing of the kind.
    tables, lookups = list(_tables(module)), list(_lookups(module))
    if not numbered or not (tables or lookups):
        return None
    for number, vectors in numbered:
        for codes in _codes_of(leaves, number, n):
            found = _vectors_of(codes(leaves), vectors, lookups, tables)
            if found is not None:
                return _Quantizer(module, name, number, codes, found, output)
    return None


def _tables(module: nn.Module) -> Iterator[Callable[[], Tensor]]:
    """The weights and buffers of a module that may be codebooks, as [codes, numbers]."""
    for owner in module.modules():
        for name, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is None or not tensor.is_floating_point():
                continue
            shape = tensor.shape[1:] if tensor.dim() == 3 and len(tensor) == 1 else tensor.shape
            if len(shape) == 2 and min(shape) > 0:
                # Read when it is used: in a trace, or in float64, the weights are others.
                yield lambda owner=owner, name=name, shape=shape: getattr(owner, name).reshape(shape)  # type: ignore[misc]
                yield lambda owner=owner, name=name, shape=shape: getattr(owner, name).reshape(shape).T  # type: ignore[misc]


def _lookups(module: nn.Module) -> Iterator[Callable[[Tensor], Any]]:
    """The methods of a module, and of its submodules, that may turn codes into vectors."""
    for owner in module.modules():
        for name in _LOOKUPS:
            method = getattr(owner, name, None)
            if inspect.ismethod(method):
                yield method


def _codes_of(leaves: Sequence[Any], number: int, n: int) -> Iterator[Callable[[list[Any]], Tensor]]:
    """Functions that read codes, [n, …], out of the leaves of an answer: integers, one for each vector or more."""
    vectors = leaves[number]
    cells = vectors[0].numel() // vectors.shape[1]
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.dtype == torch.bool or leaf.is_floating_point():
            continue
        if len(leaf) == n and leaf.dim() > 1:
            yield lambda leaves, index=index: leaves[index].long()  # type: ignore[misc]
        if leaf.numel() == n * cells:
            yield lambda leaves, index=index: _spread(leaves[index].long(), leaves[number])  # type: ignore[misc]


def _spread(codes: Tensor, vectors: Tensor) -> Tensor:
    """Codes in one row, laid out as the vectors are, whose second axis holds the numbers."""
    return codes.reshape(vectors.shape[0], *vectors.shape[2:]) if vectors.dim() > 2 else codes.reshape(-1, 1)


def _vectors_of(
    codes: Tensor,
    vectors: Tensor,
    lookups: Sequence[Callable[[Tensor], Any]],
    tables: Sequence[Callable[[], Tensor]],
) -> Callable[[Tensor], Tensor] | None:
    """A function that gives these vectors for these codes; None if nothing does."""
    rows = [
        lambda codes, table=table: functional.embedding(codes, table())
        for table in tables
        if table().shape[1] in (vectors.shape[1], vectors.shape[-1]) and int(codes.max()) < len(table())
    ]
    for lookup in (*lookups, *rows):
        for arrange in (_as_it_is, _numbers_second, _alone):

            def found(codes: Tensor, lookup: Any = lookup, arrange: Any = arrange) -> Tensor:
                answer = lookup(codes)
                while isinstance(answer, (tuple, list)):
                    answer = answer[0]
                return arrange(answer)  # type: ignore[no-any-return]

            with contextlib.suppress(Exception):
                answer = found(codes.clone())
                if answer.shape == vectors.shape and distance(answer, vectors) <= SAME:
                    return (_tabulated(lookup, found, codes, vectors) if lookup in lookups else None) or found
    return None


def _as_it_is(vectors: Tensor) -> Tensor:
    return vectors


def _numbers_second(vectors: Tensor) -> Tensor:
    """Vectors whose numbers lie along the last axis, as convolutions take them."""
    return vectors.movedim(-1, 1)


def _alone(vectors: Tensor) -> Tensor:
    """The only vector of each row."""
    return vectors.squeeze(1)


def _tabulated(
    lookup: Callable[[Tensor], Any], found: Callable[[Tensor], Tensor], codes: Tensor, vectors: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """The same as a method that turns codes into vectors, by a table for each level; None if that is something else.

    The methods of libraries compute with sizes that a trace fixes. A vector is the sum of a row of each table, whether
    the levels are residual, groups or heads.
    """
    owner = getattr(lookup, "__self__", None)
    sizes = set(sizes_named(owner)) if isinstance(owner, nn.Module) else set()
    count = max(sizes, default=0)
    several = codes.dim() == vectors.dim()
    levels = codes.shape[-1] if several else 1
    if len(sizes) != 1 or count <= int(codes.max()) or count * levels * vectors.shape[1] > _MAX_TABLE:
        return None
    places = [1] * (vectors.dim() - 2)
    rows = torch.zeros(count, *places, *([levels] if several else []), dtype=torch.int64)
    tables: list[Tensor] = []
    with contextlib.suppress(Exception):
        zero = found(rows).reshape(count, -1)
        for level in range(levels):
            moved = rows.clone()
            (moved[..., level] if several else moved)[:] = torch.arange(count).reshape(count, *places)
            tables.append(found(moved).reshape(count, -1).detach() - (zero if level else 0))
        for arrange in (_as_it_is, _numbers_second):

            def summed(codes: Tensor, arrange: Callable[[Tensor], Tensor] = arrange) -> Tensor:
                each = codes.unbind(-1) if several else (codes,)
                # In float64 all numbers of a model are.
                dtype = torch.get_default_dtype()
                parts = [functional.embedding(code, table.to(dtype)) for code, table in zip(each, tables, strict=True)]
                return arrange(torch.stack(parts).sum(0) if several else parts[0])

            answer = summed(codes)
            if answer.shape == vectors.shape and distance(answer, vectors) <= SAME:
                return summed
    return None
