"""How a network is trained, as plain data, with every formula written out.

The frameworks disagree on what "Adam" means (where epsilon stands, how momentum is kept). Each
optimiser below is one written formula, the one of the documents' framework (PyTorch); every
backend follows it to the last rounding, and a test holds them to it for 200 steps in float64.
g is the gradient of the mean loss over the batch, w a weight, t counts steps from 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from zoo import fields
from zoo.errors import InvalidSpec


@dataclass(frozen=True)
class Optimizer:
    """Abstract base of the optimisers."""

    ranges: ClassVar[dict[str, tuple[float, float]]] = {}  # field -> lowest, below which value
    learning_rate: float

    def __post_init__(self) -> None:
        for name, (low, high) in {"learning_rate": (0.0, float("inf")), **self.ranges}.items():
            where = f"{type(self).__name__}.{name}"
            value = fields.real(getattr(self, name), where)
            if not low <= value < high:
                raise InvalidSpec(f"{value!r} is not in {low:g} <= {name} < {high:g}", where)
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, optionally with (Nesterov) momentum.

    v = momentum * v + g                          (v starts at 0)
    w = w - learning_rate * v                     or, with nesterov,
    w = w - learning_rate * (g + momentum * v)
    """

    ranges: ClassVar[dict[str, tuple[float, float]]] = {"momentum": (0.0, 1.0)}
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if fields.flag(self.nesterov, "SGD.nesterov") and not self.momentum:
            raise InvalidSpec("nesterov needs a momentum above 0", "SGD.nesterov")


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), epsilon outside the bias correction, as in PyTorch.

    m = beta1 * m + (1 - beta1) * g               (m and v start at 0)
    v = beta2 * v + (1 - beta2) * g^2
    w = w - learning_rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
    """

    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "beta1": (0.0, 1.0),
        "beta2": (0.0, 1.0),
        "epsilon": (0.0, 1.0),
    }
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop, epsilon outside the root, as in PyTorch.

    s = alpha * s + (1 - alpha) * g^2             (s starts at 0)
    w = w - learning_rate * g / (sqrt(s) + epsilon)
    """

    ranges: ClassVar[dict[str, tuple[float, float]]] = {"alpha": (0.0, 1.0), "epsilon": (0.0, 1.0)}
    alpha: float = 0.99
    epsilon: float = 1e-8


OPTIMIZERS: dict[str, type[Optimizer]] = {o.__name__: o for o in (SGD, Adam, RMSprop)}


@dataclass(frozen=True)
class Recipe:
    """One training run.

    loss: "cross_entropy" is the mean over the batch of -log_softmax(output)[label], whatever the
        model's output is. A model that ends in Softmax is therefore trained through two of them.
    shuffle: a new order every epoch; otherwise the order of the data set.
    drop_last: leave out an incomplete last batch.
    split: (training, validation) images as documented; another data set is split in the same
        proportion. None: all training images train, nothing validates.
    digits_multiple: on the embedded `digits`, forty times smaller than MNIST, train this many
        times as many epochs.
    """

    optimizer: Optimizer
    batch_size: int
    epochs: int
    shuffle: bool = True
    drop_last: bool = False
    split: tuple[int, int] | None = None
    loss: str = "cross_entropy"
    digits_multiple: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, Optimizer):
            raise InvalidSpec(f"{self.optimizer!r} is not an optimizer", "recipe.optimizer")
        fields.count(self.batch_size, "recipe.batch_size")
        fields.count(self.epochs, "recipe.epochs", least=0)
        fields.flag(self.shuffle, "recipe.shuffle")
        fields.flag(self.drop_last, "recipe.drop_last")
        fields.count(self.digits_multiple, "recipe.digits_multiple")
        if self.loss != "cross_entropy":
            raise InvalidSpec(f"unknown loss {self.loss!r}", "recipe.loss", "known: cross_entropy")
        if self.split is not None:
            if not isinstance(self.split, (tuple, list)) or len(self.split) != 2:
                raise InvalidSpec(f"{self.split!r} is not (training, validation)", "recipe.split")
            train, validation = (fields.count(part, "recipe.split") for part in self.split)
            object.__setattr__(self, "split", (train, validation))

    def epochs_on(self, data_name: str) -> int:
        """The documented number of epochs, or its multiple on the embedded `digits`."""
        return self.epochs * (self.digits_multiple if data_name == "digits" else 1)

    def validation_size(self, images: int) -> int:
        """How many of `images` training images are held out for validation."""
        return 0 if self.split is None else round(images * self.split[1] / sum(self.split))

    def steps(self, images: int) -> int:
        """Optimiser steps in one epoch over `images` training images."""
        return images // self.batch_size if self.drop_last else -(-images // self.batch_size)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data, every number included."""
    optimizer = {"type": type(recipe.optimizer).__name__, **dataclasses.asdict(recipe.optimizer)}
    split = None if recipe.split is None else list(recipe.split)
    return {**dataclasses.asdict(recipe), "optimizer": optimizer, "split": split}
