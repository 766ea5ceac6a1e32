"""Is one file less accurate than another? Both are asked about the same test images.

What counts is the images on which just one of them is right (McNemar, 1947). The drop in accuracy gets the
interval of Bonett and Price (Journal of Educational and Behavioral Statistics 37, 2012), which adds one
image to either side: unlike Wald's it does not shrink to nothing where the files agree on every image, so
few test images cannot show that nothing is lost. The gate is on its upper end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import numpy as np

MOST_DROP = 0.3  # percentage points of accuracy: the gate
CONFIDENCE = 0.95
SHOWN = 10  # images in one sentence
LISTED = 100  # images in JSON data

_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Drop:
    """What one file loses against another on the same test images.

    right: (before, after), images that each gets right. lost, gained: images that only the first, only the
    second gets right. flips: the numbers of the images to which they give different classes. most: the
    largest drop that is accepted, in percentage points.
    """

    images: int
    right: tuple[int, int]
    lost: int
    gained: int
    flips: tuple[int, ...]
    most: float = MOST_DROP

    @property
    def points(self) -> float:
        """The drop in accuracy, in percentage points; negative where the second file is better."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the drop, in percentage points (Bonett and Price)."""
        total = self.images + 2
        lost, gained = (self.lost + 1) / total, (self.gained + 1) / total
        half = _Z * math.sqrt((lost + gained - (lost - gained) ** 2) / total)
        return 100 * (lost - gained - half), 100 * (lost - gained + half)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how probable so uneven a split is if both are equally good."""
        total, fewer = self.lost + self.gained, min(self.lost, self.gained)
        one_side = Fraction(sum(math.comb(total, k) for k in range(fewer + 1)), 2**total)
        return min(1.0, float(2 * one_side))

    @property
    def passed(self) -> bool:
        """Whether the upper end of the interval is at most what is accepted."""
        return self.interval[1] <= self.most

    @property
    def possible(self) -> bool:
        """Whether so many images could show it at all."""
        return self.images >= images_needed(self.most)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        before, after = (right / self.images for right in self.right)
        return {
            "images": self.images,
            "accuracy": {"float32": before, "reduced": after},
            "drop": self.points,
            "interval": list(self.interval),
            "limit": self.most,
            "passed": self.passed,
            "mcnemar": {"lost": self.lost, "gained": self.gained, "p": self.p_value},
            "flips": {"total": len(self.flips), "images": list(self.flips[:LISTED])},
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.points:.2f} points, 95 % interval {low:.2f} to {high:.2f}, {self.most:g} allowed"


def compare(before: np.ndarray, after: np.ndarray, labels: np.ndarray, most: float = MOST_DROP) -> Drop:
    """What is lost from outputs (N, classes) to other outputs of the same images with labels (N,).

    Outputs that are no numbers are wrong.
    """
    decided = before.argmax(axis=1), after.argmax(axis=1)
    first, second = (
        (classes == labels) & np.isfinite(outputs).all(axis=1)
        for classes, outputs in zip(decided, (before, after), strict=True)
    )
    return Drop(
        images=len(labels),
        right=(int(first.sum()), int(second.sum())),
        lost=int((first & ~second).sum()),
        gained=int((second & ~first).sum()),
        flips=tuple(map(int, np.flatnonzero(decided[0] != decided[1]))),
        most=most,
    )


def images_needed(most: float = MOST_DROP) -> int:
    """How many test images can show a drop of at most so many points, if no decision differs."""
    return math.ceil(100 * _Z * math.sqrt(2) / most - 2)
