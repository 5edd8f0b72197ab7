"""Bound the sizes by which a graph divides integers: vae-runtime refuses a division that may be by 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from vae_runtime.graph_rules import Limits

from ..errors import ExportError
from .nodes import Array, NodeIndex, attributes_of, copy_of

# Operators that move, repeat or leave out the numbers of their first input.
_MOVES = {
    "Expand", "Flatten", "Gather", "Identity", "ReduceMax", "ReduceMin", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip


def bound_divisors(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> None:
    """Replace each int64 divisor that follows from sizes by its maximum with 1.

    This is done where the divisor is at least 0. PyTorch fails where it is 0, so no answer changes.

    Args:
        model: the graph, which is changed.
        sizes: the smallest sizes of the axes of each input.

    Raises:
        ExportError: a divisor may be negative, or follows from the numbers of an input.
    """
    graph = NodeIndex(model)
    values = _Minimums(graph, sizes)
    integers = {value.name for value in model.graph.value_info if value.type.tensor_type.elem_type == TensorProto.INT64}
    bounds: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        values.follow(node)
        copied = copy_of(node)
        divisor = node.input[1] if node.op_type in ("Div", "Mod") else ""
        minimum = values.minimums.get(divisor)
        if (minimum is not None or divisor in integers) and not values.is_small_constant(divisor):
            if minimum is None or minimum < 0:
                known = "one that follows from no sizes" if minimum is None else f"one of at least {minimum}"
                raise ExportError(
                    f"node {node.name} ({node.op_type}): expected a divisor of integers of at least 1, got {known}; "
                    "divide by torch.clamp(divisor, min=1), or where it is a size by max(size, 1)"
                )
            if divisor not in bounds:
                bounds[divisor] = f"{divisor}_at_least_1"
                one = graph.add("min_divisor", np.asarray(1))
                nodes.append(onnx.helper.make_node("Max", [divisor, one], [bounds[divisor]]))
            copied.input[1] = bounds[divisor]
        nodes.append(copied)
    if bounds:
        del model.graph.node[:]
        model.graph.node.extend(nodes)


class _Minimums:
    """What the int64 numbers of a graph's tensors are at least, as far as they follow from sizes and constants."""

    def __init__(self, graph: NodeIndex, sizes: Mapping[str, Sequence[int]]) -> None:
        self._graph, self._sizes = graph, sizes
        self.minimums: dict[str, int] = {}
        for name, tensor in graph.initializers.items():
            if tensor.data_type == TensorProto.INT64:
                self._note(name, graph.constant(name))

    def _note(self, name: str, value: Array | None) -> None:
        if value is not None and value.dtype == np.int64 and value.size:
            self.minimums[name] = int(value.min())

    def is_small_constant(self, name: str) -> bool:
        """Return whether the runtime looks at the numbers behind a name itself."""
        value = self._graph.constant(name)
        return value is not None and value.size <= Limits.CONSTANT

    def follow(self, node: onnx.NodeProto) -> None:
        """Note the minimum of a node's outputs; its inputs are known before."""
        if node.op_type == "Constant":
            tensor = next((each.t for each in node.attribute if each.name == "value"), None)
            if tensor is None or tensor.data_type == TensorProto.INT64:
                self._note(node.output[0], self._graph.constant(node.output[0]))
            return
        minimum = self._size(node)
        if minimum is None:
            minimum = self._computed(node)
        if minimum is not None:
            self.minimums.update(dict.fromkeys(node.output, minimum))

    def _size(self, node: onnx.NodeProto) -> int | None:
        """The minimum of what Shape and Size give, and of the size of one axis of an input."""
        if node.op_type == "Gather":
            shape, index = self._graph.producers.get(node.input[0]), self._graph.constant(node.input[1])
            if shape is None or shape.op_type != "Shape" or shape.attribute or index is None or index.size != 1:
                return None
            sizes = self._sizes.get(shape.input[0], ())[int(index.item()) :][:1]
        elif node.op_type == "Shape":
            attributes = attributes_of(node)
            sizes = self._sizes.get(node.input[0], ())[attributes.get("start", 0) : attributes.get("end")]
        else:
            return 0 if node.op_type == "Size" else None
        return min(sizes, default=0)

    def _computed(self, node: onnx.NodeProto) -> int | None:
        known = [self.minimums.get(name) for name in node.input]
        if node.op_type == "Max":
            return max((each for each in known if each is not None), default=None)
        first = known[0] if known else None
        if node.op_type == "Clip":
            lower = max((each for each in known[:2] if each is not None), default=None)
            # The upper bound is the answer where it is below the lower one.
            upper = known[2] if any(node.input[2:]) else lower
            return None if lower is None or upper is None else min(lower, upper)
        if first is None:
            return None
        if node.op_type in _MOVES:
            return first
        if node.op_type == "Cast":
            return first if attributes_of(node)["to"] == TensorProto.INT64 else None
        if node.op_type == "ReduceProd":
            return min(first, 1) if first >= 0 else None
        value = self._graph.constant(node.input[1]) if len(known) == 2 else None
        maximum = int(value.max()) if value is not None and value.size else None
        if node.op_type == "Sub":
            return None if maximum is None else first - maximum
        others = [each for each in known[1:] if each is not None]
        if len(others) < len(known) - 1:
            return None
        if node.op_type in ("Concat", "Min"):
            return min([first, *others])
        if node.op_type == "Add":
            return first + others[0]
        if node.op_type == "Mul" and first >= 0 and others[0] >= 0:
            return first * others[0]
        if node.op_type == "Div" and maximum is not None and others[0] >= 1:
            # ONNX rounds towards 0.
            return first // (maximum if first >= 0 else others[0])
        return 0 if node.op_type in ("Div", "Mod") and first >= 0 and others[0] >= 0 else None
