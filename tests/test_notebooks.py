"""The notebooks in examples/: what is stored is whole and clean, and each of them still runs.

Every notebook holds assertions of its own, so executing it is a test of what it says.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 150_000  # bytes
SECONDS = 300  # for one cell, on a busy machine
ABSOLUTE = re.compile(r"(?:^|[\s'\"(=\[])(?:/[\w.~-]+){2,}|\b[A-Za-z]:\\\w", re.MULTILINE)

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(cell: dict[str, Any]) -> list[str]:
    """The text of each output of a cell, whatever else it holds."""
    found = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
    return ["".join(text) for text in found]


def flaws(notebook: dict[str, Any]) -> list[str]:
    """What must not be in a notebook that readers see before they run it."""
    found = []
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("another kernel than python3")
    cells = code_cells(notebook)
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not run from top to bottom")
    if not any(re.search(r"^ *(assert\b|np\.testing\.assert)", "".join(c["source"]), re.M) for c in cells):
        found.append("asserts nothing")
    for cell in cells:
        if "execution" in cell["metadata"]:
            found.append(f"{cell['id']}: the time of day")
        for output, text in zip(cell["outputs"], texts(cell), strict=True):
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"{cell['id']}: error or warning")
            if any(kind.startswith("application/") for kind in output.get("data", {})):
                found.append(f"{cell['id']}: a widget")
            if ABSOLUTE.search(text):
                found.append(f"{cell['id']}: an absolute path")
    return found


def wording(notebook: dict[str, Any]) -> list[list[str]]:
    """The text of all outputs without its numbers, which differ a little from machine to machine."""
    number = re.compile(r"\d[\d.,]*(e[-+]\d+)?")
    return [
        [" ".join(number.sub("#", text).split()) for text in texts(cell)] for cell in code_cells(notebook)
    ]


def test_the_readme_names_every_notebook() -> None:
    named = re.findall(r"\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(named) == [path.name for path in NOTEBOOKS]
    assert named


@notebooks
def test_what_is_stored_is_whole_and_clean(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    assert flaws(json.loads(path.read_text(encoding="utf-8"))) == []


def _no_count(notebook: dict[str, Any]) -> None:
    code_cells(notebook)[1]["execution_count"] = None


def _no_assertion(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        cell["source"] = [line.replace("assert", "print") for line in cell["source"]]


def _with_output(text: str, name: str = "stdout") -> Callable[[dict[str, Any]], None]:
    def change(notebook: dict[str, Any]) -> None:
        output = {"output_type": "stream", "name": name, "text": [text]}
        code_cells(notebook)[-1]["outputs"].append(output)

    return change


def _timed(notebook: dict[str, Any]) -> None:
    code_cells(notebook)[0]["metadata"]["execution"] = {"shell.execute_reply": "2020-01-01T00:00:00Z"}


def _widget(notebook: dict[str, Any]) -> None:
    data = {"application/vnd.jupyter.widget-view+json": {}}
    code_cells(notebook)[-1]["outputs"].append({"output_type": "display_data", "data": data})


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        (lambda notebook: notebook["metadata"].clear(), "kernel"),
        (_no_count, "top to bottom"),
        (_no_assertion, "asserts nothing"),
        (_with_output("careful", "stderr"), "warning"),
        (_with_output("saved as /srv/data/four.png"), "absolute path"),
        (_with_output("File 'C:\\digits\\four.png'"), "absolute path"),
        (_timed, "time of day"),
        (_widget, "widget"),
    ],
)
def test_a_flaw_is_found(change: Callable[[dict[str, Any]], None], flaw: str) -> None:
    notebook = copy.deepcopy(json.loads(NOTEBOOKS[0].read_text(encoding="utf-8")))
    change(notebook)
    assert [flaw in found for found in flaws(notebook)] == [True]


def test_words_are_compared_and_numbers_are_not() -> None:
    def saying(text: str) -> dict[str, Any]:
        output = {"output_type": "stream", "name": "stdout", "text": [text]}
        return {"cells": [{"cell_type": "code", "outputs": [output]}]}

    assert wording(saying("loss  0.5 ")) == wording(saying("loss 1.2e-07"))
    assert wording(saying("loss 0.5")) != wording(saying("accuracy 0.5"))


@pytest.mark.notebooks
@pytest.mark.parametrize("framework", ["torch"], indirect=True)
@notebooks
def test_it_runs_and_says_the_same(
    path: Path, framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):  # not the developer's
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads on a busy core take ten times as long
    working = tmp_path / "working"
    working.mkdir()
    notebook = nbformat.read(path, as_version=4)
    stored = copy.deepcopy(notebook)
    nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(working)}},
    ).execute()
    assert flaws(notebook) == []
    assert wording(notebook) == wording(stored)
