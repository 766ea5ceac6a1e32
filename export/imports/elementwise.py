"""Operators that are functions of one number, and where two branches meet number by number.

Exporters spell one function in many ways: x * sigmoid(x), GELU from Erf, a ReLU from Max or Where. So a
function is kept as such (`Pointwise`) and recognised by its values, against the reference's own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from math import prod

import numpy as np

from backends.reference import apply
from export.imports.nodes import RULES, Node, construct, made, rule
from export.imports.tensors import (
    MOST_STEPS,
    Affine,
    Array,
    Function,
    Inexpressible,
    Join,
    Pointwise,
    Tensor,
    View,
    number,
    per_channel,
)
from zoo.errors import InvalidSpec
from zoo.layers import (
    ELU,
    GELU,
    BatchNorm,
    Conv2d,
    Dense,
    HardSigmoid,
    HardSwish,
    Layer,
    LeakyReLU,
    Normalize,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)

TINY = 1e-30  # an epsilon that changes no float32 variance of 1
# Where functions of one number are told apart: near 0, where they bend, and far outside.
GRID = np.concatenate([np.linspace(-12, 12, 97), [-1e4, -300.0, -50.0, 50.0, 300.0, 1e4]])
SAME = 1e-6  # what constants rounded to float32 may change of such a function, relative


def _simple(operator: str, make: Callable[[Node], Layer]) -> None:
    """An operator that is a layer whose every output is a function of one input."""

    def apply_rule(node: Node) -> View:
        view = node.view()
        return view.like(_activation(make(node), view.tensor))

    RULES[operator] = apply_rule


def _activation(layer: Layer, x: Tensor) -> Tensor:
    """A layer of one number, which a later operator may take as part of another one."""
    result = made(layer, x)
    result.pointwise = Pointwise(x, lambda values: apply(layer, values, {}))
    return result


_simple("Relu", lambda node: ReLU())
_simple("LeakyRelu", lambda node: construct(LeakyReLU, number(node.attribute("alpha", 0.01))))
_simple("Elu", lambda node: construct(ELU, number(node.attribute("alpha", 1.0))))
_simple("Sigmoid", lambda node: Sigmoid())
_simple("Tanh", lambda node: Tanh())
_simple("HardSwish", lambda node: HardSwish())
_simple("Gelu", lambda node: construct(GELU, node.attribute("approximate", "none")))


@rule("PRelu")
def prelu(node: Node) -> View:
    slopes, view = node.required(1, "slope"), node.view()
    if slopes.size == 0 or (slopes != slopes.reshape(-1)[0]).any():
        raise Inexpressible("a slope for each channel")
    return view.like(_activation(construct(LeakyReLU, number(slopes.reshape(-1)[0])), view.tensor))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def _erf(x: Array) -> Array:
    return 2 * apply(GELU(), x * np.sqrt(2), {}) / (x * np.sqrt(2) + (x == 0)) - 1 + (x == 0)


FUNCTIONS: dict[str, Function] = {
    "Abs": np.abs,
    "Erf": _erf,
    "Exp": np.exp,
    "Log": np.log,
    "Reciprocal": np.reciprocal,
    "Softplus": _softplus,
    "Sqrt": np.sqrt,
    "Mish": lambda x: x * np.tanh(_softplus(x)),
}


@rule(*FUNCTIONS)
def function(node: Node) -> View:
    view = node.view()
    return view.like(_composed(node.operator, view.tensor, FUNCTIONS[node.operator]))


@rule("HardSigmoid")
def hard_sigmoid(node: Node) -> View:
    alpha, beta = np.float32(node.attribute("alpha", 0.2)), np.float32(node.attribute("beta", 0.5))
    view = node.view()
    if (alpha, beta) == (np.float32(1 / 6), np.float32(0.5)):
        return view.like(_activation(HardSigmoid(), view.tensor))
    a, b = float(alpha), float(beta)
    return view.like(_composed("HardSigmoid", view.tensor, lambda x: np.clip(a * x + b, 0, 1)))


@rule("Swish")
def swish(node: Node) -> View:
    alpha, view = number(node.attribute("alpha", 1.0)), node.view()
    return view.like(_composed("Swish", view.tensor, lambda x: x * apply(Sigmoid(), alpha * x, {})))


@rule("ThresholdedRelu")
def thresholded(node: Node) -> View:
    alpha, view = number(node.attribute("alpha", 1.0)), node.view()
    return view.like(_composed("ThresholdedRelu", view.tensor, lambda x: np.where(x > alpha, x, 0)))


@rule("Clip")
def clip(node: Node) -> View:
    bounds = []
    for position, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = node.attribute(name)
        given = node.constant(position, name)
        bounds.append(
            float(value if value is not None else default if given is None else given.reshape(-1)[0])
        )
    low, high = bounds
    view = node.view()
    return view.like(_composed("Clip", view.tensor, lambda x: np.minimum(np.maximum(x, low), high)))


@rule("Neg")
def negative(node: Node) -> View:
    return _affine(node, node.view(), scale=np.array(-1.0))


@rule("Pow")
def power(node: Node) -> View:
    exponent, view = node.required(1, "exponent"), node.view()
    if exponent.size != 1:
        raise Inexpressible("a power with several exponents")
    number_ = float(exponent.reshape(-1)[0])
    return view.like(_composed("Pow", view.tensor, lambda x: np.power(x, number_)))


JOINT: dict[str, Callable[..., Array]] = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Max": lambda *x: reduce(np.maximum, x),
    "Min": lambda *x: reduce(np.minimum, x),
    "Where": np.where,
}


@rule(*JOINT)
def joint(node: Node) -> View:
    """A function of several numbers that come from one number of one tensor, or are constants."""
    views = [value for value in node.inputs if isinstance(value, View)]
    common = _common([view.tensor for view in views])
    constants = [value for value in node.inputs if isinstance(value, np.ndarray)]
    if common is None or any(constant.size != 1 for constant in constants):
        raise Inexpressible("of several tensors")
    base, pointwise = common
    rest = iter(pointwise)
    parts = [
        next(rest).function if isinstance(value, View) else _always(node.required(i, "term"))
        for i, value in enumerate(node.inputs)
    ]
    function = JOINT[node.operator]
    cost = 1 + sum(part.cost for part in pointwise)
    whole = Pointwise(base, lambda x: function(*(part(x) for part in parts)), cost)
    problem = f"a {node.operator} of functions of one number that is no layer"
    return views[0].like(_found(whole, problem))


def _always(constant: Array) -> Function:
    number_ = constant.reshape(-1)[0]
    return lambda x: number_


@rule("Add", "Sub", "Mul", "Div", "Sum")
def arithmetic(node: Node) -> View:
    if node.operator == "Sum" and len(node.inputs) != 2:
        if len(node.inputs) == 1:
            return node.view()
        head = replace(node, inputs=node.inputs[:-1])
        return arithmetic(replace(node, inputs=[arithmetic(head), node.inputs[-1]]))
    a, b = node.inputs
    if isinstance(a, View) and isinstance(b, View):
        return _of_two(node, node.view(0), node.view(1))
    position = 0 if isinstance(a, View) else 1
    view = node.view(position)
    constant = per_channel(view, node.required(1 - position, "other term"), node.batched)
    if constant is None:
        raise Inexpressible("a constant that has other than one number per channel or feature")
    with np.errstate(divide="ignore"):
        if node.operator in ("Add", "Sum"):
            return _affine(node, view, shift=constant)
        if node.operator == "Mul":
            return _affine(node, view, scale=constant)
        if node.operator == "Sub":
            return _affine(node, view, mean=constant) if position == 0 else _affine(
                node, view, scale=np.array(-1.0), shift=constant
            )  # fmt: skip
        if position == 0:
            return _affine(node, view, scale=1 / constant)
    if constant.size != 1:
        raise Inexpressible("a constant divided by something that comes from the image")
    over = float(constant.reshape(()))
    return view.like(_composed("Div", view.tensor, lambda x: over / x))


def _of_two(node: Node, a: View, b: View) -> View:
    """Two tensors of the image: a function of one of them, or where branches meet."""
    common = _common([a.tensor, b.tensor])
    if common is not None:
        base, (f, g) = common
        whole = Pointwise(base, _operation(node.operator, f.function, g.function), 1 + f.cost + g.cost)
        return a.like(_found(whole, f"a {node.operator} of functions of one number that is no layer"))
    joins = {"Add": Join.ADD, "Sum": Join.ADD, "Mul": Join.MULTIPLY}
    if node.operator not in joins:
        raise Inexpressible(f"a {node.operator} of two branches")
    join = joins[node.operator]
    if a.channels_last != b.channels_last:
        raise Inexpressible(f"a {node.operator} of tensors in several layouts")
    if len(a.shape) != len(b.shape) or (a.order is not None or b.order is not None):
        raise Inexpressible(f"a {node.operator} of tensors of several kinds")
    x, y = a, b
    if join is Join.MULTIPLY and prod(b.shape) > prod(a.shape):
        x, y = b, a
    if join is Join.ADD and a.shape != b.shape:
        raise Inexpressible(f"an Add of {a.shape} and {b.shape}")
    return x.like(Tensor((x.tensor, y.tensor), x.shape, join))


def _common(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Pointwise]] | None:
    """The nearest tensor of which all of these are functions, number by number, and the functions."""
    lineages = {key: _lineage(tensor) for key, tensor in {id(t): t for t in tensors}.items()}
    chains = [lineages[id(tensor)] for tensor in tensors]
    for first in chains[0]:
        others = [next((p for p in chain if p.base is first.base), None) for chain in chains[1:]]
        found = [other for other in others if other is not None]
        if len(found) == len(others):
            return first.base, [first, *found]
    return None


def _lineage(tensor: Tensor) -> list[Pointwise]:
    """The tensors of which this one is a function, number by number, nearest first: itself, ..."""
    found = [Pointwise(tensor, lambda x: x, 0)]
    while (before := found[-1].base.pointwise) is not None:
        whole = found[-1]
        cost = whole.cost + before.cost
        if cost > MOST_STEPS:
            break
        found.append(Pointwise(before.base, _after(whole.function, before.function), cost))
    return found


def _after(f: Function, g: Function) -> Function:
    return lambda x: f(g(x))


def _operation(operator: str, f: Function, g: Function) -> Function:
    apply_to = {"Add": np.add, "Sum": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    return lambda x: apply_to[operator](f(x), g(x))


def _composed(what: str, x: Tensor, function: Function) -> Tensor:
    """A function of every number of x. Where x itself is only a step to something, it is taken along."""
    whole = Pointwise(x, function)
    while whole.base.layer is None and (before := whole.base.pointwise) is not None:
        whole = Pointwise(before.base, _after(whole.function, before.function), whole.cost + before.cost)
    return _found(whole, f"{what}: a function of one number that is no layer")


def _found(whole: Pointwise, problem: str) -> Tensor:
    """The layer that computes a function, recognised by its values; without one a step to something."""
    if whole.cost > MOST_STEPS:
        raise Inexpressible(f"a function of one number made of more than {MOST_STEPS} steps")
    base, layer = whole.base, recognised(whole.function)
    if layer is None:
        return Tensor((base,), base.shape, problem=problem, pointwise=whole)
    result = made(layer, base)
    result.pointwise = whole
    return result


def recognised(function: Function) -> Layer | None:
    """The layer without weights that gives the same as a function of one number on GRID, if there is one."""
    with np.errstate(all="ignore"):
        values = function(GRID)
        if values.dtype == bool:  # a comparison is no layer, but may choose between two
            return None
        slope, alpha = float(-function(np.array([-1.0]))[0]), float(-function(np.array([-300.0]))[0])
    candidates: list[Layer] = [ReLU(), ReLU6(), Sigmoid(), Tanh(), SiLU(), GELU(), GELU("tanh")]
    candidates += [HardSigmoid(), HardSwish()]
    for kind, argument in ((LeakyReLU, slope), (ELU, alpha)):
        try:
            candidates.append(kind(number(argument)))
        except (InvalidSpec, ValueError, OverflowError):
            continue
    for layer in candidates:
        with np.errstate(all="ignore"):
            expected = apply(layer, GRID, {})
        if (
            values.shape == expected.shape
            and (np.abs(values - expected) <= SAME * (1 + np.abs(expected))).all()
        ):
            return layer
    return None


def _affine(
    node: Node,
    view: View,
    mean: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
) -> View:
    """(x - mean) * scale + shift, taken together with what stands before it."""
    x = view.tensor
    if shift is not None and scale is None and isinstance(x.layer, (Conv2d, Dense)) and not x.layer.bias:
        bias = np.broadcast_to(shift, (x.shape[0],))
        layer = replace(x.layer, bias=True)
        return view.like(made(layer, x.inputs[0], **x.arrays, bias=bias))
    zero, one = np.array(0.0), np.array(1.0)
    before = x.affine or Affine(x, zero, one, zero)
    if mean is not None:
        now = _moved(before, -mean)
    elif scale is not None:
        now = replace(before, scale=before.scale * scale, shift=before.shift * scale)
        if shift is not None:
            now = _moved(now, shift)
    else:
        assert shift is not None
        now = _moved(before, shift)
    if not all(np.isfinite(part).all() for part in (now.mean, now.scale, now.shift)):
        raise Inexpressible("a constant that is not finite")
    parts = (now.mean, now.scale, now.shift)
    function: Function | None = None
    if all(part.ndim == 0 for part in parts):
        m, s, t = map(float, parts)
        function = lambda values: (values - m) * s + t  # noqa: E731
    if function is not None and now.base.layer is None and now.base.pointwise is not None:
        return view.like(_composed(node.operator, now.base, function))  # a step to something, as a rule
    result = _affine_layer(now)
    result.affine = now
    if function is not None:
        result.pointwise = Pointwise(now.base, function)
    return view.like(result)


def _moved(affine: Affine, by: Array) -> Affine:
    """Something added to it: to the mean as long as there is no scale, which keeps the very numbers."""
    if affine.scale.ndim == 0 and affine.scale == 1 and not np.any(affine.shift):
        return replace(affine, mean=affine.mean - by)
    return replace(affine, shift=affine.shift + by)


def _affine_layer(affine: Affine) -> Tensor:
    """Normalize where that says it; a batch normalisation with a variance of 1 otherwise."""
    base = affine.base
    channels = base.shape[0]
    with np.errstate(over="ignore"):  # an infinity is refused by the layer
        mean, scale, shift = (
            np.broadcast_to(part, (channels,)).astype(np.float32)
            for part in (affine.mean, affine.scale, affine.shift)
        )
    if len(base.shape) == 3 and not shift.any():
        return made(construct(Normalize, tuple(map(float, mean)), tuple(map(float, scale))), base)
    ones = np.ones(channels)
    return made(
        construct(BatchNorm, TINY), base, weight=scale, bias=shift, running_mean=mean, running_var=ones
    )
