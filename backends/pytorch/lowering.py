"""PyTorch: one rule per layer, a torch.nn.Sequential named by the layers' paths, autograd.

A join is a module that holds one Sequential per branch, so paths are torch's own names of submodules.

Weights are torch's own layout already, so canonical and torch names and arrays are the same.
Training follows the recipe's written formulas, which are torch's; every hyper-parameter is passed.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import singledispatch
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import BackendUnavailable, InvalidInput, MachineError, NotSupported, UnsupportedLayer
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
from zoo.machine import ONE_BATCH, version
from zoo.model import Model, iter_weights
from zoo.network import OnStep
from zoo.precision import BF16, FLOAT32
from zoo.randomness import dropout_mask
from zoo.recipe import SGD, Adam, Optimizer, Recipe, RMSprop
from zoo.weights import check

CHUNK = 500  # images at a time in inference, where there are more than ONE_BATCH
OPSET = 18
WARM_UP = 3  # steps before CUDA records one
MINIMUM = (2, 15)  # torch, as pyproject.toml promises
SLOT, RANDOM = "optimizer:", "random:torch"  # in a state; no layer's name has a colon
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@singledispatch
def lower(layer: Layer, input_shape: Shape) -> nn.Module:
    """The torch module of one layer."""
    raise UnsupportedLayer(f"the backend 'torch' has no rule for {type(layer).__name__}")


class _Normalize(nn.Module):
    mean: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, ...], scale: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


@lower.register
def normalize(layer: Normalize, input_shape: Shape) -> nn.Module:
    return _Normalize(layer.mean, layer.scale)


class _PaddedConv2d(nn.Conv2d):
    """nn.Conv2d pads opposite sides alike; this one pads (or crops) each side by its own amount first."""

    sides: tuple[int, int, int, int]  # left, right, top, bottom: torch's order

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.sides))


@lower.register
def conv2d(layer: Conv2d, input_shape: Shape) -> nn.Module:
    placement = layer.placement(input_shape)
    top, left, bottom, right = placement.sides
    symmetric = (top, left) == (bottom, right)
    module = (nn.Conv2d if symmetric else _PaddedConv2d)(
        in_channels=input_shape[0],
        out_channels=layer.filters,
        kernel_size=layer.kernel,
        stride=placement.stride,
        padding=(top, left) if symmetric else 0,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias,
        padding_mode="zeros",
    )
    if isinstance(module, _PaddedConv2d):
        module.sides = (left, right, top, bottom)
    return module


@lower.register
def batch_norm(layer: BatchNorm, input_shape: Shape) -> nn.Module:
    kind = nn.BatchNorm2d if len(input_shape) == 3 else nn.BatchNorm1d
    return kind(
        input_shape[0], eps=layer.epsilon, momentum=layer.momentum, affine=True, track_running_stats=True
    )


@lower.register
def local_response_norm(layer: LocalResponseNorm, input_shape: Shape) -> nn.Module:
    return nn.LocalResponseNorm(layer.size, alpha=layer.alpha, beta=layer.beta, k=layer.k)


@lower.register
def relu(layer: ReLU, input_shape: Shape) -> nn.Module:
    return nn.ReLU()


@lower.register
def relu6(layer: ReLU6, input_shape: Shape) -> nn.Module:
    return nn.ReLU6()


@lower.register
def leaky_relu(layer: LeakyReLU, input_shape: Shape) -> nn.Module:
    return nn.LeakyReLU(negative_slope=layer.slope)


@lower.register
def elu(layer: ELU, input_shape: Shape) -> nn.Module:
    return nn.ELU(alpha=layer.alpha)


@lower.register
def sigmoid(layer: Sigmoid, input_shape: Shape) -> nn.Module:
    return nn.Sigmoid()


@lower.register
def tanh(layer: Tanh, input_shape: Shape) -> nn.Module:
    return nn.Tanh()


@lower.register
def gelu(layer: GELU, input_shape: Shape) -> nn.Module:
    return nn.GELU(approximate=layer.approximate)


@lower.register
def silu(layer: SiLU, input_shape: Shape) -> nn.Module:
    return nn.SiLU()


class _HardSigmoid(nn.Module):
    """nn.Hardsigmoid's formula: its own gradient is 1/6 rounded to float32, in float64 too."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu6(x + 3) / 6


@lower.register
def hard_sigmoid(layer: HardSigmoid, input_shape: Shape) -> nn.Module:
    return _HardSigmoid()


@lower.register
def hard_swish(layer: HardSwish, input_shape: Shape) -> nn.Module:
    return nn.Hardswish()


class _PaddedMaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d pads opposite sides alike, by half its size at most; this one by any amounts."""

    sides: tuple[int, int, int, int]  # left, right, top, bottom: torch's order

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.sides, value=-torch.inf))


@lower.register
def max_pool2d(layer: MaxPool2d, input_shape: Shape) -> nn.Module:
    top, left, bottom, right = layer.sides(input_shape)
    own = layer.pads_alike(input_shape)
    module = (nn.MaxPool2d if own else _PaddedMaxPool2d)(
        layer.size, layer.stride, padding=(top, left) if own else 0, dilation=1, ceil_mode=False
    )
    if isinstance(module, _PaddedMaxPool2d):
        module.sides = (left, right, top, bottom)
    return module


class _PaddedAvgPool2d(nn.AvgPool2d):
    """The same for nn.AvgPool2d, whose means are then of as many inputs as the layer counts."""

    sides: tuple[int, int, int, int]
    share: Tensor  # size of the window / inputs that count, (rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.sides)) * self.share


@lower.register
def avg_pool2d(layer: AvgPool2d, input_shape: Shape) -> nn.Module:
    top, left, bottom, right = layer.sides(input_shape)
    own = layer.pads_alike(input_shape)
    module = (nn.AvgPool2d if own else _PaddedAvgPool2d)(
        layer.size,
        layer.stride,
        padding=(top, left) if own else 0,
        ceil_mode=False,
        count_include_pad=layer.count_padding,
    )
    if isinstance(module, _PaddedAvgPool2d):
        module.sides = (left, right, top, bottom)
        share = prod(layer.size) / np.outer(*layer.counts(input_shape))
        module.register_buffer("share", torch.tensor(share), persistent=False)
    return module


@lower.register
def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, input_shape: Shape) -> nn.Module:
    return nn.AdaptiveAvgPool2d(layer.size)


@lower.register
def global_avg_pool2d(layer: GlobalAvgPool2d, input_shape: Shape) -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)


class _Masked(nn.Module):
    """A dropout that takes the mask of the step where it was given one (TorchNetwork.share_masks).

    Otherwise it draws 24 bits per value from torch's generator; torch's own dropout draws doubles, which
    took a seventh of a small model's step.
    """

    p: float
    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return x * (self._draw(x) if self.mask is None else self.mask)

    def _draw(self, x: Tensor) -> Tensor:
        """0 with the probability p, otherwise 1 / (1 - p); for every value of x (N, ...).

        float32 for bfloat16, whose 8 bits hold neither a probability nor most factors well enough: the masks
        are those of a training in float32.
        """
        dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        return torch.rand_like(x, dtype=dtype, requires_grad=False).ge_(self.p).div_(1 - self.p)


class _Dropout(_Masked, nn.Dropout): ...


class _SpatialDropout(_Masked, nn.Dropout2d):
    def _draw(self, x: Tensor) -> Tensor:
        """The same for every channel of x (N, C, H, W)."""
        return super()._draw(x[:, :, :1, :1])


@lower.register
def dropout(layer: Dropout, input_shape: Shape) -> nn.Module:
    return _Dropout(layer.rate)


@lower.register
def spatial_dropout(layer: SpatialDropout, input_shape: Shape) -> nn.Module:
    return _SpatialDropout(layer.rate)


@lower.register
def flatten(layer: Flatten, input_shape: Shape) -> nn.Module:
    return nn.Flatten(start_dim=1)


@lower.register
def dense(layer: Dense, input_shape: Shape) -> nn.Module:
    return nn.Linear(input_shape[0], layer.units, bias=layer.bias)


@lower.register
def softmax(layer: Softmax, input_shape: Shape) -> nn.Module:
    return nn.Softmax(dim=1)


class _Join(nn.Module):
    """Applies its branches, which are its children in the order of Join.chains, and joins what they give."""

    def forward(self, x: Tensor) -> Tensor:
        return self.join(*(branch(x) for branch in self.children()))

    def join(self, *tensors: Tensor) -> Tensor:
        raise NotImplementedError


class _Residual(_Join):
    def join(self, *tensors: Tensor) -> Tensor:
        body, shortcut = tensors
        return body + shortcut


class _Concat(_Join):
    def join(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, dim=1)


class _Scale(_Join):
    def join(self, *tensors: Tensor) -> Tensor:
        x, factor = tensors
        return x * factor


@lower.register
def residual(layer: Residual, input_shape: Shape) -> nn.Module:
    return _Residual()


@lower.register
def concat(layer: Concat, input_shape: Shape) -> nn.Module:
    return _Concat()


@lower.register
def scale(layer: Scale, input_shape: Shape) -> nn.Module:
    return _Scale()


def build(model: Model) -> nn.Sequential:
    """The modules of all layers, those of branches within their joins."""
    chains: dict[str, OrderedDict[str, nn.Module]] = {}  # by the path of what they are in, "" or a branch
    for node in model.walk():
        module = lower(node.layer, node.input_shape)
        if isinstance(node.layer, Join):
            for branch in node.layer.chains():
                module.add_module(branch, nn.Sequential(chains.pop(f"{node.path}.{branch}", OrderedDict())))
        scope, _, name = node.path.rpartition(".")
        chains.setdefault(scope, OrderedDict())[_attribute(name)] = module
    return nn.Sequential(chains[""])


# Their gradients don't need their outputs, which a ReLU may therefore overwrite.
_OVERWRITABLE = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d)


def for_training(module: nn.Sequential) -> nn.Sequential:
    """The same modules in an order that trains faster, to the same bits.

    The largest of a window comes before its ReLU, which then has a quarter of the work in a pool of
    2 x 2, and a ReLU overwrites its input where nobody else wants it. Only within the outer chain:
    branches stay as they are.
    """
    chain = list(module.named_children())
    for i in range(len(chain) - 1):
        if isinstance(chain[i][1], nn.ReLU) and isinstance(chain[i + 1][1], nn.MaxPool2d):
            chain[i], chain[i + 1] = chain[i + 1], chain[i]
    for i in range(1, len(chain)):
        if isinstance(chain[i][1], nn.ReLU) and isinstance(chain[i - 1][1], _OVERWRITABLE):
            chain[i] = (chain[i][0], nn.ReLU(inplace=True))
    return nn.Sequential(OrderedDict(chain))


@singledispatch
def optimizer(recipe: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's own optimiser in the recipe's form, with nothing left to a default."""
    raise UnsupportedLayer(f"the backend 'torch' has no optimizer {type(recipe).__name__}")


@optimizer.register
def sgd(recipe: SGD, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        dampening=0,
        weight_decay=0,
        nesterov=recipe.nesterov,
    )


@optimizer.register
def adam(recipe: Adam, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters,
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
        weight_decay=0,
        amsgrad=False,
        fused=True,
        capturable=parameters[0].is_cuda,  # a CUDA graph holds the number of the step, too
    )


@optimizer.register
def rmsprop(recipe: RMSprop, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        parameters,
        lr=recipe.learning_rate,
        alpha=recipe.alpha,
        eps=recipe.epsilon,
        weight_decay=0,
        momentum=0,
        centered=False,
        capturable=parameters[0].is_cuda,
    )


class TorchNetwork:
    """A model in PyTorch, on the CPU or a CUDA device; a zoo.network.Network.

    In the precision "bf16" the layers of a step of training compute in bfloat16, forward and backward.
    """

    def __init__(
        self,
        model: Model,
        weights: Mapping[str, np.ndarray],
        dtype: str,
        device: str = "cpu",
        precision: str = FLOAT32,
    ) -> None:
        self.model = model
        self._mixed = precision == BF16
        self.dtype = DTYPES[dtype]
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):  # torch draws initial values; nobody's seed moves
            self.module = build(model).to(self.device, self.dtype).eval()
        self._training = for_training(self.module)
        self._steps = [(node, self.module.get_submodule(_attribute(node.path))) for node in model.walk()]
        # Measured on two cores: pooling in channels_last trains 1.2 to 1.3 times as fast, while
        # networks of wide convolutions alone lose 10 to 15 % to the reordering before Flatten.
        pools = any(isinstance(node.layer, (MaxPool2d, AvgPool2d)) for node in model.walk())
        fast = pools and dtype == "float32" and device == "cpu"
        self._use_layout(torch.channels_last if fast else torch.contiguous_format)
        self._shares_masks = self._changes_rate = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._recipe: Optimizer | None = None
        self._slots: dict[int, dict[str, Tensor]] = {}  # of a restored state, not yet taken up
        self._random: Tensor | None = None  # so, too
        self._seen: dict[str, Tensor] = {}  # by hooks, during one pass
        self._load(check(model, weights))

    def _load(self, weights: Mapping[str, np.ndarray]) -> None:
        tensors = {
            name: torch.tensor(array, dtype=self.dtype, device=self.device) for name, array in weights.items()
        }
        self.module.load_state_dict({_attribute(name): tensor for name, tensor in tensors.items()})

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in the network's dtype."""
        self.module.eval()
        with torch.inference_mode():
            parts = [self.module(self._tensor(chunk)).cpu().numpy() for chunk in _chunks(images)]
        return np.concatenate(parts)

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path, taken from an ordinary pass through the network.

        A layer that the pass does not run is missing.
        """
        self.module.eval()
        return self._passed(images, self._every_layer)

    def _passed(
        self, images: np.ndarray, every_layer: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, np.ndarray]:
        """What `every_layer` gives for images, as arrays in the order of the model."""
        parts: dict[str, list[np.ndarray]] = {node.path: [] for node in self.model.walk()}
        hooks = [module.register_forward_hook(self._noting(node.path)) for node, module in self._steps]
        try:
            with torch.inference_mode():
                for chunk in _chunks(images):
                    for path, x in every_layer(self._tensor(chunk)).items():
                        parts[path].append(x.cpu().numpy())
        finally:
            for hook in hooks:
                hook.remove()
            self._seen.clear()
        return {path: np.concatenate(part) for path, part in parts.items() if part}

    def _noting(self, path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """A hook that copies a module's output, which the next module may overwrite."""

        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[path] = output.clone(memory_format=torch.contiguous_format)

        return note

    def _every_layer(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs of all layers that a pass runs, by path, while hooks note them."""
        self._seen.clear()
        self.module(x)
        return dict(self._seen)

    def weights(self) -> dict[str, np.ndarray]:
        """The current weights, float32 (or float64 where the network is)."""
        state = self.module.state_dict()
        return {
            name: state[_attribute(name)].detach().contiguous().cpu().numpy().copy()
            for name, _ in iter_weights(self.model)
        }

    def export_native(self, path: str | Path) -> None:
        """torch.onnx.export of this module, with a symbolic batch."""
        if version("onnxscript") is None:
            raise NotSupported("torch.onnx.export needs onnxscript", "", "pip install onnxscript")
        sample = torch.zeros(2, *self.model.input_shape, dtype=self.dtype, device=self.device)
        self.module.eval()
        with warnings.catch_warnings():
            # copyreg's LeafSpec notice comes from torch's own code and concerns nobody else.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.onnx.export(
                self.module,
                (sample,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=[self.model.output],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
            )
            if program is None:
                raise NotSupported("torch.onnx.export gave no program")
            program.save(str(path))

    def train_epoch(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: np.ndarray,
        recipe: Recipe,
        on_step: OnStep,
        seed: int = 0,
        done: int = 0,
        rates: np.ndarray | None = None,
    ) -> None:
        """One epoch of autograd and torch.optim over images[order]."""
        step_rule = self._optimizer_for(recipe.optimizer)
        self._changes_rate = rates is not None
        x_all, y_all = self._placed(images, labels)
        indices, size = torch.from_numpy(np.ascontiguousarray(order)).to(self.device), recipe.batch_size
        self.module.train()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            if done and self._random is not None:
                self._set_random(self._random)
            else:
                torch.manual_seed(seed)  # of every device
            for step, start in enumerate(range(done * size, len(order), size), start=done + 1):
                batch = indices[start : start + size]
                x, y = self._layout(x_all[batch].to(self.dtype)), y_all[batch]
                self._give_masks(seed, step, len(y))
                rate = recipe.optimizer.learning_rate if rates is None else float(rates[step - 1])
                for group in step_rule.param_groups:
                    group["lr"] = rate
                loss, correct = self._step(step_rule, x, y)
                on_step(step, loss, correct / len(y))
        self.module.eval()

    def _placed(self, images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """The images and labels of an epoch where the network computes."""
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _step(self, rule: torch.optim.Optimizer, x: Tensor, y: Tensor) -> tuple[float, float]:
        """One step of training on a batch: its loss, and how many images of it were right before."""
        rule.zero_grad(set_to_none=True)
        loss, correct = self._update(rule, x, y)
        return loss.item(), correct.item()

    def _update(self, rule: torch.optim.Optimizer, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = self._outputs(x)
        loss = functional.cross_entropy(output, y)
        loss.backward()
        rule.step()
        return loss.detach(), (output.detach().argmax(dim=1) == y).sum()

    def _outputs(self, x: Tensor) -> Tensor:
        """(N, *model.output_shape) of a step of training, in the network's dtype, which the loss is in, too.

        Every weight is used once in a step, so a cache of its bfloat16 would save nothing, and could outlive
        the optimiser's change of the weight, or hold an address in a CUDA graph.
        """
        if not self._mixed:
            return self._training(x)
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            return self._training(x).to(self.dtype)

    def _set_random(self, state: Tensor) -> None:
        """Give torch's generator, that of the device, a state."""
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)

    def _get_random(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def gradients(
        self, images: np.ndarray, labels: np.ndarray, seed: int = 0
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss over these images and its gradients, by the names of the weights."""
        parameters = dict(self.module.named_parameters())
        self._give_masks(seed, 1, len(labels))
        running = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        self.module.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            y = torch.from_numpy(labels).to(self.device)
            loss = functional.cross_entropy(self._outputs(self._tensor(images)), y)
            found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        self.module.eval()
        for buffer, before in running:  # a normalisation moves its own
            buffer.copy_(before)
        names = (name for name, weight in iter_weights(self.model) if weight.trained)
        return loss.item(), {name: found[_attribute(name)].contiguous().cpu().numpy() for name in names}

    def share_masks(self, batch_size: int) -> None:
        """Give every dropout the zoo's own masks from now on."""
        self._shares_masks = True

    def _give_masks(self, seed: int, step: int, images: int) -> None:
        if not self._shares_masks:
            return
        for node, module in self._steps:
            if isinstance(node.layer, (Dropout, SpatialDropout)):
                shape = (images, *node.layer.mask_shape(node.input_shape))
                mask = dropout_mask(seed, step, node.path, node.layer.rate, shape)
                module.mask = torch.from_numpy(mask).to(self.device, self.dtype)

    def change_layout(self) -> None:
        """Compute in channels_last instead of contiguous tensors, or the other way round."""
        plain = self._format == torch.contiguous_format
        self._use_layout(torch.channels_last if plain else torch.contiguous_format)

    def _use_layout(self, layout: torch.memory_format) -> None:
        self._format = layout
        self.module.to(memory_format=layout)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Weights, the optimiser's tensors ("optimizer:<i>:<name>"), and torch's generator."""
        tensors = {**self.weights(), RANDOM: self._get_random().numpy().copy()}
        recipe = None
        if self._optimizer is not None and self._recipe is not None:
            recipe = repr(self._recipe)
            for index, slots in self._optimizer.state_dict()["state"].items():
                for name, value in slots.items():
                    if value is not None:
                        tensors[f"{SLOT}{index}:{name}"] = torch.as_tensor(value).cpu().numpy().copy()
        return tensors, {"optimizer": recipe}

    def restore(self, tensors: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> None:
        """Take weights and the optimiser's tensors; the optimiser itself comes with the recipe."""
        self._load({name: tensors[name] for name, _ in iter_weights(self.model)})
        self._random = torch.tensor(tensors[RANDOM]) if RANDOM in tensors else None
        self._optimizer, self._recipe = None, None
        self._slots = {}
        for key, value in tensors.items():
            if key.startswith(SLOT):
                index, _, name = key.removeprefix(SLOT).partition(":")
                self._slots.setdefault(int(index), {})[name] = torch.tensor(value)

    def _optimizer_for(self, recipe: Optimizer) -> torch.optim.Optimizer:
        if self._optimizer is None or self._recipe != recipe:
            self._optimizer = optimizer(recipe, list(self.module.parameters()))
            self._recipe = recipe
            if self._slots:
                groups = self._optimizer.state_dict()["param_groups"]
                parameters = list(self.module.parameters())
                slots = {
                    index: {name: _laid_out(value, parameters[index]) for name, value in own.items()}
                    for index, own in self._slots.items()
                }
                self._optimizer.load_state_dict({"state": slots, "param_groups": groups})
                self._slots = {}
        return self._optimizer

    def _tensor(self, images: np.ndarray) -> Tensor:
        return self._layout(torch.from_numpy(np.ascontiguousarray(images)).to(self.device, self.dtype))

    def _layout(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self._format)


class CompiledTorchNetwork(TorchNetwork):
    """A model in PyTorch whose whole inference torch.compile turns into one program."""

    def __init__(self, model: Model, weights: Mapping[str, np.ndarray], dtype: str) -> None:
        super().__init__(model, weights, dtype)
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
            raise NotSupported("torch.compile needs a C++ compiler", "", "install g++ or clang++")
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA
        self.module.eval()
        torch.compiler.reset()  # programs of earlier networks count towards a limit, beyond which it fails
        self._compiled = torch.compile(self.module, fullgraph=True, dynamic=True)
        self._inside = torch.compile(self._every_layer, fullgraph=True, dynamic=True)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in the network's dtype."""
        with torch.inference_mode():
            parts = [self._compiled(self._tensor(chunk)).contiguous().numpy() for chunk in _chunks(images)]
        return np.concatenate(parts)

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path, all from one compiled program: another than that of `predict`,
        which need not keep them."""
        return self._passed(images, self._inside)

    def export_native(self, path: str | Path) -> None:
        """Always raises NotSupported: torch exports the network as it was before."""
        raise NotSupported("torch exports a network, not its compiled program; see the backend torch")


class CudaTorchNetwork(TorchNetwork):
    """A model in PyTorch on a CUDA device: a whole step of training is one CUDA graph.

    The data of an epoch lie on the device, a step is launched as one piece, and only its loss comes back.
    Products are float32 (no TF32), cuDNN's algorithms deterministic: it is held to the same limits as a CPU.
    """

    def __init__(
        self, model: Model, weights: Mapping[str, np.ndarray], dtype: str, precision: str = FLOAT32
    ) -> None:
        if not torch.cuda.is_available():
            raise MachineError(
                "the device 'cuda' is not available: torch finds none",
                "--device",
                "use cpu, or install a torch for CUDA",
            )
        if precision == BF16 and not torch.cuda.is_bf16_supported():
            raise MachineError("this CUDA device has no bfloat16", "--precision", "leave --precision out")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._data: tuple[np.ndarray, np.ndarray, Tensor, Tensor] | None = None
        super().__init__(model, weights, dtype, "cuda", precision)

    def _use_layout(self, layout: torch.memory_format) -> None:
        super()._use_layout(layout)
        self._graphs.clear()  # they hold the addresses of the weights

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in the network's dtype, without cuDNN: see `activations`."""
        with torch.backends.cudnn.flags(enabled=False):
            return super().predict(images)

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path, by plain sums of products.

        cuDNN takes transforms for some convolutions (5x5), which round more than such sums can; training
        does so, too.
        """
        with torch.backends.cudnn.flags(enabled=False):
            return super().activations(images)

    def _placed(self, images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """They stay there for the next epoch, which takes the same arrays."""
        if self._data is None or self._data[0] is not images or self._data[1] is not labels:
            x, y = super()._placed(images, labels)
            self._data = images, labels, x.to(self.device), y.to(self.device)
        return self._data[2], self._data[3]

    def _step(self, rule: torch.optim.Optimizer, x: Tensor, y: Tensor) -> tuple[float, float]:
        if self._shares_masks or self._changes_rate:  # a graph holds masks and rate as they were
            return super()._step(rule, x, y)
        key = (id(rule), len(y))
        if key not in self._graphs:
            self._graphs[key] = self._captured(rule, x, y)
        graph = self._graphs[key]
        graph.x.copy_(x)
        graph.y.copy_(y)
        graph.graph.replay()
        loss, correct = graph.result.tolist()
        return loss, correct

    def _captured(self, rule: torch.optim.Optimizer, x: Tensor, y: Tensor) -> _Graph:
        """One step on batches like this one as a graph. Nothing has changed afterwards but what it needs.

        CUDA wants a few steps before it records one, so weights, optimiser and generator are put back.
        """
        x, y = x.clone(), y.clone()
        weights = {name: value.clone() for name, value in self.module.state_dict().items()}
        before = {
            parameter: {key: value.clone() for key, value in slots.items() if torch.is_tensor(value)}
            for parameter, slots in rule.state.items()
        }
        random = self._get_random()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                rule.zero_grad(set_to_none=True)
                self._update(rule, x, y)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                value.copy_(weights[name])
            for parameter, slots in rule.state.items():
                for key, value in slots.items():
                    if torch.is_tensor(value):  # every optimiser here starts with zeros
                        value.copy_(before.get(parameter, {}).get(key, torch.zeros_like(value)))
        graph = torch.cuda.CUDAGraph()
        rule.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            loss, correct = self._update(rule, x, y)
            result = torch.stack([loss.double(), correct.double()])
        self._set_random(random)
        return _Graph(graph, x, y, result, rule)


class _Graph(NamedTuple):
    """A step that was recorded: where its batch is put, and where loss and hits appear.

    rule: kept alive, because the graph holds its tensors.
    """

    graph: Any
    x: Tensor
    y: Tensor
    result: Tensor
    rule: torch.optim.Optimizer


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of an optimiser in its parameter's memory layout, in which it was before it was stored."""
    if value.shape != parameter.shape:
        return value  # a count of steps
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _chunks(images: np.ndarray) -> list[np.ndarray]:
    size = CHUNK if len(images) > ONE_BATCH else ONE_BATCH
    return [images[start : start + size] for start in range(0, len(images), size)]


def _attribute(name: str) -> str:
    """A path, or a weight's name, as torch can hold it: nn.Module has methods called train, half, ..."""
    taken = (hasattr(nn.Sequential, part) or part == "training" for part in name.split("."))
    return ".".join(f"{part}_" if t else part for part, t in zip(name.split("."), taken, strict=True))


class TorchBackend:
    """PyTorch as a zoo.network.Backend; with every network compiled on the engine "compile"."""

    def __init__(self, engine: str | None = None) -> None:
        self.name = f"torch:{engine}" if engine else "torch"
        self._network = CompiledTorchNetwork if engine else TorchNetwork

    def build(
        self,
        model: Model,
        weights: Mapping[str, np.ndarray],
        dtype: str = "float32",
        device: str = "cpu",
        precision: str = FLOAT32,
    ) -> TorchNetwork:
        """The network of a model.

        device: "cpu", or "cuda" for the current CUDA device. precision: of a step of training, "float32" or
        "bf16". Raises UnsupportedLayer if a layer has no rule here, NotSupported without a compiler where one
        is needed and for a precision that is not of such networks, MachineError without the device.
        """
        if dtype not in DTYPES:
            raise InvalidInput(f"dtype {dtype!r} is neither float32 nor float64")
        if precision != FLOAT32 and (self.name != "torch" or dtype != "float32"):
            kind = f"the backend {self.name!r}" if self.name != "torch" else f"a {dtype} network"
            raise NotSupported(f"{kind} does not train in {precision}", "--precision")
        if device == "cpu" and precision == FLOAT32:
            return self._network(model, weights, dtype)
        if device == "cpu":
            return TorchNetwork(model, weights, dtype, precision=precision)
        if self.name != "torch":
            raise NotSupported(f"the backend {self.name!r} runs on the CPU only", "--device")
        return CudaTorchNetwork(model, weights, dtype, precision)

    def versions(self) -> dict[str, str]:
        """The versions of torch and of what its exporter uses."""
        exporter = version("onnxscript")
        return {"torch": torch.__version__, **({"onnxscript": exporter} if exporter else {})}


def backend(engine: str | None = None) -> TorchBackend:
    """The backend of this module; raises BackendUnavailable if torch is too old."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM:
        raise BackendUnavailable(f"torch {torch.__version__} is too old", "", "pip install -U torch")
    return TorchBackend(engine)
