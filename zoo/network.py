"""The port that every backend implements: what the zoo asks of a framework, and no more.

A Backend makes a Network from a model and canonical weights; everything that passes through here
is NumPy in canonical form (images NCHW, weights as in zoo.weights), so no caller ever needs to
know which framework answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zoo.model import Model
from zoo.recipe import Recipe

OnStep = Callable[[int, float, float], None]
"""Called after each optimiser step with (step in the epoch from 1, batch loss, batch accuracy)."""


class Network(Protocol):
    """One model with its weights, in one framework. Images: float32 (N, C, H, W) in [0, 1]."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in the network's dtype: what model.output says.

        Up to zoo.machine.ONE_BATCH images are one batch of the framework's: the cross-check tries many sizes.
        """

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path: (N, C, H, W) or (N, features). Dropout is the identity."""

    def weights(self) -> dict[str, np.ndarray]:
        """The current weights in canonical form."""

    def export_native(self, path: str | Path) -> None:
        """Write the network with the framework's own ONNX exporter.

        Raises NotSupported with the reason where there is none.
        """

    def train_epoch(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: np.ndarray,
        recipe: Recipe,
        on_step: OnStep,
        seed: int = 0,
        done: int = 0,
        rates: np.ndarray | None = None,
    ) -> None:
        """One epoch over images[order] in batches, as the recipe says.

        labels: integers (N,). order: the indices of the images in the order of training.
        seed: feeds the stochastic layers of this epoch, so that an epoch is a pure function of
        the state before it and these arguments. done: so many steps were done before, by a network
        whose state after them was restored; only the others follow, as they would have there.
        rates: the learning rate of every step of the epoch, float64; None: the optimiser's own.
        """

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that training goes on from: tensors (weights, optimiser, generators), JSON data.

        May be called in `on_step` as well.
        """

    def restore(self, tensors: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> None:
        """Go back to a state given by `state`."""


@runtime_checkable
class ComparableNetwork(Network, Protocol):
    """A network whose training can be held beside another's: what `zoo parity` asks for in addition."""

    def gradients(
        self, images: np.ndarray, labels: np.ndarray, seed: int = 0
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The recipe's loss over these images and its gradients, by the names of the weights.

        Layers compute as in the first step of an epoch with this seed. Nothing is updated.
        """

    def share_masks(self, batch_size: int) -> None:
        """From now on dropout takes its masks from zoo.randomness.dropout_mask, equal everywhere.

        The masks of step k of an epoch are those of (the epoch's seed, k, the layer's path).
        batch_size: the most images of a step.
        """

    def change_layout(self) -> None:
        """Train in another memory layout from now on: the same formulas with other roundings.

        Raises NotSupported where the framework has but one.
        """


class Original(Protocol):
    """A framework's own model, made of nothing of the zoo's: what imported weights are held against."""

    def layers(self) -> Iterable[tuple[str, dict[str, np.ndarray]]]:
        """(kind, weights by canonical name, in canonical layout) of each layer with weights, as used."""

    def predict(self, images: np.ndarray, dtype: str) -> np.ndarray:
        """(N, classes) in "float32" or "float64" for images (N, C, H, W) as the model takes them."""

    def export(self) -> bytes:
        """The framework's own ONNX export; raises NotSupported with the reason where there is none."""

    def versions(self) -> dict[str, str]:
        """The versions of what it is made of."""


@runtime_checkable
class CallableNetwork(Network, Protocol):
    """A network that can be run in two ways, which differ in speed alone."""

    def call(self, images: np.ndarray) -> np.ndarray:
        """What `predict` gives, by the framework's bare call."""


class Backend(Protocol):
    """A framework that can realise models."""

    name: str

    def build(self, model: Model, weights: Mapping[str, np.ndarray], dtype: str = "float32") -> Network:
        """The network of a model; dtype is "float32", or "float64" for proofs.

        Raises UnsupportedLayer before any training if a layer has no rule here.
        """

    def versions(self) -> dict[str, str]:
        """The versions of the framework and of the exporters it uses."""
