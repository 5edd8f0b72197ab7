"""Replace transposed convolutions by convolutions whose channels are interleaved, which integer kernels support."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from .nodes import NodeIndex, attributes_of, copy_of, prune
from .sizes import infer_sizes

Array = NDArray[Any]
# Elementwise operators that quantizers merge into the convolution before them.
_POINTWISE = ("Relu", "LeakyRelu", "Clip")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def sub_pixel(model: onnx.ModelProto, kept: Collection[str] = ()) -> tuple[onnx.ModelProto, int]:
    """Return a graph whose transposed convolutions are convolutions with a group of output channels for each phase.

    Output s·q + r of a transposed convolution with kernel k and stride s is Σ_j x[q − j]·w[s·j + r] before the crop.
    A convolution with kernel ⌈k / s⌉ computes its s phases, which are interleaved (Shi et al., arXiv 1609.05158) and
    cropped. Quantizers and integer kernels support these operators, but not the transposed convolution.

    Between two convolutions of known sizes the channels are interleaved as the last axis, where ONNX Runtime's integer
    convolutions have them: it removes the Transposes at both ends, and the rest moves whole rows of channels.
    Elsewhere DepthToSpace interleaves them, one number at a time.

    Args:
        model: a graph with inline weights; not modified.
        kept: the names of nodes to leave alone.

    Returns:
        The new graph and the number of replaced nodes; the given graph and 0 if none can be replaced.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    count = 0
    sizes = infer_sizes(model) if any(node.op_type == "ConvTranspose" for node in model.graph.node) else {}
    while _split(NodeIndex(changed), kept, sizes):
        count += 1
    if not count:
        return model, 0
    prune(changed)
    return changed, count


def _split(graph: NodeIndex, kept: Collection[str], sizes: Mapping[str, Sequence[Any]]) -> bool:
    """Replace one transposed convolution by a convolution and the nodes that interleave its phases, if there is one."""
    for node in graph.nodes:
        weight = graph.constant(node.input[1]) if node.op_type == "ConvTranspose" else None
        if node.name in kept or weight is None or weight.ndim != 4:
            continue
        geometry = _geometry_of(attributes_of(node), weight.shape[2:])
        bias = graph.constant(node.input[2]) if any(node.input[2:]) else np.zeros(0)
        if geometry is None or bias is None:
            continue
        base, convolved = node.output[0], f"{node.output[0]}.phases"
        after = next((user for user in graph.nodes if base in user.input[:1]), None)
        merged = after is not None and after.op_type in _POINTWISE and graph.uses[base] == 1
        result = after.output[0] if after is not None and merged else base
        whole = _whole(geometry, sizes.get(base, ())) if _feeds_convolution(graph, result) else None
        inputs = [
            node.input[0],
            graph.add(f"{node.input[1]}.phases", _phases(weight, geometry, last=whole is not None)),
        ]
        if bias.size:
            repeat = np.repeat if whole is None else np.tile
            inputs.append(graph.add(f"{node.input[2]}.phases", repeat(bias, geometry.stride**2)))
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
        if after is not None and merged:
            # Elementwise operators commute with the interleaving; before it, integer kernels merge them into the
            # convolution.
            active = copy_of(after)
            active.input[0], convolved = convolved, f"{base}.active"
            active.output[0] = convolved
            new.append(active)
            old.append(after)
        if whole is None:
            new += _interleaved(graph, geometry, node.name, convolved, result)
        else:
            new += _interleaved_last(graph, geometry, whole, node.name, convolved, result)
        graph.replace(old, new)
        return True
    return False


def _feeds_convolution(graph: NodeIndex, name: str) -> bool:
    return any(name in node.input[:1] for node in graph.nodes if node.op_type in _CONVOLUTIONS)


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


def _whole(geometry: _Geometry, cropped: Sequence[Any]) -> list[int] | None:
    """Return the height, width and channels before the crop if the channels can be the last axis, else None.

    `cropped` is the shape of the result, as `infer_sizes` gives it.
    """
    if geometry.groups != 1 or len(cropped) != 4 or not all(size.is_Integer for size in cropped[1:]):
        return None
    channels, *sizes = (int(size) for size in cropped[1:])
    return [*(sum(each) for each in zip(sizes, geometry.starts, geometry.ends, strict=True)), channels]


def _interleaved(graph: NodeIndex, geometry: _Geometry, name: str, source: str, target: str) -> list[onnx.NodeProto]:
    """Return the nodes that interleave the phases in `source`, crop the padding, and write `target`."""
    whole = f"{target}.whole"
    crop = _crop(graph, geometry, name, whole, target, 2)
    interleaved = onnx.helper.make_node(
        "DepthToSpace",
        [source],
        [whole if crop else target],
        name=f"{name}.whole",
        blocksize=geometry.stride,
        mode="CRD",
    )
    return [interleaved, *crop]


def _interleaved_last(
    graph: NodeIndex, geometry: _Geometry, whole: Sequence[int], name: str, source: str, target: str
) -> list[onnx.NodeProto]:
    """Return nodes that do the same with the channels as the last axis."""
    stride = geometry.stride
    shapes = {"split": [0, 0, 0, stride, -1], "joined": [0, *whole]}
    # The batch may be of any size: 0 copies it.
    split, joined = (graph.add(f"{target}.{what}", np.asarray(shape, np.int64)) for what, shape in shapes.items())
    crop = _crop(graph, geometry, name, f"{target}.whole", f"{target}.cropped", 1)
    make = onnx.helper.make_node
    return [
        make("Transpose", [source], [f"{target}.last"], name=f"{name}.last", perm=[0, 2, 3, 1]),
        make("Reshape", [f"{target}.last", split], [f"{target}.parts"], name=f"{name}.parts"),
        make("Transpose", [f"{target}.parts"], [f"{target}.rows"], name=f"{name}.rows", perm=[0, 1, 3, 2, 4]),
        make("Reshape", [f"{target}.rows", joined], [f"{target}.whole"], name=f"{name}.whole"),
        *crop,
        make("Transpose", [crop[0].output[0] if crop else f"{target}.whole"], [target], name=f"{name}.first",
             perm=[0, 3, 1, 2]),
    ]  # fmt: skip


def _crop(
    graph: NodeIndex, geometry: _Geometry, name: str, source: str, target: str, axis: int
) -> list[onnx.NodeProto]:
    """Return a Slice that crops the padding of height and width, of which `axis` is the first; none without padding."""
    if not any(geometry.starts) and not any(geometry.ends):
        return []
    last = np.iinfo(np.int64).max
    bounds = (
        ("starts", geometry.starts),
        ("ends", [-end if end else last for end in geometry.ends]),
        ("axes", [axis, axis + 1]),
    )
    names = [graph.add(f"{target}.{what}", np.asarray(values, np.int64)) for what, values in bounds]
    return [onnx.helper.make_node("Slice", [source, *names], [target], name=f"{name}.crop")]


def _phases(weight: Array, geometry: _Geometry, *, last: bool) -> Array:
    """Return the convolution's weight [outputs · s², inputs of a group, taps, taps]; tap j of phase r is w[s·j + r].

    The phases of an output are neighbors, or with `last` the outputs of a phase.
    """
    stride, groups, (high, wide) = geometry.stride, geometry.groups, geometry.taps
    inputs, outputs = weight.shape[:2]
    padded = np.zeros((inputs, outputs, stride * high, stride * wide), weight.dtype)
    padded[:, :, : weight.shape[2], : weight.shape[3]] = weight
    # [group, input, output, tap, phase, tap, phase]
    parts = padded.reshape(groups, inputs // groups, outputs, high, stride, wide, stride)[:, :, :, ::-1, :, ::-1]
    moved = parts.transpose(4, 6, 0, 2, 1, 3, 5) if last else parts.transpose(0, 2, 4, 6, 1, 3, 5)
    return moved.reshape(groups * outputs * stride**2, inputs // groups, high, wide)
