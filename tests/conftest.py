"""Which backends are tested, and what every test may rely on.

ZOO_TEST_BACKENDS names the backends that must be present ("torch", "keras", "torch,keras", or ""
for none); without it, those that are installed are tested and the others are skipped by name.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

# Before anything imports keras: the settings in the developer's home must not matter.
os.environ.setdefault("KERAS_HOME", tempfile.mkdtemp(prefix="zoo-tests-keras-"))
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import backends
import zoo
from backends.process.client import Worker
from export.inference import seal
from zoo import cli, data
from zoo.network import Backend

REQUIRED = os.environ.get("ZOO_TEST_BACKENDS")
FRAMEWORKS = ("torch", "keras")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-frameworks",
        action="store_true",
        help="only tests that use a framework; the others are the same in the session without any",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--only-frameworks"):
        using = {"framework", "worker", "workers", "backend"}
        chosen = [item for item in items if using & set(getattr(item, "fixturenames", ()))]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


def _unavailable(name: str) -> str | None:
    """Why a backend is not tested here; None if it is. Fails if it is required and missing."""
    if REQUIRED is not None and name not in REQUIRED.split(","):
        return f"{name} is not part of this session"
    if REQUIRED is not None:
        backends.require(name)
        return None
    return None if backends.installed(name) else f"{name} is not installed"


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    """Each backend that trains, by name."""
    reason = _unavailable(request.param)
    if reason:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="session")
def _running() -> Iterator[dict[str, Worker]]:
    running: dict[str, Worker] = {}
    yield running
    for worker in running.values():
        worker.close()


@pytest.fixture
def worker(framework: str, _running: dict[str, Worker]) -> Worker:
    """A process for each backend that trains; tests share it, so none may end it."""
    if framework not in _running:
        _running[framework] = Worker(framework)
    return _running[framework]


@pytest.fixture
def lasting_workers(monkeypatch: pytest.MonkeyPatch, _running: dict[str, Worker]) -> None:
    """Builds share a process per framework: to start one takes most of a short build's time."""

    def lasting(name: str, threads: int | None = None) -> Worker:
        if name not in _running:
            _running[name] = Worker(name)
        shared = copy.copy(_running[name])
        shared.close = lambda: None  # type: ignore[method-assign]
        return shared

    monkeypatch.setattr("backends.process.client.Worker", lasting)


@pytest.fixture
def backend(framework: str) -> Backend:
    """Each backend that trains, loaded into this process."""
    return backends.load(framework)


@pytest.fixture(scope="session")
def workers(_running: dict[str, Worker]) -> dict[str, Worker]:
    """A process for each backend that trains; all of them must be present."""
    for name in FRAMEWORKS:
        reason = _unavailable(name)
        if reason:
            pytest.skip(reason)
    for name in FRAMEWORKS:
        _running.setdefault(name, Worker(name))
    return {name: _running[name] for name in FRAMEWORKS}


class Result:
    """What a command gave: its exit code, its output, its errors."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> object:
        return json.loads(self.out)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setattr("zoo.cli.verifying.SEARCH", 0.2)  # seconds
    monkeypatch.setattr("zoo.cli.verifying._drawn_seed", lambda: 0)

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main([str(argument) for argument in arguments])
        return Result(done.value.code, *capfd.readouterr())

    return call


@pytest.fixture(params=[*zoo.names(), "lenet-5"])
def model(request: pytest.FixtureRequest) -> zoo.Model:
    """Every registered model that reads digits; the others have tests of their own."""
    return zoo.get(request.param)


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    """The embedded data set."""
    return data.digits()


@pytest.fixture(scope="session")
def images(digits: data.Dataset) -> np.ndarray:
    """24 real test images, float32 (24, 1, 28, 28) in [0, 1]."""
    return data.to_float(digits.test_images[:24])


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder of real MNIST that ZOO_DATA names; tests that use it are marked `mnist`."""
    folder = data.find(Path(os.environ["ZOO_DATA"])) if os.environ.get("ZOO_DATA") else None
    if folder is None:
        pytest.skip("ZOO_DATA names no folder with MNIST")
    return folder


def sealed(proto: ModelProto) -> bytes:
    """The bytes of a file with hashes that fit them, as somebody would write them who wants to be believed."""
    kept = [(e.key, e.value) for e in proto.metadata_props if e.key not in (seal.KEY, seal.PARTS)]
    del proto.metadata_props[:]
    for key, value in kept:
        proto.metadata_props.add(key=key, value=value)
    parts = seal.list_of_parts(proto.SerializeToString(deterministic=True))
    for key, value in ((seal.PARTS, parts), (seal.KEY, seal.ZEROS)):
        proto.metadata_props.add(key=key, value=value)
    return seal.fill(proto.SerializeToString(deterministic=True))
