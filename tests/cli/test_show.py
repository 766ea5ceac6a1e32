"""`zoo show`: what follows from a model's layers, and its picture."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import zoo
from backends.reference import network
from backends.testing.layer_table import RECIPE, rows
from zoo import cli
from zoo.errors import InvalidInput
from zoo.layers import Conv2d, Dense, Flatten, MaxPool2d, ReLU
from zoo.model import Model
from zoo.spec import diagram
from zoo.spec.receptive_fields import receptive_fields


def show(*arguments: object) -> Result:
    return CliRunner().invoke(cli.cli, ["show", *map(str, arguments)])


MODELS = [pytest.param(zoo.get(name), id=name) for name in (*zoo.names(), "lenet-5")] + rows()


@pytest.mark.parametrize("model", MODELS)
def test_the_formula_gives_the_parameters(model: Model) -> None:
    for node in model.walk():
        terms = [re.findall(r"\d+", term) for term in node.formula.split(" + ")] if node.formula else []
        assert sum(prod(map(int, term)) for term in terms) == node.parameters, node.path


def test_formulas_as_a_book_prints_them() -> None:
    formulas = {node.path: node.formula for node in zoo.get("cnn-padded").walk()}
    assert formulas["conv1"] == "16 x (1 x 5 x 5) + 16"
    assert formulas["dense1"] == "10 x 1568 + 10"
    assert formulas["relu1"] == ""
    model = Model("m", (2, 4, 4), (Conv2d(3, 2, bias=False), Flatten(), Dense(3, bias=False)), RECIPE, ())
    assert [node.formula for node in model.walk()] == ["3 x (2 x 2 x 2)", "", "3 x 27"]


def _measured(model: Model) -> dict[str, tuple[int, int]]:
    """The largest (height, width) that one output of each layer really reacts to.

    All weights positive, all pixels of a row or a column raised in turn: whatever looks at one of them
    changes with it.
    """
    _, height, width = model.input_shape
    weights = {name: np.abs(array) + 0.01 for name, array in zoo.init_weights(model).items()}
    for name, array in weights.items():
        if array.ndim > 1:  # sums of about the size of an input, in the middle of a tanh
            weights[name] = array / array.reshape(len(array), -1).sum(axis=1).reshape(
                -1, *(1,) * (array.ndim - 1)
            )
    images = np.full((1 + height + width, *model.input_shape), 0.5, np.float32)
    for row in range(height):
        images[1 + row, :, row] += 0.25
    for column in range(width):
        images[1 + height + column, :, :, column] += 0.25
    result = {}
    for path, x in network.backend().build(model, weights).activations(images).items():
        rounding = 1e-12 * np.abs(x).max()  # equal rows of a matrix product may differ by that
        changed = (np.abs(x[1:] - x[0]) > rounding).reshape(height + width, -1)
        result[path] = (_span(changed[:height]), _span(changed[height:]))
    return result


def _span(changed: np.ndarray) -> int:
    """The longest distance, both ends included, between two pixels that change the same output."""
    some = changed[:, changed.any(axis=0)]
    first, last = some.argmax(axis=0), len(some) - 1 - some[::-1].argmax(axis=0)
    return int((last - first).max()) + 1


@pytest.mark.parametrize("model", MODELS)
def test_receptive_fields_are_what_outputs_react_to(model: Model) -> None:
    assert receptive_fields(model) == _measured(model)


def test_receptive_fields_of_a_chain() -> None:
    layers = (Conv2d(2, 5, padding=2), ReLU(), MaxPool2d(2), Conv2d(2, (3, 1), (2, 1)), Flatten(), Dense(4))
    fields = receptive_fields(Model("m", (1, 20, 30), layers, RECIPE, ()))
    assert list(fields.values()) == [(5, 5), (5, 5), (6, 6), (10, 6), (10, 6), (20, 30)]


def test_the_last_rows_that_a_pool_drops_are_never_seen() -> None:
    assert receptive_fields(zoo.get("convnet-deep"))["dense2"] == (26, 26)


def test_the_table() -> None:
    result = show("cnn-padded")
    assert result.exit_code == 0
    conv2 = next(line for line in result.output.splitlines() if line.startswith("conv2"))
    for text in ("32 x 14 x 14", "12,832", "= 32 x (16 x 5 x 5) + 32", "44.3 %", "2,508,800", "14 x 14"):
        assert text in conv2
    total = next(line for line in result.output.splitlines() if line.startswith("total"))
    assert total.split() == ["total", "28,938", "100", "%", "2,838,080"]
    for text in ("document: 003_20ba9f7bb7a1a41f.txt", "recipe: SGD(", "note: The document does not shuffle"):
        assert text in result.output
    for command in (
        "build cnn-padded --data digits",
        "plot cnn-padded kernels",
        "show cnn-padded --code torch",
    ):
        assert f"  zoo {command}\n" in result.output


def test_every_model_can_be_shown(model: Model) -> None:
    result = show(model.name)
    assert result.exit_code == 0
    assert all(f"\n{node.path} " in result.output for node in model.walk())


def test_shown_as_json(model: Model) -> None:
    data = json.loads(show(model.name, "--json").output)
    assert set(data) >= {"name", "parameters", "macs", "output", "layers", "recipe", "document", "notes"}
    seen = receptive_fields(model)
    for layer, node in zip(data["layers"], model.walk(), strict=True):
        assert layer["path"] == node.path
        assert layer["input_shape"] == list(node.input_shape)
        assert layer["formula"] == node.formula
        assert layer["receptive_field"] == list(seen[node.path])
    assert sum(layer["share"] for layer in data["layers"]) == pytest.approx(1)


def test_a_model_without_parameters_has_no_shares(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(Model("still", (1, 4, 4), (ReLU(),), RECIPE, ()).to_json())
    assert show(path).exit_code == 0
    assert json.loads(show(path, "--json").output)["layers"][0]["share"] == 0


def _read_mermaid(text: str) -> tuple[list[list[str]], list[tuple[int, int]], dict[int, str]]:
    """(labels as lines, edges, colours by node) of a flowchart; fails on anything else."""
    labels, edges, classes, colours = [], [], {}, {}
    first, *lines = text.splitlines()
    assert first == "flowchart TD"
    for line in lines:
        if node := re.fullmatch(r'    n(\d+)\["((?:[\w .-]|#\d+;|<br/>)+)"\](?::::(\w+))?', line, re.ASCII):
            assert int(node[1]) == len(labels)
            parts = node[2].split("<br/>")
            labels.append([re.sub(r"#(\d+);", lambda code: chr(int(code[1])), part) for part in parts])
            if node[3]:
                classes[int(node[1])] = node[3]
        elif edge := re.fullmatch(r"    n(\d+) --> n(\d+)", line):
            edges.append((int(edge[1]), int(edge[2])))
        else:
            style = re.fullmatch(r"    classDef (\w+) fill:(#[0-9A-F]{6}),stroke:#000,color:#000", line)
            assert style, line
            colours[style[1]] = style[2]
    assert set(classes.values()) == set(colours)
    return labels, edges, {number: colours[kind] for number, kind in classes.items()}


def _read_dot(text: str) -> tuple[list[list[str]], list[tuple[int, int]], dict[int, str]]:
    """The same of a directed graph in DOT."""
    string = r'"((?:[^"\\\n]|\\["\\n])*)"'
    labels, edges, colours = [], [], {}
    first, defaults, *lines, last = text.splitlines()
    assert re.fullmatch(rf"digraph {string} {{", first)
    assert defaults == '    node [shape=box, style="rounded,filled", fillcolor=white, fontname=Helvetica]'
    assert last == "}"
    for line in lines:
        if node := re.fullmatch(rf'    n(\d+) \[label={string}(?:, fillcolor="(#[0-9A-F]{{6}})")?\]', line):
            assert int(node[1]) == len(labels)
            parts = re.sub(r"\\(.)", lambda c: "\n" if c[1] == "n" else c[1], node[2]).split("\n")
            labels.append(parts)
            if node[3]:
                colours[int(node[1])] = node[3]
        else:
            edge = re.fullmatch(r"    n(\d+) -> n(\d+)", line)
            assert edge, line
            edges.append((int(edge[1]), int(edge[2])))
    return labels, edges, colours


READERS = {"mermaid": _read_mermaid, "dot": _read_dot}


def _expected(model: Model) -> list[list[str]]:
    shapes = [
        " x ".join(map(str, shape)) for shape in (model.input_shape, *(n.output_shape for n in model.walk()))
    ]
    layers = [[node.path, type(node.layer).__name__] for node in model.walk()]
    return [[*names, shape] for names, shape in zip([["image"], *layers], shapes, strict=True)]


def test_every_language_is_read() -> None:
    assert list(READERS) == list(diagram.LANGUAGES)


@pytest.mark.parametrize("language", READERS)
@pytest.mark.parametrize("model", MODELS)
def test_a_picture_holds_every_layer_in_order(model: Model, language: str) -> None:
    labels, edges, colours = READERS[language](diagram.draw(model, language))
    assert labels == _expected(model)
    numbers = {"": 0, **{node.path: number for number, node in enumerate(model.walk(), start=1)}}
    assert edges == [(numbers[path], numbers[node.path]) for node in model.walk() for path in node.inputs]
    kinds = {number: node.layer.kind for number, node in enumerate(model.walk(), start=1)}
    assert colours == {n: diagram.COLOURS[kind] for n, kind in kinds.items() if kind in diagram.COLOURS}


@pytest.mark.parametrize("language", READERS)
def test_no_name_can_become_syntax(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.model.check_name", lambda name, where: name)
    names = ['a"]; b["', "a\\", "<script>", "#quot;", "x`y`", "é|{}()", "end"]
    layers = tuple(ReLU(name=name) for name in names)
    model = Model('x" { y }', (1, 2, 2), layers, RECIPE, ())
    labels, edges, _ = READERS[language](diagram.draw(model, language))
    assert [label[0] for label in labels[1:]] == names
    assert len(edges) == len(names)


def test_the_readers_are_strict() -> None:
    model = zoo.get("cnn-padded")
    for language, wrong in (("mermaid", '    n0["a"b"]\n'), ("dot", '    n9 [label="a"b"]\n}\n')):
        text = diagram.draw(model, language)
        with pytest.raises(AssertionError):
            READERS[language](text.removesuffix("}\n") + wrong)


def test_the_two_colours_can_be_read() -> None:
    """Black text on them: contrast above 7 to 1, as WCAG 2 asks for at its highest level."""
    for colour in diagram.COLOURS.values():
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        assert (linear @ [0.2126, 0.7152, 0.0722] + 0.05) / 0.05 > 7


def test_the_option_diagram(tmp_path: Path) -> None:
    model = zoo.get("convnet")
    assert show("convnet", "--diagram").output == diagram.mermaid(model)
    assert show("--diagram", "dot", "convnet").output == diagram.dot(model)
    data = json.loads(show("convnet", "--diagram", "--json").output)
    assert data == {"name": "convnet", "language": "mermaid", "code": diagram.mermaid(model)}
    path = tmp_path / "net.dot"
    assert show("convnet", "--diagram", "dot", "--out", path).output == f"wrote {path}\n"
    assert path.read_text() == diagram.dot(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--diagram", "dott"], "unknown language 'dott'.*did you mean 'dot'"),
        (["--diagram", "dot", "--code", "torch"], "--diagram and --code together"),
        (["--out", "x"], "--out needs --diagram or --code"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str) -> None:
    result = show("convnet", *arguments)
    assert isinstance(result.exception, InvalidInput)
    assert re.search(message, str(result.exception))
