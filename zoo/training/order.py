"""Which images a step of training sees, and with what learning rate: a function of the seed and the step."""

from __future__ import annotations

from math import prod

import numpy as np

from zoo.data import Split
from zoo.errors import InvalidInput
from zoo.layers import BatchNorm
from zoo.model import Model
from zoo.randomness import permutation, raw_bits
from zoo.recipe import Recipe
from zoo.training.augmentation import augment


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


def learning_rates(recipe: Recipe, epoch: int, epochs: int, images: int) -> np.ndarray | None:
    """The learning rate of every step of an epoch (from 1) of so many, float64; None where it is constant."""
    if recipe.schedule is None:
        return None
    each = recipe.steps(images)
    return np.array([recipe.learning_rate((epoch - 1) * each + i + 1, epochs * each) for i in range(each)])


def step_images(recipe: Recipe, data: Split, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of one step, counted from 1 over all epochs, as it sees them, and their indices."""
    count = len(data.train_labels)
    batch = step_batch(recipe, seed, step, count)
    epoch = (step - 1) // recipe.steps(count) + 1
    return augment(recipe.augmentation, data.train_images[batch], seed, epoch, batch), batch
