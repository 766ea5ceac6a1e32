"""Functions of one number in ONNX graphs: read as exactly what they are, or refused."""

from __future__ import annotations

import math
import operator
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from export.imports import functions
from export.imports.functions import IDENTITY, Curve, Form, number
from export.imports.reading import Unsupported, read
from export.inference.session import Session
from zoo.layers import (
    ELU,
    GELU,
    Activation,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)

U = 2.0**-24
TINIEST, SMALLEST, LARGEST = 2.0**-149, 2.0**-126, float(np.finfo(np.float32).max)
THRESHOLDS = [TINIEST, SMALLEST, 1e-7, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.1, 1.0, -1e-7, -0.01]
SLOPES = [0.0, 1e-30, 1e-4, 2e-4, 0.01, 0.0101, 0.2, 0.2001, 0.99]
X = "x"
Expression = object  # X, a number, or (operator, *inputs, attributes)


def f32(value: float) -> float:
    return float(np.float32(value))


def hard_swish(add: float = 3, high: float = 6, over: float = 6, low: float = 0) -> Expression:
    return ("Mul", X, ("Div", ("Clip", ("Add", X, add), low, high), over))


def gelu(root: float = math.sqrt(2), one: float = 1.0, half: float = 0.5) -> Expression:
    return ("Mul", ("Mul", X, ("Add", ("Erf", ("Div", X, root)), one)), half)


def tanh_gelu(root: float = math.sqrt(2 / math.pi), cube: float = 0.044715) -> Expression:
    inner = ("Mul", ("Add", X, ("Mul", ("Pow", X, 3.0), cube)), root)
    return ("Mul", ("Mul", X, 0.5), ("Add", ("Tanh", inner), 1.0))


def elu(alpha: float, less: float | None = None, end: float = 0) -> Expression:
    curve = ("Sub", ("Mul", ("Exp", X), alpha), alpha if less is None else less)
    return ("Where", ("Greater", X, end), X, curve)


SIGMOID = ("Reciprocal", ("Add", ("Exp", ("Neg", X)), 1.0))

# What is read, as which layers.
READ: dict[str, tuple[Expression, Activation]] = {
    "Where > 0": (("Where", ("Greater", X, 0), X, 0), ReLU()),
    "Where >= 0": (("Where", ("GreaterOrEqual", X, 0), X, 0), ReLU()),
    "Where < 0": (("Where", ("Less", X, 0), 0, X), ReLU()),
    "Where > -0": (("Where", ("Greater", X, -0.0), X, -0.0), ReLU()),
    "thresholded at 0": (("ThresholdedRelu", X, {"alpha": 0.0}), ReLU()),
    "times its own sign": (("Mul", X, ("Cast", ("Greater", X, 0), {"to": 1})), ReLU()),
    "half of x + |x|": (("Mul", ("Add", X, ("Abs", X)), 0.5), ReLU()),
    "clipped at float32's end": (("Clip", X, 0, LARGEST), ReLU()),
    "Min of Relu": (("Min", ("Relu", X), 6), ReLU6()),
    "Max of Min": (("Max", ("Min", X, 6), 0), ReLU6()),
    "Relu less Relu": (("Sub", ("Relu", X), ("Relu", ("Sub", X, 6.0))), ReLU6()),
    "hard sigmoid": (("HardSigmoid", X, {"alpha": 1 / 6, "beta": 0.5}), HardSigmoid()),
    "hard sigmoid, 8 digits": (("HardSigmoid", X, {"alpha": 0.16666666, "beta": 0.5}), HardSigmoid()),
    "hard sigmoid from Clip": (("Clip", ("Add", ("Mul", X, 1 / 6), 0.5), 0, 1), HardSigmoid()),
    "hard swish": (hard_swish(), HardSwish()),
    "hard swish, 8 digits": (("Mul", X, ("Mul", ("Clip", ("Add", X, 3.0), 0, 6), 0.16666667)), HardSwish()),
    "hard swish from HardSigmoid": (
        ("Mul", X, ("HardSigmoid", X, {"alpha": 0.16666667, "beta": 0.5})), HardSwish()
    ),
    "hard swish from Relu and Min": (
        ("Div", ("Mul", X, ("Min", ("Relu", ("Add", X, 3.0)), 6)), 6.0), HardSwish()
    ),
    "GELU": (gelu(), GELU()),
    "GELU, 8 digits": (gelu(1.4142135), GELU()),
    "GELU, multiplied": (
        ("Mul", ("Mul", X, 0.5), ("Add", 1.0, ("Erf", ("Mul", X, 0.70710678)))), GELU()
    ),
    "GELU of tanh": (tanh_gelu(), GELU("tanh")),
    "GELU of tanh, a product": (
        ("Mul", X, ("Sigmoid", ("Mul", ("Add", X, ("Mul", ("Mul", X, ("Mul", X, X)), 0.044715)), 1.5957691))),
        GELU("tanh"),
    ),
    "sigmoid": (SIGMOID, Sigmoid()),
    "SiLU": (("Mul", ("Sigmoid", X), X), SiLU()),
    "SiLU of the other side": (("Mul", X, ("Sub", 1.0, ("Sigmoid", ("Neg", X)))), SiLU()),
    "SiLU, divided": (("Div", X, ("Add", ("Exp", ("Neg", X)), 1.0)), SiLU()),
    "Swish": (("Swish", X, {"alpha": 1.0}), SiLU()),
    "ELU in two parts": (
        ("Add", ("Relu", X), ("Sub", ("Exp", ("Min", X, 0)), 1.0)), ELU(1.0)
    ),
    **{f"ELU of {a}": (("Elu", X, {"alpha": a}), ELU(f32(a))) for a in (1.0, 0.5, 1.0001, 1e-3)},
    **{f"ELU of Where, {a}": (elu(a), ELU(f32(a))) for a in (1.0, 0.5, 1.0001)},
    **{f"LeakyRelu {s}": (("LeakyRelu", X, {"alpha": s}), LeakyReLU(f32(s))) for s in SLOPES},
    **{f"slope {s} of Max": (("Max", X, ("Mul", X, s)), LeakyReLU(f32(s)) if s else ReLU()) for s in SLOPES},
    **{
        f"slope {s} of Where": (
            ("Where", ("Less", X, 0), ("Mul", X, s), X), LeakyReLU(f32(s)) if s else ReLU()
        )
        for s in SLOPES
    },
    **{
        f"slope {s} of two Relu": (
            ("Sub", ("Relu", X), ("Mul", ("Relu", ("Neg", X)), s)), LeakyReLU(f32(s)) if s else ReLU()
        )
        for s in SLOPES
    },
}  # fmt: skip

REFUSED: dict[str, Expression] = {
    "ELU by masks, which is NaN where exp overflows": (
        "Add",
        ("Mul", X, ("Cast", ("Greater", X, 0), {"to": 1})),
        ("Mul", ("Sub", ("Exp", X), 1.0), ("Cast", ("LessOrEqual", X, 0), {"to": 1})),
    ),
    **{f"thresholded at {t}": ("ThresholdedRelu", X, {"alpha": t}) for t in THRESHOLDS},
    **{f"Where > {t}": ("Where", ("Greater", X, t), X, 0) for t in THRESHOLDS},
    **{f"Where < {t}": ("Where", ("Less", X, t), 0, X) for t in THRESHOLDS},
    **{f"else {t}": ("Where", ("Greater", X, 0), X, t) for t in THRESHOLDS},
    **{f"slope from {t} on": ("Where", ("Greater", X, t), X, ("Mul", X, 0.01)) for t in THRESHOLDS},
    **{f"clipped at {high}": ("Clip", X, 0, high) for high in (5.999, 5.99999, 6.0001, 6.00001, 1e30)},
    **{f"clipped from {low}": ("Clip", X, low, 6) for low in (1e-7, -1e-7, TINIEST)},
    "Min of Relu at 5.999": ("Min", ("Relu", X), 5.999),
    "a value at 0 alone": ("Where", ("Equal", X, 0), 5, ("Relu", X)),
    "a value at 6 alone": ("Where", ("Equal", X, 6), 0, ("Clip", X, 0, 6)),
    "slope above 1 of Max": ("Max", X, ("Mul", X, 1.0001)),
    **{
        f"hard sigmoid {a}, {b}": ("HardSigmoid", X, {"alpha": a, "beta": b})
        for a, b in ((0.1667, 0.5), (0.16667, 0.5), (0.1666668, 0.5), (0.2, 0.5), (1 / 6, 0.5001))
    },
    "hard swish 2.999": hard_swish(add=2.999),
    "hard swish 3.00001": hard_swish(add=3.00001),
    "hard swish to 5.999": hard_swish(high=5.999),
    "hard swish over 5.999": hard_swish(over=5.999),
    "hard swish from 1e-7": hard_swish(low=1e-7),
    "hard swish 0.1667": ("Mul", X, ("HardSigmoid", X, {"alpha": 0.1667, "beta": 0.5})),
    **{f"GELU over {root}": gelu(root) for root in (1.41435, 1.41422, 1.4142)},
    "GELU with 1.0001": gelu(one=1.0001),
    "GELU with 0.50005": gelu(half=0.50005),
    "GELU by 1.702": ("Mul", X, ("Sigmoid", ("Mul", X, 1.702))),
    "GELU of tanh with 0.7979": tanh_gelu(root=0.7979),
    "GELU of tanh with 0.0447": tanh_gelu(cube=0.0447),
    "GELU of tanh to the 2.9999": (
        "Mul", X, ("Tanh", ("Add", X, ("Pow", X, 2.9999)))
    ),
    "Swish of 1.0001": ("Swish", X, {"alpha": 1.0001}),
    "sigmoid with 1.0001": ("Reciprocal", ("Add", ("Exp", ("Neg", X)), 1.0001)),
    "SiLU and a little": ("Add", ("Mul", X, ("Sigmoid", X)), ("Mul", ("Relu", X), 1e-7)),
    "Mish": ("Mul", X, ("Tanh", ("Softplus", X))),
    "ELU with a jump": elu(1.0, 1.0001),
    "ELU from 1e-3 on": elu(1.0, end=1e-3),
    "ELU from -1e-7 on": elu(1.0, end=-1e-7),
    "a square": ("Mul", X, X),
}  # fmt: skip


class _Graph:
    """The nodes and constants of an expression."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def name(self, expression: Expression) -> str:
        if isinstance(expression, str):
            return expression
        if not isinstance(expression, tuple):
            name = f"c{len(self.constants)}"
            self.constants[name] = np.float32(expression)
            return name
        operator_, *inputs = expression
        attributes = inputs.pop() if isinstance(inputs[-1], dict) else {}
        names = [self.name(part) for part in inputs]
        self.nodes.append(helper.make_node(operator_, names, [f"t{len(self.nodes)}"], **attributes))
        return f"t{len(self.nodes) - 1}"


def content(expression: Expression, size: int) -> bytes:
    """A graph that applies an expression to images 1 x 1 x size."""
    graph = _Graph()
    last = graph.name(expression)
    opset = 24 if "Swish" in str(expression) and "HardSwish" not in str(expression) else 20
    inside = helper.make_graph(
        graph.nodes,
        "g",
        [helper.make_tensor_value_info(X, TensorProto.FLOAT, ("n", 1, 1, size))],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in graph.constants.items()],
    )
    proto = helper.make_model(inside, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return proto.SerializeToString()


def numbers(expression: Expression) -> list[float]:
    if isinstance(expression, tuple):
        return [value for part in expression for value in numbers(part)]
    if isinstance(expression, dict):
        return [float(value) for value in expression.values()]
    return [] if isinstance(expression, str) else [float(expression)]  # type: ignore[arg-type]


def places(expression: Expression) -> np.ndarray:
    """Both sides of every bend that constants can make, zeros, the smallest numbers, and large ones."""
    bends = {0.0, 3.0, 6.0, *numbers(expression)}
    found = [np.float32(sign * bend) for bend in bends for sign in (1, -1) if abs(bend) < 1e4]
    near = [np.nextafter(x, np.float32(side)) for x in found for side in (np.inf, -np.inf)]
    far = [x * np.float32(1 + step) for x in found for step in (1e-6, -1e-6, 1e-3, -1e-3)]
    more = [s * 10.0**e for s in (1, -1) for e in (*range(-8, 5), 0.5, 0.7)]
    special = [-0.0, *(s * x for s in (1, -1) for x in (TINIEST, SMALLEST))]
    return np.unique(np.array([*found, *near, *far, *more, *special], np.float32))


@pytest.mark.parametrize("case", READ)
def test_what_is_read_is_that_function(case: str) -> None:
    """The file in onnxruntime beside the reference, on both sides of every bend, to rounding in float32."""
    expression, layer = READ[case]
    x = places(expression)
    file = content(expression, len(x))
    found = read(file, "x")
    assert found.model.layers == (layer,)
    image = x.reshape(1, 1, 1, -1)
    given = ReferenceNetwork(found.model, found.weights).predict(image).ravel()
    expected = Session(file, optimize=False).predict(image).ravel()
    # Straight pieces round twice at most; others are sums and products of terms of up to max(|x|, 1).
    straight = isinstance(layer, (ReLU, ReLU6, LeakyReLU)) and "Relu less" not in case
    unit = np.abs(x) if straight else np.maximum(np.abs(x), 6)
    np.testing.assert_array_less(np.abs(given - expected), 4 * U * unit + TINIEST)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_layer_is_refused(case: str) -> None:
    with pytest.raises(Unsupported, match="a function of one number|functions of one number"):
        read(content(REFUSED[case], 4), "x")


@pytest.mark.parametrize("slope", SLOPES)
def test_slopes_a_little_apart_are_other_slopes(slope: float) -> None:
    layers = [read(content(("Max", X, ("Mul", X, s)), 4), "x").model.layers for s in (slope, slope + 1e-4)]
    if slope + 1e-4 > 0:
        assert layers[0] != layers[1]
    assert layers[1] == (LeakyReLU(f32(slope + 1e-4)),)


# The algebra


def evaluated(curve: Curve, x: float) -> float:
    """A curve's value, in float64."""
    form = functions._value(curve, Fraction(x))
    if functions.Fraction(x) not in curve.ends:
        piece = sum(end < Fraction(x) for end in curve.ends)
        form = curve.pieces[piece]
    return _form(form, x)


def _form(form: Form, x: float) -> float:
    own = {
        "exp": math.exp,
        "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
        "erf": math.erf,
    }
    total = 0.0
    for monomial, coefficient in form.terms:
        part = float(coefficient)
        for atom, power in monomial:
            part *= (x if atom.argument is None else own[atom.name](_form(atom.argument, x))) ** power
        total += part
    return total


LAYERS = [
    ReLU(), ReLU6(), LeakyReLU(0.01), LeakyReLU(3.0), ELU(0.7), Sigmoid(), Tanh(), GELU(), GELU("tanh"),
    SiLU(), HardSigmoid(), HardSwish(),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_s_curve_is_the_reference_s_function(layer: Activation) -> None:
    x = np.concatenate([np.linspace(-8, 8, 65), [-3.0, 3.0, 1e-9, -1e-9, 0.3, -20.0, 20.0]])
    expected = apply(layer, x, {})
    found = [evaluated(functions.of(layer), float(value)) for value in x]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
    assert functions.recognised(functions.of(layer)) == layer


def test_every_activation_has_a_curve() -> None:
    kinds = {type(layer) for layer in LAYERS}
    assert kinds == set(Activation.__subclasses__())


def test_a_constant_s_rounding_is_no_difference_and_more_is() -> None:
    sixth = np.float32(1 / 6)

    def clipped(alpha: np.float32) -> Curve:
        return functions.clip(number(alpha) * IDENTITY + number(0.5), 0, 1)

    down, up = np.nextafter(sixth, np.float32(0)), np.nextafter(sixth, np.float32(1))
    further = np.nextafter(up, np.float32(1))
    assert functions.recognised(clipped(sixth)) == HardSigmoid()
    assert functions.recognised(clipped(down)) == HardSigmoid()  # 0.16666666
    assert functions.recognised(clipped(up)) == HardSigmoid()
    assert functions.recognised(clipped(further)) is None  # 1.8e-7 of itself


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (lambda x: functions.maximum(x * functions.sigmoid(x), x), "where two curves cross"),
        (lambda x: x / (number(2) + x), "divided by a function"),
        (lambda x: functions.power(x, 0.5), "a power of 0.5"),
        (lambda x: functions.power(x, -1), "a power of -1"),
        (lambda x: functions.where(x, x, x), "no truth value"),
        (lambda x: x + number(math.inf), "not finite"),
        (lambda x: x + number(math.nan), "not finite"),
        (lambda x: x / number(0), "divided by"),
    ],
)
def test_what_cannot_be_decided_is_said(curve: functions.Function, message: str) -> None:
    with pytest.raises(functions.Undecided, match=message):
        curve(IDENTITY)


def _stairs(steps: int) -> Curve:
    curve = IDENTITY
    for i in range(steps):
        curve = functions.where(functions.compared(IDENTITY, operator.gt, number(i)), number(i), curve)
    return curve


def test_what_would_take_too_long_is_said() -> None:
    with pytest.raises(functions.Undecided, match="too many pieces"):
        _stairs(100)
    total = functions.sigmoid(IDENTITY) + functions.exp(IDENTITY) + functions.erf(IDENTITY) + IDENTITY
    with pytest.raises(functions.Undecided, match="too many terms"):
        functions.power(total, 16)
