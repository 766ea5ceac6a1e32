"""Training: batch order, the written formulas, the same path in every framework."""

from __future__ import annotations

import dataclasses
from math import prod

import numpy as np
import pytest

import zoo
from backends.process.client import Worker
from backends.testing.conformance import OPTIMIZERS
from backends.testing.layer_table import ROWS, Row, model_of
from zoo import data
from zoo.errors import Diverged, InvalidInput, NotSupported
from zoo.layers import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    ReLU,
    Residual,
    Sigmoid,
    Softmax,
)
from zoo.model import Model, iter_weights
from zoo.network import Backend
from zoo.randomness import raw_bits
from zoo.recipe import SGD, Adam, Optimizer, Recipe
from zoo.training import loop, measures, order


def small_split(digits: data.Dataset, count: int = 200) -> data.Split:
    """Some digits, as floats."""
    return data.split(digits, 50, seed=0, limit=count).as_float()


def dense_model(optimizer: Optimizer, **recipe: object) -> Model:
    """One dense layer, whose gradient can be written by hand."""
    return Model(
        "dense", (1, 28, 28), (Flatten(), Dense(10)), Recipe(optimizer, batch_size=32, epochs=1, **recipe)
    )


def test_batch_order() -> None:
    recipe = Recipe(SGD(0.1), batch_size=8, epochs=1)
    first, second = (order.batch_order(recipe, 0, epoch, 30) for epoch in (1, 2))
    assert sorted(first) == list(range(30))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, order.batch_order(recipe, 0, 1, 30))
    assert not np.array_equal(first, order.batch_order(recipe, 1, 1, 30))
    dropped = order.batch_order(dataclasses.replace(recipe, drop_last=True), 0, 1, 30)
    np.testing.assert_array_equal(dropped, first[:24])
    plain = order.batch_order(dataclasses.replace(recipe, shuffle=False), 0, 2, 30)
    np.testing.assert_array_equal(plain, np.arange(30))


def test_cross_entropy_and_accuracy() -> None:
    outputs = np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, 0.0]])
    labels = np.array([2, 1])
    expected = np.mean([np.log(np.exp([1, 2, 3]).sum()) - 3, 1000.0])
    np.testing.assert_allclose(measures.cross_entropy(outputs, labels), expected, rtol=1e-15)
    assert measures.accuracy(outputs, labels) == 0.5


def test_softmax_is_applied_twice_where_the_model_ends_in_it(backend: Backend, digits: data.Dataset) -> None:
    recipe = Recipe(SGD(0.0), batch_size=20, epochs=1)
    model = Model("double", (1, 28, 28), (Flatten(), Dense(10), Softmax()), recipe)
    split = small_split(digits)
    network = backend.build(model, zoo.init_weights(model))
    losses: list[float] = []
    order = np.arange(20)
    network.train_epoch(
        split.train_images, split.train_labels, order, recipe, lambda _, loss, __: losses.append(loss)
    )
    probabilities = network.predict(split.train_images[:20])
    expected = measures.cross_entropy(probabilities, split.train_labels[:20])
    np.testing.assert_allclose(losses, [expected], rtol=1e-6)
    single = -np.log(probabilities[np.arange(20), split.train_labels[:20]]).mean()
    assert abs(single - expected) > 1e-3


def test_train_reports_what_happened(backend: Backend, digits: data.Dataset) -> None:
    layers = (Conv2d(4, 5, stride=2), ReLU(), MaxPool2d(2), Dropout(0.2), Flatten(), Dense(10))
    recipe = Recipe(Adam(1e-2), batch_size=32, epochs=3)
    model = Model("small", (1, 28, 28), layers, recipe)
    split = small_split(digits)
    network = backend.build(model, zoo.init_weights(model))
    seen: list[tuple[int, int]] = []
    trained = loop.train(
        network, recipe, split, seed=0, epochs=3, progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen == [(i, 21) for i in range(1, 22)]
    assert [row[:2] for row in trained.history] == [(e, s) for e in (1, 2, 3) for s in range(1, 8)]
    assert all(0 <= row[3] <= 1 for row in trained.history)
    assert [row[0] for row in trained.epochs] == [1, 2, 3]
    assert trained.epochs[-1][1] < trained.epochs[0][1]
    assert trained.accuracy["train"] == measures.accuracy(
        network.predict(split.train_images), split.train_labels
    )
    best = max(trained.epochs, key=lambda row: row[3])
    assert trained.best_epoch == best[0]
    assert trained.best is not None
    again = backend.build(model, trained.best)
    assert measures.accuracy(again.predict(split.validation_images), split.validation_labels) == best[3]
    assert loop.to_csv(loop.EPOCHS, trained.epochs).splitlines()[0].startswith("epoch,train_loss")


def test_no_epochs_keep_the_initial_weights(backend: Backend, digits: data.Dataset) -> None:
    model = dense_model(SGD(0.1))
    weights = zoo.init_weights(model)
    network = backend.build(model, weights)
    trained = loop.train(network, model.recipe, small_split(digits), seed=0, epochs=0)
    assert trained.history == trained.epochs == []
    assert trained.accuracy["test"] is not None
    for name, array in trained.weights.items():
        np.testing.assert_array_equal(array, weights[name])


def test_a_loss_that_is_not_finite_stops_training(backend: Backend, digits: data.Dataset) -> None:
    model = dense_model(SGD(1e38))
    network = backend.build(model, zoo.init_weights(model))
    with pytest.raises(
        Diverged, match=r"the loss is (nan|inf) \(last finite one 2\.\d+\).*epoch 1, step \d.*1e\+38"
    ):
        loop.train(network, model.recipe, small_split(digits), seed=0, epochs=1)


FASTER = {
    "pool after relu": (Conv2d(4, 3), ReLU(), MaxPool2d(2), Flatten(), Dense(10)),
    "padded pool": (
        Conv2d(4, 3),
        BatchNorm(),
        ReLU(),
        MaxPool2d(3, 2, padding=1),
        ReLU(),
        Flatten(),
        Dense(10),
    ),
    "relu of an output that its layer needs": (Conv2d(4, 3), Sigmoid(), ReLU(), Flatten(), Dense(10), ReLU()),
    "relu of the image": (ReLU(), MaxPool2d(2), Residual((ReLU(), MaxPool2d(1))), Flatten(), Dense(10)),
}


@pytest.mark.parametrize("layers", [*FASTER.values(), *(zoo.get(name).layers for name in zoo.names())])
def test_torch_trains_to_the_bits_of_the_plain_order(
    layers: tuple[Layer, ...], backend: Backend, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ReLU behind its pool, or in place, changes nothing: neither a loss nor a weight."""
    if backend.name != "torch":
        pytest.skip("only torch computes in another order")
    from backends.pytorch import lowering

    model = Model("faster", (1, 28, 28), layers, Recipe(SGD(0.05), batch_size=32, epochs=1))
    split = small_split(digits)
    images = split.train_images - np.float32(0.5)  # so that a ReLU of the image changes it
    split = dataclasses.replace(split, train_images=images)
    found = []
    for change in (lowering.for_training, lambda module: module):
        monkeypatch.setattr(lowering, "for_training", change)
        network = backend.build(model, zoo.init_weights(model))
        found.append(loop.train(network, model.recipe, split, seed=0, epochs=1))
    np.testing.assert_array_equal(split.train_images, images)
    assert found[0].history == found[1].history
    for name, array in found[0].weights.items():
        np.testing.assert_array_equal(array, found[1].weights[name], err_msg=name)


def test_keras_trains_the_network_that_predicts(backend: Backend, digits: data.Dataset) -> None:
    """Its way from images to a dense layer is shorter in training, and in float64 the same; others are noticed."""
    if backend.name != "keras":
        pytest.skip("only keras trains by another way")
    head = (Dense(12), BatchNorm(), ReLU(), Dropout(0.5), Dense(10), Softmax())
    split = small_split(digits)
    for layers, shorter in (
        ((Conv2d(3, (3, 5)), MaxPool2d(2), Flatten(), *head), True),
        ((Conv2d(3, 3), Residual((Conv2d(3, 3, padding=1),)), Flatten(), *head), True),
        ((Conv2d(3, 3), Flatten(), Residual((Dense(2028),)), *head), False),
        ((Flatten(), *head), False),
    ):
        model = Model("shorter", (1, 28, 28), layers, Recipe(SGD(0.05), batch_size=32, epochs=1))
        found = []
        for plain in (False, True):
            network = backend.build(model, zoo.init_weights(model), dtype="float64")
            assert (network._training is not network.network) == shorter
            if plain:
                network._training = network.network
            found.append(loop.train(network, model.recipe, split, seed=0, epochs=1))
        losses = [[row[2] for row in each.history] for each in found]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)
        for name, array in found[0].weights.items():
            np.testing.assert_allclose(array, found[1].weights[name], atol=1e-12, err_msg=name)
        if shorter:
            height, width = split.train_images.shape[2:]
            turned = dataclasses.replace(split, train_images=split.train_images.transpose(0, 1, 3, 2).copy())
            assert height == width  # so that only the order of rows and columns can tell
            network = backend.build(model, zoo.init_weights(model), dtype="float64")
            other = loop.train(network, model.recipe, turned, seed=0, epochs=1)
            assert not np.allclose(losses[0], [row[2] for row in other.history], rtol=1e-6)


def test_the_reference_does_not_train() -> None:
    from backends.reference import network

    model = dense_model(SGD(0.1))
    network = network.backend().build(model, zoo.init_weights(model))
    with pytest.raises(NotSupported, match="does not train"):
        network.train_epoch(np.empty(0), np.empty(0), np.empty(0), model.recipe, lambda *_: None)
    with pytest.raises(NotSupported, match="no ONNX exporter"):
        network.export_native("x.onnx")


SMALL = (
    # A bias in front of BatchNorm has no gradient but rounding errors, which Adam divides by themselves.
    Conv2d(6, 5, stride=2, bias=False),
    BatchNorm(),
    ReLU(),
    MaxPool2d(2),
    Conv2d(8, 3, padding=1),
    ReLU(),
    AvgPool2d(2),
    Flatten(),
)


def _train_in_both(
    model: Model, workers: dict[str, Worker], digits: data.Dataset, epochs: int
) -> tuple[loop.Trained, loop.Trained]:
    split = data.split(digits, 0, seed=0)
    trained = []
    for worker in workers.values():
        worker.send_data(split)
        network = worker.build(model, zoo.init_weights(model), "float64")
        trained.append(network.train(seed=0, epochs=epochs))
    return trained[0], trained[1]


@pytest.mark.cross
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("end", [(Dense(10),), (Dense(10), Softmax())], ids=["logits", "probabilities"])
def test_both_frameworks_follow_the_same_path(
    optimizer: Optimizer, end: tuple, workers: dict[str, Worker], digits: data.Dataset
) -> None:
    """230 steps in float64, the last of each epoch a partial batch."""
    model = Model("parity", (1, 28, 28), (*SMALL, *end), Recipe(optimizer, batch_size=33, epochs=5))
    torch, keras = _train_in_both(model, workers, digits, epochs=5)
    assert len(torch.history) == 230
    moved = max(np.abs(torch.weights[k] - v).max() for k, v in zoo.init_weights(model).items())
    assert moved > 1e-3
    losses = [np.array([row[2] for row in trained.history]) for trained in (torch, keras)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-10)
    for name, array in torch.weights.items():
        assert array.dtype == np.float64
        np.testing.assert_allclose(keras.weights[name], array, rtol=0, atol=1e-11, err_msg=name)
    assert [row[3] for row in torch.history] == [row[3] for row in keras.history]


@pytest.mark.cross
def test_another_order_of_batches_is_noticed(workers: dict[str, Worker], digits: data.Dataset) -> None:
    recipe = Recipe(SGD(0.1), batch_size=33, epochs=1)
    model = Model("parity", (1, 28, 28), (*SMALL, Dense(10)), recipe)
    torch, _ = _train_in_both(model, workers, digits, epochs=1)
    unshuffled = dataclasses.replace(model, recipe=dataclasses.replace(recipe, shuffle=False))
    _, keras = _train_in_both(unshuffled, workers, digits, epochs=1)
    assert max(np.abs(keras.weights[k] - v).max() for k, v in torch.weights.items()) > 1e-5


def test_one_value_has_no_variance(worker: Worker, digits: data.Dataset) -> None:
    """The last batch holds one image: refused where a normalisation would see one value of it."""
    image = (Conv2d(2, 3), BatchNorm(), Flatten(), Dense(10))
    vector = (Flatten(), Dense(10), BatchNorm())
    for layers, drop, refused in ((image, False, False), (vector, True, False), (vector, False, True)):
        recipe = Recipe(SGD(0.01), batch_size=20, epochs=1, drop_last=drop)
        model = Model("m", (1, 28, 28), layers, recipe)
        worker.send_data(data.split(digits, 0, seed=0, limit=41))
        network = worker.build(model, zoo.init_weights(model))
        if refused:
            with pytest.raises(InvalidInput, match=r"no variance, in batchnorm1.*drop_last"):
                network.train(seed=0, epochs=1)
        else:
            trained = network.train(seed=0, epochs=1)
            assert all(np.isfinite(array).all() for array in trained.weights.values())
            assert np.abs(trained.weights["batchnorm1.running_mean"]).max() > 0


@pytest.mark.cross
@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_gradients_through_every_layer(row: Row, workers: dict[str, Worker]) -> None:
    """Both frameworks in float64: of the row's own weights, and of a convolution in front of it."""
    _, layers, shape, _ = row
    size = 9
    images = (raw_bits(3, "tests/images", size * prod(shape)) >> np.uint64(56)).astype(np.uint8)
    images = images.reshape(size, *shape)
    labels = np.arange(size, dtype=np.int64) % 4
    split = data.Split(*[images, labels] * 3)
    whole = model_of(layers, shape).layers
    after = () if isinstance(whole[-1], Softmax) else (Dense(4, name="after"),)
    recipe = Recipe(SGD(0.1), batch_size=size, epochs=1, shuffle=False)
    model = model_of((Conv2d(shape[0], 1, name="before"), *whole, *after), shape, recipe)
    weights = zoo.init_weights(model, seed=1)
    found = []
    for worker in workers.values():
        worker.send_data(split)
        network = worker.build(model, weights, "float64")
        network.share_masks()
        found.append(network.gradients(seed=0))
    (torch_step, torch), (keras_step, keras) = found
    assert torch_step.loss == pytest.approx(keras_step.loss, abs=1e-13)
    assert torch.keys() == keras.keys() == {name for name, weight in iter_weights(model) if weight.trained}
    assert np.abs(torch["before.weight"]).max() > 1e-6
    scale = max(np.abs(gradient).max() for gradient in torch.values())
    for name, gradient in torch.items():
        np.testing.assert_allclose(keras[name], gradient, rtol=0, atol=1e-12 * scale, err_msg=name)
