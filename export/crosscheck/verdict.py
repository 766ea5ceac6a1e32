"""What the cross-check says: of one layer, of one witness, of a model.

`Report.to_dict` is the one form in which a verification is kept (docs/report.schema.json); tables,
Markdown and JUnit are rendered from it (export.reports).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.crosscheck.comparison import Comparison, Decisions
from export.crosscheck.judgement import JUDGE

DIRECT = "onnx direct"
EVALUATOR = "onnx.reference"
PLAIN = ", unoptimized"  # after the name of a graph that onnxruntime runs as it is written
UNOPTIMIZED = f"{DIRECT}{PLAIN}"
NATIVE = "onnx native "


def native_name(backend: str) -> str:
    """How the witness is called that runs a backend's own export."""
    return f"{NATIVE}{backend}"


@dataclass(frozen=True)
class LayerVerdict:
    """One layer of one witness.

    output: with everything before it. local: on the input that the witness itself gave it, so that
    nothing before it counts. alone: run by itself on the reference's input.
    """

    output: Comparison
    local: Comparison | None = None
    alone: Comparison | None = None

    @property
    def passed(self) -> bool:
        """Whether all comparisons are within their limits."""
        return all(part.passed for part in (self.output, self.local, self.alone) if part is not None)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON data."""
        data = self.output.to_dict() | {"passed": self.passed}
        for name in ("local", "alone"):
            part = getattr(self, name)
            data[name] = None if part is None else part.to_dict()
        return data

    def __str__(self) -> str:
        if not self.output.passed or self.local is None or self.local.passed:
            return str(self.output)
        return f"alone {self.local}"


@dataclass(frozen=True)
class Batches:
    """Outputs of the same images in batches of several sizes, with other neighbours.

    identical: bit for bit the same whatever the batch.
    """

    sizes: tuple[int, ...]
    worst: Comparison
    identical: bool

    @property
    def passed(self) -> bool:
        """Whether all are within the limits."""
        return self.worst.passed

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        return {"sizes": list(self.sizes), "identical": self.identical, **self.worst.to_dict()}


@dataclass
class Verdict:
    """What the cross-check says of one witness."""

    witness: str
    output: Comparison | None = None
    logits: Comparison | None = None
    decisions: Decisions | None = None
    layers: dict[str, LayerVerdict] = field(default_factory=dict)
    batches: Batches | None = None
    identical: bool | None = None  # bit for bit the direct graph's output, in onnxruntime
    diagnosis: str = ""  # of the culprit: what it looks like
    skipped: str = ""  # the reason why there is no such witness
    error: str = ""  # it crashed
    seconds: float = 0.0
    outputs: np.ndarray | None = None

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is within its limits."""
        if self.skipped:
            return True
        if self.error or self.output is None:
            return False
        parts = [self.output, self.logits, self.decisions, self.batches, *self.layers.values()]
        return all(part.passed for part in parts if part is not None)

    @property
    def culprit(self) -> str | None:
        """The layer to look at: the first whose output fails although its input passes, None if none.

        That is the first that fails on the input which the witness gave it; where no layer does, the
        first whose output fails.
        """
        for path, layer in self.layers.items():
            if any(part is not None and not part.passed for part in (layer.local, layer.alone)):
                return path
        return next((path for path, layer in self.layers.items() if not layer.passed), None)

    @property
    def max_ratio(self) -> float:
        """The largest difference as a multiple of its limit; infinity for a crash or a wrong shape."""
        if self.error or self.output is None:
            return float("inf")
        parts: list[Comparison | None] = [self.output, self.logits]
        parts += [part for layer in self.layers.values() for part in (layer.output, layer.local, layer.alone)]
        parts += [self.batches.worst] if self.batches else []
        return max(float("inf") if part.problem else part.ratio for part in parts if part is not None)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON data."""
        if self.skipped or self.error:
            state = {"skipped": self.skipped} if self.skipped else {"error": self.error}
            return {"witness": self.witness, "passed": self.passed, **state}
        return {
            "witness": self.witness,
            "passed": self.passed,
            "output": self.output.to_dict() if self.output else None,
            "logits": self.logits.to_dict() if self.logits else None,
            "decisions": self.decisions.to_dict() if self.decisions else None,
            "layers": {path: layer.to_dict() for path, layer in self.layers.items()},
            "batches": self.batches.to_dict() if self.batches else None,
            "culprit": self.culprit,
            "diagnosis": self.diagnosis,
            "identical_to_direct": self.identical,
            "seconds": round(self.seconds, 3),
        }


@dataclass
class Report:
    """All verdicts on one model with its weights.

    origin, data: where weights and images come from, in words. command: what runs it again.
    """

    model: str
    parameters: int
    images: int
    verdicts: list[Verdict]
    layer_images: int = 0
    origin: str = ""
    data: str = ""
    command: list[str] = field(default_factory=list)
    onnx: bytes = b""
    layers_onnx: bytes = b""
    native: dict[str, bytes] = field(default_factory=dict)  # canonical, by backend

    @property
    def passed(self) -> bool:
        """Whether every witness agrees with the reference."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def suspects(self) -> list[str]:
        """Which sides are wrong, judged by who fails and who does not."""
        return suspects(self.verdicts)

    def verdict(self, witness: str) -> Verdict:
        """The verdict on a witness by its name."""
        return next(verdict for verdict in self.verdicts if verdict.witness == witness)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "kind": "verify",
            "model": self.model,
            "parameters": self.parameters,
            "passed": self.passed,
            "weights": self.origin,
            "data": self.data,
            "images": self.images,
            "layer_images": self.layer_images,
            "judge": f"{JUDGE} in float64",
            "suspects": self.suspects,
            "command": self.command,
            "seconds": round(sum(verdict.seconds for verdict in self.verdicts), 3),
            "witnesses": [verdict.to_dict() for verdict in self.verdicts],
        }


def suspects(verdicts: Iterable[Verdict]) -> list[str]:
    """The sides that are wrong: "reference", "export", "onnxruntime", a backend, "<backend> exporter", ...

    A fault that several witnesses share is laid to what they share: the direct graph, onnxruntime or its
    optimisations, a backend. If all fail and agree with each other, it is the reference that stands alone.
    """
    heard = [verdict for verdict in verdicts if not verdict.skipped]
    failed = {verdict.witness for verdict in heard if not verdict.passed}
    if not failed:
        return []
    if len(failed) == len(heard) > 1 and _agree(heard):
        return [JUDGE]
    return list(
        dict.fromkeys(_side(witness, failed, {v.witness for v in heard}) for witness in sorted(failed))
    )


def _side(witness: str, failed: set[str], heard: set[str]) -> str:
    plain = witness.removesuffix(PLAIN)
    twins = {plain, f"{plain}{PLAIN}"} & heard
    if witness == EVALUATOR:
        return "export" if DIRECT in failed else EVALUATOR
    if plain == DIRECT:
        if EVALUATOR in heard and EVALUATOR not in failed:
            return "onnxruntime" if twins <= failed else "onnxruntime's optimisations"
        return "export" if twins <= failed else "onnxruntime's optimisations"
    if plain.startswith(NATIVE):
        backend = plain.removeprefix(NATIVE)
        if backend in failed:
            return backend
        return f"{backend} exporter" if twins <= failed else "onnxruntime's optimisations"
    return plain


def _agree(verdicts: list[Verdict]) -> bool:
    """Whether the witnesses' outputs lie closer together than any of them to the reference."""
    outputs = [verdict.outputs for verdict in verdicts if verdict.outputs is not None]
    apart = [v.output.max_abs_diff for v in verdicts if v.output is not None and not v.output.problem]
    if len(outputs) < len(verdicts) or len(apart) < len(verdicts):
        return False
    count = min(map(len, outputs))
    if len({output.shape[1:] for output in outputs}) > 1:
        return False
    between = max(float(np.abs(output[:count] - outputs[0][:count]).max()) for output in outputs)
    return 10 * between <= min(apart)
