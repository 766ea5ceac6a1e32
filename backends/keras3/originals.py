"""keras.applications' own models: where imported weights come from, and what they are judged against.

Nothing of the zoo's layers is used here: an `Original` computes what Keras computes. Its weights are
given layer by layer in the order in which they are used, in the zoo's layouts. A file of weights is HDF5:
it is opened in this worker process alone, and one that leads outside itself is refused first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from backends.keras3.quiet import keras, quietly
from zoo.errors import DataError, InvalidInput, NotSupported, nearest
from zoo.machine import version

NOISE = 4  # images
SIZES = {"Inception": 299, "Xception": 299, "NASNetLarge": 331}  # height and width; 224 otherwise
MOST_OBJECTS = 100_000  # groups and data sets of a file


class Original:
    """One of keras.applications, with its classifier."""

    def __init__(self, name: str, file: str | None, seed: int) -> None:
        """file: weights that Keras saved (.weights.h5 or .h5); None: Keras' own random ones from `seed`.

        Raises DataError if the file is none, leads outside itself or does not fit.
        """
        keras.utils.set_random_seed(seed % 2**32)
        known = [n for n in dir(keras.applications) if n[0].isupper()]
        if name not in known:
            raise InvalidInput(f"keras.applications has no {name!r}", "", nearest(name, known))
        self._make = getattr(keras.applications, name)
        self._size = next((size for start, size in SIZES.items() if name.startswith(start)), 224)
        self._model = self._built(self._size, "float32")
        if file is None:
            self._settle(seed)
        else:
            path = Path(file)
            check_hdf5(path)
            try:
                self._model.load_weights(path)
            except Exception as error:  # h5py and Keras each have their own
                text = " ".join(str(error).split())[:200]
                raise DataError(
                    f"the weights do not fit Keras' model: {type(error).__name__}: {text}", path
                ) from None

    def _settle(self, seed: int) -> None:
        """Give batch normalisations the statistics of noise. With those of a constructor, 0 and 1, most
        random networks give outputs that do not depend on the image: nothing could be seen of an error."""
        shape = (NOISE, self._size, self._size, 3)
        noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        for layer in self._model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0  # of the old ones
        self._model(noise, training=True)

    def _built(self, size: int, dtype: str) -> keras.Model:
        before = keras.config.dtype_policy().name
        keras.config.set_dtype_policy(dtype)
        try:
            # Without an input of its own it would take its images as float32 all the same.
            return self._make(weights=None, input_tensor=keras.Input((size, size, 3), dtype=dtype))
        finally:
            keras.config.set_dtype_policy(before)

    def layers(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """(kind, weights by canonical name) of each layer that has weights, in the order of their use."""
        for layer in self._model.layers:
            arrays = [np.asarray(weight) for weight in layer.get_weights()]
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                height, width, channels, multiplier = arrays[0].shape
                kernel = arrays[0].transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
                yield "conv", _named(kernel, arrays[1:])
            elif isinstance(layer, keras.layers.Conv2D):
                yield "conv", _named(arrays[0].transpose(3, 2, 0, 1), arrays[1:])
            elif isinstance(layer, keras.layers.Dense):
                yield "dense", _named(arrays[0].T, arrays[1:])
            elif isinstance(layer, keras.layers.BatchNormalization):
                names = ("weight", "bias", "running_mean", "running_var")  # gamma, beta and the running ones
                yield "batchnorm", dict(zip(names, arrays, strict=True))
            elif arrays:
                raise NotImplementedError(f"weights of a {type(layer).__name__}")

    def predict(self, images: np.ndarray, dtype: str) -> np.ndarray:
        """The model's output for images (N, C, H, W) as it takes them: preprocessed, (N, classes)."""
        size = images.shape[-1]
        model = self._model
        if (size, dtype) != (self._size, "float32"):
            model = self._built(size, dtype)
            model.set_weights(self._model.get_weights())
        given = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).astype(dtype)
        return np.asarray(model(given, training=False))

    def export(self) -> bytes:
        """Keras' own ONNX export of the model, with a symbolic batch; raises NotSupported."""
        if version("tf2onnx") is None:
            raise NotSupported("Keras' ONNX export needs tf2onnx", "", "pip install tf2onnx")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            self._model(np.zeros((1, self._size, self._size, 3), np.float32))  # Keras insists on a call
            with quietly():
                self._model.export(str(path), format="onnx", verbose=False, opset_version=18)
            if not path.is_file():
                raise NotSupported("Keras' ONNX export wrote no file")
            return path.read_bytes()

    def versions(self) -> dict[str, str]:
        """The versions of Keras and its engine."""
        engine = keras.backend.backend()
        return {name: version(name) or "" for name in ("keras", engine)}


def check_hdf5(path: Path) -> None:
    """Raise DataError if an HDF5 file is none, or leads to other files: links, external or virtual data."""
    seen = 0

    def look(group: h5py.Group) -> None:
        nonlocal seen
        for name in group:
            seen += 1
            if seen > MOST_OBJECTS:
                raise DataError(f"the file holds more than {MOST_OBJECTS:,} objects", path)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise DataError(f"the file holds a link, {group.name}/{name}", path)
            child = group[name]
            if isinstance(child, h5py.Group):
                look(child)
            elif not isinstance(child, h5py.Dataset):
                raise DataError(f"the file holds {child.name}, which is neither a group nor data", path)
            elif child.is_virtual or child.external:
                raise DataError(f"the file keeps {child.name} outside itself", path)

    try:
        with h5py.File(path, "r") as file:
            look(file)
    except RecursionError:
        raise DataError("groups in groups without end", path) from None
    except DataError:
        raise
    except Exception as error:  # h5py has many for a damaged file
        raise DataError(f"not a sound HDF5 file: {type(error).__name__}: {str(error)[:200]}", path) from None


def _named(weight: np.ndarray, bias: list[np.ndarray]) -> dict[str, np.ndarray]:
    named = {"weight": np.ascontiguousarray(weight)}
    return {**named, "bias": bias[0]} if bias else named


def original(name: str, file: str | None, seed: int) -> Original:
    """keras.applications.<name> with the weights of a file, or random ones."""
    if file is not None and not os.path.isfile(file):
        raise DataError("no such file of weights", file)
    return Original(name, file, seed)
