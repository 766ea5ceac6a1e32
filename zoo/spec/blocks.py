"""Blocks: how a spec file says some layers once and uses them several times.

    blocks.stage = [
        { type = "Conv2d", filters = "$filters", kernel = 3, padding = "same" },
        { type = "ReLU" },
    ]
    layers = [
        { block = "stage", times = 2, with = { filters = 32 } },
        { type = "Flatten" },
    ]

A value "$filters" is what the use gives as `filters`. Blocks may use blocks, never themselves, and stand
wherever layers do, in branches too. What comes out are the layers written out; nothing else of the zoo
knows that there were blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import InvalidSpec, nearest
from zoo.layers import LAYERS

USE = {"block", "times", "with"}
MOST_VALUES = 1_000_000  # in all that blocks write out


# The fields of each layer that hold layers, and whether they hold several chains of them.
CHAINS = {
    name: {f.name: f.type != "Chain" for f in dataclasses.fields(kind) if "Chain" in str(f.type)}
    for name, kind in LAYERS.items()
}


@dataclass(frozen=True)
class Written:
    """A layer as it is written: where (".layers[3]", ".blocks.stage[0]"), and its data.

    chains: the fields that hold layers, each as a list of chains, or as one where it is not `several`;
    they are not in the data then.
    """

    place: str
    data: Any
    chains: Mapping[str, list[list[Written]]] = field(default_factory=dict)
    several: bool = False

    def branches(self) -> Iterator[list[Written]]:
        """All chains in order."""
        for chains in self.chains.values():
            yield from chains


def expand(items: list[Any], blocks: Mapping[str, Any], where: str, most: int) -> list[Written]:
    """Every layer written out.

    Raises InvalidSpec for a block that is unknown, unused, or part of itself, for parameters that are
    missing or left over, and for more layers than `most` or values than MOST_VALUES.
    """
    expansion = _Expansion(blocks, where, most)
    found = list(expansion.layers(items, ".layers", ()))
    for name in blocks:
        if name not in expansion.used:
            raise InvalidSpec(f"the block {name!r} is used nowhere", f"{where}.blocks.{name}")
    return found


class _Expansion:
    """The writing out of one file's blocks, and what it may still write."""

    def __init__(self, blocks: Mapping[str, Any], where: str, most: int) -> None:
        self.used: set[str] = set()
        self._blocks = blocks
        self._where = where
        self._most_layers = self._layers_left = most
        self._values_left = MOST_VALUES

    def layers(self, items: list[Any], place: str, around: tuple[str, ...]) -> Iterator[Written]:
        """The layers of a list, in which nothing is left to be filled in.

        around: the blocks that the list stands in.
        """
        for index, item in enumerate(items):
            here = f"{place}[{index}]"
            if isinstance(item, dict) and "block" in item:
                yield from self._use(item, here, around)
                continue
            self._layers_left -= 1
            if self._layers_left < 0:
                raise InvalidSpec(f"more than {self._most_layers:,} layers", f"{self._where}.layers")
            yield self._layer(item, here, around)

    def _layer(self, item: Any, place: str, around: tuple[str, ...]) -> Written:
        kind = item.get("type") if isinstance(item, dict) else None
        fields = CHAINS.get(kind, {}) if isinstance(kind, str) else {}
        chains = {}
        for name, several in fields.items():
            value = item.get(name)
            parts = value if several else [value]
            if isinstance(parts, list) and all(isinstance(part, list) for part in parts):
                chains[name] = [
                    list(self.layers(part, f"{place}.{name}{f'[{number}]' if several else ''}", around))
                    for number, part in enumerate(parts)
                ]
        rest = {key: value for key, value in item.items() if key not in chains} if chains else item
        return Written(place, rest, chains, any(fields.values()))

    def _use(self, item: dict[str, Any], here: str, around: tuple[str, ...]) -> Iterator[Written]:
        where = f"{self._where}{here}"
        name, times, arguments = item["block"], item.get("times", 1), item.get("with", {})
        for key in item:
            if key not in USE:
                raise InvalidSpec(f"unknown field {key!r}", where, nearest(key, sorted(USE)))
        if not isinstance(name, str) or name not in self._blocks:
            raise InvalidSpec(f"unknown block {str(name)[:60]!r}", where, nearest(str(name), self._blocks))
        if name in around:
            raise InvalidSpec(f"the block {name!r} is part of itself", where)
        if type(times) is not int or times < 1:
            raise InvalidSpec(f"times is {times!r}, not a number of at least 1", where)
        if not isinstance(arguments, dict):
            raise InvalidSpec(f"with is {str(arguments)[:60]}, not a table", where)
        layers, inside = self._blocks[name], f".blocks.{name}"
        if not isinstance(layers, list) or not layers:
            raise InvalidSpec("a block is a list of at least one layer", f"{self._where}{inside}")
        for key in sorted(set(arguments) - _parameters(layers)):
            raise InvalidSpec(f"the block {name!r} has no parameter {key!r}", where)
        self.used.add(name)
        for _ in range(times):
            filled = []
            for index, layer in enumerate(layers):
                place = f"{self._where}{inside}[{index}]"
                filled.append(_filled(layer, arguments, place))
                self._spend(filled[-1], place)
            yield from self.layers(filled, inside, (*around, name))

    def _spend(self, value: Any, where: str) -> None:
        """Take the values in `value` from what may be written out; a few lines can stand for billions."""
        waiting = [value]
        while waiting:
            part = waiting.pop()
            waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
            self._values_left -= 1
            if self._values_left < 0:
                raise InvalidSpec(f"the blocks write out more than {MOST_VALUES:,} values", where)


def _filled(value: Any, given: Mapping[str, Any], where: str) -> Any:
    """A value with what was given for every "$parameter" in it."""
    if isinstance(value, str) and value.startswith("$"):
        if value[1:] not in given:
            raise InvalidSpec(
                f"nothing is given for {value[:60]!r}", where, f"with = {{ {value[1:60]} = ... }}"
            )
        return given[value[1:]]
    if isinstance(value, dict):
        return {key: _filled(part, given, where) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, given, where) for part in value]
    return value


def _parameters(value: Any) -> set[str]:
    """The names of every "$parameter" in a value."""
    if isinstance(value, str):
        return {value[1:]} if value.startswith("$") else set()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_parameters, parts))
