"""What a CNN is made of, in NumPy: convolution, pooling, softmax and losses, one formula each.

Everything takes numbers as lists or arrays, computes in float64 and returns new arrays; errors are
InvalidInput. The functions are definitions to read and to check other code against.

Convolution flips the kernel, correlation does not. Mathematics and signal processing convolve;
what deep learning calls a convolutional layer correlates (zoo.layers.Conv2d). With learned kernels
the difference is only a name, with a kernel written by hand it is a picture turned round.

`mode` says how many zeros stand around an input of n elements, for a kernel of m:

| mode    | zeros at either end | output at stride 1 | there is an output wherever       |
|---------|---------------------|--------------------|-----------------------------------|
| "valid" | none                | n - m + 1          | the whole kernel lies on inputs   |
| "same"  | half of m - 1       | n                  | the kernel's centre lies on one   |
| "full"  | m - 1               | n + m - 1          | any part of the kernel lies on one|

For an even kernel "same" has one zero more at one end: at the far end for correlation, as PyTorch,
Keras and SciPy's correlate2d have it, and at the near end for convolution, as NumPy's convolve and
SciPy's convolve2d have it (flipping a kernel flips its padding). numpy.correlate and scipy.signal.correlate
put it at the near end. "same" depends on the kernel alone: at stride s it gives every s-th output of
stride 1, where TensorFlow's "SAME" moves the zeros with stride and input. An input shorter than its
kernel keeps its own size, where NumPy would exchange the two. `mode` may also be the zeros themselves.

Text 002 ("Notebook 1A, CNN") prints naive loops for the two convolutions. What they get wrong:
- `conv1d` steps through range(0, int(n / s), s): the end is already a number of outputs, yet it is
  taken in strides again. n = 8, m = 5, p = 2, s = 2 gives 2 outputs; the text's own formula gives 4.
- The end of that range ignores p, so even at stride 1 it is right for p = (m - 1) / 2 alone: less
  padding runs off the input (an error, or a wrong last output), more leaves outputs out.
- `conv2d` steps through range(0, int((n - m) / s) + 1, s), with the same fault: the 3 x 3 example of
  the text, with p = 1 and s = 2, gives one output and not the 2 x 2 of its figure.
- It prints conv2d with p = (0, 0), which is "valid", beside SciPy's mode="same" and leaves it at
  that: 2 x 2 beside 4 x 4, of which it is the middle.
- Its formula y[i] = sum x[i + m - k] w[k] counts k from 0, and so needs i + m - 1 - k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from zoo.errors import InvalidInput, nearest

Array = NDArray[np.float64]
Amount = int | Sequence[int]
Mode = str | Amount

MODES = ("full", "same", "valid")
PADDINGS = {  # name here -> numpy.pad's mode
    "zero": "constant",
    "edge": "edge",
    "reflect": "reflect",
    "symmetric": "symmetric",
    "wrap": "wrap",
}


def output_size(n: int, m: int, p: Amount = 0, s: int = 1) -> int:
    """How many outputs a window has on its way along an input: floor((n + 2p - m) / s) + 1.

    n: elements of the input. m: of the kernel or window. p: zeros at either end, or (before, after).
    s: stride. Raises InvalidInput if the window does not fit.

    >>> output_size(n=10, m=5, p=2, s=1)
    10
    >>> output_size(n=28, m=3, p=0, s=2)
    13
    """
    n, m, s = _integer(n, "n", 1), _integer(m, "m", 1), _integer(s, "stride", 1)
    before, after = _sides(p, 1, "p")[0]
    if m > n + before + after:
        padded = f" with {before} + {after} of padding" if before + after else ""
        raise InvalidInput(f"a window of {m} does not fit into {n}{padded}", "", "pad more")
    return (n + before + after - m) // s + 1


def padding_for(mode: str, m: int) -> tuple[int, int]:
    """The zeros (before, after) that a mode puts around the input of a correlation.

    m: elements of the kernel along the axis. For a convolution the two are exchanged.

    >>> padding_for("same", 5), padding_for("same", 4), padding_for("full", 4)
    ((2, 2), (1, 2), (3, 3))
    """
    m = _integer(m, "m", 1)
    if mode not in MODES:
        raise InvalidInput(f"unknown mode {mode!r}", "mode", nearest(str(mode), MODES))
    return {"full": (m - 1, m - 1), "same": ((m - 1) // 2, m // 2), "valid": (0, 0)}[mode]


def pad(x: ArrayLike, amount: Amount, how: str = "zero") -> Array:
    """x (n,) or (H, W) with a border.

    amount: elements on every side; of a vector also (before, after), of a matrix (vertical,
    horizontal) or (top, left, bottom, right). how, beyond the last element d of a b c d:
    "zero" 0 0 0, "edge" d d d, "reflect" c b a, "symmetric" d c b, "wrap" a b c.

    >>> pad([1, 2, 3], 2, "reflect")
    array([3., 2., 1., 2., 3., 2., 1.])
    >>> pad([[5]], (0, 1, 0, 2))
    array([[0., 5., 0., 0.]])
    """
    x = _array(x, "x", (1, 2))
    if how not in PADDINGS:
        raise InvalidInput(f"unknown padding {how!r}", "how", nearest(str(how), PADDINGS))
    return np.pad(x, _sides(amount, x.ndim, "amount"), mode=PADDINGS[how])  # type: ignore[call-overload]


def correlate1d(x: ArrayLike, w: ArrayLike, mode: Mode = "valid", stride: int = 1) -> Array:
    """y[i] = sum over k of xp[i * stride + k] * w[k], with xp the padded x: the kernel slides as it is.

    x: (n,). w: (m,). mode: "full", "same", "valid", or zeros: a number or (before, after).
    Gives (output_size(n, m, zeros, stride),).

    >>> correlate1d([1, 3, 2, 4], [1, 0, -1])
    array([-1., -1.])
    """
    x, w = _array(x, "x", (1,)), _array(w, "w", (1,))
    sides = _zeros(mode, w.shape)
    output_size(x.size, w.size, sides[0], stride)
    return sliding_window_view(np.pad(x, sides), w.size)[::stride] @ w


def convolve1d(x: ArrayLike, w: ArrayLike, mode: Mode = "full", stride: int = 1) -> Array:
    """y[i] = sum over k of x[i - k] * w[k]: a correlation with the kernel back to front.

    Shapes and modes as for `correlate1d`; numpy.convolve where the kernel is not the longer one.

    >>> convolve1d([1, 3, 2, 4, 5, 6, 1, 3], [1, 0, 3, 1, 2], mode="same")
    array([ 5., 14., 16., 26., 24., 34., 19., 22.])
    >>> convolve1d([1, 3, 2, 4, 5, 6, 1, 3], [1, 0, 3, 1, 2], mode="same", stride=2)
    array([ 5., 16., 24., 19.])
    """
    x, w = _array(x, "x", (1,)), _array(w, "w", (1,))
    ((before, after),) = _zeros(mode, w.shape)
    return correlate1d(x, w[::-1], (after, before) if isinstance(mode, str) else mode, stride)


def correlate2d(x: ArrayLike, w: ArrayLike, mode: Mode = "valid", stride: Amount = 1) -> Array:
    """y[i, j] = sum over k, l of xp[i * sh + k, j * sw + l] * w[k, l]: one channel of a CNN's layer.

    x: (H, W). w: (kh, kw). mode: "full", "same", "valid", or zeros: a number, (vertical, horizontal)
    or (top, left, bottom, right). stride: (sh, sw) or one number for both.
    Gives (output_size(H, kh, ...), output_size(W, kw, ...)).

    >>> correlate2d([[1, 2, 3], [4, 5, 6]], [[0, 1], [1, 0]])
    array([[6., 8.]])
    """
    x, w = _array(x, "x", (2,)), _array(w, "w", (2,))
    sides = _zeros(mode, w.shape)
    sh, sw = _pair(stride, "stride")
    for n, m, zeros, s in zip(x.shape, w.shape, sides, (sh, sw), strict=True):
        output_size(n, m, zeros, s)
    windows = sliding_window_view(np.pad(x, sides), w.shape)[::sh, ::sw]
    return np.einsum("ijkl,kl->ij", windows, w)


def convolve2d(x: ArrayLike, w: ArrayLike, mode: Mode = "full", stride: Amount = 1) -> Array:
    """y[i, j] = sum over k, l of x[i - k, j - l] * w[k, l]: a correlation with the kernel turned by
    half a turn, w[::-1, ::-1] (which is not its transpose).

    Shapes and modes as for `correlate2d`; scipy.signal.convolve2d at stride 1.

    >>> x = [[1, 3, 2, 4], [5, 6, 1, 3], [1, 2, 0, 2], [3, 4, 3, 2]]
    >>> w = [[1, 0, 3], [1, 2, 1], [0, 1, 1]]
    >>> convolve2d(x, w, mode="valid")
    array([[25., 24.],
           [28., 25.]])
    >>> convolve2d(x, w, mode="same")
    array([[11., 25., 32., 13.],
           [19., 25., 24., 13.],
           [13., 28., 25., 17.],
           [11., 17., 14.,  9.]])
    """
    x, w = _array(x, "x", (2,)), _array(w, "w", (2,))
    if isinstance(mode, str):
        (top, bottom), (left, right) = _zeros(mode, w.shape)
        mode = (bottom, right, top, left)
    return correlate2d(x, w[::-1, ::-1], mode, stride)


def max_pool(x: ArrayLike, size: Amount, stride: Amount | None = None) -> Array:
    """The largest element of every window.

    x: (H, W), or (..., H, W) for several maps at once. size: (h, w) or one number for both. stride:
    likewise; size unless given, so that windows do not overlap. A smaller stride makes them overlap.
    Gives (..., output_size(H, h, 0, sh), output_size(W, w, 0, sw)): what is left over at the far
    ends is dropped.

    >>> max_pool([[1, 3, 2, 4], [5, 6, 1, 3], [1, 2, 0, 2], [3, 4, 3, 2]], 2)
    array([[6., 4.],
           [4., 3.]])
    """
    return _pooling_windows(x, size, stride).max(axis=(-2, -1))


def mean_pool(x: ArrayLike, size: Amount, stride: Amount | None = None) -> Array:
    """The mean of every window (average pooling). Arguments and shapes as for `max_pool`.

    >>> mean_pool([[1, 3, 2, 4], [5, 6, 1, 3], [1, 2, 0, 2]], size=3, stride=1)
    array([[2.33333333, 2.55555556]])
    """
    return _pooling_windows(x, size, stride).mean(axis=(-2, -1))


def relu(x: ArrayLike) -> Array:
    """max(x, 0), element by element, for x of any shape.

    >>> relu([-2, 0, 3])
    array([0., 0., 3.])
    """
    return np.maximum(_array(x, "x"), 0)


def sigmoid(x: ArrayLike) -> Array:
    """1 / (1 + exp(-x)), element by element, for x of any shape. No x overflows.

    >>> sigmoid([0, 800])
    array([0.5, 1. ])
    """
    return np.exp(-np.logaddexp(0, -_array(x, "x")))


def softmax(z: ArrayLike, axis: int = -1) -> Array:
    """exp(z) / sum of exp(z) along an axis: logits of any shape become probabilities.

    The largest z of each row is taken off first. That changes nothing in the quotient and keeps
    exp from overflowing, as it does in the text's exp(z) / sum(exp(z)) from z = 710 on.

    >>> softmax([1, 2, 3, 4, 1, 2, 3]).round(4)
    array([0.0236, 0.0643, 0.1747, 0.4748, 0.0236, 0.0643, 0.1747])
    >>> softmax([1000, 1000])
    array([0.5, 0.5])
    """
    return np.exp(_log_softmax(_array(z, "z"), axis))


def mse(predicted: ArrayLike, expected: ArrayLike) -> float:
    """The mean of (predicted - expected)^2 over all elements, for two arrays of one shape.

    Text 002 has a half and no mean in its formula, 1/2 (predicted - expected)^2, and the mean without
    the half in its code. This is the code; the gradient of the other is a multiple of its gradient.

    >>> mse([1, 2, 4, 8], [1, 2, 2, 8])
    1.0
    """
    predicted, expected = _pair_of_arrays(predicted, expected)
    return float(np.mean((predicted - expected) ** 2))


def binary_cross_entropy(predicted: ArrayLike, expected: ArrayLike, *, from_logits: bool = False) -> float:
    """The mean of -(y log p + (1 - y) log(1 - p)) over all elements: every output is a question of
    its own, answered yes or no.

    predicted: p in [0, 1], any shape; with from_logits z, where p = sigmoid(z), which keeps its
    digits where p rounds to 0 or 1. expected: y in [0, 1], same shape.
    0 log 0 is 0: being certain and right costs nothing, certain and wrong costs infinity.

    >>> round(binary_cross_entropy([0.9, 0.2], [1, 0]), 6)
    0.164252
    >>> binary_cross_entropy([-800], [1], from_logits=True)
    800.0
    """
    predicted, expected = _pair_of_arrays(predicted, expected)
    _check_fractions(expected, "expected")
    if from_logits:
        yes, no = np.logaddexp(0, -predicted), np.logaddexp(0, predicted)
    else:
        _check_fractions(predicted, "predicted")
        with np.errstate(divide="ignore"):
            yes, no = -np.log(predicted), -np.log1p(-predicted)
    return float(np.mean(_weighted(expected, yes) + _weighted(1 - expected, no)))


def categorical_cross_entropy(
    predicted: ArrayLike, expected: ArrayLike, *, from_logits: bool = False
) -> float:
    """The mean over observations of -sum over classes c of y[c] log p[c]: one question with M answers.

    predicted: p (M,) or (N, M), each row a distribution; with from_logits z, where p = softmax(z),
    as a network without a final softmax gives it. expected: y, same shape, 1 at the right class and
    0 elsewhere (or a distribution). 0 log 0 is 0, and a right class of probability 0 costs infinity.

    >>> round(categorical_cross_entropy([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[1, 0, 0], [0, 1, 0]]), 6)
    0.289909
    >>> categorical_cross_entropy([0, 1000], [1, 0], from_logits=True)
    1000.0
    """
    predicted, expected = _pair_of_arrays(predicted, expected)
    if predicted.ndim not in (1, 2):
        raise InvalidInput(f"predicted has the shape {predicted.shape}, not (M,) or (N, M)")
    _check_fractions(expected, "expected")
    if from_logits:
        losses = -_log_softmax(predicted, axis=-1)
    else:
        _check_fractions(predicted, "predicted")
        with np.errstate(divide="ignore"):
            losses = -np.log(predicted)
    return float(np.mean(_weighted(expected, losses).sum(axis=-1)))


def _log_softmax(z: Array, axis: int) -> Array:
    if not -z.ndim <= axis < z.ndim:
        raise InvalidInput(f"there is no axis {axis} in the shape {z.shape}", "axis")
    z = z - z.max(axis=axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


def _weighted(y: Array, loss: Array) -> Array:
    """y * loss, and 0 wherever y is 0, even for an infinite loss."""
    return np.multiply(y, loss, out=np.zeros_like(loss), where=y != 0)


def _pooling_windows(x: ArrayLike, size: Amount, stride: Amount | None) -> Array:
    """(..., H', W', h, w)."""
    x = _array(x, "x")
    if x.ndim < 2:
        raise InvalidInput(f"x has the shape {x.shape}, not (..., H, W)")
    h, w = _pair(size, "size")
    sh, sw = _pair(size if stride is None else stride, "stride")
    output_size(x.shape[-2], h, 0, sh)
    output_size(x.shape[-1], w, 0, sw)
    return sliding_window_view(x, (h, w), axis=(-2, -1))[..., ::sh, ::sw, :, :]


def _zeros(mode: Mode, kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """(before, after) for every axis of a correlation with a kernel of this shape."""
    if isinstance(mode, str):
        return [padding_for(mode, m) for m in kernel]
    return _sides(mode, len(kernel), "mode")


def _sides(amount: Amount, ndim: int, where: str) -> list[tuple[int, int]]:
    """(before, after) for every axis, of an amount as `pad` takes it."""
    sides = amount if isinstance(amount, Sequence) and not isinstance(amount, str) else (amount,) * ndim
    if len(sides) == ndim:
        sides = (*sides, *sides)
    if len(sides) != 2 * ndim:
        known = "a number or (before, after)"
        known = known if ndim == 1 else "a number, (vertical, horizontal) or (top, left, bottom, right)"
        raise InvalidInput(f"{amount!r} is not an amount of padding", where, f"give {known}")
    numbers = [_integer(side, where, 0) for side in sides]
    return list(zip(numbers[:ndim], numbers[ndim:], strict=True))


def _pair(value: Amount, where: str) -> tuple[int, int]:
    pair = value if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2:
        raise InvalidInput(f"{value!r} is neither a number nor (height, width)", where)
    return _integer(pair[0], where, 1), _integer(pair[1], where, 1)


def _integer(value: object, where: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidInput(f"{value!r} is not an integer", where)
    if value < least:
        raise InvalidInput(f"{value} is out of range", where, f"give an integer of at least {least}")
    return int(value)


def _array(x: ArrayLike, name: str, dimensions: tuple[int, ...] | None = None) -> Array:
    """x as a float64 array that is not empty; NaN and infinities are numbers like others."""
    try:
        array = np.asarray(x)
    except ValueError:
        raise InvalidInput(f"{name} is ragged: its rows differ in length", name) from None
    if array.dtype.kind not in "buif":
        raise InvalidInput(f"{name} holds {array.dtype}, not real numbers", name)
    if not array.size:
        raise InvalidInput(f"{name} is empty: its shape is {array.shape}", name)
    if dimensions and array.ndim not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise InvalidInput(f"{name} has the shape {array.shape}, but {wanted} dimensions are needed", name)
    return array.astype(np.float64)


def _pair_of_arrays(predicted: ArrayLike, expected: ArrayLike) -> tuple[Array, Array]:
    first, second = _array(predicted, "predicted"), _array(expected, "expected")
    if first.shape != second.shape:
        raise InvalidInput(
            f"predicted is {first.shape} and expected is {second.shape}", "", "give the same shape twice"
        )
    return first, second


def _check_fractions(values: Array, name: str) -> None:
    wrong = values[(values < 0) | (values > 1)]
    if wrong.size:
        hint = "probabilities are meant; for logits say from_logits=True" if name == "predicted" else ""
        raise InvalidInput(f"{name} holds {wrong[0]:g}, outside 0 to 1", name, hint)
