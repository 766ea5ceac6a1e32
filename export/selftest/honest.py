"""The other half of a score: honest witnesses of random models, none of which may be accused.

Models, weights and images are random (export.specs): many shapes, scales from 0.01 to 30, sums of one
sign, large biases. Every other model with labels and weights is trained for an epoch first, on noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from backends.client import Worker, Workers
from export import specs
from export.crosscheck import Depth, Report, check_direct, examine, judge, probes, second_opinion
from zoo import data
from zoo.errors import Diverged, InvalidInput, WorkerDied
from zoo.model import Model
from zoo.randomness import raw_bits
from zoo.weights import Weights

TRAINED = 2  # of so many cases one is trained, if it has labels and weights
TRAINING_IMAGES = 256


@dataclass
class Honest:
    """What the cross-check said of honest witnesses.

    alarms: "seed 17: torch, conv1, 1.30". crashes: of witnesses whose process died, which is no accusation
    but their framework's own fault. worst: the largest difference as a multiple of its limit.
    """

    cases: int = 0
    trained: int = 0
    witnesses: int = 0
    alarms: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    worst: float = 0.0
    worst_of: str = ""

    def add(self, seed: int, report: Report) -> None:
        """Take what was said of one case."""
        self.cases += 1
        for verdict in report.verdicts:
            self.witnesses += 1
            told = f"seed {seed}: {verdict.witness}"
            if verdict.error:
                self.crashes.append(f"{told}, {verdict.error}")
                continue
            if not verdict.passed:
                self.alarms.append(f"{told}, {verdict.culprit}, {verdict.max_ratio:.2f}")
            if verdict.max_ratio > self.worst:
                self.worst, self.worst_of = verdict.max_ratio, told

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {
            "cases": self.cases,
            "trained": self.trained,
            "witnesses": self.witnesses,
            "alarms": self.alarms,
            "crashes": self.crashes,
            "worst_ratio": self.worst if isfinite(self.worst) else None,
            "worst_of": self.worst_of,
        }


def sweep(
    count: int, backends: list[str], first: int = 0, say: Callable[[str, int, int], None] | None = None
) -> Honest:
    """Hear the honest witnesses of `count` random cases, whose seeds start at `first`."""
    found = Honest()
    with Workers(threads=1) as workers:
        for seed in range(first, first + count):
            case = specs.random_case(specs.Seeded(seed))
            weights = case.weights
            trains = case.model.labels and case.model.parameters
            if backends and seed % TRAINED == 0 and trains:
                name = backends[seed // TRAINED % len(backends)]
                try:
                    with workers.use(name) as worker:
                        weights = _trained(case.model, weights, worker, seed)
                except WorkerDied as error:
                    found.crashes.append(f"seed {seed}: {name}, {error}")
                found.trained += weights is not case.weights
            found.add(seed, hear(case.model, weights, case.images, backends, workers))
            if say:
                say("honest", seed - first + 1, count)
    return found


def hear(
    model: Model, weights: Weights, images: np.ndarray, backends: Sequence[str], workers: Workers
) -> Report:
    """The verdicts on a model's direct export and on backends, with batches and every layer."""
    judgement = judge(model, weights, np.concatenate([images, probes(model, 8)]))
    report = check_direct(model, weights, judgement, Depth(batches=True))
    report.verdicts.append(second_opinion(report.layers_onnx, judgement))
    for name in backends:
        with workers.use(name) as worker:
            network = worker.build(model, weights)
            verdict = examine(
                name, network, judgement, network.activations, alone=network.alone, batches=True
            )
        report.verdicts.append(verdict)
    return report


def _trained(model: Model, weights: Weights, worker: Worker, seed: int) -> Weights:
    """The weights after an epoch on noise with random labels; as they were if the training diverges."""
    size = (TRAINING_IMAGES, *model.input_shape)
    pixels = (raw_bits(seed, "honest/images", int(np.prod(size))) >> np.uint64(56)).astype(np.uint8)
    labels = (raw_bits(seed, "honest/labels", TRAINING_IMAGES) % np.uint64(len(model.labels))).astype(
        np.int64
    )
    images, few = pixels.reshape(size), slice(0, 8)
    none = slice(0, 0)
    split = data.Split(images, labels, images[none], labels[none], images[few], labels[few])
    try:
        network = worker.build(model, weights)
        worker.send_data(split)
        return network.train(seed=seed, epochs=1).weights
    except (Diverged, InvalidInput):
        return weights
