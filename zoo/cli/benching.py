"""Speed beside accuracy: bench."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from zoo import terminal
from zoo.cli.options import (
    Several,
    backend_option,
    check_packages,
    chosen_backends,
    complete_model,
    data_option,
    documented,
    json_option,
    next_commands,
    out_option,
    print_json,
)
from zoo.cli.runs import WEIGHTS


@click.command(
    epilog="""\b
Examples:
  zoo bench cnn-padded
  zoo bench convnet --backend torch --batch 1 --batch 64 --seconds 5
  zoo bench --data mnist --report bench.md --report bench.json"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@backend_option
@click.option(
    "--batch",
    "batches",
    type=int,
    multiple=True,
    help="Images a call; may be repeated [default: 1, 32, 256].",
)
@click.option("--seconds", type=float, help="Of each competitor at each batch [default: 2].")
@click.option("--weights", metavar="FILE|RUN|pretrained|init", help=WEIGHTS)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights with init.")
@click.option(
    "--report",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the table as well: .json or .md; may be repeated.",
)
@data_option
@out_option
@json_option
def bench(
    models: Sequence[str],
    backend_names: Sequence[str],
    batches: Sequence[int],
    seconds: float | None,
    files: Sequence[Path],
    as_json: bool,
    **options: Any,
) -> None:
    """Time MODELs (all five documented, unless told) in everything that runs them, beside accuracy.

    The competitors: each backend in its own process, torch compiled, the direct ONNX file, each
    framework's own export and the int8 file in onnxruntime. Their blocks alternate, so that a busy
    machine hits all alike: compare times within one run only. Latencies are told as p50, p90 and p99
    with 95 % intervals; beside them size, accuracy, the largest difference to the float64 reference, and
    a verdict. Exits 1 if any disagrees, crashes, or is int8 and loses too much.
    """
    check_packages()
    from backends.process.client import Workers
    from export import bench as benching
    from export.runs import sources
    from zoo import data, runs

    for file in files:
        benching.check_name(file)
    wish = benching.options(batches, seconds)
    chosen = benching.names(chosen_backends(backend_names, needed=False) if backend_names else [])
    several = Several(models or documented())
    names = several.names
    found: list[dict[str, Any]] = []
    located = {}
    for name in names:
        with several.going_on(name):
            found_source = sources.find(
                name, options["weights"], options["out"], options["seed"], terminal.say
            )
            located[name] = found_source
    dataset = data.load(options["data"], options["data_dir"], terminal.say) if located else data.digits()
    with Workers() as workers:
        for name, source in located.items():
            with several.going_on(name), terminal.counter("block") as progress:
                fitting = benching.images_of(source.model, dataset, options["data"])
                measured = benching.measure(source, chosen, fitting, wish, workers, progress)
                several.codes[name] = 0 if measured.passed else 1
                found.append(measured.to_dict())
            if found and not as_json and found[-1]["model"] == source.model.title:
                click.echo(benching.lines(found[-1]))
    failed = several.failed
    if as_json:
        print_json(found)
    elif not failed:
        next_commands(["zoo", "verify", names[0]], ["zoo", "export", names[0], "--int8"])
    for file in files if found else ():
        runs.write_atomically(file, benching.rendered(file, found))
    if failed:
        sys.exit(failed)
