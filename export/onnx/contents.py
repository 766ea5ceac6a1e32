"""What an ONNX file of the zoo holds: its model and its weights, read strictly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from export.inference import operators, seal
from export.inference.session import EXTERNAL
from export.inference.vectors import FLOAT32, PRECISION
from zoo import weights
from zoo.errors import DataError, InvalidInput
from zoo.model import Model, iter_weights
from zoo.models import registry
from zoo.spec.file import parse_spec
from zoo.weights import Weights

LARGEST_ONNX = 2**31  # bytes, protobuf's own limit


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
        if not operators.looks_like_onnx(path):
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
    found = weights_in(content, model, path)
    if weights.digest(found) != seal.metadata(content).get("zoo.weights_sha256"):
        raise DataError("the weights differ from the hash that the file carries", path)
    return model, found


def weights_in(content: bytes, model: Model, path: Path) -> Weights:
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
