"""What a terminal shows: tables, progress bars, colours where they are welcome.

Results go to standard output, everything else (progress, prose, warnings) to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import click


def say(line: str) -> None:
    """A line for the user on standard error; a running progress bar stays below it."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        click.echo(line, err=True)


def styled(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Coloured text, unless NO_COLOR is set or the stream (standard output) is not a terminal."""
    welcome = (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR")
    return click.style(text, fg=colour) if welcome else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under a header; columns of numbers align right."""
    from tabulate import tabulate

    right = [all(not row[i] or row[i][0].isdigit() for row in rows) for i in range(len(header))]
    return tabulate(
        rows,
        header,
        tablefmt="simple",
        disable_numparse=True,
        colalign=["right" if numeric else "left" for numeric in right] if rows else None,
    )


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, float], None]]:
    """A training's progress on a terminal: steps, rate, time left, loss. Silent elsewhere."""
    from tqdm import tqdm

    with tqdm(desc=label, unit="step", file=sys.stderr, disable=None, leave=False, dynamic_ncols=True) as bar:

        def update(done: int, total: int, loss: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update(done - bar.n)

        yield update


@contextmanager
def counter(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """The progress of something that is counted, under a label that may change. Silent elsewhere."""
    from tqdm import tqdm

    with tqdm(unit=unit, file=sys.stderr, disable=None, leave=False, dynamic_ncols=True) as bar:

        def update(label: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description_str(label, refresh=False)
            bar.update(done - bar.n)

        yield update
