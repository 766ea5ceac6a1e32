"""The classics: their counts, their shapes, and that they can be shrunk and trained."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.crosscheck.inputs import probes
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from zoo.errors import InvalidSpec
from zoo.layers import BatchNorm, Concat, Normalize
from zoo.model import IMAGE, Model
from zoo.weights import Weights, init_weights

# As torchvision documents them for its models, and as the papers' layers add up for the others.
COUNTS = {
    "lenet-5": 61_706,
    "alexnet": 61_100_840,
    "vgg11-bn": 132_868_840,
    "googlenet": 6_624_904,
    "inception-block": 163_696,
    "resnet18": 11_689_512,
    "squeezenet1.1": 1_235_496,
    "densenet121": 7_978_856,
    "densenet121-keras": 7_978_856,
    "mobilenet-v2": 3_504_872,
    "mobilenet-v2-keras": 3_504_872,
}
SMALL = {name: 32 for name in COUNTS if name != "lenet-5"} | {
    "alexnet": 64, "inception-block": 5, "mobilenet-v2": 64, "mobilenet-v2-keras": 64,
}  # fmt: skip


def test_their_counts() -> None:
    assert {name: zoo.get(name).parameters for name in zoo.names("classic")} == COUNTS


def test_they_are_not_built_by_default() -> None:
    assert not set(zoo.names()) & set(COUNTS)
    assert zoo.names("all") == [*zoo.names(), *zoo.names("classic"), *zoo.names("modern")]


@pytest.mark.parametrize("name", COUNTS)
def test_a_classic_says_where_it_is_from_and_how_it_departs(name: str) -> None:
    model = zoo.get(name)
    assert model.document
    assert model.notes
    if model.labels:
        assert len(model.labels) == model.output_shape[0]


def alive(model: Model) -> Weights:
    """Weights with which the image matters to the last layer: initial ones, wider, and settled statistics."""
    weights = {
        key: 2 * array if key.endswith(".weight") and "batchnorm" not in key else array
        for key, array in init_weights(model).items()
    }
    images, tensors = probes(model, 16), {}
    network = ReferenceNetwork(model, weights)
    tensors[IMAGE] = images.astype(np.float64)
    for node, own in network.nodes:
        x = node.take(tensors)
        if isinstance(node.layer, BatchNorm):
            axes = (0, 2, 3)[: x.ndim - 1] if x.ndim == 4 else (0,)
            for name, values in (("running_mean", x.mean(axes)), ("running_var", x.var(axes))):
                weights[f"{node.path}.{name}"] = own[name] = values.astype(np.float32)
        tensors[node.path] = apply(node.layer, x, own)
    return weights


@pytest.mark.parametrize("name", [name for name in SMALL if zoo.get(name).parameters < 20_000_000])
def test_on_small_images_the_file_agrees_with_the_reference(name: str) -> None:
    model = zoo.get(name, size=SMALL[name])
    weights = alive(model)
    images = probes(model, 1)
    expected = ReferenceNetwork(model, weights).predict(images)
    assert np.ptp(expected, axis=0).max() > 1e-4 * np.abs(expected).max(), "the images must matter"
    found = Session(serialize(to_onnx(model, weights))).predict(images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


def test_parameters_of_a_classic() -> None:
    model = zoo.get("resnet18:size=28,channels=1,classes=10")
    assert model.input_shape == (1, 28, 28)
    assert model.output_shape == (10,)
    assert model.labels == tuple("0123456789")
    with pytest.raises(InvalidSpec, match="does not fit into the height 2"):
        zoo.get("alexnet", size=28)


def test_preprocessing_is_inside() -> None:
    first = zoo.get("resnet18").layers[0]
    assert isinstance(first, Normalize)
    np.testing.assert_allclose(first.mean, (0.485, 0.456, 0.406), rtol=1e-7)
    np.testing.assert_allclose(first.scale, 1 / np.array([0.229, 0.224, 0.225]), rtol=1e-7)
    symmetric = zoo.get("googlenet").layers[0]
    assert isinstance(symmetric, Normalize)
    assert (set(symmetric.mean), set(symmetric.scale)) == ({0.5}, {2.0})


def test_the_inception_block_joins_four_branches() -> None:
    (block,) = zoo.get("inception-block").layers
    assert isinstance(block, Concat)
    assert len(block.branches) == 4
    assert zoo.get("inception-block").output_shape == (256, 28, 28)
