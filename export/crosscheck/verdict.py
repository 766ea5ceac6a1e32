"""What the cross-check says: of one layer, of one witness, of a model.

`Report.to_dict` is the one form in which a verification is kept (docs/report.schema.json); tables,
Markdown and JUnit are rendered from it (export.crosscheck.reports).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.crosscheck.comparison import Comparison, Decisions, worst_key
from export.crosscheck.judgement import JUDGE
from export.crosscheck.search import Found

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

    output: with everything before it; where there is `local`, this only tells how far rounding has added up.
    local: on the input that the witness itself gave it, so that nothing before it counts. alone: run by
    itself. usual: what it differs in `local`, as a multiple of what rounding usually does. folded: what the
    witness calls this layer is another tensor, but what follows is right: the layer is a part of a fused one.
    """

    output: Comparison
    local: Comparison | None = None
    alone: Comparison | None = None
    usual: float = 0.0
    folded: bool = False

    @property
    def judged(self) -> list[Comparison]:
        """The comparisons that decide."""
        if self.output.problem:
            return [self.output]
        if self.folded:
            return []
        return [part for part in (self.local, self.alone) if part is not None] or [self.output]

    @property
    def passed(self) -> bool:
        """Whether all comparisons that decide are within their limits."""
        return all(part.passed for part in self.judged)

    def to_dict(self, located: bool = False) -> dict[str, Any]:
        """The verdict as JSON data. located: tell the worst element of what passed as well."""
        data = _compared(self.output, located) | {"passed": self.passed, "folded": self.folded}
        for name in ("local", "alone"):
            part = getattr(self, name)
            data[name] = None if part is None else _compared(part, located)
        return data

    def __str__(self) -> str:
        return str(self.output) if self.local is None or self.output.problem else f"alone {self.local}"


def _compared(part: Comparison, located: bool) -> dict[str, Any]:
    place = {"worst_index": list(part.worst), "got": part.got, "expected": part.expected}
    return part.to_dict() | (place if located and not part.problem else {})


@dataclass(frozen=True)
class Probes:
    """The outputs for the images whose layers are compared: noise, probes and extremes among them.

    Each image has its own limit. logits, decisions: None where they cannot be told.
    """

    output: Comparison
    logits: Comparison | None = None
    decisions: Decisions | None = None

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is within its limits."""
        return all(part.passed for part in (self.output, self.logits, self.decisions) if part is not None)

    def to_dict(self) -> dict[str, Any]:
        """The comparisons as JSON data."""
        parts = {"output": self.output, "logits": self.logits, "decisions": self.decisions}
        return {name: None if part is None else part.to_dict() for name, part in parts.items()}


@dataclass(frozen=True)
class Batches:
    """Outputs of the same images in batches of several sizes, with other neighbours.

    worst_size: of the batch with the worst comparison. identical: bit for bit the same whatever the batch.
    """

    sizes: tuple[int, ...]
    worst: Comparison
    worst_size: int
    identical: bool

    @property
    def passed(self) -> bool:
        """Whether all are within the limits."""
        return self.worst.passed

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        told = {"sizes": list(self.sizes), "worst_size": self.worst_size, "identical": self.identical}
        return told | self.worst.to_dict()


@dataclass
class Verdict:
    """What the cross-check says of one witness.

    Where only some layers were looked at, there are no output, logits, decisions, probes and batches.
    """

    witness: str
    output: Comparison | None = None
    logits: Comparison | None = None
    decisions: Decisions | None = None
    probes: Probes | None = None
    layers: dict[str, LayerVerdict] = field(default_factory=dict)
    batches: Batches | None = None
    search: Found | None = None  # where it differs most, as far as that was looked for
    identical: bool | None = None  # bit for bit the direct graph's output, in onnxruntime
    diagnosis: str = ""  # of the culprit: what it looks like
    skipped: str = ""  # the reason why there is no such witness
    error: str = ""  # it crashed
    seconds: float = 0.0
    images: int = 0  # whose output it was asked for; of the layers alone, those whose layers are compared
    outputs: np.ndarray | None = None
    untrue: tuple[str, ...] = ()  # what a file says of itself that is not so
    notes: tuple[str, ...] = ()  # what is worth telling of it, and no fault
    backend: str = ""  # whose network or exporter it is; "" for graphs that need none

    @property
    def judged(self) -> bool:
        """Whether anything of it was compared, to the end."""
        return not self.skipped and not self.error and (self.output is not None or bool(self.layers))

    @property
    def failed_batch(self) -> tuple[int, ...]:
        """The size of the batch that is furthest beyond its limit, if any is."""
        return (self.batches.worst_size,) if self.batches and not self.batches.passed else ()

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is within its limits."""
        if not self.judged:
            return bool(self.skipped)
        if self.untrue:
            return False
        parts = [self.output, self.logits, self.decisions, self.probes, self.batches, self.search]
        compared = all(part.passed for part in parts if part is not None)
        return compared and all(layer.passed for layer in self.layers.values())

    @property
    def culprit(self) -> str | None:
        """The layer to look at: the first whose output fails although its input passes, None if none.

        Whether it fails is judged on the input which the witness itself gave it.
        """
        return next((path for path, layer in self.layers.items() if not layer.passed), None)

    @property
    def failure(self) -> str:
        """One sentence on what is wrong, if it failed."""
        if self.error:
            return f"{self.witness} failed: {self.error}"
        if self.culprit:
            return f"{self.witness} disagrees from {self.culprit} on: {self.layers[self.culprit]}"
        parts: list[tuple[str, Comparison | None]] = [(":", self.output), (": logits", self.logits)]
        if self.probes:
            parts += [(" on probes:", self.probes.output), (" on probes: logits", self.probes.logits)]
        if self.batches:
            parts.append((f" in a batch of {self.batches.worst_size}:", self.batches.worst))
        for place, part in parts:
            if part is not None and not part.passed:
                return f"{self.witness} disagrees{place} {part}"
        if self.untrue:
            return f"{self.witness}: {self.untrue[0]}"
        forbidden = self.decisions.forbidden if self.decisions else []
        return f"{self.witness} decides otherwise on images {forbidden[:10]}"

    @property
    def whole(self) -> list[Comparison]:
        """What was compared of the whole network's outputs."""
        parts = [self.output, self.logits]
        parts += [self.probes.output, self.probes.logits] if self.probes else []
        parts += [found.worst for found in (self.batches, self.search) if found]
        return [part for part in parts if part is not None]

    @property
    def max_ratio(self) -> float:
        """The largest difference as a multiple of its limit; infinity for a crash or a wrong shape."""
        if not self.judged:
            return float("inf")
        parts = [*self.whole, *(part for layer in self.layers.values() for part in layer.judged)]
        return max(float("inf") if part.problem else part.ratio for part in parts)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON data."""
        if self.skipped or self.error:
            state = {"skipped": self.skipped} if self.skipped else {"error": self.error}
            return {"witness": self.witness, "passed": self.passed, **state}
        only_layers = self.output is None
        return {
            "witness": self.witness,
            "passed": self.passed,
            "images": self.images,
            "output": self.output.to_dict() if self.output else None,
            "logits": self.logits.to_dict() if self.logits else None,
            "decisions": self.decisions.to_dict() if self.decisions else None,
            "probes": self.probes.to_dict() if self.probes else None,
            "layers": {path: layer.to_dict(only_layers) for path, layer in self.layers.items()},
            "batches": self.batches.to_dict() if self.batches else None,
            "search": self.search.to_dict() if self.search else None,
            "untrue": list(self.untrue),
            "notes": list(self.notes),
            "culprit": self.culprit,
            "diagnosis": self.diagnosis,
            "identical_to_direct": self.identical,
            "seconds": round(self.seconds, 3),
        }


@dataclass
class Report:
    """All verdicts on one model with its weights.

    origin, data: where weights and images come from, in words. command: what runs it again. layers:
    those looked at, where it was not everything. inputs_seed: of what was drawn. seconds: of all of it; 0 for
    the witnesses' sum. image, image_command: the file that holds the worst image found by search, and what
    looks at it again.
    """

    model: str
    parameters: int
    images: int
    verdicts: list[Verdict]
    layer_images: int = 0
    origin: str = ""
    data: str = ""
    command: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    inputs_seed: int = 0
    seconds: float = 0.0
    onnx: bytes = b""
    layers_onnx: bytes = b""
    native: dict[str, bytes] = field(default_factory=dict)  # canonical, by backend
    image: str = ""
    image_command: list[str] = field(default_factory=list)

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

    @property
    def worst_found(self) -> tuple[str, Found] | None:
        """What search found to be nearest to its limit, or furthest beyond: the witness, and the image."""
        found = [(verdict.witness, verdict.search) for verdict in self.verdicts if verdict.search]
        return max(found, key=lambda pair: worst_key(pair[1].worst), default=None)

    def _search(self) -> dict[str, Any] | None:
        if (worst := self.worst_found) is None:
            return None
        return {
            "witness": worst[0],
            "max_ratio": worst[1].worst.ratio,
            "passed": worst[1].passed,
            "evaluations": sum(verdict.search.evaluations for verdict in self.verdicts if verdict.search),
            "image": self.image,
            "again": self.image_command,
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data; figures that are not finite are null."""
        data = {
            "kind": "verify",
            "model": self.model,
            "parameters": self.parameters,
            "passed": self.passed,
            "weights": self.origin,
            "data": self.data,
            "images": self.images,
            "layer_images": self.layer_images,
            "layers": self.layers,
            "inputs_seed": self.inputs_seed,
            "judge": f"{JUDGE} in float64",
            "suspects": self.suspects,
            "search": self._search(),
            "command": self.command,
            "seconds": round(self.seconds or sum(verdict.seconds for verdict in self.verdicts), 3),
            "witnesses": [verdict.to_dict() | self._again(verdict) for verdict in self.verdicts],
        }
        finite: dict[str, Any] = _finite(data)
        return finite

    def _again(self, verdict: Verdict) -> dict[str, list[str]]:
        """The command that looks at a failed witness and its culprit only."""
        if verdict.passed or not self.command:
            return {}
        backend = verdict.backend or JUDGE
        layer = ["--layer", verdict.culprit] if verdict.culprit else []
        return {"again": [*_without(self.command, ("--backend", "--layer")), "--backend", backend, *layer]}


def _without(command: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command without some options, each of which has a value."""
    kept, words = [], iter(command)
    for word in words:
        if word in options:
            next(words, None)
        else:
            kept.append(word)
    return kept


def _finite(data: Any) -> Any:
    """The same JSON data with null for NaN and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def suspects(verdicts: Iterable[Verdict]) -> list[str]:
    """The sides that are wrong: "reference", "export", "onnxruntime", a backend, "<backend> exporter", ...

    A fault that several witnesses share is laid to what they share: the direct graph, onnxruntime or its
    optimisations, a backend. If sides that know nothing of each other all fail, and fail alike, it is the
    reference that stands alone.
    """
    heard = [verdict for verdict in verdicts if not verdict.skipped]
    failed = {verdict.witness for verdict in heard if not verdict.passed}
    everyone = {verdict.witness for verdict in heard}
    sides = list(dict.fromkeys(_side(witness, failed, everyone) for witness in sorted(failed)))
    return [JUDGE] if len(sides) > 1 and failed == everyone and _alike(heard) else sides


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


def _alike(verdicts: list[Verdict]) -> bool:
    """Whether failed witnesses all blame one layer, or lie closer together than to the reference."""
    blamed = {verdict.culprit for verdict in verdicts if verdict.layers}
    outputs = [verdict.outputs for verdict in verdicts if verdict.outputs is not None]
    apart = [v.output.max_abs_diff for v in verdicts if v.output is not None and not v.output.problem]
    if len(outputs) < len(verdicts) or len(apart) < len(verdicts):
        return False
    if len(blamed) == 1 and None not in blamed:
        return True
    count = min(map(len, outputs))
    between = max(float(np.abs(output[:count] - outputs[0][:count]).max()) for output in outputs)
    return 10 * between <= min(apart)
