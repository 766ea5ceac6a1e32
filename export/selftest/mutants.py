"""Mutants: a model's honest witnesses with one of them replaced by a faulty one.

A place is where the fault sits: in the direct export ("export"), in a framework's own export ("torch
exporter"), in what a backend was given or in its code ("torch"), in the judge ("reference"), or in an ONNX
file of the zoo that was altered and sealed anew ("file"). The name of the place is the side that the
cross-check has to suspect.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from backends.planting import FAULTS as PLANTED
from backends.planting import FRAMEWORKS, planted_in
from backends.process.client import RemoteNetwork, Worker
from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.crosscheck import (
    DIRECT,
    EVALUATOR,
    JUDGE,
    EvaluatorWitness,
    GraphWitness,
    Judgement,
    Verdict,
    examine,
    judge,
    logit_path,
    native_name,
    second_opinion,
    verify,
)
from export.crosscheck.claims import held
from export.crosscheck.graphs import expose, layer_tensors
from export.crosscheck.inputs import batch_sizes
from export.crosscheck.witnesses import OPERATORS
from export.onnx.file import serialize
from export.onnx.graph import INPUT, to_onnx
from export.onnx.native import canonicalize
from export.selftest import faults
from export.selftest.faults import Change, changes
from export.selftest.graph_faults import FILE, FROZEN, OCCASIONS, graphs, occasional, reweighed
from export.selftest.graph_faults import names as graph_names
from zoo.errors import DataError, InvalidSpec, NotSupported, WorkerDied
from zoo.layers import Softmax
from zoo.model import Model
from zoo.weights import Weights

OVERWRITES = "code: overwrites its input"
IN_FILE = "file"  # the place of faults of a file that is the zoo's own
FEW = 6  # images for onnx's evaluator
# The same in float64 up to 709, in float32 up to 88; right in a first call.
CERTAIN = (
    "softmax without its maximum",
    "code: softmax without its maximum",
    "code: output of the call before",
)

Array = np.ndarray
Outputs = Callable[[Array], Array]
Batches = bool | Sequence[int]  # see examine


@dataclass(frozen=True)
class Mutant:
    """One fault in one place of one model.

    culprits: the layers any of which is rightly blamed; none where it is no layer's fault. verdicts: of the
    faulty witnesses, by name; the others of the model stay honest. outputs: of the faulty side, for images.
    exact: the same in float64. original: what that side would give in float64 without the fault, where it is
    not what the judge gives: a file holds some of its constants in float32. shows: images for which it shows,
    where it does not for any. certain: it is a fault whatever it computes in float64.
    """

    fault: str
    model: str
    place: str
    culprits: frozenset[str]
    verdicts: Callable[[], dict[str, Verdict]]
    outputs: Outputs
    exact: Outputs
    original: Outputs | None = None
    shows: Array | None = None
    certain: bool = False


@dataclass
class Subject:
    """A model with its weights and everything that is honest about it.

    workers: by backend. native: the canonical exports, by backend. records: what honest sides that know
    nothing of each other gave, for another judge.
    """

    model: Model
    weights: Weights
    judgement: Judgement
    proto: ModelProto
    workers: Mapping[str, Worker]
    native: dict[str, ModelProto]
    honest: dict[str, Verdict]
    records: dict[str, Record]


@dataclass(frozen=True)
class Record:
    """What a witness gave for the judgement's images, and for those whose layers are compared; a Witness as
    well."""

    images: Array
    outputs: Array
    mixed: Array
    layers: dict[str, Array]

    def predict(self, images: Array) -> Array:
        """The outputs as they were given."""
        return self.outputs if images is self.images else self.mixed

    def activations(self, images: Array) -> dict[str, Array]:
        """The layers' outputs as they were given."""
        return self.layers


def _record(witness: GraphWitness | RemoteNetwork, judgement: Judgement) -> Record:
    mixed = judgement.layer_images
    return Record(
        judgement.images,
        witness.predict(judgement.images),
        witness.predict(mixed),
        witness.activations(mixed),
    )


def subject(model: Model, weights: Weights, images: Array, workers: Mapping[str, Worker]) -> Subject:
    """Judge a model and hear its honest witnesses. images: float32 (N, C, H, W) in [0, 1]."""
    judgement = judge(model, weights, images)
    proto = to_onnx(model, weights)
    found = Subject(model, weights, judgement, proto, workers, {}, {}, {})
    found.honest = _of_graph(proto, judgement)
    content = proto.SerializeToString(deterministic=True)
    found.records[DIRECT] = _record(GraphWitness(content, model), judgement)
    for name, worker in workers.items():
        network = worker.build(model, weights)
        found.honest[name] = _of_network(name, network, judgement, batches=True)
        found.records[name] = _record(network, judgement)
        raw = network.export_native()
        if not isinstance(raw, NotSupported):
            found.native[name] = canonicalize(raw, model, weights)
            found.honest |= _of_native(name, found.native[name], judgement)
    return found


def mutants(subject: Subject) -> Iterator[Mutant]:
    """Every mutant of a model: each fault in each place where it applies.

    In graphs every layer that can have a fault gets it; in backends and frameworks' exports one layer
    does, another one for each fault, because they take longer. Of a small fault, one of these has it.
    """
    for number, fault in enumerate(faults.names()):
        yield from _in_export(subject, fault)
        others: list[Iterator[Mutant]] = []
        for name in subject.workers:
            others.append(_in_backend(subject, fault, name, number))
            others.append(_in_native(subject, fault, name, number))
        if subject.workers:  # without sides that know nothing of each other, nobody could tell
            others.append(_in_judge(subject, fault, number))
        turn = (number + len(subject.model.name)) % max(1, len(others))
        for other in others[turn : turn + 1] if fault in faults.SMALL else others:
            yield from other
    for fault in graph_names():
        for proto, path in graphs(fault, subject.proto, subject.model):
            yield _graph_mutant(subject, fault, proto, frozenset((path,)), certain=fault in CERTAIN)
        if subject.model.labels and fault in OCCASIONS:
            yield _occasional(subject, fault)
        if subject.model.labels and fault in FILE:
            content = serialize(FILE[fault](subject.proto, subject.model, subject.weights))
            if content != serialize(subject.proto):  # it may say so already
                yield _in_file(subject, fault, content)
    for name in (name for name in subject.workers if name in FRAMEWORKS):
        for fault in planted_in(name):
            yield from _in_code(subject, fault, name)


def _changes(subject: Subject, fault: str) -> list[Change]:
    return list(changes(fault, subject.model, subject.weights))


def _one(subject: Subject, fault: str, number: int) -> list[tuple[Model, Weights, frozenset[str]]]:
    """One of the places of a fault of weights or spec, by number."""
    found = [
        (change.model, change.weights, change.culprits)
        for change in _changes(subject, fault)
        if change.model is not None
    ]
    return found[number % len(found) :][:1] if found else []


def _in_export(subject: Subject, fault: str) -> Iterator[Mutant]:
    for change in _changes(subject, fault):
        model, weights = change.model, change.weights
        if model is None:
            yield _impossible(subject, fault, change.culprits)
        elif model is subject.model:
            yield _graph_mutant(subject, fault, reweighed(subject.proto, weights), change.culprits)
        elif model.output == subject.model.output:
            yield _graph_mutant(subject, fault, to_onnx(model, weights), change.culprits)


def _impossible(subject: Subject, fault: str, culprits: frozenset[str]) -> Mutant:
    """A fault that leaves layers which do not fit together: nobody can even build them."""

    def nobody(images: Array) -> Array:
        raise InvalidSpec("the shapes of the layers do not fit together")

    verdicts = {DIRECT: Verdict(DIRECT, error="the shapes of the layers do not fit together")}
    return Mutant(fault, subject.model.name, "export", culprits, lambda: verdicts, nobody, nobody)


def _graph_mutant(
    subject: Subject, fault: str, proto: ModelProto, culprits: frozenset[str], certain: bool = False
) -> Mutant:
    content = proto.SerializeToString(deterministic=True)

    def outputs(images: Array) -> Array:
        return GraphWitness(content, subject.model).predict(images)

    return Mutant(
        fault,
        subject.model.name,
        "export",
        culprits,
        lambda: _of_graph(proto, subject.judgement),
        outputs,
        outputs if fault == FROZEN else _in_double(proto),  # onnx itself takes any batch
        _in_double(subject.proto),
        certain=certain,
    )


def _occasional(subject: Subject, fault: str) -> Mutant:
    """A fault at the logits for some images or batches alone."""
    model, path = subject.model, logit_path(subject.model)
    occasion = OCCASIONS[fault]
    proto = occasional(fault, subject.proto, model, path)
    # in larger batches than are looked into layer by layer, none can be named
    culprits = frozenset((path,) if "above" not in fault else ())
    mutant = _graph_mutant(subject, fault, proto, culprits)
    sizes = batch_sizes(model)

    def exact(images: Array) -> Array:
        logits = subject.judgement.network.activations(images)[path].copy()
        logits[:, :1] += occasion.add(images)
        return apply(Softmax(), logits, {}) if model.output == "probabilities" else logits

    return replace(
        mutant,
        verdicts=lambda: _of_graph(proto, subject.judgement, sizes),
        exact=exact,
        shows=occasion.images(model),
    )


def _in_file(subject: Subject, fault: str, content: bytes) -> Mutant:
    """A file of the zoo with other constants or metadata, under hashes that fit them."""
    judgement = subject.judgement

    def verdicts() -> dict[str, Verdict]:
        report = verify(subject.model, subject.weights, [], judgement.images, files={"file": content})
        return {verdict.witness: verdict for verdict in report.verdicts if verdict.witness.startswith("file")}

    def outputs(images: Array) -> Array:
        return GraphWitness(content, subject.model).predict(images)

    return Mutant(
        fault,
        subject.model.name,
        IN_FILE,
        frozenset(node.path for node in subject.model.walk() if node.parameters),
        verdicts,
        outputs,
        _in_double(onnx.load_from_string(content)),
        _in_double(subject.proto),
        certain=True,
    )


def _in_native(subject: Subject, fault: str, name: str, number: int) -> Iterator[Mutant]:
    if name not in subject.native:
        return
    for model, weights, culprits in _one(subject, fault, number):
        if model is subject.model:
            proto = reweighed(subject.native[name], weights)
            content = proto.SerializeToString(deterministic=True)
            if content == reweighed(subject.native[name], {}).SerializeToString(deterministic=True):
                continue  # the exporter has folded these weights into others
            yield Mutant(
                fault,
                subject.model.name,
                f"{name} exporter",
                culprits,
                lambda proto=proto: _of_native(name, proto, subject.judgement),  # type: ignore[misc]
                lambda images, content=content: GraphWitness(content, subject.model).predict(images),  # type: ignore[misc]
                ReferenceNetwork(model, weights).predict,
            )


def _in_backend(subject: Subject, fault: str, name: str, number: int) -> Iterator[Mutant]:
    worker = subject.workers[name]
    for model, weights, culprits in _one(subject, fault, number + 1):

        def build(model: Model = model, weights: Weights = weights) -> RemoteNetwork:
            return worker.build(model, weights)

        yield Mutant(
            fault,
            subject.model.name,
            name,
            culprits,
            lambda build=build: {name: _of_network(name, build(), subject.judgement)},  # type: ignore[misc]
            lambda images, build=build: build().predict(images),  # type: ignore[misc]
            ReferenceNetwork(model, weights).predict,
        )


def _in_code(subject: Subject, fault: str, name: str) -> Iterator[Mutant]:
    kind, *_ = PLANTED[fault]
    places = frozenset(node.path for node in subject.model.walk() if isinstance(node.layer, kind))
    if not places:
        return
    if fault == OVERWRITES:  # seen in the layer whose output is written over
        places |= {path for node in subject.model.walk() if node.path in places for path in node.inputs}
    worker = subject.workers[name]
    sizes: Batches = batch_sizes(subject.model) if "batch" in fault else True

    def faulty(dtype: str, use: Callable[[RemoteNetwork], Any]) -> Any:
        worker.ask("plant", fault=fault)
        try:
            return use(worker.build(subject.model, subject.weights, dtype))
        finally:
            worker.ask("plant", fault="")

    def verdicts() -> dict[str, Verdict]:
        try:
            return {
                name: faulty("float32", lambda network: _of_network(name, network, subject.judgement, sizes))
            }
        except WorkerDied as error:  # the faulty code cannot even be built
            return {name: Verdict(name, error=str(error))}

    yield Mutant(
        fault,
        subject.model.name,
        name,
        places,
        verdicts,
        lambda images: faulty("float32", lambda network: network.predict(images)),
        lambda images: faulty("float64", lambda network: network.predict(images)),
        shows=_occasion(fault, subject.model),
        certain=fault in CERTAIN,
    )


def _occasion(fault: str, model: Model) -> Array | None:
    """The images for which a fault of code shows, where it does not for any."""
    size = fault.partition("in a batch of ")[2]
    return OCCASIONS[f"batch of {size}: 1 more on a logit"].images(model) if size else None


def _in_judge(subject: Subject, fault: str, number: int) -> Iterator[Mutant]:
    """The judge computes another model than it should: every witness disagrees, and all agree."""
    for model, weights, culprits in _one(subject, fault, number + 2):
        same_shapes = [n.output_shape for n in model.walk()] == [n.output_shape for n in subject.model.walk()]
        if not same_shapes or model.output != subject.model.output:
            continue

        def verdicts(model: Model = model, weights: Weights = weights) -> dict[str, Verdict]:
            right = subject.judgement
            wrong = judge(model, weights, right.images, inside=right.layer_images)
            return {
                name: examine(name, record, wrong, record.activations)
                for name, record in subject.records.items()
            }

        yield Mutant(
            fault,
            subject.model.name,
            JUDGE,
            culprits,
            verdicts,
            lambda images, model=model, weights=weights: ReferenceNetwork(model, weights).predict(images),  # type: ignore[misc]
            ReferenceNetwork(model, weights).predict,
        )


def _of_graph(proto: ModelProto, judgement: Judgement, batches: Batches = True) -> dict[str, Verdict]:
    """The verdicts on a direct export: in onnxruntime, and in onnx itself."""
    content = proto.SerializeToString(deterministic=True)
    found = {DIRECT: _heard(DIRECT, content, judgement, batches)}
    witness = EvaluatorWitness(_with_layers(proto, judgement.model), judgement.model)
    few = judgement.few_layers(FEW).first(FEW // 2)
    found[EVALUATOR] = examine(EVALUATOR, witness, few, witness.activations, alone=witness.alone)
    if found[EVALUATOR].passed and not found[DIRECT].passed:  # a few images may not show it
        shown = _with_layers(proto, judgement.model)
        found[EVALUATOR] = second_opinion(shown, judgement, failed=found[DIRECT])
    return found


def _of_native(name: str, proto: ModelProto, judgement: Judgement) -> dict[str, Verdict]:
    """The verdict on a framework's own export."""
    witness = native_name(name)
    return {witness: _heard(witness, proto.SerializeToString(deterministic=True), judgement)}


def _heard(name: str, content: bytes, judgement: Judgement, batches: Batches = True) -> Verdict:
    try:
        witness = GraphWitness(content, judgement.model)
    except DataError as error:
        return Verdict(name, error=str(error))
    return examine(
        name,
        witness,
        judgement,
        witness.activations,
        witness.logits,
        witness.alone,
        batches=batches,
        sparse=True,
        partial=True,
    )


def _of_network(name: str, network: RemoteNetwork, judgement: Judgement, batches: Batches = False) -> Verdict:
    """The verdict on a backend's network; batches of other sizes only where code may depend on them."""
    verdict = examine(name, network, judgement, network.activations, alone=network.alone, batches=batches)
    if verdict.judged:
        verdict.untrue = held(judgement.weights, network.weights())
    return verdict


def _with_layers(proto: ModelProto, model: Model) -> bytes:
    return expose(proto, layer_tensors(proto, model).values())


def _in_double(proto: ModelProto) -> Outputs:
    """What a graph computes in float64, in onnx's own implementation."""
    exact = ModelProto()
    exact.CopyFrom(proto)
    for tensor in exact.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
            )
    for value in (*exact.graph.input, *exact.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in exact.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE

    def outputs(images: Array) -> Array:
        with np.errstate(all="ignore"), warnings.catch_warnings():  # a fault may compute nonsense
            warnings.simplefilter("ignore", RuntimeWarning)
            evaluator = ReferenceEvaluator(exact, new_ops=OPERATORS)
            outputs = evaluator.run(None, {INPUT: images.astype(np.float64)})
        return np.asarray(list(outputs)[0])  # noqa: RUF015  a list or a dict, says onnx's signature

    return outputs
