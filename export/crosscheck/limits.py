"""What float32 may honestly differ, derived layer by layer from fan-in and magnitudes.

Rounding each product and sum of y = W x + b in any order errs by at most (n + 2) u S in the first
order, with u = 2^-24, fan-in n and S = |W||x| + |b| (Higham, Accuracy and Stability of Numerical
Algorithms, 3.1). For large n that is far from what happens, because rounding errors cancel: n terms
of one sign, added one after another, leave a standard deviation of 0.24 sqrt(n) u S, and 2 sqrt(n) u S
is eight of them, as an element among millions may need. A convolution may add like that; a product of
matrices keeps at least 16 partial sums, which makes it sqrt(n) / 2. Both at least 32, four times the
8.3 that was measured in the last layers of the documented CNNs; so a layer's own limit is
min(n + 2, max(32, 2 sqrt(n) or sqrt(n) / 2)) u S. Measured: 18 in a convolution of n = 400, 39 in a dense
layer of n = 25,600 (Keras on torch).

Errors of the input go through a layer as well. Elementwise layers and pooling pass on the largest.
Sums of many errors with signs of their own grow as a root of squares, and what is summed is what
errors typically are (8 u S), not what a single one may be; a sum of few may meet one at its limit.

One rule per layer, in the order of zoo/layers.py; `x` is the exact input, `w` the layer's weights. A join
has tuples for its inputs and their allowances.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from backends.reference import apply
from zoo.errors import UnsupportedLayer
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
UNIT = 2.0**-24  # half the distance of float32 from 1 to the next number
UNITS = 32
TYPICAL_UNITS = 8
ACTIVATION_UNITS = 16  # measured: 8.6 in the tail of onnxruntime's sigmoid, 3.8 elsewhere
FLOOR = 2.0**-110  # frameworks may take denormal numbers, and products that are, for zero


class Allowance(NamedTuple):
    """What a tensor may differ from the exact one, element by element, in its own unit.

    limit: in all, the layers before included. typical: what to expect at most, for sums over many.
    own: by the rounding of this layer alone, on an exact input; None where it computes exactly.
    """

    limit: Array
    typical: Array
    own: Array | None = None


def exact(x: Array) -> Allowance:
    """The allowance of a tensor that is given: none."""
    zero = np.zeros(x.shape)
    return Allowance(zero, zero)


def product_units(features: int) -> float:
    """How many u S a product of matrices with so many features may differ, however small they are."""
    return max(UNITS, sqrt(features) / 2)


@singledispatch
def propagate(layer: Layer, x: Any, w: Mapping[str, Array], before: Any) -> Allowance:
    """The allowance of a layer's output for an input x (N, C, H, W) or (N, features) with its own."""
    raise UnsupportedLayer(f"no limit is derived for {type(layer).__name__}")


@propagate.register
def normalize(layer: Normalize, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    mean = np.abs(np.array(layer.mean)).reshape(1, -1, 1, 1)
    scale = np.abs(np.array(layer.scale)).reshape(1, -1, 1, 1)
    return _rounded(4, (np.abs(x) + mean) * scale, before.limit * scale, before.typical * scale)


@propagate.register
def conv2d(layer: Conv2d, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    fan_in = prod(w["weight"].shape[1:])
    return _sum(layer, x, w, before, min(fan_in + 2, max(UNITS, 2 * sqrt(fan_in))))


@propagate.register
def batch_norm(layer: BatchNorm, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    """The scale errs by a few u, however x * scale + (bias - mean * scale) is put together."""
    around = (1, -1, *(1,) * (x.ndim - 2))
    mean, bias = (np.abs(w[name]).reshape(around) for name in ("running_mean", "bias"))
    factor = (np.abs(w["weight"]) / np.sqrt(w["running_var"] + layer.epsilon)).reshape(around)
    scale = (np.abs(x) + mean) * factor + bias
    return _rounded(8, scale, before.limit * factor, before.typical * factor)


@propagate.register
def local_response_norm(
    layer: LocalResponseNorm, x: Array, w: Mapping[str, Array], before: Allowance
) -> Allowance:
    """The power makes the sum's relative error beta as large; it and the division add a few u.

    The sum may be a running one, from which a channel is taken as the next comes (onnxruntime): each step
    rounds, and what a large sum has lost stays when it has become a small one.
    """
    y = np.abs(apply(layer, x, w))
    total = layer.k + layer.alpha / layer.size * _neighbours(layer, x**2)
    steps = 2 * x.shape[1] + layer.size
    lost = steps * total.max(axis=1, keepdims=True) / total

    def carried(error: Array) -> Array:
        own = error * total**-layer.beta
        around = 2 * layer.alpha / layer.size * _neighbours(layer, np.abs(x) * error)
        return own + y * layer.beta * around / total

    scale = y * (10 + layer.beta * lost)
    return _rounded(1, scale, carried(before.limit), carried(before.typical))


def _neighbours(layer: LocalResponseNorm, x: Array) -> Array:
    """The sum over the channels around each."""
    around = layer.size // 2
    padded = np.pad(x, ((0, 0), (around, around), (0, 0), (0, 0)))
    return sliding_window_view(padded, layer.size, axis=1).sum(axis=-1)


@propagate.register
def activation(layer: Activation, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    """What an activation rounds, and the input's error times its steepest slope."""
    slope, scale = _activation(layer, x)
    limit, typical = slope * before.limit, slope * before.typical
    return Allowance(limit, typical) if scale is None else _rounded(ACTIVATION_UNITS, scale, limit, typical)


def _activation(layer: Activation, x: Array) -> tuple[float, Array | None]:
    """The steepest slope, and what the rounding errors are relative to; None where nothing is rounded.

    Where a formula takes a difference (exp(x) - 1, 1 + erf(x)), that is what it is taken of.
    """
    size = np.abs(x)
    match layer:
        case ReLU() | ReLU6():
            return 1.0, None
        case LeakyReLU():
            return max(1.0, abs(layer.slope)), np.where(x > 0, 0, abs(layer.slope) * size)
        case ELU():
            return max(1.0, abs(layer.alpha)), np.where(x > 0, 0, abs(layer.alpha))
        case Sigmoid():
            # onnxruntime computes 1/2 + an odd function of x, whose rounding errors small results keep
            return 0.25, apply(layer, x, {}) * (1 + np.minimum(size, UNITS)) + 1 / 4
        case Tanh():
            return 1.0, np.abs(np.tanh(x))
        case HardSigmoid():
            return 1 / 6, np.full(x.shape, 1.0)
        case GELU() | SiLU() | HardSwish():
            return 1.5, size  # 1.13, 1.10 and 1.5
    raise UnsupportedLayer(f"no limit is derived for {type(layer).__name__}")


@propagate.register
def max_pool2d(layer: MaxPool2d, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    return Allowance(apply(layer, before.limit, w), apply(layer, before.typical, w))


@propagate.register
def avg_pool2d(layer: AvgPool2d, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    return _mean(layer, prod(layer.size), x, w, before)


@propagate.register
def adaptive_avg_pool2d(
    layer: AdaptiveAvgPool2d, x: Array, w: Mapping[str, Array], before: Allowance
) -> Allowance:
    size, _ = layer.window(x.shape[1:])
    return _mean(layer, prod(size), x, w, before)


@propagate.register
def global_avg_pool2d(
    layer: GlobalAvgPool2d, x: Array, w: Mapping[str, Array], before: Allowance
) -> Allowance:
    return _mean(layer, prod(x.shape[2:]), x, w, before)


@propagate.register
def dropout(layer: Dropout, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    return Allowance(before.limit, before.typical)


@propagate.register
def spatial_dropout(layer: SpatialDropout, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    return Allowance(before.limit, before.typical)


@propagate.register
def flatten(layer: Flatten, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    return Allowance(apply(layer, before.limit, w), apply(layer, before.typical, w))


@propagate.register
def dense(layer: Dense, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    features = w["weight"].shape[1]
    return _sum(layer, x, w, before, min(features + 2, product_units(features)))


@propagate.register
def softmax(layer: Softmax, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    """exp(x - max) errs by u |x - max|, which the subtraction leaves, and a few u; n terms are summed."""
    p = apply(layer, x, w)
    scale = p * (np.abs(x - x.max(axis=1, keepdims=True)) + min(x.shape[1] + 10, UNITS))
    limit, typical = (
        np.minimum(p * np.expm1(np.minimum(e + (p * e).sum(axis=1, keepdims=True), 50)), 1)
        for e in (before.limit, before.typical)
    )
    return _rounded(1, scale, limit, typical)


@propagate.register
def residual(
    layer: Residual, x: tuple[Array, Array], w: Mapping[str, Array], before: tuple[Allowance, Allowance]
) -> Allowance:
    """A sum rounds once. Its terms have errors in common, and may meet both at their limits."""
    body, shortcut = before
    scale = np.abs(x[0] + x[1])
    return _rounded(2, scale, body.limit + shortcut.limit, body.typical + shortcut.typical)


@propagate.register
def concat(
    layer: Concat, x: tuple[Array, ...], w: Mapping[str, Array], before: tuple[Allowance, ...]
) -> Allowance:
    return Allowance(*(np.concatenate(parts, axis=1) for parts in zip(*(b[:2] for b in before), strict=True)))


@propagate.register
def scale(
    layer: Scale, x: tuple[Array, Array], w: Mapping[str, Array], before: tuple[Allowance, Allowance]
) -> Allowance:
    """Each factor's error times the other factor, and of the two errors the product."""
    (a, b), (left, right) = map(np.abs, x), before
    limit, typical = (
        a * of_b + b * of_a + of_a * of_b
        for of_a, of_b in ((left.limit, right.limit), (left.typical, right.typical))
    )
    return _rounded(2, a * b, limit, typical)


def _mean(layer: Layer, count: int, x: Array, w: Mapping[str, Array], before: Allowance) -> Allowance:
    """The allowance of means of up to `count` inputs each."""
    units = min(count + 4, max(UNITS, 2 * sqrt(count)))
    scale, limit, typical = (apply(layer, array, w) for array in (np.abs(x), before.limit, before.typical))
    return _rounded(units, scale, limit, typical)


def _sum(
    layer: Conv2d | Dense, x: Array, w: Mapping[str, Array], before: Allowance, units: float
) -> Allowance:
    """The allowance of W x + b, each output a sum rounded by up to `units` u (|W||x| + |b|)."""
    scale = apply(layer, np.abs(x), {name: np.abs(array) for name, array in w.items()})
    carried = np.zeros(())
    if before.typical.any():
        squares = {"weight": w["weight"] ** 2} | ({"bias": 0 * w["bias"]} if layer.bias else {})
        few = sqrt(1 + (UNITS / TYPICAL_UNITS) ** 2 / prod(w["weight"].shape[1:]))
        with np.errstate(over="ignore"):  # through a hundred layers: then anything is allowed
            carried = few * np.sqrt(np.maximum(apply(layer, before.typical**2, squares), 0))
    return _rounded(units, scale, carried, carried)


def _rounded(units: float, scale: Array, limit: Array, typical: Array) -> Allowance:
    """Rounding by up to `units` u scale, on top of what the input brings."""
    own = units * UNIT * scale + FLOOR
    expected = min(units, TYPICAL_UNITS) * UNIT * scale
    return Allowance(own + limit, np.hypot(expected, typical), own)
