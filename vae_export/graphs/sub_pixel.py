"""Replace transposed convolutions by convolutions with DepthToSpace, which integer kernels support."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from .nodes import NodeIndex, attributes_of, copy_of, prune

Array = NDArray[Any]
# Elementwise operators that quantizers merge into the convolution before them.
_POINTWISE = ("Relu", "LeakyRelu", "Clip")


def sub_pixel(model: onnx.ModelProto, kept: Collection[str] = ()) -> tuple[onnx.ModelProto, int]:
    """Return a graph whose transposed convolutions are convolutions with a group of output channels for each phase.

    Output s·q + r of a transposed convolution with kernel k and stride s is Σ_j x[q − j]·w[s·j + r] before the crop.
    A convolution with kernel ⌈k / s⌉ computes its s phases, DepthToSpace interleaves them (Shi et al., arXiv
    1609.05158), and a Slice crops the padding. Quantizers and integer kernels support these operators, but not the
    transposed convolution.

    Args:
        model: a graph with inline weights; not modified.
        kept: the names of nodes to leave alone.

    Returns:
        The new graph and the number of replaced nodes; the given graph and 0 if none can be replaced.
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
    """Replace one transposed convolution by a convolution, a DepthToSpace and a Slice, if there is one."""
    for node in graph.nodes:
        weight = graph.constant(node.input[1]) if node.op_type == "ConvTranspose" else None
        if node.name in kept or weight is None or weight.ndim != 4:
            continue
        geometry = _geometry_of(attributes_of(node), weight.shape[2:])
        bias = graph.constant(node.input[2]) if any(node.input[2:]) else np.zeros(0)
        if geometry is None or bias is None:
            continue
        inputs = [node.input[0], graph.add(f"{node.input[1]}.phases", _phases(weight, geometry))]
        if bias.size:
            inputs.append(graph.add(f"{node.input[2]}.phases", np.repeat(bias, geometry.stride**2)))
        base, convolved = node.output[0], f"{node.output[0]}.phases"
        new = [
            onnx.helper.make_node(
                "Conv",
                inputs,
                [convolved],
                name=f"{node.name}.phases",
                kernel_shape=geometry.taps,
                pads=[tap - 1 for tap in geometry.taps] * 2,
                strides=[1, 1],
                group=geometry.groups,
            )
        ]
        old = [node]
        after = next((user for user in graph.nodes if base in user.input[:1]), None)
        if after is not None and after.op_type in _POINTWISE and graph.uses[base] == 1:
            # Elementwise operators commute with the interleaving; before it, integer kernels merge them into the
            # convolution.
            active = copy_of(after)
            active.input[0], convolved = convolved, f"{base}.active"
            base, active.output[0] = after.output[0], convolved
            new.append(active)
            old.append(after)
        graph.replace(old, [*new, *_interleaved(graph, geometry, node.name, convolved, base)])
        return True
    return False


class _Geometry(NamedTuple):
    """The sizes of a transposed convolution: stride, taps of a phase, crops at the start and the end, groups."""

    stride: int
    taps: list[int]
    starts: list[int]
    ends: list[int]
    groups: int


def _geometry_of(attributes: Mapping[str, Any], kernel: Sequence[int]) -> _Geometry | None:
    """Return the sizes of a transposed convolution; None if it cannot be divided into phases."""
    strides, pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0] * 4)
    stride = strides[0]
    simple = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and attributes.get("dilations", [1, 1]) == [1, 1]
    # DepthToSpace has one block size for both axes; a stride of 1 leaves nothing to interleave.
    if not simple or "output_shape" in attributes or stride < 2 or strides[1] != stride:
        return None
    taps = [-(-k // stride) for k in kernel]
    # The phases may compute more outputs than there are: the end of them is cropped.
    output_padding = attributes.get("output_padding", [0, 0])
    ends = [p - o + stride * t - k for k, t, p, o in zip(kernel, taps, pads[2:], output_padding, strict=True)]
    return None if min(ends) < 0 else _Geometry(stride, taps, list(pads[:2]), ends, attributes.get("group", 1))


def _interleaved(graph: NodeIndex, geometry: _Geometry, name: str, source: str, target: str) -> list[onnx.NodeProto]:
    """Return the nodes that interleave the phases in `source`, crop the padding, and write `target`."""
    cropped = any(geometry.starts) or any(geometry.ends)
    interleaved = f"{target}.whole" if cropped else target
    nodes = [
        onnx.helper.make_node(
            "DepthToSpace", [source], [interleaved], name=f"{name}.whole", blocksize=geometry.stride, mode="CRD"
        )
    ]
    if cropped:
        last = np.iinfo(np.int64).max
        bounds = (
            ("starts", geometry.starts),
            ("ends", [-end if end else last for end in geometry.ends]),
            ("axes", [2, 3]),
        )
        names = [graph.add(f"{target}.{what}", np.asarray(values, np.int64)) for what, values in bounds]
        nodes.append(onnx.helper.make_node("Slice", [interleaved, *names], [target], name=f"{name}.crop"))
    return nodes


def _phases(weight: Array, geometry: _Geometry) -> Array:
    """Return the convolution's weight [outputs · s², inputs of a group, taps, taps]; tap j of phase r is w[s·j + r]."""
    stride, groups, (high, wide) = geometry.stride, geometry.groups, geometry.taps
    inputs, outputs = weight.shape[:2]
    padded = np.zeros((inputs, outputs, stride * high, stride * wide), weight.dtype)
    padded[:, :, : weight.shape[2], : weight.shape[3]] = weight
    # [group, input, output, tap, phase, tap, phase]
    parts = padded.reshape(groups, inputs // groups, outputs, high, stride, wide, stride)[:, :, :, ::-1, :, ::-1]
    moved = parts.transpose(0, 2, 4, 6, 1, 3, 5)
    return moved.reshape(groups * outputs * stride**2, inputs // groups, high, wide)
