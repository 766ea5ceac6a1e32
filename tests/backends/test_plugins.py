"""Backends of other distributions: found by their metadata, imported when used, and named when they fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np
import pytest

import backends
import zoo
from backends.process.client import Worker
from backends.reference import network
from zoo.errors import BackendUnavailable, InvalidInput, MachineError, NotSupported

GOOD = """
from backends.reference import ReferenceBackend

class Again(ReferenceBackend):
    name = "again"

def backend(engine=None):
    return Again()
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one entry point, for this process and those that it starts."""
    site = tmp_path_factory.mktemp("site")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr(backends, "_plugins", backends._plugins.__wrapped__)  # what is found is not kept
    monkeypatch.syspath_prepend(site)

    def make(
        name: str, code: str = GOOD, *, value: str = "", distribution: str = "zoo-again", needs: str = ""
    ) -> None:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(code)
        about = site / f"{module}-1.2.dist-info"
        about.mkdir()
        required = "".join(f"Requires-Dist: {each}\n" for each in filter(None, needs.split(",")))
        about.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n{required}"
        )
        about.joinpath("entry_points.txt").write_text(
            f"[zoo.backends]\n{name} = {value or f'{module}:backend'}\n"
        )
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


def test_it_is_known_by_its_metadata(install: Install) -> None:
    install("again", needs='numpy>=2.1,fancy-lib[x]>=1; python_version > "3",pytest; extra == "test"')
    (plugin,) = (each for each in backends.plugins() if each.name == "again")
    assert plugin.origin == "zoo-again 1.2"
    assert plugin.requires == ("numpy", "fancy-lib")
    assert backends.distributions("again") == ("zoo-again", "numpy", "fancy-lib")
    assert "again" in backends.names()
    assert "again" not in backends.own_names()
    assert backends.trains("again")
    assert "again" in backends.training_names()
    assert backends.canonical("again") == backends.folder_name("again") == "again"
    assert backends.install_command("again") == ""
    assert "zoo_again" not in sys.modules, "nothing was imported"
    for wrong in ("again:xla", "agian"):
        with pytest.raises(InvalidInput, match=r"unknown backend.*did you mean 'again'"):
            backends.require(wrong)
    with pytest.raises(MachineError, match="it trains on cpu"):
        backends.require_device("again", "cuda")
    backends.require_precision("again", "float32")
    with pytest.raises(NotSupported, match="does not train in bf16"):
        backends.require_precision("again", "bf16")
    with pytest.raises(NotSupported, match="no models of its own"):
        backends.original("again", "resnet18", None, 0)


def test_it_computes_here_and_in_its_worker(install: Install, images: np.ndarray) -> None:
    install("again")
    model = zoo.get("cnn-padded")
    weights = zoo.init_weights(model)
    expected = network.backend().build(model, weights).predict(images)
    np.testing.assert_array_equal(backends.load("again").build(model, weights).predict(images), expected)
    with Worker("again") as worker, Worker("reference") as own:  # BLAS sums otherwise with other threads
        expected = own.build(model, weights).predict(images)
        np.testing.assert_array_equal(worker.build(model, weights).predict(images), expected)


BROKEN = {
    "no module": (GOOD, "nowhere:backend", "ModuleNotFoundError: No module named 'nowhere'"),
    "no function": ("", "", "AttributeError: module 'zoo_again' has no attribute 'backend'"),
    "its framework is missing": ("import no_such_framework", "", "No module named 'no_such_framework'"),
    "a mistake": ("1 / 0", "", "ZeroDivisionError: division by zero"),
    "it ends the process": ("import sys; sys.exit('no licence')", "", "SystemExit: no licence"),
    "no function at all": ("backend = 3", "", "TypeError: 'int' object is not callable"),
    "it gives nothing": ("def backend(engine=None): return None", "", "AttributeError: 'NoneType'"),
    "another name": (GOOD.replace('"again"', '"other"'), "", "no backend of that name"),
    "half a backend": (
        "class Half:\n name = 'again'\n build = versions = None\ndef backend(engine=None): return Half()",
        "",
        "no backend of that name",
    ),
    "an error of ours": (
        "from zoo.errors import MachineError\nraise MachineError('too old', 'x')",
        "",
        "MachineError: too old",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_one_is_named_when_it_is_used(fault: str, install: Install) -> None:
    code, value, inner = BROKEN[fault]
    install("again", code, value=value)
    assert "again" in backends.names()
    backends.require("again")
    with pytest.raises(BackendUnavailable) as caught:
        backends.load("again")
    assert "the backend 'again' of zoo-again 1.2 is installed but cannot be used" in str(caught.value)
    assert inner in str(caught.value)
    assert str(caught.value).endswith("pip uninstall zoo-again")


def test_a_broken_one_exits_3_and_disturbs_nobody_else(install: Install, run) -> None:
    install("again", "1 / 0")
    for arguments in (["list"], ["show", "convnet"], ["build", "--help"], ["predict", "--help"]):
        assert run(*arguments).code == 0
    used = run("verify", "cnn-padded", "--weights", "init", "--data", "digits", "--backend", "again")
    assert used.code == 3
    assert "the backend 'again' of zoo-again 1.2" in used.err
    assert "ZeroDivisionError" in used.err
    other = run("verify", "cnn-padded", "--weights", "init", "--data", "digits", "--backend", "reference")
    assert other.code == 0


def test_nobody_takes_a_name_of_ours(install: Install, monkeypatch: pytest.MonkeyPatch, run) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    install("torch", distribution="false-torch")
    message = "both cnn-zoo and false-torch 1.2 have a backend 'torch'; run: pip uninstall false-torch"
    for use in (backends.require, backends.load, Worker):
        with pytest.raises(BackendUnavailable, match=message):
            use("torch")
    assert "torch" in backends.training_names(), "so that it is told and not left out"
    assert backends.names().count("torch") == 1
    assert run("list").code == 0
    backends.require("keras")


def test_two_of_one_name_are_told_when_it_is_used(install: Install, run) -> None:
    install("again")
    install("again", distribution="zoo-twice")
    with pytest.raises(
        BackendUnavailable, match=r"both zoo-again 1.2 and zoo-twice 1.2 have a backend 'again'"
    ):
        backends.load("again")
    assert backends.names().count("again") == 1
    assert "again" not in backends.training_names()
    assert run("list").code == 0
    found = [each for each in run("env", "--json").json["plugins"] if each["backend"] == "again"]
    assert [each["distribution"] for each in found] == ["zoo-again", "zoo-twice"]
    assert not any(each["loads"] for each in found)


@pytest.mark.parametrize("name", ["all", "onnx", "keras-jax", "Torch", "a/b", ".."])
def test_a_name_that_means_something_else_is_refused(name: str, install: Install) -> None:
    install(name)
    with pytest.raises(BackendUnavailable, match=r"cannot be the name of a backend \(zoo-again 1.2\)"):
        backends.load(name)
    assert name not in backends.training_names()


def test_env_names_whose_it_is_before_it_loads(install: Install, run) -> None:
    install("again")
    install("broken", "1 / 0", distribution="zoo-broken")
    lines = run("env").out.splitlines()
    first = lines.index("again of zoo-again 1.2")
    assert lines[first + 1] == f"  loads: numpy {np.__version__}"
    second = lines.index("broken of zoo-broken 1.2")
    assert lines[second + 1].startswith("  does not load: the backend 'broken' of zoo-broken 1.2")
    assert "ZeroDivisionError" in lines[second + 1]
    plugins = {each["backend"]: each for each in run("env", "--json").json["plugins"]}
    assert list(plugins["again"])[:3] == ["backend", "distribution", "version"]
    assert plugins["again"]["loads"] is True
    assert plugins["broken"]["loads"] is False


def test_env_says_so_when_one_takes_its_process_down(install: Install, run) -> None:
    install("again", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (found,) = (each for each in run("env", "--json").json["plugins"] if each["backend"] == "again")
    assert "died while asked to hello: SIGSEGV" in found["error"]
