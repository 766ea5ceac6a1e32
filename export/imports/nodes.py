"""A node of an ONNX graph that is being read, and the registry of the rules that read one.

A rule gets a node whose inputs are known, and gives the view of its first output; it raises Inexpressible
with the reason where no layer computes that. The rules stand in operators.py and elementwise.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from export.imports.tensors import Array, Inexpressible, Tensor, View
from zoo.errors import InvalidSpec
from zoo.layers import Layer

Value = View | Array

RULES: dict[str, Callable[[Node], View]] = {}


@dataclass
class Node:
    """A node with its inputs: views of what depends on the image, arrays of what does not.

    batched: whether the graph's tensors have a batch axis. batch: what that axis is in shapes.
    concats: those met before, by their inputs.
    """

    proto: NodeProto
    inputs: list[Value | None]
    opset: int
    batched: bool
    batch: int
    concats: dict[tuple[int, ...], Tensor]

    @property
    def operator(self) -> str:
        return str(self.proto.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; text as str."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def view(self, position: int = 0) -> View:
        """An input that depends on the image."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if not isinstance(value, View):
            raise Inexpressible("an input that should come from the image does not")
        return value

    def constant(self, position: int, what: str) -> Array | None:
        """An input that does not depend on the image; None if it is left out."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, View):
            raise Inexpressible(f"its {what} is computed from the image")
        return value

    def required(self, position: int, what: str) -> Array:
        value = self.constant(position, what)
        if value is None:
            raise Inexpressible(f"it has no {what}")
        return value

    def integers(self, name: str, position: int) -> list[int] | None:
        """A list of integers: an attribute in old opsets, an input in new ones."""
        values = self.attribute(name)
        if values is None:
            values = self.constant(position, name)
        return None if values is None else [int(value) for value in np.asarray(values).reshape(-1)]


def rule(*operators: str) -> Callable[[Callable[[Node], View]], Callable[[Node], View]]:
    """Register the rule of some operators."""

    def decorate(function: Callable[[Node], View]) -> Callable[[Node], View]:
        for operator in operators:
            RULES[operator] = function
        return function

    return decorate


def made(layer: Layer, x: Tensor, **arrays: Array) -> Tensor:
    """A layer behind a tensor; raises Inexpressible if it cannot take it."""
    try:
        shape = layer.output_shape(x.shape)
    except InvalidSpec as error:
        raise Inexpressible(error.what) from None
    weights = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
    return Tensor((x,), shape, layer, weights)


def construct(kind: Callable[..., Any], *arguments: Any) -> Any:
    """A layer; raises Inexpressible where the language has no such one."""
    try:
        return kind(*arguments)
    except InvalidSpec as error:
        raise Inexpressible(f"{kind.__name__}: {error.what}") from None
    except TypeError as error:
        raise Inexpressible(f"{kind.__name__}: {error}") from None
