"""zoo doctor: honest files pass, whatever is altered is named, and nothing but NumPy and onnxruntime is used."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import zoo
from backends.reference.network import ReferenceNetwork
from export.inference import doctor, loading, seal, vectors
from export.inference.session import Session
from export.onnx import expected
from export.onnx.file import describe, serialize
from export.onnx.graph import to_layers_onnx, to_onnx
from zoo import cli, filters, pretrained
from zoo.errors import CheckFailed, DataError
from zoo.images import strokes
from zoo.layers import Conv2d, Dense, Flatten, MaxPool2d, Normalize, ReLU
from zoo.model import Model
from zoo.randomness import raw_bits

NAME = "lenet-dropout"  # the smallest, and it normalises


@pytest.fixture
def check(tmp_path: Path) -> Callable[[bytes], doctor.Report]:
    """Have the doctor examine these bytes as a file."""

    def examine(content: bytes) -> doctor.Report:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        return doctor.examine(path)

    return examine


def model_of(shape: tuple[int, int, int], *layers: object, labels: tuple[str, ...] = ()) -> Model:
    return Model("tiny", shape, layers, zoo.get(NAME).recipe, labels=labels)  # type: ignore[arg-type]


def exported(model: Model, seed: int = 0) -> bytes:
    return serialize(to_onnx(model, zoo.init_weights(model, seed)))


# Honest files


@pytest.mark.parametrize("name", pretrained.names())
def test_the_files_of_the_package_pass(name: str, check) -> None:
    report = check(pretrained.onnx(name))
    assert report.error is None
    assert report.passed
    assert all(line.passed for line in report.checks)
    assert report.model == zoo.get(name)
    assert report.vectors == 16
    assert report.digits == (10, 10)
    assert report.worst is not None
    assert 0 < report.worst.largest < report.worst.limit / 10


SMALL = {
    "one pixel": model_of((1, 1, 1), Conv2d(2, 1)),
    "an image": model_of((3, 13, 17), Conv2d(4, (3, 5), padding=(1, 2, 0, 1)), ReLU(), MaxPool2d(2)),
    "a vector": model_of((2, 5, 7), Flatten()),
    "two classes": model_of((3, 14, 12), Conv2d(2, 3), Flatten(), Dense(2), labels=("cat", "dög")),
    "many classes": model_of((1, 6, 6), Flatten(), Dense(3000), labels=tuple(map(str, range(3000)))),
    "colours": model_of((3, 100, 90), Normalize((0.5,) * 3, (2.0,) * 3), Conv2d(2, 7, stride=(3, 2))),
    "long": model_of((9000, 1, 1), Flatten(), Dense(2)),
}


@pytest.mark.parametrize("name", SMALL)
def test_models_of_every_shape_pass(name: str, check) -> None:
    model = SMALL[name]
    report = check(exported(model))
    assert report.error is None
    assert report.model == model
    assert 2 <= report.vectors <= 16
    assert report.digits is None
    checked = [line.name for line in report.checks]
    assert ("decisions" in checked) == (name == "two classes")


def test_a_filter_and_all_layers_pass(check) -> None:
    edges = filters.filter_model(filters.KERNELS["vertical-edges"], "same", 28, 28)
    assert check(serialize(to_onnx(*edges))).passed
    model = zoo.get(NAME)
    report = check(serialize(to_layers_onnx(model, zoo.init_weights(model))))
    assert report.passed
    assert "and 10 layers" in next(line.detail for line in report.checks if line.name == "output")


def test_a_file_saved_by_onnx_itself_passes(tmp_path: Path) -> None:
    model = zoo.get(NAME)
    onnx.save(to_onnx(model, zoo.init_weights(model)), tmp_path / "model.onnx")
    assert doctor.examine(tmp_path / "model.onnx").passed


# Test vectors


def test_vectors_are_small_and_the_same_everywhere() -> None:
    model = zoo.get("cnn-padded")
    names, pixels = vectors.make(model)
    assert pixels.shape == (16, 784)
    assert names[6:] == tuple(f"digit {digit}" for digit in range(10))
    # Golden: another machine or NumPy must draw the same pixels.
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "d34883fd7e105262"
    for shape in ((1, 1, 1), (3, 224, 224), (1, 3000, 4000), (100_000, 1, 1), (3, 32, 32)):
        large = model_of(shape, Conv2d(1, 1))
        names, pixels = vectors.make(large)
        assert len(names) >= 2
        assert pixels.nbytes <= 64 * 1024
        assert np.prod(vectors.kept_shape(large, len(names))) * len(names) <= vectors.NUMBERS
        assert ("digit 9" in names) == (shape == (3, 32, 32))


def test_the_digits_are_drawn_in_every_channel() -> None:
    model = model_of((3, 32, 32), Conv2d(1, 1))
    names, pixels = vectors.make(model)
    image = vectors.images(model, pixels)[names.index("digit 4")]
    for channel in image:
        np.testing.assert_array_equal(channel, strokes.drawn(4, 32, 32) / np.float32(255))
    assert 0.05 < image.mean() < 0.3
    assert image[:, :3].max() == image[:, :, :3].max() == 0


def test_probes_are_not_symmetric() -> None:
    model = model_of((2, 14, 14), Conv2d(1, 1))
    names, pixels = vectors.make(model)
    images = vectors.images(model, pixels)
    assert len({row.tobytes() for row in pixels}) == len(names)
    for image in images[:6]:
        for other in (image[:, ::-1], image[:, :, ::-1], image.transpose(0, 2, 1), image[::-1]):
            assert not np.array_equal(image, other)


def test_a_corner_of_the_reference_is_the_references() -> None:
    """What is kept of a large output is computed from a corner of the image alone."""
    layers = (Conv2d(3, (3, 5), padding=(2, 1, 1, 3), stride=(1, 2)), ReLU(), MaxPool2d(2), Conv2d(2, 3))
    model = model_of((2, 90, 110), *layers)
    network = ReferenceNetwork(model, zoo.init_weights(model))
    names, pixels = vectors.make(model)
    shape = vectors.kept_shape(model, len(names))
    assert shape[1:] < model.output_shape[1:]
    whole = network.predict(vectors.images(model, pixels))
    cut = list(expected._outputs(network, pixels, shape))
    assert cut[0].shape == shape
    np.testing.assert_allclose(cut, whole[:, : shape[0], : shape[1], : shape[2]], rtol=0, atol=1e-13)


def test_expected_outputs_do_not_show_another_machines_last_bits() -> None:
    values = ReferenceNetwork(zoo.get(NAME), zoo.init_weights(zoo.get(NAME))).predict(
        np.linspace(0, 1, 784, dtype=np.float32).reshape(1, 1, 28, 28)
    )
    for factor in (1 - 4e-16, 1 + 4e-16):
        np.testing.assert_array_equal(vectors.on_grid(values), vectors.on_grid(values * factor))
    np.testing.assert_allclose(vectors.on_grid(values), values, rtol=0, atol=2.0**-22 * np.abs(values).max())
    for edge in ([0.0], [1e-320], [1.0, 1 - 1e-16], [1e300, -1e300]):
        assert np.isfinite(vectors.on_grid(np.array(edge))).all()


# Tampering


def first(items: object, name: str) -> object:
    return next(item for item in items if getattr(item, "name", "") == name)  # type: ignore[attr-defined]


def entry(proto: ModelProto, key: str) -> object:
    return next(found for found in proto.metadata_props if found.key == key)


def flip_tensor(name: str) -> Callable[[ModelProto], None]:
    def change(proto: ModelProto) -> None:
        tensor = first(proto.graph.initializer, name)
        raw = bytearray(tensor.raw_data)  # type: ignore[attr-defined]
        raw[-2] ^= 1
        tensor.raw_data = bytes(raw)  # type: ignore[attr-defined]

    return change


def replace_in(key: str, old: str, new: str) -> Callable[[ModelProto], None]:
    def change(proto: ModelProto) -> None:
        found = entry(proto, key)
        assert old in found.value  # type: ignore[attr-defined]
        found.value = found.value.replace(old, new, 1)  # type: ignore[attr-defined]

    return change


def change_pads(proto: ModelProto) -> None:
    node = first(proto.graph.node, "conv2")
    next(a for a in node.attribute if a.name == "group").i = 2  # type: ignore[attr-defined]


def swap_nodes(proto: ModelProto) -> None:
    nodes = [proto.graph.node[i] for i in range(len(proto.graph.node))]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend([copies[1], copies[0], *copies[2:]])


def rename_input(proto: ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"


TAMPERED: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "weight": (flip_tensor("conv1.weight"), "conv1.weight altered"),
    "bias": (flip_tensor("dense2.bias"), "dense2.bias altered"),
    "mean": (flip_tensor("normalize1.mean"), "normalize1.mean altered (preprocessing)"),
    "scale": (flip_tensor("normalize1.scale"), "normalize1.scale altered (preprocessing)"),
    "label": (replace_in("zoo.labels", '"7"', '"1"'), "labels altered"),
    "spec": (replace_in("zoo.spec", '"rate":0.5', '"rate":0.4'), "spec altered"),
    "vectors": (replace_in("zoo.vectors", "noise 1", "noise 9"), "test vectors altered"),
    "expected": (replace_in("zoo.expected", '"values":"', '"values":"A'), "expected outputs altered"),
    "hash of weights": (replace_in("zoo.weights_sha256", "a", "b"), "metadata zoo.weights_sha256 altered"),
    "list of parts": (replace_in("zoo.parts", "conv1", "conv9"), "the list of parts altered"),
    "attribute": (change_pads, "graph altered: node conv2"),
    "order": (swap_nodes, "parts put into another order"),
    "batch": (rename_input, "graph altered: input image"),
    "node gone": (lambda proto: proto.graph.node.pop(), "graph altered: node dense2"),
    "tensor added": (
        lambda proto: proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3), "mine")),
        "mine added",
    ),
    "operators": (lambda proto: setattr(proto.opset_import[0], "version", 17), "operator set altered"),
}


@pytest.mark.parametrize("what", TAMPERED)
@pytest.mark.parametrize("resealed", [False, True], ids=["bytes", "saved again"])
def test_what_was_altered_is_named(what: str, resealed: bool, check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the hash of the file is the old one, or right because the altered graph was saved anew."""
    monkeypatch.setattr(loading.onnxruntime, "InferenceSession", None)  # never sees the file
    change, sentence = TAMPERED[what]
    proto = onnx.load_from_string(pretrained.onnx(NAME))
    change(proto)
    content = serialize(proto) if resealed else proto.SerializeToString()
    report = check(content)
    assert isinstance(report.error, DataError)
    assert report.error.what == sentence
    assert [line.name for line in report.checks] == (["file", "parts"] if resealed else ["file"])
    assert report.checks[-1] == doctor.Check(report.checks[-1].name, False, sentence)


def test_several_differences_are_counted(check) -> None:
    proto = onnx.load_from_string(pretrained.onnx(NAME))
    for tensor in proto.graph.initializer:
        flip_tensor(tensor.name)(proto)
    assert check(proto.SerializeToString()).error.what.endswith("and 7 more")


def test_no_flipped_byte_goes_unnoticed(check, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample; with the hash of the file filled in again, only a flip in that hash is undone."""
    monkeypatch.setattr(loading.onnxruntime, "InferenceSession", None)
    content = exported(model_of((1, 3, 3), Conv2d(1, 2), Flatten(), Dense(2), labels=("a", "b")))
    places = raw_bits(0, "tests/flips", 300) % np.uint64(len(content))
    for place, mask in zip(places.tolist(), (1, 128, 255) * 100, strict=True):
        flipped = bytearray(content)
        flipped[place] ^= mask
        for altered in (bytes(flipped), seal.fill(bytes(flipped))):
            if altered != content:
                report = check(altered)
                assert report.error is not None, (place, mask)
                assert report.error.code == 4, (place, mask)
                assert str(report.error).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"text, not a model", "not an ONNX file, or cut short"),
        (b"\xff" * 1000, "not an ONNX file, or cut short"),
        (b"\x08\x0a", "carries no spec of the zoo"),
        (pretrained.onnx(NAME)[:40_000], "not an ONNX file, or cut short"),
        (pretrained.onnx(NAME)[:-1], "not an ONNX file, or cut short"),
        (pretrained.onnx(NAME) + b"\0", "structure altered"),
        (pretrained.onnx(NAME).replace(b"zoo.sha256", b"zoo.sha257"), "carries no hash of itself"),
    ],
    ids=["empty", "text", "junk", "foreign", "half", "one byte short", "one byte more", "no hash"],
)
def test_what_is_no_sound_file(content: bytes, message: str, check) -> None:
    report = check(content)
    assert isinstance(report.error, DataError)
    assert message in report.error.what
    json.dumps(report.to_dict(), allow_nan=False)


def test_foreign_and_older_onnx_files(check) -> None:
    model = zoo.get(NAME)
    proto = to_onnx(model, zoo.init_weights(model))
    older = [found for found in proto.metadata_props if found.key in ("zoo.spec", "zoo.labels")]
    kept = [(found.key, found.value) for found in older]
    del proto.metadata_props[:]
    assert "carries no spec of the zoo" in check(serialize(proto)).error.what
    for key, value in kept:
        proto.metadata_props.add(key=key, value=value)
    assert "carries no hash of itself" in check(serialize(proto)).error.what


def described(model: Model, change: Callable[[ModelProto], None]) -> bytes:
    """A file whose hashes are all right, made by an exporter that is wrong."""
    values = zoo.init_weights(model)
    proto = to_onnx(model, values)
    change(proto)
    kept = {
        found.key: found.value for found in proto.metadata_props if found.key not in (seal.KEY, seal.PARTS)
    }
    del proto.metadata_props[:]
    for key, value in kept.items():
        proto.metadata_props.add(key=key, value=value)
    parts = seal.list_of_parts(proto.SerializeToString(deterministic=True))
    proto.metadata_props.add(key=seal.PARTS, value=parts)
    proto.metadata_props.add(key=seal.KEY, value=seal.ZEROS)
    return serialize(proto)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_in("zoo.labels", '"7"', '"1"'), "the labels are not those of the spec"),
        (replace_in("zoo.labels", "[", "{"), "the labels are not those of the spec"),
        (replace_in("zoo.spec", '"rate":0.5', '"rate":0.4'), "'lenet-dropout' is the name of a built-in"),
        (replace_in("zoo.spec", '"rate":0.5', '"rate":5'), "its spec is no model here"),
        (replace_in("zoo.vectors", '"version":1', '"version":2'), "test vectors of version 2"),
        (replace_in("zoo.vectors", '"noise 1",', ""), "do not fit the model"),
        (replace_in("zoo.vectors", "{", "[{"), "do not fit the model"),
        (replace_in("zoo.expected", '"values"', '"other"'), "carries no values"),
        (replace_in("zoo.expected", '"limits":[', '"limits":[0,'), "do not fit the model"),
        (rename_input, "the input is image tensor(float) ['rows', 1, 28, 28]"),
        (lambda proto: setattr(first(proto.graph.node, "relu1"), "op_type", "Loop"), "the operator 'Loop'"),
        (lambda proto: setattr(first(proto.graph.node, "relu1"), "op_type", "Gemm"), "cannot load"),
    ],
)
def test_files_that_were_wrong_when_they_were_written(change, message: str, check) -> None:
    report = check(described(zoo.get(NAME), change))
    assert isinstance(report.error, DataError)
    assert message in report.error.what


@pytest.mark.parametrize("value", [b"\x00\x00\x80\x3f", b"\x00\x00\xc0\x7f"], ids=["number", "NaN"])
def test_a_graph_that_computes_something_else_fails(value: bytes, check) -> None:
    def change(proto: ModelProto) -> None:
        tensor = first(proto.graph.initializer, "dense2.bias")
        tensor.raw_data = value + tensor.raw_data[4:]  # type: ignore[attr-defined]

    report = check(described(zoo.get(NAME), change))
    assert isinstance(report.error, CheckFailed)
    failed = [line.name for line in report.checks if not line.passed]
    assert {"optimised", "not optimised", "batches"} <= set(failed)
    json.dumps(report.to_dict(), allow_nan=False)


def wrong_run(harm: Callable[[np.ndarray, np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Session.run

    def run(self: Session, images: np.ndarray, outputs=None) -> dict[str, np.ndarray]:
        return {name: harm(values, images) for name, values in honest(self, images, outputs).items()}

    monkeypatch.setattr(Session, "run", run)


HARMS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], set[str], str]] = {
    "values": (lambda y, x: y * np.float32(1.001), {"optimised", "not optimised", "batches"}, "beyond the limit"),
    "classes": (lambda y, x: y[:, ::-1], {"optimised", "not optimised", "batches", "decisions"}, "beyond"),
    "NaN": (lambda y, x: np.where(y == y.max(), np.nan, y).astype(np.float32), {"optimised"}, "NaN or infinity"),
    "type": (lambda y, x: y.astype(np.float64), {"optimised", "not optimised"}, "float64 (16, 10), not float32"),
    "shape": (lambda y, x: y[:, :9], {"optimised", "not optimised"}, "(16, 9), not float32 (16, 10)"),
    "batch of 3": (lambda y, x: y + np.float32(len(x) == 3), {"batches"}, "beyond the limit"),
    "neighbours": (
        lambda y, x: y + np.float32(0.1) * (len(x) < 16) * (x[-1].mean() - x[0].mean()),
        {"batches"},
        "beyond the limit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_runtime_that_computes_something_else_fails(
    harm: str, check, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmed, failing, message = HARMS[harm]
    wrong_run(harmed, monkeypatch)
    report = check(pretrained.onnx(NAME))
    assert isinstance(report.error, CheckFailed)
    assert report.error.code == 1
    assert message in str(report.error)
    assert failing <= {line.name for line in report.checks if not line.passed}
    assert report.to_dict()["passed"] is False


def test_a_runtime_that_stops(check, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise CheckFailed("onnxruntime stopped: why")

    monkeypatch.setattr(Session, "run", run)
    report = check(pretrained.onnx(NAME))
    assert isinstance(report.error, CheckFailed)
    assert [line.detail for line in report.checks if not line.passed] == ["onnxruntime stopped: why"] * 2


# The hashes


def test_serialize_fills_in_the_hash_and_leaves_others_alone() -> None:
    model = zoo.get(NAME)
    values = zoo.init_weights(model)
    content = exported(model)
    told, computed = seal.digest(content)
    assert told == computed != seal.ZEROS
    proto = to_onnx(model, values)
    entry(proto, seal.KEY).value = seal.ZEROS
    assert serialize(proto) == content
    del proto.metadata_props[:]
    assert serialize(proto) == proto.SerializeToString(deterministic=True)
    assert seal.digest(serialize(proto)) is None
    describe(proto, model, values)
    assert serialize(proto) == content


@pytest.mark.parametrize(
    "content",
    [
        b"\x0a",  # no length
        b"\x0a\x05abc",  # longer than there is
        b"\x80" * 20,  # a number without end
        b"\x0b",  # a group
        b"\x02\x00",  # field 0
        b"\x0a" + b"\xff" * 9 + b"\x01",  # an enormous length
    ],
)
def test_malformed_messages_are_refused(content: bytes) -> None:
    with pytest.raises(seal.Malformed, match="at byte 0|at byte 1"):
        list(seal.fields(content))


def test_the_number_of_fields_is_bounded() -> None:
    with pytest.raises(seal.Malformed):
        list(seal.fields(b"\x08\x00" * (seal.MOST_FIELDS + 1)))


def test_the_wire_reader_sees_what_onnx_sees() -> None:
    proto = onnx.load_from_string(pretrained.onnx(NAME))
    content = pretrained.onnx(NAME)
    assert seal.metadata(content) == {found.key: found.value for found in proto.metadata_props}
    names = [part.name for part in seal.parts(content)]
    assert [tensor.name for tensor in proto.graph.initializer] == [n for n in names if "." in n and ":" not in n and " " not in n]  # fmt: skip
    assert [f"graph: node {node.name}" for node in proto.graph.node] == [n for n in names if "node" in n]


# The command


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        cli.main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    content = pretrained.onnx(NAME)
    good.write_bytes(content)
    bad.write_bytes(content.replace(b'"7", "8"', b'"1", "8"'))  # as the labels are written, not the spec
    assert command("doctor", good) == 0
    out = capfd.readouterr().out
    assert out.count("  ok    ") == 15
    assert "PASSED 15 of 15" in out
    assert f"zoo verify {good}" in out
    assert command("doctor", bad, good, tmp_path / "none.onnx") == 4
    out, err = capfd.readouterr()
    assert "FAIL  file  labels altered" in out
    assert "FAILED 2 of 3 files" in out
    assert "PASSED 15 of 15" in out
    assert "FAIL  file  no such ONNX file" in out
    assert err.splitlines() == [
        f"error: labels altered ({bad}); the file is not as it was exported: export it again",
        f"error: no such ONNX file ({tmp_path / 'none.onnx'})",
    ]
    assert command("doctor", bad, good, "--json") == 4
    first, second = json.loads(capfd.readouterr().out)
    assert set(first) == set(second)
    assert (first["kind"], first["file"], first["passed"]) == ("doctor", str(bad), False)
    assert first["checks"] == [{"name": "file", "passed": False, "detail": "labels altered"}]
    assert first["error"]["code"] == 4
    assert (second["model"], second["passed"], second["error"]) == (NAME, True, None)
    assert second["digits"] == {"read": 10, "drawn": 10}
    assert second["max_abs_diff"] < second["limit"]


def test_a_wrong_runtime_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_run(lambda y, x: y + np.float32(1), monkeypatch)
    (tmp_path / "good.onnx").write_bytes(pretrained.onnx(NAME))
    assert command("doctor", tmp_path / "good.onnx") == 1


def test_the_command_needs_numpy_and_onnxruntime_alone(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(pretrained.onnx("convnet"))
    heavy = {"onnx", "torch", "tensorflow", "keras", "jax", "matplotlib", "PIL", "safetensors", "backends"}
    script = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(heavy - {"backends"})})) # as if they were not installed
from zoo.cli import main
try:
    main(["doctor", "model.onnx"])
except SystemExit as done:
    assert not done.code, done.code
print(*{{name.partition(".")[0] for name, module in sys.modules.items() if module}}, file=sys.stderr)
"""
    surroundings = {key: value for key, value in os.environ.items() if key not in ("ZOO_DATA", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=surroundings
    )  # fmt: skip
    assert "PASSED 15 of 15" in done.stdout
    modules = set(done.stderr.split())
    assert {"numpy", "onnxruntime"} <= modules
    assert not modules & heavy
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
