"""A run: one folder per model and backend that appears whole or not at all; so does its checkpoint.

`publish` writes every file into a folder beside the final one, the manifest of SHA-256 last, and
then swaps the folders by renaming: the old run goes aside, the new one takes its place, the old
one is removed. Whoever opens a run first finishes or undoes a swap that was cut off. All of it
happens under one lock per run, which the system releases when its holder dies.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zoo.errors import DataError, InvalidInput, MachineError

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1_000_000  # bytes
NEW, OLD = ".zoo-new", ".zoo-old"  # folders in a swap: reserved names, because we remove them
CHECKPOINT = ".zoo-checkpoint"  # likewise reserved


class Run:
    """The folder of one run. Nothing is touched before `lock`."""

    def __init__(self, path: str | Path) -> None:
        """Raises InvalidInput for a path that can be no run's: the root of the file system."""
        self.path = Path(path)
        if not self.path.name or self.path.name == "..":  # the current folder, or one around it
            self.path = Path(os.path.abspath(path))
        if not self.path.name:
            raise InvalidInput("not the folder of a run", str(path) or "an empty name", "name a run's folder")
        self._new = self.path.with_name(f".{self.path.name}{NEW}")
        self._old = self.path.with_name(f".{self.path.name}{OLD}")

    @property
    def checkpoint(self) -> Run:
        """The folder beside the run that holds the checkpoint of its training; the run's lock is its lock."""
        return Run(self.path.with_name(f".{self.path.name}{CHECKPOINT}"))

    @contextmanager
    def lock(self, say: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold the run for this process; waits, after saying so, while another one holds it.

        Clears what an interrupted swap left. Raises MachineError if the folder cannot be written.
        """
        import filelock

        lock = filelock.FileLock(str(self.path.with_name(f".{self.path.name}.lock")))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if say:
                    say(f"waiting for another process that builds {self.path}")
                lock.acquire()
        except OSError as error:
            raise self._failure(error) from None
        try:
            self._settle()
            self.checkpoint._settle()
            self._check_place()
            yield
        finally:
            lock.release()

    def recover(self) -> None:
        """Finish or undo a swap that was cut off, if there is one. For readers."""
        if os.path.lexists(self._old) or os.path.lexists(self._new):
            with self.lock():
                pass

    def _check_place(self) -> None:
        """Raise InvalidInput if something that is not ours stands where the run would go."""
        plain = self.path.is_dir() and not self.path.is_symlink()
        ours = plain and ((self.path / MANIFEST).is_file() or not any(self.path.iterdir()))
        if os.path.lexists(self.path) and not ours:
            raise InvalidInput(
                "not a run of the zoo, so it is left alone", self.path, "move it away or choose another --out"
            )

    def _settle(self) -> None:
        try:
            if self._old.is_dir():
                if self.path.is_dir():
                    shutil.rmtree(self._old)  # the new run is in place: finish
                else:
                    self._old.rename(self.path)  # it is not: undo
            if self._new.is_dir():
                shutil.rmtree(self._new)
        except OSError as error:
            raise self._failure(error) from None

    def publish(self, files: Mapping[str, bytes], inputs: Mapping[str, Any]) -> None:
        """Replace the run by these files. Call it under `lock`.

        inputs: everything that the run is a function of, kept in the manifest.
        Raises MachineError if a file cannot be written; the run before it stays as it was.
        """
        manifest = {
            "inputs": inputs,
            "files": {
                name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                for name, content in sorted(files.items())
            },
        }
        try:
            self._new.mkdir()
            for name, content in files.items():
                _write(self._new / name, content)
            _write(self._new / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
            _sync_folder(self._new)
            if self.path.exists():
                self.path.rename(self._old)
            self._new.rename(self.path)
            _sync_folder(self.path.parent)
            if self._old.exists():
                shutil.rmtree(self._old)
        except OSError as error:
            with suppress(MachineError):  # the disk is gone; the next command settles
                self._settle()
            raise self._failure(error) from None

    def discard(self) -> None:
        """Remove the folder, its manifest first. Call it under `lock`; raises MachineError."""
        try:
            (self.path / MANIFEST).unlink(missing_ok=True)
            if self.path.exists():
                shutil.rmtree(self.path)
        except OSError as error:
            raise self._failure(error) from None

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None if there is no finished run.

        Raises DataError if it is damaged, MachineError if the disk fails.
        """
        path = self.path / MANIFEST
        try:
            raw = _read_regular(path, LARGEST_MANIFEST)
            data = json.loads(raw)
            if not isinstance(data["files"], dict) or not isinstance(data["inputs"], dict):
                raise ValueError("files and inputs must be objects")
            for name, file in data["files"].items():
                if Path(name).name != name or not isinstance(file["sha256"], str):
                    raise ValueError("a file has a name and a hash")
                if type(file["bytes"]) is not int or file["bytes"] < 0:
                    raise ValueError("a file has a size")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(error, path) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError("the manifest is damaged", path, "build the run again with --force") from None
        return data

    def read(self, name: str) -> bytes:
        """The content of one file, checked against the manifest before anyone parses it.

        Raises DataError if there is no such run or file, or if the file was altered, MachineError if the
        disk fails.
        """
        manifest = self.manifest()
        if manifest is None:
            raise DataError("no finished run here", self.path, "build it first")
        if name not in manifest["files"]:
            raise DataError(f"the run has no {name}", self.path)
        path, told = self.path / name, manifest["files"][name]
        try:
            content = _read_regular(path, told["bytes"])
        except OSError as error:
            raise _unreadable(error, path) from None
        if hashlib.sha256(content).hexdigest() != told["sha256"]:
            raise DataError("the file was altered after it was written", path, "build it again with --force")
        return content

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in one of the run's JSON files; raises what `read` does, DataError if it holds none."""
        try:
            data = json.loads(self.read(name))
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise DataError("not a run of the zoo", self.path / name, "build it again with --force")
        return data

    def is_sound(self) -> bool:
        """Whether there is a finished run whose every file is as it was written."""
        try:
            manifest = self.manifest()
            for name in manifest["files"] if manifest else ():
                self.read(name)
        except DataError:
            return False
        return manifest is not None

    def _failure(self, error: OSError) -> MachineError:
        reason = error.strerror or str(error)
        return MachineError(f"cannot write: {reason}", error.filename or self.path, "choose another --out")


def find(out: Path, model: str, folder: str | None = None) -> Path | None:
    """The finished run of a model under `out`: the one in `folder`, or the only one there is.

    None if there is none. Raises InvalidInput, listing them, if there are several.
    """
    try:
        children = [child.name for child in (out / model).iterdir()]
    except OSError:
        return None
    names = {name.removeprefix(".").removesuffix(OLD).removesuffix(NEW) for name in children}
    names = {name for name in names if not name.endswith(CHECKPOINT)}
    runs = [Run(out / model / name) for name in sorted(names) if folder in (None, name)]
    for run in runs:
        run.recover()
    found = [run.path for run in runs if (run.path / MANIFEST).is_file()]
    if len(found) > 1:
        listed = " or ".join(str(place) for place in found)
        raise InvalidInput(f"{len(found)} runs of {model}", listed, "choose one with --weights or --backend")
    return found[0] if found else None


def write_atomically(path: Path, content: bytes) -> None:
    """Write one file that appears whole or not at all; raises MachineError."""
    if not path.name:
        raise InvalidInput("not the name of a file", str(path), "give a file name")
    if path.exists() and not path.is_file():
        raise InvalidInput("not a regular file", path, "give another name")
    own = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # a long name has no room for more
    new = path.with_name(f".{own}.{os.getpid()}{NEW}")
    try:
        for left in path.parent.glob(f".{own}.*{NEW}"):
            if not _alive(left.name.split(".")[2]):
                left.unlink(missing_ok=True)
        _write(new, content)
        new.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise MachineError(f"cannot write: {error.strerror}", path, "choose another file") from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two sets of inputs, such as ["seed was 0, now 1"]."""
    found = []
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            shown = [str(x)[:12] if "sha256" in key else json.dumps(x) for x in (a, b)]
            found.append(f"{prefix}{key} was {shown[0]}, now {shown[1]}")
    return found


def _alive(process: str) -> bool:
    """Whether a process with this number runs here."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _read_regular(path: Path, most: int) -> bytes:
    """At most one byte more than `most` of a regular file; raises OSError, IsADirectoryError for others.

    It does not wait for a pipe, nor read a device.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file", str(path))
        return file.read(most + 1)


def _unreadable(error: OSError, path: Path) -> DataError | MachineError:
    """What it means that a file of a run cannot be read: another thing lies there, or the machine fails."""
    what = f"cannot read: {error.strerror}"
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return DataError(what, path, "build it again with --force")
    return MachineError(what, path)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
