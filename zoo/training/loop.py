"""Training: epochs, validation, checkpoints, the best weights. A backend owns one epoch.

The same (model, weights, data, seed) gives every backend the same batches in the same order:
the order is made by order.py, from (seed, epoch), and handed over. Weights after the last epoch are the
result, as documented; where the recipe holds out validation images, the best epoch's are kept too.
A training that was ended between two steps goes on from a checkpoint as if it had not been.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.data import Split
from zoo.errors import DataError, Diverged, Interrupted
from zoo.network import Network
from zoo.recipe import Recipe
from zoo.training.augmentation import augment
from zoo.training.checkpoints import BEST, Checkpoint
from zoo.training.measures import accuracy, cross_entropy
from zoo.training.order import batch_order, epoch_seed, learning_rates, step_images, step_seed
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


def train_step(
    network: Network, recipe: Recipe, data: Split, *, seed: int, step: int
) -> tuple[float, np.ndarray]:
    """Train for one step of the recipe's epochs: its loss, and the indices of its images.

    Steps count over all epochs.
    """
    losses: list[float] = []
    images, batch = step_images(recipe, data, seed, step)
    rates = None
    if recipe.schedule:
        steps = recipe.steps(len(data.train_labels)) * recipe.epochs
        rates = np.array([recipe.learning_rate(step, steps)])
    network.train_epoch(
        images,
        data.train_labels[batch],
        np.arange(len(batch)),
        recipe,
        lambda _, loss, __: losses.append(loss),
        step_seed(seed, step),
        rates=rates,
    )
    return losses[0], batch


class Keeper:
    """Decides after every step whether a training is to be kept, and whether it is to stop.

    Keeping takes at most one part in SHARE of the time: the next checkpoint waits SHARE times as long as
    the last one took, and `seconds` at least. With 0 seconds every step is kept, whatever it costs. A
    training that is asked to stop is kept at once.
    """

    SHARE = 100

    def __init__(
        self, save: Callable[[Checkpoint], None], seconds: float = 5.0, stopped: Callable[[], bool] = bool
    ) -> None:
        self._save = save
        self._seconds = seconds
        self._stopped = stopped
        self._cost = 0.0
        self._last = time.perf_counter()

    def due(self) -> bool:
        """Whether now is the time for a checkpoint."""
        passed = time.perf_counter() - self._last
        wait = max(self._seconds, self.SHARE * self._cost) if self._seconds else 0.0
        return self._stopped() or passed >= wait

    def keep(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """Save a checkpoint; raises Interrupted after it if the training is to stop."""
        started = time.perf_counter()
        made = checkpoint()
        self._save(made)
        self._last = time.perf_counter()
        self._cost = self._last - started
        if self._stopped():
            raise Interrupted("training was interrupted", f"epoch {made.epoch}, step {made.step}")


def train(
    network: Network,
    recipe: Recipe,
    data: Split,
    *,
    seed: int,
    epochs: int,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
    start: Checkpoint | None = None,
) -> Trained:
    """Train a network in this process and evaluate it.

    keeper: gets checkpoints, the last one when all epochs are done. start: the checkpoint to go on from,
    of a training with the same arguments, and with the same bits as if it had never ended.
    Raises Diverged (with epoch, step, learning rate and last finite loss) at the first loss that
    is not finite, Interrupted where the keeper is asked to stop.
    """
    training = _Training(network, recipe, data, seed, epochs, progress, keeper)
    if start is not None:
        training.go_on_from(start)
    return training.run()


class _Training:
    """A training under way."""

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        data: Split,
        seed: int,
        epochs: int,
        progress: Progress | None,
        keeper: Keeper | None,
    ) -> None:
        self.network = network
        self.recipe = recipe
        self.data = data
        self.seed = seed
        self.epochs = epochs
        self.progress = progress
        self.keeper = keeper
        self.epoch, self.done = 1, 0  # the next step is the one after `done` of this epoch
        self.history: list[tuple[Any, ...]] = []
        self.rows: list[tuple[Any, ...]] = []
        self.best: Weights | None = None
        self.best_epoch: int | None = None
        self.best_accuracy = -1.0
        self.started = time.perf_counter()

    def go_on_from(self, start: Checkpoint) -> None:
        """Take up everything that a checkpoint holds."""
        tensors = {name: array for name, array in start.tensors.items() if not name.startswith(BEST)}
        steps = self.recipe.steps(len(self.data.train_labels))
        try:
            if start.epoch > self.epochs + 1 or start.step > steps:
                raise ValueError(f"epoch {start.epoch}, step {start.step}")
            self.network.restore(tensors, start.network)
        except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
            what = f"the checkpoint does not fit this training: {type(error).__name__}: {error}"
            raise DataError(what.splitlines()[0], "", "train from the start: --no-resume") from None
        self.epoch, self.done = start.epoch, start.step
        self.history, self.rows = list(start.history), list(start.epochs)
        self.best, self.best_epoch, self.best_accuracy = start.best, start.best_epoch, start.best_accuracy
        self.started -= start.seconds

    def run(self) -> Trained:
        """Train what remains, and evaluate."""
        while self.epoch <= self.epochs:
            self._train_epoch()
            self._end_epoch()
            self.epoch, self.done = self.epoch + 1, 0
            if self.keeper and (self.epoch > self.epochs or self.keeper.due()):
                self.keeper.keep(self._checkpoint)
        seconds = time.perf_counter() - self.started
        accuracies, losses = {}, {}
        for part in ("train", "validation", "test"):
            accuracies[part], losses[part] = self._evaluate(part)
        return Trained(
            self.network.weights(),
            self.best,
            self.best_epoch,
            accuracies,
            losses,
            seconds,
            self.history,
            self.rows,
        )

    def _train_epoch(self) -> None:
        """The steps of the epoch that are not done yet."""
        labels = self.data.train_labels
        images = augment(self.recipe.augmentation, self.data.train_images, self.seed, self.epoch)
        total = self.recipe.steps(len(labels)) * self.epochs

        rates = learning_rates(self.recipe, self.epoch, self.epochs, len(labels))

        def rate(step: int) -> float:
            return self.recipe.optimizer.learning_rate if rates is None else float(rates[step - 1])

        def on_step(step: int, loss: float, batch_accuracy: float) -> None:
            if not math.isfinite(loss):
                last = self.history[-1][2] if self.history else "none"
                raise Diverged(
                    f"the loss is {loss} (last finite one {last})",
                    f"epoch {self.epoch}, step {step}",
                    f"lower the learning rate, now {rate(step):g}",
                )
            self.history.append((self.epoch, step, loss, batch_accuracy))
            self.done = step
            if self.progress:
                self.progress(len(self.history), total, loss)
            if self.keeper and self.keeper.due():
                self.keeper.keep(self._checkpoint)

        order = batch_order(self.recipe, self.seed, self.epoch, len(labels))
        seed = epoch_seed(self.seed, self.epoch)
        self.network.train_epoch(images, labels, order, self.recipe, on_step, seed, self.done, rates)

    def _end_epoch(self) -> None:
        """Validate, and add the epoch's row; raises Diverged if the test loss is not finite."""
        losses, accuracies = np.array([row[2:] for row in self.history if row[0] == self.epoch]).T
        count = len(self.data.train_labels)
        sizes = np.full(len(losses), self.recipe.batch_size)
        sizes[-1] = min(count, len(losses) * self.recipe.batch_size) - sizes[:-1].sum()
        validation_accuracy, _ = self._evaluate("validation")
        if validation_accuracy is not None and validation_accuracy > self.best_accuracy:
            self.best, self.best_epoch = self.network.weights(), self.epoch
            self.best_accuracy = validation_accuracy
        test_accuracy, test_loss = self._evaluate("test")
        if test_loss is None or not math.isfinite(test_loss):
            # the last step went astray after its own loss was taken
            raise Diverged(
                f"the test loss is {test_loss} (last finite batch loss {losses[-1]})",
                f"after epoch {self.epoch}",
                f"lower the learning rate, now {self.recipe.optimizer.learning_rate:g}",
            )
        self.rows.append(
            (
                self.epoch,
                float(np.average(losses, weights=sizes)),
                float(np.average(accuracies, weights=sizes)),
                validation_accuracy,
                test_loss,
                test_accuracy,
            )
        )

    def _evaluate(self, part: str) -> tuple[float | None, float | None]:
        """Accuracy and loss on a part of the data; None, None if it has no images."""
        images, labels = getattr(self.data, f"{part}_images"), getattr(self.data, f"{part}_labels")
        if not len(labels):
            return None, None
        outputs = self.network.predict(images)
        return accuracy(outputs, labels), cross_entropy(outputs, labels)

    def _checkpoint(self) -> Checkpoint:
        tensors, network = self.network.state()
        return Checkpoint(
            self.epoch,
            self.done,
            tensors | {f"{BEST}{name}": array for name, array in (self.best or {}).items()},
            network,
            list(self.history),
            list(self.rows),
            self.best_epoch,
            self.best_accuracy,
            time.perf_counter() - self.started,
        )


def to_csv(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Rows as CSV text. Numbers are written so that they read back exactly; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
