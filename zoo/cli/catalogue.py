"""The models: list and show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo import terminal
from zoo.cli.options import (
    check_packages,
    complete_model,
    count,
    json_option,
    model_of,
    next_commands,
    print_json,
    shape,
)
from zoo.errors import InvalidInput

if TYPE_CHECKING:
    from zoo.model import Model


@click.command("list", epilog="\b\nExamples:\n  zoo list\n  zoo list --json")
@click.option("--all", "everything", is_flag=True, help="Also those beyond the documented five.")
@json_option
def list_(everything: bool, as_json: bool) -> None:
    """List the models, with the test accuracy of the weights that come with the package."""
    from zoo import pretrained
    from zoo.models import registry

    models = [registry.get(name) for name in registry.names("all" if everything else registry.DOCUMENTED)]
    if as_json:
        print_json(
            [
                {
                    "name": model.name,
                    "parameters": model.parameters,
                    "macs": model.macs,
                    "input_shape": list(model.input_shape),
                    "output": model.output,
                    "document": model.document,
                    "pretrained": pretrained.record(model.name) if pretrained.has(model) else None,
                }
                for model in models
            ]
        )
        return
    header = ("model", "parameters", "MACs", "input", "output", "trained by", "accuracy", "document")
    rows = [
        (
            model.name,
            f"{model.parameters:,}",
            f"{model.macs:,}",
            shape(model.input_shape),
            model.output,
            f"{type(model.recipe.optimizer).__name__}, {count(model.recipe.epochs, 'epoch')}",
            _accuracy(model),
            model.document,
        )
        for model in models
    ]
    click.echo(terminal.table(header, rows))
    click.echo("\naccuracy: of the pretrained weights on MNIST's test images, +- half the 95 % interval")
    next_commands(["zoo", "show", models[0].name], ["zoo", "build", models[0].name, "--data", "digits"])


def _accuracy(model: Model) -> str:
    """The pretrained weights' test accuracy and half of its interval, in per cent; "" without any."""
    from zoo import pretrained

    if not pretrained.has(model):
        return ""
    record = pretrained.record(model.name)
    low, high = record["interval"]
    return f"{record['accuracy']['test']:.2%} +- {(high - low) / 2:.2%}"


@click.command(
    epilog="""\b
Examples:
  zoo show cnn-padded
  zoo show cnn-padded:out_1=8 --json
  zoo show convnet-deep --diagram dot -o convnet-deep.dot
  zoo show lenet-dropout --code torch -o net.py"""
)
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--diagram",
    is_flag=False,
    flag_value="mermaid",
    metavar="[mermaid|dot]",
    help="Print a picture's source instead [default: mermaid].",
)
@click.option(
    "--code",
    "language",
    metavar="[torch|keras|numpy]",
    help="Print a program that computes the same, without the zoo.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write picture or program to this file.")
@json_option
def show(model: str, diagram: str | None, language: str | None, out: Path | None, as_json: bool) -> None:
    """Show the layers, recipe and notes of MODEL, a picture of it, or a program.

    MODEL is a name of `zoo list` (cnn-padded:out_1=8 sets a parameter), a spec file, a run folder
    or an ONNX file of the zoo. The program runs on its own with the weights file of a run, and gives
    bit for bit what the backend gives.
    """
    spec = model_of(model)
    if diagram and language:
        raise InvalidInput("--diagram and --code together", "", "ask for one of them")
    if language:
        check_packages()
        from backends import programs

        _give(spec, language, programs.program(spec, language), out, as_json)
        if out and not as_json:
            next_commands(["python", str(out), "weights.safetensors", "images.npy"])
    elif diagram:
        from zoo.spec.diagram import draw

        _give(spec, diagram, draw(spec, diagram), out, as_json)
    elif out:
        raise InvalidInput("--out needs --diagram or --code", "", "without them, redirect the output")
    elif as_json:
        print_json(_described(spec))
    else:
        _print_tables(spec)
        next_commands(
            *([["zoo", "build", model, "--data", "digits"]] if spec.labels else []),
            ["zoo", "plot", model, "kernels"],
            ["zoo", "show", model, "--code", "torch"],
        )


def _give(spec: Model, language: str, text: str, out: Path | None, as_json: bool) -> None:
    """Print a picture's or program's source, or write it to a file."""
    if out:
        from zoo.runs import write_atomically

        write_atomically(out, text.encode())
    if as_json:
        print_json({"name": spec.name, "language": language, "code": text})
    else:
        click.echo(f"wrote {out}\n" if out else text, nl=False)


def _described(spec: Model) -> dict[str, Any]:
    """The model as JSON data, with what follows from its layers."""
    from zoo.spec.receptive_fields import receptive_fields

    seen = receptive_fields(spec)
    layers = [
        {
            "path": node.path,
            "kind": node.layer.kind,
            "type": type(node.layer).__name__,
            "output_shape": list(node.output_shape),
            "parameters": node.parameters,
            "macs": node.macs,
            "inputs": [path or "image" for path in node.inputs],
            "input_shape": list(node.input_shape),
            "formula": node.formula,
            "share": node.parameters / max(1, spec.parameters),
            "receptive_field": list(seen[node.path]),
        }
        for node in spec.walk()
    ]
    rest = {key: value for key, value in spec.to_dict().items() if key != "layers"}
    return {
        "name": spec.name,
        "parameters": spec.parameters,
        "macs": spec.macs,
        "output": spec.output,
        "layers": layers,
        **rest,
    }


def _print_tables(spec: Model) -> None:
    from zoo.spec.receptive_fields import receptive_fields

    click.echo(f"{spec.title}: {spec.parameters:,} parameters, {spec.macs:,} multiply-accumulates an image")
    click.echo(f"document: {spec.document or 'none'}\n")
    header = ("layer", "", "output", "parameters", "", "share", "MACs", "receptive\nfield")
    rows = [("image", "", shape(spec.input_shape), "", "", "", "", "")]
    seen = receptive_fields(spec)
    for node in spec.walk():
        parameters = ("", "", "")
        if node.parameters:
            share = f"{100 * node.parameters / spec.parameters:.1f} %"
            parameters = (f"{node.parameters:,}", f"= {node.formula}", share)
        macs, field = f"{node.macs:,}" if node.macs else "", shape(seen[node.path])
        joined = f" of {', '.join(path or 'image' for path in node.inputs)}" if len(node.inputs) > 1 else ""
        described = fields_of(node.layer) + joined
        rows.append((node.path, described, shape(node.output_shape), *parameters, macs, field))
    all_of_them = "100 %" if spec.parameters else ""
    total = ("total", "", "", f"{spec.parameters:,}", "", all_of_them, f"{spec.macs:,}", "")
    lines = terminal.table(header, [*rows, total]).splitlines()
    rule = next(line for line in lines if line.startswith("--"))
    click.echo("\n".join([*lines[:-1], rule, lines[-1]]))
    click.echo(
        "\nreceptive field: the part of the image that one output depends on. Each window adds\n"
        "(kernel - 1) x jump and multiplies the jump by its stride; a dense layer takes all positions."
    )
    recipe = spec.recipe
    click.echo(
        f"\nrecipe: {fields_of(recipe.optimizer)}; batch {recipe.batch_size}, "
        f"{count(recipe.epochs, 'epoch')}, {'shuffled' if recipe.shuffle else 'not shuffled'}"
        f"{', last partial batch dropped' if recipe.drop_last else ''}"
        f"{', split {} / {}'.format(*recipe.split) if recipe.split else ''}"
        f"{', ' + fields_of(recipe.schedule) if recipe.schedule else ''}"
        f"{', ' + fields_of(recipe.augmentation) if recipe.augmentation else ''}"
        f"; {recipe.digits_multiple} times the epochs on digits"
    )
    for note in spec.notes:
        click.echo(click.wrap_text(note, 98, "note: ", "      "))


def fields_of(layer: Any) -> str:
    """A layer or optimiser without its name, its default fields and its branches: Conv2d(filters=16, ...)."""
    import dataclasses

    shown = []
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.name == "name" or value == field.default or "Chain" in str(field.type):
            continue
        if isinstance(value, tuple):
            alike = len(set(value)) == 1
            value = value[0] if alike else "x".join(map(str, value))
        shown.append(f"{field.name}={value}")
    return f"{type(layer).__name__}({', '.join(shown)})"
