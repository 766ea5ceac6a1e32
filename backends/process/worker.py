"""The child process in which one backend runs: it answers requests until its input ends.

Standard input and output carry messages (backends.process.messages); whatever a framework prints goes to
standard error. One network is current: `build` replaces it, the other requests use it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import backends
from backends.process import messages
from backends.process.messages import Arrays
from zoo import data, precision, timing
from zoo.errors import MachineError, NotSupported, ZooError
from zoo.network import CallableNetwork, ComparableNetwork, Network, Original
from zoo.recipe import Recipe
from zoo.spec import form
from zoo.training import loop, order
from zoo.training.checkpoints import Checkpoint

PROGRESS_SECONDS = 0.1
# How torch, TensorFlow and JAX say so, each by an error of its own.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "OOM when allocating", "RESOURCE_EXHAUSTED")
HOME_PREFIX = "zoo-worker-"  # of the temporary folder that is a worker's KERAS_HOME
Answer = tuple[dict[str, Any], Arrays]


class Worker:
    """The requests that a client may make: one method each, (fields, arrays) in and out."""

    def __init__(self, name: str, output: Any, signals: list[int], device: str = "cpu") -> None:
        self.backend = backends.load(name)
        self.elsewhere = {} if device == "cpu" else {"device": device}  # only some backends know others
        self.output = output
        self.signals = signals  # that have come, and ask a training to stop
        self.network: Network | None = None
        self.original: Original | None = None
        self.recipe: Recipe | None = None
        self.split: data.Split | None = None

    def current(self) -> Network:
        if self.network is None:
            raise RuntimeError("no network was built yet")
        return self.network

    def comparable(self) -> ComparableNetwork:
        network = self.current()
        if not isinstance(network, ComparableNetwork):
            raise NotSupported(f"the backend {self.backend.name!r} does not show its gradients")
        return network

    def way(self, bare: bool) -> Callable[[Any], Any]:
        """How the current network is asked for outputs: `predict`, or its framework's bare call."""
        network = self.current()
        if not bare:
            return network.predict
        if not isinstance(network, CallableNetwork):
            raise NotSupported(f"the backend {self.backend.name!r} has no other way to predict")
        return network.call

    def current_recipe(self) -> Recipe:
        if self.recipe is None:
            raise RuntimeError("no network was built yet")
        return self.recipe

    def current_split(self) -> data.Split:
        if self.split is None:
            raise RuntimeError("no data was sent yet")
        return self.split

    def hello(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The backend's versions."""
        return {"name": self.backend.name, "versions": self.backend.versions()}, {}

    def build(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Make the network of a model and its weights the current one."""
        spec = form.from_dict(fields["model"])
        mixed = {"precision": fields["precision"]} if "precision" in fields else {}
        self.network = self.backend.build(spec, arrays, fields["dtype"], **self.elsewhere, **mixed)
        self.recipe = spec.recipe
        return {}, {}

    def time_step(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """How many times as fast a step in a precision is as one in float32, with its interval.

        Steps are of networks built for this request only, on the first batch of a training with this seed.
        """
        spec, split = form.from_dict(fields["model"]), self.current_split()
        images, batch = order.step_images(spec.recipe, split, fields["seed"], 1)
        labels, rows = split.train_labels[batch], np.arange(len(batch))

        def step(mixed: dict[str, str]) -> Callable[[], None]:
            network = self.backend.build(spec, arrays, "float32", **self.elsewhere, **mixed)
            return lambda: network.train_epoch(images, labels, rows, spec.recipe, lambda *_: None)

        wish = fields["precision"]
        steps = {precision.FLOAT32: step({}), wish: step({"precision": wish})}
        return {"speed": list(precision.speed(steps, wish))}, {}

    def data(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Take the images of the next trainings."""
        self.split = data.Split(**arrays).as_float()
        return {}, {}

    def train(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Train the current network on the data; progress and checkpoints come as messages in between.

        start: what a checkpoint holds beside its tensors, which are the request's arrays. SIGINT asks the
        training to stop.
        """
        last = [0.0]

        def progress(done: int, total: int, loss: float) -> None:
            now = time.monotonic()
            if now - last[0] >= PROGRESS_SECONDS or done == total:
                last[0] = now
                messages.send(self.output, {"progress": [done, total, loss]})

        def keep(checkpoint: Checkpoint) -> None:
            messages.send(self.output, {"checkpoint": checkpoint.to_dict()}, checkpoint.tensors)

        spec, split = form.from_dict(fields["model"]), self.current_split()
        order.check_batches(spec, len(split.train_labels))
        trained = loop.train(
            self.current(),
            spec.recipe,
            split,
            seed=fields["seed"],
            epochs=fields["epochs"],
            progress=progress,
            keeper=loop.Keeper(keep, fields["checkpoint_seconds"], lambda: bool(self.signals)),
            start=Checkpoint.from_dict(fields["start"], arrays) if fields["start"] else None,
        )
        tensors = {f"weights/{name}": array for name, array in trained.weights.items()}
        tensors |= {f"best/{name}": array for name, array in (trained.best or {}).items()}
        names = ("best_epoch", "accuracy", "loss", "seconds", "history", "epochs")
        return {name: getattr(trained, name) for name in names}, tensors

    def gradients(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Loss and gradients of the first batch, and which images are in it.

        rounded: the images are what bfloat16 holds of them.
        """
        recipe, split = self.current_recipe(), self.current_split()
        images, batch = order.step_images(recipe, split, fields["seed"], 1)
        if fields.get("rounded"):
            images = precision.rounded(images)
        loss, found = self.comparable().gradients(
            images, split.train_labels[batch], order.step_seed(fields["seed"], 1)
        )
        return {"loss": loss, "batch": batch.tolist()}, found

    def train_step(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """One step of training: its loss, which images were in it, and the weights after it."""
        network = self.current()
        loss, batch = loop.train_step(network, self.current_recipe(), self.current_split(), **fields)
        return {"loss": loss, "batch": batch.tolist()}, network.weights()

    def share_masks(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Let the current network take its dropout's masks from the zoo."""
        self.comparable().share_masks(self.current_recipe().batch_size)
        return {}, {}

    def change_layout(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Let the current network train in another memory layout."""
        self.comparable().change_layout()
        return {}, {}

    def predict(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The outputs of the current network for images."""
        return {}, {"outputs": self.way(fields.get("bare", False))(arrays["images"])}

    def time_predict(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The seconds of each call of `predict` in one block, measured here: the pipe does not count."""
        predict, images = self.way(fields.get("bare", False)), arrays["images"]
        return {"seconds": timing.calls(lambda: predict(images), fields["seconds"])}, {}

    def alone(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The outputs of another network, built for this request only, for images."""
        images = arrays.pop("images")
        network = self.backend.build(
            form.from_dict(fields["model"]), arrays, fields["dtype"], **self.elsewhere
        )
        return {}, {"outputs": list(network.activations(images).values())[-1]}

    def plant(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Compute wrongly from the next network on, by a known fault, or rightly again: zoo selftest."""
        from backends import planting

        planting.plant(fields["fault"], self.backend.name)
        return {}, {}

    def activations(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Every layer's output of the current network for images."""
        return {}, self.current().activations(arrays["images"])

    def weights(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The canonical weights of the current network."""
        return {}, self.current().weights()

    def adopt(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Take one of the framework's own models: the kinds and weights of its layers, in order of use.

        layered: without it, no layers are given.
        """
        layered = fields.pop("layered")
        self.original = backends.original(self.backend.name, **fields)
        layers = list(self.original.layers()) if layered else []
        tensors = {
            f"{number}/{name}": array
            for number, (_, weights) in enumerate(layers)
            for name, array in weights.items()
        }
        return {"kinds": [kind for kind, _ in layers], "versions": self.original.versions()}, tensors

    def predict_original(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The outputs of the framework's own model for images as it takes them."""
        if self.original is None:
            raise RuntimeError("no model was adopted yet")
        return {}, {"outputs": self.original.predict(arrays["images"], fields["dtype"])}

    def export_original(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The bytes of the framework's ONNX export of its own model."""
        if self.original is None:
            raise RuntimeError("no model was adopted yet")
        return {}, {"onnx": np.frombuffer(self.original.export(), dtype=np.uint8)}

    def export_native(self, fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The bytes of the framework's own ONNX export of the current network."""
        with tempfile.TemporaryDirectory(prefix="zoo-export-") as folder:
            path = Path(folder) / "native.onnx"
            self.current().export_native(path)
            return {}, {"onnx": np.frombuffer(path.read_bytes(), dtype=np.uint8)}


def main() -> None:
    """Answer requests for the backend named by the first argument."""
    try:
        _serve()
    finally:
        home = Path(os.environ.get("KERAS_HOME", ""))
        if home.name.startswith(HOME_PREFIX):  # the parent may be gone and unable to
            shutil.rmtree(home, ignore_errors=True)


def _serve() -> None:
    source = os.fdopen(os.dup(0), "rb")
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signals: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    workers: list[Worker] = []

    def load() -> Answer:
        workers.append(Worker(sys.argv[1], output, signals, *sys.argv[2:]))
        return {}, {}

    try:
        unusable, _ = _answer(load)  # a start-up error, sent in reply to every request
        while True:
            fields, arrays = messages.receive(source)
            do = fields.pop("do")
            if workers:
                answer, tensors = _answer(getattr(workers[0], do), fields, arrays)
            else:
                answer, tensors = unusable, {}
            messages.send(output, answer, tensors)
    except (EOFError, BrokenPipeError):
        return


def _answer(request: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a request gives, or the error that it met as a message."""
    try:
        return request(*arguments)
    except BrokenPipeError:  # nobody listens
        raise
    except ZooError as error:
        return {"error": {"class": type(error).__name__, "arguments": [str(part) for part in error.args]}}, {}
    except OSError as error:
        what = f"cannot write: {error.strerror or error}"
        return _machine_error(what, str(error.filename or "")), {}
    except MemoryError:
        return _machine_error("out of memory"), {}
    except Exception as error:
        if any(sign in str(error) for sign in OUT_OF_MEMORY):
            return _machine_error("out of memory", "", "take a smaller batch or network"), {}
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return {"bug": text, "traceback": traceback.format_exc()}, {}


def _machine_error(*arguments: str) -> dict[str, Any]:
    return {"error": {"class": MachineError.__name__, "arguments": list(arguments)}}


if __name__ == "__main__":
    main()
