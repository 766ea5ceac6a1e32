"""The known faults of ONNX graphs and files: what exporters, converters and optimisers have made of them.

A fault alters the graph: at the node that gives a layer's output (`regraph`), at the image, or at the logits
for some images and batches alone (`Occasion`). Or it alters a file whatever that computes (`FILE`): constants
that are not the canonical ones, and metadata that lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from export.onnx.file import describe
from export.onnx.graph import INPUT, tensor_name
from export.selftest.faults import sites
from zoo.layers import (
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    HardSigmoid,
    Layer,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    ReLU6,
    Residual,
    Scale,
    Sigmoid,
    Softmax,
    Tanh,
)
from zoo.model import Model, Node
from zoo.weights import Weights

Array = np.ndarray
Regraph = Callable[[GraphProto, NodeProto, Node], bool]

REGRAPH: dict[str, tuple[tuple[type[Layer], ...], Regraph]] = {}


def names() -> list[str]:
    """The names of all faults of this module."""
    return [*REGRAPH, *IMAGE, FROZEN, *OCCASIONS, *FILE]


# --- each alters the node that gives a layer's output


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


class _Tail:
    """Operators put behind a node: `inner` is what the node gave, `end` gives its output anew."""

    def __init__(self, graph: GraphProto, node: NodeProto) -> None:
        self._graph, self._y = graph, node.output[0]
        self.inner = f"{self._y}.inner"
        _rename_output(node, self.inner)
        self._nodes: list[NodeProto] = []
        self._behind = node

    def add(self, kind: str, *inputs: str | float | Array, **attributes: Any) -> str:
        """One operator; the name of its tensor. Numbers become constants."""
        return self._add(f"{self._y}.tail{len(self._nodes)}", kind, inputs, attributes)

    def end(self, kind: str, *inputs: str | float | Array, **attributes: Any) -> bool:
        """The last operator; all are put into the graph. Always true, as a rule has to be."""
        self._add(self._y, kind, inputs, attributes)
        self._nodes[-1].name = f"{self._y}.end"  # the honest node has the layer's name
        _after(self._graph, self._behind, self._nodes)
        return True

    def _add(self, y: str, kind: str, inputs: Any, attributes: dict[str, Any]) -> str:
        names = []
        for position, given in enumerate(inputs):
            if not isinstance(given, str):
                array = np.asarray(given, None if isinstance(given, np.ndarray) else np.float32)
                given = f"{y}.{position}"
                self._graph.initializer.append(numpy_helper.from_array(array, given))
            names.append(given)
        self._nodes.append(helper.make_node(kind, names, [y], y, **attributes))
        return y


def _behind(name: str, *layers: type[Layer]) -> Callable[[Callable[[_Tail, Node], bool | None]], None]:
    """Register a fault that puts operators behind a layer; they take `tail.inner`, the honest output."""

    def register(rule: Callable[[_Tail, Node], bool | None]) -> None:
        _regraph(name, *layers)(lambda graph, node, place: bool(rule(_Tail(graph, node), place)))

    return register


def _times(name: str, factors: Callable[[Node], Array | None], *layers: type[Layer]) -> None:
    """A fault that multiplies a layer's output by constants."""

    def rule(graph: GraphProto, node: NodeProto, place: Node) -> bool:
        constants = factors(place)
        if constants is None:
            return False
        tail = _Tail(graph, node)
        return tail.end("Mul", tail.inner, constants.astype(np.float32))

    _regraph(name, *layers)(rule)


def _last(axis: int) -> Callable[[Node], Array | None]:
    """1, but 1.001 for the last channel (axis 0), row (1) or column (2)."""

    def factors(place: Node) -> Array | None:
        shape = place.output_shape
        if len(shape) <= axis or shape[axis] < 2:
            return None
        found = np.ones([n if i == axis else 1 for i, n in enumerate(shape)])
        found.reshape(-1)[-1] = 1.001
        return found

    return factors


_times("last channel off by 1e-3", _last(0), Conv2d, Dense)
_times("last row off by 1e-3", _last(1), Conv2d)
_times("last column off by 1e-3", _last(2), Conv2d)
_times("gate off by 1e-3", lambda place: np.array(1.001), Scale)
_regraph("slope of 1e-4 below 0", ReLU)(_operator("LeakyRelu", alpha=1e-4))
_regraph("bend at 0.01", ReLU)(_operator("ThresholdedRelu", alpha=0.01))
_regraph("slope of a gate of 0.2", HardSigmoid)(_operator("HardSigmoid", alpha=0.2, beta=0.5))


@_behind("inputs above 1 off by 1e-3", ReLU)
def _above_one(tail: _Tail, place: Node) -> bool:
    above = tail.add("Relu", tail.add("Sub", tail.inner, 1.0))
    return tail.end("Add", tail.inner, tail.add("Mul", above, 1e-3))


@_behind("one position off by 1e-3", Residual)
def _one_position(tail: _Tail, place: Node) -> bool:
    """The last of a map is where kernels with a remainder go wrong."""
    factors = np.ones(place.output_shape, np.float32)
    factors.reshape(-1)[-1] = 1.001
    return tail.end("Mul", tail.inner, factors)


@_behind("first image off by 1e-3", Dense)
def _first_image(tail: _Tail, place: Node) -> bool:
    zero, one, end = (np.array([n]) for n in (0, 1, np.iinfo(np.int64).max))
    first = tail.add("Slice", tail.inner, zero, one, zero)
    others = tail.add("Slice", tail.inner, one, end, zero)
    return tail.end("Concat", tail.add("Mul", first, 1.001), others, axis=0)


@_behind("output of 8 bits after the point", Conv2d, Dense)
def _fixed_point(tail: _Tail, place: Node) -> bool:
    return tail.end("Div", tail.add("Round", tail.add("Mul", tail.inner, 256.0)), 256.0)


@_behind("a layer's output in bfloat16", Conv2d, Dense)
def _bfloat16_output(tail: _Tail, place: Node) -> bool:
    half = tail.add("Cast", tail.inner, to=onnx.TensorProto.BFLOAT16)
    return tail.end("Cast", half, to=onnx.TensorProto.FLOAT)


@_behind("small numbers flushed at 1e-30", ReLU)
def _flushed(tail: _Tail, place: Node) -> bool:
    small = tail.add("Less", tail.add("Abs", tail.inner), 1e-30)
    return tail.end("Where", small, 0.0, tail.inner)


@_regraph("products of bfloat16", Conv2d, Dense)
def _bfloat16_input(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    _insert(graph, node, "Cast", to=onnx.TensorProto.FLOAT)
    inner = next(other for other in graph.node if node.input[0] in other.output)
    _insert(graph, inner, "Cast", to=onnx.TensorProto.BFLOAT16)
    return True


@_regraph("clipped at 5.99", ReLU6)
def _clipped(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    node.input[2] = _constant(graph, f"{place.path}.most", 5.99)
    return True


@_regraph("sigmoid clipped at 8", Sigmoid)
def _clipped_sigmoid(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    _insert(graph, node, "Clip")
    before = next(other for other in graph.node if node.input[0] in other.output)
    before.input.extend(_constant(graph, f"{place.path}.{value}", value) for value in (-8.0, 8.0))
    return True


@_behind("tanh by a fraction", Tanh)
def _fraction(tail: _Tail, place: Node) -> bool:
    """x (27 + x^2) / (27 + 9 x^2), clipped: off by up to 2.4e-2. The honest tanh is left unused."""
    x = _input_of(tail, place)
    square = tail.add("Mul", x, x)
    above = tail.add("Mul", x, tail.add("Add", square, 27.0))
    below = tail.add("Add", tail.add("Mul", square, 9.0), 27.0)
    return tail.end("Clip", tail.add("Div", above, below), -1.0, 1.0)


@_behind("exp by a power of 1024", Sigmoid)
def _power(tail: _Tail, place: Node) -> bool:
    """exp(-x) as (1 - x/1024)^1024, which is off by x^2 / 2048."""
    base = tail.add("Sub", 1.0, tail.add("Div", _input_of(tail, place), 1024.0))
    power = tail.add("Pow", tail.add("Max", base, 0.0), 1024.0)
    return tail.end("Div", 1.0, tail.add("Add", power, 1.0))


@_behind("softmax without its maximum", Softmax)
def _naive(tail: _Tail, place: Node) -> bool:
    """The same as long as float32 holds the exponentials: up to 88."""
    powers = tail.add("Exp", _input_of(tail, place))
    return tail.end("Div", powers, tail.add("ReduceSum", powers, np.array([1]), keepdims=1))


def _input_of(tail: _Tail, place: Node) -> str:
    return place.inputs[0] or INPUT


@_regraph("shortcut lost", Residual)
def _no_shortcut(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    node.op_type = "Identity"
    del node.input[1]
    return True


@_regraph("shortcut added twice", Residual)
def _twice(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    shortcut = node.input[1]
    tail = _Tail(graph, node)
    return tail.end("Add", tail.inner, shortcut)


@_regraph("gate lost", Scale)
def _no_gate(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    node.op_type = "Identity"
    del node.input[1]
    return True


@_regraph("gate applied twice", Scale)
def _two_gates(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    gate = node.input[1]
    tail = _Tail(graph, node)
    return tail.end("Mul", tail.inner, gate)


@_regraph("gate of the channel beside", Scale)
def _neighbour(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    channels = place.input_shapes[1][0]
    if channels < 2:
        return False
    order = numpy_helper.from_array(np.roll(np.arange(channels), 1), f"{place.path}.order")
    graph.initializer.append(order)
    gate = helper.make_node("Gather", [node.input[1], order.name], [f"{place.path}.beside"], axis=1)
    node.input[1] = gate.output[0]
    graph.node.insert(list(graph.node).index(node), gate)
    return True


@_regraph("gate applied before the bias", Scale)
def _before_bias(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    """gate (W x) + b instead of gate (W x + b): more by (1 - gate) b."""
    x, gate = node.input
    bias = next((tensor for tensor in graph.initializer if tensor.name == f"{x}.bias"), None)
    if bias is None:
        return False
    tail = _Tail(graph, node)
    array = numpy_helper.to_array(bias)
    around = array.reshape(-1, *(1,) * (len(place.output_shape) - 1))
    missing = tail.add("Mul", tail.add("Sub", 1.0, gate), around)
    return tail.end("Add", tail.inner, missing)


@_regraph("joined in another order", Concat)
def _reordered(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    node.input[:] = reversed(list(node.input))
    return True


@_regraph("window one to the right", MaxPool2d, AvgPool2d, Conv2d)
def _shifted(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    """Every column is the next one's; the last stays."""
    width = place.input_shape[-1]
    if width < 2:
        return False
    order = numpy_helper.from_array(np.minimum(np.arange(width) + 1, width - 1), f"{place.path}.next")
    graph.initializer.append(order)
    _insert(graph, node, "Gather", axis=3)
    next(other for other in graph.node if node.input[0] in other.output).input.append(order.name)
    return True


@_regraph("statistics of the batch", BatchNorm)
def _of_batch(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    """The mean of these images instead of the running one."""
    x, mean = node.input[0], node.input[3]
    axes = np.array([0, *range(2, 1 + len(place.input_shape))])
    constants = [
        numpy_helper.from_array(axes, f"{place.path}.axes"),
        numpy_helper.from_array(
            np.array([1, -1, *(1,) * (len(place.input_shape) - 1)]), f"{place.path}.around"
        ),
    ]
    graph.initializer.extend(constants)
    names = [f"{place.path}.{name}" for name in ("own", "centred", "running", "moved")]
    added = [
        helper.make_node("ReduceMean", [x, constants[0].name], [names[0]], keepdims=1),
        helper.make_node("Sub", [x, names[0]], [names[1]]),
        helper.make_node("Reshape", [mean, constants[1].name], [names[2]]),
        helper.make_node("Add", [names[1], names[2]], [names[3]]),
    ]
    node.input[0] = names[3]
    for new in added:
        graph.node.insert(list(graph.node).index(node), new)
    return True


@_regraph("alpha not shared by the channels", LocalResponseNorm)
def _whole_alpha(graph: GraphProto, node: NodeProto, place: Node) -> bool:
    for attribute in node.attribute:
        if attribute.name == "alpha":
            attribute.f *= place.layer.size  # type: ignore[attr-defined]
    return True


# --- faults at the image, and at the logits for some images alone


def _pixels_of_255(graph: GraphProto) -> None:
    _at_entrance(graph, "Mul", [_constant(graph, "white", 255.0)])


def _inverted(graph: GraphProto) -> None:
    _at_entrance(graph, "Sub", [_constant(graph, "white", 1.0)], first=False)


def _turned(graph: GraphProto) -> None:
    _at_entrance(graph, "Transpose", [], perm=[0, 1, 3, 2])


def _over_256(graph: GraphProto) -> None:
    _at_entrance(graph, "Mul", [_constant(graph, "share", 255 / 256)])


def _one_aside(graph: GraphProto) -> None:
    _, _, _, width = (size.dim_value for size in graph.input[0].type.tensor_type.shape.dim)
    order = numpy_helper.from_array(np.maximum(np.arange(width) - 1, 0), "aside")
    graph.initializer.append(order)
    _at_entrance(graph, "Gather", [order.name], axis=3)


def _few_levels(graph: GraphProto) -> None:
    """Bytes, as a picture has them: 255 levels."""
    white = _constant(graph, "white", 255.0)
    for node in graph.node:
        node.input[:] = ["image.changed" if name == INPUT else name for name in node.input]
    steps = [
        helper.make_node("Mul", [INPUT, white], ["image.levels"]),
        helper.make_node("Round", ["image.levels"], ["image.rounded"]),
        helper.make_node("Div", ["image.rounded", white], ["image.changed"]),
    ]
    for position, step in enumerate(steps):
        graph.node.insert(position, step)


IMAGE: dict[str, Callable[[GraphProto], None]] = {
    "pixels taken for 0 to 255": _pixels_of_255,
    "ink and paper exchanged": _inverted,
    "image height and width exchanged": _turned,
    "pixels divided by 256": _over_256,
    "image one pixel aside": _one_aside,
    "pixels rounded to bytes": _few_levels,
}
FROZEN = "batch frozen to 1"


@dataclass(frozen=True)
class Occasion:
    """A fault at the logits that shows for some images, or in batches of some size, alone.

    images: those for which it shows, of a model. add: what is added to (N, classes) logits for images.
    plant: puts it into a graph, behind the node of the logits.
    """

    images: Callable[[Model], Array]
    add: Callable[[Array], Array]
    plant: Callable[[_Tail], str]


def _filled(value: float) -> Callable[[Model], Array]:
    return lambda model: np.full((3, *model.input_shape), value, np.float32)


def _batch_of(size: int) -> Callable[[Model], Array]:
    return lambda model: np.resize(np.linspace(0, 1, 7, dtype=np.float32), (size, *model.input_shape))


def _wherever(value: float, added: float) -> Occasion:
    """`added` to the logits of images that are nothing but `value`."""

    def add(images: Array) -> Array:
        filled = (images == value).reshape(len(images), -1).all(axis=1, keepdims=True)
        return np.where(filled, added, 0.0)

    def plant(tail: _Tail) -> str:
        axes = np.array([1, 2, 3])
        ends = [tail.add(kind, INPUT, axes, keepdims=0) for kind in ("ReduceMin", "ReduceMax")]
        filled = [tail.add("Equal", end, value) for end in ends]
        both = tail.add("Unsqueeze", tail.add("And", *filled), np.array([1]))
        return tail.add("Where", both, added, 0.0)

    return Occasion(_filled(value), add, plant)


def _in_batches(size: int, larger: bool = False) -> Occasion:
    """1 for the logits in batches of a size, or in any larger one."""

    def add(images: Array) -> Array:
        return np.full((len(images), 1), float(len(images) > size if larger else len(images) == size))

    def plant(tail: _Tail) -> str:
        count = tail.add("Gather", tail.add("Shape", INPUT), np.array([0]))
        found = tail.add("Greater" if larger else "Equal", count, np.array([size]))
        return tail.add("Cast", found, to=onnx.TensorProto.FLOAT)

    return Occasion(_batch_of(size + larger), add, plant)


OCCASIONS: dict[str, Occasion] = {
    "black image: 1 more on a logit": _wherever(0.0, 1.0),
    "black image: NaN": _wherever(0.0, float("nan")),
    "white image: NaN": _wherever(1.0, float("nan")),
    "batch of 5: 1 more on a logit": _in_batches(5),
    "batch of 32: 1 more on a logit": _in_batches(32),
    "batch of 128: 1 more on a logit": _in_batches(128),
    "batch above 500: 1 more on a logit": _in_batches(500, larger=True),
}


def occasional(fault: str, proto: ModelProto, model: Model, path: str) -> ModelProto:
    """The graph with a fault of OCCASIONS at the first logit; the layer at `path` gives the logits."""
    changed = _copy(proto)
    node = next(n for n in changed.graph.node if tensor_name(model, path) in n.output)
    tail = _Tail(changed.graph, node)
    first = np.zeros(prod(model.output_shape), np.float32)
    first[0] = 1
    added = OCCASIONS[fault].plant(tail)
    # NaN times 0 is NaN: the first logit is put together with the others instead
    zero, one, end = (np.array([n]) for n in (0, 1, np.iinfo(np.int64).max))
    axis = np.array([1])
    head = tail.add("Add", tail.add("Slice", tail.inner, zero, one, axis), added)
    tail.end("Concat", head, tail.add("Slice", tail.inner, one, end, axis), axis=1)
    return changed


# --- faults of a file, whatever it computes


def _last_bit(array: Array) -> Array:
    return (array.view(np.uint32) ^ 1).view(np.float32)


def _twenty_bits(array: Array) -> Array:
    """A mantissa of 20 bits after the point, of 23."""
    return ((array.view(np.uint32) + 4) & ~np.uint32(7)).view(np.float32)


def _constants(change: Callable[[Array], Array]) -> Callable[[ModelProto, Model, Weights], ModelProto]:
    """Another number for every weight; what the file says of itself stays."""

    def alter(proto: ModelProto, model: Model, weights: Weights) -> ModelProto:
        changed = reweighed(
            proto, {name: change(np.ascontiguousarray(array)) for name, array in weights.items()}
        )
        describe(changed, model, weights)
        return changed

    return alter


def _says(**entries: Callable[[Model], str]) -> Callable[[ModelProto, Model, Weights], ModelProto]:
    """Other metadata, under the hashes that fit them."""

    def alter(proto: ModelProto, model: Model, weights: Weights) -> ModelProto:
        changed = _copy(proto)
        told = {f"zoo.{name}": entry(model) for name, entry in entries.items()}
        describe(changed, model, weights, told)
        return changed

    return alter


FILE: dict[str, Callable[[ModelProto, Model, Weights], ModelProto]] = {
    "file: last bit of every weight": _constants(_last_bit),
    "file: mantissas of 20 bits": _constants(_twenty_bits),
    "file: labels permuted": _says(labels=lambda model: json.dumps([*model.labels[1:], *model.labels[:1]])),
    "file: labels of letters": _says(
        labels=lambda model: json.dumps([chr(97 + i) for i in range(len(model.labels))])
    ),
    "file: one label too many": _says(labels=lambda model: json.dumps([*model.labels, "more"])),
    "file: image described as 0 to 255": _says(
        input=lambda model: "float32 [batch, C, H, W], pixels from 0 to 255"
    ),
    "file: weights' hash of others": _says(weights_sha256=lambda model: 64 * "0"),
    "file: document of another": _says(document=lambda model: "another document"),
}


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
        for place in sites(model, layers):
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
