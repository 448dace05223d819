"""The operators and data types that exported graphs have, in all releases and precisions; a graph has no others.

None of them runs another graph, reads or writes a file, or has code of its own.
"""

from __future__ import annotations

DOMAINS = frozenset({"", "ai.onnx"})  # two names of the operators that ONNX itself defines
OPSETS = frozenset({23})
IR_VERSIONS = frozenset({10})

OPERATORS = frozenset(
    {
        # arithmetic
        *("Abs", "Add", "Clip", "Div", "Exp", "Mul", "Sqrt", "Sub", "Sigmoid", "Gelu"),
        *("ReduceMean", "ReduceSum", "Equal", "Greater", "GreaterOrEqual", "Where"),
        # layers
        *("Attention", "Conv", "Gemm", "MatMul", "RotaryEmbedding"),
        *("GroupNormalization", "LayerNormalization", "RMSNormalization"),
        # numbers of other types: `Cast` of stored weights, the other two of integers with scales
        *("Cast", "DequantizeLinear", "QuantizeLinear"),
        # moving values
        *("Concat", "DepthToSpace", "Expand", "Gather", "Range", "Reshape", "Shape", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)

# Number of bits of the data types of constants, by their numbers in onnx.proto.
FLOAT, INT8, INT64, FLOAT16, BFLOAT16, INT4 = 1, 3, 7, 10, 16, 22
BITS = {FLOAT: 32, INT8: 8, INT64: 64, FLOAT16: 16, BFLOAT16: 16, INT4: 4}
# Data types of ports.
PORTS = {"float32": FLOAT, "int64": INT64}
