"""What is around the models: data sets, the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo import __version__, terminal
from zoo.cli.options import check_packages, json_option, next_commands, print_json, shape
from zoo.errors import InvalidInput, MachineError, ZooError, nearest

if TYPE_CHECKING:
    from backends import Plugin

SHELLS = ("bash", "zsh", "fish")


@click.command(epilog="\b\nExamples:\n  zoo data\n  zoo data mnist")
@click.argument("name", required=False)
@click.option("--data-dir", type=click.Path(), help="Folder of data sets.")
@json_option
def data(name: str | None, data_dir: str | None, as_json: bool) -> None:
    """Show which data sets there are; with NAME, fetch it if need be and check it."""
    from zoo import data as data_sets

    found = [data_sets.load(name, data_dir, terminal.say)] if name else data_sets.present(data_dir)
    rows = [data_sets.describe(dataset) for dataset in found]
    if as_json:
        print_json(rows)
        return
    header = ("data set", "train", "test", "image", "folder")
    cells = [
        (row["name"], f"{row['train']:,}", f"{row['test']:,}", shape(row["image"]), row["source"])
        for row in rows
    ]
    click.echo(terminal.table(header, cells))
    if not name and not any(row["name"] == "mnist" for row in rows):
        click.echo(f"\nmnist is not in {_data_folder(data_dir)}")
        next_commands(["zoo", "data", "mnist"])


def _data_folder(given: str | None) -> str:
    from zoo import data as data_sets

    try:
        return str(data_sets.data_folder(given))
    except MachineError as error:
        return f"none: {error.what}"


@click.command(epilog="\b\nExamples:\n  zoo env\n  zoo env --json")
@json_option
def env(as_json: bool) -> None:
    """Show versions, backends, threads and folders: what a bug report needs."""
    check_packages()
    import platform

    import backends
    from zoo import machine

    found: dict[str, Any] = {
        "zoo": __version__,
        "versions": machine.versions(),
        "platform": platform.platform(),
        "processor": machine.processor(),
        "threads": machine.threads(),
        "data_folder": _data_folder(None),
        "package": str(Path(__file__).parents[1]),
        "backends": {
            name: {
                "installed": backends.installed(name),
                "versions": machine.only(backends.distributions(name)),
                "install": backends.install_command(name),
            }
            for name in backends.own_names()
        },
    }
    if as_json:
        print_json(
            {**found, "plugins": [_described(plugin) | _tried(plugin) for plugin in backends.plugins()]}
        )
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
    for plugin in backends.plugins():
        # Whose it is stands there before any of it runs, whatever happens then.
        click.echo(f"\n{plugin.name} of {plugin.distribution} {plugin.version}")
        tried = _tried(plugin)
        versions = ", ".join(f"{name} {number}" for name, number in tried["versions"].items())
        click.echo(f"  loads: {versions}" if tried["loads"] else f"  does not load: {tried['error']}")
    next_commands(["zoo", "list"])


def _described(plugin: Plugin) -> dict[str, Any]:
    """A backend of another distribution by its metadata alone."""
    return {"backend": plugin.name, "distribution": plugin.distribution, "version": plugin.version}


def _tried(plugin: Plugin) -> dict[str, Any]:
    """Whether it loads, in a process of its own."""
    from backends.process.client import Worker

    try:
        with Worker(plugin.name) as worker:
            return {"loads": True, "versions": worker.versions(), "error": None}
    except ZooError as error:
        return {"loads": False, "versions": {}, "error": str(error)}


def _complete_shell(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    return [shell for shell in SHELLS if shell.startswith(typed)]


@click.command(
    epilog="""\b
Examples:
  eval "$(zoo completion bash)"                                    in ~/.bashrc
  zoo completion fish > ~/.config/fish/completions/zoo.fish"""
)
@click.argument("shell", metavar="[bash|zsh|fish]", shell_complete=_complete_shell)
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the script that completes commands, options, models and plots in SHELL."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise InvalidInput(f"unknown shell {shell!r}", "", nearest(shell, SHELLS))
    script = kind(click.get_current_context().find_root().command, {}, "zoo", "_ZOO_COMPLETE").source()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
