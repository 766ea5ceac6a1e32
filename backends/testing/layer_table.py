"""The layer test table: one row per layer and setting, run through every lowering.

A new layer is tested by adding rows here: (name, layers, input shape, shape after the first
layer). A row whose output is an image is closed by Flatten, so that every row is a whole model
with labels; UNLABELLED holds models without, which may end in anything.
"""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

from zoo.layers import (
    ELU,
    GELU,
    LAYERS,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSigmoid,
    HardSwish,
    Layer,
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    ReLU6,
    Residual,
    Scale,
    Shape,
    Sigmoid,
    SiLU,
    Softmax,
    SpatialDropout,
    Tanh,
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
    ("conv dilated", (Conv2d(3, 3, dilation=2),), (2, 7, 8), (3, 3, 4)),
    (
        "conv dilated by axis, padded",
        (Conv2d(3, (2, 3), 1, (1, 0, 2, 1), dilation=(3, 2)),),
        (2, 5, 6),
        (3, 5, 3),
    ),
    ("conv dilated, stride", (Conv2d(2, 3, (2, 3), 2, dilation=2),), (3, 9, 10), (2, 5, 4)),
    ("conv in groups", (Conv2d(6, 3, groups=2),), (4, 6, 5), (6, 4, 3)),
    ("conv in groups, strided, dilated", (Conv2d(6, 3, 2, 1, False, 2, 3),), (6, 8, 9), (6, 3, 4)),
    ("conv depthwise", (Conv2d(3, 3, padding=1, groups=3),), (3, 6, 5), (3, 6, 5)),
    ("conv depthwise, several each", (Conv2d(6, (3, 2), (2, 1), groups=3),), (3, 7, 5), (6, 3, 4)),
    ("conv depthwise, dilated, stride", (Conv2d(4, 3, 2, 2, dilation=2, groups=2),), (2, 7, 7), (4, 4, 4)),
    ("batch norm", (Conv2d(3, 2), BatchNorm()), (2, 5, 4), (3, 4, 3)),
    ("batch norm, other numbers", (BatchNorm(1e-3, momentum=0.3), ReLU()), (3, 4, 5), (3, 4, 5)),
    ("batch norm of a vector", (Flatten(), BatchNorm(), Dense(3)), (2, 2, 3), (12,)),
    ("local response norm", (LocalResponseNorm(3, alpha=0.5, beta=0.75, k=2.0),), (5, 3, 4), (5, 3, 4)),
    ("local response norm, wide", (LocalResponseNorm(9),), (4, 3, 2), (4, 3, 2)),
    ("relu", (ReLU(),), (2, 3, 4), (2, 3, 4)),
    ("relu6", (Normalize((0.5, 0.1), (9.0, 12.0)), ReLU6()), (2, 6, 6), (2, 6, 6)),
    ("leaky relu", (LeakyReLU(0.2),), (2, 3, 4), (2, 3, 4)),
    ("elu", (ELU(0.7),), (2, 3, 4), (2, 3, 4)),
    ("sigmoid", (Sigmoid(),), (2, 3, 4), (2, 3, 4)),
    ("tanh", (Tanh(),), (2, 3, 4), (2, 3, 4)),
    ("gelu", (GELU(),), (2, 3, 4), (2, 3, 4)),
    ("gelu by tanh", (GELU("tanh"),), (2, 3, 4), (2, 3, 4)),
    ("silu", (SiLU(),), (2, 3, 4), (2, 3, 4)),
    ("hard sigmoid", (Normalize((0.5,), (10.0,)), HardSigmoid()), (1, 6, 6), (1, 6, 6)),
    ("hard swish", (Normalize((0.5,), (10.0,)), HardSwish()), (1, 6, 6), (1, 6, 6)),
    ("max pool", (MaxPool2d(2),), (2, 7, 6), (2, 3, 3)),
    ("max pool overlapping", (MaxPool2d(3, 2),), (2, 8, 7), (2, 3, 3)),
    ("max pool rectangular", (MaxPool2d((1, 3), (2, 1)),), (2, 5, 5), (2, 3, 3)),
    ("avg pool", (AvgPool2d(2),), (2, 6, 7), (2, 3, 3)),
    ("avg pool overlapping", (AvgPool2d(3, 1),), (2, 5, 6), (2, 3, 4)),
    ("max pool padded", (MaxPool2d(3, 2, 1),), (2, 7, 6), (2, 4, 3)),
    ("max pool padded on four sides", (MaxPool2d(4, 1, (0, 1, 2, 3)),), (2, 5, 5), (2, 4, 6)),
    ("max pool, ceil", (MaxPool2d(3, 2, ceil=True),), (2, 6, 9), (2, 3, 4)),
    ("max pool padded, ceil", (MaxPool2d((2, 3), (3, 2), 1, True),), (2, 5, 8), (2, 2, 5)),
    ("avg pool padded", (AvgPool2d(3, 2, 1),), (2, 7, 6), (2, 4, 3)),
    ("avg pool padded, counted", (AvgPool2d(3, 2, 1, count_padding=True),), (2, 7, 6), (2, 4, 3)),
    ("avg pool padded on four sides", (AvgPool2d(4, 1, (0, 1, 2, 3)),), (2, 5, 5), (2, 4, 6)),
    (
        "avg pool padded on four sides, counted",
        (AvgPool2d(4, 2, (0, 1, 2, 3), False, True),),
        (2, 5, 5),
        (2, 2, 3),
    ),
    ("avg pool, ceil", (AvgPool2d(3, 2, ceil=True),), (2, 6, 9), (2, 3, 4)),
    ("avg pool padded, ceil, counted", (AvgPool2d((2, 3), (3, 2), 1, True, True),), (2, 5, 8), (2, 2, 5)),
    ("adaptive avg pool", (AdaptiveAvgPool2d((2, 3)),), (2, 6, 9), (2, 2, 3)),
    ("adaptive avg pool, overlapping cells", (AdaptiveAvgPool2d(3),), (2, 5, 7), (2, 3, 3)),
    ("adaptive avg pool, repeated cells", (AdaptiveAvgPool2d((5, 4)),), (2, 3, 2), (2, 5, 4)),
    ("global avg pool", (GlobalAvgPool2d(),), (3, 5, 4), (3, 1, 1)),
    ("dropout", (Dropout(0.4),), (2, 3, 3), (2, 3, 3)),
    ("spatial dropout", (SpatialDropout(0.4),), (4, 3, 3), (4, 3, 3)),
    ("flatten", (Flatten(),), (2, 3, 4), (24,)),
    ("flatten, dense", (Flatten(), Dense(5)), (2, 3, 4), (24,)),
    ("dense without bias", (Flatten(), Dense(4, bias=False)), (3, 2, 2), (12,)),
    ("relu of a vector", (Flatten(), ReLU()), (2, 2, 3), (12,)),
    ("dropout of a vector", (Flatten(), Dropout(0.3), Dense(3)), (2, 2, 3), (12,)),
    ("softmax", (Flatten(), Softmax()), (1, 2, 5), (10,)),
    ("residual", (Residual((Conv2d(3, 3, padding=1), ReLU())), ReLU()), (3, 5, 4), (3, 5, 4)),
    (
        "residual with a shortcut",
        (Residual((Conv2d(4, 3, 2, 1), BatchNorm(), ReLU(), Conv2d(4, 1)), (Conv2d(4, 1, 2),)),),
        (2, 6, 7),
        (4, 3, 4),
    ),
    (
        "residual in a residual, dropout",
        (Residual((ReLU(), Residual((Conv2d(2, 3, padding=1), Dropout(0.3))), Conv2d(2, 1))),),
        (2, 4, 5),
        (2, 4, 5),
    ),
    ("residual of a vector", (Flatten(), Residual((Dense(12), Tanh()))), (2, 2, 3), (12,)),
    (
        "concat",
        (Concat(((Conv2d(2, 1),), (Conv2d(3, 3, padding=1), ReLU()), (MaxPool2d(3, 1, 1), Conv2d(1, 1)))),),
        (3, 5, 4),
        (6, 5, 4),
    ),
    (
        "concat with the input",
        (Concat(((), (BatchNorm(), ReLU(), Conv2d(2, 3, padding=1)))),),
        (3, 4, 4),
        (5, 4, 4),
    ),
    ("concat of vectors", (Flatten(), Concat(((Dense(3),), (), (Dense(2), Sigmoid())))), (1, 2, 3), (6,)),
    (
        "scale of channels",
        (Scale((GlobalAvgPool2d(), Conv2d(2, 1), ReLU(), Conv2d(4, 1), HardSigmoid())),),
        (4, 5, 3),
        (4, 5, 3),
    ),
    ("scale of positions", (Scale((Conv2d(1, 3, padding=1), Sigmoid())), MaxPool2d(2)), (3, 6, 6), (3, 6, 6)),
    ("scale of elements", (Scale((Conv2d(2, 1), Sigmoid())), Conv2d(1, 2)), (2, 3, 3), (2, 3, 3)),
    ("scale of a vector", (Flatten(), Scale((Dense(6), Softmax()))), (1, 2, 3), (6,)),
    (
        "joins with names of their own",
        (
            Residual((Conv2d(2, 1, name="train"), ReLU()), name="half"),
            Concat(((), (Conv2d(1, 2, padding=(0, 0, 1, 1), name="input"),)), name="forward"),
        ),
        (2, 4, 4),
        (2, 4, 4),
    ),
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
    (
        "joined image without labels",
        (Concat(((Conv2d(2, 3, 2),), (AvgPool2d(3, 2),))), Residual((ReLU(),))),
        (2, 7, 8),
    ),
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


def unlabelled() -> list[Any]:
    """The models without labels as pytest parameters."""
    return [
        pytest.param(Model("row", shape, layers, RECIPE, labels=()), id=name)
        for name, layers, shape in UNLABELLED
    ]


def rows() -> list[Any]:
    """The whole table as pytest parameters."""
    table = [pytest.param(model_of(layers, shape), id=name) for name, layers, shape, _ in ROWS]
    return table + unlabelled()


def missing() -> set[str]:
    """Layers of the language without a row."""
    return set(LAYERS) - {
        type(node.layer).__name__ for _, layers, shape, _ in ROWS for node in model_of(layers, shape).walk()
    }
