"""Kernels of a convolution as pictures: before and after training, and all of them in a grid."""

from __future__ import annotations

from math import ceil

import numpy as np
from matplotlib.figure import Figure

from export.plots.canvas import Sheet, cell_size, columns_for, draw_grid, draw_tiles, style, symmetric


@style()
def kernels_figure(
    after: np.ndarray,
    before: np.ndarray | None = None,
    *,
    title: str = "Kernels",
    about: str = "",
    names: tuple[str, str] = ("before training", "after training"),
) -> Figure:
    """Kernels (N, kh, kw) after training, beside those before it where they are given.

    Both on one scale, symmetric about zero. names: what stands above the two.
    """
    panels = [(names[1], after)] if before is None else [(names[0], before), (names[1], after)]
    count, kernel_height, kernel_width = after.shape
    columns = columns_for(count)
    cell = cell_size(3.0, max(columns * kernel_width, ceil(count / columns) * kernel_height), 0.5)
    width, height = cell * columns * kernel_width, cell * ceil(count / columns) * kernel_height
    left, top, gap = 0.55, 0.22, 0.4
    right = left + len(panels) * (width + gap)
    sheet = Sheet(right + 0.65, top + max(height, 1) + 0.42, title, about)
    limits = symmetric(*(values for _, values in panels))
    for i, (name, values) in enumerate(panels):
        axes = sheet.axes(left + i * (width + gap), top, width, height)
        drawn = draw_tiles(axes, values, limits)
        axes.set(title=name, xlabel="column", ylabel="" if i else "kernel")
    sheet.color_bar(drawn, right - gap + 0.15, top, max(height, 1), "weight")
    return sheet.figure


@style()
def grid_figure(weight: np.ndarray, *, title: str = "Grid of kernels", about: str = "") -> Figure:
    """Every kernel of a convolution's weight (O, I, kh, kw): a row per output, a column per input channel."""
    outputs, inputs, kernel_height, kernel_width = weight.shape
    cells_high, cells_wide = outputs * kernel_height, inputs * kernel_width
    cell = min(cell_size(9.5, cells_high, 0.5), cell_size(6.5, cells_wide, 0.5))
    width, height = cell * cells_wide, cell * cells_high
    left, top = 0.55, 0.08
    sheet = Sheet(left + width + 0.85, top + max(height, 1) + 0.4, title, about)
    axes = sheet.axes(left, top, width, height)
    drawn = draw_grid(axes, weight, symmetric(weight))
    axes.set(xlabel="input channel", ylabel="output channel")
    sheet.color_bar(drawn, left + width + 0.15, top, min(max(height, 1), 4), "weight")
    return sheet.figure
