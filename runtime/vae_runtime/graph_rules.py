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
    NAME = 2**12
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
# beforehand, and without strings, sequences and optionals.
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
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RotaryEmbedding Round STFT Scatter ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample
    Where Xor SimplifiedLayerNormalization
""")
# What ONNX Runtime's optimizer, its quantizers and Olive write.
_MICROSOFT = _words("""
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj DequantizeLinear
    DynamicQuantizeLSTM DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation
    GatherBlockQuantized Gelu GemmFastGelu GridSample GroupNorm Inverse Irfft MatMulBnb4 MatMulFpQ4 MatMulInteger16
    MatMulIntegerToFloat MatMulNBits MulInteger MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool
    PackedMultiHeadAttention QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
    QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax
    QLinearWhere QuantizeLinear QuickGelu ReduceSumInteger Rfft RotaryEmbedding SimplifiedLayerNormalization
    SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu
""")
OPERATORS: Mapping[bytes, frozenset[bytes]] = {b"ai.onnx": _STANDARD, b"com.microsoft": _MICROSOFT}

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
    b"MaxUnpool": _shape_in(2),
    **dict.fromkeys(_words("Reshape Flatten Squeeze Unsqueeze Transpose Cast CumSum EyeLike QuantizeLinear Softmax "
                           "DequantizeLinear ScatterND ScatterElements DepthToSpace SpaceToDepth Trilu"), _first),
}  # fmt: skip
