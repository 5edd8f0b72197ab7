"""Assemble the files of a bundle: manifest, graphs, picture, card and sums."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_runtime import noise
from vae_runtime._version import __version__
from vae_runtime.bench import processor_name
from vae_runtime.errors import InputError
from vae_runtime.image import grid, png
from vae_runtime.manifest import COMPONENTS, Manifest, Refusal
from vae_runtime.places import SUMS
from vae_runtime.prior import read_mixture

from .card import model_card
from .graphs.graph import IR_VERSION, OPSET, Graph, open_graph
from .graphs.variants import Gate
from .labels import Labels, file_sizes, graph_files, list_sums, package_name
from .parity.answers import GoldenVectors
from .parity.comparison import rows
from .sources import Source
from .understand.adapt import WITHOUT_ENCODER
from .understand.adapted import Adapted

_PICTURES = 64


def describe_bundle(
    source: Source,
    adapted: Adapted,
    golden: GoldenVectors,
    labels: Labels,
    *,
    graphs: Sequence[Graph],
    refused: Sequence[Refusal] = (),
    gate: Gate | None = None,
) -> Manifest:
    """Assemble the bundle's manifest.

    Args:
        source: the model and its origin.
        adapted: the model's pure functions.
        golden: the golden vectors and the variants.
        labels: name, description, license and version.
        graphs: all graphs of the bundle.
        refused: the variants that were left out.
        gate: the limits that the variants had to meet, if any were asked for.
    """
    signature = adapted.signature
    name = labels.name or source.name
    of_one = {graph.component for graph in graphs if graph.batch_of_one}
    if "encoder" not in adapted.modules:
        refused = [Refusal("encoder", "fp32", WITHOUT_ENCODER), *refused]
    return Manifest(
        package_name=package_name(name),
        package_version=labels.version,
        name=name,
        description=labels.description or source.description,
        license=labels.license,
        reader="vae-runtime>=0.1",
        observation=signature.observation,
        conditions=signature.conditions,
        latents=signature.latents,
        likelihood=signature.likelihood,
        tiles=signature.tiles,
        table=signature.table,
        batch_of_one=tuple(name for name in COMPONENTS if name in of_one),
        golden=golden.record,
        encoder=golden.variants["encoder"],
        decoder=golden.variants["decoder"],
        training=source.training,
        metrics=source.metrics,
        refused=tuple(refused),
        producer=_producer(adapted, graphs, gate),
    )


def bundle_files(
    source: Source, adapted: Adapted, manifest: Manifest, golden: GoldenVectors, graphs: Sequence[Graph],
    prior: Mapping[str, bytes],
) -> dict[str, bytes | Path]:  # fmt: skip
    """All files of a bundle by their path in it, in memory or on disk."""
    files = graph_files(manifest, golden, graphs, prior)
    picture = _sample_sheet(adapted, graphs, next(iter(prior.values()), None))
    if picture is not None:
        files["samples.png"] = picture
    sizes = file_sizes(files)
    has_picture = picture is not None
    card = (
        source.card(manifest, sizes, has_picture)
        if source.card
        else model_card(manifest, sizes, has_picture, recognised=adapted.recognised)
    )
    files["README.md"] = card.encode()
    files[SUMS] = list_sums(files)
    return files


def _producer(adapted: Adapted, graphs: Sequence[Graph], gate: Gate | None) -> dict[str, Any]:
    """Return the versions that made the bundle, the facts found out about the model, rewrites and limits."""
    packages = ("torch", "onnx", "onnxscript")
    rewrites = {graph.component: list(graph.rewrites) for graph in graphs if graph.variant == "fp32" and graph.rewrites}
    return {
        "vae_export": __version__,
        **{package: importlib.metadata.version(package) for package in packages},
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "recognised": list(adapted.recognised),
        **({"rewrites": rewrites} if rewrites else {}),
        **({"gate": asdict(gate), "processor": processor_name()} if gate else {}),
    }


def _sample_sheet(adapted: Adapted, graphs: Sequence[Graph], fitted: bytes | None) -> bytes | None:
    """Draw samples with the exported decoder, one row for each class; None if the bundle cannot show any."""
    signature = adapted.signature
    prior = signature.latent.prior
    pictures = len(signature.observation.shape) in (2, 3) and signature.observation.dtype == "float32"
    if not pictures or math.prod(signature.observation.shape) > 2**14 or signature.likelihood.shape is not None:
        return None
    if any(latent.prior.kind not in ("normal", "mixture") for latent in signature.latents):
        return None
    classes = next((c for c in signature.conditions if c.classes and "decoder" in c.components), None)
    if classes is None and any("decoder" in c.components for c in signature.conditions):
        return None
    count, across = _PICTURES, None
    given: dict[str, Tensor] = {}
    if classes is not None and classes.classes:
        across = 10
        count = across * min(len(classes.classes), 20)
        given = {name: tensor for name, tensor in rows(adapted, count).items() if name in
                 [c.name for c in signature.conditions]}  # fmt: skip
        given[classes.name] = torch.arange(count) // across
    for number, latent in enumerate(signature.latents):
        if prior.kind == "mixture" and fitted:
            mixture = read_mixture(latent, fitted, str(prior.file))
            drawn = mixture.draw(0, 0, count, number).reshape(count, *latent.shape)
        else:
            drawn = noise.normal(0, 0, count, latent.shape, noise.stream_of(noise.PRIOR, number))
        given[latent.name] = torch.from_numpy(drawn)
    decoder = next(graph for graph in graphs if graph.component == "decoder" and graph.executor == "ort")
    x = open_graph(decoder)([tensor.numpy() for tensor in adapted.given("decoder", given)])[0]
    with contextlib.suppress(InputError):
        return png(grid(x, columns=across, value_range=signature.observation.range))
    return None
