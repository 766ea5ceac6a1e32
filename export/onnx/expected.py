"""What the float64 reference gives for a model's test vectors: the part of its outputs that is kept.

In a chain of layers that look at a window each, a corner of the output needs a corner of the image. So a
filter for a photograph gets its vectors as fast as one for a digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.inference import vectors
from zoo.layers import AdaptiveAvgPool2d, Join, Shape
from zoo.model import Model
from zoo.weights import digest

Array = np.ndarray

MOST_MADE = 4
_made: dict[tuple[Model, str], dict[str, str]] = {}  # to_onnx is called several times for the same weights


def carried(model: Model, weights: Mapping[str, Array]) -> dict[str, str]:
    """The metadata entries of a model's test vectors: a function of model and weights alone."""
    key = (model, digest(weights))
    if key not in _made:
        while len(_made) >= MOST_MADE:
            _made.pop(next(iter(_made)))
        _made[key] = _carried(model, weights)
    return dict(_made[key])


def _carried(model: Model, weights: Mapping[str, Array]) -> dict[str, str]:
    names, pixels = vectors.make(model)
    shape = vectors.kept_shape(model, len(names))
    expected, limits = [], []
    for output in _outputs(ReferenceNetwork(model, weights), pixels, shape):
        finite = np.nan_to_num(output, posinf=vectors.LARGEST, neginf=-vectors.LARGEST)
        expected.append(vectors.on_grid(finite)[tuple(map(slice, shape))])
        limits.append(vectors.limit(float(np.abs(finite).max())))
    return vectors.encode(names, pixels, np.stack(expected), limits)


def _outputs(network: ReferenceNetwork, pixels: Array, shape: Shape) -> Iterator[Array]:
    """The output of each vector, float64: whole, or at least the corner `shape` of it."""
    sizes = _sizes(network.model, shape)
    with np.errstate(over="ignore", invalid="ignore"):
        if sizes:
            yield from _corner(network, vectors.images(network.model, pixels, sizes[0]), sizes[1:])
        else:
            yield from network.predict(vectors.images(network.model, pixels))


def _sizes(model: Model, shape: Shape) -> list[Shape]:
    """How much of the image, and of each layer's output, the corner `shape` of the output needs:
    (height, width) of each. Empty if the whole output is kept, a layer looks at every position, or there
    are branches."""
    if shape == model.output_shape or len(shape) < 3:
        return []
    sizes = [shape[1:]]
    for node in reversed(model.walk()):
        window = node.layer.window(node.input_shape)
        if window is None or isinstance(node.layer, (AdaptiveAvgPool2d, Join)):  # its cells know the size
            return []
        needed = [(n - 1) * stride + kernel for n, kernel, stride in zip(sizes[0], *window, strict=True)]
        sizes.insert(0, tuple(map(min, needed, node.input_shape[1:])))
    return sizes


def _corner(network: ReferenceNetwork, x: Array, sizes: list[Shape]) -> Array:
    """The corner of the output for a corner x (N, C, h, w) of the images.

    sizes: how much to keep of each layer's output.
    """
    for (node, weights), (height, width) in zip(network.nodes, sizes, strict=True):
        x = apply(node.layer, x.astype(np.float64), weights)[:, :, :height, :width]
    return x
