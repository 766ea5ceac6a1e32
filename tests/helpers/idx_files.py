"""IDX files written by hand."""

from __future__ import annotations

import struct

import numpy as np


def idx(array: np.ndarray, element: int = 8) -> bytes:
    """An array as the bytes of an IDX file."""
    head = struct.pack(">BBBB", 0, 0, element, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()
