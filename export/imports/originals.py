"""Models of torchvision and keras.applications: their weights, under the names of the zoo's own specs.

A framework's own model gives its layers' weights in the order in which they are used, which is the order of
`Model.walk()`. Kinds and shapes are compared one by one, and the outputs afterwards, so that a wrong
pair cannot pass.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.process.client import RemoteOriginal, Worker
from zoo.errors import CheckFailed, DataError, InvalidInput, nearest
from zoo.layers import Normalize
from zoo.model import Model
from zoo.models import registry
from zoo.weights import Weights, check

LARGEST_FILE = 4 * 2**30  # bytes
SMALL = 64  # height and width of the image that is compared in float64

# By source, as the user writes it: the backend in whose process it lives, and its models' names here.
SOURCES: dict[str, tuple[str, dict[str, str]]] = {
    "torchvision": (
        "torch",
        {
            "alexnet": "alexnet",
            "vgg11_bn": "vgg11-bn",
            "googlenet": "googlenet",
            "resnet18": "resnet18",
            "squeezenet1_1": "squeezenet1.1",
            "densenet121": "densenet121",
            "mobilenet_v2": "mobilenet-v2",
        },
    ),
    "keras": ("keras", {"DenseNet121": "densenet121-keras", "MobileNetV2": "mobilenet-v2-keras"}),
}


@dataclass(frozen=True)
class Wish:
    """What a user asks for: source ("torchvision"), name there ("resnet18"), and where weights come from.

    file: None for the framework's own random weights from `seed`. sha256: what the file must have.
    """

    source: str
    name: str
    file: Path | None = None
    sha256: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise InvalidInput(f"unknown source {self.source!r}", "", nearest(self.source, SOURCES))
        if not self.name.isidentifier():
            raise InvalidInput(f"{self.name!r} is no model of {self.source}", "", self.examples)
        if self.file is None and self.sha256 is not None:
            raise InvalidInput("there is no file to compare it with", "--sha256", "give --weights FILE")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput(f"seed {self.seed}", "--seed", "give an integer from 0 to 2^63 - 1")

    @property
    def examples(self) -> str:
        """The names that the zoo has as specs."""
        return f"such as {', '.join(SOURCES[self.source][1])}"

    @property
    def has_spec(self) -> bool:
        """Whether the zoo has the model as a spec; any other is read from the framework's ONNX export."""
        return self.name in SOURCES[self.source][1]

    @property
    def backend(self) -> str:
        """The backend in whose process the framework's own model lives."""
        return SOURCES[self.source][0]

    def model(self, **parameters: int) -> Model:
        """The spec of the same architecture."""
        return registry.get(SOURCES[self.source][1][self.name], **parameters)


@dataclass(frozen=True)
class Adopted:
    """A framework's own model, its spec, and its weights by the spec's names.

    about: where the weights come from, as JSON data.
    """

    wish: Wish
    model: Model
    weights: Weights
    original: RemoteOriginal
    about: dict[str, Any]

    def expected(self, images: np.ndarray, dtype: str = "float64") -> np.ndarray:
        """What the framework's own model gives for images float32 (N, C, H, W) in [0, 1], (N, classes).

        It is given what the spec's Normalize makes of them, in the dtype that it computes in.
        """
        first = self.model.layers[0]
        assert isinstance(first, Normalize)
        mean, scale = (np.array(v, dtype).reshape(-1, 1, 1) for v in (first.mean, first.scale))
        return self.original.predict((images.astype(dtype) - mean) * scale, dtype)


def adopt(wish: Wish, worker: Worker) -> Adopted:
    """Make the framework's own model in its worker and take its weights.

    Raises DataError if the file is none, has another SHA-256 or does not fit; BackendUnavailable.
    """
    model = wish.model()
    original, about = taken(wish, worker)
    return Adopted(wish, model, check(model, _named(model, original), wish.name), original, about)


def taken(wish: Wish, worker: Worker) -> tuple[RemoteOriginal, dict[str, Any]]:
    """The framework's own model in its worker, and where its weights come from, as JSON data.

    Raises DataError if the file is none, has another SHA-256 or does not fit; InvalidInput for an unknown
    name; BackendUnavailable.
    """
    about: dict[str, Any] = {"source": f"{wish.source}:{wish.name}"}
    if wish.file is None:
        about |= {"weights": "random", "seed": wish.seed}
    else:
        found = sha256(wish.file)
        if wish.sha256 is not None and found != wish.sha256.lower():
            raise DataError(f"the file's SHA-256 is {found}, not {wish.sha256}", wish.file)
        about |= {"weights": wish.file.name, "sha256": found}
    original = worker.adopt(wish.name, wish.file, wish.seed, layered=wish.has_spec)
    if wish.file is not None and sha256(wish.file) != about["sha256"]:
        raise DataError("the file changed while it was read", wish.file)
    about["versions"] = original.versions
    return original, about


def sha256(path: Path) -> str:
    """The SHA-256 of a regular file; raises DataError."""
    try:
        if not path.is_file():
            raise DataError("no such file of weights", path)
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"a file of more than {LARGEST_FILE:,} bytes", path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path) from None


def _named(model: Model, original: RemoteOriginal) -> Weights:
    """The original's weights under the spec's names; raises CheckFailed where the two are not alike."""
    nodes = [node for node in model.walk() if node.layer.weights(node.input_shape)]
    kinds = [node.layer.kind for node in nodes]
    theirs = [kind for kind, _ in original.layers]
    if kinds != theirs:
        place = next((i for i, pair in enumerate(zip(kinds, theirs, strict=False)) if pair[0] != pair[1]), -1)
        raise CheckFailed(
            f"the framework's model has {len(theirs)} layers with weights, the spec {len(kinds)}; "
            f"they differ from number {place} on",
            model.name,
        )
    weights: Weights = {}
    for node, (_, arrays) in zip(nodes, original.layers, strict=True):
        weights |= {f"{node.path}.{name}": array for name, array in arrays.items()}
    return weights
