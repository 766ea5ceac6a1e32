"""Augmentation: training images that are moved anew in every epoch, in NumPy, the same for every backend.

What happens to an image is a function of (seed, epoch, its index) alone, so a training that goes on from
a checkpoint sees what it would have seen, and so does the other framework.
"""

from __future__ import annotations

import math
from functools import singledispatch

import numpy as np

from zoo.randomness import uniform
from zoo.recipe import Augmentation, RandomAffine

CHUNK = 500  # images at a time, which stay in the cache


@singledispatch
def augment(
    rule: Augmentation | None, images: np.ndarray, seed: int, epoch: int, indices: np.ndarray | None = None
) -> np.ndarray:
    """Training images as epoch `epoch` (from 1) sees them: float32 (N, C, H, W) in [0, 1], as they are.

    indices: which of all training images these are, int64 (N,); None: all of them, in order.
    """
    raise TypeError(f"no augmentation: {rule!r}")


@augment.register
def _nothing(
    rule: None, images: np.ndarray, seed: int, epoch: int, indices: np.ndarray | None = None
) -> np.ndarray:
    return images


@augment.register
def _random_affine(
    rule: RandomAffine, images: np.ndarray, seed: int, epoch: int, indices: np.ndarray | None = None
) -> np.ndarray:
    indices = np.arange(len(images)) if indices is None else indices
    draws = 2 * uniform(seed, f"augmentation/{epoch}", 5 * (int(indices.max(initial=-1)) + 1)) - 1
    matrices = _matrices(rule, draws.reshape(-1, 5)[indices])
    moved = np.empty_like(images, dtype=np.float32)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        moved[part] = affine(images[part], matrices[part])
    return moved


def _matrices(rule: RandomAffine, draws: np.ndarray) -> np.ndarray:
    """Where the pixels come from, (N, 2, 3), for draws (N, 5) in [-1, 1): see `affine`."""
    angle, shear, scale, x, y = draws.T
    cos, sin = np.cos(np.radians(rule.degrees) * angle), np.sin(np.radians(rule.degrees) * angle)
    slant = np.tan(np.radians(rule.shear) * shear)
    factor = np.exp(-math.log1p(rule.scale) * scale)  # the inverse of what the image is scaled by
    rows = (
        (factor * cos, factor * (slant * cos - sin), rule.translate * x),
        (factor * sin, factor * (slant * sin + cos), rule.translate * y),
    )
    return np.array(rows).transpose(2, 0, 1)


def affine(images: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Images moved by affine maps, bilinear: float32 (N, C, H, W).

    matrices: (N, 2, 3). The pixel at (x, y) from the image's centre takes the value at matrix @ (x, y, 1),
    from the centre as well; outside the image it is 0.
    """
    count, channels, height, width = images.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    grid = np.stack([x - middle_x, y - middle_y, np.ones(x.size)])
    from_x, from_y = (matrices.reshape(-1, 3) @ grid).astype(np.float32).reshape(count, 2, -1).swapaxes(0, 1)
    from_x = np.clip(from_x + np.float32(middle_x), -1, width)  # a frame of zeros lies around the image
    from_y = np.clip(from_y + np.float32(middle_y), -1, height)
    left, top = np.floor(from_x), np.floor(from_y)
    right_share, lower_share = from_x - left, from_y - top
    framed = np.pad(images, ((0, 0), (0, 0), (1, 2), (1, 2)))
    row = width + 3
    corner = ((top.astype(np.int32) + 1) * row + left.astype(np.int32) + 1)[:, np.newaxis]
    corner = corner + (np.arange(count * channels, dtype=np.int32) * (height + 3) * row).reshape(
        count, channels, 1
    )
    flat = framed.ravel()
    right_share, lower_share = right_share[:, np.newaxis], lower_share[:, np.newaxis]
    upper = flat.take(corner) * (1 - right_share) + flat.take(corner + 1) * right_share
    lower = flat.take(corner + row) * (1 - right_share) + flat.take(corner + row + 1) * right_share
    moved: np.ndarray = (upper * (1 - lower_share) + lower * lower_share).astype(np.float32)
    return moved.reshape(images.shape)
