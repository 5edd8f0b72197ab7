"""Batches of a part as tensors, made a batch ahead in a thread where rows are read from a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime.errors import InputError, one_line
from vae_runtime.generation.ahead import Ahead

from .part import Observations, Part

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TensorBatch:
    """Rows of a part as tensors."""

    x: Tensor
    """Observations, float32 [k, *shape]."""
    conditions: dict[str, Tensor]
    """By name, each int64 [k] or float32 [k, …]."""


def augmentation(
    function: Callable[[Tensor, torch.Generator], Any],
    spec: str,
    misfit: Callable[[Observations], str | None],
    random: torch.Generator,
) -> Change:
    """Return the change of observations that a function of the user's makes.

    Args:
        function: (x, generator) → x, of float32 [k, *shape].
        spec: its name, for errors.
        misfit: describes what is wrong with observations, or gives None.
        random: given to each call; its draws are all the randomness that the function may have.
    """

    def change(x: Tensor) -> Tensor:
        expected = f"float32 {list(x.shape)}"
        try:
            changed: Any = function(x, random)
        except Exception as error:  # whatever the user's code raises
            raise InputError(
                f"data.augment: {spec} failed: {type(error).__name__}: {one_line(error)}; correct it"
            ) from error
        got = type(changed).__name__
        if isinstance(changed, Tensor):
            got = f"{str(changed.dtype).removeprefix('torch.')} {list(changed.shape)}"
        if got != expected:
            raise InputError(f"data.augment: {spec}: expected {expected}, as it was given, got {got}")
        tensor: Tensor = changed.detach().cpu()
        if wrong := misfit(tensor.numpy()):
            raise InputError(f"data.augment: {spec}: {wrong} of a batch; correct it, or clamp what it gives")
        return tensor

    return change


class Batches:
    """Goes through a part in an order, once.

    Args:
        part: where the rows are.
        order: the indices of each batch, int64 [k].
        change: applied to the observations of each batch, in their order.
    """

    def __init__(self, part: Part, order: Iterable[NDArray[np.int64]], change: Change | None = None) -> None:
        self._part, self._order, self._change = part, order, change
        self.seconds = 0.0
        """The time that making batches has taken, whether or not the caller waited for them."""
        self.rows = 0
        """The rows made so far."""

    @property
    def rate(self) -> float:
        """Rows per second of making batches alone."""
        return self.rows / max(self.seconds, 1e-9)

    def __iter__(self) -> Iterator[TensorBatch]:
        """Go through the batches; the thread ends with the iterator."""
        if self._change is None and not isinstance(self._part.source.observations, np.memmap):
            # A thread would take longer than these rows do.
            yield from self._made()
            return
        with Ahead(self._made()) as batches:
            yield from batches

    def _made(self) -> Iterator[TensorBatch]:
        for indices in self._order:
            began = time.perf_counter()
            batch = read(self._part, indices)
            if self._change:
                with torch.no_grad():
                    batch = replace(batch, x=self._change(batch.x))
            self.seconds += time.perf_counter() - began
            self.rows += len(batch.x)
            yield batch


def read(part: Part, chosen: NDArray[np.int64] | slice) -> TensorBatch:
    """Return rows of a part as tensors."""
    conditions = {name: torch.from_numpy(each) for name, each in part.conditions(chosen).items()}
    return TensorBatch(torch.from_numpy(part.rows(chosen)), conditions)


def ordered(part: Part, n: int) -> dict[str, Tensor]:
    """Return the conditions of the first n rows of a part, again from the first where it has fewer, sorted by class."""
    conditions = part.conditions(np.arange(n) % len(part))
    classes = [values for values in conditions.values() if values.dtype.kind == "i"]
    order = np.lexsort(classes[::-1]) if classes else np.arange(n)
    return {name: torch.from_numpy(values[order]) for name, values in conditions.items()}


def at_least_two(rows: Tensor) -> Tensor:
    """Return rows [n, …]; a single one twice, once with its values moved, since a batch of 1 hides what rows share."""
    return rows if len(rows) > 1 else torch.cat([rows, rows.roll(1, -1) if rows.dim() > 1 else rows])
