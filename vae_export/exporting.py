"""Export a model or a run as a bundle, written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor, nn

from vae_runtime.bundle import open_bundle, require_replaceable
from vae_runtime.calibration import held_out_scores
from vae_runtime.errors import InputError, VaeError, require_bool
from vae_runtime.files import write_folder
from vae_runtime.manifest import Manifest, Refusal
from vae_runtime.places import is_zip
from vae_runtime.vae import load

from .bundle_files import bundle_files, describe_bundle
from .errors import ExportError, require_path
from .graphs.formats import made_formats, make_graphs, require_formats
from .graphs.graph import Graph
from .graphs.streams import stream_lines, with_stream
from .graphs.variants import Gate, PassedVariant, make_variants, require_variants
from .labels import Labels, file_sizes
from .parity.comparison import Comparison, rows
from .parity.golden import golden_vectors
from .parity.report import ParityReport
from .progress import Progress
from .sources import Examples, Source, model_source, require_no_model_arguments, run_source
from .trial import require_runnable
from .understand.adapted import Adapted
from .understand.checks import check_declaration
from .understand.declaration import Declaration
from .understand.own_prior import prior_of
from .understand.state import fitting_threads, release, unchanged
from .understood import understand_source


@dataclass(frozen=True)
class Exported:
    """The result of `export`: the bundle that was written."""

    path: Path
    digest: str
    parity: ParityReport
    recognised: tuple[str, ...]
    """The facts found out about the model, each with its source, one line each."""
    sizes: Mapping[str, int]
    """Bytes of each graph file by its path in the bundle."""
    refused: tuple[Refusal, ...] = ()
    """The variants and formats that were left out, each with the reason."""


@dataclass(frozen=True)
class Options:
    """The choices of `export` that do not depend on the model."""

    formats: Sequence[str] | None
    variants: Sequence[str]
    gate: Gate
    force: bool
    progress: bool

    def steps(self, components: int) -> list[str]:
        """The kinds of the steps of an export, in order."""
        graphs = made_formats(self.formats) * components
        reductions = components * len(set(self.variants) - {"fp32"})
        return ["understand", "reference", *graphs, "golden", *["variants"] * reductions, "write"]

    def __post_init__(self) -> None:
        require_formats(self.formats)
        require_variants(self.variants)
        require_bool("force", self.force)
        require_bool("progress", self.progress)


def require_folder(out: object) -> Path:
    """Return the place of a bundle's folder.

    Raises:
        InputError: it is no path, or that of a .zip file, which `pack` writes.
    """
    path = require_path("out", out)
    if is_zip(path):
        raise InputError(
            f"{path}: expected a folder, got the name of a .zip file; export to {path.with_suffix('')}, then "
            f"`vae-runtime pack {path.with_suffix('')} --out {path}`"
        )
    return path


def export(
    source: nn.Module | str | Path,
    out: str | Path,
    *,
    model: nn.Module | None = None,
    example: ArrayLike | Tensor | None = None,
    latents: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor] | None = None,
    conditions: Mapping[str, ArrayLike | Tensor] | None = None,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    encode: Callable[..., Any] | str | None = None,
    decode: Callable[..., Any] | str | None = None,
    posterior: str | None = None,
    likelihood: str | None = None,
    scale: float | None = None,
    prior: object = None,
    observations: ArrayLike | Tensor | None = None,
    axes: Sequence[str] | None = None,
    latent_axes: Sequence[str] | None = None,
    dynamic: Sequence[str] | None = None,
    range: tuple[float, float] | None = None,
    latent_scale: float | Sequence[float] | None = None,
    latent_shift: float | Sequence[float] | None = None,
    codebook: int | None = None,
    formats: Sequence[str] | None = None,
    variants: Sequence[str] = ("fp32",),
    min_psnr: float = Gate.min_psnr,
    max_elbo_loss: float = Gate.max_elbo_loss,
    data: str | None = None,
    name: str | None = None,
    description: str | None = None,
    license: str | None = None,
    version: str | None = None,
    force: bool = False,
    progress: bool = False,
) -> Exported:
    """Export a VAE as a bundle, once its graphs are shown to compute what PyTorch computes.

    Args:
        source: a VAE, whose state is left unchanged, an object that holds one, or the folder of a run of `train`.
        model: with a run's folder, the module of a run whose model was given to `train` in Python without a name; it
            takes the run's weights.
        out: the bundle's folder; must not exist unless `force`.
        example: observations, floats, integers or bools [n, ...]. Several make a stronger test.
        latents: in the place of `example`, latents [n, ...], or several by name in the order of decode's arguments:
            only the decoder is exported. Integers are codes.
        conditions: values [n, ...] by name, as the example; given to encode and decode by these names.
        class_names: names of the classes 0, 1, ... of the only integer condition, or names by condition; for a run,
            in the place of those of its data.
        encode, decode: the name of a method, or a function of x or of the latents, and the conditions.
        posterior: the meaning of the encoder's second tensor: "logvar", "std", "var", "log_std" or "softplus"; or
            "codes" or "none".
        likelihood: "bernoulli", "gaussian", "laplace", "poisson", "logistic" or "categorical"; without it the bundle
            draws samples and gives no scores.
        scale: the scale of a gaussian, laplace or logistic likelihood, in units of x; 1 by default.
        prior: "normal", "none" or "sphere"; or one to fit to the observations: "diagonal", "gaussian" or "mixture:K";
            or an object: a fitted GaussianMixture of scikit-learn, a distribution of PyTorch that is normal or a
            mixture of normals, or a sampler of pythae.
        observations: real data [n, ...], without conditions, to fit a prior to, to compare on, and to calibrate and
            measure variants on; the example by default.
        axes, latent_axes: names of the axes of one observation and of one latent.
        dynamic: names of the axes whose size may vary.
        range: min and max value of an observation.
        latent_scale, latent_shift: other models take (z - shift) * scale; a number, or one for each channel.
        codebook: number of codes.
        formats: "onnx" (always made), "torchscript", "pt2". By default ONNX and TorchScript; a component that
            TorchScript cannot hold is then left out of that format, and listed in the result's `refused`.
        variants: "fp32" (always made), "fp16", "int8": see docs/variants.md. A variant that costs too much is left out
            and listed in the result's `refused`.
        min_psnr: smallest PSNR against fp32 that a variant may have, in dB.
        max_elbo_loss: largest loss of ELBO that a variant may have, in nats per observation.
        data: where a run's data are now, if they were moved.
        name: the bundle's name; by default that of the run's data, or the model's class.
        description: the model and its training data in words, for the manifest and the model card.
        license: the license of the weights, for the manifest and the model card.
        version: the version of the bundle, 1 to 8 integers such as "1.2.0": devices refuse to go back to an older one.
        force: replace an existing bundle.
        progress: report each step on stderr, and about how long is left.

    Raises:
        InputError: an argument or a run is invalid.
        ParityError: a graph does not compute what PyTorch computes; nothing is written.
        ExportError: the model cannot be understood or exported, and the error says what to do; `out` holds something
            other than a bundle; or vae-runtime cannot run the bundle. Nothing is written.
        VaeError: the bundle cannot be written there.
    """
    out = require_folder(out)
    labels = Labels(name, description, license, version)
    options = Options(formats, variants, Gate(min_psnr, max_elbo_loss), force, progress)
    require_replaceable(out, force, refusal=ExportError)
    declaration = Declaration(
        encode=encode, decode=decode, posterior=posterior, likelihood=likelihood, scale=scale,
        prior=prior_of(prior, source), axes=axes,
        latent_axes=latent_axes, dynamic=dynamic, range=range, latent_scale=latent_scale, latent_shift=latent_shift,
        codebook=codebook,
    )  # fmt: skip
    check_declaration(declaration)
    examples = Examples(example, conditions, class_names, observations, latents)
    if isinstance(source, (str, Path)):
        require_no_model_arguments(declaration, examples)
        found = run_source(Path(source), data, name, model, class_names)
    elif model is not None:
        raise InputError("model: expected only with the folder of a run, got a model beside a model; leave it out")
    else:
        found = model_source(source, declaration, examples, name)
    with (
        unchanged(found.model),
        fitting_threads(found.model, found.example),
        tempfile.TemporaryDirectory(prefix="vae-export-") as folder,
    ):
        return _export_source(found, out, labels, options, Path(folder))


def _export_source(source: Source, out: Path, labels: Labels, options: Options, folder: Path) -> Exported:
    """Understand the model, make its graphs, hold them against PyTorch, make variants, and write the bundle."""
    progress = Progress(options.steps(1 if source.latents else 2), shown=options.progress)
    progress.step("understand", "running the model to understand it")
    adapted = understand_source(source)
    progress.note("\n".join(adapted.recognised))
    progress.step("reference", "running PyTorch in float32 and float64 for the comparison")
    comparison = Comparison(adapted)
    graphs, left_out = make_graphs(adapted, options.formats, folder, require=comparison.require, progress=progress)
    report = comparison.report(graphs)
    report.require()
    adapted, graphs = _with_stream(adapted, graphs, progress)
    release(adapted.modules.values())

    progress.step("golden", "making golden vectors")
    golden = golden_vectors(adapted, graphs)
    manifest = describe_bundle(source, adapted, golden, labels, graphs=graphs)
    prior_file = {str(manifest.latent.prior.file): adapted.prior_file} if adapted.prior_file else {}
    passed, refused = make_variants(
        graphs, manifest, options.variants, options.gate, measured=source.measured, calibration=source.calibration,
        files=prior_file, folder=folder / "variants", progress=progress,
    )  # fmt: skip
    refused = [*left_out, *refused]
    if passed:
        graphs = _in_order(graphs, passed)
        golden = golden_vectors(adapted, graphs, passed)

    gate = options.gate if set(options.variants) - {"fp32"} else None
    manifest = describe_bundle(source, adapted, golden, labels, graphs=graphs, refused=refused, gate=gate)
    files = bundle_files(source, adapted, manifest, golden, graphs, prior_file)
    manifest = _with_scores(manifest, source, files, folder / "unscored", progress)
    if manifest.scores is not None:
        files = bundle_files(source, adapted, manifest, golden, graphs, prior_file)
    progress.step("write", "writing the bundle, and running it with vae-runtime")
    # Checked again: another process may have written there while the graphs were made.
    require_replaceable(out, options.force, refusal=ExportError)
    examples = {name: tensor.numpy() for name, tensor in adapted.examples.items()}
    write_folder(out, files, replace=options.force, check=lambda written: require_runnable(written, examples))
    sizes = file_sizes(files)
    graph_sizes = {variant.path: sizes[variant.path] for variant in manifest.variants}
    return Exported(out, open_bundle(out).digest, report, adapted.recognised, graph_sizes, tuple(refused))


def _with_stream(adapted: Adapted, graphs: Sequence[Graph], progress: Progress) -> tuple[Adapted, list[Graph]]:
    """Let the decoder take latents in chunks, where it can, and say so."""
    examples = {name: tensor.numpy() for name, tensor in rows(adapted, 2).items()}
    graphs = [with_stream(graph, adapted.signature, examples) if graph.variant == "fp32" else graph for graph in graphs]
    lines = [line for graph in graphs for line in stream_lines(graph)]
    progress.note("\n".join(lines))
    return replace(adapted, recognised=(*adapted.recognised, *lines)), graphs


def _with_scores(
    manifest: Manifest, source: Source, files: Mapping[str, bytes | Path], folder: Path, progress: Progress
) -> Manifest:
    """Add the quantiles of the scores of held-out observations, by the bundle without them, where there are any."""
    if source.held_out is None:
        return manifest
    held_out = source.held_out
    try:
        # Where this fails for want of space, writing the bundle fails, too, and says so.
        write_folder(folder, files)
        scores = held_out_scores(
            load(folder), held_out.x, data=held_out.description, conditions=held_out.conditions or None
        )
    except VaeError as error:
        progress.note(f"held-out scores: left out: {error}")
        return manifest
    return replace(manifest, scores=scores)


def _in_order(graphs: Sequence[Graph], passed: Sequence[PassedVariant]) -> list[Graph]:
    """Put the graphs in the order of the manifest: fp32, its variants, other formats."""
    ordered = []
    for graph in graphs:
        ordered.append(graph)
        if graph.variant == "fp32":
            ordered += [each.graph for each in passed if each.graph.component == graph.component]
    return ordered
