"""A finished run as TensorBoard reads it: curves, kernels as pictures, graph, hyper-parameters.

The files are made from the run alone (history.csv, epochs.csv, weights, model.onnx, report.json), so
they can be made for any run, now or later. They lie in the run's folder as `tensorboard/` and are no
part of its manifest, because they hold the time of their making. tensorboardX writes them.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo import recipe, runs, weights
from zoo.errors import BackendUnavailable, MachineError
from zoo.layers import Conv2d
from zoo.model import Model
from zoo.spec.file import parse_spec
from zoo.weights import Weights

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FOLDER = "tensorboard"


def require() -> None:
    """Raise BackendUnavailable, with the install command, if tensorboardX is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise BackendUnavailable(
            "--tensorboard needs tensorboardX, not installed", "", "run: pip install tensorboardX tensorboard"
        )


def write(path: Path) -> Path:
    """Write the event files of the run at `path`; returns their folder.

    Raises DataError if the run is damaged, MachineError if the folder cannot be written.
    """
    require()
    from tensorboardX import SummaryWriter

    run = runs.Run(path)
    new, folder = path / f".{FOLDER}.new", path / FOLDER
    try:
        with run.lock():
            shutil.rmtree(new, ignore_errors=True)
            with SummaryWriter(str(new)) as writer:
                _fill(writer, run)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
    except OSError as error:
        raise MachineError(f"cannot write: {error.strerror}", error.filename or folder) from None
    return folder


def _fill(writer: SummaryWriter, run: runs.Run) -> None:
    model = parse_spec(run.read("spec.json"), str(run.path))
    report = run.read_json("report.json")
    for name, unit in (("history.csv", "step"), ("epochs.csv", "epoch")):
        for number, row in enumerate(csv.DictReader(io.StringIO(run.read(name).decode())), start=1):
            for column, value in row.items():
                if column not in ("epoch", "step") and value:
                    writer.add_scalar(f"{unit}/{column}", float(value), number)
    trained = weights.from_bytes(run.read("weights.safetensors"), model, run.path)
    for step, values in enumerate((weights.init_weights(model, report["seed"]), trained)):
        for name, image in _kernels(model, values).items():
            writer.add_image(f"kernels/{name}", image, step, dataformats="HW")
        for name, array in values.items():
            writer.add_histogram(name, array, step)
    # The graph is read from a file; the run's own was checked just now.
    run.read("model.onnx")
    with contextlib.redirect_stdout(io.StringIO()):  # tensorboardX prints every tensor's name
        writer.add_onnx_graph(str(run.path / "model.onnx"))
    scores = {f"accuracy/{part}": value for part, value in report["accuracy"].items() if value is not None}
    writer.add_hparams(_hyperparameters(model, report), scores, name="hyper-parameters")


def _kernels(model: Model, values: Weights) -> dict[str, np.ndarray]:
    """Each convolution's kernels as one picture, rows output and columns input channels.

    Values are float32 in [0, 1]; 0.5 is zero, and the largest magnitude of the layer is 0 or 1.
    """
    pictures = {}
    for node in model.walk():
        if isinstance(node.layer, Conv2d):
            kernels = values[f"{node.path}.weight"]
            kernels = 0.5 + 0.5 * kernels / max(float(np.abs(kernels).max()), 1e-30)
            framed = np.pad(kernels, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.5)
            rows, columns, height, width = framed.shape
            tiles = framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
            pictures[node.path] = tiles.astype(np.float32)
    return pictures


def _hyperparameters(model: Model, report: dict[str, Any]) -> dict[str, Any]:
    """The recipe and the run's own choices, as numbers and words."""
    plain = recipe.to_dict(model.recipe)
    optimizer = plain.pop("optimizer")
    others = {part: plain[part] for part in recipe.PARTS if part in plain}
    chosen = {"model": model.title, "backend": report["backend"], "data": report["data"]["name"]}
    chosen |= {"seed": report["seed"], "epochs": report["epochs"], "parameters": model.parameters}
    chosen |= {"optimizer": optimizer.pop("type"), **optimizer}
    chosen |= {key: plain[key] for key in ("batch_size", "shuffle", "drop_last")}
    for part, described in others.items():
        chosen |= {part: described.pop("type"), **described}
    return chosen
