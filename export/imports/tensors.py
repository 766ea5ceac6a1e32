"""What an ONNX graph's tensors are in the language of layers, while it is being read.

A `Tensor` is one layer applied to others: the image is the one without inputs. A graph's own tensors are
`View`s of them, because exporters keep images channels-last for a while and flatten them in that order: the
layout is a property of the view, never of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import prod
from typing import Any

import numpy as np

from export.imports.functions import SAME, Function
from zoo.fields import Sides
from zoo.layers import Layer, Shape

Array = np.ndarray
MOST_CHANNELS, MOST_FEATURES = 2**20, 2**24
MOST_STEPS = 32  # of one function: GELU takes 12


class Inexpressible(Exception):
    """No layer of the language computes this, for the reason given."""


class Join(Enum):
    """Where branches meet; the layer itself exists once the branches do."""

    ADD = "Residual"
    CONCAT = "Concat"
    MULTIPLY = "Scale"


@dataclass(frozen=True)
class Affine:
    """(base - mean) * scale + shift: float64 arrays, () or one number per channel or feature."""

    base: Tensor
    mean: Array
    scale: Array
    shift: Array


@dataclass(frozen=True)
class Pointwise:
    """function(base), number by number. cost: of how many steps the function is made, at most MOST_STEPS."""

    base: Tensor
    function: Function
    cost: int = 1


@dataclass(eq=False)
class Tensor:
    """A layer with its inputs, the shape that it gives, and its weights by canonical name.

    layer: None for the image, and for what only a later operator makes sense of: `problem` then says what it
    is. pointwise: where each element is a function of the base's. pad: (base, sides,
    value), if it is a padded base. columns: (base, matrix), if it is an image times a matrix.
    """

    inputs: tuple[Tensor, ...]
    shape: Shape
    layer: Layer | Join | None = None
    arrays: dict[str, Array] = field(default_factory=dict)
    problem: str = ""
    pointwise: Pointwise | None = None
    affine: Affine | None = None
    pad: tuple[Tensor, Sides, float] | None = None
    columns: tuple[Tensor, Array] | None = None
    name: str = ""  # in the graph


@dataclass(frozen=True)
class View:
    """A tensor as the graph holds it. channels_last: an image (N, H, W, C).

    order: of a vector, the canonical feature at each position; None if they are the same.
    """

    tensor: Tensor
    channels_last: bool = False
    order: Array | None = None

    @property
    def shape(self) -> Shape:
        """The canonical shape, (C, H, W) or (features,)."""
        return self.tensor.shape

    @property
    def dims(self) -> Shape:
        """The shape in the graph, without the batch."""
        if len(self.shape) == 3 and self.channels_last:
            channels, height, width = self.shape
            return height, width, channels
        return self.shape

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    def like(self, tensor: Tensor) -> View:
        """Another tensor in this one's layout, if it is of the same rank; else in the canonical one."""
        if len(tensor.shape) != len(self.shape):
            return View(tensor)
        return View(tensor, self.channels_last, self.order if tensor.shape == self.shape else None)

    def canonical_image(self, what: str) -> Tensor:
        """The tensor, if it is an image (N, C, H, W) in the graph; raises Inexpressible."""
        if not self.is_image:
            raise Inexpressible(f"{what} of something that is no image (N, C, H, W)")
        if self.channels_last:
            raise Inexpressible(f"{what} of a channels-last image")
        return self.tensor

    def flattened(self, tensor: Tensor) -> View:
        """`tensor`, which is this image flattened, with its features in the graph's order."""
        if not self.channels_last or self.shape[0] == 1 or self.shape[1:] == (1, 1):
            return View(tensor)
        if prod(self.shape) > MOST_FEATURES:
            raise Inexpressible(f"{prod(self.shape):,} features in channels-last order")
        indices = np.arange(prod(self.shape)).reshape(self.shape)
        return View(tensor, order=indices.transpose(1, 2, 0).ravel())


def per_channel(view: View, constant: Array, batched: bool) -> Array | None:
    """A constant that is broadcast to a tensor: float64, () or one number per canonical channel or feature.

    None if it is neither.
    """
    rank = len(view.dims) + batched
    if constant.size == 1 and constant.ndim <= rank:
        return constant.reshape(()).astype(np.float64)
    if constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    axis = rank - 3 if view.is_image and not view.channels_last else rank - 1
    if any(n != 1 for i, n in enumerate(shape) if i != axis) or shape[axis] != view.shape[0]:
        return None
    values = constant.reshape(-1).astype(np.float64)
    if view.order is None:
        return values
    canonical = np.empty_like(values)
    canonical[view.order] = values
    return canonical


def number(value: Any) -> float:
    """An attribute of ONNX, float32, as the shortest decimal that is meant: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def rounded(array: Array) -> Array:
    """Numbers in float32, to which they are rounded; raises Inexpressible where that loses digits of them."""
    with np.errstate(over="ignore", under="ignore"):
        found = np.asarray(array).astype(np.float32)
        lost = np.abs(found.astype(np.float64) - array) > float(SAME) * np.abs(array)
    if lost.any():
        raise Inexpressible("a constant beyond float32, made of several")
    return found
