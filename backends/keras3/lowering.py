"""Keras 3: one rule per layer, written against `keras` alone, so any of its engines will do.

Layout knowledge lives here and nowhere else. Keras computes on (N, H, W, C); a Permute at the
input, one before each Flatten and one after a last layer that gives an image keep the outside NCHW,
so that dense weights have the same rows as everywhere else and the exported graph has no Transpose
between its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from math import prod
from typing import Any

import numpy as np

from backends.keras3.quiet import keras, ops
from zoo.errors import UnsupportedLayer
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

TO_NHWC = (2, 3, 1)
TO_NCHW = (3, 1, 2)


def layer_name(path: str) -> str:
    """A path as the name of a Keras layer: with colons on torch, whose parameters take no dots."""
    return path.replace(".", ":") if keras.backend.backend() == "torch" else path


@singledispatch
def lower(layer: Layer, x: Any, path: str, dtype: str) -> Any:
    """The symbolic output of one layer for the symbolic input x (N, H, W, C) or (N, features).

    x: of a join, the tuple of all that it joins.
    """
    raise UnsupportedLayer(f"the backend 'keras' has no rule for {type(layer).__name__}")


@keras.saving.register_keras_serializable("zoo")
class _Normalize(keras.layers.Layer):  # type: ignore[misc]
    def __init__(self, mean: Any, scale: Any, **options: Any) -> None:
        super().__init__(**options)
        self.mean, self.scale = mean, scale

    def call(self, x: Any) -> Any:
        mean = ops.convert_to_tensor(np.asarray(self.mean, dtype=self.compute_dtype))
        scale = ops.convert_to_tensor(np.asarray(self.scale, dtype=self.compute_dtype))
        return (x - mean) * scale


@lower.register
def normalize(layer: Normalize, x: Any, path: str, dtype: str) -> Any:
    return _Normalize(layer.mean, layer.scale, name=path, dtype=dtype)(x)


@lower.register
def conv2d(layer: Conv2d, x: Any, path: str, dtype: str) -> Any:
    channels = x.shape[-1]
    stride, (top, left, bottom, right), crop = layer.placement(_image(x))
    if max(top, left, bottom, right) > 0:
        x = keras.layers.ZeroPadding2D(
            ((top, bottom), (left, right)),
            data_format="channels_last",
            name=f"{path}.padding",
            dtype=dtype,
        )(x)
    if crop:
        x = keras.layers.Cropping2D(
            ((0, 0), (0, crop)),
            data_format="channels_last",
            name=f"{path}.cropping",
            dtype=dtype,
        )(x)
    # No stride beside a dilation, and none by axis where it is depthwise: TensorFlow has neither. Then
    # every position is computed, and some are taken.
    uneven = is_depthwise(layer, channels) and stride[0] != stride[1]
    thinned = uneven or (stride != (1, 1) and layer.dilation != (1, 1))
    settings = {
        "strides": 1 if thinned else stride,
        "padding": "valid",
        "data_format": "channels_last",
        "dilation_rate": layer.dilation,
        "activation": None,
        "use_bias": layer.bias,
        "bias_initializer": "zeros",
        "name": layer_name(f"{path}.every") if thinned else path,
        "dtype": dtype,
    }
    if is_depthwise(layer, channels):
        convolution = keras.layers.DepthwiseConv2D(
            layer.kernel,
            depth_multiplier=layer.filters // channels,
            depthwise_initializer="zeros",
            **settings,
        )
    else:
        convolution = keras.layers.Conv2D(
            layer.filters, layer.kernel, groups=layer.groups, kernel_initializer="zeros", **settings
        )
    x = convolution(x)
    return _Thin(stride, name=path, dtype=dtype)(x) if thinned else x


def is_depthwise(layer: Conv2d, channels: int) -> bool:
    return layer.groups == channels > 1


@keras.saving.register_keras_serializable("zoo")
class _Thin(keras.layers.Layer):  # type: ignore[misc]
    """Every so many rows and columns of an image."""

    def __init__(self, stride: tuple[int, int], **options: Any) -> None:
        super().__init__(**options)
        self.stride = stride

    def call(self, x: Any) -> Any:
        return x[:, :: self.stride[0], :: self.stride[1]]


@keras.saving.register_keras_serializable("zoo")
class _BatchNorm(keras.layers.Layer):  # type: ignore[misc]
    """Keras' own moves the running variance towards the biased one; its momentum is of the old value."""

    def __init__(self, epsilon: float, momentum: float, **options: Any) -> None:
        super().__init__(**options)
        self.epsilon, self.momentum = epsilon, momentum

    def build(self, shape: Any) -> None:
        def add(name: str, start: str, trainable: bool) -> Any:
            return self.add_weight(
                shape=(shape[-1],), initializer=start, dtype=self.dtype, trainable=trainable, name=name
            )

        self.kernel, self.bias = add("weight", "ones", True), add("bias", "zeros", True)
        self.running_mean = add("running_mean", "zeros", False)
        self.running_var = add("running_var", "ones", False)

    def call(self, x: Any, training: bool = False) -> Any:
        mean, variance = self.running_mean, self.running_var
        if training:
            axes = list(range(len(x.shape) - 1))
            count = ops.cast(ops.size(x), self.compute_dtype) / _constant(x.shape[-1], self)
            mean = ops.sum(x, axis=axes) / count  # ops.mean is float32 inside on JAX, in float64 too
            variance = ops.sum(ops.square(x - mean), axis=axes) / count
            unbiased = variance * (count / (count - _constant(1, self)))
            new, old = _constant(self.momentum, self), _constant(1 - self.momentum, self)
            self.running_mean.assign(old * self.running_mean + new * mean)
            self.running_var.assign(old * self.running_var + new * unbiased)
        scale = self.kernel / ops.sqrt(variance + _constant(self.epsilon, self))
        return (x - mean) * scale + self.bias


@lower.register
def batch_norm(layer: BatchNorm, x: Any, path: str, dtype: str) -> Any:
    return _BatchNorm(layer.epsilon, layer.momentum, name=path, dtype=dtype)(x)


@keras.saving.register_keras_serializable("zoo")
class _LocalResponseNorm(keras.layers.Layer):  # type: ignore[misc]
    """The squares of the channels around each are summed by a 1x1 convolution with ones: tf2onnx writes
    broken graphs for sums of slices, and for products with a matrix."""

    def __init__(self, size: int, alpha: float, beta: float, k: float, **options: Any) -> None:
        super().__init__(**options)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def call(self, x: Any) -> Any:
        share, beta, k = (_constant(value, self) for value in (self.alpha / self.size, self.beta, self.k))
        channels = np.arange(x.shape[-1])
        near = _constant(abs(channels[:, None] - channels) <= self.size // 2, self)
        return x / ops.power(k + share * _product(ops.square(x), near), beta)


def _product(x: Any, matrix: Any) -> Any:
    """x (N, H, W, C) times a matrix (C, C') along its last axis, as a 1x1 convolution."""
    return ops.conv(x, matrix[None, None], strides=1, padding="valid", data_format="channels_last")


def _constant(value: Any, layer: Any) -> Any:
    """A number or an array in the layer's dtype: Keras itself may round it to float32 on the way."""
    return ops.convert_to_tensor(np.asarray(value, dtype=layer.compute_dtype))


@lower.register
def local_response_norm(layer: LocalResponseNorm, x: Any, path: str, dtype: str) -> Any:
    return _LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k, name=path, dtype=dtype)(x)


@lower.register
def relu(layer: ReLU, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.ReLU(max_value=None, negative_slope=0.0, threshold=0.0, name=path, dtype=dtype)(x)


@lower.register
def relu6(layer: ReLU6, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.ReLU(max_value=6.0, negative_slope=0.0, threshold=0.0, name=path, dtype=dtype)(x)


@lower.register
def leaky_relu(layer: LeakyReLU, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.LeakyReLU(negative_slope=layer.slope, name=path, dtype=dtype)(x)


@lower.register
def elu(layer: ELU, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.ELU(alpha=layer.alpha, name=path, dtype=dtype)(x)


@lower.register
def sigmoid(layer: Sigmoid, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.Activation("sigmoid", name=path, dtype=dtype)(x)


def _tanh(x: Any) -> Any:
    """ops.tanh, which on JAX is float32 in float64, too: there by the sigmoid, which is not."""
    if keras.backend.backend() == "jax" and keras.backend.standardize_dtype(x.dtype) == "float64":
        return ops.sigmoid(x + x) - ops.sigmoid(-x - x)
    return ops.tanh(x)


@lower.register
def tanh(layer: Tanh, x: Any, path: str, dtype: str) -> Any:
    function = _tanh if keras.backend.backend() == "jax" else "tanh"
    return keras.layers.Activation(function, name=path, dtype=dtype)(x)


@keras.saving.register_keras_serializable("zoo")
class _GELU(keras.layers.Layer):  # type: ignore[misc]
    """By erf and in the layer's dtype: Keras' own takes erfc, which tf2onnx cannot export."""

    def __init__(self, approximate: str, **options: Any) -> None:
        super().__init__(**options)
        self.approximate = approximate

    def call(self, x: Any) -> Any:
        half, one = _constant(0.5, self), _constant(1, self)
        if self.approximate == "tanh":
            inner = x + _constant(0.044715, self) * x * x * x
            return half * x * (one + _tanh(_constant(np.sqrt(2 / np.pi), self) * inner))
        return half * x * (one + ops.erf(x * _constant(np.sqrt(0.5), self)))


@lower.register
def gelu(layer: GELU, x: Any, path: str, dtype: str) -> Any:
    return _GELU(layer.approximate, name=path, dtype=dtype)(x)


@lower.register
def silu(layer: SiLU, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.Activation("silu", name=path, dtype=dtype)(x)


@lower.register
def hard_sigmoid(layer: HardSigmoid, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.Activation("hard_sigmoid", name=path, dtype=dtype)(x)


@lower.register
def hard_swish(layer: HardSwish, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.Activation("hard_swish", name=path, dtype=dtype)(x)


@keras.saving.register_keras_serializable("zoo")
class _PadLowest(keras.layers.Layer):  # type: ignore[misc]
    """Padding that is never the largest of a window. sides: top, left, bottom, right."""

    def __init__(self, sides: tuple[int, int, int, int], **options: Any) -> None:
        super().__init__(**options)
        self.sides = sides

    def call(self, x: Any) -> Any:
        top, left, bottom, right = self.sides
        return ops.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=-np.inf)


@lower.register
def max_pool2d(layer: MaxPool2d, x: Any, path: str, dtype: str) -> Any:
    sides = layer.sides(_image(x))
    if any(sides):
        x = _PadLowest(sides, name=f"{path}.padding", dtype=dtype)(x)
    return keras.layers.MaxPooling2D(
        layer.size,
        strides=layer.stride,
        padding="valid",
        data_format="channels_last",
        name=path,
        dtype=dtype,
    )(x)


@keras.saving.register_keras_serializable("zoo")
class _Share(keras.layers.Layer):  # type: ignore[misc]
    """A product with constants (rows, columns), the same for every channel."""

    def __init__(self, shares: Any, **options: Any) -> None:
        super().__init__(**options)
        self.shares = np.asarray(shares)

    def call(self, x: Any) -> Any:
        return x * _constant(self.shares[:, :, None], self)


@lower.register
def avg_pool2d(layer: AvgPool2d, x: Any, path: str, dtype: str) -> Any:
    top, left, bottom, right = sides = layer.sides(_image(x))
    shares = prod(layer.size) / np.outer(*layer.counts(_image(x)))
    if any(sides):
        x = keras.layers.ZeroPadding2D(
            ((top, bottom), (left, right)), data_format="channels_last", name=f"{path}.padding", dtype=dtype
        )(x)
    whole = bool((shares == 1).all())
    x = keras.layers.AveragePooling2D(
        layer.size,
        strides=layer.stride,
        padding="valid",
        data_format="channels_last",
        name=path if whole else f"{path}.windows",
        dtype=dtype,
    )(x)
    return x if whole else _Share(shares, name=path, dtype=dtype)(x)


@keras.saving.register_keras_serializable("zoo")
class _AdaptiveAvgPool2d(keras.layers.Layer):  # type: ignore[misc]
    """A product with a matrix of shares along the rows, and one along the columns, each as the last axis."""

    def __init__(self, rows: Any, columns: Any, **options: Any) -> None:
        super().__init__(**options)
        self.rows, self.columns = np.asarray(rows), np.asarray(columns)

    def call(self, x: Any) -> Any:
        for shares in (self.rows, self.columns):  # N H W C -> N W C H -> N C H W -> N H W C
            x = _product(ops.transpose(x, (0, 2, 3, 1)), _constant(shares.T, self))
        return ops.transpose(x, (0, 2, 3, 1))


@lower.register
def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, x: Any, path: str, dtype: str) -> Any:
    rows, columns = (
        np.array([[first <= i < end for i in range(length)] for first, end in cells], dtype=float)
        for cells, length in zip(layer.cells(_image(x)), x.shape[1:3], strict=True)
    )
    shares = (matrix / matrix.sum(axis=1, keepdims=True) for matrix in (rows, columns))
    return _AdaptiveAvgPool2d(*shares, name=path, dtype=dtype)(x)


class _SumGlobalAvgPool2d(keras.layers.GlobalAveragePooling2D):  # type: ignore[misc]
    """Keras' own takes ops.mean, which on JAX is float32 inside, in float64 too."""

    def call(self, x: Any) -> Any:
        return ops.sum(x, axis=(1, 2), keepdims=True) / _constant(x.shape[1] * x.shape[2], self)


@lower.register
def global_avg_pool2d(layer: GlobalAvgPool2d, x: Any, path: str, dtype: str) -> Any:
    on_jax = keras.backend.backend() == "jax"
    kind = _SumGlobalAvgPool2d if on_jax else keras.layers.GlobalAveragePooling2D
    return kind(data_format="channels_last", keepdims=True, name=path, dtype=dtype)(x)


def _image(x: Any) -> tuple[int, int, int]:
    """The canonical shape (C, H, W) of a symbolic x (N, H, W, C)."""
    _, height, width, channels = x.shape
    return channels, height, width


@keras.saving.register_keras_serializable("zoo")
class _Dropout(keras.layers.Dropout):  # type: ignore[misc]
    """Keras' Dropout, unless it was given masks (KerasNetwork.share_masks).

    mask: returns the variable that holds the masks of the step, (batch size, H, W, C) or (batch
    size, features). A function, because Keras lets no variable be added to a layer that was built.
    """

    mask: Callable[[], Any] | None = None

    def call(self, x: Any, training: bool = False) -> Any:
        if not training or self.mask is None:
            return super().call(x, training=training)
        return x * self.mask()[: ops.shape(x)[0]]


@lower.register
def dropout(layer: Dropout, x: Any, path: str, dtype: str) -> Any:
    return _Dropout(layer.rate, noise_shape=None, seed=0, name=path, dtype=dtype)(x)


@keras.saving.register_keras_serializable("zoo")
class _SpatialDropout(_Dropout):
    """The same for whole channels."""


@lower.register
def spatial_dropout(layer: SpatialDropout, x: Any, path: str, dtype: str) -> Any:
    shape = (None, 1, 1, x.shape[-1])
    return _SpatialDropout(layer.rate, noise_shape=shape, seed=0, name=path, dtype=dtype)(x)


@lower.register
def flatten(layer: Flatten, x: Any, path: str, dtype: str) -> Any:
    x = keras.layers.Permute(TO_NCHW, name=f"{path}.permute", dtype=dtype)(x)
    return keras.layers.Flatten(data_format="channels_last", name=path, dtype=dtype)(x)


@lower.register
def dense(layer: Dense, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.Dense(
        layer.units,
        activation=None,
        use_bias=layer.bias,
        kernel_initializer="zeros",
        bias_initializer="zeros",
        name=path,
        dtype=dtype,
    )(x)


@lower.register
def softmax(layer: Softmax, x: Any, path: str, dtype: str) -> Any:
    return keras.layers.Softmax(axis=-1, name=path, dtype=dtype)(x)


@lower.register
def residual(layer: Residual, x: tuple[Any, Any], path: str, dtype: str) -> Any:
    return keras.layers.Add(name=path, dtype=dtype)(list(x))


@lower.register
def concat(layer: Concat, x: tuple[Any, ...], path: str, dtype: str) -> Any:
    return keras.layers.Concatenate(axis=-1, name=path, dtype=dtype)(list(x))


@lower.register
def scale(layer: Scale, x: tuple[Any, Any], path: str, dtype: str) -> Any:
    return keras.layers.Multiply(name=path, dtype=dtype)(list(x))


class DenseOfImage(keras.layers.Layer):  # type: ignore[misc]
    """Flatten in C, H, W order and a dense layer, for x (N, H, W, C): reorders the kernel, not the images.

    dense: the layer whose weights it uses. For training; the network itself has a Permute.
    """

    def __init__(self, dense: Any, **options: Any) -> None:
        super().__init__(**options)
        self.dense = dense

    def call(self, x: Any) -> Any:
        _, height, width, channels = x.shape
        kernel = ops.reshape(self.dense.kernel, (channels, height, width, self.dense.units))
        kernel = ops.reshape(ops.transpose(kernel, (1, 2, 0, 3)), (-1, self.dense.units))
        product = ops.matmul(ops.reshape(x, (-1, height * width * channels)), kernel)
        return product + self.dense.bias if self.dense.use_bias else product
