"""How many test images of MNIST are read right, as they are and changed as pictures change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.drawing import photographed
from export.predict import Predictor
from zoo import data, pretrained
from zoo.images.handwriting import to_mnist


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """One model for all: it is the way to MNIST's form that is measured here, and the bounds are of this one."""
    return Predictor(pretrained.onnx("convnet-deep"), "convnet-deep")


def resized(image: np.ndarray, side: int) -> np.ndarray:
    box = Image.Resampling.BOX if side < 28 else Image.Resampling.BICUBIC
    return np.clip(np.asarray(Image.fromarray(image.astype(np.float32)).resize((side, side), box)), 0, 1)


def thinned(image: np.ndarray) -> np.ndarray:
    fine = resized(image, 280)
    for _ in range(6):
        edges = np.pad(fine, 1, mode="edge")
        fine = np.minimum.reduce([edges[:-2, 1:-1], edges[2:, 1:-1], edges[1:-1, :-2], edges[1:-1, 2:], fine])
    return fine


# change, least accuracy, one image of how many: to find a digit in a photograph takes the longest
CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, int]] = {
    "as it is": (lambda image: image, 0.98, 25),
    "inverted": (lambda image: 1 - image, 0.98, 25),
    "four pixels off": (lambda image: np.roll(image, (4, 4), (0, 1)), 0.97, 25),
    "at half size": (lambda image: np.pad(resized(image, 14), ((3, 40), (30, 5))), 0.94, 25),
    "ten times as large": (lambda image: 1 - resized(image, 280), 0.975, 25),
    "thin": (lambda image: 1 - thinned(image), 0.94, 25),
    "photographed": (lambda image: photographed(np.pad(resized(image, 300), 150), 3), 0.96, 100),
}


@pytest.mark.mnist
@pytest.mark.parametrize("change", CHANGES)
def test_accuracy_on_mnist(change: str, mnist_folder: Path, predictor: Predictor) -> None:
    dataset = data.read_folder(mnist_folder, "mnist")
    function, least, step = CHANGES[change]
    every = slice(None, None, step)
    labels = dataset.test_labels[every]
    images = [to_mnist(function(image / 255)) for image in dataset.test_images[every, 0].astype(np.float64)]
    right = [said.label == str(label) for said, label in zip(predictor.predict(images), labels, strict=True)]
    assert np.mean(right) >= least
