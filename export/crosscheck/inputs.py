"""The images of the cross-check beside real ones, and the sizes of its batches.

Constant images are blind: a kernel that is transposed or flipped gives them the same sums. So most images
here are noise, single pixels and ramps. But some faults show on constant ones alone (black, white, grey), on
saturated ones, or where the logits are so large that an exponential overflows; there are a few of each. What
is drawn follows from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from backends.reference.network import ReferenceNetwork
from export.crosscheck.limits import UNIT
from zoo.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
    Dense,
    GlobalAvgPool2d,
    LocalResponseNorm,
    Softmax,
)
from zoo.machine import ONE_BATCH
from zoo.model import IMAGE, Model, Node
from zoo.randomness import permutation, raw_bits, uniform

LAYER_IMAGES = 256  # whose every layer is compared
LEAST_IMAGES = 6  # of them, however large a model is
MOST = 64  # of noise, and of single pixels, where there is no data set
WORK = 20_000_000_000  # multiply-accumulates on each of the two
MOST_BYTES = 400_000_000  # of what is kept of these images' layers; and of a tensor of a batch

LOGITS = 1e4  # what scaled images drive the logits to: exp overflows in float32 from 88.8 on
MOST_SCALE = 2.0**20
HIGHEST = 1e10  # of all layers on scaled images: its cube is a float32 number

BATCHES = (*range(1, 10), 16, 32, 64, 65, 128, 256, 500, ONE_BATCH)
DRAWN_BATCHES, LARGEST_DRAWN = 3, 256  # besides
FEW_BATCHES = (1, 2, 3, 7, 64)
LEAST_BATCHES = 3  # sizes, however much a model computes
BATCH_WORK = 30_000_000_000  # multiply-accumulates of all batches, each size once
SEVERAL, MOST_ROWS = 16, 256  # inputs for a layer alone: at least, at most
FEW, HITS = 16, 16  # terms of a sum that are not zero; outputs that meet a weight


def probes(model: Model, count: int = MOST, seed: int = 0) -> np.ndarray:
    """Images that no transposition, flip or shift leaves alike: noise, single pixels, ramps.

    float32 (2 * count + 2, C, H, W) in [0, 1], the same for the same seed.
    """
    return np.concatenate([noise(model, count, seed), _pixels(model, count, seed), _ramps(model)])


def probe_count(model: Model) -> int:
    """How many probes of each kind a model is asked about: MOST, fewer where it computes much."""
    return max(2, min(MOST, WORK // max(1, model.macs)))


def noise(model: Model, count: int, seed: int = 0) -> np.ndarray:
    """Uniform noise: float32 (count, C, H, W) in [0, 1), the same for the same seed."""
    bits = raw_bits(seed, "probes/noise", count * prod(model.input_shape)) >> np.uint64(40)
    return (bits.astype(np.float32) / 2**24).reshape(count, *model.input_shape)


def layer_images(network: ReferenceNetwork, images: np.ndarray, seed: int = 0) -> np.ndarray:
    """The images whose every layer is compared: extremes, the first of those given, noise and pixels.

    network: the judge, which says how far images must be scaled. float32 (at most LAYER_IMAGES, C, H, W);
    fewer where only a few are given or their activations would be too large. All but the scaled extremes
    are in [0, 1]: see `plain`.
    """
    model = network.model
    extremes = _extremes(network, images, seed)
    kept = 16 * sum(prod(node.output_shape) for node in model.walk())  # bytes: outputs and two limits
    others = 2 * max(2, len(images))
    count = max(LEAST_IMAGES, min(LAYER_IMAGES, others + len(extremes), MOST_BYTES // kept))
    extremes = extremes[: max(count // 2, count - others)]
    made = max(2, (count - len(extremes)) // 2)
    pixels = max(1, made // 4)
    given = images[: count - len(extremes) - made]
    return np.concatenate([extremes, given, noise(model, made - pixels, seed), _pixels(model, pixels, seed)])


def plain(images: np.ndarray) -> np.ndarray:
    """Which of some images (N, C, H, W) are in [0, 1], as all are that a model is meant for: (N,)."""
    return (images.reshape(len(images), -1).max(axis=1, initial=0) <= 1).astype(bool)


def batch_sizes(model: Model, seed: int = 0, work: int = BATCH_WORK) -> tuple[int, ...]:
    """The sizes of batches that a model is asked for: BATCHES and drawn ones, fewer where it computes much.

    work: multiply-accumulates of all of them together.
    """
    drawn = 10 + (raw_bits(seed, "probes/batches", DRAWN_BATCHES) % np.uint64(LARGEST_DRAWN - 10)).astype(int)
    largest = 4 * max(prod(model.input_shape), *(prod(node.output_shape) for node in model.walk()))
    sizes: list[int] = []
    for size in sorted({*BATCHES, *drawn.tolist()}):
        rows = sum(sizes) + size
        if len(sizes) < LEAST_BATCHES or (rows * model.macs <= work and size * largest <= MOST_BYTES):
            sizes.append(size)
    return tuple(sizes)


def _extremes(network: ReferenceNetwork, images: np.ndarray, seed: int) -> np.ndarray:
    """Black, white, grey, saturated and nearly saturated images, pixels in corners, ramps, and images so
    bright that the logits are large: float32 (17, C, H, W), the most telling first."""
    model = network.model
    shape = model.input_shape
    level, jitter = uniform(seed, "probes/levels", 2)
    drawn = noise(model, 4, seed)
    real = images[0] if len(images) else drawn[1]
    factor = np.float32(_factor(network, drawn[0], LOGITS * 2 ** (jitter - 0.5)))
    corners = np.zeros((4, *shape), np.float32)
    for i, (y, x) in enumerate(((0, 0), (-1, -1), (0, -1), (-1, 0))):
        corners[i, i % shape[0], y, x] = 1
    black, white = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    saturated = np.round(drawn[2])
    almost = np.float32(2.0**-20) * drawn[3]
    return np.stack(
        [
            drawn[0] * factor,
            black,
            white,
            saturated,
            *_ramps(model),
            real * factor,
            corners[0],
            np.full(shape, level, np.float32),
            np.abs(saturated - almost),
            drawn[0] * max(factor / 10, np.float32(1)),
            *corners[1:],
            np.round(real),
            drawn[1] * max(factor / 100, np.float32(1)),
            real * max(factor / 100, np.float32(1)),
        ]
    ).astype(np.float32)


def _factor(network: ReferenceNetwork, image: np.ndarray, largest: float) -> float:
    """What an image (C, H, W) is multiplied with so that the largest logit becomes about `largest`.

    Less, where even MOST_SCALE does not do that, or a layer would pass HIGHEST.
    """
    last = next(node.path for node, _ in reversed(network.nodes) if not isinstance(node.layer, Softmax))
    factor = safe = 1.0
    for _ in range(3):
        with np.errstate(over="ignore", invalid="ignore"):
            sizes = {path: np.abs(y).max(initial=0) for path, y in network.run(image[None] * factor)}
        sizes[IMAGE] = factor
        if not (max(sizes.values()) <= HIGHEST and all(_bearable(node, sizes) for node, _ in network.nodes)):
            factor = (safe * factor) ** 0.5
            continue
        safe = factor
        if sizes[last] >= largest / 2:
            break
        factor = min(factor * largest / max(sizes[last], 1 / MOST_SCALE), MOST_SCALE)
    return safe


def _bearable(node: Node, sizes: Mapping[str, float]) -> bool:
    """Whether a layer is still a number in every runtime for an input that large, which is by path.

    A running sum of squares over the channels (onnxruntime's LRN) must not be wrong by as much as k.
    """
    layer = node.layer
    if not isinstance(layer, LocalResponseNorm):
        return True
    steps = 2 * node.input_shape[0] + layer.size
    return 2 * layer.alpha * steps * UNIT * sizes[node.inputs[0]] ** 2 <= layer.k


def _pixels(model: Model, count: int, seed: int) -> np.ndarray:
    size = prod(model.input_shape)
    pixels = np.zeros((count, size), dtype=np.float32)
    pixels[np.arange(count), (raw_bits(seed, "probes/pixels", count) % np.uint64(size)).astype(int)] = 1
    return pixels.reshape(-1, *model.input_shape)


def _ramps(model: Model) -> np.ndarray:
    size = prod(model.input_shape)
    ramp = np.arange(size, dtype=np.float32) / size
    return np.stack([ramp, np.sqrt(ramp)[::-1]]).reshape(2, *model.input_shape)


def few_terms(node: Node, x: np.ndarray, number: int = 0) -> np.ndarray:
    """Inputs for one layer alone: noise of both signs, as large as x (N, ...) is at most, and one of zeros.

    For a layer that sums, the noise is cut into rows, each of which holds a part: its outputs are sums of
    about FEW terms, whose rounding has a sharp bound, and one wrong weight is a large part of an output.
    Where an output sees everything, the rows together meet every weight; where there are many outputs, each
    weight is met at about HITS of them. More rows than MOST_ROWS are not made: then a sum has more terms.
    number: of a join's input. float32.
    """
    layer, shape, size = node.layer, x.shape[1:], prod(x.shape[1:])
    terms = 0
    if isinstance(layer, Dense):
        terms = size
    elif isinstance(layer, Conv2d):
        terms = prod(layer.kernel) * shape[0] // layer.groups
    elif isinstance(layer, (AvgPool2d, AdaptiveAvgPool2d, GlobalAvgPool2d)):
        window = layer.window(shape)
        terms = prod(window[0] if window else shape[1:])
    parts = min(MOST_ROWS, -(-terms // FEW))
    rows = min(parts, -(-HITS * parts // prod(node.output_shape[1:])))
    rows = max(rows, min(len(x), SEVERAL))
    noise = (2 * uniform(number, f"alone/{node.path}", rows * size) - 1).reshape(rows, size)
    if parts > 1:
        part = permutation(number, f"alone/{node.path}/parts", size) % parts
        noise[np.arange(rows)[:, None] % parts != part] = 0
    noise *= float(np.abs(x).max(initial=0)) or 1.0
    return np.concatenate([noise, np.zeros((1, size))]).astype(np.float32).reshape(-1, *shape)
