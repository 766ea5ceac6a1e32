"""What float32 may honestly differ: a bound for each layer, derived from what it sums and how large that is.

A sum of n products computed in any order, fused or not, errs by at most (n + 2) u S in the first order, with
u = 2^-24 and S = |W||x| + |b| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). n is the number
of terms that are not zero, for adding a zero rounds nothing. Nothing honest is beyond this, not even a
running sum of equal terms, whose errors all have one sign. That is a layer's `most`.

Errors of random sign cancel, so what usually happens is far less: n terms of one sign, added one after
another, leave a standard deviation of 0.24 sqrt(n) u S, and 2 sqrt(n) u S is eight of them; a product of
matrices keeps at least 16 partial sums, which makes it sqrt(n) / 2. Both at least 32, four times the 8.3
measured in the last layers of the documented CNNs. That is a layer's `usual`. A layer beyond it is not wrong
yet: it is run alone on inputs that are mostly zero, where the bound is tight
(export.crosscheck.inputs.few_terms).

Functions of one number err by what is documented of, or was measured in, the runtimes: ACTIVATION_UNITS.

`carry` takes an error bound of the input through a layer, where a witness does not show what lies between.
One rule per layer in both, in the order of zoo/layers.py; `x` is the exact input, `w` the layer's weights. A
join has tuples for its inputs and their bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from backends.reference.rules import apply
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
TYPICAL_UNITS = 1  # measured: 0.25 to 0.6 as a root mean square in convolutions
ACTIVATION_UNITS = 16  # measured: 8.6 in the tail of onnxruntime's sigmoid, 3.8 elsewhere
NORMAL = 2.0**-126  # the smallest float32 that is not denormal
LARGEST_ERROR = 1e100  # a bound beyond it bounds nothing, but must not become infinite: times 0 that is NaN
FLOOR = 2.0**-110  # frameworks may take denormal numbers, and products that are, for zero


class Rounding(NamedTuple):
    """What a layer's own rounding may differ on an exact input, in units of u `scale`.

    scale: float64, of the output's shape. most: the bound, one number or one per output (broadcast).
    usual: what is hardly ever exceeded. flushed: what is lost if denormal numbers are taken for zero, in the
    output's unit.
    """

    scale: Array
    most: Array | float
    usual: Array | float
    flushed: Array | float = 0.0

    @property
    def bound(self) -> Array:
        """The bound, element by element, in the output's unit."""
        return self.most * UNIT * self.scale + FLOOR + self.flushed

    @property
    def expected(self) -> Array:
        """What is hardly ever exceeded, likewise; never more than the bound."""
        return np.minimum(self.most, self.usual) * UNIT * self.scale + FLOOR + self.flushed

    @property
    def typical(self) -> Array:
        """How large the errors are that happen, likewise."""
        return np.minimum(self.most, TYPICAL_UNITS) * UNIT * self.scale


def product_units(features: int) -> float:
    """How many u S a product of matrices with so many features usually differs at most."""
    return max(UNITS, sqrt(features) / 2)


@singledispatch
def rounding(layer: Layer, x: Any, y: Array, w: Mapping[str, Array]) -> Rounding:
    """What a layer's rounding may differ for an exact input x, (N, C, H, W) or (N, features).

    y: the exact output.
    """
    raise UnsupportedLayer(f"no limit is derived for {type(layer).__name__}")


@rounding.register(ReLU)
@rounding.register(ReLU6)
@rounding.register(MaxPool2d)
@rounding.register(Dropout)
@rounding.register(SpatialDropout)
@rounding.register(Flatten)
@rounding.register(Residual)
@rounding.register(Concat)
@rounding.register(Scale)
def _(layer: Layer, x: Any, y: Array, w: Mapping[str, Array]) -> Rounding:
    """Nothing is rounded, or once: the last bit may differ."""
    return Rounding(np.abs(y), 2, 2)


@rounding.register
def _(layer: Normalize, x: Array, y: Array, w: Mapping[str, Array]) -> Rounding:
    mean, scale = (np.abs(np.array(v)).reshape(1, -1, 1, 1) for v in (layer.mean, layer.scale))
    return Rounding((np.abs(x) + mean) * scale, 4, 4)


@rounding.register
def _(layer: Conv2d, x: Array, y: Array, w: Mapping[str, Array]) -> Rounding:
    there = (x != 0).reshape(len(x), layer.groups, -1, *x.shape[2:]).sum(axis=2, dtype=np.float32)
    top, left, bottom, right = layer.padding
    there = np.pad(there, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = sliding_window_view(there, layer.extent, axis=(2, 3))
    windows = windows[
        :, :, :: layer.stride[0], :: layer.stride[1], :: layer.dilation[0], :: layer.dilation[1]
    ]
    terms = sum(windows[..., i, j] for i, j in np.ndindex(layer.kernel))  # not zero, by group and place
    terms = np.repeat(terms, layer.filters // layer.groups, axis=1)
    held = np.count_nonzero(w["weight"], axis=(1, 2, 3)).reshape(1, -1, 1, 1)
    return _sum(layer, x, w, np.minimum(terms, held), 2 * sqrt(prod(w["weight"].shape[1:])))


@rounding.register
def _(layer: BatchNorm, x: Array, y: Array, w: Mapping[str, Array]) -> Rounding:
    """The scale errs by a few u, however x * scale + (bias - mean * scale) is put together."""
    mean, bias = (np.abs(_around(w[name], x)) for name in ("running_mean", "bias"))
    return Rounding((np.abs(x) + mean) * _factor(layer, x, w) + bias, 8, 8)


@rounding.register
def _(layer: LocalResponseNorm, x: Array, y: Array, w: Mapping[str, Array]) -> Rounding:
    """The power makes the sum's relative error beta as large; it and the division add a few u.

    The sum may be a running one, from which a channel is taken as the next comes (onnxruntime): each step
    rounds, and what a large sum has lost stays when it has become a small one.
    """
    total = _total(layer, x)
    steps = 2 * x.shape[1] + layer.size
    lost = steps * total.max(axis=1, keepdims=True) / total
    most = 10 + layer.beta * lost
    return Rounding(np.abs(y), most, most)


@rounding.register
def _(layer: Activation, x: Array, y: Array, w: Mapping[str, Array]) -> Rounding:
    """Where a formula takes a difference (exp(x) - 1, 1 + erf(x)), the error is relative to what it is of."""
    size = np.abs(x)
    match layer:
        case LeakyReLU():
            scale = np.where(x > 0, size / 8, abs(layer.slope) * size)
        case ELU():
            scale = np.where(x > 0, size / 8, abs(layer.alpha))
        case Sigmoid():
            # onnxruntime computes 1/2 + an odd function of x, whose rounding errors small results keep
            scale = y * (1 + np.minimum(size, UNITS)) + 1 / 4
        case Tanh():
            scale = np.abs(y)
        case HardSigmoid():
            scale = np.full(x.shape, 1.0)
        case GELU() | SiLU() | HardSwish():
            scale = size
        case _:
            raise UnsupportedLayer(f"no limit is derived for {type(layer).__name__}")
    return Rounding(scale, ACTIVATION_UNITS, ACTIVATION_UNITS)


@rounding.register(AvgPool2d)
@rounding.register(AdaptiveAvgPool2d)
@rounding.register(GlobalAvgPool2d)
def _(layer: Any, x: Array, y: Array, w: Mapping[str, Array]) -> Rounding:
    count = prod(_cell(layer, x))
    terms = count * apply(layer, (x != 0).astype(np.float64), w)
    return Rounding(apply(layer, np.abs(x), w), terms + 8, max(UNITS, 2 * sqrt(count)))


@rounding.register
def _(layer: Dense, x: Array, y: Array, w: Mapping[str, Array]) -> Rounding:
    terms = np.count_nonzero(x, axis=1).reshape(-1, 1)
    held = np.count_nonzero(w["weight"], axis=1).reshape(1, -1)
    return _sum(layer, x, w, np.minimum(terms, held), sqrt(x.shape[1]) / 2)


@rounding.register
def _(layer: Softmax, x: Array, y: Array, w: Mapping[str, Array]) -> Rounding:
    """exp(x - max) errs by u |x - max|, which the subtraction leaves, and a few u; n terms are summed."""
    most = np.abs(x - x.max(axis=1, keepdims=True)) + x.shape[1] + 10
    return Rounding(y, most, most)


def running(layer: Layer, x: Any) -> Array | None:
    """What a layer gives whose sum is a running float32 one, term after term: float64. None if it has none.

    Means may be summed so, and the squares of a local normalisation, from which a channel is taken as the
    next comes.
    """
    if isinstance(layer, LocalResponseNorm):
        return _running_norm(layer, x)
    if isinstance(layer, GlobalAvgPool2d):
        return _running(x)
    if isinstance(layer, AdaptiveAvgPool2d):
        rows, columns = layer.cells(x.shape[1:])
        cells = [[_running(x[:, :, slice(*row), slice(*column)]) for column in columns] for row in rows]
        return np.concatenate([np.concatenate(row, axis=3) for row in cells], axis=2)
    if isinstance(layer, AvgPool2d):
        top, left, bottom, right = layer.sides(x.shape[1:])
        padded = np.pad(x.astype(np.float32), ((0, 0), (0, 0), (top, bottom), (left, right)))
        windows = sliding_window_view(padded, layer.size, axis=(2, 3))
        windows = windows[:, :, :: layer.stride[0], :: layer.stride[1]]
        total = np.zeros(windows.shape[:4], np.float32)
        for i, j in np.ndindex(layer.size):
            total = total + windows[..., i, j]
        return total.astype(np.float64) / np.outer(*layer.counts(x.shape[1:]))
    return None


def _running_norm(layer: LocalResponseNorm, x: Array) -> Array:
    """(N, C, H, W)."""
    with np.errstate(over="ignore"):
        squares = np.square(x.astype(np.float32))
    channels, around = x.shape[1], layer.size // 2
    total = squares[:, :around].sum(axis=1, dtype=np.float32)
    sums = np.empty(x.shape)
    for channel in range(channels):
        if channel + around < channels:
            total = total + squares[:, channel + around]
        if channel > around:
            total = total - squares[:, channel - around - 1]
        sums[:, channel] = np.maximum(total, 0)
    return x / (layer.k + layer.alpha / layer.size * sums) ** layer.beta


def _running(x: Array) -> Array:
    """The mean of each channel (N, C, 1, 1)."""
    with np.errstate(over="ignore"):
        flat = x.reshape(*x.shape[:2], -1).astype(np.float32)
    total = np.add.accumulate(flat, axis=2, dtype=np.float32)[:, :, -1:, None]
    return total.astype(np.float64) / flat.shape[2]


@singledispatch
def carry(layer: Layer, x: Any, w: Mapping[str, Array], error: Any) -> Array:
    """What an error of the input of at most `error`, element by element, makes of the output at most."""
    raise UnsupportedLayer(f"no limit is derived for {type(layer).__name__}")


@carry.register(MaxPool2d)
@carry.register(AvgPool2d)
@carry.register(AdaptiveAvgPool2d)
@carry.register(GlobalAvgPool2d)
@carry.register(Dropout)
@carry.register(SpatialDropout)
@carry.register(Flatten)
@carry.register(Concat)
def _(layer: Layer, x: Any, w: Mapping[str, Array], error: Any) -> Array:
    """Errors go where the numbers go."""
    return apply(layer, error, w)


@carry.register
def _(layer: Normalize, x: Array, w: Mapping[str, Array], error: Array) -> Array:
    return error * np.abs(np.array(layer.scale)).reshape(1, -1, 1, 1)


@carry.register(Conv2d)
@carry.register(Dense)
def _(layer: Any, x: Array, w: Mapping[str, Array], error: Array) -> Array:
    return apply(layer, error, {name: np.abs(w[name]) * (name == "weight") for name in w})


@carry.register
def _(layer: BatchNorm, x: Array, w: Mapping[str, Array], error: Array) -> Array:
    return error * _factor(layer, x, w)


@carry.register
def _(layer: LocalResponseNorm, x: Array, w: Mapping[str, Array], error: Array) -> Array:
    total = _total(layer, x)
    around = 2 * layer.alpha / layer.size * _neighbours(layer, np.abs(x) * error)
    return total**-layer.beta * (error + np.abs(x) * layer.beta * around / total)


@carry.register
def _(layer: Activation, x: Array, w: Mapping[str, Array], error: Array) -> Array:
    """The error times the steepest slope, at most as far as the layer's values lie apart."""
    match layer:
        case LeakyReLU():
            return max(1.0, abs(layer.slope)) * error
        case ELU():
            return max(1.0, abs(layer.alpha)) * error
        case Sigmoid():
            return np.minimum(error / 4, 1)
        case HardSigmoid():
            return np.minimum(error / 6, 1)
        case Tanh():
            return np.minimum(error, 2)
        case GELU() | SiLU() | HardSwish():
            return 1.5 * error  # 1.13, 1.10 and 1.5
    return error


@carry.register
def _(layer: Softmax, x: Array, w: Mapping[str, Array], error: Array) -> Array:
    p = apply(layer, x, w)
    return np.minimum(p * np.expm1(np.minimum(error + (p * error).sum(axis=1, keepdims=True), 50)), 1)


@carry.register
def _(layer: Residual, x: Any, w: Mapping[str, Array], error: tuple[Array, Array]) -> Array:
    return error[0] + error[1]


@carry.register
def _(layer: Scale, x: tuple[Array, Array], w: Mapping[str, Array], error: tuple[Array, Array]) -> Array:
    """Each factor's error times the other factor, and of the two errors the product."""
    (a, b), (of_a, of_b) = map(np.abs, x), error
    return a * of_b + b * of_a + of_a * of_b


@dataclass(frozen=True)
class Bridge:
    """What layers that a witness does not show may have left: at most `units` times `magnitude`.

    A runtime may make one layer of several, a convolution of a normalisation and a convolution. Its one
    sum rounds the terms of all as often as that sum has terms, so the most units of any layer count for each.
    """

    magnitude: Array
    units: float

    @property
    def bound(self) -> Array:
        """What the tensor may differ, element by element."""
        return self.units * self.magnitude + FLOOR


def bridge(layer: Layer, x: Any, w: Mapping[str, Array], own: Rounding, before: Any) -> Bridge:
    """What a layer may have left that follows others which are not shown. before: of each input (a tuple for
    a join), None where it is known exactly."""
    several = isinstance(before, tuple)
    parts = before if several else (before,)
    units = max(float(np.max(own.most, initial=0)), *(0.0 if part is None else part.units for part in parts))
    inputs = x if several else (x,)
    errors = tuple(
        np.zeros(value.shape) if part is None else np.minimum(units * part.magnitude, LARGEST_ERROR)
        for value, part in zip(inputs, parts, strict=True)
    )
    carried = np.minimum(carry(layer, x, w, errors if several else errors[0]), LARGEST_ERROR)
    return Bridge(carried / units + UNIT * own.scale, units)


def _sum(layer: Conv2d | Dense, x: Array, w: Mapping[str, Array], terms: Array, usual: float) -> Rounding:
    """Of W x + b, each output a sum of so many terms that are not zero."""
    size, sizes = np.abs(x), {name: np.abs(array) for name, array in w.items()}
    small, smalls = _denormal(size), {name: _denormal(array) for name, array in sizes.items()}
    flushed: Array | float = 0.0
    if any(array.any() for array in smalls.values()):
        flushed = flushed + apply(layer, size, smalls)
    if small.any():
        products = {name: array * (name != "bias") for name, array in sizes.items()}
        flushed = flushed + apply(layer, small, products)
    return Rounding(apply(layer, size, sizes), terms + 2.0, max(UNITS, usual), flushed)


def _denormal(sizes: Array) -> Array:
    """What of some numbers float32 holds as denormal ones; 0 for the others."""
    return sizes * (sizes < NORMAL)


def _around(values: Array, x: Array) -> Array:
    """One number per channel or feature, to be broadcast to x."""
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))


def _factor(layer: BatchNorm, x: Array, w: Mapping[str, Array]) -> Array:
    return _around(np.abs(w["weight"]) / np.sqrt(w["running_var"] + layer.epsilon), x)


def _cell(layer: AvgPool2d | AdaptiveAvgPool2d | GlobalAvgPool2d, x: Array) -> tuple[int, ...]:
    """(height, width) of the most inputs that one mean is of."""
    if isinstance(layer, AvgPool2d):
        return layer.size
    window = layer.window(x.shape[1:])
    return window[0] if isinstance(layer, AdaptiveAvgPool2d) and window else x.shape[2:]


def _total(layer: LocalResponseNorm, x: Array) -> Array:
    return layer.k + layer.alpha / layer.size * _neighbours(layer, x**2)


def _neighbours(layer: LocalResponseNorm, x: Array) -> Array:
    """The sum over the channels around each."""
    around = layer.size // 2
    padded = np.pad(x, ((0, 0), (around, around), (0, 0), (0, 0)))
    return sliding_window_view(padded, layer.size, axis=1).sum(axis=-1)
