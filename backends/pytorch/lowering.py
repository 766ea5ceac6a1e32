"""PyTorch: one rule per layer, and a torch.nn.Sequential named by the layers' paths.

A join is a module that holds one Sequential per branch, so paths are torch's own names of submodules.

Weights are torch's own layout already, so canonical and torch names and arrays are the same.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import singledispatch
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

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
from zoo.model import Model


@singledispatch
def lower(layer: Layer, input_shape: Shape) -> nn.Module:
    """The torch module of one layer."""
    raise UnsupportedLayer(f"the backend 'torch' has no rule for {type(layer).__name__}")


class _Normalize(nn.Module):
    mean: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, ...], scale: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


@lower.register
def normalize(layer: Normalize, input_shape: Shape) -> nn.Module:
    return _Normalize(layer.mean, layer.scale)


class _PaddedConv2d(nn.Conv2d):
    """nn.Conv2d pads opposite sides alike; this one pads (or crops) each side by its own amount first."""

    sides: tuple[int, int, int, int]  # left, right, top, bottom: torch's order

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.sides))


@lower.register
def conv2d(layer: Conv2d, input_shape: Shape) -> nn.Module:
    placement = layer.placement(input_shape)
    top, left, bottom, right = placement.sides
    symmetric = (top, left) == (bottom, right)
    module = (nn.Conv2d if symmetric else _PaddedConv2d)(
        in_channels=input_shape[0],
        out_channels=layer.filters,
        kernel_size=layer.kernel,
        stride=placement.stride,
        padding=(top, left) if symmetric else 0,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias,
        padding_mode="zeros",
    )
    if isinstance(module, _PaddedConv2d):
        module.sides = (left, right, top, bottom)
    return module


@lower.register
def batch_norm(layer: BatchNorm, input_shape: Shape) -> nn.Module:
    kind = nn.BatchNorm2d if len(input_shape) == 3 else nn.BatchNorm1d
    return kind(
        input_shape[0], eps=layer.epsilon, momentum=layer.momentum, affine=True, track_running_stats=True
    )


@lower.register
def local_response_norm(layer: LocalResponseNorm, input_shape: Shape) -> nn.Module:
    return nn.LocalResponseNorm(layer.size, alpha=layer.alpha, beta=layer.beta, k=layer.k)


@lower.register
def relu(layer: ReLU, input_shape: Shape) -> nn.Module:
    return nn.ReLU()


@lower.register
def relu6(layer: ReLU6, input_shape: Shape) -> nn.Module:
    return nn.ReLU6()


@lower.register
def leaky_relu(layer: LeakyReLU, input_shape: Shape) -> nn.Module:
    return nn.LeakyReLU(negative_slope=layer.slope)


@lower.register
def elu(layer: ELU, input_shape: Shape) -> nn.Module:
    return nn.ELU(alpha=layer.alpha)


@lower.register
def sigmoid(layer: Sigmoid, input_shape: Shape) -> nn.Module:
    return nn.Sigmoid()


@lower.register
def tanh(layer: Tanh, input_shape: Shape) -> nn.Module:
    return nn.Tanh()


@lower.register
def gelu(layer: GELU, input_shape: Shape) -> nn.Module:
    return nn.GELU(approximate=layer.approximate)


@lower.register
def silu(layer: SiLU, input_shape: Shape) -> nn.Module:
    return nn.SiLU()


class _HardSigmoid(nn.Module):
    """nn.Hardsigmoid's formula: its own gradient is 1/6 rounded to float32, in float64 too."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu6(x + 3) / 6


@lower.register
def hard_sigmoid(layer: HardSigmoid, input_shape: Shape) -> nn.Module:
    return _HardSigmoid()


@lower.register
def hard_swish(layer: HardSwish, input_shape: Shape) -> nn.Module:
    return nn.Hardswish()


class _PaddedMaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d pads opposite sides alike, by half its size at most; this one by any amounts."""

    sides: tuple[int, int, int, int]  # left, right, top, bottom: torch's order

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.sides, value=-torch.inf))


@lower.register
def max_pool2d(layer: MaxPool2d, input_shape: Shape) -> nn.Module:
    top, left, bottom, right = layer.sides(input_shape)
    own = layer.pads_alike(input_shape)
    module = (nn.MaxPool2d if own else _PaddedMaxPool2d)(
        layer.size, layer.stride, padding=(top, left) if own else 0, dilation=1, ceil_mode=False
    )
    if isinstance(module, _PaddedMaxPool2d):
        module.sides = (left, right, top, bottom)
    return module


class _PaddedAvgPool2d(nn.AvgPool2d):
    """The same for nn.AvgPool2d, whose means are then of as many inputs as the layer counts."""

    sides: tuple[int, int, int, int]
    share: Tensor  # size of the window / inputs that count, (rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.sides)) * self.share


@lower.register
def avg_pool2d(layer: AvgPool2d, input_shape: Shape) -> nn.Module:
    top, left, bottom, right = layer.sides(input_shape)
    own = layer.pads_alike(input_shape)
    module = (nn.AvgPool2d if own else _PaddedAvgPool2d)(
        layer.size,
        layer.stride,
        padding=(top, left) if own else 0,
        ceil_mode=False,
        count_include_pad=layer.count_padding,
    )
    if isinstance(module, _PaddedAvgPool2d):
        module.sides = (left, right, top, bottom)
        share = prod(layer.size) / np.outer(*layer.counts(input_shape))
        module.register_buffer("share", torch.tensor(share), persistent=False)
    return module


@lower.register
def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, input_shape: Shape) -> nn.Module:
    return nn.AdaptiveAvgPool2d(layer.size)


@lower.register
def global_avg_pool2d(layer: GlobalAvgPool2d, input_shape: Shape) -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)


class _Masked(nn.Module):
    """A dropout that takes the mask of the step where it was given one (TorchNetwork.share_masks).

    Otherwise it draws 24 bits per value from torch's generator; torch's own dropout draws doubles, which
    took a seventh of a small model's step.
    """

    p: float
    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return x * (self._draw(x) if self.mask is None else self.mask)

    def _draw(self, x: Tensor) -> Tensor:
        """0 with the probability p, otherwise 1 / (1 - p); for every value of x (N, ...).

        float32 for bfloat16, whose 8 bits hold neither a probability nor most factors well enough: the masks
        are those of a training in float32.
        """
        dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        return torch.rand_like(x, dtype=dtype, requires_grad=False).ge_(self.p).div_(1 - self.p)


class _Dropout(_Masked, nn.Dropout): ...


class _SpatialDropout(_Masked, nn.Dropout2d):
    def _draw(self, x: Tensor) -> Tensor:
        """The same for every channel of x (N, C, H, W)."""
        return super()._draw(x[:, :, :1, :1])


@lower.register
def dropout(layer: Dropout, input_shape: Shape) -> nn.Module:
    return _Dropout(layer.rate)


@lower.register
def spatial_dropout(layer: SpatialDropout, input_shape: Shape) -> nn.Module:
    return _SpatialDropout(layer.rate)


@lower.register
def flatten(layer: Flatten, input_shape: Shape) -> nn.Module:
    return nn.Flatten(start_dim=1)


@lower.register
def dense(layer: Dense, input_shape: Shape) -> nn.Module:
    return nn.Linear(input_shape[0], layer.units, bias=layer.bias)


@lower.register
def softmax(layer: Softmax, input_shape: Shape) -> nn.Module:
    return nn.Softmax(dim=1)


class _Join(nn.Module):
    """Applies its branches, which are its children in the order of Join.chains, and joins what they give."""

    def forward(self, x: Tensor) -> Tensor:
        return self.join(*(branch(x) for branch in self.children()))

    def join(self, *tensors: Tensor) -> Tensor:
        raise NotImplementedError


class _Residual(_Join):
    def join(self, *tensors: Tensor) -> Tensor:
        body, shortcut = tensors
        return body + shortcut


class _Concat(_Join):
    def join(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, dim=1)


class _Scale(_Join):
    def join(self, *tensors: Tensor) -> Tensor:
        x, factor = tensors
        return x * factor


@lower.register
def residual(layer: Residual, input_shape: Shape) -> nn.Module:
    return _Residual()


@lower.register
def concat(layer: Concat, input_shape: Shape) -> nn.Module:
    return _Concat()


@lower.register
def scale(layer: Scale, input_shape: Shape) -> nn.Module:
    return _Scale()


def build(model: Model) -> nn.Sequential:
    """The modules of all layers, those of branches within their joins."""
    chains: dict[str, OrderedDict[str, nn.Module]] = {}  # by the path of what they are in, "" or a branch
    for node in model.walk():
        module = lower(node.layer, node.input_shape)
        if isinstance(node.layer, Join):
            for branch in node.layer.chains():
                module.add_module(branch, nn.Sequential(chains.pop(f"{node.path}.{branch}", OrderedDict())))
        scope, _, name = node.path.rpartition(".")
        chains.setdefault(scope, OrderedDict())[module_name(name)] = module
    return nn.Sequential(chains[""])


# Their gradients don't need their outputs, which a ReLU may therefore overwrite.
_OVERWRITABLE = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d)


def for_training(module: nn.Sequential) -> nn.Sequential:
    """The same modules in an order that trains faster, to the same bits.

    The largest of a window comes before its ReLU, which then has a quarter of the work in a pool of
    2 x 2, and a ReLU overwrites its input where nobody else wants it. Only within the outer chain:
    branches stay as they are.
    """
    chain = list(module.named_children())
    for i in range(len(chain) - 1):
        if isinstance(chain[i][1], nn.ReLU) and isinstance(chain[i + 1][1], nn.MaxPool2d):
            chain[i], chain[i + 1] = chain[i + 1], chain[i]
    for i in range(1, len(chain)):
        if isinstance(chain[i][1], nn.ReLU) and isinstance(chain[i - 1][1], _OVERWRITABLE):
            chain[i] = (chain[i][0], nn.ReLU(inplace=True))
    return nn.Sequential(OrderedDict(chain))


def module_name(name: str) -> str:
    """A path, or a weight's name, as torch can hold it: nn.Module has methods called train, half, ..."""
    taken = (hasattr(nn.Sequential, part) or part == "training" for part in name.split("."))
    return ".".join(f"{part}_" if t else part for part, t in zip(name.split("."), taken, strict=True))
