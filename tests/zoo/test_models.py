"""The five documented models, the registry, and the strict JSON form of a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import zoo
from zoo.errors import DataError, InvalidInput, InvalidSpec
from zoo.layers import Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU
from zoo.model import Model, check_name, iter_weights
from zoo.recipe import SGD, Adam, Recipe, RMSprop
from zoo.spec.form import from_dict

RECIPE = Recipe(SGD(0.1), batch_size=10, epochs=1)

DOCUMENTED = {
    "convnet": (308_106, "probabilities", "000_2276077b20cc8729.txt"),
    "convnet-small": (141_258, "probabilities", "001_64a49f98617145ee.txt"),
    "convnet-deep": (93_322, "logits", "002_533e6508b7372ffa.txt"),
    "cnn-padded": (28_938, "logits", "003_20ba9f7bb7a1a41f.txt"),
    "lenet-dropout": (10_592, "logits", "004_8da422c66b13e386.txt"),
}
PATHS = {
    "convnet": "conv1 relu1 conv2 relu2 flatten1 dense1 softmax1",
    "convnet-small": "conv1 relu1 conv2 relu2 flatten1 dense1 softmax1",
    "convnet-deep": "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 flatten1 dense1 relu4 dropout1 dense2",
    "cnn-padded": "conv1 relu1 pool1 conv2 relu2 pool2 flatten1 dense1",
    "lenet-dropout": "normalize1 conv1 relu1 pool1 dropout1 conv2 relu2 pool2 flatten1 dense1 dense2",
}


def test_the_documented_five_in_their_order() -> None:
    assert zoo.names() == list(DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_figures(name: str) -> None:
    parameters, output, document = DOCUMENTED[name]
    model = zoo.get(name)
    assert (model.parameters, model.output, model.document) == (parameters, output, document)
    assert model.input_shape == (1, 28, 28)
    assert " ".join(node.path for node in model.walk()) == PATHS[name]
    assert model.notes


def test_documented_recipes() -> None:
    recipes = {name: zoo.get(name).recipe for name in zoo.names()}
    assert {name: r.optimizer for name, r in recipes.items()} == {
        "convnet": Adam(1e-4),
        "convnet-small": Adam(5e-4),
        "convnet-deep": Adam(1e-3, 0.9, 0.999, 1e-8),
        "cnn-padded": SGD(0.1),
        "lenet-dropout": Adam(1e-2),
    }
    assert [(r.batch_size, r.epochs, r.shuffle) for r in recipes.values()] == [
        (128, 1, True),
        (128, 5, True),
        (150, 5, True),
        (100, 10, False),
        (64, 3, True),
    ]
    assert [name for name, r in recipes.items() if r.drop_last] == ["lenet-dropout"]
    small = recipes["convnet-small"]
    assert small.split == (50_000, 10_000)
    assert small.validation_size(60_000) == 10_000
    assert small.validation_size(1500) == 250


def test_counts_are_those_of_the_weights(model: Model) -> None:
    weights = zoo.init_weights(model)
    trained = [name for name, weight in iter_weights(model) if weight.trained]
    assert model.parameters == sum(weights[name].size for name in trained)


def test_macs_of_a_layer_by_hand() -> None:
    model = zoo.get("cnn-padded")
    assert model.walk()[0].macs == 28 * 28 * 16 * 25
    assert model.walk()[-1].macs == 1568 * 10


def test_parameters_of_a_model() -> None:
    model = zoo.get("cnn-padded", out_1=8)
    assert model == zoo.get("cnn-padded:out_1=8")
    assert model.name == "cnn-padded"
    assert model.title == "cnn-padded:out_1=8"
    assert model.walk()[0].output_shape == (8, 28, 28)
    assert zoo.get("cnn-padded", out_1=16) == zoo.get("cnn-padded")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnn-paded", "unknown model 'cnn-paded'; did you mean 'cnn-padded'"),
        ("", "unknown model ''"),
        ("cnn-padded:out_3=4", "no parameter 'out_3'; did you mean 'out_"),
        ("cnn-padded:out_1=x", "'out_1=x' is not parameter=integer"),
        ("cnn-padded:out_1=0", "0 is out of range"),
        ("convnet:out_1=4", "convnet has no parameter 'out_1'; it takes none"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        zoo.get(name)


def test_spec_and_back(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(model.to_json())
    assert zoo.load_spec(path) == model


def test_spec_of_every_kind_and_back() -> None:
    from backends.testing.layer_table import ROWS, model_of

    for optimizer in (SGD(0.1, 0.9, True), Adam(0.1), RMSprop(0.1)):
        recipe = Recipe(optimizer, 7, 2, False, True, (5, 1))
        for _, layers, shape, _ in ROWS:
            model = model_of(layers, shape, recipe)
            assert from_dict(json.loads(model.to_json())) == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown field 'colour'.*did you mean|unknown field 'colour'.*known"),
        ({"spec_version": 2}, "spec_version 2 is newer than 1"),
        ({"spec_version": True}, "spec_version is True"),
        ({"name": "../x"}, "is not a usable name"),
        ({"name": 7}, "expected a line of text, not 7"),
        ({"layers": {}}, "expected a list"),
        ({"layers": []}, "at least one layer"),
        (
            {"layers": [{"type": "Conv3d"}]},
            r"unknown layer 'Conv3d' \(spec.layers\[0\]\); did you mean 'Conv2d'",
        ),
        ({"layers": [{"type": "Dense"}]}, "Dense needs units"),
        ({"layers": [{"type": "Dense", "units": 10, "unit": 1}]}, "unknown field 'unit'.*'units'"),
        (
            {"layers": [{"type": "Flatten"}, {"type": "Dense", "units": "10"}]},
            r"'10' is not an integer.*layers\[1\]",
        ),
        ({"layers": [{"type": "Dense", "units": 10}]}, "takes a vector.*shapes up to here: input 1x28x28"),
        (
            {"layers": [{"type": "Flatten"}, {"type": "Dense", "units": 9}]},
            r"gives \(9,\), but there are 10 labels",
        ),
        (
            {"layers": [{"type": "Flatten"}, {"type": "Dense", "units": 10**9}]},
            "parameters and 1,000,000,000 activations",
        ),
        ({"layers": [{"type": "ReLU"}] * 10_001}, "10,001 layers"),
        (
            {"layers": [{"type": "ReLU", "name": "a"}, {"type": "ReLU", "name": "a"}]},
            "two layers are called 'a'",
        ),
        ({"layers": [{"type": "ReLU", "name": "logits"}]}, "reserved"),
        ({"input_shape": [1, 28]}, "is not .channels, height, width."),
        ({"input_shape": [1, 28, True]}, "is not .channels, height, width."),
        ({"recipe": None}, "expected an object, not None"),
        ({"labels": ["a", 1]}, r"labels\[1\]"),
        ({"notes": ["a\u202eb"]}, "expected a line of text"),
        ({"arguments": {"out_1": "8"}}, "is '8', not an integer"),
        ({"arguments": {"name": 1}}, "'name' is no parameter"),
        ({"arguments": {"x\n\x1b[31m": 1}}, "is no parameter"),
        ({"layers": [{"type": []}]}, "unknown layer"),
        ({"layers": [{"type": "Dropout", "rate": 10**400}]}, "the integer is not a finite number"),
    ],
)
def test_wrong_specs(change: dict, message: str) -> None:
    data = {**zoo.get("cnn-padded").to_dict(), **change}
    with pytest.raises(InvalidSpec) as caught:
        from_dict(data)
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "0 is out of range"),
        ({"epochs": -1}, "-1 is out of range"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"split": [1, 2, 3]}, "is not .training, validation."),
        ({"shuffle": 1}, "1 is not true or false"),
        ({"optimizer": {"type": "Adamax", "learning_rate": 1}}, "unknown optimizer 'Adamax'"),
        ({"optimizer": {"type": "Adam"}}, "Adam needs learning_rate"),
        ({"optimizer": {"type": {}}}, "unknown optimizer"),
        ({"optimizer": {"type": "SGD", "learning_rate": 10**400}}, "the integer is not a finite number"),
        ({"optimizer": {"type": "Adam", "learning_rate": -1}}, "-1.0 is not in 0 <= learning_rate"),
        ({"optimizer": {"type": "Adam", "learning_rate": 1, "beta1": 1}}, "beta1 < 1"),
        ({"optimizer": {"type": "SGD", "learning_rate": 1, "nesterov": True}}, "nesterov needs a momentum"),
    ],
)
def test_wrong_recipes(change: dict, message: str) -> None:
    data = zoo.get("cnn-padded").to_dict()
    data["recipe"] |= change
    with pytest.raises(InvalidSpec, match=message):
        from_dict(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"name": 1,\n "x" 2}', "line 2, column 6"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b'{"name": "a", "name": "b"}', "the field 'name' stands twice"),
        (b'{"name": NaN}', "NaN is not a number"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * 1_000_001, "larger than 1,000,000 bytes"),
        (b'{"n": ' + b"9" * 5000 + b"}", "digits"),
        (b"[]", r"expected an object, not \[\]"),
        (b"{}", "'name' is missing"),
    ],
)
def test_wrong_spec_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_bytes(content)
    with pytest.raises(InvalidSpec, match=message):
        zoo.load_spec(path)


def test_spec_paths_that_are_no_files(tmp_path: Path) -> None:
    import os

    with pytest.raises(DataError, match="No such file"):
        zoo.load_spec(tmp_path / "missing.json")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InvalidSpec, match="not a regular file"):
            zoo.load_spec(path)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/etc/x", "a\0b", "CON", "nul.txt", "a" * 101, "a\nb", "x\u202e", "-a", "a."],
)
def test_hostile_names(name: str) -> None:
    with pytest.raises(InvalidSpec, match="not a usable name"):
        check_name(name, "name")


def test_a_layer_name_holds_no_dot() -> None:
    with pytest.raises(InvalidSpec, match=r"'conv1\.padding' holds a dot"):
        Model("dots", (1, 8, 8), (ReLU(name="conv1.padding"), Flatten()), RECIPE, labels=())


def test_the_trace_of_a_long_model_is_short() -> None:
    with pytest.raises(InvalidSpec) as caught:
        Model("long", (1, 8, 8), (*[ReLU()] * 500, Conv2d(1, 9), Flatten()), RECIPE)
    assert "conv1, Conv2d" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_dropout_and_pool_change_no_parameters() -> None:
    layers = (Conv2d(4, 3), MaxPool2d(2), Dropout(0.2), Flatten(), Dense(10))
    assert Model("m", (1, 8, 8), layers, RECIPE).parameters == 4 * 9 + 4 + 36 * 10 + 10


def test_the_readme_example_is_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = next(block for block in text.split("```python\n")[1:] if "@register" in block).split("```")[0]
    documented: dict[str, int] = {}

    def register(name: str, *, parameters: int, group: str):
        documented[name] = parameters
        return lambda make: make

    monkeypatch.setattr("zoo.models.registry.register", register)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["mine"]().parameters == documented["mine"]
