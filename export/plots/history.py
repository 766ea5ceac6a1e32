"""The course of a training: loss and accuracy over epochs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from export.plots.canvas import BLUE, VERMILLION, Sheet, style
from zoo.errors import DataError, InvalidInput
from zoo.training.loop import EPOCHS, HISTORY

Row = Sequence[float | int | None]
LINES = {"train": ("--", "o"), "validation": (":", "^"), "test": ("-", "s")}  # line, marker


@style()
def history_figure(
    history: Sequence[Row], epochs: Sequence[Row], *, title: str = "Training", about: str = ""
) -> Figure:
    """Loss (left) and accuracy (right) after each epoch, the loss of every batch lightly behind.

    history, epochs: rows in the order of zoo.training.HISTORY and EPOCHS, as a run's CSV files
    hold them (see `read_csv`). The loss has a logarithmic axis where it falls below a tenth.
    Raises InvalidInput if no epoch was trained.
    """
    if not history or not epochs:
        raise InvalidInput(
            "no epoch was trained, so there is no history", "", "build with --epochs 1 or more"
        )
    batch_losses = np.array([row[HISTORY.index("loss")] for row in history], dtype=np.float64)
    ends = {name: np.array([row[i] for row in epochs], dtype=np.float64) for i, name in enumerate(EPOCHS)}
    last = float(ends["epoch"][-1])
    sheet = Sheet(6.9, 4.2, title, about)
    loss_axes = sheet.axes(0.65, 0.1, 5.6, 3.1)
    accuracy_axes = loss_axes.twinx()
    accuracy_axes.spines["right"].set_visible(True)
    time = np.arange(1, len(history) + 1) * (last / len(history))
    loss_axes.plot(
        time,
        batch_losses,
        color=VERMILLION,
        alpha=0.25,
        linewidth=0.5,
        label="loss, each batch",
        rasterized=True,  # thousands of points would make an SVG heavy
    )
    for axes, quantity, colour in ((loss_axes, "loss", VERMILLION), (accuracy_axes, "accuracy", BLUE)):
        axes.set_ylabel(quantity, color=colour)
        axes.tick_params(axis="y", colors=colour, which="both")
        for part, (line, marker) in LINES.items():
            values = ends.get(f"{part}_{quantity}")
            if values is None or np.isnan(values).all():
                continue
            mean = " (mean over the epoch)" if part == "train" else ""
            axes.plot(
                ends["epoch"],
                values,
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=4,
                label=f"{quantity}, {part}{mean}",
            )
    lowest = float(min(ends["train_loss"].min(), ends["test_loss"].min()))
    if 0 < lowest < batch_losses.max() / 10:  # on a linear axis the rest would lie on the floor
        loss_axes.set_yscale("log")
        loss_axes.set_ylim(bottom=lowest / 3)
        loss_axes.yaxis.set_major_formatter("{x:g}")
        loss_axes.set_ylabel("loss (logarithmic)")
    loss_axes.set_xlabel("epoch")
    loss_axes.set_xlim(0, last * 1.02)
    loss_axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    loss_axes.grid(axis="x", color="0.9")
    loss_axes.set_axisbelow(True)
    sheet.figure.legend(loc="lower center", ncols=2)
    return sheet.figure


def read_csv(text: str, header: Sequence[str]) -> list[tuple[float | None, ...]]:
    """The rows of a run's history.csv or epochs.csv; an empty field is None. Raises DataError."""
    rows = list(csv.reader(io.StringIO(text)))
    try:
        if tuple(rows[0]) != tuple(header):
            raise ValueError
        return [tuple(float(field) if field else None for field in row) for row in rows[1:]]
    except (ValueError, IndexError):
        raise DataError(
            f"not a table of {', '.join(header)}", "", "build the run again with --force"
        ) from None
