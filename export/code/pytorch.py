"""PyTorch programs: a class with one attribute per layer, as torch's own tutorials write it.

Arguments that equal torch's documented defaults (stride 1, no padding, a bias) are left out.
"""

from __future__ import annotations

from functools import singledispatch

from export.code import source
from export.code.source import Call, assignment, identifiers, pair, quoted, shown
from zoo.errors import UnsupportedLayer
from zoo.fields import Sides
from zoo.layers import (
    AvgPool2d,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    Normalize,
    ReLU,
    Shape,
    Softmax,
)
from zoo.model import Model, Node

CHUNK = 500  # images at a time, as in backends/pytorch.py


@singledispatch
def emit(layer: Layer, input_shape: Shape) -> Call:
    """The construction of one layer's module."""
    raise UnsupportedLayer(f"a program for 'torch' has no rule for {type(layer).__name__}")


NORMALIZE = '''\
class Normalize(nn.Module):
    """(x - mean) * scale, channel by channel."""

    def __init__(self, mean, scale):
        super().__init__()
        for name, values in (("mean", mean), ("scale", scale)):
            tensor = torch.tensor(values).reshape(1, -1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x):
        return (x - self.mean) * self.scale'''


@emit.register
def normalize(layer: Normalize, input_shape: Shape) -> Call:
    return Call("Normalize", (f"mean={layer.mean}", f"scale={layer.scale}"))


@emit.register
def conv2d(layer: Conv2d, input_shape: Shape) -> Call:
    arguments = [str(input_shape[0]), str(layer.filters), f"kernel_size={pair(layer.kernel)}"]
    placement = layer.placement(input_shape)
    padding = placement.sides
    if placement.stride != (1, 1):
        arguments.append(f"stride={pair(placement.stride)}")
    if any(padding) and _is_symmetric(padding):
        arguments.append(f"padding={pair(padding[:2])}")
    if not layer.bias:
        arguments.append("bias=False")
    return Call("nn.Conv2d", tuple(arguments))


@emit.register
def relu(layer: ReLU, input_shape: Shape) -> Call:
    return Call("nn.ReLU")


@emit.register
def max_pool2d(layer: MaxPool2d, input_shape: Shape) -> Call:
    return Call("nn.MaxPool2d", _pool_arguments(layer))


@emit.register
def avg_pool2d(layer: AvgPool2d, input_shape: Shape) -> Call:
    return Call("nn.AvgPool2d", _pool_arguments(layer))


@emit.register
def dropout(layer: Dropout, input_shape: Shape) -> Call:
    return Call("nn.Dropout", (str(layer.rate),))


@emit.register
def flatten(layer: Flatten, input_shape: Shape) -> Call:
    return Call("nn.Flatten")


@emit.register
def dense(layer: Dense, input_shape: Shape) -> Call:
    bias = () if layer.bias else ("bias=False",)
    return Call("nn.Linear", (str(input_shape[0]), str(layer.units), *bias))


@emit.register
def softmax(layer: Softmax, input_shape: Shape) -> Call:
    return Call("nn.Softmax", ("dim=1",))


def _is_symmetric(padding: Sides) -> bool:
    top, left, bottom, right = padding
    return (top, left) == (bottom, right)


def _own_padding(node: Node) -> Sides | None:
    """The padding that the program applies before a convolution, which pads opposite sides alike."""
    if not isinstance(node.layer, Conv2d):
        return None
    padding = node.layer.placement(node.input_shape).sides
    return None if _is_symmetric(padding) else padding


def _pool_arguments(layer: MaxPool2d | AvgPool2d) -> tuple[str, ...]:
    stride = () if layer.stride == layer.size else (f"stride={pair(layer.stride)}",)
    return (f"kernel_size={pair(layer.size)}", *stride)


def program(model: Model) -> str:
    """The PyTorch program of a model; see export.code.program."""
    imports = ["import sys\n", "import numpy as np", "import torch"]
    imports += ["from safetensors.torch import load_file", "from torch import nn"]
    padded = any(_own_padding(node) for node in model.walk())
    imports += ["from torch.nn import functional"] if padded else []
    blocks = [NORMALIZE] if any(isinstance(layer, Normalize) for layer in model.layers) else []
    blocks += [_net(model), _load_weights(model), _predict(model)]
    return source.program(model, "PyTorch", "float32", "\n".join(imports), *blocks)


def _net(model: Model) -> str:
    names = identifiers(model)
    construct, forward = [], []
    for node in model.walk():
        attribute = f"self.{names[node.path]}"
        call = emit(node.layer, node.input_shape)
        construct.append(assignment(attribute, call, comment=shown(node.output_shape), indent=8))
        x = "x"
        if padding := _own_padding(node):
            top, left, bottom, right = padding
            x = f"functional.pad(x, ({left}, {right}, {top}, {bottom}))"
        forward.append(assignment("x", Call(attribute, (x,)), indent=8))
    return "\n".join(
        [
            "class Net(nn.Module):",
            f"{source.summary(model)}\n",
            "    def __init__(self):",
            "        super().__init__()",
            *construct,
            "\n    def forward(self, x):",
            *forward,
            "        return x",
        ]
    )


def _load_weights(model: Model) -> str:
    """torch's names are those of the file, except where a layer's name is no Python name."""
    names = identifiers(model)
    renamed = [
        f"        {quoted(f'{node.path}.{weight.name}')}: {quoted(f'{names[node.path]}.{weight.name}')},"
        for node in model.walk()
        for weight in node.layer.weights(node.input_shape)
        if names[node.path] != node.path
    ]
    lines = [
        "def load_weights(path):",
        '    """A Net with the weights of a safetensors file."""',
        f"    net = Net(){'.to(memory_format=torch.channels_last)' if _pools(model) else ''}",
    ]
    if renamed:
        lines += [
            "    names = {  # in the file: here",
            *renamed,
            "    }",
            "    weights = {names.get(name, name): x for name, x in load_file(path).items()}",
            "    net.load_state_dict(weights)",
        ]
    else:
        lines.append("    net.load_state_dict(load_file(path))")
    return "\n".join([*lines, "    return net.eval()"])


def _predict(model: Model) -> str:
    pools = _pools(model)
    layout = "        x = x.contiguous(memory_format=torch.channels_last)\n" if pools else ""
    return f'''\
@torch.inference_mode()
def predict(net, images):
    """The outputs for an array of images, as an array."""
    # {CHUNK} images at a time{", channels last" if pools else ""}: as the zoo does, to the last bit.
    parts = []
    for start in range(0, len(images), {CHUNK}):
        x = torch.tensor(images[start : start + {CHUNK}], dtype=torch.float32)
{layout}        parts.append(net(x).numpy())
    return np.concatenate(parts)'''


def _pools(model: Model) -> bool:
    """Whether backends/pytorch.py computes the model in the memory format channels_last."""
    return any(isinstance(layer, (MaxPool2d, AvgPool2d)) for layer in model.layers)
