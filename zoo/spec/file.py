"""Spec files: a model as TOML or JSON, read strictly and written whole.

Both languages have one schema (zoo.spec.schema, published as docs/spec.schema.json); the spec.json of a run
is such a file with every default written out. What a file may say in short, and a run's never does:

- padding = "same" on a convolution or pool, which becomes the four sides for the size of its input;
- blocks, layers that are used several times (zoo.spec.blocks);
- nothing where the language has a default.

Every error names the field, and the line where it stands.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from zoo.errors import DataError, InvalidInput, InvalidSpec, nearest
from zoo.model import LARGEST_SPEC, Model
from zoo.spec.form import from_dict

LANGUAGES = ("toml", "json")
MOST_DOTS = 50  # in a TOML key; a spec's deepest has three
_LONG_KEY = re.compile(rf"(?:[\w\"'-]+[ \t]*\.[ \t]*){{{MOST_DOTS}}}")


def load_spec(path: str | Path) -> Model:
    """The model that a spec file describes: TOML if its name ends in .toml, else JSON.

    Raises DataError if the file cannot be read, InvalidSpec (naming field and line) if it is wrong.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidSpec("not a regular file", path, "give a .toml or .json file")
        with path.open("rb") as file:
            raw = file.read(LARGEST_SPEC + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read the spec: {reason}", path) from None
    return parse_spec(raw, str(path), "toml" if path.suffix.lower() == ".toml" else "json")


def parse_spec(raw: bytes, where: str, language: str = "json") -> Model:
    """The model of a spec's text in UTF-8; raises InvalidSpec, naming field and line."""
    if len(raw) > LARGEST_SPEC:
        raise InvalidSpec(f"larger than {LARGEST_SPEC:,} bytes", where)
    try:
        text = raw.decode("utf-8")
        if language == "toml" and _LONG_KEY.search(text):  # it would take time and memory by its square
            raise InvalidSpec(f"a key of more than {MOST_DOTS} parts", where)
        data = tomllib.loads(text) if language == "toml" else _json(text)
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"not UTF-8 at byte {error.start}", where) from None
    except json.JSONDecodeError as error:
        raise InvalidSpec(
            f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}", where
        ) from None
    except tomllib.TOMLDecodeError as error:
        message = str(error).replace("(at ", "at ").rstrip(")")
        raise InvalidSpec(f"not TOML: {message[:200]}", where) from None
    except RecursionError:
        raise InvalidSpec("nested too deeply", where) from None
    except ValueError as error:
        what = "an integer of thousands of digits" if "int_max_str_digits" in str(error) else str(error)
        raise InvalidSpec(what[:200], where) from None
    try:
        return from_dict(data, where)
    except InvalidSpec as error:
        line = _line(text, language, error, where)
        raise InvalidSpec(error.what, f"{error.where}{line}", error.hint) from None
    except RecursionError:
        raise InvalidSpec("nested too deeply", where) from None


def write(model: Model, language: str) -> str:
    """The text of a model's spec file with every default written out; reading it gives the model."""
    if language not in LANGUAGES:
        raise InvalidInput(f"unknown language {language!r}", "--format", nearest(language, LANGUAGES))
    if language == "json":
        return model.to_json()
    import tomlkit

    data = model.to_dict()
    document = tomlkit.document()
    for key, value in data.items():
        if key in ("layers", "recipe") or (not value and key != "labels"):
            continue
        document[key] = value
    document["layers"] = tomlkit.parse(f"layers = {_toml_layers(data['layers'])}")["layers"]
    recipe = tomlkit.table()
    recipe.update({key: value for key, value in data["recipe"].items() if value is not None})
    document["recipe"] = recipe
    return tomlkit.dumps(document)


def _toml_layers(layers: list[dict[str, Any]], margin: str = "") -> str:
    """A TOML array of one table per line, branches in it likewise."""
    inside = f"{margin}    "
    rows = [
        f"{inside}{{ {', '.join(f'{name} = {_toml(value, inside)}' for name, value in layer.items())} }},\n"
        for layer in layers
    ]
    return f"[\n{''.join(rows)}{margin}]" if rows else "[]"


def _toml(value: Any, margin: str) -> str:
    """A value of a layer: layers, branches of them, or what a library writes."""
    import tomlkit

    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _toml_layers(value, margin)
    if isinstance(value, list) and value and isinstance(value[0], list):
        inside = f"{margin}    "
        rows = [f"{inside}{_toml_layers(branch, inside)},\n" for branch in value]
        return f"[\n{''.join(rows)}{margin}]"
    return str(tomlkit.item(value).as_string())


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the field {key!r} stands twice")
        result[key] = value
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that a spec may hold")


# Lines: where in the text a field stands. Only asked for once a file was found to be wrong.


def _line(text: str, language: str, error: InvalidSpec, where: str) -> str:
    """ ", line 12": of the innermost part of the text that an error is about; "" if it has none."""
    lines: dict[str, int] = {}
    with contextlib.suppress(IndexError, RecursionError):
        _Scanner(text, lines).read(language)
    part, _, field = error.where.removeprefix(where).lstrip(".").partition(": ")
    names = [field.rpartition(".")[2], *re.findall(r"'(\w+)'", error.what)]
    candidates = [f"{part}.{name}".lstrip(".") for name in names if name]
    while part:
        candidates.append(part)
        part = re.sub(r"(\.[^.\[]*|\[\d+\]|^[^.\[]*)$", "", part)
    return next((f", line {lines[each]}" for each in candidates if each in lines), "")


class _Scanner:
    """The line of every field of a text that is known to be sound JSON or TOML, by path."""

    def __init__(self, text: str, lines: dict[str, int]) -> None:
        self.text = text
        self.lines = lines
        self.position = 0
        self.line = 1

    def read(self, language: str) -> None:
        if language == "json":
            self._skip()
            self._value("")
            return
        prefix, counts = "", dict[str, int]()
        while self._skip():
            header = re.compile(r"(\[\[?)([^\]\n]+)\]\]?").match(self.text, self.position)
            if header:
                prefix = ""
                for part in re.sub(r"[\s\"']", "", header[2]).split("."):
                    within = f"{prefix}[{counts[prefix]}]" if prefix in counts else prefix
                    prefix = f"{within}.{part}".lstrip(".")
                if header[1] == "[[":
                    counts[prefix] = counts.get(prefix, -1) + 1
                    prefix = f"{prefix}[{counts[prefix]}]"
                self.lines[prefix] = self.line
                self._advance(len(header[0]))
            else:
                self._pair(prefix)

    def _advance(self, count: int) -> None:
        self.line += self.text.count("\n", self.position, self.position + count)
        self.position += count

    def _skip(self, also: str = "") -> bool:
        """Go on to the next thing; False at the end."""
        gap = re.compile(rf"(?:[\s{also}]|#[^\n]*)+").match(self.text, self.position)
        if gap:
            self._advance(len(gap[0]))
        return self.position < len(self.text)

    def _pair(self, prefix: str) -> None:
        key = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s=:"'])+""").match(self.text, self.position)
        if key is None:
            raise IndexError
        name = re.sub(r"[\"']", "", key[0])
        path = f"{prefix}.{name}".lstrip(".")
        self.lines.setdefault(path, self.line)
        self._advance(len(key[0]))
        self._skip("=:")
        self._value(path)

    def _value(self, path: str) -> None:
        opening = self.text[self.position]
        if opening not in "[{":
            quoted = r'"""(?:[^\\]|\\.)*?"""|' + r"'''.*?'''|" + r""""(?:[^"\\]|\\.)*"|'[^']*'|[^,\]}\n#]+"""
            token = re.compile(quoted, re.DOTALL).match(self.text, self.position)
            if token is None:
                raise IndexError
            self._advance(len(token[0]))
            return
        self._advance(1)
        self._skip(",")
        index = 0
        while self.text[self.position] not in "]}":
            if opening == "[":
                self.lines.setdefault(f"{path}[{index}]", self.line)
                self._value(f"{path}[{index}]")
                index += 1
            else:
                self._pair(path)
            self._skip(",")
        self._advance(1)
