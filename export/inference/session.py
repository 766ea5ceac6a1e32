"""onnxruntime, with the options that every comparison here uses.

Idle threads sleep: spinning gains nothing measurable here, and beside other processes it costs both. A call
that is short on one thread stays on one: to wake others took 3 to 35 % longer at one image of the documented
CNNs, and pays only from about half a millisecond of work on. The outputs are the same bits either way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from export.inference import child, loading, operators
from export.inference.loading import load
from zoo import machine
from zoo.errors import CheckFailed, DataError, MachineError
from zoo.machine import ONE_BATCH

CHUNK = 500  # images at a time, where there are more than ONE_BATCH
SHORT = 5e-4  # seconds of a call on one thread for which no others are woken
SMALL = 2**24  # bytes of a file that may be loaded twice, for one thread and for all
# In protobuf, the key under which ONNX names another file; both numbers may be written with idle bytes.
EXTERNAL = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")


class Value(NamedTuple):
    """An input or output of a graph: its name, type ("tensor(float)") and shape (numbers and names)."""

    name: str
    type: str
    shape: list[Any]


class Session:
    """A loaded ONNX model. Weights outside the bytes are refused: onnxruntime would read them from
    the current folder."""

    def __init__(
        self, onnx_bytes: bytes, optimize: bool = True, threads: int | None = None, foreign: bool = False
    ) -> None:
        """foreign: the bytes may be anybody's, so they are looked through and run in a child process.

        Raises DataError if onnxruntime cannot load the bytes, if they name another file, or, where they
        are foreign, if they hold operators of which no CNN consists.
        """
        if EXTERNAL.search(onnx_bytes):
            raise DataError("the ONNX file keeps weights outside itself")
        count = threads or machine.threads()
        self._session: Any
        self._all: Callable[[], Any] | None = None  # loads the file for all threads
        self._short: dict[int, bool] = {}  # by number of rows: whether a call is short on one thread
        if foreign:
            operators.check_operators(onnx_bytes)
        try:
            if foreign:
                self._session = child.Child(onnx_bytes, optimize, count)
                about = self._session.about
            else:
                twice = threads is None and count > 1 and len(onnx_bytes) <= SMALL
                self._session = load(onnx_bytes, optimize, 1 if twice else count)
                about = loading.about(self._session)
                if twice:
                    self._all = cache(partial(load, onnx_bytes, optimize, count))
        except MachineError:
            raise
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise DataError(f"onnxruntime cannot load the model: {str(error).splitlines()[0]}") from None
        self.inputs = [Value(*value) for value in about["inputs"]]
        self.given = [Value(*value) for value in about["outputs"]]
        if not self.inputs or not self.given:
            if foreign:
                self._session.close()
            raise DataError("the ONNX file takes no input" if self.given else "the ONNX file gives no output")
        self.metadata: dict[str, str] = about["metadata"]
        self.input = self.inputs[0].name
        self.outputs = [value.name for value in self.given]

    def run(
        self, images: np.ndarray | Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The named outputs (all, unless told) for images float32 (N, C, H, W) in [0, 1].

        images: where a graph has several inputs, arrays of as many rows by their names. Raises CheckFailed
        if onnxruntime cannot run the model on them.
        """
        names = list(outputs or self.outputs)
        inputs = images if isinstance(images, Mapping) else {self.input: images}
        count = len(next(iter(inputs.values())))
        try:
            if 0 < count <= ONE_BATCH:  # nothing to cut or to join, which would take its time at one image
                found = self._call(names, inputs, count)
                for array in found:
                    if not array.ndim:
                        raise CheckFailed("an output has no batch")
                return dict(zip(names, found, strict=True))
            parts = [
                self._call(names, {name: x[start : start + CHUNK] for name, x in inputs.items()}, CHUNK)
                for start in range(0, count, CHUNK)
            ]
            return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
        except CheckFailed as error:
            raise CheckFailed(f"onnxruntime stopped: {error.what}") from None
        except Exception as error:  # as above; or an output without a batch
            raise CheckFailed(f"onnxruntime stopped: {str(error).splitlines()[0]}") from None

    def _call(self, names: list[str], inputs: Mapping[str, np.ndarray], rows: int) -> list[np.ndarray]:
        """What onnxruntime gives for one chunk of at most so many rows, on as many threads as pay."""
        if self._all is None or (short := self._short.get(rows)):
            return self._session.run(names, inputs)
        if short is None:
            started = time.thread_time()  # other processes do not count
            found = self._session.run(names, inputs)
            self._short[rows] = time.thread_time() - started <= SHORT
            return found
        return self._all().run(names, inputs)

    def predict(self, images: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """The first output, (N, classes)."""
        return self.run(images, self.outputs[:1])[self.outputs[0]]
