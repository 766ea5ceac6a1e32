"""Canonical weights: one dictionary of float32 arrays that every backend takes and gives back.

Names are "<path>.<weight>", such as conv1.weight. Convolution kernels are (O, I, kh, kw), dense
weights (units, features), whose features follow a flatten in C, H, W order.

Initial values are a pure function of (seed, name), so that neither an inserted layer nor another
NumPy version moves them (zoo.randomness). They are stored as safetensors; nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from zoo.errors import DataError
from zoo.hashing import digest as digest
from zoo.layers import Flatten, Layer
from zoo.model import Model, iter_weights
from zoo.randomness import uniform

Weights = dict[str, np.ndarray]
LARGEST_FILE = 8 * 2**30  # bytes
LARGEST_HEADER = 2**22  # bytes; a tensor takes about a hundred


def init_weights(model: Model, seed: int = 0) -> Weights:
    """Initial weights as the documents' framework draws them, float32.

    Weights and biases are uniform in +-1 / sqrt(fan_in): Kaiming's uniform rule with a = sqrt(5)
    (He et al., 2015; PyTorch's Linear and Conv2d). Those with a start of their own have it.
    """
    result: Weights = {}
    for name, weight in iter_weights(model):
        if weight.start is not None:
            result[name] = np.full(weight.shape, weight.start, dtype=np.float32)
            continue
        draws = uniform(seed, name, int(np.prod(weight.shape)))
        bound = 1 / np.sqrt(weight.fan_in)
        result[name] = ((2 * draws - 1) * bound).astype(np.float32).reshape(weight.shape)
    return result


def check(model: Model, weights: Mapping[str, np.ndarray], where: object = "weights") -> Weights:
    """The weights as float32 in the model's order.

    Raises DataError, listing the first differences, if a tensor is missing, left over, of another
    shape or type, or not finite.
    """
    expected = {name: weight.shape for name, weight in iter_weights(model)}
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is not part of the model" for name in weights if name not in expected]
    for name, shape in expected.items():
        array = weights.get(name)
        if array is None:
            continue
        if array.shape != shape:
            wrong.append(f"{name} is {array.shape}, not {shape}")
        elif array.dtype != np.float32:
            wrong.append(f"{name} is {array.dtype}, not float32")
        elif not np.isfinite(array).all():
            wrong.append(f"{name} holds NaN or infinity")
        elif name.endswith(".running_var") and (array < 0).any():
            wrong.append(f"{name} holds a negative variance")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(
            f"weights do not fit {model.name}: {', '.join(wrong[:3])}{more}",
            where,
            "use weights that were saved for this model",
        )
    return {name: np.ascontiguousarray(weights[name]) for name in expected}


def isolate(model: Model, weights: Mapping[str, np.ndarray], path: str) -> tuple[Model, Weights]:
    """One layer, no join, as a model of its own, without labels, and its weights.

    The layer is called "layer" there. Where it takes a vector (features,), the model takes images
    (features, 1, 1) and flattens them first.
    """
    node = next(node for node in model.walk() if node.path == path)
    layers: tuple[Layer, ...] = (replace(node.layer, name="layer"),)
    shape = node.input_shape
    if len(shape) == 1:
        shape, layers = (*shape, 1, 1), (Flatten(), *layers)
    own = {
        f"layer.{weight.name}": weights[f"{path}.{weight.name}"]
        for weight in node.layer.weights(node.input_shape)
    }
    return Model(model.name, shape, layers, model.recipe, labels=()), own


def to_bytes(weights: Mapping[str, np.ndarray], about: Mapping[str, object] | None = None) -> bytes:
    """The weights as a safetensors file, with `about` as one JSON string in its header."""
    # One metadata key only: the order of several is not deterministic in safetensors.
    metadata = {"zoo": json.dumps(about, sort_keys=True)} if about else None
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    return bytes(safetensors.numpy.save(arrays, metadata=metadata))


def load(path: str | Path, model: Model) -> Weights:
    """The weights of a safetensors file, checked against the model; raises DataError."""
    path = Path(path)
    try:
        if not path.is_file():
            raise DataError("no such weights file", path, "give a .safetensors file")
        most = min(LARGEST_FILE, 8 * model.parameters + 2 * LARGEST_HEADER)  # float64 and the header
        if path.stat().st_size > most:
            raise DataError(f"the file has more than {most:,} bytes, too many for {model.name}", path)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the weights: {error.strerror}", path) from None
    return from_bytes(content, model, path)


def tensors(content: bytes, where: object) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file's content, of any kind; raises DataError.

    The header is looked at first: the library takes two tensors of one name, and any number of them.
    """
    size = int.from_bytes(content[:8], "little")
    if size > LARGEST_HEADER:
        raise DataError(f"not a sound safetensors file: a header of {size:,} bytes", where)
    try:
        json.loads(content[8 : 8 + size], object_pairs_hook=_no_name_twice)
        arrays: dict[str, np.ndarray] = safetensors.numpy.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not a sound safetensors file: {str(error)[:200]}", where) from None
    return arrays


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def from_bytes(content: bytes, model: Model, where: object = "weights") -> Weights:
    """The weights of a safetensors file's content, checked against the model; raises DataError."""
    return check(model, tensors(content, where), where)
