"""How one trains in Keras without the zoo: a Sequential model and `fit` on arrays, with Keras' defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

import zoo
from backends import programs
from benchmarks.process import Pace
from zoo import data
from zoo.layers import Softmax
from zoo.model import Model

FOR_EVER = 10_000  # epochs


def fit(pace: Pace, model: str, folder: str) -> None:
    """`model.fit` on images (N, 28, 28, 1) in memory. folder: of the IDX files."""
    spec = zoo.get(model)
    recipe = spec.recipe
    dataset = data.read_folder(Path(folder), "mnist")
    count = len(dataset.train_labels)
    count -= count % recipe.batch_size if recipe.drop_last else 0  # fit has no drop_last for arrays
    images = data.to_float(dataset.train_images[:count]).transpose(0, 2, 3, 1).copy()
    network = plain(spec)
    kind = getattr(keras.optimizers, type(recipe.optimizer).__name__)
    network.compile(
        optimizer=kind(learning_rate=recipe.optimizer.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=not isinstance(spec.layers[-1], Softmax)),
        metrics=["accuracy"],
    )
    network.fit(
        images,
        dataset.train_labels[:count],
        batch_size=recipe.batch_size,
        epochs=FOR_EVER,
        shuffle=recipe.shuffle,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: pace())],
    )


def plain(model: Model) -> keras.Sequential:
    """The layers of the printed program on (H, W, C), without its changes of layout."""
    names: dict[str, Any] = {"__name__": "net"}
    exec(programs.program(model, "keras"), names)
    changes = (keras.layers.InputLayer, keras.layers.Permute)
    layers = [layer for layer in names["build"]().layers if not isinstance(layer, changes)]
    channels, height, width = model.input_shape
    return keras.Sequential([keras.Input((height, width, channels)), *layers])
