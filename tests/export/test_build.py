"""The whole way of a run, on the embedded digits: files, reproducibility, and what must not be published."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import export as exporting
import zoo
from backends.process.client import Worker
from export.crosscheck import verification
from export.onnx import contents
from export.runs import build, card, deploy, sources
from export.runs.options import Options
from zoo import weights
from zoo.errors import CheckFailed, DataError, Diverged, InvalidInput, MachineError, WorkerDied
from zoo.recipe import SGD
from zoo.runs import Run

pytestmark = pytest.mark.usefixtures("lasting_workers")

TINY = "cnn-padded:out_1=4,out_2=4"
FILES = {
    "model.onnx", "native.onnx", "layers.onnx", "weights.safetensors", "spec.json", "report.json",
    "history.csv", "epochs.csv", "README.md", "manifest.json",
    *card.CAPTIONS,
}  # fmt: skip


def options(out: Path, **changes: object) -> Options:
    return Options(**{"data": "digits", "epochs": 1, "limit": 300, "out": out, **changes})


def built(model: zoo.Model, framework: str, chosen: Options) -> tuple[build.Outcome, list[str]]:
    said: list[str] = []
    return build.build([model], [framework], chosen, said.append)[0], said


def test_a_run_and_its_report(framework: str, tmp_path: Path) -> None:
    model = zoo.get("lenet-dropout")
    outcome, _ = built(model, framework, options(tmp_path))
    assert outcome.error is None
    run = tmp_path / "lenet-dropout" / framework
    assert {path.name for path in run.iterdir()} == FILES
    report = json.loads((run / "report.json").read_text())
    assert report == outcome.report
    assert report["model"] == "lenet-dropout"
    assert report["backend"] == framework
    assert report["data"]["name"] == "digits"
    assert [report["data"][part] for part in ("train", "validation", "test")] == [300, 0, 297]
    assert report["epochs"] == 1
    assert report["accuracy"]["validation"] is None
    assert report["onnx"]["passed"]
    assert report["onnx"]["max_abs_diff"] < report["onnx"]["limit"]
    assert 0 < report["onnx"]["logits"]["max_ratio"] < 1
    assert report["onnx"]["accuracy"] == report["accuracy"]["test"]
    assert report["seconds"]["train"] > 0
    assert framework in report["versions"]
    assert zoo.load_spec(run / "spec.json") == model
    values = weights.load(run / "weights.safetensors", model)
    assert (run / "model.onnx").read_bytes() == exporting.to_onnx(model, values).SerializeToString(
        deterministic=True
    )
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "loss", "batch_accuracy"]
    assert len(rows) == 300 // 64  # the last partial batch is dropped
    with (run / "epochs.csv").open() as file:
        assert float(next(csv.DictReader(file))["test_accuracy"]) == report["accuracy"]["test"]
    card = (run / "README.md").read_text()
    assert f"{report['accuracy']['test']:.4f}" in card
    assert "onnx native" in card


def test_validation_keeps_the_best_epoch(framework: str, tmp_path: Path) -> None:
    model = zoo.get("convnet-small")
    outcome, _ = built(model, framework, options(tmp_path, limit=128))
    report = outcome.report
    assert report is not None
    assert report["data"]["validation"] == 250
    assert report["accuracy"]["validation"] is not None
    assert report["best_epoch"] == 1
    best = weights.load(outcome.path / "best.safetensors", model)
    last = weights.load(outcome.path / "weights.safetensors", model)
    for name, array in last.items():
        np.testing.assert_array_equal(best[name], array)


def test_two_processes_make_the_same_files(framework: str, tmp_path: Path) -> None:
    """Of a model with everything that is drawn: order, dropout, initial weights."""
    for out in ("a", "b"):
        arguments = ["build", "lenet-dropout", "--backend", framework, "--data", "digits"]
        arguments += ["--limit", "300", "--epochs", "2", "--seed", "5", "--out", str(tmp_path / out)]
        subprocess.run([sys.executable, "-m", "zoo", *arguments], check=True, capture_output=True)
    a, b = (tmp_path / out / "lenet-dropout" / framework for out in ("a", "b"))
    for name in (
        "model.onnx",
        "native.onnx",
        "weights.safetensors",
        "history.csv",
        "epochs.csv",
        "spec.json",
    ):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_the_same_inputs_are_not_trained_again(framework: str, tmp_path: Path) -> None:
    model = zoo.get(TINY)
    first, _ = built(model, framework, options(tmp_path))
    assert not first.up_to_date
    before = (first.path / "manifest.json").stat().st_mtime_ns
    second, said = built(model, framework, options(tmp_path))
    assert second.up_to_date
    assert second.report == first.report
    assert said == [f"cnn-padded {framework}: up to date"]
    assert (first.path / "manifest.json").stat().st_mtime_ns == before
    other, said = built(zoo.get("cnn-padded:out_1=2,out_2=4"), framework, options(tmp_path, seed=1))
    assert not other.up_to_date
    assert any("seed was 0, now 1; spec_sha256 was" in line for line in said)
    (other.path / "model.onnx").write_bytes(b"altered")
    repaired, said = built(zoo.get("cnn-padded:out_1=2,out_2=4"), framework, options(tmp_path, seed=1))
    assert not repaired.up_to_date
    assert f"cnn-padded {framework}: the run is damaged: training anew" in said
    assert Run(repaired.path).is_sound()


def test_no_epochs_publish_the_initial_weights(framework: str, tmp_path: Path) -> None:
    model = zoo.get(TINY)
    outcome, _ = built(model, framework, options(tmp_path, epochs=0))
    assert outcome.report is not None
    assert outcome.report["warnings"][0].startswith("never predicted: classes ")
    values = weights.load(outcome.path / "weights.safetensors", model)
    for name, array in zoo.init_weights(model, 0).items():
        np.testing.assert_array_equal(values[name], array)
    assert (outcome.path / "history.csv").read_text() == "epoch,step,loss,batch_accuracy\n"


def test_the_native_export_can_be_shipped(framework: str, tmp_path: Path, images: np.ndarray) -> None:
    outcome, _ = built(zoo.get(TINY), framework, options(tmp_path, exporter="native"))
    shipped = (outcome.path / "model.onnx").read_bytes()
    assert shipped == (outcome.path / "native.onnx").read_bytes()
    session = onnxruntime.InferenceSession(shipped)
    assert session.run(["logits"], {"image": images})[0].shape == (24, 10)


def _wrong_bias(*arguments: object) -> onnx.ModelProto:
    proto = exporting.to_onnx(*arguments)  # type: ignore[arg-type]
    tensor = next(t for t in proto.graph.initializer if t.name == "dense1.bias")
    tensor.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(0.01), "dense1.bias")
    )
    return proto


def test_a_disagreement_publishes_nothing(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.get(TINY)
    good, _ = built(model, framework, options(tmp_path))
    kept = {path.name: path.read_bytes() for path in good.path.iterdir()}
    monkeypatch.setattr(verification, "to_onnx", _wrong_bias)
    for out in (tmp_path, tmp_path / "fresh"):
        outcome, said = built(model, framework, options(out, seed=1))
        assert isinstance(outcome.error, CheckFailed)
        assert outcome.error.code == 1
        assert "onnx direct disagrees from dense1 on: alone max|d| " in str(outcome.error)
        assert any("nothing was published" in line for line in said)
    assert {path.name: path.read_bytes() for path in good.path.iterdir()} == kept
    assert not (tmp_path / "fresh" / "cnn-padded" / framework).exists()


def test_divergence_publishes_nothing_and_the_rest_is_built(framework: str, tmp_path: Path) -> None:
    wild = zoo.get(TINY)
    wild = dataclasses.replace(
        wild, name="wild", recipe=dataclasses.replace(wild.recipe, optimizer=SGD(1e30))
    )
    outcomes = build.build([wild, zoo.get(TINY)], [framework], options(tmp_path), lambda _: None)
    assert isinstance(outcomes[0].error, Diverged)
    assert outcomes[0].error.code == 6
    assert outcomes[1].error is None
    assert not (tmp_path / "wild" / framework).exists()
    assert outcomes[0].to_dict()["error"]["code"] == 6


def test_a_last_step_that_diverges(framework: str, tmp_path: Path) -> None:
    wild = zoo.get(TINY)
    recipe = dataclasses.replace(wild.recipe, optimizer=SGD(3e38))
    wild = dataclasses.replace(wild, name="wild", recipe=recipe, arguments=())
    outcome, _ = built(wild, framework, options(tmp_path, limit=100))  # one step
    assert isinstance(outcome.error, Diverged)
    assert "the test loss is" in str(outcome.error)


def test_a_worker_that_dies_is_replaced(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Worker.send_data
    deaths = []

    def die_once(self: Worker, split: object) -> None:
        if not deaths:
            deaths.append(self._process.pid)
            os.kill(self._process.pid, 11)
        real(self, split)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "send_data", die_once)
    monkeypatch.setattr("backends.process.client.Worker", Worker)  # processes of its own: one of them dies
    models = [zoo.get(TINY), zoo.get("lenet-dropout")]
    outcomes = build.build(models, [framework], options(tmp_path), lambda _: None)
    assert isinstance(outcomes[0].error, WorkerDied)
    assert framework in str(outcomes[0].error)
    assert outcomes[1].error is None


def test_only_what_trains_is_built(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'reference' does not train.*use torch or keras"):
        build.build([zoo.get(TINY)], ["reference"], options(tmp_path), lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"epochs": -1}, InvalidInput, "-1 epochs"),
        ({"limit": 0}, InvalidInput, "0 training images.*at least 1"),
        ({"seed": -1}, InvalidInput, "seed -1"),
        ({"exporter": "nativ"}, InvalidInput, "unknown exporter"),
        ({"device": "tpu"}, MachineError, "the device 'tpu' is not available"),
    ],
)
def test_options_that_make_no_sense(change: dict, kind: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message):
        options(tmp_path, **change)


def test_too_few_images_for_a_batch(framework: str, tmp_path: Path) -> None:
    outcome, _ = built(zoo.get("lenet-dropout"), framework, options(tmp_path, limit=63))
    assert isinstance(outcome.error, InvalidInput)
    assert "63 training images make no batch of 64" in str(outcome.error)


def test_finding_weights(framework: str, tmp_path: Path) -> None:
    model = zoo.get(TINY)
    outcome, _ = built(model, framework, options(tmp_path))

    def find(text: str, wish: str | None = None, **more: object) -> sources.Source:
        return sources.find(text, wish, tmp_path, 0, lambda _: None, **more)  # type: ignore[arg-type]

    expected = weights.load(outcome.path / "weights.safetensors", model)
    for text, wish in (
        (TINY, None),
        (str(outcome.path), None),
        (TINY, str(outcome.path)),
        (TINY, str(outcome.path / "weights.safetensors")),
        (str(outcome.path / "model.onnx"), None),
        (str(outcome.path / "spec.json"), str(outcome.path)),
    ):
        source = find(text, wish)
        assert source.model == model
        assert weights.digest(source.weights) == weights.digest(expected)
    assert find(TINY, "init").origin == "initial weights, seed 0"
    with pytest.raises(DataError, match="the run holds another model than cnn-padded"):
        find("cnn-padded", str(outcome.path))
    assert find("cnn-padded").origin == "pretrained"
    assert find("cnn-padded", backend=framework).origin == "pretrained"  # it names a witness or an exporter
    with pytest.raises(DataError, match="no pretrained weights"):
        find(TINY, "pretrained")
    other_backend = "keras" if framework == "torch" else "torch"
    with pytest.raises(DataError, match="no run of cnn-padded"):
        find(TINY, backend=other_backend, fall_back=False)
    other = "keras" if framework == "torch" else "torch"
    other_run = Run(tmp_path / "cnn-padded" / other)
    files = {path.name: path.read_bytes() for path in outcome.path.iterdir() if path.name != "manifest.json"}
    with other_run.lock():
        other_run.publish(files, {})
    with pytest.raises(InvalidInput, match=r"2 runs of cnn-padded.*keras or .*torch.*--weights"):
        find(TINY)
    assert find(TINY, backend=framework).run == outcome.path


def test_export_to_a_file(
    framework: str, tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.get(TINY)
    source = sources.Source(model, zoo.init_weights(model), "initial weights")
    for exporter in ("direct", "native"):
        path = tmp_path / f"{exporter}.onnx"
        exported = deploy.export(source, deploy.Target(path, exporter, framework), images)
        assert exported["bytes"] == path.stat().st_size
        done = subprocess.run(
            [sys.executable, "-c", exported["example"]], capture_output=True, text=True, check=True
        )
        assert len(exported["example"].splitlines()) == 4
        assert done.stdout.startswith("[")
        back, values = contents.read_onnx(path)
        assert back == model
        assert weights.digest(values) == weights.digest(source.weights)
    path = tmp_path / "foreign.onnx"
    proto = exporting.to_onnx(model, source.weights)
    del proto.metadata_props[:]
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(DataError, match="carries no spec"):
        contents.read_onnx(path)
    monkeypatch.setattr(verification, "to_onnx", _wrong_bias)
    with pytest.raises(CheckFailed, match="onnx direct disagrees.*nothing was written"):
        deploy.export(source, deploy.Target(tmp_path / "wrong.onnx"), images)
    assert not (tmp_path / "wrong.onnx").exists()


@pytest.mark.mnist
def test_a_short_run_on_mnist(framework: str, tmp_path: Path, mnist_folder: Path) -> None:
    chosen = options(tmp_path, data=str(mnist_folder), limit=6000)
    outcome, _ = built(zoo.get("cnn-padded"), framework, chosen)
    assert outcome.error is None
    assert outcome.report is not None
    assert outcome.report["data"]["test"] == 10_000
    assert outcome.report["accuracy"]["test"] > 0.85  # plain PyTorch gives 0.90 after 6,000 images
    assert outcome.report["onnx"]["passed"]


FLOORS = {
    "convnet": 0.915,
    "convnet-small": 0.975,
    "convnet-deep": 0.985,
    "cnn-padded": 0.983,
    "lenet-dropout": 0.955,
}


@pytest.mark.full_mnist
@pytest.mark.mnist
def test_the_documented_recipes_reach_their_figures(
    model: zoo.Model, tmp_path: Path, mnist_folder: Path
) -> None:
    """Both backends from the same seed: the documented accuracy, and close to each other."""
    chosen = Options(data=str(mnist_folder), out=tmp_path)
    outcomes = build.build([model], ["torch", "keras"], chosen, lambda _: None)
    accuracies = []
    for outcome in outcomes:
        assert outcome.error is None
        assert outcome.report is not None
        accuracies.append(outcome.report["accuracy"]["test"])
        assert outcome.report["onnx"]["flips"] == 0
    assert min(accuracies) >= FLOORS[model.name]
    assert abs(accuracies[0] - accuracies[1]) <= (0.001 if model.name == "convnet" else 0.008)
