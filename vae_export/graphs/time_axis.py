"""Follow the time axis through the nodes of an ONNX graph, by what the graph's tensors are at a few lengths of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_runtime.errors import counted

from .nodes import attributes_of, names_read

Array = NDArray[Any]
# All tensors of a graph by name, weights included, for one length of time.
Trial = Mapping[str, Array]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators that compute each value from the values at its place; inputs may be broadcast.
_POINTWISE = _words("""
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
    Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Expand Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
    Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu
    Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
""")
_RESHAPING = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten"))
_REDUCTIONS = _words("""
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
""")
# Operators that read one axis, their attribute `axis`, by its default.
_ALONG_AXIS = {
    "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LpNormalization": -1, "Split": 0, "ArgMax": 0, "ArgMin": 0,
}  # fmt: skip
# Those that read this axis and all that follow.
_FROM_AXIS = {"LayerNormalization": -1, "RMSNormalization": -1, "SimplifiedLayerNormalization": -1}
_NORMALIZATIONS = frozenset(("InstanceNormalization", "GroupNormalization", "GroupNorm", "MeanVarianceNormalization"))
# The inputs of operators that hold sizes or places, which may be computed from the length of a chunk.
_SIZES = {"Reshape": {1}, "Expand": {1}, "Slice": {1, 2, 3, 4}, "Pad": {1, 3}, "Resize": {2, 3}, "Unsqueeze": {1}}

_ATTENTION = "relates all times to each other, as attention does"


class NotCausalError(Exception):
    """A graph cannot take its input in chunks; the message says why."""


@dataclass(frozen=True)
class Time:
    """Where a tensor has its time axis. For a length T of the input its size is rate · T + lead + tail.

    The first `lead` values repeat the last ones of the chunk before. The last `tail` ones are not final: they lack what
    later chunks add.
    """

    axis: int
    rate: Fraction
    lead: int = 0
    tail: int = 0

    def moved(self, left: int, right: int) -> Time:
        """Return the same with more values on either side, or fewer.

        Raises:
            NotCausalError: values of later chunks would be needed, or values would get lost.
        """
        lead, tail = self.lead + left, self.tail + right
        if lead < 0:
            raise NotCausalError(f"looks {counted(-lead, 'value')} ahead; pad or cut time on the left alone")
        if tail < 0:
            raise NotCausalError(
                f"cuts off the last {counted(-tail, 'value')} of time, which no state keeps; leave the delay out"
            )
        return replace(self, lead=lead, tail=tail)


class TimeAxis:
    """The time axis of each tensor that depends on one input of a graph."""

    def __init__(
        self, given: str, conditions: Collection[str], trials: Sequence[Trial], nodes: Sequence[onnx.NodeProto]
    ) -> None:
        """Take the names of the input and of the others, and the tensors for three lengths of it, in equal steps and of
        one batch."""
        self._trials = trials
        self._readers = nodes
        self._given = [trial[given].shape for trial in trials]
        (self._axis,) = self._varying(given)
        self.times = {given: self.measured(given)}
        """The time axis of each tensor that has one, by name."""
        # Tensors that are computed of sizes alone, and differ from one length to another.
        self._sized: set[str] = set()
        # Tensors that the trials show for one value of the conditions alone.
        self._conditional = set(conditions)

    def value(self, name: str) -> Array:
        """Return a tensor at the first length."""
        return self._trials[0][name]

    def is_zero(self, name: str) -> bool:
        """Return whether a tensor without time is zeros, whatever the conditions."""
        return name not in self._conditional and not np.any(self.value(name))

    def integers(self, node: onnx.NodeProto, index: int) -> list[int] | None:
        """Return an input of whole numbers, or None where it is absent.

        Raises:
            NotCausalError: it differs from one length to another.
        """
        if len(node.input) <= index or not node.input[index]:
            return None
        if not self._is_fixed(node.input[index]):
            raise NotCausalError("takes a number that depends on the length of time")
        return [int(value) for value in np.ravel(self.value(node.input[index]))]

    def is_timed(self, node: onnx.NodeProto) -> bool:
        """Return whether a node computes with values of time, and note what it makes of sizes.

        Raises:
            NotCausalError: it takes sizes for values.
        """
        names = list(names_read(node))
        timed = any(name in self.times for name in names)
        if node.op_type not in ("Shape", "Size") and not self._conditional.isdisjoint(names):
            self._conditional.update(name for name in node.output if name)
        if not timed or node.op_type in ("Shape", "Size"):
            if timed or not self._sized.isdisjoint(names):
                self._sized.update(name for name in node.output if name and not self._is_fixed(name))
            return False
        for index, name in enumerate(node.input):
            is_size = index in _SIZES.get(node.op_type, ())
            if name in self._sized and not is_size:
                raise NotCausalError("reads the length of time, or its places")
            if name in self._conditional and is_size:
                raise NotCausalError("takes a size or a place that depends on a condition")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise NotCausalError("holds a graph of its own")
        return True

    def passed(self, node: onnx.NodeProto) -> Time:
        """Return the time axis of the outputs of a node that computes each time by itself.

        Raises:
            NotCausalError: the node reads more than one time, or is not understood.
        """
        rule = _RULES.get(node.op_type)
        if rule is None:
            # The sizes may say what it does.
            for name in node.output:
                self.measured(name)
            raise NotCausalError("is no operator that streams are made of")
        return rule(self, node)

    def note(self, name: str, time: Time) -> None:
        """Note the time axis of an output.

        Raises:
            NotCausalError: the output has another size.
        """
        measured = self.measured(name)
        if (measured.axis, measured.rate, measured.tail) != (time.axis, time.rate, time.lead + time.tail):
            raise NotCausalError("moves time in a way that is not understood")
        self.times[name] = time

    def measured(self, name: str) -> Time:
        """Return the time axis of a tensor by its sizes, as if it had no lead.

        Raises:
            NotCausalError: none of its sizes is in proportion to the length of time, or more than one depends on it.
        """
        axes = self._varying(name)
        if len(axes) > 1:
            raise NotCausalError(_ATTENTION)
        if not axes:
            raise NotCausalError("reads all of time for one answer")
        lengths = [shape[self._axis] for shape in self._given]
        sizes = [shape[axes[0]] for shape in self.shapes(name)]
        rate = Fraction(sizes[1] - sizes[0], lengths[1] - lengths[0])
        rest = {size - rate * length for size, length in zip(sizes, lengths, strict=True)}
        if len(rest) > 1 or rate <= 0 or min(rest).denominator > 1:
            raise NotCausalError(f"gives the sizes {sizes} for the lengths {lengths}, which are not in proportion")
        return Time(axes[0], rate, 0, int(min(rest)))

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """Return the shapes of a tensor, one for each length."""
        return [trial[name].shape for trial in self._trials]

    def time(self, node: onnx.NodeProto) -> Time:
        """Return the time axis of a node's first input.

        Raises:
            NotCausalError: it has none.
        """
        time = self.times.get(node.input[0])
        if time is None:
            raise NotCausalError("takes the latents as weights")
        return time

    def _varying(self, name: str) -> list[int]:
        """The axes whose size depends on the length of time."""
        return [axis for axis, sizes in enumerate(zip(*self.shapes(name), strict=True)) if len(set(sizes)) > 1]

    def _is_fixed(self, name: str) -> bool:
        """Whether a tensor is the same at every length of time."""
        return all(np.array_equal(self.value(name), trial[name]) for trial in self._trials[1:])

    def _pointwise(self, node: onnx.NodeProto) -> Time:
        rank = self.value(node.output[0]).ndim
        times = {
            replace(self.times[name], axis=self.times[name].axis + rank - self.value(name).ndim)
            for name in node.input
            if name in self.times
        }
        if len(times) > 1:
            raise NotCausalError("combines values of different times")
        return times.pop()

    def _reshaped(self, node: onnx.NodeProto) -> Time:
        time = self.time(node)
        before, after = self.shapes(node.input[0]), self.shapes(node.output[0])
        axis = self.measured(node.output[0]).axis
        # Time has to stay the first of what shares an axis with it.
        if math.prod(before[0][: time.axis]) != math.prod(after[0][:axis]):
            readers = (each.op_type for each in self._readers if node.output[0] in each.input)
            reader = next((each for each in readers if each in _NORMALIZATIONS), "")
            what = "mixes time with other axes"
            raise NotCausalError(f"{what} for {reader}, which normalizes over time" if reader else what)
        ratio = Fraction(after[0][axis], before[0][time.axis])
        lead, tail = time.lead * ratio, time.tail * ratio
        if lead.denominator > 1 or tail.denominator > 1:
            raise NotCausalError("divides values of one time")
        return Time(axis, time.rate * ratio, int(lead), int(tail))

    def _transposed(self, node: onnx.NodeProto) -> Time:
        time = self.time(node)
        order = list(attributes_of(node).get("perm", reversed(range(self.value(node.input[0]).ndim))))
        return replace(time, axis=order.index(time.axis))

    def _along_axes(self, node: onnx.NodeProto) -> Time:
        """An operator that reads some axes as a whole, and may remove them."""
        time, attributes = self.time(node), attributes_of(node)
        rank = self.value(node.input[0]).ndim
        if node.op_type in _REDUCTIONS:
            axes = self.integers(node, 1) or list(attributes.get("axes", range(rank)))
        elif node.op_type in _FROM_AXIS:
            axes = list(range(attributes.get("axis", -1) % rank, rank))
        else:
            axes = [attributes.get("axis", _ALONG_AXIS[node.op_type])]
        axes = [axis % rank for axis in axes]
        if time.axis in axes:
            raise NotCausalError("reads all of time")
        removes = node.op_type in _REDUCTIONS or node.op_type.startswith("Arg")
        if removes and not attributes.get("keepdims", 1):
            return replace(time, axis=time.axis - sum(axis < time.axis for axis in axes))
        return time

    def _product(self, node: onnx.NodeProto) -> Time:
        """A product of matrices, of which one holds time outside of the axis that is summed."""
        rank = self.value(node.output[0]).ndim
        first, second = (self.times.get(name) for name in node.input)
        if first and second:
            raise NotCausalError(_ATTENTION)
        time, name, summed = (first, node.input[0], -1) if first else (second, node.input[1], -2)
        own = self.value(name).ndim
        if time is None or own < 2 or rank < 2 or time.axis == own + summed:
            raise NotCausalError("sums over time")
        return replace(time, axis=time.axis + rank - own)

    def _gathered(self, node: onnx.NodeProto) -> Time:
        """Rows of a table by codes, or some of the channels or levels."""
        table, codes = (self.times.get(name) for name in node.input)
        axis = attributes_of(node).get("axis", 0) % self.value(node.input[0]).ndim
        if table and codes:
            raise NotCausalError("looks up one time by another")
        if codes:
            return replace(codes, axis=codes.axis + axis)
        time = self.time(node)
        if time.axis == axis:
            raise NotCausalError("picks places of time")
        return replace(time, axis=time.axis + (self.value(node.input[1]).ndim - 1 if axis < time.axis else 0))

    def _sliced(self, node: onnx.NodeProto) -> Time:
        time, rank = self.time(node), self.value(node.input[0]).ndim
        starts = [np.ravel(trial[node.input[1]]) for trial in self._trials]
        axes = [axis % rank for axis in self.integers(node, 3) or range(len(starts[0]))]
        steps = self.integers(node, 4) or [1] * len(axes)
        if time.axis not in axes:
            return time
        index = axes.index(time.axis)
        lengths = [shape[time.axis] for shape in self.shapes(node.input[0])]
        left = [int(start[index]) for start in starts]
        left = [max(0, start + size) if start < 0 else start for start, size in zip(left, lengths, strict=True)]
        kept = [shape[time.axis] for shape in self.shapes(node.output[0])]
        right = [size - start - rest for size, start, rest in zip(lengths, left, kept, strict=True)]
        if steps[index] != 1 or len(set(left)) > 1 or len(set(right)) > 1:
            raise NotCausalError("picks places of time")
        return time.moved(-left[0], -right[0])

    def _resized(self, node: onnx.NodeProto) -> Time:
        time, attributes = self.time(node), attributes_of(node)
        before, after = self.shapes(node.input[0])[0], self.shapes(node.output[0])[0]
        ratio = Fraction(after[time.axis], before[time.axis])
        mode = attributes.get("mode", b"nearest").decode()
        if ratio != 1 and (mode != "nearest" or ratio.denominator > 1):
            raise NotCausalError(f"resizes time by {ratio} in the mode {mode}; use nearest and a whole number")
        return Time(time.axis, time.rate * ratio, time.lead * int(ratio), time.tail * int(ratio))

    def _normalized(self, node: onnx.NodeProto) -> Time:
        """A batch normalization, whose statistics are constants."""
        time = self.time(node)
        if time.axis == 1 or attributes_of(node).get("training_mode", 0):
            raise NotCausalError("normalizes over time")
        return time

    def _normalized_over_time(self, node: onnx.NodeProto) -> Time:
        raise NotCausalError("normalizes over time")


_RULES: dict[str, Callable[[TimeAxis, onnx.NodeProto], Time]] = {
    **dict.fromkeys(_POINTWISE, TimeAxis._pointwise),
    **dict.fromkeys(_RESHAPING, TimeAxis._reshaped),
    **dict.fromkeys((*_REDUCTIONS, *_ALONG_AXIS, *_FROM_AXIS), TimeAxis._along_axes),
    **dict.fromkeys(_NORMALIZATIONS, TimeAxis._normalized_over_time),
    "BatchNormalization": TimeAxis._normalized,
    "Transpose": TimeAxis._transposed,
    "MatMul": TimeAxis._product,
    "Gather": TimeAxis._gathered,
    "Slice": TimeAxis._sliced,
    "Resize": TimeAxis._resized,
}
