"""`zoo show M --code`: every program is run on its own and gives what its backend gives, bit for bit."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import backends
import zoo
from backends import programs
from backends.process.client import Worker, environment
from backends.reference import network, rules
from backends.testing.layer_table import RECIPE, rows
from zoo import cli, machine
from zoo.errors import InvalidInput, UnsupportedLayer
from zoo.layers import LAYERS, Conv2d, Dense, Flatten, Layer, MaxPool2d, Normalize, ReLU, ReLU6, Softmax
from zoo.model import Model, iter_weights
from zoo.randomness import uniform
from zoo.weights import to_bytes

ALLOWED = {"torch": {"torch", "numpy"}, "keras": {"keras", "numpy"}, "numpy": {"numpy"}}
BACKENDS = {"torch": "torch", "keras": "keras", "numpy": "reference"}

# Names that mean something to Python or to a framework's class, alike ones, and text that looks like code.
HOSTILE = Model(
    "x-1.y",
    (1, 9, 9),
    (
        Normalize((0.5,), (2.0,), name="Net"),
        Conv2d(2, 2, name="class"),
        ReLU(name="np"),
        MaxPool2d(2, 1, name="train"),
        Conv2d(2, 2, padding=(0, 1, 0, 0), name="my-conv-1"),
        Conv2d(2, 1, name="my_conv-1"),
        Conv2d(3, 1, name="my_conv_1"),
        Flatten(name="None"),
        Dense(3, name="load_weights"),
        Softmax(name="forward"),
    ),
    RECIPE,
    labels=('"""\nraise SystemExit("injected")\n"""', "\\", "'{x}' \u202e é"),
    document='"""\nimport os\n"""\\',
    notes=('"""\nimport os\n"""',),
)
ROWS = [(str(row.id), row.values[0]) for row in rows()]
MODELS: dict[str, Model] = {
    **{name: zoo.get(name) for name in zoo.names()},
    **{name: zoo.get(name, size=32, classes=10) for name in ("squeezenet1.1", "resnet18", "mobilenet-v2")},
    **{f"row: {name}": model for name, model in ROWS},
    "hostile": HOSTILE,
    "many": Model("m", (1, 2, 2), (*(ReLU() for _ in range(9)), ReLU6(), Flatten()), RECIPE, ()),
    "many labels": Model("m", (1, 6, 6), (Flatten(),), RECIPE, tuple(f"label {i}" for i in range(36))),
}

# Runs the program of each folder as `python net.py ...` would, all in one process: a framework loads once.
DRIVER = """
import contextlib, os, runpy, sys

for folder in sys.argv[1:]:
    os.chdir(folder)
    sys.argv = ["net.py", "weights.safetensors", "images.npy", "outputs.npy"]
    with open("printed.txt", "w", encoding="utf-8", newline="") as file, contextlib.redirect_stdout(file):
        runpy.run_path("net.py", run_name="__main__")
    if "tensorflow" in sys.modules:  # a program may have changed it for its own process
        sys.modules["tensorflow"].config.optimizer.set_experimental_options({"remapping": True})
assert not {"zoo", "backends", "export"} & set(sys.modules)
"""


def _images(name: str, model: Model) -> np.ndarray:
    """Seeded pixels in [0, 1]; more images than one chunk where that takes little time."""
    count = {"lenet-dropout": 620, "convnet": 60}.get(name, 7)
    values = uniform(1, "tests/images", count * int(np.prod(model.input_shape)))
    return values.reshape(count, *model.input_shape).astype(np.float32)


def _twin(model: Model) -> Model:
    """The same network under plain names, as every backend takes it: torch knows no layer `train`."""
    layers = tuple(dataclasses.replace(layer, name=None) for layer in model.layers)
    labels = tuple(str(i) for i in range(len(model.labels)))
    return dataclasses.replace(model, layers=layers, labels=labels, document="", notes=())


def _renamed(weights: Mapping[str, np.ndarray], model: Model) -> dict[str, np.ndarray]:
    return {name: array for (name, _), array in zip(iter_weights(model), weights.values(), strict=True)}


def _differing(language: str, worker: Worker, folder: Path, change: tuple[str, str] = ("", "")) -> list[str]:
    """The models whose program does not give the backend's outputs, or prints the wrong classes.

    change: a text of the programs and what replaces it.
    """
    expected = {}
    for number, (name, model) in enumerate(MODELS.items()):
        images, weights = _images(name, model), zoo.init_weights(_twin(model), seed=3)
        expected[name] = worker.build(_twin(model), weights).predict(images)
        place = folder / str(number)
        place.mkdir()
        (place / "net.py").write_text(programs.program(model, language).replace(*change), encoding="utf-8")
        (place / "weights.safetensors").write_bytes(to_bytes(_renamed(weights, model)))
        np.save(place / "images.npy", images)
    (folder / "keras.json").write_text('{"floatx": "float16", "image_data_format": "channels_first"}')
    subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, *(str(folder / str(number)) for number in range(len(MODELS)))],
        env={**environment(worker.backend, machine.threads(), str(folder)), "PYTHONPATH": ""},
        check=True,
    )
    wrong = []
    for number, (name, model) in enumerate(MODELS.items()):
        outputs = np.load(folder / str(number) / "outputs.npy")
        printed = (folder / str(number) / "printed.txt").read_bytes().decode()
        labels = [model.labels[i] for i in outputs.argmax(axis=1)] if model.labels else [outputs.shape]
        same = (
            outputs.dtype == expected[name].dtype
            and outputs.shape == expected[name].shape
            and np.ascontiguousarray(outputs).tobytes() == np.ascontiguousarray(expected[name]).tobytes()
        )
        if not same or printed != "".join(f"{label}\n" for label in labels):
            wrong.append(name)
    return wrong


def test_every_program_gives_what_its_backend_gives(worker: Worker, tmp_path: Path) -> None:
    assert _differing(worker.backend, worker, tmp_path) == []


def test_every_numpy_program_gives_what_the_reference_gives(tmp_path: Path) -> None:
    with Worker("reference") as worker:
        assert _differing("numpy", worker, tmp_path) == []


def test_a_program_that_computes_something_else_is_seen(tmp_path: Path) -> None:
    with Worker("reference") as worker:
        wrong = _differing("numpy", worker, tmp_path, ("np.maximum(x, 0)", "np.maximum(x, 1e-9)"))
    assert "convnet" in wrong
    assert "row: flatten" not in wrong


def test_every_language_has_a_backend() -> None:
    assert list(programs.LANGUAGES) == list(BACKENDS) == list(ALLOWED)
    assert set(BACKENDS.values()) == set(backends.own_names())


def test_no_padding_copies_nothing() -> None:
    """A copy has another memory layout, and BLAS may sum what lies otherwise in another order."""
    names: dict[str, object] = {}
    exec(programs.program(zoo.get("cnn-padded"), "numpy").replace("__main__", ""), names)
    x = np.ones((2, 3, 4, 4)).swapaxes(0, 1)
    pad = names["pad"]
    assert pad(x, (0, 0, 0, 0), 0) is x  # type: ignore[operator]
    assert pad(x, (1, 0, 0, 0), 7)[0, 0, 0].tolist() == [7] * 4  # type: ignore[operator]


@pytest.mark.parametrize("language", programs.LANGUAGES)
def test_rules_are_complete_and_stand_in_the_order_of_the_layers(language: str) -> None:
    found = dict(importlib.import_module(programs.LANGUAGES[language]).emit.registry)
    del found[object]
    assert list(found) == list(LAYERS.values())
    named = {layer: rule.__name__ for layer, rule in rules.apply.registry.items() if layer is not object}
    assert {layer: rule.__name__ for layer, rule in found.items()} == named


class _Unknown(Layer):
    kind = "unknown"

    def output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize("language", programs.LANGUAGES)
def test_a_layer_without_a_rule_is_refused(language: str) -> None:
    model = Model("m", (1, 2, 2), (_Unknown(),), RECIPE, ())
    with pytest.raises(UnsupportedLayer, match=f"program for '{language}' has no rule for _Unknown"):
        programs.program(model, language)


@pytest.mark.parametrize("language", programs.LANGUAGES)
@pytest.mark.parametrize("name", MODELS)
def test_a_program_imports_what_it_uses_and_nothing_else(name: str, language: str) -> None:
    model = MODELS[name]
    text = programs.program(model, language)
    tree = ast.parse(text)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: str(node.module) for alias in node.names}
    modules = {module.partition(".")[0] for module in imported.values()}
    assert modules - {"math", "tensorflow"} == {"sys", "safetensors"} | ALLOWED[language]
    used = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert set(imported) <= used
    defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert set(defined) - {"main"} <= used
    assert {"load_weights", "predict", "main"} <= set(defined)
    docstring = ast.get_docstring(tree, clean=False)
    assert docstring.startswith(f"The network {model.title} as a ")
    assert f"Document: {model.document}\n" in docstring or not model.document
    labels = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    assert [ast.literal_eval(value) for value in labels] == ([list(model.labels)] if model.labels else [])


@pytest.mark.parametrize("language", programs.LANGUAGES)
def test_a_line_per_layer(language: str, model: Model) -> None:
    """Each layer of the zoo's own models is one statement that bears its path."""
    lines = programs.program(model, language).splitlines()
    for node in model.walk():
        mark = {"torch": f"self.{node.path} = ", "keras": f'name="{node.path}")', "numpy": f"{node.path} = "}
        assert sum(mark[language] in line for line in lines) == 1, node.path


def test_no_name_can_become_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the rules for names did not hold, names stay strings or harmless identifiers."""
    monkeypatch.setattr("zoo.model.check_name", lambda name, where: name)
    names = ['x"); import os; ("', "a\nimport os", "'''", '"""', "é\u202e", "\\"]
    layers = tuple(Dense(2, name=name) for name in names)
    for language in programs.LANGUAGES:
        plain = Model("m", (1, 1, 2), (Flatten(), *(Dense(2) for _ in names)), RECIPE, ("0", "1"))
        hostile = Model('"""\nimport os', (1, 1, 2), (Flatten(), *layers), RECIPE, ("0", "1"))
        before, after = (_statements(programs.program(model, language)) for model in (plain, hostile))
        renaming = (
            {ast.Assign: 5, ast.For: 1} if language == "torch" else {}
        )  # from the file's names to attributes
        assert after - before == Counter(renaming)
        assert after.total() - before.total() == sum(renaming.values())


def _statements(text: str) -> Counter[type]:
    return Counter(type(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt))


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_programs_are_clean_and_formatted(tmp_path: Path) -> None:
    for language in programs.LANGUAGES:
        for name, model in MODELS.items():
            path = tmp_path / f"{language}-{name}.py"
            path.write_text(programs.program(model, language), encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--isolated", "--select=E,F,W,I,B,UP,SIM,C4", tmp_path], check=True)
    for path in tmp_path.glob("*-hostile.py"):
        path.unlink()  # ruff would choose other quotes for such labels
    subprocess.run([*ruff, "format", "--isolated", "--check", "--quiet", tmp_path], check=True)


def test_the_option_code(tmp_path: Path, images: np.ndarray) -> None:
    """A program written by the command line runs in a folder of its own, isolated from everything."""
    model = zoo.get("lenet-dropout")
    text = programs.program(model, "numpy")
    command = ["show", "lenet-dropout", "--code", "numpy"]
    assert CliRunner().invoke(cli.cli, command).output == text
    data = json.loads(CliRunner().invoke(cli.cli, [*command, "--json"]).output)
    assert data == {"name": "lenet-dropout", "language": "numpy", "code": text}
    path = tmp_path / "net.py"
    written = CliRunner().invoke(cli.cli, [*command, "-o", str(path)])
    assert written.output.startswith(f"wrote {path}\n")
    assert "python" in written.output
    assert path.read_text() == text
    weights = zoo.init_weights(model)
    (tmp_path / "w.safetensors").write_bytes(to_bytes(weights))
    np.save(tmp_path / "images.npy", images)
    python = [sys.executable, "-I", "net.py"]
    done = subprocess.run(
        [*python, "w.safetensors", "images.npy"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    classes = network.backend().build(model, weights).predict(images).argmax(axis=1)
    assert done.stdout.split() == [str(number) for number in classes]
    assert {p.name for p in tmp_path.iterdir()} == {"net.py", "w.safetensors", "images.npy"}
    usage = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert usage.returncode == 1
    assert "python net.py weights.safetensors images.npy [outputs.npy]" in usage.stderr


def test_an_unknown_language() -> None:
    result = CliRunner().invoke(cli.cli, ["show", "convnet", "--code", "pytorch"])
    assert isinstance(result.exception, InvalidInput)
    assert "unknown language 'pytorch' (--code); did you mean 'torch'?" in str(result.exception)
