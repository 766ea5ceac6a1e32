"""Training parity: what is measured, what is judged, and the planted differences that it must find."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import numpy as np
import planted
import pytest

import backends
import zoo
from backends.parity import course, equivalence
from backends.parity.course import Course, Options
from backends.process import client
from backends.process.client import Step, Worker
from zoo import cli, data
from zoo.errors import CheckFailed, Diverged, InvalidInput, NotSupported
from zoo.layers import Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU, Softmax
from zoo.model import Model
from zoo.network import Backend
from zoo.recipe import SGD, Adam, Recipe
from zoo.training import loop, order

FEATURES = (Conv2d(4, 5, stride=2), ReLU(), MaxPool2d(2), Dropout(0.5), Flatten())
LOGITS = (*FEATURES, Dense(10))
PROBABILITIES = (*LOGITS, Softmax())
MOMENTUM = SGD(0.03, momentum=0.9)


def small(optimizer: object = MOMENTUM, layers: tuple = LOGITS) -> Model:
    """A network of every kind of layer that two frameworks could train differently."""
    return Model("small", (1, 28, 28), layers, Recipe(optimizer, batch_size=32, epochs=2))


def quiet(*_: object) -> None:
    """A progress callback that shows nothing."""


# What the backends give for it, each framework alone.


def test_a_mask_keeps_the_mean() -> None:
    mask = zoo.randomness.dropout_mask(0, 1, "dropout1", 0.2, (50, 4, 10, 10))
    assert set(np.unique(mask)) == {0.0, 1.25}
    np.testing.assert_allclose(mask.mean(), 1, atol=0.02)
    others = [(1, 1, "dropout1"), (0, 2, "dropout1"), (0, 1, "dropout2")]
    for seed, step, path in others:
        other = zoo.randomness.dropout_mask(seed, step, path, 0.2, mask.shape)
        assert 0.3 < (other != mask).mean() < 0.34, "2 * 0.2 * 0.8 of independent masks differ"


def test_step_by_step_is_the_same_training(backend: Backend, digits: data.Dataset) -> None:
    model = small(layers=(Flatten(), Dense(10)))
    split = data.split(digits, 0, limit=100).as_float()
    whole, stepped = (backend.build(model, zoo.init_weights(model)) for _ in range(2))
    losses = [row[2] for row in loop.train(whole, model.recipe, split, seed=5, epochs=2).history]
    done = [loop.train_step(stepped, model.recipe, split, seed=5, step=k) for k in range(1, 9)]
    assert [loss for loss, _ in done] == losses
    for epoch in (1, 2):
        batches = [batch for _, batch in done[4 * epoch - 4 : 4 * epoch]]
        np.testing.assert_array_equal(np.concatenate(batches), order.batch_order(model.recipe, 5, epoch, 100))
    for name, array in whole.weights().items():
        np.testing.assert_array_equal(stepped.weights()[name], array, err_msg=name)


def test_another_memory_layout_computes_the_same(
    framework: str, backend: Backend, images: np.ndarray
) -> None:
    model = zoo.get("cnn-padded")
    network = backend.build(model, zoo.init_weights(model))
    before = network.predict(images)
    if framework == "keras":
        with pytest.raises(NotSupported, match="one memory layout"):
            network.change_layout()
        return
    network.change_layout()
    np.testing.assert_allclose(network.predict(images), before, rtol=0, atol=1e-6)


# What is made of it, without any framework.


def limited(**limits: object) -> Course:
    return Course("float64", ("torch", "keras"), course.LIMITS["float64"]._replace(**limits))


def done(loss: float, *weights: float, batch: tuple[int, ...] = (1, 2)) -> course._Done:
    tensors = {f"dense{i}.weight": np.array([w]) for i, w in enumerate(weights, start=1)}
    return course._Done(Step(loss, list(batch)), tensors)


def test_where_it_starts() -> None:
    """Step 1 is equal, step 2 within the limits, step 3 beyond them in one of two tensors."""
    found = limited()
    found.add_gradients(done(1, 2.0, 4.0), done(1, 2.0, 4.0 + 2e-12))
    for error in (0.0, 1e-12, 1e-10):
        found.add(done(1.0, 0.5, 0.25), done(1.0 + error, 0.5, 0.25 + error))
    assert found.gradients == {"dense1.weight": 0.0, "dense2.weight": pytest.approx(5e-13, rel=1e-3)}
    name, trace = found.worst_weight
    assert name == "dense2.weight"
    assert (trace.first_beyond(0.0), trace.largest_step, found.weights_part) == (2, 3, 3)
    assert trace.largest == pytest.approx(1e-10, rel=1e-5)
    assert found.loss.first_beyond(0.0) == 2
    assert found.failure is not None
    assert found.failure[:3] == (3, "loss", None)
    assert not found.passed
    assert limited(judged=()).passed
    assert json.loads(json.dumps(found.to_dict()))["weights"]["dense1.weight"]["starts"] is None


def test_what_differs_first_is_named() -> None:
    weights = limited()
    weights.add_gradients(done(1, 1.0, 1.0), done(1, 1.0, 1.0))
    weights.add(done(1, 1.0, 1.0), done(1, 1.0, 1.1))
    assert weights.failure is not None
    assert weights.failure.sentence == (
        "the weights of dense2.weight differ after step 1, most dense2.weight, by 1.0e-01; "
        "the gradients of step 1 agree: see the optimizer"
    )
    gradients = limited()
    gradients.add_gradients(done(1, 1.0, 1.0), done(1, 1.1, 1.2))
    gradients.add(done(1, 1.0, 1.0), done(2, 1.0, 1.1))
    assert gradients.failure is not None
    assert "the gradients of dense1.weight and dense2.weight differ at step 1" in gradients.failure.sentence
    batch = limited()
    batch.add_gradients(done(1, 1.0), done(1, 1.5, batch=(2, 1)))
    batch.add(done(1, 1.0), done(1, 1.5))
    assert batch.failure is not None
    assert batch.failure.quantity == "batch"


@pytest.mark.parametrize("other", [done(np.nan, 1.0), done(1.0, np.nan), done(np.inf, 1.0)])
def test_what_is_not_a_number_is_never_within_a_limit(other: course._Done) -> None:
    found = limited()
    found.add_gradients(done(1, 1.0), done(1, 1.0))
    found.add(done(1.0, 1.0), other)
    assert not found.passed
    assert limited().add_gradients(done(1, 1.0), done(1, np.nan)) is None


def test_gradients_that_are_not_numbers_fail() -> None:
    found = limited()
    found.add_gradients(done(1, 1.0), done(1, np.nan))
    assert found.failure is not None
    assert found.failure.quantity == "gradients"


def test_nothing_is_made_to_fit() -> None:
    with pytest.raises(CheckFailed, match="other names or shapes"):
        limited().add(done(1.0, 1.0), done(1.0, 1.0, 1.0))
    wide = course._Done(Step(1.0, [1, 2]), {"dense1.weight": np.ones(3)})
    with pytest.raises(CheckFailed, match="other names or shapes"):
        limited().add(done(1.0, 1.0), wide)


def test_a_loss_that_is_not_finite_is_divergence() -> None:
    with pytest.raises(Diverged, match=r"the loss is nan \(torch, float64, step 1\)"):
        limited().add(done(np.nan, 1.0), done(np.nan, 1.0))


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [
        (0.95, 1, 6.314),
        (0.975, 2, 4.303),
        (0.95, 6, 1.943),
        (0.975, 9, 2.262),
        (0.995, 30, 2.750),
        (0.5, 3, 0),
    ],
)
def test_student_as_in_the_tables(probability: float, freedom: int, value: float) -> None:
    np.testing.assert_allclose(equivalence.t_quantile(probability, freedom), value, atol=5e-4)


def test_the_three_verdicts() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=8)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # mean 0, deviation 1
    verdicts = {
        (0.05, 0.1): "equivalent",
        (0.1, 0.05): "equivalent",  # a difference, and one that does not matter
        (0.5, 0.1): "different",
        (0.29, 0.1): "different",
        (0.1, 0.6): "inconclusive",
    }
    for (mean, deviation), expected in verdicts.items():
        found = equivalence.judge(list(mean + deviation * noise))
        assert found.verdict == expected, (mean, deviation)
        half = 1.895 * deviation / np.sqrt(8)  # Student's 95 % quantile for 7 degrees of freedom
        np.testing.assert_allclose(found.interval, [mean - half, mean + half], atol=1e-4)
    assert equivalence.judge([0.0, 0.0]).verdict == "equivalent"
    with pytest.raises(InvalidInput, match="1 paired differences show nothing"):
        equivalence.judge([0.0])


def test_the_seeds_give_the_stated_power() -> None:
    """Simulated: of 2,000 comparisons without a true difference nine in ten are found equivalent."""
    rng = np.random.default_rng(1)
    for deviation in (0.15, 0.3):
        count = equivalence.seeds_for(deviation)
        shown = [
            equivalence.judge(list(row)).verdict == "equivalent"
            for row in rng.normal(0, deviation, size=(2000, count))
        ]
        assert 0.88 < np.mean(shown) < 0.97
    assert equivalence.seeds_for(0.0) == 2
    stated = {masks: equivalence.seeds_for(value) for masks, value in course.EXPECTED_DEVIATION.items()}
    assert stated == {"none": 7, "equal": 17, "own": 79}, "zoo parity --help says so"
    assert equivalence.seeds_for(1e9) == equivalence.MOST_SEEDS


def test_the_test_keeps_its_level() -> None:
    """With a true difference of the margin itself, at most one in twenty is called equivalent."""
    rows = np.random.default_rng(2).normal(equivalence.MARGIN, 0.15, size=(2000, 8))
    wrong = [equivalence.judge(list(row)).verdict == "equivalent" for row in rows]
    assert np.mean(wrong) < 0.065


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["torch"], "between two backends, not 1"),
        (["torch", "torch"], "between two backends, not 1"),
        (["torch", "reference"], "'reference' does not train"),
        (["torch", "theano"], "unknown backend 'theano'"),
    ],
)
def test_parity_is_between_two_that_train(
    names: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    assert course.pair([]) == ("torch", "keras")
    assert course.pair(["keras:tensorflow", "torch"]) == ("keras", "torch")
    with pytest.raises(InvalidInput, match=message):
        course.pair(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "0 steps"),
        ({"seed": -1}, "seed -1"),
        ({"accuracy": True, "seeds": 1}, "1 seeds"),
        ({"accuracy": True, "epochs": 0}, "0 epochs"),
        ({"limit": 0}, "0 training images"),
        ({"seeds": 5}, "add --accuracy"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Options(**options)


def test_a_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    found = {"torch": object(), "keras": object(), "tensorflow": None}
    real = backends.importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name: found[name] if name in found else real(name)
    )
    with pytest.raises(SystemExit) as exit_:
        cli.main(["parity", "cnn-padded", "--data", "digits"])
    assert exit_.value.code == 3
    assert "pip install -e '.[keras]'" in capfd.readouterr().err


def called(capfd: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    """Exit code and standard output of `zoo parity` on the embedded data."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.main(["parity", *map(str, arguments), "--data", "digits"])
    return int(exit_.value.code or 0), capfd.readouterr().out


def parted(*differences: float) -> Course:
    """Losses of 1 that differ so, one step each."""
    found = limited(judged=(), loss=course.ROUNDING, relative=True)
    found.add_gradients(done(1, 1.0), done(1, 1.0))
    for difference in differences:
        found.add(done(1.0, 1.0), done(1.0 + difference, 1.0))
    return found


def test_the_noise_floor_is_the_training_that_parts_most() -> None:
    """One of three falls to the other side of a tie: that rounding can do it is what counts."""
    floors = [parted(1e-7, 3e-7), parted(2e-7, 4e-3), parted(0.0, 0.0)]

    def result(*differences: float) -> course.Parity:
        found = parted(*differences)
        return course.Parity("lenet-dropout", "digits", 64, ("torch", "keras"), True, found, found, floors)

    assert result(0.0, 9e-3).floor is floors[1]
    assert result(0.0, 9e-3).cause == (
        "the losses differ by 9.0e-03; torch's from its own by up to 4.0e-03, in 1 of\n"
        "3 trainings by a tenth of the former or more: rounding alone explains it"
    )
    assert "rounding alone does not explain it" in result(0.0, 9e-2).cause
    assert "rounding alone does not explain it" in result(0.0, np.nan).cause
    del floors[:2]
    assert "rounding alone explains it" in result(0.0, 1.8e-6).cause, "a step may round as much"
    assert "rounding alone does not explain it" in result(0.0, 4e-6).cause
    json.dumps(result(0.0, 9e-3).to_dict())


def test_weights_are_moved_by_a_last_bit() -> None:
    initial = zoo.init_weights(zoo.get("cnn-padded")) | {"zero": np.zeros(3, np.float32)}
    once, again, otherwise = (course.moved(initial, seed) for seed in (1, 1, 2))
    for name, array in initial.items():
        assert once[name].dtype == np.float32
        assert once[name].shape == array.shape
        assert np.all((np.nextafter(once[name], array) == array) & (once[name] != array)), name
        np.testing.assert_array_equal(once[name], again[name])
    down = once["conv2.weight"] < initial["conv2.weight"]
    assert 0.45 < down.mean() < 0.55
    assert 0.4 < (down == (otherwise["conv2.weight"] < initial["conv2.weight"])).mean() < 0.6


@pytest.mark.parametrize("differences", [(0.05, -0.05, 0.0), (0.9, 1.0, 1.1), (-1.0, 0.0, 1.0)])
def test_what_is_printed(
    differences: tuple[float, ...], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table and the exit code of a result, whoever computed it."""
    float64, float32, floor = limited(), limited(), limited(judged=())
    float32.limits = course.LIMITS["float32"]
    for found, error in ((float64, 1e-13), (float32, 1e-3), (floor, 1e-5)):
        found.add_gradients(done(1, 1.0), done(1, 1.0 + error))
        found.add(done(1.0, 1.0), done(1.0, 1.0))
        found.add(done(1.0, 1.0), done(1.0 + error, 1.0))
    verdict = equivalence.judge(differences)
    accuracy = course.Accuracy("own", 3, [0.9, 0.9, 0.9], [0.9, 0.9, 0.9], verdict)
    result = course.Parity(
        "lenet-dropout", "digits", 64, ("torch", "keras"), True, float64, float32, [floor], [accuracy]
    )
    monkeypatch.setattr(course, "check", lambda *_: iter([result]))
    monkeypatch.setattr(course, "pair", lambda names: ("torch", "keras"))
    code, out = called(capfd, "lenet-dropout", "--accuracy")
    assert "torch and keras, 2 steps of 64 images of digits; dropout with equal masks" in out
    rows = [line.split() for line in out.splitlines() if " loss " in line]
    assert rows[0][:5] == ["loss", "1.0e-13", "step", "2", "2"]
    assert rows[0][-2:] == ["never", "1e-10"]
    assert rows[1] == ["loss", "1.0e-03", "step", "2", "2", "2"]
    assert "rounding alone does not explain it" in out
    assert verdict.verdict in out
    if verdict.verdict == "equivalent":
        assert code == 0
        assert "PASSED 1 of 1" in out
        assert "differs" not in out
    else:
        assert code == 1
        assert "FAILED 0 of 1" in out
        assert f"differs: test accuracy, own masks: {verdict.verdict}" in out
    assert "zoo verify lenet-dropout" in out


def test_an_interrupt_ends_the_workers() -> None:
    """Instead of waiting for what they are doing."""

    class Busy:
        def __init__(self) -> None:
            self.ended = threading.Event()

        def train(self) -> None:
            assert self.ended.wait(60)

        def close(self) -> None:
            self.ended.set()

    workers = [Busy(), Busy()]

    def interrupted() -> None:
        with course._together(workers) as pool:
            for worker in workers:
                pool.submit(worker.train)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(worker.ended.is_set() for worker in workers)


# Both frameworks.


@pytest.fixture(scope="module")
def faulty(_running: dict[str, Worker]) -> Iterator[Worker]:
    """A Keras process in which faults can be planted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "PRELUDE", planted.boot())
        worker = Worker("keras")
    with worker:
        yield worker


def follow(model: Model, pair: list[Worker], digits: data.Dataset, steps: int) -> Course:
    for worker in pair:
        worker.send_data(data.split(digits, 0))
    return course.follow(model, pair, "float64", Options(steps=steps), quiet)[0]


@pytest.mark.cross
def test_every_model_in_float64(model: Model, workers: dict[str, Worker], digits: data.Dataset) -> None:
    found = follow(model, list(workers.values()), digits, steps=1)
    assert found.passed, found.failure
    assert found.gradients.keys() == zoo.init_weights(model).keys()
    assert found.worst_gradient[1] < 1e-12
    assert found.steps == 1


FAULTS = {
    "epsilon before the correction": (small(Adam(1e-3)), "weights", 1),
    "momentum with dampening": (small(), "weights", 2),
    "a forgotten bias": (small(), "weights", 1),
    "constants rounded to float32": (small(Adam(1e-3)), "weights", 2),
    "another order of batches": (small(), "batch", 1),
    "one softmax for two": (small(layers=PROBABILITIES), "gradients", 1),
    "masks of its own": (small(), "gradients", 1),
}


@pytest.mark.cross
@pytest.mark.parametrize("fault", planted.FAULTS)
def test_a_planted_difference_is_found(
    fault: str, workers: dict[str, Worker], faulty: Worker, digits: data.Dataset
) -> None:
    model, quantity, step = FAULTS[fault]
    pair = [workers["torch"], faulty]
    assert follow(model, pair, digits, steps=60).passed, "without the fault"
    faulty.ask("plant", fault=fault)
    try:
        found = follow(model, pair, digits, steps=4)
    finally:
        faulty.ask("plant", fault=None)
    assert not found.passed
    assert found.failure is not None
    assert (found.failure.step, found.failure.quantity) == (step, quantity)
    if fault == "a forgotten bias":
        assert found.failure.tensor == "conv1.bias"
        assert "see the optimizer" in found.failure.sentence


@pytest.mark.cross
@pytest.mark.usefixtures("workers")
def test_the_command(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "MOVES", 2)
    options = ("--steps", 3, "--accuracy", "--seeds", 2, "--epochs", 1, "--limit", 128, "--json")
    code, out = called(capfd, "lenet-dropout", *options)
    (result,) = json.loads(out)
    assert [accuracy["masks"] for accuracy in result["accuracy"]] == ["equal", "own"]
    for accuracy in result["accuracy"]:
        first, second = np.array(accuracy["accuracies"])
        np.testing.assert_allclose(accuracy["differences"], 100 * (second - first), atol=1e-9)
        assert accuracy["seeds"] == 2
    equal = result["accuracy"][0]
    np.testing.assert_allclose(equal["differences"], [0, 0], atol=0.7)  # two of 297 test images
    assert result["float64"]["loss"]["largest"] < 1e-12
    assert len(result["float32"]["loss"]["differences"]) == 3
    assert [floor["sides"][1] for floor in result["floors"]] == [
        "torch in another memory layout",
        "torch from weights moved by a last bit (1)",
        "torch from weights moved by a last bit (2)",
    ]
    assert all(floor["weight"]["largest"] > 0 for floor in result["floors"])
    assert result["floor"]["loss"]["largest"] == max(floor["loss"]["largest"] for floor in result["floors"])
    assert "; torch's from its own by up to " in result["cause"]
    equivalent = all(accuracy["verdict"] == "equivalent" for accuracy in result["accuracy"])
    assert code == (0 if equivalent else 1)


@pytest.mark.cross
@pytest.mark.usefixtures("workers")
def test_a_difference_exits_1(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PRELUDE", planted.boot("a forgotten bias"))
    monkeypatch.setattr(course, "MOVES", 0)
    code, out = called(capfd, "cnn-padded:out_1=4,out_2=4", "--steps", 3)
    assert code == 1
    assert "FAILED 0 of 1" in out
    assert "differs: float64: the weights of conv1.bias differ after step 1" in out
