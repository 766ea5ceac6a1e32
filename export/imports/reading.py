"""An ONNX file as a spec and weights: the nodes in their order, then the tree of layers.

Nothing of the file is executed here but arithmetic on its constants (shapes, mostly), by onnx's own reference
implementation, with a bound on what that may make. Whatever no layer expresses is listed, all of it at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.imports import elementwise, operators  # noqa: F401  (their import registers the rules)
from export.imports.nodes import RULES, Node, Value
from export.imports.structure import tree
from export.imports.tensors import MOST_CHANNELS, MOST_FEATURES, Array, Inexpressible, Tensor, View
from export.inference.operators import DOMAINS
from export.onnx import contents
from export.onnx.file import serialize
from export.onnx.graph import INPUT, to_onnx
from zoo.errors import DataError, InvalidInput, InvalidSpec, ZooError
from zoo.layers import Dropout, Flatten, Layer, Normalize, Shape
from zoo.model import MOST_ACTIVATIONS, MOST_LAYERS, Model
from zoo.models import registry
from zoo.recipe import Adam, Recipe
from zoo.weights import Weights, check

# What is computed of constants alone.
FOLDED = frozenset([
    "Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Neg", "Reciprocal", "Reshape",
    "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze",
])  # fmt: skip
MOST_INPUTS = 1000  # of a node
LONGEST_NAME = 1000  # of a tensor
LARGER = 4  # times as many weights as the file holds: some are used twice, Pads become ones
MOST_REASONS = 5  # in one line
BATCH = 7919  # stands for the batch in shapes that are computed: a prime that is no size
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # of a Transpose to channels-last, and back
RECIPE = Recipe(Adam(1e-3), batch_size=64, epochs=5)


@dataclass(frozen=True)
class Input:
    """What a graph takes: its input's name, its shape there (with the batch), and the image's (C, H, W).

    batch: the fixed number of images, or None. batched: whether there is a batch axis.
    """

    name: str
    dims: Shape
    image: Shape
    batched: bool
    channels_last: bool
    batch: int | None

    def given(self, images: Array) -> Array:
        """Images (N, C, H, W) as the graph takes them."""
        if self.channels_last:
            images = images.transpose(0, 2, 3, 1)
        shape = self.dims[1:] if self.batched else self.dims
        return np.ascontiguousarray(images.reshape(len(images), *shape))


@dataclass(frozen=True)
class Read:
    """An ONNX file in the language of layers. paths: the graph's name of each layer's output, by path."""

    model: Model
    weights: Weights
    input: Input
    output: str
    paths: dict[str, str]


class Unsupported(InvalidInput):
    """A graph that the language cannot express. reasons: every one of them, such as "Conv 'c1': ..."."""

    def __init__(self, what: str, where: object = "", hint: str = "", reasons: tuple[str, ...] = ()) -> None:
        super().__init__(what, where, hint)
        self.reasons = reasons

    def to_dict(self) -> dict[str, object]:
        """The failure for programs, with all reasons."""
        return {**super().to_dict(), "reasons": list(self.reasons)}


def read(
    content: bytes,
    where: Path | str,
    name: str | None = None,
    image: Shape | None = None,
    output: str | None = None,
) -> Read:
    """The model and weights of an ONNX file's content.

    name: of the model; default: the file's. image: (C, H, W), where the file leaves them open. output: which
    one, if it has several. Raises DataError if it is no ONNX file, Unsupported if no layers express it.
    """
    if own := _own(content, name):
        registry.check_builtin(own.model, where)
        return own
    try:
        proto = onnx.load_from_string(content)
    except Exception:  # protobuf's DecodeError is not public
        raise DataError("not an ONNX file", where) from None
    chosen = name or free_name(named_after(Path(where).stem))
    found = read_proto(proto, where, chosen, image, output)
    registry.check_builtin(found.model, where)
    return found


def _own(content: bytes, name: str | None) -> Read | None:
    """What a file that the zoo exported says of itself, if it is as it was exported; None for all others.

    So nothing is lost of what a graph does not hold: names, dropout, the recipe.
    """
    if b"zoo.spec" not in content:
        return None
    try:
        model, weights = contents.parse_onnx(content, Path("model.onnx"))
    except ZooError:
        return None
    if serialize(to_onnx(model, weights)) != content:
        return None
    model = replace(model, name=name, arguments=()) if name and name != model.name else model
    taken = Input(INPUT, (BATCH, *model.input_shape), model.input_shape, True, False, None)
    return Read(model, weights, taken, model.output, {node.path: node.path for node in model.walk()})


def free_name(name: str) -> str:
    """The name itself, unless a built-in model has it."""
    return f"{name}-imported" if name in registry.names("all") else name


def named_after(text: str) -> str:
    """A name that a model may have, made of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:60] or "imported"


def read_proto(
    proto: ModelProto, where: Path | str, name: str, image: Shape | None = None, output: str | None = None
) -> Read:
    """The same of a parsed file."""
    graph = proto.graph
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise Unsupported(f"opset {opset} is newer than {newest}", where, "update onnx", (f"opset {opset}",))
    if proto.functions:
        raise Unsupported("the file holds functions of its own", where, "inline them", ("functions",))
    try:
        reader = _Reader(graph, opset, image)
        end = reader.run(output)
        return _finished(reader, end, name)
    except (DataError, Unsupported):
        raise
    except RecursionError:
        text = "branches in branches without end"
        raise Unsupported(text, where, "", (text,)) from None
    except InvalidSpec as error:
        raise Unsupported(error.what, where, error.hint, (error.what,)) from None
    except _Reasons as found:
        reasons = tuple(dict.fromkeys(found.reasons))
        more = f" and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
        raise Unsupported(
            f"no layers express this graph: {'; '.join(reasons[:MOST_REASONS])}{more}", where, "", reasons
        ) from None


class _Reasons(Exception):
    """Why a graph cannot be expressed."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(*reasons)
        self.reasons = reasons


class _Reader:
    """Goes through a graph's nodes and keeps what each of its tensors is."""

    def __init__(self, graph: GraphProto, opset: int, image: Shape | None) -> None:
        self.graph, self.opset = graph, opset
        if len(graph.node) > MOST_LAYERS:
            raise _Reasons(f"{len(graph.node):,} nodes, at most {MOST_LAYERS:,} are accepted")
        self.values: dict[str, Value] = {}
        for tensor in graph.initializer:
            self.values[tensor.name] = _array(tensor)
        if graph.sparse_initializer:
            raise _Reasons("sparse weights")
        self._budget = LARGER * graph.ByteSize() // 4 + MOST_CHANNELS  # numbers of weights
        self._foldable = self._budget  # numbers that are computed of constants
        names = [
            *(v.name for v in (*graph.input, *graph.output)),
            *(n for node in graph.node for n in node.output),
        ]
        if any(not isinstance(name, str) or len(name) > LONGEST_NAME for name in names):
            raise _Reasons(f"the name of a tensor is no text of at most {LONGEST_NAME} letters")
        self.input = self._input(image)
        start = Tensor((), self.input.image)
        try:
            self._check_size(start)
        except Inexpressible as error:
            raise _Reasons(f"its input {self.input.name!r}: {error}") from None
        view = View(start, self.input.channels_last)
        if self.input.batched and len(self.input.dims) == 2:
            view = View(Tensor((start,), (self.input.image[0],), Flatten()))
        self.values[self.input.name] = view
        self.concats: dict[tuple[int, ...], Tensor] = {}

    def _input(self, image: Shape | None) -> Input:
        free = [value for value in self.graph.input if value.name not in self.values]
        if len(free) != 1:
            names = ", ".join(value.name for value in free[:4])
            raise _Reasons(f"the graph takes {len(free)} inputs{': ' + names if names else ''}, not one")
        kind = free[0].type.tensor_type
        if kind.elem_type != onnx.TensorProto.FLOAT:
            raise _Reasons(f"its input {free[0].name!r} is no tensor of float32")
        told = [int(dim.dim_value) if dim.dim_value > 0 else None for dim in kind.shape.dim]
        rank = len(told)
        if rank not in (1, 2, 3, 4):
            raise _Reasons(f"its input has {rank} dimensions, an image (N, C, H, W) has four")
        batched = rank in (2, 4)
        last = rank == 4 and self._takes_channels_last(free[0].name)
        inner = told[1:] if batched else told
        if image is not None and batched:
            wished = (image[1], image[2], image[0]) if last else image
            inner = list(wished) if rank == 4 else [prod(image)]
            if any(a not in (None, b) for a, b in zip(told[1:], inner, strict=True)):
                raise _Reasons(f"its input is {told[1:]}, not {inner}")
        if any(n is None for n in inner):
            shown = " x ".join("?" if n is None else str(n) for n in told)
            raise _Reasons(f"its input is {shown}: give its size with --input-shape")
        dims = tuple(n for n in inner if n is not None)
        if rank in (1, 2):
            shape: Shape = (dims[0], 1, 1)
        else:
            shape = (dims[2], dims[0], dims[1]) if last else (dims[0], dims[1], dims[2])
        whole = (told[0] or BATCH, *dims) if batched else dims
        return Input(free[0].name, whole, shape, batched, last, told[0] if batched else None)

    def _takes_channels_last(self, name: str) -> bool:
        """Whether the image is turned to channels-first before anything else than elementwise operators."""
        reached = {name}
        for node in self.graph.node:
            if node.op_type == "Transpose" and reached & set(node.input):
                order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
                if order == FIRST:
                    return True
            if node.op_type in ("Sub", "Mul", "Div", "Add", "Identity", "Cast", "Pad") and reached & set(
                node.input
            ):
                reached |= set(node.output)
        return False

    def run(self, output: str | None) -> View:
        """Read what the output needs; its view. Raises _Reasons, with all of them."""
        names = [value.name for value in self.graph.output]
        if output is None and len(names) != 1:
            raise _Reasons(f"the graph has {len(names)} outputs: {', '.join(names[:6])}; choose one")
        if output is not None and output not in names:
            raise _Reasons(f"the graph has no output {output!r}, only {', '.join(names[:6])}")
        self.output = output or names[0]
        reasons: list[str] = []
        for proto in self._needed():
            if any(name and name not in self.values for name in proto.input):
                missing = next(name for name in proto.input if name and name not in self.values)
                if not reasons:
                    reasons.append(f"{_title(proto)}: its input {missing!r} is nowhere made")
                continue
            try:
                self._node(proto)
            except Inexpressible as error:
                reasons.append(f"{_title(proto)}: {error}")
            except InvalidSpec as error:
                reasons.append(f"{_title(proto)}: {error.what}")
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                reasons.append(f"{_title(proto)}: it is malformed: {type(error).__name__}")
        if reasons:
            raise _Reasons(*reasons)
        end = self.values.get(self.output)
        if not isinstance(end, View):
            raise _Reasons(f"the output {self.output!r} does not depend on the image")
        if (end.channels_last and end.shape[1:] != (1, 1)) or end.order is not None:
            raise _Reasons("its output is in channels-last order")
        if end.tensor.layer is None and end.tensor.inputs:
            raise _Reasons(end.tensor.problem)
        return end

    def _needed(self) -> list[NodeProto]:
        """The nodes that the output depends on, in the file's order."""
        wanted, found = {self.output}, []
        for proto in reversed(self.graph.node):
            if wanted & set(proto.output):
                wanted |= set(proto.input)
                found.append(proto)
        return found[::-1]

    def _node(self, proto: NodeProto) -> None:
        if proto.domain not in DOMAINS:
            raise Inexpressible(f"an operator of {proto.domain[:40]!r}")
        if any(attribute.HasField("g") or attribute.graphs for attribute in proto.attribute):
            raise Inexpressible("it holds a graph")
        if len(proto.input) > MOST_INPUTS:
            raise Inexpressible(f"{len(proto.input):,} inputs, at most {MOST_INPUTS:,} are accepted")
        inputs = [self.values[name] if name else None for name in proto.input]
        results: list[Value]
        if proto.op_type == "Constant":
            results = [_constant(proto)]
        elif proto.op_type == "Shape" and isinstance(inputs[0], View):
            results = [self._shape(proto, inputs[0])]
        elif proto.op_type == "CastLike" and len(inputs) == 2:  # the image and its layers are float32
            first, like = inputs
            kind = np.dtype(np.float32) if isinstance(like, View) else np.asarray(like).dtype
            if isinstance(first, View) and kind != np.float32:
                raise Inexpressible("a cast to another type than float32")
            results = [first if isinstance(first, View) else np.asarray(first).astype(kind)]
        elif not any(isinstance(value, View) for value in inputs):
            results = self._folded(proto, inputs)
        elif proto.op_type not in RULES:
            raise Inexpressible("no layer of the language")
        else:
            batch = self.input.batch or BATCH
            node = Node(proto, inputs, self.opset, self.input.batched, batch, self.concats)
            view = RULES[proto.op_type](node)
            self._check_size(view.tensor)
            results = [view]
        for name, value in zip(proto.output, results, strict=False):
            self.values[name] = value
            if isinstance(value, View) and not value.tensor.name:
                value.tensor.name = name

    def _check_size(self, tensor: Tensor) -> None:
        """Refuse what would need memory out of proportion to the file."""
        most = MOST_CHANNELS if len(tensor.shape) == 3 else MOST_FEATURES
        if tensor.shape[0] > most or prod(tensor.shape) > MOST_ACTIVATIONS:
            raise Inexpressible(f"it gives {' x '.join(map(str, tensor.shape))} numbers an image")
        self._budget -= sum(array.size for array in tensor.arrays.values())
        if isinstance(tensor.layer, Normalize):
            self._budget -= 2 * tensor.shape[0]
        if self._budget < 0:
            raise _Reasons("the same weights are used over and over")

    def _folded(self, proto: NodeProto, inputs: list[Value | None]) -> list[Value]:
        """The results of a node whose inputs are constants; raises Inexpressible if that is not computed."""
        if proto.op_type not in FOLDED:
            raise Inexpressible("computed from constants alone, and none of what shapes are made of")
        arrays = [x if isinstance(x, np.ndarray) else None for x in inputs]
        given = [array for array in arrays if array is not None]
        try:
            size = sum(array.size for array in given)
            if proto.op_type in ("Add", "Sub", "Mul", "Div"):
                size = prod(np.broadcast_shapes(*(array.shape for array in given)))
            elif proto.op_type == "Gather" and len(given) == 2:
                size = given[1].size * max(1, given[0].size)
            self._foldable -= size
            if self._foldable < 0:
                raise Inexpressible(f"a constant of {size:,} numbers, more than the file has room for")
            with np.errstate(all="ignore"):
                evaluator = ReferenceEvaluator(_alone(proto, arrays, self.opset))
                feeds = {f"i{i}": array for i, array in enumerate(arrays) if array is not None}
                return [np.asarray(result) for result in evaluator.run(None, feeds)]
        except Inexpressible:
            raise
        except Exception as error:  # whatever NumPy and onnx say of a malformed node
            raise Inexpressible(f"cannot be computed: {type(error).__name__}") from None

    def _shape(self, proto: NodeProto, view: View) -> Array:
        batch = (self.input.batch or BATCH,) if self.input.batched else ()
        attributes = {a.name: a.i for a in proto.attribute}
        dims = np.array([*batch, *view.dims], dtype=np.int64)
        return dims[attributes.get("start", 0) : attributes.get("end", len(dims))]


def _finished(reader: _Reader, end: View, name: str) -> Read:
    """The model of what the output turned out to be."""
    output = end.tensor
    if not output.inputs:  # the graph gives its input back
        output = Tensor((output,), output.shape, Dropout(0.0))
    try:
        found = tree(output)
    except Inexpressible as error:
        raise _Reasons(str(error)) from None
    layers: tuple[Layer, ...] = found.layers
    shape = output.shape
    labels = tuple(map(str, range(shape[0]))) if len(shape) == 1 and shape[0] > 1 else ()
    notes = (
        f"Read from an ONNX graph that takes {reader.input.name!r}: pixels are in whatever range that has.",
        "The recipe is the zoo's own.",
    )
    model = Model(name, reader.input.image, layers, RECIPE, labels, notes=notes)
    weights: Weights = {}
    paths = {}
    for node, arrays, tensor in zip(model.walk(), found.weights, found.names, strict=True):
        weights |= {f"{node.path}.{key}": array for key, array in arrays.items()}
        paths[node.path] = tensor
    return Read(model, check(model, weights, name), reader.input, reader.output, paths)


def _array(tensor: onnx.TensorProto) -> Array:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise DataError("the ONNX file keeps weights outside itself")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:  # onnx raises what it meets
        raise DataError(f"the tensor {tensor.name[:80]!r} is damaged: {type(error).__name__}") from None


def _constant(proto: NodeProto) -> Array:
    for attribute in proto.attribute:
        if attribute.name == "value":
            return _array(attribute.t)
        if attribute.name in ("value_float", "value_int"):
            kind: Any = np.float32 if attribute.name == "value_float" else np.int64
            return np.array(onnx.helper.get_attribute_value(attribute), dtype=kind)
        if attribute.name in ("value_floats", "value_ints"):
            kind = np.float32 if attribute.name == "value_floats" else np.int64
            return np.array(onnx.helper.get_attribute_value(attribute), dtype=kind)
    raise Inexpressible("a constant that is no array of numbers")


def _alone(proto: NodeProto, inputs: Sequence[Array | None], opset: int) -> ModelProto:
    """One node as a model of its own; an input that is left out stays so."""
    copy = NodeProto()
    copy.CopyFrom(proto)
    copy.domain = ""
    copy.input[:] = ["" if array is None else f"i{i}" for i, array in enumerate(inputs)]
    copy.output[:] = ["o"]
    helper = onnx.helper
    graph = helper.make_graph(
        [copy],
        "node",
        [
            helper.make_tensor_value_info(f"i{i}", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for i, x in enumerate(inputs)
            if x is not None
        ],
        [onnx.ValueInfoProto(name="o")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _title(proto: NodeProto) -> str:
    name = proto.name or (proto.output[0] if proto.output else "")
    return f"{proto.op_type[:60]} {name[:60]!r}"
