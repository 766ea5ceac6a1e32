"""The command line as users meet it: what it prints, and the exit code of everything they can do wrong."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backends
import zoo
from zoo import cli, terminal
from zoo.layers import Conv2d, ReLU
from zoo.model import Model
from zoo.recipe import SGD, Recipe

TINY = "cnn-padded:out_1=4,out_2=4"


def test_list(run) -> None:
    result = run("list")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()[2:7]] == zoo.names()
    assert "308,106" in result.out
    assert "zoo show convnet" in result.out
    rows = run("list", "--json").json
    assert [row["name"] for row in rows] == zoo.names()
    assert rows[0] | {"parameters": 308106, "input_shape": [1, 28, 28]} == rows[0]
    assert set(rows[0]) >= {"name", "parameters", "input_shape", "output", "document"}
    assert len(run("list", "--all", "--json").json) == len(zoo.names("all"))


def test_show(run) -> None:
    result = run("show", "lenet-dropout")
    assert result.code == 0
    for text in ("normalize1", "6 x 24 x 24", "7,710", "Adam(learning_rate=0.01)", "note: The document"):
        assert text in result.out
    data = run("show", "cnn-padded:out_1=8", "--json").json
    assert data["name"] == "cnn-padded"
    assert data["parameters"] == zoo.get("cnn-padded", out_1=8).parameters
    expected = {
        "path": "conv1", "kind": "conv", "type": "Conv2d", "output_shape": [8, 28, 28], "parameters": 208, "macs": 156800,
    }  # fmt: skip
    assert data["layers"][0] | expected == data["layers"][0]
    assert data["layers"][-1]["output_shape"] == [10]
    assert data["recipe"]["optimizer"]["learning_rate"] == 0.1


def test_show_a_spec_file(run, tmp_path: Path) -> None:
    spec = zoo.get(TINY).to_dict() | {"name": "mine", "arguments": {}}
    Path("mine.json").write_text(json.dumps(spec))
    assert run("show", "mine.json", "--json").json["name"] == "mine"
    Path("theirs.json").write_text(json.dumps(spec | {"name": "convnet"}))
    result = run("show", "theirs.json")
    assert result.code == 2
    assert "'convnet' is the name of a built-in model" in result.err


@pytest.mark.parametrize("command", ["", *[f"{name} " for name in cli.cli.commands]])
def test_help_shows_examples(command: str, run) -> None:
    result = run(*command.split(), "--help")
    assert result.code == 0
    assert "Examples:" in result.out
    assert f"zoo {command}".strip() in result.out


def test_version(run) -> None:
    assert run("--version").out.strip() == f"zoo, version {zoo.__version__}"


def test_env(run) -> None:
    data = run("env", "--json").json
    assert list(data)[:2] == ["zoo", "versions"]
    assert set(data["backends"]) >= {"reference", "torch", "keras"}
    assert data["backends"]["reference"]["installed"] is True
    assert data["threads"] >= 1
    text = run("env").out
    assert text.splitlines()[0].split() == ["zoo", zoo.__version__]
    assert "onnxruntime" in text


def test_data(run, tmp_path: Path) -> None:
    result = run("data", "--data-dir", tmp_path)
    assert result.code == 0
    assert "digits" in result.out
    assert "mnist is not in" in result.out
    row = run("data", "digits", "--json").json[0]
    assert (row["train"], row["test"], row["image"]) == (1500, 297, [1, 28, 28])


BAD = {
    "no such command": (["biuld"], 2, "unknown command 'biuld'; did you mean 'build'"),
    "no such model": (["build", "covnet"], 2, "unknown model 'covnet'; did you mean 'convnet'"),
    "no such model to show": (["show", "x"], 2, "unknown model 'x'"),
    "no model to show": (["show"], 2, "Missing argument 'MODEL'"),
    "no such parameter": (["show", "cnn-padded:out_9=1"], 2, "no parameter 'out_9'"),
    "no such backend": (["build", "--backend", "tensorflow"], 2, "unknown backend 'tensorflow'"),
    "no such option": (["build", "--epoch", "1"], 2, "No such option '--epoch'"),
    "no number": (["build", "--epochs", "many"], 2, "'many' is not a valid integer"),
    "negative epochs": (["build", "--epochs", "-1"], 2, "-1 epochs"),
    "no images": (["build", "--limit", "0"], 2, "0 training images"),
    "negative seed": (["build", "--seed", "-1"], 2, "seed -1"),
    "no such exporter": (["build", "--exporter", "tflite"], 2, "unknown exporter 'tflite'"),
    "no such device": (["build", "--device", "tpu"], 5, "the device 'tpu' is not available"),
    "no such weights": (
        ["verify", "convnet", "--weights", "none.safetensors", "--data", "digits"],
        4,
        "no such weights file",
    ),
    "no pretrained weights": (["verify", TINY, "--weights", "pretrained"], 4, "no pretrained weights"),
    "nothing to export": (
        ["export", TINY, "--data", "digits"],
        4,
        "no run of cnn-padded (runs); run: zoo build cnn-padded:out_1=4,out_2=4",
    ),
    "pretrained and trained": (["build", "--pretrained", "--epochs", "2"], 2, "--pretrained does not train"),
    "empty engine": (["build", "-b", "torch:"], 2, "unknown torch engine ''"),
    "empty keras engine": (["build", "-b", "keras:"], 2, "unknown keras engine ''"),
    "the same folder twice": (["build", "-b", "torch", "convnet", "convnet"], 2, "two models called convnet"),
    "export to a folder": (["export", "convnet", "-o", "."], 2, "not the name of a file"),
    "export by no exporter": (["export", "convnet", "--exporter", "bogus"], 2, "unknown exporter 'bogus'"),
    "export by nobody": (
        ["export", "convnet", "-b", "bogus", "--weights", "init"],
        2,
        "unknown backend 'bogus'",
    ),
    "a name that is too long": (["verify", "x" * 300, "--data", "digits"], 2, "unknown model"),
    "no such shell": (["completion", "bsh"], 2, "unknown shell 'bsh'; did you mean 'bash'"),
    "no such ONNX file": (["show", "none.onnx"], 4, "no such ONNX file"),
    "no such layer": (
        ["verify", TINY, "--weights", "init", "--layer", "conv3"],
        2,
        "has no layer 'conv3' (--layer); did you mean 'conv2'",
    ),
    "no such report": (
        ["verify", TINY, "--report", "r.html"],
        2,
        "unknown format of a report '.html' (r.html)",
    ),
    "no folder for a report": (["verify", TINY, "--report", "none/r.md"], 2, "no such folder (none)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, code, message = BAD[case]
    monkeypatch.setattr(backends, "training_names", lambda: ["torch"])
    monkeypatch.setattr(backends, "require", lambda name: backends._resolve(name) and None)
    result = run(*arguments)
    assert result.code == code
    assert message in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.out == ""
    as_json = run(*arguments, "--json")
    assert as_json.code == code
    assert as_json.json["code"] == code
    assert set(as_json.json) == {"code", "message", "path", "hint"}
    assert list(tmp_path.iterdir()) == []


def test_data_that_does_not_fit_the_model(run, framework: str) -> None:
    other = zoo.get("cnn-padded").to_dict() | {"name": "other", "input_shape": [1, 12, 12]}
    other["layers"][-1]["units"] = 10
    Path("shape.json").write_text(json.dumps(other))
    five = zoo.get("cnn-padded").to_dict() | {"name": "five", "labels": list("01234")}
    five["layers"][-1]["units"] = 5
    Path("five.json").write_text(json.dumps(five))
    for name, message in (
        ("shape", "takes images of (1, 12, 12)"),
        ("five", "tells 5 classes apart, the data has 10"),
    ):
        for command in (
            ["build", "-b", framework],
            ["verify", "-b", "reference"],
            ["export", "--weights", "init"],
        ):
            result = run(command[0], f"{name}.json", *command[1:], "--data", "digits")
            assert result.code == 2, (command, result.err)
            assert message in result.out + result.err


def test_an_onnx_file_that_was_tampered_with(run, tmp_path: Path) -> None:
    import onnx

    assert run("export", "cnn-padded", "--weights", "init", "-o", "good.onnx", "--data", "digits").code == 0
    assert run("verify", "good.onnx", "--data", "digits", "-b", "reference").code == 0
    proto = onnx.load("good.onnx")
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Sigmoid"
    onnx.save(proto, "bad.onnx")
    result = run("verify", "bad.onnx", "--data", "digits", "-b", "reference")
    assert result.code == 1
    assert "bad.onnx" in result.out
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    onnx.save(proto, "short.onnx")
    assert run("verify", "short.onnx", "--data", "digits", "-b", "reference").code == 4


def _folder(path: Path, **change: bytes) -> Path:
    from test_data import idx

    path.mkdir()
    files = {
        "train-images-idx3-ubyte": idx(np.zeros((20, 28, 28))),
        "train-labels-idx1-ubyte": idx(np.arange(20) % 10),
        "t10k-images-idx3-ubyte": idx(np.zeros((10, 28, 28))),
        "t10k-labels-idx1-ubyte": idx(np.arange(10)),
    }
    for name, content in files.items():
        key = name.replace("-", "_")
        if key in change:
            (path / f"{name}.gz").write_bytes(change[key])
        else:
            (path / name).write_bytes(content)
    return path


def test_bad_data(run, tmp_path: Path, framework: str) -> None:
    from test_data import idx

    sound = gzip.compress(idx(np.arange(20) % 10))
    (tmp_path / "empty").mkdir()
    cases = {
        "empty": "not a folder of IDX files",
        str(_folder(tmp_path / "cut", train_labels_idx1_ubyte=sound[:-9])): "damaged",
        str(_folder(tmp_path / "crc", train_labels_idx1_ubyte=sound[:-8] + b"\0" * 8)): "damaged",
        str(
            _folder(tmp_path / "label", train_labels_idx1_ubyte=gzip.compress(idx(np.full(20, 11))))
        ): "outside 0..9",
    }
    for folder, message in cases.items():
        result = run("build", TINY, "--backend", framework, "--data", folder)
        assert (result.code, result.err.count("\n")) == (4, 1), folder
        assert message in result.err
    result = run("build", TINY, "--backend", framework, "--data", "no-such-set")
    assert result.code == 2
    assert "unknown data set 'no-such-set'" in result.err
    assert not (tmp_path / "runs").exists()


def test_an_output_folder_that_cannot_be(run, tmp_path: Path, framework: str) -> None:
    (tmp_path / "file").write_text("mine")
    result = run(
        "build", TINY, "--backend", framework, "--data", "digits", "--out", "file/x", "--epochs", "0"
    )
    assert result.code == 5
    assert "cannot write: Not a directory" in result.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_publishes_nothing(tmp_path: Path, framework: str) -> None:
    """The run does not fit into 40 kB: a limit on the size of files stands in for a full disk."""
    script = (
        "import resource, signal, sys\nfrom zoo.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["build", "cnn-padded", "-b", framework, "--data", "digits", "--epochs", "0", "-o", "runs"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 5, done.stderr
    assert "cannot write: File too large" in done.stderr
    model = tmp_path / "runs" / "cnn-padded"
    assert {path.name for path in model.iterdir()} <= {f".{framework}.lock"}


def test_a_missing_framework(run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = backends.importlib.util.find_spec
    gone = ("torch", "keras", "tensorflow")
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name: None if name in gone else real(name)
    )
    monkeypatch.setattr(backends, "plugins", tuple)
    for name in ("torch", "keras"):
        result = run("build", TINY, "--backend", name, "--data", "digits")
        assert result.code == 3
        assert f"run: pip install -e '.[{name}]'" in result.err
    assert run("build").code == 3
    assert run("env", "--json").json["backends"]["torch"]["installed"] is False
    for arguments in (["list"], ["show", "convnet"], ["data", "digits"]):
        assert run(*arguments).code == 0


def test_verify_without_a_framework_checks_the_direct_export(run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("verify", "lenet-dropout", "--weights", "init", "--data", "digits", "--backend", "reference")
    assert result.code == 0
    assert "PASSED 3 of 3" in result.out
    assert "no decision can differ" in result.out


def test_verify_goes_on_after_a_model_that_cannot_be_had(run, tmp_path: Path) -> None:
    common = ("--weights", "init", "--data", "digits", "--backend", "reference")
    result = run("verify", "runs/none", "lenet-dropout", *common, "--json")
    assert result.code == 2
    assert [report["model"] for report in result.json] == ["lenet-dropout"]
    assert "error: runs/none: " in result.err
    assert run("verify", "lenet-dropout", "lenet-dropout", *common).code == 0


def test_verify_looks_at_probes_where_no_data_fits(run, tmp_path: Path) -> None:
    model = Model("edges", (2, 5, 6), (Conv2d(3, 2), ReLU()), Recipe(SGD(0.1), 1, 1), labels=())
    (tmp_path / "edges.json").write_text(model.to_json())
    result = run("verify", str(tmp_path / "edges.json"), "--backend", "reference", "--json")
    assert result.code == 0, result.err
    assert result.json[0]["data"] == "noise and probes"
    assert run("verify", str(tmp_path / "edges.json"), "--data", "digits", "-b", "reference").code == 2


@pytest.mark.skipif(bool(backends.training_names()), reason="for an environment with no framework")
def test_without_any_framework_the_command_is_printed(run) -> None:
    for arguments in (["build"], ["build", "--backend", "torch"], ["build", "-b", "keras"]):
        result = run(*arguments, "--data", "digits")
        assert result.code == 3
        assert "pip install -e '.[" in result.err
    assert run("list").code == 0
    verified = run("verify", "lenet-dropout", "--data", "digits")
    assert verified.code == 0
    # The direct export and the shipped file, with and without optimisations, and onnx's own implementation.
    assert "PASSED 5 of 5" in verified.out


def test_the_whole_way(run, framework: str, tmp_path: Path) -> None:
    result = run("build", TINY, "--backend", framework, "--data", "digits", "--epochs", "2")
    assert result.code == 0, result.err
    table = result.out.splitlines()
    assert table[0].split()[:2] == ["model", "backend"]
    assert table[2].split()[:2] == ["cnn-padded", framework]
    assert "PASSED 1 of 1" in result.out
    assert f"zoo verify runs/cnn-padded/{framework}" in result.out
    again = run("build", TINY, "--backend", framework, "--data", "digits", "--epochs", "2", "--json")
    outcome = again.json[0]
    assert outcome["up_to_date"] is True
    assert outcome["onnx"]["passed"] is True
    folder = Path("runs/cnn-padded") / framework
    verified = run("verify", folder, "--data", "digits")
    assert verified.code == 0
    assert "bit-identical to direct" in verified.out
    report = json.loads((folder / "verify.json").read_text())
    assert report["passed"] is True
    exported = run("export", folder, "-o", "out.onnx", "--data", "digits")
    assert exported.code == 0, exported.err
    for text in (
        "input   image float32 [batch, 1, 28, 28]",
        "output  logits float32",
        "opset   18",
        "SHA-256",
        "import numpy",
    ):
        assert text in exported.out
    assert Path("out.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    assert run("show", "out.onnx", "--json").json["name"] == "cnn-padded"
    assert run("show", folder).code == 0
    damaged = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    result = run("verify", folder, "--data", "digits")
    assert result.code == 4
    assert "altered after it was written" in result.err


def test_one_failure_among_several_decides_the_code(run, framework: str, tmp_path: Path) -> None:
    wild = zoo.get(TINY).to_dict() | {"name": "wild", "arguments": {}}
    wild["recipe"]["optimizer"]["learning_rate"] = 1e30
    Path("wild.json").write_text(json.dumps(wild))
    result = run(
        "build", "wild.json", TINY, "-b", framework, "--data", "digits", "--epochs", "1", "--limit", "300"
    )
    assert result.code == 6
    assert "PASSED" not in result.out
    assert "FAILED 1 of 2" in result.out
    assert "the loss is" in result.out
    assert not Path("runs/wild", framework).exists()
    assert Path("runs/cnn-padded", framework, "manifest.json").is_file()


def test_a_failed_check_exits_1(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_build import _wrong_bias

    from export.crosscheck import verification

    monkeypatch.setattr(verification, "to_onnx", _wrong_bias)
    result = run("verify", "lenet-dropout", "--weights", "init", "--data", "digits", "-b", "reference")
    assert result.code == 1
    assert "FAILED" in result.out


def _published(path: Path, stale: bool = False) -> None:
    """A run with initial weights; stale: its model.onnx is of other weights."""
    from export.onnx.file import serialize
    from export.onnx.graph import to_onnx
    from zoo import runs, weights

    model = zoo.get(TINY)
    values = zoo.init_weights(model)
    files = {
        "model.onnx": serialize(to_onnx(model, zoo.init_weights(model, 1) if stale else values)),
        "weights.safetensors": weights.to_bytes(values, {}),
        "spec.json": model.to_json().encode(),
        "report.json": b'{"backend": "torch"}',
    }
    run = runs.Run(path)
    with run.lock():
        run.publish(files, {})


def test_the_exit_code_of_a_run_that_is_not_what_it_says(run) -> None:
    path = Path("runs/cnn-padded/torch")
    verify = ["verify", path, "--data", "digits", "-b", "reference"]
    _published(path)
    result = run(*verify)
    assert result.code == 0, result.out
    assert "PASSED 5 of 5" in result.out
    kept = json.loads((path / "verify.json").read_text())
    same = ["--inputs-seed", "0", "--backend", "reference"]
    assert kept["command"] == ["zoo", *map(str, verify[:-2]), *same]
    by_name = run("verify", TINY, "--data", "digits", "-b", "torch", "--layer", "conv1", "--json")
    if backends.installed("torch"):  # its own run is found, and said by its path
        assert by_name.json[0]["command"][2] == str(path)
    assert run(*verify, "--layer", "conv1").code == 0
    assert json.loads((path / "verify.json").read_text()) == kept  # which is of everything
    content = bytearray((path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "model.onnx").write_bytes(content)
    assert run(*verify).code == 4
    other = Path("runs/cnn-padded/keras")
    _published(other, stale=True)
    result = run("verify", other, "--data", "digits", "-b", "reference")
    assert result.code == 1
    assert f"suspect: the file {other}/model.onnx" in result.out
    assert "FAILED 2 of 5" in result.out


@pytest.mark.parametrize("fault", ["weights", "graph"])
def test_the_exit_code_of_a_wrong_export(fault: str, run, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.crosscheck import verification
    from export.onnx import graph

    def other(real):
        def exporter(model, weights):
            proto = real(model, zoo.init_weights(model, 1) if fault == "weights" else weights)
            for node in proto.graph.node:
                if fault == "graph" and node.op_type == "Relu":
                    node.op_type = "LeakyRelu"
            return proto

        return exporter

    verify = ["verify", TINY, "--weights", "init", "--data", "digits", "-b", "reference"]
    assert run(*verify).code == 0
    for name in ("to_onnx", "to_layers_onnx"):
        monkeypatch.setattr(verification, name, other(getattr(graph, name)))
    result = run(*verify)
    assert result.code == 1
    assert "first divergence" in result.out
    assert "next:" not in result.out
    again = next(line for line in result.out.splitlines() if "again: " in line).split()[2:]
    assert run(*again).code == 1
    assert run(*verify, "--json").code == 1


def test_the_exit_code_of_a_wrong_file_of_the_package(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.onnx.file import serialize
    from export.onnx.graph import to_onnx
    from zoo import pretrained

    model = zoo.get("lenet-dropout")
    old = serialize(to_onnx(model, zoo.init_weights(model)))
    monkeypatch.setattr(pretrained, "onnx", lambda _: old)
    result = run("verify", "lenet-dropout", "--data", "digits", "-b", "reference")
    assert result.code == 1
    assert "suspect: the file pretrained lenet-dropout.onnx" in result.out


def test_the_exit_code_of_a_backend_that_is_killed(
    run, framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does where memory runs out: the others are judged, the crash is named."""
    from backends.process.client import RemoteNetwork

    def killed(network: RemoteNetwork, images: np.ndarray) -> np.ndarray:
        os.kill(network.worker._process.pid, signal.SIGKILL)
        return real(network, images)

    real = RemoteNetwork.predict
    monkeypatch.setattr(RemoteNetwork, "predict", killed)
    result = run("verify", TINY, "--weights", "init", "--data", "digits", "-b", framework)
    assert result.code == 1
    assert f"crashed  the backend '{framework}' died while asked to predict: killed" in result.out
    assert f"suspect: {framework}: it could not be run to the end" in result.out
    assert "FAILED 1 of 4" in result.out


def test_a_bug_of_ours_is_70(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise TypeError("unexpected\nsecond line")

    monkeypatch.setattr("zoo.models.registry.get", bug)
    result = run("list")
    assert result.code == 70
    assert (
        result.err == "error: a bug of the zoo: TypeError: unexpected; run again with --debug and report it\n"
    )
    assert "Traceback" in run("--debug", "list").err
    assert "Traceback" in run("list", "--debug").err


def test_an_interrupt_is_130(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.models.registry.get", interrupt)
    assert run("list").code == 130


@pytest.mark.parametrize(
    ("arguments", "code"), [(["list"], 0), (["list", "--json"], 0), (["show", "nope", "--json"], 2)]
)
def test_a_closed_pipe_is_no_error(arguments: list[str], code: int) -> None:
    """As in `zoo list | head`, where head has gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        command = [sys.executable, "-m", "zoo", *arguments]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.count("\n") == (1 if code else 0)


@pytest.mark.parametrize("encoding", ["utf-8:strict", "latin-1:strict", "ascii:strict"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_name_of_any_bytes_can_be_said(encoding: str, as_json: bool, tmp_path: Path) -> None:
    name = os.fsdecode("七".encode() + b"\xff.png")
    command = [sys.executable, "-m", "zoo", "predict", "cnn-padded", name, *(["--json"] if as_json else [])]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=env, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: no such picture")
    if as_json:
        assert json.loads(done.stdout)[0]["error"]["code"] == 2


def test_no_command_shows_the_help(run) -> None:
    result = run()
    assert result.code == 0
    assert "Commands:" in result.out


def test_next_commands_are_quoted(run) -> None:
    spec = zoo.get(TINY).to_dict() | {"name": "mine", "arguments": {}}
    Path("my spec.json").write_text(json.dumps(spec))
    assert "zoo build 'my spec.json' --data digits" in run("show", "my spec.json").out


def test_colours_only_where_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal.styled("ok", "green") != "ok"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.styled("ok", "green") == "ok"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert terminal.styled("ok", "green") == "ok"


def test_the_progress_bar_shows_loss_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with terminal.progress_bar("convnet torch") as update:
        for step in range(1, 11):
            update(step, 20, 0.5)
    shown = capsys.readouterr().err
    assert "convnet torch" in shown
    monkeypatch.undo()
    with terminal.progress_bar("silent") as update:
        update(1, 2, 0.1)
    assert capsys.readouterr().err == ""


COMPLETED = {
    ("zoo", "bu"): ["plain,build"],
    ("zoo", "show", "conv"): ["plain,convnet", "plain,convnet-small", "plain,convnet-deep"],
    ("zoo", "show", "./x"): ["file,./x"],
    ("zoo", "build", "--backend", "t"): ["plain,torch"],
    ("zoo", "build", "--data", "d"): ["plain,digits"],
    ("zoo", "build", "--data", "/"): ["dir,/"],
    ("zoo", "plot", "cnn-padded", "mis"): ["plain,mistakes"],
    ("zoo", "completion", ""): ["plain,bash", "plain,zsh", "plain,fish"],
}


@pytest.mark.parametrize("words", COMPLETED, ids=" ".join)
def test_completion(words: tuple[str, ...]) -> None:
    env = {
        **os.environ,
        "_ZOO_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    script = "import sys; sys.argv = ['zoo']; from zoo.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == COMPLETED[words], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_printed(shell: str, run) -> None:
    result = run("completion", shell)
    assert result.code == 0
    assert f"_ZOO_COMPLETE={shell}_complete" in result.out
