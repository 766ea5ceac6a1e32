"""What the judge, the float64 reference, says of some images, and what a witness may differ from it.

All images are judged by the final output; every layer is, for a mixture of the first of them with
noise, probes and extremes (export.crosscheck.inputs).

A layer's own rounding is bounded by export.crosscheck.limits. What the layers before it add is measured: the
reference runs once more, each layer's output shaken by errors as large as rounding usually is, with random
signs, half of them for each number and half for a whole map of a channel; a mean, or a local normalisation,
by what a running float32 sum really loses on its input as well. What comes out is the noise that float32 has
in this network, for this image. Real runtimes stay within SHAKEN times it; unlike a bound it does not grow
beyond all measure in deep networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.crosscheck.inputs import layer_images, plain
from export.crosscheck.limits import FLOOR, UNIT, UNITS, carry, product_units, rounding, running
from zoo.layers import Dense, Softmax
from zoo.model import IMAGE, Model, Node
from zoo.randomness import raw_bits
from zoo.weights import Weights, check

JUDGE = "reference"
SHAKEN = 8.0  # times the noise; measured: 2.6 at most in the documented CNNs and nine classics


class Expected(NamedTuple):
    """One layer of the judge for the images whose layers are compared: arrays (N, ...).

    output: float64. own, usual: limits.Rounding's bound and what is expected of it, float32. noise: float64
    (N,), the largest of what the layers before usually add to an image's output.
    """

    output: np.ndarray
    own: np.ndarray
    usual: np.ndarray
    noise: np.ndarray

    @property
    def limit(self) -> np.ndarray:
        """What the output usually differs at most, the layers before included."""
        return self.usual + SHAKEN * self.noise.reshape(-1, *(1,) * (self.output.ndim - 1))

    def rows(self, rows: np.ndarray | slice) -> Expected:
        """The same for some of the images."""
        return Expected(*(part[rows] for part in self))


@dataclass
class Judgement:
    """What the reference says about images: outputs and logits (N, classes) in float64, and the
    element-wise limit of the logits.

    Without labels the outputs are (N, *model.output_shape), and the logits and their limit (N, 0).
    layer_images: those whose every layer is in `layers`, by path. known: verdicts on these layers
    (export.crosscheck.local).
    """

    model: Model
    weights: Weights
    images: np.ndarray
    outputs: np.ndarray
    logits: np.ndarray
    logit_limit: np.ndarray
    layer_images: np.ndarray
    layers: dict[str, Expected]
    known: dict[tuple[str, ...], Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """What the outputs are: "logits", "probabilities" or "features"."""
        return self.model.output

    @property
    def output_limit(self) -> np.ndarray:
        """What each output may differ where that is more than the outer limit: float64 (N, ...)."""
        if self.output == "logits":
            return self.logit_limit
        if self.output == "probabilities":
            softmax = Softmax()
            own = rounding(softmax, self.logits, self.outputs, {}).bound
            return own + carry(softmax, self.logits, {}, self.logit_limit)
        last = self.layers[self.model.walk()[-1].path]
        if self.images is self.layer_images:
            return last.limit
        return np.full(self.outputs.shape, last.limit[plain(self.layer_images)].max(initial=0))

    @property
    def decision_limit(self) -> np.ndarray:
        """What a logit of each image is allowed to differ: (N,). Softmax rounds in addition."""
        softmax = 2 * UNITS * UNIT if self.output == "probabilities" else 0.0
        return self.logit_limit.max(axis=1) + softmax * (1 + np.ptp(self.logits, axis=1))

    @cached_property
    def network(self) -> ReferenceNetwork:
        """The judge itself."""
        return ReferenceNetwork(self.model, self.weights)

    def first(self, count: int) -> Judgement:
        """The same for the first `count` images; the layers stay."""
        return replace(
            self,
            images=self.images[:count],
            outputs=self.outputs[:count],
            logits=self.logits[:count],
            logit_limit=self.logit_limit[:count],
        )

    @property
    def mixture(self) -> Judgement:
        """The judgement of the images whose layers are compared, as if no others had been given."""
        last, path = self.layers[self.model.walk()[-1].path], self.layers[logit_path(self.model)]
        nothing = np.empty((len(self.layer_images), 0))
        logits, limit = (path.output, path.limit) if self.model.labels else (nothing, nothing)
        return replace(self, images=self.layer_images, outputs=last.output, logits=logits, logit_limit=limit)

    def few_layers(self, count: int) -> Judgement:
        """The same with layers for `count` images: half of them the first, others spread over the rest."""
        total = len(self.layer_images)
        first = min(count, total) // 2
        spread = np.linspace(first, total - 1, min(count, total) - first).astype(int)
        rows = np.unique(np.concatenate([np.arange(first), spread]))
        layers = {path: expected.rows(rows) for path, expected in self.layers.items()}
        return replace(self, layer_images=self.layer_images[rows], layers=layers, known={})


def judge(
    model: Model,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    inputs_seed: int = 0,
    inside: np.ndarray | None = None,
) -> Judgement:
    """Run the reference over images float32 (N, C, H, W) in [0, 1], a slice at a time.

    inside: the images whose layers are compared; None for inputs.layer_images, drawn with inputs_seed.
    """
    network = ReferenceNetwork(model, weights)
    inside = layer_images(network, images, inputs_seed) if inside is None else inside
    layers = judge_layers(network, inside)
    path = logit_path(model)
    giver = next(node for node in model.walk() if node.path == path)
    before, last = giver.inputs[0], model.walk()[-1].path
    outputs, logits, scales = [], [], []
    for chunk in network.chunks(images):
        tensors = {IMAGE: chunk.astype(np.float64), **dict(network.run(chunk))}
        outputs.append(tensors[last])
        y = tensors[path] if model.labels else np.empty((len(chunk), 0))
        logits.append(y)
        scales.append(_logit_scale(giver, weights, tensors[before], y) if model.labels else y)
    limit = scale = np.concatenate(scales)
    if model.labels:
        units = product_units(giver.input_shape[0]) if isinstance(giver.layer, Dense) else 8 * UNITS
        limit = units * UNIT * scale + SHAKEN * layers[path].noise[plain(inside)].max(initial=0) + FLOOR
    return Judgement(
        model,
        check(model, weights),
        images,
        np.concatenate(outputs),
        np.concatenate(logits),
        limit,
        inside,
        layers,
    )


def judge_layers(network: ReferenceNetwork, images: np.ndarray) -> dict[str, Expected]:
    """Every layer of the reference for images float32 (N, C, H, W), by path."""
    parts: dict[str, list[Expected]] = {node.path: [] for node, _ in network.nodes}
    for number, chunk in enumerate(network.chunks(images)):
        tensors = {IMAGE: chunk.astype(np.float64)}
        shaken = dict(tensors)
        for node, weights in network.nodes:
            x, other = node.take(tensors), node.take(shaken)
            y = apply(node.layer, x, weights)
            own = rounding(node.layer, x, y, weights)
            untouched = all(shaken[path] is tensors[path] for path in node.inputs)
            moved = y if untouched else apply(node.layer, other, weights)
            noise = np.abs(moved - y).max(axis=tuple(range(1, y.ndim)), initial=0)
            tensors[node.path] = y
            lost = running(node.layer, x)
            signs = _signs(f"{number}/{node.path}", y.shape)
            if y.ndim == 4:  # over a flat map every position errs alike, and a mean takes nothing away
                signs = (signs + _signs(f"{number}/{node.path}/maps", (*y.shape[:2], 1, 1))) / sqrt(2)
            own_error = signs * (own.typical + own.flushed)
            shaken[node.path] = moved + own_error + (0 if lost is None else lost - y)
            with np.errstate(over="ignore"):  # limits beyond float32 become infinite
                bound, usual = own.bound.astype(np.float32), own.expected.astype(np.float32)
            parts[node.path].append(Expected(y, bound, usual, noise))
    return {path: Expected(*map(np.concatenate, zip(*part, strict=True))) for path, part in parts.items()}


def _signs(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers that are 1 or -1, of a shape, the same on every call."""
    count = prod(shape)
    bits = np.unpackbits(raw_bits(0, f"shaken/{purpose}", -(-count // 64)).view(np.uint8), count=count)
    return (2 * bits.astype(np.int8) - 1).reshape(shape)


def logit_path(model: Model) -> str:
    """The path of the layer that gives the logits: the last one, or the one before a Softmax."""
    last = model.walk()[-1]
    return last.inputs[0] or last.path if model.output == "probabilities" else last.path


def _logit_scale(node: Node, weights: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the rounding of logits is relative to: |W||x| + |b| of a dense layer, else max|y| of an image."""
    if not isinstance(node.layer, Dense):
        return np.broadcast_to(np.abs(y).max(axis=1, keepdims=True), y.shape)
    names = [weight.name for weight in node.layer.weights(node.input_shape)]
    sizes = {name: np.abs(weights[f"{node.path}.{name}"].astype(np.float64)) for name in names}
    return apply(node.layer, np.abs(x), sizes)
