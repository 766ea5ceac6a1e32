"""Digits drawn for tests and benchmarks, stroke by stroke, in any number of hands, saved in many styles.

A digit is a list of strokes; a stroke is a few points of the unit square through which a smooth
curve goes, as a hand would. `draw` gives its coverage, a style makes a picture file of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Points = list[tuple[float, float]]  # (x, y) in the unit square, y downwards

HANDS: dict[int, list[list[Points]]] = {
    0: [
        [[(0.5, 0.0), (0.16, 0.2), (0.1, 0.6), (0.4, 1.0), (0.8, 0.8), (0.88, 0.35), (0.5, 0.0)]],
        [[(0.6, 0.02), (0.2, 0.12), (0.02, 0.5), (0.2, 0.9), (0.6, 1.0), (0.95, 0.6), (0.85, 0.2), (0.5, 0.0)]],
        [[(0.55, 0.0), (0.3, 0.25), (0.28, 0.7), (0.45, 1.0), (0.68, 0.72), (0.7, 0.3), (0.5, 0.03)]],
    ],
    1: [
        [[(0.5, 0.0), (0.5, 1.0)]],
        [[(0.6, 0.0), (0.52, 0.5), (0.42, 1.0)]],
        [[(0.3, 0.22), (0.55, 0.0)], [(0.55, 0.0), (0.53, 1.0)]],
    ],
    2: [
        [[(0.12, 0.25), (0.3, 0.03), (0.7, 0.05), (0.78, 0.35), (0.5, 0.65), (0.1, 1.0)], [(0.1, 1.0), (0.9, 0.97)]],
        [[(0.15, 0.2), (0.45, 0.0), (0.8, 0.2), (0.6, 0.6), (0.2, 0.95), (0.12, 0.85), (0.3, 0.8), (0.6, 0.98), (0.95, 0.92)]],
        [[(0.1, 0.15), (0.5, 0.0), (0.85, 0.25), (0.65, 0.55), (0.15, 0.98)], [(0.15, 0.98), (0.5, 0.95), (0.9, 1.0)]],
    ],
    3: [
        [[(0.15, 0.1), (0.5, 0.0), (0.8, 0.2), (0.6, 0.43), (0.4, 0.47)], [(0.4, 0.47), (0.7, 0.52), (0.88, 0.75), (0.55, 1.0), (0.12, 0.9)]],
        [[(0.2, 0.05), (0.6, 0.02), (0.75, 0.25), (0.45, 0.48), (0.8, 0.65), (0.7, 0.93), (0.35, 1.0), (0.15, 0.85)]],
        [[(0.1, 0.18), (0.4, 0.0), (0.75, 0.15), (0.65, 0.4), (0.35, 0.5)], [(0.35, 0.5), (0.8, 0.6), (0.8, 0.9), (0.45, 1.0), (0.08, 0.85)]],
    ],
    4: [
        [[(0.2, 0.0), (0.12, 0.55)], [(0.12, 0.55), (0.9, 0.52)], [(0.7, 0.05), (0.68, 1.0)]],
        [[(0.6, 0.0), (0.1, 0.68)], [(0.1, 0.68), (0.92, 0.66)], [(0.62, 0.02), (0.6, 1.0)]],
        [[(0.15, 0.05), (0.15, 0.45), (0.4, 0.58), (0.8, 0.5)], [(0.8, 0.0), (0.75, 0.5), (0.7, 1.0)]],
    ],
    5: [
        [[(0.82, 0.02), (0.28, 0.05)], [(0.28, 0.05), (0.2, 0.45)], [(0.2, 0.45), (0.55, 0.38), (0.85, 0.65), (0.6, 0.97), (0.12, 0.92)]],
        [[(0.9, 0.0), (0.35, 0.02)], [(0.35, 0.02), (0.25, 0.42)], [(0.25, 0.42), (0.65, 0.42), (0.8, 0.72), (0.5, 1.0), (0.1, 0.9)]],
        [[(0.25, 0.05), (0.22, 0.42)], [(0.22, 0.42), (0.5, 0.4), (0.78, 0.65), (0.55, 0.98), (0.15, 0.95)], [(0.25, 0.05), (0.8, 0.02)]],
    ],
    6: [
        [[(0.7, 0.0), (0.35, 0.3), (0.18, 0.7), (0.4, 1.0), (0.75, 0.85), (0.68, 0.55), (0.4, 0.55), (0.2, 0.75)]],
        [[(0.55, 0.0), (0.25, 0.35), (0.15, 0.75), (0.45, 1.0), (0.8, 0.78), (0.55, 0.52), (0.2, 0.7)]],
        [[(0.75, 0.05), (0.3, 0.25), (0.12, 0.65), (0.35, 0.98), (0.7, 0.95), (0.85, 0.7), (0.55, 0.5), (0.18, 0.7)]],
    ],
    7: [
        [[(0.12, 0.06), (0.88, 0.03)], [(0.88, 0.03), (0.55, 0.5), (0.4, 1.0)]],
        [[(0.1, 0.08), (0.5, 0.05), (0.85, 0.0)], [(0.85, 0.0), (0.6, 0.45), (0.35, 1.0)], [(0.35, 0.5), (0.78, 0.46)]],
        [[(0.15, 0.15), (0.2, 0.03), (0.85, 0.05)], [(0.85, 0.05), (0.6, 0.4), (0.5, 1.0)]],
    ],
    8: [
        [[(0.75, 0.15), (0.45, 0.0), (0.22, 0.2), (0.5, 0.45), (0.8, 0.72), (0.5, 1.0), (0.2, 0.75), (0.5, 0.45), (0.75, 0.15)]],
        [[(0.5, 0.0), (0.25, 0.22), (0.5, 0.46), (0.75, 0.22), (0.5, 0.0)], [(0.5, 0.46), (0.18, 0.72), (0.5, 1.0), (0.85, 0.72), (0.5, 0.46)]],
        [[(0.8, 0.1), (0.5, 0.02), (0.3, 0.22), (0.6, 0.5), (0.72, 0.8), (0.45, 1.0), (0.22, 0.8), (0.4, 0.52), (0.8, 0.1)]],
    ],
    9: [
        [[(0.8, 0.25), (0.5, 0.0), (0.2, 0.25), (0.45, 0.52), (0.8, 0.25)], [(0.8, 0.25), (0.78, 0.6), (0.7, 1.0)]],
        [[(0.78, 0.12), (0.4, 0.02), (0.2, 0.3), (0.45, 0.5), (0.78, 0.12)], [(0.78, 0.12), (0.75, 0.6), (0.55, 0.95), (0.25, 0.98)]],
        [[(0.75, 0.2), (0.45, 0.0), (0.2, 0.28), (0.5, 0.5), (0.75, 0.2)], [(0.75, 0.2), (0.6, 0.65), (0.45, 1.0)]],
    ],
}  # fmt: skip


HURRIED = 0.05  # how far a point of a hurried hand may be off, standard deviation in digit heights
CAREFUL = 3  # hands drawn with care; all that follow are these in a hurry
HAND_COUNT = 9  # what tests go through: each of the three hands twice in a hurry as well


def strokes(digit: int, hand: int) -> list[Points]:
    """The strokes of a digit in a hand, counted from 0; from the fourth on, the first three in a hurry."""
    careful = HANDS[digit][hand % CAREFUL]
    if hand < CAREFUL:
        return careful
    rng = np.random.default_rng([digit, hand])
    slant, breadth = rng.uniform(-0.25, 0.25), rng.uniform(0.75, 1.25)
    moved: dict[tuple[float, float], tuple[float, float]] = {}  # strokes that met still meet
    for x, y in (point for stroke in careful for point in stroke):
        dx, dy = rng.normal(0, HURRIED, 2)
        moved.setdefault((x, y), (0.5 + breadth * (x + dx - 0.5) + slant * (0.5 - y), y + dy))
    return [[moved[point] for point in stroke] for stroke in careful]


def curve(points: Points, steps: int = 24) -> np.ndarray:
    """A smooth curve (n, 2) through the points: a Catmull-Rom spline."""
    p = np.array([points[0], *points, points[-1]])
    t = np.linspace(0, 1, steps)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    return np.concatenate(parts)


def draw(
    digit: int,
    hand: int = 0,
    *,
    size: tuple[int, int] = (280, 280),
    height: float = 0.6,
    centre: tuple[float, float] = (0.5, 0.5),
    width: float = 0.09,
    angle: float = 0.0,
) -> np.ndarray:
    """The digit's coverage, float64 (H, W): 0 paper, 1 ink, smooth edges.

    size: (W, H) in pixels. height: of the digit, in picture heights. centre: of the digit, as a part
    of the picture. width: of the pen, in digit heights. angle: degrees, anticlockwise.
    """
    scale = 4
    unit = height * size[1] * scale
    canvas = Image.new("L", (size[0] * scale, size[1] * scale))
    pen = ImageDraw.Draw(canvas)
    radius = max(width * unit / 2, 0.5)
    turn = np.radians(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for stroke in strokes(digit, hand):
        xy = (curve(stroke) - 0.5) * (0.75, 1.0) @ matrix.T * unit + np.array(centre) * canvas.size
        pen.line([tuple(point) for point in xy], fill=255, width=max(1, round(2 * radius)), joint="curve")
        for x, y in xy:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(canvas.reduce(scale)) / 255


def grey(levels: np.ndarray) -> Image.Image:
    """Levels in [0, 1] as an 8-bit picture."""
    return Image.fromarray(np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8))


def coloured(
    coverage: np.ndarray, ink: tuple[float, float, float], paper: np.ndarray | tuple[float, float, float]
) -> Image.Image:
    """Ink of one colour over paper (a colour, or a picture (H, W, 3)), in [0, 1]."""
    mixed = coverage[..., None] * np.array(ink) + (1 - coverage[..., None]) * np.array(paper)
    return Image.fromarray(np.rint(np.clip(mixed, 0, 1) * 255).astype(np.uint8))


def ruled(size: tuple[int, int], spacing: int, squared: bool) -> np.ndarray:
    """Paper (H, W, 3) with light blue lines, two pixels wide."""
    paper = np.ones((size[1], size[0], 3))
    paper[spacing // 2 :: spacing] = paper[spacing // 2 + 1 :: spacing] = (0.72, 0.82, 0.95)
    if squared:
        paper[:, spacing // 2 :: spacing] = paper[:, spacing // 2 + 1 :: spacing] = (0.72, 0.82, 0.95)
    return paper


def photographed(coverage: np.ndarray, seed: int) -> np.ndarray:
    """A sheet under a lamp: light that falls off, the shadow of a hand, grain of paper, noise."""
    rng = np.random.default_rng(seed)
    height, width = coverage.shape
    y, x = np.mgrid[:height, :width] / max(height, width)
    light = 0.9 - 0.35 * np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1))
    edge = x * np.cos(0.5) + y * np.sin(0.5) - rng.uniform(0.75, 1.0)
    light *= 1 - 0.3 / (1 + np.exp(-edge * 60))
    grain = Image.fromarray(rng.normal(0, 0.02, (height // 4, width // 4)).astype(np.float32))
    light = light * (1 + np.asarray(grain.resize((width, height), Image.Resampling.BICUBIC)))
    return light * (1 - 0.75 * coverage) + rng.normal(0, 0.02, coverage.shape)


def _dark_on_light(digit: int, hand: int, path: Path) -> Path:
    return _save(grey(1 - draw(digit, hand)), path, ".png")


def _light_on_dark(digit: int, hand: int, path: Path) -> Path:
    return _save(grey(0.15 + 0.8 * draw(digit, hand, width=0.11)), path, ".png")


def _thin(digit: int, hand: int, path: Path) -> Path:
    return _save(grey(1 - 0.9 * draw(digit, hand, size=(600, 600), width=0.012)), path, ".png")


def _thick(digit: int, hand: int, path: Path) -> Path:
    return _save(grey(1 - draw(digit, hand, width=0.2)), path, ".png")


def _off_centre(digit: int, hand: int, path: Path) -> Path:
    return _save(grey(1 - draw(digit, hand, height=0.4, centre=(0.25, 0.72))), path, ".bmp")


def _small(digit: int, hand: int, path: Path) -> Path:
    coverage = draw(digit, hand, size=(1600, 1200), height=0.06, centre=(0.7, 0.3), width=0.1)
    return _save(grey(0.95 - 0.85 * coverage), path, ".png")


def _photo(digit: int, hand: int, path: Path) -> Path:
    coverage = draw(digit, hand, size=(1200, 900), height=0.45, centre=(0.45, 0.52), width=0.06, angle=-4)
    return _save(grey(photographed(coverage, seed=10 * hand + digit)), path, ".jpg", quality=80)


def _transparent(digit: int, hand: int, path: Path) -> Path:
    picture = np.zeros((200, 200, 4), dtype=np.uint8)  # black everywhere, seen only where opaque
    picture[..., 3] = np.rint(draw(digit, hand, size=(200, 200)) * 255)
    return _save(Image.fromarray(picture), path, ".png")


def _sixteen_bit(digit: int, hand: int, path: Path) -> Path:
    levels = np.rint(65535 * (0.5 - 0.3 * draw(digit, hand))).astype(np.uint16)
    return _save(Image.fromarray(levels), path, ".png")


def _squared_paper(digit: int, hand: int, path: Path) -> Path:
    coverage = draw(digit, hand, size=(500, 500), height=0.35, width=0.05)
    return _save(coloured(coverage, (0.1, 0.15, 0.6), ruled((500, 500), 40, True)), path, ".png")


def _ruled_paper(digit: int, hand: int, path: Path) -> Path:
    coverage = draw(digit, hand, size=(640, 480), height=0.3, centre=(0.4, 0.55), width=0.05)
    return _save(coloured(coverage, (0.75, 0.1, 0.1), ruled((640, 480), 60, False)), path, ".webp")


def _rotated(digit: int, hand: int, path: Path) -> Path:
    return _save(grey(1 - draw(digit, hand, angle=12)), path, ".png")


def _jpeg(digit: int, hand: int, path: Path) -> Path:
    return _save(grey(0.9 - 0.7 * draw(digit, hand, width=0.07)), path, ".jpg", quality=35)


def _pencil(digit: int, hand: int, path: Path) -> Path:
    rng = np.random.default_rng(digit)
    coverage = draw(digit, hand, size=(500, 500), width=0.035)
    grain = rng.uniform(0.5, 1, coverage.shape)
    return _save(grey(0.93 - 0.3 * coverage * grain + rng.normal(0, 0.01, grain.shape)), path, ".png")


def _save(image: Image.Image, path: Path, suffix: str, **options: Any) -> Path:
    path = path.with_suffix(suffix)
    image.save(path, **options)
    return path


STYLES: dict[str, Callable[[int, int, Path], Path]] = {
    "dark on light": _dark_on_light,
    "light on dark": _light_on_dark,
    "thin": _thin,
    "thick": _thick,
    "off-centre": _off_centre,
    "photo": _photo,
    "transparent": _transparent,
    "16 bit": _sixteen_bit,
    "squared paper": _squared_paper,
    "rotated": _rotated,
    "small in a large picture": _small,
    "ruled paper": _ruled_paper,
    "JPEG": _jpeg,
    "pencil": _pencil,
}
