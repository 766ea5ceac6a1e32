"""Where a spec's layers are in an ONNX graph, whoever exported it, and how to look at one of them.

A graph of the zoo names its tensors after the layers. In a framework's own export the layers are
found by their order: each has its operators, and a graph that computes anything in between shows no
more layers from there on. A layer that a graph does not show is simply not compared there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.graph import INPUT, tensor_name
from zoo.layers import (
    ELU,
    AvgPool2d,
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
    Sigmoid,
    Softmax,
    SpatialDropout,
    Tanh,
)
from zoo.model import Model, Node

# The operators of each layer, in their order; any one of a group. The last of them gives its output.
# Layers that exporters write in several ways are not here: a native graph shows no more from there on.
OPERATORS: dict[type[Layer], tuple[tuple[str, ...], ...]] = {
    Normalize: (("Sub",), ("Mul",)),
    Conv2d: (("Conv",),),
    LocalResponseNorm: (("LRN",),),
    ReLU: (("Relu",),),
    LeakyReLU: (("LeakyRelu",),),
    ELU: (("Elu",),),
    Sigmoid: (("Sigmoid",),),
    Tanh: (("Tanh",),),
    HardSigmoid: (("HardSigmoid",),),
    HardSwish: (("HardSwish",),),
    MaxPool2d: (("MaxPool",),),
    AvgPool2d: (("AveragePool",),),
    GlobalAvgPool2d: (("GlobalAveragePool", "ReduceMean"),),
    Dropout: (),
    SpatialDropout: (),
    Flatten: (("Reshape", "Flatten"),),
    Dense: (("Gemm", "MatMul"),),
    Softmax: (("Softmax",),),
}
SILENT = (
    "Identity",
    "Reshape",
    "Transpose",
    "Pad",
    "Shape",
    "Gather",
    "Concat",
    "Cast",
    "Unsqueeze",
    "Slice",
)


def layer_tensors(proto: ModelProto, model: Model) -> dict[str, str]:
    """The tensor that holds each layer's output, by path, as far as the graph shows it."""
    tensors = {name for node in proto.graph.node for name in node.output}
    named = {node.path: tensor_name(model, node.path) for node in model.walk()}
    if set(named.values()) <= tensors:
        return named
    return _aligned(proto, model)


def expose(proto: ModelProto, tensors: Iterable[str]) -> bytes:
    """The same graph with more of its tensors as outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    there = {output.name for output in proto.graph.output} | {INPUT}
    for name in dict.fromkeys(tensors):
        if name not in there:
            shown.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return bytes(shown.SerializeToString(deterministic=True))


def cut(proto: ModelProto, source: str, target: str) -> bytes:
    """The part of a graph from one tensor to another, both float32, as a model of its own."""
    needed, nodes = {target}, []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input) - {source}
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.metadata_props[:]
    part.graph.node.extend(reversed(nodes))
    part.graph.input.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, None))
    part.graph.output.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, None))
    kept = [tensor for tensor in part.graph.initializer if tensor.name in needed]
    del part.graph.initializer[:]
    part.graph.initializer.extend(kept)
    return bytes(part.SerializeToString(deterministic=True))


def _aligned(proto: ModelProto, model: Model) -> dict[str, str]:
    """Layers by the order of their operators, up to the first that is not where it should be."""
    shapes = _shapes(proto)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes = _from_image(proto)
    found: dict[str, str] = {}
    position, tensor = 0, INPUT
    for node in model.walk():
        end = _end(nodes, position, node)
        if end is None or not _own_constants(nodes[position:end], node, constants):
            break
        tensor = nodes[end - 1].output[0] if end > position else tensor
        position = end
        if tensor != INPUT and shapes.get(tensor) != list(node.output_shape):
            break
        found[node.path] = tensor
    return found


def _end(nodes: Sequence[NodeProto], position: int, node: Node) -> int | None:
    """The position behind a layer's operators, from `position` on; None if another operator is met."""
    layer = node.layer
    groups = OPERATORS.get(type(layer))
    if groups is None or (isinstance(layer, AvgPool2d) and any(layer.sides(node.input_shape))):
        return None  # a mean of fewer values than the window holds takes more operators, or other ones
    for group in groups:
        while position < len(nodes) and nodes[position].op_type not in group:
            if nodes[position].op_type not in SILENT:
                return None
            position += 1
        if position == len(nodes):
            return None
        position += 1
    if isinstance(layer, (Conv2d, Dense)) and layer.bias and len(nodes[position - 1].input) < 3:
        adds = position < len(nodes) and nodes[position].op_type == "Add"
        return position + 1 if adds else None
    return position


def _own_constants(nodes: Sequence[NodeProto], node: Node, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether operators hold the constants of the layer they are taken for, and all of them.

    Exporters fold one layer into another: a mean into a bias before it, a scale of 1 into nothing.
    """
    used = [
        name for other in nodes if other.op_type not in SILENT for name in other.input if name in constants
    ]
    if isinstance(node.layer, Normalize):
        wanted = (node.layer.mean, node.layer.scale)
        return len(used) == 2 and all(
            np.array_equal(constants[name].ravel(), np.asarray(values, np.float32))
            for name, values in zip(used, wanted, strict=True)
        )
    weights = {f"{node.path}.{weight.name}" for weight in node.layer.weights(node.input_shape)}
    return not weights or {name.removesuffix(".T") for name in used} == weights


def _from_image(proto: ModelProto) -> list[NodeProto]:
    """The nodes that depend on the image, in topological order."""
    reached, nodes = {INPUT}, []
    for node in proto.graph.node:
        if reached & set(node.input):
            reached |= set(node.output)
            nodes.append(node)
    return nodes


def _shapes(proto: ModelProto) -> dict[str, list[int]]:
    """The inferred shape of every tensor without the batch."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        for value in (*inferred.value_info, *inferred.output)
    }
