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
  zoo import model.onnx""",
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
@click.option("--name", help="The model's name here, for an ONNX file [default: the file's].")
@backend_option
@out_option
@json_option
def import_(
    source: str,
    weights: Path | None,
    sha256: str | None,
    seed: int,
    name: str | None,
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
    from backends.client import Workers
    from export.imports import judging, originals

    origin, colon, known = source.partition(":")
    file = source.endswith(".onnx") or not colon
    for option, given in (("--weights", weights), ("--sha256", sha256)) if file else (("--name", name),):
        if given is not None:
            raise InvalidInput(f"{source} takes no such option", option)
    chosen = chosen_backends(backend_names, needed=False)
    with Workers() as workers:
        if file:
            raise InvalidInput("no such thing", source)
        wish = originals.Wish(origin, known, weights, sha256, seed)
        path, report = judging.import_original(wish, chosen, out, workers, terminal.say)
    if as_json:
        print_json({**report, "path": str(path)})
        return
    _print(path, report)


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
        click.echo(f"weights: {about['weights']}, SHA-256 {about['sha256']}")
    next_commands(["zoo", "verify", str(path)], ["zoo", "export", str(path), "-o", f"{report['model']}.onnx"])
