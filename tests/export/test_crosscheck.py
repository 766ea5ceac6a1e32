"""The cross-check itself: honest cases pass, every planted fault fails, and the layer is named."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import export
import zoo
from backends.process.client import RemoteNetwork, Worker, Workers
from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export import crosscheck
from export.crosscheck import Verdict, compare, decide, examine, judge, probes, reports, verification
from export.crosscheck.inputs import batch_sizes
from export.crosscheck.verdict import Batches, Probes
from export.crosscheck.witnesses import OPERATORS
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_layers_onnx, to_onnx
from zoo.errors import BackendUnavailable, InvalidInput, MachineError, WorkerDied
from zoo.layers import AvgPool2d, Conv2d, Dense, Dropout, Flatten, Layer, MaxPool2d, Normalize, ReLU, Softmax
from zoo.model import IMAGE, Model
from zoo.recipe import SGD, Recipe

RECIPE = Recipe(SGD(0.1), batch_size=10, epochs=1)


def test_compare_under_the_outer_limit() -> None:
    expected = np.array([[0.0, 10.0], [-100.0, 1.0]])
    limit = 1e-5 + 2e-5 * 100
    got = (expected + [[0, 0], [0, 0.9 * limit]]).astype(np.float32)
    comparison = compare(got, expected)
    assert comparison.passed
    assert comparison.limit == limit
    got = (expected + [[0, 0], [0, 1.1 * limit]]).astype(np.float32)
    comparison = compare(got, expected)
    assert not comparison.passed
    assert comparison.worst == (1, 1)
    assert comparison.expected == 1.0
    assert "at [1, 1] got 1.0022" in str(comparison)


def test_compare_under_an_element_wise_limit() -> None:
    expected = np.array([1000.0, 0.0])
    limit = np.array([1.0, 1e-6])
    assert compare(np.array([1000.5, 0], np.float32), expected, limit).passed
    comparison = compare(np.array([1000, 1e-5], np.float32), expected, limit)
    assert not comparison.passed
    np.testing.assert_allclose([comparison.ratio, comparison.limit], [10, 1e-6], rtol=1e-5)


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        (np.zeros((2, 3), np.float32), r"shape (2, 3), not (3, 2)"),
        (np.zeros((1, 3, 2), np.float32), r"shape (1, 3, 2), not (3, 2)"),
        (np.zeros((3, 1), np.float32), r"shape (3, 1), not (3, 2)"),
        (np.zeros((3, 2)), "dtype float64, not float32"),
        (np.full((3, 2), np.nan, np.float32), "6 values are NaN or infinite"),
        (np.full((3, 2), np.inf, np.float32), "6 values are NaN or infinite"),
    ],
)
def test_compare_never_makes_things_match(got: np.ndarray, problem: str) -> None:
    comparison = compare(got, np.zeros((3, 2)))
    assert not comparison.passed
    assert comparison.problem == problem


def test_decisions() -> None:
    expected = np.array([[1.0, 0.0], [1.0, 0.999], [1.0, 0.5], [0.0, 1.0]])
    got = np.array([[1.0, 0.0], [0.999, 1.0], [0.4, 0.5], [0.0, 1.0]])
    decisions = decide(got, expected, np.full(4, 0.01))
    assert decisions.flips == [1, 2]
    assert decisions.open == [1]  # its margin of 0.001 is within twice what is allowed
    assert decisions.forbidden == [2]
    assert not decisions.passed
    assert decisions.smallest_margin == pytest.approx(0.001)
    assert decide(got, expected, np.full(4, 0.3)).passed
    certain = decide(expected, expected, np.full(4, 1e-4))
    assert (certain.flips, certain.open, certain.passed) == ([], [], True)
    assert decide(np.ones((3, 1)), np.ones((3, 1)), np.ones(3)).smallest_margin is None


def test_probes_see_what_constants_do_not() -> None:
    model = zoo.get("convnet")
    images = probes(model)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    for turned in (images[..., ::-1], images[..., ::-1, :], images.swapaxes(2, 3)):
        # A pixel may lie on the axis of one symmetry; noise and ramps never do.
        same = (turned == images).all(axis=(1, 2, 3))
        assert not same[:64].any()
        assert not same[-2:].any()


class _Faulty:
    """The reference, rounded to float32 after every layer, computing another model than it should."""

    def __init__(self, model: Model, weights: dict[str, np.ndarray]) -> None:
        self.network = ReferenceNetwork(model, weights)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return list(self.activations(images).values())[-1]

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        tensors = {IMAGE: images}
        for node, weights in self.network.nodes:
            exact = {path: tensors[path].astype(np.float64) for path in node.inputs}
            tensors[node.path] = apply(node.layer, node.take(exact), weights).astype(np.float32)
        del tensors[IMAGE]
        return tensors


def test_the_reference_in_float32_passes(model: Model, images: np.ndarray) -> None:
    weights = zoo.init_weights(model)
    witness = _Faulty(model, weights)
    verdict = examine("honest", witness, judge(model, weights, images), witness.activations)
    assert verdict.passed
    assert verdict.culprit is None
    assert list(verdict.layers) == [node.path for node in model.walk()]


FAULTY = Model(
    "faulty",
    (1, 28, 28),
    (
        Normalize((0.5,), (2.0,)),
        Conv2d(4, 5, padding=(1, 2, 2, 1)),
        ReLU(),
        MaxPool2d(3, 2),
        Dropout(0.5),
        Conv2d(6, 3, stride=2),
        ReLU(),
        AvgPool2d(2, 1),
        Flatten(),
        Dense(12),
        ReLU(),
        Dense(10),
    ),
    Recipe(SGD(0.1), batch_size=10, epochs=1),
)


def _with_layer(path: str, **change: object) -> Model:
    layers: list[Layer] = []
    for node in FAULTY.walk():
        layers.append(dataclasses.replace(node.layer) if node.path != path else _changed(node.layer, change))
    return dataclasses.replace(FAULTY, layers=tuple(layers))


def _changed(layer: Layer, change: dict[str, object]) -> Layer:
    if "kind" in change:
        return change["kind"](layer.size, layer.stride)  # type: ignore[operator,attr-defined]
    fields = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer)} | change
    return type(layer)(**fields)


def _with_weights(change) -> dict[str, np.ndarray]:
    weights = zoo.init_weights(FAULTY, 1)
    change(weights)
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}


SPEC_FAULTS = {
    "normalize1": _with_layer("normalize1", mean=(0.0,)),
    "conv1": _with_layer("conv1", padding=(2, 1, 1, 2)),
    "pool1": _with_layer("pool1", kind=AvgPool2d),
    "pool2": _with_layer("pool2", kind=MaxPool2d),
}
WEIGHT_FAULTS = {
    "kernel transposed": ("conv1", lambda w: w.update({"conv1.weight": w["conv1.weight"].swapaxes(2, 3)})),
    "kernel flipped": ("conv2", lambda w: w.update({"conv2.weight": w["conv2.weight"][..., ::-1, ::-1]})),
    "channels permuted": ("conv2", lambda w: w.update({"conv2.weight": w["conv2.weight"][:, [1, 0, 2, 3]]})),
    "bias dropped": ("dense2", lambda w: w["dense2.bias"].fill(0)),
    "bias of one filter off by 1e-3": (
        "conv1",
        lambda w: w["conv1.bias"].__setitem__(2, w["conv1.bias"][2] + 1e-3),
    ),
    "flatten order": (
        "dense1",
        lambda w: w.update(
            {"dense1.weight": w["dense1.weight"].reshape(12, 6, -1).swapaxes(1, 2).reshape(12, -1)}
        ),
    ),
    "float16 weights": (
        "conv1",
        lambda w: w.update({k: v.astype(np.float16).astype(np.float32) for k, v in w.items()}),
    ),
}


@pytest.mark.parametrize("culprit", SPEC_FAULTS)
def test_another_layer_is_caught_and_named(culprit: str) -> None:
    weights = zoo.init_weights(FAULTY, 1)
    witness = _Faulty(SPEC_FAULTS[culprit], weights)
    verdict = examine("faulty", witness, judge(FAULTY, weights, probes(FAULTY)), witness.activations)
    assert not verdict.passed
    assert verdict.culprit == culprit


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_other_weights_are_caught_and_named(fault: str) -> None:
    culprit, change = WEIGHT_FAULTS[fault]
    weights = zoo.init_weights(FAULTY, 1)
    witness = _Faulty(FAULTY, _with_weights(change))
    verdict = examine("faulty", witness, judge(FAULTY, weights, probes(FAULTY)), witness.activations)
    assert not verdict.passed
    assert verdict.culprit == culprit
    without_layers = examine("faulty", witness, judge(FAULTY, weights, probes(FAULTY)))
    assert not without_layers.passed


def test_softmax_forgotten_or_twice(images: np.ndarray) -> None:
    model = zoo.get("convnet-small")
    weights = zoo.init_weights(model)
    judgement = judge(model, weights, images)
    for layers in (model.layers[:-1], (*model.layers, model.layers[-1])):
        witness = _Faulty(dataclasses.replace(model, layers=layers), weights)
        assert not examine("faulty", witness, judgement).passed


def test_the_logit_limit_is_sharper_than_the_outer_one(images: np.ndarray) -> None:
    """A last-bits fault that the outer limit lets through is seen at the input of softmax."""
    model = zoo.get("convnet-small")
    weights = zoo.init_weights(model)
    altered = {**weights, "dense1.bias": weights["dense1.bias"] + np.linspace(0, 2e-5, 10, dtype=np.float32)}
    witness = _Faulty(model, altered)
    verdict = examine("faulty", witness, judge(model, weights, images), witness.activations)
    assert verdict.output is not None
    assert verdict.output.passed
    assert verdict.logits is not None
    assert not verdict.logits.passed
    assert not verdict.passed


def test_faults_in_the_onnx_file(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.get("cnn-padded")
    weights = zoo.init_weights(model)

    def altered(proto: onnx.ModelProto, change) -> onnx.ModelProto:
        change(proto.graph)
        return proto

    def pads(graph: onnx.GraphProto) -> None:
        conv = next(node for node in graph.node if node.name == "conv2")
        next(a for a in conv.attribute if a.name == "pads").ints[:] = [1, 2, 3, 2]

    def stale(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name == "dense1.weight")
        tensor.CopyFrom(numpy_helper.from_array(zoo.init_weights(model, 1)["dense1.weight"], "dense1.weight"))

    for change, culprit in ((pads, "conv2"), (stale, "dense1")):
        with monkeypatch.context() as patched:
            patched.setattr(verification, "to_onnx", lambda *a, c=change: altered(to_onnx(*a), c))
            patched.setattr(
                verification, "to_layers_onnx", lambda *a, c=change: altered(to_layers_onnx(*a), c)
            )
            report = export.verify(model, weights, backends=[], images=images)
        assert not report.passed
        assert report.verdict(crosscheck.DIRECT).culprit == culprit
        lines = reports.terminal_lines(report.to_dict())
        assert "FAIL" in lines
        assert f"{culprit} " in lines
        assert "first divergence" in lines
    assert export.verify(model, weights, backends=[], images=images).passed


@pytest.mark.parametrize("model", [zoo.get("convnet-small"), zoo.get("lenet-dropout")], ids=lambda m: m.name)
def test_verify_asks_every_backend(framework: str, worker: Worker, model: Model) -> None:
    workers = Workers()
    workers._running[framework] = worker  # which other tests share, so it is not closed here
    report = export.verify(model, zoo.init_weights(model), backends=[framework, "reference"], workers=workers)
    assert report.passed
    witnesses = [verdict.witness for verdict in report.verdicts]
    assert witnesses == [
        crosscheck.DIRECT,
        crosscheck.UNOPTIMIZED,
        crosscheck.EVALUATOR,
        framework,
        native := crosscheck.native_name(framework),
        f"{native}, unoptimized",
    ]
    data = report.to_dict()
    assert data["passed"] is True
    assert data["suspects"] == []
    assert data["witnesses"][3]["layers"].keys() == {node.path for node in model.walk()}
    assert data["witnesses"][3]["batches"]["sizes"] == list(batch_sizes(model))
    assert data["witnesses"][4]["identical_to_direct"] is True
    assert "PASSED 6 of 6" in reports.terminal_lines(report.to_dict())


def test_a_crashed_witness_is_reported_and_the_rest_goes_on(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise WorkerDied("the backend died while asked to build: SIGSEGV")

    monkeypatch.setattr(Worker, "build", die)
    model = zoo.get("lenet-dropout")
    report = export.verify(model, zoo.init_weights(model), backends=[framework])
    assert not report.passed
    assert report.verdict(crosscheck.DIRECT).passed
    assert "SIGSEGV" in report.verdict(framework).error
    assert "SIGSEGV" in reports.terminal_lines(report.to_dict())


def test_a_process_that_dies_while_it_is_asked(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own export cannot be had any more; that is said, and nobody else is affected."""

    def die(network: RemoteNetwork, images: np.ndarray) -> dict[str, np.ndarray]:
        os.kill(network.worker._process.pid, signal.SIGSEGV)
        return real(network, images)

    real = RemoteNetwork.activations
    monkeypatch.setattr(RemoteNetwork, "activations", die)
    model = zoo.get("cnn-padded", out_1=4, out_2=4)
    report = export.verify(model, zoo.init_weights(model), backends=[framework])
    crashed = {v.witness: v.error for v in report.verdicts if v.error}
    assert list(crashed) == [framework, crosscheck.native_name(framework)]
    assert crashed[framework] == f"the backend '{framework}' died while asked to activations: SIGSEGV"
    assert crashed[crosscheck.native_name(framework)].endswith("died while asked to export_native: SIGSEGV")
    assert [v.witness for v in report.verdicts if v.passed] == [
        crosscheck.DIRECT,
        crosscheck.UNOPTIMIZED,
        crosscheck.EVALUATOR,
    ]
    assert report.suspects == [framework]


def test_a_full_disk_is_no_crash(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MachineError("cannot write: No space left on device")

    monkeypatch.setattr(RemoteNetwork, "activations", full)
    model = zoo.get("cnn-padded", out_1=4, out_2=4)
    with pytest.raises(MachineError, match="No space left"):
        export.verify(model, zoo.init_weights(model), backends=[framework])


def test_some_layers_only(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """They alone decide, and are run alone by whoever can."""
    model = zoo.get("cnn-padded", out_1=4, out_2=4)
    weights = zoo.init_weights(model)
    stale = weights | {"dense1.weight": zoo.init_weights(model, 1)["dense1.weight"]}
    monkeypatch.setattr(verification, "to_onnx", lambda model, _: to_onnx(model, stale))
    monkeypatch.setattr(verification, "to_layers_onnx", lambda model, _: to_layers_onnx(model, stale))
    assert not export.verify(model, weights, [], images).passed
    report = export.verify(model, weights, [], images, layers=["conv2", "pool1"])
    assert report.passed
    for verdict in report.verdicts:
        assert list(verdict.layers) == ["pool1", "conv2"]
        assert (verdict.output, verdict.decisions, verdict.batches) == (None, None, None)
        alone = {path: layer.alone is not None for path, layer in verdict.layers.items()}
        assert alone == {"pool1": True, "conv2": True}
    wrong = export.verify(model, weights, [], images, layers=["dense1"])
    assert not wrong.passed
    assert [verdict.culprit for verdict in wrong.verdicts] == ["dense1"] * 3
    with pytest.raises(InvalidInput, match=r"has no layer 'conv3' \(--layer\); did you mean 'conv[12]'"):
        export.verify(model, weights, [], images, layers=["conv3"])


def test_a_file_that_does_not_show_a_layer_is_skipped(images: np.ndarray) -> None:
    model = zoo.get("cnn-padded", out_1=4, out_2=4)
    weights = zoo.init_weights(model)
    proto = to_onnx(model, weights)
    hidden = next(node for node in proto.graph.node if node.name == "relu1")
    hidden.op_type = "Sigmoid"  # from here on no layer is where it should be
    for node in proto.graph.node:  # and none has its name, nor this one its weights'
        node.output[:] = [name if name == "logits" else f"t_{name}" for name in node.output]
        node.input[:] = [
            f"t_{x}" if f"t_{x}" in {o for n in proto.graph.node for o in n.output} else x for x in node.input
        ]
        node.input[:] = ["kernel" if name == "conv2.weight" else name for name in node.input]
    kernel = next(tensor for tensor in proto.graph.initializer if tensor.name == "conv2.weight")
    kernel.name = "kernel"
    files = {"other": proto.SerializeToString()}
    report = export.verify(model, weights, [], images, files=files, layers=["conv2"])
    assert report.verdict("other").skipped == "it does not show conv2"
    assert not export.verify(model, weights, [], images, files=files).passed


def test_thorough(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer alone, and more images for onnx's own implementation."""
    seen = []
    real = verification.EvaluatorWitness.predict
    monkeypatch.setattr(
        verification.EvaluatorWitness, "predict", lambda self, x: seen.append(len(x)) or real(self, x)
    )
    model = zoo.get("cnn-padded", out_1=2, out_2=2)
    weights = zoo.init_weights(model)
    many = np.concatenate([images] * 4)
    for thorough, count in ((False, 64), (True, 2 * 96 + 17)):
        said: list[str] = []
        report = export.verify(model, weights, [], many, thorough=thorough, at_work=said.append)
        assert seen.pop() == count
        assert said == ["reference", crosscheck.DIRECT, crosscheck.EVALUATOR]
        layers = report.verdict(crosscheck.DIRECT).layers.items()
        with_weights = {path for path, layer in layers if layer.alone is not None}
        assert with_weights == ({path for path, _ in layers} if thorough else {"conv1", "conv2", "dense1"})


def test_suspects_of_a_single_graph(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hears one graph only cannot tell a wrong export from a wrong reference; another file can."""
    model = zoo.get("cnn-padded", out_1=4, out_2=4)
    weights, other = zoo.init_weights(model), zoo.init_weights(model, 1)
    files = {"file": serialize(to_onnx(model, other))}
    monkeypatch.setattr(verification, "to_onnx", lambda model, _: to_onnx(model, other))
    monkeypatch.setattr(verification, "to_layers_onnx", lambda model, _: to_layers_onnx(model, other))
    assert export.verify(model, weights, [], images).suspects == ["export"]
    assert export.verify(model, weights, [], images, files=files).suspects == ["reference"]


def test_a_graph_that_nobody_can_load_fails(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments) -> onnx.ModelProto:
        proto = to_layers_onnx(*arguments)
        proto.graph.node[1].op_type = "Krelu"
        return proto

    for name in ("to_onnx", "to_layers_onnx"):
        monkeypatch.setattr(verification, name, broken)
    model = zoo.get("cnn-padded", out_1=4, out_2=4)
    report = export.verify(model, zoo.init_weights(model), [], images)
    assert "onnxruntime cannot load" in report.verdict(crosscheck.DIRECT).error
    assert "Krelu" in report.verdict(crosscheck.EVALUATOR).error
    assert report.suspects == ["export"]


def test_large_weights_do_not_alarm() -> None:
    """Honest float32 at other scales: the limits follow the magnitudes."""
    model = zoo.get("cnn-padded")
    for scale in (0.1, 1, 8):
        weights = {k: v * np.float32(scale) for k, v in zoo.init_weights(model, 3).items()}
        report = export.verify(model, weights, backends=[])
        assert report.passed, reports.terminal_lines(report.to_dict())
    content = serialize(to_onnx(model, weights))
    assert Session(content).predict(probes(model)).shape == (130, 10)


def test_files_are_run_as_they_are(images: np.ndarray) -> None:
    model = zoo.get("cnn-padded")
    weights = zoo.init_weights(model)
    proto = to_onnx(model, weights)
    honest = serialize(proto)
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Sigmoid"
    files = {"honest": honest, "tampered": serialize(proto), "junk": b"junk"}
    report = export.verify(model, weights, [], images, files=files)
    names = ["honest", "tampered", "junk"]
    assert [report.verdict(name).passed for name in names] == [True, False, False]
    assert report.suspects == ["junk", "tampered"]


def _altered(change: str) -> bytes:
    """A file of lenet-dropout whose output has another shape or type."""
    model = zoo.get("lenet-dropout")
    proto = to_onnx(model, zoo.init_weights(model))
    graph = proto.graph
    last = graph.node[-1]
    last.output[0] = "before"
    if change == "one row":
        graph.initializer.append(numpy_helper.from_array(np.array([0]), "index"))
        graph.node.append(onnx.helper.make_node("Gather", ["before", "index"], ["logits"], axis=0))
    elif change == "no batch":
        graph.node.append(onnx.helper.make_node("ReduceMean", ["before"], ["logits"], keepdims=0))
        del graph.output[0].type.tensor_type.shape.dim[:]
    elif change == "double":
        graph.node.append(onnx.helper.make_node("Cast", ["before"], ["logits"], to=onnx.TensorProto.DOUBLE))
        graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    else:
        graph.node.append(onnx.helper.make_node("Cast", ["before"], ["logits"], to=onnx.TensorProto.STRING))
        graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("change", ["one row", "no batch", "double", "text"])
def test_outputs_of_another_shape_or_type_fail_and_the_rest_goes_on(change: str, images: np.ndarray) -> None:
    model = zoo.get("lenet-dropout")
    files = {"altered": _altered(change)}
    report = export.verify(model, zoo.init_weights(model), [], images, files=files)
    assert not report.verdict("altered").passed
    assert report.verdict(crosscheck.DIRECT).passed
    assert report.suspects == ["altered"]


def test_a_broken_engine_that_nobody_named_is_skipped(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain verify asks every engine that can be found; one that then cannot be used is no failure."""

    class Broken(Worker):
        def __init__(self, backend: str, threads: int | None = None) -> None:
            self.backend, self.threads = backend, threads

        def build(self, *_: object) -> None:  # type: ignore[override]
            raise BackendUnavailable("the backend 'keras:jax' is installed but cannot be used")

        @property
        def alive(self) -> bool:
            return True

        def close(self) -> None:
            pass

    monkeypatch.setattr("backends.process.client.Worker", Broken)
    monkeypatch.setattr(verification, "witness_names", lambda thorough: ["keras:jax"])
    model = zoo.get("lenet-dropout")
    report = export.verify(model, zoo.init_weights(model), images=images)
    assert report.passed
    assert "cannot be used" in report.verdict("keras:jax").skipped
    with pytest.raises(BackendUnavailable):
        export.verify(model, zoo.init_weights(model), ["keras:jax"], images)


def test_what_runs_a_crashed_backend_again() -> None:
    verdicts = [Verdict("torch", backend="torch", error="it died"), Verdict("a.onnx", error="junk")]
    report = crosscheck.Report("m", 1, 1, verdicts, command=["zoo", "verify", "m", "--backend", "torch"])
    again = [witness["again"] for witness in report.to_dict()["witnesses"]]
    assert again[0] == ["zoo", "verify", "m", "--backend", "torch"]
    assert again[1] == ["zoo", "verify", "m", "--backend", "reference"]


def test_the_compiled_network_is_a_witness(framework: str) -> None:
    if framework != "torch":
        pytest.skip("only torch compiles here")
    assert "torch:compile" in crosscheck.witness_names(thorough=True)
    assert "torch:compile" not in crosscheck.witness_names()
    model = Model("m", (1, 6, 6), (Conv2d(2, 3), ReLU(), Flatten(), Dense(3)), RECIPE, labels=("a", "b", "c"))
    report = export.verify(model, zoo.init_weights(model), ["torch:compile"])
    assert report.passed
    compiled = report.verdict("torch:compile")
    assert list(compiled.layers) == ["conv1", "relu1", "flatten1", "dense1"]
    assert report.verdict("onnx native torch:compile").skipped


def test_a_small_difference_of_large_terms_is_no_alarm() -> None:
    """The outer limit and softmax's derivative both give way where float32 can hold no more."""
    model = Model("m", (1, 2, 2), (Flatten(), Dense(3), Softmax()), RECIPE, labels=("a", "b", "c"))
    for size in (1e6, 1e7, 1e8):
        weights = zoo.init_weights(model) | {"dense1.bias": np.full(3, size, np.float32)}
        assert export.verify(model, weights, []).passed, size


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (0, 1, 1, 0), (1, 1, 1, 1)])
@pytest.mark.parametrize(("kernel", "strides"), [((3, 2), (1, 1)), ((2, 3), (2, 3)), ((2, 2), (3, 1))])
def test_a_pool_of_onnx_is_computed_as_onnxruntime_does(
    kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...], ceil: int
) -> None:
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": ceil}
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["image"], ["y"], **attributes)],
        "pool",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, 7, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    images = np.random.default_rng(0).standard_normal((3, 2, 7, 8)).astype(np.float32)
    (found,) = ReferenceEvaluator(proto, new_ops=OPERATORS).run(None, {"image": images})
    np.testing.assert_array_equal(found, Session(proto.SerializeToString()).predict(images))


def test_a_pool_of_onnx_that_is_not_known_stops() -> None:
    node = helper.make_node("MaxPool", ["image"], ["y"], kernel_shape=(2, 2), dilations=(2, 2))
    with pytest.raises(NotImplementedError, match="dilations"):
        ReferenceEvaluator(node, new_ops=OPERATORS).run(None, {"image": np.zeros((1, 1, 4, 4), np.float32)})


def test_a_failure_says_where_it_shows() -> None:
    good = crosscheck.Comparison(1e-6, 1e-5, 0.1)
    bad = crosscheck.Comparison(1e-4, 1e-5, 10.0, (0, 1), 1.0, 2.0)
    batches = Batches((5,), bad, 5, identical=False)
    assert "disagrees in a batch of 5: max|d| 1.0e-04" in Verdict("w", good, batches=batches).failure
    assert "disagrees on probes: max|d|" in Verdict("w", good, probes=Probes(bad)).failure
    assert Verdict("w", good, untrue=("zoo.labels is a lie",)).failure == "w: zoo.labels is a lie"
