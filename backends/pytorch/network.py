"""A model as a torch module that infers and trains: zoo.network.Network for PyTorch."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.pytorch.lowering import build, for_training, module_name
from backends.pytorch.optimizers import optimizer
from zoo.errors import NotSupported
from zoo.layers import (
    AvgPool2d,
    Dropout,
    MaxPool2d,
    SpatialDropout,
)
from zoo.machine import ONE_BATCH, version
from zoo.model import Model, iter_weights
from zoo.network import OnStep
from zoo.precision import BF16, FLOAT32
from zoo.randomness import dropout_mask
from zoo.recipe import Optimizer, Recipe
from zoo.weights import check

CHUNK = 500  # images at a time in inference, where there are more than ONE_BATCH
OPSET = 18
DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
        self._steps = [(node, self.module.get_submodule(module_name(node.path))) for node in model.walk()]
        # Measured on two cores: pooling in channels_last trains 1.2 to 1.3 times as fast, while
        # networks of wide convolutions alone lose 10 to 15 % to the reordering before Flatten.
        pools = any(isinstance(node.layer, (MaxPool2d, AvgPool2d)) for node in model.walk())
        fast = pools and dtype == "float32" and device == "cpu"
        self._use_layout(torch.channels_last if fast else torch.contiguous_format)
        self._shares_masks = self._changes_rate = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._recipe: Optimizer | None = None
        self._slots: dict[int, dict[str, Tensor]] = {}  # optimiser state of a checkpoint, for the next epoch
        self._random: Tensor | None = None  # likewise the random state
        self._seen: dict[str, Tensor] = {}  # by hooks, during one pass
        self._load(check(model, weights))

    def _load(self, weights: Mapping[str, np.ndarray]) -> None:
        tensors = {
            name: torch.tensor(array, dtype=self.dtype, device=self.device) for name, array in weights.items()
        }
        self.module.load_state_dict({module_name(name): tensor for name, tensor in tensors.items()})

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in the network's dtype."""
        self.module.eval()
        with torch.inference_mode():
            parts = [self.module(self._tensor(chunk)).cpu().numpy() for chunk in in_chunks(images)]
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
                for chunk in in_chunks(images):
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
            name: state[module_name(name)].detach().contiguous().cpu().numpy().copy()
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
        return loss.item(), {name: found[module_name(name)].contiguous().cpu().numpy() for name in names}

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
                    index: {name: laid_out(value, parameters[index]) for name, value in own.items()}
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
            parts = [self._compiled(self._tensor(chunk)).contiguous().numpy() for chunk in in_chunks(images)]
        return np.concatenate(parts)

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path, all from one compiled program: another than that of `predict`,
        which need not keep them."""
        return self._passed(images, self._inside)

    def export_native(self, path: str | Path) -> None:
        """Always raises NotSupported: torch exports the network as it was before."""
        raise NotSupported("torch exports a network, not its compiled program; see the backend torch")


def laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of an optimiser in its parameter's memory layout, which safetensors does not keep."""
    if value.shape != parameter.shape:
        return value  # a count of steps
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def in_chunks(images: np.ndarray) -> list[np.ndarray]:
    size = CHUNK if len(images) > ONE_BATCH else ONE_BATCH
    return [images[start : start + size] for start in range(0, len(images), size)]


SLOT, RANDOM = "optimizer:", "random:torch"  # in a state; no layer's name has a colon
