"""Read and write ONNX files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data, load_external_data_for_model

from vae_runtime.graph_rules import Limits

# A protobuf message, and so an ONNX file, holds at most 2 GiB, some of which the graph itself needs.
INLINE = 2**31 - 2**24
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the main graph, the functions, and the branches and loop bodies nested in them."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
        waiting += [nested for node in graph.node for attribute in node.attribute for nested in attribute.graphs]


def load_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Read the values of tensors from files in a folder: no more bytes than the tensors have.

    Raises:
        ValueError: they are not there, or of more than 2 GiB.
    """
    total = 0
    for tensor in _tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        total += size
        lengths = [entry.value for entry in tensor.external_data if entry.key == "length"]
        if total > INLINE or any(int(length) > size for length in lengths):
            raise ValueError(f"{tensor.name}: expected at most {min(size, INLINE)} bytes of values, got more")
        if not lengths:
            tensor.external_data.add(key="length", value=str(size))
    load_external_data_for_model(model, str(folder))


def _tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs_of(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from ([attribute.t] if attribute.HasField("t") else [])
                yield from attribute.tensors


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without functions of its own: each call is replaced by the function's nodes.

    Raises:
        ValueError: there are too many nodes, or this makes them: functions may call each other twice over and over.
    """
    functions = {(each.domain, each.name): each for each in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto], depth: int) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in functions and key not in counts:
                if depth == len(functions):
                    raise ValueError(f"{node.op_type}: expected functions that do not call themselves")
                counts[key] = count(functions[key].node, depth + 1)
            total += counts.get(key, 1)
            for attribute in node.attribute:
                for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                    total += count(graph.node, depth)
            if total > Limits.NODES:
                raise ValueError(f"expected at most {Limits.NODES} nodes, those of functions at each call, got more")
        return total

    count(model.graph.node, 0)
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes about the source: class names, and stack traces with this machine's paths."""
    parts: list[Any] = [model]
    for graph in graphs_of(model):
        parts += [graph, *graph.node, *graph.value_info]
        if isinstance(graph, onnx.GraphProto):
            parts += [*graph.input, *graph.output, *graph.initializer]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the number of bytes of the weights that are inline."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def write_graph(model: onnx.ModelProto, path: Path) -> dict[str, Path]:
    """Write a graph, and return the names and paths of separate weight files, used where one file is too small."""
    if weight_bytes(model) < INLINE:
        path.write_bytes(model.SerializeToString(deterministic=True))
        model.Clear()
        # Checked by its path, because the checker would serialize a model in memory once more.
        onnx.checker.check_model(path, full_check=True)
        return {}
    name = f"{path.name}.data"
    convert_model_to_external_data(model, all_tensors_to_one_file=True, location=name, size_threshold=1024)
    onnx.save_model(model, path)
    return {name: path.with_name(name)}
