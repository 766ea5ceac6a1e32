"""Models by name. A registered function makes a Model; its documented parameter count is checked.

Groups: the five of the source documents are "documented"; others will have groups of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.errors import InvalidInput, InvalidSpec, nearest
from zoo.model import Model
from zoo.spec.file import load_spec, parse_spec

DOCUMENTED = "documented"


@dataclass(frozen=True)
class Entry:
    """One registered model: the function that makes it and the count its document implies."""

    make: Callable[..., Model]
    parameters: int
    group: str


_entries: dict[str, Entry] = {}


def register(
    name: str, *, parameters: int, group: str = DOCUMENTED
) -> Callable[[Callable[..., Model]], Callable[..., Model]]:
    """Register a function that makes a Model from keyword parameters with integer defaults.

    parameters: how many numbers the model with its default parameters must have.
    """

    def decorate(make: Callable[..., Model]) -> Callable[..., Model]:
        if name in _entries:
            raise ValueError(f"two models are registered as {name!r}")
        _entries[name] = Entry(make, parameters, group)
        return make

    return decorate


def names(group: str = DOCUMENTED) -> list[str]:
    """The registered names of a group, in the order of their documents; "all" for every group."""
    _load()
    return [name for name, entry in _entries.items() if group in ("all", entry.group)]


def get(name: str, **parameters: int) -> Model:
    """The registered model `name`, made with the given parameters.

    A parameter may also stand in the name, as on the command line: "cnn-padded:out_1=8".
    Raises InvalidInput for an unknown name or parameter, InvalidSpec for an impossible value.
    """
    _load()
    name, _, inline = name.partition(":")
    if name not in _entries:
        raise InvalidInput(f"unknown model {name[:100]!r}", "", nearest(name[:100], _entries))
    for item in filter(None, inline.split(",")):
        key, _, number = item.partition("=")
        if not (number.isascii() and number.isdecimal()) or len(number) > 9:
            raise InvalidInput(f"{item!r} is not parameter=integer", f"{name}:{inline}")
        parameters[key.strip()] = int(number)
    entry = _entries[name]
    defaults = {p.name: p.default for p in inspect.signature(entry.make).parameters.values()}
    for key, value in parameters.items():
        if key not in defaults:
            known = nearest(key, defaults) if defaults else "it takes none"
            raise InvalidInput(f"{name} has no parameter {key!r}", "", known)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidInput(f"{key}={value!r} is not an integer", name)
    changed = {key: value for key, value in parameters.items() if value != defaults[key]}
    model = entry.make(**changed)
    if model.name != name:
        raise AssertionError(f"{name} is registered, but its model is called {model.name}")
    if not changed and model.parameters != entry.parameters:
        raise AssertionError(f"{name} has {model.parameters:,} parameters, its document {entry.parameters:,}")
    return replace(model, arguments=tuple(sorted(changed.items())))


def resolve(text: str) -> tuple[Model, Path | None]:
    """The model that a command-line argument names, and its run folder if it names one.

    text: a registered name with parameters, a spec file, or a run folder, whose spec is checked
    against its manifest. Raises InvalidInput with the nearest name if it is none of them.
    """
    from zoo.runs import Run

    if text.partition(":")[0] in names("all"):
        return get(text), None
    path = Path(text)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):  # too long, NUL
        return get(text), None
    if is_folder:
        run = Run(path)
        run.recover()
        return check_builtin(parse_spec(run.read("spec.json"), str(path / "spec.json")), path), path
    if exists:
        return check_builtin(load_spec(path), path), None
    return get(text), None


def check_builtin(model: Model, where: object) -> Model:
    """The model itself, unless it is another one under a registered name: then InvalidSpec."""
    _load()
    if model.name in _entries and model != get(model.name, **dict(model.arguments)):
        raise InvalidSpec(f"{model.name!r} is the name of a built-in model", where, "rename the spec")
    return model


def _load() -> None:
    import zoo.models  # noqa: F401  (its import registers the models)
