"""Holding what was brought in to what it came from, and keeping it only if all agree.

The original is the judge here: a framework's own module in float64, or a foreign ONNX file in onnxruntime.
Every witness (the reference, each backend, the zoo's own ONNX export) gets the same weights and images.
An output of probabilities is compared as centred logarithms too: where a thousand classes share the
probability, an absolute limit sees nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import backends
import zoo
from backends.client import Workers
from backends.reference import ReferenceNetwork
from export import artifacts, card
from export.crosscheck import DIRECT, JUDGE, Comparison, compare, outer_limit
from export.crosscheck.comparison import worst_of
from export.crosscheck.inputs import probes
from export.graph import serialize, to_layers_onnx, to_onnx
from export.imports import originals, reading
from export.imports.reading import Unsupported
from export.session import CHUNK, Session
from export.vectors import ABSOLUTE, RELATIVE
from zoo import machine, runs
from zoo.errors import CheckFailed
from zoo.layers import Shape
from zoo.model import Model
from zoo.weights import Weights, digest, to_bytes

OWN, CEILING = 8.0, 0.01  # see `allowed`
SMALLEST = 1e-25  # of probabilities whose logarithms are compared
MOST_PIXELS = 2**26  # of the images that a file takes at a time
PROBES = 4  # images that a file is asked about
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

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON data."""
        return {
            "witness": self.witness,
            "dtype": self.dtype,
            "input_shape": list(self.shape),
            "images": self.images,
            **self.comparison.to_dict(),
        }


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

    def float32(self, images: np.ndarray, expected: np.ndarray, limit: float) -> list[Check]:
        """Every witness in float32 on images (N, C, H, W) against the original's outputs for them.

        The reference computes in float64 and is rounded to float32 at the end.
        """
        outputs = ReferenceNetwork(self.model, self.weights).predict(images)
        checks = [self.check(JUDGE, outputs.astype(np.float32), expected, limit)]
        checks.append(self.check(DIRECT, Session(self.onnx).predict(images), expected, limit))
        for name in self.backends:
            with self.workers.use(name) as worker:
                outputs = worker.build(self.model, self.weights).predict(images)
            checks.append(self.check(name, outputs, expected, limit))
        return checks

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

    def check(self, witness: str, outputs: np.ndarray, expected: np.ndarray, limit: float) -> Check:
        """One witness's float32 outputs against the original's, told to the user."""
        comparison = against(self.model, outputs, expected, limit)
        self.say(f"{witness}: {comparison}")
        return Check(witness, "float32", self.model.input_shape, len(outputs), comparison)


def allowed(expected: np.ndarray, own: np.ndarray | None = None) -> float:
    """What a float32 output may differ from the original's.

    The outer limit; where the largest output is below 1 the same share of it, 3e-5 max|expected|. own: the
    original's outputs once more, in float32, or of a file with optimisations. A network whose rounding they
    show to be larger is allowed OWN times as much as they differ, for nobody can compute it more exactly, but
    no more than CEILING max|expected|: beyond that nothing could be told, and `own` itself is refused.
    """
    largest = float(np.abs(expected).max(initial=0))
    limit = min(outer_limit(expected), (ABSOLUTE + RELATIVE) * largest) or ABSOLUTE
    if own is None or not np.isfinite(own).all():
        return limit
    return max(limit, min(OWN * float(np.abs(own - expected).max(initial=0)), CEILING * largest))


def against(model: Model, found: np.ndarray, expected: np.ndarray, limit: float) -> Comparison:
    """Float32 outputs against the original's; probabilities as logits, too, under the outer limit."""
    plain = compare(found, expected, limit)
    if model.output != "probabilities" or plain.problem:
        return plain
    logits = [_centred_logarithms(x, expected) for x in (found, expected)]
    return worst_of([plain, compare(logits[0], logits[1], outer_limit(logits[1]), "float64")])


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
    candidate: Candidate, about: Mapping[str, Any], checks: Sequence[Check], out: Path
) -> tuple[Path, dict[str, Any]]:
    """Publish what was brought in as a run, `out`/<model>/import; its folder and its report.

    about: what it was made of. Raises CheckFailed, keeping nothing, if a check failed.
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
        images = probes(adopted.model, 1)
        expected = adopted.expected(images)
        own = adopted.expected(images, "float32")
        small = wish.model(size=originals.SMALL)
        image = probes(small, 1)[:1]
        expected_small = adopted.expected(image)
    candidate = Candidate(adopted.model, adopted.weights, backend_names, workers, say)
    limit = allowed(expected, own)
    checks = [candidate.check(f"{wish.source} itself", own, expected, limit)]
    checks += candidate.float32(images, expected, limit)
    checks += candidate.float64(small, image, expected_small)
    return keep(candidate, adopted.about, checks, out)


def _import_exported(
    wish: originals.Wish, backend_names: Sequence[str], out: Path, workers: Workers, say: Say
) -> tuple[Path, dict[str, Any]]:
    with workers.use(wish.backend) as worker:
        original, about = originals.taken(wish, worker)
        content = original.export()
        found = reading.read(content, f"{wish.source}:{wish.name}", reading.free_name(wish.name))
        images = (4 * probes(found.model, 1) - 2).astype(np.float32)  # as preprocessed ones are
        expected, own = original.predict(images, "float64"), original.predict(images)
    about["read_from"] = "the framework's ONNX export"
    candidate = Candidate(found.model, found.weights, backend_names, workers, say)
    limit = allowed(expected, own)
    checks = [candidate.check(f"{wish.source} itself", own, expected, limit)]
    return keep(candidate, about, checks + candidate.float32(images, expected, limit), out)


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
    content = artifacts.onnx_bytes(path, whole=True)
    found = reading.read(content, path, name, image, output)
    model, weights = found.model, found.weights
    say(f"{path}: {len(model.walk())} layers, {model.parameters:,} parameters")
    images, expected, own = _answers(content, found, path)
    about = {
        "source": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "input": found.input.name,
        "output": found.output,
        "paths": found.paths,
    }
    candidate = Candidate(model, weights, backend_names, workers, say)
    limit = allowed(expected, own)
    checks = [candidate.check("the file, optimised", own, expected, limit)]
    return keep(candidate, about, checks + candidate.float32(images, expected, limit), out)


def _answers(content: bytes, found: reading.Read, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, C, H, W), and what a file gives for them, (N, *output shape): as it is written (the float32
    numbers as float64), and with onnxruntime's optimisations.

    The two differ by rounding alone, so they show how much of it the file has. A file that takes a fixed
    number of images gets as many at a time.
    """
    model, given = found.model, found.input
    if not given.batched:
        raise Unsupported("its input has no batch axis", path, "", ("no batch axis",))
    most = min(CHUNK, max(1, MOST_PIXELS // prod(model.input_shape)))
    size = given.batch or min(PROBES, most)
    if size > most:
        what = f"it takes {size:,} images at a time, at most {most} are accepted"
        raise Unsupported(what, path, "export it with a symbolic batch", (what,))
    count = -(-PROBES // size) * size
    images = np.resize(probes(model, -(-count // 2)), (count, *model.input_shape))
    outputs = []
    for optimize in (False, True):
        session = Session(content, optimize, foreign=True)
        parts = [
            session.run({given.name: given.given(images[at : at + size])}, [found.output])[found.output]
            for at in range(0, count, size)
        ]
        outputs.append(np.concatenate(parts))
        if outputs[-1].size != count * prod(model.output_shape):
            shape = outputs[-1].shape
            raise CheckFailed(f"the file gives {shape}, the layers {model.output_shape} an image", path)
        if not np.isfinite(outputs[-1]).all():
            raise CheckFailed("the file gives numbers that are not finite for noise in [0, 1]", path)
    plain, optimised = (output.reshape(count, *model.output_shape) for output in outputs)
    return images, plain.astype(np.float64), optimised
