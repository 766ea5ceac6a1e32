"""Each layer of a witness on the input that the witness itself gave it: nothing before it counts.

If every layer is within its own bound there, so is what they make together, however far rounding adds up.
That is how a network whose rounding adds up to more than usual is told from a faulty one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.crosscheck import limits
from export.crosscheck.comparison import Comparison, compare, worst_of
from export.crosscheck.inputs import MOST_ROWS, few_terms, plain
from export.crosscheck.judgement import Expected, judge_layers
from export.crosscheck.verdict import LayerVerdict
from zoo.errors import MachineError, ZooError
from zoo.model import IMAGE, Node

Activations = Callable[[np.ndarray], dict[str, np.ndarray]]
Alone = Callable[..., np.ndarray | None]  # (path, input, or all inputs of a join)
Weights = Mapping[str, np.ndarray]

ADDED = 4.0  # how many times the difference seen in its last layer an output may have
AT_A_TIME = 64  # images whose layers are looked at again


@dataclass
class Examined:
    """What the judge says of every layer for some images (N, C, H, W), and what a witness shows of them.

    folds: what the witness calls a layer may be a part of a fused one. known: verdicts on these images, kept
    for the next witness: several give the same bits.
    """

    network: ReferenceNetwork
    images: np.ndarray
    expected: Mapping[str, Expected]
    inside: Mapping[str, np.ndarray]
    folds: bool = False
    known: MutableMapping[tuple[str, ...], Any] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)

    def once(self, what: str, path: str, inputs: Sequence[str], compute: Callable[[], Any]) -> Any:
        """What `compute` gives for a shown layer and the shown ones that it takes: once for the same bits."""
        key = (what, path, *map(self._digest, (path, *inputs)))
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def _digest(self, path: str) -> str:
        if path not in self._digests:
            shown = np.ascontiguousarray(self.images if path == IMAGE else self.inside[path])
            content = f"{shown.dtype}{shown.shape}{hashlib.sha256(shown.data).hexdigest()}"
            self._digests[path] = content
        return self._digests[path]

    def layers(self) -> dict[str, LayerVerdict]:
        """Every layer that the witness shows: with what is before it, and on its own input."""
        own = _Local(self).run() if self.inside else {}
        found = {}
        for path, expected in self.expected.items():
            if path in self.inside:
                shown = self.inside[path]
                output = self.once(
                    "output", path, (), partial(compare, shown, expected.output, expected.limit)
                )
                found[path] = replace(own[path], output=output) if path in own else LayerVerdict(output)
        return found

    def isolated(
        self, layers: Mapping[str, LayerVerdict], alone: Alone, sparse: bool = False, everything: bool = False
    ) -> dict[str, LayerVerdict]:
        """The same, the wrong ones and those that differ more than usual run by themselves as well.

        sparse: those with weights, too. everything: all. Each gets inputs of so few terms that the bound of
        its rounding is sharp. A wrong one, or everything, also gets the reference's, rounded to float32.
        """
        found = dict(layers)
        tensors = {IMAGE: self.images}
        meant = plain(self.images) if plain(self.images).any() else slice(None)
        for node, weights in self.network.nodes:
            layer = found.get(node.path)
            wanted = (
                everything or (sparse and bool(weights)) or (layer and (layer.usual > 1 or not layer.passed))
            )
            fused = any(found[path].folded for path in (node.path, *node.inputs) if path in found)
            if layer is not None and wanted and not fused:
                given = [tensors[path] for path in node.inputs]
                inputs = [given] if everything or not layer.passed else []
                inputs.append([few_terms(node, x[meant], number) for number, x in enumerate(given)])
                compared = [_alone(alone, node, weights, each) for each in inputs]
                told = [each for each in compared if each is not None]
                found[node.path] = replace(layer, alone=worst_of(told) if told else None)
            with np.errstate(over="ignore"):
                tensors[node.path] = self.expected[node.path].output.astype(np.float32)
        return found

    def rows(self) -> Iterator[slice]:
        """The images in slices that the judge takes at a time."""
        start = 0
        for images in self.network.chunks(self.images):
            yield slice(start, start + len(images))
            start += len(images)


@dataclass
class Excuse:
    """How much more than usual an output may differ, because a witness's own rounding adds up to that.

    Asked about images whose outputs are beyond the limit. It is an excuse if the witness shows every layer
    for them, each is within its own bound, alone as well if it differs more than usual, and the last one is
    as far off as the output: so it is with sums of equal terms, for one. Who hides a layer has no excuse.
    wrong: layers that are not, which other images need not show.
    """

    network: ReferenceNetwork
    activations: Activations | None
    alone: Alone | None
    partial: bool
    wrong: dict[str, LayerVerdict] = field(default_factory=dict)

    def factors(self, batch: np.ndarray, rows: np.ndarray, allowed: Mapping[str, np.ndarray]) -> np.ndarray:
        """How many times `allowed` the output for some images may differ: (rows,), 1 without an excuse.

        batch: images (N, C, H, W) as the witness gets them. rows: numbers of those to look at. allowed: for
        these, by path of the last layer and of the one that gives the logits: (rows, ...).
        """
        if len(rows) > AT_A_TIME:
            parts = np.split(np.arange(len(rows)), range(AT_A_TIME, len(rows), AT_A_TIME))
            return np.concatenate(
                [self.factors(batch, rows[p], {path: x[p] for path, x in allowed.items()}) for p in parts]
            )
        found = np.ones(len(rows))
        if self.activations is None or not len(rows):
            return found
        if len(batch) > MOST_ROWS:  # a large one is summed as all large ones are; so are their neighbours
            near = (rows[0] + np.arange(MOST_ROWS)) % len(batch)
            chosen = np.union1d(rows, near)
            batch, rows = batch[chosen], np.searchsorted(chosen, rows)
        inside = {path: x[rows] for path, x in self.activations(batch).items() if len(x) == len(batch)}
        expected = judge_layers(self.network, batch[rows])
        examined = Examined(self.network, batch[rows], expected, inside, self.partial)
        layers = examined.layers()
        if self.alone and all(layer.passed for layer in layers.values()):
            layers = examined.isolated(layers, self.alone)
        self.wrong |= {path: layer for path, layer in layers.items() if not layer.passed}
        if layers.keys() != expected.keys() or any(layer.folded for layer in layers.values()):
            return found
        if not all(v.passed and (v.usual <= 1 or v.alone) for v in layers.values()):
            return found
        for path, limit in allowed.items():
            apart = np.abs(inside[path] - expected[path].output) / np.maximum(limit, limits.FLOOR)
            found = np.maximum(found, ADDED * apart.reshape(len(rows), -1).max(axis=1))
        return found


@dataclass
class _Tensors:
    """What stands at each path: numbers (N, ...), and what they may be off, where the witness shows none."""

    values: dict[str, np.ndarray]
    bridges: dict[str, limits.Bridge] = field(default_factory=dict)

    def without(self, other: _Tensors) -> _Tensors:
        """The same with some paths as another has them."""
        return _Tensors({**self.values, **other.values}, {**self.bridges, **other.bridges})


@dataclass
class _Local:
    """Each shown layer against the judge's layer on the witness's own input, by path.

    Layers that the witness does not show are bridged by the judge's. So are those that are wrong, where that
    makes right what follows them: a file that folds one layer into another may give what it has in between
    the layer's name. A layer that is really wrong is what the next one takes, which is right then as it is.
    """

    of: Examined
    found: dict[str, LayerVerdict] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)  # wrong layers that a later one takes as they are

    def run(self) -> dict[str, LayerVerdict]:
        """The verdicts, whose `output` is not set yet, by path."""
        shown = _Tensors({IMAGE: self.of.images})
        hidden = _Tensors({})  # what wrong layers ought to give
        for node, weights in self.of.network.nodes:
            path = node.path
            got = self.of.inside.get(path)
            if got is None or not usable(got, self.of.expected[path].output):
                shown.values[path], shown.bridges[path] = self._bridged(node, weights, shown)
                continue
            verdict = self._beside(node, weights, shown, got)
            if verdict.passed:
                self.taken |= hidden.values.keys() & set(node.inputs)
            elif self.of.folds:
                instead = shown.without(hidden)
                if any(source in hidden.values for source in node.inputs):
                    other = self._beside(node, weights, instead, got)
                    if other.passed:
                        self._fold(node, hidden)
                        verdict = other
                if not verdict.passed:
                    hidden.values[path], hidden.bridges[path] = self._bridged(node, weights, instead)
            self.found[path] = verdict
            shown.values[path] = got
        for path in self.taken:
            self.found[path] = replace(self.found[path], folded=False)
        return self.found

    def _fold(self, node: Node, hidden: _Tensors) -> None:
        """What a layer takes, and what led there, was only called a layer."""
        inputs = {n.path: n.inputs for n, _ in self.of.network.nodes}
        waiting = list(node.inputs)
        while waiting:
            path = waiting.pop()
            if path in hidden.values and not self.found[path].folded:
                self.found[path] = replace(self.found[path], folded=True)
                waiting += inputs[path]

    def _bridged(self, node: Node, weights: Weights, tensors: _Tensors) -> tuple[np.ndarray, limits.Bridge]:
        """What the judge's layer gives, and what it may be off."""
        parts = []
        for rows in self.of.rows():
            x, before = _taken(node, tensors, rows)
            y = apply(node.layer, x, weights)
            own = limits.rounding(node.layer, x, y, weights)
            parts.append((y, limits.bridge(node.layer, x, weights, own, before)))
        magnitude = np.concatenate([bridge.magnitude for _, bridge in parts])
        units = max(bridge.units for _, bridge in parts)
        return np.concatenate([y for y, _ in parts]), limits.Bridge(magnitude, units)

    def _beside(self, node: Node, weights: Weights, tensors: _Tensors, got: np.ndarray) -> LayerVerdict:
        """A shown layer beside the judge's on the same input."""
        bridged = any(path in tensors.bridges for path in node.inputs)
        compute = partial(self._compared, node, weights, tensors, got, bridged)
        verdict: LayerVerdict = (
            compute() if bridged else self.of.once("local", node.path, node.inputs, compute)
        )
        return verdict

    def _compared(
        self, node: Node, weights: Weights, tensors: _Tensors, got: np.ndarray, bridged: bool
    ) -> LayerVerdict:
        expected = self.of.expected[node.path]
        found, usual = [], 0.0
        for rows in self.of.rows():
            x, before = _taken(node, tensors, rows)
            y = apply(node.layer, x, weights)
            if bridged:
                own = limits.rounding(node.layer, x, y, weights)
                limit = limits.bridge(node.layer, x, weights, own, before).bound
            else:
                limit, ratio = _own(node, weights, x, y, got[rows], expected.rows(rows))
                usual = max(usual, ratio)
            found.append(compare(got[rows], y, limit))
        worst = worst_of(found)
        return LayerVerdict(worst, worst, usual=usual)


def _taken(node: Node, tensors: _Tensors, rows: slice) -> tuple[Any, Any]:
    """What a layer takes of some images, in float64, and the bridges before it."""
    values = {path: tensors.values[path][rows].astype(np.float64) for path in node.inputs}
    bridges = {path: _cut(tensors.bridges.get(path), rows) for path in node.inputs}
    return node.take(values), node.take(bridges)


def _cut(bridge: limits.Bridge | None, rows: slice) -> limits.Bridge | None:
    return None if bridge is None else replace(bridge, magnitude=bridge.magnitude[rows])


def _own(
    node: Node, weights: Mapping[str, np.ndarray], x: Any, y: np.ndarray, got: np.ndarray, expected: Expected
) -> tuple[np.ndarray, float]:
    """A layer's bound for the input that a witness gave it, and the largest ratio to what is usual.

    The judge's input is nearly the same, so its bound is taken where `got` is far within; only other images
    have their own computed.
    """
    limit, usual = expected.own.copy(), expected.usual.copy()
    difference = np.abs(got - y)
    close = np.flatnonzero((2 * difference > usual).reshape(len(y), -1).any(axis=1))
    if len(close):
        given = tuple(part[close] for part in x) if isinstance(x, tuple) else x[close]
        own = limits.rounding(node.layer, given, y[close], weights)
        with np.errstate(over="ignore"):
            limit[close], usual[close] = own.bound, own.expected
    with np.errstate(divide="ignore", invalid="ignore"):
        return limit, float(np.nan_to_num(difference / usual, nan=0, posinf=np.inf).max(initial=0))


def usable(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether a layer's output can be the next layer's input."""
    return got.dtype == np.float32 and got.shape == expected.shape and bool(np.isfinite(got).all())


def _alone(
    alone: Alone, node: Node, weights: Mapping[str, np.ndarray], inputs: Sequence[np.ndarray]
) -> Comparison | None:
    """One layer by itself under its own bound; None where the witness has none, a problem if it fails to."""
    try:
        got = alone(node.path, *inputs)
    except MachineError:
        raise
    except ZooError as error:  # as a layer of a wrong shape cannot even be built; or the process died
        nothing = float("nan")
        return Comparison(nothing, nothing, nothing, problem=f"not to be run alone: {error}")
    if got is None:
        return None
    x = node.take({path: x.astype(np.float64) for path, x in zip(node.inputs, inputs, strict=True)})
    y = apply(node.layer, x, weights)
    return compare(got, y, limits.rounding(node.layer, x, y, weights).bound)
