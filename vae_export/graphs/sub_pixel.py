"""Transposed convolutions as convolutions with DepthToSpace, which integer kernels know."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .nodes import NodeIndex, attributes_of, copy_of, prune

Array = NDArray[Any]
# Operators of each number by itself that quantizers make part of the convolution before them.
_POINTWISE = ("Relu", "LeakyRelu", "Clip")


def sub_pixel(model: onnx.ModelProto, kept: Collection[str] = ()) -> tuple[onnx.ModelProto, int]:
    """A graph whose transposed convolutions are convolutions with a group of output channels for each phase.

    Of a transposed convolution of kernel k and stride s, output number s·q + r before the crop is
    Σ_j x[q − j]·w[s·j + r]: a convolution of kernel ⌈k / s⌉ gives s phases of it, DepthToSpace puts them side by side
    (Shi et al., arXiv 1609.05158), and a Slice crops the padding. Quantizers and integer kernels know these operators,
    not the transposed convolution.

    Args:
        model: a graph with its weights inside; left as it is.
        kept: the names of nodes to leave alone.

    Returns:
        the new graph, and how many there were; the graph given where none could be rewritten.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    count = 0
    while _split(NodeIndex(changed), kept):
        count += 1
    if not count:
        return model, 0
    prune(changed)
    return changed, count


def _split(graph: NodeIndex, kept: Collection[str]) -> bool:
    """Make one transposed convolution a convolution, a DepthToSpace and a Slice."""
    for node in graph.nodes:
        attributes = attributes_of(node)
        weight = graph.constant(node.input[1]) if node.op_type == "ConvTranspose" else None
        if node.name in kept or weight is None or weight.ndim != 4 or "output_shape" in attributes:
            continue
        if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or attributes.get("dilations", [1, 1]) != [1, 1]:
            continue
        strides, kernel = attributes.get("strides", [1, 1]), weight.shape[2:]
        pads, more = attributes.get("pads", [0] * 4), attributes.get("output_padding", [0, 0])
        stride = strides[0]
        # DepthToSpace has one block size; of a stride of 1 there is nothing to interleave.
        if stride < 2 or strides[1] != stride:
            continue
        taps = [-(-k // stride) for k in kernel]
        # What the padding at the end leaves of the phases that are computed.
        ends = [p - m + stride * t - k for k, t, p, m in zip(kernel, taps, pads[2:], more, strict=True)]
        if min(ends) < 0:
            continue
        bias = graph.constant(node.input[2]) if any(node.input[2:]) else np.zeros(0)
        if bias is None:
            continue
        groups = attributes.get("group", 1)
        inputs = [node.input[0], graph.add(f"{node.input[1]}.phases", _phases(weight, stride, taps, groups))]
        if bias.size:
            inputs.append(graph.add(f"{node.input[2]}.phases", np.repeat(bias, stride**2)))
        base, name = node.output[0], node.name
        convolved = f"{base}.phases"
        new = [
            onnx.helper.make_node(
                "Conv",
                inputs,
                [convolved],
                name=f"{name}.phases",
                kernel_shape=taps,
                pads=[tap - 1 for tap in taps] * 2,
                strides=[1, 1],
                group=groups,
            )
        ]
        old = [node]
        after = next((user for user in graph.nodes if base in user.input[:1]), None)
        if after is not None and after.op_type in _POINTWISE and graph.uses[base] == 1:
            # It is the same before the interleaving, and there integer kernels take it into the convolution.
            active = copy_of(after)
            active.input[0], convolved = convolved, f"{base}.active"
            base, active.output[0] = after.output[0], convolved
            new.append(active)
            old.append(after)
        cropped = any(pads[:2]) or any(ends)
        whole = f"{base}.whole" if cropped else base
        new.append(
            onnx.helper.make_node(
                "DepthToSpace", [convolved], [whole], name=f"{name}.whole", blocksize=stride, mode="CRD"
            )
        )
        if cropped:
            most = np.iinfo(np.int64).max
            starts = np.asarray(pads[:2], np.int64)
            stops = np.asarray([-end if end else most for end in ends], np.int64)
            names = [
                graph.add(f"{base}.{what}", value)
                for what, value in (("starts", starts), ("ends", stops), ("axes", np.asarray([2, 3], np.int64)))
            ]
            new.append(onnx.helper.make_node("Slice", [whole, *names], [base], name=f"{name}.crop"))
        graph.replace(old, new)
        return True
    return False


def _phases(weight: Array, stride: int, taps: Iterable[int], groups: int) -> Array:
    """The convolution's weight, [outputs · s², inputs of a group, taps, taps]; tap j of phase r is w[s·j + r]."""
    high, wide = taps
    inputs, outputs = weight.shape[:2]
    padded = np.zeros((inputs, outputs, stride * high, stride * wide), weight.dtype)
    padded[:, :, : weight.shape[2], : weight.shape[3]] = weight
    # [group, input, output, tap, phase, tap, phase]
    parts = padded.reshape(groups, inputs // groups, outputs, high, stride, wide, stride)[:, :, :, ::-1, :, ::-1]
    moved = parts.transpose(0, 2, 4, 6, 1, 3, 5)
    return moved.reshape(groups * outputs * stride**2, inputs // groups, high, wide)
