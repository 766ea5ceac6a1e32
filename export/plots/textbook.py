"""Pictures that need no network: classical filters, and the curves of activation functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, erf
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from export.plots.canvas import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SIGNED,
    SKY,
    VERMILLION,
    Sheet,
    cell_size,
    draw_image,
    style,
    symmetric,
)
from zoo.primitives import relu, sigmoid, softmax

Array = np.ndarray
PANEL = 2.2  # inches of a filtered picture's longer side
DOCUMENTED_VECTOR = (1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0)  # 002_533e6508b7372ffa.txt, under "Softmax"

BOUNDED: dict[str, Callable[[Array], Array]] = {
    r"sigmoid  $1 / (1 + e^{-x})$": sigmoid,
    r"tanh  $(e^x - e^{-x}) / (e^x + e^{-x})$": np.tanh,
    r"softsign  $x / (1 + |x|)$": lambda x: x / (1 + np.abs(x)),
}
RECTIFIERS: dict[str, Callable[[Array], Array]] = {
    r"ReLU  $\max(x, 0)$": relu,
    r"leaky ReLU  $\max(x, 0.1\,x)$": lambda x: np.maximum(x, 0.1 * x),
    r"ELU  $x$ or $e^x - 1$": lambda x: np.where(x > 0, x, np.expm1(x)),
    r"GELU  $x\,\Phi(x)$": lambda x: x * np.array([(1 + erf(v / 2**0.5)) / 2 for v in x]),
    r"SiLU  $x / (1 + e^{-x})$": lambda x: x * sigmoid(x),
    r"softplus  $\ln(1 + e^x)$": lambda x: np.logaddexp(x, 0),
}
LOOKS = ((BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, (0, (5, 1))), (SKY, "-"))


@style()
def activation_functions_figure(
    vector: Sequence[float] = DOCUMENTED_VECTOR, *, title: str = "Activation functions", about: str = ""
) -> Figure:
    """Curves of bounded functions and of rectifiers from -4 to 4, and softmax of one vector."""
    sheet = Sheet(7.5, 5.4, title, about)
    _curves(sheet.axes(0.68, 0.25, 3.0, 2.8), BOUNDED, "bounded", "lower right")
    _curves(sheet.axes(4.28, 0.25, 3.0, 2.8), RECTIFIERS, "rectifiers", "upper left")
    shares = softmax(vector)
    axes = sheet.axes(0.68, 3.75, 6.6, 1.2)
    bars = axes.bar(range(len(vector)), shares, color=BLUE)
    axes.bar_label(bars, [f"{share:.3f}" for share in shares], fontsize=7)
    axes.set_xticks(range(len(vector)), [f"{value:g}" for value in vector])
    axes.set(xlabel="x, element by element", ylabel="softmax(x)", ylim=(0, shares.max() * 1.2))
    axes.set_title(r"softmax  $e^{x_i} / \Sigma_j\, e^{x_j}$: positive, with the sum 1").set_parse_math(True)
    return sheet.figure


def _curves(
    axes: Axes,
    functions: dict[str, Callable[[Array], Array]],
    name: str,
    free: Literal["lower right", "upper left"],
) -> None:
    x = np.linspace(-4, 4, 401)
    axes.axhline(0, color="0.8", linewidth=0.6)
    axes.axvline(0, color="0.8", linewidth=0.6)
    for (label, function), (colour, line) in zip(functions.items(), LOOKS, strict=False):
        axes.plot(x, function(x), color=colour, linestyle=line, linewidth=1.4, label=label)
    axes.set(xlabel="x", ylabel="f(x)", title=name)
    for text in axes.legend(loc=free).get_texts():
        text.set_parse_math(True)


@style()
def filters_figure(
    picture: np.ndarray,
    filtered: Sequence[tuple[str, np.ndarray, np.ndarray]],
    *,
    title: str = "Classical filters",
    about: str = "",
) -> Figure:
    """A grey picture (H, W) in [0, 1] beside what kernels make of it: (name, kernel, result (H, W)).

    A kernel whose weights sum to zero answers with signed values. They are drawn as shares of the
    largest answer that the kernel can give, on one scale around zero that the strongest one in 200
    leaves. Others keep the brightness: their results are drawn as the picture is, clipped to [0, 1].
    """
    panels = [("the picture", picture, False)]
    for name, kernel, result in filtered:
        signed = abs(kernel.sum()) < 1e-6 * np.abs(kernel).sum()
        panels.append((name, result / kernel[kernel > 0].sum() if signed else result, signed))
    answers = [np.abs(values).ravel() for _, values, signed in panels if signed]
    limits = symmetric(np.percentile(np.concatenate(answers), [99.5])) if answers else (-1.0, 1.0)
    columns = min(3, len(panels))
    rows = ceil(len(panels) / columns)
    size = cell_size(PANEL, max(picture.shape))
    height, width = (cells * size for cells in picture.shape)
    gap, above = 0.12, 0.25
    right = 0.1 + columns * (width + gap)
    total = max(rows * (height + above), 2.0)
    sheet = Sheet(right + (1.55 if answers else 0.75), total + 0.12, title, about)
    for i, (name, values, signed) in enumerate(panels):
        row, column = divmod(i, columns)
        axes = sheet.axes(0.1 + column * (width + gap), above + row * (height + above), width, height)
        drawn = draw_image(axes, values, SIGNED if signed else INK, limits if signed else (0, 1))
        axes.set_title(name)
        if signed:
            answer = drawn
        elif i == 0:
            sheet.color_bar(drawn, right, above, total - above, "brightness")
    if answers:
        bar = sheet.color_bar(
            answer, right + 0.7, above, total - above, "answer, as a share of the kernel's largest"
        )
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return sheet.figure
