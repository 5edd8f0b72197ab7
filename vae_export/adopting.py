"""Adopt graphs that exist already as a bundle, without PyTorch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import noise
from vae_runtime._version import __version__
from vae_runtime.bundle import open_bundle, require_replaceable
from vae_runtime.document import PACKAGE_VERSION
from vae_runtime.errors import InputError, VaeError, error_line, require_bool, require_integer
from vae_runtime.files import write_folder
from vae_runtime.manifest import COMPONENTS, TENSOR, Manifest, Signature
from vae_runtime.places import SUMS, is_zip

from .card import model_card
from .errors import ExportError, ParityError, require_path
from .graphs.existing import ExistingGraph
from .graphs.files import write_graph
from .graphs.graph import Graph
from .graphs.reference import ReferenceGraph
from .graphs.streams import stream_lines, with_stream
from .labels import Labels, file_sizes, graph_files, list_sums, package_name
from .packages import GraphFiles, find_graphs
from .parity.answers import GoldenVectors, collect_answers, golden_record
from .parity.tolerances import tolerance
from .trial import require_runnable
from .understand.checks import check_declaration, class_names_of
from .understand.computed import OWN
from .understand.declaration import Declaration
from .understand.existing import Facts, UnderstoodGraphs, understand_graphs

Array = NDArray[Any]

# ONNX Runtime rounds between other operators once a graph's ends are float32: some ten roundings of float16.
_FACTORS = {"float32": 1, "float16": 500, "int8": 500}


@dataclass(frozen=True)
class Adopted:
    """The result of `adopt`: the bundle that was written."""

    path: Path
    digest: str
    recognised: tuple[str, ...]
    """The facts found out about the graphs, one line each."""
    sizes: Mapping[str, int]
    """Bytes of each graph file by its path in the bundle."""


def adopt(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    shape: Sequence[int] | None = None,
    posterior: str | None = None,
    likelihood: str | None = None,
    logits: bool = False,
    scale: float | None = None,
    prior: str | None = None,
    axes: Sequence[str] | None = None,
    latent_axes: Sequence[str] | None = None,
    dynamic: Sequence[str] | None = None,
    range: tuple[float, float] | None = None,
    latent_scale: float | Sequence[float] | None = None,
    latent_shift: float | Sequence[float] | None = None,
    codebook: int | None = None,
    conditions: Mapping[str, ArrayLike] | None = None,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    model: Any = None,
    name: str | None = None,
    description: str | None = None,
    license: str | None = None,
    version: str | None = None,
    force: bool = False,
) -> Adopted:
    """Make a bundle of an encoder and a decoder that are ONNX graphs already. Without `model`, PyTorch is not imported.

    The bundle computes what the graphs compute. Only with `model` it is checked that the model computes the same.

    Args:
        source: the files (encoder, decoder); or a folder in optimum's layout, with vae_encoder/model.onnx and
            vae_decoder/model.onnx; or a model package of ONNX Runtime that another tool wrote.
        out: the bundle's folder; must not exist unless `force`.
        shape: of one observation, where the graph or config.json does not say it.
        posterior: the meaning of the encoder's second tensor, or of the second half of its only one: "logvar", "std",
            "var", "log_std" or "softplus"; or "codes" or "none". By default by the output's name.
        likelihood: "bernoulli", "gaussian", "laplace" or "poisson"; without it the bundle gives no scores.
        logits: the decoder's first output is the value before the sigmoid.
        scale: the scale of a gaussian or laplace likelihood, in units of x; 1 by default.
        prior: "normal", "none" or "sphere".
        axes, latent_axes: names of the axes of one observation and of one latent.
        dynamic: names of the axes whose size may vary; by default those that the graph leaves open and that work.
        range: min and max value of an observation.
        latent_scale, latent_shift: other models take (z - shift) * scale; by default as config.json says.
        codebook: number of codes.
        conditions: values [n, ...] of the graphs' further inputs, by their names.
        class_names: names of the classes 0, 1, ... of the only integer condition, or names by condition.
        model: the model that the graphs were made from, as `export` takes it, to compare them with; it needs PyTorch.
        name, description, license, version: for the manifest and the model card; by default those of a package.
        force: replace an existing bundle.

    Raises:
        InputError: an argument is invalid, or the graphs are not there.
        ExportError: the graphs cannot be understood, and the error names the argument that would say it; or vae-runtime
            cannot run the bundle. Nothing is written.
        ParityError: the graphs compute something else than the model.
        VaeError: the bundle cannot be written there.
    """
    out = require_path("out", out)
    if is_zip(out):
        raise InputError(f"{out}: expected a folder, got the name of a .zip file; `vae-runtime pack` writes one")
    require_bool("force", force)
    require_bool("logits", logits)
    declaration = Declaration(
        posterior=posterior, likelihood=likelihood, scale=scale, prior=prior, axes=axes, latent_axes=latent_axes,
        dynamic=dynamic, range=range, latent_scale=latent_scale, latent_shift=latent_shift, codebook=codebook,
    )  # fmt: skip
    check_declaration(declaration)
    if prior not in (None, "normal", "none", "sphere"):
        raise InputError(f"prior: expected normal, none or sphere, got {prior!r:.99}")
    if shape is not None:
        if not isinstance(shape, (list, tuple)):
            raise InputError(f"shape: expected the sizes of one observation, got {shape!r:.99}")
        for size in shape:
            require_integer("shape", size, 1, 2**31 - 1)
    values = _conditions(conditions)
    classes = class_names_of(class_names, values)
    labels = Labels(name, description, license, version)
    require_replaceable(out, force, refusal=ExportError)
    files = find_graphs(source)
    # One after the other, so that a graph that is refused ends it before the next is read.
    references = {
        component: ReferenceGraph(ExistingGraph(files.graphs[component], files.weights[component]), component, values)
        for component in COMPONENTS
    }
    facts = Facts(declaration, shape, values, classes, logits, files.config)
    understood = understand_graphs(references, facts)
    with tempfile.TemporaryDirectory(prefix="vae-export-") as folder:
        graphs = _graphs(understood, Path(folder))
        contents = _contents(understood, graphs, facts, model)
        return _write(contents, understood, graphs, files, labels, out, force)


def _conditions(conditions: Mapping[str, ArrayLike] | None) -> dict[str, Array]:
    """Return the values of conditions as arrays [n, ...] in their own dtypes."""
    if not isinstance(conditions, (Mapping, type(None))):
        raise InputError(f"conditions: expected arrays by name, got {type(conditions).__name__}")
    arrays = {}
    for name, value in (conditions or {}).items():
        if not isinstance(name, str) or not TENSOR.matches(name) or name in OWN:
            raise InputError(
                f"conditions: expected names of letters, digits and '_' but {', '.join(OWN)}, got {name!r:.99}"
            )
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InputError(f"conditions[{name!r}]: expected an array of numbers: {error_line(error)}") from None
        if array.dtype.kind not in "fiub" or not array.ndim or not array.size or not np.isfinite(array).all():
            raise InputError(
                f"conditions[{name!r}]: expected finite numbers [n, ...] of at least one row, got {array.dtype} "
                f"{list(array.shape)}"
            )
        stored = "float32" if array.dtype.kind == "f" else "int64"
        largest = array.dtype.kind in "fu" and np.abs(array).max()
        if largest > (np.finfo(np.float32).max if stored == "float32" else np.iinfo(np.int64).max):
            raise InputError(f"conditions[{name!r}]: expected numbers that {stored} holds, got {largest}")
        arrays[name] = array
    return arrays


@dataclass(frozen=True)
class _Contents:
    """What a bundle says of its graphs."""

    signature: Signature
    golden: GoldenVectors
    recognised: tuple[str, ...]
    producer: Mapping[str, str]
    """With what the graphs were compared."""


def _graphs(understood: UnderstoodGraphs, folder: Path) -> list[Graph]:
    """Change the graphs, and write them to a folder."""
    understood.meaning.change(understood.signature, understood.references)
    return [
        with_stream(_graph(understood, component, folder), understood.signature, understood.examples)
        for component in COMPONENTS
    ]


def _contents(understood: UnderstoodGraphs, graphs: Sequence[Graph], facts: Facts, model: Any) -> _Contents:
    """Hold the graphs against the model, or without one against what was given."""
    signature, lines = understood.signature, understood.recognised
    lines = (*lines, *(line for graph in graphs for line in stream_lines(graph)))
    if model is None:
        if signature.latent.dynamic:
            lines = (*lines, "tiles: not measured; tile_blend divides arrays into tiles that change values")
        return _Contents(signature, _golden(understood, graphs), lines, {})
    from .original import compare_with_model

    compared = compare_with_model(model, understood, facts, graphs)
    return _Contents(compared.signature, compared.golden, (*lines, *compared.lines), {"torch": compared.torch})


def _write(
    contents: _Contents, understood: UnderstoodGraphs, graphs: Sequence[Graph], files: GraphFiles, labels: Labels,
    out: Path, force: bool,
) -> Adopted:  # fmt: skip
    """Write the bundle."""
    recognised = contents.recognised
    manifest = dataclasses.replace(
        _manifest(contents, understood, files, labels),
        training={"parameters": sum(reference.graph.parameters for reference in understood.references.values())},
        producer={
            "vae_export": __version__,
            "onnx": importlib.metadata.version("onnx"),
            **contents.producer,
            "opset": {component: reference.graph.opset for component, reference in understood.references.items()},
            "recognised": list(recognised),
            "compared" if contents.producer else "adopted": files.origin,
        },
    )
    content = graph_files(manifest, contents.golden, graphs, {})
    content["README.md"] = model_card(manifest, file_sizes(content), False, recognised=recognised).encode()
    content[SUMS] = list_sums(content)
    write_folder(out, content, replace=force, check=lambda written: require_runnable(written, understood.examples))
    sizes = file_sizes(content)
    graph_sizes = {variant.path: sizes[variant.path] for variant in manifest.variants}
    return Adopted(out, open_bundle(out).digest, recognised, graph_sizes)


def _graph(understood: UnderstoodGraphs, component: str, folder: Path) -> Graph:
    signature = understood.signature
    existing = understood.references[component].graph
    inputs, outputs = signature.inputs(component), signature.outputs(component)
    one = component in signature.batch_of_one
    path = folder / component / "model.onnx"
    path.parent.mkdir()
    exporter = " ".join(text for text in (existing.model.producer_name, existing.model.producer_version) if text)
    try:
        write_graph(existing.finish(inputs, outputs, one), path)
    except OSError as error:
        raise VaeError(f"{path.parent}: not written: {error_line(error)}; free some space, or set TMPDIR") from error
    except Exception as error:  # ONNX's checker raises errors of its own
        raise ExportError(f"{existing.path}: expected a sound graph: {error_line(error)}") from error
    return Graph(
        component, "fp32", "ort", path.name, path, tuple(each.name for each in inputs),
        tuple(each.name for each in outputs), exporter[:200] or None, batch_of_one=one,
    )  # fmt: skip


def _golden(understood: UnderstoodGraphs, graphs: Sequence[Graph]) -> GoldenVectors:
    """Run the graphs, as they were given and as they are now, on the golden inputs.

    Raises:
        ParityError: the two do not agree.
    """
    signature = understood.signature
    rows = min(map(len, understood.examples.values()))
    record = golden_record(signature)
    record = dataclasses.replace(record, n=min(record.n, rows))
    inputs = {name: array[: record.n] for name, array in understood.examples.items()}
    stored = {condition.name: inputs[condition.name] for condition in signature.conditions}
    observation, latent = signature.observation, signature.latent

    def reference(component: str, tensor: str) -> dict[str, Array]:
        outputs = understood.references[component](inputs[tensor])
        return understood.meaning.compute(signature, component, outputs)

    if latent.prior.kind == "normal":
        inputs[latent.name] = noise.normal(record.seed, 0, record.n, latent.shape, noise.stream_of(noise.PRIOR, 0))
    else:
        stored[latent.name] = inputs[latent.name]
    decoded = reference("decoder", latent.name)
    if signature.likelihood.shape is None and observation.dtype == "float32":
        # The decoder's means look like the data. They may leave the range.
        mean = decoded[signature.likelihood.mean]
        inputs[observation.name] = np.clip(mean, *observation.range) if observation.range else mean
    stored[observation.name] = inputs[observation.name]
    answers = {"encoder": reference("encoder", observation.name), "decoder": decoded}
    precisions = {component: reference.graph.precision for component, reference in understood.references.items()}
    integer = [component for component, precision in precisions.items() if precision == "int8"]
    golden = collect_answers(record, inputs, stored, answers, graphs, integer=integer)
    for component, variants in golden.variants.items():
        for output, error in variants["fp32"].error.items():
            # Written so that NaN fails.
            if not error <= _FACTORS[precisions[component]] * tolerance(answers[component][output]):
                raise ParityError(
                    f"{component}: {output}: expected the numbers of the graph as it was given, got a difference of "
                    f"{error:.2g}; report this with the graph"
                )
    return golden


def _manifest(contents: _Contents, understood: UnderstoodGraphs, files: GraphFiles, labels: Labels) -> Manifest:
    signature, golden = contents.signature, contents.golden
    name = labels.name or files.name
    variants = {
        component: {
            "fp32": dataclasses.replace(each["fp32"], precision=understood.references[component].graph.precision)
        }
        for component, each in golden.variants.items()
    }
    version = labels.version or (files.version if PACKAGE_VERSION.matches(files.version) else None)
    description = labels.description or files.description
    return Manifest(
        package_name=package_name(name),
        package_version=version,
        name=name,
        description=description or f"A VAE adopted from {files.origin}",
        license=labels.license,
        reader="vae-runtime>=0.1",
        observation=signature.observation,
        conditions=signature.conditions,
        latents=signature.latents,
        likelihood=signature.likelihood,
        batch_of_one=signature.batch_of_one,
        tiles=signature.tiles,
        golden=golden.record,
        encoder=variants["encoder"],
        decoder=variants["decoder"],
    )
