"""Looking for the image on which a witness differs most: what no fixed set of images shows.

A fault may show in a small region of the inputs only. So images are moved, by random steps, towards a larger
ratio of difference to limit: the best found so far are made brighter or darker, blended with others, shifted,
given noise of many sizes, or changed in one place; what is better is kept. They stay in [0, 1]. A witness is
asked for nothing but its outputs, so anybody can be searched. What is drawn follows from a seed; how far it
gets, from the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.reference.network import ReferenceNetwork
from export.crosscheck.comparison import Comparison, compare, outer_limit
from export.crosscheck.inputs import plain
from export.crosscheck.judgement import Judgement, judge_layers
from export.crosscheck.witnesses import Witness
from zoo.randomness import raw_bits

KEPT = 8  # images that go on
MOST = 32  # images of a step
RATE = 2e9  # multiply-accumulates a second of judge and witness: what two busy cores did
STEPS = 4  # that there is to be time for, or a step has fewer images

Excuse = Callable[[np.ndarray, np.ndarray, Mapping[str, np.ndarray]], np.ndarray]
Move = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]  # (image, another image)


@dataclass(frozen=True)
class Found:
    """The image (C, H, W), float32, on which a witness's output is nearest to its limit, or furthest beyond.

    evaluations: how many images were tried.
    """

    worst: Comparison
    image: np.ndarray
    evaluations: int

    @property
    def passed(self) -> bool:
        """Whether even there it is within the limit."""
        return self.worst.passed

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data, without the image."""
        return {"evaluations": self.evaluations, **self.worst.to_dict()}


def search(
    witness: Witness, judgement: Judgement, seconds: float, seed: int = 0, excuse: Excuse | None = None
) -> Found | None:
    """The worst image found for a witness in so many seconds; None where there is no time for one step.

    excuse: see `judged`.
    """
    model = judgement.model
    size = min(MOST, int(seconds * RATE / STEPS / max(1, model.macs)))
    if size < 1:
        return None
    generator = np.random.Generator(np.random.Philox(key=int(raw_bits(seed, "search", 1)[0])))
    pool = judgement.images
    started, longest, count = time.perf_counter(), 0.0, 0
    best = np.empty((0, *model.input_shape), np.float32)
    ratios = np.empty(0)
    while not count or time.perf_counter() - started + longest <= seconds:
        before = time.perf_counter()
        tried = _moved(generator, best, pool, size)
        found = _ratios(witness, judgement, tried)
        count += len(tried)
        best, ratios = np.concatenate([best, tried]), np.concatenate([ratios, found])
        order = np.argsort(-ratios, kind="stable")[:KEPT]
        best, ratios = best[order], ratios[order]
        if ratios[0] > 1:
            worst = judged(witness, judgement.network, best[0], excuse)
            if not worst.passed:
                return Found(worst, best[0], count)
            if len(best) > 1:  # its layers explain it: look elsewhere
                best, ratios = best[1:], ratios[1:]
        longest = max(longest, time.perf_counter() - before)
    return Found(judged(witness, judgement.network, best[0], excuse), best[0], count)


def judged(
    witness: Witness, network: ReferenceNetwork, image: np.ndarray, excuse: Excuse | None = None
) -> Comparison:
    """The output for one image (C, H, W) under its limit: the outer one, or the derived one if it is larger.

    Logits are held to the derived one alone, as they are elsewhere. excuse: how many times that limit the
    output may differ, given images, the numbers of those to look at, and the limit of the last layer by path.
    """
    path, last = list(judge_layers(network, image[None]).items())[-1]
    outer = 0.0 if network.model.output == "logits" else outer_limit(last.output)
    limit = np.maximum(outer, last.limit)
    got = witness.predict(image[None])
    compared = compare(got, last.output, limit)
    if compared.passed or compared.problem or excuse is None:
        return compared
    return compare(got, last.output, excuse(image[None], np.array([0]), {path: limit})[0] * limit)


def _ratios(witness: Witness, judgement: Judgement, images: np.ndarray) -> np.ndarray:
    """How far each output is from the judge's, as a multiple of a limit that is nearly its own; infinite
    where it is no number."""
    got, expected = witness.predict(images), judgement.network.predict(images)
    if got.shape != expected.shape or got.dtype != np.float32:
        return np.full(len(images), np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(got - expected).reshape(len(images), -1).max(axis=1)
    last = judgement.layers[judgement.model.walk()[-1].path]
    limits = np.full(len(images), last.limit[plain(judgement.layer_images)].max(initial=0))
    if judgement.output != "logits":
        limits = np.maximum(limits, [outer_limit(row) for row in expected])
    return np.where(np.isfinite(apart), apart / limits, np.inf)


def _moved(generator: np.random.Generator, best: np.ndarray, pool: np.ndarray, count: int) -> np.ndarray:
    """Images to try next: most of them from the best, some from any, each moved in one or two ways."""
    tried = []
    for number in range(count):
        other = pool[generator.integers(len(pool))]
        if not len(best) or number % 4 == 3:
            image = pool[generator.integers(len(pool))]
        else:
            image = best[generator.integers(len(best))]
        for _ in range(1 + generator.integers(2)):
            image = MOVES[generator.integers(len(MOVES))](generator, image, other)
        tried.append(np.clip(image, 0, 1))
    return np.stack(tried).astype(np.float32)


def _brighter(generator: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return image * 2 ** generator.uniform(-2, 2)


def _lifted(generator: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Towards a grey, which moves the mean and keeps the shapes."""
    share = generator.uniform(0, 1) ** 2
    return (1 - share) * image + share * generator.uniform(0, 1)


def _blended(generator: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    share = generator.uniform(0, 1)
    return (1 - share) * image + share * other


def _noisy(generator: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return image + 10 ** generator.uniform(-4, 0) * generator.standard_normal(image.shape)


def _shifted(generator: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.roll(image, generator.integers(-3, 4, 2), axis=(1, 2))


def _in_one_place(generator: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A rectangle of one value, or of the other image."""
    _, height, width = image.shape
    top, left = generator.integers(height), generator.integers(width)
    rows = slice(top, top + 1 + generator.integers(max(1, height // 3)))
    columns = slice(left, left + 1 + generator.integers(max(1, width // 3)))
    changed = image.copy()
    changed[:, rows, columns] = generator.choice([0, 1, generator.uniform(0, 1)])
    if generator.integers(2):
        changed[:, rows, columns] = other[:, rows, columns]
    return changed


def _steeper(generator: np.random.Generator, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """More contrast about some level: up to black and white alone."""
    return generator.uniform(0, 1) + 10 ** generator.uniform(0, 2) * (image - generator.uniform(0, 1))


MOVES: tuple[Move, ...] = (_brighter, _lifted, _blended, _noisy, _shifted, _in_one_place, _steeper)
