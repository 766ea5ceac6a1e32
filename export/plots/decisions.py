"""Images and what a network makes of them: samples, mistakes, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from export.plots.canvas import INK, MAGNITUDE, Sheet, cell_size, draw_image, picture, shorten, style
from zoo.primitives import softmax

MOST_COUNTS = 20  # classes up to which every cell of the confusion matrix bears its count


def probabilities(outputs: np.ndarray, kind: str) -> np.ndarray:
    """Outputs (N, classes) as float64 probabilities. kind: what they are, "logits" or "probabilities"."""
    return outputs.astype(np.float64) if kind == "probabilities" else softmax(outputs)


def mistakes(probability: np.ndarray, labels: np.ndarray, worst: bool = False) -> np.ndarray:
    """The indices of misread images in their order, or the worst first.

    probability: (N, classes). Worst is where the truth was held least likely.
    """
    wrong = np.flatnonzero(probability.argmax(axis=1) != labels)
    if worst:
        return wrong[np.argsort(probability[wrong, labels[wrong]], kind="stable")]
    return wrong


def confusion(guesses: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """How often class i was taken for class j: int64 (classes, classes)."""
    return np.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes)


@style()
def samples_figure(
    images: np.ndarray, labels: Sequence[str], *, title: str = "Samples", about: str = ""
) -> Figure:
    """Images (N, C, H, W) in [0, 1], counted from 0, each under its number and label."""
    captions = [f"no. {number}: {shorten(label)}" for number, label in enumerate(labels)]
    return _gallery(images, captions, 10, title, about)


@style()
def mistakes_figure(
    images: np.ndarray,
    numbers: Sequence[int],
    truths: Sequence[str],
    guesses: Sequence[str],
    truth_probability: Sequence[float],
    guess_probability: Sequence[float],
    *,
    title: str = "Mistakes",
    about: str = "",
) -> Figure:
    """Misread images (N, C, H, W) in [0, 1] with number, truth, guess and the probabilities of both.

    Without any image the figure says that there is no mistake.
    """
    captions = [
        f"no. {number}\nis {shorten(truth)}, p = {p:.2f}\nread as {shorten(guess)}, p = {q:.2f}"
        for number, truth, guess, p, q in zip(
            numbers, truths, guesses, truth_probability, guess_probability, strict=True
        )
    ]
    if captions:
        return _gallery(images, captions, 5, title, about)
    sheet = Sheet(4.5, 0.6, title, about)
    sheet.figure.text(0.5, 0.2, "no mistakes", ha="center", fontsize=12)
    return sheet.figure


def _gallery(images: np.ndarray, captions: Sequence[str], columns: int, title: str, about: str) -> Figure:
    """Images side by side, each under its caption."""
    columns = min(columns, len(captions))
    _, _, cells_high, cells_wide = images.shape
    cell = cell_size(6.8 / max(columns, 5) - 0.1, max(cells_high, cells_wide))
    width, height = cell * cells_wide, cell * cells_high
    lines = captions[0].count("\n") + 1
    longest = max(len(line) for caption in captions for line in caption.splitlines())
    step = max(width, 0.066 * longest) + 0.1, height + 0.15 * lines + 0.1
    sheet = Sheet(step[0] * columns + 0.1, step[1] * ceil(len(captions) / columns) + 0.08, title, about)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(i, columns)
        left, bottom = 0.1 + column * step[0] + (step[0] - 0.1 - width) / 2, (row + 1) * step[1]
        axes = sheet.axes(left, bottom - height, width, height)
        draw_image(axes, picture(image), INK, (0, 1))
        axes.set_title(caption, fontsize=7.5, pad=3)
    return sheet.figure


@style()
def confusion_figure(
    matrix: np.ndarray, labels: Sequence[str], *, title: str = "Confusion matrix", about: str = ""
) -> Figure:
    """Counts (classes, classes): row is the truth, column the guess. Colour is the share of its row.

    The share is coloured by its square root, so that rare mistakes can be seen.
    """
    classes = len(labels)
    every = ceil(classes / 50)
    names = [shorten(label) for label in labels][::every]
    longest = max(map(len, names))
    side = cell_size(8, classes, 0.44) * classes
    left, below = 0.4 + 0.065 * longest, 0.35 + 0.065 * longest * (longest > 2)
    sheet = Sheet(left + side + 0.95, 0.08 + max(side, 1.2) + below, title, about)
    axes = sheet.axes(left, 0.08, side, side)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    drawn = draw_image(axes, share, MAGNITUDE, (0, 1))
    drawn.set_norm(PowerNorm(0.5, 0, 1))
    axes.set_xticks(range(0, classes, every), names, rotation=90 if longest > 2 else 0)
    axes.set_yticks(range(0, classes, every), names)
    axes.set(xlabel="read as", ylabel="truth")
    if classes <= MOST_COUNTS:
        colours = matplotlib.colormaps[MAGNITUDE]
        for row, column in zip(*np.nonzero(matrix), strict=True):
            bright = np.dot(colours(share[row, column] ** 0.5)[:3], (0.299, 0.587, 0.114)) > 0.5
            colour = "black" if bright else "white"
            count = str(matrix[row, column])
            axes.text(column, row, count, ha="center", va="center", fontsize=7, color=colour)
    bar = sheet.color_bar(drawn, left + side + 0.15, 0.08, max(side, 1.2), "share of the row's images")
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    return sheet.figure
