"""The known faults: mistakes that exporters, converters and backends have made, one function each.

A fault changes canonical weights (`reweigh`), the spec (`respec`) or an ONNX graph (`regraph`); the first
two go into backends and ONNX files alike. Faults in a framework's own code stand in backends/planting.py.
Every rule gives None where the fault cannot be: a kernel of one row cannot be read upside down.
In a changed spec every layer keeps the path it had, and each fault says at which paths it shows first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from export.graph import INPUT, tensor_name
from zoo.errors import ZooError
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
from zoo.model import Model, Node, iter_weights
from zoo.randomness import uniform
from zoo.weights import Weights, init_weights

Array = np.ndarray


@dataclass(frozen=True)
class Change:
    """What one fault makes of a model: other layers or weights, and where that shows first.

    model: None where the fault leaves layers that do not fit together.
    """

    model: Model | None
    weights: Weights
    culprits: frozenset[str]


Site = tuple[Model, Weights, Node]
Reweigh = Callable[[Model, Mapping[str, Array], Node], Array | dict[str, Array] | None]
Respec = Callable[[Model, Node], list[Layer] | None]
Regraph = Callable[[GraphProto, NodeProto, Node], bool]

REWEIGH: dict[str, tuple[tuple[type[Layer], ...], Reweigh]] = {}
RESPEC: dict[str, tuple[tuple[type[Layer], ...], Respec]] = {}
REGRAPH: dict[str, tuple[tuple[type[Layer], ...], Regraph]] = {}


def names() -> list[str]:
    """The names of all faults of this module."""
    return list(dict.fromkeys([*REWEIGH, *WHOLE, "two layers swapped", *RESPEC, *REGRAPH, *IMAGE, FROZEN]))


# --- faults of weights: each gives the other weight, or several by their names within the layer


def _reweigh(name: str, *layers: type[Layer]) -> Callable[[Reweigh], Reweigh]:
    def register(rule: Reweigh) -> Reweigh:
        REWEIGH[name] = (layers, rule)
        return rule

    return register


@_reweigh("kernel height and width exchanged", Conv2d)
def _exchanged(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    kernel = w["weight"]
    return kernel.swapaxes(2, 3) if kernel.shape[2] == kernel.shape[3] else None


@_reweigh("kernel flipped", Conv2d)
def _flipped(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return w["weight"][..., ::-1, ::-1]


@_reweigh("kernel flipped left to right", Conv2d)
def _mirrored(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return w["weight"][..., ::-1]


@_reweigh("kernel bytes read as (H, W, I, O)", Conv2d)
def _as_hwio(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    kernel = w["weight"]
    filters, channels, height, width = kernel.shape
    return kernel.reshape(height, width, channels, filters).transpose(3, 2, 0, 1)


@_reweigh("input channels permuted", Conv2d)
def _channels(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return np.roll(w["weight"], 1, axis=1) if w["weight"].shape[1] > 1 else None


@_reweigh("filters permuted", Conv2d)
def _filters(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return w["weight"][::-1]


@_reweigh("a filter lost", Conv2d)
def _lost(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    kernel = w["weight"].copy()
    kernel[len(kernel) // 2] = 0
    return kernel


@_reweigh("bias dropped", Conv2d, Dense)
def _no_bias(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    return {"bias": 0 * w["bias"]} if "bias" in w else None


@_reweigh("bias added twice", Conv2d, Dense)
def _two_biases(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    return {"bias": 2 * w["bias"]} if "bias" in w else None


@_reweigh("rows in (H, W, C) order", Dense)
def _rows(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    flat = [n for n in model.walk() if isinstance(n.layer, Flatten)]
    matrix = w["weight"]
    if not flat or flat[-1].output_shape != (matrix.shape[1],):
        return None
    return matrix.reshape(len(matrix), *flat[-1].input_shape).transpose(0, 2, 3, 1).reshape(len(matrix), -1)


@_reweigh("matrix read transposed", Dense)
def _transposed(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    matrix = w["weight"]
    return matrix.reshape(matrix.shape[::-1]).T


@_reweigh("units permuted", Dense)
def _units(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    return {name: array[::-1] for name, array in w.items()}


@_reweigh("one weight with the wrong sign", Conv2d, Dense)
def _sign(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    array = w["weight"].copy()
    array.flat[np.abs(array).argmax()] *= -1
    return array


@_reweigh("weights off by 1e-3", Conv2d, Dense)
def _noisy(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    noise = 2 * uniform(0, f"selftest/{node.path}", w["weight"].size).reshape(w["weight"].shape) - 1
    return w["weight"] * (1 + 1e-3 * noise)


@_reweigh("weights of one layer in bfloat16", Conv2d, Dense)
def _bfloat16(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    bits = np.ascontiguousarray(w["weight"], np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@_reweigh("weights of one layer in int8", Conv2d, Dense)
def _int8(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    step = np.abs(w["weight"]).max() / 127
    return np.round(w["weight"] / step) * step


# --- faults of all weights at once


def _float16(model: Model, weights: Weights) -> Weights:
    return {name: array.astype(np.float16).astype(np.float32) for name, array in weights.items()}


def _stale(model: Model, weights: Weights) -> Weights:
    """An earlier point on the straight line from the initial weights of seed 0 to these."""
    first = init_weights(model, 0)
    return {
        name: (array + 0.02 * (first[name] - array)).astype(np.float32) for name, array in weights.items()
    }


def _stale_head(model: Model, weights: Weights) -> Weights:
    path = [node.path for node in model.walk() if node.parameters][-1]
    stale = _stale(model, weights)
    return {name: (stale if name.startswith(f"{path}.") else weights)[name] for name in weights}


WHOLE: dict[str, Callable[[Model, Weights], Weights]] = {
    "weights in float16": _float16,
    "weights of another epoch": _stale,
    "last layer of another epoch": _stale_head,
}


# --- faults of the spec: each gives the layers that stand in one layer's place


def _respec(name: str, *layers: type[Layer]) -> Callable[[Respec], Respec]:
    def register(rule: Respec) -> Respec:
        RESPEC[name] = (layers, rule)
        return rule

    return register


@_respec("ReLU missing", ReLU)
def _no_relu(model: Model, node: Node) -> list[Layer] | None:
    return [_nothing(node)]


@_respec("pool of the other kind", MaxPool2d, AvgPool2d)
def _other_pool(model: Model, node: Node) -> list[Layer] | None:
    layer = node.layer
    if not isinstance(layer, (MaxPool2d, AvgPool2d)):
        return None
    other = AvgPool2d if isinstance(layer, MaxPool2d) else MaxPool2d
    return [other(layer.size, layer.stride, name=node.path)]


@_respec("padding on the wrong side", Conv2d)
def _padding_side(model: Model, node: Node) -> list[Layer] | None:
    layer: Any = node.layer
    top, left, bottom, right = layer.padding
    sides = (top + 1, left + 1, bottom - 1, right - 1)
    return [replace(layer, name=node.path, padding=sides)] if min(bottom, right) else None


@_respec("padding missing", Conv2d)
def _no_padding(model: Model, node: Node) -> list[Layer] | None:
    layer: Any = node.layer
    return [replace(layer, name=node.path, padding=0)] if any(layer.padding) else None


@_respec("stride of another size", Conv2d, MaxPool2d, AvgPool2d)
def _stride(model: Model, node: Node) -> list[Layer] | None:
    layer: Any = node.layer
    return [replace(layer, name=node.path, stride=tuple(n % 2 + 1 for n in layer.stride))]


@_respec("normalisation missing", Normalize)
def _no_normalize(model: Model, node: Node) -> list[Layer] | None:
    return [_nothing(node)]


@_respec("normalisation twice", Normalize)
def _two_normalizes(model: Model, node: Node) -> list[Layer] | None:
    return [replace(node.layer, name="again"), replace(node.layer, name=node.path)]


@_respec("normalisation of another data set", Normalize)
def _other_normalize(model: Model, node: Node) -> list[Layer] | None:
    channels = node.input_shape[0]
    return [Normalize((0.1307,) * channels, (1 / 0.3081,) * channels, name=node.path)]


@_respec("softmax missing", Softmax)
def _no_softmax(model: Model, node: Node) -> list[Layer] | None:
    return [_nothing(node)]


@_respec("softmax twice", Softmax)
def _two_softmaxes(model: Model, node: Node) -> list[Layer] | None:
    return [Softmax(name="again"), Softmax(name=node.path)]


def _nothing(node: Node) -> Layer:
    return Dropout(0.0, name=node.path)


def swaps(model: Model) -> Iterator[tuple[str, str]]:
    """The neighbouring layers that could change places: both orders have the same shapes and weights."""
    nodes = model.walk()
    for first, second in pairwise(nodes):
        changed = swapped(model, first.path)
        if changed is not None:
            yield first.path, second.path


def swapped(model: Model, path: str) -> Model | None:
    """The model with one layer and the next in each other's place; None if they do not fit there."""
    layers = [replace(node.layer, name=node.path) for node in model.walk()]
    index = next(i for i, node in enumerate(model.walk()) if node.path == path)
    layers[index : index + 2] = reversed(layers[index : index + 2])
    try:
        changed = replace(model, layers=tuple(layers))
    except ZooError:
        return None
    return changed if _shapes(changed) == _shapes(model) and model.output == changed.output else None


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by name."""
    return {name: weight.shape for name, weight in iter_weights(model)}


# --- changes of a model from the rules above


def changes(fault: str, model: Model, weights: Weights) -> Iterator[Change]:
    """All models that a fault of weights or spec makes of a model, one for each place."""
    weighted = [node.path for node in model.walk() if node.parameters]
    if fault in WHOLE and weighted:
        changed = WHOLE[fault](model, weights)
        differ = [path for path in weighted if not _same(_own(changed, path), _own(weights, path))]
        if differ:
            yield Change(model, changed, frozenset(differ[:1]))
    elif fault == "two layers swapped":
        for first, second in swaps(model):
            other = swapped(model, first)
            if other is not None:
                yield Change(other, weights, frozenset((first, second)))
    elif fault in REWEIGH:
        layers, reweigh = REWEIGH[fault]
        for node in _sites(model, layers):
            found = reweigh(model, _own(weights, node.path), node)
            if found is not None:
                yield Change(model, _with(weights, node.path, found), frozenset((node.path,)))
    elif fault in RESPEC:
        layers, respec = RESPEC[fault]
        for node in _sites(model, layers):
            put = respec(model, node)
            if put is not None:
                yield Change(_replaced(model, node, put), weights, frozenset((node.path,)))


def _replaced(model: Model, node: Node, put: list[Layer]) -> Model | None:
    layers: list[Layer] = []
    for other in model.walk():
        layers += put if other.path == node.path else [replace(other.layer, name=other.path)]
    try:
        changed = replace(model, layers=tuple(layers))
    except ZooError:
        return None
    return changed if _shapes(changed) == _shapes(model) else None


def _sites(model: Model, layers: tuple[type[Layer], ...]) -> Iterator[Node]:
    return (node for node in model.walk() if isinstance(node.layer, layers))


def _own(weights: Weights, path: str) -> Weights:
    prefix = f"{path}."
    return {name.removeprefix(prefix): a for name, a in weights.items() if name.startswith(prefix)}


def _same(a: Weights, b: Weights) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def _with(weights: Weights, path: str, found: Array | dict[str, Array]) -> Weights:
    own = found if isinstance(found, dict) else {"weight": found}
    new = {f"{path}.{name}": np.ascontiguousarray(array, np.float32) for name, array in own.items()}
    return {**weights, **new}


# --- faults of a graph: each alters the node that gives a layer's output


def _regraph(name: str, *layers: type[Layer]) -> Callable[[Regraph], Regraph]:
    def register(rule: Regraph) -> Regraph:
        REGRAPH[name] = (layers, rule)
        return rule

    return register


def _operator(kind: str, **attributes: Any) -> Regraph:
    def regraph(graph: GraphProto, node: NodeProto, place: Node) -> bool:
        node.op_type = kind
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        return True

    return regraph


_regraph("leaky ReLU", ReLU)(_operator("LeakyRelu", alpha=0.01))
_regraph("sigmoid instead of ReLU", ReLU)(_operator("Sigmoid"))
_regraph("softmax missing", Softmax)(_operator("Identity"))
_regraph("log-softmax", Softmax)(_operator("LogSoftmax", axis=1))
_regraph("softmax over the batch", Softmax)(_operator("Softmax", axis=0))


@_regraph("ReLU6", ReLU)
def _relu6(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    node.op_type = "Clip"
    node.input.extend([_constant(graph, "zero", 0.0), _constant(graph, "six", 6.0)])
    return True


@_regraph("ceil mode", MaxPool2d, AvgPool2d)
def _ceil(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    node.attribute.append(helper.make_attribute("ceil_mode", 1))
    return True


@_regraph("dropout active", Dropout)
def _active(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    node.op_type = "Dropout"
    on = numpy_helper.from_array(np.array(True), "on")
    graph.initializer.append(on)
    node.input.extend([_constant(graph, "rate", place.layer.rate), "on"])  # type: ignore[attr-defined]
    node.attribute.append(helper.make_attribute("seed", 1))
    return bool(place.layer.rate)  # type: ignore[attr-defined]


@_regraph("dropout scales at inference", Dropout)
def _scaled(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    node.op_type = "Mul"
    node.input.append(_constant(graph, "kept", 1 - place.layer.rate))  # type: ignore[attr-defined]
    return True


@_regraph("features in (H, W, C) order", Flatten)
def _hwc(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    _insert(graph, node, "Transpose", perm=[0, 2, 3, 1])
    return True


@_regraph("ReLU on the logits", Dense)
def _relu_on_logits(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    after = [other.op_type for other in graph.node if node.output[0] in other.input]
    if set(after) - {"Softmax"}:
        return False
    _append(graph, node, "Relu")
    return True


@_regraph("a layer's output in float16", Conv2d, Dense)
def _half(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    _append(graph, node, "Cast", to=onnx.TensorProto.FLOAT16)
    _append(graph, _producer(graph, node, place), "Cast", to=onnx.TensorProto.FLOAT)
    return True


@_regraph("the first image's result for all", Flatten)
def _first_for_all(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    """y = 0 x + row 0 of x: a batch that was frozen to 1 and is broadcast."""
    y, x = node.output[0], f"{place.path}.all"
    _rename_output(node, x)
    index = numpy_helper.from_array(np.array([0]), f"{place.path}.index")
    graph.initializer.append(index)
    added = [
        helper.make_node("Gather", [x, index.name], [f"{place.path}.row"], axis=0),
        helper.make_node("Mul", [x, _constant(graph, f"{place.path}.nothing", 0.0)], [f"{place.path}.zeros"]),
        helper.make_node("Add", [f"{place.path}.zeros", f"{place.path}.row"], [y]),
    ]
    _after(graph, node, added)
    return True


@_regraph("rows that depend on their neighbours", Flatten)
def _batch_mean(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    """y = x - 0.01 of the batch's mean."""
    y, x = node.output[0], f"{place.path}.all"
    _rename_output(node, x)
    axes = numpy_helper.from_array(np.array([0]), f"{place.path}.axes")
    graph.initializer.append(axes)
    small = _constant(graph, f"{place.path}.small", 0.01)
    added = [
        helper.make_node("ReduceMean", [x, axes.name], [f"{place.path}.mean"], keepdims=1),
        helper.make_node("Mul", [f"{place.path}.mean", small], [f"{place.path}.part"]),
        helper.make_node("Sub", [x, f"{place.path}.part"], [y]),
    ]
    _after(graph, node, added)
    return True


def _pixels_of_255(graph: GraphProto) -> None:
    _at_entrance(graph, "Mul", [_constant(graph, "white", 255.0)])


def _inverted(graph: GraphProto) -> None:
    _at_entrance(graph, "Sub", [_constant(graph, "white", 1.0)], first=False)


def _turned(graph: GraphProto) -> None:
    _at_entrance(graph, "Transpose", [], perm=[0, 1, 3, 2])


IMAGE: dict[str, Callable[[GraphProto], None]] = {
    "pixels taken for 0 to 255": _pixels_of_255,
    "ink and paper exchanged": _inverted,
    "image height and width exchanged": _turned,
}
FROZEN = "batch frozen to 1"


def graphs(fault: str, proto: ModelProto, model: Model) -> Iterator[tuple[ModelProto, str]]:
    """All graphs that a fault of graphs makes of the direct export, each with the path it shows at."""
    if fault in IMAGE or fault == FROZEN:
        changed = _copy(proto)
        if fault == FROZEN:
            changed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        else:
            IMAGE[fault](changed.graph)
        yield changed, model.walk()[0].path
    if fault in REGRAPH:
        layers, regraph = REGRAPH[fault]
        for place in _sites(model, layers):
            changed = _copy(proto)
            node = next(n for n in changed.graph.node if tensor_name(model, place.path) in n.output)
            if regraph(changed.graph, node, place):
                yield changed, place.path


def reweighed(proto: ModelProto, weights: Mapping[str, Array]) -> ModelProto:
    """A graph with other weights in place of those of the same names, transposed where it has them so."""
    changed = _copy(proto)
    for tensor in changed.graph.initializer:
        name = tensor.name.removesuffix(".T")
        if name in weights:
            array = weights[name] if name == tensor.name else weights[name].T
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return changed


def _copy(proto: ModelProto) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(proto)
    return changed


def _constant(graph: GraphProto, name: str, value: float) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return name


def _insert(graph: GraphProto, node: NodeProto, kind: str, **attributes: Any) -> None:
    """Put an operator before a node."""
    before = f"{node.name}.before"
    added = helper.make_node(kind, [node.input[0]], [before], **attributes)
    node.input[0] = before
    graph.node.insert(list(graph.node).index(node), added)


def _append(graph: GraphProto, node: NodeProto, kind: str, **attributes: Any) -> None:
    """Put an operator behind a node; it gives the node's output."""
    y = node.output[0]
    inner = f"{y}.{kind}.{len(graph.node)}"
    _rename_output(node, inner)
    _after(graph, node, [helper.make_node(kind, [inner], [y], inner, **attributes)])


def _producer(graph: GraphProto, node: NodeProto, place: Node) -> NodeProto:
    """The node that now gives what `node` gave before something was put behind it."""
    return next(other for other in graph.node if node.output[0] in other.input)


def _rename_output(node: NodeProto, name: str) -> None:
    node.output[0] = name


def _after(graph: GraphProto, node: NodeProto, added: list[NodeProto]) -> None:
    index = list(graph.node).index(node) + 1
    for offset, new in enumerate(added):
        graph.node.insert(index + offset, new)


def _at_entrance(
    graph: GraphProto, kind: str, others: list[str], first: bool = True, **attributes: Any
) -> None:
    """Put an operator between the image and whoever takes it."""
    for node in graph.node:
        node.input[:] = ["image.changed" if name == INPUT else name for name in node.input]
    inputs = [INPUT, *others] if first else [*others, INPUT]
    graph.node.insert(0, helper.make_node(kind, inputs, ["image.changed"], "image.changed", **attributes))
