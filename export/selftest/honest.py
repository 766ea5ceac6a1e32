"""The other half of a score: honest witnesses of many models, none of which may be accused.

Three generators make the cases, each a pure function of its seed. `random`: small models over the whole
layer language (random_models.py), scales from 0.01 to 30, sums of one sign, large biases; every other one
with labels and weights is trained for an epoch first, on noise. `hard`: what rounds as much as it may
(hard.py). `trained`: trained weights, real digits and imported classics (trained.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from backends.process.client import Worker, Workers
from export.crosscheck import Depth, Report, Verdict, check_direct, examine, judge, probes, second_opinion
from export.selftest import random_models
from export.selftest.hard import hard_case
from export.selftest.margins import Margins
from export.selftest.random_models import Case, Seeded
from export.selftest.trained import trained_case
from zoo import data
from zoo.errors import Diverged, InvalidInput, WorkerDied
from zoo.model import Model
from zoo.randomness import raw_bits
from zoo.weights import Weights

TRAINED = 2  # of so many random cases one is trained, if it has labels and weights
TRAINING_IMAGES = 256
MOST_ALONE = 25  # layers of a model of which each is run alone as well
PROBES, LARGE = 8, 5_000_000  # fewer probes for models with more multiply-accumulates than this

GENERATORS: dict[str, Callable[[int, Workers], Case]] = {
    "random": lambda seed, workers: random_models.random_case(Seeded(seed)),
    "hard": lambda seed, workers: hard_case(Seeded(seed)),
    "trained": trained_case,
}


@dataclass
class Tally:
    """What the cross-check said of the honest witnesses of one generator's cases.

    alarms: "hard, seed 17: torch, conv1, 1.30; again: zoo selftest ...". crashes: of witnesses whose process
    died, which is no accusation but their framework's own fault. worst: the largest difference as a multiple
    of its limit.
    """

    generator: str
    backends: Sequence[str] = ()
    cases: int = 0
    trained: int = 0
    witnesses: int = 0
    alarms: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    worst: float = 0.0
    worst_of: str = ""
    margins: Margins = field(default_factory=Margins)

    def add(self, seed: int, model: Model, report: Report) -> None:
        """Take what was said of one case."""
        self.cases += 1
        for verdict in report.verdicts:
            self.witnesses += 1
            told = f"{self.generator}, seed {seed}: {verdict.witness}"
            if verdict.error:
                self.crashes.append(f"{told}, {verdict.error}")
                continue
            self.margins.take_honest(model, verdict, told)
            if not verdict.passed:
                where = f"{told}, {verdict.culprit}, {verdict.max_ratio:.2f}"
                self.alarms.append(f"{where}; again: {' '.join(self.command(seed))}")
            if verdict.max_ratio > self.worst:
                self.worst, self.worst_of = verdict.max_ratio, told

    def command(self, seed: int) -> list[str]:
        """What repeats one case."""
        chosen = [word for name in self.backends or ["reference"] for word in ("--backend", name)]
        case = ["--generator", self.generator, "--seed", str(seed), "--honest", "1"]
        return ["zoo", "selftest", "--no-faults", *case, *chosen]

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {
            "generator": self.generator,
            "cases": self.cases,
            "trained": self.trained,
            "witnesses": self.witnesses,
            "alarms": self.alarms,
            "crashes": self.crashes,
            "worst_ratio": self.worst if isfinite(self.worst) else None,
            "worst_of": self.worst_of,
        }


@dataclass
class Honest:
    """What the cross-check said of honest witnesses, by generator."""

    tallies: list[Tally]

    @property
    def cases(self) -> int:
        """How many cases were heard."""
        return sum(tally.cases for tally in self.tallies)

    @property
    def witnesses(self) -> int:
        """How many witnesses were heard."""
        return sum(tally.witnesses for tally in self.tallies)

    @property
    def alarms(self) -> list[str]:
        """The accusations, all of them wrong."""
        return [alarm for tally in self.tallies for alarm in tally.alarms]

    @property
    def worst(self) -> float:
        """The largest difference as a multiple of its limit."""
        return max((tally.worst for tally in self.tallies), default=0.0)

    @property
    def margins(self) -> Margins:
        """How near to a limit the witnesses came, by kind of layer."""
        found = Margins()
        for tally in self.tallies:
            found.take(tally.margins)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {
            "cases": self.cases,
            "witnesses": self.witnesses,
            "alarms": self.alarms,
            "worst_ratio": self.worst if isfinite(self.worst) else None,
            "generators": [tally.to_dict() for tally in self.tallies],
        }


def sweep(
    count: int,
    backends: Sequence[str],
    first: int = 0,
    say: Callable[[str, int, int], None] | None = None,
    generators: Sequence[str] = tuple(GENERATORS),
) -> Honest:
    """Hear the honest witnesses of `count` cases, of each generator in turn; seeds start at `first`."""
    tallies = [Tally(name, backends) for name in generators]
    with Workers(threads=1) as workers:
        for number in range(count):
            tally, seed = tallies[number % len(tallies)], first + number // len(tallies)
            case = GENERATORS[tally.generator](seed, workers)
            weights = case.weights
            trains = case.model.labels and case.model.parameters and tally.generator == "random"
            if backends and seed % TRAINED == 0 and trains:
                name = backends[seed // TRAINED % len(backends)]
                try:
                    with workers.use(name) as worker:
                        weights = _trained(case.model, weights, worker, seed)
                except WorkerDied as error:
                    tally.crashes.append(f"{tally.generator}, seed {seed}: {name}, {error}")
                tally.trained += weights is not case.weights
            tally.add(seed, case.model, hear(case.model, weights, case.images, backends, workers))
            if say:
                say("honest", number + 1, count)
    return Honest(tallies)


def hear(
    model: Model, weights: Weights, images: np.ndarray, backends: Sequence[str], workers: Workers
) -> Report:
    """The verdicts on a model's direct export and on backends, with batches and every layer, also alone."""
    isolated = len(model.walk()) <= MOST_ALONE
    asked = probes(model, PROBES if model.macs < LARGE else 2)
    judgement = judge(model, weights, np.concatenate([images, asked]))
    report = check_direct(model, weights, judgement, Depth(batches=True, isolated=isolated))
    report.verdicts.append(second_opinion(report.layers_onnx, judgement))
    for name in backends:
        try:
            with workers.use(name) as worker:
                network = worker.build(model, weights)
                verdict = examine(
                    name,
                    network,
                    judgement,
                    network.activations,
                    alone=network.alone,
                    batches=True,
                    isolated=isolated,
                )
        except WorkerDied as error:
            verdict = Verdict(name, error=str(error))
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
