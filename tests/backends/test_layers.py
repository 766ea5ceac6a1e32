"""Every layer in every lowering: declared shape, float64 semantics, float32 numerics."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import pytest

import backends
import zoo
from backends.process.client import Worker
from backends.reference import network, rules
from backends.testing.layer_table import ROWS, model_of, rows
from export import crosscheck
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import emit, to_layers_onnx, to_onnx
from zoo.errors import InvalidSpec, NotSupported, UnsupportedLayer
from zoo.layers import (
    LAYERS,
    AvgPool2d,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    Softmax,
)
from zoo.model import Model
from zoo.network import Backend
from zoo.randomness import uniform


def _images(model: Model, count: int = 3) -> np.ndarray:
    size = int(np.prod(model.input_shape))
    # Between -1 and 1: ReLU and max-pooling have something to decide.
    values = 2 * uniform(1, "tests/images", count * size) - 1
    return values.reshape(count, *model.input_shape).astype(np.float32)


@pytest.mark.parametrize(("name", "layers", "input_shape", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_declared_shape_is_the_expected_one(name, layers, input_shape, expected) -> None:
    assert layers[0].output_shape(input_shape) == expected, name


@pytest.mark.parametrize("model", rows())
def test_declared_shape_is_the_executed_shape(model: Model) -> None:
    activations = network.backend().build(model, zoo.init_weights(model)).activations(_images(model))
    assert {path: x.shape[1:] for path, x in activations.items()} == {
        node.path: node.output_shape for node in model.walk()
    }


@pytest.mark.parametrize("model", rows())
def test_onnx_agrees_with_the_reference(model: Model) -> None:
    weights = zoo.init_weights(model, seed=3)
    images = _images(model)
    expected = network.backend().build(model, weights).activations(images)
    inside = Session(serialize(to_layers_onnx(model, weights))).run(images)
    for got, path in zip(inside.values(), expected, strict=True):
        comparison = crosscheck.compare(got, expected[path])
        assert comparison.passed, f"{path}: {comparison}"
    output = Session(serialize(to_onnx(model, weights)), optimize=False).predict(images)
    assert crosscheck.compare(output, expected[model.walk()[-1].path]).passed


def test_a_window_of_nothing_but_padding(worker: Worker) -> None:
    """Of the table's rows this one ended TensorFlow's process, and with a single image only."""
    (model,) = (model_of(layers, shape) for name, layers, shape, _ in ROWS if "by its kernel" in name)
    weights = zoo.init_weights(model, seed=3)
    image = _images(model, 1)
    expected = network.backend().build(model, weights).predict(image)
    np.testing.assert_allclose(worker.build(model, weights).predict(image), expected, rtol=0, atol=1e-6)


def test_reference_convolution_against_a_written_out_sum() -> None:
    model = model_of((Conv2d(2, (2, 3), (2, 1), (1, 0, 0, 2)),), (2, 4, 5))
    weights = zoo.init_weights(model, seed=2)
    image = _images(model, 1)
    kernel, bias = weights["conv1.weight"].astype(float), weights["conv1.bias"].astype(float)
    padded = np.zeros((2, 5, 7))
    padded[:, 1:5, 0:5] = image[0]
    expected = np.zeros((2, 2, 5))
    for o, y, x in np.ndindex(expected.shape):
        expected[o, y, x] = bias[o]
        for c, i, j in np.ndindex(2, 2, 3):
            expected[o, y, x] += kernel[o, c, i, j] * padded[c, 2 * y + i, x + j]
    got = network.backend().build(model, weights).activations(image)["conv1"][0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)


class _Unknown(Layer):
    kind = "unknown"

    def output_shape(self, input_shape):
        return input_shape


def test_a_layer_without_a_rule_is_refused_before_anything_runs(framework: str) -> None:
    model = model_of((_Unknown(),), (1, 2, 2))
    for name in ("reference", framework):
        with pytest.raises(UnsupportedLayer, match=f"backend '{name}' has no rule for _Unknown"):
            backends.load(name).build(model, {})
    with pytest.raises(UnsupportedLayer, match="ONNX exporter has no rule for _Unknown"):
        to_onnx(model, {})


def test_no_lowering_has_a_gap(backend: Backend) -> None:
    lowering = type(backend).__module__.removesuffix(".backend") + ".lowering"
    lower = importlib.import_module(lowering).lower
    for table in (lower, rules.apply, emit):
        assert {layer for layer in LAYERS.values() if layer not in table.registry} == set()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2d(0, 3), r"0 is out of range \(Conv2d.filters\)"),
        (lambda: Conv2d(True, 3), "True is not an integer"),
        (lambda: Conv2d("8", 3), "'8' is not an integer"),
        (lambda: Conv2d(8, 3.5), "3.5 is not an integer"),
        (lambda: Conv2d(8, (3, 3, 3)), "neither an integer nor"),
        (lambda: Conv2d(8, 3, stride=0), r"Conv2d.stride"),
        (lambda: Conv2d(8, 3, padding=-1), r"Conv2d.padding"),
        (lambda: Conv2d(8, 3, padding=(1, 2)), "top, left, bottom, right"),
        (lambda: Conv2d(8, 3, bias=1), "1 is not true or false"),
        (lambda: MaxPool2d(0), r"MaxPool2d.size"),
        (lambda: AvgPool2d(2, 0), r"AvgPool2d.stride"),
        (lambda: Dropout(1.0), "1.0 is not in 0 <= rate < 1"),
        (lambda: Dropout(float("nan")), "nan is not a finite number"),
        (lambda: Dense(2**31), "out of range"),
        (lambda: Normalize((), ()), "one number per channel"),
        (lambda: Normalize((0.5,), (1.0, 2.0)), "1 means and 2 scales"),
        (lambda: Normalize((1e60,), (1.0,)), "beyond float32"),
        (lambda: LeakyReLU(-0.1), "-0.1 is negative"),
        (lambda: Conv2d(2, 9).output_shape((1, 8, 9)), "a window of 9 does not fit into the height 8"),
        (lambda: Dense(3).output_shape((1, 2, 2)), "put a Flatten before it"),
        (lambda: Softmax().output_shape((1, 2, 2)), "takes a vector"),
        (lambda: Flatten().output_shape((4,)), "takes an image"),
        (lambda: Normalize((0.5,), (2.0,)).output_shape((3, 2, 2)), "1 means for 3 channels"),
    ],
)
def test_impossible_layers_are_refused(make, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        make()


def test_normalize_is_rounded_to_float32_once() -> None:
    layer = Normalize((0.1307,), (1 / 0.3081,))
    assert layer.mean == (float(np.float32(0.1307)),)
    assert layer.scale == (float(np.float32(1 / 0.3081)),)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(Conv2d(4, 1, groups=2), (4, 3, 3)), (LocalResponseNorm(3), (3, 1, 4))],
    ids=["groups", "one row"],
)
def test_what_tf2onnx_would_break_is_refused(layer: Layer, shape: tuple, backend: Backend, tmp_path) -> None:
    """Keras says which layer it is; torch exports the same model."""
    model = model_of((layer,), shape)
    network = backend.build(model, zoo.init_weights(model))
    if backend.name == "keras":
        with pytest.raises(NotSupported, match=f"tf2onnx .*{model.walk()[0].path}"):
            network.export_native(tmp_path / "native.onnx")
    else:
        network.export_native(tmp_path / "native.onnx")
        onnx.checker.check_model(str(tmp_path / "native.onnx"), full_check=True)
