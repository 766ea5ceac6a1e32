"""Data sets: MNIST and other folders of IDX files, and the embedded `digits` that needs no network.

On disk the layout is torchvision's, `<folder>/MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte`
with or without .gz, so an existing torchvision folder is found and used. Images stay uint8
(N, 1, H, W) until a backend needs them; labels are int64 (N,). Files that a user supplies are
checked for structure, files that are downloaded for SHA-256 as well.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import download
from zoo.data.idx import FILES, read_idx
from zoo.errors import DataError, InvalidInput, MachineError, nearest
from zoo.model import Model
from zoo.randomness import permutation

CLASSES = 10


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, 1, H, W) with labels int64 (N,), as the data set divides them."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str = ""

    @cached_property
    def sha256(self) -> str:
        """A hash of every image and label, whatever file they came from."""
        total = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            total.update(f"{array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class Split:
    """The images of one training run. images: uint8, or float32 in [0, 1] after `as_float`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def as_float(self) -> Split:
        """The same images as float32 in [0, 1]."""
        parts = ("train_images", "validation_images", "test_images")
        return replace(self, **{part: to_float(getattr(self, part)) for part in parts})


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def split(dataset: Dataset, validation: int = 0, seed: int = 0, limit: int | None = None) -> Split:
    """Hold out `validation` training images at random, then keep the first `limit` of the rest.

    The split is a function of the seed alone. Validation and test images stay whole.
    """
    count = len(dataset.train_labels)
    if validation:
        order = permutation(seed, "split", count)
        train, held_out = order[: count - validation], order[count - validation :]
    else:
        train, held_out = np.arange(count), np.arange(0)
    train = train[:limit]
    return Split(
        dataset.train_images[train],
        dataset.train_labels[train],
        dataset.train_images[held_out],
        dataset.train_labels[held_out],
        dataset.test_images,
        dataset.test_labels,
    )


def only_test(dataset: Dataset) -> Split:
    """The test images alone, as a split that trains nothing."""
    none = split(dataset, 0, 0, limit=1)
    return replace(none, train_images=none.train_images[:0], train_labels=none.train_labels[:0])


def load(data: str = "auto", folder: str | Path | None = None, say: Callable[[str], None] = print) -> Dataset:
    """A data set by name ("auto", "mnist", "digits") or by the path of a folder of IDX files.

    folder: where MNIST lies or is downloaded to; see `data_folder`. say: gets lines for the user.
    "auto" is MNIST where it is on disk or can be downloaded, otherwise `digits` with a loud line.
    Raises InvalidInput for an unknown name, DataError for missing or corrupt files, MachineError
    where a download is impossible.
    """
    if data == "digits":
        return digits()
    if data in ("auto", "mnist"):
        try:
            root = data_folder(folder)
            found = find(root) or download.download(root, say)
        except MachineError as error:
            if data == "mnist":
                raise
            say(
                "NOTE: MNIST is neither on disk nor to be downloaded "
                f"({error.what}): using the 1,797 embedded `digits` instead"
            )
            return digits()
        return read_folder(found, "mnist", verify=_is_cache(root))
    path = Path(data)
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long, NUL
        exists = False
    if not exists:
        raise InvalidInput(
            f"unknown data set {data[:80]!r}",
            "--data",
            nearest(data[:80], ("auto", "mnist", "digits", "PATH")),
        )
    place = find(path)
    if place is None:
        raise DataError(
            "not a folder of IDX files",
            path,
            f"it needs {', '.join(FILES)}, each with or without .gz",
        )
    return read_folder(place, f"folder:{path.resolve().name}")


def present(folder: str | Path | None = None) -> list[Dataset]:
    """The data sets that can be used without a network."""
    try:
        place = find(data_folder(folder))
    except MachineError:
        place = None
    return [digits(), *([read_folder(place, "mnist")] if place else [])]


def describe(dataset: Dataset) -> dict[str, Any]:
    """A data set as JSON data: sizes, folder, hashes of its content and of its .gz files."""
    place = Path(dataset.source)
    files = {path.name: download.sha256(path) for path in sorted(place.glob("*ubyte*")) if path.is_file()}
    known = {f"{name}.gz": official.sha256 for name, official in download.MNIST_GZ.items()}
    return {
        "name": dataset.name,
        "train": len(dataset.train_labels),
        "test": len(dataset.test_labels),
        "image": list(dataset.train_images.shape[1:]),
        "sha256": dataset.sha256,
        "source": dataset.source,
        "files": {
            name: {"sha256": value, "official": known[name] == value if name in known else None}
            for name, value in files.items()
        },
    }


def check_fits(model: Model, dataset: Dataset) -> None:
    """Raise InvalidInput if the images or labels of a data set are not what a model takes."""
    if not model.labels:
        raise InvalidInput(
            f"{model.name} has no labels, so there is nothing to train it for or to score", "labels"
        )
    shape = dataset.train_images.shape[1:]
    if model.input_shape != shape:
        raise InvalidInput(
            f"{model.name} takes images of {model.input_shape}, the data has {shape}", "--data"
        )
    classes = 1 + int(max(dataset.train_labels.max(), dataset.test_labels.max()))
    if classes > len(model.labels):
        raise InvalidInput(
            f"{model.name} tells {len(model.labels)} classes apart, the data has {classes}", "--data"
        )


def data_folder(folder: str | Path | None = None) -> Path:
    """Where data sets live: `folder`, else ZOO_DATA, else the user's cache folder."""
    if folder:
        return Path(folder)
    if os.environ.get("ZOO_DATA"):
        return Path(os.environ["ZOO_DATA"])
    return cache_folder()


def cache_folder() -> Path:
    """The user's cache folder of the zoo; raises MachineError for a user without a home."""
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("cnn-zoo", appauthor=False))
    except RuntimeError:
        raise MachineError("there is no home folder", "HOME", "set HOME, or ZOO_DATA to a folder") from None


def _is_cache(root: Path) -> bool:
    try:
        return root == cache_folder()
    except MachineError:
        return False


def find(root: Path) -> Path | None:
    """The folder below root (itself, raw/ or MNIST/raw/) that holds all four IDX files, or None."""
    try:
        for place in (root / "MNIST" / "raw", root / "raw", root):
            if all(_file(place, name) for name in FILES):
                return place
    except OSError as error:
        raise MachineError(f"cannot look for data: {error.strerror}", root) from None
    return None


def _file(place: Path, name: str) -> Path | None:
    for path in (place / name, place / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def read_folder(place: Path, name: str, verify: bool = False) -> Dataset:
    """The data set in a folder of four IDX files; verify: hold .gz files to MNIST's SHA-256."""
    arrays = []
    for file in FILES:
        path = _file(place, file)
        if path is None:
            raise DataError(f"{file} is missing", place)
        if verify and path.suffix == ".gz" and download.sha256(path) != download.MNIST_GZ[file].sha256:
            raise DataError("the file was altered after its download", path, "delete it and try again")
        arrays.append(read_idx(path, dimensions=3 if "images" in file else 1))
    for images, labels, part in ((arrays[0], arrays[1], "train"), (arrays[2], arrays[3], "t10k")):
        if len(images) != len(labels):
            raise DataError(f"{len(images):,} {part} images and {len(labels):,} labels", place)
        if labels.max() >= CLASSES:
            raise DataError(f"a {part} label is {labels.max()}, outside 0..{CLASSES - 1}", place)
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(f"images of {arrays[0].shape[1:]} and of {arrays[2].shape[1:]}", place)
    train, train_labels, test, test_labels = arrays
    return Dataset(
        name,
        train[:, None],
        train_labels.astype(np.int64),
        test[:, None],
        test_labels.astype(np.int64),
        str(place),
    )


def digits() -> Dataset:
    """The embedded data set: 1,797 real scans of handwritten digits, brought to 1 x 28 x 28.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI), the 8 x 8
    images with 17 grey levels that scikit-learn ships as `load_digits`. They are enlarged to
    20 x 20 and centred in 28 x 28, as MNIST's digits are. A fixed random choice of 1,500 trains, the
    other 297 test; scans by one writer are in both parts.
    """
    place = Path(__file__).parents[1] / "digits"
    small = read_idx(place / "images-idx3-ubyte.gz", dimensions=3)
    labels = read_idx(place / "labels-idx1-ubyte.gz", dimensions=1).astype(np.int64)
    order = permutation(0, "digits", len(labels))
    images, labels = _enlarge(small)[order, None], labels[order]
    return Dataset("digits", images[:1500], labels[:1500], images[1500:], labels[1500:], str(place))


def _enlarge(small: np.ndarray) -> np.ndarray:
    """uint8 0..16 (N, 8, 8) -> uint8 0..255 (N, 28, 28), bilinear, in exact integer arithmetic."""
    weight = np.zeros((20, 8), dtype=np.int64)  # tenths: 8 / 20 = 4 / 10 source pixels a step
    for row in range(20):
        position = min(max(4 * row - 3, 0), 70)  # in tenths, pixel centres aligned
        weight[row, position // 10] += 10 - position % 10
        if position % 10:
            weight[row, position // 10 + 1] += position % 10
    hundredths = weight @ small.astype(np.int64) @ weight.T
    large = (hundredths * 255 + 800) // 1600
    return np.pad(large, ((0, 0), (4, 4), (4, 4))).astype(np.uint8)
