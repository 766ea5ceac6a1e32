"""Operators that are functions of one number, and where two branches meet number by number.

Exporters spell one function in many ways: x * sigmoid(x), GELU from Erf, a ReLU from Max or Where. So a
function is kept as such (`Pointwise`) and recognised by what it is, exactly (`functions.py`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from itertools import islice
from math import prod

import numpy as np

from export.imports import functions
from export.imports.functions import Curve, Function
from export.imports.nodes import RULES, Node, construct, made, rule
from export.imports.tensors import (
    MOST_STEPS,
    Affine,
    Array,
    Inexpressible,
    Join,
    Pointwise,
    Tensor,
    View,
    number,
    per_channel,
    rounded,
)
from zoo.layers import (
    ELU,
    GELU,
    BatchNorm,
    Conv2d,
    Dense,
    HardSwish,
    Layer,
    LeakyReLU,
    Normalize,
    ReLU,
    Sigmoid,
    Tanh,
)

LAYERS = 4  # whose inputs a function may be one of: Clip(x / 6 + 1 / 2, 0, 1) takes three
TINY = 1e-30  # an epsilon that changes no float32 variance of 1


def _simple(operator: str, make: Callable[[Node], Layer]) -> None:
    """An operator that is a layer whose every output is a function of one input."""

    def apply_rule(node: Node) -> View:
        view = node.view()
        return view.like(_activation(make(node), view.tensor))

    RULES[operator] = apply_rule


def _activation(layer: Layer, x: Tensor) -> Tensor:
    """A layer of one number, which a later operator may take as part of another one."""
    result = made(layer, x)
    result.pointwise = Pointwise(x, lambda curve: functions.of(layer, curve))
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


def _number(attribute: float) -> Curve:
    """An attribute, which is a float32 number, as a function; defaults are given with more digits."""
    return functions.number(np.float32(attribute))


def _of_no_layer(x: Curve) -> Curve:
    raise functions.Undecided("an operator that no layer is made of")


FUNCTIONS: dict[str, Function] = {
    "Abs": lambda x: functions.maximum(x, -x),
    "Erf": functions.erf,
    "Exp": functions.exp,
    "Log": _of_no_layer,
    "Mish": _of_no_layer,
    "Reciprocal": functions.reciprocal,
    "Softplus": _of_no_layer,
    "Sqrt": _of_no_layer,
}


@rule(*FUNCTIONS)
def function(node: Node) -> View:
    view = node.view()
    return view.like(_composed(node.operator, view.tensor, FUNCTIONS[node.operator]))


@rule("HardSigmoid")
def hard_sigmoid(node: Node) -> View:
    alpha, beta, view = node.attribute("alpha", 0.2), node.attribute("beta", 0.5), node.view()

    def function(x: Curve) -> Curve:
        return functions.clip(_number(alpha) * x + _number(beta), 0, 1)

    return view.like(_composed("HardSigmoid", view.tensor, function))


@rule("Swish")
def swish(node: Node) -> View:
    alpha, view = node.attribute("alpha", 1.0), node.view()
    return view.like(_composed("Swish", view.tensor, lambda x: x * functions.sigmoid(_number(alpha) * x)))


@rule("ThresholdedRelu")
def thresholded(node: Node) -> View:
    alpha, view = node.attribute("alpha", 1.0), node.view()

    def function(x: Curve) -> Curve:
        return functions.where(functions.compared(x, operator.gt, _number(alpha)), x, functions.number(0))

    return view.like(_composed("ThresholdedRelu", view.tensor, function))


@rule("Clip")
def clip(node: Node) -> View:
    bounds = []
    for position, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = node.attribute(name)
        given = node.constant(position, name)
        bounds.append(float(value if value is not None else default if given is None else given.item()))
    low, high = bounds
    view = node.view()
    return view.like(_composed("Clip", view.tensor, lambda x: functions.clip(x, low, high)))


@rule("Neg")
def negative(node: Node) -> View:
    return _affine(node, node.view(), operator.neg, scale=np.array(-1.0))


@rule("Pow")
def power(node: Node) -> View:
    exponent, view = node.required(1, "exponent"), node.view()
    if exponent.size != 1:
        raise Inexpressible("a power with several exponents")
    number_ = float(exponent.reshape(-1)[0])
    return view.like(_composed("Pow", view.tensor, lambda x: functions.power(x, number_)))


def _comparison(holds: Callable[[int, int], bool]) -> Callable[[Curve, Curve], Curve]:
    return lambda a, b: functions.compared(a, holds, b)


JOINT: dict[str, Callable[..., Curve]] = {
    "Equal": _comparison(operator.eq),
    "Greater": _comparison(operator.gt),
    "GreaterOrEqual": _comparison(operator.ge),
    "Less": _comparison(operator.lt),
    "LessOrEqual": _comparison(operator.le),
    "Max": lambda *x: reduce(functions.maximum, x),
    "Min": lambda *x: reduce(functions.minimum, x),
    "Where": functions.where,
}


@rule(*JOINT)
def joint(node: Node) -> View:
    """A function of several numbers that come from one number of one tensor, or are constants."""
    views = [value for value in node.inputs if isinstance(value, View)]
    common = _common(views)
    rank = len(views[0].dims) + node.batched
    if common is None or any(isinstance(x, Array) and (x.size != 1 or x.ndim > rank) for x in node.inputs):
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


def _always(given: Array) -> Function:
    return lambda x: functions.number(given.reshape(-1)[0])


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
    step: Function | None = None
    if constant.size and (constant == constant.reshape(-1)[0]).all():
        terms = [_identity, _always(constant)]
        step = _operation(node.operator, terms[position], terms[1 - position])
    with np.errstate(divide="ignore"):
        if node.operator in ("Add", "Sum"):
            return _affine(node, view, step, shift=constant)
        if node.operator == "Mul":
            return _affine(node, view, step, scale=constant)
        if node.operator == "Sub":
            return _affine(node, view, step, mean=constant) if position == 0 else _affine(
                node, view, step, scale=np.array(-1.0), shift=constant
            )  # fmt: skip
        if position == 0:
            return _affine(node, view, step, scale=1 / constant)
    if step is None:
        raise Inexpressible("a constant divided by something that comes from the image")
    return view.like(_composed("Div", view.tensor, step))


def _of_two(node: Node, a: View, b: View) -> View:
    """Two tensors of the image: a function of one of them, or where branches meet."""
    common = _common([a, b])
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


def _common(views: Sequence[View]) -> tuple[Tensor, list[Pointwise]] | None:
    """The nearest tensor of which all of these are functions, number by number, and the functions."""
    first = views[0]
    if any(view.channels_last != first.channels_last or view.order is not first.order for view in views):
        return None
    lineages = {id(view.tensor): list(_lineage(Pointwise(view.tensor, _identity, 0))) for view in views}
    chains = [lineages[id(view.tensor)] for view in views]
    for nearest in chains[0]:
        others = [next((p for p in chain if p.base is nearest.base), None) for chain in chains[1:]]
        found = [other for other in others if other is not None]
        if len(found) == len(others):
            return nearest.base, [nearest, *found]
    return None


def _lineage(whole: Pointwise) -> Iterator[Pointwise]:
    """The same as a function of every tensor it is one of, nearest first, in at most MOST_STEPS steps."""
    while True:
        yield whole
        before = whole.base.pointwise
        if before is None or whole.cost + before.cost > MOST_STEPS:
            return
        whole = _after(whole, before)


def _after(whole: Pointwise, before: Pointwise) -> Pointwise:
    f, g = whole.function, before.function
    return Pointwise(before.base, lambda x: f(g(x)), whole.cost + before.cost)


def _identity(x: Curve) -> Curve:
    return x


def _operation(name: str, f: Function, g: Function) -> Function:
    apply_to: dict[str, Callable[[Curve, Curve], Curve]] = {
        "Add": operator.add,
        "Sum": operator.add,
        "Sub": operator.sub,
        "Mul": operator.mul,
        "Div": operator.truediv,
    }
    return lambda x: apply_to[name](f(x), g(x))


def _composed(what: str, x: Tensor, function: Function) -> Tensor:
    """A function of every number of x."""
    return _found(Pointwise(x, function), f"{what}: a function of one number that is no layer")


def _found(whole: Pointwise, problem: str) -> Tensor:
    """The layer that is a function of the nearest tensor for which there is one; else a step to something.

    A step is a function of the nearest tensor that a layer gives.
    """
    step = whole
    while (before := step.base.pointwise) is not None and step.base.layer is None:
        step = _after(step, before)
    if step.cost > MOST_STEPS:
        raise Inexpressible(f"a function of one number made of more than {MOST_STEPS} steps")
    for candidate in islice(_lineage(step), LAYERS):
        try:
            layer = functions.recognised(candidate.function(functions.IDENTITY))
        except functions.Undecided:
            continue
        if layer is not None:
            result = made(layer, candidate.base)
            result.pointwise = candidate
            return result
    return Tensor((step.base,), step.base.shape, problem=problem, pointwise=step)


def _affine(
    node: Node,
    view: View,
    step: Function | None,
    mean: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
) -> View:
    """(x - mean) * scale + shift, taken together with what stands before it.

    step: the same as a function of one number; None where channels have constants of their own.
    """
    x = view.tensor
    if step is not None and x.layer is None and x.pointwise is not None:
        return view.like(_composed(node.operator, x, step))  # x is itself a step to something, as a rule
    pointwise = None if step is None else Pointwise(x, step)
    if shift is not None and scale is None and isinstance(x.layer, (Conv2d, Dense)) and not x.layer.bias:
        layer = replace(x.layer, bias=True)
        bias = np.broadcast_to(shift, (x.shape[0],))
        result = made(layer, x.inputs[0], **x.arrays, bias=bias)
        result.pointwise = pointwise
        return view.like(result)
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
    result = _affine_layer(now)
    result.affine = now
    result.pointwise = pointwise
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
    mean, scale, shift = (
        np.broadcast_to(rounded(part), (channels,)) for part in (affine.mean, affine.scale, affine.shift)
    )
    if len(base.shape) == 3 and not shift.any():
        return made(construct(Normalize, tuple(map(float, mean)), tuple(map(float, scale))), base)
    ones = np.ones(channels)
    return made(
        construct(BatchNorm, TINY), base, weight=scale, bias=shift, running_mean=mean, running_var=ones
    )
