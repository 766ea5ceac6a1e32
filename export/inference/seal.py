"""The hashes that an ONNX file of the zoo carries, and what they say of its bytes.

One SHA-256 is over the whole file, taken with its own 64 digits as zeros; it is found and compared
before any parser sees the file. Others are over its parts (each tensor, each node, labels, spec, test
vectors, ...), so that what was altered has a name. Both are over bytes as they lie in the file: a part
is the content of a protobuf field, and reading fields needs nothing but the wire format, in which
damaged bytes end in `Malformed` and never in more work than there are bytes.

Hashes tell accidents and carelessness, not forgers: who can write a file can hash it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Container, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

KEY = "zoo.sha256"
PARTS = "zoo.parts"
ZEROS = "0" * 64
MOST_FIELDS = 100_000  # of one message; a spec has at most 10,000 layers
FIRST_FIELDS = 256  # of a tensor or a node, among which its name is
LONGEST_NAME = 200  # bytes
LONGEST_LIST = 2**24  # bytes of the list of parts

# How protobuf writes the metadata entry KEY: 64 digits.
_HASH = re.compile(rb"\x0a\x0a" + re.escape(KEY).encode() + rb"\x12\x40([0-9a-f]{64})")

_FLOAT = 1  # onnx's number of float32

# Fields of onnx.proto that have a name here.
_GRAPH, _METADATA, _NODE, _INITIALIZER = 7, 14, 1, 5
_MODEL_FIELDS = {1: "IR version", 2: "producer", 3: "producer version", 8: "operator set"}
_GRAPH_FIELDS = {2: "name", 11: "input", 12: "output"}
_NAMES = {_NODE: 3, _INITIALIZER: 8, 11: 1, 12: 1}  # where a field of the graph holds its own name
_METADATA_NAMES = {
    "zoo.spec": "spec",
    "zoo.labels": "labels",
    "zoo.vectors": "test vectors",
    "zoo.expected": "expected outputs",
}


class Malformed(Exception):
    """Bytes that are no protobuf message; `position` is where that shows."""

    def __init__(self, position: int) -> None:
        super().__init__(f"no protobuf field at byte {position:,}")
        self.position = position


class Field(NamedTuple):
    """One field of a protobuf message: its number and where its content lies."""

    number: int
    start: int
    end: int


class Part(NamedTuple):
    """A part of a file: its name and the SHA-256 of its bytes."""

    name: str
    sha256: str


def fields(content: bytes, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of the message in content[start:end]; raises Malformed."""
    end = len(content) if end is None else end
    count = 0
    while start < end:
        at = start
        key, start = _varint(content, start, end)
        number, kind = key >> 3, key & 7
        if kind == 0:
            stop = _varint(content, start, end)[1]
        elif kind == 2:
            length, start = _varint(content, start, end)
            stop = start + length
        else:
            stop = start + {1: 8, 5: 4}.get(kind, end)
        count += 1
        if not number or stop > end or kind not in (0, 1, 2, 5) or count > MOST_FIELDS:
            raise Malformed(at)
        yield Field(number, start, stop)
        start = stop


def _varint(content: bytes, start: int, end: int) -> tuple[int, int]:
    """(number, position behind it) of protobuf's number of at most ten bytes."""
    number = 0
    for position in range(start, min(start + 10, end)):
        number |= (content[position] & 127) << 7 * (position - start)
        if content[position] < 128:
            return number, position + 1
    raise Malformed(start)


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of an ONNX file, by key; raises Malformed."""
    return dict(entries(content))


def entries(content: bytes) -> list[tuple[str, str]]:
    """Every key and value of the metadata of an ONNX file, in their order; raises Malformed."""
    return [_entry(content, field) for field in fields(content) if field.number == _METADATA]


def producer(content: bytes) -> tuple[str, str]:
    """The name and version of the program that wrote an ONNX file; raises Malformed."""
    found = {field.number: content[field.start : field.end] for field in fields(content)}
    return _text(found.get(2, b"")), _text(found.get(3, b""))


def outputs(content: bytes) -> int:
    """How many outputs the graph of an ONNX file has; raises Malformed."""
    graphs = [field for field in fields(content) if field.number == _GRAPH]
    return sum(f.number == 12 for graph in graphs for f in fields(content, graph.start, graph.end))


def weights(content: bytes, names: Container[str]) -> dict[str, np.ndarray]:
    """The float32 constants of an ONNX file that bear these names; raises Malformed.

    Of a matrix that is kept transposed the name ends in ".T", as exporters do with dense weights.
    """
    found = {}
    for name, shape, raw in _floats(content):
        plain = name.removesuffix(".T")
        if plain in names and len(raw) == 4 * math.prod(shape):
            array = np.frombuffer(raw, "<f4").reshape(shape)
            found[plain] = array if plain == name else array.T
    return found


def _floats(content: bytes) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """(name, shape, values) of every constant that is float32, as raw data or as a packed list of floats."""
    for graph in fields(content):
        if graph.number != _GRAPH:
            continue
        for tensor in fields(content, graph.start, graph.end):
            if tensor.number != _INITIALIZER:
                continue
            found = list(fields(content, tensor.start, tensor.end))
            last = {f.number: f for f in found}
            stored = 9 if 9 in last else 4
            if {2, 8, stored} <= last.keys() and _varint(content, last[2].start, last[2].end)[0] == _FLOAT:
                shape = [n for f in found if f.number == 1 for n in _varints(content, f.start, f.end)]
                name, raw = (content[last[n].start : last[n].end] for n in (8, stored))
                yield _text(name), tuple(shape), raw


def _varints(content: bytes, start: int, end: int) -> Iterator[int]:
    while start < end:
        number, start = _varint(content, start, end)
        yield number


def _entry(content: bytes, field: Field) -> tuple[str, str]:
    inner = {f.number: content[f.start : f.end] for f in fields(content, field.start, field.end)}
    return _text(inner.get(1, b"")), _text(inner.get(2, b""))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def parts(content: bytes) -> Iterator[Part]:
    """Every part of an ONNX file in order, except the hashes themselves; raises Malformed."""
    for field in fields(content):
        if field.number == _GRAPH:
            for inner in fields(content, field.start, field.end):
                yield _part(content, inner, _name_in_graph(content, inner))
        elif field.number == _METADATA:
            key = _entry(content, field)[0]
            if key not in (KEY, PARTS):
                yield _part(content, field, _METADATA_NAMES.get(key, f"metadata {key[:LONGEST_NAME]}"))
        else:
            yield _part(content, field, _MODEL_FIELDS.get(field.number, f"field {field.number}"))


def is_metadata(part: Part) -> bool:
    """Whether a part is an entry of the metadata."""
    return part.name in _METADATA_NAMES.values() or part.name.startswith("metadata ")


def _part(content: bytes, field: Field, name: str) -> Part:
    return Part(name, hashlib.sha256(memoryview(content)[field.start : field.end]).hexdigest())


def _name_in_graph(content: bytes, field: Field) -> str:
    """What a field of the graph is called: "conv1.weight" for a tensor, "graph: node conv1" for a node."""
    name = ""
    if field.number in _NAMES:
        for inner in islice(fields(content, field.start, field.end), FIRST_FIELDS):
            if inner.number == _NAMES[field.number]:
                name = _text(content[inner.start : min(inner.end, inner.start + LONGEST_NAME)])
    if field.number == _INITIALIZER:
        return name
    kind = "node" if field.number == _NODE else _GRAPH_FIELDS.get(field.number, f"field {field.number}")
    return f"graph: {kind} {name}".rstrip()


def list_of_parts(content: bytes) -> str:
    """The text of the metadata entry PARTS for a file that has no hashes yet."""
    text = json.dumps(list(parts(content)), separators=(",", ":"))
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}"


def fill(content: bytes) -> bytes:
    """The file with its own hash in its place; a file that has no place for it as it is."""
    place = _place(content)
    return content if place is None else content[: place[0]] + _digest(content, place) + content[place[1] :]


def digest(content: bytes) -> tuple[str, str] | None:
    """(the hash that a file carries, the hash that it has); None if it carries none."""
    place = _place(content)
    return place and (content[slice(*place)].decode(), _digest(content, place).decode())


def _place(content: bytes) -> tuple[int, int] | None:
    place = None
    for match in _HASH.finditer(content):
        place = match.span(1)
    return place


def _digest(content: bytes, place: tuple[int, int]) -> bytes:
    view = memoryview(content)
    total = hashlib.sha256(view[: place[0]])
    total.update(ZEROS.encode())
    total.update(view[place[1] :])
    return total.hexdigest().encode()


def altered(content: bytes) -> list[str]:
    """What the parts of a file differ in from the list that it carries: sentences, none if in nothing.

    Whatever the bytes are, this ends and raises nothing.
    """
    found: list[Part] = []
    try:
        expected = _expected(metadata(content).get(PARTS, ""))
        for part in parts(content):
            found.append(part)
    except Malformed as error:
        after = f", after {found[-1].name}" if found else ""
        return [f"structure altered: {error}{after}"]
    return ["the list of parts altered"] if expected is None else differences(expected, found)


def _expected(text: str) -> list[Part] | None:
    """The list of parts in a metadata entry; None if it is not as it was written."""
    total, _, rest = text.partition(" ")
    if len(text) > LONGEST_LIST or hashlib.sha256(rest.encode(errors="replace")).hexdigest() != total:
        return None
    try:
        return [Part(str(name), str(sha256)) for name, sha256 in json.loads(rest)]
    except (ValueError, TypeError, RecursionError):
        return None


def differences(expected: list[Part], found: list[Part]) -> list[str]:
    """What parts differ in from the expected ones: sentences, none if in nothing."""
    here, left = _counted(found), _counted(expected)
    wrong = [_sentence(name, "altered") for name, sha256 in left.items() if here.get(name) != sha256]
    wrong = wrong or [_sentence(name, "added") for name in here if name not in left]
    return wrong or ["parts put into another order"] * (list(here) != list(left))


def _counted(listed: list[Part]) -> dict[str, str]:
    """The hashes by name; of several parts of one name the later ones are numbered."""
    counts: dict[str, int] = {}
    result = {}
    for name, sha256 in listed:
        counts[name] = counts.get(name, 0) + 1
        result[f"{name} ({counts[name]})" if counts[name] > 1 else name] = sha256
    return result


def _sentence(name: str, verb: str) -> str:
    """For "graph: node conv1": "graph altered: node conv1"."""
    place, _, what = name.partition(": ")
    return f"{place} {verb}: {what}" if what else f"{name} {verb}"
