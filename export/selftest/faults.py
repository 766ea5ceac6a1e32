"""The known faults of weights and of specs: mistakes that exporters, converters and backends have made.

A fault changes canonical weights (`reweigh`) or the spec (`respec`), and goes into backends, ONNX files and
the judge alike; a small one into one of them by turns. Faults of a graph or a file stand in graph_faults.py,
those in a framework's own code in backends/planting.py. Every rule gives None where the fault cannot be: a
kernel of one row cannot be read upside down. In a changed spec every layer keeps the path it had, and each
fault says at which paths it shows first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zoo.errors import ZooError
from zoo.layers import (
    ELU,
    GELU,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    HardSigmoid,
    HardSwish,
    Join,
    Layer,
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    Residual,
    Scale,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from zoo.model import Model, Node, iter_weights
from zoo.randomness import uniform
from zoo.weights import Weights, init_weights

Array = np.ndarray


@dataclass(frozen=True)
class Change:
    """What one fault makes of a model: other layers or weights, and where that shows first.

    model: None where the fault leaves layers that do not fit together.
    """

    model: Model | None
    weights: Weights
    culprits: frozenset[str]


Site = tuple[Model, Weights, Node]
Reweigh = Callable[[Model, Mapping[str, Array], Node], Array | dict[str, Array] | None]
Respec = Callable[[Model, Node], list[Layer] | None]

REWEIGH: dict[str, tuple[tuple[type[Layer], ...], Reweigh]] = {}
RESPEC: dict[str, tuple[tuple[type[Layer], ...], Respec]] = {}
SWAPPED = "two layers swapped"
SMALL: set[str] = set()  # small faults, which are planted in one of the places by turns


def names() -> list[str]:
    """The names of all faults of this module."""
    return [*REWEIGH, *WHOLE, SWAPPED, *RESPEC]


# --- faults of weights: each gives the other weight, or several by their names within the layer


def _reweigh(name: str, *layers: type[Layer], small: bool = False) -> Callable[[Reweigh], Reweigh]:
    if small:
        SMALL.add(name)

    def register(rule: Reweigh) -> Reweigh:
        REWEIGH[name] = (layers, rule)
        return rule

    return register


@_reweigh("kernel height and width exchanged", Conv2d)
def _exchanged(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    kernel = w["weight"]
    return kernel.swapaxes(2, 3) if kernel.shape[2] == kernel.shape[3] else None


@_reweigh("kernel flipped", Conv2d)
def _flipped(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return w["weight"][..., ::-1, ::-1]


@_reweigh("kernel flipped left to right", Conv2d)
def _mirrored(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return w["weight"][..., ::-1]


@_reweigh("kernel bytes read as (H, W, I, O)", Conv2d)
def _as_hwio(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    kernel = w["weight"]
    filters, channels, height, width = kernel.shape
    return kernel.reshape(height, width, channels, filters).transpose(3, 2, 0, 1)


@_reweigh("input channels permuted", Conv2d)
def _channels(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return np.roll(w["weight"], 1, axis=1) if w["weight"].shape[1] > 1 else None


@_reweigh("filters permuted", Conv2d)
def _filters(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return w["weight"][::-1]


@_reweigh("a filter lost", Conv2d)
def _lost(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    kernel = w["weight"].copy()
    kernel[len(kernel) // 2] = 0
    return kernel


@_reweigh("bias dropped", Conv2d, Dense)
def _no_bias(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    return {"bias": 0 * w["bias"]} if "bias" in w else None


@_reweigh("bias added twice", Conv2d, Dense)
def _two_biases(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    return {"bias": 2 * w["bias"]} if "bias" in w else None


@_reweigh("rows in (H, W, C) order", Dense)
def _rows(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    flat = [n for n in model.walk() if isinstance(n.layer, Flatten)]
    matrix = w["weight"]
    if not flat or flat[-1].output_shape != (matrix.shape[1],):
        return None
    return matrix.reshape(len(matrix), *flat[-1].input_shape).transpose(0, 2, 3, 1).reshape(len(matrix), -1)


@_reweigh("matrix read transposed", Dense)
def _transposed(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    matrix = w["weight"]
    return matrix.reshape(matrix.shape[::-1]).T


@_reweigh("units permuted", Dense)
def _units(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    return {name: array[::-1] for name, array in w.items()}


@_reweigh("one weight with the wrong sign", Conv2d, Dense)
def _sign(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    array = w["weight"].copy()
    array.flat[np.abs(array).argmax()] *= -1
    return array


@_reweigh("weights off by 1e-3", Conv2d, Dense)
def _noisy(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    noise = 2 * uniform(0, f"selftest/{node.path}", w["weight"].size).reshape(w["weight"].shape) - 1
    return w["weight"] * (1 + 1e-3 * noise)


@_reweigh("weights of one layer in bfloat16", Conv2d, Dense)
def _bfloat16(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    bits = np.ascontiguousarray(w["weight"], np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@_reweigh("weights of one layer in int8", Conv2d, Dense)
def _int8(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    step = np.abs(w["weight"]).max() / 127
    return np.round(w["weight"] / step) * step


@_reweigh("weights of one layer in TF32", Conv2d, Dense, small=True)
def _tf32(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    """10 bits after the point of the mantissa."""
    bits = np.ascontiguousarray(w["weight"], np.float32).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


def _one_weight_off(share: float) -> Reweigh:
    def off(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
        array = w["weight"].copy()
        array.flat[np.abs(array).argmax()] *= 1 + share
        return array

    return off


_reweigh("one weight off by 1e-3", Conv2d, Dense, small=True)(_one_weight_off(1e-3))
_reweigh("one weight off by 1e-4", Conv2d, Dense, small=True)(_one_weight_off(1e-4))


@_reweigh("one weight lost", Conv2d, Dense, small=True)
def _one_lost(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    """The one of middle size."""
    array = w["weight"].copy()
    array.flat[np.argsort(np.abs(array), axis=None)[array.size // 2]] = 0
    return array


@_reweigh("one bias lost", Conv2d, Dense, small=True)
def _one_bias(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    if "bias" not in w:
        return None
    bias = w["bias"].copy()
    bias[np.abs(bias).argmax()] = 0
    return {"bias": bias}


@_reweigh("two channels exchanged", Conv2d, Dense, small=True)
def _two_channels(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    """The first two filters or units with their biases."""
    order = [1, 0, *range(2, len(w["weight"]))]
    return {name: array[order] for name, array in w.items()} if len(order) == len(w["weight"]) else None


@_reweigh("channels shuffled", Conv2d, small=True)
def _shuffled(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    """As ShuffleNet does with two groups: 0, 2, 4, ..., 1, 3, 5, ..."""
    kernel = w["weight"]
    return kernel[np.r_[0 : len(kernel) : 2, 1 : len(kernel) : 2]] if len(kernel) > 2 else None


@_reweigh("last filter off by 1e-3", Conv2d, Dense, small=True)
def _last_filter(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    array = w["weight"].copy()
    array[-1] *= 1 + 1e-3
    return array


@_reweigh("one filter flipped", Conv2d, small=True)
def _one_flipped(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    kernel = w["weight"].copy()
    kernel[0] = kernel[0, :, ::-1, ::-1]
    return kernel


@_reweigh("last row of the kernel lost", Conv2d, small=True)
def _last_row(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    kernel = w["weight"].copy()
    kernel[:, :, -1] = 0
    return kernel if kernel.shape[2] > 1 else None


@_reweigh("one block of the matrix transposed", Dense, small=True)
def _block(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    matrix, size = w["weight"].copy(), min(8, *w["weight"].shape)
    matrix[:size, :size] = matrix[:size, :size].T
    return matrix


@_reweigh("indices wrap at 256", Conv2d, Dense, small=True)
def _wrapped(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    """Weight number n is number n modulo 256, as an index of one byte reads it."""
    flat = w["weight"].reshape(-1)
    return flat[np.arange(flat.size) % 256].reshape(w["weight"].shape) if flat.size > 256 else None


@_reweigh("variance taken for the deviation", BatchNorm, small=True)
def _deviation(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    return {"running_var": w["running_var"] ** 2}


@_reweigh("running mean lost", BatchNorm, small=True)
def _no_mean(model: Model, w: Mapping[str, Array], node: Node) -> dict[str, Array] | None:
    return {"running_mean": 0 * w["running_mean"]}


@_reweigh("scale of the normalisation lost", BatchNorm, small=True)
def _no_gamma(model: Model, w: Mapping[str, Array], node: Node) -> Array | None:
    return np.ones_like(w["weight"])


# --- faults of all weights at once


def _float16(model: Model, weights: Weights) -> Weights:
    return {name: array.astype(np.float16).astype(np.float32) for name, array in weights.items()}


def _stale(model: Model, weights: Weights) -> Weights:
    """An earlier point on the straight line from the initial weights of seed 0 to these."""
    first = init_weights(model, 0)
    return {
        name: (array + 0.02 * (first[name] - array)).astype(np.float32) for name, array in weights.items()
    }


def _stale_head(model: Model, weights: Weights) -> Weights:
    path = [node.path for node in model.walk() if node.parameters][-1]
    stale = _stale(model, weights)
    return {name: (stale if name.startswith(f"{path}.") else weights)[name] for name in weights}


WHOLE: dict[str, Callable[[Model, Weights], Weights]] = {
    "weights in float16": _float16,
    "weights of another epoch": _stale,
    "last layer of another epoch": _stale_head,
}


# --- faults of the spec: each gives the layers that stand in one layer's place


def _respec(name: str, *layers: type[Layer], small: bool = False) -> Callable[[Respec], Respec]:
    if small:
        SMALL.add(name)

    def register(rule: Respec) -> Respec:
        RESPEC[name] = (layers, rule)
        return rule

    return register


@_respec("ReLU missing", ReLU)
def _no_relu(model: Model, node: Node) -> list[Layer] | None:
    return [_nothing(node)]


@_respec("pool of the other kind", MaxPool2d, AvgPool2d)
def _other_pool(model: Model, node: Node) -> list[Layer] | None:
    layer = node.layer
    if not isinstance(layer, (MaxPool2d, AvgPool2d)):
        return None
    other = AvgPool2d if isinstance(layer, MaxPool2d) else MaxPool2d
    return [other(layer.size, layer.stride, name=node.path)]


@_respec("padding on the wrong side", Conv2d)
def _padding_side(model: Model, node: Node) -> list[Layer] | None:
    layer: Any = node.layer
    top, left, bottom, right = layer.padding
    sides = (top + 1, left + 1, bottom - 1, right - 1)
    return [replace(layer, name=node.path, padding=sides)] if min(bottom, right) else None


@_respec("padding missing", Conv2d)
def _no_padding(model: Model, node: Node) -> list[Layer] | None:
    layer: Any = node.layer
    return [replace(layer, name=node.path, padding=0)] if any(layer.padding) else None


@_respec("stride of another size", Conv2d, MaxPool2d, AvgPool2d)
def _stride(model: Model, node: Node) -> list[Layer] | None:
    layer: Any = node.layer
    return [replace(layer, name=node.path, stride=tuple(n % 2 + 1 for n in layer.stride))]


@_respec("normalisation missing", Normalize)
def _no_normalize(model: Model, node: Node) -> list[Layer] | None:
    return [_nothing(node)]


@_respec("normalisation twice", Normalize)
def _two_normalizes(model: Model, node: Node) -> list[Layer] | None:
    return [replace(node.layer, name="again"), replace(node.layer, name=node.path)]


@_respec("normalisation of another data set", Normalize)
def _other_normalize(model: Model, node: Node) -> list[Layer] | None:
    channels = node.input_shape[0]
    return [Normalize((0.1307,) * channels, (1 / 0.3081,) * channels, name=node.path)]


@_respec("softmax missing", Softmax)
def _no_softmax(model: Model, node: Node) -> list[Layer] | None:
    return [_nothing(node)]


@_respec("softmax twice", Softmax)
def _two_softmaxes(model: Model, node: Node) -> list[Layer] | None:
    return [Softmax(name="again"), Softmax(name=node.path)]


def _nothing(node: Node) -> Layer:
    return Dropout(0.0, name=node.path)


def _other_fields(name: str, kind: type[Layer], **fields: Callable[[Any], Any]) -> None:
    """A fault that makes another number of each of these fields of a layer; none where it stays the same."""

    def changed(model: Model, node: Node) -> list[Layer] | None:
        layer: Any = node.layer
        other = replace(
            layer, name=node.path, **{key: change(getattr(layer, key)) for key, change in fields.items()}
        )
        return [other] if other != replace(layer, name=node.path) else None

    _respec(name, kind, small=True)(changed)


def _instead(name: str, kind: type[Layer], other: Layer) -> None:
    """A fault that puts another layer in a layer's place; none where it is that already."""
    _respec(name, kind, small=True)(
        lambda model, node: (
            [replace(other, name=node.path)]
            if replace(other, name=node.path) != replace(node.layer, name=node.path)
            else None
        )
    )


_other_fields("epsilon off by 10 %", BatchNorm, epsilon=lambda epsilon: 1.1 * epsilon)
_other_fields("epsilon of 1e-3", BatchNorm, epsilon=lambda _: 1e-3)
_other_fields("slope off by 1 %", LeakyReLU, slope=lambda slope: 1.01 * slope)
_other_fields("alpha off by 1 %", ELU, alpha=lambda alpha: 1.01 * alpha)
_other_fields("exponent of 0.5", LocalResponseNorm, beta=lambda _: 0.5)
_other_fields("fewer channels around", LocalResponseNorm, size=lambda size: max(1, size - 2))
_other_fields("mean counts its padding", AvgPool2d, count_padding=lambda counted: not counted)
_instead("GELU by the other formula", GELU, GELU("tanh"))
_instead("hard swish instead of SiLU", SiLU, HardSwish())
_instead("SiLU instead of hard swish", HardSwish, SiLU())
_instead("hard sigmoid instead of sigmoid", Sigmoid, HardSigmoid())
_instead("sigmoid instead of hard sigmoid", HardSigmoid, Sigmoid())
_instead("sigmoid instead of tanh", Tanh, Sigmoid())


@_respec("window smaller by one", MaxPool2d, AvgPool2d, small=True)
def _smaller_window(model: Model, node: Node) -> list[Layer] | None:
    layer: Any = node.layer
    if min(layer.size) < 2:
        return None
    return [replace(layer, name=node.path, size=tuple(n - 1 for n in layer.size))]


@_respec("dilation forgotten", Conv2d, small=True)
def _undilated(model: Model, node: Node) -> list[Layer] | None:
    """The kernel stays in the middle, so that the shape is the same."""
    layer: Any = node.layer
    missing = [(d - 1) * (k - 1) for d, k in zip(layer.dilation, layer.kernel, strict=True)]
    if not any(missing):
        return None
    top, left, bottom, right = layer.padding
    before = [n // 2 for n in missing]
    sides = (
        top - before[0],
        left - before[1],
        bottom - missing[0] + before[0],
        right - missing[1] + before[1],
    )
    return [replace(layer, name=node.path, dilation=1, padding=sides)]


def swaps(model: Model) -> Iterator[tuple[str, str]]:
    """The layers that could change places with the next in their chain: same shapes and weights both ways."""
    for node in model.walk():
        changed = swapped(model, node.path)
        if changed is not None:
            yield node.path, _next_in_chain(model, node.path)


def _next_in_chain(model: Model, path: str) -> str:
    found = ""

    def look(chain: Chain) -> Chain:
        nonlocal found
        paths = [other for other, _ in chain]
        if path in paths[:-1]:
            found = paths[paths.index(path) + 1]
        return chain

    rebuilt(model, look)
    return found


def swapped(model: Model, path: str) -> Model | None:
    """The model with one layer and the next in each other's place; None if they do not fit there."""

    def swap(chain: Chain) -> Chain:
        index = next((i for i, (other, _) in enumerate(chain) if other == path), len(chain))
        return [*chain[:index], *reversed(chain[index : index + 2]), *chain[index + 2 :]]

    changed = rebuilt(model, swap)
    if changed is None or changed.layers == rebuilt(model, list).layers:  # type: ignore[union-attr]
        return None
    return changed if _shapes(changed) == _shapes(model) and model.output == changed.output else None


Chain = list[tuple[str, Layer]]


def rebuilt(model: Model, edit: Callable[[Chain], Chain]) -> Model | None:
    """The model with every chain of layers edited, branches too; None if the layers do not fit then.

    edit: takes and gives pairs of path and layer; the layer's name is the last part of its path.
    """

    def chain(layers: Sequence[Layer], scope: str) -> tuple[Layer, ...]:
        named: Chain = []
        counts: Counter[str] = Counter()
        for layer in layers:
            counts[layer.kind] += 1
            name = layer.name or f"{layer.kind}{counts[layer.kind]}"
            path = scope + name
            if isinstance(layer, Join):
                layer = _with_branches(
                    layer, [chain(inner, f"{path}.{branch}.") for branch, inner in layer.chains().items()]
                )
            named.append((path, replace(layer, name=name)))
        return tuple(layer for _, layer in edit(named))

    try:
        return replace(model, layers=chain(model.layers, ""))
    except ZooError:
        return None


def _with_branches(layer: Join, branches: list[tuple[Layer, ...]]) -> Join:
    match layer:
        case Residual():
            return Residual(*branches, name=layer.name)
        case Concat():
            return Concat(branches, name=layer.name)
        case Scale():
            return Scale(branches[1], name=layer.name)
    raise AssertionError(f"how the branches of a {type(layer).__name__} are told is not known here")


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by name."""
    return {name: weight.shape for name, weight in iter_weights(model)}


# --- changes of a model from the rules above


def changes(fault: str, model: Model, weights: Weights) -> Iterator[Change]:
    """All models that a fault of weights or spec makes of a model, one for each place."""
    weighted = [node.path for node in model.walk() if node.parameters]
    if fault in WHOLE and weighted:
        changed = WHOLE[fault](model, weights)
        differ = [path for path in weighted if not _same(_own(changed, path), _own(weights, path))]
        if differ:
            yield Change(model, changed, frozenset(differ[:1]))
    elif fault == SWAPPED:
        for first, second in swaps(model):
            other = swapped(model, first)
            if other is not None:
                inside = (f"{first}.", f"{second}.")  # of a join, the layers in its branches
                shown = [node.path for node in model.walk() if node.path.startswith(inside)]
                yield Change(other, weights, frozenset((first, second, *shown)))
    elif fault in REWEIGH:
        layers, reweigh = REWEIGH[fault]
        for node in sites(model, layers):
            found = reweigh(model, _own(weights, node.path), node)
            if found is not None:
                changed = _with(weights, node.path, found)
                if not _same(changed, weights):
                    yield Change(model, changed, frozenset((node.path,)))
    elif fault in RESPEC:
        layers, respec = RESPEC[fault]
        for node in sites(model, layers):
            try:
                put = respec(model, node)
            except ZooError:  # there is no such layer
                continue
            if put is not None:
                yield Change(_replaced(model, node, put), weights, frozenset((node.path,)))


def _replaced(model: Model, node: Node, put: list[Layer]) -> Model | None:
    """The model with other layers in one layer's place; the one of its path keeps its name."""
    name = node.path.rpartition(".")[2]
    new = [(node.path, replace(layer, name=name) if layer.name == node.path else layer) for layer in put]

    def exchange(chain: Chain) -> Chain:
        return [pair for path, layer in chain for pair in (new if path == node.path else [(path, layer)])]

    changed = rebuilt(model, exchange)
    return changed if changed is not None and _shapes(changed) == _shapes(model) else None


def sites(model: Model, layers: tuple[type[Layer], ...]) -> Iterator[Node]:
    """The layers of some kinds."""
    return (node for node in model.walk() if isinstance(node.layer, layers))


def _own(weights: Weights, path: str) -> Weights:
    prefix = f"{path}."
    return {name.removeprefix(prefix): a for name, a in weights.items() if name.startswith(prefix)}


def _same(a: Weights, b: Weights) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def _with(weights: Weights, path: str, found: Array | dict[str, Array]) -> Weights:
    own = found if isinstance(found, dict) else {"weight": found}
    new = {f"{path}.{name}": np.ascontiguousarray(array, np.float32) for name, array in own.items()}
    return {**weights, **new}
