"""Training on CUDA: a step is recorded once as a graph, and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from backends.pytorch.network import TorchNetwork
from zoo.errors import MachineError
from zoo.model import Model
from zoo.precision import BF16, FLOAT32

WARM_UP = 3  # steps before CUDA records one


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
