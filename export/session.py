"""onnxruntime, with the options that every comparison here uses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime

from zoo import machine
from zoo.errors import CheckFailed, DataError

CHUNK = 500  # images at a time
# In protobuf, the key under which ONNX names another file; both numbers may be written with idle bytes.
EXTERNAL = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")


class Session:
    """A loaded ONNX model. Weights outside the bytes are refused: onnxruntime would read them from
    the current folder."""

    def __init__(self, onnx_bytes: bytes, optimize: bool = True, threads: int | None = None) -> None:
        """Raises DataError if onnxruntime cannot load the bytes, or if they name another file."""
        if EXTERNAL.search(onnx_bytes):
            raise DataError("the ONNX file keeps weights outside itself")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or machine.threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised below
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = onnxruntime.InferenceSession(
                onnx_bytes, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise DataError(f"onnxruntime cannot load the model: {str(error).splitlines()[0]}") from None
        self.input = self.session.get_inputs()[0].name
        self.outputs = [output.name for output in self.session.get_outputs()]

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
            parts = [
                self.session.run(names, {name: x[start : start + CHUNK] for name, x in inputs.items()})
                for start in range(0, count, CHUNK)
            ]
            return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
        except Exception as error:  # as above; or an output without a batch
            raise CheckFailed(f"onnxruntime stopped: {str(error).splitlines()[0]}") from None

    def predict(self, images: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """The first output, (N, classes)."""
        return self.run(images, self.outputs[:1])[self.outputs[0]]
