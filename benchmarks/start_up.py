"""Start-up: what a command costs before and while it answers, against a bare interpreter and `import torch`.

    python -m benchmarks.start_up [--out FILE.json]

Every step is a whole process, and the first of each, which writes bytecode, is not counted. CPU time is that
of the process with its children, which other work on the machine hardly changes. Prints Markdown.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import tabulate
from PIL import Image

from benchmarks import paired
from benchmarks.paired import Block, Comparison, Team
from zoo import data, machine

PASS, TORCH = "python -c pass", "python -c 'import torch'"
ANSWERS = {
    "zoo --help": ("--help",),
    "zoo list": ("list",),
    "zoo list --json": ("list", "--json"),
    "zoo show convnet": ("show", "convnet"),
}
MOST_CPU = 12.0  # times that of PASS, for what answers from the spec alone
MOST_PREDICT = 0.4  # times the wall time of TORCH


class Command:
    """A command line as a competitor: a step is a process from its start to its end."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = [sys.executable, *arguments]

    def run(self, steps: int) -> Block:
        """Run it so many times, one after the other; raises CalledProcessError where it fails."""
        wall, cpu = time.perf_counter(), _cpu()
        for _ in range(steps):
            subprocess.run(self._arguments, stdout=subprocess.DEVNULL, check=True)
        return Block((time.perf_counter() - wall) / steps, (_cpu() - cpu) / steps)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _zoo(*arguments: str) -> Command:
    return Command(["-m", "zoo", *arguments])


def compare(subject: str, code: str, rivals: dict[str, Command], pairs: int) -> Comparison:
    """Commands against `python -c code`. Ratios: what a command takes, in times of the subject."""

    @contextlib.contextmanager
    def start() -> Iterator[Team]:
        yield Team(Command(["-c", code]), Command(["-c", code]), rivals)

    return paired.compare(subject, subject, start, {}, pairs, starts=1)


def rows(comparison: Comparison, most: float, cpu: bool) -> list[tuple[str, ...]]:
    """One row per command: its ratios, the most it may take (in CPU time, or wall time), the verdict."""
    found = []
    for each in comparison.rivals:
        ratio = each.cpu if cpu else each.wall
        met = "met" if ratio.high <= most else "missed" if ratio.low > most else "open"
        target = f"{most:g} in {'CPU' if cpu else 'wall'} time"
        verdict = met if comparison.sound or cpu else paired.INCONCLUSIVE
        control = comparison.control.cpu if cpu else comparison.control.wall
        found.append(
            (each.rival, comparison.subject, *map(str, (each.wall, each.cpu)), target, verdict, str(control))
        )
    return found


@click.command()
@click.option("--pairs", type=click.IntRange(min=paired.FEWEST_PAIRS), default=paired.FEWEST_PAIRS)
@click.option("--out", type=click.Path(path_type=Path), help="Write every pair to this file, as JSON.")
def main(pairs: int, out: Path | None) -> None:
    """Measure the start-up of the command line."""
    with tempfile.TemporaryDirectory(prefix="zoo-benchmark-") as folder:
        picture = Path(folder) / "digit.png"
        Image.fromarray(np.squeeze(data.digits().test_images[0])).save(picture)
        light = compare(PASS, "pass", {name: _zoo(*words) for name, words in ANSWERS.items()}, pairs)
        predict = {"zoo predict cnn-padded": _zoo("predict", "cnn-padded", str(picture))}
        heavy = compare(TORCH, "import torch", predict, pairs)
    if out:
        about = {"processor": machine.processor(), "versions": machine.versions(("torch",))}
        paired.save(out, about, [light, heavy])
    header = ("command", "against", "wall time, times", "CPU time, times", "at most", "verdict", "control")
    table = [*rows(light, MOST_CPU, True), *rows(heavy, MOST_PREDICT, False)]
    click.echo(f"{machine.processor()}; pairs: {pairs}\n")
    click.echo(tabulate.tabulate(table, header, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
