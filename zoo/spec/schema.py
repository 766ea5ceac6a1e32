"""The JSON Schema of spec files, made of the layers, optimisers and recipe themselves.

It is published as docs/spec.schema.json, for editors; what the zoo accepts is decided by zoo.model.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from zoo.layers import LAYERS
from zoo.model import MOST_LAYERS, SPEC_VERSION
from zoo.recipe import PARTS, Recipe

_ANY_INTEGER = {"type": "integer", "minimum": 1}
_CHAIN: dict[str, Any] = {"type": "array", "items": {"$ref": "#/$defs/layer"}}
_KINDS: dict[str, dict[str, Any]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "str": {"type": "string"},
    "str | None": {"type": "string"},
    "Pair": {
        "anyOf": [_ANY_INTEGER, {"type": "array", "items": _ANY_INTEGER, "minItems": 2, "maxItems": 2}],
        "description": "one number for both axes, or [height, width]",
    },
    "Sides": {
        "anyOf": [
            {"const": "same"},
            {"type": "integer", "minimum": 0},
            {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 4, "maxItems": 4},
        ],
        "description": 'one number for every side, [top, left, bottom, right], or "same"',
    },
    "Chain": _CHAIN,
    "tuple[Chain, ...]": {"type": "array", "items": _CHAIN, "minItems": 2},
    "tuple[float, ...]": {"type": "array", "items": {"type": "number"}, "minItems": 1},
    "tuple[int, int] | None": {
        "anyOf": [{"type": "null"}, {"type": "array", "items": _ANY_INTEGER, "minItems": 2, "maxItems": 2}]
    },
}
_TEXTS = {"type": "array", "items": {"type": "string"}}


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a spec file, TOML and JSON alike."""
    layers = [{"$ref": f"#/$defs/{name}"} for name in LAYERS]
    definitions = {
        "layer": {"anyOf": [*layers, {"$ref": "#/$defs/use"}]},
        **{name: _object_of(kind, name) for name, kind in LAYERS.items()},
        **{name: _object_of(kind, name) for kinds in PARTS.values() for name, kind in kinds.items()},
        "recipe": _object_of(Recipe, ""),
        "use": {
            "type": "object",
            "description": "the layers of a block, so many times, with values for its $parameters",
            "properties": {"block": {"type": "string"}, "times": _ANY_INTEGER, "with": {"type": "object"}},
            "required": ["block"],
            "additionalProperties": False,
        },
    }
    for part, kinds in PARTS.items():
        choices: list[dict[str, str]] = [{"$ref": f"#/$defs/{name}"} for name in kinds]
        needless = [] if part == "optimizer" else [{"type": "null"}]
        definitions["recipe"]["properties"][part] = {"anyOf": [*needless, *choices]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A CNN zoo spec",
        "type": "object",
        "properties": {
            "spec_version": {"const": SPEC_VERSION},
            "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"},
            "arguments": {"type": "object", "additionalProperties": {"type": "integer"}},
            "document": {"type": "string"},
            "input_shape": {"type": "array", "items": _ANY_INTEGER, "minItems": 3, "maxItems": 3},
            "labels": _TEXTS,
            "layers": {
                "type": "array",
                "items": {"$ref": "#/$defs/layer"},
                "minItems": 1,
                "maxItems": MOST_LAYERS,
            },
            "blocks": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "object"}, "minItems": 1},
                "description": 'layers by name; a value "$filters" is what a use gives as filters',
            },
            "recipe": {"$ref": "#/$defs/recipe"},
            "notes": _TEXTS,
        },
        "required": ["name", "input_shape", "layers", "recipe"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _object_of(kind: type, name: str) -> dict[str, Any]:
    """The schema of a dataclass: the fields it is made with, those without a default required."""
    properties: dict[str, Any] = {"type": {"const": name}} if name else {}
    kinds = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    parameters = inspect.signature(kind).parameters.values()
    properties |= {p.name: _KINDS.get(kinds[p.name], {}) for p in parameters}
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
        "properties": properties,
        "required": [*(["type"] if name else []), *required],
        "additionalProperties": False,
    }
