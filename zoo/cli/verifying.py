"""Verification: verify."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    images_for,
    json_option,
    next_commands,
    out_option,
    print_json,
)
from zoo.cli.runs import WEIGHTS

if TYPE_CHECKING:
    from export.artifacts import Source


@click.command(
    epilog="""\b
Examples:
  zoo verify cnn-padded
  zoo verify cnn-padded --weights init --backend torch --layer conv2
  zoo verify cnn-padded --report verify.md --report junit.xml
  zoo verify runs/cnn-padded/torch --data mnist"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@backend_option
@click.option("--weights", metavar="FILE|RUN|pretrained|init", help=WEIGHTS)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights with init.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="PATH",
    help="Look at this layer only, such as conv1, also on its own input and alone; may be repeated.",
)
@click.option("--isolated", is_flag=True, help="Run every layer alone as well, not the culprit only.")
@click.option(
    "--thorough", is_flag=True, help="--isolated, torch:compile, and more images for onnx.reference."
)
@click.option(
    "--report",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report as well: .json, .md, or .xml for JUnit; may be repeated.",
)
@data_option
@out_option
@json_option
def verify(
    models: Sequence[str],
    backend_names: Sequence[str],
    layers: Sequence[str],
    files: Sequence[Path],
    as_json: bool,
    **options: Any,
) -> None:
    """Hold backends and ONNX exports of MODELs to the float64 reference, layer by layer.

    Every witness gets the same weights and all test images: each backend, its own ONNX export, the
    zoo's export and the files that come with the weights, in onnxruntime with and without
    optimisations and in onnx.reference. Exits 1 if any disagrees or crashes. With no --backend,
    Keras' other engines are asked as well.
    """
    check_packages()
    from backends.client import Workers
    from export import artifacts, crosscheck, reports
    from export.crosscheck.verification import check_layers
    from zoo import data, runs

    for file in files:
        reports.check_name(file)
    chosen = chosen_backends(backend_names, needed=False)
    whose = chosen[0] if len(backend_names) == 1 and backend_names[0] != "all" else None
    several = Several(models or documented())
    names = several.names
    weights, seed, out = options["weights"], options["seed"], options["out"]
    found: list[dict[str, Any]] = []
    sources: dict[str, Source] = {}
    for name in names:
        with several.going_on(name):
            source = artifacts.find(name, weights, out, seed, terminal.say, whose)
            check_layers(source.model, layers)
            sources[name] = source
    dataset = data.load(options["data"], options["data_dir"], terminal.say) if sources else data.digits()
    with Workers() as workers:
        for name, source in sources.items():
            with several.going_on(name):
                images, told = images_for(source.model, dataset, options["data"])
                with _at_work(source.model.name) as at_work:
                    report = crosscheck.verify(
                        source.model,
                        source.weights,
                        chosen if backend_names else None,
                        images,
                        files=source.files,
                        isolated=options["isolated"],
                        layers=layers,
                        thorough=options["thorough"],
                        at_work=at_work,
                        workers=workers,
                    )
                report.origin, report.data = source.origin, told
                same = "auto" if images is None else dataset.name
                report.command = _command(name, source.run, same, backend_names, layers, options)
                several.codes[name] = 0 if report.passed else 1
                found.append(report.to_dict())
                if not as_json:
                    click.echo(reports.terminal_lines(found[-1]))
                if not layers:
                    artifacts.keep_report(source, report)
    failed = several.failed
    if as_json:
        print_json(found)
    elif not failed:
        wish = ["--weights", weights, "--seed", str(seed)] if weights else []
        target = f"{found[0]['model'].partition(':')[0]}.onnx"
        next_commands(["zoo", "export", names[0], *wish, "-o", target])
    for file in files:
        runs.write_atomically(file, reports.rendered(file, found))
    if failed:
        sys.exit(failed)


def _command(
    model: str,
    run: Path | None,
    data: str,
    backend_names: Sequence[str],
    layers: Sequence[str],
    options: dict[str, Any],
) -> list[str]:
    """The whole command that verifies one model again: the same weights, on the same data.

    run: where the weights were found, if it is a run. It stands for the model then, because another
    `--backend` would find another run.
    """
    weights, seed = options["weights"], options["seed"]
    found = {"--weights": weights, "--seed": seed if weights == "init" or seed else None}
    chosen = {
        **(found if run is None else {}),
        "--data": data if options["data"] == "auto" else options["data"],
        "--data-dir": options["data_dir"],
    }
    pairs = [(option, str(value)) for option, value in chosen.items() if value is not None]
    pairs += [("--backend", name) for name in backend_names] + [("--layer", path) for path in layers]
    flags = [f"--{name}" for name in ("isolated", "thorough") if options[name]]
    return ["zoo", "verify", str(run or model), *(word for pair in pairs for word in pair), *flags]


@contextmanager
def _at_work(model: str) -> Iterator[Callable[[str], None]]:
    """Which witness is heard, on a terminal, while it takes its time. Silent elsewhere."""
    from tqdm import tqdm

    from export.reports import plain

    form = "{desc} {elapsed}"
    with tqdm(desc=model, file=sys.stderr, disable=None, leave=False, bar_format=form) as bar:
        yield lambda witness: bar.set_description_str(f"{model}: {plain(witness)}")
