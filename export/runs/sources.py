"""Finding a model with its weights: a name, a spec file, a run folder or an ONNX file."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import backends
from export import crosscheck
from export.onnx.contents import model_of, onnx_bytes, parse_onnx, weights_in
from zoo import pretrained, runs, weights
from zoo.errors import DataError
from zoo.model import Model
from zoo.models import registry
from zoo.spec.file import parse_spec
from zoo.weights import Weights

GRAPHS = ("model.onnx", "native.onnx", "layers.onnx")  # of a run


@dataclass(frozen=True)
class Source:
    """A model, its weights, where they come from, and the run folder if they are a run's.

    files: the ONNX files found with the weights, by path: they claim to compute the model.
    """

    model: Model
    weights: Weights
    origin: str
    run: Path | None = None
    backend: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)


def find(
    text: str,
    wish: str | None,
    out: Path,
    seed: int,
    say: Callable[[str], None],
    backend: str | None = None,
    fall_back: bool = True,
) -> Source:
    """The model that `text` names (a name, spec file, run folder or ONNX file) with weights.

    wish: None, "pretrained", "init", a .safetensors or .onnx file or a run folder. Without a wish: what a run
    folder or ONNX file holds; the weights of the package; else the run of the model under `out`, of
    `backend` if several backends have one. Two runs are an InvalidInput that lists both; none are
    initial weights from `seed` if fall_back, otherwise a DataError.
    """
    if text.endswith(".onnx"):
        path = Path(text)
        content = onnx_bytes(path)
        if wish is None:
            model, inside = parse_onnx(content, path)
            return Source(model, inside, text, files={text: content})
        model = model_of(content, path)
    else:
        model, run = registry.resolve(text)
        if run is not None and wish is None:
            return _run(run, model)
    folder = backends.folder_name(backends.canonical(backend)) if backend else None
    if wish == "init":
        return _initial(model, seed)
    if wish == "pretrained" or (wish is None and pretrained.has(model)):
        return _pretrained(model)
    if wish is not None:
        place = Path(wish)
        if place.is_dir():
            return _run(place, model)
        if place.suffix == ".onnx":
            content = onnx_bytes(place)
            return Source(model, weights_in(content, model, place), wish, files={wish: content})
        return Source(model, weights.load(place, model), wish)
    found = runs.find(out, model.name, folder)
    if found is not None:
        return _run(found, model)
    if fall_back:
        say(f"{model.name}: no run under {out}, taking initial weights of seed {seed}")
        return _initial(model, seed)
    raise DataError(f"no run of {model.name}", out, f"run: zoo build {shlex.quote(text)}")


def _initial(model: Model, seed: int) -> Source:
    return Source(model, weights.init_weights(model, seed), f"initial weights, seed {seed}")


def _pretrained(model: Model) -> Source:
    """The weights of the package, with its ONNX file as a witness."""
    pretrained.require(model)
    files = {f"pretrained {model.name}.onnx": pretrained.onnx(model.name)}
    return Source(model, pretrained.weights(model), "pretrained", files=files)


def _run(path: Path, model: Model) -> Source:
    """The weights of a run, every file of which is as it was written."""
    run = runs.Run(path)
    run.recover()
    contents = {name: run.read(name) for name in (run.manifest() or {}).get("files", {})}
    if parse_spec(run.read("spec.json"), str(path)) != model:
        raise DataError(f"the run holds another model than {model.title}", path, "choose its own model")
    backend = run.read_json("report.json").get("backend")
    if not isinstance(backend, str) or "weights.safetensors" not in contents:
        raise DataError("not a run of the zoo", path, "build it again with --force")
    files = {str(path / name): contents[name] for name in GRAPHS if name in contents}
    values = weights.from_bytes(contents["weights.safetensors"], model, path / "weights.safetensors")
    return Source(model, values, str(path), path, backend, files)


def keep_report(source: Source, report: crosscheck.Report) -> None:
    """Write a verification as verify.json into the run that it was made of, if there is one."""
    if source.run is not None:
        text = json.dumps(report.to_dict(), indent=1) + "\n"
        with runs.Run(source.run).lock():
            runs.write_atomically(source.run / "verify.json", text.encode())


def keep_image(source: Source, report: crosscheck.Report, out: Path) -> Path | None:
    """Write the worst image that was found, float32 (1, C, H, W), as search.npy beside a run's other files.

    Where the weights are of no run, one that is beyond its limit goes to `out` / <model>.npy, others nowhere.
    None if nothing was written.
    """
    if report.worst_found is None or not (source.run or not report.worst_found[1].passed):
        return None
    content = io.BytesIO()
    np.save(content, report.worst_found[1].image[None], allow_pickle=False)
    if source.run is None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{source.model.name}.npy"
        runs.write_atomically(path, content.getvalue())
    else:
        path = source.run / "search.npy"
        with runs.Run(source.run).lock():
            runs.write_atomically(path, content.getvalue())
    return path


def images_of(path: Path, model: Model) -> np.ndarray:
    """The images of a .npy file that a model is to be verified on: float32 (N, C, H, W) in [0, 1]; raises
    DataError."""
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"no images: {str(error)[:100]}", path, "give a .npy file") from None
    if not isinstance(images, np.ndarray):
        raise DataError("several arrays, not one of images", path, "give a .npy file")
    if images.dtype != np.float32 or images.shape[1:] != model.input_shape or not len(images):
        found, wanted = (", ".join(map(str, shape)) for shape in (images.shape, model.input_shape))
        raise DataError(f"the images are {images.dtype} [{found}], not float32 [N, {wanted}]", path)
    if not ((images >= 0) & (images <= 1)).all():
        raise DataError("the images are not in [0, 1]", path)
    return images
