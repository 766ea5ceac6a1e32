"""Honest cases that are hard to judge: where rounding is as large as it may be, or sums have nothing left.

What float32 may differ is usually far below any bound, because rounding errors have signs of their own and
cancel. Here they do not: equal terms round in one direction, a gate is almost closed, a channel is dead, a
variance is tiny, weights reach from denormal numbers to 1e8. A structure says which layers there are, a
treatment what each layer's weights are like; every structure meets every treatment.

Each case is a pure function of its chooser, that is of its seed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import numpy as np

from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.crosscheck import probes
from export.selftest import random_models
from export.selftest.random_models import Case, Chooser
from zoo.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Flatten,
    GlobalAvgPool2d,
    HardSigmoid,
    HardSwish,
    Layer,
    MaxPool2d,
    Normalize,
    ReLU,
    Residual,
    Scale,
    Shape,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
    through,
)
from zoo.model import IMAGE, Model, Node
from zoo.randomness import uniform
from zoo.weights import Weights, init_weights

LARGEST = 1e8  # of what a layer with weights gives: its square and cube stay far below float32's largest
SCALES = (1.0, 1.0, 1e-8, 1e-4, 1e4, 1e8)
GATES = (-17.0, -18.0, -30.0, -88.0, -104.0, 17.0, 18.0, 0.0)  # exp(-104) is no float32, exp(-88) is denormal
DENORMAL = 1e-39  # of float32, whose smallest normal number is 1.2e-38
INTEGER = 1500
BIASES = (0.1, -0.1, 1 / 3, 1.3)

Array = np.ndarray
Structure = Callable[[Chooser], tuple[Shape, list[Layer]]]
Treatment = Callable[[Chooser, Node, dict[str, Array]], None]


def hard_case(choose: Chooser) -> Case:
    """A model whose rounding is hard to bound, with weights and images to match."""
    structure = choose.choice(STRUCTURES)
    shape, layers = structure(choose)
    if choose.choice((False, False, False, True)):  # images of zeros and ones become integers
        layers.insert(0, Normalize((0.0,) * shape[0], (float(INTEGER),) * shape[0]))
    labelled = choose.choice((True, False))
    end = through(tuple(layers), shape)
    if labelled and len(end) == 3:
        layers.append(Flatten())
        end = layers[-1].output_shape(end)
    if labelled and end[0] > 12:
        layers.append(Dense(choose.integer(2, 10)))
        end = layers[-1].output_shape(end)
    if labelled and choose.choice((False, True)):
        layers.append(Softmax())
    labels = tuple(str(i) for i in range(end[0])) if labelled else ()
    model = Model("hard", shape, tuple(layers), random_models.RECIPES[0], labels=labels)
    given = _images(model, choose)
    return Case(
        model, _within(model, _treated(model, choose, FITTING.get(structure, ())), given), given=given
    )


# --- structures: an input shape, and layers


def _anything(choose: Chooser) -> tuple[Shape, list[Layer]]:
    model = random_models.random_model(choose)
    return model.input_shape, [layer for layer in model.layers if not isinstance(layer, Softmax)] or [
        Flatten()
    ]


def _gated(choose: Chooser) -> tuple[Shape, list[Layer]]:
    """Squeeze-and-excite, once or twice, in the way of an image or of a residual."""
    shape = _shape(choose, (4, 8, 12))
    layers: list[Layer] = [_same(choose.integer(2, 16), 3), _bend(choose)]
    for _ in range(choose.integer(1, 2)):
        channels = through(tuple(layers), shape)[0]
        hidden = Conv2d(choose.integer(1, 4), 1)
        gate = choose.choice((Sigmoid(), HardSigmoid()))
        excite = Scale((GlobalAvgPool2d(), hidden, _bend(choose), Conv2d(channels, 1), gate))
        layers.append(choose.choice((excite, Residual((_same(channels, 3), excite)))))
    return shape, [*layers, _mean(choose, through(tuple(layers), shape)), Flatten(), Dense(4)]


def _shifted_gate(choose: Chooser) -> tuple[Shape, list[Layer]]:
    """The image times its own sigmoid, far out where that is almost 0 or almost 1."""
    shape = _shape(choose, (3, 6))
    mean = choose.choice((18.5, -18.5, 88.0, 17.0))
    gate = Scale((choose.choice((Sigmoid(), Tanh(), HardSigmoid())),))
    rest = choose.choice(([], [_same(3, 3), _bend(choose)]))
    return shape, [Normalize((mean,) * shape[0], (1.0,) * shape[0]), gate, *rest]


def _constant_maps(choose: Chooser) -> tuple[Shape, list[Layer]]:
    """Means over up to 56 x 56 equal values, once the convolution before is dead."""
    side = choose.choice((7, 14, 28, 56))
    shape = (choose.integer(1, 2), side, side)
    before = [_same(choose.integer(1, 4), choose.choice((1, 3))), choose.choice((_bend(choose), ReLU()))]
    return shape, [*before, _mean(choose, through(tuple(before), shape))]


def _equal_channels(choose: Chooser) -> tuple[Shape, list[Layer]]:
    """A convolution over 12 to 64 channels, which a treatment may make all alike."""
    shape = _shape(choose, (8, 10))
    channels, kernel = choose.choice((12, 16, 32, 48, 64)), choose.choice((3, 5))
    spread = Conv2d(channels, 1) if choose.choice((True, False)) else _same(channels, 3)
    layers: list[Layer] = [spread, _bend(choose), Conv2d(choose.integer(2, 6), kernel), ReLU()]
    return shape, [*layers, _mean(choose, through(tuple(layers), shape))]


def _deep(choose: Chooser) -> tuple[Shape, list[Layer]]:
    """Up to 24 convolutions in a row, some with normalisation, some in a residual."""
    shape, channels = _shape(choose, (4, 6)), choose.integer(2, 6)
    layers: list[Layer] = [_same(channels, 3)]
    for _ in range(choose.integer(8, 24)):
        step: list[Layer] = [_same(channels, choose.choice((1, 3)))]
        if choose.choice((True, False)):
            step.append(BatchNorm(choose.choice((1e-5, 1e-3))))
        step.append(_bend(choose))
        layers += [Residual(tuple(step))] if choose.choice((False, True)) else step
    return shape, layers


def _normalised(choose: Chooser) -> tuple[Shape, list[Layer]]:
    """Batch normalisations, whose variances a treatment makes tiny."""
    shape = _shape(choose, (5, 8))
    layers: list[Layer] = []
    for _ in range(choose.integer(1, 3)):
        layers += [_same(choose.integer(2, 8), 3), BatchNorm(choose.choice((1e-5, 1e-3))), _bend(choose)]
    return shape, [*layers, _mean(choose, through(tuple(layers), shape))]


def _joined(choose: Chooser) -> tuple[Shape, list[Layer]]:
    """Joins in joins: an inception block that is added to its input and gated."""
    shape = _shape(choose, (5, 8))
    channels = choose.integer(2, 6)
    branches = (
        (Conv2d(channels, 1), _bend(choose)),
        (_same(channels, choose.choice((3, 5))), BatchNorm()),
        (MaxPool2d(3, 1, 1), Conv2d(1, 1)),
    )
    inside: tuple[Layer, ...] = (Concat(branches), Conv2d(channels, 1))
    if choose.choice((False, True)):
        inside = (*inside, Scale((GlobalAvgPool2d(), Conv2d(channels, 1), Sigmoid())))
    return shape, [_same(channels, 3), Residual(inside), _bend(choose), _same(3, 3)]


STRUCTURES: tuple[Structure, ...] = (
    _anything,
    _gated,
    _shifted_gate,
    _constant_maps,
    _equal_channels,
    _deep,
    _normalised,
    _joined,
)


def _shape(choose: Chooser, sides: tuple[int, ...]) -> Shape:
    return choose.integer(1, 3), choose.choice(sides), choose.choice(sides)


def _same(filters: int, kernel: int) -> Conv2d:
    return Conv2d(filters, kernel, padding=kernel // 2)


def _bend(choose: Chooser) -> Layer:
    return choose.choice((ReLU(), SiLU(), HardSwish(), Sigmoid()))


def _mean(choose: Chooser, shape: Shape) -> Layer:
    side = min(shape[1:])
    windowed = AvgPool2d(choose.integer(1, side), choose.integer(1, side))
    return choose.choice((GlobalAvgPool2d(), windowed, AvgPool2d(side), AdaptiveAvgPool2d((1, 2))))


# --- treatments: what the weights of one layer are like


def _plain(choose: Chooser, node: Node, own: dict[str, Array]) -> None:
    scale = np.float32(choose.choice(SCALES))
    for array in own.values():
        array *= scale


def _dead(choose: Chooser, node: Node, own: dict[str, Array]) -> None:
    """All channels or half of them are nothing but a bias."""
    kernel = own["weight"]
    kernel[: len(kernel) if choose.choice((True, False)) else -(-len(kernel) // 2)] = 0
    if "bias" in own:
        own["bias"][:] = choose.choice(BIASES)


def _equal(choose: Chooser, node: Node, own: dict[str, Array]) -> None:
    """One number for all weights, so that every sum is of equal terms where its inputs are equal."""
    own["weight"][:] = choose.choice((*BIASES, own["weight"].flat[0]))
    if "bias" in own:
        own["bias"][:] = own["bias"][:1]


def _repeated(choose: Chooser, node: Node, own: dict[str, Array]) -> None:
    """All channels alike: the filters, and what each makes of its inputs."""
    kernel = own["weight"]
    kernel[:] = kernel[:1, :1] if kernel.ndim > 1 else kernel[:1]
    if "bias" in own:
        own["bias"][:] = own["bias"][:1]


def _integers(choose: Chooser, node: Node, own: dict[str, Array]) -> None:
    for array in own.values():
        array[:] = np.round(array * (INTEGER / max(np.abs(array).max(initial=0), 1e-30)))


def _denormal(choose: Chooser, node: Node, own: dict[str, Array]) -> None:
    for array in own.values():
        array *= np.float32(DENORMAL)


def _of_one_sign(choose: Chooser, node: Node, own: dict[str, Array]) -> None:
    for array in own.values():
        array[:] = np.abs(array)


TREATMENTS: tuple[Treatment, ...] = (
    _plain,
    _plain,
    _dead,
    _equal,
    _repeated,
    _integers,
    _denormal,
    _of_one_sign,
)


# Treatments that make the sums of a structure equal: every other case of it has one.
FITTING: dict[Structure, tuple[Treatment, ...]] = {
    _constant_maps: (_dead,),
    _equal_channels: (_equal, _repeated, _integers),
}


def _treated(model: Model, choose: Chooser, fitting: tuple[Treatment, ...]) -> Weights:
    """Initial weights, every layer's treated: all alike, or each by itself. Gates are closed or open wide."""
    seed = choose.integer(0, 99)
    weights = init_weights(model, seed)
    everywhere: Treatment | None = choose.choice((None, *TREATMENTS))
    if fitting and choose.integer(0, 1) == 0:
        everywhere = choose.choice(fitting)
    gates = {node.inputs[0] for node in model.walk() if isinstance(node.layer, (Sigmoid, HardSigmoid))}
    for node in model.walk():
        own = {name: weights[f"{node.path}.{name}"] for name in _names(node)}
        if not own:
            continue
        if isinstance(node.layer, BatchNorm):
            _statistics(choose, own, seed, node.path)
        else:
            (everywhere or choose.choice(TREATMENTS))(choose, node, own)
        if node.path in gates and "bias" in own:
            own["bias"][:] = choose.choice(GATES)
    return weights


def _names(node: Node) -> list[str]:
    return [weight.name for weight in node.layer.weights(node.input_shape)]


def _statistics(choose: Chooser, own: dict[str, Array], seed: int, path: str) -> None:
    """Variances from 1e-12 to 1, below epsilon or far above it; means that are large, ordinary or 0."""
    for name, array in own.items():
        array += np.float32(0.5) * (2 * uniform(seed, f"{path}.{name}", len(array)) - 1).astype(np.float32)
    own["running_var"][:] = np.abs(own["running_var"]) * np.float32(choose.choice((1e-12, 1e-6, 1e-3, 1.0)))
    own["running_mean"] *= np.float32(choose.choice((1.0, 0.0, 100.0)))


def _within(model: Model, weights: Weights, given: Array) -> Weights:
    """The same weights, smaller where a layer would give more than LARGEST: nothing honest overflows."""
    images = np.concatenate([given, probes(model, 2)])
    tensors = {IMAGE: images.astype(np.float64)}
    for node, own in ReferenceNetwork(model, weights).nodes:
        y = apply(node.layer, node.take(tensors), own)
        most = float(np.abs(y).max(initial=0))
        if most > LARGEST and own:
            factor = np.float32(2.0 ** -ceil(log2(most / LARGEST)))
            smaller = {f"{node.path}.{name}": weights[f"{node.path}.{name}"] * factor for name in own}
            kept = ("running_mean", "running_var")  # the output does not grow with these
            weights |= {name: array for name, array in smaller.items() if not name.endswith(kept)}
            y = y * float(factor)
        tensors[node.path] = y
    return weights


def _images(model: Model, choose: Chooser) -> Array:
    """Noise, few pixels and ramps; black, white and grey; zeros and ones; and what is denormal."""
    ordinary = random_models.images(model, choose.integer(0, 99))
    plain = np.stack([np.full(model.input_shape, value, np.float32) for value in (0, 1, 0.1)])
    binary = (ordinary[:1] > 0.5).astype(np.float32)
    return np.concatenate([ordinary[::2], plain, binary, ordinary[:1] * np.float32(DENORMAL)])
