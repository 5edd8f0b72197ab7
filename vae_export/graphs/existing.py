"""Read a graph that exists already, and give its inputs and outputs the names and meanings that a bundle needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from vae_runtime.errors import error_line
from vae_runtime.manifest import TensorSpec

from ..errors import ExportError
from .files import INLINE, RANDOM, graphs_of, inlined, load_weights, strip, weight_bytes
from .nodes import copy_of, names_read

# The nodes that are added have the form of opset 11 and later.
_MIN_OPSET = 11
_INNER = "inner."
_KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8, TensorProto.UINT8,
             TensorProto.UINT16, TensorProto.UINT32, TensorProto.BOOL)  # fmt: skip
# Operators of a graph that rounds to integers.
_QUANTIZED = re.compile("(Dynamic)?Quantize|QLinear|Q(Attention|Gemm)|(MatMul|Conv)Integer")
# The second half of `latent_parameters` is the logarithm of a variance that diffusers clips to these numbers.
CLIPPED = (-30.0, 20.0)


@dataclass(frozen=True)
class Axis:
    """One axis of a graph's input or output: its size, or the name of a size that may vary; None of both is unknown."""

    size: int | None
    name: str | None


@dataclass(frozen=True)
class Edge:
    """An input or output of a graph: its name and its axes, the batch included.

    `dtype` is "float32" or "int64", which it has in a bundle, and `stored` the numpy dtype that the graph has.
    """

    name: str
    dtype: str
    stored: str
    axes: tuple[Axis, ...] | None


class ExistingGraph:
    """An ONNX graph that another program made, and the changes to it."""

    def __init__(self, path: Path, weights: Path) -> None:
        """Read a graph.

        Args:
            path: its file.
            weights: the folder of its separate weight files.

        Raises:
            ExportError: it is no ONNX graph, draws random numbers, is too large, or has an opset or tensors that no
                bundle can have.
        """
        self.path = path
        try:
            self.model = onnx.load_model_from_string(path.read_bytes())
            load_weights(self.model, weights)
            self.model = inlined(self.model)
        except Exception as error:  # protobuf and ONNX raise errors of their own
            raise ExportError(f"{path}: expected an ONNX graph and its weights: {error_line(error)}") from error
        if not self.model.HasField("graph"):
            raise ExportError(f"{path}: expected an ONNX graph, got a file without one; give its path")
        self.opset = max(
            (each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), default=0
        )
        if self.opset < _MIN_OPSET:
            raise ExportError(
                f"{path}: expected opset {_MIN_OPSET} or later, got {self.opset}; convert the graph with "
                "onnx.version_converter.convert_version"
            )
        for node in (node for graph in graphs_of(self.model) for node in graph.node):
            if node.op_type in RANDOM or (node.op_type == "Dropout" and any(node.input[2:])):
                raise ExportError(
                    f"{path}: expected a graph without random operators, got {node.op_type}; export the encoder so "
                    "that it returns the parameters of its distribution, as latent_parameters"
                )
        if weight_bytes(self.model) > INLINE:
            raise ExportError(f"{path}: expected weights of less than 2 GiB, got more; export the model itself")
        strip(self.model)
        graph = self.model.graph
        initialized = {tensor.name for tensor in graph.initializer}
        # Before IR version 4, an initializer was also listed as an input.
        for index in reversed(range(len(graph.input))):
            if graph.input[index].name in initialized:
                del graph.input[index]
        _sort(graph)
        self.inputs = [self._edge(value) for value in graph.input]
        self.outputs = [self._edge(value) for value in graph.output]
        self.original = self.model.SerializeToString()
        """The graph as it was given, to compare with."""
        floats = [tensor for tensor in graph.initializer if tensor.data_type in _FLOATS]
        self.parameters = sum(int(np.prod(tensor.dims)) for tensor in floats)
        """The number of floats in the graph's weights."""
        half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in floats)
        half = half or any(edge.stored == "float16" for edge in self.inputs)
        operators = {node.op_type for part in graphs_of(self.model) for node in part.node}
        self.precision = "int8" if any(map(_QUANTIZED.match, operators)) else "float16" if half else "float32"
        """The numbers that the graph computes in."""
        self.mixes_rows = any(operator.startswith("DynamicQuantize") for operator in operators)
        """Whether the scales of integers follow from all rows of a batch."""
        self._count = 0

    def _edge(self, value: onnx.ValueInfoProto) -> Edge:
        kind = value.type.tensor_type
        if kind.elem_type not in (*_FLOATS, *_INTEGERS):
            raise ExportError(f"{self.path}: {value.name}: expected floats or integers, got type {kind.elem_type}")
        axes = tuple(
            Axis(dim.dim_value if dim.dim_value > 0 else None, dim.dim_param or None) for dim in kind.shape.dim
        )
        dtype = "float32" if kind.elem_type in _FLOATS else "int64"
        stored = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        return Edge(value.name, dtype, stored, axes if kind.HasField("shape") else None)

    def _node(self, operator: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        name = output or self._fresh(operator)
        self.model.graph.node.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def _fresh(self, base: str) -> str:
        self._count += 1
        return f"added.{base}_{self._count}"

    def _constant(self, value: object, dtype: type) -> str:
        name = self._fresh("constant")
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def rename(self) -> None:
        """Rename all tensors, so that no name of a bundle's own is among them; before any other change."""
        onnx.compose.add_prefix(self.model, _INNER, inplace=True)

    def take(self, edge: Edge, name: str) -> None:
        """Take an input under a name, as float32 or int64."""
        graph = self.model.graph
        value = next(value for value in graph.input if value.name == _INNER + edge.name)
        tensor = value.type.tensor_type
        kind, value.name, tensor.elem_type = tensor.elem_type, name, _KINDS[edge.dtype]
        node = helper.make_node("Cast", [name], [_INNER + edge.name], to=kind)
        graph.node.insert(0, node)

    def give(self, edge: Edge, name: str | None = None) -> str:
        """Compute an output as float32 or int64, and return its name."""
        return self._node("Cast", [_INNER + edge.name], name, to=_KINDS[edge.dtype])

    def halves(self, source: str, size: int) -> tuple[str, str]:
        """Divide a tensor along axis 1 into its first `size` entries and the rest."""
        axes = self._constant([1], np.int64)
        bounds = [self._constant([bound], np.int64) for bound in (0, size, 2 * size)]
        first, second = (self._node("Slice", [source, bounds[index], bounds[index + 1], axes]) for index in range(2))
        return first, second

    def normal(self, mu: str, second: str, meaning: str, clip: bool = False) -> None:
        """Compute mu, logvar and std of a mean and a second tensor, which has one of the meanings in `SECOND`."""
        self._node("Identity", [mu], "mu")
        if clip:
            second = self._node("Clip", [second, *(self._constant(bound, np.float32) for bound in CLIPPED)])
        half, two = (self._constant(factor, np.float32) for factor in (0.5, 2.0))
        if meaning == "var":
            self._node("Sqrt", [second], "std")
            self._node("Log", [second], "logvar")
        elif meaning in ("std", "softplus"):
            std = self._node("Identity" if meaning == "std" else "Softplus", [second], "std")
            self._node("Mul", [self._node("Log", [std]), two], "logvar")
        else:
            logvar = self._node("Identity", [second], "logvar") if meaning == "logvar" else None
            log_std = self._node("Mul", [logvar, half]) if logvar else second
            self._node("Exp", [log_std], "std")
            if logvar is None:
                self._node("Mul", [second, two], "logvar")

    def sigmoid(self, logits: str, name: str) -> None:
        """Compute the sigmoid of a tensor."""
        self._node("Sigmoid", [logits], name)

    def softmax(self, logits: str, name: str) -> None:
        """Compute the softmax of a tensor along its last axis."""
        self._node("Softmax", [logits], name, axis=-1)

    def finish(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], one: bool) -> onnx.ModelProto:
        """Return the model with exactly these inputs and outputs; with `one`, for a batch of one."""
        graph = self.model.graph
        for tensors, values in ((inputs, graph.input), (outputs, graph.output)):
            del values[:]
            for tensor in tensors:
                sizes = [f"{tensor.name}_{i}" if i in tensor.dynamic else size for i, size in enumerate(tensor.shape)]
                axes = [1 if one else "batch", *sizes]
                values.append(helper.make_tensor_value_info(tensor.name, _KINDS[tensor.dtype], axes))
        del graph.value_info[:]
        # More versions of ONNX Runtime read an older file format.
        self.model.ir_version = max(8, helper.find_min_ir_version_for(list(self.model.opset_import), True))
        return self.model


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes behind those whose outputs they read: some converters append nodes, and ONNX Runtime lets them."""
    nodes = list(graph.node)
    producers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    read = [{producers[name] for name in names_read(node) if name in producers} for node in nodes]
    if all(max(before, default=-1) < index for index, before in enumerate(read)):
        return
    sorter = TopologicalSorter(dict(enumerate(read)))
    try:
        ordered = [copy_of(nodes[index]) for index in sorter.static_order()]
    except CycleError:
        # The structural check names it.
        return
    del graph.node[:]
    graph.node.extend(ordered)
