"""Foreign ONNX files: what they may hold, and what becomes of those that run wild."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import zoo
from export.inference import child, operators
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from zoo import pretrained
from zoo.errors import CheckFailed, DataError

FLOAT = TensorProto.FLOAT


def model(*nodes: onnx.NodeProto, opset: int = 18, **tensors: np.ndarray) -> ModelProto:
    """A graph from image [batch, 1, 28, 28] to "y"."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def loop(trips: int) -> ModelProto:
    """Squares the input as often as it is told: a small file that can run for ever."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Mul", ["state", "state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    node = helper.make_node("Loop", ["trips", "", "image"], ["y"], body=body)
    return model(node, trips=np.array(trips, dtype=np.int64))


def branch() -> ModelProto:
    def side(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Identity", ["image"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, None)],
        )

    node = helper.make_node("If", ["yes"], ["y"], then_branch=side("a"), else_branch=side("b"))
    return model(node, yes=np.array(True))


def with_function() -> ModelProto:
    proto = model(helper.make_node("Relu", ["image"], ["y"]))
    inner = helper.make_node("Relu", ["a"], ["b"])
    proto.functions.append(
        helper.make_function("", "Mine", ["a"], ["b"], [inner], [helper.make_opsetid("", 18)])
    )
    return proto


def hidden_subgraph() -> ModelProto:
    """A graph in an attribute of an operator that has none."""
    proto = model(helper.make_node("Relu", ["image"], ["y"]))
    proto.graph.node[0].attribute.append(helper.make_attribute("x", loop(1).graph))
    return proto


FOREIGN: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "loop": (lambda: loop(10**15), "the operator 'Loop'"),
    "branch": (branch, "the operator 'If'"),
    "function": (with_function, "functions of its own"),
    "subgraph": (hidden_subgraph, "the operator 'Relu'"),
    "domain": (
        lambda: model(helper.make_node("FusedGemm", ["image"], ["y"], domain="com.microsoft")),
        "the operator 'com.microsoft.FusedGemm'",
    ),
    "domain of a known name": (
        lambda: model(helper.make_node("Relu", ["image"], ["y"], domain="evil")),
        "the operator 'evil.Relu'",
    ),
    "unknown": (lambda: model(helper.make_node("Ärger\n", ["image"], ["y"])), r"the operator 'Ärger\n'"),
    "random": (lambda: model(helper.make_node("RandomUniformLike", ["image"], ["y"])), "'RandomUniformLike'"),
    "strings": (lambda: model(helper.make_node("StringNormalizer", ["image"], ["y"])), "'StringNormalizer'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_cnn_consists_of_is_refused(name: str) -> None:
    make, message = FOREIGN[name]
    with pytest.raises(DataError) as error:
        Session(make().SerializeToString(), foreign=True)
    assert message.replace("\\n", "\n") in error.value.what.replace("\\n", "\n")


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_onnx_file_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="not an ONNX file|cannot load"):
        Session(content, foreign=True)


def test_a_newer_operator_set_is_refused() -> None:
    with pytest.raises(DataError, match="onnxruntime cannot load the model"):
        Session(model(helper.make_node("Relu", ["image"], ["y"]), opset=99).SerializeToString(), foreign=True)


def test_all_that_the_zoo_writes_is_allowed() -> None:
    classics = [zoo.get(name, size=64) for name in ("resnet18", "densenet121", "mobilenet-v2")]
    for spec in (*map(zoo.get, zoo.names()), *classics):
        operators.check_operators(serialize(to_onnx(spec, zoo.init_weights(spec))))


def test_a_child_gives_the_same_bits(images: np.ndarray) -> None:
    for name in zoo.names():
        content = pretrained.onnx(name)
        here, there = Session(content), Session(content, foreign=True)
        assert (here.inputs, here.given, here.metadata) == (there.inputs, there.given, there.metadata)
        np.testing.assert_array_equal(here.predict(images), there.predict(images), strict=True)


def big(shape: list[int], operator: str) -> ModelProto:
    """A few bytes that ask for a terabyte."""
    if operator == "Expand":
        nodes = [helper.make_node("Expand", ["one", "shape"], ["y"])]
    elif operator == "Tile":
        nodes = [helper.make_node("Tile", ["image", "shape"], ["y"])]
    else:
        nodes = [helper.make_node("Pad", ["image", "shape"], ["y"])]
    return model(*nodes, one=np.ones(1, np.float32), shape=np.array(shape, dtype=np.int64))


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        ("Expand", [10**6, 10**6]),
        ("Tile", [10**3, 1, 10**4, 10**4]),
        ("Pad", [0, 0, 10**6, 0, 0, 0, 10**6, 0]),
    ],
)
def test_a_graph_that_asks_for_a_terabyte(operator: str, shape: list[int], images: np.ndarray) -> None:
    started = time.monotonic()
    with pytest.raises((CheckFailed, DataError), match="onnxruntime (stopped|cannot load)"):
        Session(big(shape, operator).SerializeToString(), foreign=True).predict(images)
    assert time.monotonic() - started < child.SECONDS


GOOD = model(helper.make_node("Relu", ["image"], ["y"]))


def booted(monkeypatch: pytest.MonkeyPatch, code: str) -> Session:
    """A session whose child does something else when it runs the model."""
    monkeypatch.setattr(child, "PRELUDE", f"from export.inference import child, loading\n{code}")
    return Session(GOOD.SerializeToString(), foreign=True)


WILD = """
import os, signal, time
class Wild:
    def __init__(self, real): self.real = real
    def __getattr__(self, name): return getattr(self.real, name)
    def run(self, *_): {action}
load = loading.load
loading.load = lambda *arguments: Wild(load(*arguments))
"""


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "process died: SIGSEGV"),
        ("os._exit(3)", "process died: exit code 3"),
        ("time.sleep(100)", "did not answer within 1 s"),
        ("os.write(4, b'x' * 100); os._exit(0)", "process died|exit code"),
        ("return [__import__('numpy').array([object()], dtype=object)]", "onnxruntime stopped"),
        ("return []", "onnxruntime stopped"),
        ("return [bytearray(10**11)]", "onnxruntime stopped"),
    ],
    ids=["crash", "exit", "hang", "garbage", "pickle", "nothing", "memory"],
)
def test_a_process_that_runs_wild(
    action: str, message: str, monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    session = booted(monkeypatch, WILD.format(action=action))
    monkeypatch.setattr(child, "SECONDS", 1.0)
    with pytest.raises(CheckFailed, match=message):
        session.predict(images)


def test_a_child_may_write_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    path = tmp_path / "file"
    session = booted(monkeypatch, WILD.format(action=f"open({str(path)!r}, 'wb').write(b'x' * 10**5)"))
    with pytest.raises(CheckFailed):
        session.predict(images)
    assert not path.exists() or path.stat().st_size == 0


def test_a_child_ends_with_its_session(images: np.ndarray) -> None:
    session = Session(GOOD.SerializeToString(), foreign=True)
    np.testing.assert_array_equal(session.predict(images), images)
    process = session._session._process
    assert process.poll() is None
    session._session.close()
    assert process.poll() is not None
