"""ONNX graphs read as layers: round trips, exporters' spellings, onnx's own cases, and what is refused."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import node_cases
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import zoo
from backends.process.client import Worker, Workers
from backends.reference.network import ReferenceNetwork
from backends.testing.layer_table import ROWS, model_of
from export.crosscheck.inputs import probes
from export.imports import functions, images, judging, reading
from export.imports.nodes import RULES
from export.imports.reading import Unsupported, read
from export.inference import operators
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import shares, to_onnx
from zoo import data
from zoo.errors import CheckFailed, DataError, InvalidInput
from zoo.layers import (
    GELU,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSwish,
    Layer,
    LeakyReLU,
    MaxPool2d,
    Normalize,
    ReLU,
    ReLU6,
    Residual,
    SiLU,
)
from zoo.model import Model
from zoo.network import Backend
from zoo.weights import init_weights

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(0)
GRAPHS = [
    *(pytest.param(model_of(layers, shape), id=name) for name, layers, shape, _ in ROWS),
    *(pytest.param(zoo.get(name), id=name) for name in (*zoo.names(), "lenet-5")),
    *(pytest.param(zoo.get(name, size=32), id=name) for name in ("resnet18", "squeezenet1.1", "densenet121")),
]


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def graph(
    *nodes: onnx.NodeProto,
    image: tuple[object, ...] = ("batch", 2, 6, 5),
    opset: int = 18,
    **constants: np.ndarray,
) -> ModelProto:
    """A graph from "image" to "y"."""
    inside = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", FLOAT, image)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(inside, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(operator: str, *inputs: str, y: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [y], f"{operator} {y}", **attributes)


def layers_of(proto: ModelProto, **options: object) -> tuple[object, ...]:
    return read(proto.SerializeToString(), "foreign", **options).model.layers  # type: ignore[arg-type]


def agrees(proto: ModelProto) -> Model:
    """Read a graph and hold the reference and the exported file to onnx's own implementation of it."""
    found = read(proto.SerializeToString(), "foreign")
    images = (2 * RNG.random((3, *found.model.input_shape)) - 1).astype(np.float32)
    expected = ReferenceEvaluator(proto).run(None, {"image": found.input.given(images)})[0]
    for outputs in (
        ReferenceNetwork(found.model, found.weights).predict(images),
        Session(serialize(to_onnx(found.model, found.weights))).predict(images),
    ):
        expected = expected.reshape(outputs.shape)
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))
    return found.model


# Round trips


@pytest.mark.parametrize("model", GRAPHS)
def test_spec_to_onnx_to_spec_to_onnx_is_stable(model: Model) -> None:
    weights = init_weights(model, 1)
    first = to_onnx(model, weights)
    once = reading.read_proto(first, "x", "again")
    second = to_onnx(once.model, once.weights)
    twice = reading.read_proto(second, "x", "again")
    assert twice.model == once.model
    assert serialize(to_onnx(twice.model, twice.weights)) == serialize(second)
    kinds = [(n.op_type, sorted(map(str, n.attribute))) for n in first.graph.node if n.op_type != "Identity"]
    assert [(n.op_type, sorted(map(str, n.attribute))) for n in second.graph.node] == kinds
    images = probes(model, 1)
    np.testing.assert_array_equal(
        ReferenceNetwork(once.model, once.weights).predict(images),
        ReferenceNetwork(model, weights).predict(images),
    )


@pytest.mark.parametrize("name", zoo.names())
def test_a_file_of_the_zoo_gives_its_own_spec_back(name: str) -> None:
    model = zoo.get(name)
    weights = init_weights(model)
    content = serialize(to_onnx(model, weights))
    found = read(content, "x.onnx")
    assert found.model == model
    assert serialize(to_onnx(found.model, found.weights)) == content
    assert read(content, "x.onnx", name="mine").model.name == "mine"


def test_a_file_of_the_zoo_with_another_graph_is_read_by_its_graph() -> None:
    model = zoo.get("lenet-dropout")
    proto = to_onnx(model, init_weights(model))
    proto.graph.node[1].op_type = "Add"  # of the scale
    found = read(proto.SerializeToString(), "x.onnx")
    assert found.model != model
    assert isinstance(found.model.layers[0], Normalize)
    assert not np.allclose(found.model.layers[0].scale, 2.0)


# onnx's own cases


def test_every_case_that_fits_gives_what_onnx_stores() -> None:
    fitting: Counter[str] = Counter()
    wrong = {}
    for case in node_cases.cases():
        try:
            found = node_cases.read(case)
        except Unsupported:
            continue
        fitting[case.operator] += 1
        images = node_cases.images(case, found)
        for who, outputs in (
            ("reference", ReferenceNetwork(found.model, found.weights).predict(images)),
            ("onnx", Session(serialize(to_onnx(found.model, found.weights))).predict(images)),
        ):
            if (excess := node_cases.difference(case, outputs)) > 1:
                wrong[f"{case.name} {who}"] = excess
    assert not wrong
    assert fitting["Conv"] == 6
    assert sum(fitting.values()) > 90


def test_every_backend_gives_what_onnx_stores(backend: Backend) -> None:
    wrong, seen = {}, 0
    for case in node_cases.cases():
        try:
            found = node_cases.read(case)
        except Unsupported:
            continue
        seen += 1
        outputs = backend.build(found.model, found.weights).predict(node_cases.images(case, found))
        if (excess := node_cases.difference(case, outputs)) > 1:
            wrong[case.name] = excess
    assert not wrong
    assert seen > 90


def test_a_wrong_weight_does_not_give_what_onnx_stores() -> None:
    case = next(case for case in node_cases.cases() if case.name == "basic_conv_with_padding")
    found = node_cases.read(case)
    found.weights["conv1.weight"] = found.weights["conv1.weight"] + np.float32(1e-5)
    outputs = ReferenceNetwork(found.model, found.weights).predict(node_cases.images(case, found))
    assert node_cases.difference(case, outputs) > 1


def test_the_page_tells_what_fits() -> None:
    project = Path(__file__).parents[2]
    tested = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    if f"onnx=={onnx.__version__}" not in tested:
        pytest.skip(f"the page is about another onnx than {onnx.__version__}")
    text = (project / "docs" / "importing.md").read_text()
    found = re.search(r"<!-- python tests/helpers/node_cases.py -->\n(.*)\n<!-- end -->", text, re.DOTALL)
    assert found
    assert found[1] == node_cases.table()


# Stronger convolutions than onnx's, which are all of one channel


@pytest.mark.parametrize("auto", [None, "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 2), (1, 1)), ((2, 3), (2, 1)), ((1, 1), (1, 1))])
def test_convolutions_of_many_channels(
    auto: str | None, stride: tuple[int, int], groups: int, kernel: tuple[int, int], dilation: tuple[int, int]
) -> None:
    placed = {"pads": (1, 0, 2, 1)} if auto is None else {"auto_pad": auto}
    proto = graph(
        node("Conv", "image", "w", "b", strides=stride, dilations=dilation, group=groups, **placed),
        image=(3, 4, 9, 8),
        w=array(8, 4 // groups, *kernel),
        b=array(8),
    )
    model = agrees(proto)
    assert isinstance(model.layers[0], Conv2d)
    assert model.layers[0].groups == groups


# Exporters' spellings


def _erf_gelu() -> list[onnx.NodeProto]:
    return [
        node("Div", "image", "root", y="a"),
        node("Erf", "a", y="b"),
        node("Add", "b", "one", y="c"),
        node("Mul", "image", "c", y="d"),
        node("Mul", "d", "half"),
    ]


HARD = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}


def _hard_swish(x: str, y: str = "y") -> list[onnx.NodeProto]:
    return [
        node("Add", x, "three", y="h1"),
        node("Clip", "h1", "zero", "six", y="h2"),
        node("Div", "h2", "six", y="h3"),
        node("Mul", x, "h3", y=y),
    ]


SPELLINGS: dict[str, tuple[Callable[[], ModelProto], tuple[type, ...]]] = {
    "a bias that is added to a MatMul": (
        lambda: graph(
            node("MatMul", "image", "w", y="a"), node("Add", "b", "a"), image=(2, 7), w=array(7, 3), b=array(3)
        ),
        (Flatten, Dense),
    ),
    "a bias that is added to a Conv": (
        lambda: graph(
            node("Conv", "image", "w", y="a"), node("Add", "a", "b"), w=array(3, 2, 2, 2), b=array(3, 1, 1)
        ),
        (Conv2d,),
    ),
    "GELU from Erf": (
        lambda: graph(
            *_erf_gelu(), root=np.float32(2**0.5), one=np.float32(1), half=np.float32(0.5)
        ),
        (GELU,),
    ),
    "SiLU": (lambda: graph(node("Sigmoid", "image", y="a"), node("Mul", "a", "image")), (SiLU,)),
    "ReLU from Max": (lambda: graph(node("Max", "zero", "image"), zero=np.float32(0)), (ReLU,)),
    "ReLU from Where": (
        lambda: graph(
            node("Greater", "image", "zero", y="a"),
            node("Where", "a", "image", "zero"),
            zero=np.float32(0),
        ),
        (ReLU,),
    ),
    "Sub and Div": (
        lambda: graph(
            node("Sub", "image", "m", y="a"), node("Div", "a", "s"), m=array(2, 1, 1), s=array(1, 2, 1, 1)
        ),
        (Normalize,),
    ),
    "Mul and Add": (
        lambda: graph(
            node("Mul", "image", "s", y="a"), node("Add", "a", "m"), m=array(2, 1, 1), s=array(1, 2, 1, 1)
        ),
        (BatchNorm,),
    ),
    "a constant less an image": (
        lambda: graph(node("Sub", "one", "image"), one=np.float32(1)), (BatchNorm,)
    ),
    "Pad before Conv": (
        lambda: graph(
            node("Pad", "image", "p", y="a"),
            node("Conv", "a", "w", pads=(1, 0, 0, 1)),
            p=np.array([0, 0, 1, 2, 0, 0, 3, 0]),
            w=array(3, 2, 2, 3),
        ),
        (Conv2d,),
    ),
    "Pad before MaxPool, after ReLU": (
        lambda: graph(
            node("Relu", "image", y="r"),
            node("Pad", "r", "p", y="a"),
            node("MaxPool", "a", kernel_shape=(3, 3), strides=(2, 2)),
            p=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        ),
        (ReLU, MaxPool2d),
    ),
    "Pad before MaxPool, kept": (
        lambda: graph(
            node("Pad", "image", "p", y="a"),
            node("MaxPool", "a", kernel_shape=(3, 3), strides=(2, 2)),
            p=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        ),
        (Conv2d, MaxPool2d),
    ),
    "Pad before AveragePool": (
        lambda: graph(
            node("Pad", "image", "p", y="a"),
            node("AveragePool", "a", kernel_shape=(3, 3), strides=(2, 2)),
            p=np.array([0, 0, 1, 0, 0, 0, 1, 2]),
        ),
        (AvgPool2d,),
    ),
    "a Pad alone": (
        lambda: graph(node("Pad", "image", "p"), p=np.array([0, 0, 1, 2, 0, 0, 3, 0])), (Conv2d,)
    ),
    "Pad before MaxPool with ceil, kept": (
        lambda: graph(
            node("Relu", "image", y="r"),
            node("Pad", "r", "p", y="a"),
            node("MaxPool", "a", kernel_shape=(3, 3), strides=(3, 3), ceil_mode=1),
            image=("n", 2, 5, 5), p=np.array([0, 0, 0, 0, 0, 0, 2, 2]),
        ),
        (ReLU, Conv2d, MaxPool2d),
    ),
    "Pad of a pool's size, kept": (
        lambda: graph(
            node("Relu", "image", y="r"),
            node("Pad", "r", "p", y="a"),
            node("MaxPool", "a", kernel_shape=(2, 2), strides=(1, 1)),
            p=np.array([0, 0, 2, 0, 0, 0, 0, 0]),
        ),
        (ReLU, Conv2d, MaxPool2d),
    ),
    "a shape that is turned round": (
        lambda: graph(
            node("Slice", "s", "b", "e", "", "d", y="t"),
            node("Reshape", "image", "t", y="f"),
            node("Gemm", "f", "w"),
            s=np.array([60, -1]), b=np.array([1]), e=np.array([-9]), d=np.array([-1]), w=array(60, 3),
        ),
        (Flatten, Dense),
    ),
    "a shape that is computed": (
        lambda: graph(
            node("Shape", "image", y="s"),
            node("Gather", "s", "zero", y="n", axis=0),
            node("Unsqueeze", "n", "axes", y="u"),
            node("Concat", "u", "rest", y="t", axis=0),
            node("Reshape", "image", "t", y="f"),
            node("Gemm", "f", "w"),
            zero=np.array(0), axes=np.array([0]), rest=np.array([-1]), w=array(60, 3),
        ),
        (Flatten, Dense),
    ),
    "channels-last, flattened": (
        lambda: graph(
            node("Transpose", "image", y="c", perm=(0, 3, 1, 2)),
            node("Conv", "c", "k", y="r"),
            node("Transpose", "r", y="l", perm=(0, 2, 3, 1)),
            node("Mul", "l", "s", y="m"),
            node("Reshape", "m", "t", y="f"),
            node("MatMul", "f", "w"),
            image=("batch", 4, 5, 2), k=array(3, 2, 2, 2), s=array(3), t=np.array([-1, 36]), w=array(36, 4),
        ),
        (Conv2d, Normalize, Flatten, Dense),
    ),
    "squeeze and excitation": (
        lambda: graph(
            node("ReduceMean", "image", "axes", y="p"),
            node("Conv", "p", "a", y="b"),
            node("HardSigmoid", "b", y="c", alpha=1 / 6, beta=0.5),
            node("Mul", "c", "image"),
            axes=np.array([2, 3]), a=array(2, 2, 1, 1),
        ),
        (zoo.layers.Scale,),
    ),
    "a sum of three": (
        lambda: graph(
            node("Relu", "image", y="a"), node("Tanh", "a", y="b"), node("Conv", "a", "k", y="c"),
            node("Sum", "a", "c", "b"), k=array(2, 2, 1, 1),
        ),
        (ReLU, Residual),
    ),
    "everything before, joined": (
        lambda: graph(
            node("Conv", "image", "k", y="a"),
            node("Concat", "image", "a", y="b", axis=1),
            node("Conv", "b", "l", y="c"),
            node("Concat", "image", "a", "c", axis=1),
            k=array(3, 2, 1, 1), l=array(2, 5, 1, 1),
        ),
        (Concat, Concat),
    ),
    "dropout is kept": (
        lambda: graph(node("Dropout", "image", "r"), r=np.float32(0.25)), (Dropout,)
    ),
    "a hard swish after a factor per channel": (
        lambda: graph(node("Mul", "image", "m", y="x"), *_hard_swish("x"), m=array(2, 1, 1), **HARD),
        (Normalize, HardSwish),
    ),
    "a hard swish after a factor and a term per channel": (
        lambda: graph(
            node("Mul", "image", "m", y="a"), node("Add", "a", "b", y="x"), *_hard_swish("x"),
            m=array(2, 1, 1), b=array(2, 1, 1), **HARD,
        ),
        (BatchNorm, HardSwish),
    ),
    "a hard swish after a Conv without bias": (
        lambda: graph(node("Conv", "image", "k", y="x"), *_hard_swish("x"), k=array(3, 2, 1, 1), **HARD),
        (Conv2d, HardSwish),
    ),
    "a hard swish after a Relu6": (
        lambda: graph(
            node("Clip", "image", "zero", "six", y="x"), node("Mul", "x", "six", y="t"), *_hard_swish("t"), **HARD
        ),
        (ReLU6, Normalize, HardSwish),
    ),
    "Pad of float32's lowest before MaxPool": (
        lambda: graph(
            node("Pad", "image", "p", "v", y="a"),
            node("MaxPool", "a", kernel_shape=(3, 3), strides=(2, 2)),
            p=np.array([0, 0, 1, 1, 0, 0, 1, 1]), v=np.finfo(np.float32).min,
        ),
        (MaxPool2d,),
    ),
    "Gemm with factors": (
        lambda: graph(
            node("Gemm", "image", "w", "b", alpha=0.3, beta=2.0), image=(2, 7), w=array(7, 3), b=array(3)
        ),
        (Flatten, Dense),
    ),
    "an old Clip": (
        lambda: graph(node("Clip", "image", min=0.0, max=6.0), opset=10), (ReLU6,)
    ),
    "nothing at all": (lambda: graph(node("Identity", "image")), (Dropout,)),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_exporters_write_is_put_together(spelling: str) -> None:
    make, kinds = SPELLINGS[spelling]
    assert tuple(type(layer) for layer in agrees(make()).layers) == kinds


def test_the_size_of_an_image_that_a_file_leaves_open() -> None:
    proto = graph(node("Conv", "image", "w"), image=("n", 2, "h", "w"), w=array(1, 2, 1, 1))
    with pytest.raises(Unsupported, match=r"its input is \? x 2 x \? x \?: give its size with --input-shape"):
        layers_of(proto)
    found = read(proto.SerializeToString(), "x", image=(2, 7, 5))
    assert found.model.input_shape == (2, 7, 5)
    with pytest.raises(Unsupported, match="its input is"):
        read(proto.SerializeToString(), "x", image=(3, 7, 5))


def test_one_of_several_outputs_is_chosen() -> None:
    proto = graph(node("Relu", "image", y="r"), node("Tanh", "r"))
    proto.graph.output.append(helper.make_tensor_value_info("r", FLOAT, None))
    with pytest.raises(Unsupported, match="2 outputs: y, r; choose one"):
        layers_of(proto)
    assert [type(layer) for layer in layers_of(proto, output="r")] == [ReLU]
    with pytest.raises(Unsupported, match="no output 'z', only y, r"):
        layers_of(proto, output="z")


def test_the_name_of_an_imported_model() -> None:
    content = graph(node("Relu", "image")).SerializeToString()
    assert read(content, "some folder/my net (2).onnx").model.name == "my-net-2"
    assert read(content, "resnet18.onnx").model.name == "resnet18-imported"
    with pytest.raises(InvalidInput, match="'resnet18' is the name of a built-in model"):
        read(content, "x.onnx", name="resnet18")
    with pytest.raises(InvalidInput, match="not a usable name"):
        read(content, "x.onnx", name="../x")
    own = serialize(to_onnx(zoo.get("cnn-padded"), init_weights(zoo.get("cnn-padded"))))
    with pytest.raises(InvalidInput, match="'lenet-5' is the name of a built-in model"):
        read(own, "x.onnx", name="lenet-5")


# What is refused


def _square(times: int) -> list[onnx.NodeProto]:
    names = ["image", *(f"t{i}" for i in range(times - 1)), "y"]
    return [node("Mul", a, a, y=b) for a, b in pairwise(names)]


REFUSED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "another operator": (lambda: graph(node("Det", "image")), r"Det 'Det y': no layer of the language"),
    "another domain": (
        lambda: graph(node("Relu", "image", domain="com.microsoft")), "an operator of 'com.microsoft'"
    ),
    "a newer opset": (lambda: graph(node("Relu", "image"), opset=99), "opset 99 is newer than"),
    "two inputs": (
        lambda: _with_input(graph(node("Add", "image", "other"))), "takes 2 inputs: image, other, not one"
    ),
    "no input": (lambda: graph(node("Identity", "c"), c=array(2)), "does not depend on the image"),
    "a tensor from nowhere": (lambda: graph(node("Relu", "ghost")), "its input 'ghost' is nowhere made"),
    "images that are mixed": (
        lambda: graph(node("Reshape", "image", "t"), t=np.array([-1, 30])), "mixes the images of a batch"
    ),
    "branches that cross": (
        lambda: graph(
            node("Relu", "image", y="a"), node("Tanh", "image", y="b"), node("Sigmoid", "a", y="c"),
            node("Conv", "a", "k", y="d"), node("Add", "d", "b", y="e"), node("Mul", "e", "c", y="f"),
            node("Add", "f", "d"), k=array(2, 2, 1, 1),
        ),
        "in two branches, which so cross each other|neither of which",
    ),
    "a function that is no layer": (lambda: graph(node("Exp", "image")), "Exp: a function of one number"),
    "a square of a square, often": (lambda: graph(*_square(60)), "made of more than 32 steps"),
    "a chain of functions without end": (
        lambda: graph(*(node("Exp", "image" if i == 0 else f"t{i}", y=f"t{i + 1}") for i in range(3000)),
                      node("Relu", "t3000")),
        "made of more than 32 steps",
    ),
    "a function of an image and of the same, turned": (
        lambda: graph(
            node("Transpose", "image", y="t", perm=(0, 2, 3, 1)), node("Sigmoid", "t", y="s"),
            node("Mul", "image", "s"), image=("n", 3, 3, 3),
        ),
        "a Mul of tensors in several layouts",
    ),
    "the larger of an image and of the same, turned": (
        lambda: graph(
            node("Transpose", "image", y="t", perm=(0, 2, 3, 1)), node("Max", "image", "t"), image=("n", 3, 3, 3)
        ),
        "of several tensors",
    ),
    "a pool of what is padded with a low number": (
        lambda: graph(
            node("Pad", "image", "p", "v", y="a"), node("MaxPool", "a", kernel_shape=(3, 3), strides=(2, 2)),
            p=np.array([0, 0, 1, 1, 0, 0, 1, 1]), v=np.float32(-1e30),
        ),
        r"a pool of what is padded with -1e\+30",
    ),
    "a pool of what is padded with 0, and may be less": (
        lambda: graph(
            node("LeakyRelu", "image", y="r"), node("Pad", "r", "p", "v", y="a"),
            node("MaxPool", "a", kernel_shape=(3, 3), strides=(2, 2)),
            p=np.array([0, 0, 1, 1, 0, 0, 1, 1]), v=np.float32(1e-30),
        ),
        "a pool of what is padded with 1e-30",
    ),
    "a Clip with a bound for each channel": (
        lambda: graph(node("Clip", "image", "a", "b"), a=np.zeros(2, np.float32), b=np.float32(6)), "malformed"
    ),
    "two factors whose product float32 has not": (
        lambda: graph(node("Mul", "image", "a", y="b"), node("Mul", "b", "a"), a=np.float32(1e-30)),
        "a constant beyond float32, made of several",
    ),
    "a factor of a Gemm that loses digits of weights": (
        lambda: graph(node("Gemm", "image", "w", alpha=1e-30), image=(2, 7), w=np.float32(1e-12) * array(7, 3)),
        "a constant beyond float32, made of several",
    ),
    "a factor of a Gemm that is too large": (
        lambda: graph(node("Gemm", "image", "w", alpha=1e30), image=(2, 7), w=np.float32(1e30) * array(7, 3)),
        "a constant beyond float32, made of several",
    ),
    "shares of cells that are a little off": (
        lambda: _adaptive(1 + 5e-7), "two matrices that are no means of cells"
    ),
    "branches in branches without end": (lambda: _nested(2000), "without end|more than 20 deep"),
    "a padding that fills the memory": (
        lambda: graph(node("Pad", "image", "p"), p=np.array([0, 0, 2**31 - 2, 2**31 - 2, 0, 0, 0, 0])),
        "it gives 2 x .* numbers an image",
    ),
    "an image that fills the memory": (
        lambda: graph(node("Relu", "image"), image=("n", 2**30, 2**30, 2**30)), "numbers an image"
    ),
    "one weight used over and over": (
        lambda: graph(
            *(node("Gemm", "image" if i == 0 else f"t{i}", "w", y=f"t{i + 1}") for i in range(200)),
            node("Relu", "t200"), image=("n", 600), w=array(600, 600),
        ),
        "used over and over",
    ),
    "a constant that fills the memory": (
        lambda: graph(node("Add", "a", "b", y="c"), node("Reshape", "image", "c"),
                      a=np.ones((2**15, 1)), b=np.ones((1, 2**15))),
        "a constant of 1,073,741,824 numbers",
    ),
    "attributes of other types": (lambda: graph(node("Conv", "image", "k", strides="ab"), k=array(2, 2, 1, 1)),
                                  "Conv"),
    "an integer image": (lambda: _integers(graph(node("Relu", "image"))), "no tensor of float32"),
    "training mode": (
        lambda: graph(node("BatchNormalization", "image", *"abcd", training_mode=1),
                      a=array(2), b=array(2), c=array(2), d=np.ones(2, np.float32)),
        "in training mode",
    ),
    "an image in channels-last order, to be flattened, that fills the memory": (
        lambda: graph(node("Transpose", "image", y="c", perm=(0, 3, 1, 2)), node("Flatten", "image"),
                      image=("n", 9000, 9000, 2)),
        "features in channels-last order",
    ),
    "a number for each of a million channels": (
        lambda: graph(*(node("Mul", "image" if i == 0 else f"t{i}", "c", y=f"t{i + 1}") for i in range(8)),
                      node("Relu", "t8"), image=("n", 2**20, 1, 1), c=np.float32(2)),
        "used over and over",
    ),
    "many constants that fill the memory": (
        lambda: graph(*(node("Add", "a", "b", y=f"c{i}") for i in range(400)), node("Sum", *(f"c{i}" for i in range(400)), y="s"),
                      node("Reshape", "image", "s"), a=np.ones((64, 1)), b=np.ones((1, 64))),
        "more than the file has room for",
    ),
    "a node of many inputs": (
        lambda: graph(node("Concat", *["image"] * 30_000, axis=1)), "30,000 inputs, at most 1,000"
    ),
    "a name without end": (
        lambda: graph(node("Relu", "image", y="n" * 5000), node("Tanh", "n" * 5000)), "no text of at most 1000 letters"
    ),
    "channels-last images of one pixel": (
        lambda: graph(node("Reshape", "image", "t", y="r"), node("MaxPool", "r", kernel_shape=(1, 3)),
                      image=(2, 4), t=np.array([2, 1, 1, 4])),
        "a pool of a channels-last image",
    ),
    "channels in the middle": (
        lambda: graph(node("Reshape", "image", "t"), image=(2, 4), t=np.array([2, 1, 4, 1])), "a Reshape of"
    ),
    "more nodes than layers may be": (
        lambda: graph(*(node("Relu", "image" if i == 0 else f"t{i}", y=f"t{i + 1}") for i in range(10_001))),
        "10,001 nodes, at most 10,000",
    ),
}  # fmt: skip


def _adaptive(factor: float) -> ModelProto:
    """The adaptive mean 3 x 3 of an image 6 x 5, with one share that is `factor` times what it should be."""
    layer = AdaptiveAvgPool2d((3, 3))
    rows, columns = (shares(cells, n) for cells, n in zip(layer.cells((2, 6, 5)), (6, 5), strict=True))
    rows[1, 2] *= np.float32(factor)
    return graph(node("MatMul", "image", "c", y="a"), node("MatMul", "r", "a"), r=rows, c=columns.T)


def _with_input(proto: ModelProto) -> ModelProto:
    proto.graph.input.append(helper.make_tensor_value_info("other", FLOAT, ("batch", 2, 6, 5)))
    return proto


def _integers(proto: ModelProto) -> ModelProto:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return proto


def _nested(depth: int) -> ModelProto:
    """x + f(x + f(x + ...)), each sum inside the branch of the one before."""
    nodes, last = [], "image"
    for i in range(depth):
        nodes.append(node("Conv", last, "k", y=f"d{i}"))
        last = f"d{i}"
    total = last
    for i in reversed(range(depth)):
        before = f"d{i - 1}" if i else "image"
        nodes.append(node("Add", total, before, y=f"s{i}"))
        total = f"s{i}"
    nodes.append(node("Relu", total))
    return graph(*nodes, k=array(2, 2, 1, 1))


def test_shares_of_cells_that_are_right() -> None:
    assert layers_of(_adaptive(1.0)) == (AdaptiveAvgPool2d((3, 3)),)


@pytest.mark.parametrize(
    ("old", "new"), [(0.9, 0.1), (0.99999994, 6e-8), (0.123456789, 0.87654321), (1.0, 0.1)]
)
def test_a_momentum_keeps_its_digits(old: float, new: float) -> None:
    names = ("scale", "bias", "mean", "var")
    proto = graph(
        node("BatchNormalization", "image", *names, momentum=old),
        **{name: np.ones(2, np.float32) for name in names},
    )
    (layer,) = layers_of(proto)
    assert isinstance(layer, BatchNorm)
    assert layer.momentum == new


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_layers_express_is_said(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(Unsupported, match=message) as caught:
        read(make().SerializeToString(), "foreign.onnx")
    assert caught.value.reasons
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)


def test_all_reasons_are_told() -> None:
    proto = graph(
        node("Det", "image", y="a"),
        node("MaxPool", "image", y="b", kernel_shape=(2, 2), pads=(3, 3, 3, 3)),
        node("Add", "a", "b"),
    )
    with pytest.raises(Unsupported) as caught:
        layers_of(proto)
    assert [reason.split()[0] for reason in caught.value.reasons] == ["Det", "MaxPool"]
    assert caught.value.to_dict()["reasons"] == list(caught.value.reasons)


def test_what_the_output_does_not_need_is_not_read() -> None:
    proto = graph(node("Relu", "image"), node("ArgMax", "y", y="class"), node("Det", "image", y="nothing"))
    assert [type(layer) for layer in layers_of(proto)] == [ReLU]
    proto.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, None))
    assert [type(layer) for layer in layers_of(proto, output="y")] == [ReLU]
    with pytest.raises(Unsupported, match="ArgMax"):
        layers_of(proto, output="class")


def test_a_name_that_is_no_text() -> None:
    proto = graph(node("Relu", "image", y="QQQQ"), node("Tanh", "QQQQ"))
    content = proto.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xfd\xfc")
    with pytest.raises((DataError, Unsupported)):
        read(content, "x.onnx")


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\x0a" * 400])
def test_what_is_no_onnx_file(content: bytes) -> None:
    with pytest.raises((DataError, Unsupported)):
        read(content, "x.onnx")


# The command


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file that torch might have written: channels-first, a bias that is added, no metadata."""
    path = tmp_path / "foreign.onnx"
    proto = graph(
        node("Conv", "image", "k", y="a", pads=(1, 1, 1, 1)),
        node("Relu", "a", y="b"),
        node("MaxPool", "b", y="c", kernel_shape=(2, 2), strides=(2, 2)),
        node("Flatten", "c", y="d"),
        node("MatMul", "d", "w", y="e"),
        node("Add", "e", "v"),
        image=("n", 2, 6, 6), k=array(4, 2, 3, 3), w=array(36, 5), v=array(5),
    )  # fmt: skip
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_foreign_file_is_imported_and_exported_again(run, foreign: Path, tmp_path: Path) -> None:
    result = run("import", str(foreign), "--backend", "reference", "--out", str(tmp_path / "runs"), "--json")
    assert result.code == 0, result.err
    folder = Path(result.json["path"])
    assert folder == tmp_path / "runs" / "foreign" / "import"
    witnesses = {check["witness"] for check in result.json["checks"]}
    assert witnesses == {"the file, optimised", "reference", "onnx direct"}
    assert all(check["passed"] for check in result.json["checks"])
    assert result.json["imported"]["paths"]["conv1"] == "a"
    out = tmp_path / "again.onnx"
    assert run("export", str(folder), "-o", str(out)).code == 0
    images = array(3, 2, 6, 6)
    np.testing.assert_allclose(
        Session(out.read_bytes()).predict(images),
        Session(foreign.read_bytes()).predict(images),
        rtol=0,
        atol=1e-5,
    )
    assert run("show", str(folder), "--json").json["parameters"] == result.json["parameters"]
    again = run("import", str(out), "--backend", "reference", "--out", str(tmp_path / "more"), "--json")
    assert again.code == 0
    assert (tmp_path / "more/foreign/import/model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_every_backend_is_held_to_the_file(worker: Worker, run, foreign: Path, tmp_path: Path) -> None:
    result = run("import", str(foreign), "--backend", worker.backend, "--out", str(tmp_path), "--json")
    assert result.code == 0, result.err
    assert worker.backend in {check["witness"] for check in result.json["checks"]}


def test_what_differs_from_the_file_is_not_kept(
    run, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = judging.reading.read

    def wrong(*arguments: object) -> reading.Read:
        found = true(*arguments)  # type: ignore[arg-type]
        found.weights["dense1.weight"] = found.weights["dense1.weight"] + np.float32(1e-2)
        return found

    monkeypatch.setattr(judging.reading, "read", wrong)
    result = run("import", str(foreign), "--backend", "reference", "--out", str(tmp_path / "runs"))
    assert result.code == 1
    assert "reference differs from the original in float32" in result.err
    assert not (tmp_path / "runs").exists()


def _network(activation: list[onnx.NodeProto], **constants: np.ndarray) -> ModelProto:
    """A random network: a convolution 3 x 3, an activation from "z" to "a", a dense layer."""
    rng = np.random.default_rng(0)

    def uniform(*shape: int, inputs: int) -> np.ndarray:
        return (rng.uniform(-1, 1, shape) / inputs**0.5).astype(np.float32)

    size = 8 * 26 * 26
    return graph(
        node("Conv", "image", "k", "b", y="z"), *activation, node("Flatten", "a", y="f"), node("Gemm", "f", "w", "v"),
        image=("n", 1, 28, 28), k=uniform(8, 1, 3, 3, inputs=9), b=uniform(8, inputs=9),
        w=uniform(size, 10, inputs=size), v=uniform(10, inputs=size), **constants,
    )  # fmt: skip


def _sloped(slope: float) -> ModelProto:
    return _network([node("Mul", "z", "s", y="t"), node("Max", "z", "t", y="a")], s=np.float32(slope))


MISREAD: dict[str, tuple[Callable[[], ModelProto], Layer | None]] = {
    "thresholded at 0.01": (lambda: _network([node("ThresholdedRelu", "z", y="a", alpha=0.01)]), ReLU()),
    "thresholded at 0.001": (lambda: _network([node("ThresholdedRelu", "z", y="a", alpha=0.001)]), ReLU()),
    "a slope that is 1e-4 off": (lambda: _sloped(0.0101), LeakyReLU(0.01)),
    "a clip at 5.999": (lambda: _network([node("Clip", "z", "zero", "six", y="a")], zero=HARD["zero"], six=np.float32(5.999)), None),
    "a hard swish of 2.999": (lambda: _network(_hard_swish("z", y="a"), **(HARD | {"three": np.float32(2.999)})), None),
}  # fmt: skip


@pytest.mark.parametrize("case", MISREAD)
def test_images_alone_find_a_function_that_was_misread(
    case: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second net: what is taken for a layer that it is not, the comparison with the file refuses."""
    make, layer = MISREAD[case]
    path = tmp_path / "x.onnx"
    path.write_bytes(make().SerializeToString())
    if layer is None:
        monkeypatch.setattr(functions, "SAME", Fraction(1, 1000))
    else:
        monkeypatch.setattr(functions, "recognised", lambda curve: layer)
    result = run("import", str(path), "--backend", "reference", "--out", str(tmp_path / "runs"))
    assert result.code == 1, result.out
    assert "reference differs from the original in float32" in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("slope", [0.01, 0.0101])
def test_a_function_that_was_read_rightly_passes(slope: float, run, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(_sloped(slope).SerializeToString())
    result = run("import", str(path), "--backend", "reference", "--out", str(tmp_path / "runs"), "--json")
    assert result.code == 0, result.err
    assert all(check["max_ratio"] < 0.1 for check in result.json["checks"])
    assert all(check["furthest_on"] for check in result.json["checks"])


def test_images_are_searched_that_come_near_a_bend() -> None:
    found = read(_network([node("Relu", "z", y="a")]).SerializeToString(), "x")
    network = ReferenceNetwork(found.model, found.weights)
    near = [network.activations(eight)["conv1"] for eight in images.near_bends(network, 16)]
    assert len(near) > 8
    for inputs in near:
        middle = np.sort(inputs.reshape(8, 8, -1), axis=2)[..., 26 * 26 // 2]  # of each image and channel
        largest = np.abs(inputs).max()
        distances = np.abs(middle / largest).T  # of each channel, by image
        wanted = np.repeat(images.DISTANCES, 2)
        # Far from the bend another input is the middle one; float32 images place one to 1e-7 of the largest.
        close = [np.allclose(channel[4:], wanted[4:], rtol=0.5, atol=2e-7) for channel in distances]
        assert any(close), distances
        channel = close.index(True)
        assert distances[channel].max() < 0.1
        assert np.sign(middle[4:6, channel]).sum() == 0  # one on either side


def test_every_kind_of_image_is_asked() -> None:
    found = read(_network([node("Relu", "z", y="a")]).SerializeToString(), "x")
    groups = {
        group.name: group.images for group in images.groups(ReferenceNetwork(found.model, found.weights))
    }
    assert list(groups) == [
        "noise", "single pixels", "ramps", *(f"noise of {scale:g}" for scale in images.SCALES), "digits", "extremes", "searched"
    ]  # fmt: skip
    assert all(part.dtype == np.float32 for part in groups.values())
    assert sum(map(len, groups.values())) > 200
    assert {part.min() for part in groups["extremes"][:3]} == {0.0, 0.5, 1.0}
    assert (np.abs(groups["noise of 10"]).max(axis=(1, 2, 3)) > 9).all()
    assert groups["noise of 10"].min() < -9
    np.testing.assert_array_equal(groups["digits"][0, 0] * 255, data.digits().test_images[0, 0])
    large = zoo.get("resnet18")
    assert images.kind_count(large) < images.MOST
    assert images.digits(large, 2).shape == (2, *large.input_shape)
    moved = images.perturbed(groups["noise of 1"])
    step = np.abs(moved / groups["noise of 1"] - 1)
    assert 2**-24 <= step.min() <= step.max() < 2**-21


def test_a_large_group_does_not_cover_a_small_one() -> None:
    """An error of 1e-4 of the outputs for small images is found beside images whose outputs are 1e5 times larger."""
    made = [images.Group(name, np.zeros((2, 1, 1, 1), np.float32)) for name in ("small", "large")]
    expected = np.array([[1.0, -0.5], [0.3, 0.1], [1e5, 2e4], [3e4, -1e5]])
    answers = judging.answered(zoo.get("lenet-5"), made, expected, [expected.astype(np.float32)], print)
    found = (expected + [[1e-4, 0], [0, 0], [0, 0], [0, 0]]).astype(np.float32)
    assert judging.compare(found, expected).passed  # all together
    assert [group.against(part).passed for group, part in zip(answers, (found[:2], found[2:]), strict=True)] == [
        False, True
    ]  # fmt: skip


def test_a_group_on_which_rounding_tells_nothing_is_left_out_and_said() -> None:
    names = ("noise", "ramps", "single pixels", "extremes")
    made = [images.Group(name, np.zeros((1, 1, 1, 1), np.float32)) for name in names]
    expected = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, np.inf], [1.0, 2.0]])
    own = (expected + [[0, 0], [0.01, 0], [0, 0], [0, 0]]).astype(np.float32)
    said: list[str] = []
    answers = judging.answered(zoo.get("lenet-5"), made, expected, [own], said.append)
    assert [group.group for group in answers] == ["noise", "extremes"]
    assert "not compared on ramps: the original's rounding may be more than 1% of its outputs" in said[0]
    assert "not compared on single pixels: the original gives numbers that are not finite" in said[1]
    with pytest.raises(CheckFailed, match="on 2 of 3 groups of images the original"):
        judging.answered(zoo.get("lenet-5"), made[:3], expected[:3], [own[:3]], said.append)
    for needed in judging.NEEDED - {
        "noise"
    }:  # without real digits, noise and what was searched nothing is kept
        made[1] = images.Group(needed, made[1].images)
        with pytest.raises(CheckFailed, match="on 2 of 4 groups"):
            judging.answered(zoo.get("lenet-5"), made, np.nan_to_num(expected, posinf=2), [own], said.append)


def test_means_that_are_summed_in_turn_are_no_fault() -> None:
    """A mean over 112 x 112 equal numbers, of which another layer makes much: honest runtimes part there."""
    layers = (GlobalAvgPool2d(), Flatten(), Dense(2))
    model = Model("m", (1, 112, 112), layers, zoo.get("lenet-5").recipe, ("0", "1"))
    weights = {
        "dense1.weight": np.array([[1e4], [1]], np.float32),
        "dense1.bias": np.array([-1e3, 0], np.float32),
    }
    image = np.full((1, 1, 112, 112), 0.1, np.float32)
    network = ReferenceNetwork(model, weights)
    expected = network.predict(image)
    (summed,) = judging._summed(network, image, expected)
    total = np.float32(0)
    for term in image.ravel():
        total += term
    moved = float(total) / (112 * 112) - float(np.float32(0.1))
    np.testing.assert_allclose(summed - expected, [[1e4 * moved, moved]], rtol=1e-6)
    assert abs(moved) > 20 * 2**-24 * 0.1
    assert judging.allowed(expected, summed) > judging.allowed(expected)
    assert not judging._summed(ReferenceNetwork(model_of((Flatten(),), (1, 2, 2)), {}), image, expected)


def test_options_that_do_not_belong_together(run, foreign: Path) -> None:
    assert run("import", str(foreign), "--sha256", "0").code == 2
    assert run("import", "torchvision:resnet18", "--name", "x").code == 2
    assert run("import", str(foreign), "--input-shape", "3,x,4").code == 2
    assert run("import", str(foreign), "--input-shape", f"1,1,{'9' * 5000}").code == 2
    assert "unknown source 'torchvison'; did you mean" in run("import", "torchvison:resnet18").err
    assert run("import", "no-such.onnx").code == 4


@pytest.mark.parametrize("kind", ["cut short", "flipped", "empty", "text", "data elsewhere"])
def test_damaged_files_are_refused(kind: str, run, tmp_path: Path) -> None:
    model = zoo.get("lenet-dropout")
    content = serialize(to_onnx(model, init_weights(model)))
    if kind == "data elsewhere":
        proto = onnx.load_from_string(graph(node("Relu", "image"), w=array(2)).SerializeToString())
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")
        content = proto.SerializeToString()
    middle = len(content) // 2
    changed = {
        "cut short": content[:-100],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "text": b"no model",
        "data elsewhere": content,
    }[kind]
    path = tmp_path / "x.onnx"
    path.write_bytes(changed)
    result = run("import", str(path), "--out", str(tmp_path / "runs"), "--json")
    assert result.code in (2, 4), result.err
    assert json.loads(result.out)["code"] == result.code
    assert not (tmp_path / "runs").exists()


def test_a_file_that_gives_no_numbers(run, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    proto = graph(
        node("Conv", "image", "k", y="a"), node("Conv", "a", "k"), k=np.full((2, 2, 1, 1), 3e38, np.float32)
    )
    path.write_bytes(proto.SerializeToString())
    result = run("import", str(path), "--backend", "reference", "--out", str(tmp_path / "runs"))
    assert result.code == 1
    assert "numbers that are not finite" in result.err


@pytest.mark.parametrize("batch", [1, 3, 500])
def test_a_file_that_takes_so_many_images_at_a_time(batch: int, run, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    proto = graph(node("Conv", "image", "k"), image=(batch, 2, 6, 5), k=array(2, 2, 1, 1))
    path.write_bytes(proto.SerializeToString())
    result = run("import", str(path), "--backend", "reference", "--out", str(tmp_path / "runs"), "--json")
    assert result.code == 0, result.err
    assert all(check["images"] > 100 for check in result.json["checks"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((501, 2, 6, 5), "it takes 501 images at a time, at most 500"),
        ((2**31 - 1, 2, 6, 5), "images at a time, at most 500"),
        ((3, 4, 5), "no batch axis"),
        ((4, 3, 2400, 2400), "it takes 4 images at a time, at most 3"),
    ],
)
def test_batches_that_cannot_be_asked_for(image: tuple[int, ...], message: str, run, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(graph(node("Relu", "image"), image=image).SerializeToString())
    result = run("import", str(path), "--backend", "reference", "--out", str(tmp_path / "runs"))
    assert result.code == 2
    assert message in result.err


def test_what_can_be_read_may_be_run() -> None:
    assert {*RULES, *reading.FOLDED, "CastLike", "Constant", "Shape"} <= operators.OPERATORS


def test_the_limit_is_relative_for_small_outputs() -> None:
    small = np.array([[1e-3, -2e-3]])
    assert judging.allowed(small) == pytest.approx(6e-8)
    assert judging.allowed(100 * small) < 1e-5
    assert judging.allowed(small, small + 1e-6) == pytest.approx(8e-6)


def test_rounding_that_tells_nothing_is_refused() -> None:
    expected = np.linspace(-5, 5, 10)[np.newaxis]
    own = (expected + 1).astype(np.float32)
    assert judging.allowed(expected, own) == pytest.approx(0.05)
    answers = judging.Answers("probes", np.zeros((1, 1, 1, 1), np.float32), expected, [own], False)
    assert not answers.decidable
    assert not answers.against(own).passed


def test_probabilities_are_compared_as_logarithms() -> None:
    expected = np.array([[1 - 2e-7, 1e-7, 1e-7, *[0.0] * 7]])
    answers = judging.Answers("probes", np.zeros((1, 1, 1, 1), np.float32), expected, [], True)
    other = expected.copy()
    other[0, 1] *= 1.01  # far below what the probabilities may differ
    assert answers.against(expected.astype(np.float32)).passed
    assert not answers.against(other.astype(np.float32)).passed


def test_a_failed_check_keeps_nothing(tmp_path: Path) -> None:
    model = zoo.get("lenet-dropout")
    comparison = judging.compare(np.ones((1, 10), np.float32), np.zeros((1, 10)))
    check = judging.Check("torch", "float32", (1, 28, 28), 1, comparison)
    with Workers() as workers:
        candidate = judging.Candidate(model, init_weights(model), [], workers, print)
        with pytest.raises(CheckFailed, match="torch differs from the original in float32"):
            judging.keep(candidate, {}, [check], [], tmp_path)
    assert not list(tmp_path.iterdir())
