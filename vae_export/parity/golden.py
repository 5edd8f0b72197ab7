"""Make the golden vectors: fixed inputs, the answers of PyTorch and of every graph, and tolerances for a replay."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import noise
from vae_runtime.manifest import Golden, Signature, Variant

from ..graphs.graph import Graph, Run, open_graph
from ..graphs.variants import REDUCTIONS, Made
from ..understand.adapted import Adapted, run_module
from ..understand.state import release
from .comparison import rows, tolerance

Array = NDArray[Any]

_GOLDEN_FILE = "golden.npz"
_GOLDEN_ROWS = 4
# Large models store fewer rows, because the file holds the answers of every variant.
_GOLDEN_BYTES = 2**22
# A device may differ from the exporting machine by this many times the tolerance of a graph against PyTorch, because
# its kernels round differently. A weight matrix that is off by 1 % differs some hundred times more.
_DEVICE_FACTOR = 2.0
# Golden inputs are moved by these shares, this often, to see how far integer arithmetic carries the change. The last
# number is the margin.
_JITTERS, _JITTER_DRAWS, _JITTER_MARGIN = (1e-3, 4e-3, 1.6e-2), 8, 1.25


@dataclass(frozen=True)
class GoldenVectors:
    """The golden vectors of a bundle: their record in the manifest, their file, and each component's variants."""

    record: Golden
    content: bytes
    variants: Mapping[str, Mapping[str, Variant]]
    """By component and name, each with the tolerance and the error of every output."""


def golden_vectors(adapted: Adapted, graphs: Sequence[Graph], made: Sequence[Made] = ()) -> GoldenVectors:
    """Run PyTorch and every graph on the golden inputs.

    Args:
        adapted: the VAE's pure functions.
        graphs: all graphs of the bundle; of each component fp32 before the variants made of it.
        made: those of the graphs that were made with fewer bits, with their quality.
    """
    with_fewer_bits = {(each.graph.component, each.graph.variant): each for each in made}
    record = Golden(file=_GOLDEN_FILE, seed=0, n=_golden_rows(adapted.signature))
    inputs, arrays = _golden_inputs(adapted, record)
    pytorch: dict[str, dict[str, Array]] = {}
    for component, module in adapted.modules.items():
        outputs = run_module(module, adapted.given(component, inputs))
        pytorch[component] = dict(zip(adapted.outputs(component), (o.numpy() for o in outputs), strict=True))
        arrays |= {f"{component}/pytorch/{output}": array for output, array in pytorch[component].items()}
    variants: dict[str, dict[str, Variant]] = {"encoder": {}, "decoder": {}}
    for graph in graphs:
        component = graph.component
        graph_inputs = [tensor.numpy() for tensor in adapted.given(component, inputs)]
        run = open_graph(graph)
        outputs_of_graph = run(graph_inputs)
        release(adapted.modules.values())
        answers = dict(zip(graph.outputs, outputs_of_graph, strict=True))
        arrays |= {f"{component}/{graph.variant}/{output}": array for output, array in answers.items()}
        error = {output: _distance(array, pytorch[component][output]) for output, array in answers.items()}
        variant = with_fewer_bits.get((component, graph.variant))
        if variant is None:
            # A deep model rounds more itself: its tolerance is a multiple of its own error.
            tolerances = {
                output: _DEVICE_FACTOR * max(tolerance(array), 2 * error[output]) for output, array in answers.items()
            }
        else:
            tolerances = dict(variants[component]["fp32"].tolerance)
            if variant.integer:
                moved = zip(graph.outputs, _moved(run, graph_inputs, outputs_of_graph), strict=True)
                tolerances = {output: max(tolerances[output], distance) for output, distance in moved}
        variants[component][graph.variant] = _variant(graph, tolerances, error, variant)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **dict(sorted(arrays.items())))
    return GoldenVectors(record, file.getvalue(), variants)


def _golden_inputs(adapted: Adapted, record: Golden) -> tuple[dict[str, Tensor], dict[str, Array]]:
    """Every golden input by name, and the arrays of those that a reader cannot draw again."""
    signature = adapted.signature
    inputs = rows(adapted, record.n)
    stored: dict[str, Array] = {}
    for number, latent in enumerate(signature.latents):
        if latent.prior.kind == "normal" and latent.dtype == "float32":
            drawn = noise.normal(record.seed, 0, record.n, latent.shape, noise.stream_of(noise.PRIOR, number))
            inputs[latent.name] = torch.from_numpy(drawn)
        else:
            stored[latent.name] = inputs[latent.name].numpy()
    observation = signature.observation
    if signature.likelihood.shape is None and observation.dtype == "float32":
        # The decoder's own means are lifelike, and free of the license of the data. They can leave the range.
        x = run_module(adapted.modules["decoder"], adapted.given("decoder", inputs))[0]
        inputs[observation.name] = x.clamp(*observation.range) if observation.range else x
    names = {tensor.name for component in adapted.modules for tensor in signature.inputs(component)}
    names -= {latent.name for latent in signature.latents}
    return inputs, stored | {name: inputs[name].numpy() for name in names}


def _variant(graph: Graph, tolerances: dict[str, float], error: dict[str, float], made: Made | None) -> Variant:
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
        quality=made.quality if made else None,
    )


def _moved(run: Run, inputs: Sequence[Array], answers: Sequence[Array]) -> list[float]:
    """Return how far each answer of an integer graph may differ on a device that rounds differently.

    Different rounding moves a number between two layers to the next integer where it lies near the middle. Inputs that
    are off by a thousandth, or by more until every answer moves, move more of them than any device does. The margin
    covers cases that so few draws miss.
    """
    most = [0.0] * len(answers)
    for share in _JITTERS:
        for seed in range(_JITTER_DRAWS):
            off = [
                (x * (1 + share * (2 * noise.uniform(seed, 0, len(x), x.shape[1:]) - 1))).astype(x.dtype)
                if x.dtype.kind == "f"
                else x
                for x in inputs
            ]
            most = [max(m, _distance(a, b)) for m, a, b in zip(most, answers, run(off), strict=True)]
        if all(m > tolerance(answer) for m, answer in zip(most, answers, strict=True)):
            break
    return [_JITTER_MARGIN * m for m in most]


def _golden_rows(signature: Signature) -> int:
    tensors = [t for c in ("encoder", "decoder") for t in (*signature.inputs(c), *signature.outputs(c))]
    row = 4 * sum(math.prod(tensor.shape) for tensor in tensors)
    return max(1, min(_GOLDEN_ROWS, _GOLDEN_BYTES // row))


def _distance(one: Array, other: Array) -> float:
    if one.dtype.kind in "iu":
        return float(np.mean(one != other))
    return float(np.max(np.abs(one.astype(np.float64) - other)))
