"""A competitor in a process of its own that stays alive, so that blocks of several frameworks take turns.

The child calls a function that trains for ever and has `pace` called after every step; `pace` is where
the child waits for the next block. So a block begins and ends between two steps in the middle of an
epoch, and nobody pays for starting an epoch in every block. The parent sends the number of steps in a
line, the child answers with a JSON object in another.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from benchmarks.paired import Block

ROOT = Path(__file__).parents[1]
Pace = Callable[[], None]


class Child:
    """A process that runs `module:function(pace, **arguments)`. A context manager; leaving ends it."""

    def __init__(
        self, function: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        """environment: of the process; without it this process's own.

        Raises RuntimeError, here and in `run`, if the process ends; it has written why to standard error.
        """
        self._function = function
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.process", function, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, steps: int) -> Block:
        """Let it do so many steps; it does one more before the first block."""
        if self._process.stdin is None or self._process.stdout is None:  # both are pipes
            raise RuntimeError("the competitor has no pipes")
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the line that is missing says so
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._function} ended with exit code {self._process.wait()}")
        return Block(**json.loads(line))


class _Pace:
    """Counts the steps of a block; waits between two blocks."""

    def __init__(self, source: IO[str], output: IO[str]) -> None:
        self._source, self._output = source, output
        self._steps = self._left = 0
        self._wall = self._cpu = 0.0

    def __call__(self) -> None:
        self._left -= 1
        if self._left > 0:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        if self._steps:
            block = Block((wall - self._wall) / self._steps, (cpu - self._cpu) / self._steps)
            self._output.write(json.dumps(block._asdict()) + "\n")
            self._output.flush()
        line = self._source.readline()
        if not line:
            raise SystemExit  # the parent has gone
        self._steps = self._left = int(line)
        self._wall, self._cpu = time.perf_counter(), time.process_time()


def main() -> None:
    """Run the function that the arguments name."""
    source, output = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a framework prints is no answer
    module, _, function = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), function)(_Pace(source, output), **json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
