"""Read and write ONNX files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx.external_data_helper import convert_model_to_external_data

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
