"""NumPy programs: the layers' definitions in float64, as in backends/reference/rules.py.

A program holds the functions that its own layers need, in the order of the layer language, and one
line per layer that calls one of them.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod
from typing import Any

from backends.programs import source
from backends.programs.source import Call, assignment, identifiers, quoted, shown
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
    Shape,
    Sigmoid,
    SiLU,
    Softmax,
    SpatialDropout,
    Tanh,
)
from zoo.model import IMAGE, Model

CHUNK_BYTES = 16 * 2**20  # of unfolded windows at a time, as in backends/reference/rules.py


@singledispatch
def emit(layer: Layer, shape: Shape, path: str, x: Any) -> Call:
    """The call that computes one layer's output from the variable x, a join's from several."""
    raise UnsupportedLayer(f"a program for 'numpy' has no rule for {type(layer).__name__}")


@emit.register
def normalize(layer: Normalize, shape: Shape, path: str, x: str) -> Call:
    return Call("normalize", (x, f"mean={layer.mean}", f"scale={layer.scale}"))


@emit.register
def conv2d(layer: Conv2d, shape: Shape, path: str, x: str) -> Call:
    arguments = [x, *_weights(path, layer.bias)]
    if layer.stride != (1, 1):
        arguments.append(f"stride={layer.stride}")
    if any(layer.padding):
        arguments.append(f"padding={layer.padding}")
    if layer.dilation != (1, 1):
        arguments.append(f"dilation={layer.dilation}")
    if layer.groups > 1:
        arguments.append(f"groups={layer.groups}")
    return Call("conv2d", tuple(arguments))


@emit.register
def batch_norm(layer: BatchNorm, shape: Shape, path: str, x: str) -> Call:
    names = ("weight", "bias", "running_mean", "running_var")
    weights = (f"w[{quoted(f'{path}.{name}')}]" for name in names)
    return Call("batch_norm", (x, *weights, f"epsilon={layer.epsilon}"))


@emit.register
def local_response_norm(layer: LocalResponseNorm, shape: Shape, path: str, x: str) -> Call:
    arguments = (f"size={layer.size}", f"alpha={layer.alpha}", f"beta={layer.beta}", f"k={layer.k}")
    return Call("local_response_norm", (x, *arguments))


@emit.register
def relu(layer: ReLU, shape: Shape, path: str, x: str) -> Call:
    return Call("relu", (x,))


@emit.register
def relu6(layer: ReLU6, shape: Shape, path: str, x: str) -> Call:
    return Call("np.clip", (x, "0", "6"))  # a function relu6 would be hidden by the sixth ReLU


@emit.register
def leaky_relu(layer: LeakyReLU, shape: Shape, path: str, x: str) -> Call:
    return Call("leaky_relu", (x, f"slope={layer.slope}"))


@emit.register
def elu(layer: ELU, shape: Shape, path: str, x: str) -> Call:
    return Call("elu", (x, f"alpha={layer.alpha}"))


@emit.register
def sigmoid(layer: Sigmoid, shape: Shape, path: str, x: str) -> Call:
    return Call("sigmoid", (x,))


@emit.register
def tanh(layer: Tanh, shape: Shape, path: str, x: str) -> Call:
    return Call("np.tanh", (x,))


@emit.register
def gelu(layer: GELU, shape: Shape, path: str, x: str) -> Call:
    return Call("gelu_by_tanh" if layer.approximate == "tanh" else "gelu", (x,))


@emit.register
def silu(layer: SiLU, shape: Shape, path: str, x: str) -> Call:
    return Call("silu", (x,))


@emit.register
def hard_sigmoid(layer: HardSigmoid, shape: Shape, path: str, x: str) -> Call:
    return Call("hard_sigmoid", (x,))


@emit.register
def hard_swish(layer: HardSwish, shape: Shape, path: str, x: str) -> Call:
    return Call("hard_swish", (x,))


@emit.register
def max_pool2d(layer: MaxPool2d, shape: Shape, path: str, x: str) -> Call:
    return Call("max_pool2d", (x, *_pool_arguments(layer, shape)))


@emit.register
def avg_pool2d(layer: AvgPool2d, shape: Shape, path: str, x: str) -> Call:
    arguments = list(_pool_arguments(layer, shape))
    rows, columns = layer.counts(shape)
    if {*rows} != {layer.size[0]} or {*columns} != {layer.size[1]}:
        arguments += [f"rows={list(rows)}", f"columns={list(columns)}"]
    return Call("avg_pool2d", (x, *arguments))


def _pool_arguments(layer: MaxPool2d | AvgPool2d, shape: Shape) -> tuple[str, ...]:
    sides = layer.sides(shape)
    padding = (f"padding={sides}",) if any(sides) else ()
    return (f"size={layer.size}", f"stride={layer.stride}", *padding)


@emit.register
def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, shape: Shape, path: str, x: str) -> Call:
    return Call("adaptive_avg_pool2d", (x, f"size={layer.size}"))


@emit.register
def global_avg_pool2d(layer: GlobalAvgPool2d, shape: Shape, path: str, x: str) -> Call:
    return Call("global_avg_pool2d", (x,))


@emit.register
def dropout(layer: Dropout, shape: Shape, path: str, x: str) -> Call:
    return Call("dropout", (x,))


@emit.register
def spatial_dropout(layer: SpatialDropout, shape: Shape, path: str, x: str) -> Call:
    return Call("dropout", (x,))


@emit.register
def flatten(layer: Flatten, shape: Shape, path: str, x: str) -> Call:
    return Call("flatten", (x,))


@emit.register
def dense(layer: Dense, shape: Shape, path: str, x: str) -> Call:
    return Call("dense", (x, *_weights(path, layer.bias)))


@emit.register
def softmax(layer: Softmax, shape: Shape, path: str, x: str) -> Call:
    return Call("softmax", (x,))


@emit.register
def residual(layer: Residual, shape: Shape, path: str, x: tuple[str, str]) -> Call:
    return Call("np.add", x)


@emit.register
def concat(layer: Concat, shape: Shape, path: str, x: tuple[str, ...]) -> Call:
    return Call("concat", x)


@emit.register
def scale(layer: Scale, shape: Shape, path: str, x: tuple[str, str]) -> Call:
    return Call("np.multiply", x)


def _weights(path: str, bias: bool) -> list[str]:
    return [f"w[{quoted(f'{path}.{name}')}]" for name in ("weight", "bias")[: 1 + bias]]


# What the calls above call, by name; x is (N, C, H, W) or (N, features).
FUNCTIONS = {
    "pad": '''\
def pad(x, sides, value):
    """x (N, C, H, W) with a value around it; sides: top, left, bottom, right."""
    top, left, bottom, right = sides
    around = ((0, 0), (0, 0), (top, bottom), (left, right))
    return np.pad(x, around, constant_values=value) if any(sides) else x''',
    "windows": '''\
def windows(x, size, stride):
    """All windows of x (N, C, H, W), as (N, C, rows, columns, height, width)."""
    every = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))
    return every[:, :, :: stride[0], :: stride[1]]''',
    "normalize": '''\
def normalize(x, mean, scale):
    """(x - mean) * scale, channel by channel."""
    return (x - np.reshape(mean, (1, -1, 1, 1))) * np.reshape(scale, (1, -1, 1, 1))''',
    "conv2d": '''\
def conv2d(
    x, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """Cross-correlation; weight (O, I / groups, kh, kw)."""
    (down, across), (height, width) = dilation, weight.shape[2:]
    extent = ((height - 1) * down + 1, (width - 1) * across + 1)
    x = windows(pad(x, padding, 0), extent, stride)[..., ::down, ::across]
    pairs = zip(np.split(x, groups, axis=1), np.split(weight, groups), strict=True)
    parts = [np.tensordot(w, part, axes=((1, 2, 3), (1, 4, 5))) for part, w in pairs]
    y = np.concatenate(parts).swapaxes(0, 1)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)''',
    "batch_norm": '''\
def batch_norm(x, weight, bias, mean, variance, epsilon):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, channel by channel."""
    mean, variance, weight, bias = (
        values.reshape(1, -1, *(1,) * (x.ndim - 2))
        for values in (mean, variance, weight, bias)
    )
    return (x - mean) / np.sqrt(variance + epsilon) * weight + bias''',
    "local_response_norm": '''\
def local_response_norm(x, size, alpha, beta, k):
    """x / (k + alpha / size * the sum of squares over `size` channels) ** beta."""
    squares = np.pad(x**2, ((0, 0), (size // 2, size // 2), (0, 0), (0, 0)))
    every = np.lib.stride_tricks.sliding_window_view(squares, size, axis=1)
    return x / (k + alpha / size * every.sum(axis=-1)) ** beta''',
    "relu": '''\
def relu(x):
    """The larger of x and 0."""
    return np.maximum(x, 0)''',
    "leaky_relu": '''\
def leaky_relu(x, slope):
    """x where it is positive, else slope * x."""
    return np.where(x > 0, x, slope * x)''',
    "elu": '''\
def elu(x, alpha):
    """x where it is positive, else alpha * (exp(x) - 1)."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))''',
    "sigmoid": '''\
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return np.exp(-np.logaddexp(0, -x))''',
    "gelu": '''\
def gelu(x):
    """x * (1 + erf(x / sqrt(2))) / 2."""
    erfc = np.frompyfunc(math.erfc, 1, 1)  # 1 + erf(x) = erfc(-x)
    return x * erfc(-x / math.sqrt(2)).astype(np.float64) / 2''',
    "gelu_by_tanh": '''\
def gelu_by_tanh(x):
    """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2."""
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2''',
    "silu": '''\
def silu(x):
    """x / (1 + exp(-x))."""
    return x * sigmoid(x)''',
    "hard_sigmoid": '''\
def hard_sigmoid(x):
    """x / 6 + 1 / 2 between 0 and 1."""
    return np.clip(x / 6 + 0.5, 0, 1)''',
    "hard_swish": '''\
def hard_swish(x):
    """x times x / 6 + 1 / 2 between 0 and 1."""
    return x * np.clip(x / 6 + 0.5, 0, 1)''',
    "max_pool2d": '''\
def max_pool2d(x, size, stride, padding=(0, 0, 0, 0)):
    """The largest value of each window; padding never is."""
    return windows(pad(x, padding, -np.inf), size, stride).max(axis=(4, 5))''',
    "avg_pool2d": '''\
def avg_pool2d(x, size, stride, padding=(0, 0, 0, 0), rows=None, columns=None):
    """The mean of each window: of rows * columns values, where some do not count."""
    total = windows(pad(x, padding, 0), size, stride).sum(axis=(4, 5))
    return total / (size[0] * size[1] if rows is None else np.outer(rows, columns))''',
    "adaptive_avg_pool2d": '''\
def adaptive_avg_pool2d(x, size):
    """The mean of each cell of a grid over the image."""
    y = np.empty((*x.shape[:2], *size))
    for i, j in np.ndindex(*size):
        (top, bottom), (left, right) = (
            (index * length // n, -(-(index + 1) * length // n))
            for index, length, n in zip((i, j), x.shape[2:], size, strict=True)
        )
        y[:, :, i, j] = x[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return y''',
    "global_avg_pool2d": '''\
def global_avg_pool2d(x):
    """The mean of each channel."""
    return x.mean(axis=(2, 3), keepdims=True)''',
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
    "concat": '''\
def concat(*branches):
    """The branches one after another, along the channels."""
    return np.concatenate(branches, axis=1)''',
}
CALLED = {  # by those functions
    **dict.fromkeys(("conv2d", "max_pool2d", "avg_pool2d"), ("pad", "windows")),
    "silu": ("sigmoid",),
}
MATHEMATICAL = {"gelu", "gelu_by_tanh"}  # those that need the module math

LOAD_WEIGHTS = '''\
def load_weights(path):
    """The arrays of a safetensors file by name, in float64."""
    return {name: array.astype(np.float64) for name, array in load_file(path).items()}'''


def program(model: Model) -> str:
    """The NumPy program of a model; see backends.programs.program."""
    names = {IMAGE: "image", **identifiers(model)}
    x, calls, called = "image", [], set()
    for node in model.walk():
        call = emit(node.layer, node.input_shape, node.path, node.take(names))
        x = names[node.path]
        calls.append(assignment(x, call, comment=shown(node.output_shape)))
        called |= {call.function, *CALLED.get(call.function, ())}
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
    sliced = f"images[start : start + {chunk}] for start in range(0, len(images), {chunk})"
    if len(f"    chunks = [{sliced}]") > source.WIDTH:
        sliced = f"\n        {sliced}\n    "
    predict = f'''\
def predict(weights, images):
    """The outputs for an array of images, as an array."""
    # {chunk} images at a time: as the zoo does, to the last bit.
    chunks = [{sliced}]
    return np.concatenate([forward(weights, chunk) for chunk in chunks])'''
    functions = [text for name, text in FUNCTIONS.items() if name in called]
    blocks = [*functions, forward, LOAD_WEIGHTS, predict]
    imports = ["import math"] if called & MATHEMATICAL else []
    imports += ["import sys\n", "import numpy as np", "from safetensors.numpy import load_file"]
    return source.program(model, "NumPy", "float64", "\n".join(imports), *blocks)


def _chunk(model: Model) -> int:
    """Images at a time, as many as the reference takes: BLAS may sum other numbers otherwise."""
    largest = max(
        8 * prod(node.output_shape[-2:]) * node.input_shape[0] * prod(node.layer.kernel)
        if isinstance(node.layer, Conv2d)
        else 8 * prod(node.input_shape)
        for node in model.walk()
    )
    return max(1, CHUNK_BYTES // largest)
