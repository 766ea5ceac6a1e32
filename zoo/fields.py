"""Checks of one field's value, shared by layers and recipes; each raises InvalidSpec.

They are strict on purpose: JSON's true is not 1, "32" is not 32, and an infinity is not a number.
`where` names the field in the message, such as "Conv2d.filters".
"""

from __future__ import annotations

import math
import struct

from zoo.errors import InvalidSpec

Pair = tuple[int, int]  # (height, width)
Sides = tuple[int, int, int, int]  # (top, left, bottom, right)


def count(value: object, where: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidSpec(f"{value!r} is not an integer", where)
    if not least <= value < 2**31:
        raise InvalidSpec(f"{value} is out of range", where, f"give an integer of at least {least}")
    return value


def real(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) else float("nan")
    except OverflowError:  # an integer beyond float64
        number = float("inf")
    if isinstance(value, bool) or not math.isfinite(number):
        shown = repr(value) if not isinstance(value, int) else "the integer"
        raise InvalidSpec(f"{shown[:60]} is not a finite number", where)
    return number


def float32(value: object, where: str) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", real(value, where)))[0])
    except OverflowError:
        raise InvalidSpec(f"{value!r} is beyond float32", where) from None


def flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidSpec(f"{value!r} is not true or false", where)
    return value


def pair(value: object, where: str) -> Pair:
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise InvalidSpec(f"{value!r} is neither an integer nor (height, width)", where)
    return count(pair[0], where), count(pair[1], where)


def sides(value: object, where: str) -> Sides:
    sides = value if isinstance(value, (tuple, list)) else (value,) * 4
    if len(sides) != 4:
        raise InvalidSpec(f"{value!r} is neither an integer nor (top, left, bottom, right)", where)
    top, left, bottom, right = (count(side, where, least=0) for side in sides)
    return top, left, bottom, right
