"""The command line: parse, call one library function, print. Nothing is decided here.

Importing this module imports neither NumPy nor a framework: what a command needs is imported
inside it. Errors become one line on standard error (or JSON on standard output) and an exit code.
"""

from __future__ import annotations

import errno
import json
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from zoo import __version__, terminal
from zoo.errors import InvalidInput, MachineError, ZooError, nearest

if TYPE_CHECKING:
    from zoo.model import Model

BUG = 70
INTERRUPTED = 130


class _Group(click.Group):
    """Commands in the order of their definition, with the nearest name for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise InvalidInput(f"unknown command {args[0]!r}", "", nearest(args[0], self.commands))
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    epilog="""\b
Examples:
  zoo build --data digits          every CNN on every backend, in minutes, offline
  zoo build cnn-padded --backend torch --data mnist
  zoo show cnn-padded
  zoo export cnn-padded --backend torch -o digits.onnx""",
)
@click.version_option(__version__, "-V", "--version", prog_name="zoo")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def cli(debug: bool) -> None:
    """The CNN zoo: documented CNNs specified once, trained in PyTorch and in Keras, exported to
    ONNX, and cross-checked with onnxruntime.

    Exit codes: 0 fine, 1 a check failed, 2 bad input, 3 backend not installed, 4 data missing or
    corrupt, 5 machine (disk, network, memory), 6 training diverged, 70 a bug, 130 and 143
    interrupted.
    """


def _json(function: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Machine-readable, on standard output.")(
        function
    )


def _data(function: Any) -> Any:
    function = click.option(
        "--data-dir",
        type=click.Path(),
        help="Folder of data sets [default: $ZOO_DATA, else the user's cache].",
    )(function)
    return click.option(
        "--data",
        default="auto",
        show_default=True,
        help="auto, mnist, digits, or a folder of IDX files.",
    )(function)


def _out(function: Any) -> Any:
    return click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path),
        default="runs",
        show_default=True,
        help="Folder of runs.",
    )(function)


def _backend(function: Any) -> Any:
    return click.option(
        "--backend",
        "-b",
        "backend_names",
        multiple=True,
        metavar="NAME",
        help="torch, keras, or all; may be repeated [default: all installed].",
    )(function)


@cli.command("list", epilog="\b\nExamples:\n  zoo list\n  zoo list --json")
@click.option("--all", "everything", is_flag=True, help="Also those beyond the documented five.")
@_json
def list_(everything: bool, as_json: bool) -> None:
    """List the models."""
    from zoo import registry

    models = [registry.get(name) for name in registry.names("all" if everything else registry.DOCUMENTED)]
    if as_json:
        _print_json(
            [
                {
                    "name": model.name,
                    "parameters": model.parameters,
                    "macs": model.macs,
                    "input_shape": list(model.input_shape),
                    "output": model.output,
                    "document": model.document,
                }
                for model in models
            ]
        )
        return
    header = ("model", "parameters", "MACs", "input", "output", "trained by", "document")
    rows = [
        (
            model.name,
            f"{model.parameters:,}",
            f"{model.macs:,}",
            _shape(model.input_shape),
            model.output,
            f"{type(model.recipe.optimizer).__name__}, {_count(model.recipe.epochs, 'epoch')}",
            model.document,
        )
        for model in models
    ]
    click.echo(terminal.table(header, rows))
    _next(["zoo", "show", models[0].name], ["zoo", "build", models[0].name, "--data", "digits"])


@cli.command(epilog="\b\nExamples:\n  zoo show cnn-padded\n  zoo show cnn-padded:out_1=8 --json")
@click.argument("model")
@_json
def show(model: str, as_json: bool) -> None:
    """Show the layers, recipe and notes of MODEL.

    MODEL is a name of `zoo list` (cnn-padded:out_1=8 sets a parameter), a spec.json, a run folder
    or an ONNX file of the zoo.
    """
    spec = _model(model)
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
        _print_json(
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
    rows = [("image", "", _shape(spec.input_shape), "", "")]
    rows += [
        (
            node.path,
            _fields(node.layer),
            _shape(node.output_shape),
            f"{node.parameters:,}" if node.parameters else "",
            f"{node.macs:,}" if node.macs else "",
        )
        for node in nodes
    ]
    click.echo(terminal.table(("layer", "", "output", "parameters", "MACs"), rows))
    recipe = spec.recipe
    click.echo(
        f"\nrecipe: {_fields(recipe.optimizer)}; batch {recipe.batch_size}, "
        f"{_count(recipe.epochs, 'epoch')}, {'shuffled' if recipe.shuffle else 'not shuffled'}"
        f"{', last partial batch dropped' if recipe.drop_last else ''}"
        f"{', split {} / {}'.format(*recipe.split) if recipe.split else ''}"
        f"; {recipe.digits_multiple} times the epochs on digits"
    )
    for note in spec.notes:
        click.echo(click.wrap_text(note, 98, "note: ", "      "))
    _next(["zoo", "build", model, "--data", "digits"])


@cli.command(
    epilog="""\b
Examples:
  zoo build --data digits                   everything, in minutes, offline
  zoo build --backend torch                 the five documented CNNs in PyTorch
  zoo build convnet-deep cnn-padded:out_1=8 --epochs 1 --limit 10000"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@_backend
@_data
@click.option("--epochs", type=int, help="Epochs [default: the recipe's; 0 keeps the initial weights].")
@click.option("--limit", type=int, metavar="N", help="Train on the first N images after the split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, batches and dropout.")
@_out
@click.option("--force", is_flag=True, help="Train even if the run is up to date.")
@click.option(
    "--exporter",
    default="direct",
    show_default=True,
    metavar="[direct|native]",
    help="Publish the spec's own graph, or the framework's export, as model.onnx.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to train.")
@_json
def build(models: Sequence[str], backend_names: Sequence[str], as_json: bool, **options: Any) -> None:
    """Train MODELs (all five documented, unless told), export, cross-check, and publish the runs.

    A run lands in OUT/MODEL/BACKEND, whole, and only if onnxruntime, the framework and the
    framework's own export agree with the float64 reference.
    """
    specs = [_model(model) for model in models or _documented()]
    _ours()
    from export import build as building
    from export.tables import build_table

    chosen = _backends(backend_names)
    outcomes = building.build(specs, chosen, building.Options(**options), terminal.say, terminal.progress_bar)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if as_json:
        _print_json([outcome.to_dict() for outcome in outcomes])
    else:
        click.echo(build_table(outcomes))
        done = next((outcome for outcome in outcomes if outcome.error is None), None)
        if done:
            _next(
                ["zoo", "verify", str(done.path)],
                ["zoo", "export", str(done.path), "-o", f"{done.model}.onnx"],
                ["cat", str(done.path / "README.md")],
            )
    if failed and failed[0].error is not None:
        sys.exit(failed[0].error.code)


@cli.command(
    epilog="""\b
Examples:
  zoo verify cnn-padded --weights init
  zoo verify runs/cnn-padded/torch --data mnist"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@_backend
@click.option("--weights", metavar="FILE|RUN|init", help="[default: the run under OUT, else init]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights with init.")
@_data
@_out
@_json
def verify(
    models: Sequence[str],
    backend_names: Sequence[str],
    weights: str | None,
    seed: int,
    data: str,
    data_dir: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Hold backends and ONNX exports of MODELs to the float64 reference, layer by layer.

    Every witness gets the same weights and all test images. Exits 1 if any disagrees.
    """
    _ours()
    from export import artifacts, crosscheck
    from export.tables import verify_lines
    from zoo import data as data_sets

    chosen = _backends(backend_names, needed=False)
    whose = chosen[0] if len(backend_names) == 1 and backend_names[0] != "all" else None
    sources = [
        artifacts.find(model, weights, out, seed, terminal.say, whose) for model in models or _documented()
    ]
    dataset = data_sets.load(data, data_dir, terminal.say)
    for source in sources:
        data_sets.check_fits(source.model, dataset)
    images = data_sets.to_float(dataset.test_images)
    reports = []
    for source in sources:
        report = crosscheck.verify(source.model, source.weights, chosen, images, files=source.files)
        reports.append(report)
        if not as_json:
            click.echo(verify_lines(report, source.origin))
    if as_json:
        _print_json([report.to_dict() for report in reports])
    for source, report in zip(sources, reports, strict=True):
        artifacts.keep_report(source, report)
    run = next((source.run for source in sources if source.run), None)
    if run and not as_json:
        _next(["zoo", "export", str(run), "-o", f"{sources[0].model.name}.onnx"])
    if not all(report.passed for report in reports):
        sys.exit(1)


@cli.command(
    epilog="""\b
Examples:
  zoo export cnn-padded --weights runs/cnn-padded/torch -o digits.onnx
  zoo export runs/cnn-padded/keras --exporter native"""
)
@click.argument("model")
@click.option("-o", "--out", "file", type=click.Path(path_type=Path), help="[default: MODEL.onnx]")
@click.option("--exporter", default="direct", show_default=True, metavar="[direct|native]")
@click.option("--weights", metavar="FILE|RUN|init", help="[default: the run under RUNS]")
@click.option("--backend", "-b", metavar="NAME", help="Whose run, and whose native exporter.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights with init.")
@_data
@_json
def export(
    model: str,
    file: Path | None,
    exporter: str,
    weights: str | None,
    backend: str | None,
    runs: Path,
    seed: int,
    data: str,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Write MODEL as one ONNX file to deploy: verified against the reference, then written whole."""
    _ours()
    from export import artifacts
    from zoo import data as data_sets

    target = artifacts.Target(file or Path(f"{_model(model).name}.onnx"), exporter, backend)
    source = artifacts.find(model, weights, runs, seed, terminal.say, backend, fall_back=False)
    dataset = data_sets.load(data, data_dir, terminal.say)
    data_sets.check_fits(source.model, dataset)
    exported = artifacts.export(source, target, data_sets.to_float(dataset.test_images))
    if as_json:
        _print_json(exported)
        return
    shown = exported["path"].encode(errors="backslashreplace").decode()
    click.echo(f"{shown}: {exported['bytes']:,} bytes, {exported['check']}")
    click.echo(f"  input   {exported['input']}\n  output  {exported['output']}")
    click.echo(f"  opset   {exported['opset']}\n  SHA-256 {exported['sha256']}\n")
    click.echo(exported["example"])
    _next(["zoo", "verify", exported["path"]])


@cli.command(epilog="\b\nExamples:\n  zoo data\n  zoo data mnist")
@click.argument("name", required=False)
@click.option("--data-dir", type=click.Path(), help="Folder of data sets.")
@_json
def data(name: str | None, data_dir: str | None, as_json: bool) -> None:
    """Show which data sets there are; with NAME, fetch it if need be and check it."""
    from zoo import data as data_sets

    found = [data_sets.load(name, data_dir, terminal.say)] if name else data_sets.present(data_dir)
    rows = [data_sets.describe(dataset) for dataset in found]
    if as_json:
        _print_json(rows)
        return
    header = ("data set", "train", "test", "image", "folder")
    cells = [
        (row["name"], f"{row['train']:,}", f"{row['test']:,}", _shape(row["image"]), row["source"])
        for row in rows
    ]
    click.echo(terminal.table(header, cells))
    if not name and not any(row["name"] == "mnist" for row in rows):
        click.echo(f"\nmnist is not in {data_sets.data_folder(data_dir)}")
        _next(["zoo", "data", "mnist"])


@cli.command(epilog="\b\nExamples:\n  zoo env\n  zoo env --json")
@_json
def env(as_json: bool) -> None:
    """Show versions, backends, threads and folders: what a bug report needs."""
    _ours()
    import platform

    import backends
    from zoo import data as data_sets
    from zoo import machine

    found: dict[str, Any] = {
        "zoo": __version__,
        "versions": machine.versions(),
        "platform": platform.platform(),
        "processor": machine.processor(),
        "threads": machine.threads(),
        "data_folder": str(data_sets.data_folder()),
        "package": str(Path(__file__).parent),
        "backends": {
            name: {
                "installed": backends.installed(name),
                "versions": machine.only(backends.distributions(name)),
                "install": backends.install_command(name),
            }
            for name in backends.names()
        },
    }
    if as_json:
        _print_json(found)
        return
    for key in ("zoo", "platform", "processor", "threads", "data_folder", "package"):
        click.echo(f"{key.replace('_', ' '):12} {found[key]}")
    for distribution, number in found["versions"].items():
        click.echo(f"{distribution:12} {number}")
    click.echo()
    rows = [
        (
            name,
            "yes" if state["installed"] else "no",
            ", ".join(f"{k} {v}" for k, v in state["versions"].items()),
            "" if state["installed"] else state["install"],
        )
        for name, state in found["backends"].items()
    ]
    click.echo(terminal.table(("backend", "installed", "versions", "to install"), rows))
    _next(["zoo", "list"])


def _model(text: str) -> Model:
    """The model that a command-line argument names."""
    if text.endswith(".onnx"):
        _ours()
        from export import artifacts

        return artifacts.read_onnx(Path(text))[0]
    from zoo import registry

    return registry.resolve(text)[0]


def _documented() -> list[str]:
    from zoo import registry

    return registry.names()


def _backends(names: Sequence[str], needed: bool = True) -> list[str]:
    """The chosen backends, each once, in the order given; "all" is every installed one that trains.

    needed: raise BackendUnavailable if none is installed.
    """
    import backends

    expanded: list[str] = []
    for name in names or ("all",):
        expanded += backends.training_names() if name == "all" else [name]
    if not expanded and needed:
        backends.require("torch")  # nothing is installed: say how to
    for name in expanded:
        backends.require(name)
    return list(dict.fromkeys(map(backends.canonical, expanded)))


def _ours() -> None:
    from zoo import machine

    machine.check_packages()


def _fields(layer: Any) -> str:
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


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=1, ensure_ascii=False))


def _next(*commands: list[str]) -> None:
    click.echo("\nnext:")
    for command in commands:
        click.echo(f"  {shlex.join(command)}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of zoo.errors."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in args:  # wherever it stands
        args = ["--debug", *(argument for argument in args if argument != "--debug")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        cli.main(args=args, prog_name="zoo", standalone_mode=False)
        sys.exit(0)
    except ZooError as error:
        _fail(error, args)
    except click.exceptions.NoArgsIsHelpError as no_arguments:
        click.echo(no_arguments.format_message())
        sys.exit(0)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "zoo"
        _fail(InvalidInput(error.format_message().rstrip("."), "", f"see {command} --help"), args)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except SystemExit as done:
        closed = isinstance(done.__context__, OSError) and done.__context__.errno == errno.EPIPE
        sys.exit(0 if closed else done.code)  # zoo list | head
    except MemoryError:
        _fail(MachineError("out of memory"), args)
    except OSError as error:
        _fail(MachineError(error.strerror or str(error), error.filename or ""), args)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ""
        hint = "run again with --debug and report it"
        _fail(ZooError(f"a bug of the zoo: {type(error).__name__}: {text}", "", hint), args)


def _fail(error: ZooError, args: Sequence[str]) -> NoReturn:
    if "--debug" in args:
        traceback.print_exc()
    if "--json" in args:
        _print_json(error.to_dict())
    click.echo(f"{terminal.styled('error', 'red')}: {error}", err=True)
    sys.exit(error.code)
