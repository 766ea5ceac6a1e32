"""OUT: spec and weights become ONNX, onnxruntime runs it, and everything is held to the reference.

>>> import export, zoo
>>> model = zoo.get("cnn-padded")
>>> proto = export.to_onnx(model, zoo.init_weights(model))
>>> [node.op_type for node in proto.graph.node][:3]
['Conv', 'Relu', 'MaxPool']
"""

from __future__ import annotations

from export.crosscheck import Report, verify
from export.graph import to_onnx

__all__ = ["Report", "to_onnx", "verify"]
