"""What each ONNX operator is in the language of layers: one small rule per operator.

A rule gets a node whose inputs are known, and gives the view of its first output; it raises Inexpressible
with the reason where no layer computes that. What exporters spell in several operators is put together again
as it is read: a bias that is added, x * sigmoid(x), GELU from Erf, a Pad before a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from backends.reference import apply
from export.graph import shares
from export.imports.tensors import (
    MOST_STEPS,
    Affine,
    Array,
    Function,
    Inexpressible,
    Join,
    Pointwise,
    Tensor,
    View,
    number,
    per_channel,
)
from zoo.errors import InvalidSpec
from zoo.fields import Sides
from zoo.layers import (
    ELU,
    GELU,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
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
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)

Value = View | Array
NEVER_NEGATIVE = (ReLU, ReLU6, Sigmoid, HardSigmoid, Softmax)
KEEPS_SIGN = (MaxPool2d, AvgPool2d, GlobalAvgPool2d, AdaptiveAvgPool2d, Dropout)
TINY = 1e-30  # an epsilon that changes no float32 variance of 1
# Where functions of one number are told apart: near 0, where they bend, and far outside.
GRID = np.concatenate([np.linspace(-12, 12, 97), [-1e4, -300.0, -50.0, 50.0, 300.0, 1e4]])
SAME = 1e-6  # what constants rounded to float32 may change of such a function, relative

RULES: dict[str, Callable[[Node], View]] = {}


@dataclass
class Node:
    """A node with its inputs: views of what depends on the image, arrays of what does not.

    batched: whether the graph's tensors have a batch axis. batch: what that axis is in shapes.
    concats: those met before, by their inputs.
    """

    proto: NodeProto
    inputs: list[Value | None]
    opset: int
    batched: bool
    batch: int
    concats: dict[tuple[int, ...], Tensor]

    @property
    def operator(self) -> str:
        return str(self.proto.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; text as str."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def view(self, position: int = 0) -> View:
        """An input that depends on the image."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if not isinstance(value, View):
            raise Inexpressible("an input that should come from the image does not")
        return value

    def constant(self, position: int, what: str) -> Array | None:
        """An input that does not depend on the image; None if it is left out."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, View):
            raise Inexpressible(f"its {what} is computed from the image")
        return value

    def required(self, position: int, what: str) -> Array:
        value = self.constant(position, what)
        if value is None:
            raise Inexpressible(f"it has no {what}")
        return value

    def integers(self, name: str, position: int) -> list[int] | None:
        """A list of integers: an attribute in old opsets, an input in new ones."""
        values = self.attribute(name)
        if values is None:
            values = self.constant(position, name)
        return None if values is None else [int(value) for value in np.asarray(values).reshape(-1)]


def rule(*operators: str) -> Callable[[Callable[[Node], View]], Callable[[Node], View]]:
    """Register the rule of some operators."""

    def decorate(function: Callable[[Node], View]) -> Callable[[Node], View]:
        for operator in operators:
            RULES[operator] = function
        return function

    return decorate


def made(layer: Layer, x: Tensor, **arrays: Array) -> Tensor:
    """A layer behind a tensor; raises Inexpressible if it cannot take it."""
    try:
        shape = layer.output_shape(x.shape)
    except InvalidSpec as error:
        raise Inexpressible(error.what) from None
    weights = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
    return Tensor((x,), shape, layer, weights)


# Convolutions, dense layers, normalisations


@rule("Conv")
def conv(node: Node) -> View:
    weight, bias = node.required(1, "kernel"), node.constant(2, "bias")
    if weight.ndim != 4:
        raise Inexpressible(f"a convolution in {weight.ndim - 2} dimensions")
    view = node.view()
    x = view.canonical_image("a convolution")
    padding: Sides = (0, 0, 0, 0)
    if x.pad is not None and x.pad[2] == 0:
        x, padding, _ = x.pad
    layer = _construct(
        Conv2d,
        weight.shape[0],
        weight.shape[2:],
        tuple(node.attribute("strides", (1, 1))),
        0,
        bias is not None,
        tuple(node.attribute("dilations", (1, 1))),
        node.attribute("group", 1),
    )
    layer = replace(layer, padding=_plus(padding, _pads(node, layer, node.view().shape)))
    arrays = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for given in layer.weights(x.shape):
        if arrays[given.name].shape != given.shape:
            raise Inexpressible(f"a {given.name} of {arrays[given.name].shape} for {x.shape}")
    return View(made(layer, x, **arrays))


@rule("Gemm")
def gemm(node: Node) -> View:
    if node.attribute("transA", 0):
        raise Inexpressible("its first input is transposed: the batch becomes the features")
    weight, alpha = node.required(1, "weight"), node.attribute("alpha", 1.0)
    if alpha != 1:
        weight = weight * np.float32(alpha)
    if not node.attribute("transB", 0):
        weight = weight.T
    bias = node.constant(2, "bias")
    if bias is not None:
        bias = bias * np.float32(node.attribute("beta", 1.0))
        if bias.ndim == 2 and len(bias) > 1:
            if (bias != bias[:1]).any():
                raise Inexpressible("its bias has a row for each of the batch")
            bias = bias[:1]
        try:
            bias = np.broadcast_to(bias, (1, len(weight)))[0]
        except ValueError:
            raise Inexpressible(f"a bias of {bias.shape} for {len(weight)} units") from None
    return _dense(node.view(), weight, bias)


@rule("MatMul")
def matmul(node: Node) -> View:
    left = node.inputs[0]
    if isinstance(left, np.ndarray):
        return _rows(left, node.view(1))
    view, weight = node.view(), node.required(1, "matrix")
    if view.is_image and weight.ndim == 2:
        x = view.canonical_image("a product with a matrix")
        if len(weight) != x.shape[2]:
            raise Inexpressible("a product of the columns of an image with a matrix")
        shape = (*x.shape[:2], weight.shape[1])
        return View(Tensor((x,), shape, problem="an image times a matrix", columns=(x, weight)))
    if weight.ndim != 2:
        raise Inexpressible(f"a product with an array of {weight.ndim} dimensions")
    return _dense(view, weight.T, None)


def _dense(view: View, weight: Array, bias: Array | None) -> View:
    if view.is_image or weight.ndim != 2:
        raise Inexpressible("a product of a matrix with something that is no vector")
    if weight.shape[1] != view.shape[0]:
        raise Inexpressible(f"a weight of {weight.shape} for {view.shape[0]} features")
    if view.order is not None:
        canonical = np.empty_like(weight)
        canonical[:, view.order] = weight
        weight = canonical
    layer = _construct(Dense, weight.shape[0], bias is not None)
    return View(made(layer, view.tensor, weight=weight, **({} if bias is None else {"bias": bias})))


def _rows(matrix: Array, view: View) -> View:
    """A matrix times an image times a matrix: the adaptive mean, if both are shares of cells."""
    if view.tensor.columns is None:
        raise Inexpressible("a matrix times something that comes from the image")
    x, columns = view.tensor.columns
    if matrix.ndim != 2 or (matrix.shape[1], len(columns)) != x.shape[1:]:
        raise Inexpressible("an image between two matrices of other sizes")
    layer = _construct(AdaptiveAvgPool2d, (matrix.shape[0], columns.shape[1]))
    wanted = [shares(cells, n) for cells, n in zip(layer.cells(x.shape), x.shape[1:], strict=True)]
    if not (_alike(matrix, wanted[0]) and _alike(columns.T, wanted[1])):
        raise Inexpressible("an image between two matrices that are no means of cells")
    return View(made(layer, x))


def _alike(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-6, atol=0))


@rule("BatchNormalization")
def batch_normalization(node: Node) -> View:
    if node.attribute("training_mode", 0):
        raise Inexpressible("batch normalisation in training mode")
    if node.attribute("spatial", 1) == 0:
        raise Inexpressible("batch normalisation of each pixel by itself")
    view = node.view()
    x = view.canonical_image("batch normalisation") if view.is_image else view.tensor
    if view.order is not None:
        raise Inexpressible("batch normalisation of features in channels-last order")
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = {name: node.required(i, name) for i, name in enumerate(names, start=1)}
    momentum = round(1 - number(node.attribute("momentum", 0.9)), 7)
    layer = _construct(
        BatchNorm,
        number(node.attribute("epsilon", 1e-5)),
        momentum if 0 < momentum <= 1 else BatchNorm.momentum,
    )
    if any(array.shape != (x.shape[0],) for array in arrays.values()):
        raise Inexpressible("batch normalisation of another number of channels")
    if (arrays["running_var"] < 0).any():
        raise Inexpressible("a negative variance")
    return view.like(made(layer, x, **arrays))


@rule("LRN")
def lrn(node: Node) -> View:
    x = node.view().canonical_image("local response normalisation")
    layer = _construct(
        LocalResponseNorm,
        node.attribute("size"),
        number(node.attribute("alpha", 1e-4)),
        number(node.attribute("beta", 0.75)),
        number(node.attribute("bias", 1.0)),
    )
    return View(made(layer, x))


# Pools


@rule("MaxPool")
def max_pool(node: Node) -> View:
    view = node.view()
    x = view.canonical_image("a pool")
    padding: Sides = (0, 0, 0, 0)
    if x.pad is not None:
        base, sides, value = x.pad
        if value <= np.finfo(np.float32).min or (value == 0 and _never_negative(base)):
            x, padding = base, sides
        elif value != 0:
            raise Inexpressible(f"a pool of what is padded with {value:g}")
    layer = _construct(MaxPool2d, *_window(node), 0, bool(node.attribute("ceil_mode", 0)))
    layer = replace(layer, padding=_plus(padding, _pads(node, layer, view.shape)))
    return View(made(layer, x))


@rule("AveragePool")
def average_pool(node: Node) -> View:
    view = node.view()
    x = view.canonical_image("a pool")
    counted = bool(node.attribute("count_include_pad", 0))
    layer = _construct(AvgPool2d, *_window(node), 0, bool(node.attribute("ceil_mode", 0)), counted)
    sides = _pads(node, layer, view.shape)
    if x.pad is None or x.pad[2] != 0:
        return View(made(replace(layer, padding=sides), x))
    base, before, _ = x.pad
    if not any(sides) and not layer.ceil:
        return View(made(replace(layer, padding=before, count_padding=True), base))
    whole = replace(layer, padding=before, ceil=True, count_padding=True)  # what a ceil adds is not counted
    if not counted and whole.sides(base.shape) == _plus(before, sides):
        return View(made(whole, base))
    return View(made(replace(layer, padding=sides), x))


def _window(node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size and stride of a pool."""
    size = tuple(node.attribute("kernel_shape", ()))
    if len(size) != 2:
        raise Inexpressible(f"a pool in {len(size)} dimensions")
    if any(n != 1 for n in node.attribute("dilations", (1, 1))):
        raise Inexpressible("a pool with dilation")
    return size, tuple(node.attribute("strides", (1, 1)))


@rule("GlobalAveragePool")
def global_average_pool(node: Node) -> View:
    return View(made(GlobalAvgPool2d(), node.view().canonical_image("a pool")))


@rule("GlobalMaxPool")
def global_max_pool(node: Node) -> View:
    x = node.view().canonical_image("a pool")
    return View(made(_construct(MaxPool2d, x.shape[1:]), x))


@rule("ReduceMean", "ReduceMax")
def reduction(node: Node) -> View:
    view = node.view()
    axes = node.integers("axes", 1)
    rank = len(view.dims) + node.batched
    spatial = {1, 2} if view.channels_last else {2, 3}
    if not view.is_image or axes is None or {axis % rank for axis in axes} != spatial:
        raise Inexpressible("a reduction over other axes than height and width")
    layer = GlobalAvgPool2d() if node.operator == "ReduceMean" else _construct(MaxPool2d, view.shape[1:])
    pooled = made(layer, view.tensor)
    if node.attribute("keepdims", 1):
        return View(pooled, view.channels_last)
    return View(made(Flatten(), pooled))


def _never_negative(x: Tensor) -> bool:
    while isinstance(x.layer, KEEPS_SIGN):
        x = x.inputs[0]
    if x.layer in (Join.CONCAT, Join.ADD, Join.MULTIPLY):
        return all(map(_never_negative, x.inputs))
    return isinstance(x.layer, NEVER_NEGATIVE)


def _pads(node: Node, layer: Conv2d | MaxPool2d | AvgPool2d, shape: tuple[int, ...]) -> Sides:
    """The padding of a node on an input of this shape, (top, left, bottom, right)."""
    auto = node.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        top, left, bottom, right = layer.same(shape)
        return (top, left, bottom, right) if auto == "SAME_UPPER" else (bottom, right, top, left)
    pads = (0, 0, 0, 0) if auto == "VALID" else tuple(node.attribute("pads", (0, 0, 0, 0)))
    if len(pads) != 4 or any(side < 0 for side in pads):
        raise Inexpressible(f"a padding of {pads}")
    return pads


def _plus(a: Sides, b: Sides) -> Sides:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


@rule("Pad")
def pad(node: Node) -> View:
    """Kept as a depthwise 1x1 convolution of ones, unless the layer behind it takes it in."""
    view = node.view()
    if node.attribute("mode", "constant") != "constant":
        raise Inexpressible(f"a padding of mode {node.attribute('mode')}")
    pads = node.integers("pads", 1) or []
    value = node.attribute("value")
    filling = node.constant(2, "value")
    number_ = float(value if value is not None else 0 if filling is None else filling.reshape(-1)[0])
    rank = len(view.dims) + node.batched
    if not view.is_image or rank != 4 or node.constant(3, "axes") is not None or len(pads) != 2 * rank:
        raise Inexpressible("a padding of something that is no image (N, C, H, W)")
    height, width = (1, 2) if view.channels_last else (2, 3)
    sides: Sides = (pads[height], pads[width], pads[height + rank], pads[width + rank])
    others = [side for axis, side in enumerate(pads) if axis % rank not in (height, width)]
    if any(others) or any(side < 0 for side in sides):
        raise Inexpressible("a padding of other axes than height and width, or a negative one")
    if not any(sides):
        return view
    x, channels = view.tensor, view.shape[0]
    layer = _construct(Conv2d, channels, 1, 1, sides, False, 1, channels)
    padded = made(layer, x, weight=np.ones((channels, 1, 1, 1)))
    padded.pad = (x, sides, number_)
    if number_ != 0:
        padded.layer, padded.problem = None, f"a padding with {number_:g}"
        padded.arrays = {}
    return view.like(padded)


# Shapes


@rule("Flatten")
def flatten(node: Node) -> View:
    view = node.view()
    rank = len(view.dims) + node.batched
    if node.attribute("axis", 1) % (rank or 1) != 1 or not node.batched:
        raise Inexpressible("a Flatten that takes the batch with it, or only a part of the image")
    return _flat(view)


def _flat(view: View) -> View:
    return view.flattened(made(Flatten(), view.tensor)) if view.is_image else view


@rule("Reshape")
def reshape(node: Node) -> View:
    view, target = node.view(), node.integers("shape", 1) or []
    if not node.batched:
        raise Inexpressible("a Reshape without a batch")
    if not node.attribute("allowzero", 0):
        before = (node.batch, *view.dims)
        target = [before[i] if n == 0 and i < len(before) else n for i, n in enumerate(target)]
    return _reshaped(node, view, target)


def _reshaped(node: Node, view: View, target: Sequence[int]) -> View:
    """A view in another shape, batch first; -1 stands for what is left."""
    size = prod(view.shape)
    if not target or target[0] not in (-1, node.batch):
        raise Inexpressible(f"a Reshape to {list(target)}, which may mix the images of a batch")
    dims = list(target[1:])
    if -1 in dims:
        if target[0] == -1 or dims.count(-1) > 1:
            raise Inexpressible(f"a Reshape to {list(target)}, which may mix the images of a batch")
        rest = prod(n for n in dims if n != -1)
        dims[dims.index(-1)] = size // rest if rest else 0
    if prod(dims) != size:
        raise Inexpressible(f"a Reshape to {list(target)}, which mixes the images of a batch")
    if tuple(dims) == view.dims:
        return view
    if len(dims) == 1:
        return _flat(view)
    x = view.tensor
    if len(dims) == 3 and max(dims) == size:  # C x 1 x 1, in some order
        if not view.is_image and isinstance(x.layer, Flatten) and x.inputs[0].shape == (size, 1, 1):
            return View(x.inputs[0], channels_last=dims[0] != size)
        if view.shape == (size, 1, 1):
            return View(x, channels_last=dims[0] != size)
    raise Inexpressible(f"a Reshape of {view.dims} to {dims}")


@rule("Squeeze")
def squeeze(node: Node) -> View:
    view, axes = node.view(), node.integers("axes", 1)
    dims = [node.batch, *view.dims]
    if axes is None:
        axes = [axis for axis, n in enumerate(dims) if n == 1]
    gone = {axis % len(dims) for axis in axes}
    if any(dims[axis] != 1 for axis in gone) or not node.batched:
        raise Inexpressible(f"a Squeeze of axes {axes} of {view.dims}")
    return _reshaped(node, view, [n for axis, n in enumerate(dims) if axis not in gone])


@rule("Unsqueeze")
def unsqueeze(node: Node) -> View:
    view, axes = node.view(), node.integers("axes", 1) or []
    dims = [node.batch, *view.dims]
    rank = len(dims) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        dims.insert(axis, 1)
    if not node.batched:
        raise Inexpressible("an Unsqueeze without a batch")
    return _reshaped(node, view, dims)


@rule("Transpose")
def transpose(node: Node) -> View:
    view = node.view()
    rank = len(view.dims) + node.batched
    order = list(node.attribute("perm", range(rank - 1, -1, -1)))
    if order == list(range(rank)):
        return view
    if view.is_image and rank == 4:
        turned = [0, 3, 1, 2] if view.channels_last else [0, 2, 3, 1]
        if order == turned:
            return View(view.tensor, not view.channels_last)
    raise Inexpressible(f"a Transpose by {order}")


@rule("Identity")
def identity(node: Node) -> View:
    return node.view()


@rule("Cast")
def cast(node: Node) -> View:
    if node.attribute("to") != 1:  # FLOAT
        raise Inexpressible("a cast to another type than float32")
    return node.view()


@rule("Dropout")
def dropout(node: Node) -> View:
    """Kept, because it matters to whoever trains on; at inference it is the identity."""
    view = node.view()
    training = node.constant(2, "training mode")
    if training is not None and bool(training.reshape(-1)[0]):
        raise Inexpressible("dropout in training mode")
    if node.opset < 7 and not node.attribute("is_test", 0):
        raise Inexpressible("dropout in training mode")
    ratio = node.constant(1, "ratio")
    rate = node.attribute("ratio", 0.5) if ratio is None else ratio.reshape(-1)[0]
    if not 0 < rate < 1:
        return view
    return view.like(made(_construct(Dropout, number(rate)), view.tensor))


@rule("Concat")
def concat(node: Node) -> View:
    views = [node.view(i) for i in range(len(node.inputs))]
    first = views[0]
    if any(view.channels_last != first.channels_last or len(view.dims) != len(first.dims) for view in views):
        raise Inexpressible("a Concat of tensors in several layouts")
    rank = len(first.dims) + node.batched
    channel = rank - 1 if first.channels_last or not first.is_image else 1
    if not node.batched or node.attribute("axis") % rank != channel:
        raise Inexpressible("a Concat along another axis than the channels or features")
    if any(view.order is not None for view in views):
        raise Inexpressible("a Concat of features in channels-last order")
    tensors = [view.tensor for view in views]
    for count in range(len(tensors) - 1, 1, -1):  # what was joined before is one branch of this
        before = node.concats.get(tuple(map(id, tensors[:count])))
        if before is not None:
            tensors = [before, *tensors[count:]]
            break
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        raise Inexpressible("a Concat of images of several sizes")
    if len(tensors) == 1:
        return first
    shape = (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])
    joined = Tensor(tuple(tensors), shape, Join.CONCAT)
    node.concats[tuple(id(view.tensor) for view in views)] = joined
    return first.like(joined)


# Elementwise


def _simple(operator: str, make: Callable[[Node], Layer]) -> None:
    """An operator that is a layer whose every output is a function of one input."""

    def apply_rule(node: Node) -> View:
        view = node.view()
        return view.like(_activation(make(node), view.tensor))

    RULES[operator] = apply_rule


def _activation(layer: Layer, x: Tensor) -> Tensor:
    """A layer of one number, which a later operator may take as part of another one."""
    result = made(layer, x)
    result.pointwise = Pointwise(x, lambda values: apply(layer, values, {}))
    return result


_simple("Relu", lambda node: ReLU())
_simple("LeakyRelu", lambda node: _construct(LeakyReLU, number(node.attribute("alpha", 0.01))))
_simple("Elu", lambda node: _construct(ELU, number(node.attribute("alpha", 1.0))))
_simple("Sigmoid", lambda node: Sigmoid())
_simple("Tanh", lambda node: Tanh())
_simple("HardSwish", lambda node: HardSwish())
_simple("Gelu", lambda node: _construct(GELU, node.attribute("approximate", "none")))


@rule("Softmax")
def softmax(node: Node) -> View:
    view = node.view()
    axis = node.attribute("axis", -1 if node.opset >= 13 else 1)
    if view.is_image or axis % (1 + node.batched) != int(node.batched):
        raise Inexpressible("a softmax of something that is no vector (N, features)")
    return view.like(made(Softmax(), view.tensor))


@rule("PRelu")
def prelu(node: Node) -> View:
    slopes, view = node.required(1, "slope"), node.view()
    if slopes.size == 0 or (slopes != slopes.reshape(-1)[0]).any():
        raise Inexpressible("a slope for each channel")
    return view.like(_activation(_construct(LeakyReLU, number(slopes.reshape(-1)[0])), view.tensor))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def _erf(x: Array) -> Array:
    return 2 * apply(GELU(), x * np.sqrt(2), {}) / (x * np.sqrt(2) + (x == 0)) - 1 + (x == 0)


FUNCTIONS: dict[str, Function] = {
    "Abs": np.abs,
    "Erf": _erf,
    "Exp": np.exp,
    "Log": np.log,
    "Reciprocal": np.reciprocal,
    "Softplus": _softplus,
    "Sqrt": np.sqrt,
    "Mish": lambda x: x * np.tanh(_softplus(x)),
}


@rule(*FUNCTIONS)
def function(node: Node) -> View:
    view = node.view()
    return view.like(_composed(node.operator, view.tensor, FUNCTIONS[node.operator]))


@rule("HardSigmoid")
def hard_sigmoid(node: Node) -> View:
    alpha, beta = np.float32(node.attribute("alpha", 0.2)), np.float32(node.attribute("beta", 0.5))
    view = node.view()
    if (alpha, beta) == (np.float32(1 / 6), np.float32(0.5)):
        return view.like(_activation(HardSigmoid(), view.tensor))
    a, b = float(alpha), float(beta)
    return view.like(_composed("HardSigmoid", view.tensor, lambda x: np.clip(a * x + b, 0, 1)))


@rule("Swish")
def swish(node: Node) -> View:
    alpha, view = number(node.attribute("alpha", 1.0)), node.view()
    return view.like(_composed("Swish", view.tensor, lambda x: x * apply(Sigmoid(), alpha * x, {})))


@rule("ThresholdedRelu")
def thresholded(node: Node) -> View:
    alpha, view = number(node.attribute("alpha", 1.0)), node.view()
    return view.like(_composed("ThresholdedRelu", view.tensor, lambda x: np.where(x > alpha, x, 0)))


@rule("Clip")
def clip(node: Node) -> View:
    bounds = []
    for position, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = node.attribute(name)
        given = node.constant(position, name)
        bounds.append(
            float(value if value is not None else default if given is None else given.reshape(-1)[0])
        )
    low, high = bounds
    view = node.view()
    return view.like(_composed("Clip", view.tensor, lambda x: np.minimum(np.maximum(x, low), high)))


@rule("Neg")
def negative(node: Node) -> View:
    return _affine(node, node.view(), scale=np.array(-1.0))


@rule("Pow")
def power(node: Node) -> View:
    exponent, view = node.required(1, "exponent"), node.view()
    if exponent.size != 1:
        raise Inexpressible("a power with several exponents")
    number_ = float(exponent.reshape(-1)[0])
    return view.like(_composed("Pow", view.tensor, lambda x: np.power(x, number_)))


JOINT: dict[str, Callable[..., Array]] = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Max": lambda *x: reduce(np.maximum, x),
    "Min": lambda *x: reduce(np.minimum, x),
    "Where": np.where,
}


@rule(*JOINT)
def joint(node: Node) -> View:
    """A function of several numbers that come from one number of one tensor, or are constants."""
    views = [value for value in node.inputs if isinstance(value, View)]
    common = _common([view.tensor for view in views])
    constants = [value for value in node.inputs if isinstance(value, np.ndarray)]
    if common is None or any(constant.size != 1 for constant in constants):
        raise Inexpressible("of several tensors")
    base, pointwise = common
    rest = iter(pointwise)
    parts = [
        next(rest).function if isinstance(value, View) else _always(node.required(i, "term"))
        for i, value in enumerate(node.inputs)
    ]
    function = JOINT[node.operator]
    cost = 1 + sum(part.cost for part in pointwise)
    whole = Pointwise(base, lambda x: function(*(part(x) for part in parts)), cost)
    problem = f"a {node.operator} of functions of one number that is no layer"
    return views[0].like(_found(whole, problem))


def _always(constant: Array) -> Function:
    number_ = constant.reshape(-1)[0]
    return lambda x: number_


@rule("Add", "Sub", "Mul", "Div", "Sum")
def arithmetic(node: Node) -> View:
    if node.operator == "Sum" and len(node.inputs) != 2:
        if len(node.inputs) == 1:
            return node.view()
        head = replace(node, inputs=node.inputs[:-1])
        return arithmetic(replace(node, inputs=[arithmetic(head), node.inputs[-1]]))
    a, b = node.inputs
    if isinstance(a, View) and isinstance(b, View):
        return _of_two(node, node.view(0), node.view(1))
    position = 0 if isinstance(a, View) else 1
    view = node.view(position)
    constant = per_channel(view, node.required(1 - position, "other term"), node.batched)
    if constant is None:
        raise Inexpressible("a constant that has other than one number per channel or feature")
    with np.errstate(divide="ignore"):
        if node.operator in ("Add", "Sum"):
            return _affine(node, view, shift=constant)
        if node.operator == "Mul":
            return _affine(node, view, scale=constant)
        if node.operator == "Sub":
            return _affine(node, view, mean=constant) if position == 0 else _affine(
                node, view, scale=np.array(-1.0), shift=constant
            )  # fmt: skip
        if position == 0:
            return _affine(node, view, scale=1 / constant)
    if constant.size != 1:
        raise Inexpressible("a constant divided by something that comes from the image")
    over = float(constant.reshape(()))
    return view.like(_composed("Div", view.tensor, lambda x: over / x))


def _of_two(node: Node, a: View, b: View) -> View:
    """Two tensors of the image: a function of one of them, or where branches meet."""
    common = _common([a.tensor, b.tensor])
    if common is not None:
        base, (f, g) = common
        whole = Pointwise(base, _operation(node.operator, f.function, g.function), 1 + f.cost + g.cost)
        return a.like(_found(whole, f"a {node.operator} of functions of one number that is no layer"))
    joins = {"Add": Join.ADD, "Sum": Join.ADD, "Mul": Join.MULTIPLY}
    if node.operator not in joins:
        raise Inexpressible(f"a {node.operator} of two branches")
    join = joins[node.operator]
    if a.channels_last != b.channels_last and (1, 1) not in (a.shape[1:], b.shape[1:]):
        raise Inexpressible(f"a {node.operator} of tensors in several layouts")
    if len(a.shape) != len(b.shape) or (a.order is not None or b.order is not None):
        raise Inexpressible(f"a {node.operator} of tensors of several kinds")
    x, y = a, b
    if join is Join.MULTIPLY and prod(b.shape) > prod(a.shape):
        x, y = b, a
    if join is Join.ADD and a.shape != b.shape:
        raise Inexpressible(f"an Add of {a.shape} and {b.shape}")
    return x.like(Tensor((x.tensor, y.tensor), x.shape, join))


def _common(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Pointwise]] | None:
    """The nearest tensor of which all of these are functions, number by number, and the functions."""
    chains = [_lineage(tensor) for tensor in tensors]
    for first in chains[0]:
        others = [next((p for p in chain if p.base is first.base), None) for chain in chains[1:]]
        found = [other for other in others if other is not None]
        if len(found) == len(others):
            return first.base, [first, *found]
    return None


def _lineage(tensor: Tensor) -> list[Pointwise]:
    """The tensors of which this one is a function, number by number, nearest first: itself, ..."""
    found = [Pointwise(tensor, lambda x: x, 0)]
    while (before := found[-1].base.pointwise) is not None:
        whole = found[-1]
        cost = whole.cost + before.cost
        if cost > MOST_STEPS:
            break
        found.append(Pointwise(before.base, _after(whole.function, before.function), cost))
    return found


def _after(f: Function, g: Function) -> Function:
    return lambda x: f(g(x))


def _operation(operator: str, f: Function, g: Function) -> Function:
    apply_to = {"Add": np.add, "Sum": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    return lambda x: apply_to[operator](f(x), g(x))


def _composed(what: str, x: Tensor, function: Function) -> Tensor:
    """A function of every number of x. Where x itself is only a step to something, it is taken along."""
    whole = Pointwise(x, function)
    while whole.base.layer is None and (before := whole.base.pointwise) is not None:
        whole = Pointwise(before.base, _after(whole.function, before.function), whole.cost + before.cost)
    return _found(whole, f"{what}: a function of one number that is no layer")


def _found(whole: Pointwise, problem: str) -> Tensor:
    """The layer that computes a function, recognised by its values; without one a step to something."""
    if whole.cost > MOST_STEPS:
        raise Inexpressible(f"a function of one number made of more than {MOST_STEPS} steps")
    base, layer = whole.base, recognised(whole.function)
    if layer is None:
        return Tensor((base,), base.shape, problem=problem, pointwise=whole)
    result = made(layer, base)
    result.pointwise = whole
    return result


def recognised(function: Function) -> Layer | None:
    """The layer without weights that gives the same as a function of one number on GRID, if there is one."""
    with np.errstate(all="ignore"):
        values = function(GRID)
        if values.dtype == bool:  # a comparison is no layer, but may choose between two
            return None
        slope, alpha = float(-function(np.array([-1.0]))[0]), float(-function(np.array([-300.0]))[0])
    candidates: list[Layer] = [ReLU(), ReLU6(), Sigmoid(), Tanh(), SiLU(), GELU(), GELU("tanh")]
    candidates += [HardSigmoid(), HardSwish()]
    for kind, argument in ((LeakyReLU, slope), (ELU, alpha)):
        try:
            candidates.append(kind(number(argument)))
        except (InvalidSpec, ValueError, OverflowError):
            continue
    for layer in candidates:
        with np.errstate(all="ignore"):
            expected = apply(layer, GRID, {})
        if (
            values.shape == expected.shape
            and (np.abs(values - expected) <= SAME * (1 + np.abs(expected))).all()
        ):
            return layer
    return None


def _affine(
    node: Node,
    view: View,
    mean: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
) -> View:
    """(x - mean) * scale + shift, taken together with what stands before it."""
    x = view.tensor
    if shift is not None and scale is None and isinstance(x.layer, (Conv2d, Dense)) and not x.layer.bias:
        bias = np.broadcast_to(shift, (x.shape[0],))
        layer = replace(x.layer, bias=True)
        return view.like(made(layer, x.inputs[0], **x.arrays, bias=bias))
    zero, one = np.array(0.0), np.array(1.0)
    before = x.affine or Affine(x, zero, one, zero)
    if mean is not None:
        now = _moved(before, -mean)
    elif scale is not None:
        now = replace(before, scale=before.scale * scale, shift=before.shift * scale)
        if shift is not None:
            now = _moved(now, shift)
    else:
        assert shift is not None
        now = _moved(before, shift)
    if not all(np.isfinite(part).all() for part in (now.mean, now.scale, now.shift)):
        raise Inexpressible("a constant that is not finite")
    parts = (now.mean, now.scale, now.shift)
    function: Function | None = None
    if all(part.ndim == 0 for part in parts):
        m, s, t = map(float, parts)
        function = lambda values: (values - m) * s + t  # noqa: E731
    if function is not None and now.base.layer is None and now.base.pointwise is not None:
        return view.like(_composed(node.operator, now.base, function))  # a step to something, as a rule
    result = _affine_layer(now)
    result.affine = now
    if function is not None:
        result.pointwise = Pointwise(now.base, function)
    return view.like(result)


def _moved(affine: Affine, by: Array) -> Affine:
    """Something added to it: to the mean as long as there is no scale, which keeps the very numbers."""
    if affine.scale.ndim == 0 and affine.scale == 1 and not np.any(affine.shift):
        return replace(affine, mean=affine.mean - by)
    return replace(affine, shift=affine.shift + by)


def _affine_layer(affine: Affine) -> Tensor:
    """Normalize where that says it; a batch normalisation with a variance of 1 otherwise."""
    base = affine.base
    channels = base.shape[0]
    with np.errstate(over="ignore"):  # an infinity is refused by the layer
        mean, scale, shift = (
            np.broadcast_to(part, (channels,)).astype(np.float32)
            for part in (affine.mean, affine.scale, affine.shift)
        )
    if len(base.shape) == 3 and not shift.any():
        return made(_construct(Normalize, tuple(map(float, mean)), tuple(map(float, scale))), base)
    ones = np.ones(channels)
    return made(
        _construct(BatchNorm, TINY), base, weight=scale, bias=shift, running_mean=mean, running_var=ones
    )


def _construct(kind: Callable[..., Any], *arguments: Any) -> Any:
    """A layer; raises Inexpressible where the language has no such one."""
    try:
        return kind(*arguments)
    except InvalidSpec as error:
        raise Inexpressible(f"{kind.__name__}: {error.what}") from None
    except TypeError as error:
        raise Inexpressible(f"{kind.__name__}: {error}") from None
