"""Everything that computes a model, on one case; and a disagreement as a script of its own.

A case (random_models.py) goes through the backends in float64, where semantics are proved, and in
float32, where the cross-check judges every witness; its spec and its file must survive being
written and read. What disagrees is a list of sentences.

A script holds the spec, the weights and the seed of the images. It needs nothing but the zoo: who
receives it sees the disagreement, or that there is none with the versions installed there.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

import numpy as np

import zoo
from backends.process.client import Workers
from backends.reference.network import ReferenceNetwork
from export import crosscheck
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.selftest.random_models import Case
from zoo import weights as weights_file
from zoo.errors import ZooError
from zoo.spec.file import parse_spec

SEMANTICS = 1e-12  # relative to the largest value of a tensor, in float64
FLOAT64 = 2.0**-29  # its rounding in units of float32's

_SCRIPT = """\
# A disagreement that cnn-zoo {version} found:
{found}
# It needs the zoo with {backends}. It prints what disagrees and exits with 1, or with 0 if nothing does.

from export.selftest.reproduction import main

SPEC = r'''
{spec}'''

WEIGHTS = '''
{weights}
'''  # safetensors in base64

main(SPEC, WEIGHTS, seed={seed}, native={native}, backends={names})
"""


def disagreements(case: Case, backends: Sequence[str], workers: Workers) -> list[str]:
    """What disagrees in any respect, one sentence each; none if all is well."""
    report = cross_check(case, backends, workers)
    return [*semantics(case, backends, workers), *numerics(report), *persistence(case, report.onnx)]


def semantics(case: Case, backends: Sequence[str], workers: Workers) -> list[str]:
    """Where a backend in float64 is not the reference: its output, and every layer's.

    A tensor may also differ by what rounding in float64 honestly makes of it, which is more where a
    formula cancels: exp(x) - 1 of a tiny x.
    """
    expected = crosscheck.judge_layers(ReferenceNetwork(case.model, case.weights), case.images)
    *_, last = expected.values()
    found = []
    for name in backends:
        with workers.use(name) as worker:
            try:
                network = worker.build(case.model, case.weights, "float64")
                got = {"the output": network.predict(case.images), **network.activations(case.images)}
            except ZooError as error:
                found.append(f"float64 {name}: {error}")
                continue
        for path, layer in {"the output": last, **expected}.items():
            limit = np.maximum(SEMANTICS * np.abs(layer.output).max(initial=0), FLOAT64 * layer.limit)
            comparison = crosscheck.compare(got[path], layer.output, limit, "float64")
            if not comparison.passed:
                found.append(f"float64 {name}, {path}: {comparison}")
    return found


def cross_check(case: Case, backends: Sequence[str], workers: Workers) -> crosscheck.Report:
    """The cross-check of the direct export and of the backends' networks, all in float32."""
    model, weights = case.model, case.weights
    judgement = crosscheck.judge(model, weights, case.images)
    report = crosscheck.check_direct(model, weights, judgement)
    for name in backends:
        with workers.use(name) as worker:
            try:
                network = worker.build(model, weights)
            except ZooError as error:
                report.verdicts.append(crosscheck.Verdict(name, error=str(error)))
                continue
            if case.native:
                crosscheck.check_network(name, network, weights, judgement, report)
            else:
                report.verdicts.append(crosscheck.examine(name, network, judgement, network.activations))
    return report


def numerics(report: crosscheck.Report) -> list[str]:
    """Which witnesses failed the cross-check, and where."""
    return [
        f"float32 {verdict.witness}{part}"
        for verdict in report.verdicts
        if not verdict.passed
        for part in _failures(verdict)
    ]


def persistence(case: Case, content: bytes) -> list[str]:
    """Whether the spec survives its JSON, and the same content (an ONNX file) comes from it again."""
    again = parse_spec(case.model.to_json().encode(), "spec")
    found = [] if again == case.model else ["the spec is another one after it was written and read"]
    turned = dict(reversed(case.weights.items()))
    if serialize(to_onnx(again, turned)) != content:
        found.append("the direct export gives other bytes for the same model and weights")
    return found


def script(case: Case, found: Iterable[str], backends: Sequence[str]) -> str:
    """A program that checks a case again; `found`: what disagreed, for its reader."""
    return _SCRIPT.format(
        version=zoo.__version__,
        found="\n".join(f"#   {line}" for sentence in found for line in textwrap.wrap(sentence, 100)),
        backends=" and ".join(backends) or "no framework",
        spec=case.model.to_json().replace("'", r"\u0027"),
        weights="\n".join(textwrap.wrap(base64.b64encode(weights_file.to_bytes(case.weights)).decode(), 100)),
        seed=case.seed,
        native=case.native,
        names=list(backends),
    )


def main(spec: str, weights: str, *, seed: int, native: bool, backends: Sequence[str]) -> NoReturn:
    """What a script does: check the case in processes of its own, print, exit."""
    model = parse_spec(spec.encode(), "spec")
    case = Case(model, weights_file.from_bytes(base64.b64decode(weights), model), seed, native)
    with Workers() as workers:
        found = disagreements(case, backends, workers)
    print(*found or ["everything agrees"], sep="\n")
    raise SystemExit(1 if found else 0)


def _failures(verdict: crosscheck.Verdict) -> Iterator[str]:
    """What failed of one witness, each to stand behind its name."""
    if verdict.error or verdict.output is None:
        yield f": {verdict.error}"
        return
    if verdict.culprit is not None:
        yield f", {verdict.culprit}: {verdict.layers[verdict.culprit]}"
    for what in ("output", "logits", "decisions"):
        part = getattr(verdict, what)
        if part is not None and not part.passed:
            yield f", {what}: {part}"
