"""Pictures through a trained model: predict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from zoo import terminal
from zoo.cli.options import (
    check_packages,
    complete_backend,
    complete_model,
    json_option,
    next_commands,
    print_json,
)

if TYPE_CHECKING:
    import numpy as np

SHADES = " .:-=+*#%@"
HALVES = " ▀▄█"  # neither, upper, lower, both pixels
RUNS = Path("runs")
MANY = 50  # pictures take about a second


@click.command(
    epilog="""\b
Examples:
  zoo predict cnn-padded photo.jpg
  zoo predict convnet-deep scans/ 'more/*.png' --json
  zoo predict runs/cnn-padded/torch seven.png --show"""
)
@click.argument("model", shell_complete=complete_model)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--weights",
    metavar="FILE|RUN|pretrained|init",
    help="[default: pretrained, else the run under RUNS]",
)
@click.option(
    "--backend",
    "-b",
    metavar="NAME",
    shell_complete=complete_backend,
    help="Whose run, if there are several.",
)
@click.option("--runs", type=click.Path(path_type=Path), default=RUNS, show_default=True)
@click.option("--show", is_flag=True, help="Draw what the network saw.")
@json_option
def predict(
    model: str,
    images: Sequence[str],
    weights: str | None,
    backend: str | None,
    runs: Path,
    show: bool,
    as_json: bool,
) -> None:
    """Say which digit each IMAGE shows: a picture file, a folder of them, or a pattern.

    The digit is found, scaled and centred as MNIST does it: dark on light or light on dark, anywhere
    in the picture, photographed, scanned or drawn. A picture that cannot be read does not stop the
    others; the exit code is then 2.
    """
    check_packages()
    from export import predict as predicting
    from zoo.images import decoding

    predictor = predicting.load(model, weights, runs, backend, terminal.say)
    found = list(decoding.expand(images))
    watched = len(found) >= MANY and sys.stderr.isatty()
    with click.progressbar(found, label="reading", file=sys.stderr, hidden=not watched) as files:
        outcomes = predictor.predict_files(files)
    width = max(len(_shown(outcome.file)) for outcome in outcomes)
    for outcome in outcomes:
        said = outcome.prediction
        if said is None:
            if len(outcomes) > 1:
                terminal.say(str(outcome.error))
            continue
        if not as_json:
            click.echo(
                f"{_shown(outcome.file):{width}}  {said.label}  {said.probability:7.2%}"
                f"   then {said.runner_up}  {said.runner_up_probability:7.2%}"
            )
        if show:
            click.echo(_drawn(said.image, sys.stderr if as_json else sys.stdout), err=as_json)
    if as_json:
        print_json([outcome.to_dict() for outcome in outcomes])
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not failed:
        if not (as_json or show):
            given = {
                "--weights": weights,
                "--backend": backend,
                "--runs": None if runs == RUNS else str(runs),
            }
            options = [word for name, value in given.items() if value for word in (name, value)]
            next_commands(["zoo", "predict", model, images[0], *options, "--show"])
        return
    message = str(failed[0])
    if len(outcomes) > 1:
        message = f"{len(failed)} of {len(outcomes)} pictures could not be read"
    terminal.say(f"{terminal.styled('error', 'red', sys.stderr)}: {message}")
    sys.exit(failed[0].code)


def _shown(file: str) -> str:
    """A file's name on one line, whatever bytes it has."""
    text = file.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _drawn(image: np.ndarray, stream: TextIO) -> str:
    """An image (28, 28) as 14 lines: two pixels a letter, as half blocks or, in ASCII, as a shade."""
    upper, lower = image[::2], image[1::2]
    try:
        HALVES.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        levels = ((upper + lower) / 2 * (len(SHADES) - 1)).round().astype(int)
        return "\n".join("".join(SHADES[level] for level in row).rstrip() for row in levels)
    halves = (upper > 0.5) + 2 * (lower > 0.5)
    return "\n".join("".join(HALVES[half] for half in row).rstrip() for row in halves)
