"""The mutation score: how many known faults the cross-check catches, and whether it blames the right one.

A mutant counts as caught if a faulty witness fails; as located if every faulty witness that shows its
layers blames a layer that has the fault, or none where no layer has it; as sided if the side suspected is the
one at fault. A mutant that computes in float64 what the original does, on all images, is equivalent and not
counted; one that crashes, or gives another shape, is counted apart, since anybody notices.

Each mutant has its effect: what it changes of the output in float64, relative to the largest output. One
that nobody caught is missed, and the score fails, unless its effect is smaller than what honest float32
witnesses of the same model differ: that is told apart as hidden by rounding. What is a fault whatever it
computes, such as a file with other constants or labels, is never hidden: it is caught or missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import inf, isfinite
from operator import eq
from threading import Event
from typing import Any

import numpy as np

from backends.process.client import Worker
from export.crosscheck import JUDGE, Verdict, probes, suspects
from export.crosscheck.inputs import noise, plain
from export.selftest.comparators import COMPARATORS, Pair
from export.selftest.honest import Honest
from export.selftest.margins import WHOLE, Margins, decisive
from export.selftest.mutants import IN_FILE, Mutant, Outputs, Subject, mutants, subject
from zoo import data, pretrained
from zoo.errors import CheckFailed
from zoo.model import Model
from zoo.weights import Weights, init_weights

EQUAL = 1e-12  # of the largest output: in float64 the rest is rounding
FEW, PROBES = 3, 40
REAL, NOISE = 5, 3  # images beside what the cross-check adds; half as many
LARGE = 10_000_000  # for models with more multiply-accumulates than this
STATES = ("caught", "missed", "hidden", "crashed", "equivalent")
LOCATED = 0.95  # the least share that has to be located

Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """What became of one mutant.

    state: one of STATES. effect: in float64, relative to the largest output; of a caught one, on the first
    images that show it. culprits, blamed: the layers at fault, and those named. place, suspected: the side at
    fault, and those suspected. ratio: the largest difference as a multiple of its limit. kind, own_ratio: see
    margins.decisive. content: the comparators that noticed nothing. diagnosis: what it was said to be.
    """

    fault: str
    model: str
    place: str
    state: str
    effect: float = 0.0
    culprits: tuple[str, ...] = ()
    blamed: tuple[str | None, ...] = ()
    suspected: tuple[str, ...] = ()
    ratio: float = 0.0
    kind: str = WHOLE
    own_ratio: float = 0.0
    content: tuple[str, ...] = ()
    diagnosis: str = ""

    @property
    def located(self) -> bool:
        """Whether the layers named are at fault; none need be named in a file that is another, none may be
        where no layer is."""
        if self.place == IN_FILE or not self.culprits:
            return set(self.blamed) - {None} <= set(self.culprits)
        return bool(self.blamed) and set(self.blamed) <= set(self.culprits)

    @property
    def sided(self) -> bool:
        """Whether the side suspected, and no other, is at fault."""
        return self.suspected == (self.place,)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "fault": self.fault,
            "model": self.model,
            "place": self.place,
            "state": self.state,
            "effect": self.effect if isfinite(self.effect) else None,
            "culprits": list(self.culprits),
            "blamed": list(self.blamed),
            "located": self.located,
            "suspected": list(self.suspected),
            "sided": self.sided,
            "max_ratio": self.ratio if isfinite(self.ratio) else None,
            "kind": self.kind,
            "own_ratio": self.own_ratio if isfinite(self.own_ratio) else None,
            "content": list(self.content),
            "diagnosis": self.diagnosis,
        }


@dataclass
class Score:
    """The results of all mutants, and of honest cases where any were asked for.

    planted: whether anything was. false_alarms: honest witnesses of the models that fail. honest_margins: of
    these witnesses.
    """

    backends: list[str]
    results: list[Result] = field(default_factory=list)
    honest: Honest | None = None
    false_alarms: list[str] = field(default_factory=list)
    honest_margins: Margins = field(default_factory=Margins)
    planted: bool = True

    def of(self, *states: str) -> list[Result]:
        """The results with one of these states."""
        return [result for result in self.results if result.state in states]

    @property
    def located(self) -> int:
        """How many of the caught ones are located."""
        return sum(result.located for result in self.of("caught"))

    @property
    def sided(self) -> int:
        """How many of the caught ones are laid to the right side."""
        return sum(result.sided for result in self.of("caught"))

    @property
    def smallest(self) -> Result | None:
        """The caught mutant that is least beyond a limit."""
        return min(self.of("caught"), key=lambda result: result.ratio, default=None)

    @property
    def margins(self) -> Margins:
        """Largest honest ratio and smallest caught fault, by kind of layer."""
        found = Margins()
        found.take(self.honest_margins)
        if self.honest is not None:
            found.take(self.honest.margins)
        for result in self.of("caught"):
            if isfinite(result.own_ratio):
                where = f"{result.fault}, {result.model} {', '.join(result.culprits)} ({result.place})"
                found.of(result.kind).catch(result.own_ratio, where)
        return found

    @property
    def passed(self) -> bool:
        """Whether all are caught, enough located, and nobody honest was accused."""
        caught = self.of("caught")
        quiet = not self.false_alarms and (self.honest is None or not self.honest.alarms)
        if not self.planted:
            return quiet and self.honest is not None
        return bool(caught) and not self.of("missed") and quiet and self.located >= LOCATED * len(caught)

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON data."""
        states = Counter(result.state for result in self.results)
        caught, smallest = self.of("caught"), self.smallest
        return {
            "kind": "selftest",
            "passed": self.passed,
            "backends": self.backends,
            "models": list(dict.fromkeys(result.model for result in self.results)),
            "faults": len({result.fault for result in self.results}),
            "mutants": len(self.results),
            **{state: states[state] for state in STATES},
            "located": self.located,
            "sided": self.sided,
            "false_alarms": self.false_alarms,
            "smallest_caught": None if smallest is None else smallest.to_dict(),
            "comparators": {
                name: sum(name not in result.content for result in caught) for name in COMPARATORS
            },
            "honest": None if self.honest is None else self.honest.to_dict(),
            "kinds": self.margins.to_list(),
            "table": self.table(),
            "results": [result.to_dict() for result in self.results],
        }

    def table(self) -> list[dict[str, Any]]:
        """One row per fault: mutants by state, located, sided, and what each comparator caught."""
        rows = []
        for fault in dict.fromkeys(result.fault for result in self.results):
            own = [result for result in self.results if result.fault == fault]
            caught = [result for result in own if result.state == "caught"]
            states = Counter(result.state for result in own)
            rows.append(
                {
                    "fault": fault,
                    **{state: states[state] for state in STATES},
                    "located": sum(result.located for result in caught),
                    "sided": sum(result.sided for result in caught),
                    "comparators": {
                        name: sum(name not in result.content for result in caught) for name in COMPARATORS
                    },
                }
            )
        return rows


def score(
    cases: Sequence[tuple[Model, Weights]],
    backends: Sequence[str],
    say: Say | None = None,
    faults: Collection[str] = (),
) -> Score:
    """Plant every known fault in every model, one at a time, and see what the cross-check says.

    backends: those that take part, each in its own process; without any, only files and the judge have
    faults. say: told (model, done, mutants) as it goes. faults: only these. Raises BackendUnavailable.
    """
    found = Score(list(backends), planted=bool(cases))
    with ExitStack() as stack:
        if not cases:
            return found
        workers = {name: stack.enter_context(Worker(name, threads=1)) for name in backends}  # all at once
        for model, weights in cases:
            checked = subject(model, weights, images(model), workers)
            found.false_alarms += [
                f"{model.name}: {name}" for name, verdict in checked.honest.items() if not verdict.passed
            ]
            for name, verdict in checked.honest.items():
                found.honest_margins.take_honest(model, verdict, f"{model.name}: {name}")
            planted = [mutant for mutant in mutants(checked) if not faults or mutant.fault in faults]
            found.results += _judged(planted, checked, say)
    return found


def _judged(every: list[Mutant], subject: Subject, say: Say | None) -> list[Result]:
    """The results of all mutants of a model, in their order.

    Each backend's faults have a thread, because a worker answers one at a time; those of files another.
    The judge's come last: they need everybody.
    """
    results: dict[int, Result] = {}
    stopped = Event()

    def run(places: Callable[[str], bool]) -> None:
        for number, mutant in enumerate(every):
            if places(mutant.place) and not stopped.is_set():
                results[number] = judge_mutant(mutant, subject)
                if say:
                    say(subject.model.name, len(results), len(every))

    apart: list[Callable[[str], bool]] = [partial(eq, name) for name in subject.workers]
    apart.append(lambda place: place not in (*subject.workers, JUDGE))
    with ThreadPoolExecutor(len(apart)) as pool:
        try:
            list(pool.map(run, apart))
        except BaseException:  # an interrupt, too: a thread would go on, or wait for its worker
            stopped.set()
            for worker in subject.workers.values():
                worker.close()
            raise
    run(partial(eq, JUDGE))
    return [results[number] for number in range(len(every))]


def weights(model: Model) -> Weights:
    """The weights to test a model with: those of the package, initial ones where there are none."""
    return pretrained.weights(model) if pretrained.has(model) else init_weights(model)


def images(model: Model) -> np.ndarray:
    """Real scans of digits, where they fit the model, and noise."""
    half = 2 if model.macs > LARGE else 1
    made = noise(model, NOISE // half)
    real = data.to_float(data.digits().test_images[: REAL // half])
    return np.concatenate([real, made]) if real.shape[1:] == model.input_shape else made


def judge_mutant(mutant: Mutant, subject: Subject) -> Result:
    """Let the cross-check and the comparators have a look at one mutant."""
    judgement = subject.judgement
    mixed = judgement.layer_images[plain(judgement.layer_images)]  # no other tool tries brighter ones
    culprits = tuple(sorted(mutant.culprits))
    effect = _effect(mutant, subject)
    if effect <= EQUAL and not mutant.certain:
        return Result(mutant.fault, mutant.model, mutant.place, "equivalent", effect, culprits)
    faulty = mutant.verdicts()
    failed = [verdict for verdict in faulty.values() if not verdict.passed]
    if failed:
        state = "crashed" if all(map(_crashed, failed)) else "caught"
    else:
        effect = _effect(mutant, subject, whole=True)
        state = "missed" if mutant.certain or effect > _noise(subject) else "hidden"
    kinds = {node.path: type(node.layer).__name__ for node in subject.model.walk()}
    both = np.concatenate([mixed, np.ones_like(mixed)])
    got, expected = _outputs(mutant.outputs, both), judgement.network.predict(both)
    pairs = [Pair(got[rows], expected[rows]) for rows in (slice(len(mixed)), slice(len(mixed), None))]
    return Result(
        mutant.fault,
        mutant.model,
        mutant.place,
        state,
        effect,
        culprits,
        tuple(dict.fromkeys(verdict.culprit for verdict in failed if verdict.layers)),
        tuple(suspects((faulty if mutant.place == JUDGE else subject.honest | faulty).values())),
        max((verdict.max_ratio for verdict in faulty.values()), default=inf),
        *decisive(failed, mutant.culprits, kinds),
        tuple(name for name, content in COMPARATORS.items() if _content(content, pairs)),
        next((verdict.diagnosis for verdict in failed if verdict.diagnosis), ""),
    )


def _effect(mutant: Mutant, subject: Subject, whole: bool = False) -> float:
    """What a mutant changes of the output in float64, relative to the largest output; infinite for NaN or
    another shape. On more images than any witness is compared for; most show it on the first few.

    whole: on all of these, not only the first that show it.
    """
    original = mutant.original or subject.judgement.network.predict
    mixed = subject.judgement.layer_images
    sets = (mixed[:FEW], mixed, probes(subject.model, PROBES)) if mutant.shows is None else (mutant.shows,)
    effect = 0.0
    for images in sets:
        outputs, wanted = _exact(mutant, images), original(images)
        if outputs.shape != wanted.shape or not np.isfinite(outputs).all():
            return inf
        each = tuple(range(1, wanted.ndim))
        apart, size = (np.abs(x).max(axis=each) for x in (outputs - wanted, wanted))
        size = np.maximum(size, size[plain(images)].max(initial=0))
        effect = max(effect, float((apart / np.where(size > 0, size, 1)).max()))
        if effect > EQUAL and not whole:
            break
    return effect


def _noise(subject: Subject) -> float:
    """What honest float32 witnesses of the model differ, relative to the largest output."""
    largest = float(np.abs(subject.judgement.outputs).max()) or 1.0
    apart = [v.output.max_abs_diff for v in subject.honest.values() if v.output and not v.output.problem]
    return max(apart, default=0.0) / largest


def _exact(mutant: Mutant, images: np.ndarray) -> np.ndarray:
    """What a mutant gives in float64; nothing where it gives nothing in float32 either."""
    try:
        return mutant.exact(images)
    except Exception as error:  # of whatever the fault breaks, or of what computes in float64
        if not _outputs(mutant.outputs, images).size:
            return np.empty(0)
        raise CheckFailed(
            f"nobody knows what {mutant.fault!r} changes in float64: {type(error).__name__}: {error}",
            f"{mutant.model}, {mutant.place}",
        ) from error


def _outputs(outputs: Outputs, images: np.ndarray) -> np.ndarray:
    """The outputs for images; nothing where the faulty side stops."""
    try:
        return outputs(images)
    except Exception:  # of whatever the fault breaks
        return np.empty(0)


def _crashed(verdict: Verdict) -> bool:
    """Whether anybody would notice: no output at all, or one of another shape."""
    if verdict.error or verdict.output is None:
        return True
    return verdict.output.problem.startswith("shape")


def _content(comparator: Callable[[Pair, Pair], bool], pairs: Sequence[Pair]) -> bool:
    mixed, ones = pairs
    if mixed.got.shape != mixed.expected.shape or ones.got.shape != ones.expected.shape:
        return False
    return comparator(mixed, ones)
