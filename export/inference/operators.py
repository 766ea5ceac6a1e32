"""What a foreign ONNX file may contain, by the wire format alone.

Only operators that the zoo and the frameworks' exporters write: no subgraphs (loops, branches), no functions,
no operators of other domains.
"""

from __future__ import annotations

from pathlib import Path

from export.inference import seal
from zoo.errors import DataError

# What the zoo's own graphs and the exporters of PyTorch and Keras consist of, and their close relatives.
OPERATORS = frozenset([
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil", "Clip",
    "Concat", "Constant", "ConstantOfShape", "Conv", "DequantizeLinear", "Div", "Dropout", "Elu",
    "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu",
    "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu",
    "Reshape", "Resize", "Round", "Selu", "Shape", "Sigmoid", "Sign", "Slice", "Softmax", "Softplus",
    "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Tile",
    "Transpose", "Unsqueeze", "Where",
])  # fmt: skip


DOMAINS = ("", "ai.onnx")


# Fields of onnx.proto.
_GRAPH, _FUNCTIONS, _NODE = 7, 25, 1


_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7


_SUBGRAPH, _SUBGRAPHS = 6, 11


def check_operators(content: bytes) -> None:
    """Raise DataError, naming the first, if an ONNX file holds anything that no CNN here consists of."""
    try:
        for outer in seal.fields(content):
            if outer.number == _FUNCTIONS:
                raise DataError("the ONNX file holds functions of its own")
            if outer.number == _GRAPH:
                for inner in seal.fields(content, outer.start, outer.end):
                    if inner.number == _NODE:
                        _check_node(content, inner)
    except seal.Malformed as error:
        raise DataError(f"not an ONNX file, or cut short: {error}") from None


def _check_node(content: bytes, node: seal.Field) -> None:
    name, domain, nested = "", "", False
    for field in seal.fields(content, node.start, node.end):
        text = content[field.start : field.end]
        if field.number == _OPERATOR:
            name = text.decode(errors="replace")
        elif field.number == _DOMAIN:
            domain = text.decode(errors="replace")
        elif field.number == _ATTRIBUTE:
            inside = (inner.number for inner in seal.fields(content, field.start, field.end))
            nested = nested or any(number in (_SUBGRAPH, _SUBGRAPHS) for number in inside)
    if nested or domain not in DOMAINS or name not in OPERATORS:
        full = f"{domain}.{name}" if domain else name
        raise DataError(f"the ONNX file holds the operator {full[:80]!r}, of which no CNN here consists")


def looks_like_onnx(path: Path) -> bool:
    """Whether a large file starts as ONNX files do, with their version; small ones are read anyhow."""
    with path.open("rb") as file:
        return path.stat().st_size < 2**26 or file.read(1) == b"\x08"
