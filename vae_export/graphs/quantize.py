"""Turn fp32 graphs into graphs with float16 or int8 weights.

ONNX Runtime's quantizers compute the int8 graphs; this module chooses the nodes that they quantize. int8 weights use
7 bits: processors without VNNI add two products of unsigned by signed 8-bit numbers in 16 bits, which 8-bit weights can
overflow and 7-bit weights cannot (2 · 255 · 64 < 2¹⁵).
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vae_runtime.errors import VaeError

from .graph import IR_VERSION, OPSET, Graph, open_graph, require_same
from .nodes import NodeIndex, nodes_of, prune
from .rewrites import shapes_first
from .sub_pixel import sub_pixel

Array = NDArray[Any]
# Smaller tensors stay in float32: they are biases and norms, which take little space.
_MIN_SIZE = 256
# A calibration step has at most this many rows, and at most this many numbers of one input.
_MAX_ROWS, _MAX_NUMBERS = 32, 2**15
# The share of the values between two layers that 8 bits cover: the rest is cut off, so that the steps are finer.
_PERCENTILE = 99.9
# Layers with weights, and the operators between them that can run in 8 bits. The quantizer follows this order.
LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = (
    *("Add", "Clip", "DepthToSpace", "Flatten", "LeakyRelu", "MaxPool", "Mul", "Relu", "Reshape", "Sigmoid", "Slice"),
    *("Squeeze", "Transpose", "Unsqueeze"),
)


@dataclass(frozen=True)
class Setting:
    """A way to make a variant.

    `method` describes it, `make` returns the graph, and `calibration` describes the calibration data, if any. `integer`
    says whether the graph computes in integers.
    """

    method: str
    make: Callable[[], onnx.ModelProto]
    calibration: str | None = None
    integer: bool = True


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a graph with its large weights in float16, each with a Cast to float32; None if there are none."""

    def narrow(tensor: onnx.TensorProto, value: Array) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]] | None:
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            return None
        stored = numpy_helper.from_array(half, f"{tensor.name}.half")
        return [stored], [onnx.helper.make_node("Cast", [stored.name], [tensor.name], to=onnx.TensorProto.FLOAT)]

    return _narrowed(model, narrow)


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a graph with its large weights in int8, each multiplied by a scale per channel; None if there are none."""
    axes = {}
    for node in model.graph.node:
        if node.op_type in (*LAYERS, "ConvTranspose") and len(node.input) > 1:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            transposed = node.op_type == "Gemm" and attributes.get("transB", 0)
            axes[node.input[1]] = 0 if node.op_type == "Conv" or transposed else 1

    def narrow(tensor: onnx.TensorProto, value: Array) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]] | None:
        axis = axes.get(tensor.name)
        if axis is None or value.ndim < 2 or not np.isfinite(value).all():
            return None
        peak = np.abs(value).max(axis=tuple(i for i in range(value.ndim) if i != axis), keepdims=True)
        scale = (np.where(peak > 0, peak, 1) / 127).astype(np.float32)
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
    """Return a graph whose float32 weights are stored as `narrow` says; None if no weight changes.

    `narrow` returns the tensors to store instead of a weight and the nodes that restore it, or None to keep the weight.
    """
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    changed = 0
    for tensor in model.graph.initializer:
        replacement = None
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= _MIN_SIZE:
            replacement = narrow(tensor, numpy_helper.to_array(tensor))
        tensors += replacement[0] if replacement else [tensor]
        nodes += replacement[1] if replacement else []
        changed += replacement is not None
    if not changed:
        return None
    small = onnx.ModelProto()
    small.CopyFrom(model)
    del small.graph.initializer[:], small.graph.node[:]
    small.graph.initializer.extend(tensors)
    small.graph.node.extend([*nodes, *model.graph.node])
    return small


def dynamic_settings(model: onnx.ModelProto, folder: Path) -> Iterator[list[Setting]]:
    """Yield the settings for dense layers: each call finds the ranges of the values between the layers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantize(per_channel: bool, kept: Collection[str] = ()) -> onnx.ModelProto:
        source, target = _marked(model, folder)
        with _quiet():
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul"],
                per_channel=per_channel,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                # The quantizer turns a Gemm into a MatMul of this second name.
                nodes_to_exclude=[name for node in kept for name in (node, f"{node}_MatMul")],
            )
        return _with_scalar_zeros(onnx.load_model(target))

    first, last = _ends(model)
    for per_channel, kept, method in (
        (False, set[str](), "per tensor"),
        (True, set[str](), "per channel"),
        (True, last, "per channel, last layers in float32"),
        (True, first | last, "per channel, first and last layers in float32"),
    ):
        yield [Setting(f"dynamic int8 {method}", functools.partial(quantize, per_channel, kept))]


def static_settings(
    plain: Graph, model: onnx.ModelProto, feeds: Mapping[str, Array], calibration: str, folder: Path
) -> Iterator[list[Setting]]:
    """Yield the settings in which calibration data fix the ranges of the values between the layers."""
    quantize = functools.partial(_quantize_static, plain, model, feeds, folder)

    def clippings(method: str, operators: Sequence[str], kept: Collection[str]) -> list[Setting]:
        return [
            Setting(
                f"static int8 {method}, {f'{_PERCENTILE:g} % of the' if clipped else 'whole'} ranges",
                functools.partial(quantize, operators, kept, clipped),
                calibration,
            )
            for clipped in (True, False)
        ]

    if is_dense(model):
        yield clippings("per tensor", ["Gemm"], set())
        return
    first, last = (_with_what_follows(model, ends) if at_end else ends for at_end, ends in enumerate(_ends(model)))
    between = [*LAYERS, *_BETWEEN]
    layers = [*LAYERS, "DepthToSpace", "Relu", "Reshape", "Slice", "Transpose"]
    for operators, kept, where in (
        (between, set(), ""),
        # Logits have a wide range, so 8 bits of them are coarser than 8 bits of earlier values.
        (between, last, ", last layers in float32"),
        (layers, last, ", float32 between the layers and in the last ones"),
        (layers, first | last, ", float32 between the layers and in the first and last ones"),
    ):
        yield clippings(f"per channel{where}", operators, kept)


def is_dense(model: onnx.ModelProto) -> bool:
    """Return whether all layers with weights are dense layers of ONNX's operator Gemm."""
    layers = [node for node in nodes_of(model) if node.op_type in (*LAYERS, "ConvTranspose")]
    weights = {tensor.name for tensor in model.graph.initializer}
    return bool(layers) and all(node.op_type == "Gemm" and node.input[1] in weights for node in layers)


def _quantize_static(
    plain: Graph,
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    folder: Path,
    operators: Sequence[str],
    kept: Collection[str],
    clipped: bool,
) -> onnx.ModelProto:
    """Return a graph that computes these operators in 8 bits, except for the nodes that are `kept`."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    dense = is_dense(model)
    model = _with_weights_in_order(model)
    source, target = _marked(shapes_first(model) if dense else _with_phases(plain, model, kept, feeds), folder)
    options: dict[str, Any] = {
        # With a zero point for each channel, as a DequantizeLinear has them, ONNX Runtime's dense layers add up the
        # values of each row first, which takes as long as a batch of one.
        "TensorQuantOverrides": {
            node.input[1]: [{"symmetric": True, "reduce_range": True}]
            for node in model.graph.node
            if node.op_type == "Gemm"
        }
    }
    if dense:
        # ONNX Runtime writes the sums of a dense layer as 8 bits where another one follows, and as float32 elsewhere.
        options["OpTypesToExcludeOutputQuantization"] = list(operators)
    if clipped:
        # Despite its name, CalibStridedMinMax sets the step of every method. Without it the quantizer keeps the values
        # between all layers for all rows.
        options |= {"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1}
    with _quiet():
        quantize_static(
            source,
            target,
            _reader_of(feeds, one=plain.batch_of_one)(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(kept),
            calibrate_method=CalibrationMethod.Percentile if clipped else CalibrationMethod.MinMax,
            extra_options=options,
        )
    return onnx.load_model(target)


def _with_weights_in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph whose dense layers take their weights as they are stored.

    In WebAssembly ONNX Runtime transposes other weights of 8 bits in each call, which takes as long as two products.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = NodeIndex(changed)
    for node in graph.nodes:
        transposed = next((each for each in node.attribute if each.name == "transB"), None)
        weight = graph.constant(node.input[1]) if node.op_type == "Gemm" and transposed and transposed.i else None
        if transposed and weight is not None:
            node.input[1] = graph.add(f"{node.input[1]}.transposed", weight.T)
            transposed.i = 0
    prune(changed)
    return changed


def _reader_of(feeds: Mapping[str, Array], *, one: bool) -> Callable[[], Any]:
    """Return a class whose objects pass calibration data to a quantizer, a few rows at a time, or one."""
    from onnxruntime.quantization import CalibrationDataReader

    n = len(next(iter(feeds.values())))
    size = max(math.prod(rows.shape[1:]) for rows in feeds.values())
    step = 1 if one else max(1, min(_MAX_ROWS, _MAX_NUMBERS // size))
    parts = [{name: rows[i : i + step] for name, rows in feeds.items()} for i in range(0, n, step)]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.set_range(0, len(parts))

        def __len__(self) -> int:
            return len(parts)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.remaining = iter(parts[start_index:end_index])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.remaining, None)

    return Reader


def _with_phases(
    plain: Graph, model: onnx.ModelProto, kept: Collection[str], feeds: Mapping[str, Array]
) -> onnx.ModelProto:
    """Return the graph with sub-pixel convolutions, or the given one if their answers differ."""
    changed, count = sub_pixel(model, kept)
    if count:
        inputs = [feeds[name][:_MAX_ROWS] for name in plain.inputs]
        graph = replace(plain, source=changed.SerializeToString())
        try:
            require_same(plain.outputs, open_graph(plain)(inputs), open_graph(graph)(inputs))
        except VaeError:
            return model
    return changed


def _ends(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """Return the names of the first and of the last layers with weights: those without another before or after."""
    layers = {node.name for node in model.graph.node if node.op_type in (*LAYERS, "ConvTranspose")}
    # The layers that each tensor depends on, by the tensor's name.
    upstream: dict[str, set[str]] = {}
    first: set[str] = set()
    not_last: set[str] = set()
    for node in model.graph.node:
        before = set().union(*(upstream.get(name, set()) for name in node.input))
        if node.name in layers:
            not_last |= before
            first |= set() if before else {node.name}
        for name in node.output:
            upstream[name] = before | ({node.name} & layers)
    return first, layers - not_last


def _with_what_follows(model: onnx.ModelProto, names: Collection[str]) -> set[str]:
    """Return these names of nodes, and those of the nodes that depend on them."""
    found, written = set(names), set[str]()
    for node in model.graph.node:
        if node.name in found or written.intersection(node.input):
            found.add(node.name)
            written.update(node.output)
    return found


def _marked(model: onnx.ModelProto, folder: Path) -> tuple[str, str]:
    """Write a graph for a quantizer; return its path and the path for the quantizer's result."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    # Without this mark the quantizer logs advice to infer shapes and fuse layers first.
    marked.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    source, target = folder / "source.onnx", folder / "quantized.onnx"
    source.write_bytes(marked.SerializeToString(deterministic=True))
    return str(source), str(target)


def _with_scalar_zeros(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace arrays of zero points that are all 0 by one scalar 0, which spares the kernels a sum per channel."""
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


def restore_contract(model: onnx.ModelProto) -> None:
    """Restore what the bundle format requires of a graph: the opset, the IR version, and no metadata."""
    del model.metadata_props[:], model.graph.value_info[:], model.opset_import[1:]
    model.opset_import[0].CopyFrom(onnx.helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "vae-export", ""
    onnx.checker.check_model(model, full_check=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizers' notes on the root logger and on stdout."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
