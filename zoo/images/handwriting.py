"""From a grey picture of one digit to the 28x28 image that MNIST would show of it.

MNIST's makers scaled each digit, its proportions kept, into a box of 20x20 pixels and put its centre
of mass into the middle of 28x28, white ink on black. A network trained on that reads little else:
four pixels off the middle, most digits are lost. So `to_mnist` finds the paper (one level, or a
surface under uneven light), decides which side of it is ink, keeps the digit and drops specks, lines
and frames, brings a thin pen's strokes to a width that survives, and then does what MNIST's makers
did. A picture that already looks like MNIST comes out nearly as it was.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from zoo.errors import InvalidInput

SIDE = 28  # pixels of the image
BOX = 20  # pixels of the digit's longer side
LEAST_CONTRAST = 0.08  # of ink to paper; what a JPEG's noise leaves on a blank page is less
LEAST_SIGNIFICANCE = 4.5  # of ink, in standard deviations of the paper's noise
LEAST_EXPLAINED = 0.78  # of the variance, by two levels alone: ink and paper in even light
FAINT = 0.3  # ink; below it, what is smaller than SPOT or thinner than GRAIN is the paper's texture
SPOT = 0.05  # a digit's longer side in parts of the picture's
GRAIN, LINE = 0.01, 0.04  # strokes in parts of the digit's longer side; what crosses the picture is thicker
PAPER_GRID = 64  # pixels of the longer side at which uneven light is estimated
THINNEST, THICKEST = 1.8, 3.0  # width of strokes in pixels of the 28x28 image; MNIST's are mostly 2 to 3
FINE = 4  # strokes are measured and changed on at least 4 x 4 points per pixel


class Blobs(NamedTuple):
    """The connected parts of a mask, 8-neighbours. labels: int (H, W), 0 outside, parts from 1.

    areas: pixels of each part. boxes: (top, left, bottom, right) of each, the last two exclusive.
    """

    labels: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def to_mnist(grey: np.ndarray) -> np.ndarray:
    """The digit in a grey picture (H, W) in [0, 1], as float32 (28, 28) in [0, 1], white on black.

    Raises InvalidInput, "no digit found", where nothing in the picture stands out.
    """
    return _centred(_boxed(_with_strokes_of_usual_width(_digit(grey))))


def _ink(grey: np.ndarray) -> np.ndarray:
    """Ink (H, W): 0 on the paper, 1 where it is as dark (or as light) as it can be, below 0 beyond."""
    paper = _paper(grey)
    dark = (paper - grey) / np.maximum(paper, 0.5)
    light = (grey - paper) / np.maximum(1 - paper, 0.5)
    strengths = [np.sum(np.square(grey - paper), where=ink > LEAST_CONTRAST) for ink in (dark, light)]
    return dark if strengths[0] >= strengths[1] else light


def _paper(grey: np.ndarray) -> np.ndarray:
    """The level of the paper under every pixel (H, W): one level if the border has one."""
    height, width = grey.shape
    factor = max(1.0, max(height, width) / PAPER_GRID)
    small = _resized(grey, max(1, round(width / factor)), max(1, round(height / factor)))
    sides = (small[0], small[-1], small[:, 0], small[:, -1])
    rim = np.concatenate(sides)
    level = np.median(rim)
    if np.percentile(np.abs(rim - level), 80) < LEAST_CONTRAST / 2:
        return np.full(grey.shape, level)
    threshold, explained = otsu(grey)
    inked = [(side > threshold) != (level > threshold) for side in sides]
    if explained > LEAST_EXPLAINED and all(side.any() for side in inked):  # the picture is cut closely
        return np.full(grey.shape, np.median(rim[~np.concatenate(inked)]))
    window = max(small.shape) // 4 * 2 + 1
    surface = Image.fromarray(small.astype(np.float32)).filter(ImageFilter.MedianFilter(window))
    return _resized(np.asarray(surface), width, height, Image.Resampling.BILINEAR)


def _digit(grey: np.ndarray, sheets: int = 2) -> np.ndarray:
    """The ink of the digit alone, cropped to it, scaled so that its strokes are about 1.

    sheets: how many times a digit may lie on a sheet that lies in the picture.
    """
    if min(grey.shape) < 2:
        raise InvalidInput("no digit found")
    ink = _ink(grey)
    seen = ink[ink > LEAST_CONTRAST]
    if not seen.size:
        raise InvalidInput("no digit found")
    strongest = float(np.percentile(seen, 98))
    noise = 1.0484 * float(np.median(np.abs(np.diff(ink, axis=1))))  # from neighbours: 1.4826 / sqrt(2)
    if strongest < LEAST_SIGNIFICANCE * noise:
        raise InvalidInput("no digit found")
    mask = _mask(ink, strongest)
    top, left, bottom, right = _box(mask)
    if sheets and _is_sheet(mask[top:bottom, left:right]):
        inset = max(bottom - top, right - left) // 16
        inside = grey[top + inset : bottom - inset, left + inset : right - inset]
        with suppress(InvalidInput):  # nothing on it: the digit is a bar
            return _digit(inside, sheets - 1)
    fringe = max(1, round(max(bottom - top, right - left) / 40))
    window = np.s_[
        max(0, top - fringe) : bottom + fringe,
        max(0, left - fringe) : right + fringe,
    ]
    full = np.percentile(ink[mask], 75)
    faint = min(2 * noise, full / 4)
    near = np.clip((ink[window] - faint) / (full - faint), 0, 1)
    near[~_grown(mask[window], fringe)] = 0
    top, left, bottom, right = _box(near > 0.1)
    return near[top:bottom, left:right]


def _mask(ink: np.ndarray, strongest: float) -> np.ndarray:
    """Where the digit is, bool (H, W): ink of at least half the strength of the strongest.

    Printed lines cross the picture and join it, but are fainter than the pen: then the level rises.
    Raises InvalidInput, "no digit found", for lines alone and for faint grain.
    """
    crossing = None
    for share in (0.5, 0.65, 0.8):
        blobs = find_blobs(ink > share * strongest)
        chosen = _chosen(blobs, ink.shape)
        if not chosen.any():
            continue
        mask = np.concatenate([[False], chosen])[blobs.labels]
        top, left, bottom, right = _box(mask)
        longer = max(bottom - top, right - left)
        slenderness = stroke_width(mask) / longer
        if bottom - top < ink.shape[0] and right - left < ink.shape[1]:
            if strongest < FAINT and (slenderness < GRAIN or longer < SPOT * max(ink.shape)):
                break
            return mask
        if crossing is None and slenderness > LINE:
            crossing = mask
    if crossing is None:
        raise InvalidInput("no digit found")
    return crossing


def _chosen(blobs: Blobs, shape: tuple[int, ...]) -> np.ndarray:
    """Which parts of the picture are the digit, bool (parts,)."""
    boxes, areas = blobs.boxes, blobs.areas
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    inner: np.ndarray = np.all(boxes[:, :2] > 0, axis=1) & np.all(boxes[:, 2:] < shape, axis=1)
    large = longer >= max(3, 0.02 * max(shape))
    if not large.any():
        return large
    main = np.argmax(areas * large * np.where(inner, 1, 0.05))
    extent = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while areas[main] < 0.35 * extent[main]:  # perhaps a frame or ring drawn around the digit
        enclosed = (boxes[:, :2] > boxes[main, :2]).all(axis=1) & (boxes[:, 2:] < boxes[main, 2:]).all(axis=1)
        enclosed &= longer > 0.35 * longer[main]
        if not enclosed.any():
            break
        main = np.argmax(areas * enclosed)
    outer = (boxes[:, :2] < boxes[main, :2]).all(axis=1) & (boxes[:, 2:] > boxes[main, 2:]).all(axis=1)
    candidates = ~outer & (areas >= 0.02 * areas[main]) & (inner | ~inner[main])
    chosen = np.zeros(len(areas), dtype=bool)
    chosen[main] = True
    while True:  # a pen leaves the paper: what is near belongs to the digit
        low, high = boxes[chosen, :2].min(axis=0), boxes[chosen, 2:].max(axis=0)
        gap = np.maximum(boxes[:, :2] - high, low - boxes[:, 2:]).max(axis=1)
        near = candidates & (gap <= 0.15 * (high - low).max())
        if not (near & ~chosen).any():
            return chosen
        chosen = chosen | near


def _is_sheet(mask: np.ndarray) -> bool:
    """Whether a part of the picture fills its box to the edges, as paper on a table does."""
    inset = max(mask.shape) // 25
    edges = mask[inset : mask.shape[0] - inset, inset : mask.shape[1] - inset]
    if min(edges.shape) < SIDE // 2:
        return False
    return bool(np.mean([edges[0].mean(), edges[-1].mean(), edges[:, 0].mean(), edges[:, -1].mean()]) > 0.9)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest (top, left, bottom, right) around a mask; the last two are exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _with_strokes_of_usual_width(digit: np.ndarray) -> np.ndarray:
    """Thicken strokes that would vanish when the digit is made small, and thin blunt ones."""
    factor = max(1.0, FINE * BOX / max(digit.shape))
    height, width = (max(1, round(side * factor)) for side in digit.shape)
    fine = _resized(digit, width, height, Image.Resampling.BILINEAR)
    unit = max(fine.shape) / BOX
    stroke = stroke_width(fine > 0.5) / unit
    steps = round((np.clip(stroke, THINNEST, THICKEST) - stroke) * unit / 2)
    if steps > 0:
        return _grown(np.pad(fine, steps), steps)
    return 1 - _grown(1 - fine, -steps) if steps < 0 else digit


def stroke_width(mask: np.ndarray) -> float:
    """The mean width of the strokes of a mask (H, W), in pixels: twice the area by the outline.

    The outline's length is Crofton's estimate, pi / 4 per side of a pixel at which ink ends.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    sides = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1))
    return 2 * np.count_nonzero(mask) / (np.pi / 4 * max(sides, 1))


def otsu(grey: np.ndarray) -> tuple[float, float]:
    """Otsu's threshold between two classes of levels in [0, 1], and the share of variance they explain."""
    counts = np.bincount(np.rint(grey * 255).astype(np.int64).ravel(), minlength=256) / grey.size
    levels = np.arange(256) / 255
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * levels)[:-1]
    mean = float(counts @ levels)
    variance = float(counts @ np.square(levels - mean))
    between = np.square(mean * below - sums) / np.maximum(below * (1 - below), 1e-9)
    best = int(np.argmax(between))
    return (best + 0.5) / 255, float(between[best]) / max(variance, 1e-9)


def _boxed(digit: np.ndarray) -> np.ndarray:
    """The digit with its longer side at 20 pixels, each pixel the mean of what it covers."""
    height, width = (max(1, round(side * BOX / max(digit.shape))) for side in digit.shape)
    return _resized(digit, width, height)


def _centred(digit: np.ndarray) -> np.ndarray:
    """The digit on 28x28 with its centre of mass in MNIST's middle, as far as whole pixels go.

    MNIST counts pixels from 0 and centres on pixel 14: the middle is 14.5 from the edge.
    """
    total = digit.sum()
    corner = []
    for axis, side in enumerate(digit.shape):
        mass = digit.sum(axis=1 - axis)
        centre = (mass @ np.arange(side) + 0.5 * total) / total
        corner.append(int(np.clip(np.rint(SIDE / 2 + 0.5 - centre), 0, SIDE - side)))
    image = np.zeros((SIDE, SIDE), dtype=np.float32)
    image[corner[0] : corner[0] + digit.shape[0], corner[1] : corner[1] + digit.shape[1]] = digit
    return image


def _resized(
    plane: np.ndarray, width: int, height: int, method: Image.Resampling = Image.Resampling.BOX
) -> np.ndarray:
    if plane.shape == (height, width):
        return plane
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), method), np.float64)


def _grown(plane: np.ndarray, steps: int) -> np.ndarray:
    """The largest value within a disc (an octagon) of `steps` pixels around each pixel."""
    for step in range(steps):
        padded = np.pad(plane, 1, mode="edge")
        rows = np.maximum(np.maximum(padded[:-2], padded[2:]), padded[1:-1])
        if step % 2:  # a square, then a cross, by turns
            plane = np.maximum(np.maximum(rows[:, :-2], rows[:, 2:]), rows[:, 1:-1])
        else:
            plane = np.maximum(np.maximum(padded[1:-1, :-2], padded[1:-1, 2:]), rows[:, 1:-1])
    return plane


def find_blobs(mask: np.ndarray) -> Blobs:
    """The connected parts of a mask (H, W), largest effort O(pixels).

    Rows are cut into runs of ink; runs that touch in neighbouring rows are linked; every run then
    takes the smallest number among its links until nothing changes.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    stride = mask.shape[1] + 2
    # The runs of the next row from the first that ends at or after a run's start to the last that
    # starts at or before its end: corners touch.
    first = np.searchsorted(rows * stride + ends, (rows + 1) * stride + starts)
    last = np.searchsorted(rows * stride + starts, (rows + 1) * stride + ends, side="right")
    counts = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(rows)), counts)
    below = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    root = np.arange(len(rows))
    while not np.array_equal(root[above], root[below]):
        lowest = np.minimum(root[above], root[below])
        np.minimum.at(root, root[above], lowest)
        np.minimum.at(root, root[below], lowest)
        while not np.array_equal(root, root[root]):
            root = root[root]
    _, number = np.unique(root, return_inverse=True)
    count = number.max(initial=-1) + 1
    labels = np.zeros(mask.shape, dtype=np.int64)
    labels[mask] = np.repeat(number + 1, ends - starts)
    boxes = np.tile([*mask.shape, 0, 0], (count, 1))
    np.minimum.at(boxes[:, 0], number, rows)
    np.minimum.at(boxes[:, 1], number, starts)
    np.maximum.at(boxes[:, 2], number, rows + 1)
    np.maximum.at(boxes[:, 3], number, ends)
    return Blobs(labels, np.bincount(number, weights=ends - starts, minlength=count), boxes)
