"""The ten digits, drawn stroke by stroke for this project in NumPy: known pictures that need no data set.

A digit is a list of strokes; a stroke is a few points of the unit square through which a smooth curve
goes, as a hand would. A round pen follows it, and the digit's own centre comes into the middle, white
ink on black, of MNIST's proportions. The same pixels on every machine: only operations that IEEE 754
rounds exactly are used, and sums are exact.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import fsum

import numpy as np

Points = tuple[tuple[float, float], ...]  # (x, y) in the unit square, y downwards

BOX = 20 / 28  # a digit's height in parts of the picture's shorter side
BREADTH = 0.75  # of a digit, in parts of its height
PEN = 0.065  # radius in parts of a digit's height
STEPS = 8  # straight pieces of a curve between two points

DIGITS: tuple[tuple[Points, ...], ...] = (
    (((0.5, 0.0), (0.16, 0.2), (0.1, 0.6), (0.4, 1.0), (0.8, 0.8), (0.88, 0.35), (0.5, 0.0)),),
    (((0.58, 0.0), (0.52, 0.5), (0.44, 1.0)),),
    (
        ((0.12, 0.25), (0.3, 0.03), (0.7, 0.05), (0.78, 0.35), (0.5, 0.65), (0.1, 1.0)),
        ((0.1, 1.0), (0.9, 0.97)),
    ),
    (
        ((0.15, 0.1), (0.5, 0.0), (0.8, 0.2), (0.6, 0.43), (0.4, 0.47)),
        ((0.4, 0.47), (0.7, 0.52), (0.88, 0.75), (0.55, 1.0), (0.12, 0.9)),
    ),
    (((0.2, 0.0), (0.12, 0.55)), ((0.12, 0.55), (0.9, 0.52)), ((0.7, 0.05), (0.68, 1.0))),
    (
        ((0.82, 0.02), (0.28, 0.05)),
        ((0.28, 0.05), (0.2, 0.45)),
        ((0.2, 0.45), (0.55, 0.38), (0.85, 0.65), (0.6, 0.97), (0.12, 0.92)),
    ),
    (
        (
            (0.7, 0.0),
            (0.35, 0.3),
            (0.18, 0.7),
            (0.4, 1.0),
            (0.75, 0.85),
            (0.68, 0.55),
            (0.4, 0.55),
            (0.2, 0.75),
        ),
    ),
    (((0.12, 0.06), (0.88, 0.03)), ((0.88, 0.03), (0.55, 0.5), (0.4, 1.0))),
    (
        (
            (0.75, 0.15),
            (0.45, 0.0),
            (0.22, 0.2),
            (0.5, 0.45),
            (0.8, 0.72),
            (0.5, 1.0),
            (0.2, 0.75),
            (0.5, 0.45),
            (0.75, 0.15),
        ),
    ),
    (
        ((0.8, 0.25), (0.5, 0.0), (0.2, 0.25), (0.45, 0.52), (0.8, 0.25)),
        ((0.8, 0.25), (0.78, 0.6), (0.7, 1.0)),
    ),
)


@cache
def drawn(digit: int, height: int, width: int) -> np.ndarray:
    """A picture of a digit, uint8 (height, width), 255 where there is most ink. Not to be written to."""
    curves = [_curve(stroke) for stroke in DIGITS[digit]]
    points = np.concatenate(curves)
    middle = np.array([fsum(points[:, axis]) / len(points) for axis in (0, 1)])
    unit = BOX * min(height, width)
    frame = np.array([BREADTH * unit, unit])
    y, x = np.mgrid[:height, :width] + 0.5
    nearest = np.full((height, width), np.inf)  # squared, to the middle of the stroke
    for curve in curves:
        placed = (curve - middle) * frame + np.array([width / 2, height / 2])
        for (x0, y0), (x1, y1) in pairwise(placed):
            dx, dy = x1 - x0, y1 - y0
            along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
            across, down = x - x0 - along * dx, y - y0 - along * dy
            nearest = np.minimum(nearest, across * across + down * down)
    coverage = np.clip(PEN * unit + 0.5 - np.sqrt(nearest), 0, 1)
    picture = np.rint(255 * coverage).astype(np.uint8)
    picture.setflags(write=False)
    return picture


def _curve(stroke: Points) -> np.ndarray:
    """A smooth curve (n, 2) through the points: a Catmull-Rom spline."""
    p = np.array([stroke[0], *stroke, stroke[-1]])
    t = (np.arange(STEPS) / STEPS)[:, None]
    parts = [
        0.5
        * (
            2 * b
            + (c - a) * t
            + (2 * a - 5 * b + 4 * c - d) * (t * t)
            + (3 * b - a - 3 * c + d) * (t * t * t)
        )
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    return np.concatenate([*parts, p[-1:]])
