"""torch's own samples of operators as models of one layer, with what the operator itself gives for them.

`torch.testing._internal` is private: what stands here is about the torch that pyproject.toml names. Samples
are rounded to float32, which is what images and weights are, and computed in float64. Where a layer rounds a
number of its own (a slope, an alpha), the operator gets that number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from backends.testing.layer_table import RECIPE
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
from zoo.model import Model
from zoo.weights import Weights

Array = np.ndarray
Pads = tuple[int, int]


@dataclass(frozen=True)
class Expressed:
    """A sample as layers.

    images: (N, C, H, W). order: of the operator's output, so that reshaped it is the model's. weights: by
    path and name. kwargs: what the operator is given otherwise, or in addition.
    """

    layers: tuple[Layer, ...]
    images: Array
    weights: dict[str, Array] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    order: Callable[[Array], Array] = np.asarray


class Sample(NamedTuple):
    """One sample: a model in float32 numbers, and the operator's output in float64."""

    operator: str
    model: Model
    weights: Weights
    images: Array
    expected: Array


class NoLayer(Exception):
    """Why no layer expresses a sample."""


Rule = Callable[..., Expressed]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how a sample of these operators is expressed: given its input, arguments and keywords."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@cache
def samples() -> tuple[tuple[Sample, ...], dict[str, dict[str, int]]]:
    """All samples that are expressed, and by operator how many there are of each reason why others are not."""
    from torch.testing._internal.common_methods_invocations import op_db

    found: list[Sample] = []
    reasons: dict[str, dict[str, int]] = {}
    for operator in op_db:
        if operator.name in RULES and operator.variant_test_name in ("", "constant"):
            counted = reasons.setdefault(operator.name, {})
            for one in _of(operator):
                if isinstance(one, Sample):
                    found.append(one)
                else:
                    counted[one] = counted.get(one, 0) + 1
    return tuple(found), reasons


def _of(operator: Any) -> Iterator[Sample | str]:
    import torch

    torch.manual_seed(0)
    for raw in operator.sample_inputs("cpu", torch.float64, requires_grad=False):
        sample = raw.transform(lambda x: x.float().double() if isinstance(x, torch.Tensor) else x)
        inputs = sample.input if isinstance(sample.input, (tuple, list)) else [sample.input]
        if any(tensor.numel() == 0 for tensor in inputs):
            yield "no numbers"
            continue
        x, args, kwargs = (_arrays(part) for part in (sample.input, sample.args, sample.kwargs))
        try:
            expressed = RULES[operator.name](x, *args, **kwargs)
        except NoLayer as reason:
            yield str(reason)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd dilations; of deprecated arguments
            output = operator(sample.input, *sample.args, **(sample.kwargs | expressed.kwargs))
        yield _sample(operator.name, expressed, expressed.order(output.numpy()))


def _arrays(part: Any) -> Any:
    """The same with arrays in place of tensors."""
    if isinstance(part, dict):
        return {name: _arrays(value) for name, value in part.items()}
    if isinstance(part, (tuple, list)):
        return type(part)(_arrays(value) for value in part)
    return part.numpy() if hasattr(part, "numpy") else part


def _sample(operator: str, expressed: Expressed, output: Array) -> Sample:
    images = expressed.images.astype(np.float32)
    model = Model("sample", images.shape[1:], expressed.layers, RECIPE, labels=())
    weights = {name: np.asarray(array, np.float32) for name, array in expressed.weights.items()}
    return Sample(operator, model, weights, images, output.reshape(len(images), *model.output_shape))


# Elementwise functions


def _any_shape(x: Array) -> Array:
    """One image of a tensor of up to three axes."""
    return x.reshape(1, *x.shape, *(1,) * (3 - x.ndim))


for _name, _layer in {
    "nn.functional.relu": ReLU(),
    "nn.functional.relu6": ReLU6(),
    "nn.functional.elu": ELU(),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "nn.functional.silu": SiLU(),
    "nn.functional.hardsigmoid": HardSigmoid(),
    "nn.functional.hardswish": HardSwish(),
}.items():
    RULES[_name] = lambda x, layer=_layer: Expressed((layer,), _any_shape(x))


@rule("nn.functional.gelu")
def gelu(x: Array, approximate: str) -> Expressed:
    return Expressed((GELU(approximate),), _any_shape(x))


@rule("nn.functional.leaky_relu")
def leaky_relu(x: Array) -> Expressed:
    layer = LeakyReLU(0.01)
    return Expressed((layer,), _any_shape(x), kwargs={"negative_slope": layer.slope})


@rule("nn.functional.prelu")
def prelu(x: Array, weight: Array) -> Expressed:
    if weight.size > 1:
        raise NoLayer("a slope for each channel")
    if weight.item() < 0:
        raise NoLayer("a negative slope")
    return Expressed((LeakyReLU(weight.item()),), _any_shape(x))


# Layers of images


def _batch(x: Array) -> Array:
    """A batch of images, of which one may stand alone."""
    return x if x.ndim == 4 else x[None]


def _pair(value: Any) -> Pads:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _sides(padding: Any) -> tuple[int, int, int, int]:
    return _pair(padding) * 2


@rule("nn.functional.conv2d")
def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Expressed:
    images, (filters, _, *kernel) = _batch(x), weight.shape
    layer = Conv2d(
        filters, tuple(kernel), _pair(stride), 0, bias is not None, _pair(dilation), groups, name="layer"
    )
    if padding == "same":
        sides = layer.same(images.shape[1:])
    else:
        sides = _sides(0 if padding == "valid" else padding)
    layer = Conv2d(
        filters, layer.kernel, layer.stride, sides, layer.bias, layer.dilation, groups, name="layer"
    )
    weights = {"layer.weight": weight} | ({} if bias is None else {"layer.bias": bias})
    return Expressed((layer,), images, weights)


@rule("nn.functional.batch_norm")
def batch_norm(
    x: Array,
    mean: Array | None,
    variance: Array | None,
    weight: Array | None,
    bias: Array | None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Expressed:
    if training:
        raise NoLayer("statistics of the batch")
    images = x.reshape(*x.shape[:2], *(1,) * (4 - x.ndim), *x.shape[2:])
    weights = {"running_mean": mean, "running_var": variance, "weight": weight, "bias": bias}
    assert all(array is not None for array in weights.values())
    named = {f"layer.{name}": array for name, array in weights.items()}
    return Expressed((BatchNorm(eps, name="layer"),), images, named)


@rule("nn.functional.local_response_norm")
def local_response_norm(
    x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Expressed:
    if size % 2 == 0:
        raise NoLayer("an even number of channels")
    layer = LocalResponseNorm(size, alpha, beta, k)
    own = {name: getattr(layer, name) for name in ("alpha", "beta", "k")}
    return Expressed((layer,), x[:, :, None], kwargs=own)


@rule("nn.functional.max_pool2d")
def max_pool2d(
    x: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Expressed:
    if return_indices:
        raise NoLayer("indices in addition")
    if _pair(dilation) != (1, 1):
        raise NoLayer("a dilation")
    layer = MaxPool2d(_pair(kernel_size), _pair(stride or kernel_size), _sides(padding), ceil_mode)
    return Expressed((layer,), _batch(x))


@rule("nn.functional.avg_pool2d")
def avg_pool2d(
    x: Array,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Expressed:
    if divisor_override is not None:
        raise NoLayer("a divisor of its own")
    layer = AvgPool2d(
        _pair(kernel_size), _pair(stride or kernel_size), _sides(padding), ceil_mode, count_include_pad
    )
    return Expressed((layer,), _batch(x))


@rule("nn.functional.adaptive_avg_pool2d")
def adaptive_avg_pool2d(x: Array, output_size: Any) -> Expressed:
    sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    size = tuple(length if wish is None else wish for wish, length in zip(sizes, x.shape[-2:], strict=True))
    return Expressed((AdaptiveAvgPool2d(size),), _batch(x))


@rule("mean")
def mean(x: Array, dim: Any = None, keepdim: bool = False) -> Expressed:
    """Axes that are summed over become rows, the others channels."""
    axes = range(x.ndim) if dim in (None, []) else [dim] if isinstance(dim, int) else dim
    summed = sorted({axis % max(x.ndim, 1) for axis in axes}) if x.ndim else []
    rows = prod(x.shape[axis] for axis in summed)
    channels = np.moveaxis(x, summed, range(-len(summed), 0)).reshape(1, -1, rows, 1)
    return Expressed((GlobalAvgPool2d(),), channels)


@rule("constant_pad_nd", "nn.functional.pad")
def pad(x: Array, pads: list[int], *mode_and_value: Any) -> Expressed:
    """A convolution by 1 of every channel for itself is a padding with zeros."""
    if (mode_and_value or (0.0,))[-1] != 0:
        raise NoLayer("a padding with other numbers than 0")
    left, right, top, bottom = (*pads, 0, 0)[:4]
    images = _any_shape(x) if x.ndim == 2 else _batch(x)
    channels = images.shape[1]
    layer = Conv2d(channels, 1, 1, (top, left, bottom, right), False, groups=channels, name="layer")
    return Expressed((layer,), images, {"layer.weight": np.ones((channels, 1, 1, 1))})


@rule("nn.functional.dropout", "nn.functional.dropout2d")
def dropout(x: Array, p: float = 0.5, training: bool = True) -> Expressed:
    if training and p:
        raise NoLayer("at random")
    if p == 1:
        raise NoLayer("a rate of 1")
    layer: Layer = SpatialDropout(p) if x.ndim > 2 else Dropout(p)
    return Expressed((layer,), _batch(x) if x.ndim > 2 else _any_shape(x))


# Layers of vectors


def _vectors(x: Array) -> Array:
    """Every vector along the last axis as an image (features, 1, 1)."""
    return x.reshape(-1, x.shape[-1] if x.ndim else 1, 1, 1)


@rule("nn.functional.linear")
def linear(x: Array, weight: Array, bias: Array | None = None) -> Expressed:
    matrix = np.atleast_2d(weight)
    weights = {"layer.weight": matrix} | ({} if bias is None else {"layer.bias": bias})
    layer = Dense(len(matrix), bias is not None, name="layer")
    return Expressed((Flatten(), layer), _vectors(x), weights)


@rule("softmax")
def softmax(x: Array, dim: int) -> Expressed:
    def last(array: Array) -> Array:
        return np.moveaxis(array, dim, -1) if array.ndim else array

    return Expressed((Flatten(), Softmax()), _vectors(last(x)), order=last)


@rule("flatten")
def flatten(x: Array, start_dim: int = 0, end_dim: int = -1) -> Expressed:
    assert end_dim == -1
    assert start_dim in (0, 1)
    return Expressed(
        (Flatten(),), _any_shape(x) if start_dim == 0 else x.reshape(*x.shape, *(1,) * (4 - x.ndim))
    )


# Joins, which take one image: its channels are all that is joined, and convolutions by 1 choose among them


def _chosen(first: int, count: int, channels: int, factor: float = 1.0) -> Array:
    """The kernel of a convolution that gives `count` channels from `first` on, times a factor."""
    return factor * np.eye(channels)[first : first + count, :, None, None]


def _both(x: Array, other: Array) -> tuple[int, Array]:
    """Two tensors as one image, and how many channels, numbers, each has."""
    left, right = np.broadcast_arrays(x, other)
    return left.size, np.concatenate([left.ravel(), right.ravel()]).reshape(1, -1, 1, 1)


@rule("add")
def add(x: Array, other: Array, alpha: float = 1.0) -> Expressed:
    size, images = _both(x, other)
    body, shortcut = (Conv2d(size, 1, bias=False, name="chosen") for _ in range(2))
    weights = {
        "layer.body.chosen.weight": _chosen(0, size, 2 * size),
        "layer.shortcut.chosen.weight": _chosen(size, size, 2 * size, alpha),
    }
    return Expressed((Residual((body,), (shortcut,), name="layer"),), images, weights)


@rule("mul")
def mul(x: Array, other: Array) -> Expressed:
    """The first half of the image is multiplied by the second, and that by 1."""
    size, images = _both(x, other)
    weights = {
        "layer.branch.chosen.weight": np.concatenate(
            [_chosen(size, size, 2 * size), np.zeros((size, 2 * size, 1, 1))]
        ),
        "layer.branch.chosen.bias": np.repeat([0.0, 1.0], size),
    }
    layer = Scale((Conv2d(2 * size, 1, name="chosen"),), name="layer")
    return Expressed(
        (layer,), images, weights, order=lambda y: np.concatenate([y.ravel(), images[0, size:].ravel()])
    )


@rule("cat")
def cat(x: list[Array], dim: int = 0) -> Expressed:
    if len(x) < 2:
        raise NoLayer("one tensor alone")

    def channels(array: Array) -> Array:
        first = np.moveaxis(array, dim, 0)
        return first.reshape(1, len(first), 1, -1)

    parts = [channels(part) for part in x]
    counts = [part.shape[1] for part in parts]
    branches, weights, total = [], {}, sum(counts)
    for number, count in enumerate(counts, start=1):
        branches.append((Conv2d(count, 1, bias=False, name="chosen"),))
        kernel = _chosen(sum(counts[: number - 1]), count, total)
        weights[f"layer.branch{number}.chosen.weight"] = kernel
    images = np.concatenate(parts, axis=1)
    return Expressed((Concat(branches, name="layer"),), images, weights, order=channels)
