"""The judge: every layer in NumPy float64, inference only, written to be read.

Each rule is the layer's definition and nothing else: no speed-up that a reader would have to
believe. x is (N, C, H, W) or (N, features); w holds the layer's own weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import singledispatch
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from zoo.errors import NotSupported, UnsupportedLayer
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
from zoo.network import OnStep
from zoo.recipe import Recipe
from zoo.weights import check

Array = np.ndarray
CHUNK_BYTES = 64 * 2**20  # of unfolded windows at a time


@singledispatch
def apply(layer: Layer, x: Array, w: Mapping[str, Array]) -> Array:
    """The output of one layer for the input x."""
    raise UnsupportedLayer(f"the backend 'reference' has no rule for {type(layer).__name__}")


@apply.register
def normalize(layer: Normalize, x: Array, w: Mapping[str, Array]) -> Array:
    mean = np.array(layer.mean).reshape(1, -1, 1, 1)
    scale = np.array(layer.scale).reshape(1, -1, 1, 1)
    return (x - mean) * scale


@apply.register
def conv2d(layer: Conv2d, x: Array, w: Mapping[str, Array]) -> Array:
    top, left, bottom, right = layer.padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = _windows(x, layer.kernel, layer.stride)  # N C H W kh kw
    y = np.tensordot(windows, w["weight"], axes=((1, 4, 5), (1, 2, 3)))  # N H W O
    y = y.transpose(0, 3, 1, 2)
    return y + w["bias"].reshape(1, -1, 1, 1) if layer.bias else y


@apply.register
def relu(layer: ReLU, x: Array, w: Mapping[str, Array]) -> Array:
    return np.maximum(x, 0)


@apply.register
def max_pool2d(layer: MaxPool2d, x: Array, w: Mapping[str, Array]) -> Array:
    return _windows(x, layer.size, layer.stride).max(axis=(4, 5))


@apply.register
def avg_pool2d(layer: AvgPool2d, x: Array, w: Mapping[str, Array]) -> Array:
    return _windows(x, layer.size, layer.stride).mean(axis=(4, 5))


@apply.register
def dropout(layer: Dropout, x: Array, w: Mapping[str, Array]) -> Array:
    return x


@apply.register
def flatten(layer: Flatten, x: Array, w: Mapping[str, Array]) -> Array:
    return x.reshape(len(x), -1)


@apply.register
def dense(layer: Dense, x: Array, w: Mapping[str, Array]) -> Array:
    y = x @ w["weight"].T
    return y + w["bias"] if layer.bias else y


@apply.register
def softmax(layer: Softmax, x: Array, w: Mapping[str, Array]) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _windows(x: Array, size: tuple[int, int], stride: tuple[int, int]) -> Array:
    """All windows of x (N, C, H, W) as (N, C, H', W', size_h, size_w)."""
    return sliding_window_view(x, size, axis=(2, 3))[:, :, :: stride[0], :: stride[1]]


class ReferenceNetwork:
    """A model in NumPy float64; a zoo.network.Network without training and export."""

    def __init__(self, model: Model, weights: Mapping[str, Array]) -> None:
        self.model = model
        self._weights = check(model, weights)
        self.nodes = [  # (node, its weights by their names within the layer)
            (
                node,
                {
                    weight.name: self._weights[f"{node.path}.{weight.name}"].astype(np.float64)
                    for weight in node.layer.weights(node.input_shape)
                },
            )
            for node in model.walk()
        ]

    def run(self, images: Array) -> Iterator[tuple[str, Array]]:
        """(path, output) of every layer in order, for all images at once."""
        x = images.astype(np.float64)
        for node, weights in self.nodes:
            x = apply(node.layer, x, weights)
            yield node.path, x

    def chunks(self, images: Array) -> Iterator[Array]:
        """The images in slices small enough that no layer unfolds more than CHUNK_BYTES."""
        largest = max(
            8 * prod(node.output_shape[-2:]) * node.input_shape[0] * prod(node.layer.kernel)
            if isinstance(node.layer, Conv2d)
            else 8 * prod(node.input_shape)
            for node, _ in self.nodes
        )
        size = max(1, CHUNK_BYTES // largest)
        for start in range(0, len(images), size):
            yield images[start : start + size]

    def predict(self, images: Array) -> Array:
        """float64 (N, *model.output_shape)."""
        return np.concatenate([dict(self.run(chunk))[self._last] for chunk in self.chunks(images)])

    def activations(self, images: Array) -> dict[str, Array]:
        """Every layer's float64 output by path."""
        parts = [dict(self.run(chunk)) for chunk in self.chunks(images)]
        return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}

    @property
    def _last(self) -> str:
        return self.nodes[-1][0].path

    def weights(self) -> dict[str, Array]:
        """The canonical weights."""
        return {name: array.copy() for name, array in self._weights.items()}

    def export_native(self, path: str | Path) -> None:
        """Always raises NotSupported."""
        raise NotSupported("the reference has no ONNX exporter of its own")

    def train_epoch(
        self, images: Array, labels: Array, order: Array, recipe: Recipe, on_step: OnStep, seed: int = 0
    ) -> None:
        """Always raises NotSupported."""
        raise NotSupported("the reference computes forward only; it does not train")

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The weights; there is nothing else."""
        return self.weights(), {}

    def restore(self, tensors: Mapping[str, Array], data: Mapping[str, Any]) -> None:
        """Take the weights of a state."""
        self.__init__(self.model, tensors)  # type: ignore[misc]


class ReferenceBackend:
    """The NumPy reference as a zoo.network.Backend."""

    name = "reference"

    def build(self, model: Model, weights: Mapping[str, Array], dtype: str = "float32") -> ReferenceNetwork:
        """The network of a model; always float64, whatever dtype says."""
        for node in model.walk():
            if apply.dispatch(type(node.layer)) is apply.dispatch(object):
                apply(node.layer, np.empty(0), {})
        return ReferenceNetwork(model, weights)

    def versions(self) -> dict[str, str]:
        """NumPy's version."""
        return {"numpy": np.__version__}


def backend(engine: str | None = None) -> ReferenceBackend:
    """The backend of this module."""
    return ReferenceBackend()
