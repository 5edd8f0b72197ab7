"""Make golden vectors: fixed inputs, the answers of PyTorch and of every graph, and the tolerances for the replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import noise
from vae_runtime.manifest import Golden

from ..graphs.graph import Graph
from ..graphs.variants import PassedVariant
from ..understand.adapted import Adapted, run_module
from ..understand.state import release
from .answers import GoldenVectors, collect_answers, golden_record
from .comparison import rows

Array = NDArray[Any]


def golden_vectors(adapted: Adapted, graphs: Sequence[Graph], passed: Sequence[PassedVariant] = ()) -> GoldenVectors:
    """Run PyTorch and every graph on the golden inputs.

    Args:
        adapted: the VAE's pure functions.
        graphs: all graphs of the bundle; each component's fp32 comes before the variants made from it.
        passed: the graphs in fewer bits among them, with their quality.
    """
    record = golden_record(adapted.signature)
    inputs, stored, decoded = _golden_inputs(adapted, record)
    answers = {"decoder": decoded}
    if "encoder" in adapted.modules:
        answers["encoder"] = run_module(adapted.modules["encoder"], adapted.given("encoder", inputs))
    pytorch: dict[str, dict[str, Array]] = {}
    for component in adapted.modules:
        arrays_of = (output.numpy() for output in answers[component])
        pytorch[component] = dict(zip(adapted.outputs(component), arrays_of, strict=True))
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return collect_answers(record, arrays, stored, pytorch, graphs, passed, lambda: release(adapted.modules.values()))


def _golden_inputs(adapted: Adapted, record: Golden) -> tuple[dict[str, Tensor], dict[str, Array], Sequence[Tensor]]:
    """Return every golden input by name, the arrays to store of those that a reader cannot draw again, and the
    decoder's answers."""
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
    decoded = run_module(adapted.modules["decoder"], adapted.given("decoder", inputs))
    if signature.likelihood.shape is None and observation.dtype == "float32":
        # The decoder's means look like the data without carrying their license. They may leave the range.
        x = decoded[0]
        inputs[observation.name] = x.clamp(*observation.range) if observation.range else x
    names = {tensor.name for component in adapted.modules for tensor in signature.inputs(component)}
    names -= {latent.name for latent in signature.latents}
    return inputs, stored | {name: inputs[name].numpy() for name in names}, decoded
