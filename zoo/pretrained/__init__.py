"""Weights that come with the package: the documented recipes, trained on MNIST.

Beside this file lie, for each model, its canonical weights (safetensors) and its ONNX file, and
index.json, which says what they were made from (recipe, seed, data, versions), what they score and
which SHA-256 the files have. A file is compared with its SHA-256 before anyone parses it.
Importing this module imports no NumPy; `export.runs.shipping` writes the files.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import DataError, InvalidInput, nearest
from zoo.model import Model
from zoo.models import registry

if TYPE_CHECKING:
    import numpy as np

    from zoo.weights import Weights

FOLDER = Path(__file__).parent
INDEX = "index.json"


class Pretrained(NamedTuple):
    """A model with trained weights: `model, weights = zoo.load("cnn-padded")`."""

    model: Model
    weights: Weights

    @property
    def record(self) -> dict[str, Any]:
        """What the weights were made from and what they score; see index.json."""
        return record(self.model.name)

    @property
    def onnx(self) -> bytes:
        """The ONNX file of these weights."""
        return onnx(self.model.name)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The outputs (N, classes), float32, for images float32 (N, C, H, W) in [0, 1].

        Computed by onnxruntime from the ONNX file.
        """
        import onnxruntime

        session = onnxruntime.InferenceSession(self.onnx, providers=["CPUExecutionProvider"])
        outputs: list[np.ndarray] = session.run([self.model.output], {"image": images})
        return outputs[0]


def load(name: str) -> Pretrained:
    """The model `name` with the weights of the package.

    Raises InvalidInput for an unknown name, DataError if none are shipped or the file was altered.
    """
    model = registry.get(name)
    return Pretrained(model, weights(model))


def names() -> list[str]:
    """The models that have weights here, in the order of `zoo list`."""
    return [name for name in registry.names("all") if name in _index()]


def has(model: Model) -> bool:
    """Whether there are weights of exactly this model, parameters included."""
    return model.name in _index() and model == registry.get(model.name)


def require(model: Model) -> None:
    """Raise DataError if there are no weights of exactly this model."""
    if not has(model):
        shipped = ", ".join(names())
        raise DataError(f"no pretrained weights of {model.title} are shipped", "", f"shipped: {shipped}")


def record(name: str) -> dict[str, Any]:
    """What is known of a model's weights: recipe, seed, epochs, data, accuracy, interval, files."""
    if name not in _index():
        raise InvalidInput(f"no pretrained weights of {name!r}", "", nearest(name, _index()))
    found: dict[str, Any] = _index()[name]
    return found


def best() -> str:
    """The model whose weights score highest on the test images."""
    return max(names(), key=lambda name: float(record(name)["accuracy"]["test"]))


def weights(model: Model) -> Weights:
    """The canonical weights; raises DataError if none are shipped or the file was altered."""
    require(model)
    from zoo.weights import from_bytes

    return from_bytes(read(model.name, "weights"), model, FOLDER / record(model.name)["weights"]["file"])


def onnx(name: str) -> bytes:
    """The bytes of a model's ONNX file; raises DataError if the file was altered."""
    return read(name, "onnx")


def read(name: str, what: str) -> bytes:
    """One file of a model, "weights" or "onnx", as its SHA-256 says; raises DataError."""
    entry = record(name)[what]
    path = FOLDER / entry["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path, "install the package again") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise DataError("the file was altered after it was shipped", path, "install the package again")
    return content


@cache
def _index() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((FOLDER / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the list of pretrained weights cannot be read: {type(error).__name__}",
            FOLDER / INDEX,
            "install the package again",
        ) from None
    return found
