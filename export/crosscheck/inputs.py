"""The images of the cross-check beside real ones: nothing here is constant or symmetric.

Constant images are blind: a kernel that is transposed or flipped gives them the same sums.
"""

from __future__ import annotations

from math import prod

import numpy as np

from zoo.model import Model
from zoo.randomness import raw_bits

LAYER_IMAGES = 256  # whose every layer is compared
NOISE, PIXELS, RAMPS = 95, 31, 2
MOST = 64  # of noise, and of single pixels, where there is no data set
WORK = 20_000_000_000  # multiply-accumulates on each of the two
MOST_BYTES = 400_000_000  # of what is kept of these images' layers


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
