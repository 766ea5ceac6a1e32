"""The layer test table: one row per layer and setting, run through every lowering.

A new layer is tested by adding rows here: (name, layers, input shape, shape after the first
layer). A row whose output is an image is closed by Flatten, so that every row is a whole model
with labels; UNLABELLED holds models without, which may end in anything.
"""

from __future__ import annotations

from math import prod

import pytest

from zoo.layers import (
    LAYERS,
    AvgPool2d,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    Normalize,
    ReLU,
    Shape,
    Softmax,
)
from zoo.model import Model
from zoo.recipe import SGD, Recipe

RECIPE = Recipe(SGD(0.1), batch_size=4, epochs=1)
Row = tuple[str, tuple[Layer, ...], Shape, Shape]

ROWS: list[Row] = [
    ("normalize", (Normalize((0.5, 0.1, 0.0), (2.0, 3.0, 0.7)),), (3, 5, 4), (3, 5, 4)),
    ("conv", (Conv2d(4, 3),), (2, 7, 6), (4, 5, 4)),
    ("conv rectangular kernel", (Conv2d(3, (1, 4)),), (2, 5, 6), (3, 5, 3)),
    ("conv without bias", (Conv2d(3, 2, bias=False),), (2, 4, 5), (3, 3, 4)),
    ("conv padded", (Conv2d(3, 5, padding=2),), (1, 6, 7), (3, 6, 7)),
    ("conv padded on four sides", (Conv2d(3, 3, padding=(0, 1, 2, 3)),), (2, 5, 5), (3, 5, 7)),
    ("conv stride", (Conv2d(3, 3, stride=2),), (2, 8, 7), (3, 3, 3)),
    ("conv stride by axis, padded", (Conv2d(3, 3, (3, 1), (2, 0, 1, 1)),), (2, 7, 5), (3, 3, 4)),
    ("conv 1x1", (Conv2d(5, 1),), (3, 4, 4), (5, 4, 4)),
    # One column of one channel, with a stride that has no meaning (Conv2d.placement): oneDNN gets it
    # wrong in channels-last, which PyTorch uses where a model pools.
    (
        "conv to a column, padded",
        (Conv2d(6, (3, 2), (1, 2), (3, 0, 2, 1)), MaxPool2d(1)),
        (1, 6, 2),
        (6, 9, 1),
    ),
    ("conv to a column, cropped", (Conv2d(3, 3, (1, 4)), MaxPool2d(1)), (1, 6, 5), (3, 4, 1)),
    (
        "conv to a column, padded and cropped",
        (Conv2d(2, 3, (1, 5), (2, 0, 2, 2)), AvgPool2d(1)),
        (1, 5, 3),
        (2, 7, 1),
    ),
    # A window in nothing but padding (Conv2d.placement): this one ended TensorFlow's process.
    ("conv padded by its kernel", (Conv2d(2, (4, 1), 3, (0, 0, 2, 1)),), (4, 4, 6), (2, 1, 3)),
    ("relu", (ReLU(),), (2, 3, 4), (2, 3, 4)),
    ("max pool", (MaxPool2d(2),), (2, 7, 6), (2, 3, 3)),
    ("max pool overlapping", (MaxPool2d(3, 2),), (2, 8, 7), (2, 3, 3)),
    ("max pool rectangular", (MaxPool2d((1, 3), (2, 1)),), (2, 5, 5), (2, 3, 3)),
    ("avg pool", (AvgPool2d(2),), (2, 6, 7), (2, 3, 3)),
    ("avg pool overlapping", (AvgPool2d(3, 1),), (2, 5, 6), (2, 3, 4)),
    ("dropout", (Dropout(0.4),), (2, 3, 3), (2, 3, 3)),
    ("flatten", (Flatten(),), (2, 3, 4), (24,)),
    ("flatten, dense", (Flatten(), Dense(5)), (2, 3, 4), (24,)),
    ("dense without bias", (Flatten(), Dense(4, bias=False)), (3, 2, 2), (12,)),
    ("relu of a vector", (Flatten(), ReLU()), (2, 2, 3), (12,)),
    ("dropout of a vector", (Flatten(), Dropout(0.3), Dense(3)), (2, 2, 3), (12,)),
    ("softmax", (Flatten(), Softmax()), (1, 2, 5), (10,)),
    ("layers with names of their own", (Conv2d(2, 2, name="edges"), ReLU(name="on")), (1, 4, 4), (2, 3, 3)),
    (
        "layers with names that frameworks use",
        (
            Conv2d(2, 2, name="train"),
            ReLU(name="to_nhwc"),
            Flatten(name="forward"),
            Dense(3, name="training"),
        ),
        (1, 4, 4),
        (2, 3, 3),
    ),
]

UNLABELLED: list[tuple[str, tuple[Layer, ...], Shape]] = [
    ("image without labels", (Conv2d(3, (3, 2), 2, (1, 0, 2, 1)), ReLU(), MaxPool2d(2, 1)), (2, 7, 8)),
    ("vector without labels", (Conv2d(2, 3), Flatten(), Dense(3)), (1, 4, 5)),
]


def model_of(layers: tuple[Layer, ...], input_shape: Shape, recipe: Recipe | None = None) -> Model:
    """A whole model of some layers: closed by Flatten if they give an image."""
    shape = input_shape
    for layer in layers:
        shape = layer.output_shape(shape)
    if len(shape) == 3:
        layers = (*layers, Flatten())
    labels = tuple(str(i) for i in range(prod(shape)))
    return Model("row", input_shape, layers, recipe or RECIPE, labels=labels)


def unlabelled() -> list[pytest.param]:  # type: ignore[valid-type]
    """The models without labels as pytest parameters."""
    return [
        pytest.param(Model("row", shape, layers, RECIPE, labels=()), id=name)
        for name, layers, shape in UNLABELLED
    ]


def rows() -> list[pytest.param]:  # type: ignore[valid-type]
    """The whole table as pytest parameters."""
    table = [pytest.param(model_of(layers, shape), id=name) for name, layers, shape, _ in ROWS]
    return table + unlabelled()


def missing() -> set[str]:
    """Layers of the language without a row."""
    return set(LAYERS) - {type(layer).__name__ for _, layers, _, _ in ROWS for layer in layers}
