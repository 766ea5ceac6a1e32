"""The backend torch: zoo.network.Backend."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from backends.pytorch.cuda import CudaTorchNetwork
from backends.pytorch.network import DTYPES, CompiledTorchNetwork, TorchNetwork
from zoo.errors import BackendUnavailable, InvalidInput, NotSupported
from zoo.machine import version
from zoo.model import Model
from zoo.precision import FLOAT32

MINIMUM = (2, 15)  # torch, as pyproject.toml promises


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
