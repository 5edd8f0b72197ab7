"""A model or a run → a bundle: graphs, parity, golden vectors, manifest and card, written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import math
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

import vae_runtime
from vae_runtime import noise
from vae_runtime.bundle import MANIFEST, SUMS, Bundle, format_sums, open_bundle, require_replaceable
from vae_runtime.document import dump, parse
from vae_runtime.errors import InputError
from vae_runtime.files import write_folder
from vae_runtime.image import grid, png
from vae_runtime.manifest import Golden, Manifest, Normalisation, Refusal, Signature, Variant
from vae_runtime.prior import Mixture
from vae_runtime.verification import Report, verify

from .card import model_card, run_card
from .errors import ExportError, ParityError
from .graphs.graph import EXECUTORS, IR_VERSION, OPSET, Graph, Run, make_graphs, open_graph
from .graphs.variants import CALIBRATED, MEASURED, PRECISION, VARIANTS, Gate, Made, Observed, make_variants
from .parity.comparison import Comparison, ParityReport, compare, rows, tolerance
from .training import checkpoint
from .training.checkpoint import RunInfo
from .training.data import Dataset
from .training.evaluation import binarise, read_evaluation
from .understand.adapt import adapt, declared
from .understand.adapted import Adapted, run_module
from .understand.declaration import Declaration
from .understand.prior import FITTED, fit_prior, is_fitted
from .understand.probe import probe
from .understand.state import release, unchanged, used_tensors

__all__ = ["Exported", "export", "prove"]

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
# What graphs are compared on; more observations serve to fit a prior alone.
_EXAMPLES = 64
_PICTURES = 64


@dataclass(frozen=True)
class Exported:
    """A bundle that was written."""

    path: Path
    digest: str
    parity: ParityReport
    recognised: tuple[str, ...]
    """What was understood of the model, and from what, a line each."""
    sizes: Mapping[str, int]
    """Bytes of each graph file by its path in the bundle."""
    refused: tuple[Refusal, ...] = ()
    """The variants that were asked for and left out, each with the reason."""


@dataclass(frozen=True)
class _Source:
    """What is to be exported, whoever made it."""

    model: nn.Module
    example: Tensor
    said: Declaration
    conditions: Mapping[str, Tensor]
    classes: Mapping[str, Sequence[str]]
    observations: Tensor
    measured: Observed
    calibration: Observed
    name: str
    description: str
    normalisation: Normalisation | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    card: Callable[[Manifest, Mapping[str, int], bool], str] | None = None


def export(
    model: nn.Module | str | Path,
    out: str | Path,
    *,
    example: ArrayLike | Tensor | None = None,
    conditions: Mapping[str, ArrayLike | Tensor] | None = None,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    encode: Callable[..., Any] | str | None = None,
    decode: Callable[..., Any] | str | None = None,
    posterior: str | None = None,
    likelihood: str | None = None,
    scale: float | None = None,
    prior: str | None = None,
    observations: ArrayLike | Tensor | None = None,
    axes: Sequence[str] | None = None,
    latent_axes: Sequence[str] | None = None,
    dynamic: Sequence[str] | None = None,
    range: tuple[float, float] | None = None,
    latent_scale: float | Sequence[float] | None = None,
    latent_shift: float | Sequence[float] | None = None,
    codebook: int | None = None,
    formats: Sequence[str] = ("onnx", "torchscript"),
    variants: Sequence[str] = ("fp32",),
    min_psnr: float = Gate.min_psnr,
    max_elbo_loss: float = Gate.max_elbo_loss,
    data: str | None = None,
    name: str | None = None,
    description: str | None = None,
    license: str | None = None,
    force: bool = False,
    progress: bool = False,
) -> Exported:
    """Export a VAE as a bundle, after its graphs were proven equal to PyTorch.

    Args:
        model: a VAE, whose state is left as it is, or the folder of a run that `train` made.
        out: the bundle's folder; must not exist unless `force`.
        example: of a model: observations, float32 or integer [n, ...]. Several different ones prove more.
        conditions: values [n, ...] by name, float32 or integer; given to encode and decode by these names.
        class_names: names of the classes 0, 1, ... of the only integer condition, or by condition.
        encode, decode: the name of a method, or a function of x or of the latents, and the conditions.
        posterior: what the encoder's second tensor is: "logvar", "std", "var", "log_std" or "softplus"; or "codes" or
            "none".
        likelihood: "bernoulli", "gaussian" or "laplace"; without it the bundle gives samples and no scores.
        scale: of a gaussian or laplace likelihood, in units of x; 1 unless said.
        prior: "normal", "none" or "sphere"; or one to fit to the observations: "diagonal", "gaussian" or "mixture:K".
        observations: real data [n, ...], without conditions, to fit a prior to, to compare on, and to calibrate and
            measure variants on; the example by default.
        axes, latent_axes: names of the axes of one observation and of one latent.
        dynamic: the names of those that may have other sizes.
        range: least and greatest value of an observation.
        latent_scale, latent_shift: what other models take is (z - shift) * scale; a number, or one for each channel.
        codebook: how many codes there are.
        formats: "onnx" (always made), "torchscript", "pt2".
        variants: "fp32" (always made), "fp16", "int8": see docs/variants.md. One that costs too much is left out, and
            the result's `refused` says so.
        min_psnr: what a variant's PSNR against fp32 must be at least, in dB.
        max_elbo_loss: what a variant may lose of the ELBO at most, in nats per observation.
        data: where a run's data are now, if not where they were.
        name: the bundle's name; by default that of the run's data, or the model's class.
        description: what the model is and was trained on, for the manifest and the model card.
        license: of the weights, likewise.
        force: replace a bundle that is there.
        progress: say on stderr what is being done.

    Raises:
        InputError: an argument or a run is not of the right form.
        ParityError: a graph's numbers are not PyTorch's; nothing is written.
        ExportError: the model cannot be understood or exported, and the error says what settles it; or `out` holds
            something else than a bundle.
        VaeError: the bundle cannot be written there.
    """
    out = Path(out)
    for what, text in (("name", name), ("description", description), ("license", license)):
        if text is not None and not text.isprintable():
            raise InputError(f"{what}: printable text is expected, got {text!r}")
    several = isinstance(variants, (list, tuple, set, frozenset))
    unknown = [repr(name) for name in variants if name not in VARIANTS] if several else []
    if unknown or not several:
        raise InputError(
            f"variants: some of {', '.join(VARIANTS)} are expected, got {(unknown or [repr(variants)])[0]}"
        )
    gate = Gate(min_psnr, max_elbo_loss)
    require_replaceable(out, force, refusal=ExportError)
    said = Declaration(
        encode=encode, decode=decode, posterior=posterior, likelihood=likelihood, scale=scale, prior=prior, axes=axes,
        latent_axes=latent_axes, dynamic=dynamic, range=range, latent_scale=latent_scale, latent_shift=latent_shift,
        codebook=codebook,
    )  # fmt: skip
    _check_said(said)
    if isinstance(model, (str, Path)):
        foreign = [field.name for field in dataclasses.fields(said) if getattr(said, field.name) is not None]
        foreign += [n for n, v in (("example", example), ("conditions", conditions), ("observations", observations))
                    if v is not None]  # fmt: skip
        if foreign:
            raise InputError(f"{foreign[0]}: only for a model, a run says it itself; leave it out")
        source = _run_source(Path(model), data, name)
    else:
        source = _model_source(model, said, example, conditions, class_names, observations, name)
    with unchanged(source.model), tempfile.TemporaryDirectory(prefix="vae-export-") as folder:
        adapted, fitted = _understood(source)
        if progress:
            print("\n".join(adapted.recognised), file=sys.stderr, flush=True)
        comparison = Comparison(adapted)
        graphs = make_graphs(adapted, formats, Path(folder), require=comparison.require, progress=progress)
        report = comparison.report(graphs)
        report.require()
        release(adapted.modules.values())
        golden, content, declared_variants = _golden(adapted, graphs, [])
        manifest = _manifest(source, adapted, golden, declared_variants, name, description, license)
        drawn_from = {str(manifest.latent.prior.file): fitted} if fitted else {}
        made, refused = make_variants(
            graphs, manifest, variants, gate, measured=source.measured, calibration=source.calibration,
            files=drawn_from, folder=Path(folder, "variants"), progress=progress,
        )  # fmt: skip
        if made:
            graphs = _in_order(graphs, made)
            golden, content, declared_variants = _golden(adapted, graphs, made)
        manifest = dataclasses.replace(
            manifest,
            encoder=declared_variants["encoder"],
            decoder=declared_variants["decoder"],
            refused=tuple(refused),
            producer=_producer(adapted, graphs, gate if set(variants) - {"fp32"} else None),
        )
        parse(dump(manifest))
        files: dict[str, bytes | Path] = {MANIFEST: dump(manifest).encode(), golden.file: content, **drawn_from}
        for graph in graphs:
            place = f"{graph.component}/{graph.variant}"
            files[f"{place}/{graph.file}"] = graph.source
            files |= {f"{place}/{data_name}": content for data_name, content in graph.data.items()}
        picture = _samples(adapted, graphs, fitted)
        if picture is not None:
            files["samples.png"] = picture
        sizes = {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in files.items()
        }
        card = source.card or (lambda *arguments: model_card(*arguments, recognised=adapted.recognised))
        files["README.md"] = card(manifest, sizes, picture is not None).encode()
        files[SUMS] = _sums(files)
        # Again, for what may have come there while the graphs were made.
        require_replaceable(out, force, refusal=ExportError)
        write_folder(out, files, replace=force)
    written = open_bundle(out)
    graph_sizes = {variant.path: sizes[variant.path] for variant in manifest.variants}
    return Exported(out, written.digest, report, adapted.recognised, graph_sizes, tuple(refused))


def prove(run: str | Path, bundle: str | Path, *, data: str | None = None) -> tuple[Report, ParityReport]:
    """Hold a bundle against the run it came from.

    Loading TorchScript and .pt2 files runs code from them: prove only bundles whose maker you trust.

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
    source = _run_source(Path(run), data, None)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    with unchanged(source.model):
        adapted, _ = _understood(source)
        own = adapted.signature
        for what, found, expected in (
            ("observation shape", manifest.observation.shape, own.observation.shape),
            ("latents", [latent.shape for latent in manifest.latents], [latent.shape for latent in own.latents]),
            ("conditions", [c.name for c in manifest.conditions], [c.name for c in own.conditions]),
            ("likelihood", manifest.likelihood.kind, own.likelihood.kind),
        ):
            if found != expected:
                raise ParityError(
                    f"{bundle}: {what}: {expected} is expected from {run}, got {found}; export the run again"
                )
        scales = (manifest.likelihood.scale or 0.0, own.likelihood.scale or 0.0)
        # The exp of another build of PyTorch may differ in the last digit.
        if not math.isclose(*scales, rel_tol=1e-6):
            raise ParityError(f"{bundle}: likelihood scale: {scales[1]} is expected from {run}, got {scales[0]}")
        verification = verify(bundle, runners=dict.fromkeys(EXECUTORS, _runner))
        return verification, compare(adapted, [_read_graph(opened, variant) for variant in manifest.variants])


def _read_graph(bundle: Bundle, variant: Variant) -> Graph:
    signature = bundle.manifest
    return Graph(
        variant.component,
        variant.name,
        variant.executor,
        variant.file,
        bundle.read(variant.path),
        tuple(tensor.name for tensor in signature.inputs(variant.component)),
        tuple(tensor.name for tensor in signature.outputs(variant.component)),
        variant.exporter,
        bundle.data(variant),
    )


def _runner(bundle: Bundle, variant: Variant, inputs: Mapping[str, Array]) -> Sequence[Array]:
    return open_graph(_read_graph(bundle, variant))(list(inputs.values()))


def _check_said(said: Declaration) -> None:
    """Refuse numbers and names that can be none, by the argument that they came in."""
    if said.scale is not None and not (math.isfinite(said.scale) and said.scale > 0):
        raise InputError(f"scale: a positive number is expected, got {said.scale}")
    for name, value, zero in (("latent_scale", said.latent_scale, False), ("latent_shift", said.latent_shift, True)):
        if value is not None:
            numbers = np.asarray(value, np.float64).reshape(-1)
            if not np.isfinite(numbers).all() or (not zero and not numbers.all()):
                kind = "finite numbers" if zero else "finite numbers other than 0"
                raise InputError(f"{name}: {kind} are expected, got {value}")
    if said.range is not None:
        ends = np.asarray(said.range, np.float64)
        if ends.shape != (2,) or not np.isfinite(ends).all() or not ends[0] < ends[1]:
            raise InputError(f"range: two finite numbers, the least first, are expected, got {said.range}")
    if said.codebook is not None and said.codebook < 1:
        raise InputError(f"codebook: at least 1 is expected, got {said.codebook}")
    for name, names in (("axes", said.axes), ("latent_axes", said.latent_axes), ("dynamic", said.dynamic)):
        if names is not None and (isinstance(names, str) or not all(isinstance(n, str) and n for n in names)):
            raise InputError(f"{name}: a sequence of names is expected, got {names!r}")
    for name, what in (("encode", said.encode), ("decode", said.decode)):
        if what is not None and not (callable(what) or (isinstance(what, str) and what)):
            raise InputError(f"{name}: the name of a method or a function is expected, got {what!r}")


# Where models come from.


def _run_source(run: Path, data: str | None, name: str | None) -> _Source:
    vae, info = checkpoint.load(run)
    evaluation = read_evaluation(run)
    dataset = checkpoint.run_data(info, data)
    observations = torch.from_numpy(_unseen(dataset))
    binarised = info.train.binarise
    unseen = "test" if len(dataset.test) else "validation"
    shape = info.model.observation_shape
    axes = {1: ("feature",), 2: ("height", "width"), 3: ("channel", "height", "width")}
    bounded = dataset.divisor or info.model.likelihood == "bernoulli"
    said = Declaration(
        axes=axes.get(len(shape), tuple(f"axis_{number}" for number in range(1, len(shape) + 1))),
        range=(0.0, 1.0) if bounded else None,
    )
    return _Source(
        model=vae,
        example=_at_least_two(observations[:_EXAMPLES]),
        said=said,
        conditions={},
        classes={},
        observations=observations,
        measured=Observed(
            binarise(observations[:MEASURED].numpy(), binarised, 0), {}, f"{info.provenance.name}, {unseen} data"
        ),
        calibration=Observed(
            binarise(np.asarray(dataset.train[:CALIBRATED]), binarised, 0), {}, f"{info.provenance.name}, training data"
        ),
        name=name or info.provenance.name,
        description=f"{info.model.architecture} VAE trained on {info.provenance.name}",
        normalisation=Normalisation(0.0, float(dataset.divisor)) if dataset.divisor else None,
        training=_training(info, sum(parameter.numel() for parameter in vae.parameters())),
        metrics=asdict(evaluation) if evaluation else {},
        card=lambda manifest, sizes, picture: run_card(manifest, info, evaluation, sizes, picture),
    )


def _model_source(
    model: Any,
    said: Declaration,
    example: ArrayLike | Tensor | None,
    conditions: Mapping[str, ArrayLike | Tensor] | None,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None,
    observations: ArrayLike | Tensor | None,
    name: str | None,
) -> _Source:
    # scvi-tools wraps its modules in an object of its own.
    module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    # torch.compile and DataParallel wrap the module that is meant.
    module = getattr(module, "_orig_mod", module)
    module = module.module if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else module
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            "model: a torch.nn.Module is expected, got a ScriptModule; pass the one before torch.jit.script"
        )
    if not isinstance(module, nn.Module):
        raise InputError(f"model: a torch.nn.Module or the folder of a run is expected, got {type(model).__name__}")
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise InputError(
                f"model: {key} has no values yet; run the model once, or load its weights, before the export"
            )
    if example is None:
        raise InputError("example: observations [n, …] are expected, got nothing; pass some with example=")
    x = _tensor("example", example)
    if conditions is not None and not isinstance(conditions, Mapping):
        raise InputError(
            f'conditions: arrays by name are expected, such as {{"label": y}}, got {type(conditions).__name__}'
        )
    given = {key: _tensor(f"conditions[{key!r}]", value) for key, value in (conditions or {}).items()}
    for key, tensor in given.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key):
            raise InputError(f"conditions: names of letters, digits and '_' are expected, got {key!r}")
        if len(tensor) != len(x):
            raise InputError(f"conditions[{key!r}]: {len(x)} rows, as the example has, are expected, got {len(tensor)}")
    real = x if observations is None else _tensor("observations", observations)
    if real.shape[1:] != x.shape[1:] or real.dtype != x.dtype:
        raise InputError(
            f"observations: {_kind(x)}, as the example, are expected, got {_kind(real)}; pass rows of the same shape"
        )
    if observations is not None and given:
        raise InputError("observations: only without conditions; pass all rows as the example and the conditions")
    classes = _class_names(class_names, given)
    calibration, measured = _halves(real, given)
    return _Source(
        model=module,
        example=_at_least_two(x[:_EXAMPLES] if observations is None else torch.cat([x, real])[:_EXAMPLES]),
        said=said,
        conditions={key: _at_least_two(tensor[:_EXAMPLES]) for key, tensor in given.items()},
        classes=classes,
        observations=real,
        measured=measured,
        calibration=calibration,
        name=name or type(module).__name__,
        description=f"{type(module).__name__}, exported from PyTorch",
        training={
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "torch": torch.__version__,
        },
    )


def _halves(x: Tensor, conditions: Mapping[str, Tensor]) -> tuple[Observed, Observed]:
    """What to take ranges from and what to measure on: every other observation each, or of fewer than 4 all."""
    # Every other: the first half may be of other classes.
    first, second = (slice(0, None, 2), slice(1, None, 2)) if len(x) >= 4 else (slice(None), slice(None))

    def some(part: slice, what: str) -> Observed:
        return Observed(x[part].numpy(), {name: rows[part].numpy() for name, rows in conditions.items()}, what)

    return some(first, "the caller's"), some(second, "the caller's" + (", others" if len(x) >= 4 else ""))


def _tensor(what: str, value: ArrayLike | Tensor) -> Tensor:
    """float32 or int64 [n, ...], on the CPU."""
    try:
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: a tensor or an array of numbers is expected: {error}") from error
    if tensor.is_complex():
        raise InputError(f"{what}: real numbers are expected, got {tensor.dtype}")
    tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64)
    if tensor.dim() == 0 or not tensor.numel():
        raise InputError(f"{what}: at least one row [n, …] is expected, got {list(tensor.shape)}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{what}: finite numbers are expected, got NaN or infinity; clean it")
    # A copy: the model may change it.
    return tensor.clone(memory_format=torch.contiguous_format)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {['n', *tensor.shape[1:]]}".replace("'", "")


def _at_least_two(tensor: Tensor) -> Tensor:
    # A batch of 1 hides what goes wrong between rows.
    return tensor if len(tensor) > 1 else torch.cat([tensor, tensor.roll(1, -1) if tensor.dim() > 1 else tensor])


def _class_names(
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None, conditions: Mapping[str, Tensor]
) -> dict[str, Sequence[str]]:
    if class_names is None:
        return {}
    whole = [name for name, tensor in conditions.items() if tensor.dim() == 1 and not tensor.is_floating_point()]
    if not isinstance(class_names, Mapping):
        if len(whole) != 1:
            raise InputError(
                f"class_names: exactly one integer condition of shape [n] is expected, got {whole or 'none'}; pass a "
                "mapping from condition to names"
            )
        class_names = {whole[0]: class_names}
    found: dict[str, Sequence[str]] = {}
    for name, names in class_names.items():
        if name not in whole:
            raise InputError(
                f"class_names: {name}: an integer condition of shape [n] is expected, got {whole or 'none'}"
            )
        if isinstance(names, str) or not all(isinstance(n, str) and n.isprintable() and n for n in names):
            raise InputError(f"class_names: {name}: a list of printable names is expected, got {names!r}")
        if len(set(names)) < len(names):
            raise InputError(f"class_names: {name}: different names are expected, got {list(names)}")
        values = conditions[name]
        if int(values.min()) < 0 or int(values.max()) >= len(names):
            raise InputError(
                f"class_names: {name}: a name for each of the classes 0 … {int(values.max())} is expected, got "
                f"{len(names)}"
            )
        found[name] = tuple(names)
    return found


def _understood(source: _Source) -> tuple[Adapted, bytes | None]:
    """The model's pure functions, checked in eager PyTorch, and the file of a prior that was fitted."""
    by, known = declared(source.model)
    said = source.said.over(known)
    fitted = said.prior if is_fitted(said.prior) else None
    if said.prior not in (None, "normal", "none", "sphere") and not fitted:
        raise InputError(f"prior: normal, none, sphere, {FITTED} is expected, got {said.prior!r}")
    if fitted:
        said = dataclasses.replace(said, prior=None)
    adapted = adapt(source.model, source.example, said, source=by, conditions=source.conditions, classes=source.classes)
    adapted = probe(adapted, tuple(said.dynamic or ()))
    adapted = _normalised(adapted, source)
    adapted = dataclasses.replace(adapted, recognised=(*adapted.recognised, *_left_out(source.model, adapted)))
    if not fitted:
        return adapted, None
    return _with_prior(adapted, source, fitted)


def _left_out(model: nn.Module, adapted: Adapted) -> list[str]:
    """A line that names the parameters which neither function reads: what they are for is lost."""

    def run() -> None:
        for component, module in adapted.modules.items():
            run_module(module, [tensor[:2] for tensor in adapted.given(component)])

    parameters = dict(model.named_parameters())
    used = {id(tensor) for tensor in used_tensors(run, parameters.values())}
    left = [name for name, tensor in parameters.items() if id(tensor) not in used]
    more = f" and {len(left) - 4} more" if len(left) > 4 else ""
    return [f"left out, since neither encode nor decode reads them: {', '.join(left[:4])}{more}"] if left else []


def _normalised(adapted: Adapted, source: _Source) -> Adapted:
    observation = dataclasses.replace(adapted.signature.observation, normalisation=source.normalisation)
    return dataclasses.replace(adapted, signature=dataclasses.replace(adapted.signature, observation=observation))


def _with_prior(adapted: Adapted, source: _Source, kind: str) -> tuple[Adapted, bytes]:
    signature = adapted.signature
    if len(signature.latents) > 1 or signature.latent.posterior.kind == "codes" or signature.latent.dynamic:
        raise ExportError(
            f"prior: {kind} is fitted to one latent of a fixed size that is no code; this model has the latents "
            f"{[latent.name for latent in signature.latents]}, posterior {signature.latent.posterior.kind}, dynamic "
            f"axes {list(signature.latent.dynamic)}"
        )
    rest = {name: tensor for name, tensor in adapted.examples.items() if name != signature.observation.name}
    if len(source.observations) > len(source.example) and any(c.components for c in signature.conditions):
        raise ExportError("prior: observations with conditions cannot be fitted; export without conditions")
    means = []
    for chunk in source.observations.split(_EXAMPLES):
        given = {signature.observation.name: chunk, **{name: tensor[: len(chunk)] for name, tensor in rest.items()}}
        means.append(run_module(adapted.modules["encoder"], adapted.given("encoder", given))[0].numpy())
    prior, content = fit_prior(kind, signature.latent.name, np.concatenate(means))
    latent = dataclasses.replace(signature.latent, prior=prior)
    line = f"prior: {kind}, fitted to the latents of {len(source.observations)} observations"
    return (
        dataclasses.replace(
            adapted,
            signature=dataclasses.replace(signature, latents=(latent,)),
            recognised=(*adapted.recognised, line),
        ),
        content,
    )


def _unseen(dataset: Dataset) -> Array:
    """Real observations that were not trained on; where none were kept for the test, those for validation."""
    return dataset.test if len(dataset.test) else dataset.validation


def _in_order(graphs: Sequence[Graph], made: Sequence[Made]) -> list[Graph]:
    """The graphs in the order of declaration: fp32, its variants, other formats."""
    ordered = []
    for graph in graphs:
        ordered.append(graph)
        if graph.variant == "fp32":
            ordered += [each.graph for each in made if each.graph.component == graph.component]
    return ordered


def _golden(
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


def _manifest(
    source: _Source,
    adapted: Adapted,
    golden: Golden,
    variants: Mapping[str, Mapping[str, Variant]],
    name: str | None,
    description: str | None,
    license: str | None,
) -> Manifest:
    signature = adapted.signature
    name = name or source.name
    return Manifest(
        package_name=re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "vae",
        name=name,
        description=description or source.description,
        license=license,
        reader="vae-runtime>=0.1",
        observation=signature.observation,
        conditions=signature.conditions,
        latents=signature.latents,
        likelihood=signature.likelihood,
        golden=golden,
        encoder=variants["encoder"],
        decoder=variants["decoder"],
        training=source.training,
        metrics=source.metrics,
        producer=_producer(adapted, [], None),
    )


def _sums(files: Mapping[str, bytes | Path]) -> bytes:
    """SHA256SUMS of files of which one at a time is in memory."""
    return b"".join(
        format_sums([(path, content if isinstance(content, bytes) else content.read_bytes())])
        for path, content in sorted(files.items())
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


def _producer(adapted: Adapted, graphs: Sequence[Graph], gate: Gate | None) -> dict[str, Any]:
    packages = ("torch", "onnx", "onnxscript")
    rewrites = {graph.component: list(graph.rewrites) for graph in graphs if graph.variant == "fp32" and graph.rewrites}
    return {
        "vae_export": vae_runtime.__version__,
        **{package: importlib.metadata.version(package) for package in packages},
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "recognised": list(adapted.recognised),
        **({"rewrites": rewrites} if rewrites else {}),
        **({"gate": asdict(gate)} if gate else {}),
    }


def _samples(adapted: Adapted, graphs: Sequence[Graph], fitted: bytes | None) -> bytes | None:
    """A sheet of samples as the exported decoder gives them, a row for each class; None where there can be none."""
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
            with np.load(io.BytesIO(fitted), allow_pickle=False) as arrays:
                parts = [arrays[f"{latent.name}/{part}"] for part in ("weights", "means", "factors")]
            drawn = Mixture(*parts).draw(0, 0, count, number).reshape(count, *latent.shape)
        else:
            drawn = noise.normal(0, 0, count, latent.shape, noise.stream_of(noise.PRIOR, number))
        given[latent.name] = torch.from_numpy(drawn)
    decoder = next(graph for graph in graphs if graph.component == "decoder" and graph.executor == "ort")
    x = open_graph(decoder)([tensor.numpy() for tensor in adapted.given("decoder", given)])[0]
    with contextlib.suppress(InputError):
        return png(grid(x, columns=across, value_range=signature.observation.range))
    return None
