"""A training that was ended goes on to the same bits; what cannot go on is said, and trained anew."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from backends.process.client import RemoteNetwork
from export.runs import build
from export.runs.job import take_up
from export.runs.options import Options
from zoo import data
from zoo.errors import DataError, Diverged, Interrupted, InvalidInput, MachineError
from zoo.network import Backend
from zoo.recipe import SGD
from zoo.runs import CHECKPOINT, Run
from zoo.training import checkpoints, loop
from zoo.training.checkpoints import Checkpoint
from zoo.training.loop import Keeper, Trained

TINY = "cnn-padded:out_1=4,out_2=4"
SAME = ("model.onnx", "native.onnx", "weights.safetensors", "history.csv", "epochs.csv", "spec.json")


# Training itself, in this process.


def every(steps: int) -> tuple[Keeper, list[Checkpoint]]:
    """A keeper that keeps a training every so many times it is asked, and what it has kept."""
    kept: list[Checkpoint] = []

    class Often(Keeper):
        asked = 0

        def due(self) -> bool:
            self.asked += 1
            return self.asked % steps == 0

    return Often(lambda checkpoint: kept.append(copy.deepcopy(checkpoint))), kept


def assert_same(a: Trained, b: Trained) -> None:
    assert a.history == b.history
    assert a.epochs == b.epochs
    assert (a.best_epoch, a.accuracy, a.loss) == (b.best_epoch, b.accuracy, b.loss)
    for one, other in ((a.weights, b.weights), (a.best or {}, b.best or {})):
        assert list(one) == list(other)
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], strict=True, err_msg=name)


def test_what_is_left_out_of_a_checkpoint_is_missed(backend: Backend, digits: data.Dataset) -> None:
    """The comparison of checkpoints sees a forgotten optimiser, generator and best epoch."""
    model = zoo.get("convnet-deep")  # Adam and dropout
    split = data.split(digits, 60, seed=1, limit=450).as_float()
    keeper, kept = every(2)
    network = backend.build(model, zoo.init_weights(model))
    whole = loop.train(network, model.recipe, split, seed=3, epochs=1, keeper=keeper)
    for prefix in ("optimizer:", "random:", "best:"):
        start = kept[0] if prefix != "best:" else kept[-1]
        assert any(name.startswith(prefix) for name in start.tensors)
        poorer = {name: array for name, array in start.tensors.items() if not name.startswith(prefix)}
        network = backend.build(model, zoo.init_weights(model))
        found = loop.train(
            network, model.recipe, split, seed=3, epochs=1, start=dataclasses.replace(start, tensors=poorer)
        )
        with pytest.raises(AssertionError):
            assert_same(found, whole)


def test_a_keeper_takes_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def save(checkpoint: Checkpoint) -> None:
        now[0] += 0.25

    keeper = Keeper(save, seconds=5.0)
    waited = []
    for _ in range(3):
        started = now[0]
        while not keeper.due():
            now[0] += 0.5
        waited.append(now[0] - started)
        keeper.keep(lambda: Checkpoint(1, 1, {}, {}, [], [], None, -1.0, 0.0))
    assert waited == [5.0, 25.0, 25.0]  # one took 0.25 s


def test_a_keeper_that_is_asked_to_stop() -> None:
    saved: list[Checkpoint] = []
    stopped = [False]
    keeper = Keeper(saved.append, math.inf, lambda: stopped[0])
    assert not keeper.due()
    stopped[0] = True
    assert keeper.due()
    with pytest.raises(Interrupted, match=r"training was interrupted \(epoch 2, step 7\)"):
        keeper.keep(lambda: Checkpoint(2, 7, {}, {}, [], [], None, -1.0, 0.0))
    assert saved[0].step == 7


GOOD = Checkpoint(
    2, 7, {}, {}, [(1, 1, 0.5, 0.1)], [(1, 0.5, 0.1, None, 0.4, 0.2)], None, -1.0, 3.5
).to_dict()


@pytest.mark.parametrize(
    "changed",
    [
        {"epoch": None}, {"epoch": 0}, {"step": -1}, {"step": "1"}, {"history": 3}, {"history": [3]},
        {"epochs": None}, {"network": []}, {"surplus": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_that_is_none(changed: dict[str, Any]) -> None:
    assert Checkpoint.from_dict(json.loads(json.dumps(GOOD)), {}).to_dict() == GOOD
    with pytest.raises(DataError, match="the checkpoint is damaged"):
        Checkpoint.from_dict({**GOOD, **changed}, {})
    for name in GOOD:
        with pytest.raises(DataError, match="the checkpoint is damaged"):
            Checkpoint.from_dict({key: value for key, value in GOOD.items() if key != name}, {})


# A build: through the worker, the run's folder and what the user says.


class _Cut(BaseException):
    """The process ends here."""


def cut_after(checkpoints: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a build ends after so many checkpoints, as if killed while it trains on."""
    real = RemoteNetwork.train
    left = [checkpoints]

    def train(self: RemoteNetwork, *, keep: Callable[[Checkpoint], None], **rest: Any) -> Trained:
        def counted(checkpoint: Checkpoint) -> None:
            if left[0]:
                left[0] -= 1
                keep(checkpoint)

        trained = real(self, keep=counted, **rest)
        if not left[0]:
            raise _Cut
        return trained

    monkeypatch.setattr(RemoteNetwork, "train", train)


def built(out: Path, framework: str, model: str | zoo.Model = TINY, **changes: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    options = Options(**{"data": "digits", "epochs": 2, "limit": 300, "out": out, **changes})
    spec = zoo.get(model) if isinstance(model, str) else model
    return build.build([spec], [framework], options, said.append)[0], said


@pytest.fixture
def cut_off(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting_workers: None
) -> Callable[..., Run]:
    """Build with these options until the process is cut off after two checkpoints of 3 + 3 steps."""

    def make(**changes: Any) -> Run:
        with monkeypatch.context() as patched:
            patched.setenv("ZOO_CHECKPOINT_SECONDS", "0")
            cut_after(2, patched)
            with pytest.raises(_Cut):
                built(tmp_path, framework, **changes)
        return Run(tmp_path / "cnn-padded" / framework)

    return make


def contents(run: Run) -> dict[str, bytes]:
    return {name: (run.path / name).read_bytes() for name in SAME}


def beside(run: Run) -> set[str]:
    return {path.name for path in run.path.parent.iterdir()} - {f".{run.path.name}.lock"}


def test_a_build_goes_on(cut_off: Callable[..., Run], framework: str, tmp_path: Path) -> None:
    built(tmp_path / "whole", framework)
    run = cut_off()
    assert beside(run) == {f".{framework}{CHECKPOINT}"}
    assert not run.path.exists()
    outcome, said = built(tmp_path, framework)
    assert said[0] == f"cnn-padded {framework}: going on in epoch 1 after step 2"
    assert outcome.error is None
    assert contents(run) == contents(Run(tmp_path / "whole" / "cnn-padded" / framework))
    assert beside(run) == {framework}
    assert built(tmp_path, framework)[1] == [f"cnn-padded {framework}: up to date"]
    assert built(tmp_path, framework, resume=True)[1] == [f"cnn-padded {framework}: up to date"]


def test_other_inputs_do_not_go_on(cut_off: Callable[..., Run], framework: str, tmp_path: Path) -> None:
    run = cut_off()
    other = dataclasses.replace(zoo.get(TINY), notes=("another",))
    for changes, differing in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"epochs": 3, "limit": 200}, "data.limit was 300, now 200; epochs was 2, now 3"),
        ({"model": other}, "spec_sha256 was "),
    ):
        with_error, _ = built(tmp_path, framework, resume=True, **changes)
        assert isinstance(with_error.error, InvalidInput)
        assert f"the checkpoint is of another run: {differing}" in str(with_error.error)
        assert "--no-resume trains anew" in str(with_error.error)
    outcome, said = built(tmp_path, framework, seed=1)
    assert said[0].startswith(f"cnn-padded {framework}: the checkpoint is of another run: seed was 0, now 1")
    assert outcome.error is None
    assert beside(run) == {framework}


def test_a_checkpoint_of_another_backend_does_not_go_on(
    cut_off: Callable[..., Run], framework: str, tmp_path: Path
) -> None:
    run = cut_off()
    other = Run(tmp_path / "other" / "cnn-padded" / framework)
    other.path.parent.mkdir(parents=True)
    shutil.copytree(run.checkpoint.path, other.checkpoint.path)
    manifest = json.loads((other.checkpoint.path / "manifest.json").read_text())
    manifest["inputs"]["backend"] = "tinygrad"
    (other.checkpoint.path / "manifest.json").write_text(json.dumps(manifest))
    outcome, said = built(tmp_path / "other", framework)
    assert 'backend was "tinygrad", now' in said[0]
    assert outcome.error is None


def _flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("file", ["state.safetensors", "progress.json", "manifest.json"])
@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:-9], _flip], ids=["empty", "cut", "flipped"])
def test_a_damaged_checkpoint_is_left_out(
    damage: Callable[[bytes], bytes], file: str, tmp_path: Path
) -> None:
    """It needs no framework: the hashes are compared before any parser sees a byte."""
    run = Run(tmp_path / "model" / "torch")
    inputs = {"seed": 0, "threads": 2, "epochs": 1}
    with run.lock():
        checkpoints.save(run, Checkpoint.from_dict(GOOD, {"w": np.zeros(3)}), inputs)
    path = run.checkpoint.path / file
    said: list[str] = []
    start, _ = take_up(run, inputs, Options(), said.append)
    assert start is not None
    path.write_bytes(damage(path.read_bytes()))
    if file == "manifest.json" and damage is _flip:
        path.write_bytes(path.read_bytes().replace(b'"sha256": "', b'"sha256": "0', 1))
    assert take_up(run, inputs, Options(), said.append)[0] is None
    assert said[-1].endswith("it is left out")
    with pytest.raises(DataError):
        take_up(run, inputs, Options(resume=True), said.append)
    assert take_up(run, inputs, Options(resume=False), said.append)[0] is None
    assert take_up(run, inputs, Options(force=True), said.append)[0] is None
    with run.lock():  # the next one takes its place
        checkpoints.save(run, Checkpoint.from_dict(GOOD, {"w": np.ones(3)}), inputs)
    start, _ = take_up(run, inputs, Options(force=True, resume=True), said.append)
    assert start is not None
    np.testing.assert_array_equal(start.tensors["w"], np.ones(3))


def test_the_threads_of_a_checkpoint_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "model" / "torch")
    given = {"seed": 0, "threads": 2, "epochs": 1}
    with run.lock():
        checkpoints.save(run, Checkpoint.from_dict(GOOD, {"w": np.zeros(3)}), {**given, "threads": 7})
    said: list[str] = []
    monkeypatch.delenv("ZOO_THREADS", raising=False)
    start, inputs = take_up(run, given, Options(), said.append)
    assert start is not None
    assert inputs == {**given, "threads": 7}
    start, inputs = take_up(run, {**given, "seed": 1}, Options(), said.append)
    assert start is None
    assert inputs["threads"] == 2, "another run has the machine's"
    monkeypatch.setenv("ZOO_THREADS", "2")
    start, inputs = take_up(run, given, Options(), said.append)
    assert start is None
    assert "threads was 7, now 2" in said[-1]
    assert inputs["threads"] == 2


@pytest.mark.usefixtures("lasting_workers")
def test_a_training_that_diverges_leaves_no_checkpoint(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CHECKPOINT_SECONDS", "0")
    model = zoo.get(TINY)
    wild = dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, optimizer=SGD(3e38)))
    outcome, _ = built(tmp_path, framework, wild)
    assert isinstance(outcome.error, Diverged)
    assert beside(Run(tmp_path / "cnn-padded" / framework)) == set()


@pytest.mark.usefixtures("lasting_workers")
def test_the_folder_is_removed_while_a_run_is_built(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RemoteNetwork.train

    def train(self: RemoteNetwork, **rest: Any) -> Trained:
        trained = real(self, **rest)
        shutil.rmtree(tmp_path / "cnn-padded")
        return trained

    with monkeypatch.context() as patched:
        patched.setattr(RemoteNetwork, "train", train)
        outcome, _ = built(tmp_path, framework)
    assert isinstance(outcome.error, MachineError)
    assert list(tmp_path.iterdir()) == []
    assert built(tmp_path, framework)[0].error is None


# The command, interrupted and killed.


def command(out: Path, framework: str, *more: str) -> list[str]:
    arguments = ["build", "lenet-dropout", "--backend", framework, "--data", "digits", "--epochs", "3"]
    return [sys.executable, "-m", "zoo", *arguments, "--out", str(out), *more]


ENVIRONMENT = {**os.environ, "ZOO_CHECKPOINT_SECONDS": "0.1"}


def ended_by(number: int, out: Path, framework: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command and send it a signal as soon as there is a new checkpoint."""
    manifest = Run(out / "lenet-dropout" / framework).checkpoint.path / "manifest.json"
    before = manifest.stat().st_ino if manifest.is_file() else None

    def kept() -> bool:
        try:
            return manifest.stat().st_ino != before
        except FileNotFoundError:  # not yet, or between two
            return False

    with subprocess.Popen(
        command(out, framework, *more),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not kept() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=100)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


@pytest.mark.usefixtures("lasting_workers")
def test_a_command_that_is_interrupted_and_killed(framework: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert built(whole, framework, "lenet-dropout", epochs=3, limit=None)[0].error is None
    ended = ended_by(signal.SIGINT, parts, framework, "--force")
    assert ended.returncode == 130, ended.stderr
    (last,) = ended.stderr.splitlines()[-1:]
    assert last.startswith("error: training was interrupted (lenet-dropout ")
    resuming = ["zoo", *command(parts, framework)[3:], "--force", "--resume"]  # else it starts anew
    assert last.endswith(f"; go on with: {' '.join(resuming)}")
    ended = ended_by(signal.SIGTERM, parts, framework, "--json")
    assert ended.returncode == 143, ended.stderr
    error = json.loads(ended.stdout)
    assert (error["code"], error["message"]) == (143, "training was interrupted")
    assert ended_by(signal.SIGKILL, parts, framework).returncode == -signal.SIGKILL
    done = subprocess.run(
        command(parts, framework), check=True, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert "lenet-dropout torch: going on" in done.stderr or "keras: going on" in done.stderr
    runs = [Run(out / "lenet-dropout" / framework) for out in (whole, parts)]
    assert contents(runs[0]) == contents(runs[1])
    assert beside(runs[1]) == {framework}
