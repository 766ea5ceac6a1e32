"""Steps of training in bfloat16: who does them, that they go on bit for bit, and what they are held to."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backends
import zoo
from backends.parity import mixed_precision
from backends.parity.mixed_precision import FirstStep
from backends.process.client import Worker
from backends.testing.layer_table import rows
from export.runs import build
from export.runs.options import Options
from zoo import data, machine, precision
from zoo.errors import CheckFailed, InvalidInput, NotSupported
from zoo.layers import BatchNorm, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU
from zoo.model import Model
from zoo.network import Backend
from zoo.precision import Gain
from zoo.recipe import SGD, Recipe
from zoo.runs import Run
from zoo.timing import Interval
from zoo.training import loop
from zoo.training.checkpoints import Checkpoint

TINY = "cnn-padded:out_1=4,out_2=4"
BF16 = {"precision": "bf16"}


# One thread everywhere: oneDNN's threads wait for each other in bfloat16 without sleeping, and beside other
# work a test would take minutes.


@pytest.fixture
def mixed(backend: Backend) -> Iterator[Backend]:
    """torch in this process."""
    if backend.name != "torch":
        pytest.skip(f"{backend.name} trains in float32 only")
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield backend
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def _single() -> Iterator[list[Worker]]:
    running: list[Worker] = []
    yield running
    for worker in running:
        worker.close()


@pytest.fixture
def mixed_worker(framework: str, _single: list[Worker], monkeypatch: pytest.MonkeyPatch) -> Worker:
    """torch in a process of its own, which builds and comparisons share, too."""
    if framework != "torch":
        pytest.skip(f"{framework} trains in float32 only")
    if not _single:
        _single.append(Worker("torch", 1))
    shared = copy.copy(_single[0])
    shared.close = lambda: None  # type: ignore[method-assign]
    monkeypatch.setenv("ZOO_THREADS", "1")
    monkeypatch.setattr("backends.process.client.Worker", lambda *_, **__: shared)
    return shared


def network(backend: Backend, model: Model, weights: dict[str, np.ndarray], **how: str):
    return backend.build(model, weights, **how)  # type: ignore[arg-type]


def first_step(
    backend: Backend,
    model: Model,
    weights: dict[str, np.ndarray],
    batch: tuple[np.ndarray, np.ndarray],
    **how: str,
) -> FirstStep:
    made = network(backend, model, weights, **how)
    made.share_masks(len(batch[1]))
    return FirstStep(*made.gradients(*batch, seed=1))


def batch_of(model: Model, digits: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    count = model.recipe.batch_size
    return data.to_float(digits.train_images[:count]), digits.train_labels[:count]


def judged(
    backend: Backend, model: Model, batch: tuple[np.ndarray, np.ndarray]
) -> tuple[FirstStep, mixed_precision.Limits]:
    """The step in float64, and the limits of one in bf16."""
    weights = zoo.init_weights(model)
    exact = first_step(backend, model, weights, batch, dtype="float64")
    coarse = {name: precision.rounded(array) for name, array in weights.items()}
    rounded = first_step(backend, model, coarse, (precision.rounded(batch[0]), batch[1]), dtype="float64")
    found = mixed_precision.distance(exact, rounded)
    return exact, mixed_precision.limits(found, len(batch[1]), len(list(model.walk())))


def result(distance: mixed_precision.Distance, limits: mixed_precision.Limits) -> mixed_precision.MixedParity:
    return mixed_precision.MixedParity("m", "digits", 8, "torch", "bf16", False, distance, distance, limits)


# What it computes.


def test_weights_and_outputs_stay_float32(mixed: Backend, digits: data.Dataset) -> None:
    """Training differs from float32 by more than float32's rounding, prediction by nothing."""
    model = zoo.get("lenet-dropout")
    weights = zoo.init_weights(model)
    images, labels = batch_of(model, digits)
    trained = {}
    for wish in precision.PRECISIONS:
        made = network(mixed, model, weights, precision=wish)
        before = made.predict(images)
        np.testing.assert_array_equal(before, network(mixed, model, weights).predict(images))
        made.train_epoch(images, labels, np.arange(len(labels)), model.recipe, lambda *_: None, 1)
        trained[wish] = made.weights()
        tensors, _ = made.state()
        kinds = {array.dtype for name, array in tensors.items() if not name.startswith("random:")}
        assert kinds == {np.dtype(np.float32)}
        np.testing.assert_array_equal(
            made.predict(images), network(mixed, model, made.weights()).predict(images)
        )
    difference = max(
        np.abs(trained["bf16"][name] - array).max() for name, array in trained["float32"].items()
    )
    assert 1e-6 < difference < 0.1


@pytest.mark.parametrize("row", [row for row in rows() if row.values[0].parameters and row.values[0].labels])
def test_every_layer_trains(mixed: Backend, row: Model) -> None:
    """Its gradients are float32's but for bfloat16's rounding, whatever type its output has."""
    images = np.random.default_rng(0).random((16, *row.input_shape), dtype=np.float32)
    labels = np.arange(16) % len(row.labels)
    weights = zoo.init_weights(row)
    exact, found = (
        first_step(mixed, row, weights, (images, labels), precision=wish) for wish in precision.PRECISIONS
    )
    np.testing.assert_allclose(found.loss, exact.loss, rtol=0.02)
    distance = mixed_precision.distance(exact, found)
    assert distance.whole < 0.1
    for array in found.gradients.values():
        assert array.dtype == np.float32


def test_masks_of_dropout_are_those_of_float32(mixed: Backend, digits: data.Dataset) -> None:
    """A rate that bfloat16 does not hold; without the mask's own type a share of 0.004 more would be kept."""
    model = Model("m", (1, 28, 28), (Dropout(0.3), Flatten(), Dense(10)), Recipe(SGD(0.1), 64, 1))
    images = np.ones((64, 1, 28, 28), np.float32)
    labels = np.zeros(64, int)
    found = []
    for wish in precision.PRECISIONS:
        made = network(mixed, model, zoo.init_weights(model), precision=wish)
        found.append(made.gradients(images, labels, 3)[1]["dense1.weight"])
    np.testing.assert_array_equal(found[0] == 0, found[1] == 0)
    np.testing.assert_allclose(found[1], found[0], rtol=0.03)


def test_it_goes_on_bit_for_bit(mixed: Backend, digits: data.Dataset) -> None:
    model = zoo.get("convnet-deep")  # Adam and dropout
    split = data.split(digits, 60, seed=1, limit=450).as_float()
    kept: list[Checkpoint] = []

    def train(start: Checkpoint | None = None) -> loop.Trained:
        made = network(mixed, model, zoo.init_weights(model, 0 if start is None else 9), precision="bf16")
        keeper = None if start else loop.Keeper(kept.append, 0.0)
        return loop.train(made, model.recipe, split, seed=3, epochs=2, keeper=keeper, start=start)

    whole = train()
    assert [(each.epoch, each.step) for each in kept][:4] == [(1, 1), (1, 2), (1, 3), (2, 0)]
    for start in kept[1:5:3]:
        again = train(Checkpoint.from_dict(json.loads(json.dumps(start.to_dict())), start.tensors))
        assert again.history == whole.history
        for name, array in whole.weights.items():
            np.testing.assert_array_equal(again.weights[name], array, err_msg=name)


@pytest.mark.parametrize("name", zoo.names())
def test_the_first_step_on_cuda(mixed: Backend, name: str, digits: data.Dataset) -> None:
    """Under the limits that hold on the CPU, which the step in float64 there gives."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model = zoo.get(name)
    batch = batch_of(model, digits)
    exact, limits = judged(mixed, model, batch)
    found = first_step(mixed, model, zoo.init_weights(model), batch, device="cuda", precision="bf16")
    judgement = result(mixed_precision.distance(exact, found), limits)
    assert judgement.passed, judgement.findings


def test_a_graph_of_a_step_on_cuda(mixed: Backend, digits: data.Dataset) -> None:
    """Two epochs give the same bits twice, and losses near the CPU's."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model = zoo.get("cnn-padded")
    split = data.split(digits, 0, limit=400).as_float()

    def losses(device: str) -> list[float]:
        made = network(mixed, model, zoo.init_weights(model), device=device, precision="bf16")
        return [row[2] for row in loop.train(made, model.recipe, split, seed=3, epochs=2).history]

    found = losses("cuda")
    assert losses("cuda") == found
    np.testing.assert_allclose(found, losses("cpu"), rtol=0.01)


def test_what_does_not_train_in_it(mixed: Backend) -> None:
    model = zoo.get(TINY)
    weights = zoo.init_weights(model)
    with pytest.raises(NotSupported, match="a float64 network does not train in bf16"):
        network(mixed, model, weights, dtype="float64", precision="bf16")
    with pytest.raises(NotSupported, match="'torch:compile' does not train in bf16"):
        network(backends.load("torch:compile"), model, weights, precision="bf16")


# What a step is held to.


@pytest.mark.parametrize("name", [*zoo.names(), "batch normalisation"])
def test_the_first_step_is_within_its_limits(name: str, mixed: Backend, digits: data.Dataset) -> None:
    """Of bf16; that of float32 far within, and one whose weights have 3 bits beyond."""
    layers = (Conv2d(8, 3), BatchNorm(), ReLU(), MaxPool2d(2), Flatten(), Dense(10))
    model = Model("m", (1, 28, 28), layers, Recipe(SGD(0.1), 64, 1)) if " " in name else zoo.get(name)
    batch, weights = batch_of(model, digits), zoo.init_weights(model)
    exact, limits = judged(mixed, model, batch)
    found, float32 = (
        result(
            mixed_precision.distance(exact, first_step(mixed, model, weights, batch, precision=wish)), limits
        )
        for wish in ("bf16", "float32")
    )
    assert found.passed, found.findings
    distance = float32.found
    assert (
        max(distance.whole / limits.whole, distance.worst[1] / limits.tensor, distance.loss / limits.loss)
        < 0.05
    )
    mantissa, exponent = zip(*(np.frexp(array) for array in weights.values()), strict=True)
    coarse = {
        key: np.ldexp(np.round(m * 8) / 8, e).astype(np.float32)
        for key, m, e in zip(weights, mantissa, exponent, strict=True)
    }
    wrong = first_step(mixed, model, coarse, batch, precision="bf16")
    beyond = result(mixed_precision.distance(exact, wrong), limits)
    assert not beyond.passed
    assert "bf16: the gradient of all weights differs by" in "".join(beyond.findings)


EXACT = FirstStep(2.0, {"a": np.array([3.0, 4.0]), "b": np.array([1.0]), "c": np.zeros(2)})
LIMITS = mixed_precision.Limits(loss=1e-3, whole=0.05, tensor=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"a": np.array([3.1, 4.1])}, None),
        ({"a": np.array([3.3, 4.3])}, "the gradient of all weights differs by 8.3e-02"),
        ({"b": np.array([1.2])}, "the gradient of b differs by 2.0e-01"),
        ({"b": np.array([0.0])}, "the gradient of b differs by 1.0e+00"),
        ({"c": np.array([0.001, 0.0])}, None),  # 0 but for rounding
        ({"c": np.array([0.05, 0.0])}, "the gradient of c differs"),
        ({"a": np.array([np.nan, 4.0])}, "the gradient of all weights differs by nan"),
    ],
)
def test_a_wrong_gradient_is_found(change: dict[str, np.ndarray], message: str | None) -> None:
    found = result(
        mixed_precision.distance(EXACT, FirstStep(2.0, {**EXACT.gradients, **change})), LIMITS
    ).findings
    if message is None:
        assert found == []
    else:
        assert any(message in sentence for sentence in found), found


@pytest.mark.parametrize("loss", [2.01, np.nan, np.inf])
def test_a_wrong_loss_is_found(loss: float) -> None:
    found = result(mixed_precision.distance(EXACT, FirstStep(loss, EXACT.gradients)), LIMITS).findings
    assert len(found) == 1
    assert "the loss of the first step differs by" in found[0]


def test_nothing_is_made_to_fit() -> None:
    with pytest.raises(CheckFailed, match="other names or shapes"):
        mixed_precision.distance(EXACT, FirstStep(2.0, {**EXACT.gradients, "b": np.zeros(2)}))


def test_the_limits() -> None:
    """Three and four times what one rounding does, and the roundings themselves."""
    none = mixed_precision.Distance(0.0, 0.0, {"a": 0.0})
    assert mixed_precision.limits(none, 64, 8) == (2.0**-10, 2.0**-6, 2.0**-6)
    some = mixed_precision.Distance(0.0, 0.03, {"a": 0.05, "b": 0.01})
    np.testing.assert_allclose(mixed_precision.limits(some, 64, 8)[1:], [0.09134, 0.20061], rtol=1e-3)
    much = mixed_precision.Distance(0.0, 0.03, {"a": 0.3})
    assert mixed_precision.limits(much, 64, 8).tensor == 0.5


def test_rounding_to_bfloat16() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.1, 0.0, 3e38], np.float32)
    expected = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -0.10009765625, 0.0]
    np.testing.assert_array_equal(precision.rounded(values)[:6], np.array(expected, np.float32))
    many = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.abs(precision.rounded(many) / many - 1).max() <= precision.UNIT_ROUNDOFF


def test_rounding_is_torchs(mixed: Backend) -> None:
    torch = pytest.importorskip("torch")
    many = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(
        precision.rounded(many), torch.from_numpy(many).to(torch.bfloat16).float().numpy()
    )


# Whether a processor gains.


@pytest.mark.parametrize(
    ("speed", "device", "sentence"),
    [
        (1.8, "cpu", "bf16: 1.80 times as fast a step as float32 on this processor"),
        (1.05, "cpu", "bf16: 1.05 times as fast a step as float32 on this processor"),
        (1.04, "cpu", "bf16 gains nothing on this processor (1.04 times as fast): leave --precision out"),
        (0.7, "cuda", "bf16 gains nothing on this device (0.70 times as fast): leave --precision out"),
    ],
)
def test_what_is_said_of_the_speed(speed: float, device: str, sentence: str) -> None:
    assert Gain("bf16", device, Interval(speed, speed, speed)).sentence == sentence


def test_steps_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own: a step of 3 s and one of 2 s, whatever else takes time."""
    now, done = [0.0], []

    def step(name: str, seconds: float) -> None:
        now[0] += seconds
        done.append(name)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    steps = {"float32": lambda: step("float32", 3.0), "bf16": lambda: step("bf16", 2.0)}
    assert precision.speed(steps, "bf16") == (1.5, 1.5, 1.5)
    assert len(done) == 16  # eight of each
    assert done[:4] == ["float32", "float32", "bf16", "bf16"]


def test_instructions_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_tile amx_bf16 avx512f\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert machine.bfloat16_instructions() == ["amx_bf16", "avx512_bf16"]
    monkeypatch.setattr(Path, "read_text", lambda self: "flags\t: fpu avx2\n")
    assert machine.bfloat16_instructions() == []


def test_the_measurement_changes_nothing(mixed_worker: Worker, digits: data.Dataset) -> None:
    """A training after it has the bits of one without it."""
    model = zoo.get("lenet-dropout")
    mixed_worker.send_data(data.split(digits, 0, limit=256))
    found = []
    for timed in (False, True):
        made = mixed_worker.build(model, zoo.init_weights(model), precision="bf16")
        if timed:
            speed = made.time_step("bf16", 0)
            assert 0 < speed.low <= speed.value <= speed.high
        found.append(made.train(seed=0, epochs=1))
    assert found[0].history == found[1].history
    for name, array in found[0].weights.items():
        np.testing.assert_array_equal(found[1].weights[name], array, err_msg=name)


# The commands.


def test_a_run(mixed_worker: Worker, tmp_path: Path) -> None:
    """Its report and card say how it was trained; another precision is another run."""
    model = zoo.get(TINY)

    def built(**changes: object) -> tuple[dict, str, bool]:
        said: list[str] = []
        chosen = Options(**{"data": "digits", "epochs": 1, "limit": 300, "out": tmp_path, **changes})
        (outcome,) = build.build([model], ["torch"], chosen, said.append)
        assert outcome.error is None
        assert outcome.report is not None
        return outcome.report, "\n".join(said), outcome.up_to_date

    path = tmp_path / "cnn-padded" / "torch"
    report, said, _ = built()
    assert report["precision"] == {"name": "float32"}
    assert "precision" not in Run(path).manifest()["inputs"], "as in runs from before there was a choice"
    assert "bf16" not in said + (path / "README.md").read_text()

    report, said, _ = built(**BF16)
    assert 'precision was "float32", now "bf16": training anew' in said
    assert "times as fast" in said
    found = report["precision"]
    assert found["name"] == "bf16"
    assert found["speed"]["low"] <= found["speed"]["value"] <= found["speed"]["high"]
    assert found["instructions"] == machine.bfloat16_instructions()
    assert "steps in bf16, weights in float32" in (path / "README.md").read_text()
    assert built(**BF16)[2], "up to date"

    assert built(epochs=0, **BF16)[0]["precision"]["speed"] is None, "nothing was trained"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", TINY, "--precision", "fp8"], "unknown precision 'fp8' (--precision); "),
        (["build", TINY, "--precision", "bf16", "--pretrained"], "--pretrained does not train (--precision)"),
        (["parity", TINY, "--precision", "fp8"], "unknown precision 'fp8'"),
        (
            ["parity", TINY, "--precision", "bf16", "--steps", "3"],
            "bf16 is compared in its first step (--steps)",
        ),
    ],
)
def test_bad_options(arguments: list[str], message: str, run) -> None:
    found = run(*arguments, "--data", "digits")
    assert found.code == 2
    assert message in found.err


def test_backends_that_know_float32_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by name, before anything is read or trained."""
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    chosen = Options(data="digits", out=tmp_path, **BF16)  # type: ignore[arg-type]
    message = r"the backend 'keras' does not train in bf16 \(--precision\); use --backend torch"
    with pytest.raises(NotSupported, match=message):
        build.build([zoo.get(TINY)], ["torch", "keras"], chosen, lambda _: None)
    assert list(tmp_path.iterdir()) == []
    for name in ("reference", "keras:jax", "torch:compile"):
        with pytest.raises(NotSupported, match=f"'{name}' does not train in bf16"):
            backends.require_precision(name, "bf16")
    backends.require_precision("torch", "bf16")
    assert mixed_precision.choose([], "bf16") == "torch"
    with pytest.raises(NotSupported, match=message):
        mixed_precision.choose(["torch", "keras"], "bf16")
    monkeypatch.setattr(backends, "require_precision", lambda *_: None)
    with pytest.raises(InvalidInput, match="within one backend, not 2"):
        mixed_precision.choose(["torch", "keras"], "bf16")


def test_the_parity_command(mixed_worker: Worker, run, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Worker] = [mixed_worker]
    real = mixed_precision.Worker
    monkeypatch.setattr(mixed_precision, "Worker", lambda *_: started.pop() if started else real("torch", 1))
    again = ("parity", TINY, "--precision", "bf16", "--data", "digits")
    found = run(*again, "--accuracy", "--seeds", 2, "--epochs", 1, "--limit", 300, "--json")
    (report,) = json.loads(found.out)
    assert report["precision"] == "bf16"
    assert report["float32"]["whole"] < report["found"]["whole"] < report["limits"]["whole"]
    (accuracy,) = report["accuracy"]
    assert len(accuracy["differences"]) == 2
    assert found.code == (0 if accuracy["verdict"] == "equivalent" else 1)


@pytest.mark.parametrize("whole", [0.01, 0.2])
def test_what_parity_prints(whole: float, run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table and the exit code of a result, whoever computed it."""
    found = result(mixed_precision.Distance(1e-5, whole, {"a": 0.02, "b": 0.03}), LIMITS)
    found = dataclasses.replace(found, float32=mixed_precision.Distance(1e-8, 1e-7, {"a": 2e-6, "b": 1e-6}))
    monkeypatch.setattr(mixed_precision, "check", lambda *_: iter([found]))
    monkeypatch.setattr(mixed_precision, "choose", lambda *_: "torch")
    told = run("parity", TINY, "--precision", "bf16", "--data", "digits")
    assert "torch in bf16 and in float64, the first step of 8 images of digits" in told.out
    rows = [line.split() for line in told.out.splitlines()]
    assert ["loss", "1.0e-05", "1.0e-03", "1.0e-08"] in rows
    assert ["3.0e-02", "b", "1.0e-01", "2.0e-06"] in rows
    assert told.code == (0 if whole < 0.05 else 1)
    assert ("differs: bf16: the gradient of all weights differs by 2.0e-01" in told.out) == (whole > 0.05)
