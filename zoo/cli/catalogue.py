"""The models: list and show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zoo import terminal
from zoo.cli.options import count, json_option, model_of, next_commands, print_json, shape

if TYPE_CHECKING:
    from zoo.model import Model


@click.command("list", epilog="\b\nExamples:\n  zoo list\n  zoo list --json")
@click.option("--all", "everything", is_flag=True, help="Also those beyond the documented five.")
@json_option
def list_(everything: bool, as_json: bool) -> None:
    """List the models, with the test accuracy of the weights that come with the package."""
    from zoo import pretrained, registry

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


@click.command(epilog="\b\nExamples:\n  zoo show cnn-padded\n  zoo show cnn-padded:out_1=8 --json")
@click.argument("model")
@json_option
def show(model: str, as_json: bool) -> None:
    """Show the layers, recipe and notes of MODEL.

    MODEL is a name of `zoo list` (cnn-padded:out_1=8 sets a parameter), a spec.json, a run folder
    or an ONNX file of the zoo.
    """
    spec = model_of(model)
    nodes = spec.walk()
    if as_json:
        layers = [
            {
                "path": node.path,
                "kind": node.layer.kind,
                "type": type(node.layer).__name__,
                "output_shape": list(node.output_shape),
                "parameters": node.parameters,
                "macs": node.macs,
            }
            for node in nodes
        ]
        rest = {key: value for key, value in spec.to_dict().items() if key != "layers"}
        print_json(
            {
                "name": spec.name,
                "parameters": spec.parameters,
                "macs": spec.macs,
                "output": spec.output,
                "layers": layers,
                **rest,
            }
        )
        return
    click.echo(f"{spec.title}: {spec.parameters:,} parameters, {spec.macs:,} multiply-accumulates an image")
    click.echo(f"document: {spec.document or 'none'}\n")
    rows = [("image", "", shape(spec.input_shape), "", "")]
    rows += [
        (
            node.path,
            fields_of(node.layer),
            shape(node.output_shape),
            f"{node.parameters:,}" if node.parameters else "",
            f"{node.macs:,}" if node.macs else "",
        )
        for node in nodes
    ]
    click.echo(terminal.table(("layer", "", "output", "parameters", "MACs"), rows))
    recipe = spec.recipe
    click.echo(
        f"\nrecipe: {fields_of(recipe.optimizer)}; batch {recipe.batch_size}, "
        f"{count(recipe.epochs, 'epoch')}, {'shuffled' if recipe.shuffle else 'not shuffled'}"
        f"{', last partial batch dropped' if recipe.drop_last else ''}"
        f"{', split {} / {}'.format(*recipe.split) if recipe.split else ''}"
        f"; {recipe.digits_multiple} times the epochs on digits"
    )
    for note in spec.notes:
        click.echo(click.wrap_text(note, 98, "note: ", "      "))
    next_commands(["zoo", "build", model, "--data", "digits"])


def fields_of(layer: Any) -> str:
    """A layer or optimiser without its name and empty fields: Conv2d(filters=16, ...)."""
    import dataclasses

    shown = []
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.name == "name" or value == field.default:
            continue
        if isinstance(value, tuple):
            alike = len(set(value)) == 1
            value = value[0] if alike else "x".join(map(str, value))
        shown.append(f"{field.name}={value}")
    return f"{type(layer).__name__}({', '.join(shown)})"
