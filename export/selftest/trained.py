"""Honest cases with weights that training made, real digits, and imported classics.

Three of four cases are a model of the package with its trained weights: as they are, disturbed, pruned,
rounded, or without its last layers. One of four is the beginning of a classic as `zoo import` brings it in
from torchvision or Keras, with random weights and settled normalisations, at a small image size. Where the
framework is not installed, it is a model of the package instead.

Each case is a pure function of its seed, given what is installed. Classics are kept for the process: bringing
one in takes up to half a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

import backends
from backends.process.client import Workers
from export.imports import originals, reading
from export.selftest.random_models import Case, Chooser, Seeded
from zoo import data, pretrained
from zoo.errors import InvalidSpec
from zoo.layers import Conv2d
from zoo.machine import version
from zoo.model import Model, iter_weights
from zoo.randomness import uniform
from zoo.weights import Weights

IMPORTED = 4  # of so many cases one is an imported classic
CLASSICS = (
    ("torchvision", "squeezenet1_1"),
    ("torchvision", "mobilenet_v2"),
    ("torchvision", "resnet18"),
    ("torchvision", "googlenet"),
    ("keras", "MobileNetV2"),
    ("keras", "DenseNet121"),
    ("torchvision", "mobilenet_v3_small"),  # these have gates, and come in by torch's own export
    ("torchvision", "regnet_y_400mf"),
    ("torchvision", "efficientnet_b0"),
)
SIZES = (32, 48, 64)  # height and width of a classic's images
MOST_PARAMETERS, MOST_NODES, MOST_MACS = 1_000_000, 60, 15_000_000  # of a classic's beginning
IMAGES = 5

Array = np.ndarray


def trained_case(seed: int, workers: Workers) -> Case:
    """A model with trained or imported weights, and images to match. workers: to import in."""
    choose = Seeded(seed)
    if seed % IMPORTED == IMPORTED - 1:
        source, name = choose.choice(CLASSICS)
        if _installed(source):
            return _classic(choose, source, name, workers)
    return _shipped(choose)


def _installed(source: str) -> bool:
    backend, _ = originals.SOURCES[source]
    return backends.installed(backend) and (source == "keras" or version("torchvision") is not None)


# --- models of the package


def _shipped(choose: Chooser) -> Case:
    model, weights = pretrained.load(choose.choice(pretrained.names()))
    weights = choose.choice(CHANGES)(choose, model, dict(weights))
    if choose.choice((False, False, True)):
        model, weights = _beginning(model, weights, choose.integer(1, len(model.layers) - 1))
    return Case(model, weights, given=_digits(model, choose.integer(0, 2**31)))


def _kept(choose: Chooser, model: Model, weights: Weights) -> Weights:
    return weights


def _disturbed(choose: Chooser, model: Model, weights: Weights) -> Weights:
    seed, most = choose.integer(0, 99), choose.choice((1e-6, 1e-3, 0.03, 0.3))
    return {
        name: (array * (1 + most * (2 * uniform(seed, name, array.size).reshape(array.shape) - 1))).astype(
            np.float32
        )
        for name, array in weights.items()
    }


def _pruned(choose: Chooser, model: Model, weights: Weights) -> Weights:
    """The smallest weights of every kernel are 0, as pruning leaves them."""
    share = choose.choice((0.3, 0.7, 0.95))
    return {
        name: np.where(np.abs(array) < np.quantile(np.abs(array), share), np.float32(0), array)
        if array.ndim > 1
        else array
        for name, array in weights.items()
    }


def _without_filters(choose: Chooser, model: Model, weights: Weights) -> Weights:
    """Every other filter of one convolution is 0: what is left of these channels is their bias."""
    path = choose.choice([node.path for node in model.walk() if isinstance(node.layer, Conv2d)])
    kernel = weights[f"{path}.weight"].copy()
    kernel[::2] = 0
    return {**weights, f"{path}.weight": kernel}


def _rounded(choose: Chooser, model: Model, weights: Weights) -> Weights:
    """Kernels of few levels, as quantisation leaves them: many products are equal."""
    levels = choose.choice((7, 127))
    rounded = dict(weights)
    for name, array in weights.items():
        if array.ndim > 1:
            step = np.abs(array).max() / np.float32(levels)
            rounded[name] = np.round(array / step) * step
    return rounded


CHANGES: tuple[Callable[[Chooser, Model, Weights], Weights], ...] = (
    _kept,
    _disturbed,
    _disturbed,
    _pruned,
    _without_filters,
    _rounded,
)


def _beginning(model: Model, weights: Weights, count: int) -> tuple[Model, Weights]:
    """The first `count` outer layers of a model, without labels, and their weights."""
    cut = replace(model, name="beginning", layers=model.layers[:count], labels=(), arguments=())
    return cut, {name: weights[name] for name, _ in iter_weights(cut)}


def _digits(model: Model, seed: int) -> Array:
    """Real digits, as large and with as many channels as the model takes: float32 (5, C, H, W) in [0, 1]."""
    channels, height, width = model.input_shape
    images = _scans()
    chosen = data.to_float(images[(uniform(seed, "trained/images", IMAGES) * len(images)).astype(int)])
    times = -(-max(height, width) // images.shape[-1])
    large = chosen.repeat(times, axis=2).repeat(times, axis=3)[:, 0, :height, :width]
    return np.stack([np.roll(large, channel, axis=-1) for channel in range(channels)], axis=1)


@cache
def _scans() -> Array:
    """Test images uint8 (N, 1, 28, 28): MNIST's where they are on disk, else the embedded digits."""
    found = [dataset for dataset in data.present() if dataset.test_images.shape[2:] == (28, 28)]
    return (found[0] if found else data.digits()).test_images


# --- classics


def _classic(choose: Chooser, source: str, name: str, workers: Workers) -> Case:
    """The beginning of a classic: as many of its layers as are allowed, or fewer."""
    size, share = choose.choice(SIZES), choose.integer(1, 4)
    whole, weights, preprocessed = _imported(source, name, size, workers)
    most = max(
        count
        for count in range(1, len(whole.layers) + 1)
        if count == 1 or _is_small(_beginning(whole, weights, count)[0])
    )
    model, weights = _beginning(whole, weights, max(1, most * share // 4))
    images = _digits(model, choose.integer(0, 2**31))
    return Case(model, weights, given=4 * images - 2 if preprocessed else images)


def _is_small(model: Model) -> bool:
    return model.parameters <= MOST_PARAMETERS and len(model.walk()) <= MOST_NODES and model.macs <= MOST_MACS


def _imported(source: str, name: str, size: int, workers: Workers) -> tuple[Model, Weights, bool]:
    """A classic for images of a size, its weights, and whether it takes its images preprocessed."""
    if (source, name) not in _IMPORTED:
        wish = originals.Wish(source, name)
        with workers.use(wish.backend) as worker:
            if wish.has_spec:
                adopted = originals.adopt(wish, worker)
                _IMPORTED[source, name] = adopted.model, adopted.weights
            else:
                original, _ = originals.taken(wish, worker)
                read = reading.read(original.export(), f"{source}:{name}", reading.free_name(name))
                _IMPORTED[source, name] = read.model, read.weights
    model, weights = _IMPORTED[source, name]
    wish = originals.Wish(source, name)
    if wish.has_spec:
        return wish.model(size=size), weights, False
    return _sized(model, size), weights, True


def _sized(model: Model, size: int) -> Model:
    """A model that was read at another image size, as many of its layers as fit this one."""
    for count in range(len(model.layers), 0, -1):
        try:
            return replace(
                model,
                input_shape=(model.input_shape[0], size, size),
                layers=model.layers[:count],
                labels=(),
            )
        except InvalidSpec:
            continue
    raise AssertionError("a first layer takes any size")


_IMPORTED: dict[tuple[str, str], tuple[Model, Weights]] = {}
