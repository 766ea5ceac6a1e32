"""Keras programs: the functional API, as Keras' own guides write it, on any of its engines.

Keras computes on (N, H, W, C); a Permute at the input and one before Flatten keep the outside (N, C, H, W)
and the order of the dense weights. Arguments that equal Keras' documented defaults are left out;
what a user's keras.json may change is set at the top.
"""

from __future__ import annotations

from functools import singledispatch

from export.code import source
from export.code.source import Call, assignment, pair, quoted, shown
from zoo.errors import UnsupportedLayer
from zoo.layers import (
    AvgPool2d,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    Normalize,
    ReLU,
    Shape,
    Softmax,
)
from zoo.model import Model

CHUNK = 500  # images at a time, as in backends/keras3.py


@singledispatch
def emit(layer: Layer, input_shape: Shape, path: str) -> tuple[Call, ...]:
    """The construction of one layer: of what prepares its input, if anything, and of itself."""
    raise UnsupportedLayer(f"a program for 'keras' has no rule for {type(layer).__name__}")


NORMALIZE = '''\
class Normalize(layers.Layer):
    """(x - mean) * scale, channel by channel."""

    def __init__(self, mean, scale, name):
        super().__init__(name=name)
        self.mean = np.array(mean, dtype="float32")
        self.scale = np.array(scale, dtype="float32")

    def call(self, x):
        return (x - self.mean) * self.scale'''


@emit.register
def normalize(layer: Normalize, input_shape: Shape, path: str) -> tuple[Call, ...]:
    arguments = (f"mean={layer.mean}", f"scale={layer.scale}", _named(path))
    return (Call("Normalize", arguments),)


@emit.register
def conv2d(layer: Conv2d, input_shape: Shape, path: str) -> tuple[Call, ...]:
    arguments = [str(layer.filters), f"kernel_size={pair(layer.kernel)}"]
    stride, (top, left, bottom, right), crop = layer.placement(input_shape)
    if stride != (1, 1):
        arguments.append(f"strides={pair(stride)}")
    if not layer.bias:
        arguments.append("use_bias=False")
    convolution = Call("layers.Conv2D", (*arguments, _named(path)))
    before = []
    if max(top, left, bottom, right) > 0:
        sides = f"(({top}, {bottom}), ({left}, {right}))"
        before.append(Call("layers.ZeroPadding2D", (sides, _named(f"{path}.padding"))))
    if crop:
        sides = f"((0, 0), (0, {crop}))"
        before.append(Call("layers.Cropping2D", (sides, _named(f"{path}.cropping"))))
    return *before, convolution


@emit.register
def relu(layer: ReLU, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.ReLU", (_named(path),)),)


@emit.register
def max_pool2d(layer: MaxPool2d, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.MaxPooling2D", _pool_arguments(layer, path)),)


@emit.register
def avg_pool2d(layer: AvgPool2d, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.AveragePooling2D", _pool_arguments(layer, path)),)


@emit.register
def dropout(layer: Dropout, input_shape: Shape, path: str) -> tuple[Call, ...]:
    return (Call("layers.Dropout", (str(layer.rate), _named(path))),)


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


def _named(name: str) -> str:
    return f"name={quoted(name)}"


def _pool_arguments(layer: MaxPool2d | AvgPool2d, path: str) -> tuple[str, ...]:
    stride = () if layer.stride == layer.size else (f"strides={pair(layer.stride)}",)
    return (f"pool_size={pair(layer.size)}", *stride, _named(path))


IMPORTS = """\
import sys

import keras
import numpy as np
from keras import layers
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
        if layer.weights:
            kernel = weights[f"{layer.name}.weight"]
            # (O, I, kh, kw) -> (kh, kw, I, O), (units, features) -> (features, units)
            kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
            bias = [weights[f"{layer.name}.bias"]] if layer.use_bias else []
            layer.set_weights([kernel, *bias])
    return model'''

PREDICT = f'''\
def predict(model, images):
    """The outputs for an array of images, as an array."""
    # {CHUNK} images at a time: as the zoo does (on TensorFlow), to the last bit.
    return model.predict(images, batch_size={CHUNK}, verbose=0)'''


def program(model: Model) -> str:
    """The Keras program of a model; see export.code.program."""
    blocks = [NORMALIZE] if any(isinstance(layer, Normalize) for layer in model.layers) else []
    blocks += [_build(model), LOAD_WEIGHTS, PREDICT]
    return source.program(model, "Keras", "float32", IMPORTS, *blocks)


def _build(model: Model) -> str:
    shape = _channels_last(model.input_shape)
    to_nhwc = Call("layers.Permute", ("(2, 3, 1)", 'name="image.nhwc"'))
    lines = [
        "def build():",
        source.summary(model),
        f'    image = keras.Input({model.input_shape}, name="image")',
        assignment("x", to_nhwc, applied_to="image", comment=shape),
    ]
    for node in model.walk():
        *before, call = emit(node.layer, node.input_shape, node.path)
        lines += [assignment("x", other, applied_to="x") for other in before]
        comment = _channels_last(node.output_shape)
        lines.append(assignment("x", call, applied_to="x", comment=comment))
    if len(model.output_shape) == 3:
        to_nchw = Call("layers.Permute", ("(3, 1, 2)", 'name="features.nchw"'))
        comment = shown(model.output_shape)
        lines.append(assignment("x", to_nchw, applied_to="x", comment=comment))
    lines.append(f"    return keras.Model(image, x, name={quoted(model.name)})")
    return "\n".join(lines)


def _channels_last(shape: Shape) -> str:
    return shown((*shape[1:], shape[0]))
