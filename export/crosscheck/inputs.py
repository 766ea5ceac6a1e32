"""The images of the cross-check beside real ones: nothing here is constant or symmetric.

Constant images are blind: a kernel that is transposed or flipped gives them the same sums.
"""

from __future__ import annotations

from math import prod

import numpy as np

from zoo.layers import Conv2d, Dense
from zoo.model import Model, Node
from zoo.randomness import permutation, raw_bits, uniform

LAYER_IMAGES = 256  # whose every layer is compared
NOISE, PIXELS, RAMPS = 95, 31, 2
MOST = 64  # of noise, and of single pixels, where there is no data set
WORK = 20_000_000_000  # multiply-accumulates on each of the two
MOST_BYTES = 400_000_000  # of what is kept of these images' layers
SEVERAL, MOST_ROWS = 16, 256  # inputs for a layer alone, and for a dense one
FEW = 16  # terms of a sum that are not zero


def probes(model: Model, count: int = MOST) -> np.ndarray:
    """Images that no transposition, flip or shift leaves alike: noise, single pixels, ramps.

    float32 (2 * count + 2, C, H, W) in [0, 1], the same on every call.
    """
    return np.concatenate([noise(model, count), *_pixels_and_ramps(model, count)])


def probe_count(model: Model) -> int:
    """How many probes of each kind a model is asked about: MOST, fewer where it computes much."""
    return max(2, min(MOST, WORK // max(1, model.macs)))


def noise(model: Model, count: int) -> np.ndarray:
    """Uniform noise: float32 (count, C, H, W) in [0, 1), the same on every call."""
    bits = raw_bits(0, "probes/noise", count * prod(model.input_shape)) >> np.uint64(40)
    return (bits.astype(np.float32) / 2**24).reshape(count, *model.input_shape)


def layer_images(model: Model, images: np.ndarray) -> np.ndarray:
    """The images whose every layer is compared: the first of those given, noise, pixels and ramps.

    float32 (at most LAYER_IMAGES, C, H, W), half of them given ones; fewer where only a few are given
    or their activations would be too large.
    """
    kept = 16 * sum(prod(node.output_shape) for node in model.walk())  # bytes: outputs and two limits
    count = max(5, min(LAYER_IMAGES, 2 * len(images), MOST_BYTES // kept))
    pixels = max(1, PIXELS * count // LAYER_IMAGES)
    made = [noise(model, max(1, NOISE * count // LAYER_IMAGES)), *_pixels_and_ramps(model, pixels)]
    return np.concatenate([images[: count - sum(map(len, made))], *made])


def _pixels_and_ramps(model: Model, count: int) -> tuple[np.ndarray, np.ndarray]:
    size = prod(model.input_shape)
    pixels = np.zeros((count, size), dtype=np.float32)
    pixels[np.arange(count), (raw_bits(0, "probes/pixels", count) % np.uint64(size)).astype(int)] = 1
    ramp = np.arange(size, dtype=np.float32) / size
    ramps = np.stack([ramp, np.sqrt(ramp)[::-1]])
    return pixels.reshape(-1, *model.input_shape), ramps.reshape(RAMPS, *model.input_shape)


def few_terms(node: Node, x: np.ndarray, number: int = 0) -> np.ndarray:
    """Inputs for one layer alone: noise of both signs, as large as x (N, ...) is at most, float32 (N', ...).

    For a layer that sums products most of it is zero, so that its outputs are sums of about FEW terms:
    rounding has a sharp bound there, and one wrong weight is a large part of an output. Together they meet
    every weight of a dense layer, and nearly every one of a convolution. number: of a join's input.
    """
    shape, size = x.shape[1:], prod(x.shape[1:])
    largest = float(np.abs(x).max(initial=0)) or 1.0
    rows = min(len(x), SEVERAL)
    if isinstance(node.layer, Dense):
        rows = min(MOST_ROWS, max(rows, -(-size // FEW)))
    with np.errstate(over="ignore"):
        noise = (2 * uniform(number, f"alone/{node.path}", rows * size) - 1).reshape(rows, size) * largest
    if isinstance(node.layer, Dense):
        turn = permutation(number, f"alone/{node.path}/rows", size)
        noise[np.arange(rows)[:, None] != turn % rows] = 0
    elif isinstance(node.layer, Conv2d):
        terms = prod(node.layer.kernel) * shape[0] // node.layer.groups
        kept = uniform(number, f"alone/{node.path}/places", rows * size).reshape(rows, size) * terms < FEW
        noise[~kept] = 0
    return noise.astype(np.float32).reshape(rows, *shape)
