"""Checkpoint → bundle: graphs, parity, golden vectors, manifest and model card, written whole or not at all."""

from __future__ import annotations

import importlib.metadata
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import vae_runtime
from vae_runtime import noise
from vae_runtime.bundle import MANIFEST, SUMS, format_sums, open_bundle
from vae_runtime.errors import BundleError, InputError
from vae_runtime.files import write_folder
from vae_runtime.image import grid, png
from vae_runtime.manifest import Golden, Latent, Manifest, Normalisation, Observation, Variant, dump, parse
from vae_runtime.verify import Report, verify

from . import checkpoint
from .adapt import Adapted, adapt
from .card import model_card
from .checkpoint import RunInfo
from .data import Dataset
from .errors import ExportError, ParityError
from .evaluation import read_evaluation
from .graphs import FORMATS, IR_VERSION, OPSET, RUNNERS, Graph, make_graphs, run_module
from .parity import ParityReport, compare, tolerance

__all__ = ["Exported", "export", "prove"]

Array = NDArray[np.float32]

_GOLDEN = Golden(file="golden.npz", seed=0, n=4)
# A device may differ from the exporting machine by this much more than a graph may from PyTorch: its kernels round
# otherwise. A weight matrix that is off by 1 % is some hundred times farther out.
_DEVICE_FACTOR = 2.0
_PICTURES = 64


@dataclass(frozen=True)
class Exported:
    """A bundle that was written."""

    path: Path
    digest: str
    parity: ParityReport
    sizes: Mapping[str, int]
    """Bytes of each graph file by its path in the bundle."""


def export(
    run: str | Path,
    out: str | Path,
    *,
    formats: Sequence[str] = ("onnx", "torchscript"),
    data: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    force: bool = False,
) -> Exported:
    """Export a trained run as a bundle, after its graphs were proven equal to PyTorch.

    Args:
        run: the run's folder, as `train` made it.
        out: the bundle's folder; must not exist unless `force`.
        formats: "onnx" (always made), "torchscript", "pt2".
        data: where the run's data are now, if not where they were.
        name: the bundle's name; by default that of the data.
        licence: of the weights, for the manifest and the model card.
        force: replace a bundle that is there.

    Raises:
        InputError: the run or its data are missing or damaged, or a text is not printable.
        ParityError: a graph's numbers are not PyTorch's; nothing is written.
        ExportError: PyTorch could not export the model, or `out` holds something else than a bundle.
        VaeError: the bundle cannot be written there.
    """
    out = Path(out)
    for what, text in (("name", name), ("licence", licence)):
        if text is not None and not text.isprintable():
            raise InputError(f"{what}: printable text is expected, got {text!r}")
    _check_target(out, force)
    vae, info = checkpoint.load(run)
    evaluation = read_evaluation(run)
    dataset = checkpoint.run_data(info, data)
    adapted = adapt(vae)
    graphs = make_graphs(adapted, formats)
    report = compare(adapted, graphs, _unseen(dataset))
    report.require()

    observation = _observation(info, dataset, adapted)
    golden, variants = _golden(adapted, graphs, observation)
    name = name or info.provenance.name
    manifest = Manifest(
        package_name=re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "vae",
        name=name,
        description=f"{info.model.architecture} VAE trained on {info.provenance.name}",
        licence=licence,
        reader="vae-runtime>=0.1",
        observation=observation,
        latents=(Latent(adapted.inputs("decoder"), adapted.latent_shape),),
        likelihood=adapted.likelihood,
        golden=_GOLDEN,
        encoder=variants["encoder"],
        decoder=variants["decoder"],
        training=_training(info, sum(parameter.numel() for parameter in vae.parameters())),
        metrics=asdict(evaluation) if evaluation else {},
        producer=_producer(),
    )
    text = dump(manifest)
    parse(text)
    files = {MANIFEST: text.encode(), _GOLDEN.file: golden}
    files |= {f"{graph.component}/{graph.variant}/{graph.file}": graph.content for graph in graphs}
    picture = _samples(adapted, graphs, manifest.observation.range)
    if picture is not None:
        files["samples.png"] = picture
    files["README.md"] = model_card(manifest, info, evaluation, files).encode()
    files[SUMS] = format_sums(files.items())
    # Again, for what may have come there while the graphs were made.
    _check_target(out, force)
    write_folder(out, files, replace=force)
    written = vae_runtime.load(out)
    sizes = {variant.path: len(files[variant.path]) for variant in manifest.variants}
    return Exported(out, written.digest, report, sizes)


def prove(run: str | Path, bundle: str | Path, *, data: str | None = None) -> tuple[Report, ParityReport]:
    """Hold a bundle against the run it came from.

    Args:
        run: the run's folder.
        bundle: the bundle's folder.
        data: where the run's data are now, if not where they were.

    Returns:
        The verification of its files and golden vectors, TorchScript and .pt2 included, and the comparison of each
        graph with eager PyTorch on real data.

    Raises:
        BundleError: there is no bundle, or a graph's file is damaged.
        InputError: the run or its data are missing or damaged.
        ParityError: the bundle is of another model.
    """
    vae, info = checkpoint.load(run)
    adapted = adapt(vae)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    for what, found, expected in (
        ("observation shape", manifest.observation.shape, adapted.observation_shape),
        ("latent shape", manifest.latent.shape, adapted.latent_shape),
        ("likelihood", manifest.likelihood.kind, adapted.likelihood.kind),
    ):
        if found != expected:
            raise ParityError(f"{bundle}: {what}: {expected} is expected from {run}, got {found}; export the run again")
    scales = (manifest.likelihood.scale or 0.0, adapted.likelihood.scale or 0.0)
    # The exp of another build of PyTorch may differ in the last digit.
    if not math.isclose(*scales, rel_tol=1e-6):
        raise ParityError(f"{bundle}: likelihood scale: {scales[1]} is expected from {run}, got {scales[0]}")
    verification = verify(bundle, runners={name: runner for name, runner in RUNNERS.items() if name != "ort"})
    graphs = [Graph(v.component, v.name, v.executor, v.file, opened.read(v.path)) for v in manifest.variants]
    return verification, compare(adapted, graphs, _unseen(checkpoint.run_data(info, data)))


def _unseen(dataset: Dataset) -> Array:
    """Real observations that were not trained on; where none were kept for the test, those for validation."""
    return dataset.test if len(dataset.test) else dataset.validation


def _check_target(out: Path, force: bool) -> None:
    """Refuse early, before minutes of work, and never replace what is no bundle."""
    if not os.path.lexists(out):
        return
    if not force:
        raise ExportError(f"{out}: exists already; choose another place, or replace it with --force")
    if out.is_symlink() or not out.is_dir():
        raise ExportError(f"{out}: is no folder, and --force replaces only bundles; choose another place")
    if not any(out.iterdir()):
        return
    try:
        unlisted = open_bundle(out).unlisted()
    except BundleError as error:
        raise ExportError(f"{out}: is no sound bundle, and --force replaces only bundles: {error}") from error
    if unlisted:
        raise ExportError(f"{out}: {unlisted[0]} is no part of the bundle there and would be lost; move it away")


def _golden(
    adapted: Adapted, graphs: Sequence[Graph], observation: Observation
) -> tuple[bytes, dict[str, dict[str, Variant]]]:
    """The golden vectors' file, and each component's variants with their tolerances and errors."""
    z = noise.normal(_GOLDEN.seed, 0, _GOLDEN.n, adapted.latent_shape)
    # The observations are the decoder's own: lifelike, and free of the data's licence. Its means can leave the range.
    x = run_module(adapted.decode, torch.from_numpy(z))[0].numpy()
    if observation.range:
        x = np.clip(x, *observation.range)
    given = {"encoder": x, "decoder": z}
    arrays = {adapted.inputs("encoder"): x}
    pytorch = {}
    for component, module in adapted.components.items():
        outputs = run_module(module, torch.from_numpy(given[component]))
        pytorch[component] = dict(zip(adapted.outputs(component), (o.numpy() for o in outputs), strict=True))
        arrays |= {f"{component}/pytorch/{output}": array for output, array in pytorch[component].items()}
    variants: dict[str, dict[str, Variant]] = {"encoder": {}, "decoder": {}}
    for graph in graphs:
        component = graph.component
        answers = RUNNERS[graph.executor](graph.content, given[component])
        own = dict(zip(adapted.outputs(component), answers, strict=True))
        arrays |= {f"{component}/{graph.variant}/{output}": array for output, array in own.items()}
        variants[component][graph.variant] = Variant(
            component=component,
            name=graph.variant,
            folder=f"{component}/{graph.variant}",
            file=graph.file,
            executor=graph.executor,
            precision="float32",
            tolerance={output: _DEVICE_FACTOR * tolerance(array) for output, array in own.items()},
            error={output: _distance(array, pytorch[component][output]) for output, array in own.items()},
            ep="CPUExecutionProvider" if graph.executor == "ort" else None,
            device="cpu" if graph.executor == "ort" else None,
        )
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue(), variants


def _distance(one: Array, other: Array) -> float:
    return float(np.max(np.abs(one.astype(np.float64) - other)))


def _observation(info: RunInfo, dataset: Dataset, adapted: Adapted) -> Observation:
    shape = adapted.observation_shape
    axes = {1: ("feature",), 2: ("height", "width"), 3: ("channel", "height", "width")}
    return Observation(
        name=adapted.inputs("encoder"),
        shape=shape,
        axes=axes.get(len(shape), tuple(f"axis_{number}" for number in range(1, len(shape) + 1))),
        range=(0.0, 1.0) if dataset.divisor or info.model.likelihood == "bernoulli" else None,
        normalisation=Normalisation(0.0, float(dataset.divisor)) if dataset.divisor else None,
    )


def _training(info: RunInfo, parameters: int) -> dict[str, Any]:
    """What the manifest says about training: everything but paths of this machine."""
    model, train = info.model.to_json(), info.train.to_json()
    return {
        "data": info.provenance.to_json(),
        "split_seed": info.data.seed,
        "model": model,
        "parameters": parameters,
        "train": train,
        "surrogate": info.surrogate,
        "torch": info.torch_version,
    }


def _producer() -> dict[str, Any]:
    packages = ("torch", "onnx", "onnxscript")
    return {
        "vae_export": vae_runtime.__version__,
        **{package: importlib.metadata.version(package) for package in packages},
        "exporter": "torch.onnx.export(dynamo=True)",
        "opset": OPSET,
        "ir_version": IR_VERSION,
    }


def _samples(adapted: Adapted, graphs: Sequence[Graph], within: tuple[float, float] | None) -> bytes | None:
    """A sheet of samples as the exported decoder gives them, or None where observations are no pictures."""
    (decoder,) = (g for g in graphs if g.component == "decoder" and g.variant == FORMATS["onnx"].variant)
    z = noise.normal(0, 0, _PICTURES, adapted.latent_shape)
    try:
        return png(grid(RUNNERS["ort"](decoder.content, z)[0], value_range=within))
    except InputError:
        return None
