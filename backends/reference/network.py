"""The judge itself: a model computed layer by layer by the rules, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from backends.reference.rules import CHUNK_BYTES, Array, apply
from zoo.errors import NotSupported
from zoo.layers import (
    Conv2d,
)
from zoo.model import IMAGE, Model
from zoo.network import OnStep
from zoo.recipe import Recipe
from zoo.weights import check


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
        tensors = {IMAGE: images.astype(np.float64)}
        for node, weights in self.nodes:
            tensors[node.path] = apply(node.layer, node.take(tensors), weights)
            yield node.path, tensors[node.path]

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
