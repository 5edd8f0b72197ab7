"""The nodes of an ONNX graph: an index by what they give and take, and what is common to changes of a graph."""

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
    """Every node of the main graph and of the graphs nested in it."""
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
            needed.update(names_taken(node))
    if len(kept) < len(graph.node):
        copies = [copy_of(node) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(copies)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def names_taken(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node takes, those that the graphs nested in it take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in graph.node:
                yield from names_taken(inner)
            yield from (value.name for value in graph.output)


def copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy of a node, which a graph may take."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


class NodeIndex:
    """A graph's nodes by what they give and take, and its constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph.node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.uses = Counter(name for node in self.nodes for name in names_taken(node))
        self.uses.update(value.name for value in self.graph.output)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}

    def constant(self, name: str) -> Array | None:
        """The value of a name that has the same one in every run; None of any other."""
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
        """Likewise, of float32 alone, as float64."""
        value = self.constant(name)
        return value.astype(np.float64) if value is not None and value.dtype == np.float32 else None

    def before(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """What gives a node's first input, where no one else takes it."""
        name = node.input[0]
        return self.producers.get(name) if self.uses[name] == 1 else None

    def add(self, base: str, value: Array) -> str:
        """A new constant under a name of its own."""
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
        """Put nodes where the last of some others stands, and take these out."""
        gone = {id(node) for node in old}
        last = max(index for index, node in enumerate(self.nodes) if id(node) in gone)
        kept = [
            copy
            for index, node in enumerate(self.nodes)
            for copy in ([] if id(node) in gone else [copy_of(node)]) + (list(new) if index == last else [])
        ]
        del self.graph.node[:]
        self.graph.node.extend(kept)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The values of a node's attributes by their names."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
