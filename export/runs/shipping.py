"""Writing the weights that come with the package (zoo/pretrained) from finished runs.

    python -m export.runs.shipping RUNS      take the runs RUNS/<model>/torch that are there
    python -m export.runs.shipping           export the shipped weights again, for a new version

A run is taken only as it was published: whole, checked, trained by the documented recipe on MNIST.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from zoo import pretrained, recipe, runs, weights
from zoo.errors import InvalidInput
from zoo.model import Model
from zoo.models import registry
from zoo.training import measures
from zoo.weights import Weights

BACKEND = "torch"  # the framework of the documents
GROUPS = (registry.DOCUMENTED, "modern")  # the models that come with weights


def ship(folder: Path, target: Path = pretrained.FOLDER) -> dict[str, Any]:
    """Write weights, ONNX files and index.json from runs; models without one keep what is shipped.

    Raises InvalidInput if a run is not the documented recipe on the whole of MNIST or there is none,
    DataError if it is damaged.
    """
    index = {}
    names = [name for group in GROUPS for name in registry.names(group)]
    if not any((folder / name / BACKEND).is_dir() for name in names):
        raise InvalidInput("no run of a model that comes with weights", folder)
    for name in names:
        model = registry.get(name)
        path = folder / name / BACKEND
        if not path.is_dir():
            index[name] = _again(name, target)
            continue
        run = runs.Run(path)
        report = run.read_json("report.json")
        data = (run.manifest() or {})["inputs"]["data"]
        if data["name"] != "mnist" or data["limit"] or report["epochs"] != model.recipe.epochs:
            raise InvalidInput("not the documented recipe on the whole of MNIST", path)
        values = weights.from_bytes(run.read("weights.safetensors"), model, path)
        low, high = measures.interval(report["accuracy"]["test"], report["data"]["test"])
        index[name] = {
            **_write(model, values, target),
            "backend": report["backend"],
            "seed": report["seed"],
            "epochs": report["epochs"],
            "recipe": recipe.to_dict(model.recipe),
            "data": report["data"],
            "accuracy": report["accuracy"],
            "interval": [round(low, 6), round(high, 6)],
            "loss": report["loss"],
            "warnings": report["warnings"],
            "threads": report["threads"],
            "versions": {key: value for key, value in report["versions"].items() if key != "cnn-zoo"},
        }
    return _write_index(index, target)


def export_again(target: Path = pretrained.FOLDER) -> dict[str, Any]:
    """Write the ONNX files and index.json from the weights that are there already."""
    return _write_index({name: _again(name, target) for name in pretrained.names()}, target)


def _again(name: str, target: Path) -> dict[str, Any]:
    model, values = pretrained.load(name)
    return {**pretrained.record(name), **_write(model, values, target)}


def _write(model: Model, values: Weights, target: Path) -> dict[str, Any]:
    contents = {
        "weights": (f"{model.name}.safetensors", weights.to_bytes(values, {"model": model.name})),
        "onnx": (f"{model.name}.onnx", serialize(to_onnx(model, values))),
    }
    for file, content in contents.values():
        runs.write_atomically(target / file, content)
    files = {
        what: {"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for what, (file, content) in contents.items()
    }
    return {**files, "weights_sha256": weights.digest(values)}


def _write_index(index: dict[str, Any], target: Path) -> dict[str, Any]:
    text = json.dumps(index, indent=1) + "\n"
    runs.write_atomically(target / pretrained.INDEX, text.encode())
    return index


if __name__ == "__main__":
    written = ship(Path(sys.argv[1])) if len(sys.argv) > 1 else export_again()
    for name, entry in written.items():
        print(f"{name:15} {entry['accuracy']['test']:.4f}  {entry['onnx']['bytes']:,} bytes")
