"""The backend keras: zoo.network.Backend on TensorFlow, JAX or torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.keras3.network import KerasNetwork
from backends.keras3.quiet import keras
from zoo.errors import BackendUnavailable, InvalidInput, MachineError, NotSupported
from zoo.machine import version
from zoo.model import Model

MINIMUM = (3, 15)  # keras, as pyproject.toml promises


def _use_cuda() -> None:
    """Products in float32 and the same bits every time; raises MachineError if the engine has no CUDA device.

    That it runs there if there is one is the engine's own choice. JAX is told the rest by its environment.
    """
    engine, found = keras.backend.backend(), False
    if engine == "jax":
        import jax

        found = jax.default_backend() == "gpu"
    if engine == "torch":
        import torch

        found = torch.cuda.is_available()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if not found:
        raise MachineError(
            f"the device 'cuda' is not available: {engine} finds none",
            "--device",
            f"use cpu, or install a {engine} for CUDA",
        )


class KerasBackend:
    """Keras as a zoo.network.Backend, on the engine that this process has imported."""

    def __init__(self) -> None:
        engine = keras.backend.backend()
        self.name = "keras" if engine == "tensorflow" else f"keras:{engine}"

    def build(
        self,
        model: Model,
        weights: Mapping[str, np.ndarray],
        dtype: str = "float32",
        device: str = "cpu",
    ) -> KerasNetwork:
        """The network of a model.

        device: "cpu", or "cuda" where that is what the engine runs on in this process. Raises
        UnsupportedLayer if a layer has no rule here, NotSupported if the engine does not compute in this
        dtype, MachineError without the device.
        """
        if dtype not in ("float32", "float64"):
            raise InvalidInput(f"dtype {dtype!r} is neither float32 nor float64")
        if keras.backend.backend() == "torch" and keras.backend.result_type(dtype, dtype) != dtype:
            # Keras 3.15 on torch: matmul casts its float64 operands to float32, without a word.
            raise NotSupported(f"{self.name} computes matrix products of {dtype} in float32")
        if device != "cpu":
            _use_cuda()
        return KerasNetwork(model, weights, dtype)

    def versions(self) -> dict[str, str]:
        """The versions of keras, of its engine, and of the exporter."""
        engine = keras.backend.backend()
        found = {name: version(name) for name in ("keras", engine, "tf2onnx")}
        return {name: number for name, number in found.items() if number}


def backend(engine: str | None = None) -> KerasBackend:
    """The backend of this module; raises BackendUnavailable if keras runs on another engine."""
    running = keras.backend.backend()
    if running != (engine or "tensorflow"):
        raise BackendUnavailable(
            f"keras already runs on {running} in this process, not on {engine or 'tensorflow'}",
            "KERAS_BACKEND",
            "one engine per process: start another one",
        )
    if tuple(int(part) for part in keras.__version__.split(".")[:2]) < MINIMUM:
        raise BackendUnavailable(f"keras {keras.__version__} is too old", "", "pip install -U keras")
    return KerasBackend()
