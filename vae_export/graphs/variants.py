"""An fp32 graph → fp16 and int8 graphs, each measured with the runtime that ships, and refused where it costs too much.

ONNX Runtime's quantizers do the quantizing; what is chosen here is which numbers they may touch. int8 weights have 7
bits: on processors without VNNI two products of unsigned by signed 8-bit numbers are added in 16 bits, which 8-bit
weights can overflow and 7-bit weights cannot (2 · 255 · 64 < 2¹⁵).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

import vae_runtime
from vae_runtime import noise
from vae_runtime.bundle import MANIFEST, SUMS
from vae_runtime.document import dump
from vae_runtime.errors import VaeError, require_number
from vae_runtime.manifest import Manifest, Quality, Refusal
from vae_runtime.vae import VAE

from .graph import IR_VERSION, OPSET, Graph, open_graph, require_same
from .rewrites import nodes_of, prune, sub_pixel

__all__ = ["CALIBRATED", "MEASURED", "PRECISION", "VARIANTS", "Gate", "Made", "Observed", "make_variants"]

Array = NDArray[Any]

# What `--variants` takes, in the order of declaration in the manifest; fp32 is always there.
VARIANTS = ("fp32", "fp16", "int8")
PRECISION = {"fp16": "float16", "int8": "int8"}
# Observations that are measured on, and that ranges are taken from, at most; of the latter as many prior draws again.
MEASURED, CALIBRATED = 2048, 256
# Tensors of fewer numbers stay in float32: they are biases and norms, which cost no size.
_SMALL = 256
# A variant's file is at most so much of fp32's: one that is not has too few weights that could be converted.
_MOST_OF_SIZE = 0.9
# Rows in one calibration step at most, fewer of large ones: numbers of an input in one step.
_ROWS, _AT_ONCE = 32, 2**15
# The share of the numbers between two layers that 8 bits cover; those beyond are cut off, and the others finer.
_PERCENTILE = 99.9
# Layers with weights, and what may stand between them in 8 bits. A fixed order: the quantizer follows it.
_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = (
    *("Add", "Clip", "DepthToSpace", "Flatten", "LeakyRelu", "MaxPool", "Mul", "Relu", "Reshape", "Sigmoid", "Slice"),
    *("Squeeze", "Transpose", "Unsqueeze"),
)


@dataclass(frozen=True)
class Gate:
    """What a variant may cost: its PSNR in dB is at least, its loss of ELBO in nats per observation at most this."""

    min_psnr: float = 35.0
    max_elbo_loss: float = 0.5

    def __post_init__(self) -> None:
        require_number("min_psnr", self.min_psnr, -1e6, 1e6)
        require_number("max_elbo_loss", self.max_elbo_loss, 0, 1e30)

    def refusal(self, psnr: float | None, elbo_change: float | None) -> str | None:
        """By how much a variant fails; None where it passes. A PSNR of None is that of equal answers."""
        said = []
        # Written so that NaN fails.
        if psnr is not None and not psnr >= self.min_psnr:
            said.append(f"PSNR {psnr:.1f} dB, {self.min_psnr - psnr:.1f} dB below the {self.min_psnr:g} dB asked for")
        if elbo_change is not None and not -elbo_change <= self.max_elbo_loss:
            over = -elbo_change - self.max_elbo_loss
            said.append(
                f"{-elbo_change:.2f} nats of ELBO lost, {over:.2f} more than the {self.max_elbo_loss:g} allowed"
            )
        return "; ".join(said) or None


@dataclass(frozen=True)
class Observed:
    """Real observations [n, …] with their conditions by name, and what they are."""

    x: Array
    conditions: Mapping[str, Array]
    what: str

    def first(self, n: int) -> Observed:
        """The first so many."""
        return replace(self, x=self.x[:n], conditions={name: rows[:n] for name, rows in self.conditions.items()})

    def __str__(self) -> str:
        return f"{len(self.x):,} observations of {self.what}"


@dataclass(frozen=True)
class Made:
    """A variant that passed the gate; `integer` if it computes in integers, whose rounding differs between devices."""

    graph: Graph
    quality: Quality
    integer: bool


def make_variants(
    graphs: Sequence[Graph],
    manifest: Manifest,
    wanted: Sequence[str],
    gate: Gate,
    *,
    measured: Observed,
    calibration: Observed,
    files: Mapping[str, bytes],
    folder: Path,
    progress: bool = False,
) -> tuple[list[Made], list[Refusal]]:
    """Make the variants of both components, and measure each beside the other component's fp32.

    Args:
        graphs: of both components; their fp32 graphs are made variants of.
        manifest: what the bundle says with fp32 alone.
        wanted: names out of `VARIANTS`.
        gate: what a variant may cost.
        measured: what is measured on.
        calibration: what ranges are taken from.
        files: the bundle's other files that sampling needs, by name.
        folder: an empty folder for the work.
        progress: say on stderr what was made.

    Returns:
        the variants that passed, and why the others did not.
    """
    made: list[Made] = []
    refused: list[Refusal] = []
    if not set(wanted) - {"fp32"}:
        return made, refused
    trial = _Trial(graphs, manifest, files, folder / "trial", measured.first(MEASURED))
    for component in manifest.components:
        plain = next(g for g in graphs if g.component == component and g.variant == "fp32")
        for name in (name for name in VARIANTS[1:] if name in wanted):
            place = folder / component / name
            place.mkdir(parents=True)
            found = _first_good(trial, plain, name, gate, calibration.first(CALIBRATED), place)
            if isinstance(found, Made):
                made.append(found)
                if progress:
                    print(f"{component}/{name}: {found.quality.method}", file=sys.stderr, flush=True)
            else:
                refused.append(found)
                print(f"left out: {component}/{name}: {found.reason}", file=sys.stderr, flush=True)
    return made, refused


def _first_good(
    trial: _Trial, plain: Graph, name: str, gate: Gate, calibration: Observed, folder: Path
) -> Made | Refusal:
    """The fastest of a variant's settings that passes the gate; of several of one speed the best."""

    def refusal(reason: str) -> Refusal:
        return Refusal(plain.component, name, reason)

    if plain.data:
        return refusal("the graph's weights are beside it, and those of one file alone are converted")
    if plain.component == "encoder" and any(latent.dtype == "int64" for latent in trial.manifest.latents):
        return refusal("the encoder gives codes, of which one is as far from the next as from any other")
    failed = ["there are no weights of layers that could be made smaller"]
    for level, settings in enumerate(_settings(trial, plain, name, calibration, folder)):
        passed: list[Made] = []
        for index, setting in enumerate(settings):
            try:
                model = setting.make()
                _contract(model)
            except Exception as error:  # of the quantizer, which has errors of every kind
                said = (str(error).splitlines() or [type(error).__name__])[0]
                failed.append(f"{setting.method}: ONNX Runtime's quantizer failed: {said}")
                print(f"{plain.component}/{name}: {failed[-1]}; going on without", file=sys.stderr, flush=True)
                continue
            path = folder / f"{level}-{index}.onnx"
            content = model.SerializeToString(deterministic=True)
            if len(content) > _MOST_OF_SIZE * len(plain.content):
                failed.append(
                    f"{setting.method}: a file of at most {100 * _MOST_OF_SIZE:.0f} % of fp32's is expected, got "
                    f"{100 * len(content) / len(plain.content):.0f} %"
                )
                continue
            path.write_bytes(content)
            graph = replace(plain, variant=name, source=path, exporter=f"{plain.exporter}; {setting.method}")
            try:
                quality = trial.measure(graph, setting.method, setting.calibration)
            except VaeError as error:
                failed.append(f"{setting.method}: {error}")
                continue
            reason = gate.refusal(quality.psnr, quality.elbo_change)
            if reason is None:
                passed.append(Made(graph, quality, setting.integer))
            else:
                failed.append(f"{setting.method}: {reason}")
        if passed:
            return max(passed, key=lambda made: math.inf if made.quality.psnr is None else made.quality.psnr)
    # The last one was the most careful.
    return refusal(failed[-1])


@dataclass(frozen=True)
class _Setting:
    """A way to make a variant: what is done, what makes the graph, and the calibration's data, if there were any."""

    method: str
    make: Callable[[], onnx.ModelProto]
    calibration: str | None = None
    integer: bool = True


def _settings(trial: _Trial, plain: Graph, name: str, calibration: Observed, folder: Path) -> Iterator[list[_Setting]]:
    """The ways to make a variant, those of one speed together, from the fastest to the most careful."""
    model = onnx.load_model_from_string(plain.content)
    if name == "fp16":
        halved = _half(model)
        if halved is not None:
            yield [_Setting("float16 weights, computed in float32", lambda: halved, integer=False)]
        return
    for index, node in enumerate(model.graph.node):
        # Layers are chosen by name.
        node.name = node.name or f"node_{index}"
    if not any(node.op_type in (*_LAYERS, "ConvTranspose") for node in model.graph.node):
        return
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    convolutions = [node for node in nodes_of(model) if node.op_type in ("Conv", "ConvTranspose")]
    # Along one axis or three ONNX Runtime's convolutions are slower in integers, up to twelve times.
    slow = any(weights.get(node.input[1], 4) != 4 for node in convolutions)
    if convolutions and not slow:
        feeds = trial.feeds(plain.component, calibration)
        said = str(calibration) + (" and as many draws from the prior" if trial.draws(plain.component) else "")
        yield from _static(plain, model, feeds, said, folder)
    elif not convolutions:
        yield from _dynamic(model, folder)
    bytes_alone = _eighth(model)
    if bytes_alone is not None:
        yield [_Setting("int8 weights per channel, computed in float32", lambda: bytes_alone, integer=False)]


# Halves and quarters of weights, widened when a session is made: ONNX Runtime folds what has no input.


def _half(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A graph with its large weights in float16, and a Cast of each to float32."""

    def narrow(tensor: onnx.TensorProto, value: Array) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]] | None:
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            return None
        stored = numpy_helper.from_array(half, f"{tensor.name}.half")
        return [stored], [onnx.helper.make_node("Cast", [stored.name], [tensor.name], to=onnx.TensorProto.FLOAT)]

    return _narrowed(model, narrow)


def _eighth(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A graph with its large weights in int8, and a product with their channels' scales."""
    axes = {}
    for node in model.graph.node:
        if node.op_type in (*_LAYERS, "ConvTranspose") and len(node.input) > 1:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            transposed = node.op_type == "Gemm" and attributes.get("transB", 0)
            axes[node.input[1]] = 0 if node.op_type == "Conv" or transposed else 1

    def narrow(tensor: onnx.TensorProto, value: Array) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]] | None:
        axis = axes.get(tensor.name)
        if axis is None or value.ndim < 2 or not np.isfinite(value).all():
            return None
        greatest = np.abs(value).max(axis=tuple(i for i in range(value.ndim) if i != axis), keepdims=True)
        scale = (np.where(greatest > 0, greatest, 1) / 127).astype(np.float32)
        numbers = np.rint(value / scale).astype(np.int8)
        stored = numpy_helper.from_array(numbers, f"{tensor.name}.int8")
        factors = numpy_helper.from_array(scale, f"{tensor.name}.scale")
        wide = f"{tensor.name}.wide"
        return [stored, factors], [
            onnx.helper.make_node("Cast", [stored.name], [wide], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [wide, factors.name], [tensor.name]),
        ]

    return _narrowed(model, narrow)


def _narrowed(
    model: onnx.ModelProto,
    narrow: Callable[[onnx.TensorProto, Array], tuple[list[onnx.TensorProto], list[onnx.NodeProto]] | None],
) -> onnx.ModelProto | None:
    """A graph with float32 weights stored otherwise and widened by nodes before all others; None if there are none."""
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    changed = 0
    for tensor in model.graph.initializer:
        found = None
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= _SMALL:
            found = narrow(tensor, numpy_helper.to_array(tensor))
        tensors += found[0] if found else [tensor]
        nodes += found[1] if found else []
        changed += found is not None
    if not changed:
        return None
    small = onnx.ModelProto()
    small.CopyFrom(model)
    del small.graph.initializer[:], small.graph.node[:]
    small.graph.initializer.extend(tensors)
    small.graph.node.extend([*nodes, *model.graph.node])
    return small


# Integer arithmetic, by ONNX Runtime's quantizers.


def _dynamic(model: onnx.ModelProto, folder: Path) -> Iterator[list[_Setting]]:
    """Dense layers: the ranges of what goes between them are found as they run."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantize(per_channel: bool, kept: Collection[str] = ()) -> onnx.ModelProto:
        source, target = _marked(model, folder)
        with _quietly():
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul"],
                per_channel=per_channel,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                # A Gemm is quantized as the MatMul of this name.
                nodes_to_exclude=[name for node in kept for name in (node, f"{node}_MatMul")],
            )
        return _one_zero(onnx.load_model(target))

    first, last = _ends(model)
    for per_channel, kept, method in (
        (False, set[str](), "per tensor"),
        (True, set[str](), "per channel"),
        (True, last, "per channel, last layers in float32"),
        (True, first | last, "per channel, first and last layers in float32"),
    ):
        yield [_Setting(f"dynamic int8 {method}", functools.partial(quantize, per_channel, kept))]


def _static(
    plain: Graph, model: onnx.ModelProto, feeds: Mapping[str, Array], said: str, folder: Path
) -> Iterator[list[_Setting]]:
    """Convolutions: the ranges of what goes between them are those of calibration data."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    n = len(next(iter(feeds.values())))
    size = max(math.prod(rows.shape[1:]) for rows in feeds.values())
    step = max(1, min(_ROWS, _AT_ONCE // size))
    parts = [{name: rows[i : i + step] for name, rows in feeds.items()} for i in range(0, n, step)]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.set_range(0, len(parts))

        def __len__(self) -> int:
            return len(parts)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.rest = iter(parts[start_index:end_index])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.rest, None)

    def quantize(operators: Sequence[str], kept: Collection[str], clipped: bool) -> onnx.ModelProto:
        source, target = _marked(_with_phases(plain, model, kept, feeds), folder)
        with _quietly():
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(operators),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(kept),
                calibrate_method=CalibrationMethod.Percentile if clipped else CalibrationMethod.MinMax,
                # Under this name, steps of any method: by itself it keeps the numbers between all layers of all rows.
                extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1} if clipped else {},
            )
        return onnx.load_model(target)

    first, last = _ends(model)
    layers = [*_LAYERS, "DepthToSpace", "Relu", "Reshape", "Slice"]
    for operators, kept, where in (
        ([*_LAYERS, *_BETWEEN], set(), ""),
        # 8 bits of logits, which reach far, are coarser than what comes of 8 bits before them.
        ([*_LAYERS, *_BETWEEN], last, ", last layers in float32"),
        (layers, last, ", float32 between the layers and in the last ones"),
        (layers, first | last, ", float32 between the layers and in the first and last ones"),
    ):
        yield [
            _Setting(
                f"static int8 per channel{where}, {f'{_PERCENTILE:g} % of the' if clipped else 'whole'} ranges",
                functools.partial(quantize, operators, kept, clipped),
                said,
            )
            for clipped in (True, False)
        ]


def _with_phases(
    plain: Graph, model: onnx.ModelProto, kept: Collection[str], feeds: Mapping[str, Array]
) -> onnx.ModelProto:
    """The graph with sub-pixel convolutions, held against the one given, which is taken where they differ."""
    changed, count = sub_pixel(model, kept)
    if count:
        given = [feeds[name][:_ROWS] for name in plain.inputs]
        graph = replace(plain, source=changed.SerializeToString())
        try:
            require_same(plain.outputs, open_graph(plain)(given), open_graph(graph)(given))
        except VaeError:
            return model
    return changed


def _ends(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """The names of the layers with weights that no other one leads to, and of those that lead to no other one."""
    layers = {node.name for node in model.graph.node if node.op_type in (*_LAYERS, "ConvTranspose")}
    behind: dict[str, set[str]] = {}
    first: set[str] = set()
    leading: set[str] = set()
    for node in model.graph.node:
        before = set().union(*(behind.get(name, set()) for name in node.input))
        if node.name in layers:
            leading |= before
            first |= set() if before else {node.name}
        for name in node.output:
            behind[name] = before | ({node.name} & layers)
    return first, layers - leading


def _marked(model: onnx.ModelProto, folder: Path) -> tuple[str, str]:
    """Write a graph for a quantizer; the paths of it and of what the quantizer shall write."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    # Says that its shapes are inferred and its layers fused, which else the quantizer asks for on the root logger.
    named.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    source, target = folder / "source.onnx", folder / "quantized.onnx"
    source.write_bytes(named.SerializeToString(deterministic=True))
    return str(source), str(target)


def _one_zero(model: onnx.ModelProto) -> onnx.ModelProto:
    """Zero points of weights, which are all 0, as one number: kernels then leave out a sum for each channel."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger" and len(node.input) > 3 and node.input[3] in values:
            zeros = numpy_helper.to_array(values[node.input[3]])
            if zeros.ndim and not zeros.any():
                name = f"{node.input[3]}.one"
                model.graph.initializer.append(numpy_helper.from_array(np.zeros((), zeros.dtype), name))
                node.input[3] = name
    prune(model)
    return model


def _contract(model: onnx.ModelProto) -> None:
    """Make a graph again what the format asks for: its opset and version, and no notes."""
    del model.metadata_props[:], model.graph.value_info[:], model.opset_import[1:]
    model.opset_import[0].CopyFrom(onnx.helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "vae-export", ""
    onnx.checker.check_model(model, full_check=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the quantizers' notes, which are on the root logger and on stdout."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


class _Trial:
    """A bundle of the fp32 graphs, to which one variant at a time is added to be measured by the runtime."""

    def __init__(
        self, graphs: Sequence[Graph], manifest: Manifest, files: Mapping[str, bytes], folder: Path, measured: Observed
    ) -> None:
        self.manifest, self.measured, self._folder = manifest, measured, folder
        self._sums: dict[str, str] = {}
        self._plain = {v.component: v for v in manifest.variants if v.name == "fp32"}
        for name, content in (*files.items(), (manifest.golden.file, b"")):
            self._write(name, content)
        for graph in graphs:
            if graph.variant == "fp32":
                place = f"{graph.component}/fp32"
                self._write(f"{place}/{graph.file}", graph.content)
                for name, source in graph.data.items():
                    self._write(f"{place}/{name}", source if isinstance(source, bytes) else source.read_bytes())
        self._fp32 = self._load(None)
        self._expected: dict[str, dict[str, Array]] = {}
        self._elbo: Array | None = None
        self._reason: str | None = None

    def feeds(self, component: str, observed: Observed) -> dict[str, Array]:
        """A component's inputs for calibration: observations; or samples of their latents and as many prior draws."""
        vae, manifest, n = self._fp32, self.manifest, len(observed.x)
        conditions = dict(observed.conditions)
        given: dict[str, Array] = {manifest.observation.name: observed.x}
        repeated = 1
        if component == "encoder":
            for number, latent in enumerate(manifest.latents):
                if latent.posterior.noise:
                    stream = noise.stream_of(noise.POSTERIOR, number)
                    given[latent.posterior.noise] = noise.normal(1, 0, n, latent.shape, stream)
        else:
            given = self._latents(vae, observed, sample=True)
            if self.draws(component):
                repeated = 2
                drawn = vae.prior(n, seed=1)
                drawn = drawn if isinstance(drawn, Mapping) else {manifest.latent.name: drawn}
                given = {name: np.concatenate([rows, drawn[name]]) for name, rows in given.items()}
        given |= {
            condition.name: np.concatenate([np.asarray(conditions[condition.name])] * repeated)
            for condition in manifest.conditions
            if component in condition.components
        }
        return {tensor.name: given[tensor.name] for tensor in manifest.inputs(component)}

    def draws(self, component: str) -> bool:
        """Whether `feeds` has draws from the prior beside what observations give."""
        return component == "decoder" and all(latent.prior.kind != "none" for latent in self.manifest.latents)

    def measure(self, graph: Graph, method: str, calibration: str | None) -> Quality:
        """What a graph of one component costs beside the other component's fp32."""
        content = graph.content
        vae = self._load(graph)
        component = graph.component
        if self._elbo is None and self._reason is None:
            self._elbo, self._reason = self._score(self._fp32)
        if component not in self._expected:
            self._expected[component] = self._answers(self._fp32, component)
        expected, found = self._expected[component], self._answers(vae, component)
        bounds = self.manifest.observation.range if component == "decoder" else None
        figures = [_psnr(expected[name], found[name], bounds) for name in expected]
        psnr, peak = min(figures, key=lambda figure: math.inf if figure[0] is None else figure[0])
        change = None
        if self._elbo is not None:
            own, _ = self._score(vae)
            change = float(np.mean(own - self._elbo)) if own is not None else None
        return Quality(
            method=method,
            size=len(content),
            psnr=psnr,
            peak=peak,
            elbo_change=change,
            measured=str(self.measured),
            calibration=calibration,
            reason=self._reason,
        )

    def _answers(self, vae: VAE, component: str) -> dict[str, Array]:
        """The encoder's mu or value of each latent, or the decoder's mean for fp32's latents of the observations.

        Where no ELBO tells what a wrong logvar costs, the encoder's logvar counts by itself.
        """
        observed = self.measured
        if component == "encoder":
            found = self._latents(vae, observed)
            if self._elbo is None:
                encoded = vae.encode(observed.x, conditions=observed.conditions or None, seed=0)
                parts = encoded if isinstance(encoded, Mapping) else {self.manifest.latent.name: encoded}
                found |= {
                    f"{name}'s logvar": part.logvar
                    for name, part in parts.items()
                    if isinstance(part, vae_runtime.Posterior)
                }
            return found
        z = self._latents(self._fp32, observed)
        given = z if len(self.manifest.latents) > 1 else z[self.manifest.latent.name]
        return {"mean": vae.decode(given, conditions=observed.conditions or None, seed=0)}

    def _latents(self, vae: VAE, observed: Observed, sample: bool = False) -> dict[str, Array]:
        """The latents of observations by name; drawn ones where asked for and there is a distribution to draw from."""
        encoded = vae.encode(observed.x, conditions=observed.conditions or None, seed=0)
        parts = encoded if isinstance(encoded, Mapping) else {self.manifest.latent.name: encoded}
        found = {
            name: part.sample(seed=0) if sample and isinstance(part, vae_runtime.Posterior) else part.mode()
            for name, part in parts.items()
        }
        for number, latent in enumerate(self.manifest.latents):
            if sample and latent.name not in found:
                # Noise that the decoder takes and nothing infers.
                stream = noise.stream_of(noise.PRIOR, number)
                found[latent.name] = noise.normal(2, 0, len(observed.x), latent.shape, stream)
        return found

    def _score(self, vae: VAE) -> tuple[Array | None, str | None]:
        scores = vae.score(self.measured.x, conditions=self.measured.conditions or None, seed=0)
        return scores.elbo, scores.reason

    def _load(self, graph: Graph | None) -> VAE:
        variants = {component: {"fp32": plain} for component, plain in self._plain.items()}
        sums = dict(self._sums)
        if graph is not None:
            folder = f"{graph.component}/{graph.variant}"
            own = replace(self._plain[graph.component], name=graph.variant, folder=folder, data=None)
            variants[graph.component][graph.variant] = own
            self._write(own.path, graph.content)
            sums[own.path] = self._sums.pop(own.path)
        manifest = replace(self.manifest, encoder=variants["encoder"], decoder=variants["decoder"])
        self._write(MANIFEST, dump(manifest).encode())
        sums[MANIFEST] = self._sums.pop(MANIFEST)
        lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items()))
        (self._folder / SUMS).write_text(lines, encoding="utf-8")
        return vae_runtime.load(self._folder, variant=None if graph is None else graph.variant)

    def _write(self, path: str, content: bytes) -> None:
        place = self._folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        self._sums[path] = hashlib.sha256(content).hexdigest()


def _psnr(expected: Array, found: Array, bounds: tuple[float, float] | None) -> tuple[float | None, float]:
    """Peak signal-to-noise ratio in dB, None where nothing differs, and the peak."""
    wide = expected.astype(np.float64)
    low, high = bounds or (float(wide.min()), float(wide.max()))
    peak = high - low if high > low else 1.0
    error = float(np.mean((found - wide) ** 2))
    if error == 0:
        return None, peak
    # Of answers that are not finite there is none, and no gate lets it pass.
    return (10 * math.log10(peak**2 / error) if math.isfinite(error) else math.nan), peak
