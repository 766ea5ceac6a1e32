"""What an ONNX file of the zoo says of its model, as far as that follows from the spec alone."""

from __future__ import annotations

import json

from zoo.model import Model

PRODUCER = "cnn-zoo"  # of what the zoo exports itself
SPEC, LABELS, DOCUMENT, INPUT = "zoo.spec", "zoo.labels", "zoo.document", "zoo.input"
WEIGHTS, VERSION = "zoo.weights_sha256", "zoo.version"  # these two follow from more


def about(model: Model) -> dict[str, str]:
    """The metadata entries that describe a model."""
    ink = ", white ink on black" if model.labels else ""
    return {
        SPEC: json.dumps(model.to_dict(), sort_keys=True, separators=(",", ":")),
        LABELS: json.dumps(model.labels),
        DOCUMENT: model.document,
        INPUT: f"float32 [batch, C, H, W], pixels in [0, 1]{ink}",
    }
