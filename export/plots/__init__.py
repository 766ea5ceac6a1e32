"""Pictures of networks: kernels, activations, history, mistakes, confusion, and their textbook.

Functions called `..._figure` take plain arrays and text and return a matplotlib Figure; `to_png`,
`to_svg` and `save` turn one into bytes, text or a file, the same ones on every call.
`export.plotting` finds the arrays, for `zoo plot`.

>>> import numpy as np
>>> from export import plots
>>> matrix = plots.confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), 2)
>>> plots.to_svg(plots.confusion_figure(matrix, ("no", "yes")))[:4]
'<svg'
"""

from export.plots.activations import activations_figure
from export.plots.canvas import save, to_png, to_svg
from export.plots.decisions import (
    confusion,
    confusion_figure,
    mistakes,
    mistakes_figure,
    probabilities,
    samples_figure,
)
from export.plots.history import history_figure, read_csv
from export.plots.kernels import grid_figure, kernels_figure
from export.plots.textbook import activation_functions_figure, filters_figure

__all__ = [
    "activation_functions_figure",
    "activations_figure",
    "confusion",
    "confusion_figure",
    "filters_figure",
    "grid_figure",
    "history_figure",
    "kernels_figure",
    "mistakes",
    "mistakes_figure",
    "probabilities",
    "read_csv",
    "samples_figure",
    "save",
    "to_png",
    "to_svg",
]
