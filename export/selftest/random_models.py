"""Random valid models, with weights and images: what property tests and long searches run on.

Every decision is asked of a `Chooser`, so that the same code serves a seed and a property testing
library. The first option and the lowest number are always the simplest, so that whoever shrinks the
choices of a failing model ends at a small one; all of them lowest give a single Flatten.

Nothing is generated and thrown away: each rule below chooses among what fits the shape before it.
A layer of the language without a rule never occurs, which a test finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Protocol, TypeVar

import numpy as np

from zoo.fields import Pair, Sides
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
    Join,
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
    through,
)
from zoo.model import Model, iter_weights
from zoo.randomness import raw_bits, uniform
from zoo.recipe import SGD, Adam, RandomAffine, Recipe, RMSprop, WarmupCosine
from zoo.weights import Weights, init_weights

T = TypeVar("T")

MOST_LAYERS = 6  # before a closing Flatten and a Softmax; a branch that comes last may be longer
MOST_IN_BRANCH = 2
LARGEST_SIDE = 14  # of the input
SCALES = (1.0, 0.3, 0.01, 3.0, 30.0)
LARGE_BIAS = 100.0
NAMES = (("edges", "train", "input"), ("Output", "forward", "0"))  # frameworks use some of them
RECIPES = (
    Recipe(SGD(0.1), batch_size=1, epochs=1),
    Recipe(SGD(0.05, momentum=0.9, nesterov=True), batch_size=7, epochs=2, shuffle=False),
    Recipe(Adam(1e-3, beta1=0.8, epsilon=1e-7), batch_size=64, epochs=3, drop_last=True),
    Recipe(RMSprop(1e-2), batch_size=128, epochs=0, split=(5, 1), digits_multiple=4),
    Recipe(SGD(0.1), batch_size=32, epochs=2, schedule=WarmupCosine(), augmentation=RandomAffine(degrees=10)),
)


class Chooser(Protocol):
    """Whoever decides. Both methods give the simplest first: `low`, and options[0]."""

    def integer(self, low: int, high: int) -> int:
        """A number from low to high, both included."""

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""


class Seeded:
    """A chooser that is a pure function of its seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._bits: list[int] = []
        self._blocks = 0

    def integer(self, low: int, high: int) -> int:
        """A number from low to high, both included, each as likely."""
        if not self._bits:
            self._bits = raw_bits(self.seed, f"specs/{self._blocks}", 256).tolist()
            self._blocks += 1
        return low + self._bits.pop() % (high - low + 1)

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        return options[self.integer(0, len(options) - 1)]


@dataclass(frozen=True, eq=False)
class Case:
    """A model, weights and images on which everything that computes the model has to agree.

    seed: of the images, where none are given. native: whether the frameworks' own exports, which take
    seconds, belong to it. given: float32 (N, C, H, W).
    """

    model: Model
    weights: Weights = field(repr=False)
    seed: int = 0
    native: bool = False
    given: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def images(self) -> np.ndarray:
        """Those that are given; otherwise see the function `images`."""
        return images(self.model, self.seed) if self.given is None else self.given


def random_case(choose: Chooser) -> Case:
    """A random model with weights and images; one in four with native exports."""
    model = random_model(choose)
    weights = random_weights(model, choose)
    return Case(model, weights, seed=choose.integer(0, 99), native=_rarely(choose))


def random_model(choose: Chooser) -> Model:
    """A small valid model over the whole layer language, with labels or without."""
    shape: Shape = tuple(choose.integer(1, most) for most in (4, LARGEST_SIDE, LARGEST_SIDE))
    labelled = choose.choice((True, True, False))
    recipe = choose.choice(RECIPES)
    input_shape, layers = shape, list[Layer]()
    while len(layers) < MOST_LAYERS:
        rule = choose.choice(_IMAGE if len(shape) == 3 else _VECTOR)
        if rule is None:
            break
        given = _given(choose, rule, shape)
        layers, shape = [*layers, *given], through(given, shape)
    if not layers or (labelled and len(shape) == 3):
        layers.append(Flatten())
        shape = layers[-1].output_shape(shape)
    if len(shape) == 1 and choose.choice((False, True)):
        layers.append(Softmax())
    labels = tuple(str(i) for i in range(prod(shape))) if labelled else ()
    return Model("random", input_shape, _named(layers, choose), recipe, labels=labels)


def random_weights(model: Model, choose: Chooser) -> Weights:
    """Initial weights, larger or smaller: all of them alike or each tensor by itself.

    Sometimes nothing is negative, so that sums are coherent, and sometimes the biases dominate.
    """
    weights = lively(model, choose.integer(0, 99))
    common = choose.choice(SCALES)
    apart, coherent, biased = (_rarely(choose) for _ in range(3))
    for name, array in weights.items():
        scale = choose.choice(SCALES) if apart else common
        if biased and name.endswith(".bias"):
            scale *= LARGE_BIAS
        positive = coherent or name.endswith(".running_var")
        weights[name] = np.float32(scale) * (np.abs(array) if positive else array)
    return weights


def lively(model: Model, seed: int) -> Weights:
    """Initial weights, those disturbed that start all alike: otherwise all channels would be."""
    weights = init_weights(model, seed)
    for name, weight in iter_weights(model):
        if weight.start is not None:
            weights[name] += np.float32(0.8) * (2 * uniform(seed, name, weight.shape[0]) - 1).astype(
                np.float32
            )
    return weights


def images(model: Model, seed: int) -> np.ndarray:
    """Two images of noise, two of few pixels, two ramps: float32 (6, C, H, W) in [0, 1]."""
    size = prod(model.input_shape)
    noise = uniform(seed, "specs/images", 4 * size).reshape(4, size)
    noise[2:] *= uniform(seed, "specs/pixels", 2 * size).reshape(2, size) < 0.15
    ramp = np.arange(size) / size
    made = np.concatenate([noise, ramp[None], np.sqrt(ramp)[None, ::-1]])
    return made.astype(np.float32).reshape(-1, *model.input_shape)


def _rarely(choose: Chooser) -> bool:
    return choose.integer(0, 3) == 3


def _named(layers: list[Layer], choose: Chooser) -> tuple[Layer, ...]:
    """The layers, up to two of them with names of their own."""
    for names in NAMES:
        if _rarely(choose):
            index = choose.integer(0, len(layers) - 1)
            layers[index] = replace(layers[index], name=choose.choice(names))
    return tuple(layers)


def _given(choose: Chooser, rule: _Rule, shape: Shape) -> tuple[Layer, ...]:
    """The layer that a rule gives; instead of a join sometimes its longest branch, which is simpler."""
    layer = rule(choose, shape)
    if isinstance(layer, Join) and choose.choice((True, False, False)):
        return max(layer.chains().values(), key=len)
    return (layer,)


# One rule per layer, in the order of zoo/layers.py.


def _normalize(choose: Chooser, shape: Shape) -> Layer:
    mean = tuple(choose.choice((0.0, 0.5, 0.1307, -0.25)) for _ in range(shape[0]))
    scale = tuple(choose.choice((1.0, 2.0, 3.2456, 0.25, -1.5)) for _ in range(shape[0]))
    return Normalize(mean, scale)


def _conv2d(choose: Chooser, shape: Shape) -> Layer:
    top, left, bottom, right = (choose.integer(0, 3) for _ in range(4))
    groups = choose.choice([n for n in range(1, shape[0] + 1) if shape[0] % n == 0])
    return Conv2d(
        groups * choose.integer(1, 6 if groups == 1 else 2),
        kernel := (
            _side(choose, 6, shape[1] + top + bottom),
            _side(choose, 6, shape[2] + left + right),
        ),
        (choose.integer(1, 3), choose.integer(1, 3)),
        (top, left, bottom, right),
        choose.choice((False, True, True)),
        (
            _dilation(choose, kernel[0], shape[1] + top + bottom),
            _dilation(choose, kernel[1], shape[2] + left + right),
        ),
        groups,
    )


def _dilation(choose: Chooser, kernel: int, room: int) -> int:
    """1 for most; a kernel of one row has no gaps, whatever its dilation."""
    most = 3 if kernel == 1 else min(3, (room - 1) // (kernel - 1))
    return choose.integer(1, most) if _rarely(choose) else 1


def _batch_norm(choose: Chooser, shape: Shape) -> Layer:
    return BatchNorm(choose.choice((1e-5, 1e-3)), choose.choice((0.1, 0.01, 1.0)))


def _local_response_norm(choose: Chooser, shape: Shape) -> Layer:
    return LocalResponseNorm(
        choose.choice((1, 3, 5)),
        choose.choice((1e-4, 1.0)),
        choose.choice((0.75, 0.5, 1.0)),
        choose.choice((1.0, 2.0)),
    )


def _relu(choose: Chooser, shape: Shape) -> Layer:
    return ReLU()


def _activation(choose: Chooser, shape: Shape) -> Layer:
    return choose.choice(
        (
            ReLU(),
            ReLU6(),
            LeakyReLU(choose.choice((0.01, 0.3))),
            ELU(choose.choice((1.0, 0.5))),
            Sigmoid(),
            Tanh(),
            GELU(choose.choice(("none", "tanh"))),
            SiLU(),
            HardSigmoid(),
            HardSwish(),
        )
    )


def _max_pool2d(choose: Chooser, shape: Shape) -> Layer:
    return MaxPool2d(*_windows(choose, shape))


def _avg_pool2d(choose: Chooser, shape: Shape) -> Layer:
    return AvgPool2d(*_windows(choose, shape), choose.choice((False, True)))


def _adaptive_avg_pool2d(choose: Chooser, shape: Shape) -> Layer:
    return AdaptiveAvgPool2d((choose.integer(1, 5), choose.integer(1, 5)))


def _global_avg_pool2d(choose: Chooser, shape: Shape) -> Layer:
    return GlobalAvgPool2d()


def _dropout(choose: Chooser, shape: Shape) -> Layer:
    return Dropout(choose.choice((0.5, 0.0, 0.25, 0.99)))


def _spatial_dropout(choose: Chooser, shape: Shape) -> Layer:
    return SpatialDropout(choose.choice((0.5, 0.0, 0.25)))


def _flatten(choose: Chooser, shape: Shape) -> Layer:
    return Flatten()


def _dense(choose: Chooser, shape: Shape) -> Layer:
    return Dense(choose.integer(1, 12), bias=choose.choice((False, True, True)))


def _residual(choose: Chooser, shape: Shape) -> Layer:
    """A body that keeps the shape; or any, with a shortcut that is brought to its shape."""
    if choose.choice((True, False)):
        return Residual(tuple(_keeping(choose, shape) for _ in range(choose.integer(1, MOST_IN_BRANCH))))
    body = _branch(choose, shape, least=1)
    return Residual(body, _towards(choose, shape, through(body, shape)))


def _concat(choose: Chooser, shape: Shape) -> Layer:
    first = _branch(choose, shape)
    goal = through(first, shape)
    others = []
    for _ in range(choose.integer(1, 2)):
        channels = (choose.integer(1, 4), *goal[1:])
        others.append(_towards(choose, shape, channels))
    return Concat((first, *others))


def _scale(choose: Chooser, shape: Shape) -> Layer:
    if len(shape) == 1 or choose.choice((False, True)):
        return Scale(tuple(_keeping(choose, shape) for _ in range(choose.integer(1, MOST_IN_BRANCH))))
    hidden = Conv2d(choose.integer(1, 4), 1)
    return Scale((GlobalAvgPool2d(), hidden, _activation(choose, shape), Conv2d(shape[0], 1), Sigmoid()))


def _keeping(choose: Chooser, shape: Shape) -> Layer:
    """A layer that gives the shape that it takes."""
    if choose.choice((False, True)):
        return _activation(choose, shape)
    if len(shape) == 1:
        return Dense(shape[0], bias=choose.choice((False, True)))
    layer = Conv2d(shape[0], choose.choice((1, 2, 3)), bias=choose.choice((False, True)))
    return replace(layer, padding=layer.same(shape))


def _towards(choose: Chooser, shape: Shape, goal: Shape) -> tuple[Layer, ...]:
    """Layers from one shape to another of as many axes, or from an image to a vector."""
    if len(goal) == 1:
        return (*((Flatten(),) if len(shape) == 3 else ()), Dense(goal[0]))
    sized: tuple[Layer, ...] = () if shape[1:] == goal[1:] else (AdaptiveAvgPool2d((goal[1], goal[2])),)
    return (*sized, Conv2d(goal[0], 1, bias=choose.choice((False, True))))


def _branch(choose: Chooser, shape: Shape, least: int = 0) -> tuple[Layer, ...]:
    layers = list[Layer]()
    for _ in range(choose.integer(least, MOST_IN_BRANCH)):
        rules = [rule for rule in (_IMAGE if len(shape) == 3 else _VECTOR) if rule is not None]
        given = _given(choose, choose.choice(rules), shape)
        layers, shape = [*layers, *given], through(given, shape)
    return tuple(layers)


def _side(choose: Chooser, most: int, room: int) -> int:
    return choose.integer(1, min(most, room))


def _windows(choose: Chooser, shape: Shape) -> tuple[Pair, Pair, Sides, bool]:
    """Size, stride, padding and ceil of a pool; windows may overlap or leave gaps."""
    size = (_side(choose, 4, shape[1]), _side(choose, 4, shape[2]))
    stride = (choose.integer(1, 4), choose.integer(1, 4))
    sides = (0, 0, 0, 0)
    if _rarely(choose):
        top, left, bottom, right = (choose.integer(0, size[axis] - 1) for axis in (0, 1, 0, 1))
        sides = (top, left, bottom, right)
    return size, stride, sides, choose.choice((False, True))


# What may come next, the simplest first; None ends the model. A Softmax comes last or not at all.
_Rule = Callable[[Chooser, Shape], Layer]
_IMAGE: tuple[_Rule | None, ...] = (
    None,
    _flatten,
    _relu,
    _dropout,
    _activation,
    _max_pool2d,
    _avg_pool2d,
    _global_avg_pool2d,
    _adaptive_avg_pool2d,
    _spatial_dropout,
    _batch_norm,
    _local_response_norm,
    _normalize,
    _residual,
    _concat,
    _scale,
    _conv2d,
    _conv2d,
    _conv2d,
    _conv2d,
)
_VECTOR: tuple[_Rule | None, ...] = (
    None,
    _relu,
    _dropout,
    _activation,
    _batch_norm,
    _residual,
    _concat,
    _scale,
    _dense,
    _dense,
    _dense,
)
