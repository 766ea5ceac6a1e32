"""Where a process touches files below a folder, and how to end or fail it there.

Two ways that find the same places: strace, which stops a process before a system call, and its twin
in Python, which does so before the call of the standard library that would make it. The twin also
runs where there is no strace, and inside a command whose framework strace would slow down too much.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLED = "killed"
FAILURES = ("ENOSPC", "EIO")
SYSTEM_CALLS = (
    "openat,write,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,ftruncate"
)


@dataclass(frozen=True)
class Point:
    """One call: the n-th of its kind in the process, and the path that it touches."""

    call: str
    number: int
    path: str


def strace() -> str | None:
    """The strace that can inject faults here, or None."""
    found = shutil.which("strace")
    if found is None:
        return None
    tried = subprocess.run(
        [found, "-qq", "-o", os.devnull, "-e", "inject=fsync:error=EIO:when=9", "true"],
        capture_output=True,
        check=False,
    )
    return found if tried.returncode == 0 else None


class Strace:
    """The system calls of one process, seen and changed by strace."""

    name = "strace"

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.command = command
        self.environment = environment
        self.log = log

    def points(self, folder: Path) -> list[Point]:
        """Every call that touches something below a folder, in a run that nothing disturbs."""
        done = self._run()
        assert done.returncode == 0, done.stderr
        return [point for point in self._seen() if _below(point.path, folder)]

    def strike(self, point: Point, how: str) -> subprocess.CompletedProcess[str]:
        """Run with one call changed; asserts that it was the one meant."""
        change = "signal=SIGKILL" if how == KILLED else f"error={how}"
        done = self._run("-e", f"inject={point.call}:{change}:when={point.number}")
        struck = [seen for seen in self._seen() if (seen.call, seen.number) == (point.call, point.number)]
        assert [seen.path for seen in struck] == [point.path], (point, struck)
        return done

    def _run(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                "strace",
                "-f",
                *(() if "signal=" in "".join(more) else ("--seccomp-bpf",)),  # quick; it loses signals
                "-qq",
                "-y",
                "-s",
                "0",
                "-o",
                str(self.log),
                "-e",
                f"trace={SYSTEM_CALLS}",
                *more,
                *self.command,
            ],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def _seen(self) -> list[Point]:
        counts: dict[str, int] = {}
        points = []
        for line in self.log.read_text(errors="replace").splitlines():
            match = re.match(r"(?:[0-9]+ +)?(\w+)\((.*)", line)
            if not match:
                continue
            call, rest = match.groups()
            counts[call] = counts.get(call, 0) + 1
            path = re.sub(r"\.[0-9]+(?=\.zoo-new)", ".PID", _path_of(call, rest))
            points.append(Point(call, counts[call], path))
        return points


def _path_of(call: str, arguments: str) -> str:
    """The path that a traced call names; of one relative to a folder, the folder and the name."""
    parts = re.findall(r"<([^<>]*)>|\"((?:[^\"\\]|\\.)*)\"", arguments)
    names = [bracketed or quoted for bracketed, quoted in parts]
    if call in ("write", "fsync", "fdatasync", "ftruncate"):
        return names[0] if names else ""
    if call.endswith("at") and len(names) > 1:  # the folder that the second name may be relative to
        return os.path.join(*names[:2])
    return names[0] if names else ""


def _below(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


class Twin:
    """The same, by functions of the standard library that are replaced in the process.

    Its calls have one numbering together. code: the program, which is Python.
    """

    name = "Python"

    def __init__(self, code: str, environment: dict[str, str], log: Path, folder: Path) -> None:
        self.code = code
        self.environment = environment
        self.log = log
        self.folder = folder

    def points(self, folder: Path) -> list[Point]:
        """Every call that touches something below a folder, in a run that nothing disturbs."""
        done = self._run(0, "")
        assert done.returncode == 0, done.stderr
        lines = enumerate(self.log.read_text().splitlines(), start=1)
        return [Point(line.split()[0], number, line.split(" ", 1)[1]) for number, line in lines]

    def strike(self, point: Point, how: str) -> subprocess.CompletedProcess[str]:
        """Run with one call changed; asserts that it was one of the kind that was meant."""
        done = self._run(point.number, how)
        last = self.log.read_text().splitlines()[point.number - 1]
        assert last.split()[0] == point.call, (point, last)
        return done

    def _run(self, number: int, how: str) -> subprocess.CompletedProcess[str]:
        self.log.unlink(missing_ok=True)
        boot = (
            f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
            f"import crashing; crashing.arm({str(self.folder)!r}, {number}, {how!r}, {str(self.log)!r})\n"
        )
        return subprocess.run(
            [sys.executable, "-c", boot + self.code],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def arm(folder: str, number: int, how: str, log: str) -> None:
    """Log every call of this process that touches something below a folder; change the n-th.

    how: "killed", or the name of the error that it raises. 0 changes none.
    """
    count = [0]
    record = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    append, kill, listed = os.write, os.kill, os.readlink

    def touch(call: str, path: object, dir_fd: int | None = None) -> None:
        if isinstance(path, int):
            path = listed(f"/proc/self/fd/{path}")
        elif dir_fd is not None:
            path = f"{listed(f'/proc/self/fd/{dir_fd}')}/{os.fsdecode(path)}"  # type: ignore[arg-type]
        shown = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
        if not _below(shown, Path(folder)):
            return
        count[0] += 1
        append(record, f"{call} {shown}\n".encode())
        if count[0] == number and how == KILLED:
            kill(os.getpid(), signal.SIGKILL)
        elif count[0] == number:
            code = getattr(errno, how)
            raise OSError(code, os.strerror(code), shown)

    def replaced(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(path: Any, *arguments: Any, **options: Any) -> Any:
            touch(call, path, options.get("dir_fd"))
            return real(path, *arguments, **options)

        return function

    class Raw(io.FileIO):
        def write(self, content: Any) -> int:
            touch("write", self.name)
            return super().write(content)

    real_open = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        touch("open", file)
        return (
            io.BufferedWriter(Raw(file, "w"))
            if mode == "wb"
            else real_open(file, mode, *arguments, **options)
        )

    for call in ("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, call, replaced(call, getattr(os, call)))
    io.open = opened  # type: ignore[assignment]
