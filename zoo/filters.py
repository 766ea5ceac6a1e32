"""Classical picture filters, each a CNN of one layer whose weights are written by hand.

A filter convolves a picture with a small kernel: what a convolutional layer would learn, people
chose here. Such a layer correlates, the documented filter convolves (zoo.primitives), so the layer
holds the kernel turned by half a turn. One model has one input channel; the colours of a picture
lie on the batch axis. The kernels here look the same after half a turn; one's own need not.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo import fields
from zoo.errors import InvalidInput, nearest
from zoo.layers import Conv2d
from zoo.model import Model
from zoo.primitives import padding_for
from zoo.recipe import SGD, Recipe
from zoo.weights import Weights

Kernel = tuple[tuple[float, ...], ...]

DOCUMENT = "002_533e6508b7372ffa.txt"  # "Example 3. Convolution as an image filter"
LARGEST_KERNEL = 99  # rows and columns
LARGEST_FILE = 1_000_000  # bytes
SUFFIXES = (".txt", ".csv", ".json")

KERNELS: dict[str, Kernel] = {
    "identity": ((0, 0, 0), (0, 1, 0), (0, 0, 0)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "sharpen-strong": ((-1, -1, -1), (-1, 9, -1), (-1, -1, -1)),
    "edges": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    "vertical-edges": ((-2, 4, -2), (-2, 4, -2), (-2, 4, -2)),
    "box-blur": ((1 / 9, 1 / 9, 1 / 9), (1 / 9, 1 / 9, 1 / 9), (1 / 9, 1 / 9, 1 / 9)),
    "laplacian-of-gaussian": (
        (0, 0, -1, 0, 0),
        (0, -1, -2, -1, 0),
        (-1, -2, 16, -2, -1),
        (0, -1, -2, -1, 0),
        (0, 0, -1, 0, 0),
    ),
}
ABOUT = {
    "identity": "The picture itself (in the document's code).",
    "sharpen": "Adds what differs from the four neighbours (in the document's code).",
    "sharpen-strong": "Adds what differs from all eight neighbours (not in the document's code).",
    "edges": "What differs from the eight neighbours, in any direction (in the document's code).",
    "vertical-edges": "Upright lines and edges, three rows at a time (in the document's code).",
    "box-blur": "The mean of nine pixels (in the document's code).",
    "laplacian-of-gaussian": "Edges after a light blur that keeps noise out (not in the document's code).",
}


def filter_model(
    kernel: Sequence[Sequence[float]], mode: str, height: int, width: int
) -> tuple[Model, Weights]:
    """The one-layer model that convolves pictures (1, height, width) with a kernel, and its weights.

    kernel: (kh, kw), rounded to float32. mode: "full", "same" or "valid", with zeros around the
    picture. The model has no labels; its output "features" is (N, 1, H', W').
    Raises InvalidInput if the kernel is no matrix of numbers or the picture is smaller than it.
    """
    rows = check_kernel(kernel)
    (top, bottom), (left, right) = (padding_for(mode, m) for m in (len(rows), len(rows[0])))
    sides = (bottom, right, top, left)  # flipping the kernel flips its padding
    layer = Conv2d(1, (len(rows), len(rows[0])), padding=sides, bias=False)
    model = Model(
        name="filter",
        document=DOCUMENT,
        input_shape=(1, height, width),
        layers=(layer,),
        recipe=Recipe(SGD(learning_rate=1.0), batch_size=1, epochs=0),
        labels=(),
        notes=("The weights are a kernel written by hand, turned by half a turn; nothing is trained.",),
    )
    flipped = np.array(rows, dtype=np.float32)[::-1, ::-1]
    return model, {"conv1.weight": np.ascontiguousarray(flipped)[None, None]}


def find_kernel(text: str) -> tuple[str, Kernel]:
    """The name and the rows of a kernel that is named, or that a file holds (see `read_kernel`).

    Raises InvalidInput for an unknown name, with the nearest one.
    """
    if text in KERNELS:
        return text, KERNELS[text]
    path = Path(text)
    if path.suffix.lower() in SUFFIXES or path.exists():
        return path.stem, read_kernel(path)
    hint = f"{nearest(text, KERNELS)}; or a file of rows of numbers ({', '.join(SUFFIXES)})"
    raise InvalidInput(f"unknown kernel {text!r}", "--kernel", hint)


def read_kernel(path: Path) -> Kernel:
    """The kernel in a file: a JSON list of rows, or a line per row, split by commas or blanks.

    Raises InvalidInput, naming the line (of JSON the row), unless it holds finite numbers in rows of
    one length.
    """
    text = _text(path)
    if path.suffix.lower() == ".json":
        return check_kernel(_json(text, path), path)
    lines = [(f"line {i}", line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    rows = [_numbers(line, f"{path}, {name}") for name, line in lines]
    return check_kernel(rows, path, [name for name, _ in lines])


def check_kernel(rows: Any, where: object = "kernel", names: Sequence[str] = ()) -> Kernel:
    """Rows of numbers (lists or a matrix) as a kernel; raises InvalidInput, naming the row."""
    rows = rows.tolist() if isinstance(rows, np.ndarray) else rows
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in rows):
        raise InvalidInput("not a list of rows of numbers", where, "such as [[0, 1], [1, 0]]")
    if not rows or not rows[0]:
        raise InvalidInput("the kernel is empty", where, "give rows of numbers")
    names = names or [f"row {i}" for i in range(1, len(rows) + 1)]
    for name, row in zip(names, rows, strict=True):
        if len(row) != len(rows[0]):
            raise InvalidInput(f"{len(row)} numbers, but {names[0]} has {len(rows[0])}", f"{where}, {name}")
    if max(len(rows), len(rows[0])) > LARGEST_KERNEL:
        size = f"{len(rows)} x {len(rows[0])}"
        raise InvalidInput(f"a kernel of {size}", where, f"at most {LARGEST_KERNEL} x {LARGEST_KERNEL}")
    for name, row in zip(names, rows, strict=True):
        for number in row:
            fields.float32(number, f"{where}, {name}")
    return tuple(tuple(float(number) for number in row) for row in rows)


def _text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidInput("not a regular file", path, "give a file of rows of numbers")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise InvalidInput(f"larger than {LARGEST_FILE:,} bytes", path)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InvalidInput("no such kernel file", path, f"or a name: {', '.join(KERNELS)}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"not UTF-8 at byte {error.start}", path) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"cannot read the kernel: {reason}", path) from None


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"not JSON: {error.msg}", f"{path}, line {error.lineno}") from None
    except (RecursionError, ValueError):  # nested too deeply, an integer of thousands of digits
        raise InvalidInput("not a list of rows of numbers", path, "such as [[0, 1], [1, 0]]") from None


def _numbers(line: str, where: str) -> list[float]:
    numbers = []
    for text in re.split(r"\s*,\s*" if "," in line else r"\s+", line.strip()):
        try:
            numbers.append(float(text))
        except ValueError:
            raise InvalidInput(f"{text[:40]!r} is not a number", where) from None
    return numbers
