"""Collect the answers of every graph to the golden inputs, and the tolerances for the replay."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.manifest import Golden, Signature, Variant

from ..graphs.graph import Graph, Run, open_graph
from ..graphs.variants import REDUCTIONS, PassedVariant
from .tolerances import is_whole, tolerance

Array = NDArray[Any]

_GOLDEN_FILE = "golden.npz"
_GOLDEN_ROWS = 4
# Large models get fewer rows, because the file holds the answers of every variant.
_GOLDEN_BYTES = 2**22
# A device's kernels round differently: it may differ from the exporting machine by this factor more than a graph may
# from PyTorch. A weight matrix that is off by 1 % causes differences some hundred times larger.
_DEVICE_FACTOR = 2.0
# The shares by which golden inputs are shifted to measure what rounding to integers makes of small differences, the
# number of draws for each, and the margin.
_JITTERS, _JITTER_DRAWS, _JITTER_MARGIN = (1e-3, 4e-3, 1.6e-2), 8, 1.25
# The same for answers that the model itself rounds to whole numbers: about what float32 kernels differ by.
_FLOAT_JITTERS = (1e-5,)


@dataclass(frozen=True)
class GoldenVectors:
    """The golden vectors of a bundle: their entry in the manifest, their file's content, and the variants."""

    record: Golden
    content: bytes
    variants: Mapping[str, Mapping[str, Variant]]
    """Every variant by component and name, with the tolerance and the error of each output."""


def golden_record(signature: Signature) -> Golden:
    """Return the manifest's entry of the golden vectors: as many rows as fit into the file's size, at least one."""
    tensors = [t for c in ("encoder", "decoder") for t in (*signature.inputs(c), *signature.outputs(c))]
    row = 4 * sum(math.prod(tensor.shape) for tensor in tensors)
    return Golden(file=_GOLDEN_FILE, seed=0, n=max(1, min(_GOLDEN_ROWS, _GOLDEN_BYTES // row)))


def collect_answers(
    record: Golden,
    inputs: Mapping[str, Array],
    stored: Mapping[str, Array],
    reference: Mapping[str, Mapping[str, Array]],
    graphs: Sequence[Graph],
    passed: Sequence[PassedVariant] = (),
    release: Callable[[], None] = lambda: None,
    integer: Collection[str] = (),
) -> GoldenVectors:
    """Run every graph on the golden inputs.

    Args:
        record: the manifest's entry.
        inputs: every golden input by name, [n, …].
        stored: the inputs that a reader cannot draw again.
        reference: for each component, the answers that its graphs are held against, by output.
        graphs: all graphs of the bundle; each component's fp32 comes before the variants made from it.
        passed: the graphs in fewer bits among them, with their quality.
        release: called after each graph was run, to give memory back.
        integer: the components whose fp32 graph rounds to integers all the same, since it was adopted as it is.
    """
    in_fewer_bits = {(each.graph.component, each.graph.variant): each for each in passed}
    arrays = dict(stored)
    for component, answers in reference.items():
        arrays |= {f"{component}/pytorch/{output}": array for output, array in answers.items()}
    variants: dict[str, dict[str, Variant]] = {"encoder": {}, "decoder": {}}
    for graph in graphs:
        component = graph.component
        graph_inputs = [inputs[name] for name in graph.inputs]
        run = open_graph(graph, few_runs=True)
        graph_outputs = run(graph_inputs)
        release()
        answers = dict(zip(graph.outputs, graph_outputs, strict=True))
        arrays |= {f"{component}/{graph.variant}/{output}": array for output, array in answers.items()}
        error = {output: _distance(array, reference[component][output]) for output, array in answers.items()}
        variant = in_fewer_bits.get((component, graph.variant))
        if variant is None:
            # A deep model rounds more: its tolerance is at least a multiple of its own error.
            tolerances = {
                output: _DEVICE_FACTOR * max(tolerance(array), 2 * error[output]) for output, array in answers.items()
            }
            rounded = [component in integer or (array.dtype.kind == "f" and is_whole(array)) for array in graph_outputs]
            if any(rounded):
                shares = _JITTERS if component in integer else _FLOAT_JITTERS
                distances = _rounding_distances(run, graph_inputs, graph_outputs, shares)
                for output, distance in itertools.compress(zip(graph.outputs, distances, strict=True), rounded):
                    tolerances[output] = max(tolerances[output], distance)
        else:
            tolerances = dict(variants[component]["fp32"].tolerance)
            if variant.integer:
                distances = _rounding_distances(run, graph_inputs, graph_outputs)
                tolerances = {
                    output: max(tolerances[output], distance)
                    for output, distance in zip(graph.outputs, distances, strict=True)
                }
        variants[component][graph.variant] = _variant(graph, tolerances, error, variant)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **dict(sorted(arrays.items())))
    return GoldenVectors(record, file.getvalue(), variants)


def _variant(
    graph: Graph, tolerances: dict[str, float], error: dict[str, float], passed: PassedVariant | None
) -> Variant:
    in_onnx_runtime = graph.executor == "ort"
    return Variant(
        component=graph.component,
        name=graph.variant,
        folder=f"{graph.component}/{graph.variant}",
        file=graph.file,
        executor=graph.executor,
        precision=REDUCTIONS[graph.variant].precision if graph.variant in REDUCTIONS else "float32",
        tolerance=tolerances,
        error=error,
        ep="CPUExecutionProvider" if in_onnx_runtime else None,
        device="cpu" if in_onnx_runtime else None,
        exporter=graph.exporter,
        data=next(iter(graph.data), None),
        quality=passed.quality if passed else None,
        stream=graph.stream,
    )


def _rounding_distances(
    run: Run, inputs: Sequence[Array], answers: Sequence[Array], shares: Sequence[float] = _JITTERS
) -> list[float]:
    """Return how far each answer of an integer graph may be off on a device that rounds differently.

    Different rounding moves a number between two layers to the next integer if it lies near the middle of two. Inputs
    that are off by a thousandth, or by the larger ones of `shares` until every answer changes, move more numbers than
    any device does. The margin covers what these few draws miss.
    """
    distances = [0.0] * len(answers)
    for share in shares:
        for seed in range(_JITTER_DRAWS):
            shifted = [
                (x * (1 + share * (2 * noise.uniform(seed, 0, len(x), x.shape[1:]) - 1))).astype(x.dtype)
                if x.dtype.kind == "f"
                else x
                for x in inputs
            ]
            distances = [
                max(distance, _distance(a, b)) for distance, a, b in zip(distances, answers, run(shifted), strict=True)
            ]
        if all(distance > tolerance(answer) for distance, answer in zip(distances, answers, strict=True)):
            break
    return [_JITTER_MARGIN * distance for distance in distances]


def _distance(one: Array, other: Array) -> float:
    """Return the largest difference of two answers; for integer codes, the share that differs."""
    if one.dtype.kind in "iu":
        return float(np.mean(one != other))
    return float(np.max(np.abs(one.astype(np.float64) - other)))
