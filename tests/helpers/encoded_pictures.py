"""One picture in every encoding that people have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drawing import draw, grey

LEVELS = np.asarray(grey(1 - 0.8 * draw(3, 1)))  # uint8 (280, 280), not symmetric in any way


def rgba(opacity: np.ndarray | int = 255) -> Image.Image:
    return Image.fromarray(np.dstack([LEVELS] * 3 + [np.broadcast_to(np.uint8(opacity), LEVELS.shape)]))


def oriented(number: int) -> Callable[[Path], None]:
    """A PNG that lies as a camera would store it, with EXIF's number that says how to turn it."""
    undo = {
        1: Image.Transpose.ROTATE_180, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip

    def save(path: Path) -> None:
        image = Image.fromarray(LEVELS)
        exif = image.getexif()
        exif[0x0112] = number
        (image if number == 1 else image.transpose(undo[number])).save(path, exif=exif)

    return save


def palette(path: Path) -> None:
    image = Image.fromarray(255 - LEVELS)  # indices that are not the levels
    image.putpalette([255 - level for level in range(256) for _ in range(3)])
    assert image.mode == "P"
    image.save(path)


LOSSLESS: dict[str, Callable[[Path], None]] = {
    "grey.png": Image.fromarray(LEVELS).save,
    "rgb.png": Image.fromarray(LEVELS).convert("RGB").save,
    "rgba.png": rgba().save,
    "la.png": Image.fromarray(LEVELS).convert("LA").save,
    "palette.png": palette,
    "palette.gif": palette,
    "sixteen.png": Image.fromarray(LEVELS.astype(np.uint16) * 257).save,
    "sixteen.tif": Image.fromarray(LEVELS.astype(np.uint16) * 257).save,
    "grey.bmp": Image.fromarray(LEVELS).save,
    "rgb.bmp": Image.fromarray(LEVELS).convert("RGB").save,
    "lossless.webp": lambda path: Image.fromarray(LEVELS).save(path, lossless=True),
    "grey.tif": Image.fromarray(LEVELS).save,
    "packed.tif": lambda path: Image.fromarray(LEVELS).save(path, compression="tiff_lzw"),
    **{f"orientation-{number}.png": oriented(number) for number in range(1, 9)},
    "orientation-6.tif": oriented(6),
}


LOSSY: dict[str, Callable[[Path], None]] = {
    "grey.jpg": lambda path: Image.fromarray(LEVELS).save(path, quality=85),
    "rgb.jpg": lambda path: Image.fromarray(LEVELS).convert("RGB").save(path, quality=75),
    "progressive.jpg": lambda path: Image.fromarray(LEVELS).save(path, progressive=True),
    "cmyk.jpg": lambda path: Image.fromarray(LEVELS).convert("RGB").convert("CMYK").save(path, quality=85),
    "orientation-6.jpg": oriented(6),
    "lossy.webp": lambda path: Image.fromarray(LEVELS).save(path, quality=80),
    "bit.png": Image.fromarray(LEVELS).convert("1", dither=Image.Dither.NONE).save,
}
