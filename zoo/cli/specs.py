"""Spec files: validate, show, init, schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo import terminal
from zoo.cli.options import complete_model, json_option, model_of, next_commands, print_json, shape
from zoo.errors import InvalidInput, ZooError

if TYPE_CHECKING:
    from zoo.model import Model


@click.group(
    no_args_is_help=True,
    epilog="""\b
Examples:
  zoo spec init -o mynet.toml          a whole spec to change
  zoo spec validate mynet.toml
  zoo build mynet.toml --data digits""",
)
def spec() -> None:
    """Networks of your own: write, check and show spec files in TOML or JSON."""


@spec.command(epilog="\b\nExamples:\n  zoo spec validate mynet.toml\n  zoo spec validate *.toml --json")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def validate(files: tuple[Path, ...], as_json: bool) -> None:
    """Check spec FILES: every field, every shape.

    For a sound one it prints what each layer gives; for another the first error with its field,
    its line and the nearest name. The exit code is that of the first file that is wrong.
    """
    from zoo.models.registry import check_builtin
    from zoo.spec.file import load_spec

    results: list[dict[str, Any]] = []
    failed: ZooError | None = None
    for file in files:
        try:
            model = check_builtin(load_spec(file), file)
        except ZooError as error:
            failed = failed or error
            results.append({"file": str(file), "valid": False, "error": error.to_dict()})
            if not as_json and len(files) > 1:
                click.echo(f"error: {error}", err=True)
            continue
        results.append({"file": str(file), "valid": True, **_summary(model)})
        if not as_json:
            _print(file, model)
    if as_json:
        print_json(results)
    if failed is not None:
        if as_json or len(files) > 1:  # each has been told
            raise SystemExit(failed.code)
        raise failed
    if not as_json:
        next_commands(["zoo", "build", str(files[0]), "--data", "digits"], ["zoo", "show", str(files[0])])


def _summary(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": model.parameters,
        "macs": model.macs,
        "output": model.output,
        "layers": [{"path": node.path, "output_shape": list(node.output_shape)} for node in model.walk()],
    }


def _print(file: Path, model: Model) -> None:
    rows = [("image", "", shape(model.input_shape), "")]
    rows += [
        (node.path, type(node.layer).__name__, shape(node.output_shape), f"{node.parameters:,}")
        for node in model.walk()
    ]
    click.echo(terminal.table(("layer", "type", "shape", "parameters"), rows))
    click.echo(f"\n{file}: valid; {model.name}, {model.parameters:,} parameters, {model.output}\n")


FORMAT = click.option(
    "--format", "language", metavar="[toml|json]", help="The language [default: that of the file name]."
)
OUT = click.option("-o", "--out", type=click.Path(path_type=Path), help="Write it to this new file.")


@spec.command(epilog="\b\nExamples:\n  zoo spec show mynet.toml\n  zoo spec show cnn-padded --format json")
@click.argument("model", shell_complete=complete_model)
@FORMAT
@OUT
def show(model: str, language: str | None, out: Path | None) -> None:
    """Write MODEL as a spec with every default explicit and every block written out.

    MODEL is a spec file, a name of `zoo list`, a run folder or an ONNX file of the zoo.
    """
    _write(model_of(model), language or _language(out or Path(model)), out)


@spec.command(epilog="\b\nExamples:\n  zoo spec init -o mynet.toml\n  zoo spec init convnet-deep --name mine")
@click.argument("model", default="cnn-padded", shell_complete=complete_model)
@click.option("--name", help="The new model's name [default: that of the file, or mynet].")
@FORMAT
@OUT
def init(model: str, name: str | None, language: str | None, out: Path | None) -> None:
    """Start a spec of your own from a documented MODEL, cnn-padded if none is named."""
    from dataclasses import replace

    base = model_of(model)
    own = name or (out.stem if out else "mynet")
    new = replace(base, name=own, document="", notes=(), arguments=())
    _write(new, language or _language(out), out)
    if out:
        next_commands(["zoo", "spec", "validate", str(out)], ["zoo", "build", str(out), "--data", "digits"])


@spec.command("schema", epilog="\b\nExamples:\n  zoo spec schema > spec.schema.json")
def schema_() -> None:
    """Print the JSON Schema of spec files, for editors that complete and check them."""
    from zoo.spec import schema

    print_json(schema.schema())


def _language(path: Path | None) -> str:
    return "json" if path is not None and path.suffix.lower() == ".json" else "toml"


def _write(model: Model, language: str, out: Path | None) -> None:
    from zoo import runs
    from zoo.spec import file

    text = file.write(model, language)
    if out is None:
        click.echo(text, nl=False)
        return
    if os.path.lexists(out):
        raise InvalidInput("there is a file already", out, "choose another name")
    runs.write_atomically(out, text.encode())
    click.echo(f"wrote {out}", err=True)
