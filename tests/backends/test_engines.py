"""Keras trains on its other engines as it does on TensorFlow: by parity, in builds, and under the whole kit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backends
import zoo
from backends.parity import course
from backends.process import client
from backends.process.client import Worker
from export.runs import build
from export.runs.options import Options
from zoo import data
from zoo.errors import BackendUnavailable, MachineError, NotSupported
from zoo.layers import AvgPool2d, BatchNorm, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU, Softmax
from zoo.model import Model
from zoo.recipe import SGD, Adam, Optimizer, Recipe, RMSprop

OPTIMIZERS = [
    pytest.param(SGD(0.03, momentum=0.9, nesterov=True), id="nesterov"),
    pytest.param(Adam(1e-3), id="adam"),
    pytest.param(RMSprop(1e-3), id="rmsprop"),
]
# Warnings are errors in the process of the kit, too, wherever its folder is; but for one, as in pyproject.toml.
STRICT = (
    "-W",
    "error",
    "-W",
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
)
# A bias in front of BatchNorm has no gradient but rounding errors, which Adam divides by themselves.
LAYERS = (
    Conv2d(6, 5, stride=2, bias=False),
    BatchNorm(),
    ReLU(),
    MaxPool2d(2),
    Dropout(0.3),
    Conv2d(8, 3, padding=1),
    ReLU(),
    AvgPool2d(2),
    Flatten(),
    Dense(10),
)


def required(engine: str) -> None:
    try:
        backends.require(engine)
    except BackendUnavailable as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["keras:jax", "keras:torch"])
def engine(request: pytest.FixtureRequest) -> str:
    """Keras' other engines by name, where they are installed."""
    required(request.param)
    return str(request.param)


@pytest.fixture
def on_engine(engine: str, _running: dict[str, Worker]) -> Iterator[Worker]:
    """A process of the engine, which tests share."""
    if engine not in _running:
        _running[engine] = Worker(engine)
    return _running[engine]


def test_they_train_and_are_asked_for_by_name() -> None:
    for name in ("keras:jax", "keras:torch"):
        assert backends.trains(name)
        assert name not in backends.training_names(), "--backend all is one for each framework"
    assert not backends.trains("torch:compile")
    assert not backends.trains("keras:theano")
    assert backends.distributions("keras:jax") == ("keras", "jax", "jaxlib")
    assert "tensorflow" not in backends.distributions("keras:torch")


def follow(model: Model, pair: list[Worker], digits: data.Dataset, dtype: str, steps: int) -> course.Course:
    for worker in pair:
        worker.send_data(data.split(digits, 0))
    return course.follow(model, pair, dtype, course.Options(steps=steps), lambda *_: None)[0]


@pytest.mark.cross
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("end", [(), (Softmax(),)], ids=["logits", "probabilities"])
def test_an_engine_follows_the_path_of_torch(
    optimizer: Optimizer, end: tuple, on_engine: Worker, workers: dict[str, Worker], digits: data.Dataset
) -> None:
    """In float64 for 100 steps; Keras on torch has no float64, so ten steps of float32 there."""
    model = Model("small", (1, 28, 28), (*LAYERS, *end), Recipe(optimizer, batch_size=33, epochs=3))
    exact = on_engine.backend != "keras:torch"
    dtype, steps = ("float64", 100) if exact else ("float32", 10)
    found = follow(model, [workers["torch"], on_engine], digits, dtype, steps)
    assert found.passed, found.failure
    assert found.steps == steps
    if not exact:  # the limits of float64 judge the order of batches alone
        assert found.loss.largest < 1e-5
        assert found.worst_weight[1].largest < 1e-4


@pytest.mark.cross
def test_another_optimizer_is_noticed(
    on_engine: Worker, workers: dict[str, Worker], digits: data.Dataset
) -> None:
    """The same comparison, with an engine that was given another epsilon."""
    exact = on_engine.backend != "keras:torch"
    dtype = "float64" if exact else "float32"
    weights = []
    for worker, epsilon in ((workers["torch"], 1e-8), (on_engine, 1e-2)):
        model = Model("small", (1, 28, 28), LAYERS, Recipe(Adam(1e-3, epsilon=epsilon), 33, 1))
        worker.send_data(data.split(digits, 0))
        network = worker.build(model, zoo.init_weights(model), dtype)
        network.share_masks()
        weights.append([network.train_step(seed=0, step=k) for k in (1, 2)][-1][1])
    assert max(np.abs(weights[1][name] - x).max() for name, x in weights[0].items()) > 1e-4


@pytest.mark.cross
def test_float64_on_torch_is_refused() -> None:
    required("keras:torch")
    model = zoo.get("cnn-padded")
    with (
        Worker("keras:torch") as worker,
        pytest.raises(NotSupported, match="matrix products of float64 in float32"),
    ):
        worker.build(model, zoo.init_weights(model), "float64")


@pytest.mark.cross
def test_a_build_on_an_engine(engine: str, tmp_path: Path) -> None:
    options = Options(data="digits", epochs=1, limit=200, out=tmp_path)
    model = zoo.get("cnn-padded:out_1=4,out_2=4")
    (outcome,) = build.build([model], [engine], options, lambda _: None)
    assert outcome.error is None
    assert outcome.path == tmp_path / "cnn-padded" / engine.replace(":", "-")
    assert outcome.report is not None
    assert outcome.report["backend"] == engine
    assert set(backends.distributions(engine)) - {"onnxscript"} <= set(outcome.report["versions"])
    assert (outcome.path / "native.onnx").is_file() == (engine == "keras:torch")
    (again,) = build.build([model], [engine], options, lambda _: None)
    assert again.up_to_date


@pytest.fixture
def cuda_engine(engine: str) -> str:
    """Keras' other engines on a machine with a CUDA device, which CUDA_VISIBLE_DEVICES=0 shows to tests."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "-1" or not shutil.which("nvidia-smi"):
        pytest.skip("there is no CUDA device")
    return engine


def test_an_engine_on_cuda_follows_its_path_on_the_cpu(cuda_engine: str, digits: data.Dataset) -> None:
    exact = cuda_engine != "keras:torch"
    dtype, steps = ("float64", 30) if exact else ("float32", 10)
    model = Model("small", (1, 28, 28), LAYERS, Recipe(Adam(1e-3), batch_size=33, epochs=3))
    with Worker(cuda_engine) as cpu, Worker(cuda_engine, device="cuda") as cuda:
        found = follow(model, [cpu, cuda], digits, dtype, steps)
    assert found.passed, found.failure
    assert found.steps == steps
    if not exact:
        assert found.loss.largest < 1e-5
        assert found.worst_weight[1].largest < 1e-4


def test_a_build_on_cuda(cuda_engine: str, tmp_path: Path) -> None:
    """Documented models pass every check there, and the same training gives the same bits."""
    models = [zoo.get("cnn-padded"), zoo.get("lenet-dropout")]
    weights = []
    for folder in ("one", "two"):
        options = Options(data="digits", limit=600, out=tmp_path / folder, device="cuda")
        for outcome in build.build(models, [cuda_engine], options, lambda _: None):
            assert outcome.error is None, outcome.error
            assert outcome.report is not None
            assert outcome.path is not None
            assert outcome.report["device"] == "cuda"
            weights.append((outcome.path / "weights.safetensors").read_bytes())
    assert weights[: len(models)] == weights[len(models) :]


@pytest.mark.cross
def test_a_device_that_an_engine_does_not_find(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    model = zoo.get("cnn-padded")
    with (
        Worker(engine, device="cuda") as worker,
        pytest.raises(MachineError, match="'cuda' is not available: (jax|torch) finds none"),
    ):
        worker.build(model, zoo.init_weights(model))


@pytest.mark.engines
def test_the_kit(engine: str, tmp_path: Path) -> None:
    """Every published test of a backend, in a process that imports Keras on this engine."""
    exact = engine != "keras:torch"
    (tmp_path / "test_engine.py").write_text(
        "from zoo.testing import BackendTests\n\n\n"
        f"class TestEngine(BackendTests):\n    backend = {engine!r}\n    float64 = {exact}\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *STRICT, "test_engine.py"],
        cwd=tmp_path,
        env=client.environment(engine, 2, str(home)) | {"PYTHONPATH": str(Path(zoo.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
