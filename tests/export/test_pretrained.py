"""The weights of the package: that they are what their record says, and that nothing else is loaded."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

import zoo
from export import crosscheck
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.runs import shipping, sources
from zoo import data, pretrained, recipe, weights
from zoo.errors import DataError, InvalidInput
from zoo.training import measures

EVERY = pytest.mark.parametrize("name", pretrained.names())


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped files, which the package then reads."""
    folder = tmp_path / "pretrained"
    shutil.copytree(pretrained.FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    pretrained._index.cache_clear()
    yield folder
    pretrained._index.cache_clear()


def test_every_documented_model_has_weights() -> None:
    assert pretrained.names() == [*zoo.names(), *zoo.names("modern")]


def test_the_models_of_the_zoos_own_are_better_than_the_documents() -> None:
    scores = {name: pretrained.record(name)["accuracy"]["test"] for name in pretrained.names()}
    assert scores["resnet-mini"] >= 0.995
    assert scores["cnn-tiny"] >= 0.992
    assert zoo.get("cnn-tiny").parameters < 10_000
    assert pretrained.best() == "resnet-mini"


def test_models_without_a_run_keep_what_is_shipped(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no run of a model that comes with weights"):
        shipping.ship(tmp_path, copy)
    assert shipping._again("cnn-tiny", copy) == pretrained.record("cnn-tiny")


@EVERY
def test_the_record_says_what_the_files_hold(name: str) -> None:
    model, values = zoo.load(name)
    record = pretrained.record(name)
    assert record["weights_sha256"] == weights.digest(values)
    assert record["recipe"] == json.loads(json.dumps(recipe.to_dict(model.recipe)))
    assert record["epochs"] == model.recipe.epochs
    assert record["data"]["test"] == 10_000
    low, high = record["interval"]
    assert low < record["accuracy"]["test"] < high
    # Up to date: `python -m export.runs.shipping` writes the same bytes again.
    assert pretrained.onnx(name) == serialize(to_onnx(model, values))


@EVERY
def test_predict_runs_the_onnx_file(name: str, images: np.ndarray) -> None:
    loaded = zoo.load(name)
    reference = crosscheck.judge(loaded.model, loaded.weights, images)
    np.testing.assert_allclose(loaded.predict(images), reference.outputs, rtol=2e-5, atol=1e-5)


@EVERY
@pytest.mark.mnist
def test_the_recorded_accuracy_is_measured_again(name: str, mnist_folder: Path) -> None:
    dataset = data.read_folder(mnist_folder, "mnist")
    loaded = zoo.load(name)
    outputs = loaded.predict(data.to_float(dataset.test_images))
    assert measures.accuracy(outputs, dataset.test_labels) == loaded.record["accuracy"]["test"]


@EVERY
def test_pretrained_is_the_default_and_passes_the_cross_check(name: str, images: np.ndarray) -> None:
    source = sources.find(name, None, Path("runs"), 0, print)
    assert source.origin == "pretrained"
    report = crosscheck.verify(source.model, source.weights, [], images, files=source.files)
    assert report.passed
    assert f"pretrained {name}.onnx" in [verdict.witness for verdict in report.verdicts]


def test_a_variant_has_none() -> None:
    model = zoo.get("cnn-padded", out_1=8)
    assert not pretrained.has(model)
    with pytest.raises(DataError, match="no pretrained weights of cnn-padded:out_1=8 are shipped"):
        zoo.load("cnn-padded:out_1=8")
    with pytest.raises(DataError, match="no pretrained weights"):
        sources.find("cnn-padded:out_1=8", "pretrained", Path("runs"), 0, print)
    with pytest.raises(InvalidInput, match="did you mean 'cnn-padded'"):
        pretrained.record("cnn-paded")


@pytest.mark.parametrize("what", ["weights", "onnx"])
def test_an_altered_file_is_refused(what: str, copy: Path) -> None:
    path = copy / pretrained.record("lenet-dropout")[what]["file"]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="altered after it was shipped"):
        pretrained.read("lenet-dropout", what)
    path.unlink()
    with pytest.raises(DataError, match="install the package again"):
        pretrained.read("lenet-dropout", what)


def test_a_damaged_list_is_refused(copy: Path) -> None:
    (copy / pretrained.INDEX).write_text("{")
    with pytest.raises(DataError, match="list of pretrained weights"):
        pretrained.names()


def test_exporting_again_changes_nothing(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    shipping.export_again(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_only_documented_runs_are_shipped(tmp_path: Path) -> None:
    from export.runs.build import build
    from export.runs.options import Options

    options = Options(data="digits", out=tmp_path, pretrained=True)
    (outcome,) = build([zoo.get("lenet-dropout")], ["reference"], options, print)
    outcome.path.rename(tmp_path / "lenet-dropout" / shipping.BACKEND)
    with pytest.raises(InvalidInput, match="not the documented recipe on the whole of MNIST"):
        shipping.ship(tmp_path, tmp_path)


@pytest.mark.parametrize(("accuracy", "images"), [(0.9892, 10_000), (0.5, 10), (1.0, 297), (0.0, 5)])
def test_the_interval_is_wilsons(accuracy: float, images: int) -> None:
    """Its ends are the accuracies p from which the measured one is z standard errors away."""
    z = NormalDist().inv_cdf(0.975)
    for p in measures.interval(accuracy, images):
        assert math.isclose((accuracy - p) ** 2, z**2 * p * (1 - p) / images, abs_tol=1e-12)


def test_build_pretrained_without_any_framework(tmp_path: Path) -> None:
    from export.runs.build import build
    from export.runs.options import Options
    from export.runs.table import build_table

    options = Options(data="digits", out=tmp_path, pretrained=True)
    (outcome,) = build([zoo.get("lenet-dropout")], ["reference"], options, print)
    assert outcome.error is None
    assert outcome.report is not None
    assert outcome.report["pretrained"] == pretrained.record("lenet-dropout")
    assert outcome.report["data"]["train"] == 0
    assert "trained on mnist, tested on digits" in outcome.report["warnings"]
    table = build_table([outcome]).splitlines()
    assert table[-1] == "PASSED 1 of 1: never predicted: class 3; trained on mnist, tested on digits"
    assert (outcome.path / "model.onnx").read_bytes() == pretrained.onnx("lenet-dropout")
    (again,) = build([zoo.get("lenet-dropout")], ["reference"], options, print)
    assert again.up_to_date


def test_the_verdict_of_a_build_names_its_data_and_whom_it_warns_of() -> None:
    from export.runs.build import Outcome
    from export.runs.table import build_table

    def outcome(model: str, *warnings: str, trained_on: str = "mnist") -> Outcome:
        onnx = {"accuracy": 1.0, "max_abs_diff": 0.0, "limit": 1.0, "flips": 0, "bytes": 1}
        report = {
            "model": model,
            "backend": "torch",
            "accuracy": {"test": 1.0},
            "onnx": onnx,
            "seconds": {"train": 1.0},
            "data": {"name": "mnist", "sha256": "mnist", "test": 1},
            "pretrained": {"data": {"name": trained_on, "sha256": trained_on}},
            "epochs": 1,
            "documented_epochs": 1,
            "warnings": list(warnings),
        }
        return Outcome(model, "torch", Path(model), report)

    def last(*outcomes: Outcome) -> str:
        return build_table(outcomes).splitlines()[-1]

    never, other = "never predicted: class 3", "trained on digits, tested on mnist"
    assert last(outcome("a"), outcome("b")) == "PASSED 2 of 2: trained and tested on mnist"
    assert last(outcome("a"), outcome("b", never)) == (
        f"PASSED 2 of 2: trained and tested on mnist; {never} (b torch)"
    )
    assert last(
        outcome("a", never, other, trained_on="digits"), outcome("b", other, trained_on="digits")
    ) == (f"PASSED 2 of 2: {other}; {never} (a torch)")
    failed = Outcome("b", "torch", Path("b"), error=DataError("no such file"))
    assert last(outcome("a"), failed) == "FAILED 1 of 2: trained and tested on mnist"
    assert last(failed) == "FAILED 0 of 1"


def test_build_pretrained_on_a_backend(tmp_path: Path, framework: str) -> None:
    from export.runs.build import build
    from export.runs.options import Options

    options = Options(data="digits", out=tmp_path, pretrained=True)
    (outcome,) = build([zoo.get("lenet-dropout")], [framework], options, print)
    assert outcome.error is None
    assert (outcome.path / "model.onnx").read_bytes() == pretrained.onnx("lenet-dropout")
    assert (outcome.path / "native.onnx").is_file()
    (variant,) = build([zoo.get("cnn-padded", out_1=8)], [framework], options, print)
    assert "no pretrained weights" in str(variant.error)


@pytest.mark.parametrize("option", [{"epochs": 1}, {"limit": 10}, {"seed": 1}])
def test_pretrained_does_not_train(option: dict[str, int]) -> None:
    from export.runs.options import Options

    with pytest.raises(InvalidInput, match="--pretrained does not train"):
        Options(pretrained=True, **option)  # type: ignore[arg-type]
