"""Compare graphs with eager PyTorch in float32 and float64, at sizes and on latents that were not traced."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import noise
from vae_runtime.errors import VaeError
from vae_runtime.manifest import Latent, Signature, Sizes, TensorSpec

from ..errors import ParityError
from ..graphs.graph import Graph, Run, open_graph
from ..understand.adapted import Adapted, resized, run_module, timed_run
from ..understand.state import LARGE, in_float64, release, used_tensors
from .report import ParityReport, TensorParity
from .tolerances import CODES, RELATIVE, is_whole, tolerance

Array = NDArray[np.floating]

BATCHES = (1, 2, 7, 64)
# For models that take seconds for one row. Only 2 is a traced size here too.
_FEW_BATCHES = (1, 2, 3)
# How many seconds eager PyTorch may spend on the largest batch,
_MAX_SECONDS = 4.0
# and how many if that batch is to be run in float64 too, which takes some seven times as long.
_MAX_SECONDS_TWICE = 0.25
# Latents go up to this magnitude: a prior draw exceeds it once in two million numbers.
LATENT_REACH = 5.0
# Deep models round more: a graph may be this many times as far from float64 as PyTorch's own float32 is,
_OWN_ERRORS = 4.0
# but no farther than this share.
_MAX_RELATIVE = 1e-3


@dataclass(frozen=True, eq=False)
class _Case:
    """Inputs of one component at one batch size and one choice of sizes, with PyTorch's answers.

    `in64` is None where the model is not run in float64.
    """

    inputs: tuple[Tensor, ...]
    sizes: str = ""
    in32: tuple[Array, ...] = ()
    in64: tuple[Array, ...] | None = None

    @property
    def batch(self) -> int:
        return len(self.inputs[0])


class Comparison:
    """Compares graphs with eager PyTorch's answers in float32 and float64.

    The inputs are the examples, repeated and shifted if there are fewer than 64. Prior latents are drawn with vnoise-1,
    and every second one is stretched to `LATENT_REACH`. Each graph runs at each batch size of `BATCHES` (fewer for slow
    models) and at other sizes of the dynamic axes (a slow model runs its largest batch at small sizes alone). Where the
    largest batch takes long, float64 answers its first rows alone, and the batch is held against float32.
    """

    def __init__(self, adapted: Adapted) -> None:
        self._cases = {component: _reference(adapted, component) for component in adapted.modules}
        self._results: dict[Graph, tuple[TensorParity, ...]] = {}

    def compare(self, graph: Graph) -> tuple[TensorParity, ...]:
        """Compare each output of a graph with PyTorch's. The result is kept for the next call.

        Raises:
            ParityError: the graph does not run at one of the sizes, or returns outputs of another number or shape.
                Numbers that differ do not raise: they are in the result.
        """
        if graph not in self._results:
            cases = self._cases[graph.component]
            try:
                run = open_graph(graph, few_runs=max(case.batch for case in cases) < max(BATCHES))
            except VaeError as error:
                raise ParityError(f"{graph.component}/{graph.variant}: {error}") from error
            answers = [_answer(graph, run, case) for case in cases]
            self._results[graph] = tuple(
                _compare_output(graph, output, index, cases, answers) for index, output in enumerate(graph.outputs)
            )
        return self._results[graph]

    def require(self, graph: Graph) -> None:
        """Raise unless a graph agrees with PyTorch.

        Raises:
            ParityError: a tensor is beyond its tolerance, or `compare` raises.
        """
        ParityReport(self.compare(graph)).require()

    def report(self, graphs: Iterable[Graph]) -> ParityReport:
        """Compare several graphs.

        Raises:
            ParityError: as in `compare`.
        """
        return ParityReport(tuple(tensor for graph in graphs for tensor in self.compare(graph)))


def compare(adapted: Adapted, graphs: Iterable[Graph]) -> ParityReport:
    """Run graphs and eager PyTorch on the same inputs: see `Comparison`.

    Args:
        adapted: the VAE's pure functions, in float32.
        graphs: the graphs to compare with them.

    Raises:
        ParityError: as in `Comparison.compare`.
    """
    return Comparison(adapted).report(graphs)


def compare_as_stated(
    adapted: Adapted, graph: Graph, inputs: Mapping[str, Array], limits: Mapping[str, float]
) -> tuple[TensorParity, ...]:
    """Run a graph in fewer bits and eager PyTorch on the golden inputs.

    Args:
        adapted: the VAE's pure functions, in float32.
        graph: the graph to compare with them.
        inputs: the golden inputs of the graph by name, [n, …], in its order.
        limits: how far each output may be from PyTorch's, in its units; for codes, the share that may differ.

    Raises:
        ParityError: as in `Comparison.compare`.
    """
    given = tuple(torch.from_numpy(array) for array in inputs.values())
    case = _Case(given, in32=_timed(adapted.modules[graph.component], _Case(given))[0])
    try:
        run = open_graph(graph, few_runs=True)
    except VaeError as error:
        raise ParityError(f"{graph.component}/{graph.variant}: {error}") from error
    answers = [_answer(graph, run, case)]
    return tuple(
        _compare_output(graph, output, index, [case], answers, limits[output])
        for index, output in enumerate(graph.outputs)
    )


def rows(adapted: Adapted, n: int) -> dict[str, Tensor]:
    """Return `n` rows for every input by name: rows of the examples, draws from the prior, every class in turn."""
    signature = adapted.signature
    inputs: dict[str, Tensor] = {}
    latents = {latent.name: (number, latent) for number, latent in enumerate(signature.latents)}
    noises = {latent.posterior.noise: (number, latent) for number, latent in enumerate(signature.latents)}
    classes = {condition.name: condition.classes for condition in signature.conditions if condition.classes}
    for name, example in adapted.examples.items():
        if name in noises:
            number, latent = noises[name]
            drawn = noise.normal(0, 0, n, latent.shape, noise.stream_of(noise.POSTERIOR, number))
            inputs[name] = torch.from_numpy(drawn)
        elif name in classes:
            inputs[name] = torch.arange(n) % len(classes[name])
        elif name in latents and latents[name][1].dtype == "float32":
            inputs[name] = _latent_rows(*latents[name], example, n)
        else:
            inputs[name] = _repeated(example, n)
    return inputs


def _repeated(example: Tensor, n: int) -> Tensor:
    """Return `n` rows: the examples repeatedly, rolled one further along the last axis each time."""
    shifts = range(-(-n // len(example)))
    # Integers are not rolled: each column may have its own categories.
    rolls = example.dim() > 1 and example.is_floating_point()
    parts = [example.roll(shift, -1) if rolls else example for shift in shifts]
    return torch.cat(parts)[:n].contiguous()


def _latent_rows(number: int, latent: Latent, example: Tensor, n: int) -> Tensor:
    """Return `n` latents: draws from a standard normal prior, else the encoder's latents and points around them."""
    drawn = noise.normal(0, 0, n, latent.shape, noise.stream_of(noise.PRIOR, number))
    if latent.prior.kind == "normal":
        axes = tuple(range(1, drawn.ndim))
        drawn[1::2] *= LATENT_REACH / np.abs(drawn[1::2]).max(axis=axes, keepdims=True)
        return torch.from_numpy(drawn)
    encoded = _repeated(example, n)
    encoded[1::2] += 0.5 * float(encoded.std()) * torch.from_numpy(drawn[1::2])
    return encoded


def _reference(adapted: Adapted, component: str) -> list[_Case]:
    """Return a component's cases, with PyTorch's answers in float32 and, where possible, in float64."""
    module = adapted.modules[component]
    cases = _cases(adapted, component, slow=True)
    two = next(case for case in cases if case.batch == 2 and not case.sizes)
    try:
        answers = {two: _timed(module, two)}
        if answers[two][1] / 2 * max(BATCHES) < _MAX_SECONDS:
            cases = _cases(adapted, component, slow=False)
        answers |= {case: _timed(module, case) for case in cases if case is not two}
    except Exception as error:
        raise ParityError(
            f"{component}: PyTorch itself fails on more rows than the example has: {error}; class_names= may name too "
            "many classes, or the example's columns may depend on each other"
        ) from error
    smallest = min(cases, key=lambda case: case.inputs[0].numel())
    used = used_tensors(
        lambda: run_module(module, smallest.inputs, again=True), [*module.parameters(), *module.buffers()]
    )
    # Float64 copies of the weights take twice their memory: large models run only two rows in float64.
    large = sum(tensor.numel() * tensor.element_size() for tensor in used) > LARGE
    wide = [
        case
        for case in cases
        if not (large and (case.sizes or case.batch > 2))
        and (case.batch < max(BATCHES) or answers[case][1] < _MAX_SECONDS_TWICE)
    ]
    in64 = _in_float64(module, used, wide)
    release([module])
    return [replace(case, in32=answers[case][0], in64=in64.get(case)) for case in cases]


def _timed(module: torch.nn.Module, case: _Case) -> tuple[tuple[Array, ...], float]:
    """Return PyTorch's answers to a case, and how many seconds they took."""
    outputs, seconds = timed_run(module, case.inputs)
    return tuple(output.numpy() for output in outputs), seconds


def _cases(adapted: Adapted, component: str, *, slow: bool) -> list[_Case]:
    """Return a component's inputs at every batch size, and at other sizes of its dynamic axes."""
    batches = _FEW_BATCHES if slow else BATCHES
    inputs = adapted.given(component, rows(adapted, max(batches)))
    choices = _size_choices(adapted.signature.inputs(component), adapted.signature)
    # A slow model runs the largest batch at smaller sizes than the example's, and larger sizes with one row.
    own = batches[:-1] if slow and choices else batches
    cases = [_Case(tuple(tensor[:batch] for tensor in inputs)) for batch in own]
    for label, sizes in choices:
        larger = math.prod(size / inputs[0].shape[axis + 1] for axis, size in sizes[0].items()) > 1
        batch = (1 if larger else max(batches)) if slow else 2
        other_sizes = tuple(
            resized(tensor[:batch], {axis + 1: size for axis, size in axes.items()})
            for tensor, axes in zip(inputs, sizes, strict=True)
        )
        cases.append(_Case(other_sizes, label))
    return cases


def _in_float64(
    module: torch.nn.Module, used: Sequence[Tensor], cases: Sequence[_Case]
) -> dict[_Case, tuple[Array, ...]]:
    """Return PyTorch's answers in float64 by case; nothing for a model that insists on float32 somewhere.

    The rows of a batch do not influence each other, so that the largest batch has the answers of the smaller ones.
    """
    own = [case for case in cases if not case.sizes]
    largest = max(own, key=lambda case: case.batch)
    results = {}
    with in_float64(used):
        for case in (largest, *(case for case in cases if case.sizes)):
            wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in case.inputs]
            try:
                outputs = run_module(module, wide, again=True)
            except RuntimeError:
                return {}
            if not all(output.dtype in (torch.float64, torch.int64) for output in outputs):
                return {}
            results[case] = tuple(output.numpy() for output in outputs)
    return results | {case: tuple(array[: case.batch] for array in results[largest]) for case in own}


def _size_choices(inputs: Sequence[TensorSpec], signature: Signature) -> list[tuple[str, list[dict[int, int]]]]:
    """Return choices of other sizes, each as a label and the sizes of every input's dynamic axes by index.

    The choices are: all axes at their minimum, all at their maximum, and each axis in turn one step above the example
    with the others at their minimum, and at its minimum with the others at their maximum.
    """
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
    choices = [dict.fromkeys(names, choice) for choice in ("min", "max")]
    choices += [{**dict.fromkeys(names, "min"), name: "step"} for name in names]
    choices += [{**dict.fromkeys(names, "max"), name: "min"} for name in names if len(names) > 1]
    labeled = []
    for choice in choices:
        sizes = []
        by_name: dict[str, int] = {}
        for tensor, axes in zip(inputs, by_input, strict=True):
            by_index = {}
            for index, (name, allowed) in axes.items():
                size = {
                    "min": allowed.min,
                    "max": allowed.max,
                    "step": tensor.shape[index] + allowed.step,
                }[choice[name]]
                by_index[index] = by_name[name] = size
            sizes.append(by_index)
        labeled.append((", ".join(f"{name} {size}" for name, size in by_name.items()), sizes))
    return labeled


def _answer(graph: Graph, run: Run, case: _Case) -> list[Array]:
    """Run a graph on a case."""
    place = f"{graph.component}/{graph.variant}"
    try:
        answer = run([tensor.numpy() for tensor in case.inputs])
    except VaeError as error:
        sizes = f", {case.sizes}" if case.sizes else ""
        raise ParityError(f"{place}: batch {case.batch}{sizes}: {error}") from error
    if len(answer) != len(graph.outputs):
        raise ParityError(f"{place}: expected the outputs {', '.join(graph.outputs)}, got {len(answer)}")
    return answer


def _compare_output(
    graph: Graph,
    output: str,
    index: int,
    cases: Sequence[_Case],
    answers: Sequence[Sequence[Array]],
    stated: float | None = None,
) -> TensorParity:
    """Compare one output of a graph with PyTorch's in every case; `stated` is the limit where there is one."""
    max_abs, max_rel, from_float32, allowed = -1.0, 0.0, 0.0, 0.0
    worst: tuple[int, ...] = ()
    sizes = ""
    at_batch = disagreeing = compared = 0
    share = _allowed_share(cases, index)
    for case, answer in zip(cases, answers, strict=True):
        got, in32 = answer[index], case.in32[index]
        in64 = in32 if case.in64 is None else case.in64[index]
        if got.shape != in64.shape:
            what = f"the sizes {case.sizes} are" if case.sizes else "the batch axis is"
            raise ParityError(
                f"{graph.component}/{graph.variant} {output}: expected shape {list(in64.shape)} at batch {case.batch}, "
                f"got {list(got.shape)}; {what} not dynamic in this graph"
            )
        whole = is_whole(in64) if stated is None else in64.dtype.kind in "iu"
        if whole:
            difference = np.full(in64.shape, float(np.mean(~(_difference(got, in64) <= tolerance(in64)))))
            limit = CODES if stated is None else stated
        elif stated is not None:
            limit = stated
            difference = _difference(got, in64)
        else:
            limit = tolerance(in64) / RELATIVE * share
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
        max_rel = max(max_rel, float(difference.max() if whole else relative.max()))
    return TensorParity(
        graph.component, graph.variant, output, max_abs, max_rel, from_float32, at_batch, sizes, worst, allowed,
        disagreeing, compared,
    )  # fmt: skip


def _allowed_share(cases: Sequence[_Case], index: int) -> float:
    """Return the allowed difference as a share of the tensor's magnitude, larger if PyTorch's float32 is less exact.

    Without answers in float64 the share is 4e-5, because PyTorch's error is then unknown.
    """
    pytorch = [
        float(_difference(case.in32[index], case.in64[index]).max()) / (tolerance(case.in64[index]) / RELATIVE)
        for case in cases
        if case.in64 is not None and case.in64[index].dtype.kind == "f"
    ]
    error = max((each for each in pytorch if math.isfinite(each)), default=RELATIVE)
    return min(max(RELATIVE, _OWN_ERRORS * error), _MAX_RELATIVE)


def _difference(one: Array, other: Array) -> Array:
    """Return |one − other|, infinite wherever it is not a number: NaN or infinity on both sides does not agree."""
    with np.errstate(invalid="ignore"):
        difference: Array = np.nan_to_num(np.abs(one - other), nan=np.inf, posinf=np.inf)
    return difference
