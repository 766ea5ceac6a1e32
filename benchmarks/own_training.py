"""The zoo's own training as `zoo build` runs it: zoo.training as in a worker, checkpoints included."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import backends
import zoo
from benchmarks.process import Pace
from zoo import data, machine
from zoo.training import loop

FOR_EVER = 10_000  # epochs
TEST_IMAGES = 1  # the others only train; an epoch is evaluated nevertheless


def train(pace: Pace, model: str, backend: str, folder: str) -> None:
    """Train a model on the MNIST in a folder, by one of the zoo's backends."""
    spec = zoo.get(model)
    dataset = data.read_folder(Path(folder), "mnist")
    split = data.split(dataset, spec.recipe.validation_size(len(dataset.train_labels)), seed=0)
    few = {
        "test_images": split.test_images[:TEST_IMAGES],
        "test_labels": split.test_labels[:TEST_IMAGES],
        "validation_images": split.validation_images[:0],
        "validation_labels": split.validation_labels[:0],
    }
    loop.train(
        backends.load(backend).build(spec, zoo.init_weights(spec)),
        spec.recipe,
        dataclasses.replace(split, **few).as_float(),
        seed=0,
        epochs=FOR_EVER,
        progress=lambda *_: pace(),
        keeper=loop.Keeper(lambda _: None, machine.checkpoint_seconds()),
    )
