"""What a worker and its client say to each other: one JSON object and named arrays per message.

A message is a safetensors file behind its length, so no serialisation of our own is needed and
nothing is ever unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import safetensors.numpy

Arrays = dict[str, np.ndarray]


def send(
    stream: IO[bytes], fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write one message. Arrays may be of any numeric dtype and shape."""
    tensors = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    body = safetensors.numpy.save(tensors, metadata={"message": json.dumps(fields)})
    stream.write(struct.pack("<Q", len(body)))
    stream.write(body)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], Arrays]:
    """Read one message; raises EOFError when the other side has gone."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", head)
    body = stream.read(size)
    if len(body) < size:
        raise EOFError
    (header_size,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + header_size])
    return json.loads(header["__metadata__"]["message"]), safetensors.numpy.load(body)
