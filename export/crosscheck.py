"""The cross-check: one judge (the float64 reference of the spec), many witnesses.

Every witness computes in float32 what the reference computes in float64, from the same weights
and images. Nothing is sorted, transposed or broadcast to make things match; a wrong shape, dtype
or a value that is not finite is a failure whatever the numbers say.

Limits, and where they come from:
- outer, norm-wise per tensor: max|a - ref| <= 1e-5 + 2e-5 * max|ref|. Honest float32 differences
  measure up to 6e-6 at logits of 12; the smallest real fault known measures 876 times that.
- logits, element-wise: |a - ref| <= 32 u (|W||h| + |b|), u = 2^-24, with the last dense layer's own
  weights W, b and input h. It scales as rounding errors do; honest cases measure up to 8.3 of the 32.
- decisions: the largest class may differ only where the reference's own margin between its two
  largest is at most twice what the image's outputs are allowed to differ. (Twice what they do
  differ would be no rule: a class can only overtake another by half the margin each.)
A model without labels has neither logits nor decisions: the outer limit alone judges it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

import backends
from backends.client import RemoteNetwork, Worker
from backends.reference import ReferenceNetwork
from export.graph import serialize, tensor_name, to_layers_onnx, to_onnx
from export.native import canonicalize
from export.session import Session
from zoo.errors import DataError, MachineError, NotSupported, ZooError
from zoo.layers import Dense
from zoo.model import Model
from zoo.randomness import raw_bits

JUDGE = "reference"
UNIT = 2.0**-24  # half the distance of float32 from 1 to the next number
ABSOLUTE, RELATIVE = 1e-5, 2e-5
LOGIT_UNITS = 32
LAYER_IMAGES = 256


@dataclass(frozen=True)
class Comparison:
    """One tensor against the reference. ratio: the largest difference as a multiple of its limit.

    limit is in the tensor's unit; for an element-wise limit it is the one at the worst element.
    """

    max_abs_diff: float
    limit: float
    ratio: float
    worst: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the tensor is within its limit."""
        return not self.problem and self.ratio <= 1

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        data: dict[str, Any] = {
            "max_abs_diff": self.max_abs_diff,
            "limit": self.limit,
            "max_ratio": self.ratio,
            "passed": self.passed,
        }
        if not self.passed:
            data |= {"worst_index": list(self.worst), "got": self.got, "expected": self.expected}
            data |= {"problem": self.problem} if self.problem else {}
        return data

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        text = f"max|d| {self.max_abs_diff:.1e} of {self.limit:.1e} allowed"
        if self.passed:
            return text
        index = ", ".join(map(str, self.worst))
        return f"{text}; at [{index}] got {self.got:.7g}, expected {self.expected:.7g}"


def compare(
    got: np.ndarray, expected: np.ndarray, limit: np.ndarray | None = None, dtype: str = "float32"
) -> Comparison:
    """A witness's tensor against the reference's, under the outer limit or an element-wise one.

    got: any shape, of the given dtype. expected: float64, same shape. limit: None, or one per element.
    """
    nothing = float("nan")
    if got.shape != expected.shape:
        return Comparison(nothing, nothing, nothing, problem=f"shape {got.shape}, not {expected.shape}")
    if got.dtype != dtype:
        return Comparison(nothing, nothing, nothing, problem=f"dtype {got.dtype}, not {dtype}")
    bad = np.count_nonzero(~np.isfinite(got))
    if bad:
        return Comparison(nothing, nothing, nothing, problem=f"{bad} values are NaN or infinite")
    difference = np.abs(got.astype(np.float64) - expected)
    if limit is None:
        limit = np.full((), ABSOLUTE + RELATIVE * np.abs(expected).max(initial=0))
    ratios = difference / np.maximum(limit, np.finfo(np.float64).tiny)
    worst = np.unravel_index(ratios.argmax(), ratios.shape)
    return Comparison(
        float(difference.max()),
        float(np.broadcast_to(limit, got.shape)[worst]),
        float(ratios[worst]),
        tuple(int(i) for i in worst),
        float(got[worst]),
        float(expected[worst]),
    )


@dataclass(frozen=True)
class Decisions:
    """Whether a witness decides as the reference does. Entries are image numbers.

    flips: another class is largest. open: images whose margin in the reference is at most twice
    the allowed difference, so that an honest witness could turn them; none means that no decision
    can differ. forbidden: flips of images that are not open.
    """

    flips: list[int]
    forbidden: list[int]
    open: list[int]
    smallest_margin: float | None  # None with a single class

    @property
    def passed(self) -> bool:
        """Whether every flip is one that rounding explains."""
        return not self.forbidden

    def to_dict(self) -> dict[str, Any]:
        """The decisions as JSON data, at most 100 image numbers of each kind."""
        return {
            "flips": len(self.flips),
            "flipped_images": self.flips[:100],
            "forbidden_images": self.forbidden[:100],
            "open_images": self.open[:100],
            "smallest_margin": self.smallest_margin,
            "passed": self.passed,
        }


def decide(got: np.ndarray, expected: np.ndarray, limit: np.ndarray) -> Decisions:
    """Compare the decisions of two outputs (N, classes) of the same shape.

    limit: (N,), what an output of each image is allowed to differ.
    """
    if expected.shape[1] == 1:
        return Decisions([], [], [], None)
    ordered = np.sort(expected, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    flipped = got.argmax(axis=1) != expected.argmax(axis=1)
    undecided = margin <= 2 * limit
    return Decisions(
        np.flatnonzero(flipped).tolist(),
        np.flatnonzero(flipped & ~undecided).tolist(),
        np.flatnonzero(undecided).tolist(),
        float(margin.min()),
    )


@dataclass
class Judgement:
    """What the reference says about images: outputs and logits (N, classes) in float64,
    the element-wise limit of the logits, and every layer's output for the first images.

    Without labels the outputs are (N, *model.output_shape), and the logits and their limit (N, 0).
    """

    images: np.ndarray
    outputs: np.ndarray
    logits: np.ndarray
    logit_limit: np.ndarray
    layers: dict[str, np.ndarray]
    output: str  # "logits", "probabilities" or "features"

    @property
    def decision_limit(self) -> np.ndarray:
        """What an output of each image is allowed to differ, under the sharper limit: (N,)."""
        if self.output == "logits":
            return self.logit_limit.max(axis=1)
        outer = ABSOLUTE + RELATIVE * np.abs(self.outputs).max(initial=0)
        return np.full(len(self.outputs), outer)

    def first(self, count: int) -> Judgement:
        """The same for the first `count` images."""
        return replace(
            self,
            images=self.images[:count],
            outputs=self.outputs[:count],
            logits=self.logits[:count],
            logit_limit=self.logit_limit[:count],
        )


def judge(model: Model, weights: Mapping[str, np.ndarray], images: np.ndarray) -> Judgement:
    """Run the reference over images float32 (N, C, H, W) in [0, 1], a slice at a time."""
    network = ReferenceNetwork(model, weights)
    path = logit_path(model)
    node = next(node for node in model.walk() if node.path == path)
    paths = ["", *(node.path for node in model.walk())]
    before = paths[paths.index(path) - 1]
    outputs, logits, limits = [], [], []
    for chunk in network.chunks(images):
        tensors = {"": chunk.astype(np.float64), **dict(network.run(chunk))}
        outputs.append(tensors[paths[-1]])
        y = tensors[path] if model.labels else np.empty((len(chunk), 0))
        logits.append(y)
        if not model.labels:
            limits.append(y)
        elif isinstance(node.layer, Dense):
            scale = np.abs(tensors[before]) @ np.abs(weights[f"{path}.weight"].astype(np.float64)).T
            if node.layer.bias:
                scale = scale + np.abs(weights[f"{path}.bias"])
            limits.append(LOGIT_UNITS * UNIT * scale)
        else:  # 256 u max|y_row|
            row = np.abs(y).max(axis=1, keepdims=True)
            limits.append(np.broadcast_to(8 * LOGIT_UNITS * UNIT * row, y.shape))
    return Judgement(
        images,
        np.concatenate(outputs),
        np.concatenate(logits),
        np.concatenate(limits),
        network.activations(images[:LAYER_IMAGES]),
        model.output,
    )


def logit_path(model: Model) -> str:
    """The path of the layer that gives the logits: the last one, or the one before a Softmax."""
    nodes = model.walk()
    return nodes[-2 if model.output == "probabilities" and len(nodes) > 1 else -1].path


class Witness(Protocol):
    """Something that claims to compute a model."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in float32."""


@dataclass
class Verdict:
    """What the cross-check says of one witness."""

    witness: str
    output: Comparison | None = None
    logits: Comparison | None = None
    decisions: Decisions | None = None
    layers: dict[str, Comparison] = field(default_factory=dict)
    identical: bool | None = None  # bit for bit the direct graph's output, in onnxruntime
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
        parts = [self.output, self.logits, self.decisions, *self.layers.values()]
        return all(part.passed for part in parts if part is not None)

    @property
    def culprit(self) -> str | None:
        """The first layer whose output fails, so that its inputs passed; None if none does."""
        return next((path for path, layer in self.layers.items() if not layer.passed), None)

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
            "culprit": self.culprit,
            "identical_to_direct": self.identical,
            "seconds": round(self.seconds, 3),
        }


@dataclass
class Report:
    """All verdicts on one model with its weights."""

    model: str
    parameters: int
    images: int
    verdicts: list[Verdict]
    onnx: bytes = b""
    layers_onnx: bytes = b""
    native: dict[str, bytes] = field(default_factory=dict)  # canonical, by backend

    @property
    def passed(self) -> bool:
        """Whether every witness agrees with the reference."""
        return all(verdict.passed for verdict in self.verdicts)

    def verdict(self, witness: str) -> Verdict:
        """The verdict on a witness by its name."""
        return next(verdict for verdict in self.verdicts if verdict.witness == witness)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "passed": self.passed,
            "images": self.images,
            "layer_images": min(self.images, LAYER_IMAGES),
            "judge": "reference in float64",
            "witnesses": [verdict.to_dict() for verdict in self.verdicts],
        }


DIRECT = "onnx direct"
UNOPTIMIZED = "onnx direct, unoptimized"


def verify(
    model: Model,
    weights: Mapping[str, np.ndarray],
    backends: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    threads: int | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Report:
    """Hold backends, their own ONNX exports and the direct export to the float64 reference.

    backends: names, each run in its own process; default: all that are installed. images: float32
    (N, C, H, W) in [0, 1]; default: seeded noise and asymmetric probes. files: ONNX files that
    claim to compute the model, by name; each is run as it is. A witness that crashes is
    reported and fails; the rest goes on. Raises BackendUnavailable, DataError, UnsupportedLayer.
    """
    names = list(installed_backends() if backends is None else backends)
    images = probes(model) if images is None else np.ascontiguousarray(images, dtype=np.float32)
    judgement = judge(model, weights, images)
    report = check_direct(model, weights, judgement)
    for name, content in (files or {}).items():
        try:
            report.verdicts.append(examine(name, Session(content), judgement))
        except DataError as error:
            report.verdicts.append(Verdict(name, error=str(error)))
    for name in names:
        if name == JUDGE:
            continue
        with Worker(name, threads) as worker:
            try:
                network = worker.build(model, weights)
            except ZooError as error:
                if error.code != 70:
                    raise
                report.verdicts.append(Verdict(name, error=str(error)))
                continue
            check_network(name, network, weights, judgement, report)
    return report


def installed_backends() -> list[str]:
    """The backends that verify asks when none is named."""
    return backends.training_names()


def probes(model: Model, count: int = 64) -> np.ndarray:
    """Images that no transposition, flip or shift leaves alike: noise, single pixels, ramps.

    float32 (2 * count + 2, C, H, W) in [0, 1], the same on every call.
    """
    shape = model.input_shape
    size = int(np.prod(shape))
    noise = (raw_bits(0, "probes/noise", count * size) >> np.uint64(40)).astype(np.float32) / 2**24
    pixels = np.zeros((count, size), dtype=np.float32)
    pixels[np.arange(count), (raw_bits(0, "probes/pixels", count) % np.uint64(size)).astype(int)] = 1
    ramp = np.arange(size, dtype=np.float32) / size
    flat = (noise.reshape(count, size), pixels, ramp[None], np.sqrt(ramp)[None, ::-1])
    return np.concatenate(flat).reshape(-1, *shape)


def check_direct(model: Model, weights: Mapping[str, np.ndarray], judgement: Judgement) -> Report:
    """A report with the verdicts on the direct export: on all images, and without optimisations."""
    onnx_bytes = serialize(to_onnx(model, weights))
    layers_bytes = serialize(to_layers_onnx(model, weights))
    report = Report(model.title, model.parameters, len(judgement.images), [], onnx_bytes, layers_bytes)
    direct, inside = Session(onnx_bytes), Session(layers_bytes)
    names = {node.path: tensor_name(model, node.path) for node in model.walk()}

    def activations(images: np.ndarray) -> dict[str, np.ndarray]:
        tensors = inside.run(images)
        return {path: tensors[name] for path, name in names.items()}

    def logits(images: np.ndarray) -> np.ndarray:
        name = names[logit_path(model)]
        return inside.run(images, [name])[name]

    report.verdicts.append(examine(DIRECT, direct, judgement, activations, logits))
    few = judgement.first(LAYER_IMAGES)
    plain = Session(onnx_bytes, optimize=False)
    report.verdicts.append(examine(UNOPTIMIZED, plain, few))
    return report


def check_network(
    name: str,
    network: RemoteNetwork,
    weights: Mapping[str, np.ndarray],
    judgement: Judgement,
    report: Report,
) -> None:
    """Add the verdicts on a backend's network and on its native export to a report.

    The reference, being the judge, gets none.
    """
    model = network.model
    if name == JUDGE:
        report.verdicts.append(Verdict(native_name(name), skipped="the reference has no ONNX exporter"))
        return
    report.verdicts.append(examine(name, network, judgement, network.activations))
    witness = native_name(name)
    try:
        raw = network.export_native()
        if isinstance(raw, NotSupported):
            report.verdicts.append(Verdict(witness, skipped=str(raw)))
            return
        canonical = serialize(canonicalize(raw, model, weights))
        session = Session(canonical)
    except MachineError:
        raise  # a full disk says nothing about the network
    except ZooError as error:
        report.verdicts.append(Verdict(witness, error=str(error)))
        return
    report.native[name] = canonical
    verdict = examine(witness, session, judgement)
    direct = report.verdict(DIRECT).outputs
    if verdict.outputs is not None and direct is not None:
        verdict.identical = bool(np.array_equal(verdict.outputs, direct))
    report.verdicts.append(verdict)


def native_name(backend: str) -> str:
    """How the witness is called that runs a backend's own export."""
    return f"onnx native {backend}"


def examine(
    name: str,
    witness: Witness,
    judgement: Judgement,
    activations: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None,
    logits: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Verdict:
    """Compare one witness with the judgement.

    activations: gives every layer's output. logits: gives the logits where predict gives
    probabilities; without it they are taken from activations, for the first images.
    """
    verdict = Verdict(name)
    started = time.perf_counter()
    try:
        outputs = witness.predict(judgement.images)
        verdict.outputs = outputs
        verdict.output = compare(outputs, judgement.outputs)
        classifies = judgement.output != "features"
        if classifies and not verdict.output.problem:
            verdict.decisions = decide(outputs, judgement.outputs, judgement.decision_limit)
        few = judgement.images[:LAYER_IMAGES]
        inside = activations(few) if activations else {}
        verdict.layers = {
            path: compare(inside.get(path, np.empty(0, np.float32)), expected)
            for path, expected in judgement.layers.items()
            if activations
        }
        if judgement.output == "logits":
            verdict.logits = compare(outputs, judgement.logits, judgement.logit_limit)
        elif classifies and logits:
            verdict.logits = compare(logits(judgement.images), judgement.logits, judgement.logit_limit)
        elif classifies and activations:
            path = list(judgement.layers)[-2]
            first = judgement.first(LAYER_IMAGES)
            verdict.logits = compare(inside[path], first.logits, first.logit_limit)
    except MachineError:
        raise
    except ZooError as error:
        verdict.error = str(error)
    verdict.seconds = time.perf_counter() - started
    return verdict
