"""What a graph may have: limits, operators, and the sizes that constants give to their outputs; for `graph_check`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


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
# What ONNX Runtime's optimizer, its quantizers and Olive write.
_MICROSOFT = _words("""
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj DequantizeLinear
    DynamicQuantizeLSTM DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation
    GatherBlockQuantized Gelu GemmFastGelu GridSample GroupNorm Irfft MatMulBnb4 MatMulFpQ4 MatMulInteger16
    MatMulIntegerToFloat MatMulNBits MulInteger MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool
    PackedMultiHeadAttention QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
    QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax
    QLinearWhere QuantizeLinear QuickGelu ReduceSumInteger Rfft RotaryEmbedding SimplifiedLayerNormalization
    SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu
""")
OPERATORS: Mapping[bytes, frozenset[bytes]] = {b"ai.onnx": _STANDARD, b"com.microsoft": _MICROSOFT}

# The types of floating-point numbers: float32, float16, float64 and bfloat16.
FLOATING = {1, 10, 11, 16}
# The first output holds floating-point numbers, whatever the inputs.
_FLOATS = _words("""
    Acos Acosh Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BiasGelu BiasSplitGelu Ceil Celu Conv
    ConvTranspose Cos Cosh DFT DeformConv DequantizeLinear Det DynamicQuantizeLSTM DynamicQuantizeMatMul Elu Erf Exp
    FastGelu Floor FusedConv FusedGemm FusedMatMul GRU Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNorm
    GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Log
    LogSoftmax LpNormalization LpPool MatMulIntegerToFloat MatMulNBits Mean MeanVarianceNormalization Mish
    MultiHeadAttention NhwcConv NhwcFusedConv QuickGelu RMSNormalization RNN Reciprocal Round STFT Selu Sigmoid Sin Sinh
    SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization Softmax Softplus
    Softsign Sqrt Swish Tan Tanh
""")
# The input whose type the first output has.
_KEEP_TYPES: Mapping[bytes, int] = {
    **dict.fromkeys(_words("""
        Abs Add CenterCropPad Clip Compress Concat CumSum DepthToSpace Div Dropout Einsum Expand Flatten Gather
        GatherElements GatherND Gemm Identity MatMul Max MaxPool Min Mod Mul Neg PRelu Pad Pow Range ReduceL1 ReduceL2
        ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
        Resize ScatterElements ScatterND Shrink Sign Slice SpaceToDepth Split Squeeze Sub Sum ThresholdedRelu Tile TopK
        Transpose Trilu Unsqueeze Upsample
    """), 0), b"Where": 1, b"CastLike": 1, b"OneHot": 2,
}  # fmt: skip


def gives_floats(operator: bytes, attributes: Mapping[bytes, tuple[int, Any]], floats: Sequence[bool]) -> bool:
    """Return whether an operator's first output is known to hold floating-point numbers.

    Args:
        operator: its name.
        attributes: the type and the value of each attribute by its name.
        floats: whether each input is known to hold such numbers.
    """
    value: Any
    if operator in _FLOATS:
        return True
    if operator == b"Cast":
        kind, value = attributes.get(b"to", (0, None))
        return kind == 2 and value[0] in FLOATING
    if operator in (b"Constant", b"ConstantOfShape"):
        # Without a value, ConstantOfShape gives float32.
        kind, value = next(iter(attributes.values()), (1, None))
        return kind in (1, 6) or (kind == 4 and value.get(2) in FLOATING)
    index = _KEEP_TYPES.get(operator)
    return index is not None and index < len(floats) and floats[index]


# Inputs that must be a constant of one number: with another shape, ONNX Runtime reads beyond it or ends the process.
SCALARS: Mapping[bytes, Sequence[int]] = {
    **dict.fromkeys(_words("QLinearAveragePool QLinearGlobalAveragePool QLinearLeakyRelu QLinearReduceMean "
                           "QLinearSigmoid QLinearSoftmax"), (1, 2, 3, 4)),
    **dict.fromkeys(_words("QLinearAdd QLinearMul"), (1, 2, 4, 5, 6, 7)),
    b"QLinearWhere": (2, 3, 5, 6, 7, 8), b"QLinearConcat": (0, 1), b"DFT": (1, 2), b"STFT": (1, 3),
}  # fmt: skip
# The input whose numbers are sizes or scales of axes.
SIZE_INPUTS: Mapping[bytes, int] = {
    b"AffineGrid": 1, b"CenterCropPad": 1, b"Col2Im": 1, b"ConstantOfShape": 0, b"Expand": 1, b"MaxUnpool": 2,
    b"Pad": 1, b"Reshape": 1, b"Resize": 3, b"Tile": 1,
}  # fmt: skip
# Outputs with at least as many elements as the largest input.
KEEP_SIZES = _words("""
    Abs Add And Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign
    Sin Softplus Softsign Sqrt Sub Sum Tan Tanh Where Xor
""")

Values = Sequence["list[Any] | None"]


def _product(values: list[Any] | None) -> float:
    # An axis of size 0, or -1 for "as it is", counts as 1.
    product: float = math.prod(max(1, value) for value in values or ())
    return product


def _at(values: Values, index: int) -> list[Any] | None:
    return values[index] if index < len(values) else None


def _first(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    return counts[0]


def _expand(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    return max(counts[0], _product(_at(values, 1)))


def _shape_in(index: int) -> Callable[..., float]:
    return lambda values, counts, attributes: _product(_at(values, index))


def _tile(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    return max(1, counts[0]) * _product(_at(values, 1))


def _range(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    if any(not value for value in values[:3]):
        return 1
    start, limit, step = (float(value[0]) for value in values[:3] if value)
    return max(0.0, (limit - start) / step)


def _pad(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    pads = _at(values, 1) or []
    half = len(pads) // 2
    return _product([1 + low + high for low, high in zip(pads[:half], pads[half:], strict=False)])


def _resize(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    scales = _at(values, 1 if len(values) == 2 else 2)
    scaled = counts[0] * math.prod(scales) if scales else 1
    return max(scaled, _product(_at(values, 3)))


def _one_hot(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    return counts[0] * _product(_at(values, 1))


def _concat(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    return sum(counts)


def _gather(values: Values, counts: list[int], attributes: Mapping[bytes, Any]) -> float:
    return counts[1]


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
