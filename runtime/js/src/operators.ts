/** Names of the operators of ONNX; data, and a file of its own in the package. */

/** The operators of ai.onnx that give the same answer every time, without Loop and Scan, strings and sequences. */
export const STANDARD =
  "Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization " +
  "BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip " +
  "Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT " +
  "DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand " +
  "EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool " +
  "Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax " +
  "Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log " +
  "LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxUnpool Mean MeanVarianceNormalization Min " +
  "Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization " +
  "RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd " +
  "ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RotaryEmbedding Round STFT Scatter ScatterElements " +
  "ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt " +
  "Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample " +
  "Where Xor SimplifiedLayerNormalization";

/** What ONNX Runtime's optimizer, its quantizers and Olive write, of com.microsoft. */
export const MICROSOFT =
  "Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj DequantizeLinear " +
  "DynamicQuantizeLSTM DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation " +
  "GatherBlockQuantized Gelu GemmFastGelu GridSample GroupNorm Inverse Irfft MatMulBnb4 MatMulFpQ4 MatMulInteger16 " +
  "MatMulIntegerToFloat MatMulNBits MulInteger MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool " +
  "PackedMultiHeadAttention QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv " +
  "QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax " +
  "QLinearWhere QuantizeLinear QuickGelu ReduceSumInteger Rfft RotaryEmbedding SimplifiedLayerNormalization " +
  "SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu";

/** Those of which outputs have at least as many elements as the largest input. */
export const KEEP =
  "Abs Add And Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity " +
  "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign " +
  "Sin Softplus Softsign Sqrt Sub Sum Tan Tanh Where Xor";

/** Those of which outputs have as many elements as the first input. */
export const FIRST =
  "Reshape Flatten Squeeze Unsqueeze Transpose Cast CumSum EyeLike QuantizeLinear Softmax DequantizeLinear ScatterND " +
  "ScatterElements DepthToSpace SpaceToDepth Trilu";

/** Those that take the shape of their output as input 0, and as input 1. */
export const SHAPED_BY_0 = "ConstantOfShape HannWindow HammingWindow BlackmanWindow";
export const SHAPED_BY_1 = "Col2Im DFT CenterCropPad";

/** Attributes that are smaller in any real graph. */
export const LENGTHS =
  "pads strides dilations kernel_shape output_shape output_padding output_height output_width blocksize hidden_size";

/** Attributes by which ONNX Runtime divides. */
export const DIVISORS = "group num_groups num_heads q_num_heads kv_num_heads blocksize strides";
