"""Random specs through every backend and exporter; a failure shrinks to a small one with a script.

ZOO_SPECS is the number of specs. The sessions that set it must have Hypothesis; elsewhere the tests
that need it are skipped by name. The default number is tried in the same order on every machine,
a larger one is a search: other specs each time. ZOO_REPRODUCTIONS names the folder for the scripts.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from conftest import FRAMEWORKS

from backends.process import client
from backends.process.client import Workers
from export import crosscheck
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.selftest import random_models, reproduction
from export.selftest.random_models import Case, Seeded, random_case, random_model
from zoo.layers import LAYERS, AvgPool2d, Conv2d, Dense, Layer, MaxPool2d, Softmax
from zoo.model import Model
from zoo.recipe import OPTIMIZERS
from zoo.spec.file import parse_spec
from zoo.weights import check, init_weights

DEFAULT_SPECS = 40
SPECS = int(os.environ.get("ZOO_SPECS", DEFAULT_SPECS))
MODELS = [random_model(Seeded(seed)) for seed in range(500)]
Check = Callable[[Case], list[str]]


class Low:
    """The chooser at which shrinking ends."""

    def integer(self, low: int, high: int) -> int:
        return low

    def choice(self, options: Any) -> Any:
        return options[0]


# What is generated, without any framework or library.


def layers_of(kind: type[Layer]) -> list[Any]:
    return [layer for model in MODELS for layer in model.layers if type(layer) is kind]


def test_every_layer_occurs() -> None:
    assert {type(layer).__name__ for model in MODELS for layer in model.layers} == set(LAYERS)
    assert {type(model.recipe.optimizer).__name__ for model in MODELS} == set(OPTIMIZERS)


def test_every_setting_occurs() -> None:
    convolutions, pools = layers_of(Conv2d), [*layers_of(MaxPool2d), *layers_of(AvgPool2d)]
    top_left = [(layer.padding[:2], layer.padding[2:]) for layer in convolutions]
    assert any(before != after for before, after in top_left), "asymmetric padding"
    assert any(layer.kernel[0] != layer.kernel[1] for layer in convolutions)
    assert any(layer.kernel[0] % 2 == 0 for layer in convolutions)
    assert any(layer.stride[0] != layer.stride[1] for layer in convolutions)
    assert any(max(layer.padding) >= max(layer.kernel) for layer in convolutions)
    assert (
        {layer.bias for layer in convolutions} == {layer.bias for layer in layers_of(Dense)} == {True, False}
    )
    assert any(layer.stride[0] < layer.size[0] for layer in pools), "overlapping"
    assert any(layer.stride[0] > layer.size[0] for layer in pools), "gaps"
    assert any(layer.size[0] != layer.size[1] for layer in pools)
    assert {model.input_shape[0] for model in MODELS} == {1, 2, 3, 4}
    assert any(model.input_shape[1] != model.input_shape[2] for model in MODELS)
    ends = {(model.output, len(model.output_shape)) for model in MODELS}
    assert ends == {("logits", 1), ("probabilities", 1), ("features", 1), ("features", 3)}
    assert any(sum(isinstance(layer, Dense) for layer in model.layers) > 2 for model in MODELS)
    assert any(layer.name for model in MODELS for layer in model.layers)
    assert all(not isinstance(layer, Softmax) for model in MODELS for layer in model.layers[:-1])
    assert max(len(model.layers) for model in MODELS) >= random_models.MOST_LAYERS + 2
    fan_in = [
        weight.fan_in
        for model in MODELS
        for node in model.walk()
        for weight in node.layer.weights(node.input_shape)
    ]
    assert max(fan_in) > 300


def test_a_case_is_a_function_of_the_seed() -> None:
    first, again, other = (random_case(Seeded(seed)) for seed in (5, 5, 6))
    assert first.model == again.model != other.model
    for name, array in first.weights.items():
        np.testing.assert_array_equal(array, again.weights[name])
    np.testing.assert_array_equal(first.images, again.images)


def test_weights_and_images_are_what_backends_take() -> None:
    scales = set()
    for seed in range(200):
        case = random_case(Seeded(seed))
        check(case.model, case.weights)
        scales |= {round(np.log10(np.abs(array).max())) for array in case.weights.values()}
        assert case.images.shape == (6, *case.model.input_shape)
        assert case.images.dtype == np.float32
        assert 0 <= case.images.min() <= case.images.max() <= 1
        judged = reproduction.ReferenceNetwork(case.model, case.weights).predict(case.images)
        assert np.abs(judged).max() < 1e30, "float32 must be able to hold it"
    assert scales >= {-3, 0, 2}


def test_the_simplest_case_is_a_single_layer() -> None:
    case = random_case(Low())
    assert [type(layer).__name__ for layer in case.model.layers] == ["Flatten"]
    assert case.model.input_shape == (1, 1, 1)
    assert not case.native


# Reproduction, without any framework.


def ran(script: Path, *, through: str = "") -> tuple[int, str]:
    """Exit code and output of a script in a process of its own; through: Python that comes before it."""
    code = f"{through}\nimport runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr.count("Traceback"), done.stderr
    return done.returncode, done.stdout


def model_in(script: str) -> Model:
    """The model that a script holds."""
    found = re.search(r"SPEC = r'''\n(.*?)'''", script, re.DOTALL)
    assert found
    return parse_spec(found[1].encode(), "script")


def test_a_script_holds_the_whole_case(tmp_path: Path) -> None:
    model = replace(MODELS[3], document="it's '''quoted'''", notes=('a \\ and a "',))
    case = Case(model, init_weights(model, 4), seed=7)
    text = reproduction.script(case, ["what was found " * 20], [])
    assert model_in(text) == model
    path = tmp_path / "script.py"
    path.write_text(text)
    assert ran(path) == (0, "everything agrees\n")
    path.write_text(text.replace("seed=7, native=False", "seed=8, native=False"))
    (given,) = called(path)
    assert (given["seed"], given["native"], given["backends"]) == (8, False, [])


def called(path: Path) -> list[dict[str, Any]]:
    """What a script hands to `main`."""
    calls: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduction, "main", lambda spec, weights, **rest: calls.append(rest))
        exec(compile(path.read_text(), str(path), "exec"), {})
    return calls


def test_what_is_written_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(Seeded(1))
    content = serialize(to_onnx(case.model, case.weights))
    assert reproduction.persistence(case, content) == []
    assert reproduction.persistence(case, content[:-1]) == [
        "the direct export gives other bytes for the same model and weights"
    ]
    monkeypatch.setattr(reproduction, "parse_spec", lambda *_: replace(case.model, notes=("more",)))
    assert "the spec is another one after it was written and read" in reproduction.persistence(case, content)


# Both frameworks.


@pytest.fixture(scope="session")
def hypothesis(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library, which must be there where ZOO_SPECS is set."""
    if "ZOO_SPECS" not in os.environ:
        pytest.importorskip("hypothesis")
    library = importlib.import_module("hypothesis")
    importlib.import_module("hypothesis.configuration").set_hypothesis_home_dir(
        tmp_path_factory.mktemp("hypothesis")
    )
    return library


@pytest.fixture
def folder(pytestconfig: pytest.Config) -> Path:
    """Where scripts are left for whoever reads the failure."""
    given = os.environ.get("ZOO_REPRODUCTIONS")
    path = Path(given) if given else Path(pytestconfig.cache.mkdir("reproductions"))
    path.mkdir(parents=True, exist_ok=True)
    return path


class Semantics(AssertionError):
    """Disagreements of each kind shrink by themselves: Hypothesis tells them apart by their class."""


class Numerics(AssertionError): ...


class Persistence(AssertionError): ...


def search(
    hypothesis: Any,
    examples: int,
    checks: dict[type[AssertionError], Check],
    folder: Path,
    names: Sequence[str],
) -> None:
    """Hold random cases to the checks; what fails is shrunk, written as a script and raised."""

    class Drawn:
        def __init__(self, draw: Any) -> None:
            self.draw = draw

        def integer(self, low: int, high: int) -> int:
            return self.draw(hypothesis.strategies.integers(low, high))

        def choice(self, options: Any) -> Any:
            return self.draw(hypothesis.strategies.sampled_from(options))

    @hypothesis.strategies.composite
    def cases(draw: Any) -> Case:
        return random_case(Drawn(draw))

    @hypothesis.settings(
        max_examples=examples,
        derandomize=examples <= DEFAULT_SPECS,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def agree(case: Case) -> None:
        for kind, found_by in checks.items():
            if found := found_by(case):
                path = folder / f"{kind.__name__.lower()}.py"
                path.write_text(reproduction.script(case, found, names))
                raise kind("\n".join([*found, f"Run this, which is {path}:", "", path.read_text()]))

    agree()


@pytest.mark.cross
@pytest.mark.usefixtures("workers")
def test_random_specs(hypothesis: Any, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Everything that computes a random model agrees with the reference.

    In float64 to 1e-12, in float32 under the cross-check's limits, for one in four with the
    frameworks' own exports. How many of those give the direct graph's bits is printed, not asserted.
    A spec that ends a framework's process is a disagreement like others, and shrinks in new processes.
    """
    tried: Counter[str] = Counter()
    reports: list[crosscheck.Report] = []

    def numerics(case: Case) -> list[str]:
        reports[:] = [reproduction.cross_check(case, FRAMEWORKS, running)]
        tried["specs"] += 1
        for verdict in reports[0].verdicts:
            if verdict.identical is not None:
                tried[verdict.witness] += 1
                tried[f"{verdict.witness}, identical"] += verdict.identical
        return reproduction.numerics(reports[0])

    checks: dict[type[AssertionError], Check] = {
        Semantics: lambda case: reproduction.semantics(case, FRAMEWORKS, running),
        Numerics: numerics,
        Persistence: lambda case: reproduction.persistence(case, reports[0].onnx),
    }
    with Workers() as running:
        search(hypothesis, SPECS, checks, folder, FRAMEWORKS)
    with capsys.disabled():
        print("", *(f"{what}: {count}" for what, count in sorted(tried.items())), sep="\n  ")
    assert tried["specs"] >= min(SPECS, DEFAULT_SPECS)
    for name in FRAMEWORKS:
        assert tried[crosscheck.native_name(name)] > 0


@pytest.fixture(scope="module")
def faulty() -> Iterator[Workers]:
    """A torch process in which faults can be planted."""
    with pytest.MonkeyPatch.context() as patch, Workers() as workers:
        patch.setattr(client, "PRELUDE", planted.boot())
        yield workers


def plant(workers: Workers, fault: str | None) -> None:
    with workers.use("torch") as worker:
        worker.ask("plant", fault=fault)


FAULTS: dict[str, tuple[type[Layer], int]] = {  # the layer that is left, and how many there are at most
    "padding on the opposite sides": (Conv2d, 2),
    "the largest for the mean": (AvgPool2d, 2),
    "a stride of the size": (MaxPool2d, 2),
}


@pytest.mark.cross
@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("fault", planted.LOWERINGS)
def test_a_planted_fault_shrinks(fault: str, hypothesis: Any, faulty: Workers, tmp_path: Path) -> None:
    kind, most = FAULTS[fault]
    checks: dict[type[AssertionError], Check] = {
        Semantics: lambda case: reproduction.semantics(case, ["torch"], faulty)
    }
    plant(faulty, fault)
    try:
        with pytest.raises(Semantics) as failure:
            search(hypothesis, 40, checks, tmp_path, ["torch"])
    finally:
        plant(faulty, None)
    text = (tmp_path / "semantics.py").read_text()
    assert text in str(failure.value)
    layers = [node.layer for node in model_in(text).walk()]
    assert kind in {type(layer) for layer in layers}
    assert len(layers) <= most, layers
    search(hypothesis, 40, checks, tmp_path, ["torch"])


@pytest.mark.cross
@pytest.mark.usefixtures("workers")
def test_a_script_shows_the_fault_where_it_is(tmp_path: Path) -> None:
    """Run alone it exits with 1 where the lowering is wrong, in float64 and in float32, else with 0."""
    layers = (Conv2d(1, 2, padding=(0, 1, 0, 0), name="edges"),)
    model = Model("random", (1, 3, 2), layers, random_models.RECIPES[0], labels=())
    path = tmp_path / "script.py"
    path.write_text(reproduction.script(Case(model, init_weights(model)), ["a sentence"], ["torch"]))
    through = (
        f"import sys; sys.path.append({str(Path(planted.__file__).parent)!r})\n"
        "import planted; from backends.process import client\n"
        "client.PRELUDE = planted.boot('padding on the opposite sides', 'torch')"
    )
    code, out = ran(path, through=through)
    assert code == 1, out
    assert "float64 torch, edges: max|d|" in out
    assert "float32 torch, edges: " in out
    assert ran(path) == (0, "everything agrees\n")
