"""Golden vectors: fixed inputs with the answers of PyTorch and of every graph, and the tolerances of the replay."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.manifest import Golden, Signature, Variant

from ..graphs.graph import Graph, Run, open_graph
from ..graphs.variants import PRECISION, Made
from ..parity.comparison import rows, tolerance
from ..understand.adapted import Adapted, run_module
from ..understand.state import release

__all__ = ["golden_vectors"]

Array = NDArray[Any]

_GOLDEN_FILE = "golden.npz"
_GOLDEN_ROWS = 4
# Of large models fewer rows: the file holds every variant's answers.
_GOLDEN_BYTES = 2**22
# A device may differ from the exporting machine by this much more than a graph may from PyTorch: its kernels round
# otherwise. A weight matrix that is off by 1 % is some hundred times farther out.
_DEVICE_FACTOR = 2.0
# By which shares, and how often, golden inputs are moved to see how far integers carry it; and the margin.
_JITTERS, _JITTER_DRAWS, _JITTER_MARGIN = (1e-3, 4e-3, 1.6e-2), 8, 1.25


def golden_vectors(
    adapted: Adapted, graphs: Sequence[Graph], made: Sequence[Made]
) -> tuple[Golden, bytes, dict[str, dict[str, Variant]]]:
    """The golden vectors' file, and each component's variants with their tolerances and errors."""
    measured = {(each.graph.component, each.graph.variant): each for each in made}
    signature = adapted.signature
    n = _golden_rows(signature)
    golden = Golden(file=_GOLDEN_FILE, seed=0, n=n)
    given = rows(adapted, n)
    arrays: dict[str, Array] = {}
    for number, latent in enumerate(signature.latents):
        if latent.prior.kind == "normal" and latent.dtype == "float32":
            drawn = noise.normal(golden.seed, 0, n, latent.shape, noise.stream_of(noise.PRIOR, number))
            given[latent.name] = torch.from_numpy(drawn)
        else:
            arrays[latent.name] = given[latent.name].numpy()
    observation = signature.observation
    if signature.likelihood.shape is None and observation.dtype == "float32":
        # The decoder's own: lifelike, and free of the data's license. Its means can leave the range.
        x = run_module(adapted.modules["decoder"], adapted.given("decoder", given))[0]
        given[observation.name] = x.clamp(*observation.range) if observation.range else x
    stored = {tensor.name for component in adapted.modules for tensor in signature.inputs(component)}
    stored -= {latent.name for latent in signature.latents}
    arrays |= {name: given[name].numpy() for name in stored}
    variants: dict[str, dict[str, Variant]] = {"encoder": {}, "decoder": {}}
    pytorch = {}
    for component, module in adapted.modules.items():
        outputs = run_module(module, adapted.given(component, given))
        pytorch[component] = dict(zip(adapted.outputs(component), (o.numpy() for o in outputs), strict=True))
        arrays |= {f"{component}/pytorch/{output}": array for output, array in pytorch[component].items()}
    for graph in graphs:
        component = graph.component
        inputs = [tensor.numpy() for tensor in adapted.given(component, given)]
        run = open_graph(graph)
        answers = run(inputs)
        release(adapted.modules.values())
        own = dict(zip(graph.outputs, answers, strict=True))
        arrays |= {f"{component}/{graph.variant}/{output}": array for output, array in own.items()}
        error = {output: _distance(array, pytorch[component][output]) for output, array in own.items()}
        # Of a deep model, whose own roundings are larger, as many times those.
        allowed = {output: _DEVICE_FACTOR * max(tolerance(array), 2 * error[output]) for output, array in own.items()}
        one = measured.get((component, graph.variant))
        if one is not None:
            fp32 = variants[component]["fp32"].tolerance
            allowed = dict(fp32)
            if one.integer:
                moved = _moved(run, inputs, answers)
                allowed = {output: max(fp32[output], each) for output, each in zip(graph.outputs, moved, strict=True)}
        variants[component][graph.variant] = Variant(
            component=component,
            name=graph.variant,
            folder=f"{component}/{graph.variant}",
            file=graph.file,
            executor=graph.executor,
            precision=PRECISION.get(graph.variant, "float32"),
            tolerance=allowed,
            error=error,
            ep="CPUExecutionProvider" if graph.executor == "ort" else None,
            device="cpu" if graph.executor == "ort" else None,
            exporter=graph.exporter,
            data=next(iter(graph.data), None),
            quality=one.quality if one is not None else None,
        )
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **dict(sorted(arrays.items())))
    return golden, file.getvalue(), variants


def _moved(run: Run, inputs: Sequence[Array], answers: Sequence[Array]) -> list[float]:
    """How far each answer of a graph that computes in integers may be off on a device that rounds otherwise.

    Another rounding moves a number between two layers to the next integer where it lies near the middle. Inputs that
    are off by a thousandth, or by as much more as it takes to move any answer, move more of them than any device does;
    the margin is for what few draws do not meet.
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
