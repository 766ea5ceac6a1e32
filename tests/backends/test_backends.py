"""The five models in every backend, the workers they run in, and how the frameworks meet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backends
import zoo
from backends.process.client import Worker, Workers, environment
from backends.reference import network
from export.crosscheck import compare
from zoo.errors import BackendUnavailable, InvalidInput, MachineError, NotSupported, WorkerDied
from zoo.layers import (
    Dense,
    Flatten,
)
from zoo.model import Model
from zoo.network import Backend


def test_names() -> None:
    assert backends.names()[:3] == ["reference", "torch", "keras"]
    assert not backends.trains("reference")
    assert backends.own_names() == ["reference", "torch", "keras"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch", "unknown backend 'pytorch'.*did you mean 'torch'"),
        ("reference:xla", "unknown backend 'reference:xla'"),
        ("torch:xla", "unknown torch engine 'xla'.*known: compile"),
        ("keras:theano", "unknown keras engine 'theano'.*known: tensorflow, jax, torch"),
    ],
)
def test_unknown_backends(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        backends.load(name)


def test_a_missing_framework_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = backends.importlib.util.find_spec
    missing = ("torch", "keras", "tensorflow", "jax")
    monkeypatch.setattr(backends, "plugins", tuple)
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name: None if name in missing else real(name)
    )
    with pytest.raises(
        BackendUnavailable, match=r"needs torch, not installed; run: pip install -e '\.\[torch\]'"
    ):
        backends.load("torch")
    with pytest.raises(BackendUnavailable, match="needs keras and tensorflow"):
        Worker("keras")
    with pytest.raises(BackendUnavailable, match="run: pip install keras"):
        backends.load("keras:jax")
    assert backends.training_names() == []
    assert backends.installed("reference")


def test_a_broken_framework_shows_the_inner_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "require", lambda name: None)

    def broken(name: str) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    with pytest.raises(BackendUnavailable, match="installed but cannot be used: OSError: libcudart"):
        backends.load("torch")


def test_a_row_does_not_depend_on_its_neighbours(model: Model, backend: Backend, images: np.ndarray) -> None:
    network = backend.build(model, zoo.init_weights(model), "float64")
    together = network.predict(images)
    for size in (1, 7):
        parts = [network.predict(images[i : i + size]) for i in range(0, len(images), size)]
        np.testing.assert_allclose(np.concatenate(parts), together, rtol=0, atol=1e-13)


def test_building_moves_nobodys_random_numbers(backend: Backend) -> None:
    model = zoo.get("lenet-dropout")
    before = np.random.get_state()[1].tolist()
    torch = sys.modules.get("torch")
    state = torch.get_rng_state().tolist() if torch else None
    network = backend.build(model, zoo.init_weights(model))
    images, labels = np.zeros((64, 1, 28, 28), np.float32), np.zeros(64, np.int64)
    network.train_epoch(images, labels, np.arange(64), model.recipe, lambda *_: None, 5)
    assert np.random.get_state()[1].tolist() == before
    assert (torch.get_rng_state().tolist() if torch else None) == state


def test_a_worker_passes_on_what_went_wrong(framework: str) -> None:
    model = zoo.get("lenet-dropout")
    with Worker(framework) as worker:
        with pytest.raises(InvalidInput, match="'int8' is neither"):
            worker.build(model, zoo.init_weights(model), "int8")
        with pytest.raises(
            WorkerDied, match=f"the backend '{framework}' failed to predict: RuntimeError"
        ) as bug:
            worker.ask("predict", {"images": np.zeros(1)})
        assert "no network was built yet" in bug.value.__notes__[0]
        assert worker.build(model, zoo.init_weights(model)).weights()  # it still answers


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (signal.SIGKILL, MachineError, "died while asked to predict: killed, as happens when memory"),
        (signal.SIGSEGV, WorkerDied, "died while asked to predict: SIGSEGV"),
    ],
)
def test_a_dead_worker_has_a_name(number: int, kind: type, message: str) -> None:
    with Worker("reference") as worker:
        worker.versions()
        os.kill(worker._process.pid, number)
        with pytest.raises(kind, match=f"the backend 'reference' {message}"):
            worker.ask("predict", {"images": np.zeros(1)})


def test_a_worker_leaves_nothing_behind() -> None:
    with Worker("reference") as worker:
        worker.versions()
        home, pid = Path(worker._home), worker._process.pid
        assert home.is_dir()
    assert not home.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_users_keras_settings_do_not_matter(framework: str, tmp_path: Path, images: np.ndarray) -> None:
    """A hostile keras.json in HOME changes nothing, and nothing appears there."""
    settings = tmp_path / ".keras"
    settings.mkdir()
    hostile = '{"floatx": "float16", "epsilon": 0.1, "backend": "jax", "image_data_format": "channels_first"}'
    (settings / "keras.json").write_text(hostile)
    script = (
        "import zoo, numpy, sys\nfrom backends.process.client import Worker\n"
        "model = zoo.get('lenet-dropout')\n"
        f"with Worker({framework!r}) as worker:\n"
        "    x = worker.build(model, zoo.init_weights(model)).predict(numpy.load(sys.argv[1]))\n"
        "numpy.save(sys.argv[2], x)\n"
    )
    np.save(tmp_path / "in.npy", images)
    env = {k: v for k, v in os.environ.items() if not k.startswith("KERAS")} | {"HOME": str(tmp_path)}
    arguments = [sys.executable, "-c", script, str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    subprocess.run(arguments, env=env, check=True)
    model = zoo.get("lenet-dropout")
    expected = network.backend().build(model, zoo.init_weights(model)).predict(images)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=1e-5)
    assert (settings / "keras.json").read_text() == hostile
    created = {path.name for path in tmp_path.iterdir()} - {".keras", "in.npy", "out.npy"}
    assert not created & {".cache", ".zoo"}
    assert list(settings.iterdir()) == [settings / "keras.json"]


def test_workers_that_were_started_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ended meanwhile is told when it is used, and then started anew."""
    started: list[str] = []
    begin = Worker.__init__

    def noted(self: Worker, name: str, *args: object, **kwargs: object) -> None:
        started.append(name)
        begin(self, name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "__init__", noted)
    with Workers() as workers:
        workers.start(["reference"])
        workers.start(["reference"])
        with workers.use("reference") as worker:
            assert worker.versions() == {"numpy": np.__version__}
        assert started == ["reference"]
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(MachineError, match="killed"), workers.use("reference") as worker:
            worker.versions()
        with workers.use("reference") as worker:
            worker.versions()
        assert started == ["reference", "reference"]


def test_a_worker_sees_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise Keras' engines take whatever is there; the user's own XLA flags stay."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    cpu, cuda = (environment("keras:jax", 1, "", device) for device in ("cpu", "cuda"))
    assert (cpu["CUDA_VISIBLE_DEVICES"], cpu["JAX_PLATFORMS"]) == ("-1", "cpu")
    assert (cuda["CUDA_VISIBLE_DEVICES"], cuda["JAX_PLATFORMS"]) == ("3", "")
    assert cpu["XLA_FLAGS"] == "--xla_dump_to=x"
    assert cuda["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_deterministic_ops=true"


def test_threads_are_told_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "garbage")
    assert environment("reference", 1, "")["OMP_NUM_THREADS"] == "1"
    with Worker("reference", threads=1) as worker:
        assert worker.versions()


@pytest.mark.cross
def test_weights_go_round_bit_for_bit(model: Model, workers: dict[str, Worker]) -> None:
    weights = zoo.init_weights(model, seed=2)
    moving = weights
    for name in ("torch", "keras", "torch"):
        moving = workers[name].build(model, moving).weights()
    for name, array in weights.items():
        np.testing.assert_array_equal(moving[name], array, err_msg=name)


@pytest.mark.cross
@pytest.mark.parametrize("engine", ["keras:jax", "keras:torch"])
def test_keras_on_its_other_engines(engine: str, images: np.ndarray) -> None:
    with Worker(engine) as worker:
        for name in zoo.names():
            model = zoo.get(name)
            weights = zoo.init_weights(model)
            expected = network.backend().build(model, weights).activations(images)
            for dtype in ("float32", "float64"):
                if engine == "keras:torch" and dtype == "float64":
                    with pytest.raises(NotSupported, match="matrix products of float64 in float32"):
                        worker.build(model, weights, dtype)
                    continue
                got = worker.build(model, weights, dtype).activations(images)
                for path, x in expected.items():
                    assert got[path].dtype == dtype
                    comparison = compare(got[path], x, dtype=dtype)
                    assert comparison.passed, f"{name} {path}: {comparison}"
                    if dtype == "float64":
                        assert comparison.max_abs_diff <= 1e-12 * np.abs(x).max()
            for key, array in worker.build(model, weights).weights().items():
                np.testing.assert_array_equal(array, weights[key])


def test_messages_end_with_the_stream(tmp_path: Path) -> None:
    from backends.process import messages

    path = tmp_path / "stream"
    with path.open("wb") as stream:
        messages.send(
            stream, {"do": "x", "n": [1, None]}, {"a": np.arange(6).reshape(2, 3), "b": np.float64(2)}
        )
    with path.open("rb") as stream:
        fields, arrays = messages.receive(stream)
        assert fields == {"do": "x", "n": [1, None]}
        np.testing.assert_array_equal(arrays["a"], [[0, 1, 2], [3, 4, 5]])
        with pytest.raises(EOFError):
            messages.receive(stream)
    path.write_bytes(path.read_bytes()[:-1])
    with path.open("rb") as stream, pytest.raises(EOFError):
        messages.receive(stream)


def test_compiled_networks_do_not_use_up_a_limit(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles a function so many times and no more, whichever network it is for."""
    if framework != "torch":
        pytest.skip("only torch compiles here")
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    compiled = backends.load("torch:compile")
    images = np.random.Generator(np.random.Philox(1)).random((3, 1, 4, 4), dtype=np.float32)
    for units in (2, 3, 4):
        model = Model(
            name="tiny",
            input_shape=(1, 4, 4),
            layers=(Flatten(), Dense(units)),
            labels=(),
            recipe=zoo.get("cnn-padded").recipe,
        )
        weights = zoo.init_weights(model)
        expected = backends.load("reference").build(model, weights)
        network = compiled.build(model, weights)
        for size in (3, 1, 2):
            np.testing.assert_allclose(
                network.predict(images[:size]), expected.predict(images[:size]), atol=1e-6
            )
