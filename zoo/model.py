"""A model: a named tuple of layers with its recipe and provenance.

`walk()` is the one place where shapes are inferred and layers are named; every consumer (weights,
reference, lowerings, ONNX, reports) reads it. A model that cannot run cannot be constructed.
Its JSON data hold every field with every default written out; zoo.spec.form reads them back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, TypeVar

from zoo import layers as layer_language
from zoo import recipe as recipe_language
from zoo.errors import InvalidSpec
from zoo.layers import Join, Layer, Shape, Softmax
from zoo.recipe import Recipe

T = TypeVar("T")

SPEC_VERSION = 1
LARGEST_SPEC = 1_000_000  # bytes
MOST_LAYERS = 10_000
MOST_DEPTH = 20  # of branches in branches
MOST_PARAMETERS = 1_000_000_000
MOST_ACTIVATIONS = 1_000_000_000
RESERVED = ("image", "logits", "probabilities")  # the tensors at both ends of every graph
IMAGE = ""  # what stands for the path of the model's input
DIGITS = tuple("0123456789")


class Node(NamedTuple):
    """One layer in its place: its path (conv1, residual1.body.conv1, ...) and what is around it.

    inputs: the paths of the nodes whose outputs it takes, IMAGE for the image itself; one, except for a
    join (zoo.layers.Join), which takes the ends of its branches. input_shapes: theirs.
    """

    path: str
    layer: Layer
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    output_shape: Shape

    @property
    def input_shape(self) -> Shape:
        """The shape of its input, the first one of a join."""
        return self.input_shapes[0]

    def take(self, tensors: Mapping[str, T]) -> T | tuple[T, ...]:
        """What the layer is applied to, of tensors (or whatever stands for them) by path.

        One tensor, or for a join the tuple of them.
        """
        if isinstance(self.layer, Join):
            return tuple(tensors[path] for path in self.inputs)
        return tensors[self.inputs[0]]

    @property
    def parameters(self) -> int:
        """How many numbers the layer learns."""
        return sum(prod(weight.shape) for weight in self._trained)

    @property
    def formula(self) -> str:
        """How `parameters` comes about: "32 x (1 x 3 x 3) + 32"; "" without any."""
        return " + ".join(weight.formula for weight in self._trained)

    @property
    def _trained(self) -> tuple[layer_language.Weight, ...]:
        return tuple(weight for weight in self.layer.weights(self.input_shape) if weight.trained)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return self.layer.macs(self.input_shape)


@dataclass(frozen=True)
class Model:
    """A convolutional network: what it is, how it is trained, where it is documented.

    input_shape: (C, H, W). layers: applied in order. labels: the class of each output; none for a
    model that does not classify, whose result is the last layer's output, an image or a vector.
    document: the source text. notes: one sentence per departure or inconsistency of the document.
    arguments: the parameters with which a registered model was made, such as (("out_1", 8),).
    Raises InvalidSpec, with the shapes up to the failing layer, if the layers do not fit together.
    """

    name: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    recipe: Recipe
    labels: tuple[str, ...] = DIGITS
    document: str = ""
    notes: tuple[str, ...] = ()
    arguments: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if not self.layers:
            raise InvalidSpec("a model needs at least one layer", "layers")
        if len(self.input_shape) != 3 or any(type(n) is not int or n < 1 for n in self.input_shape):
            raise InvalidSpec(f"{self.input_shape!r} is not (channels, height, width)", "input_shape")
        given = self.output_shape  # walks the layers, whether or not anything has to match
        if self.labels and given != (len(self.labels),):
            raise InvalidSpec(
                f"the last layer gives {given}, but there are {len(self.labels)} labels",
                "layers",
                f"shapes: {_trace(self.input_shape, self._nodes)}",
            )

    def walk(self) -> tuple[Node, ...]:
        """Every layer, each behind all that it takes, with its path, inputs, input and output shapes.

        The layers of a join's branches stand before it, one branch after another.
        """
        return self._nodes

    @cached_property
    def _nodes(self) -> tuple[Node, ...]:
        return tuple(_Walk(self.input_shape, (*RESERVED, self.output)).nodes_of(self.layers))

    @property
    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(node.parameters for node in self._nodes)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return sum(node.macs for node in self._nodes)

    @property
    def output_shape(self) -> Shape:
        """The shape that the last layer gives: (classes,), or any shape without labels."""
        return self._nodes[-1].output_shape

    @property
    def output(self) -> str:
        """What the last layer gives: "probabilities" after a Softmax, else "logits"; "features"
        where there are no labels."""
        if not self.labels:
            return "features"
        return "probabilities" if isinstance(self.layers[-1], Softmax) else "logits"

    @property
    def title(self) -> str:
        """The name with the parameters it was made with: cnn-padded:out_1=8."""
        return ":".join((self.name, ",".join(f"{k}={v}" for k, v in self.arguments))).rstrip(":")

    def to_dict(self) -> dict[str, Any]:
        """The model as JSON data, every default written out."""
        return {
            "spec_version": SPEC_VERSION,
            "name": self.name,
            "arguments": dict(self.arguments),
            "document": self.document,
            "input_shape": list(self.input_shape),
            "labels": list(self.labels),
            "layers": [layer_language.to_dict(layer) for layer in self.layers],
            "recipe": recipe_language.to_dict(self.recipe),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """The text of spec.json."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"


class _Walk:
    """Names, joins and checks the layers of a model, one after another: see `Model.walk`."""

    def __init__(self, input_shape: Shape, reserved: Sequence[str]) -> None:
        self._input_shape = input_shape
        self._reserved = reserved
        self._nodes: list[Node] = []
        self._parameters = 0

    def nodes_of(self, layers: Sequence[Layer]) -> list[Node]:
        self._chain(layers, IMAGE, self._input_shape, "", ())
        return self._nodes

    def _chain(
        self, layers: Sequence[Layer], source: str, shape: Shape, scope: str, place: tuple[int | str, ...]
    ) -> tuple[str, Shape]:
        """Add layers that follow the node `source`; the last one's path and output shape.

        scope: what the paths begin with, "residual1.body." in a branch. place: see InvalidSpec.layer.
        """
        counts: dict[str, int] = {}
        paths: set[str] = set()
        for index, layer in enumerate(layers):
            counts[layer.kind] = counts.get(layer.kind, 0) + 1
            name = layer.name or f"{layer.kind}{counts[layer.kind]}"
            path, here = scope + name, (*place, index)
            try:
                self._check(layer, len(here))
                if name in paths:
                    raise InvalidSpec(f"two layers are called {path!r}", "layers", "rename one of them")
            except InvalidSpec as error:
                error.layer = here
                raise
            paths.add(name)
            ends = [(source, shape)]
            if isinstance(layer, Join):
                ends = [
                    self._chain(chain, source, shape, f"{path}.{branch}.", (*here, branch))
                    for branch, chain in layer.chains().items()
                ]
            shape = self._add(path, layer, ends, here)
            source = path
        return source, shape

    def _check(self, layer: Layer, depth: int) -> None:
        if len(self._nodes) >= MOST_LAYERS:
            raise InvalidSpec(f"more than {MOST_LAYERS:,} layers", "layers")
        if depth > 2 * MOST_DEPTH + 1:
            raise InvalidSpec(f"branches in branches, more than {MOST_DEPTH} deep", "layers")
        if layer.name is not None:
            check_name(layer.name, "layer name")
            if "." in layer.name:  # it joins the parts of a path, and a path and a weight
                raise InvalidSpec(
                    f"{layer.name!r} holds a dot", "layer name", "use letters, digits, '-', '_'"
                )
            if layer.name in self._reserved:
                raise InvalidSpec(f"{layer.name!r} is reserved", "layer name", "choose another name")

    def _add(
        self, path: str, layer: Layer, ends: list[tuple[str, Shape]], place: tuple[int | str, ...]
    ) -> Shape:
        """Add one layer behind the ends of its inputs; its output shape."""
        inputs, shapes = zip(*ends, strict=True)
        try:
            output_shape = layer.joined(shapes) if isinstance(layer, Join) else layer.output_shape(shapes[0])
        except InvalidSpec as error:
            trace = _trace(self._input_shape, self._nodes)
            hint = f"{error.hint}; " if error.hint else ""
            told = InvalidSpec(error.what, f"{path}, {error.where}", f"{hint}shapes up to here: {trace}")
            told.layer = place
            raise told from None
        node = Node(path, layer, inputs, shapes, output_shape)
        self._nodes.append(node)
        self._parameters += node.parameters
        if self._parameters > MOST_PARAMETERS or prod(output_shape) > MOST_ACTIVATIONS:
            bomb = InvalidSpec(
                f"{self._parameters:,} parameters and {prod(output_shape):,} activations, "
                f"at most {MOST_PARAMETERS:,} of each are accepted",
                path,
            )
            bomb.layer = place
            raise bomb
        return output_shape


def check_name(name: object, where: str) -> str:
    """Refuse a name that could not be a folder, a tensor or a line of a table on every system."""
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)
        or name.endswith(".")
        or re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    ):
        shown = repr(name) if len(repr(name)) < 60 else repr(name)[:60] + "..."
        raise InvalidSpec(
            f"{shown} is not a usable name", where, "use letters, digits, '-', '_' and '.', at most 100"
        )
    return name


def _trace(input_shape: Shape, nodes: list[Node] | tuple[Node, ...]) -> str:
    steps = [f"input {'x'.join(map(str, input_shape))}"]
    steps += [f"{node.path} {'x'.join(map(str, node.output_shape))}" for node in nodes]
    return " -> ".join(steps if len(steps) <= 12 else [steps[0], "...", *steps[-10:]])


def iter_weights(model: Model) -> Iterator[tuple[str, layer_language.Weight]]:
    """Every weight of the model in order, with its full name such as "conv1.weight"."""
    for node in model.walk():
        for weight in node.layer.weights(node.input_shape):
            yield f"{node.path}.{weight.name}", weight
