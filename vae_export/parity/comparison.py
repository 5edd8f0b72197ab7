"""Compare graphs with eager PyTorch, in float32 and float64, at batch sizes, sizes and latents that were not traced."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import noise
from vae_runtime.errors import VaeError
from vae_runtime.manifest import Latent, Sizes, TensorSpec

from ..errors import ParityError
from ..graphs.graph import Graph, Run, open_graph
from ..understand.adapted import Adapted, resized, run_module
from ..understand.state import LARGE, in_float64, release, used_tensors
from .report import ParityReport, TensorParity

Array = NDArray[np.floating]

BATCHES = (1, 2, 7, 64)
# For models that take seconds for one answer. Only batch 2 was traced.
_FEW = (1, 2, 3)
# Seconds that eager PyTorch may spend on the largest batch.
_PATIENCE = 4.0
# Latents reach this magnitude, which a prior draw exceeds once in two million numbers.
LATENT_REACH = 5.0
# Allowed difference, as a share of the largest magnitude in the tensor and never below that of 1: some eighty
# roundings of float32, where sound graphs of VAEs differ by one to thirty.
_RELATIVE = 1e-5
# Deep models round more: a graph may be this many times as far from float64 as PyTorch's own float32 is,
_OWN_ERRORS = 4.0
# but no farther than this share.
_MOST = 1e-3
# The share of integer codes that may differ: rounding decides between two codes that are equally near.
_CODES = 1e-3


def tolerance(reference: Array) -> float:
    """Return the largest difference allowed from a reference tensor: 1e-5 of its largest finite magnitude, or of 1.

    For integer codes, the share that may differ: 0.001.
    """
    if reference.dtype.kind in "iu":
        return _CODES
    return _RELATIVE * float(np.max(np.abs(reference), where=np.isfinite(reference), initial=1.0))


@dataclass(frozen=True)
class _Case:
    """Inputs of one component at one batch size and one choice of sizes, with PyTorch's answers."""

    given: tuple[Tensor, ...]
    sizes: str = ""
    in32: tuple[Array, ...] = ()
    in64: tuple[Array, ...] | None = None

    @property
    def batch(self) -> int:
        return len(self.given[0])


class Comparison:
    """The answers of eager PyTorch, in float32 and float64, to compare graphs with.

    The inputs are the examples, repeated and shifted if there are fewer than 64. Prior latents come from vnoise-1,
    every second one stretched to `LATENT_REACH`. The graphs run at each batch size of `BATCHES`, and at other sizes of
    the dynamic axes.
    """

    def __init__(self, adapted: Adapted) -> None:
        self._cases = {component: _reference(adapted, component) for component in adapted.modules}
        self._judged: dict[Graph, tuple[TensorParity, ...]] = {}

    def judge(self, graph: Graph) -> tuple[TensorParity, ...]:
        """Compare each output of a graph with PyTorch's.

        Raises:
            ParityError: the graph does not run at one of the batch sizes or sizes, or gives other outputs. Differences
                in the numbers are returned.
        """
        if graph not in self._judged:
            cases = self._cases[graph.component]
            try:
                run = open_graph(graph)
            except VaeError as error:
                raise ParityError(f"{graph.component}/{graph.variant}: {error}") from error
            answers = [_answer(graph, run, case) for case in cases]
            self._judged[graph] = tuple(
                _judge(graph, output, index, cases, answers) for index, output in enumerate(graph.outputs)
            )
        return self._judged[graph]

    def require(self, graph: Graph) -> None:
        """Raise unless a graph computes what PyTorch does.

        Raises:
            ParityError: it does not.
        """
        ParityReport(self.judge(graph)).require()

    def report(self, graphs: Iterable[Graph]) -> ParityReport:
        """Compare several graphs."""
        return ParityReport(tuple(tensor for graph in graphs for tensor in self.judge(graph)))


def compare(adapted: Adapted, graphs: Iterable[Graph]) -> ParityReport:
    """Run every graph and eager PyTorch on the same inputs: see `Comparison`.

    Args:
        adapted: the VAE's pure functions, in float32.
        graphs: the graphs to compare with it.

    Raises:
        ParityError: as in `Comparison.judge`.
    """
    return Comparison(adapted).report(graphs)


def rows(adapted: Adapted, n: int) -> dict[str, Tensor]:
    """Return `n` different rows for every input, taken from the examples, the prior and every class."""
    signature = adapted.signature
    found: dict[str, Tensor] = {}
    latents = {latent.name: (number, latent) for number, latent in enumerate(signature.latents)}
    noises = {latent.posterior.noise: (number, latent) for number, latent in enumerate(signature.latents)}
    classes = {condition.name: condition.classes for condition in signature.conditions if condition.classes}
    for name, example in adapted.examples.items():
        if name in noises:
            number, latent = noises[name]
            drawn = noise.normal(0, 0, n, latent.shape, noise.stream_of(noise.POSTERIOR, number))
            found[name] = torch.from_numpy(drawn)
        elif name in classes:
            found[name] = torch.arange(n) % len(classes[name])
        elif name in latents and latents[name][1].dtype == "float32":
            found[name] = _latent_rows(*latents[name], example, n)
        else:
            found[name] = _repeated(example, n)
    return found


def _repeated(example: Tensor, n: int) -> Tensor:
    """The examples over and over, each time moved on along the last axis, so that no two rows need be alike."""
    times = range(-(-n // len(example)))
    # Integers stay where they are: each column may have its own categories.
    movable = example.dim() > 1 and example.is_floating_point()
    parts = [example.roll(shift, -1) if movable else example for shift in times]
    return torch.cat(parts)[:n].contiguous()


def _latent_rows(number: int, latent: Latent, example: Tensor, n: int) -> Tensor:
    drawn = noise.normal(0, 0, n, latent.shape, noise.stream_of(noise.PRIOR, number))
    if latent.prior.kind == "normal":
        axes = tuple(range(1, drawn.ndim))
        drawn[1::2] *= LATENT_REACH / np.abs(drawn[1::2]).max(axis=axes, keepdims=True)
        return torch.from_numpy(drawn)
    # For any other prior: the latents of the encoder, and noise around them.
    encoded = _repeated(example, n)
    encoded[1::2] += 0.5 * float(encoded.std()) * torch.from_numpy(drawn[1::2])
    return encoded


def _reference(adapted: Adapted, component: str) -> list[_Case]:
    """Return the inputs to compare on, with PyTorch's answers in float32 and, if the model runs in it, in float64."""
    module = adapted.modules[component]
    began = time.perf_counter()
    run_module(module, [tensor[:2] for tensor in adapted.given(component)])
    seconds = (time.perf_counter() - began) / 2
    batches = BATCHES if seconds * max(BATCHES) < _PATIENCE else _FEW
    pool = rows(adapted, max(batches))
    given = adapted.given(component, pool)
    inputs = [tuple(tensor[:batch] for tensor in given) for batch in batches]
    cases = [_Case(each) for each in inputs]
    for label, sizes in _sizes(adapted.signature.inputs(component), adapted, component):
        few = tuple(
            resized(tensor[:2], {axis + 1: size for axis, size in own.items()})
            for tensor, own in zip(given, sizes, strict=True)
        )
        cases.append(_Case(few, label))
    try:
        in32 = [tuple(output.numpy() for output in run_module(module, case.given)) for case in cases]
    except Exception as error:
        raise ParityError(
            f"{component}: PyTorch itself fails on more rows than the example's: {error}; class_names= may name more "
            "classes than there are, or the example's columns may depend on each other"
        ) from error
    used = used_tensors(lambda: run_module(module, cases[0].given), [*module.parameters(), *module.buffers()])
    # Float64 needs twice the memory of the weights, so large models use it for two cases only.
    large = sum(tensor.numel() * tensor.element_size() for tensor in used) > LARGE
    in64 = _in_float64(module, used, cases[:2] if large else cases)
    release([module])
    return [_Case(case.given, case.sizes, a, b) for case, a, b in zip_longest(cases, in32, in64)]


def _in_float64(module: torch.nn.Module, used: Sequence[Tensor], cases: Sequence[_Case]) -> list[tuple[Array, ...]]:
    """Return PyTorch's answers in float64, or none for a model that insists on float32 somewhere."""
    results = []
    with in_float64(used):
        for case in cases:
            wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in case.given]
            try:
                outputs = run_module(module, wide)
            except RuntimeError:
                return []
            if not all(output.dtype in (torch.float64, torch.int64) for output in outputs):
                return []
            results.append(tuple(output.numpy() for output in outputs))
    return results


def _sizes(inputs: Sequence[TensorSpec], adapted: Adapted, component: str) -> list[tuple[str, list[dict[int, int]]]]:
    """Choose other sizes: all min, all max, all one step up, and each axis in turn at min with the others at max."""
    signature = adapted.signature
    by_input: list[dict[int, tuple[str, Sizes]]] = []
    for tensor in inputs:
        axes: dict[int, tuple[str, Sizes]] = {}
        owner = (
            signature.observation
            if tensor.name == signature.observation.name
            else next((one for one in signature.latents if tensor.name in (one.name, one.posterior.noise)), None)
        )
        for index in sorted(tensor.dynamic):
            assert owner is not None
            axes[index] = (owner.axes[index], owner.dynamic[owner.axes[index]])
        by_input.append(axes)
    names = list(dict.fromkeys(name for axes in by_input for name, _ in axes.values()))
    if not names:
        return []
    choices = [dict.fromkeys(names, how) for how in ("min", "max", "step")]
    choices += [{**dict.fromkeys(names, "max"), name: "min"} for name in names if len(names) > 1]
    found = []
    for choice in choices:
        sizes = []
        size_by_name: dict[str, int] = {}
        for tensor, axes in zip(inputs, by_input, strict=True):
            own = {}
            for index, (name, allowed) in axes.items():
                size = {
                    "min": allowed.min,
                    "max": allowed.max,
                    "step": tensor.shape[index] + allowed.multiple,
                }[choice[name]]
                own[index] = size_by_name[name] = size
            sizes.append(own)
        found.append((", ".join(f"{name} {size}" for name, size in size_by_name.items()), sizes))
    return found


def _answer(graph: Graph, run: Run, case: _Case) -> list[Array]:
    place = f"{graph.component}/{graph.variant}"
    try:
        answer = run([tensor.numpy() for tensor in case.given])
    except VaeError as error:
        sizes = f", {case.sizes}" if case.sizes else ""
        raise ParityError(f"{place}: batch {case.batch}{sizes}: {error}") from error
    if len(answer) != len(graph.outputs):
        raise ParityError(f"{place}: expected the outputs {', '.join(graph.outputs)}, got {len(answer)}")
    return answer


def _judge(
    graph: Graph, output: str, index: int, cases: Sequence[_Case], answers: Sequence[Sequence[Array]]
) -> TensorParity:
    max_abs, max_rel, from_float32, allowed = -1.0, 0.0, 0.0, 0.0
    worst: tuple[int, ...] = ()
    sizes = ""
    at_batch = disagreeing = compared = 0
    share = _own_share(cases, index)
    for case, answer in zip(cases, answers, strict=True):
        got, in32 = answer[index], case.in32[index]
        in64 = in32 if case.in64 is None else case.in64[index]
        if got.shape != in64.shape:
            what = f"the sizes {case.sizes} are" if case.sizes else "the batch axis is"
            raise ParityError(
                f"{graph.component}/{graph.variant} {output}: expected shape {list(in64.shape)} at batch "
                f"{case.batch}, got {list(got.shape)}; {what} not dynamic in this graph"
            )
        if in64.dtype.kind in "iu":
            difference = np.full(in64.shape, float(np.mean(got != in64)))
            limit = _CODES
        else:
            limit = tolerance(in64) / _RELATIVE * share
            difference = _difference(got, in64)
        disagreeing += int(np.sum(difference > limit))
        compared += difference.size
        from_float32 = max(from_float32, float(_difference(got, in32).max()))
        if difference.max() > max_abs:
            max_abs, at_batch, allowed, sizes = float(difference.max()), case.batch, limit, case.sizes
            worst = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
        magnitude: Array = np.abs(in64)
        floor = max(float(magnitude.max()) * 1e-3, float(np.finfo(np.float32).tiny))
        with np.errstate(invalid="ignore"):
            relative = np.nan_to_num(difference / np.maximum(magnitude, floor), nan=np.inf, posinf=np.inf)
        max_rel = max(max_rel, float(difference.max() if in64.dtype.kind in "iu" else relative.max()))
    return TensorParity(
        graph.component, graph.variant, output, max_abs, max_rel, from_float32, at_batch, sizes, worst, allowed,
        disagreeing, compared,
    )  # fmt: skip


def _own_share(cases: Sequence[_Case], index: int) -> float:
    """Return the allowed share of the tensor's magnitude: larger where PyTorch's own float32 errs more."""
    own = [
        float(_difference(case.in32[index], case.in64[index]).max()) / (tolerance(case.in64[index]) / _RELATIVE)
        for case in cases
        if case.in64 is not None and case.in64[index].dtype.kind == "f"
    ]
    finite = [each for each in own if math.isfinite(each)]
    # Without float64 nothing tells PyTorch's own error from the graph's.
    most = max(finite) if finite else _RELATIVE
    return min(max(_RELATIVE, _OWN_ERRORS * most), _MOST)


def _difference(one: Array, other: Array) -> Array:
    """|one − other|; NaN or infinity on both sides counts as a difference."""
    with np.errstate(invalid="ignore"):
        difference: Array = np.nan_to_num(np.abs(one - other), nan=np.inf, posinf=np.inf)
    return difference
