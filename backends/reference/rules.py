"""The judge: every layer in NumPy float64, inference only, written to be read.

Each rule is the layer's definition and nothing else: no speed-up that a reader would have to
believe. x is (N, C, H, W) or (N, features), of a join the tuple of all that it joins; w holds the
layer's own weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce, singledispatch
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from zoo.errors import UnsupportedLayer
from zoo.fields import Sides
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

Array = np.ndarray
CHUNK_BYTES = 16 * 2**20  # of unfolded windows at a time: they stay in a cache


@singledispatch
def apply(layer: Layer, x: Any, w: Mapping[str, Array]) -> Array:
    """The output of one layer for the input x."""
    raise UnsupportedLayer(f"the backend 'reference' has no rule for {type(layer).__name__}")


@apply.register
def normalize(layer: Normalize, x: Array, w: Mapping[str, Array]) -> Array:
    mean = np.array(layer.mean).reshape(1, -1, 1, 1)
    scale = np.array(layer.scale).reshape(1, -1, 1, 1)
    return (x - mean) * scale


@apply.register
def conv2d(layer: Conv2d, x: Array, w: Mapping[str, Array]) -> Array:
    down, across = layer.dilation
    windows = _windows(_pad(x, layer.padding, 0), layer.extent, layer.stride)  # N C H W height width
    windows = windows[..., ::down, ::across]  # N C H W kh kw
    parts = [
        np.tensordot(kernels, part, axes=((1, 2, 3), (1, 4, 5)))  # O N H W
        for part, kernels in zip(
            np.split(windows, layer.groups, axis=1), np.split(w["weight"], layer.groups), strict=True
        )
    ]
    y = np.concatenate(parts).swapaxes(0, 1)
    return y + w["bias"].reshape(1, -1, 1, 1) if layer.bias else y


@apply.register
def batch_norm(layer: BatchNorm, x: Array, w: Mapping[str, Array]) -> Array:
    mean, variance, weight, bias = (
        w[name].reshape(1, -1, *(1,) * (x.ndim - 2))
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + layer.epsilon) * weight + bias


@apply.register
def local_response_norm(layer: LocalResponseNorm, x: Array, w: Mapping[str, Array]) -> Array:
    around = layer.size // 2
    squares = np.pad(x**2, ((0, 0), (around, around), (0, 0), (0, 0)))
    total = sliding_window_view(squares, layer.size, axis=1).sum(axis=-1)
    return x / (layer.k + layer.alpha / layer.size * total) ** layer.beta


@apply.register
def relu(layer: ReLU, x: Array, w: Mapping[str, Array]) -> Array:
    return np.maximum(x, 0)


@apply.register
def relu6(layer: ReLU6, x: Array, w: Mapping[str, Array]) -> Array:
    return np.clip(x, 0, 6)


@apply.register
def leaky_relu(layer: LeakyReLU, x: Array, w: Mapping[str, Array]) -> Array:
    return np.where(x > 0, x, layer.slope * x)


@apply.register
def elu(layer: ELU, x: Array, w: Mapping[str, Array]) -> Array:
    return np.where(x > 0, x, layer.alpha * np.expm1(np.minimum(x, 0)))


@apply.register
def sigmoid(layer: Sigmoid, x: Array, w: Mapping[str, Array]) -> Array:
    return _sigmoid(x)


@apply.register
def tanh(layer: Tanh, x: Array, w: Mapping[str, Array]) -> Array:
    return np.tanh(x)


@apply.register
def gelu(layer: GELU, x: Array, w: Mapping[str, Array]) -> Array:
    if layer.approximate == "tanh":
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return (
        x * np.asarray(_erfc(-x / math.sqrt(2)), dtype=np.float64) / 2
    )  # 1 + erf(x) = erfc(-x), without cancellation


@apply.register
def silu(layer: SiLU, x: Array, w: Mapping[str, Array]) -> Array:
    return x * _sigmoid(x)


@apply.register
def hard_sigmoid(layer: HardSigmoid, x: Array, w: Mapping[str, Array]) -> Array:
    return np.clip(x / 6 + 0.5, 0, 1)


@apply.register
def hard_swish(layer: HardSwish, x: Array, w: Mapping[str, Array]) -> Array:
    return x * np.clip(x / 6 + 0.5, 0, 1)


@apply.register
def max_pool2d(layer: MaxPool2d, x: Array, w: Mapping[str, Array]) -> Array:
    windows = _windows(_pad(x, layer.sides(x.shape[1:]), -np.inf), layer.size, layer.stride)
    return reduce(np.maximum, (windows[..., i, j] for i, j in np.ndindex(layer.size)))


@apply.register
def avg_pool2d(layer: AvgPool2d, x: Array, w: Mapping[str, Array]) -> Array:
    rows, columns = layer.counts(x.shape[1:])
    total = _windows(_pad(x, layer.sides(x.shape[1:]), 0), layer.size, layer.stride).sum(axis=(4, 5))
    return total / np.outer(rows, columns)


@apply.register
def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, x: Array, w: Mapping[str, Array]) -> Array:
    rows, columns = layer.cells(x.shape[1:])
    y = np.empty((*x.shape[:2], len(rows), len(columns)))
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            y[:, :, i, j] = x[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return y


@apply.register
def global_avg_pool2d(layer: GlobalAvgPool2d, x: Array, w: Mapping[str, Array]) -> Array:
    return x.mean(axis=(2, 3), keepdims=True)


@apply.register
def dropout(layer: Dropout, x: Array, w: Mapping[str, Array]) -> Array:
    return x


@apply.register
def spatial_dropout(layer: SpatialDropout, x: Array, w: Mapping[str, Array]) -> Array:
    return x


@apply.register
def flatten(layer: Flatten, x: Array, w: Mapping[str, Array]) -> Array:
    return x.reshape(len(x), -1)


@apply.register
def dense(layer: Dense, x: Array, w: Mapping[str, Array]) -> Array:
    y = x @ w["weight"].T
    return y + w["bias"] if layer.bias else y


@apply.register
def softmax(layer: Softmax, x: Array, w: Mapping[str, Array]) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@apply.register
def residual(layer: Residual, x: tuple[Array, Array], w: Mapping[str, Array]) -> Array:
    body, shortcut = x
    return body + shortcut


@apply.register
def concat(layer: Concat, x: tuple[Array, ...], w: Mapping[str, Array]) -> Array:
    return np.concatenate(x, axis=1)


@apply.register
def scale(layer: Scale, x: tuple[Array, Array], w: Mapping[str, Array]) -> Array:
    image, factor = x
    return image * factor


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _pad(x: Array, sides: Sides, value: float) -> Array:
    """x (N, C, H, W) with `value` around its images."""
    top, left, bottom, right = sides
    around = ((0, 0), (0, 0), (top, bottom), (left, right))
    return np.pad(x, around, constant_values=value) if any(sides) else x


def _windows(x: Array, size: tuple[int, int], stride: tuple[int, int]) -> Array:
    """All windows of x (N, C, H, W) as (N, C, H', W', size_h, size_w)."""
    return sliding_window_view(x, size, axis=(2, 3))[:, :, :: stride[0], :: stride[1]]
