"""The pictures of a run: how training went, what the kernels became, what is mistaken for what.

They are made once, when the run is built, and published with it: the model card and `zoo report`
show them without the data set.
"""

from __future__ import annotations

import numpy as np

from export.plots import (
    confusion,
    confusion_figure,
    history_figure,
    kernels_figure,
    mistakes,
    mistakes_figure,
    probabilities,
    to_png,
)
from export.runs.card import CONFUSION, CURVES, KERNELS, MISTAKES
from zoo import weights
from zoo.data import Split, to_float
from zoo.layers import Conv2d
from zoo.model import Model
from zoo.training.loop import Trained

MOST_MISTAKES = 10


def pictures(
    model: Model, trained: Trained, split: Split, outputs: np.ndarray, seed: int
) -> dict[str, bytes]:
    """PNG files by name, for a card and a report: those of `card.CAPTIONS` that the run has
    something for.

    outputs: the published file's, (N, classes) for the test images. seed: of the initial weights.
    """
    figures = {}
    if trained.epochs:
        figures[CURVES] = history_figure(trained.history, trained.epochs, title="")
    first = next((node.path for node in model.walk() if isinstance(node.layer, Conv2d)), None)
    if first:
        name = f"{first}.weight"
        before = weights.init_weights(model, seed)[name]
        figures[KERNELS] = kernels_figure(trained.weights[name][:, 0], before[:, 0], title="")
    probability = probabilities(outputs, model.output)
    guesses = probability.argmax(axis=1)
    figures[CONFUSION] = confusion_figure(
        confusion(guesses, split.test_labels, len(model.labels)), model.labels, title=""
    )
    worst = mistakes(probability, split.test_labels, worst=True)[:MOST_MISTAKES]
    truths = split.test_labels[worst]
    figures[MISTAKES] = mistakes_figure(
        to_float(split.test_images[worst]),
        [int(number) for number in worst],
        [model.labels[truth] for truth in truths],
        [model.labels[guess] for guess in guesses[worst]],
        probability[worst, truths].tolist(),
        probability[worst, guesses[worst]].tolist(),
        title="",
    )
    return {name: to_png(figure) for name, figure in figures.items()}
