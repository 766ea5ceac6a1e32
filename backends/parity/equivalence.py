"""Is a difference small enough not to matter? Two one-sided tests on paired differences (TOST).

Two trainings of one model end at nearly, not exactly, the same accuracy. A test that finds no
difference proves nothing; equivalence is claimed only where the confidence interval of the mean
difference lies within a margin fixed beforehand (Schuirmann, 1987). Differences are paired by seed,
so what the seed does to both sides cancels. Student's distribution stands here in closed form for
whole degrees of freedom: SciPy would be a large dependency for one quantile.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import InvalidInput

MARGIN = 0.3  # percentage points of accuracy
ALPHA = 0.05  # of each one-sided test
POWER = 0.9
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Equivalence:
    """The verdict on paired differences.

    differences: one per seed, in percentage points. interval: the 1 - 2 alpha confidence interval of
    their mean, which decides equivalence at level alpha. verdict: "equivalent" if it lies within
    +-margin; otherwise "different" if a two-sided t test at level alpha finds a difference;
    otherwise "inconclusive".
    """

    differences: tuple[float, ...]
    mean: float
    deviation: float
    interval: tuple[float, float]
    verdict: str
    margin: float = MARGIN
    alpha: float = ALPHA

    @property
    def seeds_needed(self) -> int:
        """The seeds that show equivalence with a power of 0.9, if there is no true difference."""
        return seeds_for(self.deviation, self.margin, self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {
            "verdict": self.verdict,
            "mean": self.mean,
            "deviation": self.deviation,
            "interval": list(self.interval),
            "margin": self.margin,
            "alpha": self.alpha,
            "seeds": len(self.differences),
            "seeds_needed": self.seeds_needed,
            "differences": list(self.differences),
        }


def judge(differences: Sequence[float], margin: float = MARGIN, alpha: float = ALPHA) -> Equivalence:
    """Test paired differences for equivalence. Raises InvalidInput for fewer than two."""
    count = len(differences)
    if count < 2:
        raise InvalidInput(f"{count} paired differences show nothing", "--seeds", "give at least 2")
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    error = deviation / math.sqrt(count)
    half = error * t_quantile(1 - alpha, count - 1)
    low, high = mean - half, mean + half
    if -margin < low and high < margin:
        verdict = "equivalent"
    elif abs(mean) > error * t_quantile(1 - alpha / 2, count - 1):
        verdict = "different"
    else:
        verdict = "inconclusive"
    return Equivalence(tuple(differences), mean, deviation, (low, high), verdict, margin, alpha)


def seeds_for(deviation: float, margin: float = MARGIN, alpha: float = ALPHA, power: float = POWER) -> int:
    """How many seeds show equivalence with this power where there is no true difference.

    The smallest n with n >= ((t(1 - alpha) + t(1 - (1 - power) / 2)) * deviation / margin)^2, t of
    n - 1 degrees of freedom; deviation: of one paired difference, in the unit of the margin. (Julious,
    Statistics in Medicine 23, 2004.) At most MOST_SEEDS.
    """
    for count in range(2, MOST_SEEDS):
        quantiles = t_quantile(1 - alpha, count - 1) + t_quantile((1 + power) / 2, count - 1)
        if count >= (quantiles * deviation / margin) ** 2:
            return count
    return MOST_SEEDS


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Where Student's distribution function reaches a probability in [0.5, 1), by bisection."""
    low, high = 0.0, 1.0
    while _t_distribution(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_distribution(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0 (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= (k - 1) / k * math.cos(angle) ** 2
    inside = math.sin(angle) * total
    return 0.5 + (angle + inside) / math.pi if odd else 0.5 + inside / 2
