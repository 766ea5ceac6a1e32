"""Canonical weights: initial values that never move, files that are checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import zoo
from zoo import randomness, weights
from zoo.errors import DataError
from zoo.layers import BatchNorm, Conv2d, Dense, Flatten, ReLU
from zoo.model import Model
from zoo.recipe import SGD, Recipe

RECIPE = Recipe(SGD(0.1), batch_size=10, epochs=1)

# Initial weights of seed 0. They must never change: runs of different versions are compared by them.
GOLDEN = {
    "convnet": "0ed77fbd4bdc7cbddcbcfa4df881bde9cadd3393915990eef48ff4be9a405d90",
    "convnet-small": "822889b7c452b23c304076266986586deef2f09a296405ba7fc6720556f472cb",
    "convnet-deep": "24df641d10ef8d89bc5304fa19d358cfbca7d2ae233fc20f64db5a82e9cb3132",
    "cnn-padded": "99633f50a8866a857e1ebd842fbc8027ec288f55aa657376b755630788eb459a",
    "lenet-dropout": "179d5c771703c3a3fb93ff449fc2e0c187d5254e81d0a8667635eff926ba663a",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_initial_weights_never_move(name: str) -> None:
    assert weights.digest(zoo.init_weights(zoo.get(name), 0)) == GOLDEN[name]


def test_random_bits_never_move() -> None:
    assert [hex(x) for x in randomness.raw_bits(0, "order/1", 2)] == [
        "0xd21d7aecedb72086",
        "0x3d135e49353e730b",
    ]
    assert randomness.permutation(7, "split", 6).tolist() == [3, 4, 0, 5, 1, 2]


def test_initial_weights_are_kaiming_uniform() -> None:
    model = zoo.get("convnet")
    values = zoo.init_weights(model, 1)
    bound = 1 / np.sqrt(32 * 25)
    kernel, bias = values["conv2.weight"], values["conv2.bias"]
    assert kernel.shape == (64, 32, 5, 5)
    assert bias.shape == (64,)
    assert np.abs(kernel).max() <= bound
    assert np.abs(bias).max() <= bound
    # 51,200 draws of a uniform variable: mean within 5 standard errors, deviation within 1 %.
    assert abs(kernel.mean()) < 5 * bound / np.sqrt(3 * kernel.size)
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.01)


def test_an_inserted_layer_moves_no_other_weights() -> None:
    layers = (Conv2d(2, 3), Flatten(), Dense(10))
    before = zoo.init_weights(Model("m", (1, 6, 6), layers, RECIPE))
    after = zoo.init_weights(Model("m", (1, 6, 6), (layers[0], ReLU(), *layers[1:]), RECIPE))
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_seeds_and_tensors_differ() -> None:
    model = zoo.get("lenet-dropout")
    a, b = zoo.init_weights(model, 0), zoo.init_weights(model, 1)
    assert all(not np.array_equal(a[name], b[name]) for name in a)


def test_file_and_back(model: Model, tmp_path: Path) -> None:
    values = zoo.init_weights(model, 4)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights.to_bytes(values, {"b": 1, "a": 2}))
    back = weights.load(path, model)
    assert list(back) == list(values)
    for name, array in values.items():
        np.testing.assert_array_equal(back[name], array)
    digests = {hashlib.sha256(weights.to_bytes(values, {"b": 1, "a": 2})).digest() for _ in range(5)}
    assert len(digests) == 1


def _altered(change) -> dict[str, np.ndarray]:
    values = zoo.init_weights(zoo.get("cnn-padded"))
    change(values)
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv1.bias"), "conv1.bias is missing"),
        (lambda w: w.update(extra=np.zeros(1, np.float32)), "extra is not part of the model"),
        (lambda w: w.update({"conv1.bias": np.zeros(3, np.float32)}), r"conv1.bias is \(3,\), not \(16,\)"),
        (lambda w: w.update({"conv1.bias": np.zeros(16)}), "conv1.bias is float64, not float32"),
        (lambda w: w["dense1.weight"].fill(np.nan), "dense1.weight holds NaN or infinity"),
        (lambda w: w.clear(), "conv1.weight is missing, .* and 3 more"),
    ],
)
def test_weights_that_do_not_fit(change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        weights.check(zoo.get("cnn-padded"), _altered(change))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:100],
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: b"\xff" * 8 + raw[8:],
        lambda raw: b"not safetensors",
        lambda raw: raw.replace(b"F32", b"F33", 1),
    ],
)
def test_damaged_files(damage, tmp_path: Path) -> None:
    model = zoo.get("lenet-dropout")
    path = tmp_path / "w.safetensors"
    path.write_bytes(damage(weights.to_bytes(zoo.init_weights(model))))
    with pytest.raises(DataError, match="not a sound safetensors file"):
        weights.load(path, model)


def test_missing_file_and_weights_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such weights file"):
        weights.load(tmp_path / "w.safetensors", zoo.get("convnet"))
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.to_bytes(zoo.init_weights(zoo.get("convnet"))))
    with pytest.raises(DataError, match="weights do not fit cnn-padded"):
        weights.load(path, zoo.get("cnn-padded"))


def test_digest_sees_names_shapes_and_values() -> None:
    base = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.full((2, 3), np.float32(1e-30))},
    ]
    assert len({weights.digest(w) for w in (base, *others)}) == 4


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    raw = weights.to_bytes({"a": np.zeros(1, np.float32)}, {"model": "m"})
    size = int.from_bytes(raw[:8], "little")
    assert json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["zoo"]) == {"model": "m"}
    assert list(safetensors.numpy.load(raw)) == ["a"]


def test_a_variance_is_not_negative() -> None:
    model = Model("m", (2, 3, 3), (BatchNorm(), Flatten()), RECIPE, labels=())
    values = zoo.init_weights(model)
    assert values["batchnorm1.running_var"].tolist() == values["batchnorm1.weight"].tolist() == [1, 1]
    values["batchnorm1.running_var"][1] = -0.1
    with pytest.raises(DataError, match=r"batchnorm1\.running_var holds a negative variance"):
        weights.check(model, values)
