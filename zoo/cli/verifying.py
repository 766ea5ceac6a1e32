"""Verification: verify."""

from __future__ import annotations

import secrets
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
    from export.runs.sources import Source


SEARCH = 2.0  # seconds a model


@click.command(
    epilog="""\b
Examples:
  zoo verify cnn-padded
  zoo verify cnn-padded --weights init --backend torch --layer conv2
  zoo verify cnn-padded --report verify.md --report junit.xml
  zoo verify cnn-padded --search 60
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
    "--inputs-seed",
    type=click.IntRange(0),
    help="Of noise, greys, scales, sizes of batches, steps of the search [default: another every time].",
)
@click.option(
    "--search",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help=f"How long to look for an image that shows a fault, for each model [default: {SEARCH:g}].",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="FILE.npy",
    help="Look at these images instead of test images: float32 (N, C, H, W), such as a search has kept.",
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
    optimisations and in onnx.reference. Noise, extremes and batches of many sizes are drawn anew each time;
    then random steps look for an image on which one of them fails. Exits 1 if any disagrees or crashes, or
    a file is not what it says. With no --backend, Keras' other engines are asked as well.
    """
    check_packages()
    from backends.process.client import Workers
    from export import crosscheck
    from export.crosscheck import reports
    from export.crosscheck.verification import check_layers
    from export.runs import sources
    from zoo import data, runs

    for file in files:
        reports.check_name(file)
    chosen = chosen_backends(backend_names, needed=False)
    whose = chosen[0] if len(backend_names) == 1 and backend_names[0] != "all" else None
    several = Several(models or documented())
    names = several.names
    weights, seed, out = options["weights"], options["seed"], options["out"]
    if options["inputs_seed"] is None:
        options["inputs_seed"] = _drawn_seed()
    seconds = SEARCH if options["search"] is None else options["search"]
    found: list[dict[str, Any]] = []
    located: dict[str, Source] = {}
    for name in names:
        with several.going_on(name):
            source = sources.find(name, weights, out, seed, terminal.say, whose)
            check_layers(source.model, layers)
            located[name] = source
    wanted = located and options["images"] is None
    dataset = data.load(options["data"], options["data_dir"], terminal.say) if wanted else data.digits()
    with Workers() as workers:
        for name, source in located.items():
            with several.going_on(name):
                if options["images"] is None:
                    images, told = images_for(source.model, dataset, options["data"])
                else:
                    images = sources.images_of(options["images"], source.model)
                    told = f"{len(images):,} images of {options['images']}"
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
                        inputs_seed=options["inputs_seed"],
                        search=seconds,
                    )
                report.origin, report.data = source.origin, told
                same = "auto" if images is None else dataset.name
                report.command = _command(name, source.run, same, backend_names, layers, options)
                image = None if layers else sources.keep_image(source, report, out)
                if image is not None:
                    report.image = str(image)
                    report.image_command = _at(image, report.command)
                several.codes[name] = 0 if report.passed else 1
                found.append(report.to_dict())
                if not as_json:
                    click.echo(reports.terminal_lines(found[-1]))
                if not layers:
                    sources.keep_report(source, report)
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


def _drawn_seed() -> int:
    """A seed that nobody has chosen."""
    return secrets.randbelow(2**31)


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
        "--images": options["images"],
        "--inputs-seed": options["inputs_seed"],
        "--search": None if options["search"] is None else f"{options['search']:g}",
    }
    pairs = [(option, str(value)) for option, value in chosen.items() if value is not None]
    pairs += [("--backend", name) for name in backend_names] + [("--layer", path) for path in layers]
    flags = [f"--{name}" for name in ("isolated", "thorough") if options[name]]
    return ["zoo", "verify", str(run or model), *(word for pair in pairs for word in pair), *flags]


def _at(image: Path, command: Sequence[str]) -> list[str]:
    """The command that looks at one image, and searches for no other."""
    kept, words = [], iter(command)
    for word in words:
        if word in ("--data", "--data-dir", "--images", "--search"):
            next(words)
        else:
            kept.append(word)
    return [*kept, "--images", str(image), "--search", "0"]


@contextmanager
def _at_work(model: str) -> Iterator[Callable[[str], None]]:
    """Which witness is heard, on a terminal, while it takes its time. Silent elsewhere."""
    from tqdm import tqdm

    from export.crosscheck.reports.words import plain

    form = "{desc} {elapsed}"
    with tqdm(desc=model, file=sys.stderr, disable=None, leave=False, bar_format=form) as bar:
        yield lambda witness: bar.set_description_str(f"{model}: {plain(witness)}")
