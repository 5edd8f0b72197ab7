"""Turn a decoder's graph into one that takes latents in chunks: what it read of earlier chunks becomes a state.

Only operators that mix values along the time axis are changed: zeros that are padded on the left become the last values
of the chunk before, and a recurrent layer starts where it ended. Every tensor then has the size that it has when the
original graph takes the chunk alone, so that all other operators, and the sizes that a graph computes, stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from vae_runtime.chunks import State

from .nodes import NodeIndex, attributes_of, copy_of, prune
from .time_axis import NotCausalError, Time, TimeAxis, Trial

_END = np.iinfo(np.int64).max
# Recurrent layers, and how many states each has.
_RECURRENT = {"LSTM": 2, "GRU": 1, "RNN": 1}


@dataclass(frozen=True)
class ChunkGraph:
    """A graph that takes chunks: for n values of time it gives n · `hop`, and its states for the next chunk."""

    model: onnx.ModelProto
    states: tuple[State, ...]
    hop: int


def chunk_graph(model: onnx.ModelProto, given: str, output: str, trials: Sequence[Trial]) -> ChunkGraph:
    """Return a graph that computes one output of a graph chunk by chunk.

    Args:
        model: the graph, with inline weights; not modified.
        given: the input that is divided.
        output: the output to keep.
        trials: the graph's tensors for three lengths of time, in equal steps and of one batch.

    Raises:
        NotCausalError: an operator reads what later chunks hold, or is not understood.
    """
    return _Rewriting(model, given, output, trials).result()


class _Rewriting:
    """Copies the nodes of a graph, those that mix times with states."""

    def __init__(self, model: onnx.ModelProto, given: str, output: str, trials: Sequence[Trial]) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        (self._output,) = (copy for copy in model.graph.output if copy.name == output)
        del self._model.graph.output[:]
        self._model.graph.output.append(self._output)
        prune(self._model)
        self._graph = NodeIndex(self._model)
        (self._given,) = (value for value in self._graph.graph.input if value.name == given)
        inputs = {value.name for value in self._graph.graph.input}
        conditions = inputs.difference(self._graph.initializers, [given])
        self._axis = TimeAxis(given, conditions, trials, self._graph.nodes)
        self._batch = trials[0][given].shape[0]
        self._nodes: list[onnx.NodeProto] = []
        self._states: list[State] = []

    def result(self) -> ChunkGraph:
        """Rewrite the graph."""
        for node in self._graph.nodes:
            try:
                self._follow(node)
            except NotCausalError as error:
                raise NotCausalError(f"{' '.join(filter(None, (node.op_type, node.name)))}: {error}") from None
        time = self._axis.times.get(self._output.name)
        if time is None or time.lead or time.tail or time.rate.denominator > 1:
            raise NotCausalError(f"{self._output.name} has no whole number of values for each of the latent")
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(self._nodes)
        batch = self._given.type.tensor_type.shape.dim[0]
        for state in self._states:
            sizes = [batch.dim_param or batch.dim_value, *state.shape]
            graph.input.append(helper.make_tensor_value_info(state.name, TensorProto.FLOAT, sizes))
            graph.output.append(helper.make_tensor_value_info(state.next, TensorProto.FLOAT, sizes))
        prune(self._model)
        return ChunkGraph(self._model, tuple(self._states), int(time.rate))

    def _follow(self, node: onnx.NodeProto) -> None:
        """Copy a node, with a state where it needs one, and note the time axis of its outputs."""
        if not self._axis.is_timed(node):
            self._nodes.append(copy_of(node))
            return
        rule = _RULES.get(node.op_type)
        if rule is not None:
            time = rule(self, node)
        else:
            time = self._axis.passed(node)
            self._nodes.append(copy_of(node))
        for name in node.output:
            if self._graph.uses[name]:
                self._axis.note(name, time)

    def _joined(self, node: onnx.NodeProto) -> Time:
        """Channels side by side, or zeros before the first value of time."""
        axis = attributes_of(node)["axis"] % self._axis.value(node.output[0]).ndim
        times = [self._axis.times.get(name) for name in node.input]
        known = [time for time in times if time]
        if known[0].axis != axis:
            if len(known) < len(times) or len(set(known)) > 1:
                raise NotCausalError("combines values of different times")
            self._nodes.append(copy_of(node))
            return known[0]
        zeros = [name for name, time in zip(node.input, times, strict=True) if not time]
        if len(known) > 1 or times[-1] is None or not all(map(self._axis.is_zero, zeros)):
            raise NotCausalError("puts other values than zeros before the first of time")
        size = sum(self._axis.value(name).shape[axis] for name in zeros)
        self._with_state(node.input[-1], known[0], size, node.output[0])
        return known[0].moved(size, 0)

    def _padded(self, node: onnx.NodeProto) -> Time:
        time, rank = self._axis.time(node), self._axis.value(node.input[0]).ndim
        mode = attributes_of(node).get("mode", b"constant").decode()
        pads = self._axis.integers(node, 1) or []
        axes = [axis % rank for axis in self._axis.integers(node, 3) or range(rank)]
        left = right = 0
        if time.axis in axes:
            place = axes.index(time.axis)
            left, right, pads[place] = pads[place], pads[place + len(axes)], min(0, pads[place])
        value = node.input[2] if len(node.input) > 2 else ""
        if (left > 0 or right > 0) and mode != "constant":
            raise NotCausalError(f"pads time in the mode {mode}, by values of other times; pad it with zeros")
        if left > 0 and value and not self._axis.is_zero(value):
            raise NotCausalError("pads time with other values than zeros")
        result = time.moved(left, right)
        copied = copy_of(node)
        if left > 0:
            copied.input[0] = self._with_state(node.input[0], time, left)
            copied.input[1] = self._graph.add(f"{node.output[0]}.pads", np.asarray(pads, np.int64))
        self._nodes.append(copied)
        return result

    def _convolved(self, node: onnx.NodeProto) -> Time:
        """A convolution of stride 1, which may pad time with zeros itself."""
        kernel = self._kernel(node)
        if kernel.stride != 1:
            raise NotCausalError("has a stride along time")
        time = self._axis.time(node)
        result = time.moved(kernel.left - kernel.reach, kernel.right)
        copied = copy_of(node)
        if kernel.left > 0:
            copied.input[0] = self._with_state(node.input[0], time, kernel.left)
            pads = list(attributes_of(node)["pads"])
            pads[kernel.place] = 0
            _set(copied, "pads", pads)
        self._nodes.append(copied)
        return result

    def _upsampled(self, node: onnx.NodeProto) -> Time:
        """A transposed convolution: the values whose answers reach into this chunk are its state."""
        kernel = self._kernel(node)
        time, stride = self._axis.time(node), kernel.stride
        over = kernel.reach + 1 - stride + kernel.more
        if over < 0 or "output_shape" in attributes_of(node):
            raise NotCausalError("gives fewer values than its stride says")
        whole = Time(time.axis, time.rate * stride, time.lead * stride, time.tail * stride + over)
        result = whole.moved(-kernel.left, -kernel.right)
        size = -(-(kernel.reach + 1) // stride) - 1
        copied = copy_of(node)
        self._nodes.append(copied)
        if size:
            self._nodes.pop()
            copied.input[0] = self._with_state(node.input[0], time, size)
            copied.output[0] = f"{node.output[0]}.whole"
            self._nodes.append(copied)
            self._slice(copied.output[0], node.output[0], time.axis, size * stride, _END)
        return result

    def _recurrent(self, node: onnx.NodeProto) -> Time:
        time, attributes = self._axis.time(node), attributes_of(node)
        direction = attributes.get("direction", b"forward").decode()
        if direction != "forward":
            raise NotCausalError(f"reads time in the direction {direction}; use forward alone")
        x = self._axis.value(node.input[0])
        others = any(node.input[4:5]) or any(node.input[7:]) or attributes.get("layout", 0)
        if (time.axis, time.lead, time.tail, x.shape[1]) != (0, 0, 0, self._batch) or others:
            raise NotCausalError("takes time in a way that is not understood")
        if any(self._graph.uses[name] for name in node.output[1:]):
            raise NotCausalError("reads all of time for its last state")
        if any(name in self._axis.times or not self._axis.is_zero(name) for name in node.input[5:7] if name):
            raise NotCausalError("starts from other values than zeros")
        first = self._graph.add(f"{node.output[0]}.first", np.asarray([0], np.int64))
        copied, after = copy_of(node), []
        del copied.input[5:], copied.output[1:]
        copied.input.extend([""] * (5 - len(copied.input)))
        for _ in range(_RECURRENT[node.op_type]):
            state = self._state((int(attributes["hidden_size"]),))
            copied.input.append(f"{state.name}.in")
            copied.output.append(f"{state.name}.out")
            self._nodes.append(helper.make_node("Unsqueeze", [state.name, first], [f"{state.name}.in"]))
            after.append(helper.make_node("Squeeze", [f"{state.name}.out", first], [state.next]))
        self._nodes += [copied, *after]
        return time

    def _kernel(self, node: onnx.NodeProto) -> _Kernel:
        """What a convolution does along time."""
        time, attributes = self._axis.time(node), attributes_of(node)
        if time.axis < 2 or any(name in self._axis.times for name in node.input[1:]):
            raise NotCausalError("takes time as channels, or as weights")
        if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise NotCausalError(f"pads by {attributes['auto_pad'].decode()}")
        shape = self._axis.value(node.input[1]).shape[2:]
        place, count = time.axis - 2, len(shape)
        pads = attributes.get("pads", [0] * 2 * count)
        return _Kernel(
            place,
            (shape[place] - 1) * attributes.get("dilations", [1] * count)[place],
            attributes.get("strides", [1] * count)[place],
            pads[place],
            pads[place + count],
            attributes.get("output_padding", [0] * count)[place],
        )

    def _with_state(self, name: str, time: Time, size: int, whole: str = "") -> str:
        """Put the last `size` values before a chunk in front of it, and return the name of both together."""
        array = self._axis.value(name)
        if array.dtype != np.float32 or time.axis == 0 or array.shape[0] != self._batch:
            raise NotCausalError("holds what it needs of earlier times in a way that is not understood")
        state = self._state((*array.shape[1 : time.axis], size, *array.shape[time.axis + 1 :]))
        whole = whole or f"{state.name}.whole"
        over = time.lead + time.tail
        self._nodes.append(helper.make_node("Concat", [state.name, name], [whole], axis=time.axis))
        self._slice(whole, state.next, time.axis, -size - over, -over or _END)
        return whole

    def _state(self, shape: tuple[int, ...]) -> State:
        taken = {value.name for value in self._graph.graph.input} | {state.name for state in self._states}
        names = (f"state_{number}" for number in itertools.count(len(self._states)))
        name = next(name for name in names if name not in taken and name not in self._graph.producers)
        self._states.append(State(name, shape))
        return self._states[-1]

    def _slice(self, name: str, result: str, axis: int, start: int, stop: int) -> None:
        places = [
            self._graph.add(f"{result}.{what}", np.asarray([value], np.int64))
            for what, value in (("start", start), ("stop", stop), ("axis", axis))
        ]
        self._nodes.append(helper.make_node("Slice", [name, *places], [result]))


@dataclass(frozen=True)
class _Kernel:
    """What a convolution does along time: the place of the axis among those of its kernel, how far it reaches, its
    stride, the zeros that it pads on the left and on the right, and its output padding."""

    place: int
    reach: int
    stride: int
    left: int
    right: int
    more: int


def _set(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Set an attribute that a node has."""
    (attribute,) = (each for each in node.attribute if each.name == name)
    attribute.CopyFrom(helper.make_attribute(name, value))


_RULES: Mapping[str, Callable[[_Rewriting, onnx.NodeProto], Time]] = {
    **dict.fromkeys(_RECURRENT, _Rewriting._recurrent),
    "Concat": _Rewriting._joined,
    "Pad": _Rewriting._padded,
    "Conv": _Rewriting._convolved,
    "ConvTranspose": _Rewriting._upsampled,
}
