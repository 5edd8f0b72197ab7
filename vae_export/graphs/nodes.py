"""Read and change the nodes of an ONNX graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of the main graph and of the graphs nested in it."""
    waiting = [model.graph]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def prune(model: onnx.ModelProto) -> None:
    """Remove the nodes and weights that no output depends on."""
    graph = model.graph
    kept: list[onnx.NodeProto] = []
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(names_read(node))
    if len(kept) < len(graph.node):
        copies = [copy_of(node) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(copies)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, directly or in the graphs nested in it."""
    yield from node.input
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in graph.node:
                yield from names_read(inner)
            yield from (value.name for value in graph.output)


def copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node, free to be put into a graph."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


class NodeIndex:
    """Finds a graph's constants, and its nodes by the names that they write and read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph.node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.uses = Counter(name for node in self.nodes for name in names_read(node))
        self.uses.update(value.name for value in self.graph.output)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}

    def constant(self, name: str) -> Array | None:
        """Return the value behind a name if it is the same in every run, else None."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        if node.op_type != "Constant":
            return None
        (attribute,) = node.attribute
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return numpy_helper.to_array(value)
        if attribute.name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        return np.asarray(value, np.int64) if attribute.name in ("value_int", "value_ints") else None

    def float_constant(self, name: str) -> Array | None:
        """Return a float32 constant as float64; None for any other name."""
        value = self.constant(name)
        return value.astype(np.float64) if value is not None and value.dtype == np.float32 else None

    def unshared_producer(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the node that computes a node's first input, if nothing else reads that value."""
        name = node.input[0]
        return self.producers.get(name) if self.uses[name] == 1 else None

    def add(self, base: str, value: Array) -> str:
        """Add a constant, and return its name: `base`, with a number where that is taken."""
        name = base
        number = 1
        while name in self.initializers or name in self.producers or self.uses[name]:
            number += 1
            name = f"{base}_{number}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.graph.initializer.append(tensor)
        self.initializers[name] = tensor
        return name

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Remove the nodes `old` and put `new` where the last of them was."""
        removed = {id(node) for node in old}
        last = max(index for index, node in enumerate(self.nodes) if id(node) in removed)
        nodes = [
            copy
            for index, node in enumerate(self.nodes)
            for copy in ([] if id(node) in removed else [copy_of(node)]) + (list(new) if index == last else [])
        ]
        del self.graph.node[:]
        self.graph.node.extend(nodes)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the values of a node's attributes by name."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
