"""The margin both ways, by kind of layer: how near honest witnesses come to a limit, and the smallest fault.

A layer's own comparisons count (on the input that the witness gave it, and alone). What is compared of a
whole network, its output, logits and batches, is told as one more kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from export.crosscheck import LayerVerdict, Verdict
from zoo.model import Model

WHOLE = "the whole network"


@dataclass
class Margin:
    """One kind of layer. honest: the largest ratio of an honest witness, of which one in `honest_of`. caught:
    the smallest ratio above 1 of a caught fault, which is `caught_by`; None where there is none."""

    kind: str
    honest: float | None = None
    honest_of: str = ""
    caught: float | None = None
    caught_by: str = ""

    def take_honest(self, ratio: float, whose: str) -> None:
        """Take an honest witness's ratio."""
        if self.honest is None or ratio > self.honest:
            self.honest, self.honest_of = ratio, whose

    def catch(self, ratio: float, whose: str) -> None:
        """Take a caught fault's ratio."""
        if self.caught is None or ratio < self.caught:
            self.caught, self.caught_by = ratio, whose

    def to_dict(self) -> dict[str, Any]:
        """The margin as JSON data; what is infinite, a wrong shape for instance, is null."""
        return {
            "kind": self.kind,
            "honest_ratio": _finite(self.honest),
            "honest_of": self.honest_of,
            "caught_ratio": _finite(self.caught),
            "caught_by": self.caught_by,
        }


def _finite(ratio: float | None) -> float | None:
    return ratio if ratio is not None and isfinite(ratio) else None


class Margins:
    """The margins of all kinds that were seen, in alphabetical order."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Margin] = {}

    def of(self, kind: str) -> Margin:
        """The margin of a kind of layer."""
        return self._by_kind.setdefault(kind, Margin(kind))

    def take_honest(self, model: Model, verdict: Verdict, whose: str) -> None:
        """Take all that was compared of an honest witness. whose: what it is, for the reader."""
        for kind, ratio in ratios(model, verdict):
            self.of(kind).take_honest(ratio, whose)

    def take(self, other: Margins) -> None:
        """Take what others have seen."""
        for kind, margin in other._by_kind.items():
            if margin.honest is not None:
                self.of(kind).take_honest(margin.honest, margin.honest_of)
            if margin.caught is not None:
                self.of(kind).catch(margin.caught, margin.caught_by)

    def to_list(self) -> list[dict[str, Any]]:
        """The margins as JSON data."""
        return [margin.to_dict() for _, margin in sorted(self._by_kind.items())]


def ratios(model: Model, verdict: Verdict) -> Iterator[tuple[str, float]]:
    """(kind of layer, ratio of difference to limit) of all that was compared of a witness."""
    kinds = {node.path: type(node.layer).__name__ for node in model.walk()}
    for path, layer in verdict.layers.items():
        ratio = own_ratio(layer)
        if ratio is not None:
            yield kinds[path], ratio
    seen = [float("inf") if part.problem else part.ratio for part in verdict.whole]
    if seen:
        yield WHOLE, max(seen)


def own_ratio(layer: LayerVerdict) -> float | None:
    """The largest ratio of what decides of a layer; infinite for a problem, None where nothing does."""
    return max((float("inf") if part.problem else part.ratio for part in layer.judged), default=None)


def decisive(
    verdicts: Iterable[Verdict], culprits: Iterable[str], kinds: dict[str, str]
) -> tuple[str, float]:
    """By what a fault was caught: the kind of the culprit that was blamed and its largest own ratio.

    Where no culprit's own comparison fails, it was the whole network's.
    """
    failed = [verdict for verdict in verdicts if not verdict.passed]
    found = [
        (ratio, kinds[path])
        for verdict in failed
        for path, layer in verdict.layers.items()
        if path in set(culprits) and (ratio := own_ratio(layer)) is not None and ratio > 1
    ]
    if found:
        ratio, kind = max(found)
        return kind, ratio
    return WHOLE, max((verdict.max_ratio for verdict in failed), default=float("inf"))
