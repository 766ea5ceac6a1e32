"""How long calls take, measured so that a busy machine cannot decide who wins.

A competitor is timed in short blocks, and the blocks of all competitors alternate, each round in another
order: whatever else the machine does hits all alike. Calls of one block resemble each other, so intervals
come from drawing whole blocks anew (bootstrap of blocks), and competitors are compared by the ratio of two
blocks of one round. Seconds are wall-clock time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zoo.randomness import permutation, uniform

Array = np.ndarray
Block = Callable[[], Sequence[float]]  # the seconds of each call of one block

RESAMPLES = 1000
CONFIDENCE = 0.95
MOST_CALLS = 100_000  # of one block


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """The same in another unit."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)

    def contains(self, value: float) -> bool:
        """Whether a value is one that the interval does not exclude."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Timings:
    """The calls of one competitor: seconds, by block, in the order of the rounds."""

    blocks: tuple[tuple[float, ...], ...]

    @property
    def count(self) -> int:
        """How many calls there are."""
        return sum(map(len, self.blocks))

    @property
    def per_second(self) -> float:
        """Calls per second of all blocks together."""
        return self.count / sum(map(sum, self.blocks))

    def quantile(self, share: float) -> Interval:
        """The seconds within which this share of the calls ends: the smallest such time.

        Its interval is the bootstrap's over blocks.
        """
        calls = np.concatenate([np.asarray(block) for block in self.blocks])
        owner = np.repeat(np.arange(len(self.blocks)), list(map(len, self.blocks)))
        order = np.argsort(calls, kind="stable")
        calls, owner = calls[order], owner[order]

        def reached(weights: Array) -> float:
            total = np.cumsum(weights[owner])
            return float(calls[np.searchsorted(total, share * total[-1])])

        found = [reached(weights) for weights in _resampled(len(self.blocks))]
        return Interval(reached(np.ones(len(self.blocks))), *_ends(found))

    def ratio(self, other: Timings) -> Interval:
        """How many times as long as the other's a call takes: the median over rounds of the ratio of the
        blocks' medians, with the bootstrap's interval."""
        pairs = zip(self.blocks, other.blocks, strict=True)
        ratios = np.array([np.median(own) / np.median(others) for own, others in pairs])
        size = len(ratios)
        draws = (uniform(0, "timing/ratio", RESAMPLES * size) * size).astype(int).reshape(RESAMPLES, size)
        return Interval(float(np.median(ratios)), *_ends(np.median(ratios[draws], axis=1)))


def _resampled(blocks: int) -> Array:
    """How often each block is drawn: (RESAMPLES, blocks), float64."""
    draws = (uniform(0, "timing/blocks", RESAMPLES * blocks) * blocks).astype(int).reshape(RESAMPLES, blocks)
    return np.stack([np.bincount(row, minlength=blocks) for row in draws]).astype(np.float64)


def _ends(found: Sequence[float] | Array) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def calls(call: Callable[[], object], seconds: float) -> list[float]:
    """The seconds of each call of one block: at least one, as many as begin within `seconds`.

    One call that is not timed comes first: after another competitor's block the caches are cold.
    """
    call()
    found: list[float] = []
    begun = last = time.perf_counter()
    while not found or (last - begun < seconds and len(found) < MOST_CALLS):
        call()
        now = time.perf_counter()
        found.append(now - last)
        last = now
    return found


def race(
    competitors: Mapping[str, Block], rounds: int, progress: Callable[[int], None] | None = None
) -> dict[str, Timings]:
    """Let each competitor run one block per round, every round in another order; their timings by name.

    progress: told how many rounds are done.
    """
    names = list(competitors)
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for done in range(1, rounds + 1):
        # Each second round is the one before it backwards: who comes early comes late as often.
        order = permutation((done + 1) // 2, "timing/order", len(names))
        for index in order if done % 2 else order[::-1]:
            found[names[index]].append(tuple(competitors[names[index]]()))
        if progress:
            progress(done)
    return {name: Timings(tuple(blocks)) for name, blocks in found.items()}
