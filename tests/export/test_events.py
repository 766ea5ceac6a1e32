"""TensorBoard's event files of a run, read back record by record."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest

import zoo
from export.runs import build, tensorboard
from export.runs.options import Options
from zoo import pretrained, runs
from zoo.errors import BackendUnavailable
from zoo.training import loop

needs_writer = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of pretrained weights, with two steps of history as if it had been trained here."""
    options = Options(data="digits", out=tmp_path, pretrained=True)
    (outcome,) = build.build([zoo.get("lenet-dropout")], ["reference"], options, print)
    published = runs.Run(outcome.path)
    files = {name: published.read(name) for name in published.manifest()["files"]}
    history = [(1, 1, 2.5, 0.25), (1, 2, 1.5, 0.5)]
    files["history.csv"] = loop.to_csv(loop.HISTORY, history).encode()
    files["epochs.csv"] = loop.to_csv(loop.EPOCHS, [(1, 2.0, 0.375, None, 1.25, 0.75)]).encode()
    with published.lock():
        published.publish(files, {})
    return outcome.path


def records(folder: Path) -> list[object]:
    """Every event of the files in a folder: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        raw = path.read_bytes()
        while raw:
            (length,) = struct.unpack("<Q", raw[:8])
            found.append(Event.FromString(raw[12 : 12 + length]))
            raw = raw[16 + length :]
    return found


@needs_writer
def test_what_the_event_files_hold(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tensorboard.write(run)
    assert capfd.readouterr().out == ""
    found = records(folder)
    values = [(event.step, value) for event in found for value in event.summary.value]
    scalars = {
        (value.tag, step): value.simple_value for step, value in values if value.HasField("simple_value")
    }
    assert scalars == {
        ("step/loss", 1): 2.5,
        ("step/loss", 2): 1.5,
        ("step/batch_accuracy", 1): 0.25,
        ("step/batch_accuracy", 2): 0.5,
        ("epoch/train_loss", 1): 2.0,
        ("epoch/train_accuracy", 1): 0.375,
        ("epoch/test_loss", 1): 1.25,
        ("epoch/test_accuracy", 1): 0.75,
    }
    images = {(value.tag, step): value.image for step, value in values if value.HasField("image")}
    assert set(images) == {(f"kernels/{name}", step) for name in ("conv1", "conv2") for step in (0, 1)}
    assert (images["kernels/conv2", 1].height, images["kernels/conv2", 1].width) == (16 * 6, 6 * 6)
    histograms = {value.tag for _, value in values if value.HasField("histo")}
    assert histograms == set(zoo.load("lenet-dropout").weights)
    assert any(event.graph_def for event in found)
    hyper = records(folder / "hyper-parameters")
    tags = {value.tag for event in hyper for value in event.summary.value}
    assert {"accuracy/test", "_hparams_/experiment"} <= tags
    assert runs.Run(run).is_sound()


@needs_writer
def test_writing_again_replaces_the_files(run: Path) -> None:
    tensorboard.write(run)
    (run / "tensorboard" / "stray").write_text("")
    tensorboard.write(run)
    assert not (run / "tensorboard" / "stray").exists()
    assert not list(run.glob(".*"))


@needs_writer
def test_build_writes_them(tmp_path: Path) -> None:
    options = Options(data="digits", out=tmp_path, pretrained=True, tensorboard=True)
    for _ in range(2):  # new, and up to date
        (outcome,) = build.build([zoo.get("lenet-dropout")], ["reference"], options, print)
        assert records(outcome.path / "tensorboard")


def test_kernels_keep_zero_in_the_middle() -> None:
    model = zoo.get("cnn-padded")
    values = pretrained.weights(model)
    picture = tensorboard._kernels(model, values)["conv2"]
    kernels = values["conv2.weight"]
    assert picture.shape == (32 * 6, 16 * 6)
    assert 0 <= picture.min() <= picture.max() <= 1
    largest = np.abs(kernels).max()
    tile = picture[6 * 3 : 6 * 3 + 5, 6 * 2 : 6 * 2 + 5]
    np.testing.assert_allclose(tile, 0.5 + 0.5 * kernels[3, 2] / largest, atol=1e-6)


def test_without_the_library_the_command_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    options = Options(data="digits", out=tmp_path, pretrained=True, tensorboard=True)
    with pytest.raises(BackendUnavailable, match="pip install tensorboardX"):
        build.build([zoo.get("lenet-dropout")], ["reference"], options, print)
    assert list(tmp_path.iterdir()) == []
