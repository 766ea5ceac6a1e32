"""The mutation score: what it counts, that it can fail, and that every planted fault is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

import zoo
from backends.planting import FAULTS as PLANTED
from backends.planting import FRAMEWORKS, planted_in
from backends.process.client import Worker
from backends.reference.network import ReferenceNetwork
from export.crosscheck import Verdict, compare, examination, local
from export.crosscheck.inputs import noise
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.selftest import (
    COMPARATORS,
    Score,
    faults,
    graph_faults,
    mutants,
    rendering,
    score,
    scoring,
    sweep,
)
from export.selftest.comparators import Pair
from export.selftest.exemplar import EXEMPLAR, exemplar
from export.selftest.honest import Tally
from export.selftest.random_models import lively
from zoo.cli import main
from zoo.errors import CheckFailed, DataError
from zoo.layers import (
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    HardSigmoid,
    Join,
    Layer,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    ReLU6,
    Residual,
    Scale,
    Sigmoid,
    Softmax,
    Tanh,
)
from zoo.model import Model, Node
from zoo.recipe import SGD, Recipe

SMALL = Model(
    "small",
    (2, 9, 8),
    (
        Normalize((0.5, 0.1), (2.0, 3.0)),
        Conv2d(4, 3, padding=1),
        ReLU(),
        MaxPool2d(2),
        Conv2d(3, 2),
        ReLU(),
        AvgPool2d(2, 1),
        Dropout(0.5),
        Flatten(),
        Dense(10),
        Softmax(),
    ),
    Recipe(SGD(0.1), batch_size=4, epochs=1),
)

SOME = {
    "kernel flipped",
    "bias dropped",
    "weights off by 1e-3",
    "weights in float16",
    "ReLU missing",
    "ReLU6",
}
PLAIN = {*SOME, *graph_faults.IMAGE, "softmax missing", "softmax over the batch", graph_faults.FROZEN}


def _compare_by(monkeypatch: pytest.MonkeyPatch, comparing: object) -> None:
    """Have witnesses compared in another way: their outputs, and their layers."""
    for module in (examination, local):
        monkeypatch.setattr(module, "compare", comparing)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a few faults only."""
    monkeypatch.setattr(
        scoring,
        "mutants",
        lambda subject: (mutant for mutant in mutants.mutants(subject) if mutant.fault in PLAIN),
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return {name: 2 * array for name, array in zoo.init_weights(SMALL, 1).items()}


@pytest.fixture(scope="module")
def small(weights: dict[str, np.ndarray]) -> Score:
    """The score of a small model with every layer, without backends."""
    return score([(SMALL, weights)], [])


def test_all_faults_of_files_are_caught_and_located(small: Score) -> None:
    assert small.passed
    assert rendering.wrong(small.to_dict()) == []
    caught = small.of("caught")
    assert len(caught) >= 100
    assert small.located == small.sided == len(caught)
    assert len({result.fault for result in small.results}) >= 75
    assert all(result.effect > scoring.EQUAL for result in caught if result.place != mutants.IN_FILE)


def test_what_rounding_hides_is_told_apart(small: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that nobody caught and that changes less than honest float32: the score passes, and says so."""
    noise = 1e-6
    monkeypatch.setattr(scoring, "_noise", lambda subject: noise)
    _compare_by(monkeypatch, _blind)
    weights = zoo.init_weights(SMALL, 1)
    largest = float(np.abs(weights["conv1.weight"]).max())
    monkeypatch.setitem(faults.REWEIGH, "a weight off by little", ((Conv2d,), _off_by(1e-7 * largest)))
    monkeypatch.setitem(faults.REWEIGH, "a weight off by much", ((Conv2d,), _off_by(1e-2 * largest)))
    found = score([(SMALL, weights)], [], faults=("a weight off by little", "a weight off by much"))
    assert {(result.fault, result.state) for result in found.results} == {
        ("a weight off by little", "hidden"),
        ("a weight off by much", "missed"),
    }
    assert all((result.effect <= noise) == (result.state == "hidden") for result in found.results)
    little = Score([], [*small.of("caught"), *found.of("hidden")])
    assert little.passed
    assert f"{len(found.of('hidden'))} were not caught and are hidden" in rendering.markdown(little.to_dict())


def _off_by(much: float) -> faults.Reweigh:
    def off(model: Model, w: Mapping[str, np.ndarray], node: Node) -> np.ndarray:
        return w["weight"] + np.float32(much) * (np.arange(w["weight"].size) == 4).reshape(w["weight"].shape)

    return off


def _blind(got: np.ndarray, expected: np.ndarray, limit: object = None) -> object:
    return compare(got, expected, np.inf)


def test_every_fault_is_possible_somewhere() -> None:
    """In the small model or in the one with every layer: none is dead code, and most graphs can be run."""
    proto = {model.name: to_onnx(model, w) for model, w in ((SMALL, zoo.init_weights(SMALL, 1)), exemplar())}
    for fault in faults.names():
        made = [
            change
            for model, w in ((SMALL, zoo.init_weights(SMALL, 1)), exemplar())
            for change in faults.changes(fault, model, w)
        ]
        assert made, fault
    for fault in graph_faults.names():
        graphs = [
            graph
            for model in (SMALL, EXEMPLAR)
            for graph, _ in graph_faults.graphs(fault, proto[model.name], model)
        ]
        if fault in graph_faults.OCCASIONS:
            graphs = [graph_faults.occasional(fault, proto["every-layer"], EXEMPLAR, "dense2")]
        if fault in graph_faults.FILE:
            graphs = [graph_faults.FILE[fault](proto["every-layer"], *exemplar())]
        assert graphs, fault
        assert any(map(_runs, graphs)), fault


def _runs(graph: onnx.ModelProto) -> bool:
    try:
        Session(serialize(graph))
    except DataError:
        return False
    return True


def test_the_score_may_be_of_some_faults_alone() -> None:
    model, w = exemplar()
    some = ("gate lost", "shortcut added twice", "joined in another order", "clipped at 5.99")
    found = score([(model, w)], [], faults=some)
    assert [result.fault for result in found.results] == [
        "clipped at 5.99",
        "shortcut added twice",
        "gate lost",
        "gate lost",
        "joined in another order",
    ]
    assert found.passed
    assert found.located == len(found.results)
    assert {result.kind for result in found.results} == {"ReLU6", "Residual", "Scale", "Concat"}


def test_mutants_that_compute_the_same_do_not_count(small: Score) -> None:
    same = {(result.fault, result.culprits) for result in small.of("equivalent")}
    assert ("two layers swapped", ("pool1", "relu1")) in same  # a maximum commutes with a ReLU
    crashed = {result.fault for result in small.of("crashed")}
    assert {"stride of another size", "batch frozen to 1", "padding missing"} <= crashed


def test_what_onnx_computes_otherwise_does_not_count() -> None:
    """A normalisation over channels and a pool that onnx's own implementation gets wrong, an attribute that a
    file holds in float32: what is the same all the same is equivalent."""
    layers = (
        Conv2d(5, 3),
        LocalResponseNorm(3),
        ReLU6(),
        MaxPool2d(2, 1, (0, 0, 1, 1)),
        BatchNorm(1e-3),
        Conv2d(4, 1),
        HardSigmoid(),
        Flatten(),
        Dense(3),
    )
    model = Model("other", (2, 6, 7), layers, SMALL.recipe, labels=("a", "b", "c"))
    found = score([(model, zoo.init_weights(model, 1))], [])
    assert rendering.wrong(found.to_dict()) == []
    same = {(result.fault, result.culprits) for result in found.of("equivalent")}
    assert ("ceil mode", ("pool1",)) in same
    assert any("relu6_1" in culprits for _, culprits in same)


def test_a_mutant_that_nobody_can_judge_is_an_error(
    weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(proto: object) -> scoring.Outputs:
        def outputs(images: np.ndarray) -> np.ndarray:
            raise NotImplementedError("an operator")

        return outputs

    monkeypatch.setattr("export.selftest.mutants._in_double", stops)
    with pytest.raises(CheckFailed, match=r"nobody knows what '.*' changes in float64: .*: an operator"):
        score([(SMALL, weights)], [])


def test_neighbours_miss_some(small: Score) -> None:
    data = small.to_dict()
    assert data["comparators"].keys() == COMPARATORS.keys()
    for name in ("ones as input", "atol 5e-3", "same classes"):
        assert data["comparators"][name] < data["caught"], name


def test_a_blind_cross_check_fails_its_own_test(
    weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With limits as wide as some tools have them, faults go unnoticed and the score says so."""
    real = examination.compare

    def wide(got: np.ndarray, expected: np.ndarray, limit: object = None) -> object:
        return real(got, expected, 5e-2 * (1 + np.abs(expected).max()))

    _compare_by(monkeypatch, wide)
    blind = score([(SMALL, weights)], [], faults=SOME)
    assert not blind.passed
    assert len(blind.of("missed")) > 3
    assert any(sentence.startswith("missed: small, ") for sentence in rendering.wrong(blind.to_dict()))
    assert "FAILED" in rendering.terminal_lines(blind.to_dict())


def test_blaming_the_wrong_layer_fails_as_well(
    weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Verdict, "culprit", property(lambda verdict: "conv1"))
    lost = score([(SMALL, weights)], [], faults=SOME)
    assert lost.of("missed") == []
    assert not lost.passed
    assert lost.located < scoring.LOCATED * len(lost.of("caught"))
    assert any(sentence.startswith("blamed on conv1: ") for sentence in rendering.wrong(lost.to_dict()))


def test_an_accused_honest_witness_fails_it(
    weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = examination.compare
    _compare_by(monkeypatch, lambda got, expected, limit=None: real(got, expected, 1e-12))
    accused = score([(SMALL, weights)], [], faults=SOME)
    assert accused.false_alarms[0] == "small: onnx direct"
    assert not accused.passed


def test_the_table_and_the_totals_agree(small: Score) -> None:
    data = json.loads(json.dumps(small.to_dict()))
    for state in scoring.STATES:
        assert sum(row[state] for row in data["table"]) == data[state]
    assert sum(row["located"] for row in data["table"]) == data["located"]
    text, page = rendering.terminal_lines(data), rendering.markdown(data)
    assert f"PASSED {data['caught']} of {data['caught']} (100.0 %) caught" in text
    assert max(map(len, text.splitlines())) <= rendering.WIDTH
    for row in data["table"]:
        assert row["fault"] in text
        assert f"| {row['fault']} |" in page
    for table in page.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("| ")}) <= 1


def test_the_margin_both_ways(small: Score) -> None:
    """By kind of layer: the largest honest ratio, and the smallest fault caught."""
    kinds = {margin["kind"]: margin for margin in small.to_dict()["kinds"]}
    assert kinds.keys() >= {"Conv2d", "Dense", "ReLU", "MaxPool2d", "Softmax", "the whole network"}
    assert 0 < kinds["Conv2d"]["honest_ratio"] < 1 < kinds["Conv2d"]["caught_ratio"]
    assert kinds["Conv2d"]["honest_of"].startswith("small: onnx")
    smallest = min(result.own_ratio for result in small.of("caught") if result.kind == "Dense")
    assert kinds["Dense"]["caught_ratio"] == smallest
    (row,) = [line for line in rendering.terminal_lines(small.to_dict()).splitlines() if "MaxPool2d " in line]
    assert row.split()[:2] == ["MaxPool2d", "0"]  # it computes exactly


MIXED = np.array([[1.0, 2.0, 3.0], [4.0, 0.0, 9.0], [5.0, 7.0, 8.0]])


@pytest.mark.parametrize(
    ("mixed", "ones", "content"),
    [
        (MIXED[::-1, ::-1], 0 * MIXED, ["sorted outputs"]),
        (MIXED.T, 0 * MIXED, ["sorted outputs", "best transpose"]),
        (0 * MIXED, MIXED, ["ones as input"]),
        (MIXED + 4e-3, 0 * MIXED, ["atol 5e-3", "same classes"]),
        (10 * MIXED, 0 * MIXED, ["same classes"]),
        (MIXED, MIXED, list(COMPARATORS)),
    ],
)
def test_what_comparators_do_not_see(mixed: np.ndarray, ones: np.ndarray, content: list[str]) -> None:
    pairs = Pair(mixed, MIXED), Pair(ones, MIXED)
    assert [name for name, comparator in COMPARATORS.items() if comparator(*pairs)] == content


TINY = Model(  # with every kind of layer whose code can have a planted fault
    "tiny",
    (2, 6, 5),
    (
        Normalize((0.5, 0.4), (4.0, 3.0)),
        Conv2d(4, 3, padding=1),
        BatchNorm(1e-2),
        Residual((ReLU(), Tanh())),  # its ReLU must not write over the shortcut
        MaxPool2d(2, 1),
        Scale((Sigmoid(),)),
        AvgPool2d(2, 1, 1),
        Concat(((Dropout(0.5),), ())),
        Flatten(),
        Dense(5),
        Softmax(),
    ),
    SMALL.recipe,
    labels=tuple("abcde"),
)


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_of_code_come_and_go(fault: str, worker: Worker) -> None:
    """The first layer that differs is of the kind that has the fault; afterwards everything is as it was."""
    if fault not in planted_in(worker.backend):
        pytest.skip(f"{worker.backend} cannot have it")
    kind, *_ = PLANTED[fault]
    weights = {name: 2 * array for name, array in lively(TINY, 1).items()}
    images = noise(TINY, 5 if "of 5" in fault else 32)
    expected = ReferenceNetwork(TINY, weights).activations(images)
    worker.ask("plant", fault=fault)
    try:
        faulty = worker.build(TINY, weights)
        faulty.predict(images[::-1])  # a call before
        outputs, inside = faulty.predict(images), faulty.activations(images)
    finally:
        worker.ask("plant", fault="")
    right = expected["softmax1"]
    np.testing.assert_allclose(worker.build(TINY, weights).predict(images), right, atol=1e-5)
    if fault in (*ALIKE, "code: softmax without its maximum"):
        return
    apart = {path: float(np.abs(array - expected[path]).max()) for path, array in inside.items()}
    assert max(float(np.abs(outputs - right).max()), *apart.values()) > 3e-5
    first = next((path for path, difference in apart.items() if difference > 1e-4), "")
    if fault == mutants.OVERWRITES:
        assert first == "residual1"
    elif fault == "code: output of the call before":
        assert first == ""  # the call before was of the same images
    elif first or not issubclass(kind, Join):  # a join's own code may not be asked for its activation
        assert isinstance(next(node.layer for node in TINY.walk() if node.path == first), kind)


# On these images they compute what they should.
ALIKE = ("code: small numbers flushed at 1e-30",)


def test_a_backend_with_faults(framework: str, weights: dict[str, np.ndarray]) -> None:
    """Faults in a backend, in its code, in its exporter and in the reference."""
    code = {"code: kernel read transposed", "code: ReLU forgotten", "code: products of bfloat16"}
    found = score([(SMALL, weights)], [framework], faults={*code, *faults.names()} - faults.SMALL)
    assert rendering.wrong(found.to_dict()) == []
    places = {result.place for result in found.of("caught")}
    assert places == {"export", framework, f"{framework} exporter", "reference"}
    assert {result.fault for result in found.of("caught")} >= code


def test_the_score_keeps_to_the_schema(small: Score) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    data = json.loads(json.dumps(small.to_dict()))
    validator.validate(data)
    with_honest = Score([], small.results, honest=sweep(3, [], first=20_000)).to_dict()
    validator.validate(json.loads(json.dumps(with_honest)))
    assert not validator.is_valid(data | {"missed": -1})
    assert not validator.is_valid(data | {"more": 1})


def _run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["selftest", *arguments])
    return int(ended.value.code or 0)


def _spec_file(folder: Path) -> str:
    path = folder / "small.json"
    path.write_text(SMALL.to_json())
    return str(path)


@pytest.mark.usefixtures("plain")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / "score.json"), str(tmp_path / "score.md")]
    arguments = [_spec_file(tmp_path), "-b", "reference", "--honest", "3", "--generator", "random", "--json"]
    assert _run([*arguments, "--report", files[0], "--report", files[1]]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["passed"] is True
    assert data["models"] == ["small"]
    assert data["missed"] == 0
    assert (data["honest"]["cases"], data["honest"]["alarms"]) == (3, [])
    assert json.loads(Path(files[0]).read_text()) == data
    assert Path(files[1]).read_text() == rendering.markdown(data)


@pytest.mark.usefixtures("plain")
def test_a_fault_that_is_missed_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = examination.compare
    _compare_by(monkeypatch, lambda got, expected, limit=None: real(got, expected, 1.0))
    assert _run([_spec_file(tmp_path), "-b", "reference", "--honest", "0"]) == 1
    assert "missed: small, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--honest", "-1"], "give 0 or more"),
        (["--report", "score.txt"], "written as .json or .md"),
        (["--generator", "herd"], "did you mean 'hard'"),
        (["--no-faults", "cnn-padded"], "no model is asked for"),
        (["lenet"], "did you mean 'lenet-5'"),
    ],
)
def test_bad_arguments_exit_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(arguments) == 2
    assert message in capsys.readouterr().err


def test_one_honest_case_is_repeated_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally("trained", [])
    assert tally.command(17)[:2] == ["zoo", "selftest"]
    assert _run([*tally.command(17)[2:], "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["mutants"], data["honest"]["cases"]) == (0, 1)
    assert data["honest"]["generators"][0]["worst_of"].startswith("trained, seed 17: ")


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("layers", [(Flatten(),), (Flatten(), Softmax()), (ReLU(),)], ids=["1", "2", "3"])
def test_models_without_weights(layers: tuple[Layer, ...]) -> None:
    labels = tuple("abcd") if isinstance(layers[0], Flatten) else ()
    model = Model("m", (1, 2, 2), layers, SMALL.recipe, labels=labels)
    found = score([(model, {})], [])
    assert found.of("missed") == []
    assert found.passed == bool(found.of("caught"))


def test_a_model_that_nothing_can_be_wrong_with_proves_nothing() -> None:
    model = Model("m", (1, 2, 2), (Dropout(0.0),), SMALL.recipe, labels=())
    empty = Score([], [result for result in score([(model, {})], []).results if result.state == "crashed"])
    assert not empty.passed
    assert "nothing was tested" in rendering.wrong(empty.to_dict())[0]


def test_faults_of_code_are_planted_where_they_are_known() -> None:
    assert set(FRAMEWORKS) == {"torch", "keras"}
