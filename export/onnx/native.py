"""A framework's own ONNX export, brought to one canonical form so that files can be compared.

What the graph computes is left alone: no node is added, removed, reordered beyond its topological
order, or rewritten. Names, shapes of input and output, and everything that tells of the machine
that exported it (stack traces, paths, counters) are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from export.onnx.file import describe
from export.onnx.graph import BATCH, INPUT, IR_VERSION
from zoo.errors import CheckFailed
from zoo.model import Model


def canonicalize(raw: bytes, model: Model, weights: Mapping[str, np.ndarray]) -> ModelProto:
    """The canonical form of a native export: the same bytes for the same graph.

    Initialisers that hold a weight get its canonical name ("dense1.weight.T" where transposed);
    other tensors and nodes are numbered in topological order. Raises CheckFailed if the file is
    not a valid ONNX model with one input and one output.
    """
    try:
        proto = onnx.load_from_string(raw)
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # protobuf, checker and shape inference each raise their own
        raise CheckFailed(f"the native export is not valid ONNX: {str(error).splitlines()[0]}") from None
    graph = proto.graph
    initial = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in initial]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise CheckFailed(f"the native export has {len(inputs)} inputs and {len(graph.output)} outputs")
    ordered = _ordered(graph)
    names = _names(graph, ordered, inputs[0], model, weights)
    used = {name for node in ordered for name in node.input} | {graph.output[0].name}
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.name in used}
    nodes = []
    for index, node in enumerate(ordered, start=1):
        new = onnx.NodeProto()
        new.op_type, new.domain = node.op_type, node.domain
        new.name = f"{node.op_type}_{index}"
        new.input.extend(names.get(name, name) for name in node.input)
        new.output.extend(names.get(name, name) for name in node.output)
        new.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
        for attribute in new.attribute:
            attribute.doc_string = ""
        nodes.append(new)
    arrays = {names[name]: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    canonical = helper.make_model(
        helper.make_graph(
            nodes,
            model.name,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, *model.input_shape])],
            [helper.make_tensor_value_info(model.output, TensorProto.FLOAT, [BATCH, *model.output_shape])],
            [numpy_helper.from_array(array, name) for name, array in sorted(arrays.items())],
        ),
        opset_imports=[opset for opset in proto.opset_import if opset.domain == ""],
        ir_version=min(proto.ir_version, IR_VERSION),
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
    )
    describe(canonical, model, weights)
    try:
        onnx.checker.check_model(canonical, full_check=True)
    except Exception as error:
        raise CheckFailed(
            f"the native export does not compute ({INPUT} [{BATCH}, ...] -> {model.output}): "
            f"{str(error).splitlines()[0]}"
        ) from None
    return canonical


def _ordered(graph: GraphProto) -> list[onnx.NodeProto]:
    """The nodes that the output needs, each behind those that it takes, the first input's first.

    tf2onnx keeps nodes in sets of objects: their order in a file may differ from one export to the next.
    """
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    order: list[int] = []
    seen: set[int] = set()
    stack = [(maker[graph.output[0].name], False)] if graph.output[0].name in maker else []
    while stack:
        index, done = stack.pop()
        if done:
            order.append(index)
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            stack += [(maker[name], False) for name in reversed(graph.node[index].input) if name in maker]
    return [graph.node[index] for index in order]


def _names(
    graph: GraphProto,
    nodes: Sequence[onnx.NodeProto],
    image: str,
    model: Model,
    weights: Mapping[str, np.ndarray],
) -> dict[str, str]:
    """The canonical name of every tensor of a graph by its old one; nodes: its nodes in their order."""
    names = {image: INPUT, graph.output[0].name: model.output}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    free = dict(weights)
    constants = 0
    for index, node in enumerate(nodes, start=1):
        for name in node.input:
            if name in names or name not in arrays:
                continue
            weight = _weight_name(arrays[name], free)
            if weight is None:
                constants += 1
            else:
                free.pop(weight.removesuffix(".T"))
            names[name] = weight or f"constant_{constants}"
        for position, name in enumerate(node.output):
            if name and name not in names:
                names[name] = f"{node.op_type}_{index}" + (f".{position}" if position else "")
    return names


def _weight_name(array: np.ndarray, weights: Mapping[str, np.ndarray]) -> str | None:
    for name, weight in weights.items():
        if array.shape == weight.shape and np.array_equal(array, weight):
            return name
        if array.ndim == 2 and array.shape == weight.shape[::-1] and np.array_equal(array, weight.T):
            return f"{name}.T"
    return None
