"""What others computed judges the reference, the backends and the export: nothing here was made by the zoo.

PyTorch's modules as onnx stores them, inputs and outputs, in float32; and the samples that torch tests its
own operators with, in float64 (`nox -s judges`).
"""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import node_cases
import numpy as np
import operator_samples
import pytest
from conftest import REQUIRED

from backends.process.client import Worker
from backends.reference.network import ReferenceNetwork
from export.crosscheck import judge_layers
from export.imports.judging import FLOAT64
from export.imports.reading import Read, Unsupported
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from zoo.layers import AdaptiveAvgPool2d, AvgPool2d, Conv2d, Layer, LeakyReLU, LocalResponseNorm, MaxPool2d

# Why no layers express the others, and which these are.
NOT_READ = {
    "its input has 5 dimensions, an image (N, C, H, W) has four": "AvgPool3d AvgPool3d_stride AvgPool3d_stride1_pad0_gpu_input BatchNorm3d_eval BatchNorm3d_momentum_eval Conv3d Conv3d_dilated Conv3d_dilated_strided Conv3d_groups Conv3d_no_bias Conv3d_stride Conv3d_stride_padding MaxPool3d MaxPool3d_stride MaxPool3d_stride_padding PReLU_3d PReLU_3d_multiparam",
    "no layer of the language": "ConvTranspose2d ConvTranspose2d_no_bias GLU GLU_dim LogSoftmax SELU log_softmax_dim3 log_softmax_lastdim operator_chunk operator_convtranspose operator_index operator_reduced_sum operator_reduced_sum_keepdim operator_repeat operator_repeat_dim_overflow operator_selu operator_symbolic_override",
    "a convolution in 1 dimensions": "Conv1d Conv1d_dilated Conv1d_groups Conv1d_pad1 Conv1d_pad1size1 Conv1d_pad2 Conv1d_pad2size1 Conv1d_stride",
    "a pool in 1 dimensions": "MaxPool1d MaxPool1d_stride MaxPool1d_stride_padding_dilation operator_maxpool",
    "a constant that has other than one number per channel or feature": "PoissonNLLLLoss_no_reduce operator_params",
    "a padding of mode reflect": "ReflectionPad2d operator_pad",
    "a reduction over other axes than height and width": "operator_reduced_mean operator_reduced_mean_keepdim",
    "an Unsqueeze without a batch": "AvgPool1d AvgPool1d_stride",
    "of several tensors": "operator_max operator_min",
    "Clip: a function of one number that is no layer": "operator_clip",
    "Exp: a function of one number that is no layer": "operator_exp",
    "Softplus: a function of one number that is no layer": "Softplus",
    "Sqrt: a function of one number that is no layer": "operator_sqrt",
    "a Div of functions of one number that is no layer": "Softsign",
    "a Flatten that takes the batch with it, or only a part of the image": "operator_view",
    "a Mul of functions of one number that is no layer": "operator_basic",
    "a Reshape of (9, 4, 4) to [1, 3, 3, 4, 4]": "PixelShuffle",
    "a padding of mode edge": "ReplicationPad2d",
    "a padding with 2": "ConstantPad2d",
    "a pool with dilation": "MaxPool2d_stride_padding_dilation",
    "a power with several exponents": "operator_pow",
    "a softmax of something that is no vector (N, features)": "softmax_functional_dim3",
    "an input that should come from the image does not": "operator_concat2",
    "batch normalisation of another number of channels": "BatchNorm1d_3d_input_eval",
    "its bias is computed from the image": "operator_addmm",
    "its input has 6 dimensions, an image (N, C, H, W) has four": "operator_permute2",
}

# torch's operators: how many samples are layers, and why how many others are none.
SAMPLES: dict[str, tuple[int, dict[str, int]]] = {
    "add": (10, {"no numbers": 1}),
    "cat": (5, {"no numbers": 3, "one tensor alone": 1}),
    "constant_pad_nd": (1, {"a padding with other numbers than 0": 34, "no numbers": 16}),
    "flatten": (6, {}),
    "mean": (20, {}),
    "mul": (8, {"no numbers": 1}),
    "nn.functional.adaptive_avg_pool2d": (10, {}),
    "nn.functional.avg_pool2d": (2, {"a divisor of its own": 5}),
    "nn.functional.batch_norm": (5, {"no numbers": 2, "statistics of the batch": 5}),
    "nn.functional.conv2d": (30, {}),
    "nn.functional.dropout": (9, {"a rate of 1": 3, "at random": 7}),
    "nn.functional.dropout2d": (6, {"a rate of 1": 2, "at random": 5}),
    "nn.functional.elu": (2, {"no numbers": 1}),
    "nn.functional.gelu": (8, {}),
    "nn.functional.hardsigmoid": (2, {"no numbers": 1}),
    "nn.functional.hardswish": (4, {}),
    "nn.functional.leaky_relu": (9, {}),
    "nn.functional.linear": (17, {"no numbers": 8}),
    "nn.functional.local_response_norm": (1, {"an even number of channels": 9, "no numbers": 1}),
    "nn.functional.max_pool2d": (360, {"a dilation": 360, "indices in addition": 720}),
    "nn.functional.pad": (1, {"a padding with other numbers than 0": 34, "no numbers": 16}),
    "nn.functional.prelu": (15, {"a negative slope": 6, "a slope for each channel": 3, "no numbers": 1}),
    "nn.functional.relu": (4, {}),
    "nn.functional.relu6": (2, {"no numbers": 1}),
    "nn.functional.silu": (2, {"no numbers": 1}),
    "sigmoid": (2, {"no numbers": 1}),
    "softmax": (6, {"no numbers": 1}),
    "tanh": (1, {}),
}


def read_cases() -> list[tuple[node_cases.Case, Read]]:
    """The cases that are read, with what they are read as."""
    found = []
    for case in node_cases.exported_cases():
        try:
            found.append((case, node_cases.read(case)))
        except Unsupported:
            continue
    return found


def excess(case: node_cases.Case, found: Read, outputs: np.ndarray) -> float:
    """How far outputs are from the stored ones, as a multiple of what is allowed.

    PyTorch computed in float32 what it stored, so it may differ from the exact outputs by the derived limit
    of the layers; whoever computes in float32 may do so once more.
    """
    images = node_cases.images(case, found)
    exact = list(judge_layers(ReferenceNetwork(found.model, found.weights), images).values())[-1]
    limit = exact.limit if outputs.dtype == np.float64 else 2 * exact.limit
    stored = case.expected.reshape(exact.output.shape)
    assert outputs.shape == stored.shape
    difference = np.abs(outputs.astype(np.float64) - stored)
    return float(np.divide(difference, limit, out=np.where(difference, np.inf, 0.0), where=limit > 0).max())


# What PyTorch computed, as onnx stores it


def test_every_exported_case_is_read_or_known_not_to_be() -> None:
    reasons = {}
    for case in node_cases.exported_cases():
        try:
            node_cases.read(case)
        except Unsupported as error:
            reasons[case.name] = "; ".join(map(node_cases.general, error.reasons))
    assert reasons == {name: reason for reason, names in NOT_READ.items() for name in names.split()}
    assert len(node_cases.exported_cases()) - len(reasons) == 36


def test_the_reference_and_the_export_give_what_pytorch_stored() -> None:
    wrong = {}
    for case, found in read_cases():
        images = node_cases.images(case, found)
        for who, outputs in (
            ("reference", ReferenceNetwork(found.model, found.weights).predict(images)),
            ("onnx", Session(serialize(to_onnx(found.model, found.weights))).predict(images)),
        ):
            if (ratio := excess(case, found, outputs)) > 1:
                wrong[f"{case.name} {who}"] = ratio
    assert not wrong


@pytest.mark.judges
def test_every_backend_gives_what_pytorch_stored(worker: Worker) -> None:
    wrong = {}
    for case, found in read_cases():
        outputs = worker.build(found.model, found.weights).predict(node_cases.images(case, found))
        assert outputs.dtype == np.float32
        if (ratio := excess(case, found, outputs)) > 1:
            wrong[case.name] = ratio
    assert not wrong


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("LeakyReLU", {"slope": 0.0100001}),
        ("Conv2d_padding", {"padding": (0, 0, 2, 2)}),
        ("Conv2d_strided", {"dilation": (1, 2), "padding": (0, 0, 0, 2)}),
        ("AvgPool2d", {"size": (2, 1), "stride": (2, 2)}),
        ("MaxPool2d", {"padding": (0, 0, 2, 2)}),
    ],
)
def test_a_wrong_layer_does_not_give_what_pytorch_stored(name: str, fault: dict[str, object]) -> None:
    case, found = next(pair for pair in read_cases() if pair[0].name == name)
    images = node_cases.images(case, found)
    assert excess(case, found, ReferenceNetwork(found.model, found.weights).predict(images)) <= 1
    layer = replace(found.model.layers[0], **fault)
    faulty = ReferenceNetwork(replace(found.model, layers=(layer,)), found.weights)
    assert excess(case, found, faulty.predict(images)) > 1
    assert excess(case, found, faulty.predict(images).astype(np.float32)) > 1


# torch's samples of its operators


@pytest.fixture(scope="module")
def samples() -> tuple[operator_samples.Sample, ...]:
    """The samples that are expressed."""
    project = Path(__file__).parents[2]
    tested = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    if REQUIRED is None:
        pytest.importorskip("torch")
        pytest.importorskip("expecttest")
    import torch

    if REQUIRED is None and f"torch=={torch.__version__.partition('+')[0]}" not in tested:
        pytest.skip(f"the samples are those of another torch than {torch.__version__}")
    return operator_samples.samples()[0]


def apart(sample: operator_samples.Sample, outputs: np.ndarray) -> float:
    """How far outputs are from the operator's, as a multiple of what is allowed.

    Both compute the same formula in float64: 1e-12 of the largest output (export.imports.judging).
    """
    assert outputs.dtype == np.float64
    assert outputs.shape == sample.expected.shape
    difference = float(np.abs(outputs - sample.expected).max())
    return difference / (FLOAT64 * float(np.abs(sample.expected).max())) if difference else 0.0


@pytest.mark.judges
def test_every_sample_is_expressed_or_known_not_to_be(samples: tuple[operator_samples.Sample, ...]) -> None:
    expressed = Counter(sample.operator for sample in samples)
    _, reasons = operator_samples.samples()
    assert {name: (expressed[name], others) for name, others in reasons.items()} == SAMPLES
    assert set(SAMPLES) == set(operator_samples.RULES)


@pytest.mark.judges
def test_the_reference_gives_what_the_operators_give(samples: tuple[operator_samples.Sample, ...]) -> None:
    wrong = [
        f"{sample.operator} {sample.model.layers}"
        for sample in samples
        if not apart(sample, ReferenceNetwork(sample.model, sample.weights).predict(sample.images)) <= 1
    ]
    assert not wrong


@pytest.mark.judges
def test_every_backend_gives_what_the_operators_give(
    samples: tuple[operator_samples.Sample, ...], worker: Worker
) -> None:
    wrong = [
        f"{sample.operator} {sample.model.layers}"
        for sample in samples
        if not apart(sample, worker.build(sample.model, sample.weights, "float64").predict(sample.images))
        <= 1
    ]
    assert not wrong


@pytest.mark.judges
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (LeakyReLU, {"slope": float(np.nextafter(np.float32(0.01), np.float32(1)))}),
        (LocalResponseNorm, {"alpha": 3.00001e-5}),
        (Conv2d, {"padding": (1, 2, 3, 2)}),
        (MaxPool2d, {"padding": (0, 0, 1, 0)}),
        (AvgPool2d, {"count_padding": False}),
        (AdaptiveAvgPool2d, {"size": (7, 5)}),
    ],
)
def test_a_wrong_layer_does_not_give_what_the_operator_gives(
    samples: tuple[operator_samples.Sample, ...], worker: Worker, kind: type[Layer], fault: dict[str, object]
) -> None:
    ratios = []
    for sample in samples:
        (layer,) = sample.model.layers[-1:]
        if isinstance(layer, kind):
            model = replace(sample.model, layers=(*sample.model.layers[:-1], replace(layer, **fault)))
            outputs = worker.build(model, sample.weights, "float64").predict(sample.images)
            if outputs.size == sample.expected.size:
                ratios.append(apart(sample, outputs.reshape(sample.expected.shape)))
            if len(ratios) == 5:
                break
    assert max(ratios) > 1
