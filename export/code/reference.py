"""NumPy programs: the layers' definitions in float64, as in backends/reference.py.

A program holds the functions that its own layers need, in the order of the layer language, and one
line per layer that calls one of them.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod

from export.code import source
from export.code.source import Call, assignment, identifiers, quoted, shown
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
    Softmax,
)
from zoo.model import Model

CHUNK_BYTES = 64 * 2**20  # of unfolded windows at a time, as in backends/reference.py


@singledispatch
def emit(layer: Layer, path: str, x: str) -> Call:
    """The call that computes one layer's output from the variable x."""
    raise UnsupportedLayer(f"a program for 'numpy' has no rule for {type(layer).__name__}")


@emit.register
def normalize(layer: Normalize, path: str, x: str) -> Call:
    return Call("normalize", (x, f"mean={layer.mean}", f"scale={layer.scale}"))


@emit.register
def conv2d(layer: Conv2d, path: str, x: str) -> Call:
    arguments = [x, *_weights(path, layer.bias)]
    if layer.stride != (1, 1):
        arguments.append(f"stride={layer.stride}")
    if any(layer.padding):
        arguments.append(f"padding={layer.padding}")
    return Call("conv2d", tuple(arguments))


@emit.register
def relu(layer: ReLU, path: str, x: str) -> Call:
    return Call("relu", (x,))


@emit.register
def max_pool2d(layer: MaxPool2d, path: str, x: str) -> Call:
    return Call("max_pool2d", (x, f"size={layer.size}", f"stride={layer.stride}"))


@emit.register
def avg_pool2d(layer: AvgPool2d, path: str, x: str) -> Call:
    return Call("avg_pool2d", (x, f"size={layer.size}", f"stride={layer.stride}"))


@emit.register
def dropout(layer: Dropout, path: str, x: str) -> Call:
    return Call("dropout", (x,))


@emit.register
def flatten(layer: Flatten, path: str, x: str) -> Call:
    return Call("flatten", (x,))


@emit.register
def dense(layer: Dense, path: str, x: str) -> Call:
    return Call("dense", (x, *_weights(path, layer.bias)))


@emit.register
def softmax(layer: Softmax, path: str, x: str) -> Call:
    return Call("softmax", (x,))


def _weights(path: str, bias: bool) -> list[str]:
    return [f"w[{quoted(f'{path}.{name}')}]" for name in ("weight", "bias")[: 1 + bias]]


WINDOWS = '''\
def windows(x, size, stride):
    """All windows of x (N, C, H, W), as (N, C, rows, columns, height, width)."""
    every = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))
    return every[:, :, :: stride[0], :: stride[1]]'''

# What the calls above call, by name; x is (N, C, H, W) or (N, features).
FUNCTIONS = {
    "normalize": '''\
def normalize(x, mean, scale):
    """(x - mean) * scale, channel by channel."""
    return (x - np.reshape(mean, (1, -1, 1, 1))) * np.reshape(scale, (1, -1, 1, 1))''',
    "conv2d": '''\
def conv2d(x, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0)):
    """Cross-correlation; weight (O, I, kh, kw); padding: top, left, bottom, right."""
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    x = windows(x, weight.shape[2:], stride)
    y = np.tensordot(x, weight, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)''',
    "relu": '''\
def relu(x):
    """The larger of x and 0."""
    return np.maximum(x, 0)''',
    "max_pool2d": '''\
def max_pool2d(x, size, stride):
    """The largest value of each window."""
    return windows(x, size, stride).max(axis=(4, 5))''',
    "avg_pool2d": '''\
def avg_pool2d(x, size, stride):
    """The mean of each window."""
    return windows(x, size, stride).mean(axis=(4, 5))''',
    "dropout": '''\
def dropout(x):
    """Nothing: it drops only while training."""
    return x''',
    "flatten": '''\
def flatten(x):
    """(N, C, H, W) -> (N, C * H * W)."""
    return x.reshape(len(x), -1)''',
    "dense": '''\
def dense(x, weight, bias=None):
    """weight @ x + bias; weight (units, features)."""
    y = x @ weight.T
    return y if bias is None else y + bias''',
    "softmax": '''\
def softmax(x):
    """exp(x) / sum(exp(x)); the shift changes nothing and avoids infinities."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)''',
}
SLIDING = {"conv2d", "max_pool2d", "avg_pool2d"}  # those that call windows

IMPORTS = """\
import sys

import numpy as np
from safetensors.numpy import load_file"""

LOAD_WEIGHTS = '''\
def load_weights(path):
    """The arrays of a safetensors file by name, in float64."""
    return {name: array.astype(np.float64) for name, array in load_file(path).items()}'''


def program(model: Model) -> str:
    """The NumPy program of a model; see export.code.program."""
    names = identifiers(model)
    x, calls, called = "image", [], set()
    for node in model.walk():
        call = emit(node.layer, node.path, x)
        x = names[node.path]
        calls.append(assignment(x, call, comment=shown(node.output_shape)))
        called.add(call.function)
    forward = "\n".join(
        [
            "def forward(w, images):",
            source.summary(model),
            "    image = images.astype(np.float64)",
            *calls,
            f"    return {x}",
        ]
    )
    chunk = _chunk(model)
    predict = f'''\
def predict(weights, images):
    """The outputs for an array of images, as an array."""
    # {chunk} images at a time: as the zoo does, to the last bit.
    chunks = [images[start : start + {chunk}] for start in range(0, len(images), {chunk})]
    return np.concatenate([forward(weights, chunk) for chunk in chunks])'''
    functions = [WINDOWS] if called & SLIDING else []
    functions += [text for name, text in FUNCTIONS.items() if name in called]
    blocks = [*functions, forward, LOAD_WEIGHTS, predict]
    return source.program(model, "NumPy", "float64", IMPORTS, *blocks)


def _chunk(model: Model) -> int:
    """Images at a time, as many as backends/reference.py takes: BLAS may sum other numbers otherwise."""
    largest = max(
        8 * prod(node.output_shape[-2:]) * node.input_shape[0] * prod(node.layer.kernel)
        if isinstance(node.layer, Conv2d)
        else 8 * prod(node.input_shape)
        for node in model.walk()
    )
    return max(1, CHUNK_BYTES // largest)
