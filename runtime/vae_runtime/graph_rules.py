"""What a graph may have: limits, operators, and the sizes that constants give to their outputs; for `graph_check`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .onnx_file import refuse, shown


class Limits:
    """What a graph may have at most. Sizes of names and texts are bytes."""

    # What the supported versions of ONNX Runtime load between them.
    IR_VERSIONS = 3, 14
    OPSETS = 9, 28
    FIELDS = 2**19
    NODES = 2**14
    ARGUMENTS = 2**11
    ATTRIBUTES = 64
    INTEGERS = 2**14
    METADATA = 256
    OPERATOR_SETS = 32
    TEXT = 2**16
    RANK = 16
    DEPTH = 8
    CONSTANT = 64
    SPATIAL = 2**16
    DECLARED = 2**40
    EXPLAINED = 2**20

    @staticmethod
    def max_elements(size: int, elements: int) -> int:
        """Return how many elements a tensor may have that constants alone make, for files of `size` bytes."""
        return 2**24 + 16 * size + 1024 * elements


def _words(text: str) -> frozenset[bytes]:
    return frozenset(text.encode().split())


# The operators of ai.onnx that give the same answer every time, without Loop and Scan, whose trips nobody can count
# beforehand, without strings, sequences and optionals, and without ReverseSequence and Unique, which end the process
# where a shape is wrong.
_STANDARD = _words("""
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip
    Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT
    DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
    Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax
    Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxUnpool Mean MeanVarianceNormalization Min
    Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization
    RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round STFT Scatter ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample
    Where Xor SimplifiedLayerNormalization
""")
# What ONNX Runtime's optimizer, its quantizers and Olive write, without RotaryEmbedding, whose positions old versions
# take as indices without a look.
_MICROSOFT = _words("""
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj DequantizeLinear
    DynamicQuantizeLSTM DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation
    GatherBlockQuantized Gelu GemmFastGelu GridSample GroupNorm Irfft MatMulBnb4 MatMulFpQ4 MatMulInteger16
    MatMulIntegerToFloat MatMulNBits MulInteger MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool
    PackedMultiHeadAttention QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
    QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax
    QLinearWhere QuantizeLinear QuickGelu ReduceSumInteger Rfft SimplifiedLayerNormalization
    SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu
""")
OPERATORS: Mapping[bytes, frozenset[bytes]] = {b"ai.onnx": _STANDARD, b"com.microsoft": _MICROSOFT}

# ONNX Runtime reads session options from this key of a model where an environment variable says so.
OPTIONS_KEY = b"ort_config"
# Axes, pads and the like are smaller in any real graph.
SPATIAL = {b"pads", b"strides", b"dilations", b"kernel_shape", b"output_shape", b"output_padding", b"output_height",
           b"output_width", b"blocksize", b"hidden_size"}  # fmt: skip
# What ONNX Runtime divides by.
POSITIVE = {b"group", b"num_groups", b"num_heads", b"q_num_heads", b"kv_num_heads", b"blocksize", b"strides"}

# The types of floating-point numbers: float32, float16, float64 and bfloat16.
FLOATING = {1, 10, 11, 16}
# All outputs hold floating-point numbers, whatever the inputs.
_FLOATS = _words("""
    Acos Acosh AffineGrid Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BiasAdd BiasGelu BiasSoftmax
    BiasSplitGelu Ceil Celu ComplexMul ComplexMulConj Conv ConvTranspose Cos Cosh DFT DeformConv DequantizeLinear Det
    DynamicQuantizeLSTM DynamicQuantizeMatMul Elu Exp FastGelu Floor FusedConv FusedMatMul FusedMatMulActivation GRU
    GatherBlockQuantized Gelu GemmFastGelu GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNorm GroupNormalization
    HardSigmoid HardSwish Hardmax InstanceNormalization Irfft LRN LSTM LayerNormalization LeakyRelu Log LogSoftmax
    LpNormalization LpPool MatMulBnb4 MatMulFpQ4 MatMulIntegerToFloat MatMulNBits MaxUnpool Mean
    MeanVarianceNormalization Mish MultiHeadAttention NhwcConv NhwcFusedConv PackedMultiHeadAttention QAttention
    QuickGelu RMSNormalization RNN Reciprocal Rfft RotaryEmbedding Round STFT Selu Sigmoid SimplifiedLayerNormalization
    Sin Sinh SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization Softmax Softplus Softsign Sqrt Sum
    Swish Tan Tanh ThresholdedRelu TransposeMatMul
""")
# The input whose type the first output has.
_KEEP_TYPES: Mapping[bytes, int] = {
    **dict.fromkeys(_words("""
        Abs Add CenterCropPad Clip Col2Im Compress Concat CumProd CumSum DepthToSpace Div Dropout Einsum Erf Expand
        Flatten FusedGemm Gather GatherElements GatherND Gemm GridSample Identity MatMul Max MaxPool Min Mod Mul Neg
        PRelu Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Reshape Resize Scatter ScatterElements ScatterND Shrink Sign Slice SpaceToDepth
        Split Squeeze Sub TensorScatter Tile TopK Transpose Trilu Unsqueeze Upsample
    """), 0), b"Where": 1, b"CastLike": 1, b"OneHot": 2,
}  # fmt: skip
# The attribute that names the type of the only output, and the type without it; None is that of the first input.
_NAMED_TYPES: Mapping[bytes, tuple[bytes, int | None]] = {
    b"Cast": (b"to", 0), b"EyeLike": (b"dtype", None),
    **dict.fromkeys(_words("BlackmanWindow HammingWindow HannWindow"), (b"output_datatype", 1)),
}  # fmt: skip


def float_results(
    operator: bytes, attributes: Mapping[bytes, tuple[int, Any]], floats: Sequence[bool], results: Sequence[bytes]
) -> Sequence[bytes]:
    """Return the outputs of an operator that are known to hold floating-point numbers.

    Args:
        operator: its name.
        attributes: the type and the value of each attribute by its name.
        floats: whether each input is known to hold such numbers.
        results: the names of its outputs.
    """
    value: Any
    if operator in _FLOATS:
        return results
    if operator == b"DynamicQuantizeLinear":
        return results[1:2]
    if operator in _NAMED_TYPES:
        name, default = _NAMED_TYPES[operator]
        named = attributes[name][1][0] if attributes.get(name, (0,))[0] == 2 else default
        is_float = any(floats[:1]) if named is None else named in FLOATING
    elif operator in (b"Constant", b"ConstantOfShape"):
        # Without a value, ConstantOfShape gives float32. ONNX passes over attributes whose names begin with "__".
        kind, value = attributes.get(b"value") or next(iter(attributes.values()), (1, None))
        is_float = kind in (1, 6) or (kind == 4 and value.get(2) in FLOATING)
    elif operator == b"QGemm":
        # With a zero point of the output, it is quantized.
        is_float = len(floats) < 9
    else:
        index = _KEEP_TYPES.get(operator)
        is_float = index is not None and index < len(floats) and floats[index]
    if not is_float:
        return ()
    return results if alike(operator) else results[:1]


def alike(operator: bytes) -> bool:
    """Return whether what is known of an operator's first output is true of all its outputs."""
    return operator == b"Split"


# Inputs that must be a constant of one number: with another shape, ONNX Runtime reads beyond it or ends the process.
_SCALARS: Mapping[bytes, Sequence[int]] = {
    **dict.fromkeys(_words("QLinearAveragePool QLinearGlobalAveragePool QLinearLeakyRelu QLinearReduceMean "
                           "QLinearSigmoid QLinearSoftmax"), (1, 2, 3, 4)),
    **dict.fromkeys(_words("QLinearAdd QLinearMul"), (1, 2, 4, 5, 6, 7)),
    b"QLinearWhere": (2, 3, 5, 6, 7, 8), b"QLinearConcat": (0, 1), b"DFT": (1, 2), b"STFT": (1, 3),
}  # fmt: skip


def _positive(values: list[Any] | None) -> bool:
    return bool(values) and min(values or ()) >= 1


class Tensors:
    """What is known of the tensors that are defined so far, by their names."""

    def __init__(self) -> None:
        self.counts: dict[bytes, int] = {}
        """How many elements each has at least, in the order of definition."""
        self.axes: dict[bytes, int] = {}
        """How many axes each has at least."""
        self.floats: set[bytes] = set()
        """The tensors that hold floating-point numbers."""
        self.numbers: set[bytes] = set()
        """The tensors whose values depend on the numbers of the graph's inputs, and not on their shapes alone."""
        self.positive: set[bytes] = set()
        """The tensors whose numbers are at least 1 if they are integers."""
        self.weights: set[bytes] = set()
        """The initializers that have elements, and what a cast makes of them."""
        self.constants: dict[bytes, Any] = {}
        """Small constants: the fields of the tensor, or the values already."""

    def define(self, name: bytes, count: int, axes: int, kind: int = 0) -> None:
        """Take a new name; `kind` is the type of the tensor's numbers, as far as it is known."""
        if not name:
            refuse("a name", "nothing")
        if name in self.counts:
            refuse("each name defined once", f"{shown(name)} twice")
        self.counts[name], self.axes[name] = count, axes
        if kind in FLOATING:
            self.floats.add(name)

    def follow(self, operator: bytes, names: Sequence[bytes], results: Sequence[bytes], values: Values) -> None:
        """Note whether outputs depend on numbers, as a branch's always may, are weights, and are at least 1."""
        if operator not in (b"Shape", b"Size") and (operator == b"If" or not self.numbers.isdisjoint(names)):
            self.numbers.update(results)
        if operator in (b"Cast", b"CastLike", b"Identity") and not self.weights.isdisjoint(names[:1]):
            self.weights.update(results[:1])
        # The upper bound of Clip is the answer where it is below the lower one.
        if (operator == b"Max" and any(_positive(values(index)) for index in range(len(names)))) or (
            operator == b"Clip" and _positive(values(1)) and (not any(names[2:]) or _positive(values(2)))
        ):
            self.positive.update(results[:1])

    def forget(self, first: int) -> None:
        """Remove all names but the first so many."""
        for name in list(self.counts)[first:]:
            del self.counts[name], self.axes[name]
            self.floats.discard(name)
            self.weights.discard(name)
            self.numbers.discard(name)
            self.positive.discard(name)
            self.constants.pop(name, None)


# The values of a constant input by its index; None where it is no small constant.
Values = Callable[[int], "list[Any] | None"]

# How many inputs an operator has at least, beyond what ONNX asks for: ONNX Runtime looks at them without asking.
_MIN_INPUTS: Mapping[bytes, int] = {b"QLinearLeakyRelu": 5, b"QLinearSigmoid": 5}
# An input that may be absent, but not have an empty name, which ONNX Runtime follows to nothing.
_NOT_EMPTY: Mapping[bytes, int] = {b"DFT": 2, b"LayerNormalization": 2}
# The first input must have an axis.
_ARRAYS = _words("DFT GridSample STFT")
# An input that must be an initializer with elements, and how many axes it has: 0 stands for any number.
_WEIGHTS: Mapping[bytes, tuple[int, int]] = {
    b"DynamicQuantizeMatMul": (1, 2), b"MatMulIntegerToFloat": (1, 2), b"STFT": (2, 1),
    b"QLinearConv": (3, 0),
}  # fmt: skip
# The bits of a weight where no attribute says them, of operators that read as many weights as attributes say.
_PACKED: Mapping[bytes, int] = {b"MatMulNBits": 4, b"MatMulBnb4": 4}
# Inputs that give the output its size, which numbers of observations and latents must not do: nothing would bound it.
_SIZES: Mapping[bytes, Sequence[int]] = {
    b"Range": (0, 1, 2), b"Resize": (1, 2, 3), b"Col2Im": (1, 2), b"MaxUnpool": (2,),
    **dict.fromkeys(_words("BlackmanWindow ConstantOfShape HammingWindow HannWindow"), (0,)),
    **dict.fromkeys(_words("AffineGrid CenterCropPad DFT Expand OneHot Pad Tile Upsample"), (1,)),
}  # fmt: skip
# The first output has the axes of the first input.
_KEEP_AXES = _words("""
    BatchNormalization Cast CastLike Concat Conv ConvTranspose CumSum DFT DepthToSpace DequantizeLinear Dropout Flatten
    GridSample Identity InstanceNormalization LayerNormalization MaxPool AveragePool PRelu Pad QuantizeLinear Resize
    STFT ScatterND Slice Softmax SpaceToDepth Split Tile Transpose Trilu
""")


def min_axes(operator: bytes, attributes: Mapping[bytes, tuple[int, Any]], values: Values, axes: Sequence[int]) -> int:
    """Return how many axes an operator's first output has at least, as far as that is known.

    Args:
        operator: its name.
        attributes: the type and the value of each attribute by its name.
        values: the values of a constant input by its index; None where it is no small constant.
        axes: how many axes each input has at least.
    """
    if not axes:
        return 0
    if operator in KEEP_SIZES:
        return max(axes)
    if operator in _KEEP_AXES:
        return axes[0]
    if operator == b"Reshape":
        return len(values(1) or ())
    if operator == b"Expand":
        return max(axes[0], len(values(1) or ()))
    if operator in (b"Squeeze", b"Unsqueeze"):
        # Before operator set 13, they were an attribute.
        changed = attributes[b"axes"][1] if b"axes" in attributes else values(1)
        if changed is not None:
            return max(0, axes[0] + (len(changed) if operator == b"Unsqueeze" else -len(changed)))
    return 0


# The input whose numbers are sizes or scales of axes.
_SIZE_INPUTS: Mapping[bytes, int] = {
    b"AffineGrid": 1, b"CenterCropPad": 1, b"Col2Im": 1, b"ConstantOfShape": 0, b"Expand": 1, b"MaxUnpool": 2,
    b"Pad": 1, b"Reshape": 1, b"Resize": 3, b"Tile": 1,
}  # fmt: skip
# Outputs with at least as many elements as the largest input.
KEEP_SIZES = _words("""
    Abs Add And Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign
    Sin Softplus Softsign Sqrt Sub Sum Tan Tanh Where Xor
""")


def _product(values: list[Any] | None) -> float:
    # An axis of size 0, or -1 for "as it is", counts as 1.
    product: float = math.prod(max(1, value) for value in values or ())
    return product


def _first(values: Values, counts: list[int]) -> float:
    return counts[0]


def _expand(values: Values, counts: list[int]) -> float:
    return max(counts[0], _product(values(1)))


def _shape_in(index: int) -> Callable[..., float]:
    return lambda values, counts: _product(values(index))


def _tile(values: Values, counts: list[int]) -> float:
    return max(1, counts[0]) * _product(values(1))


def _range(values: Values, counts: list[int]) -> float:
    ends = [value for value in map(values, range(3)) if value]
    if len(ends) < 3:
        return 1
    start, limit, step = (float(value[0]) for value in ends)
    return max(0.0, (limit - start) / step)


def _pad(values: Values, counts: list[int]) -> float:
    pads = values(1) or []
    half = len(pads) // 2
    return _product([1 + low + high for low, high in zip(pads[:half], pads[half:], strict=False)])


def _resize(values: Values, counts: list[int]) -> float:
    scales = values(1 if len(counts) == 2 else 2)
    scaled = counts[0] * math.prod(scales) if scales else 1
    return max(scaled, _product(values(3)))


def _one_hot(values: Values, counts: list[int]) -> float:
    return counts[0] * _product(values(1))


def _concat(values: Values, counts: list[int]) -> float:
    return sum(counts)


def _gather(values: Values, counts: list[int]) -> float:
    return counts[1]


def require_safe(
    operator: bytes,
    names: Sequence[bytes],
    known: Tensors,
    values: Values,
    attributes: Mapping[bytes, tuple[int, Any]],
    results: int,
) -> None:
    """Refuse a node that makes ONNX Runtime compute something else, or end the process.

    Args:
        operator: its name.
        names: of its inputs.
        known: the tensors before it.
        values: the values of its constant inputs.
        attributes: the type and the value of each attribute by its name.
        results: how many outputs it has.
    """
    if operator == b"Dropout" and len(names) > 2 and names[2] and any(values(2) or [1]):
        refuse("Dropout that does not train", "one whose input 2 is not a constant false")
    if operator in (b"Div", b"Mod") and known.floats.isdisjoint(names) and known.positive.isdisjoint(names[1:]):
        # An integer has no quotient by 0, and the lowest has none by -1: the processor ends the process.
        divisors = values(1)
        if divisors is None or any(value in (0, -1) for value in divisors):
            refuse(
                "a division of floating-point numbers, or by constants other than 0 and -1, or by Max or Clip with a "
                "constant of at least 1",
                "another",
            )
    if operator == b"Split" and b"num_outputs" in attributes and attributes[b"num_outputs"][1] != [results]:
        refuse(f"num_outputs of {results}, the number of outputs", attributes[b"num_outputs"][1])
    if operator in _SIZE_INPUTS:
        index = _SIZE_INPUTS[operator]
        if index < len(names) and known.counts.get(names[index], 0) > 2 * Limits.RANK:
            refuse(f"at most {Limits.RANK} axes", f"{known.counts[names[index]]} numbers for them")
    for index in _SIZES.get(operator, ()):
        if index < len(names) and names[index] in known.numbers:
            refuse(
                f"sizes that follow from shapes as input {index}", f"{shown(names[index])}, which follows from numbers"
            )
    for index in _SCALARS.get(operator, ()):
        name = names[index] if index < len(names) else b""
        if name and (name not in known.constants or known.counts[name] != 1):
            refuse(f"a constant of one number as input {index}", shown(name))
    if operator in _WEIGHTS:
        index, axes = _WEIGHTS[operator]
        for name in names[index : index + 1]:
            if name and (name not in known.weights or (axes and known.axes[name] != axes)):
                rank = f" of rank {axes}" if axes else ""
                refuse(f"an initializer{rank} with elements as input {index}", shown(name))
    if operator in _PACKED:
        _require_packed(operator, names, known, attributes)
    if operator in _ARRAYS and names and not known.axes.get(names[0]):
        refuse("an input 0 that has axes for certain", shown(names[0]))
    if len(names) < _MIN_INPUTS.get(operator, 0):
        refuse(f"{_MIN_INPUTS[operator]} inputs", len(names))
    if operator in _NOT_EMPTY and not all(names[_NOT_EMPTY[operator] :][:1]):
        refuse(f"an input {_NOT_EMPTY[operator]} with a name, or none", "an empty name")


def _require_packed(
    operator: bytes, names: Sequence[bytes], known: Tensors, attributes: Mapping[bytes, tuple[int, Any]]
) -> None:
    """Refuse packed weights that have fewer bytes, blocks or zero points than ONNX Runtime reads."""

    def number(name: bytes, default: int = 0) -> int:
        kind, value = attributes.get(name, (0, None))
        return int(value[0]) if kind == 2 else default

    rows, columns, block, bits = number(b"N"), number(b"K"), number(b"block_size"), number(b"bits", _PACKED[operator])
    if min(rows, columns, block) < 1 or not 1 <= bits <= 8:
        refuse("N, K and block_size of at least 1, and 1 to 8 bits", [rows, columns, block, bits])
    if operator == b"MatMulNBits":
        blocks = -(-columns // block)
        needed = [rows * blocks * (block * bits // 8), rows * blocks, rows * -(-blocks * bits // 8)]
    else:
        needed = [-(-rows * columns * bits // 8), -(-rows * columns // block)]
    for index, (name, count) in enumerate(zip(names[1:], needed, strict=False), 1):
        if name and (name not in known.weights or known.counts[name] < count):
            refuse(f"an initializer of {count} elements as input {index}", shown(name))


# How many elements an output has at least, from the values of constant inputs and the inputs' numbers of elements.
FREE_SIZES: Mapping[bytes, Callable[..., float]] = {
    b"Expand": _expand, b"Tile": _tile, b"Range": _range, b"Pad": _pad, b"Resize": _resize, b"Upsample": _resize,
    b"OneHot": _one_hot, b"Concat": _concat, b"Gather": _gather, b"GatherElements": _gather,
    b"ConstantOfShape": _shape_in(0), b"HannWindow": _shape_in(0), b"HammingWindow": _shape_in(0),
    b"BlackmanWindow": _shape_in(0), b"Col2Im": _shape_in(1), b"DFT": _shape_in(1), b"CenterCropPad": _shape_in(1),
    b"MaxUnpool": _shape_in(2), b"AffineGrid": _shape_in(1),
    **dict.fromkeys(_words("Reshape Flatten Squeeze Unsqueeze Transpose Cast CumSum EyeLike QuantizeLinear Softmax "
                           "DequantizeLinear ScatterND ScatterElements DepthToSpace SpaceToDepth Trilu"), _first),
}  # fmt: skip
