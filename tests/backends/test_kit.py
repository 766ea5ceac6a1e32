"""The published tests of a backend find what is wrong with one, and nothing in one that is right."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import zoo
from backends.reference import network
from backends.reference.network import ReferenceNetwork
from backends.testing import BackendTests, formulas
from backends.testing.layer_table import ROWS, missing, model_of
from zoo import data
from zoo.model import Model
from zoo.network import Backend, Network
from zoo.recipe import SGD, Adam, Recipe

KIT = BackendTests()
ADAM, MOMENTUM = Adam(1e-3), SGD(0.03, momentum=0.9)


def test_every_layer_has_a_row() -> None:
    assert missing() == set()


class Stub:
    """A backend in NumPy whose networks a fault may change."""

    name = "reference"

    def __init__(self, network: type[ReferenceNetwork]) -> None:
        self.network = network

    def build(self, model: Model, weights: Mapping[str, np.ndarray], dtype: str = "float32") -> Network:
        return self.network(model, weights)

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}


class Follower(ReferenceNetwork):
    """Trains the model of the kit's formulas, by them; so it is right unless a fault overrides something."""

    def train_epoch(self, images, labels, order, recipe, on_step, seed=0, done=0, rates=None) -> None:
        steps, after = formulas.follow(self.weights(), images, labels, order, self.recipe(recipe), rates)
        for step in steps:
            on_step(*step)
        self._weights = after

    def recipe(self, recipe: Recipe) -> Recipe:
        return recipe


def follows(network: type[ReferenceNetwork], optimizer: object = ADAM) -> None:
    KIT.test_training_follows_the_written_formulas(optimizer, "float64", Stub(network), small())


@functools.cache
def small() -> data.Split:
    return data.split(data.digits(), 50, seed=0, limit=200).as_float()


def row(name: str) -> Model:
    return next(model_of(layers, shape) for each, layers, shape, _ in ROWS if each == name)


def agrees(network: type[ReferenceNetwork], name: str = "conv") -> None:
    KIT.test_every_layer_agrees_with_the_reference(row(name), "float64", Stub(network))


def comes_back(network: type[ReferenceNetwork]) -> None:
    KIT.test_weights_come_back_bit_for_bit(row("conv"), Stub(network))


def test_what_is_right_passes() -> None:
    agrees(ReferenceNetwork)
    comes_back(ReferenceNetwork)
    follows(Follower)
    follows(Follower, MOMENTUM)
    KIT.test_a_layer_without_a_rule_is_refused(network.backend())


class Transposed(ReferenceNetwork):
    def __init__(self, model: Model, weights: Mapping[str, np.ndarray]) -> None:
        turned = {k: v.swapaxes(2, 3).copy() if v.ndim == 4 else v for k, v in weights.items()}
        super().__init__(model, turned)


class Rounded(ReferenceNetwork):
    """Somewhere inside it computes in float32."""

    def activations(self, images):
        return {
            path: x.astype(np.float32).astype(np.float64) for path, x in super().activations(images).items()
        }


class Narrow(ReferenceNetwork):
    def activations(self, images):
        return {path: x.astype(np.float32) for path, x in super().activations(images).items()}


class AnotherPredict(ReferenceNetwork):
    def predict(self, images):
        return super().predict(images)[::-1]


class MissingPath(ReferenceNetwork):
    def activations(self, images):
        return dict(list(super().activations(images).items())[1:])


class OtherOrder(ReferenceNetwork):
    def weights(self):
        return dict(reversed(super().weights().items()))


class Wide(ReferenceNetwork):
    def weights(self):
        return {name: array.astype(np.float64) for name, array in super().weights().items()}


class OtherMomentum(Follower):
    def recipe(self, recipe):
        return Recipe(SGD(0.03, momentum=0.89), recipe.batch_size, 1)


class OtherEpsilon(Follower):
    def recipe(self, recipe):
        return Recipe(Adam(1e-3, epsilon=1e-7), recipe.batch_size, 1)


class OtherBatches(Follower):
    def train_epoch(self, images, labels, order, *rest, **named):
        super().train_epoch(images, labels, np.sort(order), *rest, **named)


class CountsFromZero(Follower):
    def train_epoch(self, images, labels, order, recipe, on_step, *rest, **named):
        super().train_epoch(
            images, labels, order, recipe, lambda k, *found: on_step(k - 1, *found), *rest, **named
        )


class ForgetsTheRest(Follower):
    """The last batch, which is smaller."""

    def train_epoch(self, images, labels, order, recipe, *rest, **named):
        order = order[: len(order) // recipe.batch_size * recipe.batch_size]
        super().train_epoch(images, labels, order, recipe, *rest, **named)


FAULTS: dict[str, Callable[[], None]] = {
    "a kernel transposed": lambda: agrees(Transposed),
    "float32 inside": lambda: agrees(Rounded),
    "float32 outside": lambda: agrees(Narrow),
    "outputs in another order": lambda: agrees(AnotherPredict),
    "a layer left out": lambda: agrees(MissingPath),
    "weights transposed": lambda: comes_back(Transposed),
    "weights in another order": lambda: comes_back(OtherOrder),
    "weights in another dtype": lambda: comes_back(Wide),
    "another momentum": lambda: follows(OtherMomentum, MOMENTUM),
    "another epsilon": lambda: follows(OtherEpsilon),
    "another order of batches": lambda: follows(OtherBatches),
    "steps counted from 0": lambda: follows(CountsFromZero),
    "the last batch left out": lambda: follows(ForgetsTheRest),
    "no training": lambda: KIT.test_it_says_what_it_is(network.backend()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_fails(fault: str) -> None:
    with pytest.raises(AssertionError):
        FAULTS[fault]()


class Late(Stub):
    """Builds a network of anything."""

    def build(self, model, weights, dtype="float32"):
        return None


def test_a_missing_rule_that_shows_too_late_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        KIT.test_a_layer_without_a_rule_is_refused(Late(ReferenceNetwork))


def test_dtypes_that_nobody_knows_are_refused() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        KIT.test_an_unknown_dtype_is_refused(Stub(ReferenceNetwork))


# Faults of training and state: a framework's networks, of which one thing is changed.


class Changed:
    """A backend whose networks are another's, with some of their methods replaced.

    changes: by the name of the method, a function of the method and its arguments.
    """

    def __init__(self, backend: Backend, **changes: Callable[..., Any]) -> None:
        self.name, self.versions = backend.name, backend.versions
        self._backend, self._changes = backend, changes

    def build(self, *arguments: Any) -> Any:
        network = self._backend.build(*arguments)
        for method, change in self._changes.items():
            setattr(network, method, functools.partial(change, getattr(network, method)))
        return network


def other_labels(train, images, labels, *rest, **named):
    return train(images, np.roll(labels, 1), *rest, **named)


def own_rate(train, *arguments, rates=None, **named):
    return train(*arguments, **named)


def one_seed(train, images, labels, order, recipe, on_step, seed=0, *rest, **named):
    return train(images, labels, order, recipe, on_step, 5, *rest, **named)


def without(prefix: str, state):
    tensors, extra = state()
    return {name: array for name, array in tensors.items() if not name.startswith(prefix)}, extra


def from_the_start(train, images, labels, order, recipe, on_step, seed=0, done=0, rates=None):
    return train(images, labels, order, recipe, on_step, seed, 0, rates)


def doubled(gradients, *arguments, **named):
    loss, found = gradients(*arguments, **named)
    return loss, {name: 2 * array for name, array in found.items()}


def in_place(train, images, *rest, **named):
    images *= np.float32(0.5)
    return train(images, *rest, **named)


def biased(weights):
    return {name: 0.99 * x if name.endswith("running_var") else x for name, x in weights().items()}


def nothing(method, *_):
    """Does not do what it is asked."""


def row_of(name: str) -> Any:
    return next(row for row in ROWS if row[0] == name)


TRAINING: dict[str, tuple[dict[str, Callable[..., Any]], Callable[[Any], None]]] = {
    "wrong gradients": (
        {"train_epoch": other_labels},
        lambda backend: KIT.test_gradients_through_every_layer(row_of("conv"), backend),
    ),
    "rates that are ignored": (
        {"train_epoch": own_rate},
        lambda backend: KIT.test_every_step_has_the_learning_rate_that_it_is_given(ADAM, backend, small()),
    ),
    "the same dropout for every seed": (
        {"train_epoch": one_seed},
        lambda backend: KIT.test_dropout_keeps_the_share_that_it_should(zoo.layers.Dropout, backend),
    ),
    "an optimiser that is forgotten": (
        {"state": functools.partial(without, "optimizer:")},
        lambda backend: KIT.test_a_training_goes_on_to_the_same_bits(ADAM, backend, small()),
    ),
    "an epoch that starts again": (
        {"train_epoch": from_the_start},
        lambda backend: KIT.test_a_training_goes_on_to_the_same_bits(MOMENTUM, backend, small()),
    ),
    "gradients that are not the step's": (
        {"gradients": doubled},
        lambda backend: KIT.test_gradients_are_those_of_a_step(backend, small()),
    ),
    "masks of its own": (
        {"share_masks": nothing},
        lambda backend: KIT.test_shared_masks_are_the_zoos(backend, small()),
    ),
    "images that are changed": (
        {"train_epoch": in_place},
        lambda backend: KIT.test_the_data_are_left_as_they_are(backend, small()),
    ),
    "another running variance": (
        {"weights": biased},
        lambda backend: KIT.test_running_statistics_follow_the_formula((3, 5, 4), backend),
    ),
}


@pytest.mark.parametrize("fault", TRAINING)
def test_what_is_wrong_in_training_fails(fault: str, backend: Backend) -> None:
    """That the unchanged backend passes is what test_conformance.py shows."""
    changes, check = TRAINING[fault]
    with pytest.raises(AssertionError):
        check(Changed(backend, **changes))
