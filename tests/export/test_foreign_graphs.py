"""Valid ONNX files of a model that nobody here would write so: each is judged, or told why it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Result, sealed
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from backends.testing.layer_table import RECIPE
from export.crosscheck import GraphWitness, Judgement, Verdict, examine, judge, probes
from export.inference import operators
from export.onnx import contents
from export.onnx.graph import to_onnx
from zoo.layers import (
    ELU,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    Residual,
    Softmax,
)
from zoo.model import Model
from zoo.weights import init_weights

MODEL = Model(
    "foreign",
    (2, 6, 6),
    (
        Normalize((0.5, 0.1), (2.0, 3.0)),
        Conv2d(3, 3, padding=1),
        BatchNorm(),
        ReLU(),
        LocalResponseNorm(3),
        MaxPool2d(2),
        Residual((Conv2d(3, 1), ELU())),
        Concat(((), (Conv2d(2, 1),))),
        Dropout(0.5),
        Flatten(),
        Dense(4),
        Softmax(),
    ),
    RECIPE,
    labels=("a", "b", "c", "d"),
)
WEIGHTS = init_weights(MODEL)
Variation = Callable[[GraphProto], object]


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def before(operator: str, *made: NodeProto) -> Variation:
    """Put nodes that make "new" of "old" between the first node of an operator and its first input."""

    def change(graph: GraphProto) -> None:
        nodes = list(graph.node)
        at = next(i for i, node in enumerate(nodes) if node.op_type == operator)
        for node in made:
            node.input[:] = [nodes[at].input[0] if name == "old" else name for name in node.input]
        nodes[at].input[0] = "new"
        del graph.node[:]
        graph.node.extend([*nodes[:at], *made, *nodes[at:]])

    return change


def added(*parts: NodeProto | TensorProto) -> Variation:
    """Nodes and initializers that nothing takes."""

    def change(graph: GraphProto) -> None:
        for part in parts:
            (graph.node if isinstance(part, NodeProto) else graph.initializer).append(part)

    return change


def both(*changes: Variation) -> Variation:
    return lambda graph: [change(graph) for change in changes]


def inputs_too(graph: GraphProto) -> None:
    """As up to IR version 3: every initializer is an input with a default."""
    for tensor in graph.initializer:
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def sparse(graph: GraphProto) -> None:
    values = helper.make_tensor("unused", TensorProto.FLOAT, [1], [1.0])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, integers("", 2), [4]))


def bias_apart(graph: GraphProto) -> None:
    """The bias of the last convolution is left out by an empty name, and added after it."""
    at, conv = [(i, node) for i, node in enumerate(graph.node) if node.op_type == "Conv"][-1]
    bias, output = conv.input[2], conv.output[0]
    conv.input[2], conv.output[0] = "", "without"
    graph.initializer.append(integers("column", -1, 1, 1))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([
        *nodes[: at + 1],
        helper.make_node("Reshape", [bias, "column"], ["upright"]),
        helper.make_node("Add", ["without", "upright"], [output]),
        *nodes[at + 1 :],
    ])  # fmt: skip


def defaults_left_out(graph: GraphProto) -> None:
    """Attributes that say what holds without them."""
    said = {"Flatten": ["axis"], "Softmax": ["axis"], "Conv": ["dilations", "group"], "Elu": ["alpha"]}
    for node in graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name not in said.get(node.op_type, ())]
        del node.attribute[:]
        node.attribute.extend(kept)


make = helper.make_node
TYPES = {
    name: number
    for name, number in TensorProto.DataType.items()
    if not name.startswith(("UNDEFINED", "FLOAT6E"))  # these onnxruntime does not know
}
VARIATIONS: dict[str, Variation] = {
    "as it is": both(),
    "two Transposes without perm": before(
        "Relu", make("Transpose", ["old"], ["turned"]), make("Transpose", ["turned"], ["new"])
    ),
    "a Transpose without perm that nothing takes": added(make("Transpose", ["image"], ["unused"])),
    "a Transpose without perm of what has no known rank": both(
        before("Relu", make("Reshape", ["old", "sizes"], ["new"])),
        added(make("Transpose", ["new"], ["unused"])),
        lambda graph: graph.node.insert(0, make("Shape", ["image"], ["dims"])),
        lambda graph: graph.node.insert(1, make("Slice", ["dims", "zero", "one"], ["batch"])),
        lambda graph: graph.node.insert(2, make("Concat", ["batch", "rest"], ["sizes"], axis=0)),
        added(integers("zero", 0), integers("one", 1), integers("rest", 3, 6, 6)),
    ),
    "a Dropout with an output without a name": before("Relu", make("Dropout", ["old"], ["new", ""])),
    "a Clip without limits": before("Relu", make("Clip", ["old", "", ""], ["new"])),
    "a Cast to float64 and back": before(
        "Relu", make("Cast", ["old"], ["wide"], to=11), make("Cast", ["wide"], ["new"], to=1)
    ),
    "a Pad by nothing": both(
        before("Relu", make("Pad", ["old", "none"], ["new"])), added(integers("none", *[0] * 8))
    ),
    "a Slice of everything": both(
        before("Relu", make("Slice", ["old", "first", "last"], ["new"])),
        added(integers("first", 0), integers("last", 2**31)),
    ),
    "a constant that nothing takes": added(make("Constant", [], ["unused"], value_float=1.0)),
    "a constant of text": added(make("Constant", [], ["unused"], value_string=b"\xff")),
    "initializers that are inputs": inputs_too,
    "a bias that is left out": bias_apart,
    "defaults that are left out": defaults_left_out,
    "an initializer that nothing takes, sparse": sparse,
    "an initializer that nothing takes, of no axes": added(
        helper.make_tensor("unused", TensorProto.FLOAT, [], [1.0])
    ),
    "an initializer that nothing takes, of no numbers": added(
        helper.make_tensor("unused", TensorProto.FLOAT, [0, 3], [])
    ),
    "an initializer that nothing takes, of bytes that are no text": added(
        TensorProto(name="unused", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff\xfe"])
    ),
    **{
        f"an initializer that nothing takes, {name}": added(
            helper.make_tensor("unused", number, [2], [b"a", b"b"] if name == "STRING" else [1, 1])
        )
        for name, number in TYPES.items()
    },
}


def varied(change: Variation, renamed: bool) -> ModelProto:
    """The zoo's own graph, changed. renamed: its tensors are not called like layers."""
    proto = to_onnx(MODEL, WEIGHTS)
    change(proto.graph)
    given = {value.name for value in proto.graph.output}
    made = {name for node in proto.graph.node for name in node.output} - given - {""}
    for names in (names for node in proto.graph.node for names in (node.input, node.output)):
        names[:] = [f"t/{name}" if renamed and name in made else name for name in names]
    return proto


@pytest.fixture(scope="module")
def judgement() -> Judgement:
    return judge(MODEL, WEIGHTS, probes(MODEL, 8))


def heard(content: bytes, judgement: Judgement) -> Verdict:
    """What `zoo verify` says of a file, without the process that it runs foreign ones in."""
    model, _ = contents.parse_onnx(content, Path("foreign.onnx"))
    assert model == MODEL
    operators.check_operators(content)
    witness = GraphWitness(content, MODEL)
    given = (witness.activations, witness.logits, witness.alone)
    return examine("foreign.onnx", witness, judgement, *given, batches=True, isolated=True, partial=True)


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("change", VARIATIONS.values(), ids=VARIATIONS)
def test_a_valid_file_that_computes_the_model_passes(
    change: Variation, renamed: bool, judgement: Judgement
) -> None:
    proto = varied(change, renamed)
    onnx.checker.check_model(proto, full_check=True)
    verdict = heard(proto.SerializeToString(), judgement)
    assert verdict.passed, str(verdict.error or verdict.output)
    assert "conv1" in verdict.layers


def without_input(graph: GraphProto) -> None:
    """It computes from zeros that it makes itself."""
    graph.node.insert(0, make("ConstantOfShape", ["sizes"], ["image"]))
    graph.initializer.append(integers("sizes", 1, *MODEL.input_shape))
    del graph.input[:]


def weights_as_nodes(graph: GraphProto) -> None:
    nodes = [make("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
    nodes += graph.node
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (VARIATIONS["a Transpose without perm that nothing takes"], 0, "PASSED"),
        (without_input, 1, "the ONNX file takes no input"),
        (added(TensorProto(name="unused", data_type=TensorProto.FLOAT6E2M3, dims=[1], raw_data=b"\0")), 1, "onnxruntime cannot load the model"),
        (added(make("Sin", ["image"], ["unused"])), 1, "holds the operator 'Sin'"),
        (weights_as_nodes, 4, "weights do not fit foreign: conv1.weight is missing"),
    ],
    ids=["judged", "without an input", "a type unknown here", "an operator unknown here", "weights as nodes"],
)  # fmt: skip
def test_verify_tells_what_it_does_not_understand(
    change: Variation, code: int, said: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    proto = varied(change, renamed=True)
    proto.producer_name = "somebody"  # who does not claim to write what the zoo writes
    onnx.checker.check_model(proto, full_check=True)
    (tmp_path / "foreign.onnx").write_bytes(sealed(proto))
    result = run("verify", "foreign.onnx", "--backend", "reference")
    assert (result.code, said in " ".join((result.out + result.err).split())) == (code, True), (
        result.out + result.err
    )
