"""A small model with every kind of layer that can be wrong: what the documented five have none of is here."""

from __future__ import annotations

import numpy as np

from export.selftest import random_models
from zoo.layers import (
    ELU,
    GELU,
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
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    ReLU6,
    Residual,
    Scale,
    Sigmoid,
    SiLU,
    Softmax,
    SpatialDropout,
    Tanh,
)
from zoo.model import Model
from zoo.weights import Weights

EXEMPLAR = Model(
    "every-layer",
    (3, 13, 11),
    (
        Normalize((0.4, 0.5, 0.6), (4.0, 3.0, 5.0)),
        Conv2d(8, 3, padding=1, bias=False),
        BatchNorm(1e-4),
        LeakyReLU(0.1),
        Residual((ReLU(), Conv2d(8, 3, padding=1), Tanh())),  # its ReLU must not write over the shortcut
        MaxPool2d(3, 2, 1),  # 8 x 7 x 6
        Concat(
            (
                (Conv2d(4, 1), GELU()),
                (Conv2d(4, 3, padding=2, dilation=2), ELU()),
                (AvgPool2d(3, 1, 1), Conv2d(4, 1)),
            )
        ),
        LocalResponseNorm(3, alpha=1.0),
        Scale((GlobalAvgPool2d(), Conv2d(6, 1), ReLU(), Conv2d(12, 1), Sigmoid())),
        Conv2d(12, 3, padding=1, groups=3),
        Scale((Conv2d(1, 1), HardSigmoid())),
        ReLU6(),
        SiLU(),
        SpatialDropout(0.2),
        Conv2d(10, 3),  # 10 x 5 x 4
        HardSwish(),
        AdaptiveAvgPool2d((3, 2)),
        Flatten(),
        Dense(16),
        Dropout(0.5),
        Dense(10),
        Softmax(),
    ),
    random_models.RECIPES[0],
)
GAIN = 2.0  # with initial weights alone, activations fade from layer to layer
GAINS = {
    "conv2": 64.0,
    "scale1.branch.conv2": 16.0,
}  # ReLU6 clips, and a gate is nearly shut or open


def exemplar() -> tuple[Model, Weights]:
    """The model, and weights that no layer is indifferent to."""
    weights = random_models.lively(EXEMPLAR, seed=3)
    for name, array in weights.items():
        if not name.endswith("running_var"):
            array *= np.float32(GAINS.get(name.rpartition(".")[0], GAIN))
    return EXEMPLAR, weights
