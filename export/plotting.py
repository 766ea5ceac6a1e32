"""From a command's words to a figure: which weights, images and numbers each kind of plot takes.

A kind is one function from a `Subject` to a figure. A subject finds what is asked of it (model,
weights, data, predictions) when it is first asked; most kinds need only a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import backends
from export.inference.session import Session
from export.onnx import contents
from export.onnx.file import serialize
from export.onnx.graph import tensor_name, to_layers_onnx, to_onnx
from export.plots import activations, canvas, decisions, history, kernels, textbook
from export.runs import sources
from export.runs.sources import Source
from zoo import data, filters, pretrained, primitives, runs, weights
from zoo.data import Dataset
from zoo.errors import DataError, InvalidInput, nearest
from zoo.images import decoding, handwriting
from zoo.layers import AvgPool2d, Conv2d, Dropout, Flatten, MaxPool2d, ReLU
from zoo.model import Model, Node
from zoo.models import registry
from zoo.training.loop import EPOCHS, HISTORY

COUNT = 20  # images, unless told
MOST_IMAGES = 200
SELECTING = (ReLU, MaxPool2d, AvgPool2d, Dropout, Flatten)  # no value beyond the largest before
SPECIAL = ("layer", "channel", "image", "picture", "count", "worst")  # options that not every kind takes
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a plot can be told; see `zoo plot --help`. None: not told.

    weights, backend, runs, seed: where weights come from, as for export.runs.sources.find. layer: a
    layer's path. channel: an input channel. image: the number of a test image. picture: a picture
    file. count: how many images. worst: the worst mistakes instead of the first.
    """

    data: str = "auto"
    data_dir: str | None = None
    weights: str | None = None
    backend: str | None = None
    runs: Path = Path("runs")
    seed: int | None = None
    layer: str | None = None
    channel: int | None = None
    image: int | None = None
    picture: Path | None = None
    count: int | None = None
    worst: bool = False

    def __post_init__(self) -> None:
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InvalidInput(f"seed {self.seed}", "--seed", "give an integer from 0 to 2^63 - 1")
        if self.count is not None and not 1 <= self.count <= MOST_IMAGES:
            raise InvalidInput(f"{self.count} images", "--count", f"give 1 to {MOST_IMAGES}")
        if self.image is not None and self.picture is not None:
            raise InvalidInput("two pictures", "--image and --picture", "give one of them")


class Subject:
    """What a plot is of. Everything is found when first asked for."""

    def __init__(self, text: str | None, options: Options, say: Say) -> None:
        """text: what names the model, as on the command line."""
        self.text, self.options, self.say = text, options, say

    @cached_property
    def model(self) -> Model:
        """The model; only a kind that needs one, or was given one, asks."""
        if str(self.text).endswith(".onnx"):
            return contents.read_model(Path(str(self.text)))
        return registry.resolve(str(self.text))[0]

    @cached_property
    def source(self) -> Source:
        """The model with its weights."""
        return self._find(self.options.weights)

    def run(self) -> Source:
        """The same, but from a run, which keeps more than weights; raises DataError."""
        if self.source.run is not None:
            return self.source
        folder = self.options.backend and backends.folder_name(backends.canonical(self.options.backend))
        found = runs.find(self.options.runs, self.model.name, folder)
        if found is not None and self.options.weights is None:
            return self._find(str(found))
        raise DataError(
            f"only a run keeps its history, and there is none of {self.model.title}",
            self.options.runs,
            f"run: zoo build {self.text}, or give a run: zoo plot RUN history",
        )

    def _find(self, wish: str | None) -> Source:
        options = self.options
        return sources.find(str(self.text), wish, options.runs, options.seed or 0, self.say, options.backend)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set; it fits the model if there is one."""
        dataset = data.load(self.options.data, self.options.data_dir, self.say)
        if self.text is not None:
            data.check_fits(self.model, dataset)
        return dataset

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 (N, classes) of all test images, from onnxruntime."""
        session = Session(serialize(to_onnx(self.model, self.source.weights)))
        outputs = session.predict(data.to_float(self.dataset.test_images))
        return decisions.probabilities(outputs, self.model.output)

    def convolution(self, place: int = 0) -> Node:
        """The convolution that --layer names, else the one at a place; raises InvalidInput."""
        found = {node.path: node for node in self.model.walk() if isinstance(node.layer, Conv2d)}
        if not found:
            raise InvalidInput(f"{self.model.title} has no convolution", "", "choose another model")
        name = self.options.layer or list(found)[place]
        if name not in found:
            raise InvalidInput(f"no convolution {name!r}", "--layer", nearest(name, found))
        return found[name]

    def test_image(self) -> tuple[np.ndarray, str, int]:
        """The test image that --image names, float32 (C, H, W) in [0, 1], what it is, its label."""
        number = self.options.image or 0
        count = len(self.dataset.test_labels)
        if not 0 <= number < count:
            raise InvalidInput(f"no test image {number}", "--image", f"give 0 to {count - 1}")
        image = data.to_float(self.dataset.test_images[number])
        return image, f"test image {number} of {self.dataset.name}", int(self.dataset.test_labels[number])


@dataclass(frozen=True)
class Kind:
    """A kind of plot: what draws it, and which of the options it takes besides those for weights and data."""

    draw: Callable[[Subject], Figure]
    takes: tuple[str, ...] = ()
    needs_model: bool = True


def draw(what: str, text: str | None, options: Options, say: Say = print) -> Figure:
    """The plot `what` of the model that `text` names; None where the kind needs no model.

    Raises InvalidInput for an unknown kind, for an option that it does not take, and where model or
    data have nothing to draw; DataError where weights, data or a run's files are missing.
    """
    if what not in KINDS:
        raise InvalidInput(f"unknown plot {what!r}", "", nearest(what, KINDS))
    if text is None and KINDS[what].needs_model:
        raise InvalidInput(f"{what} needs a model", "", f"run: zoo plot MODEL {what}")
    for option in SPECIAL:
        told = getattr(options, option)
        if told is not None and told is not False and option not in KINDS[what].takes:
            fitting = ", ".join(name for name, kind in KINDS.items() if option in kind.takes)
            raise InvalidInput(f"{what} takes no --{option}", "", f"it is for {fitting}")
    return KINDS[what].draw(Subject(text, options, say))


def _kernels(subject: Subject) -> Figure:
    node = subject.convolution()
    channel, channels = subject.options.channel or 0, node.input_shape[0]
    if not 0 <= channel < channels:
        raise InvalidInput(f"no input channel {channel}", "--channel", f"{node.path} has 0 to {channels - 1}")
    name = f"{node.path}.weight"
    after = subject.source.weights[name][:, channel]
    known = record(subject.source)
    seed = known["seed"] if known else subject.options.seed
    before = weights.init_weights(subject.model, seed or 0)[name][:, channel]
    of = f" on input channel {channel} of {channels}" if channels > 1 else ""
    title = f"{subject.model.title}: kernels of {node.path}{of}"
    if np.array_equal(before, after):
        about = f"initial weights, seed {seed or 0}"
        return kernels.kernels_figure(after, title=title, about=about, names=("", "before training"))
    if seed is None:
        about = f"{trained(subject.source)}. With --seed N: before training as well"
        return kernels.kernels_figure(after, title=title, about=about)
    title += " before and after training"
    return kernels.kernels_figure(after, before, title=title, about=trained(subject.source))


def _grid(subject: Subject) -> Figure:
    node = subject.convolution(-1)  # the first one has a single column where pictures are grey
    weight = subject.source.weights[f"{node.path}.weight"]
    title = f"{subject.model.title}: all kernels of {node.path}"
    return kernels.grid_figure(weight, title=title, about=trained(subject.source))


def _activations(subject: Subject) -> Figure:
    model = subject.model
    if subject.options.picture is not None:
        image, what = _picture_for(model, subject.options.picture), subject.options.picture.name
    else:
        image, what, label = subject.test_image()
        what += f", a {model.labels[label]}"
    stages = [[node.path for node in stage] for stage in stages_of(model)]
    if subject.options.layer is not None:
        paths = [path for stage in stages for path in stage]
        if subject.options.layer not in paths:
            raise InvalidInput(
                f"no layer {subject.options.layer!r}", "--layer", nearest(subject.options.layer, paths)
            )
        stages = [stage for stage in stages if subject.options.layer in stage]
    session = Session(serialize(to_layers_onnx(model, subject.source.weights)))
    last = model.walk()[-1].path
    paths = [path for stage in stages for path in stage]
    names = {path: tensor_name(model, path) for path in (*paths, last)}
    outputs = session.run(image[np.newaxis], list(dict.fromkeys(names.values())))
    if model.labels:
        probability = decisions.probabilities(outputs[names[last]], model.output)[0]
        guess = int(probability.argmax())
        what += f", read as {model.labels[guess]}, p\u00a0=\u00a0{probability[guess]:.2f}"
    return activations.activations_figure(
        image,
        [[(path, outputs[names[path]][0]) for path in stage] for stage in stages],
        model.labels if last in paths else (),
        title=f"{model.title}: what each layer makes of {what}",
        about=f"ReLU, pooling and flatten share the scale of the layer before. {trained(subject.source)}",
    )


def stages_of(model: Model) -> list[list[Node]]:
    """The layers in stages: one that computes new values, then those that only select among them."""
    stages: list[list[Node]] = []
    for node in model.walk():
        if stages and isinstance(node.layer, SELECTING):
            stages[-1].append(node)
        else:
            stages.append([node])
    return stages


def _picture_for(model: Model, path: Path) -> np.ndarray:
    """A picture file as a model's input (1, 28, 28), prepared as `zoo predict` does."""
    if model.input_shape != (1, handwriting.SIDE, handwriting.SIDE):
        raise InvalidInput(f"{model.title} takes images of {model.input_shape}", "--picture", "use --image")
    try:
        return handwriting.to_mnist(decoding.read(path))[np.newaxis]
    except InvalidInput as error:
        raise InvalidInput(error.what, error.where or path, error.hint) from None


def _history(subject: Subject) -> Figure:
    source = subject.run()
    run = runs.Run(source.run or "")
    steps = history.read_csv(run.read("history.csv").decode(), HISTORY)
    epochs = history.read_csv(run.read("epochs.csv").decode(), EPOCHS)
    title = f"{source.model.title}: loss and accuracy while training"
    return history.history_figure(steps, epochs, title=title, about=trained(source))


def _mistakes(subject: Subject) -> Figure:
    model, dataset, probability = subject.model, subject.dataset, subject.probabilities
    found = decisions.mistakes(probability, dataset.test_labels, subject.options.worst)
    shown = found[: subject.options.count or COUNT]
    truths, guesses = dataset.test_labels[shown], probability[shown].argmax(axis=1)
    which = "worst" if subject.options.worst else "first"
    some = f"the {which} {len(shown)} of {len(found):,} mistakes" if len(shown) else "no mistakes"
    return decisions.mistakes_figure(
        data.to_float(dataset.test_images[shown]),
        [int(number) for number in shown],
        [model.labels[truth] for truth in truths],
        [model.labels[guess] for guess in guesses],
        [float(p) for p in probability[shown, truths]],
        [float(p) for p in probability[shown, guesses]],
        title=f"{model.title}: {some} on {len(probability):,} test images of {dataset.name}",
        about=f"p is the network's probability of that class. {trained(subject.source)}",
    )


def _confusion(subject: Subject) -> Figure:
    model, dataset = subject.model, subject.dataset
    guesses = subject.probabilities.argmax(axis=1)
    accuracy = float((guesses == dataset.test_labels).mean())
    return decisions.confusion_figure(
        decisions.confusion(guesses, dataset.test_labels, len(model.labels)),
        model.labels,
        title=f"{model.title}: truth and answer on {len(guesses):,} test images of {dataset.name}",
        about=f"accuracy {accuracy:.4f}. {trained(subject.source)}",
    )


def _samples(subject: Subject) -> Figure:
    dataset = subject.dataset
    count = min(subject.options.count or COUNT, len(dataset.train_labels))
    labels = subject.model.labels if subject.text is not None else [str(n) for n in range(data.CLASSES)]
    return decisions.samples_figure(
        data.to_float(dataset.train_images[:count]),
        [labels[label] for label in dataset.train_labels[:count]],
        title=f"{dataset.name}: the first {count} of {len(dataset.train_labels):,} training images",
        about="number and label of each",
    )


def _filters(subject: Subject) -> Figure:
    if subject.options.picture is not None:
        picture, what = decoding.read(subject.options.picture), subject.options.picture.name
    else:
        image, what, _ = subject.test_image()
        picture = image.mean(axis=0)
    picture = _reduced(picture, int(textbook.PANEL * canvas.DPI))
    filtered = []
    for name, rows in filters.KERNELS.items():
        kernel = np.array(rows)
        around = primitives.pad(picture, (kernel.shape[0] // 2, kernel.shape[1] // 2), "edge")
        filtered.append((name, kernel, primitives.convolve2d(around, kernel, mode="valid")))
    height, width = picture.shape
    about = f"in grey, at {height} x {width} pixels, with the picture's edge continued"
    return textbook.filters_figure(picture, filtered, title=f"{what} through classical kernels", about=about)


def _reduced(picture: np.ndarray, longest: int) -> np.ndarray:
    """A picture (H, W) of about `longest` pixels a side at most: means over square blocks."""
    block = min(ceil(max(picture.shape) / longest), *picture.shape)
    height, width = (side // block for side in picture.shape)
    cut = picture[: height * block, : width * block]
    return np.asarray(cut.reshape(height, block, width, block).mean(axis=(1, 3)))


def _activation_functions(subject: Subject) -> Figure:
    return textbook.activation_functions_figure()


def record(source: Source) -> dict[str, Any] | None:
    """How the weights were trained (backend, data, epochs, seed), if their run or the package says."""
    if source.run is not None:
        report = runs.Run(source.run).read_json("report.json")
        return report
    return pretrained.record(source.model.name) if source.origin == "pretrained" else None


def trained(source: Source) -> str:
    """One phrase on where the weights come from."""
    known = record(source)
    if known is None:
        return f"weights: {source.origin}"
    epochs = f"{known['epochs']} epoch{'' if known['epochs'] == 1 else 's'}"
    data = f"{known['data']['train']:,} images of {known['data']['name']}"
    return f"{source.origin}: trained by {known['backend']} on {data}, {epochs}, seed {known['seed']}"


KINDS: dict[str, Kind] = {
    "kernels": Kind(_kernels, ("layer", "channel")),
    "grid": Kind(_grid, ("layer",)),
    "activations": Kind(_activations, ("layer", "image", "picture")),
    "history": Kind(_history),
    "mistakes": Kind(_mistakes, ("count", "worst")),
    "confusion": Kind(_confusion),
    "samples": Kind(_samples, ("count",), needs_model=False),
    "filters": Kind(_filters, ("image", "picture"), needs_model=False),
    "activation-functions": Kind(_activation_functions, needs_model=False),
}
