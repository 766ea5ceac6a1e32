"""An onnxruntime session, with the options that every comparison here uses."""

from __future__ import annotations

from typing import Any

import onnxruntime


def load(onnx_bytes: bytes, optimize: bool, threads: int) -> Any:
    """The onnxruntime session of a model, on the CPU; onnxruntime's own errors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])


def about(session: Any) -> dict[str, Any]:
    """What an onnxruntime session says of its model: inputs and outputs (name, type, shape), metadata."""
    return {
        "inputs": [[x.name, x.type, x.shape] for x in session.get_inputs()],
        "outputs": [[x.name, x.type, x.shape] for x in session.get_outputs()],
        "metadata": session.get_modelmeta().custom_metadata_map,
    }
