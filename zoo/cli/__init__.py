"""The command line: parse, call one library function, print. Nothing is decided here.

One module per theme holds the commands. Importing them imports neither NumPy nor a framework: what
a command needs is imported inside it. Errors become one line on standard error (or JSON on standard
output) and an exit code.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn, TextIO

import click

from zoo import __version__, terminal
from zoo.cli.benching import bench
from zoo.cli.catalogue import list_, show
from zoo.cli.doctor import doctor
from zoo.cli.filtering import filter_
from zoo.cli.importing import import_
from zoo.cli.options import print_json
from zoo.cli.parity import parity
from zoo.cli.plotting import plot
from zoo.cli.predicting import predict
from zoo.cli.runs import build, export, report
from zoo.cli.selftesting import selftest
from zoo.cli.specs import spec
from zoo.cli.surroundings import completion, data, env
from zoo.cli.verifying import verify
from zoo.errors import Interrupted, InvalidInput, MachineError, ZooError, nearest

BUG = 70


class _Group(click.Group):
    """Commands in the order of their definition, with the nearest name for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = not args or args[0] in self.commands or args[0].startswith("-")
        if not known and not ctx.resilient_parsing:  # the shell's completion asks, too
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


for command in (
    list_,
    show,
    build,
    verify,
    selftest,
    parity,
    predict,
    plot,
    export,
    bench,
    doctor,
    report,
    spec,
    import_,
    filter_,
    data,
    env,
    completion,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of zoo.errors."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in args:  # wherever it stands
        args = ["--debug", *(argument for argument in args if argument != "--debug")]
    signal.signal(signal.SIGTERM, _terminate)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    stdout = sys.stdout
    try:
        cli.main(args=args, prog_name="zoo", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(0)
    except Interrupted as error:
        _fail(Interrupted(error.what, error.where, f"go on with: {_resuming(args)}", error.code), args)
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
    except _Terminated:
        _fail(Interrupted("terminated", "", _hint(args), 143), args)
    except (KeyboardInterrupt, click.Abort):
        _fail(Interrupted("interrupted", "", _hint(args)), args)
    except SystemExit as done:
        # click puts another stream in its place when nobody reads it any more: zoo list | head
        sys.exit(0 if sys.stdout is not stdout else done.code)
    except MemoryError:
        _fail(MachineError("out of memory"), args)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _fail(InvalidInput("a name that is too long", str(error.filename)[:80]), args)
        _fail(MachineError(error.strerror or str(error), error.filename or ""), args)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ""
        hint = "run again with --debug and report it"
        _fail(ZooError(f"a bug of the zoo: {type(error).__name__}: {text}", "", hint), args)


class _Terminated(BaseException):
    """SIGTERM has come. What is under way cleans up after itself, as after an interrupt."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _hint(args: Sequence[str]) -> str:
    return f"go on with: {_resuming(args)}" if "build" in args else ""


def _resuming(args: Sequence[str]) -> str:
    """The command that goes on with what these arguments have begun."""
    kept = [arg for arg in args if arg not in ("--no-resume", "--resume")]
    return shlex.join(["zoo", *kept, *(["--resume"] if "--force" in kept else [])])


def _fail(error: ZooError, args: Sequence[str]) -> NoReturn:
    if "--debug" in args:
        traceback.print_exc()
    if "--json" in args:
        _try_to_print(lambda: print_json(error.to_dict()), sys.stdout)
    line = f"{terminal.styled('error', 'red', sys.stderr)}: {error}"
    _try_to_print(lambda: click.echo(line, err=True), sys.stderr)
    _try_to_print(lambda: None, sys.stdout)
    sys.exit(error.code)


def _try_to_print(show: Callable[[], None], stream: TextIO) -> None:
    """Print, unless nobody reads it or the disk is full; nor may Python's own flush at the end complain."""
    try:
        show()
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
