"""What every layer makes of one image.

Layers come in stages: one that computes new values (a convolution, a dense layer), then those that
only select among them (ReLU, pooling, flatten, dropout). A stage shares one scale, so that before
and after can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from export.plots.canvas import (
    BLUE,
    FRAME,
    INK,
    MOST_NAMES,
    SIGNED,
    VERMILLION,
    Sheet,
    cell_size,
    columns_for,
    draw_image,
    draw_tiles,
    picture,
    shorten,
    style,
    symmetric,
)
from zoo.errors import InvalidInput

Stage = Sequence[tuple[str, np.ndarray]]  # (path, output (C, H, W) or (features,)) of its layers
MOST_BARS = 64  # a longer vector is drawn as a strip
MOST_IN_A_ROW = 3
MOST_ROWS = 40
STRIP = 800  # features in one line of a strip
LEFT, WIDTH, GAP = 0.62, 6.3, 0.35  # inches: of labels, of a row of panels, between two panels
ABOVE = 0.25  # of a panel's title
BELOW = {"maps": 0.25, "strip": 0.4, "bars": 0.45}  # of its labels, by form


class _Row(NamedTuple):
    """Panels of one form side by side, their size in inches, the scale of their stage's colours or bars."""

    form: str
    panels: list[tuple[str, np.ndarray]]
    width: float
    height: float
    limits: tuple[float, float]


@style()
def activations_figure(
    image: np.ndarray,
    stages: Sequence[Stage],
    labels: Sequence[str] = (),
    *,
    title: str = "Activations",
    about: str = "",
) -> Figure:
    """The image (C, H, W) in [0, 1], then the output of every layer, stage by stage.

    Feature maps are tiles counted from 0, short vectors bars, long ones strips. labels: the classes,
    which name the bars of the last layer; its largest bar stands out.
    Raises InvalidInput if there are more layers than one picture can show.
    """
    most = max((sum(values.ndim == 3 for _, values in stage) for stage in stages), default=1)
    rows = [row for stage in stages for row in _rows(stage, max(2, min(most, MOST_IN_A_ROW)))]
    if len(rows) > MOST_ROWS:
        raise InvalidInput(
            f"{len(rows)} rows of layers, one picture shows {MOST_ROWS}", "", "choose a layer with --layer"
        )
    _, height, width = image.shape
    cell = cell_size(1.2, max(height, width))
    tall = ABOVE + cell * height + 0.1
    total = tall + sum(ABOVE + row.height + BELOW[row.form] for row in rows)
    sheet = Sheet(LEFT + WIDTH + 0.8, total, title, about)
    axes = sheet.axes(LEFT, ABOVE, cell * width, cell * height)
    draw_image(axes, picture(image), INK, (0, 1))
    axes.set_title(f"image  {_shape(image)}", loc="left")
    top = tall
    last = stages[-1][-1][0] if stages else ""
    for row in rows:
        top += ABOVE
        for i, (path, values) in enumerate(row.panels):
            axes = sheet.axes(LEFT + i * (row.width + GAP), top, row.width, row.height)
            axes.set_title(f"{path}  {_shape(values)}", loc="left")
            if row.form == "maps":
                drawn = draw_tiles(axes, values, row.limits)
            elif row.form == "strip":
                drawn = _draw_strip(axes, values, row.limits)
            else:
                _draw_bars(axes, values, row.limits, labels if path == last else ())
        if row.form != "bars":
            sheet.color_bar(drawn, LEFT + WIDTH + 0.12, top, max(row.height, 0.4), "activation")
        top += row.height + BELOW[row.form]
    return sheet.figure


def _rows(stage: Stage, across: int) -> list[_Row]:
    """A stage's layers in rows: up to `across` maps of one size side by side, each vector alone."""
    limits = symmetric(*(values for _, values in stage))
    low = min(0.0, *(float(values.min()) for _, values in stage))
    high = max(0.0, *(float(values.max()) for _, values in stage))
    margin = 0.08 * (high - low) or 1.0
    heights = (low - margin * (low < 0), high + margin)
    width = (WIDTH - (across - 1) * GAP) / across
    rows: list[_Row] = []
    for path, values in stage:
        if values.ndim == 3:
            height = _map_height(values, width)
            before = rows[-1] if rows else None
            if before and before.form == "maps" and before.height == height and len(before.panels) < across:
                before.panels.append((path, values))
            else:
                rows.append(_Row("maps", [(path, values)], width, height, limits))
        elif len(values) > MOST_BARS:
            rows.append(_Row("strip", [(path, values)], WIDTH, 0.35, limits))
        else:
            rows.append(_Row("bars", [(path, values)], WIDTH, 1.0, heights))
    return rows


def _map_height(values: np.ndarray, width: float) -> float:
    """The height of tiled maps (C, H, W) whose pixels are square."""
    channels, height, across = values.shape
    columns = columns_for(channels)
    return round(min(4.0, max(0.6, width * ceil(channels / columns) * height / (columns * across))), 2)


def _draw_strip(axes: Axes, values: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    """A vector as lines of coloured cells, to be read like a text."""
    lines = ceil(len(values) / STRIP)
    line = ceil(len(values) / lines)
    cells = np.full(lines * line, np.nan)
    cells[: len(values)] = values
    drawn = draw_image(axes, cells.reshape(lines, line), SIGNED, limits)
    axes.spines[:].set(visible=True, color=FRAME, linewidth=0.5)
    axes.set_xticks([0, line - 1], ["0", f"{line - 1:,}"])
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    lined = "" if lines == 1 else f", line by line: {lines} lines of {line:,}"
    axes.set_xlabel(f"feature{lined}", labelpad=-6)
    return drawn


def _draw_bars(axes: Axes, values: np.ndarray, limits: tuple[float, float], labels: Sequence[str]) -> None:
    """A short vector; with labels it is the network's answer, and its largest bar stands out."""
    names = [shorten(label, 6) for label in labels] or [str(unit) for unit in range(len(values))]
    colours = [VERMILLION if labels and unit == values.argmax() else BLUE for unit in range(len(values))]
    axes.bar(range(len(values)), values, color=colours)
    axes.axhline(0, color="0.5", linewidth=0.6)
    axes.set_ylim(limits)
    every = ceil(len(values) / MOST_NAMES)
    axes.set_xticks(range(0, len(values), every), names[::every])
    axes.set(xlabel="class" if labels else "unit", ylabel="activation")


def _shape(values: np.ndarray) -> str:
    return " x ".join(f"{size:,}" for size in values.shape)
