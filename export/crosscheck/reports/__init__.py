"""A verification as text, from its JSON data alone: for a terminal, as Markdown, as JUnit's XML, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from export.crosscheck.reports.junit import junit
from export.crosscheck.reports.markdown import markdown
from export.crosscheck.reports.terminal import terminal_lines
from export.crosscheck.reports.words import Data
from zoo.errors import InvalidInput, nearest

__all__ = ["FORMATS", "check_name", "junit", "markdown", "rendered", "terminal_lines", "to_json"]


def to_json(reports: Sequence[Data]) -> str:
    """The reports themselves."""
    return json.dumps(reports, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Data]], str]] = {".json": to_json, ".md": markdown, ".xml": junit}


def check_name(path: Path) -> None:
    """Raise InvalidInput for a file whose format is unknown, or that cannot be there."""
    if path.suffix not in FORMATS:
        hint = nearest(path.suffix, FORMATS)
        raise InvalidInput(f"unknown format of a report {path.suffix!r}", str(path), hint)
    if not path.parent.is_dir():
        raise InvalidInput("no such folder", str(path.parent), "make it first")


def rendered(path: Path, reports: Sequence[Data]) -> bytes:
    """The reports in the format that the file's suffix names."""
    return FORMATS[path.suffix](reports).encode()
