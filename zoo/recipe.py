"""How a network is trained, as plain data, with every formula written out.

The frameworks disagree on what "Adam" means (where epsilon stands, how momentum is kept). Each
optimiser below is one written formula, the one of the documents' framework (PyTorch); every
backend follows it to the last rounding, and a test holds them to it for 200 steps in float64.
g is the gradient of the mean loss over the batch, w a weight, t counts steps from 1.
"""

from __future__ import annotations

import dataclasses
import math
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
class Schedule:
    """Abstract base of the learning-rate schedules."""

    def factor(self, step: int, steps: int) -> float:
        """What learning_rate is multiplied by in a step, counted from 1, of so many in all."""
        raise NotImplementedError


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """A linear warm-up, then half a cosine down to nothing (Loshchilov and Hutter, 2017, without restarts).

    Of T steps the first W = round(warmup * T) warm up. In step t the learning rate is multiplied by
    t / W                                           while t <= W, and after that by
    (1 + cos(pi * (t - W) / (T - W + 1))) / 2
    """

    warmup: float = 0.1

    def __post_init__(self) -> None:
        value = fields.real(self.warmup, "WarmupCosine.warmup")
        if not 0 <= value < 1:
            raise InvalidSpec(f"{value!r} is not in 0 <= warmup < 1", "WarmupCosine.warmup")
        object.__setattr__(self, "warmup", value)

    def factor(self, step: int, steps: int) -> float:
        warm = round(self.warmup * steps)
        if step <= warm:
            return step / warm
        return (1 + math.cos(math.pi * (min(step, steps) - warm) / (steps - warm + 1))) / 2


SCHEDULES: dict[str, type[Schedule]] = {s.__name__: s for s in (WarmupCosine,)}


@dataclass(frozen=True)
class Augmentation:
    """Abstract base of the augmentations; zoo.training.augmentation applies them."""


@dataclass(frozen=True)
class RandomAffine(Augmentation):
    """Every epoch every image is rotated, scaled, sheared and shifted anew, about its centre.

    Each number is the most, either way, of a uniform draw: degrees of rotation, shear in degrees along the
    x axis, translate in pixels along each axis; an image is scaled by a factor from 1 / (1 + scale) to
    1 + scale, uniform in its logarithm. What comes from outside the image is 0.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0

    def __post_init__(self) -> None:
        for name, below in (("degrees", 360.0), ("translate", 1000.0), ("scale", 10.0), ("shear", 89.0)):
            where = f"RandomAffine.{name}"
            value = fields.real(getattr(self, name), where)
            if not 0 <= value <= below:
                raise InvalidSpec(f"{value!r} is not in 0 <= {name} <= {below:g}", where)
            object.__setattr__(self, name, value)


AUGMENTATIONS: dict[str, type[Augmentation]] = {a.__name__: a for a in (RandomAffine,)}


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
    schedule: how the learning rate changes from step to step; None: it doesn't.
    augmentation: how the training images change from epoch to epoch; None: they don't.
    """

    optimizer: Optimizer
    batch_size: int
    epochs: int
    shuffle: bool = True
    drop_last: bool = False
    split: tuple[int, int] | None = None
    loss: str = "cross_entropy"
    digits_multiple: int = 1
    schedule: Schedule | None = None
    augmentation: Augmentation | None = None

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
        if self.schedule is not None and type(self.schedule) not in SCHEDULES.values():
            raise InvalidSpec(f"{self.schedule!r} is not a schedule", "recipe.schedule")
        if self.augmentation is not None and type(self.augmentation) not in AUGMENTATIONS.values():
            raise InvalidSpec(f"{self.augmentation!r} is not an augmentation", "recipe.augmentation")
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

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 1 over all epochs, of a training of so many steps."""
        rate = self.optimizer.learning_rate
        return rate * self.schedule.factor(step, steps) if self.schedule else rate


PARTS: dict[str, dict[str, type[Any]]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "augmentation": AUGMENTATIONS,
}
"""The fields of a recipe that are objects with a type, and the types by name."""


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data, every number included; without the parts that it hasn't got."""
    parts = {name: getattr(recipe, name) for name in PARTS}
    plain = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in PARTS}
    described = {
        name: {"type": type(part).__name__, **dataclasses.asdict(part)}
        for name, part in parts.items()
        if part
    }
    split = None if recipe.split is None else list(recipe.split)
    return {"optimizer": described.pop("optimizer"), **plain, "split": split, **described}
