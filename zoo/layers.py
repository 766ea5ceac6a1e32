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
Branching layers (Join) hold tuples of layers as fields, so that models stay trees of plain data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    start: the value that all of it starts with, where it is not drawn from that range.
    trained: whether the optimiser changes it; otherwise the layer itself does while training.
    """

    name: str
    shape: Shape
    fan_in: int
    start: float | None = None
    trained: bool = True

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

    def window(self, input_shape: Shape) -> tuple[Pair, Pair] | None:
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


class Padded:
    """A layer that slides a window over an image with padding: what can be padded "the same"."""

    def spread(self) -> tuple[Pair, Pair]:
        """(height, width) of the inputs under the window, and its stride."""
        raise NotImplementedError

    def same(self, input_shape: Shape) -> Sides:
        """The padding with which the output has ceil(size / stride) rows and columns, TensorFlow's "same".

        The odd one of an uneven sum comes at the end: bottom and right.
        """
        before, after = [], []
        for extent, stride, length in zip(*self.spread(), input_shape[1:], strict=True):
            total = max((-(-length // stride) - 1) * stride + extent - length, 0)
            before.append(total // 2)
            after.append(total - total // 2)
        return before[0], before[1], after[0], after[1]


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
class Conv2d(Layer, Padded):
    """2-D cross-correlation (the kernel is not flipped), as the frameworks call convolution.

    (C, H, W) -> (filters, (H + top + bottom - eh) // sh + 1, (W + left + right - ew) // sw + 1), where
    a kernel of k at dilation d extends over e = (k - 1) d + 1 inputs.
    weight: (filters, C / groups, kh, kw), bias: (filters,).

    groups: the channels are cut into so many parts, each seen by its own part of the filters; as many
    as there are channels make it depthwise, whose filters j m to j m + m - 1 see channel j.
    """

    kind: ClassVar[str] = "conv"
    filters: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    bias: bool = True
    dilation: Pair = (1, 1)
    groups: int = 1

    def __init__(
        self,
        filters: int,
        kernel: int | Pair,
        stride: int | Pair = 1,
        padding: int | Sides = 0,
        bias: bool = True,
        dilation: int | Pair = 1,
        groups: int = 1,
        *,
        name: str | None = None,
    ) -> None:
        _set(self, "filters", fields.count(filters, "Conv2d.filters"))
        _set(self, "kernel", fields.pair(kernel, "Conv2d.kernel"))
        _set(self, "stride", fields.pair(stride, "Conv2d.stride"))
        _set(self, "padding", fields.sides(padding, "Conv2d.padding"))
        _set(self, "bias", fields.flag(bias, "Conv2d.bias"))
        _set(self, "dilation", fields.pair(dilation, "Conv2d.dilation"))
        _set(self, "groups", fields.count(groups, "Conv2d.groups"))
        if self.filters % self.groups:
            raise InvalidSpec(f"{self.filters} filters do not divide into {self.groups} groups", "Conv2d")
        _set(self, "name", name)

    @property
    def extent(self) -> Pair:
        """(height, width) of the inputs under the kernel, the gaps of a dilation included."""
        (height, width), (down, across) = self.kernel, self.dilation
        return (height - 1) * down + 1, (width - 1) * across + 1

    def output_shape(self, input_shape: Shape) -> Shape:
        channels, height, width = _image(self, input_shape)
        if channels % self.groups:
            raise InvalidSpec(f"{channels} channels do not divide into {self.groups} groups", "Conv2d")
        top, left, bottom, right = self.padding
        return (
            self.filters,
            _slide("Conv2d", "height", height + top + bottom, self.extent[0], self.stride[0]),
            _slide("Conv2d", "width", width + left + right, self.extent[1], self.stride[1]),
        )

    def weights(self, input_shape: Shape) -> tuple[Weight, ...]:
        channels = input_shape[0] // self.groups
        fan_in = channels * prod(self.kernel)
        weight = Weight("weight", (self.filters, channels, *self.kernel), fan_in)
        return (weight, Weight("bias", (self.filters,), fan_in)) if self.bias else (weight,)

    def macs(self, input_shape: Shape) -> int:
        return prod(self.output_shape(input_shape)) * input_shape[0] // self.groups * prod(self.kernel)

    def spread(self) -> tuple[Pair, Pair]:
        return self.extent, self.stride

    def window(self, input_shape: Shape) -> tuple[Pair, Pair] | None:
        return self.spread()

    def placement(self, input_shape: Shape) -> Placement:
        """The stride, the padding and the crop to give a framework, for the same numbers.

        Usually the layer's own values, without a crop. Two cases work around out-of-bounds reads in oneDNN
        3.13 (brg_conv_fwd:avx512_core, which PyTorch and TensorFlow both run on channels-last float32):

        - A single channel whose output is one column wide: stride 1 along the width, and no columns beyond
          the kernel. With the layer's own values 2,042 of 2,071 such convolutions were wrong, so none.
        - A padding on the right that is as wide as the kernel: one more column is padded, and cropped
          afterwards. TensorFlow fuses a padding with the convolution after it, and 5 of 1,402 of these ended
          the process; with the crop between them, none of 7,221.
        """
        top, left, bottom, right = self.padding
        channels, _, width = _image(self, input_shape)
        across = self.extent[1]
        if channels == 1 and self.stride[1] > 1 and self.output_shape(input_shape)[2] == 1:
            left = min(left, across)
            right = across - left - width
            padding = (top, left, bottom, max(right, 0))
            return Placement((self.stride[0], 1), padding, max(-right, 0))
        if right >= across:
            return Placement(self.stride, (top, left, bottom, right + 1), 1)
        return Placement(self.stride, self.padding, 0)


@dataclass(frozen=True)
class BatchNorm(Layer):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, by channel or feature (Ioffe and Szegedy, 2015).

    While training, mean and variance (biased) are those of the batch, and the running ones move by
    `momentum`, the weight of the new batch, towards its mean and its unbiased variance, of n / (n - 1)
    (PyTorch's rule). At inference they are the running ones.
    weight, bias, running_mean, running_var: (C,) or (features,).
    """

    kind: ClassVar[str] = "batchnorm"
    epsilon: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        epsilon = fields.real(self.epsilon, "BatchNorm.epsilon")  # the very number: frameworks take it in
        if fields.float32(epsilon, "BatchNorm.epsilon") <= 0:  # float64 as well
            raise InvalidSpec(f"{self.epsilon!r} is not positive", "BatchNorm.epsilon")
        momentum = fields.real(self.momentum, "BatchNorm.momentum")
        if not 0 < momentum <= 1:
            raise InvalidSpec(f"{self.momentum!r} is not in 0 < momentum <= 1", "BatchNorm.momentum")
        _set(self, "epsilon", epsilon)
        _set(self, "momentum", momentum)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def weights(self, input_shape: Shape) -> tuple[Weight, ...]:
        shape = input_shape[:1]
        return (
            Weight("weight", shape, 1, start=1.0),
            Weight("bias", shape, 1, start=0.0),
            Weight("running_mean", shape, 1, start=0.0, trained=False),
            Weight("running_var", shape, 1, start=1.0, trained=False),
        )


@dataclass(frozen=True)
class LocalResponseNorm(Layer):
    """x / (k + alpha / size * sum of x^2 over `size` neighbouring channels) ^ beta, around each channel.

    size is odd, so that as many neighbours lie on either side; channels beyond the ends count as 0
    (Krizhevsky et al., 2012, with alpha divided by size as PyTorch and ONNX do).
    """

    kind: ClassVar[str] = "lrn"
    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def __post_init__(self) -> None:
        if fields.count(self.size, "LocalResponseNorm.size") % 2 == 0:
            raise InvalidSpec(f"{self.size} is not odd", "LocalResponseNorm.size")
        for name in ("alpha", "beta", "k"):
            where = f"LocalResponseNorm.{name}"
            value = fields.float32(getattr(self, name), where)
            if value < 0 or (name == "k" and value == 0):
                raise InvalidSpec(f"{value!r} is out of range", where, "give a positive number")
            _set(self, name, value)

    def output_shape(self, input_shape: Shape) -> Shape:
        return _image(self, input_shape)


@dataclass(frozen=True)
class Activation(Layer):
    """Abstract: a function of every element by itself, any shape."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@dataclass(frozen=True)
class ReLU(Activation):
    """max(x, 0), any shape."""

    kind: ClassVar[str] = "relu"


@dataclass(frozen=True)
class ReLU6(Activation):
    """min(max(x, 0), 6), any shape."""

    kind: ClassVar[str] = "relu6_"  # relu6_1, so that relu61 is the 61st ReLU


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """x where x > 0, else slope * x, any shape. The slope is rounded to float32 here, once for all."""

    kind: ClassVar[str] = "leakyrelu"
    slope: float

    def __post_init__(self) -> None:
        slope = fields.float32(self.slope, "LeakyReLU.slope")
        if slope < 0:  # Keras takes none
            raise InvalidSpec(f"{self.slope!r} is negative", "LeakyReLU.slope")
        _set(self, "slope", slope)


@dataclass(frozen=True)
class ELU(Activation):
    """x where x > 0, else alpha * (exp(x) - 1), any shape (Clevert et al., 2016)."""

    kind: ClassVar[str] = "elu"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _set(self, "alpha", fields.float32(self.alpha, "ELU.alpha"))


@dataclass(frozen=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-x)), any shape."""

    kind: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class Tanh(Activation):
    """The hyperbolic tangent, any shape."""

    kind: ClassVar[str] = "tanh"


@dataclass(frozen=True)
class GELU(Activation):
    """x * Phi(x), any shape, with the normal distribution's Phi (Hendrycks and Gimpel, 2016).

    approximate "none": Phi(x) = (1 + erf(x / sqrt(2))) / 2.
    approximate "tanh": Phi(x) = (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2.
    """

    kind: ClassVar[str] = "gelu"
    approximate: str = "none"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise InvalidSpec(f"{self.approximate!r} is neither 'none' nor 'tanh'", "GELU.approximate")


@dataclass(frozen=True)
class SiLU(Activation):
    """x / (1 + exp(-x)), any shape: also called swish."""

    kind: ClassVar[str] = "silu"


@dataclass(frozen=True)
class HardSigmoid(Activation):
    """min(max(x / 6 + 1 / 2, 0), 1), any shape."""

    kind: ClassVar[str] = "hardsigmoid"


@dataclass(frozen=True)
class HardSwish(Activation):
    """x * min(max(x / 6 + 1 / 2, 0), 1), any shape (Howard et al., 2019)."""

    kind: ClassVar[str] = "hardswish"


@dataclass(frozen=True, init=False)
class _Pool2d(Layer, Padded):
    """Abstract: one value per window and channel. stride defaults to size (no overlap).

    (C, H, W) -> (C, (H + top + bottom - sh) // stride_h + 1, ...): a window that does not fit is dropped.
    ceil: one more window at the end of an axis where inputs are left over, if it starts in the image
    or the padding before it. Every window holds at least one input, so padding is less than size.
    """

    kind: ClassVar[str] = "pool"
    size: Pair
    stride: Pair
    padding: Sides = (0, 0, 0, 0)
    ceil: bool = False

    def __init__(
        self,
        size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Sides = 0,
        ceil: bool = False,
        *,
        name: str | None = None,
    ) -> None:
        kind = type(self).__name__
        _set(self, "size", fields.pair(size, f"{kind}.size"))
        _set(self, "stride", self.size if stride is None else fields.pair(stride, f"{kind}.stride"))
        _set(self, "padding", fields.sides(padding, f"{kind}.padding"))
        _set(self, "ceil", fields.flag(ceil, f"{kind}.ceil"))
        if max(self.padding[0::2]) >= self.size[0] or max(self.padding[1::2]) >= self.size[1]:
            raise InvalidSpec(f"{self.padding} is not less than the size {self.size}", f"{kind}.padding")
        _set(self, "name", name)

    def output_shape(self, input_shape: Shape) -> Shape:
        channels, height, width = _image(self, input_shape)
        top, left, bottom, right = self.sides(input_shape)
        kind = type(self).__name__
        return (
            channels,
            _slide(kind, "height", height + top + bottom, self.size[0], self.stride[0]),
            _slide(kind, "width", width + left + right, self.size[1], self.stride[1]),
        )

    def sides(self, input_shape: Shape) -> Sides:
        """The padding with what `ceil` adds at the end of each axis: with it every window fits."""
        top, left, bottom, right = self.padding
        if self.ceil:
            bottom += self._left_over(0, input_shape[1], top, bottom)
            right += self._left_over(1, input_shape[2], left, right)
        return top, left, bottom, right

    def pads_alike(self, input_shape: Shape) -> bool:
        """Whether opposite sides get as much, half the size at most: what frameworks' own pools can do."""
        top, left, bottom, right = sides = self.sides(input_shape)
        within = 2 * top <= self.size[0] and 2 * left <= self.size[1]
        return sides == self.padding and (top, left) == (bottom, right) and within

    def _left_over(self, axis: int, length: int, before: int, after: int) -> int:
        size, stride = self.size[axis], self.stride[axis]
        room = length + before + after - size
        start = -(-room // stride) * stride
        return start - room if room >= 0 and start < length + before else 0

    def spread(self) -> tuple[Pair, Pair]:
        return self.size, self.stride

    def window(self, input_shape: Shape) -> tuple[Pair, Pair] | None:
        return self.spread()


@dataclass(frozen=True, init=False)
class MaxPool2d(_Pool2d):
    """The largest input of each window; padding is never it. Windows overlap where stride < size."""


@dataclass(frozen=True, init=False)
class AvgPool2d(_Pool2d):
    """The mean of each window. Windows overlap where stride < size.

    count_padding: whether the zeros of the padding count as inputs of the mean; what `ceil` adds never does.
    """

    count_padding: bool = False

    def __init__(
        self,
        size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Sides = 0,
        ceil: bool = False,
        count_padding: bool = False,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(size, stride, padding, ceil, name=name)
        _set(self, "count_padding", fields.flag(count_padding, "AvgPool2d.count_padding"))

    def counts(self, input_shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many rows, and how many columns, each window divides by: row by row, column by column."""
        _, rows, columns = self.output_shape(input_shape)
        return self._counts(0, input_shape[1], rows), self._counts(1, input_shape[2], columns)

    def _counts(self, axis: int, length: int, windows: int) -> tuple[int, ...]:
        before, after = self.padding[axis], self.padding[axis + 2]
        start, end = (-before, length + after) if self.count_padding else (0, length)
        firsts = [window * self.stride[axis] - before for window in range(windows)]
        return tuple(min(first + self.size[axis], end) - max(first, start) for first in firsts)


@dataclass(frozen=True, init=False)
class AdaptiveAvgPool2d(Layer):
    """The mean over each cell of a grid that is laid over the image, whatever its size.

    (C, H, W) -> (C, *size). Row i of the grid covers the rows floor(i H / n) to ceil((i + 1) H / n) - 1,
    so that cells overlap by one where H is no multiple of n, and repeat where H is less (PyTorch's rule).
    """

    kind: ClassVar[str] = "pool"
    size: Pair

    def __init__(self, size: int | Pair, *, name: str | None = None) -> None:
        _set(self, "size", fields.pair(size, "AdaptiveAvgPool2d.size"))
        _set(self, "name", name)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (_image(self, input_shape)[0], *self.size)

    def cells(self, input_shape: Shape) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(first, behind the last) of the rows, and of the columns, under each row and column of the grid."""
        rows, columns = (
            [(i * length // n, -(-(i + 1) * length // n)) for i in range(n)]
            for n, length in zip(self.size, input_shape[1:], strict=True)
        )
        return rows, columns

    def window(self, input_shape: Shape) -> tuple[Pair, Pair]:
        """The largest cell; the stride is rounded up where it is no whole number."""
        height, width = (max(end - first for first, end in axis) for axis in self.cells(input_shape))
        down, across = (-(-length // n) for n, length in zip(self.size, input_shape[1:], strict=True))
        return (height, width), (down, across)


@dataclass(frozen=True)
class GlobalAvgPool2d(Layer):
    """The mean of each channel. (C, H, W) -> (C, 1, 1); put a Flatten behind it for a vector."""

    kind: ClassVar[str] = "pool"

    def output_shape(self, input_shape: Shape) -> Shape:
        return (_image(self, input_shape)[0], 1, 1)

    def window(self, input_shape: Shape) -> tuple[Pair, Pair] | None:
        return None


@dataclass(frozen=True)
class _Dropout(Layer):
    """Abstract: zeroes at random while training, and is the identity at inference."""

    kind: ClassVar[str] = "dropout"
    rate: float

    def __post_init__(self) -> None:
        where = f"{type(self).__name__}.rate"
        rate = fields.real(self.rate, where)
        if not 0 <= rate < 1:
            raise InvalidSpec(f"{rate!r} is not in 0 <= rate < 1", where)
        _set(self, "rate", rate)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def mask_shape(self, input_shape: Shape) -> Shape:
        """The shape of one image's mask: what is dropped or kept as one has length 1."""
        return input_shape


@dataclass(frozen=True)
class Dropout(_Dropout):
    """While training, zeroes each element with probability `rate` and scales the rest by
    1 / (1 - rate); identity at inference. Elementwise, whatever the shape."""


@dataclass(frozen=True)
class SpatialDropout(_Dropout):
    """Dropout of whole channels: each of an image is zeroed with probability `rate` while training,
    and the rest are scaled by 1 / (1 - rate) (Tompson et al., 2015)."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return _image(self, input_shape)

    def mask_shape(self, input_shape: Shape) -> Shape:
        return input_shape[0], 1, 1


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

    def window(self, input_shape: Shape) -> tuple[Pair, Pair] | None:
        return None


@dataclass(frozen=True)
class Softmax(Layer):
    """exp(x) / sum(exp(x)) over the features of a vector: logits become probabilities."""

    kind: ClassVar[str] = "softmax"

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 1:
            raise InvalidSpec(f"takes a vector, not {input_shape}", "Softmax", "put a Flatten before it")
        return input_shape

    def window(self, input_shape: Shape) -> tuple[Pair, Pair] | None:
        return None


Chain = tuple[Layer, ...]


@dataclass(frozen=True, init=False)
class Join(Layer):
    """Abstract: branches, each a chain of layers, that all take the same input, joined to one output.

    In `Model.walk()` the layers of the branches are nodes of their own; the join itself is the node behind
    them. It takes their outputs in the order of `chains`, and the input itself for an empty branch.
    """

    def chains(self) -> dict[str, Chain]:
        """The branches by the names that they have in paths."""
        raise NotImplementedError

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        """The shape that branches of these shapes give together; raises InvalidSpec if they cannot."""
        raise NotImplementedError

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.joined([through(chain, input_shape) for chain in self.chains().values()])


@dataclass(frozen=True, init=False)
class Residual(Join):
    """body(x) + shortcut(x), of the same shape (He et al., 2016). An empty shortcut is x itself."""

    kind: ClassVar[str] = "residual"
    body: Chain
    shortcut: Chain = ()

    def __init__(
        self, body: Sequence[Layer], shortcut: Sequence[Layer] = (), *, name: str | None = None
    ) -> None:
        _set(self, "body", _chain(body, "Residual.body", least=1))
        _set(self, "shortcut", _chain(shortcut, "Residual.shortcut"))
        _set(self, "name", name)

    def chains(self) -> dict[str, Chain]:
        return {"body": self.body, "shortcut": self.shortcut}

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        body, shortcut = shapes
        if body != shortcut:
            raise InvalidSpec(
                f"the body gives {body}, the shortcut {shortcut}",
                "Residual",
                "a shortcut of a 1x1 convolution, with the body's stride, brings the input to that shape",
            )
        return body


@dataclass(frozen=True, init=False)
class Concat(Join):
    """The branches' outputs one after another along the channels, or the features of vectors.

    Rows and columns must be the same. One branch may be empty: it is x itself.
    """

    kind: ClassVar[str] = "concat"
    branches: tuple[Chain, ...]

    def __init__(self, branches: Sequence[Sequence[Layer]], *, name: str | None = None) -> None:
        if not isinstance(branches, (tuple, list)) or len(branches) < 2:
            raise InvalidSpec("at least two branches are needed", "Concat.branches")
        _set(self, "branches", tuple(_chain(branch, "Concat.branches") for branch in branches))
        if sum(not branch for branch in self.branches) > 1:
            raise InvalidSpec(
                "two branches are empty", "Concat.branches", "one of them gives the input already"
            )
        _set(self, "name", name)

    def chains(self) -> dict[str, Chain]:
        return {f"branch{number}": chain for number, chain in enumerate(self.branches, start=1)}

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        if len({shape[1:] for shape in shapes}) > 1 or len({len(shape) for shape in shapes}) > 1:
            raise InvalidSpec(
                f"the branches give {', '.join(map(str, shapes))}", "Concat", "they differ too far"
            )
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True, init=False)
class Scale(Join):
    """x * branch(x): attention. The branch gives x's shape, or 1 for an axis along which it is the same.

    With GlobalAvgPool2d and 1x1 convolutions as the branch it is channel attention (Hu et al., 2018).
    """

    kind: ClassVar[str] = "scale"
    branch: Chain

    def __init__(self, branch: Sequence[Layer], *, name: str | None = None) -> None:
        _set(self, "branch", _chain(branch, "Scale.branch", least=1))
        _set(self, "name", name)

    def chains(self) -> dict[str, Chain]:
        return {"input": (), "branch": self.branch}

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        x, factor = shapes
        if len(x) != len(factor) or any(n not in (1, m) for n, m in zip(factor, x, strict=True)):
            raise InvalidSpec(
                f"the branch gives {factor} for an input of {x}",
                "Scale",
                "it takes 1x1 convolutions behind a GlobalAvgPool2d, not dense layers",
            )
        return x


LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for layer in (
        Normalize,
        Conv2d,
        BatchNorm,
        LocalResponseNorm,
        ReLU,
        ReLU6,
        LeakyReLU,
        ELU,
        Sigmoid,
        Tanh,
        GELU,
        SiLU,
        HardSigmoid,
        HardSwish,
        MaxPool2d,
        AvgPool2d,
        AdaptiveAvgPool2d,
        GlobalAvgPool2d,
        Dropout,
        SpatialDropout,
        Flatten,
        Dense,
        Softmax,
        Residual,
        Concat,
        Scale,
    )
}


def to_dict(layer: Layer) -> dict[str, Any]:
    """The layer as JSON data: its type and every field, defaults included."""
    values = {f.name: _plain(getattr(layer, f.name)) for f in dataclasses.fields(layer) if f.name != "name"}
    named = {} if layer.name is None else {"name": layer.name}
    return {"type": type(layer).__name__, **named, **values}


def through(layers: Sequence[Layer], shape: Shape) -> Shape:
    """The shape that layers, one after another, make of an input's."""
    for layer in layers:
        shape = layer.output_shape(shape)
    return shape


def _plain(value: Any) -> Any:
    if isinstance(value, Layer):
        return to_dict(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _chain(layers: Sequence[Layer], where: str, least: int = 0) -> Chain:
    if not isinstance(layers, (tuple, list)) or any(not isinstance(layer, Layer) for layer in layers):
        raise InvalidSpec(f"{str(layers)[:60]!r} is no list of layers", where)
    if len(layers) < least:
        raise InvalidSpec("at least one layer is needed", where)
    return tuple(layers)


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
