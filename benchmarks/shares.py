"""Where the time of a command goes: `zoo verify` and `zoo build` by what they do meanwhile.

    python -m benchmarks.shares [--out FILE.json] -- verify --weights init --data mnist

Runs one command in this process and adds up the wall time of disjoint parts of its work: while one part
runs inside of another, its time is not the other's. What none of them claims is "the rest". With it the
CPU seconds of this process and of its workers, and the most resident memory of one process. Prints Markdown.
"""

from __future__ import annotations

import functools
import importlib
import json
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import tabulate

from backends.process.client import Worker
from zoo import cli, machine

REST = "the rest"
PARTS: dict[str, tuple[str, ...]] = {  # of what is done in this process: "module:attribute"
    "the reference": ("backends.reference.network:apply", "export.crosscheck.judgement:apply"),
    "limits": ("export.crosscheck.limits:rounding",),
    "the zoo's ONNX export": (
        "export.crosscheck.verification:to_onnx",
        "export.crosscheck.verification:to_layers_onnx",
        "export.crosscheck.verification:serialize",
    ),
    "onnxruntime": ("export.inference.session:Session.__init__", "export.inference.session:Session.run"),
    "onnx.reference": ("export.crosscheck.witnesses:EvaluatorWitness.activations",),
    "comparisons": ("export.crosscheck.verification:examine",),
    "reading data": ("zoo.data:load",),
    "writing files": ("zoo.runs:Run.publish",),
}
START = "waiting for frameworks to load"
ASKED = {"train": "training", "export_native": "the frameworks' ONNX exports"}  # of what a worker is asked
INFERENCE = "the frameworks' inference"


class Stopwatch:
    """Wall seconds by part. Parts nest: the innermost one counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts = [REST]
        self._since = time.perf_counter()

    def switch(self, enter: str | None) -> None:
        """Enter a part, or leave the present one (None)."""
        now = time.perf_counter()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now
        if enter is None:
            self._parts.pop()
        else:
            self._parts.append(enter)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for a part."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.switch(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(None)

        return wrapper


def install(watch: Stopwatch) -> None:
    """Have the parts of the zoo told to a stopwatch, for the rest of this process."""
    for part, places in PARTS.items():
        for place in places:
            module, _, path = place.partition(":")
            holder: Any = importlib.import_module(module)
            *outer, name = path.split(".")
            for each in outer:
                holder = getattr(holder, each)
            setattr(holder, name, watch.timed(part, getattr(holder, name)))
    ask = Worker.ask
    loaded: set[int] = set()

    def told(self: Worker, do: str, *args: Any, **kwargs: Any) -> Any:
        if id(self) not in loaded:
            loaded.add(id(self))
            watch.timed(START, ask)(self, "hello")
        return watch.timed(ASKED.get(do, INFERENCE), ask)(self, do, *args, **kwargs)

    Worker.ask = told  # type: ignore[method-assign]


def measure(arguments: list[str]) -> dict[str, Any]:
    """Run a command: wall seconds by part, CPU seconds, peak memory in MB.

    Raises SystemExit or a click.ClickException where it fails.
    """
    watch = Stopwatch()
    install(watch)
    started = time.perf_counter()
    try:
        cli.cli.main(arguments, standalone_mode=False)
    except SystemExit as end:
        if end.code:
            raise
    watch.switch(None)
    own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "command": ["zoo", *arguments],
        "wall": time.perf_counter() - started,
        "parts": dict(sorted(watch.seconds.items(), key=lambda item: -item[1])),
        "cpu": {"here": own.ru_utime + own.ru_stime, "workers": workers.ru_utime + workers.ru_stime},
        "peak_mb": max(own.ru_maxrss, workers.ru_maxrss) / 1024,  # a worker starts with that of this process
        "machine": {"processor": machine.processor(), "threads": machine.threads()},
    }


def lines(found: dict[str, Any]) -> str:
    """A table of the parts, and what they cost together."""
    rows = [
        (part, f"{seconds:.1f}", f"{seconds / found['wall']:.0%}") for part, seconds in found["parts"].items()
    ]
    total = (
        f"`{' '.join(found['command'])}`: {found['wall']:.1f} s; CPU {found['cpu']['here']:.1f} s here, "
        f"{found['cpu']['workers']:.1f} s in workers; at most {found['peak_mb']:.0f} MB in one process"
    )
    table = tabulate.tabulate(rows, ("part", "s", "share"), "github", disable_numparse=True)
    return f"{total}\n\n{table}"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--out", type=click.Path(path_type=Path), help="Write it to this file, as JSON.")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def main(out: Path | None, arguments: tuple[str, ...]) -> None:
    """Measure where the time of a zoo command goes."""
    found = measure(list(arguments))
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")
    click.echo(lines(found))


if __name__ == "__main__":
    main()
