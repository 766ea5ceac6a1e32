"""What an ONNX file says of itself is held to the model and weights that it is verified for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import sealed
from onnx import ModelProto, numpy_helper

import export
import zoo
from export.crosscheck.claims import check
from export.inference import doctor, seal
from export.onnx.file import describe, serialize
from export.onnx.graph import to_layers_onnx, to_onnx
from zoo import runs, weights
from zoo.errors import CheckFailed, DataError
from zoo.weights import Weights, digest

TINY = "cnn-padded:out_1=2,out_2=2"
MODEL = zoo.get("cnn-padded", out_1=2, out_2=2)
WEIGHTS = zoo.init_weights(MODEL)
DIRECT, LAYERS = (serialize(make(MODEL, WEIGHTS)) for make in (to_onnx, to_layers_onnx))


def altered(change: Callable[[ModelProto], None], content: bytes = DIRECT) -> bytes:
    proto = onnx.load_from_string(content)
    change(proto)
    return sealed(proto)


def entry(key: str, value: str | Callable[[str], str] | None) -> Callable[[ModelProto], None]:
    """Give a metadata entry another value, or none; add it if it is not there."""

    def change(proto: ModelProto) -> None:
        kept = [(e.key, e.value) for e in proto.metadata_props]
        del proto.metadata_props[:]
        for old, text in kept:
            if old != key:
                proto.metadata_props.add(key=old, value=text)
            elif value is not None:
                proto.metadata_props.add(key=old, value=value(text) if callable(value) else value)
        if key not in dict(kept) and isinstance(value, str):
            proto.metadata_props.add(key=key, value=value)

    return change


def _other_outputs(text: str) -> str:
    data = json.loads(text)
    data["limits"] = [10 * limit for limit in data["limits"]]
    return json.dumps(data, separators=(",", ":"))


def _other_spec(text: str) -> str:
    return json.dumps(json.loads(text) | {"title": "another"}, sort_keys=True, separators=(",", ":"))


LABELS = list(MODEL.labels)
LIES = {
    "labels permuted": ("zoo.labels", json.dumps(LABELS[::-1])),
    "letters for labels": ("zoo.labels", json.dumps([chr(97 + i) for i in range(10)])),
    "eleven labels": ("zoo.labels", json.dumps([*LABELS, "10"])),
    "no labels": ("zoo.labels", None),
    "an input from 0 to 255": ("zoo.input", "float32 [batch, C, H, W], pixels in [0, 255]"),
    "black ink": ("zoo.input", lambda text: text.replace("white ink on black", "black ink on white")),
    "another document": ("zoo.document", "999_0.txt"),
    "another spec": ("zoo.spec", _other_spec),
    "another hash of the weights": ("zoo.weights_sha256", "0" * 64),
    "a version to come": ("zoo.version", "99.0"),
    "a version that is none": ("zoo.version", "latest"),
    "an older version": ("zoo.version", "0.1.0"),
    "other test images": ("zoo.vectors", lambda text: text.replace("noise 1", "noise 7")),
    "wider limits": ("zoo.expected", _other_outputs),
    "a precision": ("zoo.precision", "int8"),
    "an entry of its own": ("zoo.accuracy", "1.0"),
}


def untrue(content: bytes) -> tuple[str, ...]:
    return check(content, MODEL, WEIGHTS, DIRECT, LAYERS).untrue


def test_what_the_zoo_exports_is_true() -> None:
    assert untrue(DIRECT) == untrue(LAYERS) == ()
    assert altered(lambda proto: None) == DIRECT  # so what is told of an altered file is the alteration


@pytest.mark.parametrize("lie", LIES)
def test_a_false_entry_is_named(lie: str) -> None:
    key, value = LIES[lie]
    told = untrue(altered(entry(key, value)))
    assert any(sentence.startswith(key) for sentence in told), told


def test_every_entry_that_is_written_has_a_lie() -> None:
    written = {key for key, _ in seal.entries(DIRECT)} - {seal.KEY, seal.PARTS}
    assert written <= {key for key, _ in LIES.values()}


def test_an_entry_that_stands_twice() -> None:
    def twice(proto: ModelProto) -> None:
        proto.metadata_props.insert(0, onnx.StringStringEntryProto(key="zoo.labels", value="[]"))

    assert "zoo.labels appears twice" in untrue(altered(twice))


def test_the_hash_itself() -> None:
    proto = onnx.load_from_string(DIRECT)
    entry("zoo.document", "another")(proto)
    assert any(
        "hash is that of other bytes: metadata zoo.document" in told
        for told in untrue(proto.SerializeToString())
    )
    entry(seal.KEY, None)(proto)
    assert "it carries no hash of itself" in untrue(proto.SerializeToString())


def _with_weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], None]:
    def altered(proto: ModelProto) -> None:
        for tensor in proto.graph.initializer:
            array = change(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), tensor.name))

    return altered


def _last_bit(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) ^ 1).view(np.float32)


def _twenty_bits(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) & np.uint32(0xFFFFFFF8)).view(np.float32)


@pytest.mark.parametrize("change", [_last_bit, _twenty_bits])
def test_constants_that_are_not_the_canonical_ones(change: Callable[[np.ndarray], np.ndarray]) -> None:
    """They compute what they should, within what float32 differs, so only their bits tell."""
    content = altered(_with_weights(change))
    told = untrue(content)
    assert len(told) == 1
    assert "conv1.weight altered, conv1.bias altered, conv2.weight altered and" in told[0]
    report = export.verify(
        MODEL, WEIGHTS, [], np.zeros((2, 1, 28, 28), np.float32), files={"a.onnx": content}
    )
    said = report.verdict("a.onnx")
    assert said.output is not None
    assert said.output.passed
    assert not said.passed
    assert report.suspects == ["a.onnx"]


def test_a_node_that_is_another() -> None:
    def change(proto: ModelProto) -> None:
        proto.graph.node[0].doc_string = "mine"

    assert "graph altered: node conv1" in untrue(altered(change))[0]


def test_a_file_of_an_older_version_is_held_to_its_weights() -> None:
    def older(proto: ModelProto) -> None:
        entry("zoo.version", "0.1.0")(proto)
        entry("zoo.vectors", "of another kind")(proto)
        proto.producer_version = "0.1.0"
        proto.graph.node[0].doc_string = "written otherwise then"

    assert untrue(altered(older)) == ()
    content = altered(older)
    assert "conv1.weight altered" in untrue(altered(_with_weights(_last_bit), content))[0]
    assert untrue(altered(entry("zoo.labels", "[]"), content))[0].startswith("zoo.labels")


def native(values: Weights) -> bytes:
    """A file as a framework's exporter writes it, with names of the weights, brought to canonical form."""
    proto = to_onnx(MODEL, WEIGHTS)
    proto.producer_name = "pytorch"
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    del proto.metadata_props[:]
    describe(proto, MODEL, WEIGHTS)
    return serialize(proto)


def test_other_exporters_and_foreign_files() -> None:
    assert check(native(WEIGHTS), MODEL, WEIGHTS, DIRECT, LAYERS) == ((), ())
    flipped = check(native({n: _last_bit(a) for n, a in WEIGHTS.items()}), MODEL, WEIGHTS, DIRECT, LAYERS)
    assert flipped.untrue == ("zoo.weights_sha256 is not the hash of its weights",)
    assert "these tensors have a weight's name but other values: conv1.weight" in flipped.notes[0]
    foreign = onnx.load_from_string(DIRECT)
    del foreign.metadata_props[:]
    foreign.producer_name = "somebody"
    foreign.graph.node[0].doc_string = "mine"
    assert check(foreign.SerializeToString(), MODEL, WEIGHTS, DIRECT, LAYERS) == ((), ())


@pytest.mark.parametrize("lie", ["labels permuted", "eleven labels", "an input from 0 to 255"])
def test_verify_fails_and_names_it(lie: str, run, tmp_path: Path) -> None:
    key, value = LIES[lie]
    file = tmp_path / "a.onnx"
    file.write_bytes(altered(entry(key, value)))
    for arguments in ((file,), (TINY, "--weights", file)):
        result = run("verify", *arguments, "--data", "digits", "-b", "reference", "--search", 0)
        assert result.code == 1
        assert f"what it says of itself: {key} is " in result.out
        assert "suspect: the file" in result.out
    file.write_bytes(DIRECT)
    assert (
        run("verify", TINY, "--weights", file, "--data", "digits", "-b", "reference", "--search", 0).code == 0
    )


def test_a_lying_file_in_a_run(run, tmp_path: Path) -> None:
    """Its own weights are the run's, so a flipped bit is told as well as a label."""
    files = {
        "model.onnx": altered(_with_weights(_last_bit)),
        "native.onnx": altered(entry("zoo.labels", "[]"), native(WEIGHTS)),
        "layers.onnx": altered(entry("zoo.weights_sha256", "f" * 64), LAYERS),
        "weights.safetensors": weights.to_bytes(WEIGHTS),
        "spec.json": MODEL.to_json().encode(),
        "report.json": json.dumps({"backend": "torch"}).encode(),
    }
    folder = runs.Run(tmp_path / "runs" / "m" / "torch")
    with folder.lock():
        folder.publish(files, {})
    result = run("verify", folder.path, "--data", "digits", "-b", "reference", "--json", "--search", 0)
    assert result.code == 1
    told = {Path(w["witness"]).name: w["untrue"] for w in result.json[0]["witnesses"] if w.get("untrue")}
    assert set(told) == {"model.onnx", "native.onnx", "layers.onnx"}
    assert "conv1.weight altered" in told["model.onnx"][0]
    assert told["native.onnx"][0].startswith("zoo.labels is '[]', not ")
    assert told["layers.onnx"][0].startswith("zoo.weights_sha256 is ")


@pytest.mark.parametrize(
    "lie",
    [
        "labels permuted",
        "letters for labels",
        "eleven labels",
        "an input from 0 to 255",
        "black ink",
        "another document",
        "another hash of the weights",
        "other test images",
        "an entry of its own",
        "a version to come",
    ],
)
def test_the_doctor_tells_what_it_can_know(lie: str, tmp_path: Path) -> None:
    key, value = LIES[lie]
    file = tmp_path / "a.onnx"
    file.write_bytes(altered(entry(key, value)))
    report = doctor.examine(file)
    assert isinstance(report.error, CheckFailed if key == "zoo.weights_sha256" else DataError)
    name = {"zoo.labels": "labels", "zoo.vectors": "test vectors"}.get(key, key)
    assert name in report.error.what


def test_the_doctor_reads_the_weights_by_the_wire_format() -> None:
    assert digest(seal.weights(DIRECT, WEIGHTS)) == digest(WEIGHTS)
