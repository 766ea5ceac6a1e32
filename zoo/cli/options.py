"""What the commands share: options, how arguments name models and backends, how results are printed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.errors import InvalidInput, ZooError

if TYPE_CHECKING:
    import numpy as np
    from click.shell_completion import CompletionItem

    from zoo.data import Dataset
    from zoo.model import Model


def complete_model(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of models for the shell; where none fits, files and folders."""
    from click.shell_completion import CompletionItem

    from zoo.models import registry

    fitting = [name for name in registry.names("all") if name.startswith(typed)]
    return [CompletionItem(name) for name in fitting] or [CompletionItem(typed, type="file")]


def complete_backend(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Names of backends for the shell."""
    check_packages()
    import backends

    return [name for name in (*backends.names(), "all") if name.startswith(typed)]


def complete_data(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of data sets for the shell; where none fits, folders."""
    from click.shell_completion import CompletionItem

    fitting = [name for name in ("auto", "mnist", "digits") if name.startswith(typed)]
    return [CompletionItem(name) for name in fitting] or [CompletionItem(typed, type="dir")]


def json_option(function: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Machine-readable, on standard output.")(
        function
    )


def data_option(function: Any) -> Any:
    function = click.option(
        "--data-dir",
        type=click.Path(),
        help="Folder of data sets [default: $ZOO_DATA, else the user's cache].",
    )(function)
    return click.option(
        "--data",
        default="auto",
        shell_complete=complete_data,
        show_default=True,
        help="auto, mnist, digits, or a folder of IDX files.",
    )(function)


def out_option(function: Any) -> Any:
    return click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path),
        default="runs",
        show_default=True,
        help="Folder of runs.",
    )(function)


def backend_option(function: Any) -> Any:
    return click.option(
        "--backend",
        "-b",
        "backend_names",
        multiple=True,
        metavar="NAME",
        shell_complete=complete_backend,
        help="torch, keras, another installed one, or all; may be repeated [default: all].",
    )(function)


def model_of(text: str) -> Model:
    """The model that a command-line argument names."""
    if text.endswith(".onnx"):
        check_packages()
        from export.onnx import contents

        return contents.read_model(Path(text))
    from zoo.models import registry

    return registry.resolve(text)[0]


def images_for(model: Model, dataset: Dataset, wish: str) -> tuple[np.ndarray | None, str]:
    """The test images, or, where the model takes others and no data set is wished for, None; in words."""
    from zoo import data, terminal

    try:
        data.check_fits(model, dataset)
    except InvalidInput as error:
        if wish != "auto":
            raise
        terminal.say(f"{model.name}: {error.what}: looking at noise and probes")
        return None, "noise and probes"
    return data.to_float(dataset.test_images), f"{len(dataset.test_images):,} test images of {dataset.name}"


class Several:
    """The models of one command, of which the others still get their turn after one that fails.

    codes: the exit codes so far, by name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.codes: dict[str, int] = {}

    @contextmanager
    def going_on(self, name: str) -> Iterator[None]:
        """Report an error of this model and go on; raise it where there is no other one."""
        from zoo import terminal

        try:
            yield
        except ZooError as error:
            if len(self.names) == 1:
                raise
            self.codes[name] = error.code
            terminal.say(f"{terminal.styled('error', 'red', sys.stderr)}: {name}: {error}")

    @property
    def failed(self) -> int:
        """The exit code of the command: the first failure's, or 0."""
        return next((code for code in self.codes.values() if code), 0)


def documented() -> list[str]:
    from zoo.models import registry

    return registry.names()


def chosen_backends(names: Sequence[str], needed: bool = True) -> list[str]:
    """The chosen backends, each once, in the order given; "all" is backends.training_names().

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


def check_packages() -> None:
    from zoo import machine

    machine.check_packages()


def quiet_matplotlib() -> None:
    """Keep matplotlib's folder with our caches, not in HOME; its settings there do not count, and what
    it says of them is not heard. Call it before anything imports matplotlib."""
    import atexit
    import logging
    import os
    import shutil
    import tempfile

    from zoo import data
    from zoo.errors import MachineError

    if "MPLCONFIGDIR" not in os.environ:
        try:
            os.environ["MPLCONFIGDIR"] = str(data.cache_folder() / "matplotlib")
        except MachineError:  # no home
            folder = tempfile.mkdtemp(prefix="zoo-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            os.environ["MPLCONFIGDIR"] = folder
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=1))  # ASCII: valid JSON whatever the terminal's encoding


def next_commands(*commands: list[str]) -> None:
    click.echo("\nnext:")
    for command in commands:
        click.echo(f"  {shlex.join(command)}")
