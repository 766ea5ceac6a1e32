"""Functions of one number, exactly: which expression they are on which interval.

An expression is a polynomial in x and in exp, sigmoid and erf of expressions. Its coefficients are rational
numbers, as every constant of a file is. So are the ends of the intervals: the places where a function may
bend or jump. Two functions are told apart by their ends and coefficients, and nothing is sampled. What cannot
be decided this way is said (`Undecided`), never guessed.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from zoo.errors import InvalidSpec
from zoo.layers import (
    ELU,
    GELU,
    HardSigmoid,
    HardSwish,
    Layer,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)

MOST_TERMS, MOST_PIECES, MOST_POWER = 64, 32, 16  # of an expression, of a function, of Pow
LARGEST = Fraction(2**128 - 2**104)  # of float32: what lies beyond is no place to bend at
# A coefficient may be the product of two constants that were rounded to float32, each by 2^-24 of itself.
SAME = Fraction(1, 2**23)


Function = Callable[["Curve"], "Curve"]


class Undecided(Exception):
    """What a function is cannot be told exactly."""


# Expressions


@dataclass(frozen=True)
class Atom:
    """x itself, or a function of an expression: "exp", "sigmoid", "erf"."""

    name: str
    argument: Form | None = None


Monomial = frozenset[tuple[Atom, int]]  # a product of powers
X: Monomial = frozenset([(Atom("x"), 1)])
UNIT: Monomial = frozenset()


@dataclass(frozen=True)
class Form:
    """A polynomial in atoms; no coefficient is 0."""

    terms: frozenset[tuple[Monomial, Fraction]]

    def __add__(self, other: Form) -> Form:
        return _collected((*self.terms, *other.terms))

    def __mul__(self, other: Form) -> Form:
        return _collected((_product(m, n), a * b) for m, a in self.terms for n, b in other.terms)

    @property
    def constant(self) -> Fraction | None:
        """The number that this is, or None."""
        if not self.terms:
            return Fraction(0)
        coefficients = dict(self.terms)
        return coefficients.get(UNIT) if len(coefficients) == 1 else None

    def coefficient(self, monomial: Monomial) -> Fraction:
        return dict(self.terms).get(monomial, Fraction(0))

    def at(self, x: Fraction) -> Form:
        """What it is at one place."""
        total = _number(0)
        for monomial, coefficient in self.terms:
            part = _number(coefficient)
            for atom, power in monomial:
                value = _number(x) if atom.argument is None else _ATOMS[atom.name](atom.argument.at(x))
                for _ in range(power):
                    part = part * value
            total = total + part
        return total


def _number(value: Fraction | float) -> Form:
    return Form(frozenset([(UNIT, Fraction(value))] if value else []))


def _collected(terms: Iterable[tuple[Monomial, Fraction]]) -> Form:
    total: defaultdict[Monomial, Fraction] = defaultdict(Fraction)
    for monomial, coefficient in terms:
        total[monomial] += coefficient
    if len(total) > MOST_TERMS:
        raise Undecided("an expression of too many terms")
    return Form(frozenset((m, c) for m, c in total.items() if c))


def _product(a: Monomial, b: Monomial) -> Monomial:
    powers = Counter(dict(a))
    powers.update(dict(b))
    return frozenset(powers.items())


def _turned(form: Form) -> bool:
    """Whether the lowest power of x has a negative coefficient: of p and -p one is chosen."""
    if any(atom.argument is not None for monomial, _ in form.terms for atom, _ in monomial):
        return False
    return min((sum(power for _, power in monomial), c) for monomial, c in form.terms)[1] < 0


def _atom(name: str, argument: Form) -> Form:
    return Form(frozenset([(frozenset([(Atom(name, argument), 1)]), Fraction(1))]))


def _exp(form: Form) -> Form:
    return _atom("exp", form) if form.terms else _number(1)


def _sigmoid(form: Form) -> Form:
    if not form.terms:
        return _number(0.5)
    if _turned(form):  # sigmoid(-p) = 1 - sigmoid(p)
        return _number(1) + _number(-1) * _atom("sigmoid", _number(-1) * form)
    return _atom("sigmoid", form)


def _erf(form: Form) -> Form:
    if not form.terms:
        return form
    if _turned(form):
        return _number(-1) * _atom("erf", _number(-1) * form)
    return _atom("erf", form)


def _reciprocal(form: Form) -> Form:
    """1 / p, of a number, or of c (1 + exp(q)): sigmoid(-q) / c."""
    if form.constant:
        return _number(1 / form.constant)
    rest = dict(form.terms)
    c = rest.pop(UNIT, None)
    for monomial, coefficient in rest.items():
        ((atom, power), *others) = monomial
        if (len(rest), c, power, others, atom.name) == (1, coefficient, 1, [], "exp"):
            assert atom.argument is not None
            return _number(1 / coefficient) * _sigmoid(_number(-1) * atom.argument)
    raise Undecided("something divided by a function of one number")


_ATOMS: dict[str, Callable[[Form], Form]] = {"exp": _exp, "sigmoid": _sigmoid, "erf": _erf}


# Functions


@dataclass(frozen=True)
class Curve:
    """A function of one number.

    ends: where expressions change, ascending. pieces: the expressions before, between and after them.
    points: the values at the ends. Of comparisons all these are bool.
    """

    ends: tuple[Fraction, ...]
    pieces: tuple[Any, ...]
    points: tuple[Any, ...] = ()

    def __add__(self, other: Curve) -> Curve:
        return _joined(lambda a, b: _form(a) + _form(b), self, other)

    def __mul__(self, other: Curve) -> Curve:
        return _joined(lambda a, b: _times(_form(a), _form(b)), self, other)

    def __neg__(self) -> Curve:
        return number(-1) * self

    def __sub__(self, other: Curve) -> Curve:
        return self + -other

    def __truediv__(self, other: Curve) -> Curve:
        return self * reciprocal(other)


def _times(a: Form, b: Form) -> Form:
    """A product. 0 times an exponential is no number where that overflows, so it is not 0."""
    for one, other in ((a, b), (b, a)):
        if not one.terms and any(atom.name == "exp" for m, _ in other.terms for atom, _ in m):
            raise Undecided("0 times an exponential")
    return a * b


def number(value: Any) -> Curve:
    """A constant: exactly the number, or the truth value, that a file holds."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return Curve((), (value,))
    if not math.isfinite(value):
        raise Undecided("a constant that is not finite")
    return Curve((), (_number(Fraction(value)),))


IDENTITY = Curve((), (Form(frozenset([(X, Fraction(1))])),))


def exp(x: Curve) -> Curve:
    return _joined(lambda a: _exp(_form(a)), x)


def sigmoid(x: Curve) -> Curve:
    return _joined(lambda a: _sigmoid(_form(a)), x)


def tanh(x: Curve) -> Curve:
    """2 sigmoid(2x) - 1, so that both spellings are one."""
    return number(2) * sigmoid(number(2) * x) - number(1)


def erf(x: Curve) -> Curve:
    return _joined(lambda a: _erf(_form(a)), x)


def reciprocal(x: Curve) -> Curve:
    return _joined(lambda a: _reciprocal(_form(a)), x)


def power(x: Curve, exponent: float) -> Curve:
    if exponent not in range(MOST_POWER + 1):
        raise Undecided(f"a power of {exponent:g}")
    result = number(1)
    for _ in range(int(exponent)):
        result = result * x
    return result


def compared(a: Curve, holds: Callable[[int, int], bool], b: Curve) -> Curve:
    """Where a comparison, such as operator.gt, holds."""
    return _joined(lambda sign: holds(sign, 0), _signs(a - b))


def where(condition: Curve, a: Curve, b: Curve) -> Curve:
    if not all(isinstance(value, bool) for value in (*condition.pieces, *condition.points)):
        raise Undecided("a choice by something that is no truth value")
    return _joined(lambda c, x, y: x if c else y, condition, a, b)


def maximum(a: Curve, b: Curve) -> Curve:
    return where(compared(a, operator.ge, b), a, b)


def minimum(a: Curve, b: Curve) -> Curve:
    return where(compared(a, operator.le, b), a, b)


def clip(x: Curve, low: float, high: float) -> Curve:
    """min(max(x, low), high); an infinite bound is none."""
    x = x if low == -math.inf else maximum(x, number(low))
    return x if high == math.inf else minimum(x, number(high))


def _form(value: Any) -> Form:
    """A truth value as the number that it is cast to."""
    return _number(int(value)) if isinstance(value, bool) else value


def _at(value: Any, x: Fraction) -> Any:
    return value.at(x) if isinstance(value, Form) else value


def _joined(function: Callable[..., Any], *curves: Curve) -> Curve:
    """A function of what several are at each place."""
    ends = sorted({end for curve in curves for end in curve.ends})
    pieces = [function(*(curve.pieces[0] for curve in curves))]
    points = []
    for end in ends:
        pieces.append(function(*(curve.pieces[bisect_right(curve.ends, end)] for curve in curves)))
        points.append(function(*(_value(curve, end) for curve in curves)))
    return _simple(ends, pieces, points)


def _value(curve: Curve, x: Fraction) -> Any:
    i = bisect_left(curve.ends, x)
    if i < len(curve.ends) and curve.ends[i] == x:
        return curve.points[i]
    return _at(curve.pieces[i], x)


def _simple(ends: Iterable[Fraction], pieces: list[Any], points: Iterable[Any]) -> Curve:
    """Without ends at which nothing changes, or that lie beyond float32."""
    kept: list[tuple[Fraction, Any]] = []
    found = [pieces[0]]
    for end, point, piece in zip(ends, points, pieces[1:], strict=True):
        if end <= -LARGEST:
            found = [piece]
        elif end < LARGEST and not (piece == found[-1] and point == _at(piece, end)):
            kept.append((end, point))
            found.append(piece)
    if len(found) > MOST_PIECES:
        raise Undecided("a function of too many pieces")
    return Curve(tuple(end for end, _ in kept), tuple(found), tuple(point for _, point in kept))


def _signs(curve: Curve) -> Curve:
    """-1, 0 or 1 at each place; raises Undecided for roots of more than straight lines."""
    bounds = [None, *curve.ends, None]
    ends: list[Fraction] = []
    pieces: list[int] = []
    points: list[int] = []
    for i, piece in enumerate(curve.pieces):
        form, low, high = _form(piece), bounds[i], bounds[i + 1]
        slope, start = form.coefficient(X), form.coefficient(UNIT)
        if len(form.terms) != bool(slope) + bool(start):
            raise Undecided("where two curves cross")
        root = -start / slope if slope else None
        if root is None:
            pieces.append(_sign(start))
        elif (low is None or low < root) and (high is None or root < high):
            ends.append(root)
            points.append(0)
            pieces += [-_sign(slope), _sign(slope)]
        else:
            pieces.append(_sign(slope * _inside(low, high) + start))
        if high is not None:
            value = _form(curve.points[i]).constant
            if value is None:
                raise Undecided("where two curves cross")
            ends.append(high)
            points.append(_sign(value))
    return _simple(ends, pieces, points)


def _inside(low: Fraction | None, high: Fraction | None) -> Fraction:
    if low is None:
        return Fraction(0) if high is None else high - 1
    return low + 1 if high is None else (low + high) / 2


def _sign(value: Fraction) -> int:
    return (value > 0) - (value < 0)


# Layers


@lru_cache(maxsize=256)
def of(layer: Layer, x: Curve = IDENTITY) -> Curve:
    """An activation layer's function of x, by its definition."""
    if isinstance(layer, ReLU):
        return maximum(x, number(0))
    if isinstance(layer, ReLU6):
        return clip(x, 0, 6)
    if isinstance(layer, LeakyReLU):
        return where(compared(x, operator.gt, number(0)), x, number(layer.slope) * x)
    if isinstance(layer, ELU):
        curve = number(layer.alpha) * (exp(minimum(x, number(0))) - number(1))
        return where(compared(x, operator.gt, number(0)), x, curve)
    if isinstance(layer, Sigmoid):
        return sigmoid(x)
    if isinstance(layer, Tanh):
        return tanh(x)
    if isinstance(layer, SiLU):
        return x * sigmoid(x)
    if isinstance(layer, GELU) and layer.approximate == "tanh":
        inner = number(math.sqrt(2 / math.pi)) * (x + number(0.044715) * power(x, 3))
        return number(0.5) * x * (number(1) + tanh(inner))
    if isinstance(layer, GELU):
        return number(0.5) * x * (number(1) + erf(x * number(math.sqrt(0.5))))
    if isinstance(layer, HardSigmoid):
        return clip(x / number(6) + number(0.5), 0, 1)
    if isinstance(layer, HardSwish):
        return x * of(HardSigmoid(), x)
    raise Undecided(f"{type(layer).__name__} is no function of one number")


def recognised(curve: Curve) -> Layer | None:
    """The activation layer that a function is, but for the rounding of constants to float32; or None."""
    if any(isinstance(value, bool) for value in curve.pieces):  # a comparison: it may choose between two
        return None
    sides = zip(curve.ends, curve.points, curve.pieces, curve.pieces[1:], strict=False)
    if any(point not in (_at(before, end), _at(after, end)) for end, point, before, after in sides):
        return None  # a value at one number alone
    return next((layer for layer in _candidates(curve) if _alike(curve, of(layer))), None)


def _candidates(curve: Curve) -> Iterator[Layer]:
    yield from (ReLU(), ReLU6(), Sigmoid(), Tanh(), SiLU(), GELU(), GELU("tanh"), HardSigmoid(), HardSwish())
    first: Form = curve.pieces[0]
    alpha = next((c for m, c in first.terms if any(atom.name == "exp" for atom, _ in m)), Fraction(0))
    curved = [(ELU, alpha)] if alpha else []
    for kind, argument in [(LeakyReLU, first.coefficient(X)), *curved]:
        try:
            yield kind(float(argument))
        except (InvalidSpec, OverflowError):
            continue


def _alike(a: Curve, b: Curve) -> bool:
    return (
        len(a.ends) == len(b.ends)
        and all(map(_near, a.ends, b.ends))
        and all(map(_alike_forms, a.pieces, b.pieces))
    )


def _alike_forms(a: Form, b: Form) -> bool:
    return len(a.terms) == len(b.terms) and all(
        any(_near(c, d) and _alike_monomials(m, n) for m, c in a.terms) for n, d in b.terms
    )


def _alike_monomials(a: Monomial, b: Monomial) -> bool:
    return len(a) == len(b) and all(
        any(power == other and _alike_atoms(atom, like) for atom, power in a) for like, other in b
    )


def _alike_atoms(a: Atom, b: Atom) -> bool:
    if a.argument is None or b.argument is None or a.name != b.name:
        return a == b
    return _alike_forms(a.argument, b.argument)


def _near(a: Fraction, b: Fraction) -> bool:
    return abs(a - b) <= SAME * abs(b)
