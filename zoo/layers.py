"""The layer language: what a network is made of, as plain data.

Every layer is a final frozen dataclass that carries its own shape, weight and cost rule, so that
shapes, parameter counts and multiply-accumulate counts are known before any framework loads.
Input sizes are never written down: `Model.walk()` infers them once.

Rules of this module:
- Shapes are (C, H, W) for images and (features,) for vectors; the batch is never part of them.
- No field inherits a framework's default: every number that a lowering needs stands here.
- Padding is explicit: (top, left, bottom, right), the order of ONNX. There is no "same".
- Kernels and strides are (height, width); a single integer means both.

To add a layer: one class here, its name in LAYERS, one rule in each lowering, one test row.
Branching layers will hold tuples of layers as fields, so that models stay trees of plain data.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, NamedTuple

from zoo import fields
from zoo.errors import InvalidSpec
from zoo.fields import Pair, Sides

Shape = tuple[int, ...]


class Weight(NamedTuple):
    """One weight tensor of a layer: its name within the layer, shape, and fan-in.

    fan_in is the number of inputs that one output sums over; it sets the initial range.
    """

    name: str
    shape: Shape
    fan_in: int

    @property
    def formula(self) -> str:
        """How many numbers these are: "32 x (1 x 3 x 3)" for (32, 1, 3, 3), "10 x 1568", "10"."""
        outputs, *inputs = map(str, self.shape)
        each = " x ".join(inputs)
        return " x ".join(filter(None, (outputs, f"({each})" if len(inputs) > 1 else each)))


@dataclass(frozen=True)
class Layer:
    """Abstract base of all layers. `name` replaces the path that the model would give it."""

    kind: ClassVar[str]  # first part of the layer's path: conv1, relu1, ...
    name: str | None = field(default=None, kw_only=True)

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape that this layer gives; raises InvalidSpec if it cannot take input_shape."""
        raise NotImplementedError

    def weights(self, input_shape: Shape) -> tuple[Weight, ...]:
        """The weight tensors that this layer needs for an input of input_shape."""
        return ()

    def macs(self, input_shape: Shape) -> int:
        """Multiply-accumulate operations for one input, biases not counted."""
        return 0

    def window(self) -> tuple[Pair, Pair] | None:
        """(kernel, stride) of the inputs that one output sees; None if it sees every position."""
        return (1, 1), (1, 1)


@dataclass(frozen=True)
class Normalize(Layer):
    """(x - mean) * scale per channel; both are rounded to float32 here, once for all backends.

    Preprocessing is a layer, so that weights and preprocessing cannot part.
    """

    kind: ClassVar[str] = "normalize"
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "scale"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not values:
                raise InvalidSpec(f"{name} needs one number per channel, not {values!r}", "Normalize")
            _set(self, name, tuple(fields.float32(value, f"Normalize.{name}") for value in values))
        if len(self.mean) != len(self.scale):
            raise InvalidSpec(
                f"{len(self.mean)} means and {len(self.scale)} scales: both need one number per channel",
                "Normalize",
            )

    def output_shape(self, input_shape: Shape) -> Shape:
        channels, _, _ = _image(self, input_shape)
        if channels != len(self.mean):
            raise InvalidSpec(f"{len(self.mean)} means for {channels} channels", "Normalize.mean")
        return input_shape


class Placement(NamedTuple):
    """How a framework is to place a convolution: it pads by zeros, cuts `crop` columns off the right
    of what it padded, and slides the kernel by the stride."""

    stride: Pair
    padding: Sides
    crop: int

    @property
    def sides(self) -> Sides:
        """Padding and crop in one, for a framework whose padding may be negative."""
        top, left, bottom, right = self.padding
        return top, left, bottom, right - self.crop


@dataclass(frozen=True, init=False)
class Conv2d(Layer):
    """2-D cross-correlation (the kernel is not flipped), as the frameworks call convolution.

    (C, H, W) -> (filters, (H + top + bottom - kh) // sh + 1, (W + left + right - kw) // sw + 1).
    weight: (filters, C, kh, kw), bias: (filters,).
    """

    kind: ClassVar[str] = "conv"
    filters: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    bias: bool = True

    def __init__(
        self,
        filters: int,
        kernel: int | Pair,
        stride: int | Pair = 1,
        padding: int | Sides = 0,
        bias: bool = True,
        *,
        name: str | None = None,
    ) -> None:
        _set(self, "filters", fields.count(filters, "Conv2d.filters"))
        _set(self, "kernel", fields.pair(kernel, "Conv2d.kernel"))
        _set(self, "stride", fields.pair(stride, "Conv2d.stride"))
        _set(self, "padding", fields.sides(padding, "Conv2d.padding"))
        _set(self, "bias", fields.flag(bias, "Conv2d.bias"))
        _set(self, "name", name)

    def output_shape(self, input_shape: Shape) -> Shape:
        _, height, width = _image(self, input_shape)
        top, left, bottom, right = self.padding
        return (
            self.filters,
            _slide("Conv2d", "height", height + top + bottom, self.kernel[0], self.stride[0]),
            _slide("Conv2d", "width", width + left + right, self.kernel[1], self.stride[1]),
        )

    def weights(self, input_shape: Shape) -> tuple[Weight, ...]:
        channels = input_shape[0]
        fan_in = channels * prod(self.kernel)
        weight = Weight("weight", (self.filters, channels, *self.kernel), fan_in)
        return (weight, Weight("bias", (self.filters,), fan_in)) if self.bias else (weight,)

    def macs(self, input_shape: Shape) -> int:
        return prod(self.output_shape(input_shape)) * input_shape[0] * prod(self.kernel)

    def window(self) -> tuple[Pair, Pair] | None:
        return self.kernel, self.stride

    def placement(self, input_shape: Shape) -> Placement:
        """The stride, the padding and the crop to give a framework, for the same numbers.

        They are the layer's own and no crop, except where oneDNN (3.13, brg_conv_fwd:avx512_core, which
        PyTorch and TensorFlow both run on channels-last float32) reads what is not its own:

        - One channel whose output is one column gets no stride along the width and no columns beyond
          its kernel. With them 2,042 of 2,071 such convolutions went wrong, so none.
        - Where the padding on the right takes a kernel, one column more is padded and cut off again.
          TensorFlow makes one operation of a padding and the convolution after it, and 5 of 1,402 such
          ones ended the process; with the cut between the two none of 7,221.
        """
        top, left, bottom, right = self.padding
        channels, _, width = _image(self, input_shape)
        across = self.kernel[1]
        if channels == 1 and self.stride[1] > 1 and self.output_shape(input_shape)[2] == 1:
            left = min(left, across)
            right = across - left - width
            padding = (top, left, bottom, max(right, 0))
            return Placement((self.stride[0], 1), padding, max(-right, 0))
        if right >= across:
            return Placement(self.stride, (top, left, bottom, right + 1), 1)
        return Placement(self.stride, self.padding, 0)


@dataclass(frozen=True)
class ReLU(Layer):
    """max(x, 0), any shape."""

    kind: ClassVar[str] = "relu"

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@dataclass(frozen=True, init=False)
class _Pool2d(Layer):
    """Abstract: one value per window and channel. stride defaults to size (no overlap).

    (C, H, W) -> (C, (H - sh) // stride_h + 1, ...): windows that do not fit are dropped.
    """

    kind: ClassVar[str] = "pool"
    size: Pair
    stride: Pair

    def __init__(
        self, size: int | Pair, stride: int | Pair | None = None, *, name: str | None = None
    ) -> None:
        kind = type(self).__name__
        _set(self, "size", fields.pair(size, f"{kind}.size"))
        _set(self, "stride", self.size if stride is None else fields.pair(stride, f"{kind}.stride"))
        _set(self, "name", name)

    def output_shape(self, input_shape: Shape) -> Shape:
        channels, height, width = _image(self, input_shape)
        kind = type(self).__name__
        return (
            channels,
            _slide(kind, "height", height, self.size[0], self.stride[0]),
            _slide(kind, "width", width, self.size[1], self.stride[1]),
        )

    def window(self) -> tuple[Pair, Pair] | None:
        return self.size, self.stride


@dataclass(frozen=True, init=False)
class MaxPool2d(_Pool2d):
    """The largest value of each window. Windows overlap where stride < size."""


@dataclass(frozen=True, init=False)
class AvgPool2d(_Pool2d):
    """The mean of each window. Windows overlap where stride < size."""


@dataclass(frozen=True)
class Dropout(Layer):
    """While training, zeroes each element with probability `rate` and scales the rest by
    1 / (1 - rate); identity at inference. Elementwise, whatever the shape."""

    kind: ClassVar[str] = "dropout"
    rate: float

    def __post_init__(self) -> None:
        rate = fields.real(self.rate, "Dropout.rate")
        if not 0 <= rate < 1:
            raise InvalidSpec(f"{rate!r} is not in 0 <= rate < 1", "Dropout.rate")
        _set(self, "rate", rate)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@dataclass(frozen=True)
class Flatten(Layer):
    """(C, H, W) -> (C * H * W,), in that order of axes in every backend."""

    kind: ClassVar[str] = "flatten"

    def output_shape(self, input_shape: Shape) -> Shape:
        return (prod(_image(self, input_shape)),)


@dataclass(frozen=True)
class Dense(Layer):
    """weight @ x + bias. (features,) -> (units,). weight: (units, features), bias: (units,)."""

    kind: ClassVar[str] = "dense"
    units: int
    bias: bool = True

    def __post_init__(self) -> None:
        fields.count(self.units, "Dense.units")
        fields.flag(self.bias, "Dense.bias")

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 1:
            raise InvalidSpec(f"takes a vector, not {input_shape}", "Dense", "put a Flatten before it")
        return (self.units,)

    def weights(self, input_shape: Shape) -> tuple[Weight, ...]:
        fan_in = input_shape[0]
        weight = Weight("weight", (self.units, fan_in), fan_in)
        return (weight, Weight("bias", (self.units,), fan_in)) if self.bias else (weight,)

    def macs(self, input_shape: Shape) -> int:
        return self.units * input_shape[0]

    def window(self) -> tuple[Pair, Pair] | None:
        return None


@dataclass(frozen=True)
class Softmax(Layer):
    """exp(x) / sum(exp(x)) over the features of a vector: logits become probabilities."""

    kind: ClassVar[str] = "softmax"

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 1:
            raise InvalidSpec(f"takes a vector, not {input_shape}", "Softmax", "put a Flatten before it")
        return input_shape

    def window(self) -> tuple[Pair, Pair] | None:
        return None


LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for layer in (Normalize, Conv2d, ReLU, MaxPool2d, AvgPool2d, Dropout, Flatten, Dense, Softmax)
}


def to_dict(layer: Layer) -> dict[str, Any]:
    """The layer as JSON data: its type and every field, defaults included."""
    values = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer) if f.name != "name"}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    named = {} if layer.name is None else {"name": layer.name}
    return {"type": type(layer).__name__, **named, **plain}


def _set(layer: Layer, name: str, value: object) -> None:
    object.__setattr__(layer, name, value)


def _image(layer: Layer, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InvalidSpec(f"takes an image (C, H, W), not {shape}", type(layer).__name__)
    return shape[0], shape[1], shape[2]


def _slide(kind: str, axis: str, size: int, window: int, stride: int) -> int:
    if window > size:
        raise InvalidSpec(f"a window of {window} does not fit into the {axis} {size}", kind)
    return (size - window) // stride + 1
