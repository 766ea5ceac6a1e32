"""Random numbers that are a pure function of (seed, purpose) on every machine and NumPy version.

Each purpose has its own Philox stream, keyed by a hash, and only the generator's raw bits are
used: NumPy keeps those stable, while the methods built on them may change. What one purpose draws
never moves another's numbers.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np


def raw_bits(seed: int, purpose: str, count: int) -> np.ndarray:
    """`count` random uint64."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    return np.asarray(np.random.Philox(key=key.astype(np.uint64)).random_raw(count))


def permutation(seed: int, purpose: str, count: int) -> np.ndarray:
    """A random order of range(count): int64 (count,)."""
    return np.argsort(raw_bits(seed, purpose, count), kind="stable")


def uniform(seed: int, purpose: str, count: int) -> np.ndarray:
    """`count` numbers in [0, 1), float64 with 53 random bits each."""
    return (raw_bits(seed, purpose, count) >> np.uint64(11)) * 2.0**-53


def dropout_mask(seed: int, step: int, path: str, rate: float, shape: tuple[int, ...]) -> np.ndarray:
    """What dropout at `path` multiplies by in one step: 0 with probability `rate`, else 1 / (1 - rate).

    shape: (N, C, H, W) or (N, features). float64.
    """
    kept = uniform(seed, f"mask/{step}/{path}", math.prod(shape)) >= rate
    return kept.reshape(shape) / (1 - rate)
