"""Runs: build, export, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from zoo import terminal
from zoo.cli.options import (
    backend_option,
    check_packages,
    chosen_backends,
    complete_backend,
    complete_model,
    count,
    data_option,
    documented,
    images_for,
    json_option,
    model_of,
    next_commands,
    out_option,
    print_json,
    quiet_matplotlib,
)

WEIGHTS = "[default: pretrained; where none are shipped, the run]"


@click.command(
    epilog="""\b
Examples:
  zoo build --data digits                   everything, in minutes, offline
  zoo build --backend torch                 the five documented CNNs in PyTorch
  zoo build mynet.toml                      a network of your own (zoo spec init)
  zoo build --pretrained --data digits      no training: the weights of the package
  zoo build convnet-deep cnn-padded:out_1=8 --epochs 1 --limit 10000"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@backend_option
@data_option
@click.option("--epochs", type=int, help="Epochs [default: the recipe's; 0 keeps the initial weights].")
@click.option("--limit", type=int, metavar="N", help="Train on the first N images after the split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, batches and dropout.")
@out_option
@click.option("--force", is_flag=True, help="Train even if the run is up to date.")
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Go on from a checkpoint, or else say why not; never [default: if it is of the same run].",
)
@click.option(
    "--exporter",
    default="direct",
    show_default=True,
    metavar="[direct|native]",
    help="Publish the spec's own graph, or the framework's export, as model.onnx.",
)
@click.option("--pretrained", is_flag=True, help="Take the weights of the package instead of training.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's event files into each run.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where to train: cpu, or cuda (torch, keras:jax, keras:torch).",
)
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    help="Of a step of training: float32, or bf16 (torch alone; weights stay float32).",
)
@json_option
def build(models: Sequence[str], backend_names: Sequence[str], as_json: bool, **options: Any) -> None:
    """Train MODELs (all five documented, unless told), export, cross-check, and publish the runs.

    A run lands in OUT/MODEL/BACKEND, whole, and only if onnxruntime, the framework and the
    framework's own export agree with the float64 reference. With --pretrained it needs no framework.
    """
    specs = [model_of(model) for model in models or documented()]
    check_packages()
    quiet_matplotlib()
    from export.runs import build as building
    from export.runs.options import Options
    from export.runs.table import build_table

    wished = Options(**options)  # a wrong option is one with or without a framework
    chosen = chosen_backends(backend_names, needed=not wished.pretrained) or ["reference"]
    outcomes = building.build(specs, chosen, wished, terminal.say, terminal.progress_bar)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if as_json:
        print_json([outcome.to_dict() for outcome in outcomes])
    else:
        click.echo(build_table(outcomes))
        done = next((outcome for outcome in outcomes if outcome.error is None), None)
        if done:
            further = [
                ["zoo", "verify", str(done.path)],
                ["zoo", "export", str(done.path), "-o", f"{done.model}.onnx"],
                ["zoo", "report", str(options["out"])],
            ]
            if options["tensorboard"]:
                further.append(["tensorboard", "--logdir", str(options["out"])])
            next_commands(*further)
    if failed and failed[0].error is not None:
        sys.exit(failed[0].error.code)


@click.command(
    epilog="""\b
Examples:
  zoo export cnn-padded -o digits.onnx
  zoo export runs/cnn-padded/keras --exporter native
  zoo export convnet --int8 -o small.onnx
  zoo export convnet --float16 --data mnist"""
)
@click.argument("model", shell_complete=complete_model)
@click.option(
    "-o",
    "--out",
    "file",
    type=click.Path(path_type=Path),
    help="[default: MODEL.onnx, MODEL-int8.onnx, MODEL-float16.onnx]",
)
@click.option("--exporter", default="direct", show_default=True, metavar="[direct|native]")
@click.option("--int8", is_flag=True, help="Quantise, calibrated on training images.")
@click.option("--float16", is_flag=True, help="Weights and activations in float16.")
@click.option(
    "--calibration", type=int, metavar="N", help="Training images that calibrate int8 [default: 512]."
)
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="The gate of int8 and float16: the most accuracy to lose, with 95 % confidence [default: 0.3].",
)
@click.option("--weights", metavar="FILE|RUN|pretrained|init", help=WEIGHTS)
@click.option(
    "--backend",
    "-b",
    metavar="NAME",
    shell_complete=complete_backend,
    help="Whose run, and whose native exporter.",
)
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights with init.")
@data_option
@json_option
def export(
    model: str,
    file: Path | None,
    exporter: str,
    int8: bool,
    float16: bool,
    calibration: int | None,
    max_drop: float | None,
    weights: str | None,
    backend: str | None,
    runs: Path,
    seed: int,
    data: str,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Write MODEL as one ONNX file to deploy: verified against the reference, then written whole.

    With --int8 or --float16 the file is smaller and computes nearly, not exactly, the same. It is
    written if the upper end of the 95 % interval of what it loses on the test images, against the
    float32 file, is at most the allowed drop; otherwise the exit code is 1 and an earlier file stays.
    Its size and speed are told as measured here, also where it is slower.
    """
    check_packages()
    from export.reduced import quantization
    from export.runs import deploy, sources
    from zoo import data as data_sets

    wish = quantization.wish(int8, float16, exporter, calibration, max_drop)
    suffix = f"-{wish.precision}" if wish else ""
    target = deploy.Target(file or Path(f"{model_of(model).name}{suffix}.onnx"), exporter, backend)
    source = sources.find(model, weights, runs, seed, terminal.say, backend, fall_back=False)
    dataset = data_sets.load(data, data_dir, terminal.say)
    if wish:
        data_sets.check_fits(source.model, dataset)
        exported = quantization.export(source, target.path, wish, dataset)
    else:
        images, told = images_for(source.model, dataset, data)
        exported = deploy.export(source, target, images, told)
    if as_json:
        print_json(exported)
        return
    shown = exported["path"].encode(errors="backslashreplace").decode()
    check = exported["check"] if wish is None else f"{exported['precision']}, passed its gate"
    click.echo(f"{shown}: {exported['bytes']:,} bytes, {check}")
    for line in quantization.lines(exported) if wish else ():
        click.echo(f"  {line}")
    click.echo(f"  input   {exported['input']}\n  output  {exported['output']}")
    click.echo(f"  opset   {exported['opset']}\n  SHA-256 {exported['sha256']}\n")
    click.echo(exported["example"])
    next_commands(["zoo", "doctor" if wish else "verify", exported["path"]])


@click.command(
    epilog="""\b
Examples:
  zoo report
  zoo report runs -o report.html"""
)
@click.argument("folder", type=click.Path(path_type=Path), default="runs", metavar="[RUNS]")
@click.option("-o", "--out", "file", type=click.Path(path_type=Path), help="[default: RUNS/report.html]")
@json_option
def report(folder: Path, file: Path | None, as_json: bool) -> None:
    """Render all runs below RUNS (default: runs) as one HTML page that needs nothing beside it.

    Tables, curves, kernels, mistakes and agreement, from the files of the runs alone.
    """
    check_packages()
    from export.runs import page as reporting

    file = file or folder / reporting.FILE
    entries, failures = reporting.write(folder, file)
    if as_json:
        shown = [entry.summary() for entry in entries]
        print_json({"path": str(file), "runs": shown, "failures": [error.to_dict() for error in failures]})
    else:
        click.echo(f"{file}: {count(len(entries), 'run')}, {file.stat().st_size:,} bytes")
        next_commands(["open" if sys.platform == "darwin" else "xdg-open", str(file)])
    for error in failures:
        terminal.say(f"{terminal.styled('error', 'red', sys.stderr)}: {error}")
    if failures:
        sys.exit(failures[0].code)
