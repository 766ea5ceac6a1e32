"""The hash of weights, which files and reports name them by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over every name, shape and value, independent of the order and of the file."""
    total = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], dtype="<f4")
        total.update(f"{name} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
