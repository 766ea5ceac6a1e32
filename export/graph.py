"""The direct exporter: a model and canonical weights become one ONNX graph, one rule per layer.

The graph is a pure function of model, weights and the zoo's version: the same bytes whichever
backend trained them, on every machine. Every node and tensor bears its layer's path; the input is
`image` float32 [batch, C, H, W] in [0, 1], the output `logits` or `probabilities`, or `features`
where there are no labels. Preprocessing is inside, because it is a layer. Every file carries what
it can be checked with where it is deployed: test vectors (export/vectors.py) and hashes (export/seal.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import singledispatch

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import zoo
from export import expected, seal
from zoo.errors import UnsupportedLayer
from zoo.layers import (
    AvgPool2d,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    Normalize,
    ReLU,
    Softmax,
)
from zoo.model import Model
from zoo.weights import Weights, check, digest

OPSET = 18  # 18 to 20 run on every current runtime; 18 is also what both native exporters write
IR_VERSION = 10
INPUT = "image"
BATCH = "batch"


@singledispatch
def emit(layer: Layer, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    """The nodes of one layer from tensor x to tensor y, and the constants it adds by name.

    The layer's own weights are already there as "<path>.<weight>".
    """
    raise UnsupportedLayer(f"the ONNX exporter has no rule for {type(layer).__name__}")


@emit.register
def normalize(layer: Normalize, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    constants = {
        f"{path}.mean": np.array(layer.mean, dtype=np.float32).reshape(-1, 1, 1),
        f"{path}.scale": np.array(layer.scale, dtype=np.float32).reshape(-1, 1, 1),
    }
    centred = f"{path}.centred"
    return [
        helper.make_node("Sub", [x, f"{path}.mean"], [centred], centred),
        helper.make_node("Mul", [centred, f"{path}.scale"], [y], path),
    ], constants


@emit.register
def conv2d(layer: Conv2d, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    inputs = [x, f"{path}.weight", *([f"{path}.bias"] if layer.bias else [])]
    node = helper.make_node(
        "Conv",
        inputs,
        [y],
        path,
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.padding,
        dilations=[1, 1],
        group=1,
    )
    return [node], {}


@emit.register
def relu(layer: ReLU, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Relu", [x], [y], path)], {}


@emit.register
def max_pool2d(layer: MaxPool2d, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    node = helper.make_node("MaxPool", [x], [y], path, kernel_shape=layer.size, strides=layer.stride)
    return [node], {}


@emit.register
def avg_pool2d(layer: AvgPool2d, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    node = helper.make_node(
        "AveragePool",
        [x],
        [y],
        path,
        kernel_shape=layer.size,
        strides=layer.stride,
        count_include_pad=0,
    )
    return [node], {}


@emit.register
def dropout(layer: Dropout, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Identity", [x], [y], path)], {}


@emit.register
def flatten(layer: Flatten, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Flatten", [x], [y], path, axis=1)], {}


@emit.register
def dense(layer: Dense, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    inputs = [x, f"{path}.weight", *([f"{path}.bias"] if layer.bias else [])]
    return [helper.make_node("Gemm", inputs, [y], path, alpha=1.0, beta=1.0, transB=1)], {}


@emit.register
def softmax(layer: Softmax, path: str, x: str, y: str) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("Softmax", [x], [y], path, axis=1)], {}


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


def serialize(proto: ModelProto) -> bytes:
    """The bytes of an ONNX model, the same on every call, with their hash in its place if it has one."""
    return seal.fill(_bytes(proto))


def _bytes(proto: ModelProto) -> bytes:
    return bytes(proto.SerializeToString(deterministic=True))


def metadata(model: Model, weights: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What every exported file tells of itself: a function of model, weights and version alone."""
    ink = ", white ink on black" if model.labels else ""
    return {
        "zoo.spec": json.dumps(model.to_dict(), sort_keys=True, separators=(",", ":")),
        "zoo.labels": json.dumps(model.labels),
        "zoo.document": model.document,
        "zoo.input": f"float32 [batch, C, H, W], pixels in [0, 1]{ink}",
        "zoo.weights_sha256": digest(weights),
        "zoo.version": zoo.__version__,
        **expected.carried(model, weights),
    }


def describe(proto: ModelProto, model: Model, weights: Mapping[str, np.ndarray]) -> None:
    """Give a finished graph its metadata: what it is, its test vectors, and the hashes of it all."""
    helper.set_model_props(proto, metadata(model, weights))
    parts = seal.list_of_parts(_bytes(proto))
    for key, value in ((seal.PARTS, parts), (seal.KEY, seal.ZEROS)):
        proto.metadata_props.add(key=key, value=value)
    found = seal.digest(_bytes(proto))
    assert found is not None
    proto.metadata_props[-1].value = found[1]


def _to_onnx(model: Model, weights: Mapping[str, np.ndarray], every_layer: bool) -> ModelProto:
    initializers = check(model, weights)
    nodes: list[NodeProto] = []
    outputs = []
    x = INPUT
    for node in model.walk():
        y = tensor_name(model, node.path)
        added, constants = emit(node.layer, node.path, x, y)
        nodes += added
        initializers |= constants
        if every_layer or y == model.output:
            outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [BATCH, *node.output_shape]))
        x = y
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
        producer_name="cnn-zoo",
        producer_version=zoo.__version__,
    )
    describe(proto, model, weights)
    onnx.checker.check_model(proto, full_check=True)
    return proto
