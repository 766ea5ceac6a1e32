"""Whether an ONNX file of the zoo is what was exported, and computes here what it should.

The file itself says what to expect: hashes, labels, spec, and test vectors with the float64 reference's
outputs; with its own at export where it is int8 or float16, which no reference judges. So this needs NumPy
and onnxruntime alone: no framework, no onnx, no data. The hash of the whole file is compared before
onnxruntime or any parser sees a byte; what differs then is named.

A file that is not as it was written is a DataError; one that is, and that this machine's onnxruntime
computes wrongly, a CheckFailed. The report holds either as its `error`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from export.inference import operators, seal
from export.inference.metadata import PRODUCER, SPEC, VERSION, WEIGHTS, about
from export.inference.session import Session
from export.inference.vectors import EXPECTED, FLOAT32, IMAGES, PRECISION, REDUCED, Vectors, decode, make
from zoo.errors import CheckFailed, DataError, ZooError
from zoo.hashing import digest
from zoo.layers import Normalize
from zoo.model import DIGITS, Model, iter_weights
from zoo.models import registry
from zoo.spec.file import parse_spec

Array = np.ndarray

INPUT, BATCH, FLOAT = "image", "batch", "tensor(float)"
BATCHES = (1, 2, 3, 7)
LARGEST_FILE = 2**31  # bytes, protobuf's own limit
MOST_BYTES = 500_000_000  # of a tensor of a batch
SHOWN = 3  # differences in one sentence
AGAIN = "export it again"

T = TypeVar("T")


class Check(NamedTuple):
    """One check: its name, whether it passed, and what was seen in a few words."""

    name: str
    passed: bool
    detail: str


class Difference(NamedTuple):
    """The vector whose outputs are worst: the largest difference from the expected ones (infinite
    where an output is no number), and its limit."""

    vector: str
    largest: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.largest <= self.limit

    @property
    def finite(self) -> bool:
        return math.isfinite(self.largest)

    @property
    def ratio(self) -> float:
        return self.largest / self.limit

    def __str__(self) -> str:
        if not self.finite:
            return f"{self.vector} gives NaN or infinity"
        word = "within" if self.passed else "beyond"
        return f"{self.largest:.1e}, {word} the limit {self.limit:.1e}, at {self.vector}"


@dataclass
class Report:
    """What the doctor says of one file.

    error: why it did not pass: a DataError if the file is not as it was written, a CheckFailed if it
    computes something else. digits: (read, drawn) of the digits among the vectors, of a model that
    tells digits apart. worst: over all runs.
    """

    file: str
    model: Model | None = None
    version: str = ""
    precision: str = FLOAT32
    bytes: int = 0
    sha256: str = ""
    checks: list[Check] = field(default_factory=list)
    vectors: int = 0
    worst: Difference | None = None
    digits: tuple[int, int] | None = None
    error: ZooError | None = None

    @property
    def passed(self) -> bool:
        """Whether every check was made, and none failed."""
        return self.error is None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "kind": "doctor",
            "file": self.file.encode(errors="backslashreplace").decode(),
            "model": self.model.title if self.model else None,
            "passed": self.passed,
            "checks": [check._asdict() for check in self.checks],
            "vectors": self.vectors,
            "max_abs_diff": self.worst.largest if self.worst and self.worst.finite else None,
            "limit": self.worst.limit if self.worst else None,
            "digits": {"read": self.digits[0], "drawn": self.digits[1]} if self.digits else None,
            "version": self.version,
            "precision": self.precision,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "error": self.error.to_dict() if self.error else None,
        }


def examine(path: Path) -> Report:
    """Check one ONNX file of the zoo, as far as the first check that makes others pointless."""
    report = Report(str(path))
    try:
        content = _read(path)
        report.bytes, report.sha256 = len(content), hashlib.sha256(content).hexdigest()
        vectors = _integrity(content, report)
        _numbers(content, vectors, report)
        _weights(content, vectors.model, report)
    except ZooError as error:
        report.error = error
        if not report.checks:  # it could not be read
            report.checks.append(Check("file", False, error.what))
    failed = next((check for check in report.checks if not check.passed), None)
    if failed and report.error is None:
        hint = "zoo verify says which layer"
        report.error = CheckFailed(f"{failed.name}: {failed.detail}", report.file, hint)
    return report


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise DataError("no such ONNX file", path)
        if path.stat().st_size > LARGEST_FILE:
            raise DataError("the ONNX file is larger than 2 GiB", path)
        if not operators.looks_like_onnx(path):
            raise DataError("not an ONNX file", path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path) from None


def _integrity(content: bytes, report: Report) -> Vectors:
    """Whether the file is as it was written; fills the report and gives its test vectors."""
    where = report.file
    _step(report, "file", lambda: _whole(content, where))
    _step(report, "parts", lambda: _parts(content, where))
    entries = seal.metadata(content)
    report.version = entries.get("zoo.version", "")
    report.model = model = _step(report, "spec", lambda: _spec(entries, where))
    _step(report, "labels", lambda: _labels(entries, model, where))
    _step(report, "description", lambda: _description(content, entries, model, where))
    if PRECISION in entries:
        report.precision = _step(report, "precision", lambda: _precision(entries, where))
    vectors = _step(report, "vectors", lambda: _vectors(entries, model, where))
    report.vectors = len(vectors.names)
    return vectors


def _step(report: Report, name: str, check: Callable[[], tuple[str, T]]) -> T:
    """Note a check that gives (detail, result) or raises."""
    try:
        detail, result = check()
    except ZooError as error:
        report.checks.append(Check(name, False, error.what))
        raise
    report.checks.append(Check(name, True, detail))
    return result


def _whole(content: bytes, where: str) -> tuple[str, None]:
    found = seal.digest(content)
    if found is None:
        raise _unsealed(content, where)
    told, computed = found
    if told != computed:
        raise _altered(content, where)
    return f"{len(content):,} bytes, SHA-256 as it says", None


def _unsealed(content: bytes, where: str) -> DataError:
    """What to say of a file that carries no hash of itself."""
    if not content:
        return DataError("the file is empty", where, "give one that the zoo exported")
    try:
        entries = seal.metadata(content)
    except seal.Malformed as error:
        return DataError(f"not an ONNX file, or cut short: {error}", where, "give one that the zoo exported")
    if "zoo.spec" not in entries:
        return DataError("the ONNX file carries no spec of the zoo", where, "give one that the zoo exported")
    return DataError("the ONNX file carries no hash of itself", where, f"altered, or older: {AGAIN}")


def _altered(content: bytes, where: str) -> DataError:
    """What to say of a file that is not as it was written."""
    wrong = seal.altered(content) or ["bytes altered outside every part, or in the hash itself"]
    constants = _preprocessing(content)
    told = [f"{s} (preprocessing)" if s.split(" ")[0] in constants else s for s in wrong[:SHOWN]]
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return DataError(", ".join(told) + more, where, f"the file is not as it was exported: {AGAIN}")


def _preprocessing(content: bytes) -> set[str]:
    """The tensors that preprocessing consists of, as far as the spec can be read."""
    try:
        model = parse_spec(seal.metadata(content)["zoo.spec"].encode(errors="replace"), "")
    except (seal.Malformed, KeyError, ZooError):
        return set()
    paths = [node.path for node in model.walk() if isinstance(node.layer, Normalize)]
    return {f"{path}.{name}" for path in paths for name in ("mean", "scale")}


def _parts(content: bytes, where: str) -> tuple[str, None]:
    if seal.altered(content):
        raise _altered(content, where)
    count = sum(1 for _ in seal.parts(content))
    return f"{count} with a hash of their own: tensors, nodes, labels, ...", None


def _spec(entries: dict[str, str], where: str) -> tuple[str, Model]:
    try:
        raw = entries["zoo.spec"].encode(errors="replace")
        model = registry.check_builtin(parse_spec(raw, "zoo.spec"), "zoo.spec")
    except KeyError:
        raise DataError("the ONNX file carries no spec of the zoo", where, AGAIN) from None
    except ZooError as error:
        raise DataError(f"its spec is no model here: {error}", where, AGAIN) from None
    return f"{model.title}, {model.parameters:,} parameters", model


def _labels(entries: dict[str, str], model: Model, where: str) -> tuple[str, None]:
    try:
        labels = json.loads(entries.get("zoo.labels", ""))
    except (ValueError, RecursionError):
        labels = None
    if labels != list(model.labels):
        raise DataError("the labels are not those of the spec", where, AGAIN)
    shown = " ".join(labels) if len(labels) <= len(DIGITS) else f"{labels[0]} ... {labels[-1]}"
    return (f"{len(labels)}: {shown}" if labels else "none: it does not classify"), None


def _description(content: bytes, entries: dict[str, str], model: Model, where: str) -> tuple[str, None]:
    """The other entries that follow from spec and weights."""
    for key, value in about(model).items():
        told = entries.get(key, "")
        if key != SPEC and told != value:
            raise DataError(f"{key} is {told[:80]!r}, not {value[:80]!r}", where, AGAIN)
    name, version = seal.producer(content)
    if name == PRODUCER and version != entries.get(VERSION):
        raise DataError(f"{VERSION} is not its producer's version", where, AGAIN)
    known = {*about(model), WEIGHTS, VERSION, IMAGES, EXPECTED, seal.KEY, seal.PARTS}
    if PRECISION not in entries:
        for key in entries:
            if key.startswith("zoo.") and key not in known:
                raise DataError(f"{key} is an entry that such a file does not have", where, AGAIN)
    return "input, document, version: as spec and producer say", None


def _weights(content: bytes, model: Model, report: Report) -> None:
    """Whether the weights, where the file holds all of them, are those whose hash it carries."""
    names = {name for name, _ in iter_weights(model)}
    found = seal.weights(content, names)
    if report.precision == FLOAT32 and found.keys() == names:
        right = digest(found) == seal.metadata(content).get(WEIGHTS)
        said = f"{len(names)}, with the hash that it carries" if right else f"{WEIGHTS} is that of others"
        report.checks.append(Check("weights", right, said))


def _precision(entries: dict[str, str], where: str) -> tuple[str, str]:
    found = entries[PRECISION]
    if found not in REDUCED:
        raise DataError(f"the precision {found[:20]!r} is unknown", where, f"known: {', '.join(REDUCED)}")
    return f"{found}: held to what it gave at export, not to the float64 reference", found


def _vectors(entries: dict[str, str], model: Model, where: str) -> tuple[str, Vectors]:
    vectors = decode(entries, model, where)
    names, pixels = make(model)
    if vectors.names != names or not np.array_equal(vectors.pixels, pixels):
        raise DataError("the test vectors are not those of this model", where, AGAIN)
    kinds = Counter(name.partition(" ")[0] for name in vectors.names)
    return f"{len(vectors.names)}: " + ", ".join(f"{n} x {kind}" for kind, n in kinds.items()), vectors


def _numbers(content: bytes, vectors: Vectors, report: Report) -> None:
    """What onnxruntime makes of the file; a check that fails lets the others run."""
    where = report.file
    sessions = _step(report, "graph", lambda: _graph(content, where))
    _step(report, "input", lambda: _input(sessions[0], vectors.model, where))
    _step(report, "output", lambda: _output(sessions[0], vectors.model, where))
    whole, _ = (
        _try(report, name, partial(_agreement, session, vectors, report))
        for name, session in zip(("optimised", "not optimised"), sessions, strict=True)
    )
    if whole is None:
        return
    _try(report, "batches", lambda: _batches(sessions[0], vectors, whole))
    if len(vectors.model.labels) > 1 and whole.shape[1:] == vectors.model.output_shape:
        _try(report, "decisions", lambda: _decisions(vectors, whole, report.precision))
        _digits(vectors, whole, report)


def _try(report: Report, name: str, check: Callable[[], tuple[bool, str, T]]) -> T | None:
    """Note a check of numbers that gives (passed, detail, result); None if onnxruntime stopped."""
    try:
        passed, detail, result = check()
    except CheckFailed as error:
        report.checks.append(Check(name, False, error.what))
        return None
    report.checks.append(Check(name, passed, detail))
    return result


def _graph(content: bytes, where: str) -> tuple[str, tuple[Session, Session]]:
    try:
        sessions = Session(content, foreign=True), Session(content, optimize=False, foreign=True)
    except DataError as error:
        raise DataError(error.what, where, AGAIN) from None
    return "onnxruntime loads it, optimised and not", sessions


def _input(session: Session, model: Model, where: str) -> tuple[str, None]:
    inputs = session.inputs
    expected = [BATCH, *model.input_shape]
    if [(i.name, i.type, i.shape) for i in inputs] != [(INPUT, FLOAT, expected)]:
        shown = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise DataError(f"the input is {shown}, not {INPUT} {FLOAT} {expected}", where, AGAIN)
    return f"{INPUT} float32 [{', '.join(map(str, expected))}]", None


def _output(session: Session, model: Model, where: str) -> tuple[str, None]:
    """The model's own output, and beside it only tensors of its layers."""
    shapes = {node.path: node.output_shape for node in model.walk()}
    shapes[model.output] = model.output_shape
    outputs = session.given
    for output in outputs:
        shape = shapes.get(output.name)
        if shape is None or (output.type, output.shape) != (FLOAT, [BATCH, *shape]):
            shown = f"{output.name} {output.type} {output.shape}"
            raise DataError(f"the output {shown} is not the model's", where, AGAIN)
    if model.output not in session.outputs:
        raise DataError(f"there is no output {model.output}", where, AGAIN)
    more = f", and {len(outputs) - 1} layers" if len(outputs) > 1 else ""
    return f"{model.output} float32 [{', '.join(map(str, (BATCH, *model.output_shape)))}]{more}", None


def _agreement(session: Session, vectors: Vectors, report: Report) -> tuple[bool, str, Array]:
    """All vectors through one session."""
    count, step = len(vectors.names), _fitting(vectors.model)
    outputs = np.concatenate(
        [_run(session, vectors, range(i, min(i + step, count))) for i in range(0, count, step)]
    )
    worst = _difference(vectors, outputs, range(count))
    if report.worst is None or worst.ratio > report.worst.ratio:
        report.worst = worst
    return worst.passed, str(worst), outputs


def _batches(session: Session, vectors: Vectors, whole: Array) -> tuple[bool, str, None]:
    """Every vector in batches of several sizes, beside those that follow it, and beside others."""
    count, worst, identical = len(vectors.names), None, True
    sizes = [size for size in BATCHES if size <= _fitting(vectors.model)]
    for size in sizes:
        for start in range(0, count, size):
            for step in (1, -1)[:size]:  # the same first row with other neighbours
                rows = [(start + step * i) % count for i in range(size)]
                outputs = _run(session, vectors, rows)
                difference = _difference(vectors, outputs, rows)
                identical = identical and np.array_equal(outputs, whole[rows])
                worst = difference if worst is None or difference.ratio > worst.ratio else worst
    assert worst is not None
    said = "bit-identical rows" if identical and worst.passed else str(worst)
    return worst.passed, f"of {', '.join(map(str, sizes))}: {said}", None


def _decisions(vectors: Vectors, whole: Array, precision: str) -> tuple[bool, str, None]:
    """Where the expected margin is more than twice the limit, the decision must be the expected one."""
    ordered = np.sort(vectors.expected.astype(np.float64), axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * np.array(vectors.limits)
    own, expected = whole.argmax(axis=1), vectors.expected.argmax(axis=1)
    labels = vectors.model.labels
    for row in np.flatnonzero(clear & (own != expected)):
        said = f"{vectors.names[row]}: {labels[own[row]]}, not {labels[expected[row]]}"
        return False, said, None
    close = f"; {np.sum(~clear)} too close to call" if not clear.all() else ""
    whose = "the reference's" if precision == FLOAT32 else "at export"
    return True, f"{np.sum(clear)} of {len(clear)} as {whose}{close}", None


def _digits(vectors: Vectors, whole: Array, report: Report) -> None:
    """How many of the drawn digits a model of digits reads: told, not judged."""
    drawn = [(row, name[6:]) for row, name in enumerate(vectors.names) if name.startswith("digit ")]
    if drawn and vectors.model.labels == DIGITS:
        read = sum(vectors.model.labels[whole[row].argmax()] == digit for row, digit in drawn)
        report.digits = (read, len(drawn))
        report.checks.append(Check("digits", True, f"reads {read} of the {len(drawn)} drawn ones"))


def _fitting(model: Model) -> int:
    """How many images a batch may have before one of its tensors, windows unfolded, is too large."""
    largest = math.prod(model.input_shape)
    for node in model.walk():
        windows = node.macs // node.output_shape[0]  # numbers that one output channel or unit sums over
        largest = max(largest, math.prod(node.output_shape), windows)
    return max(1, MOST_BYTES // (4 * largest))


def _run(session: Session, vectors: Vectors, rows: Sequence[int]) -> Array:
    """What is kept of the outputs of some vectors, run as one batch."""
    name, shape = vectors.model.output, (len(rows), *vectors.model.output_shape)
    outputs = session.run(vectors.images(rows), [name])[name]
    if outputs.shape != shape or outputs.dtype != np.float32:
        raise CheckFailed(f"the outputs are {outputs.dtype} {outputs.shape}, not float32 {shape}")
    return vectors.kept(outputs)


def _difference(vectors: Vectors, outputs: Array, rows: Sequence[int]) -> Difference:
    """The worst of some vectors: the one nearest to its limit, or farthest beyond."""
    apart = np.abs(outputs.astype(np.float64) - vectors.expected[list(rows)])
    each = np.where(np.isfinite(apart), apart, np.inf).reshape(len(rows), -1).max(axis=1)
    found = [
        Difference(vectors.names[row], float(largest), vectors.limits[row])
        for row, largest in zip(rows, each, strict=True)
    ]
    return max(found, key=lambda difference: difference.ratio)
