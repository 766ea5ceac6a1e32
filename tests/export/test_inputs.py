"""What the cross-check looks at beside real images: extremes, large logits, batches of many sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import zoo
from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.crosscheck import Verdict, examine, judge
from export.crosscheck.inputs import BATCHES, batch_sizes, layer_images, plain
from zoo.layers import Conv2d, Dense, Flatten, MaxPool2d, ReLU, Softmax
from zoo.model import IMAGE, Model
from zoo.recipe import SGD, Recipe

RECIPE = Recipe(SGD(0.1), batch_size=10, epochs=1)
LAYERS = (Conv2d(3, 3), ReLU(), MaxPool2d(2), Flatten(), Dense(4))
LOGITS = Model("small", (1, 9, 9), LAYERS, RECIPE, labels=tuple("abcd"))
PROBABILITIES = Model("small", (1, 9, 9), (*LAYERS, Softmax()), RECIPE, labels=tuple("abcd"))
FEATURES = Model("small", (1, 9, 9), LAYERS[:3], RECIPE, labels=())

Fault = Callable[[np.ndarray, np.ndarray], None]  # (images, outputs), which it may change


class Small:
    """The reference, rounded to float32 after every layer; a fault may change its outputs."""

    def __init__(self, model: Model, fault: Fault | None = None, shows: bool = True) -> None:
        self.network = ReferenceNetwork(model, zoo.init_weights(model))
        self.fault = fault

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        tensors = {IMAGE: images}
        for node, weights in self.network.nodes:
            exact = {path: tensors[path].astype(np.float64) for path in node.inputs}
            tensors[node.path] = apply(node.layer, node.take(exact), weights).astype(np.float32)
        del tensors[IMAGE]
        return tensors

    def predict(self, images: np.ndarray) -> np.ndarray:
        outputs = list(self.activations(images).values())[-1].copy()
        if self.fault:
            self.fault(images, outputs)
        return outputs


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Smooth pictures on black, as scans of digits are: float32 (2000, 1, 9, 9)."""
    y, x = np.mgrid[:9, :9]
    centre = np.random.default_rng(0).uniform(2, 6, (2, 2000, 1, 1))
    pictures = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 4)
    return np.where(pictures > 0.05, pictures, 0).astype(np.float32)[:, None]


def verdict(model: Model, images: np.ndarray, fault: Fault | None = None, seed: int = 0) -> Verdict:
    """What is said of a witness that shows its layers as they should be, and has a fault in `predict`."""
    witness = Small(model, fault)
    judgement = judge(model, zoo.init_weights(model), images, seed)
    return examine("it", witness, judgement, witness.activations, batches=batch_sizes(model, seed))


@pytest.mark.parametrize("model", [LOGITS, PROBABILITIES, FEATURES], ids=lambda model: model.output)
@pytest.mark.parametrize("seed", range(5))
def test_an_honest_witness_passes(model: Model, seed: int, real: np.ndarray) -> None:
    for images in (real, real[:1]):
        said = verdict(model, images, seed=seed)
        assert said.passed
        assert said.probes is not None
        assert (said.probes.decisions is None) == (model.output == "features")


def _where(images: np.ndarray, value: float) -> np.ndarray:
    return (images == value).all(axis=(1, 2, 3))


def _nan_on_black(images: np.ndarray, outputs: np.ndarray) -> None:
    outputs[_where(images, 0), 0] = np.nan


def _one_more_on_black(images: np.ndarray, outputs: np.ndarray) -> None:
    outputs[_where(images, 0), 1] += 1


def _nan_on_white(images: np.ndarray, outputs: np.ndarray) -> None:
    outputs[_where(images, 1), 0] = np.nan


def _one_more_on_grey(images: np.ndarray, outputs: np.ndarray) -> None:
    outputs[np.ptp(images, axis=(1, 2, 3)) == 0, 0] += 1


def _one_more_on_saturated(images: np.ndarray, outputs: np.ndarray) -> None:
    outputs[((images == 0) | (images == 1)).all(axis=(1, 2, 3)) & (images.mean(axis=(1, 2, 3)) > 0.3)] += 1


def _wrong_in_a_corner(images: np.ndarray, outputs: np.ndarray) -> None:
    outputs[(images.sum(axis=(1, 2, 3)) == 1) & (images[:, 0, -1, -1] == 1), 0] += 1


def _wrong_above_one(images: np.ndarray, outputs: np.ndarray) -> None:
    outputs[images.max(axis=(1, 2, 3)) > 100] *= 1.01


@pytest.mark.parametrize(
    "fault",
    [
        _nan_on_black,
        _one_more_on_black,
        _nan_on_white,
        _one_more_on_grey,
        _one_more_on_saturated,
        _wrong_in_a_corner,
        _wrong_above_one,
    ],
)
def test_faults_that_real_images_do_not_show(fault: Fault, real: np.ndarray) -> None:
    said = verdict(LOGITS, real, fault)
    assert said.output is not None
    assert said.output.passed
    assert said.probes is not None
    assert not said.probes.passed
    assert not said.passed
    assert said.max_ratio > 1


def test_a_decision_that_only_a_probe_turns(real: np.ndarray) -> None:
    def other(images: np.ndarray, outputs: np.ndarray) -> None:
        outputs[_where(images, 1)] = outputs[_where(images, 1)][:, ::-1]

    said = verdict(LOGITS, real, other)
    assert said.decisions is not None
    assert said.decisions.passed
    assert said.probes is not None
    assert said.probes.decisions is not None
    assert not said.probes.decisions.passed


def test_a_softmax_without_its_maximum(real: np.ndarray) -> None:
    """Right up to logits of 88: only images that are scaled show it."""

    class Overflowing(Small):
        def predict(self, images: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore", invalid="ignore"):
                powers = np.exp(list(self.activations(images).values())[-2])
                return powers / powers.sum(axis=1, keepdims=True)

    weights = zoo.init_weights(PROBABILITIES)
    judgement = judge(PROBABILITIES, weights, real)
    assert 5e3 <= judgement.mixture.logits.max() <= 2e4
    said = examine("it", witness := Overflowing(PROBABILITIES), judgement, witness.activations)
    assert said.output is not None
    assert said.output.passed
    assert said.probes is not None
    assert "NaN" in said.probes.output.problem


def test_bright_images_do_not_loosen_the_limits_of_others(real: np.ndarray) -> None:
    """Where logits of 1e4 may differ by 0.2, those of 1 may differ by 3e-5 as before."""

    def slightly(images: np.ndarray, outputs: np.ndarray) -> None:
        outputs[_where(images, 0), 0] += np.float32(1e-3)

    said = verdict(LOGITS, real, slightly)
    assert said.probes is not None
    assert said.probes.output.limit < 1e-4
    assert not said.probes.passed
    judgement = judge(LOGITS, zoo.init_weights(LOGITS), real)
    assert judgement.output_limit.max() < 1e-4
    assert judgement.logit_limit.max() < 1e-4


@pytest.mark.parametrize("size", [1, 2, 5, 9, 32, 65, 128, 500, 501, 1000])
@pytest.mark.parametrize("count", [2000, 24])
def test_a_batch_of_one_size(size: int, count: int, real: np.ndarray) -> None:
    def one_more(images: np.ndarray, outputs: np.ndarray) -> None:
        if len(images) == size or (size == 501 and len(images) > 500):
            outputs[:, 1] += 1

    said = verdict(LOGITS, real[:count], one_more)
    assert not said.passed
    assert said.batches is not None
    assert not said.batches.passed
    assert said.batches.worst_size == (1000 if size == 501 else size)


def test_a_row_that_depends_on_its_neighbours(real: np.ndarray) -> None:
    def mean(images: np.ndarray, outputs: np.ndarray) -> None:
        outputs += np.float32(1e-3) * (images.mean() - images.mean(axis=(1, 2, 3))[:, None])

    said = verdict(LOGITS, real, mean)
    assert said.batches is not None
    assert not said.batches.passed
    assert not said.batches.identical


def test_outputs_of_another_shape_in_some_batches(real: np.ndarray) -> None:
    class Cut(Small):
        def predict(self, images: np.ndarray) -> np.ndarray:
            outputs = super().predict(images)
            return outputs[:, :3] if len(images) == 128 else outputs

    judgement = judge(LOGITS, zoo.init_weights(LOGITS), real)
    said = examine("it", Cut(LOGITS), judgement, batches=(1, 128, 500))
    assert said.output is not None
    assert said.output.problem == "shape (128, 3), not (2000, 4)"


def test_sizes_of_batches() -> None:
    sizes = batch_sizes(LOGITS)
    assert set(BATCHES) <= set(sizes)
    assert list(sizes) == sorted(set(sizes))
    assert {10 <= size < 256 for size in set(sizes) - set(BATCHES)} == {True}
    assert batch_sizes(LOGITS, 1) != sizes
    assert batch_sizes(LOGITS, work=50 * LOGITS.macs) == tuple(range(1, 10))
    assert batch_sizes(LOGITS, work=0) == (1, 2, 3)


def test_the_seed_draws_anew(real: np.ndarray) -> None:
    network = ReferenceNetwork(LOGITS, zoo.init_weights(LOGITS))
    first, again, other = (layer_images(network, real, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    same = (first == other).all(axis=(1, 2, 3))
    fixed = sum(_where(first, 0)) + sum(_where(first, 1)) + 4 + 2 + 1  # corners, ramps, a real one saturated
    assert sum(same) - fixed <= 120 + 2  # the real ones; two pixels may meet
    assert (np.count_nonzero(~plain(first)), first.min()) == (5, 0)


def test_a_model_whose_logits_cannot_grow() -> None:
    """Scales have an end, and no layer passes what float32 holds."""
    from zoo.layers import Sigmoid

    bounded = Model("bounded", (1, 9, 9), (Flatten(), Dense(4), Sigmoid(), Dense(4)), RECIPE, tuple("abcd"))
    steep = Model("steep", (1, 9, 9), (Flatten(), *(Dense(4),) * 12), RECIPE, labels=tuple("abcd"))
    for model, factor in ((bounded, 1), (steep, 1e5)):
        weights = {name: array * np.float32(factor) for name, array in zoo.init_weights(model).items()}
        images = layer_images(ReferenceNetwork(model, weights), np.ones((4, 1, 9, 9), np.float32))
        assert np.isfinite(images).all()
        assert images.max() <= 2.0**20
