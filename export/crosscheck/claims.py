"""What an ONNX file says of itself, held to the model and the weights that it is verified for.

Numbers cannot tell that. A file with permuted labels computes the same; a flipped last bit in every weight
hides in what float32 may honestly differ. So its metadata must be those of this model with these weights,
its hash that of its bytes, and what the zoo's own exporter made must be, tensor by tensor and node by node,
what it makes. A file of an older version is held to its metadata and to its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

import zoo
from export.inference import seal
from export.inference.metadata import PRODUCER, VERSION, WEIGHTS
from export.inference.vectors import EXPECTED, GRID, IMAGES, decode
from export.onnx.file import metadata
from zoo.errors import DataError
from zoo.hashing import digest
from zoo.model import Model

SHOWN = 3  # parts in one sentence
LONGEST = 60  # characters of a value that is shown


class Claims(NamedTuple):
    """Sentences: what is not true, and what is worth telling without being wrong."""

    untrue: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check(
    content: bytes, model: Model, weights: Mapping[str, np.ndarray], direct: bytes, layers: bytes
) -> Claims:
    """What a file claims that does not hold for a model with its weights.

    direct, layers: what the zoo exports of them, without and with every layer as an output. A file that does
    not claim to be the zoo's has nothing to answer for.
    """
    try:
        entries, producer = seal.entries(content), seal.producer(content)
        if producer[0] != PRODUCER and not any(key.startswith("zoo.") for key, _ in entries):
            return Claims()
        told = dict(entries)
        older = told.get(VERSION) != zoo.__version__
        untrue = [*_entries(entries, producer, model, weights, older), *_hash(content, older)]
        if producer[0] == PRODUCER:
            canonical = layers if seal.outputs(content) > 1 else direct
            return Claims((*untrue, *_parts(content, canonical, weights, older)))
        own, notes = _tensors(content, weights, told.get(WEIGHTS, ""))
        return Claims((*untrue, *own), notes)
    except seal.Malformed as error:
        return Claims((f"not readable: {error}",))


def held(given: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What a network holds that is not, to the last bit, the weights it was given. A few wrong ones among
    thousands need not show on any image."""
    other = [
        name
        for name, array in given.items()
        if name not in found or found[name].tobytes() != np.ascontiguousarray(array).tobytes()
    ]
    return (f"it holds other weights than it was given: {_some(other)}",) if other else ()


def _entries(
    entries: list[tuple[str, str]],
    producer: tuple[str, str],
    model: Model,
    weights: Mapping[str, np.ndarray],
    older: bool,
) -> Iterator[str]:
    """What its metadata say that is not so."""
    told, expected = dict(entries), metadata(model, weights)
    for key in dict.fromkeys(key for key, _ in entries):
        if sum(key == other for other, _ in entries) > 1:
            yield f"{key} appears twice"
        if key.startswith("zoo.") and key not in (*expected, seal.KEY, seal.PARTS):
            yield f"{key} is {_shown(told[key])}, an entry that such a file does not have"
    for key, value in expected.items():
        if key == VERSION:
            if producer[0] == PRODUCER and producer[1] != told.get(key):
                yield f"{key} is {_shown(told.get(key))}, its producer's version {_shown(producer[1])}"
            elif _release(told.get(key, "")) > _release(value):
                yield f"{key} is {_shown(told.get(key))}, this is {value}"
        elif key not in told:
            yield f"{key} is missing"
        elif told[key] != value:
            if key in (IMAGES, EXPECTED) and (older or _alike(told, expected, model)):
                continue
            yield f"{key} is {_shown(told[key])}, not {_shown(value)}"


def _shown(value: str | None) -> str:
    if value is None:
        return "nothing"
    return repr(value if len(value) <= LONGEST else f"{value[:LONGEST]}...")


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version; beyond all others if it has none."""
    numbers = version.split(".")
    return tuple(map(int, numbers)) if all(part.isdecimal() for part in numbers) else (2**31,)


def _alike(told: Mapping[str, str], expected: Mapping[str, str], model: Model) -> bool:
    """Whether test vectors are the same but for the last step of their grid, which sums of another machine's
    float64 may turn."""
    try:
        own, right = (decode(entries, model, "") for entries in (told, expected))
    except DataError:
        return False
    if (own.names, own.limits) != (right.names, right.limits) or not np.array_equal(own.pixels, right.pixels):
        return False
    step = 2.0 ** (1 - GRID) * np.abs(right.expected).max(initial=0)
    return bool((np.abs(own.expected - right.expected) <= step).all())


def _hash(content: bytes, older: bool) -> Iterator[str]:
    """Whether the file has the hash that it carries."""
    found = seal.digest(content)
    if found is None:
        if not older:
            yield "it carries no hash of itself"
    elif found[0] != found[1]:
        wrong = seal.altered(content) or ["bytes outside every part"]
        yield f"its hash is that of other bytes: {_some(wrong)}"


def _some(sentences: list[str]) -> str:
    more = f" and {len(sentences) - SHOWN} more" if len(sentences) > SHOWN else ""
    return ", ".join(sentences[:SHOWN]) + more


def _parts(content: bytes, canonical: bytes, weights: Mapping[str, np.ndarray], older: bool) -> Iterator[str]:
    """Where a file of the zoo's exporter is not what it exports, metadata apart."""

    def of(file: bytes) -> list[seal.Part]:
        parts = (part for part in seal.parts(file) if not seal.is_metadata(part))
        return [part for part in parts if not older or part.name in weights]

    wrong = seal.differences(of(canonical), of(content))
    if wrong:
        yield f"it is not what the zoo exports of this model and these weights: {_some(wrong)}"


def _tensors(
    content: bytes, weights: Mapping[str, np.ndarray], told: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of a framework's own export: what is not true, and a note on tensors that only bear a weight's name.

    Where it holds all weights, they must be those whose hash it carries.
    """
    found = seal.weights(content, weights)
    other = [name for name, array in found.items() if not np.array_equal(array, weights[name])]
    notes = (f"these tensors have a weight's name but other values: {_some(other)}",) if other else ()
    lies = found.keys() == weights.keys() and digest(found) != told
    return (f"{WEIGHTS} is not the hash of its weights",) * lies, notes
