"""OUT: spec and weights become ONNX, onnxruntime runs it, and everything is held to the reference.

>>> import export, zoo
>>> model = zoo.get("cnn-padded")
>>> proto = export.to_onnx(model, zoo.init_weights(model))
>>> [node.op_type for node in proto.graph.node][:3]
['Conv', 'Relu', 'MaxPool']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.crosscheck import Report, verify
    from export.onnx.graph import to_onnx

__all__ = ["Report", "to_onnx", "verify"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: `zoo predict` needs onnxruntime, but neither onnx nor the checks."""
    if name == "to_onnx":
        from export.onnx.graph import to_onnx

        return to_onnx
    if name in ("Report", "verify"):
        from export import crosscheck

        return getattr(crosscheck, name)
    raise AttributeError(f"module 'export' has no attribute {name!r}")
