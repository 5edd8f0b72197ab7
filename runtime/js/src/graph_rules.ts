/** What a graph may have: operators, and the sizes that constants give to their outputs; for `graph_check`. */

/** How many elements a tensor may have that constants alone make, for files of `size` bytes. */
export function maxElements(size: number, elements: number): number {
  return 2 ** 24 + 16 * size + 1024 * elements;
}

const words = (text: string) => text.trim().split(/\s+/);

// The operators of ai.onnx that give the same answer every time, without Loop and Scan, strings and sequences.
const STANDARD = words(`
  Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
  BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip
  Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT
  DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
  EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
  Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax
  Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
  LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxUnpool Mean MeanVarianceNormalization Min
  Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN
  Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
  ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RotaryEmbedding Round STFT Scatter ScatterElements
  ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
  Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample
  Where Xor SimplifiedLayerNormalization
`);
// What ONNX Runtime's optimizer, its quantizers and Olive write.
const MICROSOFT = words(`
  Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj DequantizeLinear
  DynamicQuantizeLSTM DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation
  GatherBlockQuantized Gelu GemmFastGelu GridSample GroupNorm Inverse Irfft MatMulBnb4 MatMulFpQ4 MatMulInteger16
  MatMulIntegerToFloat MatMulNBits MulInteger MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool
  PackedMultiHeadAttention QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
  QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere
  QuantizeLinear QuickGelu ReduceSumInteger Rfft RotaryEmbedding SimplifiedLayerNormalization SkipGroupNorm
  SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu
`);
export const OPERATORS = new Map([["ai.onnx", new Set(STANDARD)], ["com.microsoft", new Set(MICROSOFT)]]);

/** Outputs with at least as many elements as the largest input. */
export const KEEP_SIZES = new Set(words(`
  Abs Add And Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity
  LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign
  Sin Softplus Softsign Sqrt Sub Sum Tan Tanh Where Xor
`));

type Values = (number[] | null)[];
type Rule = (values: Values, counts: number[]) => number;

// An axis of size 0, or -1 for "as it is", counts as 1.
const product = (values?: number[] | null): number => (values ?? []).reduce((all, value) => all * Math.max(1, value), 1);
const shapeIn = (index: number): Rule => (values) => product(values[index]);
const resize: Rule = (values, counts) => {
  const scales = values[values.length === 2 ? 1 : 2];
  const scaled = scales?.length ? scales.reduce((all, scale) => all * scale, counts[0]) : 1;
  return Math.max(scaled, product(values[3]));
};
const pad: Rule = (values) => {
  const pads = values[1] ?? [];
  const half = pads.length >> 1;
  return product(pads.slice(0, half).map((low, axis) => 1 + low + pads[half + axis]));
};
const range: Rule = (values) => {
  const [start, limit, step] = values.map((value) => value?.[0]);
  if (start === undefined || limit === undefined || step === undefined) return 1;
  return Math.max(0, (limit - start) / step);
};

const each = (names: string, rule: Rule): [string, Rule][] => words(names).map((name) => [name, rule]);

/** How many elements an output has at least, from the values of constant inputs and the inputs' numbers of elements. */
export const FREE_SIZES: Map<string, Rule> = new Map([
  ...each("Expand", (values, counts) => Math.max(counts[0], product(values[1]))),
  ...each("Tile", (values, counts) => Math.max(1, counts[0]) * product(values[1])),
  ...each("Range", range),
  ...each("Pad", pad),
  ...each("Resize Upsample", resize),
  ...each("OneHot", (values, counts) => counts[0] * product(values[1])),
  ...each("Concat", (_, counts) => counts.reduce((all, count) => all + count, 0)),
  ...each("Gather GatherElements", (_, counts) => counts[1]),
  ...each("ConstantOfShape HannWindow HammingWindow BlackmanWindow", shapeIn(0)),
  ...each("Col2Im DFT CenterCropPad", shapeIn(1)),
  ...each("MaxUnpool", shapeIn(2)),
  ...each(
    "Reshape Flatten Squeeze Unsqueeze Transpose Cast CumSum EyeLike QuantizeLinear Softmax DequantizeLinear ScatterND " +
      "ScatterElements DepthToSpace SpaceToDepth Trilu",
    (_, counts) => counts[0],
  ),
]);
