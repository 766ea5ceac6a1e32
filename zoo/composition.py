"""Blocks: how a spec file says some layers once and uses them several times.

    blocks.stage = [
        { type = "Conv2d", filters = "$filters", kernel = 3, padding = "same" },
        { type = "ReLU" },
    ]
    layers = [
        { block = "stage", times = 2, with = { filters = 32 } },
        { type = "Flatten" },
    ]

A value "$filters" is what the use gives as `filters`. Blocks may use blocks, never themselves. What
comes out are the layers written out; nothing else of the zoo knows that there were blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zoo.errors import InvalidSpec, nearest

USE = {"block", "times", "with"}
MOST_VALUES = 1_000_000  # in all that blocks write out


def expand(
    items: list[Any], blocks: Mapping[str, Any], where: str, most: int
) -> list[tuple[str, Mapping[str, Any] | Any]]:
    """Every layer written out, with where it stands: (".layers[3]" or ".blocks.stage[0]", its data).

    Raises InvalidSpec for a block that is unknown, unused, or part of itself, for parameters that are
    missing or left over, and for more layers than `most` or values than MOST_VALUES.
    """
    used: set[str] = set()
    found: list[tuple[str, Any]] = []
    left = [MOST_VALUES]
    for place, item in _expand(items, ".layers", {}, blocks, where, (), used, left):
        found.append((place, item))
        if len(found) > most:
            raise InvalidSpec(f"more than {most:,} layers", f"{where}.layers")
    for name in blocks:
        if name not in used:
            raise InvalidSpec(f"the block {name!r} is used nowhere", f"{where}.blocks.{name}")
    return found


def _expand(
    items: list[Any],
    place: str,
    given: Mapping[str, Any],
    blocks: Mapping[str, Any],
    where: str,
    around: tuple[str, ...],
    used: set[str],
    left: list[int],
) -> Iterator[tuple[str, Any]]:
    for index, item in enumerate(items):
        here = f"{place}[{index}]"
        if around:
            item = _filled(item, given, f"{where}{here}")
            _spend(item, left, f"{where}{here}")
        if not isinstance(item, dict) or "block" not in item:
            yield here, item
            continue
        name, times, arguments = item["block"], item.get("times", 1), item.get("with", {})
        for key in item:
            if key not in USE:
                raise InvalidSpec(f"unknown field {key!r}", f"{where}{here}", nearest(key, sorted(USE)))
        if not isinstance(name, str) or name not in blocks:
            raise InvalidSpec(
                f"unknown block {str(name)[:60]!r}", f"{where}{here}", nearest(str(name), blocks)
            )
        if name in around:
            raise InvalidSpec(f"the block {name!r} is part of itself", f"{where}{here}")
        if type(times) is not int or times < 1:
            raise InvalidSpec(f"times is {times!r}, not a number of at least 1", f"{where}{here}")
        if not isinstance(arguments, dict):
            raise InvalidSpec(f"with is {str(arguments)[:60]}, not a table", f"{where}{here}")
        layers, inside = blocks[name], f".blocks.{name}"
        if not isinstance(layers, list) or not layers:
            raise InvalidSpec("a block is a list of at least one layer", f"{where}{inside}")
        for key in sorted(set(arguments) - _parameters(layers)):
            raise InvalidSpec(f"the block {name!r} has no parameter {key!r}", f"{where}{here}")
        used.add(name)
        for _ in range(times):
            yield from _expand(layers, inside, arguments, blocks, where, (*around, name), used, left)


def _spend(value: Any, left: list[int], where: str) -> None:
    """Take the values in `value` from what may be written out; a few lines can stand for billions."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        left[0] -= 1
        if left[0] < 0:
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
