"""One tensor, or one set of decisions, against the reference's. Nothing is made to match.

A wrong shape, dtype or a value that is not finite is a failure whatever the numbers say; nothing is
sorted, transposed or broadcast.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.inference.vectors import ABSOLUTE, RELATIVE


@dataclass(frozen=True)
class Comparison:
    """One tensor against the reference. ratio: the largest difference as a multiple of its limit.

    limit is in the tensor's unit; for an element-wise limit it is the one at the worst element.
    """

    max_abs_diff: float
    limit: float
    ratio: float
    worst: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the tensor is within its limit."""
        return not self.problem and self.ratio <= 1

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON data; figures that do not exist are null."""
        data: dict[str, Any] = {
            "max_abs_diff": _figure(self.max_abs_diff),
            "limit": _figure(self.limit),
            "max_ratio": _figure(self.ratio),
            "passed": self.passed,
        }
        if self.problem:
            data["problem"] = self.problem
        elif not self.passed:
            data |= {"worst_index": list(self.worst), "got": self.got, "expected": self.expected}
        return data

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        text = f"max|d| {self.max_abs_diff:.1e} of {self.limit:.1e} allowed"
        if self.passed:
            return text
        index = ", ".join(map(str, self.worst))
        return f"{text}; at [{index}] got {self.got:.7g}, expected {self.expected:.7g}"


def _figure(value: float) -> float | None:
    return None if np.isnan(value) else value


def outer_limit(expected: np.ndarray) -> float:
    """1e-5 + 2e-5 max|expected|, norm-wise. Honest differences measure up to 6e-6 at logits of 12."""
    return float(ABSOLUTE + RELATIVE * np.abs(expected).max(initial=0))


def compare(
    got: np.ndarray,
    expected: np.ndarray,
    limit: np.ndarray | float | None = None,
    dtype: str = "float32",
) -> Comparison:
    """A witness's tensor against the reference's, under the outer limit or another one.

    got: any shape, of the given dtype. expected: float64, same shape. limit: None for the outer one, a
    number, or one per element.
    """
    nothing = float("nan")
    if got.shape != expected.shape:
        return Comparison(nothing, nothing, nothing, problem=f"shape {got.shape}, not {expected.shape}")
    if got.dtype != dtype:
        return Comparison(nothing, nothing, nothing, problem=f"dtype {got.dtype}, not {dtype}")
    bad = np.count_nonzero(~np.isfinite(got))
    if bad:
        return Comparison(nothing, nothing, nothing, problem=f"{bad} values are NaN or infinite")
    difference = np.abs(got.astype(np.float64) - expected)
    allowed = np.asarray(outer_limit(expected) if limit is None else limit, dtype=np.float64)
    with np.errstate(over="ignore"):
        ratios = difference / np.maximum(allowed, np.finfo(np.float64).tiny)
    worst = np.unravel_index(ratios.argmax(), ratios.shape)
    return Comparison(
        float(difference.max()),
        float(np.broadcast_to(allowed, got.shape)[worst]),
        float(ratios[worst]),
        tuple(int(i) for i in worst),
        float(got[worst]),
        float(expected[worst]),
    )


def worst_of(comparisons: Iterable[Comparison]) -> Comparison:
    """The comparison that is furthest beyond its limit; one with a problem before all others."""
    return max(comparisons, key=worst_key)


def worst_key(comparison: Comparison) -> tuple[bool, float]:
    """What comparisons are ordered by, the worst last."""
    return bool(comparison.problem), comparison.ratio


@dataclass(frozen=True)
class Decisions:
    """Whether a witness decides as the reference does. Entries are image numbers.

    flips: another class is largest. open: images whose margin in the reference is at most twice
    the allowed difference, so that an honest witness could turn them; none means that no decision
    can differ. forbidden: flips of images that are not open.
    """

    flips: list[int]
    forbidden: list[int]
    open: list[int]
    smallest_margin: float | None  # None with a single class

    @property
    def passed(self) -> bool:
        """Whether every flip is one that rounding explains."""
        return not self.forbidden

    @property
    def certificate(self) -> str:
        """What is certain about the decisions of any witness within the limits, in words."""
        if not self.open:
            return "no decision can differ"
        more = f" and {len(self.open) - 5} more" if len(self.open) > 5 else ""
        return f"only images {', '.join(map(str, self.open[:5]))}{more} could differ"

    def to_dict(self) -> dict[str, Any]:
        """The decisions as JSON data, at most 100 image numbers of each kind."""
        return {
            "flips": len(self.flips),
            "flipped_images": self.flips[:100],
            "forbidden_images": self.forbidden[:100],
            "open": len(self.open),
            "open_images": self.open[:100],
            "smallest_margin": self.smallest_margin,
            "certificate": self.certificate,
            "passed": self.passed,
        }


def decide(got: np.ndarray, expected: np.ndarray, limit: np.ndarray) -> Decisions:
    """Compare the decisions of two outputs (N, classes) of the same shape; logits, or monotonic in them.

    limit: (N,), what an expected output of each image is allowed to differ. A class can only overtake another
    by half their margin each, so a flip within the limit needs a margin of at most twice the limit.
    """
    if expected.shape[1] == 1:
        return Decisions([], [], [], None)
    ordered = np.sort(expected, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    flipped = got.argmax(axis=1) != expected.argmax(axis=1)
    undecided = margin <= 2 * limit
    return Decisions(
        np.flatnonzero(flipped).tolist(),
        np.flatnonzero(flipped & ~undecided).tolist(),
        np.flatnonzero(undecided).tolist(),
        float(margin.min()),
    )
