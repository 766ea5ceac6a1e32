"""Finding a model with its weights on disk, and writing one ONNX file to deploy."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import backends
from export import build, card, crosscheck, isolation, seal
from export.session import EXTERNAL
from export.vectors import FLOAT32, PRECISION
from zoo import pretrained, registry, runs, weights
from zoo.errors import CheckFailed, DataError, InvalidInput
from zoo.model import Model, iter_weights
from zoo.specfile import parse_spec
from zoo.weights import Weights

GRAPHS = ("model.onnx", "native.onnx", "layers.onnx")  # of a run
LARGEST_ONNX = 2**31  # bytes, protobuf's own limit


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
            return Source(model, _weights_in(content, model, place), wish, files={wish: content})
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


def read_onnx(path: Path) -> tuple[Model, Weights]:
    """The model and weights that an ONNX file of the zoo carries; raises DataError, and InvalidInput if it
    is not float32."""
    return parse_onnx(onnx_bytes(path), path)


def read_model(path: Path) -> Model:
    """The model that an ONNX file of the zoo carries, whatever its precision; raises DataError."""
    return model_of(onnx_bytes(path), path)


def onnx_bytes(path: Path, whole: bool = False) -> bytes:
    """The content of an ONNX file, which nothing has parsed yet; raises DataError.

    whole: if it carries a hash of itself, it must have it.
    """
    try:
        if not path.is_file():
            raise DataError("no such ONNX file", path)
        if path.stat().st_size > LARGEST_ONNX:
            raise DataError("the ONNX file is larger than 2 GiB", path)
        if not isolation.looks_like_onnx(path):
            raise DataError("not an ONNX file", path)
        content = path.read_bytes()  # once: what is checked is what is used
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path) from None
    if EXTERNAL.search(content):
        raise DataError("the ONNX file keeps weights outside itself", path)
    told = seal.digest(content)
    if whole and told and told[0] != told[1]:
        wrong = ", ".join(seal.altered(content)[:3]) or "bytes altered outside every part"
        raise DataError(f"not as it was exported: {wrong}", path, "see zoo doctor; export it again")
    return content


def model_of(content: bytes, path: Path) -> Model:
    """The model that the content of an ONNX file carries.

    Raises DataError; of a file in float32 also if its weights are not those that it says it has.
    """
    if precision(content) == FLOAT32:
        return parse_onnx(content, path)[0]
    return _parsed(content, path)


def precision(content: bytes) -> str:
    """The precision that the content of an ONNX file says it has: "float32" unless it says another."""
    try:
        return seal.metadata(content).get(PRECISION, FLOAT32)
    except seal.Malformed:
        return FLOAT32


def _parsed(content: bytes, path: Path) -> Model:
    """The model that an ONNX file says it is."""
    try:
        metadata = seal.metadata(content)
    except seal.Malformed:
        raise DataError("not an ONNX file", path) from None
    if "zoo.spec" not in metadata:
        raise DataError("the ONNX file carries no spec of the zoo", path, "give one that the zoo exported")
    return registry.check_builtin(parse_spec(metadata["zoo.spec"].encode(), f"{path}: zoo.spec"), path)


def parse_onnx(content: bytes, path: Path) -> tuple[Model, Weights]:
    """The model and weights that the content of an ONNX file carries; raises DataError.

    Its graph may be another one: that is what `zoo verify` finds out. The weights have a hash of their own.
    Raises InvalidInput for a file in int8 or float16, which does not hold the weights that were trained.
    """
    model = _parsed(content, path)
    found = _weights_in(content, model, path)
    if weights.digest(found) != seal.metadata(content).get("zoo.weights_sha256"):
        raise DataError("the weights differ from the hash that the file carries", path)
    return model, found


def _weights_in(content: bytes, model: Model, path: Path) -> Weights:
    """The weights of a model in the content of an ONNX file, whatever hash it carries."""
    try:
        proto = onnx.load_from_string(content)
    except Exception:  # protobuf's DecodeError is not public
        raise DataError("not an ONNX file", path) from None
    if precision(content) != FLOAT32:
        raise InvalidInput(
            f"a file in {precision(content)[:20]} holds no trained weights, only rounded ones: the float64 "
            "reference does not judge it",
            path,
            "zoo doctor holds it to what it gave at export, zoo predict runs it; or name its float32 file",
        )
    names = {name for name, _ in iter_weights(model)}
    try:
        arrays = {}
        for tensor in proto.graph.initializer:
            name = tensor.name.removesuffix(".T")  # Keras' own export keeps dense weights transposed
            if name in names:
                array = numpy_helper.to_array(tensor)
                arrays[name] = array if name == tensor.name else np.ascontiguousarray(array.T)
    except Exception as error:  # onnx raises what it meets
        what = f"a tensor of the ONNX file is damaged: {type(error).__name__}: {error}"
        raise DataError(what, path) from None
    return weights.check(model, arrays, path)


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


@dataclass(frozen=True)
class Target:
    """What to write: which exporter's graph, of which backend, to which file.

    backend: whose native exporter; None for the run's own, else the first installed one.
    """

    path: Path
    exporter: str = "direct"
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.exporter not in build.EXPORTERS:
            raise InvalidInput(f"unknown exporter {self.exporter!r}", "--exporter", "direct or native")
        if self.backend is not None and not backends.trains(backends.canonical(self.backend)):
            raise InvalidInput(f"the backend {self.backend!r} exports nothing", "--backend")
        if not self.path.name or self.path.is_dir():
            raise InvalidInput("not the name of a file", str(self.path), "give a file name with -o")


def export(source: Source, target: Target, images: np.ndarray | None, told: str = "") -> dict[str, Any]:
    """Verify a model on images (N, C, H, W) in [0, 1], then write it; says what was written.

    images: None for noise and probes. told: what they are, in words.

    Raises CheckFailed, and writes nothing, if a witness disagrees.
    """
    name = None
    if target.exporter == "native":
        name = target.backend or source.backend or next(iter(backends.training_names()), "torch")
    report = crosscheck.verify(source.model, source.weights, [name] if name else [], images)
    for verdict in report.verdicts:
        if not verdict.passed:
            raise CheckFailed(build.failure(verdict), source.origin, "nothing was written")
    witness = report.verdict(crosscheck.native_name(name) if name else crosscheck.DIRECT)
    if witness.skipped or witness.output is None:
        raise InvalidInput(witness.skipped, "--exporter", "use --exporter direct")
    content = report.native[name] if name else report.onnx
    runs.write_atomically(target.path, content)
    model = source.model
    return {
        "path": str(target.path),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "weights": source.origin,
        "exporter": f"native {name}" if name else "direct",
        "opset": onnx.load_from_string(content).opset_import[0].version,
        "input": f"image float32 [batch, {', '.join(map(str, model.input_shape))}], pixels in [0, 1]",
        "output": f"{model.output} float32 [batch, {', '.join(map(str, model.output_shape))}]",
        "check": f"{witness.output} on {told or f'{report.images:,} images'}",
        "example": card.usage(str(target.path), model),
    }
