"""Writing one ONNX file to deploy, once it is verified."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import backends
from export import crosscheck
from export.runs import card
from export.runs.options import EXPORTERS
from export.runs.sources import Source
from zoo import runs
from zoo.errors import CheckFailed, InvalidInput


@dataclass(frozen=True)
class Target:
    """What to write: which exporter's graph, of which backend, to which file.

    backend: whose native exporter; None for the run's own, else the first installed one.
    """

    path: Path
    exporter: str = "direct"
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.exporter not in EXPORTERS:
            raise InvalidInput(f"unknown exporter {self.exporter!r}", "--exporter", "direct or native")
        if self.backend is not None and not backends.trains(backends.canonical(self.backend)):
            raise InvalidInput(f"the backend {self.backend!r} exports nothing", "--backend")
        if not self.path.name or self.path.is_dir():
            raise InvalidInput("not the name of a file", str(self.path), "give a file name with -o")


def export(source: Source, target: Target, images: np.ndarray | None, told: str = "") -> dict[str, Any]:
    """Verify a model on images (N, C, H, W) in [0, 1], then write it; says what was written.

    images: None for noise and probes. told: what they are, in words.

    Raises CheckFailed, and writes nothing, if a witness disagrees.
    """
    name = None
    if target.exporter == "native":
        name = target.backend or source.backend or next(iter(backends.training_names()), "torch")
    report = crosscheck.verify(source.model, source.weights, [name] if name else [], images)
    for verdict in report.verdicts:
        if not verdict.passed:
            raise CheckFailed(verdict.failure, source.origin, "nothing was written")
    witness = report.verdict(crosscheck.native_name(name) if name else crosscheck.DIRECT)
    if witness.skipped or witness.output is None:
        raise InvalidInput(witness.skipped, "--exporter", "use --exporter direct")
    content = report.native[name] if name else report.onnx
    runs.write_atomically(target.path, content)
    model = source.model
    return {
        "path": str(target.path),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "weights": source.origin,
        "exporter": f"native {name}" if name else "direct",
        "opset": onnx.load_from_string(content).opset_import[0].version,
        "input": f"image float32 [batch, {', '.join(map(str, model.input_shape))}], pixels in [0, 1]",
        "output": f"{model.output} float32 [batch, {', '.join(map(str, model.output_shape))}]",
        "check": f"{witness.output} on {told or f'{report.images:,} images'}",
        "example": card.usage(str(target.path), model),
    }
