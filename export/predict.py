"""Predict: a model.onnx with trained weights says which digit a picture shows.

Needs NumPy, Pillow and onnxruntime alone, and starts fast: what lies ready as an ONNX file (the
weights of the package, a run) is run as it is. onnx and the checks are imported only where a graph has
to be made or judged first: for initial weights, a .safetensors file, or an ONNX file from anywhere.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from export.inference.session import Session
from zoo import pretrained, runs
from zoo.errors import DataError, InvalidInput, ZooError
from zoo.images import decoding, handwriting
from zoo.model import Model
from zoo.models import registry
from zoo.primitives import softmax
from zoo.spec.file import parse_spec

IMAGE = (1, handwriting.SIDE, handwriting.SIDE)
OUTPUTS = ("probabilities", "logits")


class Prediction(NamedTuple):
    """What a model says of one image.

    probabilities: of every class, by label, in the order of the labels. image: float32 (28, 28) in
    [0, 1], what the model saw.
    """

    label: str
    probability: float
    runner_up: str
    runner_up_probability: float
    probabilities: dict[str, float]
    image: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """A picture file with what was predicted for it, or why nothing was."""

    file: str
    prediction: Prediction | None
    error: ZooError | None

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON data."""
        file = self.file.encode(errors="backslashreplace").decode()
        if self.prediction is None:
            return {"file": file, "error": self.error.to_dict() if self.error else None}
        said = self.prediction
        return {
            "file": file,
            "class": said.label,
            "probability": said.probability,
            "runner_up": {"class": said.runner_up, "probability": said.runner_up_probability},
            "probabilities": said.probabilities,
        }


class Predictor:
    """A loaded model: made once, it predicts for any number of images.

    >>> from zoo import pretrained
    >>> predictor = Predictor(pretrained.onnx("cnn-padded"), "cnn-padded")
    >>> predictor.labels[:3]
    ('0', '1', '2')
    """

    def __init__(self, content: bytes, origin: str, foreign: bool = False) -> None:
        """content: an ONNX file of the zoo. origin: what to call it in errors. foreign: see Session.

        Raises DataError if it cannot be run or lacks labels, InvalidInput if it does not take images
        (1, 28, 28).
        """
        self.origin = origin
        try:
            self._session = Session(content, foreign=foreign)
        except DataError as error:
            raise DataError(error.what, origin, error.hint) from None
        if len(self._session.inputs) != 1:
            raise DataError(f"the ONNX file takes {len(self._session.inputs)} inputs", origin)
        shape = tuple(self._session.inputs[0].shape[1:])
        if shape != IMAGE:
            raise InvalidInput(
                f"the model takes images of {_by(shape)}", origin, f"pictures become {_by(IMAGE)}"
            )
        self.output = next((name for name in OUTPUTS if name in self._session.outputs), "")
        self.labels = self._labels()
        if not self.output or len(self.labels) < 2:
            raise DataError("the ONNX file tells no classes apart", origin, "give one that the zoo exported")

    def _labels(self) -> tuple[str, ...]:
        try:
            return tuple(map(str, json.loads(self._session.metadata["zoo.labels"])))
        except (KeyError, ValueError, TypeError, RecursionError):
            return ()

    def predict(self, images: Sequence[np.ndarray] | np.ndarray) -> list[Prediction]:
        """One prediction per image; images: (N, 28, 28) in [0, 1], white ink on black.

        Raises DataError if the model's outputs are not one finite number per label.
        """
        if not len(images):
            return []
        batch = np.asarray(images, dtype=np.float32)
        output = self._session.run(batch[:, np.newaxis], [self.output])[self.output].astype(np.float64)
        if output.shape != (len(images), len(self.labels)) or not np.isfinite(output).all():
            raise DataError("the model's outputs are not one finite number per label", self.origin)
        rows = softmax(output) if self.output == "logits" else output
        return [self._said(row, image) for row, image in zip(rows, batch, strict=True)]

    def predict_files(self, files: Iterable[tuple[str, ZooError | None]]) -> list[Outcome]:
        """The outcome of each file that `decoding.expand` gives; a bad one leaves the others alone."""
        named, images = [], []
        for file, error in files:
            if error is None:
                try:
                    images.append(handwriting.to_mnist(decoding.read(file)))
                except ZooError as failure:
                    error = InvalidInput(failure.what, file, failure.hint)
            named.append((file, error))
        said = iter(self.predict(images))
        return [Outcome(file, None if error else next(said), error) for file, error in named]

    def _said(self, row: np.ndarray, image: np.ndarray) -> Prediction:
        first, second = np.argsort(-row, kind="stable")[:2]
        return Prediction(
            self.labels[first],
            float(row[first]),
            self.labels[second],
            float(row[second]),
            dict(zip(self.labels, row.tolist(), strict=True)),
            image,
        )


def load(
    text: str,
    wish: str | None = None,
    out: Path = Path("runs"),
    backend: str | None = None,
    say: Callable[[str], None] = print,
) -> Predictor:
    """The predictor that `text` names: a model, a spec file, a run folder or an ONNX file.

    wish: None, "pretrained", "init", a .safetensors file or a run folder. Without a wish: what a run
    folder or ONNX file holds; the weights of the package; else the run of the model under `out`, of
    `backend` if several backends have one. Raises DataError if there are no weights, InvalidInput,
    listing them, if there are several runs.
    """
    if text.endswith(".onnx") and wish is None:
        return Predictor(_file(Path(text)), text, foreign=True)
    if text.endswith(".onnx") or (wish is not None and wish != "pretrained" and not Path(wish).is_dir()):
        return _made(text, wish, out, backend, say)
    model, run = registry.resolve(text)
    folder_of_backend = _folder(backend)  # refuses an unknown one
    if wish is None and run is None:
        if pretrained.has(model):
            wish = "pretrained"
        else:
            run = runs.find(out, model.name, folder_of_backend)
            if run is None:
                raise DataError(f"no run of {model.name}", out, f"run: zoo build {shlex.quote(text)}")
    if wish == "pretrained":
        pretrained.require(model)
        return Predictor(pretrained.onnx(model.name), f"pretrained {model.name}")
    folder = Path(wish) if wish is not None else run
    assert folder is not None
    return Predictor(_of_run(folder, model), str(folder))


def _of_run(path: Path, model: Model) -> bytes:
    run = runs.Run(path)
    run.recover()
    if parse_spec(run.read("spec.json"), str(path)) != model:
        raise DataError(f"the run holds another model than {model.title}", path, "choose its own model")
    return run.read("model.onnx")


def _file(path: Path) -> bytes:
    """The bytes of an ONNX file of the zoo that is as it was exported."""
    from export.onnx import contents

    content = contents.onnx_bytes(path, whole=True)
    contents.model_of(content, path)
    return content


def _made(
    text: str, wish: str | None, out: Path, backend: str | None, say: Callable[[str], None]
) -> Predictor:
    """A predictor whose graph is made now, of a model and weights that need not be together."""
    from export.onnx.file import serialize
    from export.onnx.graph import to_onnx
    from export.runs import sources

    source = sources.find(text, wish, out, 0, say, backend, fall_back=False)
    return Predictor(serialize(to_onnx(source.model, source.weights)), source.origin)


def _folder(backend: str | None) -> str | None:
    import backends

    return backends.folder_name(backends.canonical(backend)) if backend else None


def _by(shape: Sequence[object]) -> str:
    return " x ".join(map(str, shape))
