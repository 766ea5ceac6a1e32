"""One witness before the judge: outputs, logits and decisions, every layer, batches, the culprit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from export.crosscheck.comparison import Comparison, compare, decide, outer_limit, worst_of
from export.crosscheck.diagnosis import explain
from export.crosscheck.judgement import Judgement, judge_layers, logit_path
from export.crosscheck.local import Alone, Examined, usable
from export.crosscheck.verdict import Batches, LayerVerdict, Verdict
from export.crosscheck.witnesses import Witness
from zoo.errors import MachineError, ZooError
from zoo.model import IMAGE

BATCHES = (1, 2, 3, 7, 64)
ADDED = 4.0  # times what the witness's own layers add up to, for a few of the images in another batch
WORST = 8  # images that are looked at again

Activations = Callable[[np.ndarray], dict[str, np.ndarray]]


def examine(
    name: str,
    witness: Witness,
    judgement: Judgement,
    activations: Activations | None = None,
    logits: Callable[[np.ndarray], np.ndarray | None] | None = None,
    alone: Alone | None = None,
    batches: bool = False,
    isolated: bool = False,
    partial: bool = False,
    only: Collection[str] = (),
) -> Verdict:
    """Compare one witness with the judgement.

    activations: gives the layers' outputs by path, as far as the witness shows them. logits: gives the
    logits where predict gives probabilities; without it they are taken from activations, for the
    layers' images. alone: runs one layer by itself; it is asked for layers that are wrong or suspect, or for
    every layer if isolated. batches: also in batches of several sizes. partial: layers may be missing, and
    what is called a layer may be a part of a fused one. only: nothing but these layers counts; they are run
    alone as well. A witness that crashes gets a verdict as well; MachineError is raised.
    """
    verdict = Verdict(name, images=len(judgement.layer_images if only else judgement.images))
    started = time.perf_counter()
    try:
        if not only:
            verdict.outputs = witness.predict(judgement.images)
        inside = activations(judgement.layer_images) if activations else {}
        if activations and not partial:
            missing = np.empty(0, np.float32)
            inside = {path: inside.get(path, missing) for path in judgement.layers}
        examined = Examined(judgement.network, judgement.layer_images, judgement.layers, inside, partial)
        layers = examined.layers()
        layers = {path: layer for path, layer in layers.items() if not only or path in only}
        verdict.layers = examined.isolated(layers, alone, isolated or bool(only)) if alone else layers
        if only and not verdict.layers:
            verdict.skipped = f"it does not show {', '.join(only)}"
        if verdict.outputs is not None:
            excuse = _Excuse(judgement, activations, alone, partial)
            _outputs(verdict, judgement, verdict.outputs, logits, excuse)
            if batches and verdict.output is not None and not verdict.output.problem:
                verdict.batches = _batches(witness, judgement, excuse)
        if verdict.culprit is not None:
            verdict.diagnosis = _diagnosis(judgement, inside, verdict.culprit)
    except MachineError:
        raise
    except ZooError as error:
        verdict.error = str(error)
    verdict.seconds = time.perf_counter() - started
    return verdict


@dataclass
class _Excuse:
    """How much more than usual an output may differ, because a witness's own rounding adds up to that.

    Asked about images whose outputs are beyond the limit. It is an excuse if every layer that the witness
    shows for them is within its own bound, alone as well if it differs more than usual, and the last one is
    as far off as the output: so it is with sums of equal terms, for one.
    """

    judgement: Judgement
    activations: Activations | None
    alone: Alone | None
    partial: bool

    def factor(self, batch: np.ndarray, rows: np.ndarray, allowed: Mapping[str, np.ndarray]) -> float:
        """How many times `allowed` an output may differ; 1 without an excuse.

        batch: images (N, C, H, W) as the witness gets them. rows: those of them to look at. allowed: for
        these, by path of the last layer and of the one that gives the logits: (rows, ...).
        """
        if self.activations is None:
            return 1.0
        network = self.judgement.network
        inside = {path: x[rows] for path, x in self.activations(batch).items() if len(x) == len(batch)}
        expected = judge_layers(network, batch[rows])
        examined = Examined(network, batch[rows], expected, inside, self.partial)
        layers = examined.layers()
        if self.alone and all(layer.passed for layer in layers.values()):
            layers = examined.isolated(layers, self.alone)
        missing = (allowed if self.partial else expected).keys() - layers.keys()
        if missing or not all(v.passed and (v.usual <= 1 or v.alone) for v in layers.values()):
            return 1.0
        added = [compare(inside[path], expected[path].output, limit) for path, limit in allowed.items()]
        return max(1.0, ADDED * max(part.ratio for part in added))


def _outputs(
    verdict: Verdict,
    judgement: Judgement,
    outputs: np.ndarray,
    logits: Callable[[np.ndarray], np.ndarray | None] | None,
    excuse: _Excuse,
) -> None:
    """Judge what a witness gives, and decides, for all images."""
    values = logits(judgement.images) if logits and judgement.output == "probabilities" else None
    values = outputs if judgement.output == "logits" else values
    added = 1.0
    while True:
        verdict.output = _output(judgement, outputs, added)
        if verdict.output.problem:
            return
        if judgement.output != "features":
            verdict.decisions = decide(outputs, judgement.logits, added * judgement.decision_limit)
            verdict.logits = _logits(judgement, values, verdict.layers, added)
        parts = (verdict.output, verdict.decisions, verdict.logits)
        if added > 1 or all(part.passed for part in parts if part is not None):
            return
        rows = _worst(judgement, outputs, verdict)
        allowed = {logit_path(judgement.model): judgement.logit_limit[rows]} if judgement.model.labels else {}
        allowed[judgement.model.walk()[-1].path] = judgement.output_limit[rows]
        added = excuse.factor(judgement.images[rows], np.arange(len(rows)), allowed)
        if added == 1:
            return


def _worst(judgement: Judgement, outputs: np.ndarray, verdict: Verdict) -> list[int]:
    """The numbers of the images for which a witness is furthest off or decides otherwise."""
    apart = np.abs(outputs - judgement.outputs).reshape(len(outputs), -1).max(axis=1)
    chosen = set(np.argsort(apart)[-WORST:].tolist())
    chosen |= set(verdict.decisions.forbidden[:WORST]) if verdict.decisions else set()
    parts = [part for part in (verdict.output, verdict.logits) if part is not None and part.worst]
    return sorted(chosen | {part.worst[0] for part in parts if part.worst[0] < len(outputs)})


def _output(judgement: Judgement, outputs: np.ndarray, added: float) -> Comparison:
    """The outputs under the outer limit; beyond it under the derived one, if that is larger.

    It is where outputs are small differences of large terms, which float32 cannot hold better.
    """
    compared = compare(outputs, judgement.outputs)
    if compared.problem or compared.passed:
        return compared
    limit = np.maximum(outer_limit(judgement.outputs), added * judgement.output_limit)
    return compare(outputs, judgement.outputs, limit)


def _logits(
    judgement: Judgement, values: np.ndarray | None, layers: Mapping[str, LayerVerdict], added: float
) -> Comparison | None:
    """The logits under their own limit: of all images if they can be had, else of the layers' images."""
    if values is not None:
        return compare(values, judgement.logits, added * judgement.logit_limit)
    layer = layers.get(logit_path(judgement.model))
    return layer.judged[0] if layer and layer.judged else None


def _batches(witness: Witness, judgement: Judgement, excuse: _Excuse) -> Batches:
    """Image 0 first with the next images, then with the last ones: its row, and all, must not change."""
    images = judgement.layer_images
    last = judgement.layers[judgement.model.walk()[-1].path]
    whole = witness.predict(images)
    compared, identical = [], True
    for size in BATCHES:
        for others in (np.arange(1, size), np.arange(len(images) - size + 1, len(images))):
            rows = np.concatenate([[0], others % len(images)]).astype(int)
            got = witness.predict(images[rows])
            beside = compare(got, last.output[rows], last.limit[rows])
            if not beside.passed and not beside.problem:
                row = beside.worst[0]
                allowed = {judgement.model.walk()[-1].path: last.limit[rows][[row]]}
                added = excuse.factor(images[rows], np.array([row]), allowed)
                beside = compare(got, last.output[rows], added * last.limit[rows])
            compared.append(beside)
            identical = identical and np.array_equal(got, whole[rows])
    return Batches(BATCHES, worst_of(compared), identical)


def _diagnosis(judgement: Judgement, inside: Mapping[str, np.ndarray], culprit: str) -> str:
    """What the culprit's output looks like, given the input that the witness gave it."""
    tensors = {IMAGE: judgement.layer_images.astype(np.float64)}
    for node, weights in judgement.network.nodes:
        if node.path == culprit:
            own = judgement.layers[culprit].own.astype(np.float64)
            return explain(judgement.model, node, weights, node.take(tensors), inside[culprit], own)
        shown = inside.get(node.path)
        expected = judgement.layers[node.path].output
        tensors[node.path] = (
            shown.astype(np.float64) if shown is not None and usable(shown, expected) else expected
        )
    return ""
