"""All witnesses of a model before the judge: backends, their exports, the direct export, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import backends
from backends.client import RemoteNetwork, Worker
from export.crosscheck.examination import examine
from export.crosscheck.inputs import probes
from export.crosscheck.judgement import JUDGE, Judgement, judge
from export.crosscheck.verdict import (
    DIRECT,
    EVALUATOR,
    PLAIN,
    Report,
    Verdict,
    native_name,
)
from export.crosscheck.witnesses import EVALUATOR_IMAGES, EvaluatorWitness, GraphWitness
from export.graph import serialize, to_layers_onnx, to_onnx
from export.native import canonicalize
from zoo.errors import DataError, MachineError, NotSupported, ZooError
from zoo.model import Model


@dataclass(frozen=True)
class Depth:
    """How much is asked of each witness, beside outputs, logits, decisions and layers.

    batches: batches of several sizes. isolated: every layer alone; without it the culprit only.
    """

    batches: bool = False
    isolated: bool = False


def verify(
    model: Model,
    weights: Mapping[str, np.ndarray],
    backends: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    threads: int | None = None,
    files: Mapping[str, bytes] | None = None,
    isolated: bool = False,
) -> Report:
    """Hold backends, their own ONNX exports and the direct export to the float64 reference.

    backends: names, each run in its own process; default: all that are installed. images: float32
    (N, C, H, W) in [0, 1]; default: seeded noise and asymmetric probes. files: ONNX files that
    claim to compute the model, by name; each is run as it is. isolated: run every layer by itself as
    well. A witness that crashes is reported and fails; the rest goes on. Raises BackendUnavailable,
    DataError, UnsupportedLayer.
    """
    names = list(witness_names() if backends is None else backends)
    images = probes(model) if images is None else np.ascontiguousarray(images, dtype=np.float32)
    depth = Depth(batches=True, isolated=isolated)
    judgement = judge(model, weights, images)
    report = check_direct(model, weights, judgement, depth)
    report.verdicts.append(second_opinion(report.layers_onnx, judgement))
    for name, content in (files or {}).items():
        _check_file(name, content, judgement, depth, report)
    for name in names:
        if name == JUDGE:
            continue
        with Worker(name, threads) as worker:
            try:
                network = worker.build(model, weights)
            except NotSupported as reason:
                report.verdicts.append(Verdict(name, skipped=str(reason)))
                continue
            except ZooError as error:
                if error.code != 70:
                    raise
                report.verdicts.append(Verdict(name, error=str(error)))
                continue
            check_network(name, network, weights, judgement, report, depth)
    return report


def witness_names(thorough: bool = False) -> list[str]:
    """The backends that verify asks when none is named: all that train, and Keras' other engines.

    thorough: the slow ones as well, which compile the whole network.
    """
    names = [*backends.training_names(), *backends.inference_names()]
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
    )
    _check_graph(DIRECT, content, judgement, depth, report, layers)
    return report


def second_opinion(layers_onnx: bytes, judgement: Judgement) -> Verdict:
    """The verdict on the direct graph in onnx's own implementation, on a few images."""
    count = min(EVALUATOR_IMAGES, len(judgement.images))
    few = judgement.few_layers(EVALUATOR_IMAGES).first(count)
    witness = EvaluatorWitness(layers_onnx, judgement.model)
    return examine(EVALUATOR, witness, few, witness.activations)


def check_network(
    name: str,
    network: RemoteNetwork,
    weights: Mapping[str, np.ndarray],
    judgement: Judgement,
    report: Report,
    depth: Depth | None = None,
) -> None:
    """Add the verdicts on a backend's network and on its native export to a report.

    The reference, being the judge, gets none.
    """
    depth = depth or Depth()
    model = network.model
    if name == JUDGE:
        report.verdicts.append(Verdict(native_name(name), skipped="the reference has no ONNX exporter"))
        return
    verdict = examine(
        name,
        network,
        judgement,
        network.activations,
        alone=network.alone,
        batches=depth.batches,
        isolated=depth.isolated,
    )
    report.verdicts.append(verdict)
    witness = native_name(name)
    try:
        raw = network.export_native()
        if isinstance(raw, NotSupported):
            report.verdicts.append(Verdict(witness, skipped=str(raw)))
            return
        canonical = serialize(canonicalize(raw, model, weights))
        GraphWitness(canonical, model)
    except MachineError:
        raise  # a full disk says nothing about the network
    except ZooError as error:
        report.verdicts.append(Verdict(witness, error=str(error)))
        return
    report.native[name] = canonical
    _check_graph(witness, canonical, judgement, depth, report)
    found, direct = report.verdict(witness), report.verdict(DIRECT).outputs
    if found.outputs is not None and direct is not None:
        found.identical = bool(np.array_equal(found.outputs, direct))


def _check_file(name: str, content: bytes, judgement: Judgement, depth: Depth, report: Report) -> None:
    try:
        _check_graph(name, content, judgement, depth, report)
    except DataError as error:
        report.verdicts.append(Verdict(name, error=str(error)))


def _check_graph(
    name: str,
    content: bytes,
    judgement: Judgement,
    depth: Depth,
    report: Report,
    layers: bytes | None = None,
) -> None:
    """Add the verdicts on an ONNX file in onnxruntime, optimised and as it is written.

    The second is on the first images only. Raises DataError if onnxruntime cannot load it.
    """
    few = judgement.first(len(judgement.layer_images))
    for witness_name, optimize, seen in ((name, True, judgement), (f"{name}{PLAIN}", False, few)):
        witness = GraphWitness(content, judgement.model, optimize, layers)
        report.verdicts.append(
            examine(
                witness_name,
                witness,
                seen,
                witness.activations,
                witness.logits if name == DIRECT else None,  # others tell them for the layers' images
                witness.alone,
                batches=depth.batches and optimize,
                isolated=depth.isolated,
                partial=layers is None,
            )
        )
