"""What every figure stands on: one style, a sheet laid out in inches, tiles of images, and the files.

- Nothing of the user's matplotlibrc counts, and no global state is left behind: a figure is made and
  rendered under `style`, through matplotlib's Figure and never through pyplot.
- Text that comes from a spec, a folder or a label is drawn as it stands: "$" starts no formula.
- The same figure gives the same bytes: no dates, no version, fixed identifiers.
- Signed values are red and blue around a white zero, magnitudes cividis, lines in the colours of Okabe
  and Ito (2008): people who are colour-blind can tell them apart.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, sqrt
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from zoo import runs
from zoo.errors import InvalidInput

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
)  # fmt: skip
SIGNED, MAGNITUDE, INK = "RdBu_r", "cividis", "gray"  # colour maps; ink: a picture as it is
FRAME = "#555555"  # lines between tiles
DPI = 150
TITLE_SIZE, ABOUT_SIZE = 10, 7.5  # points
NAME_ROOM = 0.2  # inches for one of them
MOST_NAMES = 24  # ticks with a name along one axis
MOST_CELLS = 20_000  # along one side of a tiled image

STYLE = {
    "axes.labelsize": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "font.size": 8,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "savefig.dpi": DPI,
    "svg.fonttype": "path",
    "svg.hashsalt": "cnn-zoo",
    "text.parse_math": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


@contextmanager
def style() -> Iterator[None]:
    """Settings under which figures are made and rendered; those of the user are back afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A label may be in a script that the font lacks: it is drawn as boxes, without complaint.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


class Sheet:
    """A figure whose axes are placed in inches from the top left corner, below its header."""

    def __init__(self, width: float, height: float, title: str, about: str = "") -> None:
        """width, height: of the content. title, about: the lines of the header, wrapped."""
        width = max(width, 4.5)
        title, about = (text.encode(errors="replace").decode() for text in (title, about))  # names of files
        heading = textwrap.wrap(title, int(width * 11.8), break_on_hyphens=False)
        below = textwrap.wrap(about, int(width * 16), break_on_hyphens=False)
        line, small_line = 1.4 * TITLE_SIZE / 72, 1.4 * ABOUT_SIZE / 72
        self.header = whole_pixels(0.1 + line * len(heading) + small_line * len(below) + 0.06)
        self.figure = Figure((whole_pixels(width), whole_pixels(self.header + height)), facecolor="white")
        self._text(0.1, "\n".join(heading), fontsize=TITLE_SIZE, weight="bold")
        self._text(0.1 + line * len(heading), "\n".join(below), fontsize=ABOUT_SIZE, color="0.3")

    def _text(self, top: float, text: str, **look: Any) -> None:
        width, height = self.figure.get_size_inches()
        self.figure.text(0.1 / width, 1 - top / height, text, ha="left", va="top", linespacing=1.2, **look)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes of a size; their borders fall on whole pixels of the PNG."""
        all_width, all_height = self.figure.get_size_inches()
        left, top, width, height = map(whole_pixels, (left, self.header + top, width, height))
        return self.figure.add_axes(
            (
                left / all_width,
                (all_height - top - height) / all_height,
                width / all_width,
                height / all_height,
            )
        )

    def color_bar(self, drawn: AxesImage, left: float, top: float, height: float, label: str) -> Colorbar:
        """The scale of an image's colours, a tenth of an inch wide; its labels need 0.6 more."""
        return self.figure.colorbar(drawn, cax=self.axes(left, top, 0.1, height), label=label)


def whole_pixels(inches: float) -> float:
    """The nearest length that is a whole number of pixels of the PNG."""
    return round(inches * DPI) / DPI


def cell_size(space: float, cells: int, largest: float = 0.2) -> float:
    """Inches for each of so many cells in a space: whole pixels of the PNG, at least one.

    Raises InvalidInput if there are more cells than a picture can show.
    """
    if cells > MOST_CELLS:
        raise InvalidInput(f"{cells:,} values side by side", "", f"one picture shows {MOST_CELLS:,}")
    return max(1, int(min(space / cells, largest) * DPI)) / DPI


def columns_for(count: int) -> int:
    """How many columns show so many tiles: the tightest rectangle, at least as wide as high."""
    least = ceil(sqrt(count))
    return min(range(least, 2 * least + 1), key=lambda columns: (-count % columns, columns))


def tiles(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, h, w) side by side, row by row; a place that is left over is NaN.

    Returns (rows * h, columns * w).
    """
    count, height, width = images.shape
    rows = ceil(count / columns)
    places = np.full((rows * columns, height, width), np.nan)
    places[:count] = images
    table = places.reshape(rows, columns, height, width).transpose(0, 2, 1, 3)
    return table.reshape(rows * height, columns * width)


def draw_tiles(axes: Axes, images: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    """Draw signed images (N, h, w) as one tiled image; the axes count them from 0.

    The first image of a row is named at its left, the steps from there below: 8 and +3 is image 11.
    """
    columns = columns_for(len(images))
    firsts = [str(first) for first in range(0, len(images), columns)]
    steps = [f"+{step}" for step in range(columns)]
    return _draw_table(axes, images, limits, firsts, steps)


def draw_grid(axes: Axes, images: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    """Draw signed images (rows, columns, h, w) as one tiled image; the axes count both from 0."""
    rows, columns = (list(map(str, range(count))) for count in images.shape[:2])
    return _draw_table(axes, images.reshape(-1, *images.shape[2:]), limits, rows, columns)


def draw_image(axes: Axes, image: np.ndarray, cmap: str, limits: tuple[float, float]) -> AxesImage:
    """Draw (H, W) in a colour map, or (H, W, 3) in [0, 1] as it is; smoothed only where it must shrink."""
    pixels = axes.bbox.width / axes.figure.dpi * DPI
    smooth: Literal["auto", "none"] = "auto" if image.shape[1] > pixels else "none"
    drawn = axes.imshow(image, cmap=cmap, vmin=limits[0], vmax=limits[1], interpolation=smooth, aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, pad=2)
    axes.set(xticks=[], yticks=[])
    return drawn


def _draw_table(
    axes: Axes,
    images: np.ndarray,
    limits: tuple[float, float],
    rows: Sequence[str],
    columns: Sequence[str],
) -> AxesImage:
    drawn = draw_image(axes, tiles(images, len(columns)), SIGNED, limits)
    for axis, size, names in ((axes.yaxis, images.shape[1], rows), (axes.xaxis, images.shape[2], columns)):
        extent = (axes.bbox.width if axis is axes.xaxis else axes.bbox.height) / axes.figure.dpi
        fitting = max(1, int(extent / NAME_ROOM))
        every = ceil(len(names) / min(MOST_NAMES, fitting))
        middles = np.arange(0, len(names), every) * size + (size - 1) / 2
        axis.set_ticks(list(middles), labels=names[::every])
        axis.set_ticks(list(np.arange(1, len(names)) * size - 0.5), minor=True)
    cell = axes.bbox.width / axes.figure.dpi * 72 / (images.shape[2] * len(columns))  # points
    axes.grid(which="minor", color=FRAME, linewidth=min(2.5, max(0.4, 0.3 * cell)))
    return drawn


def picture(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) in [0, 1] as `draw_image` takes it: colours, or the mean over the channels."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)


def symmetric(*arrays: np.ndarray) -> tuple[float, float]:
    """Limits (-m, m) around zero that hold every value of the arrays; (-1, 1) if all are zero."""
    largest = max((float(np.abs(array).max()) for array in arrays), default=0.0) or 1.0
    return -largest, largest


def shorten(text: str, length: int = 14) -> str:
    """A label that fits its place."""
    return text if len(text) <= length else text[: length - 1] + "…"


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes on every call.

    Its palette of 256 colours makes it a third of the size; what it changes is not to be seen.
    """
    with Image.open(io.BytesIO(_render(figure, "png", pil_kwargs={"compress_level": 0}))) as drawn:
        few = drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    content = io.BytesIO()
    few.save(content, "PNG", optimize=True, dpi=(DPI, DPI))
    return content.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as one <svg> element: a file by itself, and fit to stand inside an HTML page."""
    text = _render(figure, "svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))).decode()
    return text[text.index("<svg") :]


def file_format(path: Path) -> str:
    """ "png" or "svg", as the ending of a file says; raises InvalidInput for any other."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in ("png", "svg"):
        raise InvalidInput(f"pictures of the kind {ending!r} are not drawn", path, "end it in .png or .svg")
    return ending


def save(figure: Figure, path: Path) -> int:
    """Write the figure as PNG or SVG, by the ending of the path; returns the size in bytes.

    Raises InvalidInput for another ending, MachineError if the file cannot be written.
    """
    content = to_png(figure) if file_format(path) == "png" else to_svg(figure).encode()
    runs.write_atomically(path, content)
    return len(content)


def _render(figure: Figure, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=form, **options)
    return content.getvalue()
