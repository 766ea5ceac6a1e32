"""Mutated files of every format that the zoo reads: an error that names them, soon, in little memory.

ZOO_MUTATION_SECONDS is the time for each format: a little in the default sessions, on demand more. What
was once found is kept in FOUND.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mutation
import numpy as np
import onnx
import pytest

import zoo
from benchmarks.drawing import draw, grey
from export.imports import reading
from export.inference import doctor, seal
from export.onnx import contents
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.runs import page
from zoo import data, weights
from zoo.errors import ZooError
from zoo.images import decoding
from zoo.runs import Run
from zoo.spec.file import load_spec, write
from zoo.training import checkpoints

SECONDS = float(os.environ.get("ZOO_MUTATION_SECONDS", 3))
SLOWEST = 10.0  # for one file
MEMORY = 512 * 2**20  # more than before
MODEL = zoo.get("cnn-padded:out_1=2,out_2=2")
WEIGHTS = zoo.init_weights(MODEL)


class Format(NamedTuple):
    """How a file is called, what is a good one, and who reads it."""

    name: str
    good: bytes
    read: Callable[[Path], object]


def _idx() -> bytes:
    images = np.arange(2 * 9 * 9, dtype=np.uint8).reshape(2, 9, 9)
    return struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 9, 9) + images.tobytes()


def _picture(form: str) -> bytes:
    file = io.BytesIO()
    grey(1 - draw(3)).convert("L").save(file, form)
    return file.getvalue()


def _run(path: Path, **changed: bytes) -> Run:
    """A run in whose manifest stands the hash of whatever its files hold."""
    run = Run(path.parent / "run")
    files = {"spec.json": MODEL.to_json().encode(), "report.json": REPORT, "model.onnx": b"x"}
    with run.lock():
        run.publish({**files, **changed}, {"seed": 0})
    return run


REPORT = json.dumps(
    {
        "model": "cnn-padded", "backend": "torch", "document": "", "parameters": 4, "seed": 0, "epochs": 1,
        "data": {"name": "digits", "train": 3, "validation": 0, "test": 3, "sha256": "0"},
        "accuracy": {"train": 0.5, "validation": None, "test": 0.5}, "loss": {"train": 1.0, "test": 1.0},
        "onnx": {"accuracy": 0.5, "max_abs_diff": 1e-7, "limit": 1e-5, "flips": 0, "passed": True,
                 "logits": {"max_ratio": 0.1, "passed": True}, "bytes": 9, "exporter": "direct", "sha256": "0"},
        "checks": {"witnesses": []}, "warnings": [], "seconds": {"train": 1.0}, "threads": 1, "versions": {},
        "documented_epochs": 10, "best_epoch": None, "weights_sha256": "0", "arguments": {},
    }
).encode()  # fmt: skip


def _report(path: Path) -> None:
    run = _run(path, **{"report.json": path.read_bytes()})
    entries, failures = page.collect(run.path)
    page.render(entries, failures, path.parent)
    if failures:
        raise failures[0]


def _checkpoint(path: Path) -> None:
    run = Run(path.parent / "run")
    with run.lock():
        run.checkpoint.publish({checkpoints.TENSORS: TENSORS, checkpoints.PROGRESS: path.read_bytes()}, {})
    checkpoints.load(run)


def _manifest(path: Path) -> None:
    run = _run(path)
    (run.path / "manifest.json").write_bytes(path.read_bytes())
    run.manifest()
    run.is_sound()


def _good_manifest() -> bytes:
    return json.dumps({"inputs": {"seed": 0}, "files": {"a": {"sha256": "0" * 64, "bytes": 3}}}).encode()


def _examine_hashed_again(path: Path) -> object:
    path.write_bytes(seal.fill(path.read_bytes()))
    return doctor.examine(path)


ONNX = serialize(to_onnx(MODEL, WEIGHTS))
UNSEALED = ONNX.replace(seal.KEY.encode(), b"zoo.sha257")
FOREIGN = UNSEALED.replace(b"zoo.spec", b"zoo.spek")
TENSORS = weights.to_bytes(WEIGHTS)
PROGRESS = checkpoints.Checkpoint(2, 1, {}, {"a": 1}, [(1, 1, 0.5, 0.1)], [], None, -1.0, 3.5)
FORMATS = {
    "toml": Format("spec.toml", write(MODEL, "toml").encode(), load_spec),
    "json": Format("spec.json", MODEL.to_json().encode(), load_spec),
    "idx": Format("t10k-images-idx3-ubyte", _idx(), lambda path: data.read_idx(path, 3)),
    "gz": Format("t10k-images-idx3-ubyte.gz", gzip.compress(_idx()), lambda path: data.read_idx(path, 3)),
    "safetensors": Format("w.safetensors", TENSORS, lambda path: weights.load(path, MODEL)),
    "onnx": Format("model.onnx", ONNX, contents.read_onnx),
    "onnx without a hash": Format("model.onnx", UNSEALED, contents.read_onnx),
    "doctor": Format("model.onnx", ONNX, doctor.examine),
    "doctor, hashed again": Format("model.onnx", ONNX, _examine_hashed_again),
    "onnx import": Format("model.onnx", FOREIGN, lambda path: reading.read(path.read_bytes(), path)),
    "manifest": Format("manifest.json", _good_manifest(), _manifest),
    "checkpoint": Format("progress.json", json.dumps(PROGRESS.to_dict()).encode(), _checkpoint),
    "report": Format("report.json", REPORT, _report),
    **{
        form: Format(f"image.{form}", _picture(form.upper()), decoding.read)
        for form in ("png", "jpeg", "webp", "gif", "bmp", "tiff")
    },
}  # fmt: skip


SHARING = (
    {"png", "jpeg", "webp", "gif", "bmp", "tiff"},
    {name for name in FORMATS if "onnx" in name or "doctor" in name},
)


def seconds(kind: str) -> float:
    """The time for one kind of file: pictures share that of a format, and so do ONNX files."""
    return SECONDS / next((len(group) for group in SHARING if kind in group), 1)


def outcome(form: Format, content: bytes, folder: Path) -> str:
    """What reading a file comes to: "read", or the class of the error; anything else is raised."""
    path = folder / form.name
    path.write_bytes(content)
    started = time.monotonic()
    try:
        found = form.read(path)
        said = "read"
        if isinstance(found, doctor.Report):
            said = type(found.error).__name__ if found.error else "read"
    except ZooError as error:
        said, code, text = type(error).__name__, error.code, str(error)
    else:
        code, text = 0, ""
    assert code in (0, 1, 2, 4), text
    assert "\n" not in text
    assert time.monotonic() - started < SLOWEST
    return said


def most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _of_an_unknown_type() -> bytes:
    proto = onnx.load_from_string(UNSEALED)
    proto.graph.initializer[0].data_type = 34
    return proto.SerializeToString()


FOUND = {  # what mutation once found, with the kind of file
    "a spec that is no UTF-8": ("onnx without a hash", UNSEALED.replace(b'"cnn-padded"', b'"cnn-\xffadded"')),
    "a tensor of an unknown type": ("onnx without a hash", _of_an_unknown_type()),
    "a report nested too deeply": ("report", REPORT.replace(b'"digits"', b"[" * 5000)),
    "no report but a list": ("report", b"[]"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str, tmp_path: Path) -> None:
    kind, content = FOUND[name]
    assert content != FORMATS[kind].good
    assert outcome(FORMATS[kind], content, tmp_path) in ("DataError", "InvalidSpec")


@pytest.mark.parametrize("kind", FORMATS)
def test_mutants(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = FORMATS[kind]
    assert outcome(form, form.good, tmp_path) == "read"
    beside = set(tmp_path.iterdir())
    before, end = most_memory(), time.monotonic() + seconds(kind)
    # A search sees other mutants every time; the default sessions see the same ones first.
    seed = 0 if SECONDS <= 5 else time.time_ns() % 10**9
    found: Counter[str] = Counter()
    for number, content in enumerate(mutation.mutants(form.good, seed)):
        if time.monotonic() > end:
            break
        try:
            found[outcome(form, content, tmp_path)] += 1
        except Exception as error:
            kept = tmp_path / "found"
            kept.write_bytes(content)
            raise AssertionError(f"mutant {number} of seed {seed}, kept in {kept}: {error!r}") from error
    with capsys.disabled():
        print(f"\n  {kind}: {sum(found.values()):,} mutants, {dict(found)}", end="")
    assert set(found) - {"read"}, "some must be refused"
    assert most_memory() - before < MEMORY
    assert set(tmp_path.iterdir()) == beside
