"""Training throughput of the documented models: the zoo's training against what one writes without it.

    ZOO_DATA=... python -m benchmarks.training [MODEL ...] [--backend torch|keras] [--out FILE.json]

Rivals: the documents' own loop (torchvision's data set, ToTensor, DataLoader, torch), for both backends;
a loop over tensors in memory for torch; `fit` on arrays for Keras. Everybody has the same model, recipe,
batch and threads; the rivals have their framework's defaults in everything else, but their idle threads
sleep, as the zoo's do: threads that spin lose many times over beside other work, and a rival would be
measured by that. Each is a process of its own. Prints Markdown.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import tabulate

import zoo
from backends.process.client import environment
from benchmarks import paired
from benchmarks.paired import Comparison, Team
from benchmarks.process import Child
from zoo import data, machine

DOCUMENTED, IN_MEMORY, FIT = "documents' loop", "in-memory loop", "model.fit"
FUNCTIONS = {
    DOCUMENTED: "benchmarks.torch_loops:documented",
    IN_MEMORY: "benchmarks.torch_loops:in_memory",
    FIT: "benchmarks.keras_fit:fit",
}
RIVALS = {"torch": (DOCUMENTED, IN_MEMORY), "keras": (DOCUMENTED, FIT)}
TARGETS = {DOCUMENTED: 1.0, IN_MEMORY: 0.97, FIT: 0.97}
HIGHER = {("cnn-padded", "torch"): 1.6, ("lenet-dropout", "torch"): 1.6}  # against the documents' loop
# What the zoo chooses for its workers and the user of a plain loop has not.
OWN_CHOICES = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


def compare(model: str, backend: str, folder: Path, threads: int, pairs: int) -> Comparison:
    """The zoo's training of a model on a backend against its rivals.

    folder: torchvision's root, with MNIST unpacked.
    """
    raw = str(folder / "MNIST" / "raw")
    own = environment(backend, threads, str(folder))
    plain = {
        name: value for name, value in own.items() if name not in OWN_CHOICES or os.environ.get(name) == value
    }

    @contextlib.contextmanager
    def start() -> Iterator[Team]:
        with contextlib.ExitStack() as stack:
            arguments = {"model": model, "backend": backend, "folder": raw}
            subject, control = (
                stack.enter_context(Child("benchmarks.own_training:train", arguments, own)) for _ in range(2)
            )
            rivals = {}
            for name in RIVALS[backend]:
                arguments = {"model": model, "folder": str(folder) if name == DOCUMENTED else raw}
                rivals[name] = stack.enter_context(Child(FUNCTIONS[name], arguments, plain))
            yield Team(subject, control, rivals)

    targets = {name: TARGETS[name] for name in RIVALS[backend]}
    targets[DOCUMENTED] = HIGHER.get((model, backend), targets[DOCUMENTED])
    return paired.compare(f"{model}, {backend}", "zoo", start, targets, pairs)


def table(comparisons: list[Comparison]) -> str:
    """A Markdown table: one row per rival."""
    rows = []
    for each in comparisons:
        model, backend = each.title.split(", ")
        rows += [
            (f"`{model}`", backend, rival.rival, rival.wall, rival.cpu, f"{each.targets[rival.rival]:g}",
             each.verdict(rival), each.control.wall)
            for rival in each.rivals
        ]  # fmt: skip
    header = ("model", "backend", "against", "times as fast", "CPU time", "target", "verdict", "control")
    return tabulate.tabulate([list(map(str, row)) for row in rows], header, "github", disable_numparse=True)


def unpack(root: Path) -> None:
    """Put the MNIST that ZOO_DATA names into torchvision's layout, unpacked as torchvision wants it."""
    place = data.find(Path(os.environ["ZOO_DATA"])) if os.environ.get("ZOO_DATA") else None
    if place is None:
        raise click.UsageError("ZOO_DATA names no folder with MNIST")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.FILES:
        if (place / name).exists():
            shutil.copy(place / name, raw / name)
        else:
            (raw / name).write_bytes(gzip.decompress((place / f"{name}.gz").read_bytes()))


@click.command()
@click.argument("models", nargs=-1, type=click.Choice(zoo.names()))
@click.option("--backend", "backends", type=click.Choice(list(RIVALS)), multiple=True, help="Default: both.")
@click.option("--pairs", type=click.IntRange(min=paired.FEWEST_PAIRS), default=paired.FEWEST_PAIRS)
@click.option("--out", type=click.Path(path_type=Path), help="Write every pair to this file, as JSON.")
def main(models: tuple[str, ...], backends: tuple[str, ...], pairs: int, out: Path | None) -> None:
    """Measure how fast the zoo trains the documented MODELS, against loops written without it."""
    threads = machine.threads()
    versions = machine.versions(("torch", "torchvision", "keras", "tensorflow", "scipy"))
    about = {
        "processor": machine.processor(),
        "threads": threads,
        "versions": versions,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }
    comparisons = []
    with tempfile.TemporaryDirectory(prefix="zoo-benchmark-") as folder:
        unpack(Path(folder))
        for model in models or zoo.names():
            for backend in backends or RIVALS:
                click.echo(f"{model}, {backend} ...", err=True)
                comparisons.append(compare(model, backend, Path(folder), threads, pairs))
                if out:
                    paired.save(out, about, comparisons)
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    click.echo(f"{machine.processor()}; threads: {threads}; {listed}; pairs: {pairs}\n")
    click.echo(table(comparisons))


if __name__ == "__main__":
    main()
