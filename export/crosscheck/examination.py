"""One witness before the judge: outputs, logits and decisions, every layer, batches, the culprit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from export.crosscheck.comparison import Comparison, compare, decide, outer_limit, worst_key
from export.crosscheck.diagnosis import explain
from export.crosscheck.inputs import FEW_BATCHES, plain
from export.crosscheck.judgement import Judgement, logit_path
from export.crosscheck.local import Activations, Alone, Examined, Excuse, usable
from export.crosscheck.verdict import Batches, LayerVerdict, Probes, Verdict
from export.crosscheck.witnesses import Witness
from zoo.errors import MachineError, ZooError
from zoo.model import IMAGE

WORST = 8  # images that are looked at again
MANY = 10  # images of a batch from which on it is tried with one set of neighbours only


def examine(
    name: str,
    witness: Witness,
    judgement: Judgement,
    activations: Activations | None = None,
    logits: Callable[[np.ndarray], np.ndarray | None] | None = None,
    alone: Alone | None = None,
    batches: bool | Sequence[int] = (),
    isolated: bool = False,
    sparse: bool = False,
    partial: bool = False,
    only: Collection[str] = (),
) -> Verdict:
    """Compare one witness with the judgement.

    activations: gives the layers' outputs by path, as far as the witness shows them. logits: gives the
    logits where predict gives probabilities; without it they are taken from activations, for the
    layers' images. alone: runs one layer by itself; it is asked for layers that are wrong or suspect, for
    those with weights if sparse, or for every layer if isolated. batches: sizes of
    batches in which it is asked, too; True for a few. partial: layers may be missing, and
    what is called a layer may be a part of a fused one. only: nothing but these layers counts; they are run
    alone as well. A witness that crashes gets a verdict as well; MachineError is raised.
    """
    verdict = Verdict(name, images=len(judgement.layer_images if only else judgement.images))
    started = time.perf_counter()
    try:
        if not only:
            sizes = FEW_BATCHES if batches is True else tuple(batches or ())
            verdict.outputs, tried = _in_turn(witness, judgement, sizes)
            mixed = witness.predict(judgement.layer_images)
        inside = activations(judgement.layer_images) if activations else {}
        if activations and not partial:
            missing = np.empty(0, np.float32)
            inside = {path: inside.get(path, missing) for path in judgement.layers}
        examined = Examined(judgement.network, judgement.layer_images, judgement.layers, inside, partial)
        layers = examined.layers()
        layers = {path: layer for path, layer in layers.items() if not only or path in only}
        verdict.layers = examined.isolated(layers, alone, sparse, isolated or bool(only)) if alone else layers
        if only and not verdict.layers:
            verdict.skipped = f"it does not show {', '.join(only)}"
        if verdict.outputs is not None:
            excuse = Excuse(judgement.network, activations, alone, partial)
            values = logits(judgement.images) if logits and judgement.output == "probabilities" else None
            outer = outer_limit(judgement.outputs)
            found = _judged(judgement, verdict.outputs, values, verdict.layers, excuse, outer)
            verdict.output, verdict.logits, verdict.decisions = found.output, found.logits, found.decisions
            mixture = judgement.mixture
            limits = _row_limits(mixture.outputs)
            verdict.probes = _judged(mixture, mixed, None, verdict.layers, excuse, limits)
            if sizes and verdict.output is not None and not verdict.output.problem:
                verdict.batches = _batches(witness, judgement, sizes, mixed, tried, verdict, excuse)
            if not verdict.passed and verdict.culprit is None:
                verdict.layers |= excuse.wrong
        if verdict.culprit is not None:
            verdict.diagnosis = _diagnosis(judgement, inside, verdict.culprit)
    except MachineError:
        raise
    except ZooError as error:
        verdict.error = str(error)
    verdict.seconds = time.perf_counter() - started
    return verdict


def _judged(
    judgement: Judgement,
    outputs: np.ndarray,
    logits: np.ndarray | None,
    layers: Mapping[str, LayerVerdict],
    excuse: Excuse,
    outer: np.ndarray | float,
) -> Probes:
    """What a witness gives, and decides, for the images of a judgement.

    logits: None where they cannot be had. layers: for the layers' images. outer: the outer limit, one number
    or one for each image (N, ...).
    """
    added = 1.0
    while True:
        output = _output(judgement, outputs, added, outer)
        found = Probes(output)
        if output.problem:
            return found
        if judgement.output != "features":
            decided = decide(outputs, judgement.logits, added * judgement.decision_limit)
            found = Probes(output, _logits(judgement, outputs, logits, layers, added), decided)
        if found.passed or added > 1:
            return found
        rows = _worst(judgement, outputs, found)
        allowed = {logit_path(judgement.model): judgement.logit_limit[rows]} if judgement.model.labels else {}
        allowed[judgement.model.walk()[-1].path] = judgement.output_limit[rows]
        added = excuse.factor(judgement.images[rows], np.arange(len(rows)), allowed)
        if added == 1:
            return found


def _worst(judgement: Judgement, outputs: np.ndarray, found: Probes) -> list[int]:
    """The numbers of the images for which a witness is furthest off or decides otherwise."""
    apart = np.abs(outputs - judgement.outputs).reshape(len(outputs), -1).max(axis=1)
    chosen = set(np.argsort(apart)[-WORST:].tolist())
    chosen |= set(found.decisions.forbidden[:WORST]) if found.decisions else set()
    parts = [part for part in (found.output, found.logits) if part is not None and part.worst]
    return sorted(chosen | {part.worst[0] for part in parts if part.worst[0] < len(outputs)})


def _output(judgement: Judgement, outputs: np.ndarray, added: float, outer: np.ndarray | float) -> Comparison:
    """The outputs under the outer limit; beyond it under the derived one, if that is larger.

    It is where outputs are small differences of large terms, which float32 cannot hold better.
    """
    compared = compare(outputs, judgement.outputs, outer)
    if compared.problem or compared.passed:
        return compared
    return compare(outputs, judgement.outputs, np.maximum(outer, added * judgement.output_limit))


def _row_limits(expected: np.ndarray) -> np.ndarray:
    """The outer limit of each image, (N, 1, ...): what a bright one is allowed, a dark one is not."""
    limits = np.array([outer_limit(row) for row in expected])
    return limits.reshape(-1, *(1,) * (expected.ndim - 1))


def _logits(
    judgement: Judgement,
    outputs: np.ndarray,
    values: np.ndarray | None,
    layers: Mapping[str, LayerVerdict],
    added: float,
) -> Comparison | None:
    """The logits under their own limit: of all images if they can be had, else of the layers' images."""
    values = outputs if judgement.output == "logits" else values
    if values is not None:
        return compare(values, judgement.logits, added * judgement.logit_limit)
    layer = layers.get(logit_path(judgement.model))
    if layer is None or layer.folded:
        return None
    return replace(layer.output, limit=added * layer.output.limit, ratio=layer.output.ratio / added)


def _in_turn(
    witness: Witness, judgement: Judgement, sizes: Sequence[int]
) -> tuple[np.ndarray, dict[int, slice]]:
    """The outputs for all images, and which of them were asked for in one batch, by its size.

    Where there are images enough, large batches are some of them and cost nothing; the rest follows.
    """
    images, tried, start = judgement.images, {}, 0
    for size in sorted(sizes, reverse=True):
        if size >= MANY and start + size < len(images):
            tried[size] = slice(start, start + size)
            start += size
    if not tried:
        return witness.predict(images), {}
    parts = [witness.predict(images[rows]) for rows in (*tried.values(), slice(start, None))]
    for part in parts:
        if part.shape[1:] != judgement.outputs.shape[1:]:
            return part, {}
    return np.concatenate(parts), tried


def _batches(
    witness: Witness,
    judgement: Judgement,
    sizes: Sequence[int],
    mixed: np.ndarray,
    tried: Mapping[int, slice],
    verdict: Verdict,
    excuse: Excuse,
) -> Batches:
    """Image 0 first with the next images, then with the last ones: its row, and all, must not change.

    mixed: the outputs for the images whose layers are compared, in one go. tried: sizes of which the
    verdict has the outputs, as these rows of all images.
    """
    images = judgement.layer_images
    last = judgement.layers[judgement.model.walk()[-1].path]
    compared, identical = [], True
    for size in sizes:
        if size in tried and verdict.outputs is not None and verdict.output is not None:
            rows = tried[size]
            got, expected = verdict.outputs[rows], judgement.outputs[rows]
            compared.append((compare(got, expected, verdict.output.limit), size))
            continue
        for start in (1, len(images) - size + 1)[: 2 if size < MANY else 1]:
            chosen = np.concatenate([[0], np.arange(start, start + size - 1) % len(images)]).astype(int)
            got = witness.predict(images[chosen])
            beside = compare(got, last.output[chosen], last.limit[chosen])
            if not beside.passed and not beside.problem:
                row = beside.worst[0]
                allowed = {judgement.model.walk()[-1].path: last.limit[chosen][[row]]}
                added = excuse.factor(images[chosen], np.array([row]), allowed)
                beside = compare(got, last.output[chosen], added * last.limit[chosen])
            compared.append((beside, size))
            identical = identical and np.array_equal(got, mixed[chosen])
    worst, size = max(compared, key=lambda pair: worst_key(pair[0]))
    return Batches(tuple(sizes), worst, size, identical)


def _diagnosis(judgement: Judgement, inside: Mapping[str, np.ndarray], culprit: str) -> str:
    """What the culprit's output looks like on images in [0, 1], given the input that the witness gave it."""
    rows = plain(judgement.layer_images)
    tensors = {IMAGE: judgement.layer_images[rows].astype(np.float64)}
    for node, weights in judgement.network.nodes:
        expected, shown = judgement.layers[node.path], inside.get(node.path)
        got = shown[rows] if shown is not None and shown.shape == expected.output.shape else shown
        if node.path == culprit and got is not None:
            own = expected.own[rows].astype(np.float64)
            return explain(judgement.model, node, weights, node.take(tensors), got, own)
        exact = expected.output[rows]
        tensors[node.path] = got.astype(np.float64) if got is not None and usable(got, exact) else exact
    return ""
