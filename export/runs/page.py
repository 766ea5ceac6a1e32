"""`zoo report`: a whole folder of runs as one HTML page that needs nothing beside it.

Everything on the page comes from published files, each compared with its manifest before it is
read: reports, specs and the pictures that were made with the run. There is no script and no outside
resource in it; text from specs and reports is escaped by the template engine.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

import zoo
from export.runs import card
from export.runs.card import IMPORTED
from zoo import runs
from zoo.errors import DataError, ZooError
from zoo.model import Model
from zoo.models import registry
from zoo.spec.file import parse_spec
from zoo.training import measures

FILE = "report.html"


@dataclass(frozen=True)
class Entry:
    """One run: where it lies, its model, its report.json, its pictures as data URIs, its files."""

    path: Path
    model: Model
    report: dict[str, Any]
    pictures: dict[str, str]
    files: dict[str, int]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the ONNX file's accuracy on the test images."""
        return measures.interval(self.report["onnx"]["accuracy"], self.report["data"]["test"])

    def summary(self) -> dict[str, Any]:
        """The run's row in the table, as JSON data."""
        onnx = self.report["onnx"]
        return {
            "path": str(self.path),
            "model": self.model.title,
            "backend": self.report["backend"],
            "data": self.report["data"]["name"],
            "parameters": self.model.parameters,
            "accuracy": onnx["accuracy"],
            "interval": list(self.interval),
            "max_abs_diff": onnx["max_abs_diff"],
            "limit": onnx["limit"],
            "flips": onnx["flips"],
            "passed": onnx["passed"],
        }


def collect(folder: Path) -> tuple[list[Entry], list[ZooError]]:
    """Every finished run below a folder, documented models first, and what could not be read.

    Raises DataError if there is neither.
    """
    entries: list[Entry] = []
    failures: list[ZooError] = []
    for path in _run_folders(folder):
        try:
            if path.name != IMPORTED:  # nothing was trained there, nor tested
                entries.append(_read(path))
        except ZooError as error:
            failures.append(error)
    if not entries and not failures:
        raise DataError("no finished run here", folder, "run: zoo build --data digits")
    order = registry.names("all")
    known = {name: i for i, name in enumerate(order)}
    entries.sort(key=lambda entry: (known.get(entry.model.name, len(order)), entry.model.title))
    return entries, failures


def render(entries: Iterable[Entry], failures: Iterable[ZooError], place: Path) -> str:
    """The page. place: the folder in which it will lie, from which its links to files start."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("export.runs"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["link"] = lambda path: _link(Path(path), place)
    entries = list(entries)
    models: dict[str, list[Entry]] = {}
    for entry in entries:
        models.setdefault(entry.model.title, []).append(entry)
    return environment.get_template("report.html").render(
        entries=entries,
        models=models,
        failures=[str(error) for error in failures],
        captions=card.CAPTIONS,
        version=zoo.__version__,
        data={entry.report["data"]["name"]: entry.report["data"] for entry in entries},
    )


def write(folder: Path, file: Path) -> tuple[list[Entry], list[ZooError]]:
    """Collect and render the runs below `folder` into `file`; what was read, and what was not."""
    entries, failures = collect(folder)
    runs.write_atomically(file, render(entries, failures, file.parent).encode())
    return entries, failures


def _run_folders(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise DataError("no such folder", folder, "run: zoo build --data digits")
    if (folder / runs.MANIFEST).is_file():
        yield folder
    for parent, children, files in os.walk(folder):
        children[:] = sorted(child for child in children if not child.startswith("."))
        if {runs.MANIFEST, "spec.json"} <= set(files) and Path(parent) != folder:  # not another's manifest
            children.clear()
            yield Path(parent)


def _read(path: Path) -> Entry:
    run = runs.Run(path)
    run.recover()
    manifest = run.manifest()
    if manifest is None:
        raise DataError("no finished run here", path)
    contents = {name: run.read(name) for name in manifest["files"]}
    try:
        report = run.read_json("report.json")
        model = parse_spec(contents["spec.json"], str(path))
    except KeyError:
        raise DataError("not a run of the zoo", path, "build it again with --force") from None
    pictures = {
        name: "data:image/png;base64," + base64.b64encode(contents[name]).decode()
        for name in card.CAPTIONS
        if name in contents
    }
    sizes = {name: len(content) for name, content in contents.items() if name not in pictures}
    entry = Entry(path, model, report, pictures, sizes)
    try:
        render([entry], [], path)
    except (KeyError, TypeError, ValueError, ArithmeticError, jinja2.UndefinedError) as error:
        what = f"its report.json is not of this version: {type(error).__name__}: {error}"
        raise DataError(what, path, "build it again with --force") from None
    return entry


def _link(path: Path, place: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), place.resolve())).as_posix())
