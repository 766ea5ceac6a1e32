"""torchvision's own modules: where imported weights come from, and what they are judged against.

Nothing of the zoo's layers is used here: an `Original` computes what torchvision computes. Its weights
are given layer by layer in the order in which they are used, so that whoever knows the spec can name them.
A file of weights is unpickled with `weights_only=True`, in this worker process alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo.errors import BackendUnavailable, DataError, InvalidInput, NotSupported, nearest
from zoo.machine import version

KINDS = {nn.Conv2d: "conv", nn.BatchNorm2d: "batchnorm", nn.Linear: "dense"}
NAMES = ("weight", "bias", "running_mean", "running_var")  # torch's, and the zoo's
# What a constructor needs so that it builds the network alone: GoogLeNet's classifiers are for training.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
NOISE = 4  # images
LEFT_OUT = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}  # in their files
SIZES = {"inception_v3": 299}  # height and width of the images; 224 otherwise


class Original:
    """One module of torchvision in evaluation mode."""

    def __init__(self, name: str, file: str | None, seed: int) -> None:
        """file: a state dict that torch.save wrote; None: torchvision's own random weights from `seed`.

        Raises BackendUnavailable without torchvision, DataError if the file is none or does not fit.
        """
        try:
            from torchvision import models
        except ImportError as error:
            raise BackendUnavailable(
                f"torchvision cannot be imported: {error}", "", "run: pip install torch torchvision"
            ) from None
        known = models.list_models(module=models)  # those that tell images apart
        if name not in known:
            raise InvalidInput(f"torchvision has no model {name!r}", "", nearest(name, known))
        self._size = SIZES.get(name, 224)
        torch.manual_seed(seed)
        self._module: nn.Module = models.get_model(name, weights=None, **ARGUMENTS.get(name, {})).eval()
        if file is None:
            self._settle(seed)
        else:
            self._load(Path(file), LEFT_OUT.get(name, ()))

    def _settle(self, seed: int) -> None:
        """Give batch normalisations the statistics of noise. With those of a constructor, 0 and 1, most
        random networks give outputs that do not depend on the image: nothing could be seen of an error."""
        for module in self._module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # of the new batch
        shape = (NOISE, 3, self._size, self._size)
        noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        with torch.no_grad():
            self._module.train()(torch.from_numpy(noise))
        self._module.eval()

    def _load(self, path: Path, left_out: tuple[str, ...]) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch each have their own
            text = (str(error).splitlines() or [""])[0][:200]
            raise DataError(
                f"not a file of weights that can be read safely: {type(error).__name__}: {text}", path
            ) from None
        if (
            not isinstance(state, dict)
            or not all(isinstance(key, str) for key in state)
            or not all(isinstance(x, torch.Tensor) for x in state.values())
        ):
            raise DataError("the file holds no state dict", path, "save module.state_dict()")
        for key in [key for key in state if left_out and key.startswith(left_out)]:
            del state[key]  # in place: a state dict carries its modules' versions beside its tensors
        try:
            self._module.load_state_dict(state)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # by whatever module it is
            lines = [line.strip() for line in str(error).splitlines()[1:3]] or [str(error)]
            raise DataError(
                f"the weights do not fit torchvision's module: {' '.join(lines)[:300]}", path
            ) from None

    def layers(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """(kind, weights by canonical name) of each layer that has weights, in the order of their use."""
        used: list[nn.Module] = []
        hooks = [
            module.register_forward_hook(lambda module, *_: used.append(module))
            for module in self._module.modules()
            if type(module) in KINDS
        ]
        with torch.no_grad():
            self._module(torch.zeros(1, 3, self._size, self._size))
        for hook in hooks:
            hook.remove()
        for module in used:
            tensors = {name: getattr(module, name, None) for name in NAMES}
            yield (
                KINDS[type(module)],
                {name: t.detach().numpy() for name, t in tensors.items() if t is not None},
            )

    def predict(self, images: np.ndarray, dtype: str) -> np.ndarray:
        """The module's output for images (N, C, H, W) as it takes them: preprocessed, (N, classes)."""
        kind = getattr(torch, dtype)
        with torch.inference_mode(), _converted(self._module, kind):
            return np.asarray(self._module(torch.from_numpy(images).to(kind)).numpy())

    def export(self) -> bytes:
        """torch's own ONNX export of the module, with a symbolic batch; raises NotSupported."""
        if version("onnxscript") is None:
            raise NotSupported("torch.onnx.export needs onnxscript", "", "pip install onnxscript")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FutureWarning and UserWarning of torch's own code
            program = torch.onnx.export(
                self._module,
                (torch.zeros(2, 3, self._size, self._size),),
                dynamo=True,
                verbose=False,
                opset_version=18,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        if program is None:
            raise NotSupported("torch.onnx.export gave no program")
        return bytes(program.model_proto.SerializeToString())

    def versions(self) -> dict[str, str]:
        """The versions of torchvision and torch."""
        return {"torch": torch.__version__, "torchvision": version("torchvision") or ""}


@contextmanager
def _converted(module: nn.Module, kind: torch.dtype) -> Iterator[None]:
    """The module in another dtype; float32 values come back from float64 as they were."""
    module.to(kind)
    try:
        yield
    finally:
        module.to(torch.float32)


def original(name: str, file: str | None, seed: int) -> Original:
    """torchvision.models.<name> with the weights of a file, or random ones."""
    if file is not None and not os.path.isfile(file):
        raise DataError("no such file of weights", file)
    return Original(name, file, seed)
