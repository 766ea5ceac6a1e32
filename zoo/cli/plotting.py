"""Pictures: plot."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from zoo import terminal
from zoo.cli.options import (
    check_packages,
    complete_model,
    data_option,
    json_option,
    model_of,
    next_commands,
    print_json,
    quiet_matplotlib,
)
from zoo.errors import InvalidInput, MachineError, nearest

# What export.plotting draws; it stands here because --help imports neither it nor matplotlib.
KINDS = {
    "kernels": "a convolution's kernels before and after training",
    "grid": "all kernels of a convolution, output by input channels",
    "activations": "what every layer makes of one image",
    "history": "loss and accuracy over the epochs of a run",
    "mistakes": "misread test images with truth, answer and probability",
    "confusion": "which classes are taken for which, on all test images",
    "samples": "the first images of the data set",
    "filters": "a picture through the classical kernels",
    "activation-functions": "curves of ReLU, sigmoid, tanh and others, and softmax",
}
WITHOUT_MODEL = ("samples", "filters", "activation-functions")


def _complete_what(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=line) for name, line in KINDS.items() if name.startswith(typed)]


def _complete_model(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    kinds = [CompletionItem(name) for name in WITHOUT_MODEL if name.startswith(typed)]
    return kinds + complete_model(context, parameter, typed)


_LINES = "\n".join(f"  {name:<20} {line}" for name, line in KINDS.items())


@click.command(
    help=f"""Draw WHAT there is to see of MODEL, as PNG or SVG. WHAT is one of:

    \b
{_LINES}

    {", ".join(WITHOUT_MODEL[:-1])} and {WITHOUT_MODEL[-1]} need no MODEL: zoo plot samples.
    """,
    epilog="""\b
Examples:
  zoo plot cnn-padded kernels
  zoo plot lenet-dropout grid --layer conv2 -o kernels.svg
  zoo plot cnn-padded activations --picture seven.png
  zoo plot runs/cnn-padded/torch history
  zoo plot cnn-padded mistakes --worst --count 10
  zoo plot filters --picture photo.jpg""",
)
@click.argument("model", shell_complete=_complete_model)
@click.argument("what", required=False, shell_complete=_complete_what)
@click.option(
    "-o", "--out", "file", type=click.Path(path_type=Path), help="A .png or .svg [default: MODEL-WHAT.png]."
)
@click.option(
    "--layer",
    metavar="NAME",
    help="Such as conv2 [default: the first convolution; of grid the last, of activations all].",
)
@click.option("--channel", type=int, metavar="N", help="Which input channel's kernels [default: 0].")
@click.option("--image", type=int, metavar="N", help="Which test image [default: 0].")
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE", help="A picture of your own.")
@click.option("--count", type=int, metavar="N", help="How many images [default: 20].")
@click.option("--worst", is_flag=True, help="The worst mistakes instead of the first.")
@click.option("--weights", metavar="FILE|RUN|pretrained|init", help="[default: as for verify]")
@click.option("--backend", "-b", metavar="NAME", help="Whose run, if there are several.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True)
@click.option("--seed", type=int, metavar="N", help="Of the initial weights [default: the run's, or 0].")
@data_option
@click.option("--show", is_flag=True, help="Open the picture as well.")
@json_option
def plot(model: str, what: str | None, file: Path | None, show: bool, as_json: bool, **options: Any) -> None:
    text = None if what is None and model in WITHOUT_MODEL else model
    what = model if text is None else what
    if what is None:
        if model in KINDS:
            raise InvalidInput(f"{model} needs a model", "", f"run: zoo plot MODEL {model}")
        model_of(model)
        raise InvalidInput(f"say what of {model} to plot", "", nearest("", KINDS))
    if what not in KINDS:
        raise InvalidInput(f"unknown plot {what!r}", "", nearest(what, KINDS))
    if show:
        _check_display()
    check_packages()
    name = "" if text is None else f"{model_of(text).name}-"
    path = file or Path(f"{name}{what}.png")
    canvas, plotting = _load()
    canvas.file_format(path)
    figure = plotting.draw(what, text, plotting.Options(**options), terminal.say)
    size = canvas.save(figure, path)
    if show and click.launch(str(path)):
        raise MachineError("no program opens the picture", path, "open it yourself")
    if as_json:
        print_json({"path": str(path), "what": what, "model": text, "bytes": size})
    else:
        shown = str(path).encode(errors="backslashreplace").decode()
        click.echo(f"{shown}: {size:,} bytes")
        known = [kind for kind in KINDS if kind != "history"] if text else list(WITHOUT_MODEL)
        following = known[(known.index(what) + 1 if what in known else 0) % len(known)]
        next_commands(["zoo", "plot", *([text] if text else []), following])


def _check_display() -> None:
    """Raise MachineError where no window can be shown."""
    desktop = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")
    if not desktop and not os.environ.get("WAYLAND_DISPLAY"):
        raise MachineError("there is no display to show a picture on", "--show", "open the file elsewhere")


def _load() -> tuple[Any, Any]:
    """export.plots' modules canvas and kinds."""
    quiet_matplotlib()
    try:
        from export import plotting
        from export.plots import canvas
    except UnicodeDecodeError:
        raise MachineError(
            "matplotlib cannot read its settings: they are not UTF-8", "matplotlibrc", "move the file away"
        ) from None
    return canvas, plotting
