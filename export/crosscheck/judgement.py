"""What the judge, the float64 reference, says of some images, and what a witness may differ from it.

All images are judged by the final output; every layer is, for a mixture of the first of them with noise,
probes and extremes (export.crosscheck.inputs), under the limits of export.crosscheck.limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from backends.reference import ReferenceNetwork, apply
from export.crosscheck import limits
from export.crosscheck.inputs import layer_images, plain
from export.crosscheck.limits import UNIT, UNITS, product_units
from zoo.layers import Dense
from zoo.model import IMAGE, Model, Node
from zoo.weights import Weights, check

JUDGE = "reference"


@dataclass(frozen=True)
class Expected:
    """One layer of the judge for the images whose layers are compared: arrays (N, ...).

    output: float64. limit, own: see limits.Allowance; own is None where the layer computes exactly.
    """

    output: np.ndarray
    limit: np.ndarray
    own: np.ndarray | None

    def rows(self, rows: np.ndarray) -> Expected:
        """The same for some of the images."""
        return Expected(self.output[rows], self.limit[rows], None if self.own is None else self.own[rows])


@dataclass
class Judgement:
    """What the reference says about images: outputs and logits (N, classes) in float64, and the
    element-wise limit of the logits.

    Without labels the outputs are (N, *model.output_shape), and the logits and their limit (N, 0).
    layer_images: those whose every layer is in `layers`, by path.
    """

    model: Model
    weights: Weights
    images: np.ndarray
    outputs: np.ndarray
    logits: np.ndarray
    logit_limit: np.ndarray
    layer_images: np.ndarray
    layers: dict[str, Expected]

    @property
    def output(self) -> str:
        """What the outputs are: "logits", "probabilities" or "features"."""
        return self.model.output

    @property
    def derived_limit(self) -> float:
        """The largest derived limit of the last layer's output, on images in [0, 1]."""
        limit = self.layers[self.model.walk()[-1].path].limit
        return float(limit[plain(self.layer_images)].max(initial=0))

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
        return replace(self, layer_images=self.layer_images[rows], layers=layers)


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
        scales.append(_logit_limit(giver, weights, tensors[before], y) if model.labels else y)
    limit = np.concatenate(scales)
    if model.labels:  # what the layers before add, at most on the images whose layers are known
        x = inside.astype(np.float64) if before == IMAGE else layers[before].output
        own = _logit_limit(giver, weights, x, layers[path].output)
        limit = limit + np.maximum(layers[path].limit - own, 0)[plain(inside)].max(axis=0)
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
    """Every layer of the reference for images float32 (N, C, H, W), with its limits, by path."""
    parts: dict[str, list[Expected]] = {node.path: [] for node, _ in network.nodes}
    for chunk in network.chunks(images):
        tensors = {IMAGE: chunk.astype(np.float64)}
        allowances = {IMAGE: limits.exact(tensors[IMAGE])}
        for node, weights in network.nodes:
            x = node.take(tensors)
            allowed = limits.propagate(node.layer, x, weights, node.take(allowances))
            tensors[node.path], allowances[node.path] = apply(node.layer, x, weights), allowed
            with np.errstate(over="ignore"):  # beyond float32 anything is allowed, and a judge is infinite
                own = None if allowed.own is None else allowed.own.astype(np.float32)
                limit = allowed.limit.astype(np.float32)
            parts[node.path].append(Expected(tensors[node.path], limit, own))
    return {path: _joined(part) for path, part in parts.items()}


def _joined(parts: list[Expected]) -> Expected:
    own = [part.own for part in parts if part.own is not None]
    return Expected(
        np.concatenate([part.output for part in parts]),
        np.concatenate([part.limit for part in parts]),
        np.concatenate(own) if own else None,
    )


def logit_path(model: Model) -> str:
    """The path of the layer that gives the logits: the last one, or the one before a Softmax."""
    last = model.walk()[-1]
    return last.inputs[0] or last.path if model.output == "probabilities" else last.path


def _logit_limit(node: Node, weights: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """32 u (|W||x| + |b|) of a dense layer with the input x, 256 u max|y| of an image's row otherwise.

    With more than 4,096 features it is more than 32 (export.crosscheck.limits).
    """
    layer, path = node.layer, node.path
    if not isinstance(layer, Dense):
        return np.broadcast_to(8 * UNITS * UNIT * np.abs(y).max(axis=1, keepdims=True), y.shape)
    scale = np.abs(x) @ np.abs(weights[f"{path}.weight"].astype(np.float64)).T
    if layer.bias:
        scale = scale + np.abs(weights[f"{path}.bias"])
    return product_units(x.shape[1]) * UNIT * scale
