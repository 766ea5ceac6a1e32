"""The primitives against NumPy, SciPy, loops written out, and the spec's layers in every backend."""

from __future__ import annotations

import doctest
import inspect
import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

import backends
import zoo
from backends.testing.layer_table import model_of
from zoo import primitives
from zoo.errors import InvalidInput
from zoo.layers import AvgPool2d, Conv2d, Dense, Flatten, Layer, MaxPool2d, ReLU, Shape, Softmax
from zoo.network import Backend
from zoo.primitives import (
    MODES,
    PADDINGS,
    binary_cross_entropy,
    categorical_cross_entropy,
    convolve1d,
    convolve2d,
    correlate1d,
    correlate2d,
    max_pool,
    mean_pool,
    mse,
    output_size,
    pad,
    padding_for,
    relu,
    sigmoid,
    softmax,
)
from zoo.training import measures

LENGTHS = [(8, 5), (8, 4), (7, 2), (5, 5), (6, 6), (9, 1)]  # of input and kernel
SIZES = [((6, 7), (3, 3)), ((6, 7), (2, 4)), ((5, 5), (5, 4)), ((6, 5), (1, 2)), ((4, 4), (1, 1))]
NAN = float("nan")


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape)


def close(got: object, expected: object) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12, strict=True)


def test_the_examples_of_the_docstrings() -> None:
    assert doctest.testmod(primitives).failed == 0
    functions = [value for value in vars(primitives).values() if inspect.isfunction(value)]
    ours = {function.__name__ for function in functions if function.__module__ == primitives.__name__}
    found = doctest.DocTestFinder().find(primitives)
    shown = {test.name.rpartition(".")[2] for test in found if test.examples}
    assert shown == {name for name in ours if not name.startswith("_")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_one_dimension_against_numpy(n: int, m: int, mode: str) -> None:
    x, w = numbers(n), numbers(m + 20)[:m]
    close(convolve1d(x, w, mode), np.convolve(x, w, mode))
    expected = np.correlate(x, w, mode)
    if mode == "same" and m % 2 == 0:  # numpy.correlate has the odd zero at the near end
        expected = np.correlate(x, w, "full")[m // 2 :][:n]
    close(correlate1d(x, w, mode), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "kernel"), SIZES)
def test_two_dimensions_against_scipy(size: Shape, kernel: Shape, mode: str) -> None:
    x, w = numbers(*size), numbers(*kernel)
    close(convolve2d(x, w, mode), scipy.signal.convolve2d(x, w, mode))
    close(correlate2d(x, w, mode), scipy.signal.correlate2d(x, w, mode))


@pytest.mark.parametrize(("how", "boundary"), [("zero", "fill"), ("wrap", "wrap"), ("symmetric", "symm")])
@pytest.mark.parametrize("mode", ["full", "same"])
@pytest.mark.parametrize(("size", "kernel"), SIZES)
def test_borders_against_scipy(size: Shape, kernel: Shape, mode: str, how: str, boundary: str) -> None:
    x, w = numbers(*size), numbers(*kernel)
    (top, bottom), (left, right) = (padding_for(mode, m) for m in kernel)
    padded = pad(x, (top, left, bottom, right), how)
    close(correlate2d(padded, w, "valid"), scipy.signal.correlate2d(x, w, mode, boundary))
    padded = pad(x, (bottom, right, top, left), how)
    close(convolve2d(padded, w, "valid"), scipy.signal.convolve2d(x, w, mode, boundary))


@pytest.mark.parametrize(
    ("how", "theirs"),
    [
        ("zero", "constant"),
        ("edge", "nearest"),
        ("reflect", "mirror"),
        ("symmetric", "reflect"),
        ("wrap", "wrap"),
    ],
)
def test_every_border_against_another_library(how: str, theirs: str) -> None:
    x, w = numbers(6, 7), numbers(5, 3)
    expected = scipy.ndimage.correlate(x, w, mode=theirs)
    close(correlate2d(pad(x, (2, 1), how), w), expected)
    assert how in PADDINGS


def test_padding_is_told_in_three_ways() -> None:
    x = numbers(2, 3)
    assert pad(x, 1).shape == (4, 5)
    assert pad(x, (1, 0)).shape == (4, 3)
    np.testing.assert_array_equal(pad(x, (1, 2, 3, 4))[1:3, 2:5], x)
    assert pad(x, (1, 2, 3, 4)).shape == (6, 9)
    np.testing.assert_array_equal(pad([7], (1, 2)), [0, 7, 0, 0])


@pytest.mark.parametrize("mode", [*MODES, 0, 3, (1, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_a_stride_takes_every_so_many_outputs(mode: object, stride: int) -> None:
    for n, m in LENGTHS:
        x, w = numbers(n), numbers(m)
        for operation in (convolve1d, correlate1d):
            close(operation(x, w, mode, stride), operation(x, w, mode)[::stride])
    for size, kernel in SIZES:
        x, w = numbers(*size), numbers(*kernel)
        for operation in (convolve2d, correlate2d):
            close(operation(x, w, mode, (stride, 2)), operation(x, w, mode)[::stride, ::2])


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("p", [0, 2, (1, 3), (2, 0)])
def test_the_definition_written_out(p: object, s: int) -> None:
    x, w = numbers(8), numbers(5)
    before, after = (p, p) if isinstance(p, int) else p
    padded = [0.0] * before + list(x) + [0.0] * after
    expected = []
    i = 0
    while i + 5 <= len(padded):
        expected.append(math.fsum(padded[i + 4 - k] * w[k] for k in range(5)))
        i += s
    close(convolve1d(x, w, p, s), np.array(expected))
    assert output_size(8, 5, p, s) == len(expected)


def test_a_stride_of_four_sides_in_two_dimensions() -> None:
    x, w = numbers(5, 6), numbers(2, 3)
    padded = np.zeros((5 + 1 + 3, 6 + 2 + 4))
    padded[1:6, 2:8] = x
    expected = np.empty((4, 4))
    for i, j in product(range(4), range(4)):
        expected[i, j] = (padded[2 * i : 2 * i + 2, 3 * j : 3 * j + 3] * w[::-1, ::-1]).sum()
    close(convolve2d(x, w, (1, 2, 3, 4), (2, 3)), expected)


def test_where_the_printed_loops_go_wrong() -> None:
    """Their number of steps against the formula that stands beside them, and against the truth."""

    def steps_1d(n: int, s: int) -> int:
        return len(range(0, int(n / s), s))

    def steps_2d(n: int, m: int, p: int, s: int) -> int:
        return len(range(0, int((n + 2 * p - m) / s) + 1, s))

    assert steps_1d(8, 1) == output_size(8, 5, 2, 1) == len(convolve1d(numbers(8), numbers(5), 2, 1))
    assert (steps_1d(8, 2), output_size(8, 5, 2, 2)) == (2, 4)
    assert len(convolve1d(numbers(8), numbers(5), 2, 2)) == 4
    assert (steps_1d(8, 1), output_size(8, 5, 0, 1), output_size(8, 5, 4, 1)) == (8, 4, 12)
    assert steps_2d(4, 3, 0, 1) == output_size(4, 3, 0, 1) == 2
    assert (steps_2d(3, 3, 1, 2), output_size(3, 3, 1, 2)) == (1, 2)
    assert convolve2d(numbers(3, 3), numbers(3, 3), 1, 2).shape == (2, 2)


def test_the_documents_valid_is_the_middle_of_its_same() -> None:
    x, w = numbers(4, 4), numbers(3, 3)
    close(convolve2d(x, w, 0), convolve2d(x, w, "same")[1:-1, 1:-1])


def test_same_keeps_the_size_even_of_an_input_shorter_than_its_kernel() -> None:
    x, w = numbers(3), numbers(6)
    close(convolve1d(x, w, "same"), np.convolve(x, w, "full")[2:5])
    assert correlate2d(numbers(2, 3), numbers(5, 4), "same").shape == (2, 3)


@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 1), (3, 2), ((1, 3), (2, 1)), ((4, 2), None)])
def test_pooling_against_loops(size: object, stride: object) -> None:
    x = numbers(2, 3, 7, 6)
    h, w = (size, size) if isinstance(size, int) else size
    sh, sw = (h, w) if stride is None else (stride, stride) if isinstance(stride, int) else stride
    rows, columns = range(0, 7 - h + 1, sh), range(0, 6 - w + 1, sw)
    for pool, value in ((max_pool, np.max), (mean_pool, np.mean)):
        got = pool(x, size, stride)
        assert got.shape == (2, 3, len(rows), len(columns))
        for (a, i), (b, j) in product(enumerate(rows), enumerate(columns)):
            close(got[..., a, b], value(x[..., i : i + h, j : j + w], axis=(-2, -1)))
        close(pool(x[1, 2], size, stride), got[1, 2])


Case = tuple[Layer, Shape, Callable[..., np.ndarray]]
CASES: dict[str, Case] = {
    "conv": (Conv2d(1, (3, 2), bias=False), (1, 6, 7), lambda x, w: correlate2d(x[0], w[0, 0])[None]),
    "conv on four sides, stride": (
        Conv2d(1, (3, 4), (2, 3), (2, 0, 1, 3), bias=False),
        (1, 8, 9),
        lambda x, w: correlate2d(x[0], w[0, 0], (2, 0, 1, 3), (2, 3))[None],
    ),
    "conv on four sides, padded before": (
        Conv2d(1, 3, 2, (0, 1, 2, 3), bias=False),
        (1, 7, 6),
        lambda x, w: correlate2d(pad(x[0], (0, 1, 2, 3)), w[0, 0], "valid", 2)[None],
    ),
    "conv of channels": (
        Conv2d(2, 3, padding=1),
        (3, 5, 6),
        lambda x, w, b: np.stack(
            [b[o] + sum(correlate2d(x[c], w[o, c], "same") for c in range(3)) for o in range(2)]
        ),
    ),
    "max pool": (MaxPool2d(2), (2, 7, 6), lambda x: max_pool(x, 2)),
    "max pool overlapping": (MaxPool2d((3, 2), (2, 1)), (2, 8, 7), lambda x: max_pool(x, (3, 2), (2, 1))),
    "avg pool": (AvgPool2d(2), (2, 7, 6), lambda x: mean_pool(x, 2)),
    "avg pool overlapping": (AvgPool2d(3, 2), (2, 8, 7), lambda x: mean_pool(x, 3, 2)),
    "relu": (ReLU(), (2, 3, 4), relu),
}


def agrees(backend: Backend, layer: Layer, shape: Shape, primitive: Callable[..., np.ndarray]) -> None:
    model = model_of((layer,), shape)
    weights = zoo.init_weights(model, seed=4)
    images = numbers(2, *shape).astype(np.float32)
    got = backend.build(model, weights, "float64").activations(images)[model.walk()[0].path]
    close(got, np.stack([primitive(image, *weights.values()) for image in images]))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_layers_of_the_reference(case: Case) -> None:
    agrees(backends.load("reference"), *case)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_layers_of_every_backend(case: Case, backend: Backend) -> None:
    agrees(backend, *case)


def test_the_layers_of_a_backend_are_not_convolutions() -> None:
    layer, shape, _ = CASES["conv"]
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        agrees(
            backends.load("reference"), layer, shape, lambda x, w: convolve2d(x[0], w[0, 0], "valid")[None]
        )


def test_softmax_and_loss_of_every_backend(backend: Backend) -> None:
    """The layer Softmax, and the loss of the first training step, with logits and with probabilities."""
    images, labels = numbers(4, 1, 2, 3).astype(np.float32), np.array([2, 0, 1, 2])
    for end in ((), (Softmax(),)):
        model = model_of((Flatten(), Dense(3), *end), (1, 2, 3))
        network = backend.build(model, zoo.init_weights(model), "float64")
        inside, outputs = network.activations(images), network.predict(images)
        if end:
            close(inside["softmax1"], softmax(inside["dense1"]))
        losses: list[float] = []
        network.train_epoch(
            images, labels, np.arange(4), model.recipe, lambda _, loss, __, seen=losses: seen.append(loss)
        )
        close(losses[0], categorical_cross_entropy(outputs, np.eye(3)[labels], from_logits=True))


def test_the_loss_of_the_recipe() -> None:
    outputs, labels = 30 * numbers(20, 7), np.arange(20) % 7
    expected = categorical_cross_entropy(outputs, np.eye(7)[labels], from_logits=True)
    close(measures.cross_entropy(outputs, labels), expected)
    close(categorical_cross_entropy(softmax(outputs), np.eye(7)[labels]), expected)


def test_losses_against_their_formulas() -> None:
    p, y = sigmoid(numbers(4, 3)), (numbers(3, 4).T > 0).astype(float)
    close(binary_cross_entropy(p, y), -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
    close(binary_cross_entropy(numbers(4, 3), y, from_logits=True), binary_cross_entropy(p, y))
    close(mse(p, y), ((p - y) ** 2).sum() / y.size)
    soft = softmax(numbers(3, 4).T)
    q = softmax(numbers(4, 3))
    close(categorical_cross_entropy(q, soft), -(soft * np.log(q)).sum() / 4)
    close(categorical_cross_entropy(q[0], soft[0]), -(soft[0] * np.log(q[0])).sum())


def test_losses_at_their_ends() -> None:
    assert binary_cross_entropy([1, 0], [1, 0]) == 0
    assert binary_cross_entropy([0], [1]) == math.inf
    assert binary_cross_entropy([1], [0]) == math.inf
    assert binary_cross_entropy([math.inf, -math.inf], [1, 0], from_logits=True) == 0
    assert binary_cross_entropy([-1e5, 50], [0, 1], from_logits=True) == pytest.approx(math.exp(-50) / 2)
    assert binary_cross_entropy([1e-300], [0]) == pytest.approx(1e-300)
    assert categorical_cross_entropy([0, 1], [0, 1]) == 0
    assert categorical_cross_entropy([1, 0], [0, 1]) == math.inf
    assert categorical_cross_entropy([0, -math.inf], [1, 0], from_logits=True) == 0
    assert math.isnan(binary_cross_entropy([NAN], [1]))
    assert math.isnan(categorical_cross_entropy([NAN, 0.5], [1, 0]))


def test_nothing_overflows() -> None:
    with np.errstate(over="raise", invalid="raise"):
        close(softmax([1000, 0, -1000]), np.array([1.0, 0, 0]))
        close(softmax([[-1e300, 1e300]], axis=0), np.ones((1, 2)))
        close(sigmoid([-1e300, -2, 2, 1e300]), np.array([0, 1 / (1 + np.e**2), 1 / (1 + np.e**-2), 1]))
        assert categorical_cross_entropy([1e4, 0], [0, 1], from_logits=True) == 1e4


def test_nan_is_a_number_like_others() -> None:
    x = [[1, NAN], [2, 3]]
    assert np.isnan(correlate2d(x, [[1, 1]])).tolist() == [[True], [False]]
    assert np.isnan(max_pool(x, (1, 2))).tolist() == [[True], [False]]
    assert np.isnan(relu(x)).sum() == 1


def test_arguments_stay_as_they_are() -> None:
    x = numbers(4, 4)
    kept = x.copy()
    for result in (pad(x, 0), relu(x), softmax(x), max_pool(x, 1), correlate2d(x, [[1]])):
        result += 1
    np.testing.assert_array_equal(x, kept)
    assert correlate2d(np.ones((3, 3), np.uint8), -np.ones((2, 2), np.int8))[0, 0] == -4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: output_size(4, 7, 1), r"a window of 7 does not fit into 4 with 1 \+ 1 of padding; pad more"),
        (lambda: output_size(10, 3, 0, 0), r"0 is out of range \(stride\); give an integer of at least 1"),
        (lambda: output_size(10, 3, -1), r"-1 is out of range \(p\)"),
        (lambda: output_size(10, 3, 1.5), r"1\.5 is not an integer \(p\)"),
        (lambda: output_size(10, True), r"True is not an integer \(m\)"),
        (lambda: output_size(10, 3, (1, 2, 3)), r"\(1, 2, 3\) is not an amount.*give a number or \(before"),
        (
            lambda: padding_for("some", 3),
            "unknown mode 'some'.*did you mean 'same'. known: full, same, valid",
        ),
        (lambda: convolve1d([], [1]), r"x is empty: its shape is \(0,\)"),
        (lambda: convolve1d([1, 2], [[1]]), r"w has the shape \(1, 1\), but 1 dimensions are needed"),
        (lambda: correlate1d([1, 2], [1, 2, 3]), "a window of 3 does not fit into 2"),
        (lambda: correlate1d([1, 2], [1], "ful"), "unknown mode 'ful'.*did you mean 'full'"),
        (lambda: convolve1d(["1", "2"], [1]), "x holds <U1, not real numbers"),
        (lambda: convolve1d([1j], [1]), "x holds complex128, not real numbers"),
        (lambda: convolve2d([[1, 2], [3]], [[1]]), "x is ragged"),
        (lambda: convolve2d([1, 2], [[1]]), r"x has the shape \(2,\), but 2 dimensions are needed"),
        (lambda: convolve2d([[1]], [[1]], stride=(1, 0)), r"0 is out of range \(stride\)"),
        (lambda: convolve2d([[1]], [[1]], stride=(1, 1, 1)), "neither a number nor"),
        (lambda: convolve2d([[1]], [[1]], (1, 2, 3)), r"give a number, \(vertical, horizontal\) or \(top"),
        (lambda: correlate2d([[1]], [[1], [2]]), "a window of 2 does not fit into 1"),
        (lambda: pad([1], 1, "mirror"), "unknown padding 'mirror'.*known: zero, edge, reflect"),
        (lambda: pad(np.zeros((1, 1, 1)), 1), "but 1 or 2 dimensions are needed"),
        (lambda: max_pool([1, 2], 1), r"x has the shape \(2,\), not \(\.\.\., H, W\)"),
        (lambda: max_pool([[1]], 2), "a window of 2 does not fit into 1"),
        (lambda: mean_pool([[1]], "2"), "'2' is not an integer"),
        (lambda: softmax([1, 2], axis=1), r"there is no axis 1 in the shape \(2,\)"),
        (lambda: softmax(3.0), r"there is no axis -1 in the shape \(\)"),
        (lambda: mse([1, 2], [1]), r"predicted is \(2,\) and expected is \(1,\)"),
        (lambda: binary_cross_entropy([2.5], [1]), "predicted holds 2.5, outside 0 to 1.*from_logits=True"),
        (lambda: binary_cross_entropy([0.5], [-1]), "expected holds -1, outside 0 to 1"),
        (lambda: categorical_cross_entropy([[[1]]], [[[1]]]), r"the shape \(1, 1, 1\), not \(M,\) or"),
        (lambda: categorical_cross_entropy([-1, 2], [0, 1]), "predicted holds -1, outside 0 to 1"),
    ],
)
def test_bad_arguments_are_told(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()
