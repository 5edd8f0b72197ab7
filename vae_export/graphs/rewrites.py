"""Exact rewrites of ONNX graphs: the same function of the same weights, in fewer operations.

Weights are combined in float64 and rounded once. What is not known to be exact is left as it is.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import sympy
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

__all__ = ["nodes_of", "prune", "rewritten", "sub_pixel"]

Array = NDArray[Any]

_FUSED = "{} × nearest upsampling and convolution made one transposed convolution"
_SWAPPED = "{} × 1×1 convolution moved before the nearest upsampling"
_FIXED = "{} × shape of a Reshape made a constant"
_FOLDED = "{} × batch normalisation folded into the layer before it"
# Operators whose weights a batch normalisation can be folded into, with the axis of their outputs' channels.
_LAYERS = ("Conv", "ConvTranspose", "Gemm")
# Operators of each number by itself that quantizers make part of the convolution before them.
_POINTWISE = ("Relu", "LeakyRelu", "Clip")


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A graph that computes the same in fewer operations.

    Batch normalisations of constant statistics are folded into the convolution or dense layer before them. Nearest
    upsampling by an integer s and then a convolution of kernel k and stride 1 are one transposed convolution of kernel
    s + k − 1 and stride s, whose weights are sums of the convolution's: an upsampled row is
    u[j] = Σ_i x[i]·[0 ≤ j − s·i < s], so y[o] = Σ_t w[t]·u[o + t − p] = Σ_i x[i]·v[o + (k − 1 − p) − s·i] with
    v[q] = Σ_t w[t]·[0 ≤ q + t − (k − 1) < s], at the borders too, where u and x are 0 alike. A 1×1 convolution is moved
    before the upsampling. All that only where nothing else takes what lies between. The shape of a Reshape that is
    computed in each run, though but one of its sizes can vary, is made a constant.

    Args:
        model: a graph with its weights inside; left as it is.

    Returns:
        the new graph and what was done, a line for each kind; the graph given and no lines where nothing was.
    """
    if not any(node.op_type in ("Resize", "BatchNormalization", "Reshape") for node in model.graph.node):
        return model, ()
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    done: Counter[str] = Counter()
    for text, step in ((_FOLDED, _fold), (_FUSED, _fuse), (_SWAPPED, _swap)):
        while step(_Graph(changed)):
            done[text] += 1
    fixed = _fix_shapes(changed)
    if fixed:
        done[_FIXED] = fixed
    if not done:
        return model, ()
    prune(changed)
    return changed, tuple(text.format(count) for text, count in done.items())


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
    while _split(_Graph(changed), kept):
        count += 1
    if not count:
        return model, 0
    prune(changed)
    return changed, count


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
    """Take out the nodes and weights that nothing leads to an output from."""
    graph = model.graph
    kept: list[onnx.NodeProto] = []
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_taken(node))
    if len(kept) < len(graph.node):
        copies = [_copy(node) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(copies)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node takes, those that the graphs nested in it take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in graph.node:
                yield from _taken(inner)
            yield from (value.name for value in graph.output)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


class _Graph:
    """A graph's nodes by what they give and take, and its constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph.node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.uses = Counter(name for node in self.nodes for name in _taken(node))
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
            for copy in ([] if id(node) in gone else [_copy(node)]) + (list(new) if index == last else [])
        ]
        del self.graph.node[:]
        self.graph.node.extend(kept)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _fold(graph: _Graph) -> bool:
    """Fold one batch normalisation into the layer before it."""
    for node in graph.nodes:
        attributes = _attributes(node)
        if node.op_type != "BatchNormalization" or attributes.get("training_mode", 0) or len(node.output) != 1:
            continue
        layer = graph.before(node)
        statistics = [graph.float_constant(name) for name in node.input[1:]]
        if layer is None or layer.op_type not in _LAYERS or any(value is None for value in statistics):
            continue
        gamma, beta, mean, variance = (value for value in statistics if value is not None)
        weight = graph.float_constant(layer.input[1])
        bias = graph.float_constant(layer.input[2]) if any(layer.input[2:]) else np.zeros(len(gamma))
        if weight is None or bias is None or bias.shape != gamma.shape:
            continue
        factor = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        scaled = _scaled(layer, weight, factor)
        if scaled is None:
            continue
        names = [
            graph.add(f"{layer.input[1]}.folded", scaled.astype(np.float32)),
            graph.add(f"{node.input[2]}.folded", ((bias - mean) * factor + beta).astype(np.float32)),
        ]
        folded = _copy(layer)
        del folded.input[1:], folded.output[:]
        folded.input.extend(names)
        folded.output.append(node.output[0])
        graph.replace([layer, node], [folded])
        return True
    return False


def _scaled(layer: onnx.NodeProto, weight: Array, factor: Array) -> Array | None:
    """A layer's weight, each output channel of it multiplied."""
    attributes = _attributes(layer)
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "ConvTranspose":
        groups = attributes.get("group", 1)
        # [inputs, outputs of a group, …]: the inputs of one group after those of another
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        each: Array = parts * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        return each.reshape(weight.shape)
    if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        return None
    return weight * (factor[:, None] if attributes.get("transB", 0) else factor)


def _fuse(graph: _Graph) -> bool:
    """Make one nearest upsampling and the convolution after it a transposed convolution."""
    for node, resize, scales in _upsampled(graph):
        attributes, weight = _attributes(node), graph.float_constant(node.input[1])
        if weight is None or not _plain(attributes, weight.ndim - 2) or attributes.get("group", 1) != 1:
            continue
        kernel = weight.shape[2:]
        pads = attributes.get("pads", [0] * 2 * len(kernel))
        before, after = pads[: len(kernel)], pads[len(kernel) :]
        # The transposed convolution's own crop, which is what is left of the kernel beyond the convolution's padding.
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
    """v[q] = Σ_t w[t]·[0 ≤ q + t − (k − 1) < s] along one axis, for q from 0 to s + k − 2."""
    size = weight.shape[axis]
    rows = []
    for q in range(scale + size - 1):
        first = max(0, size - 1 - q)
        rows.append(weight.take(range(first, min(size, size - 1 - q + scale)), axis).sum(axis))
    return np.stack(rows, axis)


def _swap(graph: _Graph) -> bool:
    """Move one 1×1 convolution before the nearest upsampling that feeds it."""
    for node, resize, scales in _upsampled(graph):
        attributes, weight = _attributes(node), graph.constant(node.input[1])
        if weight is None or max(weight.shape[2:]) > 1 or any(attributes.get("pads", [])):
            continue
        if not _plain(attributes, weight.ndim - 2):
            continue
        small = f"{node.output[0]}.small"
        convolution = _copy(node)
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


def _plain(attributes: Mapping[str, Any], axes: int) -> bool:
    """Whether a convolution's stride and dilation are 1 and its padding is given in numbers."""
    ones = all(attributes.get(name, [1] * axes) == [1] * axes for name in ("strides", "dilations"))
    return ones and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"


def _upsampled(graph: _Graph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, list[int]]]:
    """Convolutions of what was upsampled for them alone, the upsampling, and by how much along each axis."""
    for node in graph.nodes:
        if node.op_type == "Conv":
            resize = graph.before(node)
            scales = None if resize is None or resize.op_type != "Resize" else _scales(graph, resize)
            if resize is not None and scales is not None:
                yield node, resize, scales


def _scales(graph: _Graph, resize: onnx.NodeProto) -> list[int] | None:
    """The integers by which a Resize repeats each value along the spatial axes; None where it does not do just that."""
    attributes = _attributes(resize)
    inputs = [*resize.input, "", "", ""][:4]
    given = graph.constant(inputs[2]) if inputs[2] else None
    if given is not None and given.size:
        factors: list[Fraction | None] = [Fraction(float(factor)) for factor in given]
    elif inputs[3]:
        factors = _ratios(graph.model, resize.input[0], resize.output[0])
    else:
        return None
    if attributes.get("mode", b"nearest") != b"nearest" or "axes" in attributes or len(factors) < 3:
        return None
    if attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return None
    whole = [int(factor) for factor in factors if factor is not None and factor.denominator == 1]
    if len(whole) < len(factors) or whole[:2] != [1, 1] or min(whole) < 1 or max(whole) == 1:
        return None
    where = attributes.get("coordinate_transformation_mode", b"half_pixel")
    how = attributes.get("nearest_mode", b"round_prefer_floor")
    return whole[2:] if all(_repeats(scale, where, how) for scale in whole[2:]) else None


def _repeats(scale: int, where: bytes, how: bytes) -> bool:
    """Whether output number o of a nearest Resize by an integer is input number ⌊o / scale⌋, for each o.

    One period tells it: the next one is the same, an input farther.
    """
    for output in range(scale):
        position = Fraction(output, scale)
        if where == b"half_pixel":
            position = Fraction(2 * output + 1, 2 * scale) - Fraction(1, 2)
        elif where != b"asymmetric":
            return False
        half = Fraction(1, 2)
        nearest = {
            b"floor": math.floor(position),
            b"ceil": math.ceil(position),
            b"round_prefer_floor": math.ceil(position - half),
            b"round_prefer_ceil": math.floor(position + half),
        }[how]
        # ONNX Runtime computes the position in float32, where a tie of a scale that is no power of 2 may fall anyhow.
        tie = (position - half).denominator == 1 and scale & (scale - 1)
        if nearest != 0 or (tie and how != b"floor"):
            return False
    return True


def _ratios(model: onnx.ModelProto, before: str, after: str) -> list[Fraction | None]:
    """The quotient of two tensors' sizes along each axis, where it is the same number for all sizes."""
    shapes = _shapes(model)
    if before not in shapes or after not in shapes or len(shapes[before]) != len(shapes[after]):
        return []
    quotients = [sympy.cancel(b / a) for a, b in zip(shapes[before], shapes[after], strict=True)]
    return [Fraction(int(q.p), int(q.q)) if q.is_Rational else None for q in quotients]


def _fix_shapes(model: onnx.ModelProto) -> int:
    """Make the shapes that Reshapes are given constants; how many."""
    graph = _Graph(model)
    waiting = [n for n in graph.nodes if n.op_type == "Reshape" and graph.constant(n.input[1]) is None]
    shapes = _shapes(model) if waiting else {}
    count = 0
    for node in waiting:
        before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        # 0 copies the size of the same axis, -1 is whatever is left.
        sizes = [
            int(size) if size.is_Integer else 0 if axis < len(before) and before[axis] == size else -1
            for axis, size in enumerate(after)
        ]
        if not after or sizes.count(-1) > 1 or any(size.is_Integer and size < 1 for size in after):
            continue
        # By default 0 copies; exporters may have said otherwise.
        del node.attribute[:]
        node.input[1] = graph.add(f"{node.output[0]}.shape", np.asarray(sizes, np.int64))
        count += 1
    return count


def _shapes(model: onnx.ModelProto) -> dict[str, list[Any]]:
    """The sizes of tensors as expressions in the names of the dynamic axes; none where they cannot be derived."""
    # What the exporter noted of the tensors between may hold sizes of the example.
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.value_info[:]
    graph = _Graph(copied)
    for node in graph.nodes:
        # Of a Constant the inference knows tensors alone.
        value = graph.constant(node.output[0]) if node.op_type == "Constant" else None
        if value is not None:
            node.CopyFrom(
                onnx.helper.make_node("Constant", [], list(node.output), value=numpy_helper.from_array(value))
            )
    try:
        # As `infer_shapes` does, which leaves a file in the working directory where it cannot derive all.
        inference = SymbolicShapeInference(2**31 - 1, False, False, 0)
        inference._preprocess(copied)
        whole = False
        while inference.run_:
            whole = inference._infer_impl()
        inference._update_output_from_vi()
        inferred = inference.out_mp_.graph
        if not whole:
            return {}
        return {
            value.name: [_size(dim) for dim in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }
    except Exception:
        # What cannot be derived is not known, and the graph stays as it is.
        return {}


def _size(dim: Any) -> Any:
    if not dim.dim_param:
        return sympy.Integer(dim.dim_value)
    names = {name: sympy.Symbol(name, positive=True) for name in re.findall(r"[A-Za-z_]\w*", dim.dim_param)}
    known = {name: getattr(sympy, name) for name in ("floor", "ceiling", "Max", "Min")}
    return sympy.parse_expr(dim.dim_param, local_dict={**names, **known})


def _split(graph: _Graph, kept: Collection[str]) -> bool:
    """Make one transposed convolution a convolution, a DepthToSpace and a Slice."""
    for node in graph.nodes:
        attributes = _attributes(node)
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
            active = _copy(after)
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
