"""Exact rewrites of ONNX graphs: the same function of the same weights, in fewer operations.

Weights are combined in float64 and rounded once. A part of a graph is rewritten only where the result is exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import sympy
from numpy.typing import NDArray

from .nodes import NodeIndex, attributes_of, copy_of, prune
from .sizes import infer_sizes
from .sub_pixel import sub_pixel

Array = NDArray[Any]
_FUSED = "{} × nearest upsampling and convolution made one transposed convolution"
_SWAPPED = "{} × 1×1 convolution moved before the nearest upsampling"
_FIXED = "{} × shape of a Reshape made a constant"
_FOLDED = "{} × batch normalization folded into the layer before it"
_SPLIT = "{} × transposed convolution of any picture made a convolution whose channels are interleaved"
_REWRITTEN = ("Resize", "BatchNormalization", "Reshape", "ConvTranspose")
# Operators that a batch normalization can be folded into.
_LAYERS = ("Conv", "ConvTranspose", "Gemm")
# Products of a transposed convolution for each place of its input, from which on convolving each phase is faster for
# pictures of 64 × 64 and more.
_MIN_PRODUCTS = 2**9
# Operators of one input that work on each number alone.
_ELEMENTWISE = ("Clip", "Exp", "Relu", "Sigmoid", "Softplus", "Tanh")


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a graph that computes the same in fewer operations.

    Five rewrites are made, the first three only where nothing else reads the value between the two operators:

    - A batch normalization with constant statistics is folded into the convolution or dense layer before it.
    - A nearest upsampling by an integer s and the convolution of kernel k and stride 1 after it become one transposed
      convolution of kernel s + k − 1 and stride s. Its weights are sums of the convolution's: an upsampled row is
      u[j] = Σ_i x[i]·[0 ≤ j − s·i < s], so y[o] = Σ_t w[t]·u[o + t − p] = Σ_i x[i]·v[o + (k − 1 − p) − s·i] with
      v[q] = Σ_t w[t]·[0 ≤ q + t − (k − 1) < s]. This holds at the borders too, where both u and x are 0.
    - A 1×1 convolution after a nearest upsampling is moved before it.
    - The shape of a Reshape that is computed in each run becomes a constant if at most one of its sizes can vary.
    - A transposed convolution whose height and width both vary becomes a convolution whose channels are interleaved.
      ONNX Runtime keeps all products of a transposed convolution at once, before it sums them: at kernel 4 and stride
      2, four times the memory of the output.

    Args:
        model: a graph with inline weights; not modified.

    Returns:
        The new graph, and a line for each kind of rewrite that was made. Without any, the given graph and no lines.
    """
    if not any(node.op_type in _REWRITTEN for node in model.graph.node):
        return model, ()
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    done: Counter[str] = Counter()
    for text, step in ((_FOLDED, _fold), (_FUSED, _fuse), (_SWAPPED, _swap)):
        while step(NodeIndex(changed)):
            done[text] += 1
    fixed = _fix_shapes(changed)
    if fixed:
        done[_FIXED] = fixed
    changed, split = _split(changed)
    if split:
        done[_SPLIT] = split
    if not done:
        return model, ()
    prune(changed)
    return changed, tuple(text.format(count) for text, count in done.items())


def shapes_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in which a Reshape to an output comes before the elementwise operator that it follows.

    ONNX Runtime copies what a Reshape writes to an output; elsewhere it only looks at the same memory. In float32 a
    dense layer contains its activation, where a Reshape between the two would cost more.

    Args:
        model: a graph; not modified.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    while _shape_first(NodeIndex(changed)):
        pass
    return changed


def _shape_first(graph: NodeIndex) -> bool:
    """Swap one elementwise operator and the Reshape to an output after it; return whether there were such."""
    outputs = {value.name for value in graph.graph.output}
    for node in graph.nodes:
        active = graph.unshared_producer(node) if node.op_type == "Reshape" and node.output[0] in outputs else None
        if active is None or active.op_type not in _ELEMENTWISE:
            continue
        shaped, then = copy_of(node), copy_of(active)
        shaped.input[0], shaped.output[0] = active.input[0], f"{node.output[0]}.shaped"
        then.input[0], then.output[0] = shaped.output[0], node.output[0]
        graph.replace([active, node], [shaped, then])
        return True
    return False


def _fold(graph: NodeIndex) -> bool:
    """Fold one batch normalization into the layer before it; return whether there was one."""
    for node in graph.nodes:
        attributes = attributes_of(node)
        if node.op_type != "BatchNormalization" or attributes.get("training_mode", 0) or len(node.output) != 1:
            continue
        layer = graph.unshared_producer(node)
        statistics = [graph.float_constant(name) for name in node.input[1:]]
        if layer is None or layer.op_type not in _LAYERS or any(value is None for value in statistics):
            continue
        gamma, beta, mean, variance = (value for value in statistics if value is not None)
        weight = graph.float_constant(layer.input[1])
        bias = graph.float_constant(layer.input[2]) if any(layer.input[2:]) else np.zeros(len(gamma))
        if weight is None or bias is None or bias.shape != gamma.shape:
            continue
        factor = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        scaled = _scale_channels(layer, weight, factor)
        if scaled is None:
            continue
        names = [
            graph.add(f"{layer.input[1]}.folded", scaled.astype(np.float32)),
            graph.add(f"{node.input[2]}.folded", ((bias - mean) * factor + beta).astype(np.float32)),
        ]
        folded = copy_of(layer)
        del folded.input[1:], folded.output[:]
        folded.input.extend(names)
        folded.output.append(node.output[0])
        graph.replace([layer, node], [folded])
        return True
    return False


def _scale_channels(layer: onnx.NodeProto, weight: Array, factor: Array) -> Array | None:
    """Return a layer's weight with each output channel multiplied by its factor; None if the layer scales it itself."""
    attributes = attributes_of(layer)
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "ConvTranspose":
        groups = attributes.get("group", 1)
        # The weight is [inputs, outputs of a group, …], with the inputs of the groups one after another.
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        scaled: Array = parts * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        return scaled.reshape(weight.shape)
    if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        return None
    return weight * (factor[:, None] if attributes.get("transB", 0) else factor)


def _fuse(graph: NodeIndex) -> bool:
    """Fuse one nearest upsampling and the convolution after it; return whether there was one."""
    for node, resize, scales in _upsampled_convolutions(graph):
        attributes, weight = attributes_of(node), graph.float_constant(node.input[1])
        if weight is None or not _has_unit_steps(attributes, weight.ndim - 2) or attributes.get("group", 1) != 1:
            continue
        kernel = weight.shape[2:]
        pads = attributes.get("pads", [0] * 2 * len(kernel))
        before, after = pads[: len(kernel)], pads[len(kernel) :]
        # The transposed convolution crops the part of the kernel that goes beyond the convolution's padding.
        crops = [k - 1 - p for k, p in zip([*kernel, *kernel], [*before, *after], strict=True)]
        if max(kernel) == 1 or min(crops) < 0:
            continue
        summed = weight
        for axis, scale in enumerate(scales, 2):
            summed = _sums(summed, axis, scale)
        name = graph.add(f"{node.input[1]}.summed", summed.swapaxes(0, 1).astype(np.float32))
        fused = onnx.helper.make_node(
            "ConvTranspose",
            [resize.input[0], name, *node.input[2:]],
            list(node.output),
            name=node.name,
            kernel_shape=summed.shape[2:],
            strides=scales,
            pads=crops,
        )
        graph.replace([resize, node], [fused])
        return True
    return False


def _sums(weight: Array, axis: int, scale: int) -> Array:
    """Return v[q] = Σ_t w[t]·[0 ≤ q + t − (k − 1) < s] along one axis, for q from 0 to s + k − 2."""
    size = weight.shape[axis]
    rows = []
    for q in range(scale + size - 1):
        first = max(0, size - 1 - q)
        rows.append(weight.take(range(first, min(size, size - 1 - q + scale)), axis).sum(axis))
    return np.stack(rows, axis)


def _swap(graph: NodeIndex) -> bool:
    """Move one 1×1 convolution before the nearest upsampling that feeds it; return whether there was one."""
    for node, resize, scales in _upsampled_convolutions(graph):
        attributes, weight = attributes_of(node), graph.constant(node.input[1])
        if weight is None or max(weight.shape[2:]) > 1 or any(attributes.get("pads", [])):
            continue
        if not _has_unit_steps(attributes, weight.ndim - 2):
            continue
        small = f"{node.output[0]}.small"
        convolution = copy_of(node)
        convolution.input[0], convolution.output[0] = resize.input[0], small
        name = graph.add(f"{node.output[0]}.scales", np.asarray([1, 1, *scales], np.float32))
        upsampling = onnx.helper.make_node(
            "Resize",
            [small, "", name],
            list(node.output),
            name=resize.name,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        graph.replace([resize, node], [convolution, upsampling])
        return True
    return False


def _has_unit_steps(attributes: Mapping[str, Any], axes: int) -> bool:
    """Return whether a convolution's strides and dilations are 1 and its padding is given in numbers."""
    ones = all(attributes.get(name, [1] * axes) == [1] * axes for name in ("strides", "dilations"))
    return ones and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"


def _upsampled_convolutions(graph: NodeIndex) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, list[int]]]:
    """Yield each convolution that alone reads a nearest upsampling, the upsampling, and its scale along each axis."""
    for node in graph.nodes:
        if node.op_type == "Conv":
            resize = graph.unshared_producer(node)
            scales = None if resize is None or resize.op_type != "Resize" else _scales(graph, resize)
            if resize is not None and scales is not None:
                yield node, resize, scales


def _scales(graph: NodeIndex, resize: onnx.NodeProto) -> list[int] | None:
    """Return the integers by which a Resize repeats values along the spatial axes; None for any other Resize."""
    attributes = attributes_of(resize)
    inputs = [*resize.input, "", "", ""][:4]
    scales = graph.constant(inputs[2]) if inputs[2] else None
    if scales is not None and scales.size:
        factors: list[Fraction | None] = [Fraction(float(scale)) for scale in scales]
    elif inputs[3]:
        factors = _ratios(graph.model, resize.input[0], resize.output[0])
    else:
        return None
    if attributes.get("mode", b"nearest") != b"nearest" or "axes" in attributes or len(factors) < 3:
        return None
    if attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return None
    integers = [int(factor) for factor in factors if factor is not None and factor.denominator == 1]
    if len(integers) < len(factors) or integers[:2] != [1, 1] or min(integers) < 1 or max(integers) == 1:
        return None
    coordinates = attributes.get("coordinate_transformation_mode", b"half_pixel")
    rounding = attributes.get("nearest_mode", b"round_prefer_floor")
    return integers[2:] if all(_repeats(scale, coordinates, rounding) for scale in integers[2:]) else None


def _repeats(scale: int, coordinates: bytes, rounding: bytes) -> bool:
    """Return whether output o of a nearest Resize by an integer is input ⌊o / scale⌋, for each o.

    It is enough to check the first `scale` outputs: the pattern repeats with the next input.
    """
    for output in range(scale):
        position = Fraction(output, scale)
        if coordinates == b"half_pixel":
            position = Fraction(2 * output + 1, 2 * scale) - Fraction(1, 2)
        elif coordinates != b"asymmetric":
            return False
        half = Fraction(1, 2)
        nearest = {
            b"floor": math.floor(position),
            b"ceil": math.ceil(position),
            b"round_prefer_floor": math.ceil(position - half),
            b"round_prefer_ceil": math.floor(position + half),
        }[rounding]
        # ONNX Runtime computes positions in float32, where a tie can round either way unless the scale is a power of 2.
        tie = (position - half).denominator == 1 and scale & (scale - 1)
        if nearest != 0 or (tie and rounding != b"floor"):
            return False
    return True


def _ratios(model: onnx.ModelProto, source: str, target: str) -> list[Fraction | None]:
    """Return the ratio of two tensors' sizes along each axis, None where it varies with the dynamic sizes."""
    shapes = infer_sizes(model)
    if source not in shapes or target not in shapes or len(shapes[source]) != len(shapes[target]):
        return []
    quotients = [sympy.cancel(b / a) for a, b in zip(shapes[source], shapes[target], strict=True)]
    return [Fraction(int(q.p), int(q.q)) if q.is_Rational else None for q in quotients]


def _fix_shapes(model: onnx.ModelProto) -> int:
    """Make the shape inputs of Reshapes constants; return how many were changed."""
    graph = NodeIndex(model)
    waiting = [n for n in graph.nodes if n.op_type == "Reshape" and graph.constant(n.input[1]) is None]
    shapes = infer_sizes(model) if waiting else {}
    count = 0
    for node in waiting:
        before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        # In a Reshape, 0 copies the size of the same axis, and -1 stands for the remaining size.
        sizes = [
            int(size) if size.is_Integer else 0 if axis < len(before) and before[axis] == size else -1
            for axis, size in enumerate(after)
        ]
        if not after or sizes.count(-1) > 1 or any(size.is_Integer and size < 1 for size in after):
            continue
        # Exporters may set allowzero=1; 0 copies only without it.
        del node.attribute[:]
        node.input[1] = graph.add(f"{node.output[0]}.shape", np.asarray(sizes, np.int64))
        count += 1
    return count


def _split(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Split the transposed convolutions of pictures of any size, if they are wide; return the graph and how many."""
    graph = NodeIndex(model)
    nodes = [node for node in graph.nodes if node.op_type == "ConvTranspose"]
    sizes = infer_sizes(model) if nodes else {}
    kept = {node.name for node in nodes if not _is_large(graph, node, sizes)}
    return (model, 0) if len(kept) == len(nodes) else sub_pixel(model, kept)


def _is_large(graph: NodeIndex, node: onnx.NodeProto, sizes: Mapping[str, list[Any]]) -> bool:
    """Return whether a transposed convolution has many products, and its height and width may be anything."""
    weight, shape = graph.constant(node.input[1]), sizes.get(node.input[0], [])
    return (
        weight is not None
        and len(shape) == weight.ndim == 4
        and not any(size.is_Integer for size in shape[2:])
        and math.prod(weight.shape[1:]) >= _MIN_PRODUCTS
    )
