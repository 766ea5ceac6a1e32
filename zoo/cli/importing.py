"""Other people's models: import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo import terminal
from zoo.cli.options import (
    backend_option,
    check_packages,
    chosen_backends,
    json_option,
    next_commands,
    out_option,
    print_json,
)
from zoo.errors import InvalidInput

LONGEST_SIZE = 6  # digits

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def complete_source(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Models that can be imported, for the shell; where none fits, files."""
    from click.shell_completion import CompletionItem

    check_packages()
    from export.imports import originals

    known = [f"{source}:{name}" for source, (_, names) in originals.SOURCES.items() for name in names]
    fitting = [name for name in known if name.startswith(typed)]
    return [CompletionItem(name) for name in fitting] or [CompletionItem(typed, type="file")]


@click.command(
    "import",
    epilog="""\b
Examples:
  zoo import torchvision:resnet18
  zoo import torchvision:resnet18 --weights resnet18-f37072fd.pth
  zoo import keras:MobileNetV2 --backend torch
  zoo import torchvision:efficientnet_b0      any other one, by its ONNX export
  zoo import model.onnx --name mine""",
)
@click.argument("source", shell_complete=complete_source)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The framework's own file: .pth of a state dict, .h5 [default: its random weights].",
)
@click.option("--sha256", metavar="HASH", help="What the file of weights must have.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random weights.")
@click.option("--name", help="Of an ONNX file: the model's name here [default: the file's].")
@click.option("--input-shape", metavar="C,H,W", help="Of an ONNX file that leaves its image's size open.")
@click.option("--output", metavar="NAME", help="Of an ONNX file with several outputs: which one.")
@backend_option
@out_option
@json_option
def import_(
    source: str,
    weights: Path | None,
    sha256: str | None,
    seed: int,
    name: str | None,
    input_shape: str | None,
    output: str | None,
    backend_names: tuple[str, ...],
    out: Path,
    as_json: bool,
) -> None:
    """Bring in SOURCE as a spec with weights: torchvision:NAME, keras:NAME, or an ONNX file.

    What came in is compared with what it came from on the same images: the spec's float64 reference, each
    backend, and the zoo's own ONNX export. Only if all agree is it kept, as a run that `zoo verify`,
    `zoo export` and the others take. Files of weights are read in the framework's own process, without
    running what is in them.
    """
    check_packages()
    from backends.process.client import Workers
    from export.imports import judging, originals

    origin, colon, known = source.partition(":")
    file = source.endswith(".onnx") or not colon
    mine = {"--weights": weights, "--sha256": sha256}
    theirs = {"--name": name, "--input-shape": input_shape, "--output": output}
    for option, given in (mine if file else theirs).items():
        if given is not None:
            raise InvalidInput(f"{source} takes no such option", option)
    chosen = [name for name in chosen_backends(backend_names, needed=False) if name != "reference"]
    with Workers() as workers:
        if file:
            shape = _shape(input_shape)
            path, report = judging.import_onnx(
                Path(source), chosen, out, workers, terminal.say, name, shape, output
            )
        else:
            wish = originals.Wish(origin, known, weights, sha256, seed)
            path, report = judging.import_original(wish, chosen, out, workers, terminal.say)
    if as_json:
        print_json({**report, "path": str(path)})
        return
    _print(path, report)


def _shape(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    plain = all(part.strip().isdecimal() and len(part) <= LONGEST_SIZE for part in parts)
    if len(parts) != 3 or not plain or not all(map(int, parts)):
        what = f"{text[:30]!r} is not channels,height,width"
        raise InvalidInput(what, "--input-shape", "such as 3,224,224")
    channels, height, width = map(int, parts)
    return channels, height, width


def _print(path: Path, report: dict[str, Any]) -> None:
    about = report["imported"]
    rows = [
        (
            check["witness"],
            check["dtype"],
            " x ".join(map(str, check["input_shape"])),
            f"{check['max_abs_diff']:.1e}",
            f"{check['limit']:.1e}",
        )
        for check in report["checks"]
    ]
    click.echo(terminal.table(("witness", "dtype", "image", "max|d|", "allowed"), rows))
    click.echo(f"\n{about['source']} -> {path}: {report['parameters']:,} parameters; every witness agrees")
    if "sha256" in about:
        click.echo(f"{about.get('weights', about['source'])}: SHA-256 {about['sha256']}")
    next_commands(["zoo", "verify", str(path)], ["zoo", "export", str(path), "-o", f"{report['model']}.onnx"])
