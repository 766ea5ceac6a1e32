"""The derived limits: no honest float32 is beyond them, and they are not so wide that anything passes."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from backends.reference import ReferenceNetwork, apply
from export.crosscheck import judge, limits, probes
from export.crosscheck.inputs import LAYER_IMAGES, layer_images
from export.crosscheck.judgement import judge_layers
from export.graph import serialize, to_onnx
from export.selftest import sweep
from export.session import Session
from zoo.layers import (
    ELU,
    GELU,
    LAYERS,
    Activation,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    HardSigmoid,
    HardSwish,
    Layer,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from zoo.model import IMAGE, Model
from zoo.network import Backend
from zoo.recipe import SGD, Recipe
from zoo.testing.layer_table import RECIPE, rows

U = limits.UNIT


def _propagate(layer: Layer, x: np.ndarray, w: dict[str, np.ndarray]) -> limits.Allowance:
    return limits.propagate(layer, x, w, limits.exact(x))


def test_every_layer_has_a_limit() -> None:
    missing = [
        name
        for name, layer in LAYERS.items()
        if limits.propagate.dispatch(layer) is limits.propagate.dispatch(object)
    ]
    assert missing == []


def _one_by_one(terms: np.ndarray) -> np.ndarray:
    """The sum over the last axis in float32, term after term."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for k in range(terms.shape[-1]):
        total = (total + terms[..., k]).astype(np.float32)
    return total


@pytest.mark.parametrize("positive", [False, True], ids=["signed", "of one sign"])
@pytest.mark.parametrize("fan_in", [1, 9, 25, 150, 400, 2000])
def test_convolutions_summed_term_after_term_are_within(fan_in: int, positive: bool) -> None:
    """The worst order there is, also where all terms have one sign and no error cancels another."""
    rng = np.random.default_rng(fan_in)
    x = rng.random((200, fan_in, 1, 1), dtype=np.float32)
    weight = (rng.random((16, fan_in, 1, 1)) - (0 if positive else 0.5)).astype(np.float32)
    terms = x[:, None, :, 0, 0] * weight[None, :, :, 0, 0]
    layer, w = Conv2d(16, 1, bias=False), {"weight": weight.astype(np.float64)}
    exact = apply(layer, x.astype(np.float64), w)[..., 0, 0]
    allowed = _propagate(layer, x.astype(np.float64), w).limit[..., 0, 0]
    ratio = (np.abs(_one_by_one(terms) - exact) / allowed).max()
    assert 0 < ratio < 0.7
    assert (np.abs(terms).max(axis=-1) > 10 * allowed).all()  # a term that is lost is seen


def test_products_summed_in_blocks_are_within() -> None:
    """NumPy's own matrix product, with all terms of one sign."""
    rng = np.random.default_rng(0)
    x = rng.random((64, 25600), dtype=np.float32)
    weight = rng.random((10, 25600), dtype=np.float32)
    layer, w = Dense(10, bias=False), {"weight": weight.astype(np.float64)}
    exact = apply(layer, x.astype(np.float64), w)
    allowed = _propagate(layer, x.astype(np.float64), w).limit
    assert (np.abs(x @ weight.T - exact) < allowed).all()
    np.testing.assert_allclose(allowed, 80 * U * exact, rtol=1e-12)


def test_few_terms_are_bounded_by_their_number() -> None:
    x, w = np.array([[0.5, 0.25]]), {"weight": np.array([[1.0, -1.0]]), "bias": np.array([3.0])}
    np.testing.assert_allclose(_propagate(Dense(1), x, w).limit, 4 * U * 3.75)


@pytest.mark.parametrize("model", rows())
def test_the_reference_in_float32_keeps_to_the_limits(model: Model) -> None:
    """Every layer alone, rounded once more at its input and output."""
    network = ReferenceNetwork(model, zoo.init_weights(model))
    images = probes(model, 4)
    judged = judge_layers(network, images)
    tensors = {IMAGE: images}
    for node, weights in network.nodes:
        single = {name: array.astype(np.float32) for name, array in weights.items()}
        got = np.asarray(apply(node.layer, node.take(tensors), single))
        expected = judged[node.path]
        error = np.abs(got - expected.output)
        assert (error <= expected.limit + U * np.abs(expected.output)).all(), node.path
        assert (expected.limit <= 1e-4 * (1 + np.abs(expected.output).max())).all(), node.path
        tensors[node.path] = expected.output.astype(np.float32)


def test_errors_of_the_input_go_through() -> None:
    x = np.full((1, 4), 0.5)
    before = limits.Allowance(np.full((1, 4), 1e-3), np.full((1, 4), 1e-4))
    for layer in (ReLU(), Dropout(0.5)):
        after = limits.propagate(layer, x, {}, before)
        np.testing.assert_array_equal(after.limit, before.limit)
        assert after.own is None
    image = limits.Allowance(np.full((1, 1, 2, 2), 1e-3), np.full((1, 1, 2, 2), 1e-4))
    assert limits.propagate(Flatten(), np.ones((1, 1, 2, 2)), {}, image).limit.shape == (1, 4)
    summed = limits.propagate(Dense(1, bias=False), x, {"weight": np.ones((1, 4))}, before)
    # four typical errors as a root of squares, and one that may be at its limit of four times as much
    np.testing.assert_allclose(summed.limit, np.sqrt(1 + 16 / 4) * 2e-4 + 6 * U * 2, rtol=1e-6)


def test_no_honest_witness_is_accused() -> None:
    """Random specs, scales from 0.01 to 30, sums of one sign, large biases."""
    honest = sweep(150, [], first=20_000, generators=["random"])
    assert (honest.cases, honest.witnesses) == (150, 450)
    assert honest.alarms == []
    assert 0.2 < honest.worst < 0.95


def test_an_accusation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNIT", U / 100)
    honest = sweep(10, [], first=20_000, generators=["random"])
    assert honest.alarms
    assert honest.worst > 1
    assert honest.alarms[0].startswith("random, seed 2000")


def test_images_whose_layers_are_compared() -> None:
    model = zoo.get("lenet-dropout")
    real = np.zeros((1000, 1, 28, 28), np.float32)
    mixed = layer_images(model, real)
    assert mixed.shape == (LAYER_IMAGES, 1, 28, 28)
    assert np.count_nonzero(mixed.any(axis=(1, 2, 3))) == LAYER_IMAGES // 2
    assert len(layer_images(model, real[:4])) == 8
    wide = Model("wide", (3, 300, 300), (Conv2d(64, 3),), Recipe(SGD(0.1), 1, 1), labels=())
    assert len(layer_images(wide, np.zeros((50, 3, 300, 300), np.float32))) == 5


def test_logits_may_owe_a_part_to_the_layers_before() -> None:
    """32 u S of the last layer alone is less than rounding does where a layer before cancels."""
    model = Model(
        "cancels",
        (1, 2, 2),
        (Flatten(), Dense(2), Dense(2)),
        Recipe(SGD(0.1), 1, 1),
        labels=("a", "b"),
    )
    large = np.array([[1e4, -1e4, 1e4, -1e4]] * 2, np.float32)
    weights = {
        "dense1.weight": large,
        "dense1.bias": np.zeros(2, np.float32),
        "dense2.weight": np.eye(2, dtype=np.float32),
        "dense2.bias": np.zeros(2, np.float32),
    }
    images = np.full((1, 1, 2, 2), 1 / 3, np.float32)
    judgement = judge(model, weights, images)
    assert np.abs(judgement.logits).max() < 1e-9
    assert (judgement.logit_limit > 8 * U * 1e4).all()


ACTIVATIONS = (
    ReLU6(),
    LeakyReLU(0.3),
    ELU(0.5),
    Sigmoid(),
    Tanh(),
    GELU(),
    GELU("tanh"),
    SiLU(),
    HardSigmoid(),
    HardSwish(),
)
SMALL = np.logspace(-30, 2, 1000)
GRID = np.concatenate([np.linspace(-30, 30, 20_001), SMALL, -SMALL]).astype(np.float32)


def _beyond(layer: Activation, got: np.ndarray, judged_as: Activation | None = None) -> float:
    """The largest error on the grid as a multiple of what the layer may round."""
    x = GRID.astype(np.float64).reshape(-1, 1, 1, 1)
    expected, own = apply(judged_as or layer, x, {}), _propagate(judged_as or layer, x, {}).own
    limit = np.zeros(x.shape) if own is None else own
    return float((np.abs(got - expected) / np.maximum(limit, 1e-300)).max())


def _alone(layer: Activation) -> Model:
    return Model("m", (1, 1, 1), (layer,), RECIPE, labels=())


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_activations_of_onnxruntime_on_a_grid(layer: Activation) -> None:
    session = Session(serialize(to_onnx(_alone(layer), {})))
    assert _beyond(layer, session.predict(GRID.reshape(-1, 1, 1, 1))) < 0.75


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_activations_of_backends_on_a_grid(layer: Activation, backend: Backend) -> None:
    network = backend.build(_alone(layer), {})
    assert _beyond(layer, network.predict(GRID.reshape(-1, 1, 1, 1))) < 0.75


def test_the_two_forms_of_gelu_are_told_apart() -> None:
    tanh = apply(GELU("tanh"), GRID.astype(np.float64).reshape(-1, 1, 1, 1), {})
    assert _beyond(GELU("tanh"), tanh, judged_as=GELU()) > 50
