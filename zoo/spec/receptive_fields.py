"""What each layer of a model sees of the image: receptive fields and their steps."""

from __future__ import annotations

from typing import NamedTuple

from zoo.model import IMAGE, Model


def receptive_fields(model: Model) -> dict[str, tuple[int, int]]:
    """(height, width) of the part of the image that one output of each layer depends on, by path.

    A window of `kernel` inputs at a stride grows the field by (kernel - 1) * jump and multiplies the
    jump, the distance in the image between neighbouring outputs, by the stride; both start at 1
    (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", 2019).
    A dense layer is a window over all positions of the map before it. A join's field spans
    the union of its branches' fields. Padding counts like the image, but no field is larger than the image.
    """
    seen = [_seen_along(model, axis) for axis in (0, 1)]
    height, width = model.input_shape[1:]
    return {
        node.path: (min(seen[0][node.path], height), min(seen[1][node.path], width)) for node in model.walk()
    }


class _Sight(NamedTuple):
    """What a layer's outputs see along an axis: the first output sees `size` pixels from `first` on, each
    other the same `jump` further on. positions: how many outputs there are, to a layer that sees them all."""

    first: int
    size: int
    jump: int
    positions: int


def _seen_along(model: Model, axis: int) -> dict[str, int]:
    """The receptive fields along one axis, as if the image had no end."""
    sight = {IMAGE: _Sight(0, 1, 1, model.input_shape[1 + axis])}
    for node in model.walk():
        before = [sight[path] for path in node.inputs]
        first, end = min(s.first for s in before), max(s.first + s.size for s in before)
        jump, positions = max(s.jump for s in before), max(s.positions for s in before)
        window = node.layer.window(node.input_shape)
        kernel, stride = (pair[axis] for pair in window) if window else (positions, 1)
        padding = getattr(node.layer, "padding", (0, 0))[axis]
        if window is None:
            positions = 1
        elif len(node.output_shape) == 3:
            positions = node.output_shape[1 + axis]
        size = end - first + (kernel - 1) * jump
        sight[node.path] = _Sight(first - padding * jump, size, jump * stride, positions)
    return {path: s.size for path, s in sight.items()}
