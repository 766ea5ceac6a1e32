"""Growth: what `zoo build` costs as images, batch and layers grow.

    ZOO_DATA=... python -m benchmarks.growth [--backend torch|keras] [--out FOLDER]

Every point is a whole `zoo build` in a process of its own, workers included: CPU seconds, which other work
on the machine hardly changes, and the largest resident memory of any of its processes; of several builds the
least. Writes growth.json and growth.png, prints Markdown. The exponent of a series is the slope of its last
half between logarithms of size and cost, the cost of nothing (no epoch) taken off: 1 is linear.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import tabulate
from matplotlib.figure import Figure

import zoo
from zoo import machine
from zoo.layers import Conv2d, Dense, Flatten, Layer, MaxPool2d, ReLU
from zoo.model import Model

IMAGES = (1000, 3000, 10_000, 30_000, 60_000)
BATCHES = (10, 30, 100, 300, 1000)
DEPTHS = (2, 5, 10, 20, 50)
FEW = 3000  # images, where layers grow
SOME = 20_000  # where the batch does


class Cost(NamedTuple):
    """Of a whole command: CPU seconds of all its processes, and the most memory of one of them in MB."""

    cpu: float
    memory: float


@dataclass(frozen=True)
class Series:
    """What a build costs by size. start: of the same without any training."""

    what: str
    backend: str
    sizes: tuple[int, ...]
    costs: tuple[Cost, ...]
    start: tuple[Cost, ...]

    @property
    def own(self) -> np.ndarray:
        """CPU seconds, those of no epoch taken off: NaN where the rest is lost in them."""
        own = np.array([c.cpu - s.cpu for c, s in zip(self.costs, self.start, strict=True)])
        return np.where(own > 0, own, np.nan)

    @property
    def exponent(self) -> float:
        """The slope of the later half, in logarithms."""
        later = slice(len(self.sizes) // 2, None)
        return float(np.polyfit(np.log(self.sizes[later]), np.log(self.own[later]), 1)[0])

    @property
    def memory_exponent(self) -> float:
        """The same of the memory, of which nothing is taken off."""
        later = slice(len(self.sizes) // 2, None)
        memory = [cost.memory for cost in self.costs[later]]
        return float(np.polyfit(np.log(self.sizes[later]), np.log(memory), 1)[0])


def build(spec: Path, backend: str, *arguments: str) -> Cost:
    """Build a model; raises RuntimeError where that fails."""
    with tempfile.TemporaryDirectory(prefix="zoo-benchmark-") as out:
        command = ["-m", "zoo", "build", str(spec), "--backend", backend, "--data", "mnist", "--out", out]
        process = subprocess.Popen(
            [sys.executable, *command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if process.stderr is None:  # it is a pipe
            raise RuntimeError
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(said.decode(errors="replace")[-500:])
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def deep(layers: int) -> Model:
    """A chain of so many convolutions of 8 filters on 14 x 14."""
    chain: list[Layer] = [Conv2d(8, 3, padding=1), ReLU(), MaxPool2d(2)]
    for _ in range(layers - 1):
        chain += [Conv2d(8, 3, padding=1), ReLU()]
    plain = zoo.get("cnn-padded")
    return dataclasses.replace(
        plain, name=f"deep-{layers}", layers=(*chain, Flatten(), Dense(10)), document=""
    )


def batched(size: int) -> Model:
    """cnn-padded with another batch."""
    plain = zoo.get("cnn-padded")
    recipe = dataclasses.replace(plain.recipe, batch_size=size)
    return dataclasses.replace(plain, name=f"batch-{size}", recipe=recipe)


def measure(backend: str, folder: Path, repeats: int, tell: Callable[[str], None]) -> list[Series]:
    """Three series on a backend. repeats: how many builds a point is, of which the least counts."""

    def point(model: Model, epochs: int, limit: int) -> Cost:
        path = folder / f"{model.name}.json"
        path.write_text(model.to_json())
        all_costs = [
            build(path, backend, "--epochs", str(epochs), "--limit", str(limit)) for _ in range(repeats)
        ]
        cost = Cost(*map(min, zip(*all_costs, strict=True)))
        tell(
            f"{model.name} {backend}: {limit} images, epochs {epochs}: {cost.cpu:.1f} s, {cost.memory:.0f} MB"
        )
        return cost

    plain = dataclasses.replace(zoo.get("cnn-padded"), name="plain")
    nothing = point(plain, 0, FEW)
    images = tuple(point(plain, 1, count) for count in IMAGES)
    found = [Series("images", backend, IMAGES, images, (nothing,) * len(IMAGES))]
    batches = tuple(point(batched(size), 1, SOME) for size in BATCHES)
    found.append(Series("batch", backend, BATCHES, batches, (nothing,) * len(BATCHES)))
    depths = tuple(point(deep(count), 1, FEW) for count in DEPTHS)
    start = point(deep(1), 0, FEW)
    found.append(Series("layers", backend, DEPTHS, depths, (start,) * len(DEPTHS)))
    return found


def plot(found: list[Series]) -> Figure:
    """CPU time and memory of every series, in logarithms, with a straight line for what is linear."""
    kinds = list(dict.fromkeys(series.what for series in found))
    figure = Figure(figsize=(4 * len(kinds), 6), layout="constrained")
    axes = figure.subplots(2, len(kinds), sharex="col", squeeze=False)
    for column, what in enumerate(kinds):
        for series in (each for each in found if each.what == what):
            axes[0, column].loglog(series.sizes, series.own, "o-", label=series.backend)
            memory = [cost.memory for cost in series.costs]
            axes[1, column].loglog(series.sizes, memory, "o-", label=series.backend)
            if what != "batch":  # of which a build gets no dearer
                line = series.own[-1] * np.array(series.sizes) / series.sizes[-1]
                axes[0, column].loglog(series.sizes, line, ":", color="grey", linewidth=1)
        axes[0, column].set_title(what)
        axes[1, column].set_xlabel(what)
    axes[0, 0].set_ylabel("CPU seconds, those of no epoch taken off")
    axes[1, 0].set_ylabel("peak memory of a process, MB")
    axes[0, 0].legend()
    return figure


def rows(found: list[Series]) -> list[tuple[str, ...]]:
    """One row per series."""
    return [
        (
            each.what,
            each.backend,
            f"{each.sizes[0]:,} to {each.sizes[-1]:,}",
            f"{each.start[0].cpu:.1f}",
            f"{each.costs[0].cpu:.1f} to {each.costs[-1].cpu:.1f}",
            f"{each.exponent:.2f}",
            f"{each.costs[0].memory:.0f} to {each.costs[-1].memory:.0f}",
            f"{each.memory_exponent:.2f}",
        )
        for each in found
    ]


@click.command()
@click.option(
    "--backend", "backends", type=click.Choice(["torch", "keras"]), multiple=True, help="Default: both."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=2, show_default=True, help="Builds of every point."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("growth"), show_default=True
)
def main(backends: tuple[str, ...], repeats: int, out: Path) -> None:
    """Measure how the cost of a build grows with images, batch and layers."""
    found: list[Series] = []
    with tempfile.TemporaryDirectory(prefix="zoo-benchmark-") as folder:
        for backend in backends or ("torch", "keras"):
            found += measure(backend, Path(folder), repeats, lambda text: click.echo(text, err=True))
    out.mkdir(parents=True, exist_ok=True)
    plot(found).savefig(out / "growth.png", dpi=80)
    about: dict[str, Any] = {"processor": machine.processor(), "threads": machine.threads()}
    about["versions"] = machine.versions(("torch", "keras", "tensorflow"))
    series = [{**dataclasses.asdict(each), "exponent": each.exponent} for each in found]
    (out / "growth.json").write_text(json.dumps({"machine": about, "series": series}, indent=1) + "\n")
    header = (
        "what grows", "backend", "range", "CPU s, no epoch", "CPU s", "exponent", "peak MB", "its exponent",
    )  # fmt: skip
    click.echo(tabulate.tabulate(rows(found), header, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
