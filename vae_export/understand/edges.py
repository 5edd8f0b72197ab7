"""The dtypes at the edges of a graph, float32 and int64, beside those that a model was written for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def at_edge(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype that graphs take and give: float32 for floats, int64 for integers and bools."""
    dtype = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def as_float32(tensor: Tensor) -> Tensor:
    """Return a tensor as float32, integers and bools too."""
    return tensor if tensor.dtype == torch.float32 else tensor.to(torch.float32)


def written_for(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a graph's input in the dtype that the model was written for."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def range_of(dtype: torch.dtype) -> tuple[float, float] | None:
    """Return the min and max of a dtype; None for floats, and for int64, which graphs take as it is."""
    if dtype.is_floating_point or dtype == torch.int64:
        return None
    if dtype == torch.bool:
        return 0.0, 1.0
    return float(torch.iinfo(dtype).min), float(torch.iinfo(dtype).max)


def fitting(
    own: Mapping[str, Tensor], edge: Mapping[str, Tensor], works: Callable[[Mapping[str, Tensor]], bool]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return arguments in the dtypes that a function takes.

    A label of uint8, say, is no index into a table: the model's own code makes it int64 before it calls the function.

    Args:
        own: the arguments by name, in the dtypes in which they were given.
        edge: the same in the dtypes of a graph.
        works: whether the function takes such arguments.

    Returns:
        The arguments in their own dtypes, or else one of them, or else all, in those of the graph; and the names of the
        changed ones. Where the function works with none of these, they stay as they are.
    """
    others = [name for name, tensor in own.items() if tensor.dtype != edge[name].dtype]
    if others:
        for changed in dict.fromkeys([(), *((name,) for name in others), tuple(others)]):
            arguments = {**own, **{name: edge[name] for name in changed}}
            if works(arguments):
                return arguments, changed
    return dict(own), ()


def making_graph() -> bool:
    """Return whether PyTorch follows the model to make a graph of it, by a trace or an export."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[no-untyped-call,attr-defined]
