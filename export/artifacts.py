"""Finding a model with its weights on disk, and writing one ONNX file to deploy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

import backends
from export import build, card, crosscheck
from export.graph import OPSET
from zoo import registry, runs, weights
from zoo.errors import CheckFailed, DataError, InvalidInput, ZooError
from zoo.model import Model, from_dict, iter_weights, load_spec
from zoo.weights import Weights

LARGEST_ONNX = 2**31  # bytes, protobuf's own limit


@dataclass(frozen=True)
class Source:
    """A model, its weights, where they come from, and the run folder if they are a run's."""

    model: Model
    weights: Weights
    origin: str
    run: Path | None = None
    backend: str | None = None


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

    wish: None, "init", "pretrained", a .safetensors file or a run folder. Without a wish the run
    of the model under `out` is taken (of `backend`, if given); two are an InvalidInput that lists
    both; none are initial weights from `seed` if fall_back, otherwise a DataError.
    """
    path = Path(text)
    model: Model
    if text.partition(":")[0] in registry.names("all"):
        model = registry.get(text)
    elif text.endswith(".onnx"):
        model, inside = read_onnx(path)
        if wish is None:
            return Source(model, inside, str(path))
    elif path.is_dir():
        model = _run_spec(path)
        wish = wish or text
    elif path.exists():
        model = registry.check_builtin(load_spec(path), path)
    else:
        model = registry.get(text)
    if wish == "init":
        return Source(model, weights.init_weights(model, seed), f"initial weights, seed {seed}")
    if wish == "pretrained":
        raise DataError(f"no pretrained weights of {model.name} are shipped", "--weights", "build it")
    if wish is not None:
        place = Path(wish)
        return _run(place, model) if place.is_dir() else Source(model, weights.load(place, model), wish)
    names = [backend] if backend else backends.names()
    found = [out / model.name / backends.folder_name(name) for name in names]
    found = [place for place in found if (place / runs.MANIFEST).is_file()]
    if len(found) > 1:
        listed = " or ".join(str(place) for place in found)
        raise InvalidInput(f"two runs of {model.name}", listed, "choose one with --weights")
    if found:
        return _run(found[0], model)
    if fall_back:
        say(f"{model.name}: no run under {out}, taking initial weights of seed {seed}")
        return Source(model, weights.init_weights(model, seed), f"initial weights, seed {seed}")
    raise DataError(f"no run of {model.name}", out, f"run: zoo build {text}")


def _run_spec(path: Path) -> Model:
    run = runs.Run(path)
    run.read("spec.json")  # its hash
    return load_spec(path / "spec.json")


def _run(path: Path, model: Model) -> Source:
    if _run_spec(path) != model:
        raise DataError(f"the run holds another model than {model.title}", path, "choose its own model")
    run = runs.Run(path)
    run.read("weights.safetensors")  # its hash, before the parser sees it
    report = json.loads(run.read("report.json"))
    return Source(
        model, weights.load(path / "weights.safetensors", model), str(path), path, report["backend"]
    )


def read_onnx(path: Path) -> tuple[Model, Weights]:
    """The model and weights that an ONNX file of the zoo carries; raises DataError."""
    try:
        if not path.is_file():
            raise DataError("no such ONNX file", path)
        if path.stat().st_size > LARGEST_ONNX:
            raise DataError("the ONNX file is larger than 2 GiB", path)
        proto = onnx.load_from_string(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path) from None
    except ZooError:
        raise
    except Exception:  # protobuf's DecodeError is not public
        raise DataError("not an ONNX file", path) from None
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if "zoo.spec" not in metadata:
        raise DataError("the ONNX file carries no spec of the zoo", path, "give one that the zoo exported")
    try:
        model = from_dict(json.loads(metadata["zoo.spec"]), f"{path}: zoo.spec")
    except (ValueError, RecursionError):
        raise DataError("the spec in the ONNX file is not JSON", path) from None
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise DataError("the ONNX file keeps weights outside itself", path)
    names = {name for name, _ in iter_weights(model)}
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in names}
    found = weights.check(model, arrays, path)
    if weights.digest(found) != metadata.get("zoo.weights_sha256"):
        raise DataError("the weights differ from the hash that the file carries", path)
    return model, found


def keep_report(source: Source, report: crosscheck.Report) -> None:
    """Write a verification as verify.json into the run that it was made of, if there is one."""
    if source.run is not None:
        text = json.dumps(report.to_dict(), indent=1) + "\n"
        runs.write_atomically(source.run / "verify.json", text.encode())


def export(
    source: Source, exporter: str, images: np.ndarray, path: Path, backend: str | None = None
) -> dict[str, Any]:
    """Verify a model on images, then write it to `path`; says what was written.

    exporter: "direct", or "native" for the exporter of `backend` (else of the run's backend, else
    of the first installed one). Raises CheckFailed, and writes nothing, if a witness disagrees.
    """
    if exporter not in build.EXPORTERS:
        raise InvalidInput(f"unknown exporter {exporter!r}", "--exporter", "direct or native")
    name = None
    if exporter == "native":
        name = backend or source.backend or next(iter(backends.training_names()), "torch")
    report = crosscheck.verify(source.model, source.weights, [name] if name else [], images)
    for verdict in report.verdicts:
        if not verdict.passed:
            raise CheckFailed(build.failure(verdict), source.origin, "nothing was written")
    witness = report.verdict(crosscheck.native_name(name) if name else crosscheck.DIRECT)
    if witness.skipped or witness.output is None:
        raise InvalidInput(witness.skipped, "--exporter", "use --exporter direct")
    content = report.native[name] if name else report.onnx
    runs.write_atomically(path, content)
    model = source.model
    return {
        "path": str(path),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "weights": source.origin,
        "exporter": f"native {name}" if name else "direct",
        "opset": OPSET,
        "input": f"image float32 [batch, {', '.join(map(str, model.input_shape))}], pixels in [0, 1]",
        "output": f"{model.output} float32 [batch, {len(model.labels)}]",
        "check": f"{witness.output} on {len(images):,} images",
        "example": card.usage(str(path), model),
    }
