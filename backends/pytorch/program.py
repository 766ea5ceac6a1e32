"""PyTorch programs: a class with one attribute per layer, as torch's own tutorials write it.

Arguments that equal torch's documented defaults (stride 1, no padding, a bias) are left out.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod

from backends.programs import source
from backends.programs.source import Call, assignment, identifiers, pair, quoted, shown
from zoo.errors import UnsupportedLayer
from zoo.fields import Sides
from zoo.layers import (
    ELU,
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
    HardSigmoid,
    HardSwish,
    Join,
    Layer,
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    ReLU6,
    Residual,
    Scale,
    Shape,
    Sigmoid,
    SiLU,
    Softmax,
    SpatialDropout,
    Tanh,
)
from zoo.machine import ONE_BATCH
from zoo.model import Model, Node

CHUNK = 500  # images at a time where there are more than ONE_BATCH, as in backends/pytorch/network.py


@singledispatch
def emit(layer: Layer, input_shape: Shape) -> Call:
    """The construction of one layer's module."""
    raise UnsupportedLayer(f"a program for 'torch' has no rule for {type(layer).__name__}")


HARD_SIGMOID = '''\
class HardSigmoid(nn.Module):
    """x / 6 + 1 / 2 between 0 and 1."""

    def forward(self, x):
        return functional.relu6(x + 3) / 6'''

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
    if layer.dilation != (1, 1):
        arguments.append(f"dilation={pair(layer.dilation)}")
    if layer.groups > 1:
        arguments.append(f"groups={layer.groups}")
    if not layer.bias:
        arguments.append("bias=False")
    return Call("nn.Conv2d", tuple(arguments))


@emit.register
def batch_norm(layer: BatchNorm, input_shape: Shape) -> Call:
    arguments = (str(input_shape[0]), f"eps={layer.epsilon}", f"momentum={layer.momentum}")
    return Call(f"nn.BatchNorm{2 if len(input_shape) == 3 else 1}d", arguments)


@emit.register
def local_response_norm(layer: LocalResponseNorm, input_shape: Shape) -> Call:
    arguments = (f"alpha={layer.alpha}", f"beta={layer.beta}", f"k={layer.k}")
    return Call("nn.LocalResponseNorm", (str(layer.size), *arguments))


@emit.register
def relu(layer: ReLU, input_shape: Shape) -> Call:
    return Call("nn.ReLU")


@emit.register
def relu6(layer: ReLU6, input_shape: Shape) -> Call:
    return Call("nn.ReLU6")


@emit.register
def leaky_relu(layer: LeakyReLU, input_shape: Shape) -> Call:
    return Call("nn.LeakyReLU", (f"negative_slope={layer.slope}",))


@emit.register
def elu(layer: ELU, input_shape: Shape) -> Call:
    return Call("nn.ELU", (f"alpha={layer.alpha}",))


@emit.register
def sigmoid(layer: Sigmoid, input_shape: Shape) -> Call:
    return Call("nn.Sigmoid")


@emit.register
def tanh(layer: Tanh, input_shape: Shape) -> Call:
    return Call("nn.Tanh")


@emit.register
def gelu(layer: GELU, input_shape: Shape) -> Call:
    return Call("nn.GELU", (f"approximate={quoted(layer.approximate)}",))


@emit.register
def silu(layer: SiLU, input_shape: Shape) -> Call:
    return Call("nn.SiLU")


@emit.register
def hard_sigmoid(layer: HardSigmoid, input_shape: Shape) -> Call:
    return Call("HardSigmoid")


@emit.register
def hard_swish(layer: HardSwish, input_shape: Shape) -> Call:
    return Call("nn.Hardswish")


@emit.register
def max_pool2d(layer: MaxPool2d, input_shape: Shape) -> Call:
    return Call("nn.MaxPool2d", _pool_arguments(layer, input_shape))


@emit.register
def avg_pool2d(layer: AvgPool2d, input_shape: Shape) -> Call:
    arguments = _pool_arguments(layer, input_shape)
    if any(layer.padding) and layer.pads_alike(input_shape) and not layer.count_padding:
        arguments += ("count_include_pad=False",)
    return Call("nn.AvgPool2d", arguments)


@emit.register
def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, input_shape: Shape) -> Call:
    return Call("nn.AdaptiveAvgPool2d", (pair(layer.size),))


@emit.register
def global_avg_pool2d(layer: GlobalAvgPool2d, input_shape: Shape) -> Call:
    return Call("nn.AdaptiveAvgPool2d", ("1",))


@emit.register
def dropout(layer: Dropout, input_shape: Shape) -> Call:
    return Call("nn.Dropout", (str(layer.rate),))


@emit.register
def spatial_dropout(layer: SpatialDropout, input_shape: Shape) -> Call:
    return Call("nn.Dropout2d", (str(layer.rate),))


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


# Joins need no module: the rules below give what `forward` does with their branches.


@emit.register
def residual(layer: Residual, input_shape: Shape) -> Call:
    return Call("+")


@emit.register
def concat(layer: Concat, input_shape: Shape) -> Call:
    return Call("torch.cat", ("dim=1",))


@emit.register
def scale(layer: Scale, input_shape: Shape) -> Call:
    return Call("*")


def _is_symmetric(padding: Sides) -> bool:
    top, left, bottom, right = padding
    return (top, left) == (bottom, right)


def _own_padding(node: Node, x: str = "x") -> str | None:
    """The padding of x that the program applies before a layer, where torch's module cannot pad like it."""
    layer, value = node.layer, ""
    if isinstance(layer, Conv2d):
        top, left, bottom, right = layer.placement(node.input_shape).sides
        alike = (top, left) == (bottom, right)
    elif isinstance(layer, (MaxPool2d, AvgPool2d)):
        top, left, bottom, right = layer.sides(node.input_shape)
        alike = layer.pads_alike(node.input_shape)
        value = ", value=-torch.inf" if isinstance(layer, MaxPool2d) else ""
    else:
        return None
    return None if alike else f"functional.pad({x}, ({left}, {right}, {top}, {bottom}){value})"


def _own_share(node: Node, x: str = "x") -> Call | None:
    """What the means x of a pool are multiplied by, where some of its padding does not count."""
    layer = node.layer
    if not isinstance(layer, AvgPool2d) or layer.pads_alike(node.input_shape):
        return None
    rows, columns = (list(counts) for counts in layer.counts(node.input_shape))
    if {*rows} == {layer.size[0]} and {*columns} == {layer.size[1]}:
        return None
    return Call("share", (x, f"size={prod(layer.size)}", f"rows={rows}", f"columns={columns}"))


SHARE = '''\
def share(x, size, rows, columns):
    """Means of `size` values as means of those that count: rows * columns of them."""
    counts = np.outer(rows, columns)
    return x * torch.tensor(size / counts, dtype=x.dtype)'''


def _pool_arguments(layer: MaxPool2d | AvgPool2d, input_shape: Shape) -> tuple[str, ...]:
    stride = () if layer.stride == layer.size else (f"stride={pair(layer.stride)}",)
    alike = any(layer.padding) and layer.pads_alike(input_shape)
    padding = (f"padding={pair(layer.padding[:2])}",) if alike else ()
    return (f"kernel_size={pair(layer.size)}", *stride, *padding)


def program(model: Model) -> str:
    """The PyTorch program of a model; see backends.programs.program."""
    imports = ["import sys\n", "import numpy as np", "import torch"]
    imports += ["from safetensors.torch import load_file", "from torch import nn"]
    padded = any(_own_padding(node) for node in model.walk())
    hard = any(isinstance(node.layer, HardSigmoid) for node in model.walk())
    imports += ["from torch.nn import functional"] if padded or hard else []
    blocks = [NORMALIZE] if any(isinstance(node.layer, Normalize) for node in model.walk()) else []
    blocks += [HARD_SIGMOID] if hard else []
    blocks += [SHARE] if any(_own_share(node) for node in model.walk()) else []
    blocks += [_net(model), _load_weights(model), _predict(model)]
    return source.program(model, "PyTorch", "float32", "\n".join(imports), *blocks)


def _net(model: Model) -> str:
    names, flow = identifiers(model), source.Flow(model)
    construct, forward = [], []
    for node in model.walk():
        y, inputs = flow.target(node), flow.inputs(node)
        call = emit(node.layer, node.input_shape)
        if isinstance(node.layer, Join):
            forward.append(_joined(y, call, inputs, shown(node.output_shape)))
            continue
        attribute, (x,) = f"self.{names[node.path]}", inputs
        construct.append(assignment(attribute, call, comment=shown(node.output_shape), indent=8))
        forward.append(assignment(y, Call(attribute, (_own_padding(node, x) or x,)), indent=8))
        if share := _own_share(node, y):
            forward.append(assignment(y, share, indent=8))
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


def _joined(y: str, call: Call, inputs: list[str], comment: str) -> str:
    """The line of `forward` that joins branches."""
    if call.function in ("+", "*"):
        return source.operation(y, inputs[0], call.function, inputs[1], comment=comment, indent=8)
    call = Call(call.function, (source.listed(inputs, 8), *call.arguments))
    return assignment(y, call, comment=comment, indent=8)


def _load_weights(model: Model) -> str:
    """torch's names are those of the file, except where a layer's path is no Python name."""
    names = identifiers(model)
    paths = [node.path for node in model.walk() if node.layer.weights(node.input_shape)]
    others = [path for path in paths if names[path] != path.replace(".", "_")]
    rule = """layer.replace(".", "_")""" if any("." in path for path in paths) else "layer"
    lines = [
        "def load_weights(path):",
        '    """A Net with the weights of a safetensors file."""',
        f"    net = Net(){'.to(memory_format=torch.channels_last)' if _pools(model) else ''}",
    ]
    if others:
        lines += ["    names = {  # in the file: here"]
        lines += [f"        {quoted(path)}: {quoted(names[path])}," for path in others]
        lines += ["    }"]
        rule = f"names.get(layer, {rule})"
    if rule == "layer":
        lines.append("    net.load_state_dict(load_file(path))")
    else:
        lines += [
            "    weights = {}",
            "    for name, x in load_file(path).items():",
            '        layer, _, weight = name.rpartition(".")',
            f"        layer = {rule}",
            '        weights[f"{layer}.{weight}"] = x',
            "    net.load_state_dict(weights)",
        ]
    return "\n".join([*lines, "    return net.eval()"])


def _predict(model: Model) -> str:
    pools = _pools(model)
    layout = "        x = x.contiguous(memory_format=torch.channels_last)\n" if pools else ""
    return f'''\
@torch.inference_mode()
def predict(net, images):
    """The outputs for an array of images, as an array."""
    # So many images at a time{", channels last" if pools else ""}: as the zoo does, to the last bit.
    size = {CHUNK} if len(images) > {ONE_BATCH} else {ONE_BATCH}
    parts = []
    for start in range(0, len(images), size):
        x = torch.tensor(images[start : start + size], dtype=torch.float32)
{layout}        parts.append(net(x).numpy())
    return np.concatenate(parts)'''


def _pools(model: Model) -> bool:
    """Whether backends/pytorch/network.py computes the model in the memory format channels_last."""
    return any(isinstance(node.layer, (MaxPool2d, AvgPool2d)) for node in model.walk())
