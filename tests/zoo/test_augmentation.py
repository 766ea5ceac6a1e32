"""Augmentation and learning-rate schedules: plain functions that every backend is given the results of."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import ndimage

import zoo
from zoo import data
from zoo.errors import InvalidSpec
from zoo.network import Backend
from zoo.randomness import uniform
from zoo.recipe import SGD, Adam, RandomAffine, Recipe, WarmupCosine, to_dict
from zoo.training import loop, order
from zoo.training.augmentation import _matrices, affine, augment

RULE = RandomAffine(degrees=15, translate=2, scale=0.15, shear=11)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return data.to_float(data.digits().train_images[:40])


def test_the_identity_changes_nothing(images: np.ndarray) -> None:
    assert np.array_equal(augment(RandomAffine(), images, 0, 1), images)
    assert augment(None, images, 0, 1) is images


def test_a_shift_by_hand(images: np.ndarray) -> None:
    """The pixel at (x, y) takes the value at (x + 1, y - 2)."""
    moved = affine(images, np.tile([[1.0, 0, 1], [0, 1, -2]], (len(images), 1, 1)))
    expected = np.zeros_like(images)
    expected[:, :, 2:, :-1] = images[:, :, :-2, 1:]
    assert np.array_equal(moved, expected)


def test_a_quarter_turn_by_hand(images: np.ndarray) -> None:
    moved = affine(images, np.tile([[0.0, -1, 0], [1, 0, 0]], (len(images), 1, 1)))
    np.testing.assert_allclose(moved, np.rot90(images, 1, axes=(2, 3)), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14)])
def test_it_is_bilinear(shape: tuple[int, int, int]) -> None:
    """SciPy's interpolation at the same places, in float64; places of thousandths of a pixel in float32
    are 4e-6 off, and values between 0 and 1 change by as much."""
    rng = np.random.default_rng(0)
    images = rng.random((7, *shape), dtype=np.float32)
    matrices = _matrices(RULE, uniform(5, "test", 7 * 5).reshape(7, 5) * 2 - 1)
    _, height, width = shape
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(float)
    centre = np.array([[(width - 1) / 2], [(height - 1) / 2]])
    for image, matrix, moved in zip(images, matrices, affine(images, matrices), strict=True):
        places = matrix @ np.stack([x - centre[0], y - centre[1], np.ones(x.size)]) + centre
        for plane, found in zip(image, moved, strict=True):
            expected = ndimage.map_coordinates(
                plane.astype(float), places[::-1], order=1, mode="grid-constant", cval=0
            )
            np.testing.assert_allclose(found.ravel(), expected, atol=1e-5)


def test_what_an_image_becomes_depends_on_seed_epoch_and_its_index_alone(images: np.ndarray) -> None:
    whole = augment(RULE, images, 3, 2)
    chosen = np.array([17, 4, 39])
    assert np.array_equal(augment(RULE, images[chosen], 3, 2, chosen), whole[chosen])
    assert np.array_equal(augment(RULE, images[:20], 3, 2), whole[:20])
    assert not np.array_equal(augment(RULE, images, 3, 1), whole)
    assert not np.array_equal(augment(RULE, images, 4, 2), whole)
    assert whole.dtype == np.float32
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert augment(RULE, images[:0], 0, 1).shape == (0, 1, 28, 28)


def test_more_images_than_a_chunk(images: np.ndarray) -> None:
    many = np.tile(images, (30, 1, 1, 1))
    found = augment(RULE, many, 0, 1)
    last = np.array([len(many) - 1])
    assert np.array_equal(found[last], augment(RULE, many[last], 0, 1, last))


def test_the_bounds_are_those_of_the_rule() -> None:
    """Of the extremes of each draw the angle, the scale, the shear and the shift are what the rule says."""
    for sign in (-1.0, 1.0):
        turned, sheared, scaled, shifted = (
            _matrices(RULE, sign * np.eye(5)[[0, 1, 2, 3]])[i] for i in range(4)
        )
        assert math.degrees(math.atan2(turned[1, 0], turned[0, 0])) == pytest.approx(15 * sign)
        assert np.linalg.det(turned[:, :2]) == pytest.approx(1)
        assert math.degrees(math.atan(sheared[0, 1])) == pytest.approx(11 * sign)
        assert 1 / scaled[0, 0] == pytest.approx(1.15**sign)
        assert shifted[0, 2] == pytest.approx(2 * sign)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomAffine(degrees=-1), "RandomAffine.degrees"),
        (lambda: RandomAffine(shear=90), "RandomAffine.shear"),
        (lambda: RandomAffine(scale=float("nan")), "RandomAffine.scale"),
        (lambda: WarmupCosine(1.0), "WarmupCosine.warmup"),
        (lambda: WarmupCosine(True), "WarmupCosine.warmup"),
        (lambda: Recipe(SGD(0.1), 1, 1, schedule=RULE), "recipe.schedule"),  # type: ignore[arg-type]
        (lambda: Recipe(SGD(0.1), 1, 1, augmentation=WarmupCosine()), "recipe.augmentation"),  # type: ignore[arg-type]
    ],
)
def test_what_a_recipe_may_not_say(make: object, message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        make()  # type: ignore[operator]
    assert message in f"{caught.value}"


def test_the_schedule_by_hand() -> None:
    """100 steps, 10 of them to warm up."""
    recipe = Recipe(SGD(0.5), 1, 1, schedule=WarmupCosine(0.1))
    rates = [recipe.learning_rate(step, 100) for step in range(1, 101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.05)
    np.testing.assert_allclose(rates[10:], 0.25 * (1 + np.cos(np.pi * np.arange(1, 91) / 91)))
    assert 0 < rates[-1] < 0.001
    assert recipe.learning_rate(200, 100) == rates[-1]
    assert WarmupCosine(0).factor(1, 1) == 0.5
    assert dataclasses.replace(recipe, schedule=None).learning_rate(7, 100) == 0.5


def test_an_epoch_has_its_part_of_the_schedule() -> None:
    recipe = Recipe(SGD(0.5), 10, 4, schedule=WarmupCosine(0.1))
    parts = [order.learning_rates(recipe, epoch, 4, 95) for epoch in range(1, 5)]
    every = [recipe.learning_rate(step, 40) for step in range(1, 41)]
    assert np.concatenate(parts).tolist() == every  # type: ignore[arg-type]
    assert order.learning_rates(dataclasses.replace(recipe, schedule=None), 1, 4, 95) is None


def test_a_recipe_names_what_it_has() -> None:
    plain = Recipe(SGD(0.1), 1, 1)
    assert not {"schedule", "augmentation"} & set(to_dict(plain))
    full = to_dict(dataclasses.replace(plain, schedule=WarmupCosine(), augmentation=RULE))
    assert full["schedule"] == {"type": "WarmupCosine", "warmup": 0.1}
    assert full["augmentation"] == {
        "type": "RandomAffine", "degrees": 15.0, "translate": 2.0, "scale": 0.15, "shear": 11.0,
    }  # fmt: skip


def test_every_rule_of_the_schedule_is_in_the_steps(backend: Backend) -> None:
    """A step of SGD moves a weight by its rate times its gradient, so doubled rates double the moves; and an
    epoch without rates has the optimiser's own again."""
    model = zoo.get("cnn-padded")
    weights = zoo.init_weights(model)
    digits = data.digits()
    x, y = data.to_float(digits.train_images[:20]), digits.train_labels[:20]

    def moved(rates: np.ndarray | None, network: object = None) -> np.ndarray:
        network = network or backend.build(model, weights, "float64")
        before = network.weights()["dense1.weight"]  # type: ignore[attr-defined]
        recipe = dataclasses.replace(model.recipe, batch_size=20)
        network.train_epoch(x, y, np.arange(20), recipe, lambda *_: None, 0, 0, rates)  # type: ignore[attr-defined]
        return np.asarray(network.weights()["dense1.weight"] - before)  # type: ignore[attr-defined]

    own = moved(None)
    np.testing.assert_allclose(moved(np.array([0.2])), 2 * own, rtol=1e-9, atol=1e-15)
    network = backend.build(model, weights, "float64")
    moved(np.array([0.0]), network)
    np.testing.assert_allclose(moved(None, network), own, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("optimizer", [SGD(0.05, momentum=0.9, nesterov=True), Adam(3e-3)])
def test_a_training_goes_on_to_the_same_bits(
    optimizer: SGD | Adam, backend: Backend, digits: data.Dataset
) -> None:
    """Schedule, augmentation and all, from a checkpoint in the middle of the second epoch."""
    model = zoo.get("cnn-tiny")
    recipe = dataclasses.replace(model.recipe, optimizer=optimizer, batch_size=64)
    split = data.split(digits, limit=256).as_float()
    kept: list[object] = []
    keeper = loop.Keeper(kept.append, 0)  # type: ignore[arg-type]
    whole = loop.train(
        backend.build(model, zoo.init_weights(model)), recipe, split, seed=1, epochs=3, keeper=keeper
    )
    assert [row[:2] for row in whole.history] == [(e, s) for e in (1, 2, 3) for s in (1, 2, 3, 4)]
    again = loop.train(
        backend.build(model, zoo.init_weights(model)),
        recipe,
        split,
        seed=1,
        epochs=3,
        start=kept[5],  # type: ignore[arg-type]
    )
    assert again.history == whole.history
    for name, array in whole.weights.items():
        assert np.array_equal(again.weights[name], array), name
