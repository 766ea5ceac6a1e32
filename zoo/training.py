"""Training: epochs, batch order, validation, the best weights. A backend owns one epoch.

The same (model, weights, data, seed) gives every backend the same batches in the same order:
the order is made here, from (seed, epoch), and handed over. Weights after the last epoch are the
result, as documented; where the recipe holds out validation images, the best epoch's are kept too.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from statistics import NormalDist
from typing import Any

import numpy as np

from zoo.data import Split
from zoo.errors import Diverged, InvalidInput
from zoo.layers import BatchNorm
from zoo.model import Model
from zoo.network import Network
from zoo.randomness import permutation, raw_bits
from zoo.recipe import Recipe
from zoo.weights import Weights

HISTORY = ("epoch", "step", "loss", "batch_accuracy")
EPOCHS = (
    "epoch", "train_loss", "train_accuracy", "validation_accuracy", "test_loss", "test_accuracy",
)  # fmt: skip

Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, batch loss)."""


@dataclass
class Trained:
    """What training gives. Accuracies are fractions; rows are in the order of their CSV header."""

    weights: Weights
    best: Weights | None
    best_epoch: int | None
    accuracy: dict[str, float | None]
    loss: dict[str, float | None]
    seconds: float
    history: list[tuple[Any, ...]] = field(default_factory=list)
    epochs: list[tuple[Any, ...]] = field(default_factory=list)


def batch_order(recipe: Recipe, seed: int, epoch: int, images: int) -> np.ndarray:
    """The order in which epoch `epoch` (from 1) visits the training images: int64 (n,)."""
    order = permutation(seed, f"order/{epoch}", images) if recipe.shuffle else np.arange(images)
    return order[: recipe.steps(images) * recipe.batch_size]


def check_batches(model: Model, images: int) -> None:
    """Raise InvalidInput if a batch normalisation would have a single value per channel in some step."""
    recipe = model.recipe
    last = images % recipe.batch_size if not recipe.drop_last else 0
    if min(recipe.batch_size, last or recipe.batch_size, images) > 1:
        return
    for node in model.walk():
        if isinstance(node.layer, BatchNorm) and prod(node.input_shape[1:]) == 1:
            raise InvalidInput(
                f"a batch of one image has one value per channel, and no variance, in {node.path}",
                "recipe.batch_size",
                "another batch_size, or drop_last = true",
            )


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's stochastic layers: an integer below 2**31."""
    return int(raw_bits(seed, f"dropout/{epoch}", 1)[0] >> np.uint64(33))


def step_batch(recipe: Recipe, seed: int, step: int, images: int) -> np.ndarray:
    """The training images of one step, counted from 1 over all epochs: int64 (n,)."""
    epoch, position = divmod(step - 1, recipe.steps(images))
    start = position * recipe.batch_size
    return batch_order(recipe, seed, epoch + 1, images)[start : start + recipe.batch_size]


def step_seed(seed: int, step: int) -> int:
    """The seed of a single step's stochastic layers: an integer below 2**31."""
    return int(raw_bits(seed, f"dropout/step/{step}", 1)[0] >> np.uint64(33))


def cross_entropy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log_softmax(outputs)[label], in float64. outputs: (N, classes), labels: (N,)."""
    z = outputs.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_softmax = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return float(-log_softmax[np.arange(len(labels)), labels].mean())


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of rows whose largest output is at their label."""
    return float((outputs.argmax(axis=1) == labels).mean())


def interval(accuracy: float, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy measured on so many images (Wilson, 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = accuracy + z**2 / (2 * images)
    half = z * math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
    return (centre - half) / (1 + z**2 / images), (centre + half) / (1 + z**2 / images)


def train_step(
    network: Network, recipe: Recipe, data: Split, *, seed: int, step: int
) -> tuple[float, np.ndarray]:
    """Train for one step: its loss, and the indices of its images. Steps count over all epochs."""
    losses: list[float] = []
    batch = step_batch(recipe, seed, step, len(data.train_labels))
    network.train_epoch(
        data.train_images,
        data.train_labels,
        batch,
        recipe,
        lambda _, loss, __: losses.append(loss),
        step_seed(seed, step),
    )
    return losses[0], batch


def train(
    network: Network,
    recipe: Recipe,
    data: Split,
    *,
    seed: int,
    epochs: int,
    progress: Progress | None = None,
) -> Trained:
    """Train a network in this process and evaluate it.

    Raises Diverged (with epoch, step, learning rate and last finite loss) at the first loss that
    is not finite.
    """
    history: list[tuple[Any, ...]] = []
    rows: list[tuple[Any, ...]] = []
    best: Weights | None = None
    best_epoch: int | None = None
    best_accuracy = -1.0
    count = len(data.train_labels)
    total = recipe.steps(count) * epochs
    started = time.perf_counter()
    for epoch in range(1, epochs + 1):
        first = len(history)

        def on_step(step: int, loss: float, batch_accuracy: float, epoch: int = epoch) -> None:
            if not math.isfinite(loss):
                last = history[-1][2] if history else "none"
                raise Diverged(
                    f"the loss is {loss} (last finite one {last})",
                    f"epoch {epoch}, step {step}",
                    f"lower the learning rate, now {recipe.optimizer.learning_rate:g}",
                )
            history.append((epoch, step, loss, batch_accuracy))
            if progress:
                progress(len(history), total, loss)

        order = batch_order(recipe, seed, epoch, count)
        network.train_epoch(
            data.train_images, data.train_labels, order, recipe, on_step, epoch_seed(seed, epoch)
        )
        losses = np.array([row[2] for row in history[first:]])
        accuracies = np.array([row[3] for row in history[first:]])
        sizes = np.full(len(losses), recipe.batch_size)
        sizes[-1] = len(order) - sizes[:-1].sum()
        validation_accuracy = None
        if len(data.validation_labels):
            outputs = network.predict(data.validation_images)
            validation_accuracy = accuracy(outputs, data.validation_labels)
            if validation_accuracy > best_accuracy:
                best, best_epoch, best_accuracy = network.weights(), epoch, validation_accuracy
        outputs = network.predict(data.test_images)
        test_loss = cross_entropy(outputs, data.test_labels)
        if not math.isfinite(test_loss):  # the last step went astray after its own loss was taken
            raise Diverged(
                f"the test loss is {test_loss} (last finite batch loss {history[-1][2]})",
                f"after epoch {epoch}",
                f"lower the learning rate, now {recipe.optimizer.learning_rate:g}",
            )
        rows.append(
            (
                epoch,
                float(np.average(losses, weights=sizes)),
                float(np.average(accuracies, weights=sizes)),
                validation_accuracy,
                test_loss,
                accuracy(outputs, data.test_labels),
            )
        )
    seconds = time.perf_counter() - started
    final_accuracy: dict[str, float | None] = {}
    final_loss: dict[str, float | None] = {}
    for part in ("train", "validation", "test"):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        final_accuracy[part], final_loss[part] = None, None
        if len(labels):
            outputs = network.predict(images)
            final_accuracy[part] = accuracy(outputs, labels)
            final_loss[part] = cross_entropy(outputs, labels)
    return Trained(network.weights(), best, best_epoch, final_accuracy, final_loss, seconds, history, rows)


def to_csv(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Rows as CSV text. Numbers are written so that they read back exactly; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
