"""How fast a model predicts, and how well, in everything that can run it: `zoo bench`.

The competitors are the backends, each in its own process and through the same `predict` as everywhere, the
direct ONNX file, each framework's own export, and the int8 file, in onnxruntime with the zoo's options. They
are timed in short blocks that alternate (zoo.timing), each process by its own clock. Beside its times stands
what makes them worth anything: accuracy, agreement with the float64 reference, and a verdict. The direct
file runs twice, as its own control: a difference between the two is noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import backends
from backends.process.client import RemoteNetwork, Worker, Workers
from export import crosscheck
from export.crosscheck.examination import examine
from export.crosscheck.inputs import probes
from export.crosscheck.judgement import Judgement
from export.crosscheck.verdict import DIRECT, Verdict, native_name
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.onnx.native import canonicalize
from export.reduced import accuracy_drop, quantization
from export.runs.sources import Source
from zoo import data, machine, terminal, timing, weights
from zoo.errors import BackendUnavailable, InvalidInput, MachineError, NotSupported, ZooError, nearest
from zoo.model import Model
from zoo.timing import Interval, Timings
from zoo.training import measures

Array = np.ndarray
Progress = Callable[[str, int, int], None]  # what is timed, blocks done, blocks in all

BATCHES = (1, 32, 256)
MOST_BATCH = 65536  # images
SECONDS = 2.0  # of timed blocks, for each competitor and batch
MOST_SECONDS = 3600.0
BLOCK = 0.05  # seconds
LEAST_ROUNDS = 5
PROBES = 8  # images without a data set: a judge of large images takes its time
CONTROL = f"{DIRECT} again"
INT8 = "onnx int8"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
PASSED, FAILED, SKIPPED, UNJUDGED = "ok", "FAILED", "skipped", "too few images"
FORMATS = (".json", ".md")


@dataclass(frozen=True)
class Options:
    """What is measured: batches (images), and the seconds of each competitor at each of them."""

    batches: tuple[int, ...] = BATCHES
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        for batch in self.batches:
            if not 1 <= batch <= MOST_BATCH:
                raise InvalidInput(f"a batch of {batch} images", "--batch", f"give 1 to {MOST_BATCH}")
        if not 0 < self.seconds <= MOST_SECONDS:
            raise InvalidInput(
                f"{self.seconds:g} seconds", "--seconds", f"give more than 0, at most {MOST_SECONDS:g}"
            )

    @property
    def rounds(self) -> int:
        """How many blocks each competitor gets at each batch."""
        return max(LEAST_ROUNDS, round(self.seconds / BLOCK))


@dataclass
class Competitor:
    """Something that predicts.

    block: the seconds of each call of one block, for images (N, C, H, W) and a length in seconds; None where
    it cannot run. bytes: of its file; of a backend, of the weights. verdict: PASSED, FAILED, SKIPPED or
    UNJUDGED. why: the reason if it is not PASSED. max_abs_diff, limit: of the outputs against the float64
    reference. drop: of int8, against the direct file.
    """

    name: str
    block: Callable[[Array, float], Sequence[float]] | None = None
    bytes: int | None = None
    accuracy: float | None = None
    max_abs_diff: float | None = None
    limit: float | None = None
    verdict: str = PASSED
    why: str = ""
    drop: accuracy_drop.Drop | None = None
    timings: dict[int, Timings] = field(default_factory=dict)

    @property
    def shown(self) -> bool:
        """Whether it is a competitor, not the control."""
        return self.name != CONTROL

    def to_dict(self, base: Competitor | None) -> dict[str, Any]:
        """The competitor as JSON data; its times also as multiples of another's."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "accuracy": self.accuracy,
            "max_abs_diff": self.max_abs_diff,
            "limit": self.limit,
            "verdict": self.verdict,
            "why": self.why,
            "drop": self.drop.to_dict() if self.drop else None,
            "timings": [
                {
                    "batch": batch,
                    "blocks": len(timed.blocks),
                    "calls": timed.count,
                    "seconds": {name: timed.quantile(share)._asdict() for name, share in QUANTILES.items()},
                    "images_per_second": batch * timed.per_second,
                    "time_of_direct": timed.ratio(base.timings[batch])._asdict() if base else None,
                }
                for batch, timed in self.timings.items()
            ],
        }


@dataclass
class Bench:
    """What was measured of one model. images: on which accuracy and agreement were judged."""

    model: Model
    origin: str
    data: str
    images: int
    competitors: list[Competitor]

    @property
    def passed(self) -> bool:
        """Whether nobody failed."""
        return all(competitor.verdict != FAILED for competitor in self.competitors)

    @property
    def direct(self) -> Competitor | None:
        """The direct ONNX file, if it was timed."""
        found = (c for c in self.competitors if c.name == DIRECT and c.timings)
        return next(found, None)

    def to_dict(self) -> dict[str, Any]:
        """The measurements as JSON data."""
        return {
            "kind": "bench",
            "model": self.model.title,
            "weights": self.origin,
            "data": self.data,
            "images": self.images,
            "passed": self.passed,
            "competitors": [competitor.to_dict(self.direct) for competitor in self.competitors],
            "machine": {
                "processor": machine.processor(),
                "threads": machine.threads(),
                "versions": machine.versions(
                    name for b in backends.training_names() for name in backends.distributions(b)
                ),
            },
        }


def options(batches: Sequence[int], seconds: float | None) -> Options:
    """What a command's options ask for; where they say nothing, the defaults. Raises InvalidInput."""
    chosen = tuple(dict.fromkeys(batches)) or BATCHES
    return Options(chosen, SECONDS if seconds is None else seconds)


def names(wanted: Sequence[str]) -> list[str]:
    """The backends that compete: those wanted, or all that are installed, torch compiled as well."""
    compiled = [backends.COMPILED] if backends.installed(backends.COMPILED) else []
    return list(wanted) or [*backends.training_names(), *compiled]


def images_of(model: Model, dataset: data.Dataset, wish: str) -> data.Dataset | None:
    """The data set that a model is judged on; None where it takes other images and none was wished for."""
    try:
        data.check_fits(model, dataset)
    except InvalidInput:
        if wish != "auto":
            raise
        return None
    return dataset


def measure(
    source: Source,
    backend_names: Sequence[str],
    dataset: data.Dataset | None,
    options: Options,
    workers: Workers,
    progress: Progress | None = None,
) -> Bench:
    """Judge and time everything that can run a model.

    dataset: its test images judge and are timed, its training images calibrate int8; None: probes, and
    no int8. progress: told what is being timed. A competitor that disagrees, or crashes while it is judged,
    has failed and the others go on. Raises BackendUnavailable for a backend that is missing, MachineError,
    WorkerDied if a process ends while it is timed.
    """
    model = source.model
    images = probes(model)[:PROBES] if dataset is None else data.to_float(dataset.test_images)
    judgement = crosscheck.judge(model, source.weights, images)
    labels = None if dataset is None else dataset.test_labels
    field_ = _Field(source, judgement, labels)
    direct = serialize(to_onnx(model, source.weights))
    field_.add_file(DIRECT, direct)
    field_.competitors.append(replace(field_.competitors[0], name=CONTROL, timings={}))
    session = Session(direct)
    field_.competitors[-1].block = _block(session.predict)
    if dataset is not None:
        field_.add_int8(direct, dataset)
    with _running(workers, backend_names) as running:
        for name, worker in running.items():
            field_.add_backend(name, worker)
        _time(field_.competitors, images, options, progress)
    told = "probes" if dataset is None else dataset.name
    return Bench(model, source.origin, told, len(images), field_.competitors)


@contextmanager
def _running(workers: Workers, backend_names: Sequence[str]) -> Iterator[dict[str, Worker]]:
    """The workers of some backends, all at once: an error ends those that it reaches."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(workers.use(name)) for name in backend_names}


@dataclass(frozen=True)
class _Bare:
    """A network as a witness by its bare call."""

    network: RemoteNetwork

    def predict(self, images: Array) -> Array:
        return self.network.call(images)


class _Field:
    """The competitors of one model while they are judged, one after another."""

    def __init__(self, source: Source, judgement: Judgement, labels: Array | None) -> None:
        self.source = source
        self.model = source.model
        self.judgement = judgement
        self.labels = labels
        self.competitors: list[Competitor] = []

    def add_file(self, name: str, content: bytes) -> None:
        """An ONNX file, judged like a witness."""
        competitor = Competitor(name, bytes=len(content))
        self.competitors.append(competitor)
        with _failing(competitor):
            session = Session(content)
            competitor.block = _block(session.predict)
            self._judge(competitor, examine(name, session, self.judgement))

    def add_int8(self, direct: bytes, dataset: data.Dataset) -> None:
        """The int8 file, held to its gate: what it loses against the direct one."""
        competitor = Competitor(INT8)
        self.competitors.append(competitor)
        with _failing(competitor):
            calibrated = quantization.calibration(dataset, quantization.CALIBRATION_IMAGES)
            content, _ = quantization.reduce(self.model, self.source.weights, quantization.INT8, calibrated)
            session = Session(content)
            competitor.bytes, competitor.block = len(content), _block(session.predict)
            outputs = session.predict(self.judgement.images)
            exact = Session(direct).predict(self.judgement.images)
            competitor.drop = drop = accuracy_drop.compare(exact, outputs, dataset.test_labels)
            competitor.accuracy = drop.right[1] / drop.images
            competitor.max_abs_diff = _largest(outputs, self.judgement.outputs)
            if not drop.passed:
                competitor.verdict = FAILED if drop.possible else UNJUDGED
                competitor.why = f"a drop of {drop}"

    def add_backend(self, name: str, worker: Worker) -> None:
        """A backend, and its own ONNX export."""
        size = len(weights.to_bytes(self.source.weights, {}))
        competitor = Competitor(name, bytes=size)
        self.competitors.append(competitor)
        native = Competitor(native_name(name))
        with _failing(competitor):
            network = worker.build(self.model, self.source.weights)
            competitor.block = network.time_predict
            self._judge(competitor, examine(name, network, self.judgement))
            self._add_call(name, network, size)
            if not backends.trains(name):
                return
            with _failing(native):
                raw = network.export_native()
                if isinstance(raw, NotSupported):
                    raise raw
                content = serialize(canonicalize(raw, self.model, self.source.weights))
                self.add_file(native.name, content)
        if native.why:
            self.competitors.append(native)

    def _add_call(self, name: str, network: RemoteNetwork, size: int) -> None:
        """The bare call of a framework whose `predict` does more; nothing where there is none."""
        try:
            network.call(self.judgement.images[:1])
        except NotSupported:
            return
        competitor = Competitor(f"{name} call", partial(network.time_predict, bare=True), size)
        self.competitors.append(competitor)
        with _failing(competitor):
            self._judge(competitor, examine(competitor.name, _Bare(network), self.judgement))

    def _judge(self, competitor: Competitor, verdict: Verdict) -> None:
        if verdict.output is not None and not verdict.output.problem:
            competitor.max_abs_diff, competitor.limit = verdict.output.max_abs_diff, verdict.output.limit
        if verdict.outputs is not None and self.labels is not None:
            competitor.accuracy = measures.accuracy(verdict.outputs, self.labels)
        if not verdict.passed:
            competitor.verdict, competitor.why = FAILED, verdict.failure
            if verdict.error:
                competitor.block = None


@contextmanager
def _failing(competitor: Competitor) -> Iterator[None]:
    """A competitor that cannot run is skipped with the reason, one that crashes has failed."""
    try:
        yield
    except (BackendUnavailable, MachineError):
        raise
    except NotSupported as reason:
        competitor.verdict, competitor.why, competitor.block = SKIPPED, str(reason), None
    except ZooError as error:
        competitor.verdict, competitor.why, competitor.block = FAILED, str(error), None


def _largest(outputs: Array, expected: Array) -> float | None:
    largest = float(np.abs(outputs.astype(np.float64) - expected).max())
    return largest if math.isfinite(largest) else None


def _block(predict: Callable[[Array], Array]) -> Callable[[Array, float], Sequence[float]]:
    return lambda images, seconds: timing.calls(partial(predict, images), seconds)


def _time(
    competitors: Sequence[Competitor], images: Array, options: Options, progress: Progress | None
) -> None:
    """Time all that can run, batch after batch; fills their timings."""
    able = {competitor.name: competitor for competitor in competitors if competitor.block}
    for done, batch in enumerate(options.batches):
        chosen = np.resize(images, (batch, *images.shape[1:]))
        blocks = {name: partial(c.block, chosen, BLOCK) for name, c in able.items() if c.block}
        for block in blocks.values():
            block()  # compiles for this batch, chooses threads

        def told(rounds: int, done: int = done, batch: int = batch) -> None:
            if progress:
                progress(
                    f"batch {batch}", done * options.rounds + rounds, len(options.batches) * options.rounds
                )

        for name, timed in timing.race(blocks, options.rounds, told).items():
            able[name].timings[batch] = timed


# How it is said.


HEADER = (
    "", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "x direct", "kB", "accuracy", "max|d|", "limit",
    "verdict",
)  # fmt: skip


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a model's table, of what `Bench.to_dict` gives: one per competitor and batch."""
    result = []
    for competitor in found["competitors"]:
        if competitor["name"] == CONTROL:
            continue
        about = (
            _number(competitor["bytes"], lambda n: f"{n / 1000:,.0f}"),
            _number(competitor["accuracy"], lambda n: f"{n:.4f}"),
            _number(competitor["max_abs_diff"], lambda n: f"{n:.1e}"),
            _number(competitor["limit"], lambda n: f"{n:.1e}"),
            competitor["verdict"],
        )
        name = competitor["name"]
        if not competitor["timings"]:
            result.append((name, *[""] * 6, *about))
        for row in competitor["timings"]:
            times = [_interval(Interval(**row["seconds"][q]).times(1e3), 3) for q in QUANTILES]
            of_direct = row["time_of_direct"]
            ratio = _interval(Interval(**of_direct), 3) if of_direct else ""
            shown = (str(row["batch"]), *times, f"{row['images_per_second']:,.0f}", ratio)
            result.append((name, *shown, *about))
            name, about = "", ("", "", "", "", "")
    return result


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a table does not hold: the control, and why somebody did not pass."""
    lines = []
    for competitor in found["competitors"]:
        if competitor["name"] == CONTROL:
            said = ", ".join(
                f"{_interval(Interval(**row['time_of_direct']), 3)} at batch {row['batch']}"
                for row in competitor["timings"]
                if row["time_of_direct"]
            )
            lines.append(f"control: the direct file against itself takes {said}")
        elif competitor["why"]:
            lines.append(f"{competitor['name']} {competitor['verdict']}: {competitor['why']}")
    return lines


def lines(found: Mapping[str, Any]) -> str:
    """A model's table for a terminal, what it does not hold, and a verdict."""
    passed = found["passed"]
    verdict = terminal.styled("PASSED", "green") if passed else terminal.styled("FAILED", "red")
    title = f"{found['model']}: weights {found['weights']}, {found['images']:,} images of {found['data']}"
    return "\n".join([title, terminal.table(HEADER, rows(found)), *notes(found), verdict])


def check_name(path: Path) -> None:
    """Raise InvalidInput for a report whose format is unknown, or that cannot be there."""
    if path.suffix not in FORMATS:
        raise InvalidInput(
            f"unknown format of a report {path.suffix!r}", str(path), nearest(path.suffix, FORMATS)
        )
    if not path.parent.is_dir():
        raise InvalidInput("no such folder", str(path.parent), "make it first")


def rendered(path: Path, found: Sequence[Mapping[str, Any]]) -> bytes:
    """All models in the format that the file's suffix names."""
    if path.suffix == ".json":
        return (json.dumps(list(found), indent=1) + "\n").encode()
    return "\n".join(_markdown(each) for each in found).encode()


def _markdown(found: Mapping[str, Any]) -> str:
    about = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    table = [HEADER, tuple("---" for _ in HEADER), *rows(found)]
    return "\n".join(
        [
            f"## {found['model']}",
            "",
            f"Weights {found['weights']}, {found['images']:,} images of {found['data']}; "
            f"{about['processor']}, {about['threads']} threads; {versions}. In brackets: 95 % intervals.",
            "",
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table),
            "",
            *(f"- {line.replace('|', chr(92) + '|')}" for line in notes(found)),
            "",
        ]
    )


def _number(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else form(value)


def _interval(found: Interval, digits: int) -> str:
    """Such as 0.031 (0.030-0.033): as many digits as the smaller numbers need."""
    places = max(0, digits - 1 - math.floor(math.log10(found.value))) if found.value > 0 else digits
    return f"{found.value:.{places}f} ({found.low:.{places}f}-{found.high:.{places}f})"
