"""A run appears whole or not at all, is checked when it is read, and outlives a cut-off swap."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import runs
from zoo.errors import DataError, InvalidInput, MachineError
from zoo.runs import Run

FILES = {"a.txt": b"one", "b.bin": bytes(range(256))}
OTHER = {"a.txt": b"two", "c.txt": b"three"}


def publish(run: Run, files: dict[str, bytes], **inputs: object) -> None:
    with run.lock():
        run.publish(files, inputs)


def content(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.name != runs.MANIFEST}


def strays(run: Run) -> set[str]:
    """What else lies beside the run, the lock file aside."""
    return {path.name for path in run.path.parent.iterdir()} - {run.path.name, f".{run.path.name}.lock"}


def test_publish_and_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "model" / "torch")
    assert run.manifest() is None
    assert not run.is_sound()
    publish(run, FILES, seed=0)
    assert content(run) == FILES
    assert run.is_sound()
    assert run.manifest()["inputs"] == {"seed": 0}
    assert run.read("a.txt") == b"one"
    publish(run, OTHER, seed=1)
    assert content(run) == OTHER
    assert strays(run) == set()


def test_what_was_altered_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(DataError, match="no finished run here"):
        run.read("a.txt")
    publish(run, FILES)
    with pytest.raises(DataError, match="the run has no z.txt"):
        run.read("z.txt")
    (run.path / "a.txt").write_bytes(b"0ne")
    with pytest.raises(DataError, match="altered after it was written"):
        run.read("a.txt")
    assert not run.is_sound()
    (run.path / "a.txt").unlink()
    with pytest.raises(DataError, match="cannot read"):
        run.read("a.txt")


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"{}", b'{"files": 1, "inputs": {}}', b"\xff", b"[" * 10**5]
)
def test_a_damaged_manifest(manifest: bytes, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    publish(run, FILES)
    (run.path / runs.MANIFEST).write_bytes(manifest)
    with pytest.raises(DataError, match="the manifest is damaged"):
        run.manifest()
    assert not run.is_sound()
    publish(run, OTHER)
    assert content(run) == OTHER


class _Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
@pytest.mark.parametrize("how", ["killed", "disk full"])
def test_cut_off_at_every_write(call: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended or failed at the n-th call, for every n: afterwards the old run or the new, whole."""
    points = 0
    outcomes = set()
    failures: list[str] = []
    for n in range(100):
        run = Run(tmp_path / f"{n}" / "run")
        publish(run, FILES)
        count = [0]
        with monkeypatch.context() as patched:

            def fail(real, *arguments, count=count, n=n, **options):
                count[0] += 1
                if count[0] == n + 1:
                    raise _Cut if how == "killed" else OSError(errno.ENOSPC, "No space left on device")
                return real(*arguments, **options)

            if call == "fsync":
                real = os.fsync
                patched.setattr(os, "fsync", lambda *a, r=real: fail(r, *a))
            elif call == "rename":
                real = Path.rename
                patched.setattr(Path, "rename", lambda *a, r=real: fail(r, *a))
            else:
                real = Path.open
                patched.setattr(Path, "open", lambda *a, r=real, **k: fail(r, *a, **k))
            try:
                publish(run, OTHER)
            except _Cut:
                pass
            except MachineError as error:
                failures.append(str(error))
        if count[0] <= n:
            break
        points += 1
        again = Run(run.path)
        with again.lock():
            pass
        assert again.is_sound()
        assert content(again) in (FILES, OTHER)
        outcomes.add(content(again) == OTHER)
        assert strays(again) == set()
        publish(again, OTHER)
        assert content(again) == OTHER
    assert points >= 2
    assert all("No space left" in failure for failure in failures)
    assert bool(failures) == (how == "disk full")
    assert False in outcomes, "no point was early enough to keep the old run"


def test_a_swap_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    publish(run, FILES)
    run.path.rename(tmp_path / ".run.zoo-old")
    (tmp_path / ".run.zoo-new").mkdir()
    with run.lock():
        assert content(run) == FILES
    assert strays(run) == set()


def test_a_second_process_waits(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    script = (
        "import sys\nfrom zoo.runs import Run\nrun = Run(sys.argv[1])\n"
        "with run.lock(lambda line: print(line, flush=True)):\n"
        "    run.publish({'a.txt': b'second'}, {})\n"
    )
    with run.lock():
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert "waiting for another process" in other.stdout.readline()
        run.publish(FILES, {})
        assert other.poll() is None
        assert content(run) == FILES
    assert other.wait(30) == 0
    other.stdout.close()
    assert content(run) == {"a.txt": b"second"}


def test_a_dead_holder_blocks_nobody(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    script = (
        "import os, sys\nfrom zoo.runs import Run\n"
        "with Run(sys.argv[1]).lock():\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(run.path)], check=False)
    publish(run, FILES)
    assert content(run) == FILES


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(
            MachineError, match="cannot write: (Not a directory|File exists).*choose another --out"
        ),
        Run(tmp_path / "file" / "model" / "torch").lock(),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_ours_is_left_alone(kind: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "out" / "run")
    run.path.parent.mkdir()
    precious = run.path
    if kind == "folder":
        precious = run.path / "precious.txt"
        run.path.mkdir()
    elif kind == "link":
        precious = tmp_path / "elsewhere" / "precious.txt"
        precious.parent.mkdir()
        run.path.symlink_to(precious.parent)
    precious.write_text("mine")
    with pytest.raises(InvalidInput, match="not a run of the zoo, so it is left alone"):
        publish(run, FILES)
    assert precious.read_text() == "mine"


def test_a_reader_recovers_first(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    publish(run, FILES)
    run.path.rename(tmp_path / ".run.zoo-old")
    reader = Run(tmp_path / "run")
    reader.recover()
    assert reader.read("a.txt") == b"one"


def test_one_file_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.onnx"
    runs.write_atomically(path, b"one")
    assert path.read_bytes() == b"one"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        runs.write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(MachineError, match="No such file"):
        runs.write_atomically(tmp_path / "missing" / "x", b"")


def test_differences_in_words() -> None:
    before = {"seed": 0, "data": {"name": "digits", "sha256": "a" * 64}, "epochs": 3}
    now = {"seed": 1, "data": {"name": "mnist", "sha256": "b" * 64}, "epochs": 3, "threads": 2}
    assert runs.differences(before, now) == [
        'data.name was "digits", now "mnist"',
        f"data.sha256 was {'a' * 12}, now {'b' * 12}",
        "seed was 0, now 1",
        "threads was null, now 2",
    ]
    assert runs.differences(before, json.loads(json.dumps(before))) == []


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    """Names like ours, or a manifest.json of another program, beside a folder that is read."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "a web app"}')
    for name in (".app.old", ".app.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    Run(tmp_path / "app").recover()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "manifest", ['{"a": 1}', '{"a": {"sha256": 1}}', '{"../a": {"sha256": "0"}}', '{"x/y": {}}']
)
def test_a_manifest_that_lists_no_files_of_ours(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(f'{{"inputs": {{}}, "files": {manifest}}}')
    with pytest.raises(DataError, match="the manifest is damaged"):
        Run(tmp_path).manifest()


def test_a_device_or_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="not a regular file"):
        runs.write_atomically(tmp_path / "pipe", b"x")
    assert (tmp_path / "pipe").is_fifo()
