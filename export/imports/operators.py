"""Operators that look at more than one number: convolutions, products, normalisations, pools, shapes.

What exporters spell in several operators is put together again as it is read: a Pad before a convolution, a
batch that is computed from a Shape, a Concat of all that came before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from math import prod

import numpy as np

from export.imports.functions import SAME
from export.imports.nodes import Node, construct, made, rule
from export.imports.tensors import Array, Inexpressible, Join, Tensor, View, number, rounded
from export.onnx.graph import shares
from zoo.fields import Sides
from zoo.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSigmoid,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    ReLU6,
    Sigmoid,
    Softmax,
)

NEVER_NEGATIVE = (ReLU, ReLU6, Sigmoid, HardSigmoid, Softmax)
KEEPS_SIGN = (MaxPool2d, AvgPool2d, GlobalAvgPool2d, AdaptiveAvgPool2d, Dropout)

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
    layer = construct(
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
    weight = rounded(node.required(1, "weight") * np.float64(node.attribute("alpha", 1.0)))
    if not node.attribute("transB", 0):
        weight = weight.T
    bias = node.constant(2, "bias")
    if bias is not None:
        bias = rounded(bias * np.float64(node.attribute("beta", 1.0)))
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
    layer = construct(Dense, weight.shape[0], bias is not None)
    return View(made(layer, view.tensor, weight=weight, **({} if bias is None else {"bias": bias})))


def _rows(matrix: Array, view: View) -> View:
    """A matrix times an image times a matrix: the adaptive mean, if both are shares of cells."""
    if view.tensor.columns is None:
        raise Inexpressible("a matrix times something that comes from the image")
    x, columns = view.tensor.columns
    if matrix.ndim != 2 or (matrix.shape[1], len(columns)) != x.shape[1:]:
        raise Inexpressible("an image between two matrices of other sizes")
    layer = construct(AdaptiveAvgPool2d, (matrix.shape[0], columns.shape[1]))
    wanted = [shares(cells, n) for cells, n in zip(layer.cells(x.shape), x.shape[1:], strict=True)]
    if not (_alike(matrix, wanted[0]) and _alike(columns.T, wanted[1])):
        raise Inexpressible("an image between two matrices that are no means of cells")
    return View(made(layer, x))


def _alike(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=float(SAME), atol=0))


@rule("Softmax")
def softmax(node: Node) -> View:
    view = node.view()
    axis = node.attribute("axis", -1 if node.opset >= 13 else 1)
    if view.is_image or axis % (1 + node.batched) != int(node.batched):
        raise Inexpressible("a softmax of something that is no vector (N, features)")
    return view.like(made(Softmax(), view.tensor))


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
    momentum = float(1 - Decimal(str(np.float32(node.attribute("momentum", 0.9)))))
    layer = construct(
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
    layer = construct(
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
    layer = construct(MaxPool2d, *_window(node), 0, bool(node.attribute("ceil_mode", 0)))
    sides = _pads(node, layer, view.shape)
    if x.pad is not None:
        base, before, value = x.pad
        never = value <= np.finfo(np.float32).min or (value == 0 and _never_negative(base))
        if never and _fits(layer, _plus(before, sides)):
            return View(made(replace(layer, padding=_plus(before, sides)), base))
        if value != 0:
            raise Inexpressible(f"a pool of what is padded with {value:g}")
    return View(made(replace(layer, padding=sides), x))


@rule("AveragePool")
def average_pool(node: Node) -> View:
    view = node.view()
    x = view.canonical_image("a pool")
    counted = bool(node.attribute("count_include_pad", 0))
    layer = construct(AvgPool2d, *_window(node), 0, bool(node.attribute("ceil_mode", 0)), counted)
    sides = _pads(node, layer, view.shape)
    if x.pad is not None and x.pad[2] == 0 and _fits(layer, x.pad[1]):
        base, before, _ = x.pad
        if not any(sides):
            return View(made(replace(layer, padding=before, count_padding=True), base))
        whole = replace(layer, padding=before, ceil=True, count_padding=True)  # what ceil adds does not count
        if not counted and whole.sides(base.shape) == _plus(before, sides):
            return View(made(whole, base))
    return View(made(replace(layer, padding=sides), x))


def _fits(layer: MaxPool2d | AvgPool2d, sides: Sides) -> bool:
    """Whether a Pad may become a pool's own padding: less than its size, and no window begins in it alone.

    With `ceil` a window may begin in what was an image's padding, but not in a pool's.
    """
    height, width = layer.size
    return not layer.ceil and max(sides[0], sides[2]) < height and max(sides[1], sides[3]) < width


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
    return View(made(construct(MaxPool2d, x.shape[1:]), x))


@rule("ReduceMean", "ReduceMax")
def reduction(node: Node) -> View:
    view = node.view()
    axes = node.integers("axes", 1)
    rank = len(view.dims) + node.batched
    spatial = {1, 2} if view.channels_last else {2, 3}
    if not view.is_image or axes is None or {axis % rank for axis in axes} != spatial:
        raise Inexpressible("a reduction over other axes than height and width")
    layer = GlobalAvgPool2d() if node.operator == "ReduceMean" else construct(MaxPool2d, view.shape[1:])
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
    number_ = float(value if value is not None else 0 if filling is None else filling.item())
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
    layer = construct(Conv2d, channels, 1, 1, sides, False, 1, channels)
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
    if dims in ([size, 1, 1], [1, 1, size]):
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
    return view.like(made(construct(Dropout, number(rate)), view.tensor))


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
