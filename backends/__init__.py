"""HOW: one module per framework, and the NumPy reference. None of them knows another.

`load(name)` imports a framework into this process; PyTorch and TensorFlow should not share one,
so the product runs every backend in a worker of its own (`backends.process.client`).

Other distributions add backends by entry points of the group `zoo.backends`. They are looked up when a
backend is asked for, and imported when it is used, in its worker; nobody can take a name that is ours.

>>> import backends, zoo
>>> model = zoo.get("cnn-padded")
>>> network = backends.load("reference").build(model, zoo.init_weights(model))
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import BackendUnavailable, InvalidInput, MachineError, NotSupported, ZooError, nearest

if TYPE_CHECKING:
    from zoo.network import Backend, Original

__all__ = [
    "ENGINES",
    "GROUP",
    "Plugin",
    "canonical",
    "distributions",
    "folder_name",
    "install_command",
    "installed",
    "is_slow",
    "load",
    "names",
    "names_with",
    "original",
    "own_names",
    "plugins",
    "require",
    "require_device",
    "require_precision",
    "training_names",
    "trains",
    "variant_names",
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
    "reference": _Entry("backends.reference.network", (), "", "", (), trains=False),
    "torch": _Entry(
        "backends.pytorch.backend",
        ("torch",),
        "pip install torch torchvision onnxscript",
        "torch",
        ("torch", "onnxscript"),
        devices=("cpu", "cuda"),
        precisions=("float32", "bf16"),
        originals="backends.pytorch.originals",
    ),
    "keras": _Entry(
        "backends.keras3.backend",
        ("keras", "tensorflow"),
        "pip install keras tensorflow tf2onnx",
        "keras",
        ("keras", "tensorflow", "tf2onnx"),
        originals="backends.keras3.originals",
    ),
}


@dataclass(frozen=True)
class _Engine:
    needs: tuple[str, ...]  # import names
    distributions: tuple[str, ...]
    trains: bool = True
    devices: tuple[str, ...] = ("cpu",)


COMPILED = "torch:compile"
ENGINES: dict[str, dict[str, _Engine]] = {  # by backend: what it can run on, written keras:jax
    "torch": {"compile": _Engine(("torch",), ("torch",), trains=False)},
    "keras": {
        "tensorflow": _Engine(("keras", "tensorflow"), ("keras", "tensorflow", "tf2onnx")),
        "jax": _Engine(("keras", "jax"), ("keras", "jax", "jaxlib"), devices=("cpu", "cuda")),
        "torch": _Engine(("keras", "torch"), ("keras", "torch", "onnxscript"), devices=("cpu", "cuda")),
    },
}
GROUP = "zoo.backends"  # of entry points: name = "module:function", a function backend(engine) -> Backend
# Words that commands take in the place of a backend, and the folders of the runs of keras:jax and others.
_RESERVED = {"all", "onnx", *(f"{base}-{engine}" for base, engines in ENGINES.items() for engine in engines)}


@dataclass(frozen=True)
class Plugin:
    """A backend of another distribution, as its metadata describe it: nothing was imported.

    distribution, version: what to name when it fails. requires: the distributions that it needs, which
    with it are those whose versions a run depends on. A plug-in trains, on the CPU.
    """

    name: str
    distribution: str
    version: str
    requires: tuple[str, ...]
    entry_point: EntryPoint

    @property
    def origin(self) -> str:
        """The distribution and its version: "zoo-jax 0.1.0"."""
        return f"{self.distribution} {self.version}"

    def load(self) -> Backend:
        """Import and call it; raises BackendUnavailable, whatever goes wrong, with the inner error."""
        try:
            backend: Backend = self.entry_point.load()(None)
            found = backend.name
            complete = callable(backend.build) and callable(backend.versions)
        except (Exception, SystemExit) as error:
            raise self._unusable(f"{type(error).__name__}: {error}") from error
        if found != self.name or not complete:
            raise self._unusable(f"{self.entry_point.value} gave {backend!r}, no backend of that name")
        return backend

    def _unusable(self, why: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"the backend {self.name!r} of {self.origin} is installed but cannot be used: {why}",
            "",
            f"ask its authors, or run: pip uninstall {self.distribution}",
        )


def plugins() -> tuple[Plugin, ...]:
    """The backends that other distributions add, by their metadata, in the order of names.

    Two of one name are both there, and so is one that takes a name of ours: they cannot be used.
    """
    return _plugins(tuple(sys.path))


@functools.cache
def _plugins(path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """path: where distributions are looked for; they don't change while a process runs."""
    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        distribution = entry.dist
        if distribution is None:  # only of entry points that were made by hand
            continue
        # "jax>=0.7; python_version > '3'" -> jax; what an extra needs is not needed.
        needed = [text for text in distribution.requires or () if "extra ==" not in text]
        requires = tuple(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in needed)
        found.append(Plugin(entry.name, distribution.name, distribution.version, requires, entry))
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.distribution)))


def own_names() -> list[str]:
    """The names of the backends of the zoo itself, installed or not. Looks for no others."""
    return list(_ENTRIES)


def names() -> list[str]:
    """The names of all backends: ours, installed or not, and those that other distributions add."""
    return list(dict.fromkeys([*_ENTRIES, *(plugin.name for plugin in plugins())]))


def trains(name: str) -> bool:
    """Whether a backend can train. The reference and torch:compile only infer."""
    base, _, engine = name.partition(":")
    if base not in _ENTRIES:
        return name in names()
    engines = ENGINES.get(base, {})
    return _ENTRIES[base].trains and (not engine or (engine in engines and engines[engine].trains))


def training_names() -> list[str]:
    """The backends that are installed and can train: what `--backend all` means.

    One for each framework: Keras on its other engines trains as well, but is asked for by name.
    """
    return [name for name in names() if trains(name) and installed(name)]


def variant_names() -> list[str]:
    """What is installed and not among `training_names`: Keras on its other engines, torch compiled."""
    variants = [f"{base}:{engine}" for base, engines in ENGINES.items() for engine in engines]
    return [name for name in variants if canonical(name) == name and installed(name)]


def is_slow(name: str) -> bool:
    """Whether a backend takes many seconds before it computes: it compiles the whole network."""
    return name == COMPILED


def distributions(name: str) -> tuple[str, ...]:
    """The distributions whose versions a run on this backend depends on."""
    entry, engine = _resolve(name)
    if isinstance(entry, Plugin):
        return (entry.distribution, *entry.requires)
    return entry.distributions if engine is None else engine.distributions


def install_command(name: str) -> str:
    """The command that installs a backend's framework; "" for the reference, and for a plug-in."""
    entry, _ = _resolve(name)
    return "" if isinstance(entry, Plugin) else entry.install


def installed(name: str) -> bool:
    """Whether the framework of a backend can be found, without importing it.

    Of a plug-in: whether nothing else has its name. That it works is known when it is loaded.
    """
    try:
        _require(name)
    except BackendUnavailable:
        return False
    return True


def require(name: str) -> None:
    """Raise BackendUnavailable, with the install command, if a backend's framework is missing.

    Also if a plug-in claims the name of one of ours, or two of them the same. Raises InvalidInput for an
    unknown backend or engine. Imports nothing.
    """
    base = name.partition(":")[0]
    if base in _ENTRIES:
        for plugin in plugins():
            if plugin.name == base:
                raise _conflict(base, _OURS, plugin.origin, plugin.distribution)
    _require(name)


def _require(name: str) -> None:
    entry, engine = _resolve(name)
    if isinstance(entry, Plugin):
        return
    needs = entry.needs if engine is None else engine.needs
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
    devices = ("cpu",) if isinstance(entry, Plugin) else (engine or entry).devices
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
    precisions = ("float32",) if engine or isinstance(entry, Plugin) else entry.precisions
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
    entry, _ = _resolve(name)
    if isinstance(entry, Plugin):
        return entry.load()
    try:
        module = importlib.import_module(entry.module)
        backend: Backend = module.backend(name.partition(":")[2] or None)
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

    file: its weights; None: the framework's own random ones from `seed`. Raises NotSupported where the
    framework has none that the zoo knows.
    """
    entry, _ = _resolve(backend)
    if isinstance(entry, Plugin) or not entry.originals:
        raise NotSupported(f"the backend {backend!r} has no models of its own")
    module = importlib.import_module(entry.originals)
    made: Original = module.original(name, file, seed)
    return made


def canonical(name: str) -> str:
    """The one name of a backend: keras:tensorflow is keras. Raises InvalidInput if it is unknown."""
    _resolve(name)
    return "keras" if name == "keras:tensorflow" else name


def folder_name(name: str) -> str:
    """The name of a backend as part of a path: keras:jax -> keras-jax."""
    return name.replace(":", "-")


_OURS = "cnn-zoo"


def _resolve(name: str) -> tuple[_Entry | Plugin, _Engine | None]:
    base, colon, engine = name.partition(":")
    if base in _ENTRIES and not colon:
        return _ENTRIES[base], None
    if base not in ENGINES:
        claims = [] if colon else [plugin for plugin in plugins() if plugin.name == name]
        if not claims:
            raise InvalidInput(f"unknown backend {name!r}", "--backend", nearest(name, names()))
        first, *others = claims
        if others:
            raise _conflict(name, first.origin, others[0].origin, f"{first.distribution}, or the other")
        if name in _RESERVED or not re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", name):
            raise BackendUnavailable(
                f"{name!r} cannot be the name of a backend", first.origin, "its authors must rename it"
            )
        return first, None
    if engine not in ENGINES[base]:
        raise InvalidInput(f"unknown {base} engine {engine!r}", "--backend", nearest(engine, ENGINES[base]))
    return _ENTRIES[base], ENGINES[base][engine]


def _conflict(name: str, one: str, other: str, superfluous: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"both {one} and {other} have a backend {name!r}", "", f"run: pip uninstall {superfluous}"
    )


# Read by TensorFlow when it is imported: no start-up log.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
