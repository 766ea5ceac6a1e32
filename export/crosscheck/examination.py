"""One witness before the judge: outputs, logits and decisions, every layer, batches, the culprit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from export.crosscheck.comparison import compare, decide, outer_limit, worst_key
from export.crosscheck.diagnosis import explain
from export.crosscheck.inputs import FEW_BATCHES, plain
from export.crosscheck.judgement import Judgement, logit_path
from export.crosscheck.local import Activations, Alone, Examined, Excuse, usable
from export.crosscheck.verdict import Batches, Probes, Verdict
from export.crosscheck.witnesses import Witness
from zoo.errors import MachineError, ZooError
from zoo.model import IMAGE

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
    those with weights if sparse, or for every layer if isolated. batches: the sizes of batches in which it is
    asked as well; True for a few. partial: layers may be missing, and what is called a layer may be a part of
    a fused one. only: nothing but these layers counts; they are run alone as well. A witness that crashes
    gets a verdict as well; MachineError is raised.
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
        examined = Examined(
            judgement.network, judgement.layer_images, judgement.layers, inside, partial, judgement.known
        )
        layers = examined.layers()
        layers = {path: layer for path, layer in layers.items() if not only or path in only}
        verdict.layers = examined.isolated(layers, alone, sparse, isolated or bool(only)) if alone else layers
        if only and not verdict.layers:
            verdict.skipped = f"it does not show {', '.join(only)}"
        if verdict.outputs is not None:
            excuse = Excuse(judgement.network, activations, alone, partial)
            values = logits(judgement.images) if logits and judgement.output == "probabilities" else None
            outer = np.full(
                (len(judgement.images), *(1,) * (judgement.outputs.ndim - 1)), outer_limit(judgement.outputs)
            )
            found, limit = _judged(judgement, verdict.outputs, values, excuse, outer)
            mixture = judgement.mixture
            limits = _row_limits(mixture.outputs)
            verdict.probes, _ = _judged(
                mixture, mixed, inside.get(logit_path(judgement.model)), excuse, limits
            )
            verdict.output, verdict.decisions = found.output, found.decisions
            verdict.logits = found.logits or verdict.probes.logits
            if sizes and not found.output.problem:
                verdict.batches = _batches(
                    witness, judgement, sizes, mixed, tried, verdict.outputs, limit, excuse
                )
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
    excuse: Excuse,
    outer: np.ndarray,
) -> tuple[Probes, np.ndarray]:
    """What a witness gives, and decides, for the images of a judgement, and the limit of the outputs.

    logits: None where they cannot be had. outer: the outer limit of each image (N, 1, ...).
    """
    last, path = judgement.model.walk()[-1].path, logit_path(judgement.model)
    logits = outputs if judgement.output == "logits" else logits
    labels = judgement.output != "features"

    def found(added: np.ndarray) -> tuple[Probes, np.ndarray]:
        output = compare(outputs, judgement.outputs, outer)
        if output.problem:
            return Probes(output), outer
        each = added.reshape(-1, *(1,) * (outputs.ndim - 1))
        limit = each * np.maximum(outer, judgement.output_limit)
        if not output.passed:  # small differences of large terms, which float32 cannot hold better
            output = compare(outputs, judgement.outputs, limit)
        if not labels:
            return Probes(output), limit
        decided = decide(outputs, judgement.logits, added * judgement.decision_limit)
        told = None
        if logits is not None:
            told = compare(logits, judgement.logits, each * judgement.logit_limit)
        return Probes(output, told, decided), limit

    first, limit = found(np.ones(len(judgement.outputs)))
    if first.output.problem or first.passed:
        return first, limit
    beyond = (np.abs(outputs - judgement.outputs) > limit).reshape(len(outputs), -1).any(axis=1)
    if labels and logits is not None and first.logits and not first.logits.problem:
        beyond |= (np.abs(logits - judgement.logits) > judgement.logit_limit).any(axis=1)
    if first.decisions:
        beyond[first.decisions.forbidden] = True
    rows = np.flatnonzero(beyond)
    allowed = {last: limit[rows]} | ({path: judgement.logit_limit[rows]} if labels else {})
    added = np.ones(len(outputs))
    added[rows] = excuse.factors(judgement.images, rows, allowed)
    return found(added) if (added > 1).any() else (first, limit)


def _row_limits(expected: np.ndarray) -> np.ndarray:
    """The outer limit of each image, (N, 1, ...): what a bright one is allowed, a dark one is not."""
    limits = np.array([outer_limit(row) for row in expected])
    return limits.reshape(-1, *(1,) * (expected.ndim - 1))


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
    outputs: np.ndarray,
    limit: np.ndarray,
    excuse: Excuse,
) -> Batches:
    """The first images, then the last ones: no row may change with its neighbours.

    mixed: the outputs for the images whose layers are compared, in one go. tried: sizes for which `outputs`,
    of all images under `limit`, were asked for, as these rows; one of them is asked for by itself again.
    """
    images = judgement.layer_images
    path = judgement.model.walk()[-1].path
    last = judgement.layers[path]
    each = judgement.mixture.output_limit
    if judgement.output != "logits":  # which have no other limit
        each = np.maximum(_row_limits(last.output), each)
    compared, identical = [], True
    for size in sizes:
        if size in tried:
            rows = tried[size]
            compared.append((compare(outputs[rows], judgement.outputs[rows], limit[rows]), size))
            one = witness.predict(judgement.images[rows.start : rows.start + 1])
            identical = identical and np.array_equal(one[0], outputs[rows.start])
            continue
        for start in (1, len(images) - size + 1)[: 2 if size < MANY else 1]:
            first = 0 if start == 1 else start - 1  # a first row that stays from the call before is seen
            chosen = np.concatenate([[first], np.arange(start, start + size - 1)]).astype(int) % len(images)
            got = witness.predict(images[chosen])
            beside = compare(got, last.output[chosen], each[chosen])
            if not beside.passed and not beside.problem:
                allowed = each[chosen]
                apart = np.abs(got - last.output[chosen]) > allowed
                beyond = np.flatnonzero(apart.reshape(len(got), -1).any(axis=1))
                added = np.ones((len(got), *(1,) * (got.ndim - 1)))
                added[beyond] = excuse.factors(images[chosen], beyond, {path: allowed[beyond]}).reshape(
                    -1, *added.shape[1:]
                )
                beside = compare(got, last.output[chosen], added * allowed)
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
