"""What a machine, its user and other processes do to a command: one line, the right code, nothing left.

docs/faults.md lists the cases and the tests of each; this file holds those that fit nowhere else.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import zoo
from backends.process import worker as workers
from export.onnx import contents
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.runs import card
from zoo import data, runs, weights
from zoo.data import download, sets
from zoo.errors import DataError, MachineError
from zoo.spec.form import from_dict
from zoo.training import checkpoints

ROOT = Path(__file__).parents[2]
TINY = zoo.get("cnn-padded:out_1=2,out_2=2")


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    if "capture_output" not in options and "stdout" not in options:
        options["capture_output"] = True
    return subprocess.run(
        [sys.executable, "-m", "zoo", *arguments],
        env=environment,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


# The list of cases.


def test_every_case_has_tests_that_exist() -> None:
    """docs/faults.md names at least one test for each of sixty cases, and all of them exist."""
    known = {
        f"{path.name}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    published = ast.walk(ast.parse((ROOT / "backends" / "testing" / "conformance.py").read_text()))
    known |= {  # which test_conformance.py runs
        f"test_conformance.py::{node.name}" for node in published if isinstance(node, ast.FunctionDef)
    }
    rows = re.findall(r"^\| (\d+) \|(.*)\|(.*)\|$", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 61))
    for number, case, tests in rows:
        assert case.strip()
        named = re.findall(r"`(\w+)::(\w+)`", tests)
        assert named, f"case {number} has no test"
        for module, name in named:
            assert f"test_{module}.py::test_{name}" in known, f"case {number}: {module}::{name}"


# Places that are no model.


@pytest.mark.parametrize("place", ["", ".", "/", "..", "x" * 5000, "a\0b"])
@pytest.mark.parametrize(
    "arguments",
    [["show"], ["verify"], ["predict", "--weights", "init"], ["export", "--weights"]],
    ids=lambda a: a[0],
)
def test_places_that_are_no_model(
    place: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from zoo import cli

    monkeypatch.chdir(tmp_path)
    words = [arguments[0], place] if len(arguments) == 1 else [arguments[0], "cnn-padded", "--weights", place]
    with pytest.raises(SystemExit) as done:
        cli.main([*words, *(["x.png"] if arguments[0] == "predict" else [])])
    assert done.value.code in (2, 4)
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_may_be_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.Run(tmp_path / "model" / "torch")
    with run.lock():
        run.publish({"a": b"1"}, {})
    monkeypatch.chdir(run.path)
    assert runs.Run(".").read("a") == b"1"


# Files of a run that are no files.


@pytest.mark.parametrize("name", ["manifest.json", "a"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a device", "endless"])
def test_a_file_of_a_run_that_is_none(kind: str, name: str, tmp_path: Path) -> None:
    """It is not waited for, and no more of it is read than the manifest says."""
    run = runs.Run(tmp_path / "run")
    with run.lock():
        run.publish({"a": b"1"}, {})
    path = run.path / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(2**33)
    else:
        path.symlink_to("/dev/zero")
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((DataError, MachineError)):
        run.read("a")
    assert not (kind != "device" and run.is_sound())
    assert time.monotonic() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


# Memory and time of malformed files.


def test_large_files_that_hold_nothing(tmp_path: Path) -> None:
    """Refused by their size or their first bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, size in (("m.onnx", 2**31 - 1), ("w.safetensors", 3 * 10**9)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(DataError, match="not an ONNX file"):
        contents.read_onnx(tmp_path / "m.onnx")
    with pytest.raises(DataError, match="too many for cnn-padded"):
        weights.load(tmp_path / "w.safetensors", TINY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def _with_header(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_with_header(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 2 + b"}"), "sound"),
        (
            _with_header(
                b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
                b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
            ),
            "a name stands twice",
        ),
        (_with_header(b"[" * 10**5), "sound"),
        (_with_header(b" " * 5_000_000), "a header of 5,000,000 bytes"),
        ((2**62).to_bytes(8, "little"), "a header of"),
        (b"", "sound"),
    ],
)
def test_headers_of_weights(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        weights.from_bytes(content, TINY)


# A checkpoint whose hashes are right and whose content is not.


@pytest.mark.parametrize(
    "changed",
    [{"epoch": 10**9}, {"step": 10**9}, {"seconds": "1"}, {"history": [["a", 1, 2, 3]]}, {}],
    ids=str,
)
def test_a_checkpoint_that_fits_nothing(
    changed: dict[str, Any], tmp_path: Path, backend: Any, digits: data.Dataset
) -> None:
    """Other places, other types, and tensors of other shapes: refused before a step is done."""
    from zoo.training import loop

    network = backend.build(TINY, zoo.init_weights(TINY))
    tensors, rest = network.state()
    if not changed:
        tensors = {name: array[..., :1] if array.ndim > 1 else array for name, array in tensors.items()}
    good = checkpoints.Checkpoint(1, 1, tensors, rest, [(1, 1, 0.5, 0.1)], [], None, -1.0, 1.0).to_dict()
    split = data.split(digits, 0, 0, 200).as_float()
    with pytest.raises(DataError, match="the checkpoint"):
        loop.train(
            network, TINY.recipe, split, seed=0, epochs=1,
            start=checkpoints.Checkpoint.from_dict({**good, **changed}, tensors),
        )  # fmt: skip


# Streams that are closed or full.


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system without /dev/full")
@pytest.mark.parametrize(
    "arguments", [["list", "--json"], ["show", "nope", "--json"], ["show", "cnn-padded"]]
)
def test_a_full_disk_behind_standard_output(arguments: list[str]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = command(*arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == (2 if "nope" in arguments else 5)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert command("show", "nope", stdout=subprocess.PIPE, stderr=full).returncode == 2


@pytest.mark.parametrize(("arguments", "code"), [(["list"], 0), (["show", "nope", "--json"], 2)])
def test_closed_streams(arguments: list[str], code: int) -> None:
    shell = " ".join([sys.executable, "-m", "zoo", *arguments, ">&-", "2>&-", "<&-"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(shell, shell=True, env=environment, check=False, timeout=60).returncode == code


# Who runs it, where.


def test_nobody_without_a_home(tmp_path: Path) -> None:
    """A user id that is in no list, and no HOME: what needs no cache works, what does says what to set."""
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("only root can become nobody, with setpriv")
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    for parent in (tmp_path, *tmp_path.parents):
        with contextlib.suppress(OSError):
            parent.chmod(parent.stat().st_mode | 0o055)
    dropped = {"HOME", "ZOO_DATA", "XDG_CACHE_HOME", "MPLCONFIGDIR"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(place), "PYTHONDONTWRITEBYTECODE": "1"}

    def nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        become = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
        return subprocess.run(
            [*become, sys.executable, "-m", "zoo", *arguments],
            env=environment, cwd=place, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    if nobody("--version").returncode:
        pytest.skip("this Python is not readable to others")
    for arguments in (
        ["list"], ["env"], ["data"], ["plot", "cnn-padded", "kernels", "-o", "k.png"],
        ["export", "cnn-padded", "--data", "digits", "-o", "m.onnx"],
    ):  # fmt: skip
        done = nobody(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    done = nobody("data", "mnist")
    assert done.returncode == 5
    assert "set HOME, or ZOO_DATA to a folder" in done.stderr
    assert {path.name for path in place.iterdir()} == {"k.png", "m.onnx"}


@pytest.mark.parametrize("home", [None, ""])
def test_no_home_in_the_environment(home: str | None, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    if home is not None:
        environment["HOME"] = home
    for arguments in (["env"], ["show", "cnn-padded"]):
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *arguments],
            env={**environment, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_a_terminated_command_says_so() -> None:
    """SIGTERM where no training is under way."""
    code = (
        "import signal, time\nfrom zoo import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "def wait(*_, **__):\n"
        "    print('waiting', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.02)\n"
        "cli.list_.callback = wait\n"
        "cli.main(['list', *{options!r}])\n"
    )
    for number, expected, word in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        for options in ([], ["--json"]):
            with subprocess.Popen(
                [sys.executable, "-c", code.replace("{options!r}", repr(options))],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                assert process.stdout.readline() == "waiting\n"
                process.send_signal(number)
                try:
                    out, err = process.communicate(timeout=20)
                finally:
                    process.kill()  # one that goes on would be waited for
            assert process.returncode == expected
            assert err.strip() == f"error: {word}"
            if options:
                assert json.loads(out)["code"] == expected


# Frameworks.


def test_a_framework_that_is_too_old(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from zoo.errors import BackendUnavailable

    name = {"torch": "pytorch", "keras": "keras3"}[framework]
    if framework == "keras":
        monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    module = importlib.import_module(f"backends.{name}.backend")
    monkeypatch.setattr(module, "MINIMUM", (99, 0))
    with pytest.raises(BackendUnavailable, match=f"{framework} .* is too old.*pip install -U {framework}"):
        module.backend()


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried",
        "OOM when allocating tensor with shape[1] and type float",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate",
    ],
)
def test_memory_that_a_framework_does_not_get_is_the_machines(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a worker's loop, with a request that fails as frameworks fail."""
    from backends.process.client import Worker

    prelude = f"""
from backends.process.worker import Worker
def fail(*_): raise RuntimeError({text!r})
Worker.hello = fail
"""
    monkeypatch.setattr("backends.process.client.PRELUDE", prelude)
    with Worker("reference") as worker, pytest.raises(MachineError, match="out of memory"):
        worker.versions()
    assert workers.OUT_OF_MEMORY


# Data.


def test_three_processes_download_and_one_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {name: name.encode() * 99 for name in data.FILES}
    official = {n: download.Official(len(c), hashlib.sha256(c).hexdigest()) for n, c in content.items()}
    fetched: list[str] = []

    def fetch(url: str, _: download.Official) -> bytes:
        time.sleep(0.05)
        fetched.append(url)
        return content[url.rpartition("/")[2].removesuffix(".gz")]

    monkeypatch.setattr(download, "MNIST_GZ", official)
    monkeypatch.setattr(download, "_fetch", fetch)
    threads = [
        threading.Thread(target=download._download_from, args=("http://x/", tmp_path, lambda _: None))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == sorted(f"http://x/{name}.gz" for name in data.FILES)


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    done = command(
        "data", "mnist", "--data-dir", str(tmp_path), env={"REQUESTS_CA_BUNDLE": str(tmp_path / "none")}
    )
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert "SHA-256" in done.stderr


def test_a_complete_cache_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a write, a lock or the network; and through links."""
    from idx_files import idx

    place, cache = tmp_path / "elsewhere", tmp_path / "cache"
    place.mkdir()
    (cache / "MNIST" / "raw").mkdir(parents=True)
    for name in data.FILES:
        count = 20 if name.startswith("train") else 10
        array = np.zeros((count, 28, 28) if "images" in name else count, dtype=np.uint8)
        (place / name).write_bytes(idx(array))
        (cache / "MNIST" / "raw" / name).symlink_to(place / name)
    monkeypatch.setattr(sets, "cache_folder", lambda: cache)
    monkeypatch.delenv("ZOO_DATA", raising=False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("written, or asked")

    monkeypatch.setattr(download, "_download_from", refuse)
    monkeypatch.setattr(download, "_first_mirror", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    before = {path.name for path in (cache / "MNIST" / "raw").iterdir()}
    assert len(data.load("mnist", None, lambda _: None).train_labels) == 20
    assert {path.name for path in (cache / "MNIST" / "raw").iterdir()} == before
    (place / data.FILES[0]).unlink()  # a link that leads nowhere is a file that is missing
    assert data.find(cache) is None


# What is written of a model.


def test_markup_in_a_model_card() -> None:
    spec = {
        **TINY.to_dict(),
        "name": "mine",
        "arguments": {},
        "notes": ["<script>x</script> [a](b) `c` | *d*"],
    }
    spec["document"] = "<img src=x onerror=y> ![z](w)"
    labels = [f"<b>{number}</b>" for number in range(10)]
    model = from_dict({**spec, "labels": labels})
    from test_hostile_files import REPORT

    report = {
        **json.loads(REPORT),
        "document": model.document,
        "warnings": ["never predicted: class <b>1</b>"],
    }
    text = card.model_card(model, report, [])
    for raw in ("<script>", "<img", "<b>", "[a](b)", "![z]", "`c`", "*d*"):
        assert raw not in text, raw


# The interface of a file.


def _renamed(old: str, new: str) -> onnx.ModelProto:
    proto = onnx.load_from_string(serialize(to_onnx(TINY, zoo.init_weights(TINY))))
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = new if value.name == old else value.name
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    return proto


@pytest.mark.parametrize(("old", "new"), [("image", "pixels"), ("logits", "scores")])
def test_verify_holds_a_file_to_its_interface(old: str, new: str) -> None:
    import export

    files = {"theirs": _renamed(old, new).SerializeToString()}
    report = export.verify(TINY, zoo.init_weights(TINY), [], files=files)
    assert not report.passed
    assert new in report.verdict("theirs").error
    fixed = onnx.load_from_string(_renamed("x", "y").SerializeToString())
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    report = export.verify(TINY, zoo.init_weights(TINY), [], files={"theirs": fixed.SerializeToString()})
    assert not report.passed
    good = {"theirs": _renamed("x", "y").SerializeToString()}
    assert export.verify(TINY, zoo.init_weights(TINY), [], files=good).passed
