"""The generators of honest cases: that they hold what they promise, and that a seed says it all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from backends.process.client import Workers
from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.crosscheck import limits, probes
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.selftest import GENERATORS, sweep, trained
from export.selftest.hard import DENORMAL, GATES, INTEGER, LARGEST, hard_case
from export.selftest.honest import hear
from export.selftest.random_models import Case, Seeded
from zoo import pretrained
from zoo.layers import (
    BatchNorm,
    Concat,
    Conv2d,
    GlobalAvgPool2d,
    Join,
    LocalResponseNorm,
    Normalize,
    Residual,
    Scale,
    Sigmoid,
)
from zoo.model import IMAGE, Model
from zoo.recipe import SGD, Recipe
from zoo.weights import check

HARD = [hard_case(Seeded(seed)) for seed in range(150)]


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_case_is_a_function_of_generator_and_seed(generator: str) -> None:
    with Workers(threads=1) as workers:
        first, again, other = (GENERATORS[generator](seed, workers) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.images, again.images)
    assert first.model == again.model
    assert first.weights.keys() == again.weights.keys()
    for name, array in first.weights.items():
        np.testing.assert_array_equal(array, again.weights[name])
    assert first.model != other.model or any(
        not np.array_equal(array, other.weights[name]) for name, array in first.weights.items()
    )


def _some(holds: Callable[[Case], bool]) -> bool:
    """Whether it is so in a few of the hard cases at least."""
    return sum(map(holds, HARD)) >= 3


def _any_weight(case: Case, holds: Callable[[np.ndarray], bool]) -> bool:
    return any(holds(array) for array in case.weights.values() if array.ndim > 1)


def test_hard_cases_hold_what_rounds_most() -> None:
    for kind in (Residual, Concat, Scale, BatchNorm, GlobalAvgPool2d):
        assert _some(lambda case, kind=kind: any(isinstance(n.layer, kind) for n in case.model.walk()))  # type: ignore[misc]
    assert _some(lambda case: 18.5 in _means(case))
    assert _some(lambda case: len(case.model.walk()) > 30)
    assert _some(lambda case: sum(isinstance(n.layer, Join) for n in case.model.walk()) > 1)
    assert _some(lambda case: _any_weight(case, lambda w: not w[0].any()))
    assert _some(lambda case: _any_weight(case, lambda w: w.shape[1] >= 12 and np.unique(w).size == 1))
    assert _some(lambda case: _any_weight(case, lambda w: 0 < np.abs(w).max() < 10 * DENORMAL))
    assert _some(lambda case: _any_weight(case, lambda w: np.abs(w).max() == INTEGER))
    assert _some(
        lambda case: any(w.max() < 1e-9 for name, w in case.weights.items() if "running_var" in name)
    )
    for bias in (-17, -18, 17, 18):
        assert bias in GATES
        assert _some(lambda case, bias=bias: bias in _gate_biases(case))  # type: ignore[misc]
    constant = [case for case in HARD if case.model.input_shape[1] == 56]
    assert len(constant) >= 3


def _means(case: Case) -> list[float]:
    return [n.layer.mean[0] for n in case.model.walk() if isinstance(n.layer, Normalize)]


def _gate_biases(case: Case) -> list[float]:
    before = [n.inputs[0] for n in case.model.walk() if isinstance(n.layer, Sigmoid)]
    names = [f"{path}.bias" for path in before]
    return [float(case.weights[name][0]) for name in names if name in case.weights]


def test_hard_cases_are_what_float32_can_hold() -> None:
    for seed, case in enumerate(HARD):
        check(case.model, case.weights)
        assert case.images.dtype == np.float32
        assert case.images.shape[1:] == case.model.input_shape
        images = np.concatenate([case.images, probes(case.model, 8)])
        tensors = {IMAGE: images.astype(np.float64)}
        for node, weights in ReferenceNetwork(case.model, case.weights).nodes:
            tensors[node.path] = apply(node.layer, node.take(tensors), weights)
            largest = np.abs(tensors[node.path]).max()
            assert largest < (4 * LARGEST) ** 3, f"seed {seed}: {node.path}"


def test_trained_cases_are_of_the_package_with_real_digits() -> None:
    with Workers(threads=1) as workers:
        cases = [trained.trained_case(seed, workers) for seed in range(24) if seed % trained.IMPORTED != 3]
    assert {case.model.name for case in cases} > {"beginning"}
    assert {case.model.name for case in cases} - {"beginning"} <= set(pretrained.names())
    for case in cases:
        check(case.model, case.weights)
        assert case.images.shape == (trained.IMAGES, *case.model.input_shape)
        assert 0 <= case.images.min() < case.images.max() <= 1


def test_without_their_framework_classics_are_models_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "_installed", lambda source: False)
    with Workers(threads=1) as workers:
        case = trained.trained_case(trained.IMPORTED - 1, workers)
    assert case.images.shape[1:] == (1, 28, 28)


@pytest.mark.parametrize("framework", ["torch"], indirect=True)
def test_a_classic_is_imported_and_cut(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setattr(trained, "CLASSICS", (("torchvision", "squeezenet1_1"),))
    with Workers(threads=1) as workers:
        case = trained.trained_case(trained.IMPORTED - 1, workers)
    assert case.model.name == "beginning"
    assert isinstance(case.model.layers[1], Conv2d)
    assert case.images.shape[1] == 3
    assert case.images.shape[2] in trained.SIZES
    assert case.model.macs <= trained.MOST_MACS
    check(case.model, case.weights)


def test_generators_take_turns() -> None:
    heard: list[tuple[str, int, int]] = []
    found = sweep(4, [], 7, lambda *told: heard.append(told), ["random", "hard"])
    assert [(tally.generator, tally.cases) for tally in found.tallies] == [("random", 2), ("hard", 2)]
    assert heard[-1] == ("honest", 4, 4)
    assert (found.cases, found.witnesses) == (4, 12)
    kinds = {margin["kind"]: margin["honest_ratio"] for margin in found.margins.to_list()}
    assert kinds["the whole network"] is not None


@pytest.mark.parametrize("generator", GENERATORS)
def test_an_accusation_says_how_to_hear_it_again(generator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNIT", limits.UNIT / 1000)
    found = sweep(2, [], 20_000, generators=[generator])
    assert found.alarms
    assert found.alarms[0].startswith(f"{generator}, seed 2000")
    assert f"again: zoo selftest --no-faults --generator {generator} --seed 2000" in found.alarms[0]


@pytest.mark.parametrize("seed", [532, 541])
def test_cases_that_were_accused(seed: int) -> None:
    """Errors that are alike all over a flat map, and a normalisation of one channel after huge squares."""
    with Workers(threads=1) as workers:
        case = GENERATORS["hard"](seed, workers)
        report = hear(case.model, case.weights, case.images, [], workers)
    assert report.passed, [(verdict.witness, verdict.max_ratio) for verdict in report.verdicts]


def test_a_normalisation_of_one_channel_does_not_depend_on_the_others() -> None:
    layer = LocalResponseNorm(1, alpha=1.0, beta=1.0, k=1.0)
    model = Model("m", (3, 1, 2), (layer,), Recipe(SGD(0.1), batch_size=1, epochs=1), labels=())
    images = np.array([1e6, 1.0, 1e-3, 1e8, 2.0, 0.5], np.float32).reshape(1, 3, 1, 2)
    got = Session(serialize(to_onnx(model, {}))).predict(images)
    np.testing.assert_allclose(got, images / (1 + images.astype(np.float64) ** 2), rtol=1e-6)
