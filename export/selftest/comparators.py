"""How neighbouring tools compare outputs, to show on the same faults what each of them misses.

Each takes a pair (got, expected) for mixed images and one for all-ones images and says whether the tool
would be content. Where a tool's tolerance is not what matters, it gets our outer limit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import numpy as np

from export.crosscheck import outer_limit

Array = np.ndarray


class Pair(NamedTuple):
    """A witness's outputs and the reference's: (N, classes)."""

    got: Array
    expected: Array


def _near(got: Array, expected: Array, limit: float | None = None) -> bool:
    if got.shape != expected.shape:
        return False
    return bool((np.abs(got - expected) <= (outer_limit(expected) if limit is None else limit)).all())


def sorted_outputs(mixed: Pair, ones: Pair) -> bool:
    """All outputs sorted before they are compared, as MMdnn does."""
    return _near(np.sort(mixed.got, axis=None), np.sort(mixed.expected, axis=None))


def best_transpose(mixed: Pair, ones: Pair) -> bool:
    """Any order of the axes that fits, at 1e-4, as onnx2tf does."""
    orders = permutations(range(mixed.got.ndim))
    return any(_near(mixed.got.transpose(order), mixed.expected, 1e-4) for order in orders)


def ones_as_input(mixed: Pair, ones: Pair) -> bool:
    """One image of ones, as example inputs often are."""
    return _near(*ones)


def loose(mixed: Pair, ones: Pair) -> bool:
    """An absolute tolerance of 5e-3, as torch.onnx.export(verify=True) has."""
    return _near(*mixed, 5e-3)


def same_classes(mixed: Pair, ones: Pair) -> bool:
    """The same largest output for every image, which is what an accuracy looks at."""
    return bool((mixed.got.argmax(axis=1) == mixed.expected.argmax(axis=1)).all())


COMPARATORS: dict[str, Callable[[Pair, Pair], bool]] = {
    "sorted outputs": sorted_outputs,
    "best transpose": best_transpose,
    "ones as input": ones_as_input,
    "atol 5e-3": loose,
    "same classes": same_classes,
}
