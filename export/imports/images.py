"""The images on which what was brought in is held to its original: groups of one scale each.

A group has a limit of its own, so that the outputs of large images do not cover the errors of small ones.
The last group is searched for: a function that is not what it was taken for differs most visibly where it
bends, so images are chosen for which a channel's inputs of an activation come near the bend, on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import NamedTuple

import numpy as np

from backends.reference.network import ReferenceNetwork
from export.crosscheck.inputs import noise, probes
from zoo import data
from zoo.layers import ELU, HardSigmoid, HardSwish, Layer, LeakyReLU, ReLU, ReLU6
from zoo.model import IMAGE, Model, Node
from zoo.randomness import raw_bits

Array = np.ndarray
SEARCHED = "searched"
MOST = 16  # images of a kind
LEAST_PLACES = 2  # that are searched, however large a model is
WORK = 1_000_000_000  # of `_work` on the images of one kind: half a second of the reference
MOST_PIXELS = 2**26  # of all groups; with more only the first three are asked
SCALES = (1e-3, 0.1, 1.0, 10.0, 255.0)  # of noise
BENDS: dict[type[Layer], tuple[float, ...]] = {
    ReLU: (0.0,),
    LeakyReLU: (0.0,),
    ELU: (0.0,),
    ReLU6: (0.0, 6.0),
    HardSigmoid: (-3.0, 3.0),
    HardSwish: (-3.0, 3.0),
}
DISTANCES = (1e-2, 1e-3, 1e-5, 1e-7)  # from a bend, of the largest input of that activation
STEPS = 20  # of the search for one place
NEARBY = 1e-5  # of the line, where its slope is measured


class Group(NamedTuple):
    """Images of one scale: float32 (N, C, H, W)."""

    name: str
    images: Array


def groups(network: ReferenceNetwork, preprocessed: bool = False) -> list[Group]:
    """All groups. preprocessed: the first three are in [-2, 2], as others prepare images, not in [0, 1]."""
    model = network.model
    count = kind_count(model)
    parts = np.split(probes(model, count), [count, 2 * count])
    if preprocessed:
        parts = [(4 * part - 2).astype(np.float32) for part in parts]
    found = list(map(Group, ("noise", "single pixels", "ramps"), parts))
    uniform = 2 * noise(model, (len(SCALES) + 1) * count)[count:] - 1
    for i, scale in enumerate(SCALES):
        part = uniform[i * count : (i + 1) * count] * np.float32(scale)
        found.append(Group(f"noise of {scale:g}", part))
    found.append(Group("digits", digits(model, count)))
    found.append(Group("extremes", extremes(model)))
    if sum(group.images.size for group in found) > MOST_PIXELS:
        return found[:3]
    searched = list(near_bends(network, count))
    return [*found, Group(SEARCHED, np.concatenate(searched))] if searched else found


def kind_count(model: Model) -> int:
    """How many images of each kind a model is asked about: MOST, fewer where it computes much."""
    return max(1, min(MOST, WORK // _work(model)))


def _work(model: Model) -> int:
    """Multiply-accumulates of one image, and 50 for each number that a layer gives: the reference's time."""
    return model.macs + 50 * sum(prod(node.output_shape) for node in model.walk())


def digits(model: Model, count: int) -> Array:
    """Real scans of digits, brought to a model's size by repeating pixels, the same in every channel."""
    scans = _scans()[:count]
    channels, height, width = model.input_shape
    rows, columns = np.arange(height) * 28 // height, np.arange(width) * 28 // width
    sized = scans[:, :, rows][..., columns]
    return np.ascontiguousarray(np.broadcast_to(sized, (len(scans), channels, height, width)))


@cache
def _scans() -> Array:
    return data.to_float(data.digits().test_images[:MOST])


def extremes(model: Model) -> Array:
    """All black, all white, one grey, and black and white pixels by chance."""
    shape = model.input_shape
    saturated = (noise(model, 1) < 0.5).astype(np.float32)
    plain = np.array([0, 1, 0.5], np.float32).reshape(3, 1, 1, 1)
    return np.concatenate([np.broadcast_to(plain, (3, *shape)), saturated])


def perturbed(images: Array) -> Array:
    """The same images with every pixel moved by a unit in its last place or two, up or down by chance."""
    signs = raw_bits(0, "import/perturbed", images.size).reshape(images.shape) & np.uint64(1)
    return images * (1 + (2 * signs.astype(np.float32) - 1) * np.float32(2**-23))


def near_bends(network: ReferenceNetwork, count: int) -> Iterator[Array]:
    """Images for which the middle input of an activation's channel is near a bend: (8, C, H, W) at a time.

    On a line between two images the inputs of one channel move from one side of the bend to the other. Where
    the middle one crosses it is searched for, and images are taken at DISTANCES from there on either side.
    `count` places are tried, in activations spread over the depth of the model.
    """
    model = network.model
    targets = [
        (node, bend) for node in model.walk() for bend in BENDS.get(type(node.layer), ()) if node.inputs
    ]
    if not targets:
        return
    count = max(count, LEAST_PLACES)
    lines = list(_lines(model, count))
    for i in range(count):
        node, bend = targets[i * len(targets) // count]
        found = _crossing(network, node, bend, lines[i], i)
        if found is not None:
            yield found


def _lines(model: Model, count: int) -> Iterator[tuple[Array, Array]]:
    """Pairs of images: one grey, where all of a channel's inputs cross together, noise, a digit on grey."""
    shape = model.input_shape
    uniform, scans = 2 * noise(model, 2 * count) - 1, digits(model, min(count, MOST))
    for i in range(count):
        if i % 3 == 0:
            yield np.full(shape, -2, np.float32), np.full(shape, 3, np.float32)
        elif i % 3 == 1:
            yield 3 * uniform[2 * i], 3 * uniform[2 * i + 1]
        else:
            scan = scans[i % len(scans)]
            yield scan - 2, scan + 2


def _crossing(
    network: ReferenceNetwork, node: Node, bend: float, line: tuple[Array, Array], seed: int
) -> Array | None:
    start, end = (image.astype(np.float64) for image in line)

    def at(places: list[float]) -> tuple[Array, float]:
        """The middle input of every channel (places, channels), less the bend; the largest input."""
        images = np.stack([start + t * (end - start) for t in places])
        inputs = _inputs(network, node, images)
        flat = np.sort(inputs.reshape(*inputs.shape[:2], -1), axis=2)
        return flat[..., flat.shape[2] // 2] - bend, float(np.abs(inputs).max())

    (first, last), largest = at([0.0, 1.0])
    crossing = np.flatnonzero(first * last < 0)
    if not len(crossing):
        return None
    channel = crossing[seed % len(crossing)]
    t, low, high, below, above = 0.5, 0.0, 1.0, first[channel], last[channel]
    for step in range(STEPS):
        # The straight line's root, and the middle every third time: either alone may be slow.
        t = (low + high) / 2 if step % 3 == 2 else low + (high - low) * below / (below - above)
        middle, largest = at([t])
        value = middle[0, channel]
        if value * below > 0:
            low, below = t, value
        else:
            high, above = t, value
        if abs(value) <= DISTANCES[-1] * largest / 10:
            break
    before, after = at([t - NEARBY, t + NEARBY])[0][:, channel]
    slope = (after - before) / (2 * NEARBY)
    if not slope:
        return None
    places = [t + sign * distance * largest / slope for distance in DISTANCES for sign in (1, -1)]
    return np.stack([start + t * (end - start) for t in places]).astype(np.float32)


def _inputs(network: ReferenceNetwork, node: Node, images: Array) -> Array:
    """What an activation is given: float64 (N, C, ...)."""
    (path,) = node.inputs
    if path == IMAGE:
        return images
    return next(output for found, output in network.run(images) if found == path)
