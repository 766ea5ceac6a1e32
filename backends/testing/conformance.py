"""What every backend is held to, as one class of pytest tests: layers, models, training, state.

The judge is the reference in float64, for training the written formulas (backends.testing.formulas): no
other framework is needed. Where float64 is computed, semantics are proved in it, to limits that no
approximation passes; float32 is held to its own rounding.
"""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.numpy

import backends
import zoo
from backends.process.client import Worker
from backends.reference.network import backend as reference
from backends.testing import formulas
from backends.testing.layer_table import ROWS, Row, model_of, rows
from zoo import data
from zoo.errors import InvalidInput, NotSupported, UnsupportedLayer
from zoo.layers import BatchNorm, Conv2d, Dense, Dropout, Flatten, Layer, ReLU, Shape, Softmax, SpatialDropout
from zoo.model import Model, iter_weights
from zoo.network import Backend, ComparableNetwork, Network
from zoo.randomness import permutation, uniform
from zoo.recipe import SGD, Adam, Optimizer, Recipe, RMSprop
from zoo.training import loop
from zoo.training.checkpoints import Checkpoint
from zoo.training.loop import Keeper, Trained

OPTIMIZERS = [
    pytest.param(SGD(0.1), id="sgd"),
    pytest.param(SGD(0.03, momentum=0.9), id="momentum"),
    pytest.param(SGD(0.03, momentum=0.9, nesterov=True), id="nesterov"),
    pytest.param(Adam(1e-3), id="adam"),
    pytest.param(RMSprop(1e-3), id="rmsprop"),
]
MODELS = [*zoo.names(), *zoo.names("modern"), "lenet-5"]  # what reads digits
# Largest differences allowed, relative to the largest value of a tensor. Layers of float32: 16 units.
LAYER = {"float64": 1e-12, "float32": 1e-6}
MODEL = {"float64": 1e-12, "float32": 3e-5}
# Of a slope, relative to the largest gradient: a central difference has seven to eight digits.
SLOPE = {"float64": 1e-6, "float32": 1e-3}
# (steps, losses, weights): absolute differences from the formulas after so many steps.
PATH = {"float64": (210, 1e-10, 1e-11), "float32": (10, 1e-5, 2e-5)}


def _images(shape: Shape, count: int = 3) -> np.ndarray:
    """Values between -1 and 1: a ReLU and the largest of a window have something to decide."""
    values = 2 * uniform(1, "tests/images", count * prod(shape)) - 1
    return values.reshape(count, *shape).astype(np.float32)


def _close(got: np.ndarray, expected: np.ndarray, relative: float, dtype: str, what: str) -> None:
    assert (got.dtype.name, got.shape) == (dtype, expected.shape), what  # nothing is broadcast
    np.testing.assert_allclose(got, expected, rtol=0, atol=relative * np.abs(expected).max(), err_msg=what)


@functools.cache
def _split() -> data.Split:
    return data.split(data.digits(), 50, seed=0, limit=200).as_float()


def _nothing(*_: object) -> None:
    """An on_step that keeps nothing."""


class _Unknown(Layer):
    kind = "unknown"

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


class BackendTests:
    """Subclass it with the name of a backend, as pytest collects it: class TestMine(BackendTests).

    backend: the name, that of its entry point. float64: False for a framework without float64; float32 is
    then all that is looked at, which proves less.
    """

    backend: ClassVar[str]
    float64: ClassVar[bool] = True

    @pytest.fixture
    def loaded(self) -> Backend:
        """The backend in this process."""
        return backends.load(self.backend)

    @pytest.fixture
    def split(self) -> data.Split:
        """200 images to train on, in six steps of 32 and one of 8; 50 validate."""
        return _split()

    @property
    def dtype(self) -> str:
        """The most exact dtype that there is."""
        return "float64" if self.float64 else "float32"

    def _need(self, dtype: str) -> None:
        if dtype == "float64" and not self.float64:
            pytest.skip("the backend computes in float32 alone")

    # What it is.

    def test_it_says_what_it_is(self, loaded: Backend) -> None:
        assert backends.canonical(loaded.name) == loaded.name
        assert backends.trains(loaded.name)
        versions = loaded.versions()
        assert versions
        assert all(isinstance(number, str) and number for number in versions.values()), versions

    def test_it_answers_in_a_worker(self, loaded: Backend) -> None:
        """Where the product runs it: in a process of its own, which finds it by its entry point."""
        model = zoo.get("lenet-dropout")
        weights, images = zoo.init_weights(model), _images(model.input_shape)
        with Worker(loaded.name) as worker:
            assert worker.versions() == loaded.versions()
            there = worker.build(model, weights)
            here = loaded.build(model, weights)
            np.testing.assert_allclose(there.predict(images), here.predict(images), rtol=0, atol=1e-5)
            assert there.weights().keys() == weights.keys()

    def test_a_layer_without_a_rule_is_refused(self, loaded: Backend) -> None:
        """When the network is built, and not when it first computes."""
        with pytest.raises(UnsupportedLayer, match="_Unknown"):
            loaded.build(model_of((_Unknown(),), (1, 2, 2)), {})

    def test_an_unknown_dtype_is_refused(self, loaded: Backend) -> None:
        model = zoo.get("lenet-dropout")
        with pytest.raises(InvalidInput, match="float16"):
            loaded.build(model, zoo.init_weights(model), "float16")

    def test_nobodys_random_numbers_move(self, loaded: Backend, split: data.Split) -> None:
        model = zoo.get("lenet-dropout")
        before = np.random.get_state(legacy=False)["state"]
        network = loaded.build(model, zoo.init_weights(model))
        network.train_epoch(split.train_images, split.train_labels, np.arange(64), model.recipe, _nothing, 5)
        after = np.random.get_state(legacy=False)["state"]
        np.testing.assert_array_equal(after["key"], before["key"])
        assert after["pos"] == before["pos"]

    def test_an_export_is_sound_or_refused(self, loaded: Backend, tmp_path: Path) -> None:
        import onnx

        model = zoo.get("cnn-padded")
        network = loaded.build(model, zoo.init_weights(model))
        try:
            network.export_native(tmp_path / "native.onnx")
        except NotSupported:
            return
        onnx.checker.check_model(str(tmp_path / "native.onnx"), full_check=True)

    # Layers.

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("model", rows())
    def test_every_layer_agrees_with_the_reference(self, model: Model, dtype: str, loaded: Backend) -> None:
        self._need(dtype)
        weights, images = zoo.init_weights(model, seed=3), _images(model.input_shape)
        expected = reference().build(model, weights).activations(images)
        network = loaded.build(model, weights, dtype)
        got = network.activations(images)
        assert list(got) == list(expected), "every layer by its path, in the model's order"
        for path in expected:
            _close(got[path], expected[path], LAYER[dtype], dtype, path)
        # Not bit for bit: a compiler fuses more where nobody asks for what is in between.
        last = expected[model.walk()[-1].path]
        _close(network.predict(images), last, LAYER[dtype], dtype, "the output")

    @pytest.mark.parametrize("model", rows())
    def test_weights_come_back_bit_for_bit(self, model: Model, loaded: Backend) -> None:
        weights = zoo.init_weights(model, seed=5)
        back = loaded.build(model, weights).weights()
        assert list(back) == list(weights)
        for name, array in weights.items():
            np.testing.assert_array_equal(back[name], array, strict=True, err_msg=name)

    @pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
    def test_gradients_through_every_layer(self, row: Row, loaded: Backend) -> None:
        """Of the row's own weights, and of a convolution in front of it."""
        _, layers, shape, _ = row
        whole = model_of(layers, shape).layers
        after = () if isinstance(whole[-1], Softmax) else (Dense(4, name="after"),)
        model = model_of((Conv2d(shape[0], 1, name="before"), *whole, *after), shape)
        images = _images(shape, 9)
        self._check_slopes(model, loaded, images, np.arange(9) % 4)

    def _check_slopes(self, model: Model, loaded: Backend, images: np.ndarray, labels: np.ndarray) -> None:
        """A step of plain SGD at the rate 1 subtracts the gradient, which differences of the loss confirm."""
        count = len(labels)
        model = replace(model, recipe=Recipe(SGD(1.0), batch_size=count, epochs=1))
        weights = zoo.init_weights(model, seed=1)
        network = loaded.build(model, weights, self.dtype)
        dropped = formulas.masks(model, 7, 1, count)
        if dropped:
            _comparable(network).share_masks(count)
        network.train_epoch(images, labels, np.arange(count), model.recipe, _nothing, seed=7)
        after = network.weights()
        trained = [name for name, weight in iter_weights(model) if weight.trained]
        gradients = {name: weights[name].astype(np.float64) - after[name] for name in trained}
        largest = max(float(np.linalg.norm(g)) for g in gradients.values())
        assert largest > 1e-6, "something is learnt"
        for name, g in gradients.items():
            # Mostly the way it claims to be steepest, where a slope is large, and partly any way at all.
            anyway = 2 * uniform(2, f"tests/{name}", g.size).reshape(g.shape) - 1
            direction = anyway / np.linalg.norm(anyway) + 2 * g / (np.linalg.norm(g) or 1)
            direction /= np.linalg.norm(direction)
            expected = formulas.slope(model, weights, images, labels, dropped, name, direction)
            found = float((g * direction).sum())
            assert found == pytest.approx(expected, rel=0, abs=SLOPE[self.dtype] * largest), name

    # Models.

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_every_model_agrees_with_the_reference(self, name: str, dtype: str, loaded: Backend) -> None:
        self._need(dtype)
        model = zoo.get(name)
        weights, images = zoo.init_weights(model), data.to_float(data.digits().test_images[:6])
        expected = reference().build(model, weights).activations(images)
        network = loaded.build(model, weights, dtype)
        for path, x in network.activations(images).items():
            _close(x, expected[path], MODEL[dtype], dtype, path)
        outputs = network.predict(images)
        _close(outputs, expected[model.walk()[-1].path], MODEL[dtype], dtype, "the output")
        parts = np.concatenate([network.predict(images[start : start + 3]) for start in (0, 3)])
        _close(parts, outputs, MODEL[dtype], dtype, "a row does not depend on its neighbours")

    @pytest.mark.parametrize("name", MODELS)
    def test_gradients_of_every_model(self, name: str, loaded: Backend) -> None:
        digits = data.digits()
        images, labels = data.to_float(digits.train_images[:4]), digits.train_labels[:4]
        self._check_slopes(zoo.get(name), loaded, images, labels)

    # Training.

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_training_follows_the_written_formulas(
        self, optimizer: Optimizer, dtype: str, loaded: Backend, split: data.Split
    ) -> None:
        """Its losses, its accuracies and its weights, the last batch a smaller one."""
        self._need(dtype)
        model = formulas.two_layers(optimizer)
        steps, loss, weight = PATH[dtype]
        weights = zoo.init_weights(model)
        order = np.concatenate([permutation(0, f"tests/{i}", 200) for i in range(34)])[: 32 * steps - 5]
        done, expected = formulas.follow(weights, split.train_images, split.train_labels, order, model.recipe)
        network = loaded.build(model, weights, dtype)
        seen = _train(network, model.recipe, split, order)
        assert [step for step, _, _ in seen] == list(range(1, steps + 1))
        np.testing.assert_allclose([row[1] for row in seen], [row[1] for row in done], rtol=0, atol=loss)
        np.testing.assert_allclose([row[2] for row in seen], [row[2] for row in done], rtol=0, atol=1e-12)
        got = network.weights()
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=weight, err_msg=name)
            assert np.abs(array - weights[name]).max() > 50 * weight, "it has moved"

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_every_step_has_the_learning_rate_that_it_is_given(
        self, optimizer: Optimizer, loaded: Backend, split: data.Split
    ) -> None:
        """And afterwards the optimiser's own again."""
        model = formulas.two_layers(optimizer)
        weights, order = zoo.init_weights(model), np.arange(128)
        rates = optimizer.learning_rate * np.array([0.25, 1.0, 0.0, 0.125])
        own = np.full(4, optimizer.learning_rate)
        twice = np.concatenate([order, order])
        _, expected = formulas.follow(
            weights, split.train_images, split.train_labels, twice, model.recipe, np.concatenate([rates, own])
        )
        network = loaded.build(model, weights, self.dtype)
        _train(network, model.recipe, split, order, rates=rates)
        _train(network, model.recipe, split, order)
        for name, array in network.weights().items():
            atol = 1e-12 if self.float64 else 2e-5
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=atol, err_msg=name)

    def test_the_data_are_left_as_they_are(self, loaded: Backend, split: data.Split) -> None:
        model = zoo.get("cnn-padded")
        images, labels, order = split.train_images.copy(), split.train_labels.copy(), np.arange(200)
        network = loaded.build(model, zoo.init_weights(model))
        network.train_epoch(images, labels, order, model.recipe, _nothing)
        np.testing.assert_array_equal(images, split.train_images)
        np.testing.assert_array_equal(labels, split.train_labels)
        np.testing.assert_array_equal(order, np.arange(200))

    @pytest.mark.parametrize("shape", [(3, 5, 4), (6, 1, 1)], ids=["image", "vector"])
    def test_running_statistics_follow_the_formula(self, shape: Shape, loaded: Backend) -> None:
        """After one step: 1 - momentum of the start and momentum of the batch, its variance unbiased."""
        first = (Flatten(),) if shape[1:] == (1, 1) else ()
        layers = (*first, BatchNorm(momentum=0.25), *(() if first else (Flatten(),)), Dense(4))
        model = Model("norm", shape, layers, Recipe(SGD(0.0), batch_size=8, epochs=1), labels=tuple("abcd"))
        images = _images(shape, 8)
        network = loaded.build(model, zoo.init_weights(model), self.dtype)
        network.train_epoch(images, np.arange(8) % 4, np.arange(8), model.recipe, _nothing)
        weights = network.weights()
        by_channel = images.astype(np.float64).transpose(1, 0, 2, 3).reshape(shape[0], -1)
        rtol = 1e-12 if self.float64 else 1e-5
        mean, variance = 0.25 * by_channel.mean(axis=1), 0.75 + 0.25 * by_channel.var(axis=1, ddof=1)
        np.testing.assert_allclose(weights["batchnorm1.running_mean"], mean, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(weights["batchnorm1.running_var"], variance, rtol=rtol)

    @pytest.mark.parametrize("kind", [Dropout, SpatialDropout])
    def test_dropout_keeps_the_share_that_it_should(self, kind: Any, loaded: Backend) -> None:
        """Seen in the gradient of the layer behind it, for one image of ones."""
        shape, rate = (40, 8, 6), 0.3
        recipe = Recipe(SGD(1.0), batch_size=1, epochs=1)
        model = Model("drop", shape, (kind(rate), Flatten(), Dense(2)), recipe, labels=("a", "b"))
        weights = {name: np.zeros_like(array) for name, array in zoo.init_weights(model).items()}
        drawn = []
        for seed in (1, 2, 1):
            network = loaded.build(model, weights)
            network.train_epoch(
                np.ones((1, *shape), np.float32), np.zeros(1, np.int64), np.arange(1), recipe, _nothing, seed
            )
            drawn.append(2 * network.weights()["dense1.weight"][0].reshape(shape))  # p - 1 = -1/2
        first, second, again = drawn
        np.testing.assert_array_equal(again, first)
        values = np.unique(np.round(first, 5))
        np.testing.assert_allclose(values, [0, 1 / (1 - rate)], atol=1e-5)
        spatial = kind is SpatialDropout
        assert (first == first[:, :1, :1]).all() == spatial
        draws = first[:, 0, 0] if spatial else first.ravel()
        other = second[:, 0, 0] if spatial else second.ravel()
        kept, error = (draws > 0).mean(), np.sqrt(rate * (1 - rate) / draws.size)
        assert abs(kept - (1 - rate)) < 4 * error
        assert abs((draws != other).mean() - 2 * rate * (1 - rate)) < 4 * np.sqrt(0.25 / draws.size)

    def test_dropout_draws_anew_in_every_step_and_layer(self, loaded: Backend, split: data.Split) -> None:
        recipe = Recipe(SGD(0.0), batch_size=32, epochs=1)
        layers = (Dropout(0.5), Flatten(), Dropout(0.5), Dense(10))
        model = Model("drop", (1, 28, 28), layers, recipe)
        network = loaded.build(model, zoo.init_weights(model))
        same = np.tile(np.arange(32), 4)
        losses = [loss for _, loss, _ in _train(network, recipe, split, same, seed=1)]
        assert len(set(losses)) == 4
        # Two layers with one mask would keep half of the image, not a quarter.
        ones = Model("ones", (1, 40, 40), (*layers[:3], Dense(2)), Recipe(SGD(1.0), 1, 1), labels=("a", "b"))
        weights = {name: np.zeros_like(array) for name, array in zoo.init_weights(ones).items()}
        network = loaded.build(ones, weights)
        network.train_epoch(
            np.ones((1, 1, 40, 40), np.float32), np.zeros(1, np.int64), np.arange(1), ones.recipe, _nothing, 3
        )
        assert abs((network.weights()["dense1.weight"][0] != 0).mean() - 0.25) < 0.05

    def test_a_dropout_of_rate_0_trains_like_none(self, loaded: Backend, split: data.Split) -> None:
        recipe = Recipe(SGD(0.1), batch_size=32, epochs=1)
        losses = []
        for first in ((), (Dropout(0.0),)):
            model = Model("m", (1, 28, 28), (*first, Flatten(), Dense(10)), recipe)
            network = loaded.build(model, zoo.init_weights(model))
            losses.append(_train(network, recipe, split, np.arange(64)))
        assert losses[0] == losses[1]

    # What `zoo parity` asks for in addition (zoo.network.ComparableNetwork).

    def test_gradients_are_those_of_a_step(self, loaded: Backend, split: data.Split) -> None:
        """Shown without an update, in canonical form, with the masks of the first step."""
        recipe = Recipe(SGD(0.5), batch_size=32, epochs=1)
        layers = (Conv2d(4, 5, 2), BatchNorm(), ReLU(), Dropout(0.5), Flatten(), Dense(10))
        model = Model("shown", (1, 28, 28), layers, recipe)
        weights = zoo.init_weights(model)
        network = _comparable(loaded.build(model, weights, self.dtype))
        network.share_masks(32)
        images, labels = split.train_images[:32], split.train_labels[:32]
        loss, found = network.gradients(images, labels, seed=7)
        for name, array in network.weights().items():
            np.testing.assert_array_equal(array, weights[name], err_msg="nothing is updated")
        ((_, stepped, _),) = _train(network, recipe, split, np.arange(32), seed=7)
        atol = 1e-14 if self.float64 else 1e-6
        np.testing.assert_allclose(loss, stepped, rtol=0, atol=100 * atol)
        assert list(found) == [name for name, weight in iter_weights(model) if weight.trained]
        after = network.weights()
        for name, gradient in found.items():
            expected = weights[name] - 0.5 * gradient
            np.testing.assert_allclose(after[name], expected, rtol=0, atol=atol, err_msg=name)

    def test_shared_masks_are_the_zoos(self, loaded: Backend, split: data.Split) -> None:
        """Of each step of an epoch, the last of which has fewer images."""
        recipe = Recipe(SGD(0.0), batch_size=20, epochs=1)
        model = Model("masks", (1, 28, 28), (Dropout(0.25), Flatten(), Dense(10)), recipe)
        weights = zoo.init_weights(model)
        network = _comparable(loaded.build(model, weights, self.dtype))
        network.share_masks(20)
        losses = [loss for _, loss, _ in _train(network, recipe, split, np.arange(30), seed=3)]
        expected = []
        for step, chosen in ((1, slice(0, 20)), (2, slice(20, 30))):
            images, labels = split.train_images[chosen], split.train_labels[chosen]
            dropped = formulas.masks(model, 3, step, len(labels))
            expected.append(formulas.loss(model, weights, images, labels, dropped))
        np.testing.assert_allclose(losses, expected, rtol=1e-12 if self.float64 else 1e-5)

    # State.

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_a_training_goes_on_to_the_same_bits(
        self, optimizer: Optimizer, loaded: Backend, split: data.Split
    ) -> None:
        """From the middle of an epoch and from between two; with BatchNorm and dropout."""
        layers = (Conv2d(3, 5, 3), BatchNorm(), ReLU(), Dropout(0.5), Flatten(), Dense(10))
        recipe = Recipe(optimizer, batch_size=64, epochs=2, schedule=zoo.recipe.WarmupCosine())
        self._check_resumes(Model("stateful", (1, 28, 28), layers, recipe), loaded, split)

    @pytest.mark.parametrize("name", zoo.names())
    def test_every_documented_model_goes_on_to_the_same_bits(self, name: str, loaded: Backend) -> None:
        model = zoo.get(name)
        count, held_out = 3 * model.recipe.batch_size, 60 if model.recipe.split else 0
        split = data.split(data.digits(), held_out, seed=1, limit=count).as_float()
        split = replace(split, test_images=split.test_images[:20], test_labels=split.test_labels[:20])
        self._check_resumes(model, loaded, split)

    def _check_resumes(self, model: Model, loaded: Backend, split: data.Split) -> None:
        kept: list[Checkpoint] = []

        class Always(Keeper):
            def due(self) -> bool:
                return True

        def train(keeper: Keeper | None, start: Checkpoint | None) -> Trained:
            network = loaded.build(model, zoo.init_weights(model, 0 if start is None else 9))
            return loop.train(network, model.recipe, split, seed=3, epochs=2, keeper=keeper, start=start)

        whole = train(Always(lambda checkpoint: kept.append(copy.deepcopy(checkpoint))), None)
        _same(train(None, None), whole)  # keeping changes nothing
        places = {(checkpoint.epoch, checkpoint.step): checkpoint for checkpoint in kept}
        last = model.recipe.steps(len(split.train_labels))
        for place in ((1, 2), (1, last), (2, 0), (3, 0)):
            _same(train(None, _stored(places[place])), whole)


def _comparable(network: Network) -> ComparableNetwork:
    if not isinstance(network, ComparableNetwork):
        pytest.skip("its networks are no zoo.network.ComparableNetwork")
    return network


def _train(
    network: Network,
    recipe: Recipe,
    split: data.Split,
    order: np.ndarray,
    seed: int = 0,
    rates: np.ndarray | None = None,
) -> list[tuple[int, float, float]]:
    """One epoch; what on_step was called with."""
    seen: list[tuple[int, float, float]] = []
    network.train_epoch(
        split.train_images,
        split.train_labels,
        order,
        recipe,
        lambda *step: seen.append(step),
        seed,
        rates=rates,
    )
    return seen


def _stored(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that was written and read again: JSON, and tensors that safetensors can hold."""
    tensors = {name: np.asarray(array, order="C") for name, array in checkpoint.tensors.items()}
    tensors = safetensors.numpy.load(safetensors.numpy.save(tensors))
    return Checkpoint.from_dict(json.loads(json.dumps(checkpoint.to_dict())), tensors)


def _same(a: Trained, b: Trained) -> None:
    assert a.history == b.history
    assert a.epochs == b.epochs
    assert (a.best_epoch, a.accuracy, a.loss) == (b.best_epoch, b.accuracy, b.loss)
    for one, other in ((a.weights, b.weights), (a.best or {}, b.best or {})):
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], strict=True, err_msg=name)
