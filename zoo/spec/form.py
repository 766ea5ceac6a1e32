"""A model from JSON data: every field is checked, and an error names the field."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from zoo.errors import InvalidSpec, nearest
from zoo.layers import LAYERS, Join, Layer, Padded, Shape
from zoo.model import DIGITS, MOST_LAYERS, SPEC_VERSION, Model
from zoo.recipe import PARTS, Recipe
from zoo.spec.blocks import Written, expand


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
