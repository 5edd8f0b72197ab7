"""Transposed convolutions as convolutions with DepthToSpace, which integer kernels know."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

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
    """Replace one transposed convolution by a convolution, a DepthToSpace and a Slice."""
    for node in graph.nodes:
        weight = graph.constant(node.input[1]) if node.op_type == "ConvTranspose" else None
        if node.name in kept or weight is None or weight.ndim != 4:
            continue
        form = _form_of(attributes_of(node), weight.shape[2:])
        bias = graph.constant(node.input[2]) if any(node.input[2:]) else np.zeros(0)
        if form is None or bias is None:
            continue
        inputs = [node.input[0], graph.add(f"{node.input[1]}.phases", _phases(weight, form))]
        if bias.size:
            inputs.append(graph.add(f"{node.input[2]}.phases", np.repeat(bias, form.stride**2)))
        base, convolved = node.output[0], f"{node.output[0]}.phases"
        new = [
            onnx.helper.make_node(
                "Conv",
                inputs,
                [convolved],
                name=f"{node.name}.phases",
                kernel_shape=form.taps,
                pads=[tap - 1 for tap in form.taps] * 2,
                strides=[1, 1],
                group=form.groups,
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
        graph.replace(old, [*new, *_interleaved(graph, form, node.name, convolved, base)])
        return True
    return False


class _Form(NamedTuple):
    """The sizes of a transposed convolution: stride, taps of a phase, crops before and after, groups."""

    stride: int
    taps: list[int]
    starts: list[int]
    ends: list[int]
    groups: int


def _form_of(attributes: Mapping[str, Any], kernel: Sequence[int]) -> _Form | None:
    """The sizes of a transposed convolution; None where it cannot be divided into phases."""
    strides, pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0] * 4)
    stride = strides[0]
    plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and attributes.get("dilations", [1, 1]) == [1, 1]
    # DepthToSpace has one block size; a stride of 1 leaves nothing to interleave.
    if not plain or "output_shape" in attributes or stride < 2 or strides[1] != stride:
        return None
    taps = [-(-k // stride) for k in kernel]
    # What the padding at the end leaves of the phases that are computed.
    more = attributes.get("output_padding", [0, 0])
    ends = [p - m + stride * t - k for k, t, p, m in zip(kernel, taps, pads[2:], more, strict=True)]
    return None if min(ends) < 0 else _Form(stride, taps, list(pads[:2]), ends, attributes.get("group", 1))


def _interleaved(graph: NodeIndex, form: _Form, name: str, source: str, target: str) -> list[onnx.NodeProto]:
    """The nodes that put the phases in `source` side by side, and crop the padding, into `target`."""
    cropped = any(form.starts) or any(form.ends)
    whole = f"{target}.whole" if cropped else target
    nodes = [
        onnx.helper.make_node(
            "DepthToSpace", [source], [whole], name=f"{name}.whole", blocksize=form.stride, mode="CRD"
        )
    ]
    if cropped:
        last = np.iinfo(np.int64).max
        bounds = (
            ("starts", form.starts),
            ("ends", [-end if end else last for end in form.ends]),
            ("axes", [2, 3]),
        )
        names = [graph.add(f"{target}.{what}", np.asarray(values, np.int64)) for what, values in bounds]
        nodes.append(onnx.helper.make_node("Slice", [whole, *names], [target], name=f"{name}.crop"))
    return nodes


def _phases(weight: Array, form: _Form) -> Array:
    """The convolution's weight, [outputs · s², inputs of a group, taps, taps]; tap j of phase r is w[s·j + r]."""
    stride, groups, (high, wide) = form.stride, form.groups, form.taps
    inputs, outputs = weight.shape[:2]
    padded = np.zeros((inputs, outputs, stride * high, stride * wide), weight.dtype)
    padded[:, :, : weight.shape[2], : weight.shape[3]] = weight
    # [group, input, output, tap, phase, tap, phase]
    parts = padded.reshape(groups, inputs // groups, outputs, high, stride, wide, stride)[:, :, :, ::-1, :, ::-1]
    moved = parts.transpose(0, 2, 4, 6, 1, 3, 5)
    return moved.reshape(groups * outputs * stride**2, inputs // groups, high, wide)
