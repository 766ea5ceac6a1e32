"""HOW: one module per framework, and the NumPy reference. None of them knows another.

`load(name)` imports a framework into this process; PyTorch and TensorFlow should not share one,
so the product runs every backend in a worker of its own (`backends.client`).

>>> import backends, zoo
>>> model = zoo.get("cnn-padded")
>>> network = backends.load("reference").build(model, zoo.init_weights(model))
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import BackendUnavailable, InvalidInput, MachineError, NotSupported, ZooError, nearest

if TYPE_CHECKING:
    from zoo.network import Backend, Original

__all__ = [
    "ENGINES",
    "canonical",
    "distributions",
    "folder_name",
    "inference_names",
    "install_command",
    "installed",
    "is_slow",
    "load",
    "names",
    "names_with",
    "original",
    "require",
    "require_device",
    "require_precision",
    "training_names",
    "trains",
]


@dataclass(frozen=True)
class _Entry:
    module: str  # has a function `backend(engine) -> Backend`
    needs: tuple[str, ...]  # import names of the framework
    install: str
    extra: str
    distributions: tuple[str, ...]  # whose versions a run depends on
    trains: bool = True
    devices: tuple[str, ...] = ("cpu",)  # where it can train
    precisions: tuple[str, ...] = ("float32",)  # in which a step of training can compute
    originals: str = ""  # the module that gives the framework's own models, `original(name, file, seed)`


_ENTRIES = {
    "reference": _Entry("backends.reference", (), "", "", (), trains=False),
    "torch": _Entry(
        "backends.pytorch",
        ("torch",),
        "pip install torch torchvision onnxscript",
        "torch",
        ("torch", "onnxscript"),
        devices=("cpu", "cuda"),
        precisions=("float32", "bf16"),
        originals="backends.torchvision_models",
    ),
    "keras": _Entry(
        "backends.keras3",
        ("keras", "tensorflow"),
        "pip install keras tensorflow tf2onnx",
        "keras",
        ("keras", "tensorflow", "tf2onnx"),
        originals="backends.keras_applications",
    ),
}
COMPILED = "torch:compile"
ENGINES: dict[
    str, dict[str, tuple[str, ...]]
] = {  # by backend: what it can run on, written keras:jax, and the import names that this needs
    "torch": {"compile": ("torch",)},
    "keras": {
        "tensorflow": ("keras", "tensorflow"),
        "jax": ("keras", "jax"),
        "torch": ("keras", "torch"),
    },
}


def names() -> list[str]:
    """The names of all backends, installed or not."""
    return list(_ENTRIES)


def trains(name: str) -> bool:
    """Whether a backend can train. Keras does on TensorFlow; on other engines it infers only."""
    return name in _ENTRIES and _ENTRIES[name].trains


def training_names() -> list[str]:
    """The backends that are installed and can train, in their order."""
    return [name for name in _ENTRIES if trains(name) and installed(name)]


def inference_names() -> list[str]:
    """What is installed and only infers: Keras on its other engines, torch compiled."""
    variants = [f"{base}:{engine}" for base, engines in ENGINES.items() for engine in engines]
    return [name for name in variants if canonical(name) == name and installed(name)]


def is_slow(name: str) -> bool:
    """Whether a backend takes many seconds before it computes: it compiles the whole network."""
    return name == COMPILED


def distributions(name: str) -> tuple[str, ...]:
    """The distributions whose versions a run on this backend depends on."""
    return _resolve(name)[0].distributions


def install_command(name: str) -> str:
    """The command that installs a backend's framework; "" for the reference."""
    return _resolve(name)[0].install


def installed(name: str) -> bool:
    """Whether the framework of a backend can be found, without importing it."""
    try:
        require(name)
    except BackendUnavailable:
        return False
    return True


def require(name: str) -> None:
    """Raise BackendUnavailable, with the install command, if a backend's framework is missing.

    Raises InvalidInput for an unknown backend or engine. Imports nothing.
    """
    entry, engine = _resolve(name)
    needs = entry.needs if engine is None else ENGINES[name.partition(":")[0]][engine]
    missing = [module for module in needs if importlib.util.find_spec(module) is None]
    if missing:
        install = entry.install if engine is None else f"pip install {' '.join(needs)}"
        checkout = (Path(__file__).parents[1] / "pyproject.toml").is_file()
        if checkout and engine is None:
            install = f"pip install -e '.[{entry.extra}]'"
        raise BackendUnavailable(
            f"the backend {name!r} needs {' and '.join(missing)}, not installed",
            "",
            f"run: {install}",
        )


def require_device(name: str, device: str) -> None:
    """Raise MachineError if a backend does not train on a device at all, "cpu" or "cuda".

    Whether the machine has one, the backend itself finds out.
    """
    entry, engine = _resolve(name)
    devices = entry.devices if engine is None else ("cpu",)
    if device not in devices:
        raise MachineError(
            f"the device {device!r} is not available for the backend {name!r}",
            "--device",
            f"it trains on {' or '.join(devices)}",
        )


def names_with(precision: str) -> list[str]:
    """The backends, installed or not, that train in a precision."""
    return [name for name, entry in _ENTRIES.items() if entry.trains and precision in entry.precisions]


def require_precision(name: str, precision: str) -> None:
    """Raise NotSupported if a backend does not train in a precision, "float32" or "bf16"."""
    entry, engine = _resolve(name)
    precisions = entry.precisions if engine is None else ("float32",)
    if precision not in precisions:
        able = names_with(precision)
        raise NotSupported(
            f"the backend {name!r} does not train in {precision}",
            "--precision",
            f"use --backend {' or '.join(able)}" if able else f"use {' or '.join(precisions)}",
        )


def load(name: str) -> Backend:
    """Import a backend into this process.

    "keras" runs on TensorFlow; "keras:jax" and "keras:torch" are the same code on another engine, and
    "torch:compile" is torch with every network compiled.
    Raises InvalidInput for an unknown name, BackendUnavailable if the framework is missing or
    cannot be imported (with the inner error).
    """
    require(name)
    entry, engine = _resolve(name)
    try:
        module = importlib.import_module(entry.module)
        backend: Backend = module.backend(engine)
    except ZooError:
        raise
    except Exception as error:
        raise BackendUnavailable(
            f"the backend {name!r} is installed but cannot be used: {type(error).__name__}: {error}",
            "",
            f"reinstall it: {entry.install}",
        ) from error
    return backend


def original(backend: str, name: str, file: str | None, seed: int) -> Original:
    """One of the framework's own models, such as torchvision's resnet18, in this process.

    file: its weights; None: the framework's own random ones from `seed`.
    """
    module = importlib.import_module(_resolve(backend)[0].originals)
    made: Original = module.original(name, file, seed)
    return made


def canonical(name: str) -> str:
    """The one name of a backend: keras:tensorflow is keras. Raises InvalidInput if it is unknown."""
    _resolve(name)
    return "keras" if name == "keras:tensorflow" else name


def folder_name(name: str) -> str:
    """The name of a backend as part of a path: keras:jax -> keras-jax."""
    return name.replace(":", "-")


def _resolve(name: str) -> tuple[_Entry, str | None]:
    base, colon, engine = name.partition(":")
    if base not in _ENTRIES or (colon and base not in ENGINES):
        raise InvalidInput(f"unknown backend {name!r}", "--backend", nearest(name, names()))
    if colon and engine not in ENGINES[base]:
        raise InvalidInput(f"unknown {base} engine {engine!r}", "--backend", nearest(engine, ENGINES[base]))
    return _ENTRIES[base], engine or None


# The frameworks read these when they are imported: their own chatter is nobody's news.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
