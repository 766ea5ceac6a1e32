"""The direct exporter: a model and canonical weights become one ONNX graph, one rule per layer.

The graph is a pure function of model, weights and the zoo's version: the same bytes whichever
backend trained them, on every machine. Every node and tensor bears its layer's path; the input is
`image` float32 [batch, C, H, W] in [0, 1], the output `logits` or `probabilities`, or `features`
where there are no labels. Preprocessing is inside, because it is a layer. Every file carries what
it can be checked with where it is deployed: test vectors and hashes (export/inference/vectors.py, seal.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch
from math import pi, sqrt
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import zoo
from export.inference.metadata import PRODUCER
from export.onnx.file import describe
from zoo.errors import UnsupportedLayer
from zoo.layers import (
    ELU,
    GELU,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSigmoid,
    HardSwish,
    Layer,
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    ReLU6,
    Residual,
    Scale,
    Sigmoid,
    SiLU,
    Softmax,
    SpatialDropout,
    Tanh,
)
from zoo.model import IMAGE, Model, Node
from zoo.weights import Weights, check

OPSET = 18  # 18 to 20 run on every current runtime; 18 is also what both native exporters write
IR_VERSION = 10
INPUT = "image"
BATCH = "batch"


@singledispatch
def emit(layer: Layer, node: Node, x: Any, y: str) -> tuple[list[NodeProto], Weights]:
    """The nodes of one layer from tensor x to tensor y, and the constants it adds by name.

    x: of a join, the tuple of all that it joins. The layer's own weights are already there as
    "<path>.<weight>".
    """
    raise UnsupportedLayer(f"the ONNX exporter has no rule for {type(layer).__name__}")


@emit.register
def normalize(layer: Normalize, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    constants = {
        f"{node.path}.mean": np.array(layer.mean, dtype=np.float32).reshape(-1, 1, 1),
        f"{node.path}.scale": np.array(layer.scale, dtype=np.float32).reshape(-1, 1, 1),
    }
    centred = f"{node.path}.centred"
    return [
        helper.make_node("Sub", [x, f"{node.path}.mean"], [centred], centred),
        helper.make_node("Mul", [centred, f"{node.path}.scale"], [y], node.path),
    ], constants


@emit.register
def conv2d(layer: Conv2d, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    inputs = [x, f"{node.path}.weight", *([f"{node.path}.bias"] if layer.bias else [])]
    made = helper.make_node(
        "Conv",
        inputs,
        [y],
        node.path,
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.padding,
        dilations=layer.dilation,
        group=layer.groups,
    )
    return [made], {}


@emit.register
def batch_norm(layer: BatchNorm, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    names = (f"{node.path}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    return _Chain(node.path).end(y, "BatchNormalization", x, *names, epsilon=layer.epsilon, training_mode=0)


@emit.register
def local_response_norm(
    layer: LocalResponseNorm, node: Node, x: str, y: str
) -> tuple[list[NodeProto], Weights]:
    """Of one channel by its formula: onnxruntime keeps a running sum over the channels, and what is left when
    a large square leaves it can be more than the next one, or negative: NaN."""
    chain = _Chain(node.path)
    if layer.size == 1:
        scaled = chain.add("scaled", "Mul", chain.add("square", "Mul", x, x), layer.alpha)
        power = chain.add("power", "Pow", chain.add("sum", "Add", scaled, layer.k), layer.beta)
        return chain.end(y, "Div", x, power)
    return chain.end(y, "LRN", x, size=layer.size, alpha=layer.alpha, beta=layer.beta, bias=layer.k)


@emit.register
def relu(layer: ReLU, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Relu", [x], [y], node.path)], {}


@emit.register
def relu6(layer: ReLU6, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return _Chain(node.path).end(y, "Clip", x, 0, 6)


@emit.register
def leaky_relu(layer: LeakyReLU, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("LeakyRelu", [x], [y], node.path, alpha=layer.slope)], {}


@emit.register
def elu(layer: ELU, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Elu", [x], [y], node.path, alpha=layer.alpha)], {}


@emit.register
def sigmoid(layer: Sigmoid, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Sigmoid", [x], [y], node.path)], {}


@emit.register
def tanh(layer: Tanh, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Tanh", [x], [y], node.path)], {}


@emit.register
def gelu(layer: GELU, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    """In the operators that the formula names: an operator of its own comes with opset 20 only."""
    chain = _Chain(node.path)
    if layer.approximate == "tanh":
        cube = chain.add("cube", "Mul", chain.add("square", "Mul", x, x), x)
        total = chain.add("sum", "Add", x, chain.add("part", "Mul", cube, 0.044715))
        inner = chain.add("inner", "Mul", total, sqrt(2 / pi))
        curve = chain.add("tanh", "Tanh", inner)
    else:
        curve = chain.add("erf", "Erf", chain.add("scaled", "Mul", x, 1 / sqrt(2)))
    half = chain.add("half", "Mul", x, 0.5)
    return chain.end(y, "Mul", half, chain.add("above", "Add", curve, 1))


@emit.register
def silu(layer: SiLU, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    chain = _Chain(node.path)
    return chain.end(y, "Mul", x, chain.add("gate", "Sigmoid", x))


@emit.register
def hard_sigmoid(layer: HardSigmoid, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("HardSigmoid", [x], [y], node.path, alpha=1 / 6, beta=0.5)], {}


@emit.register
def hard_swish(layer: HardSwish, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("HardSwish", [x], [y], node.path)], {}


@emit.register
def max_pool2d(layer: MaxPool2d, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    sides = layer.sides(node.input_shape)
    pads = {"pads": sides} if any(sides) else {}
    return _Chain(node.path).end(y, "MaxPool", x, kernel_shape=layer.size, strides=layer.stride, **pads)


@emit.register
def avg_pool2d(layer: AvgPool2d, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    """AveragePool counts all of its padding or nothing: what `ceil` adds is never counted, so where the
    rest is, that is padded beforehand."""
    chain = _Chain(node.path)
    sides, counted = layer.sides(node.input_shape), layer.count_padding
    if counted and sides != layer.padding:
        top, left, bottom, right = layer.padding
        around = np.array([0, 0, top, left, 0, 0, bottom, right], dtype=np.int64)
        x = chain.add("padded", "Pad", x, around)
        sides, counted = (0, 0, sides[2] - bottom, sides[3] - right), False
    pads = {"pads": sides} if any(sides) else {}
    size = {"kernel_shape": layer.size, "strides": layer.stride}
    return chain.end(y, "AveragePool", x, count_include_pad=int(counted), **size, **pads)


@emit.register
def adaptive_avg_pool2d(
    layer: AdaptiveAvgPool2d, node: Node, x: str, y: str
) -> tuple[list[NodeProto], Weights]:
    """A mean over the columns of each cell, then over its rows: two products with matrices of shares."""
    rows, columns = (
        shares(cells, length)
        for cells, length in zip(layer.cells(node.input_shape), node.input_shape[1:], strict=True)
    )
    chain = _Chain(node.path)
    return chain.end(y, "MatMul", rows, chain.add("columns", "MatMul", x, columns.T))


@emit.register
def global_avg_pool2d(layer: GlobalAvgPool2d, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("GlobalAveragePool", [x], [y], node.path)], {}


@emit.register
def dropout(layer: Dropout, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Identity", [x], [y], node.path)], {}


@emit.register
def spatial_dropout(layer: SpatialDropout, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Identity", [x], [y], node.path)], {}


@emit.register
def flatten(layer: Flatten, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Flatten", [x], [y], node.path, axis=1)], {}


@emit.register
def dense(layer: Dense, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    inputs = [x, f"{node.path}.weight", *([f"{node.path}.bias"] if layer.bias else [])]
    return [helper.make_node("Gemm", inputs, [y], node.path, alpha=1.0, beta=1.0, transB=1)], {}


@emit.register
def softmax(layer: Softmax, node: Node, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Softmax", [x], [y], node.path, axis=1)], {}


@emit.register
def residual(layer: Residual, node: Node, x: tuple[str, str], y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Add", x, [y], node.path)], {}


@emit.register
def concat(layer: Concat, node: Node, x: tuple[str, ...], y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Concat", x, [y], node.path, axis=1)], {}


@emit.register
def scale(layer: Scale, node: Node, x: tuple[str, str], y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Mul", x, [y], node.path)], {}


class _Chain:
    """The nodes of one layer that takes several, named after it, and the constants in between."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._nodes: list[NodeProto] = []
        self._constants: Weights = {}

    def add(self, name: str, operator: str, *inputs: str | float | np.ndarray, **attributes: Any) -> str:
        """A node that is not the last; the name of its tensor."""
        tensor = f"{self._path}.{name}"
        self._add(tensor, tensor, operator, inputs, attributes)
        return tensor

    def end(
        self, y: str, operator: str, *inputs: str | float | np.ndarray, **attributes: Any
    ) -> tuple[list[NodeProto], Weights]:
        """The last node, which gives the layer's output y; all nodes, and the constants by name."""
        self._add(self._path, y, operator, inputs, attributes)
        return self._nodes, self._constants

    def _add(
        self,
        name: str,
        y: str,
        operator: str,
        inputs: Sequence[str | float | np.ndarray],
        attributes: Mapping[str, Any],
    ) -> None:
        names = []
        for position, given in enumerate(inputs):
            if not isinstance(given, str):
                constant = np.array(given, dtype=None if isinstance(given, np.ndarray) else np.float32)
                given = f"{name}.constant{position}"
                self._constants[given] = constant
            names.append(given)
        self._nodes.append(helper.make_node(operator, names, [y], name, **attributes))


def shares(cells: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """The matrix (cells, length) whose product with a column of numbers is their mean in each cell."""
    matrix = np.zeros((len(cells), length), dtype=np.float32)
    for row, (first, end) in zip(matrix, cells, strict=True):
        row[first:end] = 1 / (end - first)
    return matrix


def tensor_name(model: Model, path: str) -> str:
    """The name of a layer's output in the graph: its path, or the graph's output for the last."""
    return model.output if path == model.walk()[-1].path else path


def to_onnx(model: Model, weights: Mapping[str, np.ndarray]) -> ModelProto:
    """The ONNX model of a model and its canonical weights, checked with full shape inference.

    Raises DataError if the weights do not fit, UnsupportedLayer if a layer has no rule.
    """
    return _to_onnx(model, weights, every_layer=False)


def to_layers_onnx(model: Model, weights: Mapping[str, np.ndarray]) -> ModelProto:
    """The nodes of `to_onnx` with every layer's tensor as an output, in the order of the layers."""
    return _to_onnx(model, weights, every_layer=True)


def _to_onnx(model: Model, weights: Mapping[str, np.ndarray], every_layer: bool) -> ModelProto:
    initializers = check(model, weights)
    nodes: list[NodeProto] = []
    outputs = []
    tensors = {IMAGE: INPUT}
    for node in model.walk():
        y = tensors[node.path] = tensor_name(model, node.path)
        added, constants = emit(node.layer, node, node.take(tensors), y)
        nodes += added
        initializers |= constants
        if every_layer or y == model.output:
            outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [BATCH, *node.output_shape]))
    image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, *model.input_shape])
    graph = helper.make_graph(
        nodes,
        model.name,
        [image],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
        producer_version=zoo.__version__,
    )
    describe(proto, model, weights)
    onnx.checker.check_model(proto, full_check=True)
    return proto
