"""`zoo export --int8` and `--float16`: smaller files, held to the accuracy that they may lose."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import zoo
from benchmarks.drawing import draw, grey
from export import predict
from export.inference import doctor, seal
from export.inference.session import Session
from export.onnx import contents
from export.onnx.file import describe, serialize
from export.onnx.graph import to_onnx
from export.reduced import accuracy_drop, quantization
from export.reduced.accuracy_drop import Drop
from export.runs import sources
from zoo import cli, data, pretrained
from zoo.errors import CheckFailed, InvalidInput
from zoo.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSigmoid,
    MaxPool2d,
    Normalize,
    ReLU,
    ReLU6,
    Residual,
    Scale,
    Softmax,
)
from zoo.model import Model
from zoo.recipe import SGD, Recipe

ROOT = Path(__file__).parents[2]
SOFTMAX, LOGITS = "convnet-small", "cnn-padded"
FEW = 64  # images to calibrate: enough here, and fast


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), compresslevel=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded scans the other way round: 1,500 images to test, which can show a small drop."""
    scans, place = data.digits(), tmp_path_factory.mktemp("scans")
    write_idx(place / "train-images-idx3-ubyte.gz", scans.test_images[:, 0])
    write_idx(place / "train-labels-idx1-ubyte.gz", scans.test_labels)
    write_idx(place / "t10k-images-idx3-ubyte.gz", scans.train_images[:, 0])
    write_idx(place / "t10k-labels-idx1-ubyte.gz", scans.train_labels)
    return place


@pytest.fixture(scope="module")
def scans(folder: Path) -> data.Dataset:
    return data.load(str(folder))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call the command line in this process, in an empty folder, with short measurements."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quantization, "SECONDS", 0.0)
    monkeypatch.setattr(quantization, "ROUNDS", 2)
    monkeypatch.setattr(quantization, "BATCHES", (1, 3))

    def call(*arguments: object) -> tuple[object, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main([str(argument) for argument in arguments])
        return (done.value.code, *capfd.readouterr())

    return call


def made(name: str, precision: str, dataset: data.Dataset) -> bytes:
    model, weights = zoo.load(name)
    return quantization.reduce(model, weights, precision, quantization.calibration(dataset, FEW))[0]


# The gate.


def test_mcnemars_exact_test() -> None:
    """Against binomial probabilities written out."""

    def p(lost: int, gained: int) -> float:
        return Drop(1000, (0, 0), lost, gained, ()).p_value

    assert p(0, 0) == 1
    assert p(8, 0) == p(0, 8) == 2 / 2**8
    assert p(1, 5) == 2 * (1 + 6) / 2**6
    assert p(3, 3) == 1
    assert p(3000, 0) == 0.0 or p(3000, 0) < 1e-300


def test_the_interval_of_a_drop() -> None:
    """Bonett and Price (2012) by hand: (1 + 1) and (9 + 1) of 98 + 2."""
    drop = Drop(98, (90, 82), 9, 1, ())
    half = 1.959963984540054 * np.sqrt((0.02 + 0.1 - 0.08**2) / 100)
    assert drop.points == pytest.approx(100 * 8 / 98)
    assert drop.interval == pytest.approx((100 * (0.08 - half), 100 * (0.08 + half)))
    worse, better = Drop(10_000, (0, 0), 40, 10, ()), Drop(10_000, (0, 0), 10, 40, ())
    assert worse.interval == pytest.approx(tuple(-end for end in better.interval[::-1]))


@pytest.mark.parametrize(("lost", "gained"), [(0.002, 0.002), (0.01, 0.005), (0.03, 0.0)])
def test_the_interval_covers_the_true_drop(lost: float, gained: float) -> None:
    """In at least 94 of 100 repetitions, by simulation."""
    random = np.random.Generator(np.random.Philox(7))
    counts = random.multinomial(2000, [lost, gained, 1 - lost - gained], size=4000)
    intervals = [Drop(2000, (0, 0), int(a), int(b), ()).interval for a, b, _ in counts]
    covered = np.mean([low <= 100 * (lost - gained) <= high for low, high in intervals])
    assert covered >= 0.94


def test_few_images_show_nothing() -> None:
    """Even if no decision differs; and the number that is told to be enough is the smallest that is."""
    enough = accuracy_drop.images_needed(0.3)
    assert Drop(enough, (0, 0), 0, 0, ()).passed
    assert not Drop(enough - 1, (0, 0), 0, 0, ()).passed
    assert Drop(enough, (0, 0), 0, 0, ()).possible
    assert not Drop(enough - 1, (0, 0), 0, 0, ()).possible


def test_what_is_counted() -> None:
    eye = np.eye(3)
    labels = np.array([0, 1, 2, 0])
    before, after = eye[[0, 1, 2, 1]], eye[[0, 2, 2, 0]]
    drop = accuracy_drop.compare(before, after, labels)
    assert (drop.right, drop.lost, drop.gained, drop.flips) == ((3, 3), 1, 1, (1, 3))
    nothing = np.full_like(after, np.nan)
    assert accuracy_drop.compare(before, nothing, labels).lost == 3
    assert accuracy_drop.compare(before, before, labels).to_dict()["flips"] == {"total": 0, "images": []}


# The files.


@pytest.mark.parametrize("precision", quantization.PRECISIONS)
@pytest.mark.parametrize("name", [SOFTMAX, LOGITS, "lenet-dropout"])
def test_a_reduced_file_is_a_file_of_the_zoo(
    name: str, precision: str, scans: data.Dataset, tmp_path: Path
) -> None:
    """Same interface, metadata, hashes; much smaller; it tests itself, reads digits, and nearly agrees."""
    content = made(name, precision, scans)
    exact = pretrained.onnx(name)
    proto, told = onnx.load_from_string(content), seal.metadata(content)
    onnx.checker.check_model(proto, full_check=True)
    kept = seal.metadata(exact)
    for key in (
        "zoo.spec",
        "zoo.labels",
        "zoo.input",
        "zoo.document",
        "zoo.weights_sha256",
        "zoo.version",
        "zoo.vectors",
    ):
        assert told[key] == kept[key], key
    assert told["zoo.precision"] == precision
    assert ("zoo.calibration" in told) == (precision == "int8")
    session, float32 = Session(content), Session(exact)
    assert (session.inputs, session.given) == (float32.inputs, float32.given)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    large = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    kinds = {array.dtype for array in large if array.size > 1000}
    assert kinds == {np.dtype(np.int8 if precision == "int8" else np.float16)}
    assert len(content) < 0.75 * len(exact)
    assert doctor_passes(content, tmp_path)
    images = data.to_float(scans.test_images[:200])
    ours, theirs = session.predict(images), float32.predict(images)
    assert quantization.signal_to_noise(theirs, ours) > (20 if precision == "int8" else 50)
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) > 0.97
    grey(1 - draw(3)).save(tmp_path / "three.png")
    (tmp_path / "reduced.onnx").write_bytes(content)
    (outcome,) = predict.load(str(tmp_path / "reduced.onnx")).predict_files(
        [(str(tmp_path / "three.png"), None)]
    )
    assert outcome.prediction is not None
    assert outcome.prediction.label == "3"


def doctor_passes(content: bytes, folder: Path) -> bool:
    (folder / "m.onnx").write_bytes(content)
    report = doctor.examine(folder / "m.onnx")
    assert report.passed, report.error
    return report.precision in quantization.PRECISIONS


def test_weights_are_quantised_by_channel(scans: data.Dataset) -> None:
    proto = onnx.load_from_string(made(LOGITS, "int8", scans))
    scales = {
        t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.name.endswith("weight_scale")
    }
    model, _ = zoo.load(LOGITS)
    assert {name: scale.shape for name, scale in scales.items()} == {
        f"{node.path}.weight_scale": (node.output_shape[0],)
        for node in model.walk()
        if isinstance(node.layer, (Conv2d, Dense))
    }
    points = [
        numpy_helper.to_array(t) for t in proto.graph.initializer if t.name.endswith("weight_zero_point")
    ]
    assert not any(point.any() for point in points)  # symmetric


@pytest.mark.parametrize("precision", quantization.PRECISIONS)
def test_equal_inputs_give_equal_bytes(precision: str, scans: data.Dataset, folder: Path) -> None:
    """Here, and in processes that hash texts otherwise."""
    expected = made(LOGITS, precision, scans)
    assert made(LOGITS, precision, scans) == expected
    code = f"""
import hashlib, zoo
from export.reduced import quantization
from zoo import data
model, weights = zoo.load({LOGITS!r})
images = quantization.calibration(data.load({str(folder)!r}), {FEW})
print(hashlib.sha256(quantization.reduce(model, weights, {precision!r}, images)[0]).hexdigest())
"""
    import hashlib

    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == hashlib.sha256(expected).hexdigest()
        assert done.stderr == ""


def test_test_images_calibrate_nothing(scans: data.Dataset) -> None:
    """The choice is of training images, the same each time; other test images change no byte."""
    found = quantization.calibration(scans, FEW)
    train = {image.tobytes() for image in data.to_float(scans.train_images)}
    assert len(found.images) == FEW
    assert {image.tobytes() for image in found.images} <= train
    assert found.told["images"] == FEW
    spoilt = replace(scans, test_images=255 - scans.test_images)
    assert made(LOGITS, "int8", spoilt) == made(LOGITS, "int8", scans)
    assert made(LOGITS, "int8", replace(scans, name="elsewhere")) == made(LOGITS, "int8", scans)
    assert len(quantization.calibration(scans, 10**6).images) == len(scans.train_images)


def test_other_images_to_calibrate_give_another_file(scans: data.Dataset) -> None:
    other = replace(scans, train_images=scans.train_images // 2)
    assert made(LOGITS, "int8", other) != made(LOGITS, "int8", scans)
    assert made(LOGITS, "float16", other) != b""


BRANCHES = Model(
    name="branches",
    input_shape=(1, 12, 12),
    layers=(
        Normalize((0.5,), (2.0,)),
        Conv2d(6, 3, padding=1),
        BatchNorm(),
        ReLU6(),
        Residual((Conv2d(6, 3, padding=1), BatchNorm(), ReLU(), Dropout(0.25))),
        Concat(((Conv2d(4, 1), ReLU()), (MaxPool2d(3, stride=1, padding=1),))),
        Scale((GlobalAvgPool2d(), Conv2d(10, 1), HardSigmoid())),
        AvgPool2d(2),
        AdaptiveAvgPool2d(2),
        Flatten(),
        Dropout(0.5),
        Dense(8),
        ReLU(),
        Dense(10),
        Softmax(),
    ),
    recipe=Recipe(SGD(0.1), batch_size=10, epochs=1),
)


@pytest.mark.parametrize("precision", quantization.PRECISIONS)
@pytest.mark.parametrize("dropped", [0, 1], ids=["softmax", "logits"])
def test_every_kind_of_graph(precision: str, dropped: int, tmp_path: Path) -> None:
    """Branches, normalisation, pools, dropout, a last layer of either kind."""
    layers = BRANCHES.layers[: len(BRANCHES.layers) - dropped]
    model = replace(BRANCHES, layers=layers)
    weights = zoo.init_weights(model, 3)
    images = np.random.Generator(np.random.Philox(1)).random((96, 1, 12, 12), dtype=np.float32)
    told = {"data": "noise", "images": 96, "sha256": ""}
    content, shown = quantization.reduce(model, weights, precision, quantization.Calibration(images, told))
    assert doctor_passes(content, tmp_path)
    noise = quantization.layer_noise(model, weights, content, shown, images)
    assert list(noise) == list(shown)
    assert min(noise.values()) > (15 if precision == "int8" else 40)
    assert model.walk()[-1].path in shown
    assert "dropout1" not in shown  # it computes nothing
    assert (tmp_path / "m.onnx").is_file()


def test_dropout_as_the_last_layer_stays(scans: data.Dataset) -> None:
    model = replace(zoo.get(LOGITS), layers=(*zoo.get(LOGITS).layers, Dropout(0.5)))
    weights = zoo.init_weights(model)
    images = quantization.calibration(scans, FEW)
    for precision in quantization.PRECISIONS:
        content, _ = quantization.reduce(model, weights, precision, images)
        assert Session(content).predict(images.images).shape == (FEW, 10)


def test_signal_to_noise_in_decibels() -> None:
    x = np.random.Generator(np.random.Philox(1)).random(1000, dtype=np.float32)
    assert quantization.signal_to_noise(x, 1.1 * x) == pytest.approx(20, abs=1e-3)
    assert quantization.signal_to_noise(x, x) == np.inf


def test_a_layer_that_is_worse_is_seen(scans: data.Dataset) -> None:
    """One kernel altered: its layer and those behind it lose decibels, those before it none."""
    model, weights = zoo.load(LOGITS)
    images = quantization.calibration(scans, FEW)
    content, shown = quantization.reduce(model, weights, "float16", images)
    before = quantization.layer_noise(model, weights, content, shown, images.images)
    spoilt = {**weights, "conv2.weight": weights["conv2.weight"] * np.float32(1.05)}
    content, shown = quantization.reduce(model, spoilt, "float16", images)
    after = quantization.layer_noise(model, weights, content, shown, images.images)
    for path in ("conv1", "relu1", "pool1"):
        assert after[path] == before[path]
    for path in ("conv2", "relu2", "pool2", "dense1"):
        assert after[path] < before[path] - 10


# The doctor.


def test_a_runtime_that_computes_otherwise_is_found(scans: data.Dataset, tmp_path: Path) -> None:
    """A file whose graph is of other weights than its expected outputs: as a runtime that saturates gives."""
    model, weights = zoo.load(LOGITS)
    images = quantization.calibration(scans, FEW)
    content, _ = quantization.reduce(model, weights, "int8", images)
    told = {key: value for key, value in seal.metadata(content).items() if key not in (seal.KEY, seal.PARTS)}
    proto = onnx.load_from_string(content)
    for tensor in proto.graph.initializer:
        if tensor.name == "conv2.weight_quantized":
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.clip(array, -63, 63), tensor.name))
    del proto.metadata_props[:]
    describe(proto, model, weights, told)
    (tmp_path / "m.onnx").write_bytes(serialize(proto))
    report = doctor.examine(tmp_path / "m.onnx")
    assert isinstance(report.error, CheckFailed)
    assert "beyond the limit" in str(report.error)


def test_a_precision_that_nobody_knows(scans: data.Dataset, tmp_path: Path) -> None:
    model, weights = zoo.load(LOGITS)
    proto = to_onnx(model, weights)
    del proto.metadata_props[:]
    describe(proto, model, weights, {"zoo.precision": "int4"})
    (tmp_path / "m.onnx").write_bytes(serialize(proto))
    report = doctor.examine(tmp_path / "m.onnx")
    assert report.error is not None
    assert report.error.code == 4
    assert "'int4' is unknown" in str(report.error)


# The command.


def test_int8_on_the_command_line(run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run("export", LOGITS, "--int8", "--data", folder, "--calibration", FEW)
    assert code == 0, err
    for text in (
        "cnn-padded-int8.onnx",
        "95 % interval",
        "McNemar p =",
        "flips",
        "batch 1",
        "signal to noise in dB",
    ):
        assert text in out
    assert "zoo doctor cnn-padded-int8.onnx" in out
    assert len(list(tmp_path.iterdir())) == 1
    code, out, _ = run(
        "export", LOGITS, "--int8", "--data", folder, "--calibration", FEW, "--json", "-o", "again.onnx"
    )
    told = json.loads(out)
    assert code == 0
    assert Path("again.onnx").read_bytes() == Path("cnn-padded-int8.onnx").read_bytes()
    assert told["precision"] == "int8"
    assert told["calibration"] == {**told["calibration"], "images": FEW, "data": f"folder:{folder.name}"}
    assert told["gate"]["passed"] is True
    assert told["gate"]["interval"][1] <= told["gate"]["limit"] == 0.3
    assert told["gate"]["images"] == 1500
    assert set(told["gate"]["mcnemar"]) == {"lost", "gained", "p"}
    assert told["bytes"] == Path("again.onnx").stat().st_size < told["float32_bytes"]
    assert [row["batch"] for row in told["speed"]] == [1, 3]
    assert set(told["speed"][0]) == {"batch", "time", "control", "images_per_second"}
    assert set(told["signal_to_noise"]) >= {"relu1", "pool2", "dense1"}
    for command, expected in (
        (["doctor", "again.onnx"], "held to what it gave at export"),
        (["show", "again.onnx"], "28,938 parameters"),
    ):
        code, out, err = run(*command)
        assert code == 0, err
        assert expected in out
    assert "zoo verify" not in run("doctor", "again.onnx")[1]
    for command in (
        ["verify", "again.onnx"],
        ["export", "again.onnx", "--data", folder],
        ["plot", "again.onnx", "kernels"],
    ):
        code, _, err = run(*command)
        assert code == 2
        assert "a file in int8 holds no trained weights" in err
        assert "zoo doctor" in err


def test_float16_on_the_command_line(run, folder: Path) -> None:
    code, out, err = run("export", SOFTMAX, "--float16", "--data", folder, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["path"] == "convnet-small-float16.onnx"
    assert told["calibration"] is None
    assert told["output"].startswith("probabilities float32")
    assert told["gate"]["passed"]


@pytest.mark.parametrize("scale", [1 / 50, 0], ids=["too dark", "black"])
def test_a_model_that_is_calibrated_wrongly_is_rejected(
    run, scale: float, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """54: exit code 1, nothing is written, an earlier file stays as it was."""
    right = quantization.calibration

    def wrong(dataset: data.Dataset, count: int) -> quantization.Calibration:
        found = right(dataset, count)
        return replace(found, images=found.images * np.float32(scale))

    monkeypatch.setattr(quantization, "calibration", wrong)
    earlier = tmp_path / "earlier.onnx"
    earlier.write_bytes(b"an earlier file")
    export = ("export", LOGITS, "--int8", "--data", folder, "--calibration", FEW, "-o")
    code, _, err = run(*export, earlier)
    assert code == 1
    assert err.count("\n") == 1
    assert "int8 loses too much accuracy" in err
    for text in ("95 % interval", "McNemar p =", "decisions flip: images", "nothing was written"):
        assert text in err
    code, out, _ = run(*export, tmp_path / "new.onnx", "--json")
    assert code == json.loads(out)["code"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["earlier.onnx"]
    assert earlier.read_bytes() == b"an earlier file"


def test_a_float16_file_that_loses_too_much_is_rejected(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = quantization.to_float16

    def wrong(proto: onnx.ModelProto) -> onnx.ModelProto:
        made = right(proto)
        for tensor in made.graph.initializer:
            if tensor.name == "conv2.weight":
                tensor.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name)
                )
        return made

    monkeypatch.setattr(quantization, "to_float16", wrong)
    code, _, err = run("export", LOGITS, "--float16", "--data", folder)
    assert code == 1
    assert "float16 loses too much accuracy" in err
    assert list(tmp_path.iterdir()) == []


def test_so_few_test_images_that_they_show_nothing(run, tmp_path: Path) -> None:
    code, _, err = run("export", LOGITS, "--int8", "--data", "digits")
    assert code == 1
    assert "297 test images cannot show a drop of at most 0.3 points: at least 922 can" in err
    assert "--max-drop" in err
    assert list(tmp_path.iterdir()) == []
    code, out, err = run("export", LOGITS, "--float16", "--data", "digits", "--max-drop", "2")
    assert code == 0, err
    assert "2 allowed" in out


def test_a_wrong_float32_file_is_not_reduced(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from export import crosscheck

    right = crosscheck.verify

    def verify(*arguments: object, **options: object):
        report = right(*arguments, **options)
        report.verdicts[0].error = "it disagrees"
        return report

    monkeypatch.setattr(crosscheck, "verify", verify)
    code, _, err = run("export", LOGITS, "--int8", "--data", folder)
    assert code == 1
    assert "it disagrees" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--int8", "--float16"], "two precisions"),
        (["--int8", "--calibration", "0"], "0 images to calibrate"),
        (["--int8", "--max-drop", "0"], "a drop of 0 points"),
        (["--int8", "--max-drop", "nan"], "a drop of nan points"),
        (["--int8", "--exporter", "native"], "made of the zoo's own graph"),
        (["--float16", "--calibration", "5"], "float16 needs no calibration"),
        (["--calibration", "5"], "a float32 file loses nothing"),
        (["--max-drop", "1"], "a float32 file loses nothing"),
        (["--int8", "-o", "."], "not the name of a file"),
    ],
)
def test_options_that_make_no_sense(run, options: list[str], said: str, tmp_path: Path) -> None:
    code, _, err = run("export", LOGITS, *options, "--data", "digits")
    assert code == 2
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision() -> None:
    with pytest.raises(InvalidInput, match="'int4'"):
        quantization.Reduction("int4")


def test_weights_of_a_reduced_file_can_be_named_elsewhere(scans: data.Dataset, tmp_path: Path) -> None:
    """The file says which model it is; the weights are then the package's."""
    (tmp_path / "m.onnx").write_bytes(made(LOGITS, "int8", scans))
    source = sources.find(str(tmp_path / "m.onnx"), "pretrained", tmp_path, 0, print)
    np.testing.assert_array_equal(source.weights["conv1.weight"], zoo.load(LOGITS).weights["conv1.weight"])
    assert contents.read_model(tmp_path / "m.onnx") == zoo.get(LOGITS)


def test_an_altered_reduced_file_is_refused(scans: data.Dataset, tmp_path: Path) -> None:
    content = made(LOGITS, "int8", scans)
    place = content.index(b"conv2.weight_quantized") + 40
    altered = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    (tmp_path / "m.onnx").write_bytes(altered)
    report = doctor.examine(tmp_path / "m.onnx")
    assert report.error is not None
    assert report.error.code == 4
    with pytest.raises(zoo.errors.DataError, match="not as it was exported"):
        predict.load(str(tmp_path / "m.onnx"))


@pytest.mark.mnist
@pytest.mark.parametrize("name", zoo.names())
def test_the_documented_cnns_pass_on_mnist(name: str, mnist_folder: Path) -> None:
    mnist = data.load("mnist", os.environ["ZOO_DATA"])
    images = data.to_float(mnist.test_images)
    for precision in quantization.PRECISIONS:
        content, _ = quantization.reduce(
            *zoo.load(name), precision, quantization.calibration(mnist, quantization.CALIBRATION_IMAGES)
        )
        drop = quantization.judge(pretrained.onnx(name), content, images, mnist.test_labels)
        assert drop.passed, drop


def test_the_tools_folder_does_not_stay_on_the_path() -> None:
    before = list(sys.path)
    quantization.to_float16(to_onnx(*zoo.load(LOGITS)))
    assert sys.path == before
    assert TensorProto.FLOAT16 in {
        tensor.data_type for tensor in quantization.to_float16(to_onnx(*zoo.load(LOGITS))).graph.initializer
    }
