"""Mixed precision: what bfloat16 is, and whether a processor gains by it.

In "bf16" a step of training computes its layers in bfloat16; weights, optimiser, loss and everything
else stay float32. bfloat16 has float32's exponents and 8 bits of significand instead of 24.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo import timing
from zoo.errors import InvalidInput, nearest
from zoo.timing import Interval

FLOAT32, BF16 = "float32", "bf16"
PRECISIONS = (FLOAT32, BF16)
UNIT_ROUNDOFF = 2.0**-8  # of bfloat16: the largest relative error of rounding to nearest
GAIN = 1.05  # times as fast; below it a processor gains nothing

BLOCK, TOTAL = 0.05, 1.5  # seconds of a block of steps, and about of all blocks
LEAST_ROUNDS, MOST_ROUNDS = 3, 11


def require(precision: str) -> None:
    """Raise InvalidInput if there is no such precision."""
    if precision not in PRECISIONS:
        raise InvalidInput(f"unknown precision {precision!r}", "--precision", nearest(precision, PRECISIONS))


def rounded(array: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 of every finite float32, ties to even, as float32."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


@dataclass(frozen=True)
class Gain:
    """How many times as fast a step is in a precision as in float32, with its 95 % interval."""

    precision: str
    device: str
    speed: Interval

    @property
    def sentence(self) -> str:
        """What the user is told."""
        machine = "processor" if self.device == "cpu" else "device"
        times = f"{self.speed.value:.2f} times as fast"
        if self.speed.value < GAIN:
            return f"{self.precision} gains nothing on this {machine} ({times}): leave --precision out"
        return f"{self.precision}: {times} a step as float32 on this {machine}"

    def to_dict(self) -> dict[str, Any]:
        """The ratio and its interval as JSON data."""
        return {name: round(value, 3) for name, value in self.speed._asdict().items()}


def speed(steps: Mapping[str, Callable[[], object]], precision: str) -> Interval:
    """How many times as fast a step in `precision` is as one in float32: both are run in alternating blocks.

    steps: by precision, does one step. Takes about two seconds, or eight steps of each if they are slower.
    """
    begun = time.perf_counter()
    for step in steps.values():  # the first one makes the kernels
        timing.calls(step, 0.0)
    longest = max(time.perf_counter() - begun, 2 * BLOCK)
    rounds = min(max(int(TOTAL / longest), LEAST_ROUNDS), MOST_ROUNDS)
    found = timing.race(
        {name: lambda step=step: timing.calls(step, BLOCK) for name, step in steps.items()},  # type: ignore[misc]
        rounds,
    )
    return found[FLOAT32].ratio(found[precision])
