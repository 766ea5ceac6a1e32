"""What a wrong layer looks like: the usual mistakes, tried one after another on the reference.

A mistake that reproduces the witness's output is named, as a hint for the reader. It never makes a
comparison pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import singledispatch
from math import prod
from typing import Any

import numpy as np

from backends.reference.rules import apply
from export.crosscheck.comparison import outer_limit
from zoo.errors import ZooError
from zoo.layers import (
    ELU,
    GELU,
    Activation,
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
    Join,
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
from zoo.model import Model, Node

Array = np.ndarray
Tried = Iterator[tuple[str, Callable[[], Array]]]


def explain(
    model: Model, node: Node, weights: Mapping[str, Array], x: Any, got: Array, own: Array | None
) -> str:
    """The mistake that turns the layer's input x (float64) into `got`, in words; "" if none is known.

    x: of a join, the tuple of all that it joins. own: what an honest layer may differ, element by
    element; None where it computes exactly.
    """
    if (
        got.dtype != np.float32
        or got.ndim == 0
        or len(got) != len(x[0] if isinstance(x, tuple) else x)
        or not np.isfinite(got).all()
    ):
        return ""
    honest = apply(node.layer, x, weights)
    for sentence, mistaken in (*_mistakes(node.layer, x, weights, model, node), *_of_any_layer(honest)):
        try:
            with np.errstate(all="ignore"):  # a mistake may divide by a gate that is shut, or leave float16
                y = mistaken()
        except (ZooError, ValueError, IndexError):  # the mistake is impossible here
            continue
        if y.shape == got.shape:
            limit = outer_limit(honest) if own is None or own.shape != y.shape else 2 * own
            difference = np.abs(got - y)  # NaN is within no limit
            if (difference <= limit).all():
                return f"looks like {sentence}: then it differs by {difference.max():.1e} only"
    return ""


def _of_any_layer(honest: Array) -> Tried:
    if honest.ndim == 4:
        yield "height and width exchanged", lambda: honest.swapaxes(2, 3)
        yield "channels in reverse order", lambda: honest[:, ::-1]
    else:
        yield "features in reverse order", lambda: honest[:, ::-1]
    yield "the first image's result for every image", lambda: np.repeat(honest[:1], len(honest), axis=0)
    yield "values rounded to float16", lambda: honest.astype(np.float16).astype(np.float64)


@singledispatch
def _mistakes(layer: Layer, x: Any, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    yield from ()


@_mistakes.register
def normalize(layer: Normalize, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    mean, scale = (np.array(values).reshape(1, -1, 1, 1) for values in (layer.mean, layer.scale))
    yield "no normalisation", lambda: x
    yield "normalisation twice", lambda: apply(layer, apply(layer, x, w), w)
    yield "a mean that is not subtracted", lambda: x * scale
    yield "a scale that is not applied", lambda: x - mean
    yield "division by the scale", lambda: (x - mean) / scale


@_mistakes.register
def conv2d(layer: Conv2d, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    kernel = w["weight"]

    def other(**weights: Array) -> Callable[[], Array]:
        return lambda: apply(layer, x, {**w, **weights})

    def elsewhere(**fields: Any) -> Callable[[], Array]:
        return lambda: apply(replace(layer, **fields), x, w)

    yield from _bias(other, w)
    if kernel.shape[2] == kernel.shape[3]:
        yield "kernel height and width exchanged", other(weight=kernel.swapaxes(2, 3))
        yield "kernel exchanged and flipped", other(weight=kernel.swapaxes(2, 3)[..., ::-1, ::-1])
    yield "kernel flipped, as a true convolution does", other(weight=kernel[..., ::-1, ::-1])
    yield "kernel flipped top to bottom", other(weight=kernel[..., ::-1, :])
    yield "kernel flipped left to right", other(weight=kernel[..., ::-1])
    yield "input channels in reverse order", other(weight=kernel[:, ::-1])
    yield "input channels shifted by one", other(weight=np.roll(kernel, 1, axis=1))
    yield "filters in reverse order", other(weight=kernel[::-1])
    if kernel.shape[0] == kernel.shape[1]:
        yield "input and output channels exchanged", other(weight=kernel.swapaxes(0, 1))
    yield "weights rounded to float16", other(**_halved(w))
    top, left, bottom, right = layer.padding
    yield "padding on the opposite sides", elsewhere(padding=(bottom, right, top, left))
    yield "padding of height and width exchanged", elsewhere(padding=(left, top, right, bottom))
    yield "no padding", elsewhere(padding=0)
    yield "strides of height and width exchanged", elsewhere(stride=layer.stride[::-1])
    yield "dilations of height and width exchanged", elsewhere(dilation=layer.dilation[::-1])


@_mistakes.register
def activation(layer: Activation, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    yield f"no {type(layer).__name__}", lambda: x
    for sentence, other in _ACTIVATIONS:
        if other != replace(layer, name=None):
            yield sentence, lambda other=other: apply(other, x, w)  # type: ignore[misc]
    yield "an absolute value", lambda: np.abs(x)
    yield "a hard sigmoid of 0.2 x + 0.5, ONNX's default", lambda: np.clip(0.2 * x + 0.5, 0, 1)


_ACTIVATIONS: tuple[tuple[str, Activation], ...] = (
    *((f"a leaky ReLU of slope {slope}", LeakyReLU(slope)) for slope in (0.01, 0.1, 0.2, 0.3)),
    ("ReLU", ReLU()),
    ("ReLU6", ReLU6()),
    ("a sigmoid", Sigmoid()),
    ("tanh", Tanh()),
    ("ELU", ELU()),
    ("SELU's ELU of alpha 1.6733", ELU(1.6732632)),
    ("GELU by erf", GELU()),
    ("GELU by tanh", GELU("tanh")),
    ("SiLU", SiLU()),
    ("a hard sigmoid", HardSigmoid()),
    ("a hard swish", HardSwish()),
)


@_mistakes.register
def batch_norm(layer: BatchNorm, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    axes = (0, *range(2, x.ndim))
    own = {"running_mean": x.mean(axis=axes), "running_var": x.var(axis=axes)}
    yield "no batch normalisation", lambda: x
    yield "the statistics of these images, as while training", lambda: apply(layer, x, {**w, **own})
    for epsilon in (1e-3, 1e-5):
        other = replace(layer, epsilon=epsilon)
        yield f"an epsilon of {epsilon:g}", lambda other=other: apply(other, x, w)  # type: ignore[misc]
    variance = w["running_var"] ** 2
    yield "a variance for its root", lambda: apply(layer, x, {**w, "running_var": variance})
    yield (
        "weight and bias exchanged",
        lambda: apply(layer, x, {**w, "weight": w["bias"], "bias": w["weight"]}),
    )


@_mistakes.register
def local_response_norm(
    layer: LocalResponseNorm, x: Array, w: Mapping[str, Array], model: Model, node: Node
) -> Tried:
    yield "no normalisation", lambda: x
    undivided = replace(layer, alpha=layer.alpha * layer.size)
    yield "alpha that is not divided by the size", lambda: apply(undivided, x, w)
    yield "k of 1", lambda: apply(replace(layer, k=1.0), x, w)


@_mistakes.register
def max_pool2d(layer: MaxPool2d, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    yield "an average pool", lambda: apply(AvgPool2d(*_placement(layer)), x, w)
    zeros = np.pad(x, ((0, 0), (0, 0), layer.padding[0::2], layer.padding[1::2]))
    yield "padding with zeros", lambda: apply(replace(layer, padding=(0, 0, 0, 0)), zeros, w)
    yield from _pool(layer, x, w)


@_mistakes.register
def avg_pool2d(layer: AvgPool2d, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    yield "a max pool", lambda: apply(MaxPool2d(*_placement(layer)), x, w)
    counted = not layer.count_padding
    what = "padding that counts" if counted else "padding that does not count"
    yield what, lambda: apply(replace(layer, count_padding=counted), x, w)
    yield "a sum that is not divided", lambda: apply(layer, x, w) * prod(layer.size)
    yield from _pool(layer, x, w)


def _pool(layer: MaxPool2d | AvgPool2d, x: Array, w: Mapping[str, Array]) -> Tried:
    yield (
        "windows counted from the opposite corner",
        lambda: apply(layer, x[..., ::-1, ::-1], w)[..., ::-1, ::-1],
    )
    yield "windows shifted by one pixel", lambda: apply(layer, np.roll(x, (-1, -1), axis=(2, 3)), w)
    top, left, bottom, right = layer.padding
    yield (
        "padding on the opposite sides",
        lambda: apply(replace(layer, padding=(bottom, right, top, left)), x, w),
    )


@_mistakes.register
def global_avg_pool2d(
    layer: GlobalAvgPool2d | AdaptiveAvgPool2d,
    x: Array,
    w: Mapping[str, Array],
    model: Model,
    node: Node,
) -> Tried:
    (_, height, width), (_, rows, columns) = node.input_shape, node.output_shape
    size = (-(-height // rows), -(-width // columns))
    yield "a max pool", lambda: apply(MaxPool2d(size), x, w)
    yield "pools of one size, one after another", lambda: apply(AvgPool2d(size), x, w)
    yield "a sum that is not divided", lambda: apply(layer, x, w) * prod(size)


def _placement(layer: MaxPool2d | AvgPool2d) -> tuple[Any, ...]:
    return layer.size, layer.stride, layer.padding, layer.ceil


@_mistakes.register
def dropout(
    layer: Dropout | SpatialDropout, x: Array, w: Mapping[str, Array], model: Model, node: Node
) -> Tried:
    kept = 1 - layer.rate
    yield "a dropout that scales although it drops nothing", lambda: x * kept
    yield "a dropout that scales up although it drops nothing", lambda: x / kept


@_mistakes.register
def flatten(layer: Flatten, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    yield "(H, W, C) order where (C, H, W) is meant", lambda: x.transpose(0, 2, 3, 1).reshape(len(x), -1)
    yield "(C, W, H) order where (C, H, W) is meant", lambda: x.swapaxes(2, 3).reshape(len(x), -1)


@_mistakes.register
def dense(layer: Dense, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    matrix = w["weight"]

    def other(**weights: Array) -> Callable[[], Array]:
        return lambda: apply(layer, x, {**w, **weights})

    yield from _bias(other, w)
    shape = _flattened(model, node)
    if shape is not None:
        for there, order in (("(H, W, C)", (0, 2, 3, 1)), ("(C, W, H)", (0, 1, 3, 2))):
            mixed = matrix.reshape(len(matrix), *shape).transpose(order).reshape(len(matrix), -1)
            yield f"rows in {there} order where (C, H, W) is meant", other(weight=mixed)
            back = tuple(shape[axis - 1] for axis in order[1:])
            undone = matrix.reshape(len(matrix), *back).transpose(0, *(order.index(i) for i in (1, 2, 3)))
            yield f"(C, H, W) rows taken for {there}", other(weight=undone.reshape(len(matrix), -1))
    if matrix.shape[0] == matrix.shape[1]:
        yield "the matrix transposed", other(weight=matrix.T)
    yield "units in reverse order", other(weight=matrix[::-1])
    yield "weights rounded to float16", other(**_halved(w))


@_mistakes.register
def softmax(layer: Softmax, x: Array, w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    yield "no softmax", lambda: x
    yield "softmax twice", lambda: apply(layer, apply(layer, x, w), w)
    yield "a log-softmax", lambda: np.log(apply(layer, x, w))
    yield "softmax over the batch", lambda: apply(layer, x.T, w).T
    yield "a sigmoid", lambda: 1 / (1 + np.exp(-np.clip(x, -700, 700)))


@_mistakes.register
def residual(
    layer: Residual, x: tuple[Array, Array], w: Mapping[str, Array], model: Model, node: Node
) -> Tried:
    body, shortcut = x
    yield "the body alone, without its shortcut", lambda: body
    yield "the shortcut alone, without the body", lambda: shortcut
    yield "a difference", lambda: body - shortcut
    yield "a product", lambda: body * shortcut
    yield "the body twice", lambda: 2 * body


@_mistakes.register
def concat(layer: Concat, x: tuple[Array, ...], w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    yield "the branches in reverse order", lambda: np.concatenate(x[::-1], axis=1)
    for axis, what in ((2, "rows"), (3, "columns")):
        yield f"branches joined along the {what}", lambda axis=axis: np.concatenate(x, axis=axis)  # type: ignore[misc]
    yield "the first branch in place of all", lambda: np.concatenate([x[0]] * len(x), axis=1)
    if len({part.shape for part in x}) == 1:
        mixed = np.stack(x, axis=2).reshape(len(x[0]), -1, *x[0].shape[2:])
        yield "channels of the branches in turn", lambda: mixed


@_mistakes.register
def scale(layer: Scale, x: tuple[Array, Array], w: Mapping[str, Array], model: Model, node: Node) -> Tried:
    image, factor = x
    yield "no scaling", lambda: image
    yield "a sum", lambda: image + factor
    yield "the scaling twice", lambda: image * factor * factor
    yield "a quotient", lambda: image / factor
    yield "the branch's channels in reverse order", lambda: image * factor[:, ::-1]


def _bias(other: Callable[..., Callable[[], Array]], w: Mapping[str, Array]) -> Tried:
    if "bias" in w:
        yield "no bias", other(bias=0 * w["bias"])
        yield "the bias added twice", other(bias=2 * w["bias"])
        yield "the bias in reverse order", other(bias=w["bias"][::-1])
        yield "the bias subtracted", other(bias=-w["bias"])


def _halved(w: Mapping[str, Array]) -> dict[str, Array]:
    with np.errstate(over="ignore"):
        return {name: array.astype(np.float16).astype(np.float64) for name, array in w.items()}


def _flattened(model: Model, dense: Node) -> tuple[int, int, int] | None:
    """The image (C, H, W) whose features a dense layer takes, None if other layers mix them before."""
    nodes = {node.path: node for node in model.walk()}
    before = nodes.get(dense.inputs[0])
    while before is not None and not isinstance(before.layer, (Dense, Softmax, Join)):
        if isinstance(before.layer, Flatten):
            channels, height, width = before.input_shape
            return channels, height, width
        before = nodes.get(before.inputs[0])
    return None
