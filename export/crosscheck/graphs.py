"""Where a spec's layers are in an ONNX graph, whoever exported it, and how to look at one of them.

A graph of the zoo names its tensors after the layers. In a framework's own export a layer is found by its
operators, which take what the layers before it give, or by its weights. Where a graph computes anything
else in between, it does not show the layers that follow, up to the next that is known by its weights. A
layer that a graph does not show is simply not compared there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.onnx.graph import INPUT, tensor_name
from zoo.layers import (
    ELU,
    AvgPool2d,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSigmoid,
    HardSwish,
    Join,
    Layer,
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    Residual,
    Scale,
    Sigmoid,
    Softmax,
    SpatialDropout,
    Tanh,
)
from zoo.model import IMAGE, Model, Node

# The operators of each layer, in their order; any one of a group. The last of them gives its output.
# Layers that exporters write in several ways are not here: a native graph does not show them.
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
JOINS: dict[type[Layer], str] = {Residual: "Add", Concat: "Concat", Scale: "Mul"}
# Operators between layers, each of which hands on its first input: a padding, a cut, another order of axes.
SILENT = ("Identity", "Reshape", "Transpose", "Pad", "Cast", "Slice")


def layer_tensors(proto: ModelProto, model: Model) -> dict[str, str]:
    """The tensor that holds each layer's output, by path, as far as the graph shows it."""
    tensors = {name for node in proto.graph.node for name in node.output}
    named = {node.path: tensor_name(model, node.path) for node in model.walk()}
    if set(named.values()) <= tensors:
        return named
    return _aligned(proto, model)


def expose(proto: ModelProto, tensors: Iterable[str], kind: int = TensorProto.FLOAT) -> bytes:
    """The same graph with more of its tensors, of one element type, as outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    there = {output.name for output in proto.graph.output} | {INPUT}
    for name in dict.fromkeys(tensors):
        if name not in there:
            shown.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return bytes(shown.SerializeToString(deterministic=True))


def cut(proto: ModelProto, sources: Sequence[str], target: str) -> bytes | None:
    """The part of a graph from some tensors to another, all float32, as a model of its own.

    None where it takes more than those and constants, such as sizes that are computed of the image's.
    """
    needed, nodes = {target}, []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input) - set(sources)
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    if needed & {value.name for value in proto.graph.input} - constants:
        return None
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.metadata_props[:]
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sources)
    part.graph.output.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, None))
    kept = [tensor for tensor in part.graph.initializer if tensor.name in needed]
    del part.graph.initializer[:]
    part.graph.initializer.extend(kept)
    return bytes(part.SerializeToString(deterministic=True))


def _aligned(proto: ModelProto, model: Model) -> dict[str, str]:
    """The tensors of the layers that are found by what they take; the others are not there.

    A layer takes the tensors of those before it. If one of them was not found, or several operators could
    be the layer, it is still known by its weights, if it has any.
    """
    shapes = _shapes(proto)
    graph = _Graph(proto, {name: 1 + len(shape) for name, shape in shapes.items()})
    tensors = {IMAGE: INPUT}
    for node in model.walk():
        given = [tensors[path] for path in node.inputs if path in tensors]
        tensor = graph.output_of(node, given if len(given) == len(node.inputs) else None)
        if tensor == INPUT or (tensor and shapes.get(tensor) == list(node.output_shape)):
            tensors[node.path] = tensor
    del tensors[IMAGE]
    return tensors


class _Graph:
    """The operators of a graph by the tensors that they take. ranks: of the tensors, as far as known."""

    def __init__(self, proto: ModelProto, ranks: Mapping[str, int]) -> None:
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._ranks = ranks
        self._takers: dict[str, list[NodeProto]] = {}
        for node in proto.graph.node:
            for name in dict.fromkeys(filter(None, node.input)):  # an input that is left out has no name
                self._takers.setdefault(name, []).append(node)
        self._makers = {name: node for node in proto.graph.node for name in node.output if name}

    def output_of(self, node: Node, given: Sequence[str] | None) -> str | None:
        """The tensor that a layer of the spec makes of the given ones; None where that is not certain.

        given: None if they are not known.
        """
        if isinstance(node.layer, Join):
            found = self._joining(node.layer, given) if given else []
            return found[0].output[0] if len(found) == 1 else None
        groups = OPERATORS.get(type(node.layer))
        if groups is None or (isinstance(node.layer, AvgPool2d) and any(node.layer.sides(node.input_shape))):
            return None  # a mean of fewer values than the window holds takes more operators, or other ones
        if not groups:
            return given[0] if given else None
        weights = [f"{node.path}.{weight.name}" for weight in node.layer.weights(node.input_shape)]
        if given is not None:
            firsts = self._reached(given[0], groups[0])
        else:
            names = (name for weight in weights for name in (weight, f"{weight}.T"))
            firsts = [taker for name in names for taker in self._takers.get(name, ())]
            firsts = [taker for taker in firsts if taker.op_type in groups[0]]
        if isinstance(node.layer, ELU) and node.layer.alpha != 1:
            firsts = [first for first in firsts if first.attribute]  # without: of alpha 1, scaled after it
        chains = [chain for first in firsts if (chain := self._chain(first, groups[1:], node))]
        ends = {chain[-1].output[0] for chain in chains if _own_constants(chain, node, self._constants)}
        return ends.pop() if len(ends) == 1 else None

    def _chain(
        self, first: NodeProto, groups: Sequence[tuple[str, ...]], node: Node
    ) -> list[NodeProto] | None:
        """The operators of a layer from its first on; None if they do not go on as they should."""
        chain = [first]
        layer = node.layer
        if isinstance(layer, (Conv2d, Dense)) and layer.bias and len(first.input) < 3:
            groups = (*groups, ("Add",))
        for group in groups:
            after = self._reached(chain[-1].output[0], group)
            if len(after) != 1:
                return None
            chain.append(after[0])
        return chain

    def _joining(self, layer: Join, given: Sequence[str]) -> list[NodeProto]:
        """The operators that join exactly the given tensors, in their order where that matters."""
        operator = JOINS[type(layer)]
        found = []
        for node in self._reached(given[0], (operator,)):
            sources = [self._source(name) for name in node.input]
            wanted = [self._source(name) for name in given]
            if sources == wanted or (operator != "Concat" and Counter(sources) == Counter(wanted)):
                found.append(node)
        return found

    def _reached(self, tensor: str, operators: tuple[str, ...]) -> list[NodeProto]:
        """The nearest of these operators that take a tensor, past silent ones that keep its axes in order."""
        found: list[NodeProto] = []
        waiting: list[tuple[str, Order]] = [(tensor, None)]
        while waiting:
            name, order = waiting.pop()
            for taker in self._takers.get(name, ()):
                if taker.op_type in operators:
                    if order is None and taker not in found:
                        found.append(taker)
                elif taker.op_type in SILENT and taker.input[0] == name:
                    turned = order
                    if taker.op_type == "Transpose":
                        turn = self._permutation(taker)
                        if turn is None:
                            continue
                        turned = _none_if_in_order(turn if order is None else tuple(order[i] for i in turn))
                    if taker.op_type != "Reshape" or turned is None:
                        waiting.append((taker.output[0], turned))
        return found

    def _source(self, tensor: str) -> tuple[str, Order]:
        """What a tensor is the same numbers as, before any transpositions, and the order of its axes."""
        order: Order = None
        while (maker := self._makers.get(tensor)) and maker.op_type in ("Identity", "Transpose"):
            if maker.op_type == "Transpose":
                turn = self._permutation(maker)
                if turn is None:
                    break
                order = _none_if_in_order(turn if order is None else tuple(turn[axis] for axis in order))
            tensor = maker.input[0]
        return tensor, order

    def _permutation(self, node: NodeProto) -> tuple[int, ...] | None:
        """The axes that a Transpose takes, in their order; None if that is not known.

        Without `perm` they are all, from the last to the first.
        """
        for attribute in node.attribute:
            if attribute.name == "perm":
                return tuple(attribute.ints)
        rank = self._ranks.get(node.input[0])
        return None if rank is None else tuple(reversed(range(rank)))


Order = tuple[int, ...] | None  # of a tensor's axes among those that it came from; None: unchanged


def _none_if_in_order(order: tuple[int, ...]) -> Order:
    return None if list(order) == sorted(order) else order


def _own_constants(nodes: Sequence[NodeProto], node: Node, constants: Mapping[str, TensorProto]) -> bool:
    """Whether operators hold the constants of the layer they are taken for, and all of them.

    Exporters fold one layer into another: a mean into a bias before it, a scale of 1 into nothing.
    """
    used = [
        name for other in nodes if other.op_type not in SILENT for name in other.input if name in constants
    ]
    if isinstance(node.layer, Normalize):
        wanted = (node.layer.mean, node.layer.scale)
        return len(used) == 2 and all(
            np.array_equal(numpy_helper.to_array(constants[name]).ravel(), np.asarray(values, np.float32))
            for name, values in zip(used, wanted, strict=True)
        )
    weights = {f"{node.path}.{weight.name}" for weight in node.layer.weights(node.input_shape)}
    return not weights or {name.removesuffix(".T") for name in used} == weights


def _shapes(proto: ModelProto) -> dict[str, list[int]]:
    """The shape of every tensor without the batch, as far as it is told or can be inferred."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:  # whatever onnx says of a graph that onnxruntime runs
        graph = proto.graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
