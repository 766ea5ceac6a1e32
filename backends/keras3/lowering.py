"""Keras 3: one rule per layer, written against `keras` alone, so any of its engines will do.

Layout knowledge lives here and nowhere else. Keras computes on (N, H, W, C); a Permute at the
input, one before each Flatten and one after a last layer that gives an image keep the outside NCHW,
so that dense weights have the same rows as everywhere else and the exported graph has no Transpose
between its layers.

Keras' own Adam and RMSprop put epsilon elsewhere than the documents' framework does, and its
cross-entropy undoes a softmax in front of it; the optimisers and the loss below follow the
recipe's formulas instead. They are ordinary Keras classes, compiled by Keras' own training.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import singledispatch
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.errors import BackendUnavailable, InvalidInput, MachineError, NotSupported, UnsupportedLayer
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
from zoo.machine import ONE_BATCH, version
from zoo.model import IMAGE, Model, Node
from zoo.network import OnStep
from zoo.randomness import dropout_mask, raw_bits
from zoo.recipe import SGD, Adam, Optimizer, Recipe, RMSprop
from zoo.weights import check


def _quiet_import() -> None:
    """Import keras with a home of our own and without TensorFlow's start-up lines.

    `import keras` reads and writes a settings file in KERAS_HOME; the user's must neither change
    our results nor be changed. TensorFlow prints before its log level can be set, so standard
    error is redirected for the import alone, and shown if the import fails.
    """
    if "keras" in sys.modules:
        return
    if "KERAS_HOME" not in os.environ:
        home = tempfile.mkdtemp(prefix="zoo-keras-")
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        os.environ["KERAS_HOME"] = home
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with _quiet_stderr():
        import keras

        keras.ops.zeros(1)  # looks for devices, which is when the rest of the chatter comes


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the chatter of Keras', TensorFlow's and tf2onnx's exporters to ourselves; errors come through."""
    kept = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_stderr():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # What torch says of every network: that Keras' layers look at their sizes while they are traced,
            # and that a padding stays unfolded. The file is compared with the network.
            for message in ("Converting a tensor to a Python", "Constant folding - Only steps=1"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logging.disable(kept)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException:
            caught.seek(0)
            os.write(kept, caught.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


_quiet_import()
# Every network compiles functions of its own, which TensorFlow takes for one function retraced.
logging.getLogger("tensorflow").addFilter(lambda record: "tf.function retracing" not in record.getMessage())
# A softmax over a single class is what such a spec says, not a slip.
warnings.filterwarnings("ignore", message="You are using a softmax over axis", category=UserWarning)
import keras  # noqa: E402
from keras import ops  # noqa: E402

CHUNK = 500  # images at a time in inference, where there are more than ONE_BATCH
OPSET = 18  # the newest that tf2onnx writes
MINIMUM = (3, 15)  # keras, as pyproject.toml promises
TO_NHWC = (2, 3, 1)
TO_NCHW = (3, 1, 2)


def _named(path: str) -> str:
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
    uneven = _is_depthwise(layer, channels) and stride[0] != stride[1]
    thinned = uneven or (stride != (1, 1) and layer.dilation != (1, 1))
    settings = {
        "strides": 1 if thinned else stride,
        "padding": "valid",
        "data_format": "channels_last",
        "dilation_rate": layer.dilation,
        "activation": None,
        "use_bias": layer.bias,
        "bias_initializer": "zeros",
        "name": _named(f"{path}.every") if thinned else path,
        "dtype": dtype,
    }
    if _is_depthwise(layer, channels):
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


def _is_depthwise(layer: Conv2d, channels: int) -> bool:
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


class _DenseOfImage(keras.layers.Layer):  # type: ignore[misc]
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


class _Rule(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A Keras optimiser that applies one written formula of zoo.recipe.

    Hyper-parameters become constants of the variable's own dtype: a Python float that passes
    through Keras' casts is rounded to float32 on TensorFlow, even in a float64 network.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, recipe: Any) -> None:
        super().__init__(learning_rate=recipe.learning_rate, name="optimizer")
        self.recipe = recipe

    def build(self, variables: Any) -> None:
        if self.built:
            return
        super().build(variables)
        # Keras' own learning rate is float32.
        self.rate = self.add_variable((), initializer="zeros", dtype="float64", name="rate")
        self.rate.assign(np.float64(self.recipe.learning_rate))
        self._slots = {
            slot: [self.add_variable_from_reference(v, name=slot) for v in variables] for slot in self.slots
        }

    def _slot(self, name: str, variable: Any) -> Any:
        return self._slots[name][self._get_variable_index(variable)]

    def _rate(self, variable: Any) -> Any:
        return ops.cast(self.rate, keras.backend.standardize_dtype(variable.dtype))

    @staticmethod
    def _constant(value: float, variable: Any) -> Any:
        return ops.convert_to_tensor(np.asarray(value, keras.backend.standardize_dtype(variable.dtype)))


class _SGD(_Rule):
    slots = ("velocity",)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        rate = self._rate(variable)
        if self.recipe.momentum:
            momentum = self._constant(self.recipe.momentum, variable)
            slot = self._slot("velocity", variable)
            velocity = momentum * slot + gradient
            self.assign(slot, velocity)
            gradient = gradient + momentum * velocity if self.recipe.nesterov else velocity
        self.assign_sub(variable, rate * gradient)


class _Adam(_Rule):
    slots = ("momentum", "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        beta1, beta2 = self.recipe.beta1, self.recipe.beta2
        m, v = self._slot("momentum", variable), self._slot("velocity", variable)
        # b m + (1 - b) g as m + (1 - b) (g - m): each pass over the weights takes time.
        new_m = m + self._constant(1 - beta1, m) * (gradient - m)
        new_v = v + self._constant(1 - beta2, v) * (ops.square(gradient) - v)
        self.assign(m, new_m)
        self.assign(v, new_v)
        # The bias corrections in float64: 1 - 0.999^t loses 1e-5 of itself in float32 at t = 1.
        t = ops.cast(self.iterations, "float64") + 1
        correction1 = 1 - ops.power(ops.convert_to_tensor(np.float64(beta1)), t)
        correction2 = ops.sqrt(1 - ops.power(ops.convert_to_tensor(np.float64(beta2)), t))
        # Both sides of the fraction are multiplied by the second, for the same reason.
        dtype = keras.backend.standardize_dtype(variable.dtype)
        rate = ops.cast(ops.convert_to_tensor(self.rate) * correction2 / correction1, dtype)
        epsilon = ops.cast(self.recipe.epsilon * correction2, dtype)
        self.assign_sub(variable, rate * new_m / (ops.sqrt(new_v) + epsilon))


class _RMSprop(_Rule):
    slots = ("square",)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        alpha = self.recipe.alpha
        s = self._slot("square", variable)
        new_s = self._constant(alpha, s) * s + self._constant(1 - alpha, s) * ops.square(gradient)
        self.assign(s, new_s)
        rate = self._rate(variable)
        epsilon = self._constant(self.recipe.epsilon, variable)
        self.assign_sub(variable, rate * gradient / (ops.sqrt(new_s) + epsilon))


class _Gradient(_Rule):
    """Updates nothing and keeps the gradient: that of Keras' own compiled training, on any engine."""

    slots = ("gradient",)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.assign(self._slot("gradient", variable), gradient)

    def of(self, variable: Any) -> np.ndarray:
        return np.array(ops.convert_to_numpy(self._slot("gradient", variable)))


_RULES: dict[type[Optimizer], type[_Rule]] = {SGD: _SGD, Adam: _Adam, RMSprop: _RMSprop}


def _cross_entropy(labels: Any, outputs: Any) -> Any:
    """-log_softmax(outputs)[label] per image, whatever layer gave the outputs."""
    log_softmax = ops.log_softmax(outputs, axis=-1)
    rows = ops.reshape(ops.cast(labels, "int32"), (-1, 1))  # with one class Keras has made it so already
    return -ops.take_along_axis(log_softmax, rows, axis=-1)[:, 0]


class _OfBatch(keras.metrics.Metric):  # type: ignore[misc]
    """A sum over the last batch alone, so that nothing is to be reset between two batches.

    terms: (labels, outputs) -> (N,).
    """

    def __init__(self, terms: Callable[[Any, Any], Any], name: str, dtype: str) -> None:
        super().__init__(name=name, dtype=dtype)
        self._terms = terms
        self._sum = self.add_variable((), initializer="zeros", name="sum")

    def update_state(self, labels: Any, outputs: Any, sample_weight: Any = None) -> None:
        self._sum.assign(ops.sum(ops.cast(self._terms(labels, outputs), self.dtype)))

    def result(self) -> Any:
        return ops.convert_to_tensor(self._sum)

    def reset_state(self) -> None:
        """Nothing to do: the next batch replaces the sum."""


def _hits(labels: Any, outputs: Any) -> Any:
    """Whether the largest output of an image is at its label."""
    return ops.equal(ops.argmax(outputs, axis=-1), ops.reshape(ops.cast(labels, "int32"), (-1,)))


def _compile(network: Any, rule: _Rule, dtype: str, masked: bool) -> None:
    """Compile a Keras model for training by a rule, with the recipe's loss.

    `train_on_batch` then gives sums over its batch as "losses" and "hits". Keras' own running mean of the
    loss is not read, so it need not be reset either: that took up to a tenth of a small model's step.
    masked: whether dropout takes its masks from variables. They are not the model's, so what JAX compiles
    would keep the values of the first step; there every step is run as it is written.
    """
    engine = keras.backend.backend()
    network.reset_metrics = _keep_metrics
    network.compile(
        optimizer=rule,
        loss=_cross_entropy,
        metrics=[_OfBatch(_cross_entropy, "losses", dtype), _OfBatch(_hits, "hits", dtype)],
        jit_compile=False if engine == "tensorflow" else "auto",
        run_eagerly=masked and engine == "jax",
    )
    rule.build(network.trainable_variables)


def _keep_metrics() -> None:
    """In place of keras.Model.reset_metrics; see _compile."""


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """Keras' two global switches of precision, both of which must be set, and set back."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _plain_sums() -> contextlib.AbstractContextManager[None]:
    """Convolutions without cuDNN on torch: its transforms round more than sums of products can."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
    return flags


@contextlib.contextmanager
def _sound_graphs(model: Model) -> Iterator[None]:
    """TensorFlow's graphs without its remapper, where that breaks them.

    It fuses a product with what follows it, and where an addition or a leaky ReLU is taken by others as well
    (TensorFlow 2.21) it leaves nodes out that are needed. The next optimiser then gives up, with an error.
    """
    broken = any(isinstance(node.layer, (Join, LeakyReLU)) for node in model.walk())
    if not broken or keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow

    rewriting = tensorflow.config.optimizer
    rewriting.set_experimental_options({"remapping": False})
    try:
        yield
    finally:
        rewriting.set_experimental_options({"remapping": True})


class _Variable(NamedTuple):
    """One weight: its canonical name and shape, and Keras' variable with a shape and axes of its own.

    shape, axes: the canonical array takes this shape, and then its axes are transposed, for Keras.
    """

    name: str
    canonical: tuple[int, ...]
    variable: Any
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    trained: bool

    def assign(self, array: np.ndarray, dtype: str) -> None:
        """Give the variable the values of a canonical array."""
        turned = array.reshape(self.shape).transpose(self.axes)
        self.variable.assign(np.ascontiguousarray(turned).astype(dtype))

    def canonical_array(self, values: np.ndarray) -> np.ndarray:
        """Values in Keras' layout (the variable's, or a gradient) as a canonical array."""
        back = np.argsort(self.axes)
        return np.ascontiguousarray(values.transpose(back)).reshape(self.canonical)


# The axes of Keras' layout in the canonical one, by the number of dimensions.
_AXES: dict[int, tuple[int, ...]] = {
    4: (2, 3, 1, 0),  # OIHW -> HWIO
    2: (1, 0),  # (units, features) -> (features, units)
    1: (0,),
}


def _cuts_channels(node: Node) -> bool:
    """Whether a convolution is in groups and not depthwise."""
    layer = node.layer
    return isinstance(layer, Conv2d) and layer.groups > 1 and not _is_depthwise(layer, node.input_shape[0])


def _at_a_time(images: np.ndarray) -> int:
    """How many of these images one batch of inference has."""
    return CHUNK if len(images) > ONE_BATCH else ONE_BATCH


def _predicted(network: Any, images: np.ndarray, one_batch: int) -> Any:
    """What Keras' `predict` gives; without its loop, which takes 40 ms, for up to `one_batch` images."""
    if len(images) <= one_batch:
        return network.predict_on_batch(images)
    return network.predict(images, batch_size=CHUNK, verbose=0)


class KerasNetwork:
    """A model in Keras; a zoo.network.Network."""

    def __init__(self, model: Model, weights: Mapping[str, np.ndarray], dtype: str) -> None:
        self.model = model
        self.dtype = dtype
        checked = check(model, weights)
        with _precision(dtype):
            image = keras.Input(model.input_shape, name="image", dtype=dtype)
            x = keras.layers.Permute(TO_NHWC, name="image.nhwc", dtype=dtype)(image)
            tensors = {IMAGE: x}
            for node in model.walk():
                x = tensors[node.path] = lower(node.layer, node.take(tensors), _named(node.path), dtype)
            self._outputs = {path: tensor for path, tensor in tensors.items() if path != IMAGE}
            if len(model.output_shape) == 3:
                x = keras.layers.Permute(TO_NCHW, name="features.nchw", dtype=dtype)(x)
            self.network = keras.Model(image, x, name=model.name)
            self._training = self._for_training()
        self._inner: Any = None
        self._rule: _Rule | None = None
        self._pending: dict[str, np.ndarray] = {}
        self._masks: dict[str, Any] = {}
        self._load(checked)

    def _for_training(self) -> Any:
        """The network on the same layers and weights, without the Permute of its images before a dense layer.

        Only where the rest is a chain; otherwise the network itself.
        """
        nodes = list(self.model.walk())
        kinds = [type(node.layer) for node in nodes]
        for i in range(1, len(nodes) - 1):
            chain = all(node.inputs == (before.path,) for before, node in pairwise(nodes[i - 1 :]))
            image = len(nodes[i].input_shape) == 3 and nodes[i].input_shape[0] > 1  # else nothing to reorder
            if kinds[i : i + 2] == [Flatten, Dense] and image and chain:
                dense = _named(nodes[i + 1].path)
                x = self._outputs[nodes[i - 1].path]
                x = _DenseOfImage(self.network.get_layer(dense), name=f"{dense}.image", dtype=self.dtype)(x)
                for node in nodes[i + 2 :]:
                    x = self.network.get_layer(_named(node.path))(x)
                return keras.Model(self.network.input, x)
        return self.network

    def _variables(self) -> Iterator[_Variable]:
        """Every weight in the model's order."""
        names = {layer.name for layer in self.network.layers}
        for node in self.model.walk():
            every = _named(f"{node.path}.every")  # of a convolution that is thinned out afterwards
            for weight in node.layer.weights(node.input_shape):
                layer = self.network.get_layer(every if every in names else _named(node.path))
                variable = layer.kernel if weight.name == "weight" else getattr(layer, weight.name)
                shape, axes = weight.shape, _AXES[len(weight.shape)]
                if isinstance(layer, keras.layers.DepthwiseConv2D) and len(shape) == 4:
                    channels = node.input_shape[0]  # C m, 1, kh, kw -> C, m, kh, kw -> kh, kw, C, m
                    shape, axes = (channels, shape[0] // channels, *shape[2:]), (2, 3, 0, 1)
                name = f"{node.path}.{weight.name}"
                yield _Variable(name, weight.shape, variable, shape, axes, weight.trained)

    def _load(self, weights: Mapping[str, np.ndarray]) -> None:
        for variable in self._variables():
            variable.assign(weights[variable.name], self.dtype)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in the network's dtype."""
        with _precision(self.dtype), _plain_sums(), _sound_graphs(self.model):
            images = images.astype(self.dtype)
            return np.asarray(_predicted(self.network, images, ONE_BATCH))

    def call(self, images: np.ndarray) -> np.ndarray:
        """The same as `predict` by calling the network itself: eagerly, without Keras' loop over batches."""
        with _precision(self.dtype), _plain_sums():
            size = _at_a_time(images)
            chunks = (images[start : start + size] for start in range(0, len(images), size))
            called = [
                self.network(ops.convert_to_tensor(x.astype(self.dtype)), training=False) for x in chunks
            ]
            return np.concatenate([ops.convert_to_numpy(x) for x in called])

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path, 4-D ones back in NCHW."""
        with _precision(self.dtype), _plain_sums(), _sound_graphs(self.model):
            if self._inner is None:
                self._inner = keras.Model(self.network.input, self._outputs)
            images = images.astype(self.dtype)
            outputs = _predicted(self._inner, images, CHUNK)
        paths = [node.path for node in self.model.walk()]  # JAX sorts what it gives by name
        return {
            path: np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x
            for path, x in ((path, outputs[path]) for path in paths)
        }

    def weights(self) -> dict[str, np.ndarray]:
        """The current weights in canonical form."""
        return {
            each.name: each.canonical_array(ops.convert_to_numpy(each.variable)) for each in self._variables()
        }

    def export_native(self, path: str | Path) -> None:
        """Keras' own Model.export to ONNX."""
        grouped = next((node for node in self.model.walk() if _cuts_channels(node)), None)
        if grouped is not None and keras.backend.backend() == "tensorflow":  # it would write a broken file
            raise NotSupported("tf2onnx cannot export a convolution in groups", grouped.path)
        flat = (
            n for n in self.model.walk() if isinstance(n.layer, LocalResponseNorm) and n.input_shape[1] == 1
        )
        if (row := next(flat, None)) and keras.backend.backend() == "tensorflow":
            raise NotSupported("tf2onnx writes wrong shapes for this layer on images of one row", row.path)
        if keras.backend.backend() == "jax":
            raise NotSupported("Keras exports ONNX from JAX only with jax2onnx, which is not used here")
        needs = "tf2onnx" if keras.backend.backend() == "tensorflow" else "onnxscript"
        if version(needs) is None:
            raise NotSupported(f"Keras' ONNX export needs {needs}", "", f"pip install {needs}")
        self.network(np.zeros((1, *self.model.input_shape), dtype=self.dtype))  # Keras insists on a call
        with quietly():
            self.network.export(str(path), format="onnx", verbose=False, opset_version=OPSET)
        if not Path(path).is_file():
            raise NotSupported("Keras' ONNX export wrote no file")

    def train_epoch(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: np.ndarray,
        recipe: Recipe,
        on_step: OnStep,
        seed: int = 0,
        done: int = 0,
        rates: np.ndarray | None = None,
    ) -> None:
        """One epoch of Keras' compiled training over images[order]."""
        with _precision(self.dtype), _sound_graphs(self.model):
            rule = self._compile(recipe)
            if rates is None:
                rule.rate.assign(recipe.optimizer.learning_rate)
            if not done:
                self._seed_dropout(seed)
            size = recipe.batch_size
            for step, start in enumerate(range(done * size, len(order), size), start=done + 1):
                batch = order[start : start + size]
                self._give_masks(seed, step, len(batch))
                if rates is not None:
                    rule.rate.assign(rates[step - 1])
                x = images[batch].astype(self.dtype, copy=False)
                sums = self._training.train_on_batch(x, labels[batch], return_dict=True)
                on_step(step, float(sums["losses"]) / len(batch), float(sums["hits"]) / len(batch))

    def _dropouts(self) -> Iterator[tuple[Node, Dropout | SpatialDropout]]:
        for node in self.model.walk():
            if isinstance(node.layer, (Dropout, SpatialDropout)):
                yield node, node.layer

    def _seed_dropout(self, seed: int) -> None:
        for path, generator in self._generators():
            draw = raw_bits(seed, path, 2) >> np.uint64(33)
            generator.state.assign(draw.astype(generator.state.dtype))

    def _generators(self) -> Iterator[tuple[str, Any]]:
        """The generators of all dropouts, by path; one that drops nothing has none."""
        for node, layer in self._dropouts():
            if layer.rate:
                yield node.path, self.network.get_layer(_named(node.path)).seed_generator

    def gradients(
        self, images: np.ndarray, labels: np.ndarray, seed: int = 0
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss over these images and its gradients, by the names of the weights."""
        with _precision(self.dtype), _sound_graphs(self.model):
            twin = keras.Model(self._training.input, self._training.output)  # the same layers
            rule = _Gradient(SGD(0.0))
            _compile(twin, rule, self.dtype, bool(self._masks))
            self._seed_dropout(seed)
            self._give_masks(seed, 1, len(labels))
            running = [
                (each.variable, np.array(ops.convert_to_numpy(each.variable)))
                for each in self._variables()
                if not each.trained
            ]
            sums = twin.train_on_batch(images.astype(self.dtype), labels, return_dict=True)
            for variable, before in running:  # a normalisation moves its own
                variable.assign(before)
            found = {
                each.name: each.canonical_array(rule.of(each.variable))
                for each in self._variables()
                if each.trained
            }
        return float(sums["losses"]) / len(labels), found

    def share_masks(self, batch_size: int) -> None:
        """Give every dropout the zoo's own masks from now on, which must be before any training."""
        for node, rule in self._dropouts():
            layer = self.network.get_layer(_named(node.path))
            shape = rule.mask_shape(node.input_shape)
            shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
            zeros = np.zeros((batch_size, *shape), dtype=self.dtype)
            variable = keras.Variable(zeros, dtype=self.dtype, trainable=False)
            self._masks[node.path] = variable
            layer.mask = functools.partial(ops.convert_to_tensor, variable)

    def _give_masks(self, seed: int, step: int, images: int) -> None:
        for node, layer in self._dropouts():
            if node.path in self._masks:
                mask = dropout_mask(
                    seed, step, node.path, layer.rate, (images, *layer.mask_shape(node.input_shape))
                )
                mask = mask.transpose(0, 2, 3, 1) if mask.ndim == 4 else mask
                rows = np.zeros(self._masks[node.path].shape, dtype=self.dtype)
                rows[:images] = mask
                self._masks[node.path].assign(rows)

    def change_layout(self) -> None:
        """Always raises NotSupported: Keras computes on (N, H, W, C) here."""
        raise NotSupported("Keras computes in one memory layout")

    def _compile(self, recipe: Recipe) -> _Rule:
        """Compile for a recipe unless that is done; the optimiser."""
        if self._rule is not None and self._rule.recipe == recipe.optimizer:
            return self._rule
        rule = _RULES.get(type(recipe.optimizer))
        if rule is None:
            kind = type(recipe.optimizer).__name__
            raise UnsupportedLayer(f"the backend 'keras' has no optimizer {kind}")
        self._rule = rule(recipe.optimizer)
        _compile(self._training, self._rule, self.dtype, bool(self._masks))
        for variable in self._rule.variables:
            if variable.path in self._pending:
                variable.assign(self._pending[variable.path])
        self._pending = {}
        return self._rule

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Weights, the optimiser's variables ("optimizer:<path>"), dropout's ("random:<path>")."""
        tensors = self.weights()
        for path, generator in self._generators():
            tensors[f"random:{path}"] = np.array(ops.convert_to_numpy(generator.state))
        if self._rule is not None:
            for variable in self._rule.variables:
                tensors[f"optimizer:{variable.path}"] = np.array(ops.convert_to_numpy(variable))
        return tensors, {"optimizer": repr(self._rule.recipe) if self._rule else None}

    def restore(self, tensors: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> None:
        """Take weights and the optimiser's variables; the optimiser itself comes with the recipe."""
        self._load(tensors)
        for path, generator in self._generators():
            if f"random:{path}" in tensors:
                generator.state.assign(tensors[f"random:{path}"])
        self._rule = None
        prefix = "optimizer:"
        self._pending = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _use_cuda() -> None:
    """Products in float32 and the same bits every time; raises MachineError if the engine has no CUDA device.

    That it runs there if there is one is the engine's own choice. JAX is told the rest by its environment.
    """
    engine, found = keras.backend.backend(), False
    if engine == "jax":
        import jax

        found = jax.default_backend() == "gpu"
    if engine == "torch":
        import torch

        found = torch.cuda.is_available()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if not found:
        raise MachineError(
            f"the device 'cuda' is not available: {engine} finds none",
            "--device",
            f"use cpu, or install a {engine} for CUDA",
        )


class KerasBackend:
    """Keras as a zoo.network.Backend, on the engine that this process has imported."""

    def __init__(self) -> None:
        engine = keras.backend.backend()
        self.name = "keras" if engine == "tensorflow" else f"keras:{engine}"

    def build(
        self,
        model: Model,
        weights: Mapping[str, np.ndarray],
        dtype: str = "float32",
        device: str = "cpu",
    ) -> KerasNetwork:
        """The network of a model.

        device: "cpu", or "cuda" where that is what the engine runs on in this process. Raises
        UnsupportedLayer if a layer has no rule here, NotSupported if the engine does not compute in this
        dtype, MachineError without the device.
        """
        if dtype not in ("float32", "float64"):
            raise InvalidInput(f"dtype {dtype!r} is neither float32 nor float64")
        if keras.backend.backend() == "torch" and keras.backend.result_type(dtype, dtype) != dtype:
            # Keras 3.15 on torch: matmul casts its float64 operands to float32, without a word.
            raise NotSupported(f"{self.name} computes matrix products of {dtype} in float32")
        if device != "cpu":
            _use_cuda()
        return KerasNetwork(model, weights, dtype)

    def versions(self) -> dict[str, str]:
        """The versions of keras, of its engine, and of the exporter."""
        engine = keras.backend.backend()
        found = {name: version(name) for name in ("keras", engine, "tf2onnx")}
        return {name: number for name, number in found.items() if number}


def backend(engine: str | None = None) -> KerasBackend:
    """The backend of this module; raises BackendUnavailable if keras runs on another engine."""
    running = keras.backend.backend()
    if running != (engine or "tensorflow"):
        raise BackendUnavailable(
            f"keras already runs on {running} in this process, not on {engine or 'tensorflow'}",
            "KERAS_BACKEND",
            "one engine per process: start another one",
        )
    if tuple(int(part) for part in keras.__version__.split(".")[:2]) < MINIMUM:
        raise BackendUnavailable(f"keras {keras.__version__} is too old", "", "pip install -U keras")
    return KerasBackend()
