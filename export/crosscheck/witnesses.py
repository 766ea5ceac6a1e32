"""What claims to compute a model: a backend's network, or an ONNX file in onnxruntime or in onnx itself.

All of them give outputs, every layer's output as far as they show it, and one layer alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from export.crosscheck.graphs import cut, expose, layer_tensors
from export.crosscheck.judgement import logit_path
from export.inference.session import Session, Value
from export.onnx.graph import INPUT
from zoo.errors import CheckFailed, DataError
from zoo.layers import Shape
from zoo.model import IMAGE, Model

EVALUATOR_IMAGES = 64  # for onnx's evaluator, which takes its time


class Witness(Protocol):
    """Something that claims to compute a model, in float32."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) for images float32 (N, C, H, W) in [0, 1]."""


def _fits(value: Value, name: str, shape: Shape) -> bool:
    """Whether an input or output is float32 [any batch, *shape]; a file may leave sizes open."""
    sizes = value.shape[1:]
    return (
        (value.name, value.type) == (name, "tensor(float)")
        and len(sizes) == len(shape)
        and not isinstance(value.shape[0], int)
        and all(size == n or not isinstance(size, int) for size, n in zip(sizes, shape, strict=True))
    )


def _sizes(shape: Shape) -> str:
    return ", ".join(map(str, shape))


def _listed(values: Sequence[Value]) -> str:
    return ", ".join(f"{value.name} {value.type} {value.shape}" for value in values[:3])


class GraphWitness:
    """An ONNX file in onnxruntime.

    layers: the same graph with every layer as an output; without it, it is made from the file.
    """

    def __init__(
        self,
        content: bytes,
        model: Model,
        optimize: bool = True,
        layers: bytes | None = None,
        foreign: bool = False,
    ) -> None:
        """foreign: see Session. Raises DataError if onnxruntime cannot load the file."""
        self.model = model
        self.content = content
        self.optimize = optimize
        self.foreign = foreign
        self.session = Session(content, optimize, foreign=foreign)
        if foreign:
            self._check_interface()
        self._layers = layers

    def _check_interface(self) -> None:
        """Raise DataError unless the file takes and gives what every ONNX file of the zoo does."""
        inputs, outputs = self.session.inputs, self.session.given
        model = self.model
        if len(inputs) != 1 or not _fits(inputs[0], INPUT, model.input_shape):
            raise DataError(
                f"it takes {_listed(inputs)}, not {INPUT} float32 [batch, {_sizes(model.input_shape)}]"
            )
        given = next((output for output in outputs if output.name == model.output), outputs[0])
        if not _fits(given, model.output, model.output_shape):
            wanted = f"{model.output} float32 [batch, {_sizes(model.output_shape)}]"
            raise DataError(f"it gives {_listed(outputs)}, not {wanted}")

    @cached_property
    def proto(self) -> ModelProto:
        """The graph."""
        return onnx.load_from_string(self.content)

    @cached_property
    def tensors(self) -> dict[str, str]:
        """The tensor of each layer that the graph shows, by path."""
        return layer_tensors(self.proto, self.model)

    @cached_property
    def _inside(self) -> Session:
        layers = self._layers or expose(self.proto, self.tensors.values())
        return Session(layers, self.optimize, foreign=self.foreign)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The file's output: the model's, if it has several."""
        names = self.session.outputs
        name = self.model.output if self.model.output in names else names[0]
        return self.session.run(images, [name])[name]

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of the layers that the graph shows, by path."""
        wanted = dict.fromkeys(name for name in self.tensors.values() if name != INPUT)
        values = {INPUT: images, **(self._inside.run(images, list(wanted)) if wanted else {})}
        return {path: values[name] for path, name in self.tensors.items()}

    def logits(self, images: np.ndarray) -> np.ndarray | None:
        """The input of softmax, where the graph shows it."""
        name = self.tensors.get(logit_path(self.model))
        return None if name is None else self._inside.run(images, [name])[name]

    def alone(self, path: str, *inputs: np.ndarray) -> np.ndarray | None:
        """The output of one layer, cut out of the graph; None where the graph does not show it.

        inputs: as many as the layer takes.
        """
        found = _ends(self.model, self.tensors, path, inputs)
        if found is None:
            return None
        target, given = found
        if target in given:
            return given[target]
        part = cut(self.proto, list(given), target)
        return None if part is None else Session(part, self.optimize, foreign=self.foreign).predict(given)


def _ends(
    model: Model, shown: Mapping[str, str], path: str, inputs: Sequence[np.ndarray]
) -> tuple[str, dict[str, np.ndarray]] | None:
    """A layer's tensor, and its inputs by their tensors; None where a graph does not show all of them."""
    tensors = {IMAGE: INPUT, **shown}
    node = next(node for node in model.walk() if node.path == path)
    if path not in tensors or any(source not in tensors for source in node.inputs):
        return None
    return tensors[path], {tensors[s]: x for s, x in zip(node.inputs, inputs, strict=True)}


class LRN(OpRun):
    """ONNX's local response normalisation: that of onnx 1.23.2 takes the batch for the channels."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, alpha=None, beta=None, bias=None, size=None
    ) -> tuple[np.ndarray]:
        channels, below = x.shape[1], (size - 1) // 2
        squares = np.square(x)
        total = np.zeros_like(x)
        for channel in range(channels):
            near = slice(max(0, channel - below), min(channels, channel + size - below))
            total[:, channel] = squares[:, near].sum(axis=1)
        return (x / (bias + alpha / size * total) ** beta,)


class MaxPool(OpRun):
    """ONNX's maximum pooling, as the zoo's graphs use it: that of onnx 1.23.2 fails, or gives another
    shape, where opposite sides are padded by different amounts and every stride is 1."""

    def _run(  # type: ignore[no-untyped-def]
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        dilations=None,
        kernel_shape=None,
        pads=None,
        storage_order=None,
        strides=None,
    ) -> tuple[np.ndarray]:
        if auto_pad not in (None, "NOTSET") or any(step != 1 for step in dilations or ()):
            raise NotImplementedError("a MaxPool with auto_pad or dilations")
        top, left, bottom, right = pads or (0, 0, 0, 0)
        down, across = strides or (1, 1)
        if (
            ceil_mode
        ):  # one window more where inputs are left over, which starts before the padding behind them
            bottom, right = bottom + down - 1, right + across - 1
        around = ((0, 0), (0, 0), (top, bottom), (left, right))
        padded = np.pad(x, around, constant_values=-np.inf)
        windows = sliding_window_view(padded, tuple(kernel_shape), axis=(2, 3))
        rows, columns = top + x.shape[2], left + x.shape[3]
        return (windows[:, :, :rows:down, :columns:across].max(axis=(4, 5)),)


OPERATORS: list[type[OpRun]] = [LRN, MaxPool]  # what onnx's own implementation is to compute otherwise


class EvaluatorWitness:
    """An ONNX graph in onnx's own reference implementation: slow, and nobody's optimiser."""

    def __init__(self, layers: bytes, model: Model) -> None:
        self.model = model
        self.proto = onnx.load_from_string(layers)
        self.tensors = layer_tensors(self.proto, model)
        self.names = [output.name for output in self.proto.graph.output]
        self.evaluator = _evaluator(self.proto)

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.names, _evaluated(self.evaluator, {INPUT: images}), strict=True))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The output of the graph."""
        return self._run(images)[self.model.output]

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path."""
        values = self._run(images)
        return {path: values[name] for path, name in self.tensors.items()}

    def alone(self, path: str, *inputs: np.ndarray) -> np.ndarray | None:
        """The output of one layer, cut out of the graph. inputs: as many as the layer takes."""
        found = _ends(self.model, self.tensors, path, inputs)
        if found is None:
            return None
        target, given = found
        if target in given:
            return given[target]
        part = cut(self.proto, list(given), target)
        return None if part is None else _evaluated(_evaluator(onnx.load_from_string(part)), given)[0]


def _evaluator(proto: ModelProto) -> ReferenceEvaluator:
    return ReferenceEvaluator(proto, new_ops=OPERATORS)


def _evaluated(evaluator: ReferenceEvaluator, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs for inputs by name; raises CheckFailed where an operator's implementation stops."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():  # its formulas pass through infinities
            warnings.simplefilter("ignore", RuntimeWarning)
            return list(evaluator.run(None, dict(inputs)))
    except Exception as error:  # whatever an operator's implementation raises
        raise CheckFailed(f"onnx.reference stopped: {type(error).__name__}: {error}") from None
