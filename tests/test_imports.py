"""Who imports what, seen in a fresh process: the architecture, and start-up that stays light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import command, loaded

from benchmarks.drawing import draw, grey
from zoo import cli

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "tensorflow",
    "keras",
    "jax",
    "onnx",
    "onnxruntime",
    "numpy",
    "safetensors",
    "requests",
    "tqdm",
}


def test_nothing_appears_in_the_home_of_a_user(tmp_path: Path) -> None:
    """Nor in the temporary folder: what onnxruntime, matplotlib and others like to leave there."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    grey(1 - draw(3)).save(tmp_path / "three.png")
    dropped = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME", "MPLCONFIGDIR"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    shipped = ROOT / "zoo" / "pretrained" / "cnn-padded.onnx"
    for arguments in (
        ["doctor", str(shipped)],
        ["predict", "cnn-padded", str(tmp_path / "three.png")],
        ["export", "cnn-padded", "--data", "digits", "-o", str(tmp_path / "digits.onnx")],
        ["plot", "cnn-padded", "kernels", "-o", str(tmp_path / "kernels.png")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *arguments],
            env={**environment, "HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []
    assert {str(path.relative_to(home)) for path in home.rglob("*")} <= {
        ".cache", ".cache/cnn-zoo", ".cache/cnn-zoo/matplotlib",
        *(str(p.relative_to(home)) for p in (home / ".cache/cnn-zoo/matplotlib").glob("fontlist*")),
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "--json"],
        ["show", "convnet"],
        ["show", "cnn-padded", "--json"],
        ["show", "convnet", "--diagram", "mermaid"],
        ["show", "convnet", "--diagram", "dot"],
        ["show", "convnet", "--code", "torch"],
        ["show", "convnet", "--code", "keras"],
        ["show", "convnet", "--code", "numpy"],
        ["build", "--help"],
        ["parity", "--help"],
        ["env", "--help"],
        ["doctor", "--help"],
        ["export", "--help"],
        ["bench", "--help"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    modules = loaded(command(*arguments))
    assert not modules & HEAVY
    assert not modules & ({"export"} if "--code" in arguments else {"backends", "export"})


@pytest.mark.parametrize("name", cli.cli.commands)
def test_the_help_of_every_command_is_light(name: str) -> None:
    assert not loaded(command(name, "--help")) & (HEAVY | {"backends", "export"})


# What a command may load, of what is heavy. Those that ask a framework have one in a worker's process; for
# them test_export_knows_no_framework speaks.
RUNS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "list": ((), set()),
    "show": (("cnn-tiny",), set()),
    "predict": (("lenet-dropout", "three.png"), {"numpy", "onnxruntime"}),
    "plot": (
        ("lenet-dropout", "kernels", "-o", "kernels.png"),
        {"numpy", "onnx", "onnxruntime", "safetensors"},
    ),
    "doctor": ((str(ROOT / "zoo" / "pretrained" / "lenet-dropout.onnx"),), {"numpy", "onnxruntime"}),
    "spec": (("show", "lenet-dropout"), set()),
    "filter": (
        ("three.png", "--kernel", "sharpen", "-o", "sharp.png"),
        {"numpy", "onnx", "onnxruntime", "safetensors"},
    ),
    "data": (("digits",), {"numpy", "requests"}),
    "env": ((), {"numpy"}),
    "completion": (("bash",), set()),
}
WITH_WORKERS = {"build", "verify", "selftest", "parity", "export", "bench", "report", "import"}


def test_every_command_is_among_them() -> None:
    assert {*RUNS, *WITH_WORKERS} == set(cli.cli.commands)


@pytest.mark.parametrize("name", RUNS)
def test_a_command_loads_what_it_needs(name: str, tmp_path: Path) -> None:
    grey(1 - draw(3)).save(tmp_path / "three.png")
    arguments, allowed = RUNS[name]
    code = command(name, *arguments)
    if name == "env":  # which lists the backends of others
        code = code.replace("importlib.metadata.entry_points = scanned", "")
    assert not (loaded(code, tmp_path) & HEAVY) - allowed


def test_the_names_of_backends_import_none_of_them() -> None:
    modules = loaded("import backends; backends.names(); backends.training_names(); backends.variant_names()")
    assert not modules & {"torch", "tensorflow", "keras", "jax", "zoo_jax", "numpy"}


def test_the_published_tests_alone_need_pytest() -> None:
    names = ["zoo", "zoo.cli", "backends.process.client", "backends.process.worker", "export.runs.build"]
    assert "pytest" not in loaded("\n".join(f"import {name}" for name in names))
    assert "pytest" in loaded("import zoo.testing")


def test_importing_the_zoo_imports_no_numpy() -> None:
    assert not loaded("import zoo; zoo.get('convnet').parameters") & HEAVY


def test_no_module_of_zoo_knows_a_framework_or_who_uses_it() -> None:
    names = sorted(
        path.stem for path in (ROOT / "zoo").glob("*.py") if path.stem not in ("__main__", "testing")
    )
    modules = loaded("\n".join(f"import zoo.{name}" for name in names if name != "__init__"))
    assert not modules & {"torch", "tensorflow", "keras", "jax", "onnx", "onnxruntime", "backends", "export"}


def test_export_knows_no_framework() -> None:
    names = sorted(path.stem for path in (ROOT / "export").glob("*.py"))
    modules = loaded("\n".join(f"import export.{name}" for name in names if name != "__init__"))
    assert not modules & {"torch", "tensorflow", "keras", "jax"}
    assert {"export", "backends", "onnx"} <= modules


def test_the_doctor_needs_numpy_and_onnxruntime_alone() -> None:
    modules = loaded("import export.inference.doctor")
    assert {"numpy", "onnxruntime", "zoo"} <= modules
    assert not modules & {
        "onnx",
        "torch",
        "tensorflow",
        "keras",
        "jax",
        "matplotlib",
        "backends",
        "safetensors",
    }


def test_a_backend_knows_its_framework_alone(framework: str) -> None:
    modules = loaded(f"import backends; backends.load({framework!r})")
    assert framework in modules
    assert not modules & ({"torch", "keras"} - {framework})
    assert "export" not in modules


def test_the_check_sees_what_it_forbids() -> None:
    assert "numpy" in loaded("import numpy") & HEAVY
    with pytest.raises(subprocess.CalledProcessError):
        loaded(command("list") + "\nimportlib.metadata.entry_points()")


@pytest.mark.parametrize("hidden", ["backends.py", "export.py", "export/__init__.py"])
def test_a_shadowed_package_is_named(hidden: str, tmp_path: Path) -> None:
    path = tmp_path / hidden
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "env"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "is hidden by another of that name" in done.stderr
    assert str(path) in done.stderr


def test_a_shadowing_folder_does_not_reach_the_worker(tmp_path: Path, framework: str) -> None:
    (tmp_path / "backends.py").write_text("raise SystemExit('the wrong module')")
    code = f"""
import backends, os
from backends.process.client import Worker
os.chdir({str(tmp_path)!r})
os.environ["PYTHONPATH"] = {str(tmp_path)!r}
with Worker({framework!r}) as worker:
    assert worker.versions()
"""
    assert "backends" in loaded(code)
