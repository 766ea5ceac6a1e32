"""From a graph of tensors to a tree of layers: chains, and joins of chains.

Where branches meet, the last tensor through which all of them have come (the immediate dominator, Lengauer
and Tarjan, 1979) is where they parted: what lies between is a Residual, Concat or Scale. A graph whose
branches cross is no such tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from export.imports.tensors import Array, Inexpressible, Join, Tensor
from zoo.errors import InvalidSpec
from zoo.layers import Concat, Layer, Residual, Scale


class Tree(NamedTuple):
    """The layers of a model, and of every tensor its weights and its name in the graph, in walking order."""

    layers: tuple[Layer, ...]
    weights: list[dict[str, Array]]
    names: list[str]


def tree(output: Tensor) -> Tree:
    """The layers from the image to a tensor; raises Inexpressible if they are no tree of chains."""
    return _Builder(output).build(output)


class _Builder:
    def __init__(self, output: Tensor) -> None:
        self._dominators = _dominators(_ordered(output))
        self._seen: set[int] = set()
        self._weights: list[dict[str, Array]] = []
        self._names: list[str] = []

    def build(self, output: Tensor) -> Tree:
        image = self._image(output)
        layers = self._chain(output, image)
        return Tree(layers, self._weights, self._names)

    def _image(self, tensor: Tensor) -> Tensor:
        while tensor.inputs:
            tensor = self._dominators[id(tensor)]
        return tensor

    def _chain(self, end: Tensor, start: Tensor) -> tuple[Layer, ...]:
        """The layers behind `start` up to `end`, which it dominates."""
        steps = []
        while end is not start:
            if not end.inputs:
                raise Inexpressible("branches that part at one place and meet at another")
            steps.append(end)
            end = self._dominators[id(end)]
        return tuple(self._layer(tensor) for tensor in reversed(steps))

    def _layer(self, tensor: Tensor) -> Layer:
        if id(tensor) in self._seen:
            raise Inexpressible(f"{tensor.name or 'a tensor'} is in two branches, which so cross each other")
        self._seen.add(id(tensor))
        if tensor.layer is None:
            raise Inexpressible(tensor.problem)
        layer: Layer
        if isinstance(tensor.layer, Join):
            start = self._dominators[id(tensor)]
            layer = _joined(tensor.layer, tensor, start, self._chain)
        else:
            layer = tensor.layer
        self._weights.append(tensor.arrays)
        self._names.append(tensor.name)
        return layer


def _joined(join: Join, tensor: Tensor, start: Tensor, chain: object) -> Layer:
    """The layer of a join whose branches part at `start`. Branches are built in the order of the layer's."""
    assert callable(chain)
    ends = list(tensor.inputs)
    if join is not Join.CONCAT and ends[0] is ends[1]:
        raise Inexpressible("a tensor is joined with itself")
    try:
        if join is Join.CONCAT:
            return Concat([chain(end, start) for end in ends])
        if join is Join.ADD:
            if ends[0] is start:
                ends.reverse()
            body = chain(ends[0], start)
            return Residual(body, chain(ends[1], start))
        if ends[1] is start:
            ends.reverse()
        if ends[0] is not start:
            raise Inexpressible("a product of two branches neither of which is the tensor they part from")
        return Scale(chain(ends[1], start))
    except InvalidSpec as error:
        raise Inexpressible(error.what) from None


def _ordered(output: Tensor) -> list[Tensor]:
    """Every tensor that the output needs, each behind its inputs."""
    order: list[Tensor] = []
    state: dict[int, bool] = {}  # False: being visited
    stack: list[tuple[Tensor, Iterator[Tensor]]] = [(output, iter(output.inputs))]
    state[id(output)] = False
    while stack:
        tensor, rest = stack[-1]
        following = next((other for other in rest if id(other) not in state), None)
        if following is None:
            order.append(tensor)
            stack.pop()
        else:
            state[id(following)] = False
            stack.append((following, iter(following.inputs)))
    return order


def _dominators(order: Sequence[Tensor]) -> dict[int, Tensor]:
    """The immediate dominator of each tensor but the image, by id; in `order` inputs come first."""
    found: dict[int, Tensor] = {}
    depth: dict[int, int] = {}
    for tensor in order:
        if not tensor.inputs:
            depth[id(tensor)] = 0
            continue
        common = tensor.inputs[0]
        for other in tensor.inputs[1:]:
            while common is not other:
                if depth[id(common)] >= depth[id(other)]:
                    common = found[id(common)]
                else:
                    other = found[id(other)]
        found[id(tensor)] = common
        depth[id(tensor)] = depth[id(common)] + 1
    return found
