"""The direct exporter, the native exporters in canonical form, and onnxruntime."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

import export
import zoo
from backends.process.client import Worker
from export.inference import seal, vectors
from export.inference.session import Session
from export.onnx import native
from export.onnx.file import serialize
from export.onnx.graph import IR_VERSION, OPSET, tensor_name, to_layers_onnx, to_onnx
from zoo import pretrained, weights
from zoo.errors import CheckFailed, DataError
from zoo.model import Model
from zoo.spec.form import from_dict


def test_the_graph_is_named_after_its_layers(model: Model) -> None:
    proto = to_onnx(model, zoo.init_weights(model))
    last = [node for node in proto.graph.node if node.name == model.walk()[-1].path]
    assert {node.path for node in model.walk()} <= {node.name for node in proto.graph.node}
    assert last[0].output[0] == model.output
    initializers = {tensor.name for tensor in proto.graph.initializer}
    assert set(zoo.init_weights(model)) <= initializers
    assert [value.name for value in proto.graph.input] == ["image"]
    assert [value.name for value in proto.graph.output] == [model.output]


def test_input_and_output_have_a_symbolic_batch(model: Model) -> None:
    proto = to_onnx(model, zoo.init_weights(model))

    def shape(value: onnx.ValueInfoProto) -> list[object]:
        dims = value.type.tensor_type.shape.dim
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        return [dim.dim_param or dim.dim_value for dim in dims]

    assert shape(proto.graph.input[0]) == ["batch", 1, 28, 28]
    assert shape(proto.graph.output[0]) == ["batch", 10]
    assert proto.ir_version == IR_VERSION
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSET)]
    assert not any(tensor.external_data for tensor in proto.graph.initializer)


def test_metadata_tell_what_the_file_is(model: Model) -> None:
    values = zoo.init_weights(model)
    metadata = {entry.key: entry.value for entry in to_onnx(model, values).metadata_props}
    assert from_dict(json.loads(metadata["zoo.spec"])) == model
    assert json.loads(metadata["zoo.labels"]) == list("0123456789")
    assert metadata["zoo.weights_sha256"] == weights.digest(values)
    assert metadata["zoo.version"] == zoo.__version__
    assert metadata["zoo.document"] == model.document
    told = vectors.decode(metadata, model, "here")
    assert told.expected.shape == (16, 10)
    assert seal.altered(serialize(to_onnx(model, values))) == []
    assert sum(map(len, metadata.values())) < 30_000


def test_the_same_bytes_in_every_process() -> None:
    script = (
        "import zoo, export, hashlib\n"
        "from export.onnx.file import serialize\n"
        "for name in zoo.names():\n"
        "    m = zoo.get(name)\n"
        "    print(hashlib.sha256(serialize(export.to_onnx(m, zoo.init_weights(m)))).hexdigest())\n"
    )
    runs = {
        subprocess.check_output([sys.executable, "-c", script], env={**os.environ, **threads})
        for threads in ({}, {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Prescott"})
    }
    assert len(runs) == 1  # however many threads and whichever kernels the reference sums with
    model = zoo.get("convnet")
    other = dict(reversed(zoo.init_weights(model).items()))
    assert serialize(to_onnx(model, zoo.init_weights(model))) == serialize(to_onnx(model, other))


def test_every_layer_is_an_output_of_layers_onnx(model: Model, images: np.ndarray) -> None:
    values = zoo.init_weights(model)
    session = Session(serialize(to_layers_onnx(model, values)))
    assert session.outputs == [tensor_name(model, node.path) for node in model.walk()]
    inside = session.run(images)
    for node in model.walk():
        assert inside[tensor_name(model, node.path)].shape == (len(images), *node.output_shape)
    plain = to_onnx(model, values)
    assert list(plain.graph.node) == list(to_layers_onnx(model, values).graph.node)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 24])
def test_batches_of_any_size_are_bit_identical(model: Model, images: np.ndarray, batch: int) -> None:
    session = Session(serialize(to_onnx(model, zoo.init_weights(model))))
    parts = [session.predict(images[i : i + batch]) for i in range(0, len(images), batch)]
    np.testing.assert_array_equal(np.concatenate(parts), session.predict(images))


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="weights do not fit convnet"):
        export.to_onnx(zoo.get("convnet"), zoo.init_weights(zoo.get("cnn-padded")))


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\x0a", b"\xff" * 100])
def test_onnxruntime_refuses_what_is_no_model(content: bytes) -> None:
    with pytest.raises(DataError, match="onnxruntime cannot load the model"):
        Session(content)


def _in_another_order(content: bytes) -> bytes:
    """The same graph with the last node that may come next before the others, instead of the first."""
    proto = onnx.load_from_string(content)
    left = list(proto.graph.node)
    made = {"", *(value.name for value in proto.graph.input), *(t.name for t in proto.graph.initializer)}
    del proto.graph.node[:]
    while left:
        node = next(node for node in reversed(left) if set(node.input) <= made)
        left.remove(node)
        made |= set(node.output)
        proto.graph.node.append(node)
    return bytes(proto.SerializeToString())


def test_native_export_is_canonical(model: Model, worker: Worker, images: np.ndarray) -> None:
    values = zoo.init_weights(model)
    raw = [worker.build(model, values).export_native() for _ in range(2)]
    assert isinstance(raw[0], bytes)
    assert isinstance(raw[1], bytes)
    proto = native.canonicalize(raw[0], model, values)
    content = serialize(proto)
    assert content == serialize(native.canonicalize(raw[1], model, values))
    assert content == serialize(native.canonicalize(_in_another_order(raw[0]), model, values))
    assert [value.name for value in proto.graph.input] == ["image"]
    assert [value.name for value in proto.graph.output] == [model.output]
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", *model.input_shape]
    names = {tensor.name.removesuffix(".T") for tensor in proto.graph.initializer}
    assert set(values) <= names
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert all(entry.key.startswith("zoo.") for entry in proto.metadata_props)
    for trace in (b"site-packages", b".py", b"/home", b"/tmp"):
        assert trace not in content
    assert proto.ir_version <= IR_VERSION
    # With the pinned versions the framework's graph and ours give the same bits in onnxruntime.
    direct = Session(serialize(to_onnx(model, values))).predict(images)
    np.testing.assert_array_equal(Session(content).predict(images), direct)


def test_native_exports_that_are_no_model() -> None:
    model = zoo.get("lenet-dropout")
    with pytest.raises(CheckFailed, match="not valid ONNX"):
        native.canonicalize(b"junk", model, {})
    proto = to_layers_onnx(model, zoo.init_weights(model))
    with pytest.raises(CheckFailed, match="1 inputs and 11 outputs"):
        native.canonicalize(serialize(proto), model, {})


def test_a_native_export_with_a_fixed_batch_is_refused() -> None:
    """The exporter's classic: the example's batch of 1 baked into a Reshape."""
    model = zoo.get("lenet-dropout")
    values = zoo.init_weights(model)
    proto = to_onnx(model, values)
    flatten = next(node for node in proto.graph.node if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    del flatten.attribute[:]
    flatten.input.append("fixed")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 256]), "fixed"))
    canonical = native.canonicalize(serialize(proto), model, values)
    from export import crosscheck

    judgement = crosscheck.judge(model, values, crosscheck.probes(model))
    verdict = crosscheck.examine("native", Session(serialize(canonical)), judgement)
    assert not verdict.passed
    assert "onnxruntime stopped" in verdict.error


@pytest.mark.cross
def test_three_graphs_give_the_same_bits(
    model: Model, workers: dict[str, Worker], images: np.ndarray
) -> None:
    values = zoo.init_weights(model, seed=8)
    direct = Session(serialize(to_onnx(model, values))).predict(images)
    for name, worker in workers.items():
        raw = worker.build(model, values).export_native()
        assert isinstance(raw, bytes)
        session = Session(serialize(native.canonicalize(raw, model, values)))
        np.testing.assert_array_equal(session.predict(images), direct, err_msg=name)


@pytest.mark.parametrize("key", [b"\x0a\x08location", b"\x0a\x88\x00location", b"\x8a\x80\x00\x08location"])
def test_weights_outside_the_file_are_refused_however_they_are_written(key: bytes) -> None:
    content = pretrained.onnx("lenet-dropout")
    Session(content)
    with pytest.raises(DataError, match="keeps weights outside itself"):
        Session(content + key)
