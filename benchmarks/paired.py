"""Paired comparison of two competitors: blocks in ABBA order, a median ratio, a control.

A time alone says little on a machine that others use; the ratio of two blocks that ran one after the
other does. Four blocks A B B A are two pairs, in which drift cancels. The ratio of a pair is that of
seconds per step, rival / subject: 1.2 means that the subject does 1.2 times as many steps in the same
time. The median over all pairs comes with a bootstrap interval (percentiles), for wall time and for the
CPU time of the whole process.

The control is the subject against a second process of itself, in turn with the rivals' blocks. Its ratio
is 1 but for noise and chance, so where its interval is not within CONTROL of 1, the run can't tell what
it is asked to tell, and every verdict is "inconclusive".

All are started several times: two processes of the same program differ by a few hundredths for as long as
they live, by where their memory lies.

pyperf, asv and pytest-benchmark time one program after the other and pair no blocks; hence this module.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import stats

CONTROL = 0.03  # the control's interval lies within 1 / 1.03 and 1.03
CONFIDENCE = 0.95
RESAMPLES = 5000
FEWEST_PAIRS = 40
BLOCK = (0.05, 0.2)  # seconds of a block, least and most
AIM = 0.1  # seconds
REST = 0.02  # seconds between blocks, in which a framework's threads fall asleep
STARTS = 4  # processes of each competitor, one after the other
INCONCLUSIVE = "inconclusive"


Pair = tuple[float, float, float, float]


class Block(NamedTuple):
    """One block: seconds per step, of wall and of CPU time (all threads)."""

    wall: float
    cpu: float


class Competitor(Protocol):
    """Something that can do steps of the same kind for ever."""

    def run(self, steps: int) -> Block:
        """Do so many steps and say how long one of them took."""


class Ratio(NamedTuple):
    """The median of ratios with the bounds of its bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Pairing:
    """The pairs of one comparison.

    pairs: wall and CPU seconds per step of the subject, then of the rival.
    """

    rival: str
    steps: tuple[int, int]  # per block, of subject and rival, after the last start
    pairs: tuple[Pair, ...]

    @property
    def wall(self) -> Ratio:
        """Rival / subject in wall time."""
        return median_ratio(self._column(2) / self._column(0))

    @property
    def cpu(self) -> Ratio:
        """Rival / subject in CPU time."""
        return median_ratio(self._column(3) / self._column(1))

    def _column(self, index: int) -> np.ndarray:
        return np.array(self.pairs)[:, index]


@dataclass(frozen=True)
class Comparison:
    """A subject against its control and its rivals, measured in turn. targets: least ratios, by rival."""

    title: str
    subject: str
    control: Pairing
    rivals: tuple[Pairing, ...]
    targets: Mapping[str, float]

    @property
    def sound(self) -> bool:
        """Whether the control's interval lies within CONTROL of 1."""
        ratio = self.control.wall
        return ratio.low >= 1 / (1 + CONTROL) and ratio.high <= 1 + CONTROL

    def verdict(self, rival: Pairing) -> str:
        """ "met" or "missed" where the whole interval is on one side of the target, "open" where it is not.

        Without a target "faster", "slower" or "open", by 1. "inconclusive" if the control failed.
        """
        if not self.sound:
            return INCONCLUSIVE
        target = self.targets.get(rival.rival)
        yes, no = ("faster", "slower") if target is None else ("met", "missed")
        if rival.wall.low >= (target or 1.0):
            return yes
        return no if rival.wall.high < (target or 1.0) else "open"

    def to_dict(self) -> dict[str, Any]:
        """Everything measured and concluded, as JSON data."""

        def pairing(each: Pairing) -> dict[str, Any]:
            found = {"wall_ratio": each.wall._asdict(), "cpu_ratio": each.cpu._asdict()}
            return {**dataclasses.asdict(each), **found}

        return {
            "title": self.title,
            "subject": self.subject,
            "columns": ["subject_wall", "subject_cpu", "rival_wall", "rival_cpu"],
            "unit": "seconds per step",
            "control": {**pairing(self.control), "tolerance": CONTROL, "passed": self.sound},
            "rivals": [
                {**pairing(each), "target": self.targets.get(each.rival), "verdict": self.verdict(each)}
                for each in self.rivals
            ],
        }


def median_ratio(ratios: np.ndarray) -> Ratio:
    """The median of ratios (N,) and its percentile bootstrap interval, a function of the ratios alone."""
    found = stats.bootstrap(
        (ratios,),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Ratio(float(np.median(ratios)), float(found.low), float(found.high))


def calibrate(competitor: Competitor) -> int:
    """How many steps fill a block of about AIM seconds; warms the competitor up on the way."""
    steps = 1
    for _ in range(10):
        wall = competitor.run(steps).wall
        wanted = max(1, round(AIM / wall))
        if steps >= wanted / 1.2:
            return wanted
        steps = min(wanted, 8 * steps)
    return steps


class Team(NamedTuple):
    """The competitors of a comparison, in processes that were started together."""

    subject: Competitor
    control: Competitor
    rivals: Mapping[str, Competitor]


def compare(
    title: str,
    subject: str,
    start: Callable[[], AbstractContextManager[Team]],
    targets: Mapping[str, float] | None = None,
    pairs: int = FEWEST_PAIRS,
    starts: int = STARTS,
    rest: float = REST,
) -> Comparison:
    """Measure a subject beside its control, another process of the same, and its rivals.

    start: starts all of them, so many times; at least `pairs` pairs are shared out among the starts.
    rest: seconds between two blocks. Raises ValueError for fewer pairs than FEWEST_PAIRS.
    """
    if pairs < FEWEST_PAIRS:
        raise ValueError(f"{pairs} pairs are too few, {FEWEST_PAIRS} at least")
    measured: dict[str, list[Pairing]] = {}
    for _ in range(starts):
        with start() as team:
            others = {f"{subject} again": team.control, **team.rivals}
            for pairing in _measure(team.subject, others, math.ceil(pairs / starts / 2), rest):
                measured.setdefault(pairing.rival, []).append(pairing)
    pairings = [
        Pairing(rival, parts[-1].steps, tuple(pair for part in parts for pair in part.pairs))
        for rival, parts in measured.items()
    ]
    return Comparison(title, subject, pairings[0], tuple(pairings[1:]), dict(targets or {}))


def _measure(
    subject: Competitor, others: Mapping[str, Competitor], rounds: int, rest: float
) -> list[Pairing]:
    """In every round one ABBA, that is two pairs, of the subject with each of the others in turn."""
    for competitor in (subject, *others.values()):
        competitor.run(1)  # everybody has started before anybody is timed
    own = calibrate(subject)
    steps = {name: calibrate(competitor) for name, competitor in others.items()}
    measured: dict[str, list[Pair]] = {name: [] for name in others}
    for _ in range(rounds):
        for name, rows in measured.items():
            a, b = (subject, own), (others[name], steps[name])
            blocks = []
            for competitor, count in (a, b, b, a):
                time.sleep(rest)
                blocks.append(competitor.run(count))
            first, second, third, fourth = blocks
            rows += [(*first, *second), (*fourth, *third)]
    return [Pairing(name, (own, steps[name]), tuple(rows)) for name, rows in measured.items()]


def save(path: Path, machine: Mapping[str, Any], comparisons: Sequence[Comparison]) -> None:
    """Write machine and comparisons, every pair included, as JSON. Ratios follow from the pairs."""
    method = {
        "order": "ABBA",
        "block_seconds": BLOCK,
        "starts": STARTS,
        "confidence": CONFIDENCE,
        "statistic": "median of rival / subject, percentile bootstrap",
    }
    content = {"machine": dict(machine), "method": method, "comparisons": [c.to_dict() for c in comparisons]}
    path.write_text(json.dumps(content, indent=1) + "\n")
