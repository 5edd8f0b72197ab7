"""Hold graphs against eager PyTorch, in float32 and float64, at batch sizes and latents that were not traced."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.errors import VaeError

from .adapt import Adapted
from .errors import ParityError
from .graphs import RUNNERS, Graph, run_module

__all__ = ["BATCHES", "LATENT_REACH", "ParityReport", "TensorParity", "compare", "tolerance"]

Array = NDArray[np.float32]

BATCHES = (1, 2, 7, 64)
# Latents go up to this magnitude: a prior draw exceeds it once in two million numbers.
LATENT_REACH = 5.0
# Allowed difference, as a share of the largest magnitude in the tensor and never below that of 1: some eighty
# roundings of float32, where sound graphs of VAEs differ by one to thirty.
_RELATIVE = 1e-5


@dataclass(frozen=True)
class TensorParity:
    """One output of one graph against PyTorch, the worst over all batches.

    `max_abs` is the largest difference from float64, `worst` its index in a batch of `batch`. `max_rel` is the largest
    difference relative to the value it is of, values below a thousandth of the tensor's largest counted as that.
    """

    component: str
    variant: str
    output: str
    max_abs: float
    max_rel: float
    from_float32: float
    batch: int
    worst: tuple[int, ...]
    tolerance: float
    disagreeing: int
    compared: int

    @property
    def passed(self) -> bool:
        """Whether every value lies within the tolerance."""
        return self.disagreeing == 0

    def __str__(self) -> str:
        return (
            f"{'ok' if self.passed else 'FAILED':8}{f'{self.component}/{self.variant} {self.output}':28}"
            f"max abs {self.max_abs:.2e}  max rel {self.max_rel:.2e}  tolerance {self.tolerance:.2e}  "
            f"from float32 {self.from_float32:.2e}  worst at {list(self.worst)} of batch {self.batch}"
            + ("" if self.passed else f"; {self.disagreeing} of {self.compared} values disagree")
        )


@dataclass(frozen=True)
class ParityReport:
    """What `compare` found. `str()` of it is a table."""

    tensors: tuple[TensorParity, ...]

    @property
    def passed(self) -> bool:
        """Whether every tensor passed."""
        return all(tensor.passed for tensor in self.tensors)

    @property
    def max_abs(self) -> float:
        """The largest difference from float64 PyTorch of all tensors."""
        return max(tensor.max_abs for tensor in self.tensors)

    @property
    def max_rel(self) -> float:
        """The largest relative difference of all tensors."""
        return max(tensor.max_rel for tensor in self.tensors)

    def require(self) -> None:
        """Raise unless everything passed.

        Raises:
            ParityError: a line for each tensor beyond its tolerance.
        """
        failed = [str(tensor) for tensor in self.tensors if not tensor.passed]
        if failed:
            raise ParityError("the exported graphs do not compute what PyTorch does:\n  " + "\n  ".join(failed))

    def __str__(self) -> str:
        return "\n".join(map(str, self.tensors))


def tolerance(reference: NDArray[np.floating]) -> float:
    """The largest difference allowed from a reference tensor: 1e-5 of its largest finite magnitude, or of 1."""
    return _RELATIVE * float(np.max(np.abs(reference), where=np.isfinite(reference), initial=1.0))


def compare(adapted: Adapted, graphs: Iterable[Graph], x: Array) -> ParityReport:
    """Run every graph and eager PyTorch on the same inputs, at each batch size of `BATCHES`.

    Args:
        adapted: the VAE's pure functions, in float32.
        graphs: the graphs to hold against it.
        x: real observations, float32 [n, *observation_shape]; repeated where 64 are not there. The decoder gets prior
            latents of vnoise-1, every second one stretched to `LATENT_REACH`.

    Raises:
        ParityError: a graph does not run at one of the batch sizes, or gives other outputs than PyTorch. Numbers that
            differ are in the report.
    """
    x = np.resize(x, (max(BATCHES), *adapted.observation_shape))
    z = noise.normal(0, 0, max(BATCHES), adapted.latent_shape)
    axes = tuple(range(1, z.ndim))
    z[1::2] *= LATENT_REACH / np.abs(z[1::2]).max(axis=axes, keepdims=True)
    given = {"encoder": x, "decoder": z}
    reference = {component: _eager(adapted, component, values) for component, values in given.items()}
    tensors: list[TensorParity] = []
    for graph in graphs:
        outputs = adapted.outputs(graph.component)
        answers = {batch: _answer(graph, given[graph.component][:batch], outputs) for batch in BATCHES}
        for index, output in enumerate(outputs):
            pairs = {batch: (answers[batch][index], reference[graph.component][batch][index]) for batch in BATCHES}
            tensors.append(_judge(graph, output, pairs))
    return ParityReport(tuple(tensors))


def _answer(graph: Graph, given: Array, outputs: Sequence[str]) -> list[Array]:
    place = f"{graph.component}/{graph.variant}"
    try:
        answer = RUNNERS[graph.executor](graph.content, given)
    except VaeError as error:
        raise ParityError(f"{place}: batch {len(given)}: {error}") from error
    if len(answer) != len(outputs):
        raise ParityError(f"{place}: the outputs {', '.join(outputs)} are expected, got {len(answer)}")
    return answer


def _eager(adapted: Adapted, component: str, values: Array) -> dict[int, list[tuple[Array, NDArray[np.float64]]]]:
    """For each batch size and output, what PyTorch gives in float32 and in float64."""
    single = adapted.components[component]
    double = copy.deepcopy(single).double()
    results = {}
    for batch in BATCHES:
        tensor = torch.from_numpy(values[:batch])
        pairs = zip(run_module(single, tensor), run_module(double, tensor.double()), strict=True)
        results[batch] = [(in32.numpy(), in64.numpy()) for in32, in64 in pairs]
    return results


def _judge(
    graph: Graph, output: str, pairs: Mapping[int, tuple[Array, tuple[Array, NDArray[np.float64]]]]
) -> TensorParity:
    max_abs, max_rel, from_float32, allowed = -1.0, 0.0, 0.0, 0.0
    worst: tuple[int, ...] = ()
    at_batch = disagreeing = compared = 0
    for batch, (got, (in32, in64)) in pairs.items():
        if got.shape != in64.shape:
            raise ParityError(
                f"{graph.component}/{graph.variant} {output}: shape {list(in64.shape)} is expected at batch {batch}, "
                f"got {list(got.shape)}; the batch axis is not dynamic in this graph"
            )
        limit = tolerance(in64)
        difference = _difference(got, in64)
        disagreeing += int(np.sum(difference > limit))
        compared += difference.size
        from_float32 = max(from_float32, float(_difference(got, in32).max()))
        if difference.max() > max_abs:
            max_abs, at_batch, allowed = float(difference.max()), batch, limit
            worst = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
        magnitude: NDArray[np.float64] = np.abs(in64)
        floor = max(float(magnitude.max()) * 1e-3, float(np.finfo(np.float32).tiny))
        with np.errstate(invalid="ignore"):
            relative = np.nan_to_num(difference / np.maximum(magnitude, floor), nan=np.inf, posinf=np.inf)
        max_rel = max(max_rel, float(relative.max()))
    return TensorParity(
        graph.component, graph.variant, output, max_abs, max_rel, from_float32, at_batch, worst, allowed, disagreeing,
        compared,
    )  # fmt: skip


def _difference(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.floating]:
    """|one − other|; NaN or infinity on both sides is no agreement."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.abs(one - other), nan=np.inf, posinf=np.inf)
