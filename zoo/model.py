"""A model: a named tuple of layers with its recipe and provenance, and its strict JSON form.

`walk()` is the one place where shapes are inferred and layers are named; every consumer (weights,
reference, lowerings, ONNX, reports) reads it. A model that cannot run cannot be constructed.
Its JSON data hold every field with every default written out; `from_dict` refuses what it does not know.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from math import prod
from typing import Any, NamedTuple, TypeVar

from zoo import layers as layer_language
from zoo import recipe as recipe_language
from zoo.composition import Written, expand
from zoo.errors import InvalidSpec, nearest
from zoo.layers import LAYERS, Join, Layer, Padded, Shape, Softmax
from zoo.recipe import PARTS, Recipe

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


def from_dict(data: Any, where: str = "spec") -> Model:
    """The model of JSON data as `Model.to_dict` gives it; raises InvalidSpec naming the field."""
    data = _object(data, where)
    version = data.get("spec_version", SPEC_VERSION)
    if type(version) is not int or version < 1:
        raise InvalidSpec(f"spec_version is {version!r}", where, f"this version writes {SPEC_VERSION}")
    if version > SPEC_VERSION:
        raise InvalidSpec(f"spec_version {version} is newer than {SPEC_VERSION}", where, "update the zoo")
    known = {"spec_version", "blocks", *(f.name for f in fields(Model))}
    _no_others(data, known, where)
    for name in ("name", "input_shape", "layers", "recipe"):
        if name not in data:
            raise InvalidSpec(f"{name!r} is missing", where, "`zoo spec init` writes a whole one")
    written = _list(data["layers"], f"{where}.layers")
    if len(written) > MOST_LAYERS:
        raise InvalidSpec(f"{len(written):,} layers, at most {MOST_LAYERS:,} are accepted", where)
    blocks = _object(data.get("blocks", {}), f"{where}.blocks")
    input_shape = tuple(_list(data["input_shape"], f"{where}.input_shape"))
    shape: Shape | None = input_shape if all(type(n) is int for n in input_shape) else None
    expanded = expand(written, blocks, where, MOST_LAYERS)
    layers = _chain(expanded, where, shape)
    arguments = _object(data.get("arguments", {}), f"{where}.arguments")
    for key, value in arguments.items():
        if not key.isidentifier() or key == "name":
            raise InvalidSpec(f"{_shown(key)} is no parameter of a model", f"{where}.arguments")
        if type(value) is not int:
            raise InvalidSpec(f"{key} is {value!r}, not an integer", f"{where}.arguments")
    whole = partial(
        Model,
        name=_text(data["name"], f"{where}.name"),
        input_shape=input_shape,
        layers=layers,
        recipe=_recipe(data["recipe"], f"{where}.recipe"),
        labels=_texts(data.get("labels", list(DIGITS)), f"{where}.labels"),
        document=_text(data.get("document", ""), f"{where}.document"),
        notes=_texts(data.get("notes", []), f"{where}.notes"),
        arguments=tuple(sorted(arguments.items())),
    )
    try:
        return whole()
    except InvalidSpec as error:
        if not error.layer:
            raise
        place = _place(expanded, layers, error.layer)
        raise InvalidSpec(error.what, f"{where}{place}: {error.where}", error.hint) from None


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


def _chain(items: Sequence[Written], where: str, shape: Shape | None) -> tuple[Layer, ...]:
    """The layers of their data; shape: of the first one's input, where that is known."""
    layers = []
    for item in items:
        layer = _layer(item, where, shape)
        layers.append(layer)
        try:
            shape = None if shape is None else layer.output_shape(shape)
        except InvalidSpec:  # the model says it with all the shapes before
            shape = None
    return tuple(layers)


def _place(items: Sequence[Written], layers: Sequence[Layer], place: Sequence[int | str]) -> str:
    """Where in the file the layer stands that InvalidSpec.layer names."""
    index, *rest = place
    item, layer = items[int(index)], layers[int(index)]
    if not rest or not isinstance(layer, Join):
        return item.place
    branch, *rest = rest
    chains = {name: chain for name, chain in layer.chains().items() if chain}
    written = dict(zip(chains, filter(None, item.branches()), strict=True))
    return _place(written[str(branch)], chains[str(branch)], rest)


def _layer(written: Written, where: str, shape: Shape | None) -> Layer:
    """The layer of its data; shape: of its input, where that is known, for padding "same"."""
    file, where = where, f"{where}{written.place}"
    data = dict(_object(written.data, where))
    kind = data.pop("type", None)
    if not isinstance(kind, str) or kind not in LAYERS:
        raise InvalidSpec(f"unknown layer {_shown(kind)}", where, nearest(str(kind)[:60], LAYERS))
    for name, chains in written.chains.items():
        made = [_chain(chain, file, shape) for chain in chains]
        data[name] = made if written.several else made[0]
    if data.get("padding") != "same" or not issubclass(LAYERS[kind], Padded):
        return _construct(LAYERS[kind], data, where)
    layer = _construct(LAYERS[kind], {**data, "padding": 0}, where)
    return replace(layer, padding=layer.same(shape)) if shape and len(shape) == 3 else layer


def _recipe(data: Any, where: str) -> Recipe:
    data = dict(_object(data, where))
    for name, kinds in PARTS.items():
        if data.get(name) is None and name != "optimizer":
            continue
        part = dict(_object(data.get(name), f"{where}.{name}"))
        kind = part.pop("type", None)
        if not isinstance(kind, str) or kind not in kinds:
            raise InvalidSpec(
                f"unknown {name} {_shown(kind)}", f"{where}.{name}", nearest(str(kind)[:60], kinds)
            )
        data[name] = _construct(kinds[kind], part, f"{where}.{name}")
    return _construct(Recipe, data, where)


def _construct(kind: type, data: Mapping[str, Any], where: str) -> Any:
    _no_others(data, {f.name for f in fields(kind)}, where)
    try:
        return kind(**data)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, f"{where}: {error.where}", error.hint) from None
    except TypeError as error:  # a field without default is missing
        missing = re.findall(r"'(\w+)'", str(error))
        raise InvalidSpec(f"{kind.__name__} needs {', '.join(missing) or error}", where) from None


def _no_others(data: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise InvalidSpec(f"unknown field {key[:60]!r}", where, nearest(key[:60], sorted(known)))


def _object(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InvalidSpec(f"expected an object, not {_shown(data)}", where)
    return data


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidSpec(f"expected a list, not {_shown(data)}", where)
    return data


def _text(data: Any, where: str) -> str:
    if not isinstance(data, str) or any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in data):
        raise InvalidSpec(f"expected a line of text, not {_shown(data)}", where)
    return data


def _texts(data: Any, where: str) -> tuple[str, ...]:
    return tuple(_text(item, f"{where}[{i}]") for i, item in enumerate(_list(data, where)))


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."


def iter_weights(model: Model) -> Iterator[tuple[str, layer_language.Weight]]:
    """Every weight of the model in order, with its full name such as "conv1.weight"."""
    for node in model.walk():
        for weight in node.layer.weights(node.input_shape):
            yield f"{node.path}.{weight.name}", weight


def receptive_fields(model: Model) -> dict[str, tuple[int, int]]:
    """(height, width) of the part of the image that one output of each layer depends on, by path.

    A window of `kernel` inputs at a stride grows the field by (kernel - 1) * jump and multiplies the
    jump, the distance in the image between neighbouring outputs, by the stride; both start at 1
    (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", 2019).
    A dense layer is a window over all positions of the map before it. A join sees from the first to the
    last of what its branches see. Padding counts like the image, but no field is larger than the image.
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
