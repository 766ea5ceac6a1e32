"""One witness before the judge: outputs, logits and decisions, every layer, batches, the culprit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from backends.reference import apply
from export.crosscheck import limits
from export.crosscheck.comparison import Comparison, compare, decide, outer_limit, worst_key, worst_of
from export.crosscheck.diagnosis import explain
from export.crosscheck.inputs import FEW_BATCHES, plain
from export.crosscheck.judgement import Judgement, logit_path
from export.crosscheck.verdict import Batches, LayerVerdict, Probes, Verdict
from export.crosscheck.witnesses import Witness
from zoo.errors import MachineError, ZooError
from zoo.model import IMAGE

MANY = 10  # images of a batch from which on it is tried with one set of neighbours only
ULP = 2 * limits.UNIT  # of a value, relative: what a layer that computes exactly may differ

Activations = Callable[[np.ndarray], dict[str, np.ndarray]]
Alone = Callable[..., np.ndarray | None]  # (path, input, or all inputs of a join)


def examine(
    name: str,
    witness: Witness,
    judgement: Judgement,
    activations: Activations | None = None,
    logits: Callable[[np.ndarray], np.ndarray | None] | None = None,
    alone: Alone | None = None,
    batches: bool | Sequence[int] = (),
    isolated: bool = False,
    partial: bool = False,
    only: Collection[str] = (),
) -> Verdict:
    """Compare one witness with the judgement.

    activations: gives the layers' outputs by path, as far as the witness shows them. logits: gives the
    logits where predict gives probabilities; without it they are taken from activations, for the
    layers' images. alone: runs one layer by itself; it is asked for the culprit, or for every layer if
    isolated. batches: sizes of batches in which it is asked, too; True for
    a few. partial: layers may be missing. only: nothing but
    these layers counts; they are run alone as well. A witness that crashes gets a verdict as well;
    MachineError is raised.
    """
    verdict = Verdict(name, images=len(judgement.layer_images if only else judgement.images))
    started = time.perf_counter()
    try:
        if not only:
            sizes = FEW_BATCHES if batches is True else tuple(batches or ())
            verdict.outputs, tried = _in_turn(witness, judgement, sizes)
            _outputs(verdict, judgement, verdict.outputs)
            mixed = witness.predict(judgement.layer_images)
        inside = activations(judgement.layer_images) if activations else {}
        if activations and not partial:
            missing = np.empty(0, np.float32)
            inside = {path: inside.get(path, missing) for path in judgement.layers}
        layers = _layers(judgement, inside)
        verdict.layers = {path: layer for path, layer in layers.items() if not only or path in only}
        if only and not verdict.layers:
            verdict.skipped = f"it does not show {', '.join(only)}"
        if verdict.outputs is not None:
            verdict.logits = _logits(judgement, verdict.outputs, logits, verdict.layers)
            verdict.probes = _probes(judgement.mixture, mixed, verdict.layers)
            if sizes and verdict.output is not None and not verdict.output.problem:
                verdict.batches = _batches(witness, judgement, sizes, mixed, tried, verdict)
        if alone:
            _isolate(verdict, judgement, alone, isolated or bool(only))
        if verdict.culprit is not None:
            verdict.diagnosis = _diagnosis(judgement, inside, verdict.culprit)
    except MachineError:
        raise
    except ZooError as error:
        verdict.error = str(error)
    verdict.seconds = time.perf_counter() - started
    return verdict


def _outputs(verdict: Verdict, judgement: Judgement, outputs: np.ndarray) -> None:
    """Judge what a witness gives, and decides, for all images."""
    verdict.output = _output(judgement, outputs)
    if judgement.output != "features" and not verdict.output.problem:
        verdict.decisions = decide(outputs, judgement.logits, judgement.decision_limit)


def _output(judgement: Judgement, outputs: np.ndarray) -> Comparison:
    """The outputs under the outer limit; beyond it under the derived one, if that is larger.

    It is where outputs are small differences of large terms, which float32 cannot hold better.
    """
    compared = compare(outputs, judgement.outputs)
    if compared.problem or compared.passed or judgement.derived_limit <= compared.limit:
        return compared
    return compare(outputs, judgement.outputs, judgement.derived_limit)


def _probes(mixture: Judgement, outputs: np.ndarray, layers: Mapping[str, LayerVerdict]) -> Probes:
    """Judge the outputs for the images whose layers are compared, each under a limit of its own.

    What a bright image is allowed must not be allowed a dark one.
    """
    last = mixture.layers[mixture.model.walk()[-1].path]
    outer = np.array([outer_limit(row) for row in last.output])
    limit = np.maximum(outer.reshape(-1, *(1,) * (last.output.ndim - 1)), last.limit)
    compared = compare(outputs, last.output, limit)
    if compared.problem or mixture.output == "features":
        return Probes(compared)
    decided = decide(outputs, mixture.logits, mixture.decision_limit)
    return Probes(compared, _logits(mixture, outputs, None, layers), decided)


def _logits(
    judgement: Judgement,
    outputs: np.ndarray,
    logits: Callable[[np.ndarray], np.ndarray | None] | None,
    layers: Mapping[str, LayerVerdict],
) -> Comparison | None:
    """The logits under their own limit: of all images if they can be had, else of the layers' images."""
    if judgement.output == "features":
        return None
    if judgement.output == "logits":
        return compare(outputs, judgement.logits, judgement.logit_limit)
    values = logits(judgement.images) if logits else None
    if values is not None:
        return compare(values, judgement.logits, judgement.logit_limit)
    path = logit_path(judgement.model)
    return layers[path].output if path in layers else None


def _layers(judgement: Judgement, inside: Mapping[str, np.ndarray]) -> dict[str, LayerVerdict]:
    """Every layer that the witness shows: with what is before it, and on its own input."""
    own = _local(judgement, inside)
    return {
        path: LayerVerdict(compare(inside[path], expected.output, expected.limit), own.get(path))
        for path, expected in judgement.layers.items()
        if path in inside
    }


def _local(judgement: Judgement, inside: Mapping[str, np.ndarray]) -> dict[str, Comparison]:
    """Each shown layer against the judge's layer on the witness's own input, by path.

    Layers that the witness does not show are bridged by the judge's.
    """
    found: dict[str, list[Comparison]] = {}
    start = 0
    for images in judgement.network.chunks(judgement.layer_images):
        rows = slice(start, start + len(images))
        start += len(images)
        for path, comparison in _local_rows(judgement, images, inside, rows):
            found.setdefault(path, []).append(comparison)
    return {path: worst_of(parts) for path, parts in found.items()}


def _local_rows(
    judgement: Judgement, images: np.ndarray, inside: Mapping[str, np.ndarray], rows: slice
) -> Iterator[tuple[str, Comparison]]:
    tensors = {IMAGE: images.astype(np.float64)}
    bridges: dict[str, limits.Allowance] = {}  # of the layers that the witness does not show
    for node, weights in judgement.network.nodes:
        expected, x = judgement.layers[node.path], node.take(tensors)
        y = apply(node.layer, x, weights)
        allowed = None
        if bridges.keys() & set(node.inputs):
            before = {path: bridges.get(path) or limits.exact(tensors[path]) for path in node.inputs}
            allowed = limits.propagate(node.layer, x, weights, node.take(before))
        got = inside[node.path][rows] if node.path in inside else None
        if got is None or not _usable(got, y):
            if allowed is None:
                exact = {path: limits.exact(tensors[path]) for path in node.inputs}
                allowed = limits.propagate(node.layer, x, weights, node.take(exact))
            tensors[node.path], bridges[node.path] = y, allowed
            continue
        if allowed is not None:
            limit = allowed.limit
        elif expected.own is not None:
            limit = expected.own[rows]
        else:
            limit = ULP * np.abs(y) + limits.FLOOR
        yield node.path, compare(got, y, limit)
        tensors[node.path] = got.astype(np.float64)


def _usable(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether a layer's output can be the next layer's input."""
    return got.dtype == np.float32 and got.shape == expected.shape and bool(np.isfinite(got).all())


def _isolate(verdict: Verdict, judgement: Judgement, alone: Alone, everything: bool) -> None:
    """Run layers by themselves on the reference's input, rounded to float32: the culprit, or all."""
    wanted = list(judgement.layers) if everything else [verdict.culprit]
    tensors = {IMAGE: judgement.layer_images}
    for node, weights in judgement.network.nodes:
        expected = judgement.layers[node.path]
        if node.path in wanted and node.path in verdict.layers:
            layer = verdict.layers[node.path]
            inputs = {path: tensors[path].astype(np.float64) for path in node.inputs}
            exact = apply(node.layer, node.take(inputs), weights)
            own = ULP * np.abs(exact) + limits.FLOOR if expected.own is None else expected.own
            given = [tensors[path] for path in node.inputs]
            compared = _alone(alone, node.path, given, exact, own)
            verdict.layers[node.path] = LayerVerdict(layer.output, layer.local, compared)
        with np.errstate(over="ignore"):
            tensors[node.path] = expected.output.astype(np.float32)


def _alone(
    alone: Alone, path: str, inputs: Sequence[np.ndarray], exact: np.ndarray, own: np.ndarray
) -> Comparison | None:
    """One layer by itself under its own limit; None where the witness has none, a problem if it fails to."""
    try:
        got = alone(path, *inputs)
    except MachineError:
        raise
    except ZooError as error:  # as a layer of a wrong shape cannot even be built; or the process died
        nothing = float("nan")
        return Comparison(nothing, nothing, nothing, problem=f"not to be run alone: {error}")
    return None if got is None else compare(got, exact, own)


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
            compared.append((compare(got, last.output[chosen], last.limit[chosen]), size))
            identical = identical and np.array_equal(got, mixed[chosen])
    worst, size = max(compared, key=lambda pair: worst_key(pair[0]))
    return Batches(tuple(sizes), worst, size, identical)


def _diagnosis(judgement: Judgement, inside: Mapping[str, np.ndarray], culprit: str) -> str:
    """What the culprit's output looks like on images in [0, 1], given the input that the witness gave it."""
    rows = plain(judgement.layer_images)
    tensors = {IMAGE: judgement.layer_images[rows].astype(np.float64)}
    for node, weights in judgement.network.nodes:
        expected, shown = judgement.layers[node.path], inside.get(node.path)
        usable = shown is not None and shown.shape == expected.output.shape
        got = shown[rows] if shown is not None and usable else shown
        if node.path == culprit and got is not None:
            own = None if expected.own is None else expected.own[rows]
            return explain(judgement.model, node, weights, node.take(tensors), got, own)
        exact = expected.output[rows]
        tensors[node.path] = got.astype(np.float64) if got is not None and _usable(got, exact) else exact
    return ""
