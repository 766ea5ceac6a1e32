"""Test vectors: the images that an ONNX file carries with what the float64 reference gives for them.

Nothing of them is from a data set: seeded noise, ramps and single pixels, which no transposition, flip
or shift leaves alike, and the ten digits of zoo.images.strokes. They are stored as bytes k of pixels k / 255.
A file stays small whatever the model: of a large image the first PATTERN pixels are stored, and repeated
in C, H, W order; of a large output a corner is kept. How many vectors there are follows from the model.

Outputs are stored as float32 on a grid 2^-22 of the largest: coarser than what another machine's
float64 sums may differ in, finer than a hundredth of what a float32 runtime may.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isqrt, prod
from typing import Any

import numpy as np

from zoo.errors import DataError
from zoo.images import strokes
from zoo.layers import Shape
from zoo.model import Model
from zoo.randomness import raw_bits

Array = np.ndarray

VERSION = 1
MOST, LEAST = 16, 2  # vectors
PATTERN = 8191  # pixels of an image that are stored; a prime, so that rows are not alike
PIXELS = 48 * 1024  # bytes of all images
NUMBERS = 4096  # of all outputs that are kept
WORK = 1_000_000_000  # multiply-accumulates of the reference
SMALLEST = 12  # pixels of the shorter side on which digits are drawn
ABSOLUTE, RELATIVE = 1e-5, 2e-5  # what an output may differ: absolute + relative * the largest
GRID = 22  # bits below the largest output
TINY = 1e-30
LARGEST = float(np.finfo(np.float32).max)

IMAGES, EXPECTED = "zoo.vectors", "zoo.expected"
PRECISION = "zoo.precision"  # of a file that is not float32, whose expected outputs are its own at export
FLOAT32 = "float32"
REDUCED = ("int8", "float16")


@dataclass(frozen=True)
class Vectors:
    """What a file carries to be checked with.

    names: such as "noise 1" or "digit 7". pixels: uint8 (N, stored pixels). expected: float32
    (N, *kept), a corner of each output. limits: how far a runtime's output may be from it, by vector.
    """

    model: Model
    names: tuple[str, ...]
    pixels: Array
    expected: Array
    limits: tuple[float, ...]

    def images(self, rows: Sequence[int]) -> Array:
        """The images of some vectors: float32 (n, C, H, W) in [0, 1]."""
        return images(self.model, self.pixels[list(rows)])

    def kept(self, outputs: Array) -> Array:
        """The corner of outputs (n, ...) that `expected` has."""
        return outputs[(slice(None), *map(slice, self.expected.shape[1:]))]


def make(model: Model) -> tuple[tuple[str, ...], Array]:
    """The names and stored pixels, uint8 (N, stored), of a model's vectors."""
    found = list(islice(_images(model), count(model)))
    return tuple(name for name, _ in found), np.stack([pixels for _, pixels in found])


def count(model: Model) -> int:
    """How many vectors a model's files carry, at most."""
    most = min(PIXELS // _stored(model), NUMBERS // max(1, len(model.labels)), WORK // max(1, model.macs))
    return max(LEAST, min(MOST, most))


def images(model: Model, pixels: Array, corner: Shape = ()) -> Array:
    """The images of stored pixels (n, stored): float32 (n, C, H, W) in [0, 1], or a corner of them.

    corner: how much of the height and width to make.
    """
    channels, height, width = model.input_shape
    rows, columns = corner or (height, width)
    c, y, x = np.ogrid[:channels, :rows, :columns]
    where = ((c * height + y) * width + x) % pixels.shape[1]
    return (pixels.astype(np.float32) / np.float32(255))[:, where]


def kept_shape(model: Model, vectors: int) -> Shape:
    """The shape of what is kept of each output: all of it, or a corner with the output's axes."""
    shape, share = model.output_shape, NUMBERS // vectors
    if prod(shape) <= share:
        return shape
    if len(shape) == 1:
        return (share,)
    channels = min(shape[0], share)
    side = max(1, isqrt(share // channels))
    return channels, min(shape[1], side), min(shape[2], side)


def limit(largest: float) -> float:
    """How far an output may be from the expected one whose largest number is `largest`."""
    return float(f"{ABSOLUTE + RELATIVE * min(largest, LARGEST):.2e}")


def on_grid(values: Array) -> Array:
    """Float64 outputs of one vector as float32, rounded to a grid that its largest number sets."""
    largest = np.abs(values).max(initial=0)
    if largest < TINY:
        return np.zeros(values.shape, np.float32)
    step = 2.0 ** (np.rint(np.log2(largest)) - GRID)
    return np.clip(np.rint(values / step) * step, -LARGEST, LARGEST).astype(np.float32)


def encode(names: tuple[str, ...], pixels: Array, expected: Array, limits: list[float]) -> dict[str, str]:
    """The metadata entries of vectors (N, ...)."""
    images = {"version": VERSION, "names": names, "pixels": _packed(pixels, "u1")}
    outputs = {"values": _packed(expected, "<f4"), "limits": limits}
    return {IMAGES: _text(images), EXPECTED: _text(outputs)}


def decode(metadata: Mapping[str, str], model: Model, where: object) -> Vectors:
    """The vectors that the metadata of a file carry; raises DataError if they do not fit the model."""
    try:
        stored, outputs = (json.loads(metadata[key]) for key in (IMAGES, EXPECTED))
        version = stored["version"]
        if version == VERSION:
            names, limits = tuple(map(str, stored["names"])), tuple(map(float, outputs["limits"]))
            pixels = _unpacked(stored["pixels"], "u1").reshape(len(names), _stored(model))
            expected = _unpacked(outputs["values"], "<f4").astype(np.float32)
            expected = expected.reshape(len(names), *kept_shape(model, len(names)))
    except KeyError as error:
        raise DataError(f"the ONNX file carries no {error.args[0]}", where, "export it again") from None
    except (ValueError, TypeError, RecursionError, ZeroDivisionError):
        raise DataError("the test vectors do not fit the model", where, "export it again") from None
    if version != VERSION:
        raise DataError(f"test vectors of version {version!r}", where, f"this version reads {VERSION}")
    if len(limits) != len(names) or not np.isfinite(expected).all() or not all(0 < x < 1e35 for x in limits):
        raise DataError("the test vectors do not fit the model", where, "export it again")
    return Vectors(model, names, pixels, expected, limits)


def _stored(model: Model) -> int:
    return min(PATTERN, prod(model.input_shape))


def _images(model: Model) -> Iterator[tuple[str, Array]]:
    """Names and stored pixels, uint8 (stored,), the most telling first."""
    _, height, width = model.input_shape
    size = _stored(model)
    ramp = np.arange(size) / size
    yield "noise 1", _noise(1, size)
    yield "ramp 1", np.rint(255 * ramp).astype(np.uint8)
    yield "pixel 1", _pixel(model, 2, 5)
    yield "noise 2", _noise(2, size)
    yield "pixel 2", _pixel(model, height // 2 - 1, width // 3)
    yield "ramp 2", np.rint(255 * np.sqrt(ramp)[::-1]).astype(np.uint8)
    if min(height, width) >= SMALLEST and size == prod(model.input_shape):
        for digit in range(len(strokes.DIGITS)):
            yield f"digit {digit}", np.resize(strokes.drawn(digit, height, width), size)


def _noise(number: int, size: int) -> Array:
    return (raw_bits(0, f"vectors/noise {number}", size) >> np.uint64(56)).astype(np.uint8)


def _pixel(model: Model, y: int, x: int) -> Array:
    """One white pixel, at (y, x) of the first channel where the image is as large."""
    _, height, width = model.input_shape
    size = _stored(model)
    pixels = np.zeros(size, np.uint8)
    pixels[(min(max(y, 0), height - 1) * width + min(x, width - 1)) % size] = 255
    return pixels


def _packed(array: Array, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()


def _unpacked(text: Any, dtype: str) -> Array:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype)


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))
