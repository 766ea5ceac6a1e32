"""Ended or failed at every place where it touches a file: nothing is lost, nothing half is left.

In the default sessions some of the places, in their own session (ZOO_SWEEP=all) every one:
- after any end there is the old result or the new one, whole, or none where there was none;
- a failure is one line and exit code 5;
- nothing outside the folder is touched;
- the same command afterwards gives what an undisturbed one gives, and leaves nothing else behind.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crashing
import pytest
from crashing import FAILURES, KILLED, Strace, Twin

from zoo import runs

ALL = os.environ.get("ZOO_SWEEP") == "all"
ROOT = Path(__file__).parents[2]
TARGET = ROOT / "tests" / "helpers" / "crash_target.py"
POINTS = 40  # of a whole build
EVERY = 1 if ALL else 61  # in the default sessions one place in so many, other ones for each failure
HOWS = (KILLED, *FAILURES)
# What stays beside a result: the locks, which the system releases and nobody may delete.
LOCKS = ("toy/.numpy.lock", "MNIST/raw/.download.lock")


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


class Place:
    """A folder for the output, with a home and a temporary folder beside it that must stay empty."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.others = (folder / "home", folder / "tmp", folder / "work")
        self.cache = folder / "cache"
        for path in (self.out, self.cache, *self.others):
            path.mkdir(parents=True)

    def environment(self) -> dict[str, str]:
        home, temporary, _ = map(str, self.others)
        return {
            **{name: os.environ[name] for name in ("PATH", "KERAS_HOME") if name in os.environ},
            "HOME": home,
            "XDG_CACHE_HOME": str(self.cache),
            "TMPDIR": temporary,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def is_clean(self) -> bool:
        ours = {self.cache / "cnn-zoo"}
        return not any(any(path.iterdir()) for path in self.others) and set(self.cache.iterdir()) <= ours


def tool(kind: str, place: Place, scenario: str, log: Path) -> Strace | Twin:
    if kind == "strace":
        command = [sys.executable, str(TARGET), str(place.out), scenario]
        return Strace(command, place.environment(), log)
    code = f"sys.argv[1:] = {[str(place.out), scenario]!r}\nimport crash_target; crash_target.main(*sys.argv[1:])"
    return Twin(code, place.environment(), log, place.out)


def old(scenario: str, out: Path) -> None:
    """Something that was there before and must not be lost."""
    if scenario == "run":
        run = runs.Run(out / "toy" / "numpy")
        with run.lock():
            run.publish({"weights.safetensors": b"old", "history.csv": b"older"}, {"seed": -1})
    elif scenario == "file":
        runs.write_atomically(out / "model.onnx", b"old")


def result(scenario: str, out: Path) -> dict[str, str] | None:
    """What a reader finds: the content of the files; None if nothing is there."""
    if scenario == "run":
        found = runs.find(out, "toy")
        if found is None:
            return None
        assert runs.Run(found).is_sound()
        return listing(found)
    if scenario == "file":
        path = out / "model.onnx"
        return {"model.onnx": hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else None
    found = {name: h for name, h in listing(out).items() if name.endswith("ubyte.gz")}
    return found or None


@pytest.fixture(params=["strace", "Python"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "strace" and crashing.strace() is None:
        pytest.skip("no strace that can inject faults here; its twin in Python sweeps")
    return str(request.param)


@pytest.mark.parametrize("before", ["nothing", "an old one"])
@pytest.mark.parametrize("scenario", ["run", "file", "download"])
def test_every_place(
    kind: str, scenario: str, before: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if scenario == "download" and (before != "nothing" or kind == "strace"):
        pytest.skip("files that are there are not fetched; the server is a thread, which strace counts apart")
    whole = Place(tmp_path / "whole")
    if before != "nothing":
        old(scenario, whole.out)
    kept = result(scenario, whole.out)
    # The calls are listed in the same place where they are struck: paths have the same lengths.
    points = tool(kind, whole, scenario, tmp_path / "log").points(whole.out)
    expected, left = result(scenario, whole.out), listing(whole.out)
    assert expected not in (None, kept)
    assert whole.is_clean()
    struck: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for nth, how in enumerate(HOWS):
        for point in points[nth * 13 % EVERY :: EVERY]:
            shutil.rmtree(whole.out)
            whole.out.mkdir()
            if before != "nothing":
                old(scenario, whole.out)
            done = tool(kind, whole, scenario, tmp_path / "log").strike(point, how)
            struck[how] += 1
            about = f"{point}, {how}: {done.returncode} {done.stderr[-500:]}"
            if how == KILLED:
                assert done.returncode == -signal.SIGKILL, about
            elif done.returncode:  # some failures, such as of an unlink, are mended on the spot
                (line,) = done.stderr.splitlines()
                assert line.startswith("error: "), about
                assert done.returncode == 5, about
            check(scenario, whole, kept, expected, about, outcomes)
            again = tool(kind, whole, scenario, tmp_path / "log")._run(*again_arguments(kind))
            assert again.returncode == 0, (about, again.stderr)
            assert result(scenario, whole.out) == expected, about
            assert listing(whole.out) == left, about
            assert whole.is_clean(), about
    with capsys.disabled():
        counts = ", ".join(f"{how} at {count}" for how, count in struck.items())
        print(f"\n  {kind}, {scenario} over {before}: {len(points)} places; {counts}; {dict(outcomes)}")
    assert struck
    if scenario == "run" and ALL:
        assert set(outcomes) == {"old", "new"}


def again_arguments(kind: str) -> tuple[Any, ...]:
    return () if kind == "strace" else (0, "")


def check(
    scenario: str,
    place: Place,
    kept: dict[str, str] | None,
    expected: dict[str, str] | None,
    about: str,
    outcomes: Counter[str],
) -> None:
    """The old result or the new one, whole. A download may have some files, each of them whole."""
    found = result(scenario, place.out)
    assert place.is_clean(), about
    if scenario == "download":
        assert expected is not None
        assert all(expected[name] == content for name, content in (found or {}).items()), about
        outcomes[f"{len(found or {})} files"] += 1
    else:
        assert found in (kept, expected), about
        outcomes["new" if found == expected else "old"] += 1


BUILD = ["build", "lenet-dropout", "--data", "digits", "--limit", "200", "--epochs", "2"]


def in_a_while(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something comes true: a worker whose parent was killed takes its time to end."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not ALL, reason="whole builds are for the session `sweep`")
def test_random_places_of_a_build(framework: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, with a framework, checkpoints after every step, and a run that it replaces."""
    place = Place(tmp_path / "place")
    arguments = [*BUILD, "--backend", framework, "--out", str(place.out)]
    code = f"from zoo.cli import main; main({arguments!r})"
    environment = {**place.environment(), "ZOO_CHECKPOINT_SECONDS": "0"}
    twin = Twin(code, environment, tmp_path / "log", place.out)
    run = runs.Run(place.out / "lenet-dropout" / framework)

    def old_one() -> None:
        with run.lock():
            run.publish({"weights.safetensors": b"old"}, {"seed": -1})

    def files() -> dict[str, str] | None:
        """The files of the run without those that tell of times."""
        found = runs.find(place.out, "lenet-dropout")
        if found is None or not runs.Run(found).is_sound():
            return None
        return {
            k: v for k, v in listing(found).items() if k not in ("report.json", "README.md", "manifest.json")
        }

    def clean() -> bool:
        return {path.name for path in run.path.parent.iterdir()} == {framework, f".{framework}.lock"}

    old_one()
    before = files()
    points = twin.points(place.out)
    expected = files()
    assert expected != before
    assert "model.onnx" in (expected or {})
    chosen = random.Random(1).sample(points, POINTS)
    outcomes: Counter[str] = Counter()
    for nth, point in enumerate(chosen):
        how = HOWS[nth % len(HOWS)]
        shutil.rmtree(place.out)
        old_one()
        done = twin.strike(point, how)
        about = f"{point}, {how}: {done.returncode} {done.stderr[-500:]}"
        assert done.returncode in ((-signal.SIGKILL,) if how == KILLED else (0, 5)), about
        if done.returncode == 5:
            assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) <= 1, about
            assert "Traceback" not in done.stderr, about
        found = files()
        assert found in (before, expected), about
        outcomes["new" if found == expected else "old"] += 1
        again = twin._run(0, "")
        assert again.returncode == 0, (about, again.stderr)
        outcomes["went on"] += "going on" in again.stderr or "trained before" in again.stderr
        assert files() == expected, about
        assert clean(), about
        assert in_a_while(place.is_clean), (about, [list(path.iterdir()) for path in place.others])
    with capsys.disabled():
        print(f"\n  {framework}: {len(points)} places, {len(chosen)} of them at random; {dict(outcomes)}")
    assert outcomes["old"]
    assert outcomes["went on"]


def test_the_sweep_sees_what_is_not_atomic(tmp_path: Path) -> None:
    """A program that writes in place is caught, by strace where there is one and by its twin."""
    careless = "import pathlib, sys\npathlib.Path(sys.argv[1], 'model.onnx').write_bytes(b'x' * 10**6)\n"
    program = tmp_path / "careless.py"
    program.write_text(careless)
    for kind in ("strace", "Python") if crashing.strace() else ("Python",):
        place = Place(tmp_path / kind)
        target = place.out / "model.onnx"
        if kind == "strace":
            found: Strace | Twin = Strace(
                [sys.executable, str(program), str(place.out)], place.environment(), tmp_path / "log"
            )
        else:
            found = Twin(
                f"sys.argv[1:] = [{str(place.out)!r}]\n{careless}",
                place.environment(),
                tmp_path / "log",
                place.out,
            )
        points = found.points(place.out)
        assert "write" in {point.call for point in points}
        whole = target.read_bytes()
        contents = set()
        for point in points:
            target.write_bytes(b"old")
            found.strike(point, KILLED)
            contents.add(target.read_bytes())
        assert contents - {b"old", whole}, "an empty or a cut file"
