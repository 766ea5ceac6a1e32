"""Spec files: TOML and JSON, blocks, "same", lines in errors, the published schema, `zoo spec`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import zoo
from backends.reference.network import ReferenceNetwork
from backends.testing.layer_table import rows
from export.selftest.random_models import Seeded, random_model
from zoo import cli
from zoo.errors import InvalidInput, InvalidSpec, ZooError
from zoo.layers import LAYERS, AvgPool2d, Conv2d, MaxPool2d
from zoo.model import Model
from zoo.randomness import uniform
from zoo.spec import file, schema
from zoo.spec.form import from_dict

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "docs" / "spec.schema.json"
README = ROOT / "README.md"
MODELS = [
    *(pytest.param(zoo.get(name), id=name) for name in zoo.names("all")),
    *rows(),
    *(pytest.param(random_model(Seeded(seed)), id=f"seed {seed}") for seed in range(60)),
]
BLOCKS = """\
name = "blocks"
input_shape = [1, 28, 28]
layers = [
    { type = "Normalize", mean = [0.5], scale = [2.0] },
    { block = "stage", with = { filters = 8 } },
    { block = "stage", times = 2, with = { filters = 16 } },
    { type = "Flatten" },
    { type = "Dense", units = 10 },
]

[blocks]
stage = [
    { type = "Conv2d", filters = "$filters", kernel = 3, padding = "same" },
    { block = "end" },  # a comment with [ and {
]
end = [
    { type = "ReLU" },
    { type = "MaxPool2d", size = 2 },
]

[recipe]
optimizer = { type = "Adam", learning_rate = 1e-3 }
batch_size = 64
epochs = 3
"""
BRANCHES = """\
name = "branches"
input_shape = [1, 8, 8]
labels = ["a", "b"]
layers = [
    { block = "step", with = { filters = 4 } },
    { type = "Concat", branches = [
        [],
        [{ type = "MaxPool2d", size = 3, stride = 1, padding = "same" }, { type = "Conv2d", filters = 2, kernel = 1 }],
    ] },
    { type = "Scale", name = "attention", branch = [
        { type = "GlobalAvgPool2d" },
        { type = "Conv2d", filters = 6, kernel = 1 },
        { type = "Sigmoid" },
    ] },
    { type = "Flatten" },
    { type = "Dense", units = 2 },
]

[blocks]
step = [
    { type = "Residual", body = [
        { block = "conv", with = { filters = "$filters" } },
        { type = "ReLU" },
        { block = "conv", with = { filters = "$filters" } },
    ], shortcut = [{ type = "Conv2d", filters = "$filters", kernel = 1, bias = false }] },
]
conv = [{ type = "Conv2d", filters = "$filters", kernel = 3, padding = "same" }]

[recipe]
optimizer = { type = "SGD", learning_rate = 0.1 }
batch_size = 4
epochs = 1
"""
TABLES = """\
name = "tables"
input_shape = [1, 6, 6]
labels = ["a", "b"]

[[layers]]
type = "Flatten"

[[layers]]
type = "Dense"
units = 2

[recipe]
batch_size = 4
epochs = 1
[recipe.optimizer]
type = "SGD"
learning_rate = 0.1
"""


def parse(text: str, language: str = "toml") -> Model:
    return file.parse_spec(text.encode(), f"net.{language}", language)


def as_json(text: str) -> str:
    """The same file in JSON, laid out over lines."""
    import tomllib

    return json.dumps(tomllib.loads(text), indent=1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("language", file.LANGUAGES)
def test_a_model_survives_its_file(model: Model, language: str, tmp_path: Path) -> None:
    path = tmp_path / f"spec.{language}"
    path.write_text(file.write(model, language), encoding="utf-8")
    again = zoo.load_spec(path)
    assert again == model
    assert again.to_json() == model.to_json()


def test_blocks_are_written_out() -> None:
    model = parse(BLOCKS)
    assert parse(as_json(BLOCKS), "json") == model
    assert [node.path for node in model.walk()] == [
        "normalize1",
        *(f"{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "relu", "pool")),
        "flatten1",
        "dense1",
    ]
    assert [layer.filters for layer in model.layers if isinstance(layer, Conv2d)] == [8, 16, 16]
    assert "blocks" not in model.to_dict()
    assert parse(file.write(model, "toml")) == model


@pytest.mark.parametrize("size", [(28, 28), (27, 5), (8, 7), (3, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_same_is_what_tensorflow_does(size: tuple[int, int], stride: int, kernel: int) -> None:
    """ceil(size / stride) outputs, the sides as its documentation states them."""
    for kind, window in (("Conv2d", "kernel"), ("MaxPool2d", "size"), ("AvgPool2d", "size")):
        filters = {"filters": 2} if kind == "Conv2d" else {}
        layer = {"type": kind, window: kernel, "stride": stride, "padding": "same", **filters}
        (made, _) = _model([layer, {"type": "Flatten"}], (1, *size)).layers
        assert isinstance(made, (Conv2d, MaxPool2d, AvgPool2d))
        assert made.output_shape((1, *size))[1:] == tuple(-(-length // stride) for length in size)
        for axis, length in enumerate(size):
            rest = length % stride or stride
            total = max(kernel - rest, 0)
            assert (made.padding[axis], made.padding[axis + 2]) == (total // 2, total - total // 2)


def _model(layers: list[dict[str, Any]], shape: tuple[int, ...]) -> Model:
    recipe = {"optimizer": {"type": "SGD", "learning_rate": 0.1}, "batch_size": 1, "epochs": 1}
    return from_dict(
        {"name": "m", "input_shape": list(shape), "labels": [], "layers": layers, "recipe": recipe}
    )


def test_blocks_that_multiply_are_refused() -> None:
    """Each block gives the next one its parameter ten times over: 10^12 values from a dozen lines."""
    ten = ", ".join(['"$m"'] * 10)
    chain = [f'b{i} = [{{ block = "b{i + 1}", with = {{ m = [{ten}] }} }}]' for i in range(12)]
    last = 'b12 = [{ type = "Normalize", mean = "$m", scale = 1 }]'
    text = BLOCKS.replace("layers = [", 'layers = [\n    { block = "b0", with = { m = 1 } },')
    with pytest.raises(InvalidSpec, match="more than 1,000,000 values"):
        parse(text.replace("[blocks]", "\n".join(["[blocks]", *chain, last])))
    thousand = ", ".join(["0.5"] * 1000)
    text = BLOCKS.replace(
        '"stage", with = { filters = 8 }', f'"wide", times = 5000, with = {{ m = [{thousand}] }}'
    )
    wide = 'wide = [{ type = "Normalize", mean = "$m", scale = "$m" }]'
    with pytest.raises(InvalidSpec, match="more than 1,000,000 values"):
        parse(text.replace("[blocks]", f"[blocks]\n{wide}"))


def test_same_counts_dilated_kernels() -> None:
    layer = {"type": "Conv2d", "filters": 1, "kernel": 3, "dilation": 2, "padding": "same"}
    assert _model([layer], (1, 9, 9)).output_shape == (1, 9, 9)


CHANGES: list[tuple[str, str, str, str, int]] = [  # name, text, replaced by, message, line
    ("unknown field", "kernel = 3", "kernal = 3", "unknown field 'kernal'.*did you mean 'kernel'", 13),
    ("unknown layer", '"ReLU"', '"Relu"', "unknown layer 'Relu'.*did you mean 'ReLU'", 17),
    ("text for a number", "units = 10", 'units = "10"', "'10' is not an integer", 8),
    ("fraction for an integer", "units = 10", "units = 10.5", "10.5 is not an integer", 8),
    ("true for an integer", "units = 10", "units = true", "True is not an integer", 8),
    ("list for an integer", "units = 10", "units = [10]", r"\[10\] is not an integer", 8),
    ("out of range", "units = 10", "units = 0", "0 is out of range", 8),
    ("kernel beyond its input", 'kernel = 3, padding = "same"', "kernel = 30", "does not fit.*28x28", 13),
    ("no flatten", '    { type = "Flatten" },\n', "", "takes a vector.*put a Flatten before it; shapes", 7),
    ("bomb", "units = 10", "units = 1000000000", "parameters and", 8),
    ("unknown optimizer", '"Adam"', '"Adamm"', "unknown optimizer.*did you mean 'Adam'", 22),
    ("unknown recipe field", "epochs", "epoch", "unknown field 'epoch'.*did you mean 'epochs'", 24),
    ("hostile name", '"blocks"', '"../x"', "not a usable name", 1),
    ("newer version", 'name = "blocks"', 'name = "blocks"\nspec_version = 9', "newer than 1", 2),
    ("unknown block", 'block = "end"', 'block = "and"', "unknown block 'and'.*did you mean 'end'", 14),
    ("block in itself", 'block = "end"', 'block = "stage"', "'stage' is part of itself", 14),
    ("nothing given", "filters = 8 ", "filter = 8 ", "no parameter 'filter'", 5),
    ("parameter missing", ", with = { filters = 8 }", "", r"nothing is given for '\$filters'", 13),
    ("times", "times = 2", "times = 0", "times is 0", 6),
    ("too many layers", "times = 2", "times = 100000000", "more than 10,000 layers", 3),
    ("unused block", '    { block = "end" },', "", "the block 'end' is used nowhere", 16),
    ("field of a use", "times = 2", "time = 2", "unknown field 'time'.*did you mean 'times'", 6),
]


@pytest.mark.parametrize(("name", "old", "new", "message", "line"), CHANGES, ids=[c[0] for c in CHANGES])
def test_an_error_names_field_and_line(name: str, old: str, new: str, message: str, line: int) -> None:
    assert BLOCKS.count(old) == 1
    text = BLOCKS.replace(old, new)
    with pytest.raises(InvalidSpec, match=message) as caught:
        parse(text)
    where = caught.value.where
    if name in ("hostile name", "newer version"):
        assert "name" in where or where == "net.toml" or ", line" in where
    else:
        assert where.startswith("net.toml.")
        assert f", line {line}" in where, where
    with pytest.raises(InvalidSpec, match=message) as in_json:
        parse(as_json(text), "json")
    if ", line" in where:
        at = int(in_json.value.where.rpartition(", line ")[2].rstrip(")"))
        assert 1 <= at <= as_json(text).count("\n") + 1


def test_branches_of_a_file() -> None:
    model = parse(BRANCHES)
    assert parse(as_json(BRANCHES), "json") == model
    assert {node.path: node.inputs for node in model.walk()} == {
        "residual1.body.conv1": ("",),
        "residual1.body.relu1": ("residual1.body.conv1",),
        "residual1.body.conv2": ("residual1.body.relu1",),
        "residual1.shortcut.conv1": ("",),
        "residual1": ("residual1.body.conv2", "residual1.shortcut.conv1"),
        "concat1.branch2.pool1": ("residual1",),
        "concat1.branch2.conv1": ("concat1.branch2.pool1",),
        "concat1": ("residual1", "concat1.branch2.conv1"),
        "attention.branch.pool1": ("concat1",),
        "attention.branch.conv1": ("attention.branch.pool1",),
        "attention.branch.sigmoid1": ("attention.branch.conv1",),
        "attention": ("concat1", "attention.branch.sigmoid1"),
        "flatten1": ("attention",),
        "dense1": ("flatten1",),
    }
    shapes = {node.path: node.output_shape for node in model.walk()}
    assert (shapes["residual1"], shapes["concat1"], shapes["attention"]) == ((4, 8, 8), (6, 8, 8), (6, 8, 8))
    assert parse(file.write(model, "toml")) == model


IN_BRANCHES: list[tuple[str, str, str, str, int]] = [  # name, text, replaced by, message, line
    ("unknown field", "kernel = 1 }],", "kernal = 1 }],", "unknown field 'kernal'.*did you mean", 8),
    ("unknown layer", '"Sigmoid"', '"Sigmoyd"', "unknown layer 'Sigmoyd'.*did you mean 'Sigmoid'", 13),
    ("a layer for a list", "branch = [\n", "branch = 3, branche = [\n", "unknown field 'branche'", 10),
    (
        "no list",
        'shortcut = [{ type = "Conv2d", filters = "$filters", kernel = 1, bias = false }]',
        "shortcut = 3",
        "'3' is no list of layers",
        25,
    ),
    ("no layers", "branches = [\n        [],", "branches = [\n        3,", "no list of layers", 6),
    ("one branch", "        [],\n", "", "at least two branches", 6),
    ("two inputs", "        [],\n", "        [],\n        [],\n", "two branches are empty", 6),
    ("shapes of a residual", "kernel = 1, bias", "kernel = 2, bias", "the body gives.*the shortcut", 21),
    (
        "shapes of a concat",
        ', padding = "same" }, {',
        " }, {",
        r"the branches give \(4, 8, 8\), \(2, 6, 6\)",
        6,
    ),
    ("shape of a scale", "filters = 6", "filters = 5", r"the branch gives \(5, 1, 1\)", 10),
    ("kernel in a branch", "filters = 6, kernel = 1", "filters = 6, kernel = 2", "does not fit", 12),
    (
        "unknown block",
        'block = "conv", with = { filters = "$filters" } },\n        { type',
        'block = "con" },\n        { type',
        "did you mean 'conv'",
        22,
    ),
    (
        "a block in its branch",
        'conv = [{ type = "Conv2d", filters = "$filters", kernel = 3, padding = "same" }]',
        'conv = [{ type = "Residual", body = [{ block = "conv", with = { filters = "$filters" } }] }]',
        "part of itself",
        27,
    ),
    ("a name with a dot", '"attention"', '"at.tention"', "holds a dot", 10),
    ("a reserved name", '"attention"', '"logits"', "is reserved", 10),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "message", "line"), IN_BRANCHES, ids=[c[0] for c in IN_BRANCHES]
)
def test_an_error_in_a_branch_names_its_line(name: str, old: str, new: str, message: str, line: int) -> None:
    assert old in BRANCHES
    text = BRANCHES.replace(old, new, 1)
    with pytest.raises(InvalidSpec, match=message) as caught:
        parse(text)
    assert caught.value.where.startswith("net.toml.")
    assert caught.value.where.endswith(f", line {line}"), caught.value.where
    with pytest.raises(InvalidSpec, match=message) as in_json:
        parse(as_json(text), "json")
    assert ", line " in in_json.value.where


def test_branches_too_deep_or_too_many() -> None:
    """Nested by hand, by blocks that hold each other twice, and deeper than Python goes."""
    layer: dict[str, Any] = {"type": "ReLU"}
    for _ in range(21):
        layer = {"type": "Residual", "body": [layer]}
    with pytest.raises(InvalidSpec, match="more than 20 deep"):
        _model([layer], (1, 2, 2))
    assert len(_model(layer["body"], (1, 2, 2)).walk()) == 21
    chain = [
        f'b{i} = [{{ type = "Residual", body = [{{ block = "b{i + 1}", times = 9 }}] }}]' for i in range(9)
    ]
    text = BRANCHES.replace("layers = [", 'layers = [\n    { block = "b0" },', 1)
    with pytest.raises(InvalidSpec, match="more than 10,000 layers"):
        parse(text.replace("[blocks]", "\n".join(["[blocks]", *chain, 'b9 = [{ type = "ReLU" }]'])))
    deep = '{"type": "Residual", "body": [' * 5000 + "]}" * 5000
    with pytest.raises(InvalidSpec, match="nested too deeply"):
        parse(f'{{"name": "m", "input_shape": [1, 1, 1], "recipe": {{}}, "layers": [{deep}]}}', "json")


def test_lines_of_tables_in_branches() -> None:
    tables = """
[[layers]]
type = "Residual"
[[layers.body]]
type = "ReLU"
[[layers.body]]
type = "Conv2d"
filters = 1
kernel = 1
[[layers]]
type = "Residual"
[[layers.body]]
type = "Tanh"
[[layers.shortcut]]
type = "Tanhh"
"""
    text = TABLES.replace("\n[[layers]]", f"{tables}\n[[layers]]", 1)
    assert len(parse(text.replace("Tanhh", "Tanh")).walk()) == 8
    with pytest.raises(InvalidSpec, match="unknown layer 'Tanhh'") as caught:
        parse(text)
    assert caught.value.where == "net.toml.layers[1].shortcut[0], line 17"


@pytest.mark.parametrize(
    ("old", "new", "line"), [("units = 2", "unit = 2", 10), ('"SGD"', '"SDG"', 16), ("0.1", "-1.0", 17)]
)
def test_lines_of_tables(old: str, new: str, line: int) -> None:
    assert parse(TABLES).parameters == 74
    with pytest.raises(InvalidSpec) as caught:
        parse(TABLES.replace(old, new))
    assert abs(int(caught.value.where.rpartition(", line ")[2]) - line) <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'name' is missing.*zoo spec init"),
        (b" \n\t", "'name' is missing"),
        (b"name = ", "not TOML: Invalid value at end of document"),
        (b'name == "a"', "not TOML: .*line 1, column 7"),
        (b'name = "a"\nx = [1,\n', "not TOML: .*(line|end of document)"),
        (b"\xff\xfen\x00", "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbfname = 'a'", "not TOML: .*line 1, column 1"),
        (b"name = '\xe9'", "not UTF-8 at byte 8"),
        (b"name = 'a\x00'", "not TOML"),
        (b"name = 'a'\nname = 'b'", "not TOML: Cannot overwrite a value at"),
        (b"layers = " + b"[" * 100_000, "nested too deeply|not TOML"),
        (b"n = " + b"9" * 5000, "digits|not TOML"),
        (b".".join([b"a"] * 20_000) + b" = 1", "a key of more than 50 parts"),
        (b"[" + b"a . " * 100_000 + b"a]", "a key of more than 50 parts"),
        (b"#" * 1_000_001, "larger than 1,000,000 bytes"),
        (TABLES.replace('"tables"', "nan").encode(), "expected a line of text"),
        (TABLES.replace("0.1", "inf").encode(), "not a finite number"),
        (TABLES.replace("units = 2", "units = 1979-05-27").encode(), "is not an integer"),
        (b"layers = []\nname = 'a'\ninput_shape = [1, 1, 1]\nrecipe = 1", "recipe"),
    ],
)
def test_wrong_toml(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidSpec, match=message) as caught:
        zoo.load_spec(path)
    assert len(str(caught.value)) < 700


def test_the_spec_of_the_readme_is_whole() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    model = parse(text)
    assert (model.name, model.output_shape, model.recipe.epochs) == ("mynet", (10,), 5)
    kinds = " ".join(re.findall(r"`(\w+)`", README.read_text(encoding="utf-8"))).split()
    assert set(LAYERS) <= set(kinds), "the README's table of layers"


def test_the_published_schema_is_that_of_the_classes() -> None:
    assert json.loads(SCHEMA.read_text()) == schema.schema()
    assert set(LAYERS) <= set(schema.schema()["$defs"])


def test_the_schema_takes_what_the_zoo_takes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema.schema())
    jsonschema.Draft202012Validator.check_schema(schema.schema())
    for parameter in MODELS:
        validator.validate(json.loads(parameter.values[0].to_json()))
    for text in (BLOCKS, TABLES, BRANCHES):
        validator.validate(json.loads(as_json(text)))
    for old, new in (("units = 2", "unit = 2"), ('"Dense"', '"Denze"'), ("[1, 6, 6]", "[1, 6]")):
        assert not validator.is_valid(json.loads(as_json(TABLES.replace(old, new)))), new


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.cli, list(arguments), catch_exceptions=True)


def test_validate(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(BLOCKS)
    bad.write_text(TABLES.replace("units = 2", "unit = 2"))
    result = run("spec", "validate", str(good))
    assert result.exit_code == 0
    assert "conv3" in result.stdout
    assert "good.toml: valid; blocks, " in result.stdout
    failed = run("spec", "validate", str(bad))
    assert isinstance(failed.exception, InvalidSpec)
    assert "did you mean 'units'" in str(failed.exception)
    both = run("spec", "validate", str(bad), str(good), "--json")
    assert both.exit_code == 2
    first, second = json.loads(both.stdout)
    assert (first["valid"], second["valid"]) == (False, True)
    assert first["error"]["code"] == 2
    assert second["parameters"] == parse(BLOCKS).parameters
    assert isinstance(run("spec", "validate", str(tmp_path / "none.toml")).exception, ZooError)


def test_a_name_of_the_zoos_own_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text(BLOCKS.replace('"blocks"', '"convnet"'))
    assert "built-in" in str(run("spec", "validate", str(path)).exception)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_init_and_show(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine.{suffix}"
    assert run("spec", "init", "-o", str(path)).exit_code == 0
    model = zoo.load_spec(path)
    assert (model.name, model.layers) == ("mine", zoo.get("cnn-padded").layers)
    again = run("spec", "init", "-o", str(path))
    assert isinstance(again.exception, InvalidInput)
    shown = run("spec", "show", str(path))
    assert shown.exit_code == 0
    assert parse(shown.stdout, suffix) == model
    assert "dilation" in shown.stdout
    other = run("spec", "show", "convnet-deep", "--format", "json")
    assert parse(other.stdout, "json") == zoo.get("convnet-deep")
    assert isinstance(run("spec", "show", str(path), "--format", "yaml").exception, InvalidInput)


def test_the_printed_schema() -> None:
    assert json.loads(run("spec", "schema").stdout) == schema.schema()


def test_a_file_is_a_model_wherever_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text(BLOCKS)
    assert "conv3" in run("show", str(path)).stdout
    model = zoo.load_spec(path)
    image = uniform(0, "tests/specs", 28 * 28).reshape(1, 1, 28, 28)
    outputs = ReferenceNetwork(model, zoo.init_weights(model)).predict(image)
    assert outputs.shape == (1, 10)
    assert np.isfinite(outputs).all()
