"""Holding what was brought in to what it came from, and keeping it only if all agree.

The original is the judge here: a framework's own module in float64, or a foreign ONNX file in onnxruntime.
Every witness (the reference, each backend, the zoo's own ONNX export) gets the same weights and images, in
groups (`images.py`) with a limit each.
An output of probabilities is compared as centred logarithms too: where a thousand classes share the
probability, an absolute limit sees nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import backends
import zoo
from backends.process.client import Workers
from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.crosscheck import DIRECT, JUDGE, Comparison, compare, outer_limit
from export.crosscheck.comparison import worst_of
from export.crosscheck.inputs import probes
from export.crosscheck.limits import running
from export.imports import images as judged
from export.imports import originals, reading
from export.imports.reading import Unsupported
from export.inference.session import CHUNK, Session
from export.inference.vectors import ABSOLUTE, RELATIVE
from export.onnx import contents
from export.onnx.file import serialize
from export.onnx.graph import to_layers_onnx, to_onnx
from export.runs import card
from zoo import machine, runs
from zoo.errors import CheckFailed
from zoo.layers import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, Shape
from zoo.model import IMAGE, Model
from zoo.weights import Weights, digest, to_bytes

OWN, CEILING = 8.0, 0.01  # see `allowed`
NEEDED = {"noise", "digits", judged.SEARCHED}  # groups without which nothing is kept
AT_A_TIME = 16  # images, of a file that takes any number
SMALLEST = 1e-25  # of probabilities whose logarithms are compared
MOST_PIXELS = 2**26  # of the images that a file takes at a time
# In float64 the same formulas in another order differ by a few units of 2^-53 per layer: the deepest
# classic measures 1e-14 relative to its largest output.
FLOAT64 = 1e-12
Say = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One witness beside the original: on which images, in which dtype, how far apart."""

    witness: str
    dtype: str
    shape: tuple[int, ...]
    images: int
    comparison: Comparison
    group: str = ""  # of the images on which it is furthest off

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON data."""
        return {
            "witness": self.witness,
            "dtype": self.dtype,
            "input_shape": list(self.shape),
            "images": self.images,
            "furthest_on": self.group,
            **self.comparison.to_dict(),
        }


@dataclass(frozen=True)
class Answers:
    """What the original gives for a group of images, and how far float32 may be from it.

    images: float32 (N, C, H, W). expected: float64 (N, *output shape). own: the original's float32 outputs
    for them, and for others that differ by rounding alone. probabilities: whether that is what outputs are.
    """

    group: str
    images: np.ndarray
    expected: np.ndarray
    own: Sequence[np.ndarray]
    probabilities: bool = False

    @cached_property
    def limit(self) -> float:
        """What a float32 output may differ."""
        plain = allowed(self.expected, *self.own)
        if not self.probabilities:
            return plain
        # A logit that is off by d moves a probability p by p d.
        return max(plain, float(self.expected.max(initial=0)) * self.logit_limit)

    @cached_property
    def logit_limit(self) -> float:
        """The same for the logarithms of probabilities."""
        logits = [self.logits(x) for x in (self.expected, *self.own)]
        return max(outer_limit(logits[0]), allowed(*logits))

    @property
    def decidable(self) -> bool:
        """Whether the original's rounding is so far below its outputs that they tell something."""
        kinds = [[self.expected, *self.own]]
        if self.probabilities:
            kinds.append([self.logits(x) for x in kinds[0]])
        return all(
            OWN * _apart(own, expected) <= CEILING * float(np.abs(expected).max(initial=0))
            for expected, *others in kinds
            for own in others
        )

    def logits(self, outputs: np.ndarray) -> np.ndarray:
        return _centred_logarithms(outputs, self.expected)

    def against(self, found: np.ndarray) -> Comparison:
        """A witness's float32 outputs beside these."""
        plain = compare(found, self.expected, self.limit)
        if not self.probabilities or plain.problem:
            return plain
        logits = compare(self.logits(found), self.logits(self.expected), self.logit_limit, "float64")
        return worst_of([plain, logits])


@dataclass(frozen=True)
class Candidate:
    """What was brought in, and the backends that are asked about it. say: gets lines for the user."""

    model: Model
    weights: Weights
    backends: Sequence[str]
    workers: Workers
    say: Say

    @cached_property
    def onnx(self) -> bytes:
        """The zoo's own ONNX file of it."""
        return serialize(to_onnx(self.model, self.weights))

    def float32(self, answers: Sequence[Answers]) -> list[Check]:
        """Every witness in float32 on every group's images against the original's outputs for them.

        The reference computes in float64 and is rounded to float32 at the end.
        """
        images = np.concatenate([group.images for group in answers])
        outputs = ReferenceNetwork(self.model, self.weights).predict(images)
        checks = [self.check(JUDGE, outputs.astype(np.float32), answers)]
        checks.append(self.check(DIRECT, Session(self.onnx).predict(images), answers))
        for name in self.backends:
            with self.workers.use(name) as worker:
                outputs = worker.build(self.model, self.weights).predict(images)
            checks.append(self.check(name, outputs, answers))
        return checks

    def itself(self, name: str, answers: Sequence[Answers]) -> Check:
        """The original's own float32 outputs under the same limits."""
        return self.check(name, np.concatenate([group.own[0] for group in answers]), answers)

    def float64(self, model: Model, images: np.ndarray, expected: np.ndarray) -> list[Check]:
        """The reference and every backend in float64 against the original in float64.

        model: the same for images of another size, with the same weights.
        """
        limit = FLOAT64 * float(np.abs(expected).max(initial=0))
        found = {JUDGE: ReferenceNetwork(model, self.weights).predict(images)}
        for name in self.backends:
            with self.workers.use(name) as worker:
                found[name] = worker.build(model, self.weights, "float64").predict(images)
        checks = []
        for witness, outputs in found.items():
            comparison = compare(outputs, expected, limit, "float64")
            checks.append(Check(witness, "float64", model.input_shape, len(images), comparison))
            self.say(f"{witness}, float64, {model.input_shape[1]} x {model.input_shape[2]}: {comparison}")
        return checks

    def check(self, witness: str, outputs: np.ndarray, answers: Sequence[Answers]) -> Check:
        """One witness's float32 outputs for all groups against the original's, told to the user."""
        parts = _parts(outputs, [len(group.images) for group in answers])
        comparisons = [group.against(part) for group, part in zip(answers, parts, strict=True)]
        worst = worst_of(comparisons)
        group = answers[comparisons.index(worst)].group
        self.say(f"{witness}: {worst} ({group})")
        return Check(witness, "float32", self.model.input_shape, len(outputs), worst, group)


def allowed(expected: np.ndarray, *own: np.ndarray) -> float:
    """What a float32 output may differ from the original's.

    The outer limit; where the largest output is below 1 the same share of it, 3e-5 max|expected|. own: the
    original's outputs that differ by rounding alone. A network whose rounding they show to be larger is
    allowed OWN times as much as they differ, for nobody can compute it more exactly, but no more than
    CEILING max|expected|: beyond that nothing could be told, and `own` itself is refused.
    """
    largest = float(np.abs(expected).max(initial=0))
    limit = min(outer_limit(expected), (ABSOLUTE + RELATIVE) * largest) or ABSOLUTE
    noise = max((_apart(x, expected) for x in own if np.isfinite(x).all()), default=0.0)
    return max(limit, min(OWN * noise, CEILING * largest))


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max(initial=0))


def _parts(rows: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(counts)[:-1])


def answered(
    model: Model, groups: Sequence[judged.Group], expected: np.ndarray, own: Sequence[np.ndarray], say: Say
) -> list[Answers]:
    """An original's outputs by group: of the groups on which they tell something.

    What is left out is said. Raises CheckFailed if that is more than half of the groups, or one of NEEDED.
    """
    counts = [len(group.images) for group in groups]
    split = [_parts(outputs, counts) for outputs in (expected, *own)]
    found = []
    problem = ""
    for i, group in enumerate(groups):
        outputs, *others = (part[i] for part in split)
        if not all(np.isfinite(x).all() for x in (outputs, *others)):
            problem = " gives numbers that are not finite"
        else:
            answers = Answers(group.name, group.images, outputs, others, model.output == "probabilities")
            if answers.decidable:
                found.append(answers)
                continue
            problem = f"'s rounding may be more than {CEILING:.0%} of its outputs"
        say(f"not compared on {group.name}: the original{problem}")
    names = {group.name for group in groups} - {answers.group for answers in found}
    if 2 * len(found) < len(groups) or names & NEEDED:
        where = f"{len(groups) - len(found)} of {len(groups)} groups of images"
        raise CheckFailed(f"on {where} the original{problem}", model.name, "nothing was kept")
    return found


class _RunningSums(ReferenceNetwork):
    """The reference with every mean summed in float32, one number after the other.

    Some runtimes do so. Where an image is constant all terms are equal and the sum's roundings go one way:
    over 112 x 112 terms that is 50 units in the last place, and a deep network with gates makes more of it.
    """

    def run(self, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        tensors = {IMAGE: images.astype(np.float64)}
        for node, weights in self.nodes:
            taken = node.take(tensors)
            summed = running(node.layer, taken)
            tensors[node.path] = apply(node.layer, taken, weights) if summed is None else summed
            yield node.path, tensors[node.path]


def _summed(network: ReferenceNetwork, images: np.ndarray, expected: np.ndarray) -> list[np.ndarray]:
    """What an original may give that sums its means in turn; none if the network has none."""
    means = (GlobalAvgPool2d, AdaptiveAvgPool2d, AvgPool2d)
    if not any(isinstance(node.layer, means) for node, _ in network.nodes):
        return []
    model = network.model
    true, careless = (x.predict(images) for x in (network, _RunningSums(model, network.weights())))
    if model.output == "probabilities":
        return [expected * (careless / np.maximum(true, SMALLEST))]
    return [expected + (careless - true)]


def _centred_logarithms(probabilities: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Logits up to a constant, (N, classes) float64: of mean 0 in every row, over what is at least SMALLEST.

    Smaller ones, of which runtimes make 0 as it suits them, are 0 here, too.
    """
    seen = expected >= SMALLEST
    logits = np.log(
        np.maximum(probabilities.astype(np.float64), SMALLEST / 2), where=seen, out=np.zeros(seen.shape)
    )
    mean = logits.sum(axis=1, keepdims=True) / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    return np.where(seen, logits - mean, 0.0)


def require(checks: Iterable[Check], model: Model) -> None:
    """Raise CheckFailed, naming the first, if any witness differs from the original."""
    for check in checks:
        if not check.comparison.passed:
            raise CheckFailed(
                f"{check.witness} differs from the original in {check.dtype}: {check.comparison}",
                model.name,
                "nothing was kept",
            )


def keep(
    candidate: Candidate,
    about: Mapping[str, Any],
    checks: Sequence[Check],
    answers: Sequence[Answers],
    out: Path,
) -> tuple[Path, dict[str, Any]]:
    """Publish what was brought in as a run, `out`/<model>/import; its folder and its report.

    about: what it was made of. answers: the groups of images on which it was compared. Raises CheckFailed,
    keeping nothing, if a check failed.
    """
    model, weights, onnx = candidate.model, candidate.weights, candidate.onnx
    require(checks, model)
    report = {
        "model": model.name,
        "backend": card.IMPORTED,
        "imported": dict(about),
        "parameters": model.parameters,
        "weights_sha256": digest(weights),
        "onnx": {"sha256": hashlib.sha256(onnx).hexdigest(), "bytes": len(onnx)},
        "compared_on": [group.group for group in answers],
        "checks": [check.to_dict() for check in checks],
        "versions": machine.versions(
            [name for backend in backends.training_names() for name in backends.distributions(backend)]
        ),
    }
    files = {
        "model.onnx": onnx,
        "layers.onnx": serialize(to_layers_onnx(model, weights)),
        "weights.safetensors": to_bytes(weights, {"model": model.title, **about}),
        "spec.json": model.to_json().encode(),
        "report.json": (json.dumps(report, indent=1) + "\n").encode(),
        "README.md": card.import_card(model, report).encode(),
    }
    run = runs.Run(out / model.name / card.IMPORTED)
    with run.lock(candidate.say):
        run.publish(files, {"zoo": zoo.__version__, **about})
    return run.path, report


def import_original(
    wish: originals.Wish, backend_names: Sequence[str], out: Path, workers: Workers, say: Say
) -> tuple[Path, dict[str, Any]]:
    """Bring in a framework's own model; the folder it is kept in, and its report.

    It is compared in float32 at its full size, and in float64 on one image of originals.SMALL x SMALL.
    What the zoo has no spec of is read from the framework's own ONNX export instead; that has its constants
    folded in float32, so there is nothing to compare in float64.
    """
    say(f"{wish.source}:{wish.name}: building it")
    if not wish.has_spec:
        return _import_exported(wish, backend_names, out, workers, say)
    with workers.use(wish.backend) as worker:
        adopted = originals.adopt(wish, worker)
        network = ReferenceNetwork(adopted.model, adopted.weights)
        groups = judged.groups(network)
        images = np.concatenate([group.images for group in groups])
        expected = adopted.expected(images)
        own = [adopted.expected(x, "float32") for x in (images, judged.perturbed(images))]
        own += _summed(network, images, expected)
        small = wish.model(size=originals.SMALL)
        image = probes(small, 1)[:1]
        expected_small = adopted.expected(image)
    candidate = Candidate(adopted.model, adopted.weights, backend_names, workers, say)
    answers = answered(adopted.model, groups, expected, own, say)
    checks = [candidate.itself(f"{wish.source} itself", answers)]
    checks += candidate.float32(answers)
    checks += candidate.float64(small, image, expected_small)
    return keep(candidate, adopted.about, checks, answers, out)


def _import_exported(
    wish: originals.Wish, backend_names: Sequence[str], out: Path, workers: Workers, say: Say
) -> tuple[Path, dict[str, Any]]:
    with workers.use(wish.backend) as worker:
        original, about = originals.taken(wish, worker)
        content = original.export()
        found = reading.read(content, f"{wish.source}:{wish.name}", reading.free_name(wish.name))
        network = ReferenceNetwork(found.model, found.weights)
        groups = judged.groups(network, preprocessed=True)
        images = np.concatenate([group.images for group in groups])
        expected = original.predict(images, "float64")
        own = [original.predict(x) for x in (images, judged.perturbed(images))]
        own += _summed(network, images, expected)
    about["read_from"] = "the framework's ONNX export"
    candidate = Candidate(found.model, found.weights, backend_names, workers, say)
    answers = answered(found.model, groups, expected, own, say)
    checks = [candidate.itself(f"{wish.source} itself", answers), *candidate.float32(answers)]
    return keep(candidate, about, checks, answers, out)


def import_onnx(
    path: Path,
    backend_names: Sequence[str],
    out: Path,
    workers: Workers,
    say: Say,
    name: str | None = None,
    image: Shape | None = None,
    output: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Bring in an ONNX file; the folder it is kept in, and its report.

    name, image, output: see reading.read. The file itself, in a process of its own, is what every witness is
    compared with. Raises DataError, reading.Unsupported, CheckFailed.
    """
    content = contents.onnx_bytes(path, whole=True)
    found = reading.read(content, path, name, image, output)
    model, weights = found.model, found.weights
    say(f"{path}: {len(model.walk())} layers, {model.parameters:,} parameters")
    _check_batch(found, path)
    network = ReferenceNetwork(model, weights)
    groups = judged.groups(network)
    images = np.concatenate([group.images for group in groups])
    plain, optimised = (Session(content, optimize, foreign=True) for optimize in (False, True))
    expected = _outputs(plain, found, images, path).astype(np.float64)
    own = [_outputs(optimised, found, images, path), _outputs(plain, found, judged.perturbed(images), path)]
    answers = answered(model, groups, expected, own + _summed(network, images, expected), say)
    about = {
        "source": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "input": found.input.name,
        "output": found.output,
        "paths": found.paths,
    }
    candidate = Candidate(model, weights, backend_names, workers, say)
    checks = [candidate.itself("the file, optimised", answers), *candidate.float32(answers)]
    return keep(candidate, about, checks, answers, out)


def _most(model: Model) -> int:
    """The images that a file is given at a time, at most."""
    return min(CHUNK, max(1, MOST_PIXELS // prod(model.input_shape)))


def _check_batch(found: reading.Read, path: Path) -> None:
    """Raise Unsupported for a file that takes no batch, or too large a one."""
    if not found.input.batched:
        raise Unsupported("its input has no batch axis", path, "", ("no batch axis",))
    size, most = found.input.batch, _most(found.model)
    if size is not None and size > most:
        what = f"it takes {size:,} images at a time, at most {most} are accepted"
        raise Unsupported(what, path, "export it with a symbolic batch", (what,))


def _outputs(session: Session, found: reading.Read, images: np.ndarray, path: Path) -> np.ndarray:
    """What a file gives for images (N, C, H, W), float32 (N, *output shape).

    A file that takes a fixed number of images gets as many at a time, some of them twice.
    """
    given, shape = found.input, found.model.output_shape
    size = given.batch or min(AT_A_TIME, _most(found.model))
    whole = np.resize(images, (-(-len(images) // size) * size, *images.shape[1:]))
    parts = [
        session.run({given.name: given.given(whole[at : at + size])}, [found.output])[found.output]
        for at in range(0, len(whole), size)
    ]
    outputs = np.concatenate(parts)
    if outputs.size != len(whole) * prod(shape):
        raise CheckFailed(f"the file gives {outputs.shape}, the layers {shape} an image", path)
    return outputs.reshape(len(whole), *shape)[: len(images)]
