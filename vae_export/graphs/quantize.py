"""An fp32 graph → fp16 and int8 graphs, each measured with the runtime that ships, and refused where it costs too much.

ONNX Runtime's quantizers do the quantizing; what is chosen here is which numbers they may touch. int8 weights have 7
bits: on processors without VNNI two products of unsigned by signed 8-bit numbers are added in 16 bits, which 8-bit
weights can overflow and 7-bit weights cannot (2 · 255 · 64 < 2¹⁵).
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
from .nodes import prune
from .sub_pixel import sub_pixel

Array = NDArray[Any]
# Tensors of fewer numbers stay in float32: they are biases and norms, which cost no size.
_SMALL = 256
# Rows in one calibration step at most, fewer of large ones: numbers of an input in one step.
_ROWS, _AT_ONCE = 32, 2**15
# The share of the numbers between two layers that 8 bits cover; those beyond are cut off, and the others finer.
_PERCENTILE = 99.9
# Layers with weights, and what may stand between them in 8 bits. A fixed order: the quantizer follows it.
LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = (
    *("Add", "Clip", "DepthToSpace", "Flatten", "LeakyRelu", "MaxPool", "Mul", "Relu", "Reshape", "Sigmoid", "Slice"),
    *("Squeeze", "Transpose", "Unsqueeze"),
)


@dataclass(frozen=True)
class Setting:
    """A way to make a variant: what is done, what makes the graph, and the calibration's data, if there were any."""

    method: str
    make: Callable[[], onnx.ModelProto]
    calibration: str | None = None
    integer: bool = True


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A graph with its large weights in float16, and a Cast of each to float32."""

    def narrow(tensor: onnx.TensorProto, value: Array) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]] | None:
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            return None
        stored = numpy_helper.from_array(half, f"{tensor.name}.half")
        return [stored], [onnx.helper.make_node("Cast", [stored.name], [tensor.name], to=onnx.TensorProto.FLOAT)]

    return _narrowed(model, narrow)


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A graph with its large weights in int8, and a product with their channels' scales."""
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


def dynamic_settings(model: onnx.ModelProto, folder: Path) -> Iterator[list[Setting]]:
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
        yield [Setting(f"dynamic int8 {method}", functools.partial(quantize, per_channel, kept))]


def static_settings(
    plain: Graph, model: onnx.ModelProto, feeds: Mapping[str, Array], said: str, folder: Path
) -> Iterator[list[Setting]]:
    """Convolutions: the ranges of what goes between them are those of calibration data."""
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    new_reader = _reader_of(feeds)

    def quantize(operators: Sequence[str], kept: Collection[str], clipped: bool) -> onnx.ModelProto:
        source, target = _marked(_with_phases(plain, model, kept, feeds), folder)
        with _quietly():
            quantize_static(
                source,
                target,
                new_reader(),
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
    layers = [*LAYERS, "DepthToSpace", "Relu", "Reshape", "Slice"]
    for operators, kept, where in (
        ([*LAYERS, *_BETWEEN], set(), ""),
        # 8 bits of logits, which reach far, are coarser than what comes of 8 bits before them.
        ([*LAYERS, *_BETWEEN], last, ", last layers in float32"),
        (layers, last, ", float32 between the layers and in the last ones"),
        (layers, first | last, ", float32 between the layers and in the first and last ones"),
    ):
        yield [
            Setting(
                f"static int8 per channel{where}, {f'{_PERCENTILE:g} % of the' if clipped else 'whole'} ranges",
                functools.partial(quantize, operators, kept, clipped),
                said,
            )
            for clipped in (True, False)
        ]


def _reader_of(feeds: Mapping[str, Array]) -> Callable[[], Any]:
    """A class of readers that give calibration data to a quantizer, a few rows at a time."""
    from onnxruntime.quantization import CalibrationDataReader

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

    return Reader


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
    layers = {node.name for node in model.graph.node if node.op_type in (*LAYERS, "ConvTranspose")}
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


def restore_contract(model: onnx.ModelProto) -> None:
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
