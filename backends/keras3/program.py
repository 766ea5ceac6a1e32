"""Keras programs: the functional API, as Keras' own guides write it, on any of its engines.

Keras computes on (N, H, W, C); a Permute at the input and one before Flatten keep the outside (N, C, H, W)
and the order of the dense weights. Arguments that equal Keras' documented defaults are left out;
what a user's keras.json may change is set at the top.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod

from backends.programs import source
from backends.programs.source import Call, assignment, pair, quoted, shown
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
    Shape,
    Sigmoid,
    SiLU,
    Softmax,
    SpatialDropout,
    Tanh,
)
from zoo.machine import ONE_BATCH
from zoo.model import Model

EVERY = ".every"  # ends the name of a convolution that is thinned out afterwards
CHUNK = 500  # images at a time where there are more than ONE_BATCH, as in backends/keras3/network.py


# As in backends/keras3/network.py: TensorFlow's remapper breaks such graphs, and rounds otherwise.
SOUND_GRAPHS = """

if keras.backend.backend() == "tensorflow":
    import tensorflow

    tensorflow.config.optimizer.set_experimental_options({"remapping": False})"""


@singledispatch
def emit(layer: Layer, input_shape: Shape, path: str) -> tuple[Call, ...]:
    """The construction of one layer: of what prepares its input, if anything, and of itself."""
    raise UnsupportedLayer(f"a program for 'keras' has no rule for {type(layer).__name__}")


HELPERS = {
    "Normalize": '''\
class Normalize(layers.Layer):
    """(x - mean) * scale, channel by channel."""

    def __init__(self, mean, scale, name):
        super().__init__(name=name)
        self.mean = np.array(mean, dtype="float32")
        self.scale = np.array(scale, dtype="float32")

    def call(self, x):
        return (x - self.mean) * self.scale''',
    "Thin": '''\
class Thin(layers.Layer):
    """Every so many rows and columns of an image."""

    def __init__(self, stride, name):
        super().__init__(name=name)
        self.stride = stride

    def call(self, x):
        return x[:, :: self.stride[0], :: self.stride[1]]''',
    "BatchNorm": '''\
class BatchNorm(layers.Layer):
    """By the statistics of the batch while training, else by the running ones.

    momentum: the weight of a new batch, whose variance counts with n / (n - 1).
    """

    def __init__(self, epsilon, momentum, name):
        super().__init__(name=name)
        self.epsilon, self.momentum = epsilon, momentum

    def build(self, shape):
        names = ("weight", "bias", "running_mean", "running_var")
        starts = ("ones", "zeros", "zeros", "ones")
        self.values = [
            self.add_weight(shape[-1:], start, trainable=name in names[:2], name=name)
            for name, start in zip(names, starts, strict=True)
        ]

    def call(self, x, training=False):
        weight, bias, mean, variance = self.values
        if training:
            axes = list(range(len(x.shape) - 1))
            running = mean, variance
            mean = ops.mean(x, axis=axes)
            variance = ops.mean(ops.square(x - mean), axis=axes)
            n = ops.cast(ops.size(x), "float32") / x.shape[-1]
            for old, new in zip(running, (mean, variance * n / (n - 1)), strict=True):
                old.assign((1 - self.momentum) * old + self.momentum * new)
        scale = weight / ops.sqrt(variance + np.float32(self.epsilon))
        return (x - mean) * scale + bias''',
    "LocalResponseNorm": '''\
class LocalResponseNorm(layers.Layer):
    """x / (k + alpha / size * the sum of squares over `size` channels) ** beta."""

    def __init__(self, size, alpha, beta, k, name):
        super().__init__(name=name)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def call(self, x):
        channels = np.arange(x.shape[-1])
        near = abs(channels[:, None] - channels) <= self.size // 2
        kernel = near.astype("float32")[None, None]
        total = ops.conv(ops.square(x), kernel, data_format="channels_last")
        return x / ops.power(self.k + self.alpha / self.size * total, self.beta)''',
    "GELU": '''\
class GELU(layers.Layer):
    """x * (1 + erf(x / sqrt(2))) / 2, or its approximation by tanh."""

    def __init__(self, approximate, name):
        super().__init__(name=name)
        self.approximate = approximate

    def call(self, x):
        if self.approximate == "tanh":
            inner = x + 0.044715 * x * x * x
            return 0.5 * x * (1 + ops.tanh(np.float32(np.sqrt(2 / np.pi)) * inner))
        return 0.5 * x * (1 + ops.erf(x * np.float32(np.sqrt(0.5))))''',
    "PadLowest": '''\
class PadLowest(layers.Layer):
    """Padding that no maximum is; sides: top, left, bottom, right."""

    def __init__(self, sides, name):
        super().__init__(name=name)
        self.sides = sides

    def call(self, x):
        top, left, bottom, right = self.sides
        around = ((0, 0), (top, bottom), (left, right), (0, 0))
        return ops.pad(x, around, constant_values=-np.inf)''',
    "Share": '''\
class Share(layers.Layer):
    """Means of `size` values as means of those that count: rows * columns of them."""

    def __init__(self, size, rows, columns, name):
        super().__init__(name=name)
        self.share = (size / np.outer(rows, columns))[:, :, None].astype("float32")

    def call(self, x):
        return x * self.share''',
    "AdaptiveAveragePooling2D": '''\
class AdaptiveAveragePooling2D(layers.Layer):
    """The mean of each cell of a grid over the image."""

    def __init__(self, size, name):
        super().__init__(name=name)
        self.size = size

    def call(self, x):
        for cells in self.size:  # N H W C -> N W C H -> N C H W -> N H W C
            x = ops.transpose(x, (0, 2, 3, 1))
            kernel = self.shares(x.shape[-1], cells).T[None, None]
            x = ops.conv(x, kernel, data_format="channels_last")
        return ops.transpose(x, (0, 2, 3, 1))

    @staticmethod
    def shares(length, cells):
        matrix = np.zeros((cells, length))
        for i, row in enumerate(matrix):
            row[i * length // cells : -(-(i + 1) * length // cells)] = 1
        return (matrix / matrix.sum(axis=1, keepdims=True)).astype("float32")''',
}


@emit.register
def normalize(layer: Normalize, input_shape: Shape, path: str) -> tuple[Call, ...]:
    arguments = (f"mean={layer.mean}", f"scale={layer.scale}", _named(path))
    return (Call("Normalize", arguments),)


@emit.register
def conv2d(layer: Conv2d, input_shape: Shape, path: str) -> tuple[Call, ...]:
    channels = input_shape[0]
    stride, (top, left, bottom, right), crop = layer.placement(input_shape)
    depthwise = layer.groups == channels > 1
    thinned = (stride != (1, 1) and layer.dilation != (1, 1)) or (depthwise and stride[0] != stride[1])
    arguments = [f"kernel_size={pair(layer.kernel)}"]
    if depthwise:
        multiplier = layer.filters // channels
        arguments += [f"depth_multiplier={multiplier}"] if multiplier > 1 else []
    else:
        arguments.insert(0, str(layer.filters))
        arguments += [f"groups={layer.groups}"] if layer.groups > 1 else []
    if stride != (1, 1) and not thinned:
        arguments.append(f"strides={pair(stride)}")
    if layer.dilation != (1, 1):
        arguments.append(f"dilation_rate={pair(layer.dilation)}")
    if not layer.bias:
        arguments.append("use_bias=False")
    function = "layers.DepthwiseConv2D" if depthwise else "layers.Conv2D"
    convolution = Call(function, (*arguments, _named(f"{path}{EVERY}" if thinned else path)))
    thin = (Call("Thin", (str(stride), _named(path))),) if thinned else ()
    before = []
    if max(top, left, bottom, right) > 0:
        sides = f"(({top}, {bottom}), ({left}, {right}))"
        before.append(Call("layers.ZeroPadding2D", (sides, _named(f"{path}.padding"))))
    if crop:
        sides = f"((0, 0), (0, {crop}))"
        before.append(Call("layers.Cropping2D", (sides, _named(f"{path}.cropping"))))
    return *before, convolution, *thin


@emit.register
def batch_norm(layer: BatchNorm, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("BatchNorm", (f"epsilon={layer.epsilon}", f"momentum={layer.momentum}", _named(path))),)


@emit.register
def local_response_norm(layer: LocalResponseNorm, input_shape: Shape, path: str) -> tuple[Call, ...]:
    arguments = (f"alpha={layer.alpha}", f"beta={layer.beta}", f"k={layer.k}", _named(path))
    return (Call("LocalResponseNorm", (str(layer.size), *arguments)),)


@emit.register
def relu(layer: ReLU, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.ReLU", (_named(path),)),)


@emit.register
def relu6(layer: ReLU6, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.ReLU", ("max_value=6.0", _named(path))),)


@emit.register
def leaky_relu(layer: LeakyReLU, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.LeakyReLU", (f"negative_slope={layer.slope}", _named(path))),)


@emit.register
def elu(layer: ELU, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.ELU", (f"alpha={layer.alpha}", _named(path))),)


@emit.register
def sigmoid(layer: Sigmoid, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Activation", ('"sigmoid"', _named(path))),)


@emit.register
def tanh(layer: Tanh, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Activation", ('"tanh"', _named(path))),)


@emit.register
def gelu(layer: GELU, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("GELU", (f"approximate={quoted(layer.approximate)}", _named(path))),)


@emit.register
def silu(layer: SiLU, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Activation", ('"silu"', _named(path))),)


@emit.register
def hard_sigmoid(layer: HardSigmoid, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Activation", ('"hard_sigmoid"', _named(path))),)


@emit.register
def hard_swish(layer: HardSwish, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Activation", ('"hard_swish"', _named(path))),)


@emit.register
def max_pool2d(layer: MaxPool2d, input_shape: Shape, path: str) -> tuple[Call, ...]:
    sides = layer.sides(input_shape)
    before = [Call("PadLowest", (f"sides={sides}", _named(f"{path}.padding")))] if any(sides) else []
    return *before, Call("layers.MaxPooling2D", _pool_arguments(layer, path))


@emit.register
def avg_pool2d(layer: AvgPool2d, input_shape: Shape, path: str) -> tuple[Call, ...]:
    top, left, bottom, right = sides = layer.sides(input_shape)
    rows, columns = layer.counts(input_shape)
    padding = f"(({top}, {bottom}), ({left}, {right}))"
    before = [Call("layers.ZeroPadding2D", (padding, _named(f"{path}.padding")))] if any(sides) else []
    if {*rows} == {layer.size[0]} and {*columns} == {layer.size[1]}:
        return *before, Call("layers.AveragePooling2D", _pool_arguments(layer, path))
    counts = (f"rows={list(rows)}", f"columns={list(columns)}")
    return (
        *before,
        Call("layers.AveragePooling2D", _pool_arguments(layer, f"{path}.windows")),
        Call("Share", (f"size={prod(layer.size)}", *counts, _named(path))),
    )


@emit.register
def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("AdaptiveAveragePooling2D", (str(layer.size), _named(path))),)


@emit.register
def global_avg_pool2d(layer: GlobalAvgPool2d, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.GlobalAveragePooling2D", ("keepdims=True", _named(path))),)


@emit.register
def dropout(layer: Dropout, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Dropout", (str(layer.rate), _named(path))),)


@emit.register
def spatial_dropout(layer: SpatialDropout, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.SpatialDropout2D", (str(layer.rate), _named(path))),)


@emit.register
def flatten(layer: Flatten, input_shape: Shape, path: str) -> tuple[Call, ...]:
    permute = Call("layers.Permute", ("(3, 1, 2)", _named(f"{path}.permute")))
    return permute, Call("layers.Flatten", (_named(path),))


@emit.register
def dense(layer: Dense, input_shape: Shape, path: str) -> tuple[Call, ...]:
    bias = () if layer.bias else ("use_bias=False",)
    return (Call("layers.Dense", (str(layer.units), *bias, _named(path))),)


@emit.register
def softmax(layer: Softmax, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Softmax", (_named(path),)),)


@emit.register
def residual(layer: Residual, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Add", (_named(path),)),)


@emit.register
def concat(layer: Concat, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Concatenate", (_named(path),)),)


@emit.register
def scale(layer: Scale, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Multiply", (_named(path),)),)


def _named(name: str) -> str:
    return f"name={quoted(name)}"


def _pool_arguments(layer: MaxPool2d | AvgPool2d, path: str) -> tuple[str, ...]:
    stride = () if layer.stride == layer.size else (f"strides={pair(layer.stride)}",)
    return (f"pool_size={pair(layer.size)}", *stride, _named(path))


IMPORTS = """\
import sys

import keras
import numpy as np
from keras import layers{ops}
from safetensors.numpy import load_file

# Whatever keras.json says: float32, and images as (N, H, W, C) inside.
keras.config.set_floatx("float32")
keras.config.set_dtype_policy("float32")
keras.config.set_image_data_format("channels_last")"""

LOAD_WEIGHTS = '''\
def load_weights(path):
    """The model with the weights of a safetensors file, brought into Keras' layout."""
    model = build()
    weights = load_file(path)
    for layer in model.layers:
<NORM>        if layer.weights:
            name = <NAME>
            kernel = weights[f"{name}.weight"]
{kernel}
            bias = [weights[f"{name}.bias"]] if layer.use_bias else []
            layer.set_weights([kernel, *bias])
    return model'''

BATCH_NORM_WEIGHTS = """\
        if isinstance(layer, BatchNorm):
            names = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([weights[f"{layer.name}.{name}"] for name in names])
"""

PLAIN_KERNEL = """\
            # (O, I, kh, kw) -> (kh, kw, I, O), (units, features) -> (features, units)
            kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T"""

DEPTHWISE_KERNEL = """\
            if isinstance(layer, layers.DepthwiseConv2D):
                # (C * m, 1, kh, kw) -> (kh, kw, C, m)
                kernel = kernel.reshape(-1, layer.depth_multiplier, *kernel.shape[2:])
                kernel = kernel.transpose(2, 3, 0, 1)
            else:
                # (O, I, kh, kw) -> (kh, kw, I, O), (units, features) transposed
                kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T"""

PREDICT = f'''\
def predict(model, images):
    """The outputs for an array of images, as an array."""
    # So many images at a time: as the zoo does (on TensorFlow), to the last bit.
    size = {CHUNK} if len(images) > {ONE_BATCH} else {ONE_BATCH}
    return model.predict(images, batch_size=size, verbose=0)'''


def program(model: Model) -> str:
    """The Keras program of a model; see backends.programs.program."""
    calls = [call for node in model.walk() for call in emit(node.layer, node.input_shape, node.path)]
    called = {call.function for call in calls}
    blocks = [text for name, text in HELPERS.items() if name in called]
    imports = IMPORTS.replace("{ops}", ", ops" if any("ops." in text for text in blocks) else "")
    load = LOAD_WEIGHTS.replace(
        "{kernel}", DEPTHWISE_KERNEL if "layers.DepthwiseConv2D" in called else PLAIN_KERNEL
    ).replace("<NAME>", f'layer.name.removesuffix("{EVERY}")' if "Thin" in called else "layer.name")
    load = load.replace("<NORM>", BATCH_NORM_WEIGHTS if "BatchNorm" in called else "")
    load = (
        load.replace("        if layer.weights", "        elif layer.weights")
        if "BatchNorm" in called
        else load
    )
    if any(isinstance(node.layer, (Join, LeakyReLU)) for node in model.walk()):
        imports += SOUND_GRAPHS
    blocks += [_build(model), load, PREDICT]
    return source.program(model, "Keras", "float32", imports, *blocks)


def _build(model: Model) -> str:
    shape = _channels_last(model.input_shape)
    to_nhwc = Call("layers.Permute", ("(2, 3, 1)", 'name="image.nhwc"'))
    lines = [
        "def build():",
        source.summary(model),
        f'    image = keras.Input({model.input_shape}, name="image")',
        assignment("x", to_nhwc, applied_to="image", comment=shape),
    ]
    flow = source.Flow(model)
    for node in model.walk():
        *before, call = emit(node.layer, node.input_shape, node.path)
        y, inputs = flow.target(node), flow.inputs(node)
        x = source.listed(inputs, 4) if isinstance(node.layer, Join) else inputs[0]
        for other in before:
            lines.append(assignment(y, other, applied_to=x))
            x = y
        lines.append(assignment(y, call, applied_to=x, comment=_channels_last(node.output_shape)))
    if len(model.output_shape) == 3:
        to_nchw = Call("layers.Permute", ("(3, 1, 2)", 'name="features.nchw"'))
        comment = shown(model.output_shape)
        lines.append(assignment("x", to_nchw, applied_to="x", comment=comment))
    lines.append(f"    return keras.Model(image, x, name={quoted(model.name)})")
    return "\n".join(lines)


def _channels_last(shape: Shape) -> str:
    return shown((*shape[1:], shape[0]))
