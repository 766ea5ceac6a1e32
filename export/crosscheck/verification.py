"""All witnesses of a model before the judge: backends, their exports, the direct export, files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

import backends
from backends.process.client import RemoteNetwork, Worker, Workers
from export.crosscheck.claims import check, held
from export.crosscheck.examination import examine
from export.crosscheck.inputs import LAYER_IMAGES, batch_sizes, probe_count, probes
from export.crosscheck.judgement import JUDGE, Judgement, judge
from export.crosscheck.local import Excuse
from export.crosscheck.search import search as look_for_the_worst
from export.crosscheck.verdict import (
    DIRECT,
    EVALUATOR,
    PLAIN,
    Report,
    Verdict,
    native_name,
)
from export.crosscheck.witnesses import EVALUATOR_IMAGES, EvaluatorWitness, GraphWitness
from export.onnx.file import serialize
from export.onnx.graph import to_layers_onnx, to_onnx
from export.onnx.native import canonicalize
from zoo.errors import (
    BackendUnavailable,
    DataError,
    InvalidInput,
    MachineError,
    NotSupported,
    ZooError,
    nearest,
)
from zoo.model import Model

AtWork = Callable[[str], None]


def _silent(witness: str) -> None:
    """Tell nobody who is at work."""


@dataclass(frozen=True)
class Depth:
    """How much is asked of each witness, beside outputs, logits, decisions and layers.

    batches: their sizes; True for a few. isolated: every layer alone; without it the culprit only. layers:
    nothing but these. second_opinion: how many images onnx's own implementation gets. search: seconds
    for each witness. seed: of what is drawn for it.
    """

    batches: bool | tuple[int, ...] = ()
    isolated: bool = False
    layers: tuple[str, ...] = ()
    second_opinion: int = EVALUATOR_IMAGES
    search: float = 0.0
    seed: int = 0


def verify(
    model: Model,
    weights: Mapping[str, np.ndarray],
    backends: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    threads: int | None = None,
    files: Mapping[str, bytes] | None = None,
    isolated: bool = False,
    layers: Sequence[str] = (),
    thorough: bool = False,
    at_work: AtWork = _silent,
    workers: Workers | None = None,
    inputs_seed: int = 0,
    search: float = 0.0,
) -> Report:
    """Hold backends, their own ONNX exports and the direct export to the float64 reference.

    backends: names, each run in its own process; default: all that are installed. images: float32
    (N, C, H, W) in [0, 1]; default: noise and asymmetric probes. files: ONNX files that
    claim to compute the model, by name; each is run as it is, and what it says of
    itself must be true. isolated: run every layer by itself as
    well. layers: look at these only, each also by itself. thorough: isolated, with the slow witnesses, and
    more images for onnx's own implementation. at_work: told the name of each witness before it is
    heard. workers: running ones, for several models. inputs_seed: of what is drawn: noise, pixels, greys,
    scales, sizes of batches, steps of the search. search: seconds in which each backend and file, all
    together, is searched for an image on which it fails (export.crosscheck.search). A witness that crashes is
    reported and fails; the rest goes on. Raises BackendUnavailable for a backend that is named, DataError,
    InvalidInput, UnsupportedLayer.
    """
    started = time.perf_counter()
    check_layers(model, layers)
    names = list(witness_names(thorough) if backends is None else backends)
    images = (
        probes(model, probe_count(model), inputs_seed)
        if images is None
        else np.ascontiguousarray(images, dtype=np.float32)
    )
    if layers:  # these are compared on a few of the images only
        images = images[:LAYER_IMAGES]
    few = LAYER_IMAGES if thorough else EVALUATOR_IMAGES
    names = [name for name in names if name != JUDGE]
    depth = Depth(
        batches=batch_sizes(model, inputs_seed),
        isolated=isolated or thorough,
        layers=tuple(layers),
        second_opinion=few,
        search=0.0 if layers else search / (1 + len(files or {}) + 2 * len(names)),
        seed=inputs_seed,
    )
    with nullcontext(workers) if workers else Workers(threads) as running:
        running.start(names)  # they import their frameworks meanwhile
        at_work(JUDGE)
        judgement = judge(model, weights, images, inputs_seed)
        at_work(DIRECT)
        report = check_direct(model, weights, judgement, depth)
        at_work(EVALUATOR)
        opinion = second_opinion(report.layers_onnx, judgement, depth)
        direct = report.verdict(DIRECT)
        if opinion.passed and not direct.passed:  # a few images may not show what it found
            opinion = second_opinion(report.layers_onnx, judgement, depth, direct)
        report.verdicts.append(opinion)
        for name, content in (files or {}).items():
            if content == report.layers_onnx:
                continue  # the direct export was looked into through it
            at_work(name)
            _check_graph(name, content, judgement, depth, report, foreign=True)
            claims = check(content, model, weights, report.onnx, report.layers_onnx)
            report.verdict(name).untrue, report.verdict(name).notes = claims
        for name in names:
            with running.use(name) as worker:
                _check_backend(worker, weights, judgement, depth, report, at_work, backends is not None)
    report.inputs_seed = inputs_seed
    report.seconds = time.perf_counter() - started
    return report


def check_layers(model: Model, paths: Sequence[str]) -> None:
    """Raise InvalidInput for a path that is no layer of the model."""
    known = [node.path for node in model.walk()]
    for path in paths:
        if path not in known:
            raise InvalidInput(f"{model.title} has no layer {path!r}", "--layer", nearest(path, known))


def _check_backend(
    worker: Worker,
    weights: Mapping[str, np.ndarray],
    judgement: Judgement,
    depth: Depth,
    report: Report,
    at_work: AtWork,
    wanted: bool,
) -> None:
    """Add the verdicts on a backend, whatever becomes of its process.

    wanted: it was asked for by name, so it is an error if it cannot be used.
    """
    name = worker.backend
    at_work(name)
    try:
        network = worker.build(judgement.model, weights)
        check_network(name, network, weights, judgement, report, depth, at_work)
    except NotSupported as reason:
        report.verdicts.append(Verdict(name, backend=name, skipped=str(reason)))
    except BackendUnavailable as error:
        if wanted:
            raise
        report.verdicts.append(Verdict(name, backend=name, skipped=str(error)))
    except ZooError as error:
        killed = isinstance(error, MachineError) and _is_dead(worker)
        if error.code != 70 and not killed:
            raise
        heard = name in {verdict.witness for verdict in report.verdicts}
        report.verdicts.append(Verdict(native_name(name) if heard else name, backend=name, error=str(error)))


def _is_dead(worker: Worker) -> bool:
    """Whether a worker answers no more; one that met a full disk still does."""
    try:
        worker.versions()
    except ZooError:
        return True
    return False


def witness_names(thorough: bool = False) -> list[str]:
    """The backends that verify asks when none is named: all that train, and Keras' other engines.

    thorough: the slow ones as well, which compile the whole network.
    """
    names = [*backends.training_names(), *backends.variant_names()]
    return [name for name in names if thorough or not backends.is_slow(name)]


def check_direct(
    model: Model, weights: Mapping[str, np.ndarray], judgement: Judgement, depth: Depth | None = None
) -> Report:
    """A report with the verdicts on the direct export: on all images, and without optimisations."""
    depth = depth or Depth()
    content = serialize(to_onnx(model, weights))
    layers = serialize(to_layers_onnx(model, weights))
    report = Report(
        model.title,
        model.parameters,
        len(judgement.images),
        [],
        len(judgement.layer_images),
        onnx=content,
        layers_onnx=layers,
        layers=list(depth.layers),
    )
    _check_graph(DIRECT, content, judgement, depth, report, layers)
    return report


def second_opinion(
    layers_onnx: bytes, judgement: Judgement, depth: Depth | None = None, failed: Verdict | None = None
) -> Verdict:
    """The verdict on the direct graph in onnx's own implementation, on a few images.

    failed: what onnxruntime said of it; it is then asked about all that can show the same.
    """
    depth = depth or Depth()
    count = LAYER_IMAGES if failed else depth.second_opinion
    few = judgement.few_layers(count).first(count)
    try:
        witness = EvaluatorWitness(layers_onnx, judgement.model)
    except Exception as error:  # whatever onnx says of a graph that is none
        return Verdict(EVALUATOR, error=f"onnx.reference refuses the graph: {type(error).__name__}: {error}")
    return examine(
        EVALUATOR,
        witness,
        few,
        witness.activations,
        alone=witness.alone,
        batches=failed.failed_batch if failed else (),
        sparse=failed is not None,
        only=depth.layers,
    )


def check_network(
    name: str,
    network: RemoteNetwork,
    weights: Mapping[str, np.ndarray],
    judgement: Judgement,
    report: Report,
    depth: Depth | None = None,
    at_work: AtWork = _silent,
) -> None:
    """Add the verdicts on a backend's network and on its native export to a report.

    The reference, being the judge, gets none.
    """
    depth = depth or Depth()
    model = network.model
    if name == JUDGE:
        report.verdicts.append(
            Verdict(native_name(name), backend=name, skipped="the reference has no ONNX exporter")
        )
        return
    verdict = examine(
        name,
        network,
        judgement,
        network.activations,
        alone=network.alone,
        batches=depth.batches,
        isolated=depth.isolated,
        only=depth.layers,
    )
    verdict.backend = name
    if verdict.judged:
        verdict.untrue = held(weights, network.weights())
    _search(verdict, network, judgement, depth, partial=False)
    report.verdicts.append(verdict)
    witness = native_name(name)
    at_work(witness)
    try:
        raw = network.export_native()
        if isinstance(raw, NotSupported):
            report.verdicts.append(Verdict(witness, backend=name, skipped=str(raw)))
            return
        canonical = serialize(canonicalize(raw, model, weights))
    except MachineError:
        raise  # a full disk says nothing about the network
    except ZooError as error:
        report.verdicts.append(Verdict(witness, backend=name, error=str(error)))
        return
    report.native[name] = canonical
    _check_graph(witness, canonical, judgement, depth, report)
    for graph in report.verdicts:
        if graph.witness in (witness, f"{witness}{PLAIN}"):
            graph.backend = name
    found, direct = report.verdict(witness), report.verdict(DIRECT).outputs
    if found.outputs is not None and direct is not None:
        found.identical = bool(np.array_equal(found.outputs, direct))


def _check_graph(
    name: str,
    content: bytes,
    judgement: Judgement,
    depth: Depth,
    report: Report,
    layers: bytes | None = None,
    foreign: bool = False,
) -> None:
    """Add the verdicts on an ONNX file in onnxruntime, optimised and as it is written.

    The second is on the first images only. A file that onnxruntime cannot load fails. foreign: it may be
    anybody's, see export.inference.session.Session.
    """
    few = judgement.first(len(judgement.layer_images))
    batches = depth.batches
    for witness_name, optimize, seen in ((name, True, judgement), (f"{name}{PLAIN}", False, few)):
        try:
            witness = GraphWitness(content, judgement.model, optimize, layers, foreign)
        except DataError as error:
            report.verdicts.append(Verdict(witness_name, error=str(error)))
            return
        verdict = examine(
            witness_name,
            witness,
            seen,
            witness.activations,
            witness.logits if name == DIRECT else None,  # others tell them for the layers' images
            witness.alone,
            batches=batches,
            isolated=depth.isolated,
            sparse=optimize,
            partial=layers is None,
            only=depth.layers,
        )
        batches = verdict.failed_batch  # the graph as it is written is asked about that only
        if optimize:
            _search(verdict, witness, judgement, depth, partial=layers is None)
        report.verdicts.append(verdict)


def _search(
    verdict: Verdict, witness: RemoteNetwork | GraphWitness, judgement: Judgement, depth: Depth, partial: bool
) -> None:
    """Look for an image on which a witness fails that has passed so far."""
    if not depth.search or not verdict.judged or not verdict.passed:
        return
    started = time.perf_counter()
    excuse = Excuse(judgement.network, witness.activations, witness.alone, partial)
    try:
        verdict.search = look_for_the_worst(witness, judgement, depth.search, depth.seed, excuse.factors)
    except MachineError:
        raise
    except ZooError as error:
        verdict.error = str(error)
    verdict.seconds += time.perf_counter() - started
