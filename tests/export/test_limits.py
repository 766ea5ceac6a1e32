"""The derived limits: no honest float32 is beyond them, and they are not so wide that anything passes."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from backends.testing.layer_table import RECIPE, rows
from export.crosscheck import judge, limits, probes
from export.crosscheck.inputs import LAYER_IMAGES, layer_images
from export.crosscheck.judgement import judge_layers
from export.crosscheck.limits import Bridge, bridge, carry, rounding
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.selftest import sweep
from zoo.layers import (
    ELU,
    GELU,
    LAYERS,
    Activation,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSigmoid,
    HardSwish,
    Layer,
    LeakyReLU,
    Normalize,
    ReLU,
    ReLU6,
    Scale,
    Sigmoid,
    SiLU,
    Tanh,
)
from zoo.model import IMAGE, Model
from zoo.network import Backend
from zoo.recipe import SGD, Recipe

U = limits.UNIT


def _rounding(layer: Layer, x: np.ndarray, w: dict[str, np.ndarray]) -> limits.Rounding:
    return limits.rounding(layer, x, apply(layer, x, w), w)


@pytest.mark.parametrize("rule", [limits.rounding, limits.carry])
def test_every_layer_has_a_limit(rule) -> None:
    missing = [name for name, layer in LAYERS.items() if rule.dispatch(layer) is rule.dispatch(object)]
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
    allowed = _rounding(layer, x.astype(np.float64), w).expected[..., 0, 0]
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
    allowed = _rounding(layer, x.astype(np.float64), w).expected
    assert (np.abs(x @ weight.T - exact) < allowed).all()
    np.testing.assert_allclose(allowed, 80 * U * exact, rtol=1e-12)


@pytest.mark.parametrize("term", [0.1, 0.3, 1e-3, 1500.1])
@pytest.mark.parametrize("count", [14 * 14, 28 * 28, 56 * 56])
def test_equal_terms_are_bounded_but_beyond_what_is_usual(count: int, term: float) -> None:
    """Every addition rounds in the same direction as long as the sum stays between two powers of 2."""
    layer = Dense(1, bias=False)
    x, w = np.full((1, count), np.float32(term)), {"weight": np.ones((1, count))}
    exact = apply(layer, x.astype(np.float64), w)
    found, own = _one_by_one(x), _rounding(layer, x.astype(np.float64), w)
    error = np.abs(found - exact[:, 0])
    assert (error <= own.bound[:, 0]).all()
    if count == 56 * 56 and term == 0.1:
        assert (error > 2 * own.expected[:, 0]).all()


def test_few_terms_are_bounded_by_their_number() -> None:
    w = {"weight": np.array([[1.0, -1.0]]), "bias": np.array([3.0])}
    np.testing.assert_allclose(_rounding(Dense(1), np.array([[0.5, 0.25]]), w).bound, 4 * U * 3.75)
    np.testing.assert_allclose(_rounding(Dense(1), np.array([[0.5, 0]]), w).bound, 3 * U * 3.5)
    pruned = w | {"weight": np.array([[1.0, 0]])}
    np.testing.assert_allclose(_rounding(Dense(1), np.array([[0.5, 0.25]]), pruned).bound, 3 * U * 3.5)


def test_zeros_in_the_window_of_a_convolution_do_not_count() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((3, 6, 9, 8)) * (rng.random((3, 6, 9, 8)) < 0.3)
    for layer in (Conv2d(4, (3, 2), (2, 1), (1, 0, 2, 1), True, (2, 1), 2), Conv2d(6, 3, groups=6)):
        w = {"weight": rng.random((layer.filters, 6 // layer.groups, *layer.kernel)), "bias": np.zeros(4)}
        ones = {"weight": np.ones_like(w["weight"]), "bias": np.zeros(layer.filters)}
        w["bias"] = np.zeros(layer.filters)
        terms = apply(layer, (x != 0).astype(np.float64), ones)
        np.testing.assert_array_equal(_rounding(layer, x, w).most, terms + 2)


def test_a_mean_is_bounded_by_how_many_numbers_it_is_of() -> None:
    x = np.zeros((1, 2, 6, 6))
    x[0, 0] = 1
    for layer in (GlobalAvgPool2d(), AvgPool2d(6), AdaptiveAvgPool2d(1)):
        most = np.asarray(_rounding(layer, x, {}).most).ravel()
        np.testing.assert_allclose(most, [36 + 8, 8])


@pytest.mark.parametrize("seed", range(5))
def test_layers_that_a_file_makes_one_are_within_the_bridge(seed: int) -> None:
    """A normalisation, a convolution and a batch normalisation as one convolution, term after term."""
    rng = np.random.default_rng(seed)
    x = rng.random((20, 3, 4, 4), dtype=np.float32)
    layers = (Normalize((0.5,) * 3, (2.0,) * 3), Conv2d(5, 4), BatchNorm())
    first, second, third = layers
    weights = {
        "weight": rng.standard_normal((5, 3, 4, 4)),
        "bias": 10.0**seed * rng.standard_normal(5),
    }
    statistics = {
        "weight": rng.random(5) + 0.1,
        "bias": rng.standard_normal(5),
        "running_mean": 10.0**seed * rng.standard_normal(5),
        "running_var": rng.random(5) + 0.01,
    }
    value, before = x.astype(np.float64), None
    for layer, w in ((first, {}), (second, weights), (third, statistics)):
        y = apply(layer, value, w)
        own = limits.rounding(layer, value, y, w)
        before = limits.bridge(layer, value, w, own, before)
        value = y
    assert before is not None
    factor = statistics["weight"] / np.sqrt(statistics["running_var"] + third.epsilon)
    kernel = 2.0 * weights["weight"] * factor.reshape(-1, 1, 1, 1)
    bias = (weights["bias"] - statistics["running_mean"]) * factor + statistics["bias"]
    bias = bias - 0.5 * kernel.sum(axis=(1, 2, 3))
    terms = (x[:, None] * kernel.astype(np.float32)[None]).reshape(20, 5, -1)
    start = np.broadcast_to(bias.astype(np.float32)[None, :, None], (20, 5, 1))
    fused = _one_by_one(np.concatenate([start, terms], axis=2))
    ratio = np.abs(fused - value[..., 0, 0]) / before.bound[..., 0, 0]
    assert 0 < ratio.max() < 1


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
    x, error = np.full((1, 4), 0.5), np.full((1, 4), 1e-3)
    for layer in (ReLU(), Dropout(0.5)):
        np.testing.assert_array_equal(limits.carry(layer, x, {}, error), error)
    image = np.full((1, 1, 2, 2), 1e-3)
    assert limits.carry(Flatten(), np.ones((1, 1, 2, 2)), {}, image).shape == (1, 4)
    summed = limits.carry(Dense(1), x, {"weight": np.array([[1.0, -1, 1, -1]]), "bias": np.ones(1)}, error)
    np.testing.assert_allclose(summed, 4e-3)  # at worst all have the sign that adds up
    product = limits.carry(Scale((ReLU(),)), (x, 2 * x), {}, (error, 2 * error))
    np.testing.assert_allclose(product, 0.5 * 2e-3 + 1e-3 + 2e-6)


def test_noise_grows_with_the_layers_and_stays_finite() -> None:
    """A bound would grow by the sum of a layer's weights, 100 layers deep beyond all numbers."""
    layers = tuple(layer for _ in range(100) for layer in (Conv2d(4, 3, padding=1), Scale((Sigmoid(),))))
    model = Model("deep", (1, 6, 6), (*layers, Flatten(), Dense(3)), RECIPE, labels=("a", "b", "c"))
    judged = judge_layers(ReferenceNetwork(model, zoo.init_weights(model)), probes(model, 4))
    for expected in judged.values():
        assert np.isfinite(expected.limit).all()
        assert (expected.limit > 0).all()
    assert judged["conv1"].noise.max() == 0
    assert judged["conv2"].noise.max() > 0


def test_no_honest_witness_is_accused() -> None:
    """Random specs, scales from 0.01 to 30, sums of one sign, large biases."""
    honest = sweep(150, [], first=20_000, generators=["random"])
    assert (honest.cases, honest.witnesses) == (150, 450)
    assert honest.alarms == []
    assert 0.2 < honest.worst <= 1


def test_an_accusation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNIT", U / 100)
    honest = sweep(10, [], first=20_000, generators=["random"])
    assert honest.alarms
    assert honest.worst > 1
    assert honest.alarms[0].startswith("random, seed 2000")


def test_images_whose_layers_are_compared() -> None:
    model = zoo.get("lenet-dropout")
    network = ReferenceNetwork(model, zoo.init_weights(model))
    real = np.full((1000, 1, 28, 28), 0.25, np.float32)
    mixed = layer_images(network, real)
    assert mixed.shape == (LAYER_IMAGES, 1, 28, 28)
    assert np.count_nonzero((mixed == 0.25).all(axis=(1, 2, 3))) == 120
    assert len(layer_images(network, real[:4])) == 8 + 17
    wide = Model("wide", (3, 300, 300), (Conv2d(64, 3),), Recipe(SGD(0.1), 1, 1), labels=())
    network = ReferenceNetwork(wide, zoo.init_weights(wide))
    few = layer_images(network, np.full((50, 3, 300, 300), 0.25, np.float32))
    assert len(few) == 6
    assert [len(np.unique(image)) == 1 for image in few] == [False, True, True, True, False, False]


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
    expected, own = apply(judged_as or layer, x, {}), _rounding(judged_as or layer, x, {})
    return float((np.abs(got - expected) / own.bound).max())


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


def test_denormal_weights_may_be_taken_for_zero() -> None:
    """As TensorFlow does; bright inputs make normal numbers of them."""
    layer, w = Dense(1), {"weight": np.array([[1e-40, 1e-3]]), "bias": np.zeros(1)}
    x = np.array([[1e7, 1e-39], [1.0, 1.0]])
    own = _rounding(layer, x, w)
    flushed = apply(layer, x * (x > 1e-38), {**w, "weight": w["weight"] * (w["weight"] > 1e-38)})
    assert (np.abs(flushed - apply(layer, x, w)) <= own.bound).all()
    np.testing.assert_allclose(
        own.bound[1], 4 * U * 1e-3, rtol=1e-6
    )  # where nothing is lost, nothing is given


def test_denormal_pixels_loosen_nothing_but_what_they_add() -> None:
    layer, w = Dense(1), {"weight": np.array([[0.5, 0.5]]), "bias": np.array([100.0])}
    bright, dim = (_rounding(layer, np.array([[second, 1.0]]), w).bound for second in (0.0, 1e-39))
    np.testing.assert_allclose(dim, bright, rtol=0.5)  # one term more


def test_bridges_over_many_gates_stay_numbers() -> None:
    """Each squares the bound of the one before; a hidden layer that gives 0 made NaN of an infinite one."""
    gate, conv = Scale((Sigmoid(),)), Conv2d(1, 1)
    x, w = np.array([0.0, 3.0]).reshape(1, 1, 1, 2), {"weight": np.array([[[[0.0]]]]), "bias": np.zeros(1)}
    before = Bridge(np.full(x.shape, 1e90), 10.0)
    for _ in range(20):
        inside = bridge(gate, (x, x), {}, rounding(gate, (x, x), x, {}), (before, before))
        before = bridge(conv, x, w, _rounding(conv, x, w), inside)
        assert np.isfinite(inside.bound).all()
        assert np.isfinite(before.bound).all()


@pytest.mark.parametrize(("layer", "most"), [(Sigmoid(), 1.0), (HardSigmoid(), 1.0), (Tanh(), 2.0)])
def test_what_is_bounded_carries_no_more_than_it_can_differ(layer: Activation, most: float) -> None:
    assert carry(layer, np.zeros((1, 1)), {}, np.full((1, 1), 1e9)).max() == most
