"""JAX and Equinox as a backend of the CNN zoo: one rule per layer, pure functions, XLA.

A network is an Equinox module, that is, a tree of arrays: what the optimiser changes and what
BatchNorm keeps. Whatever changes is returned, nothing is assigned, so one function of a step is
compiled for every shape of batch and has no state to lose.

Tensors stay in the zoo's own form, images (N, C, H, W) and kernels (O, I, kh, kw). Dropout draws
from (the epoch's seed, the step, the layer), so an epoch that goes on in its middle needs no
generator's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import singledispatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from zoo.errors import InvalidInput, NotSupported, UnsupportedLayer
from zoo.fields import Pair, Sides
from zoo.layers import (
    ELU,
    GELU,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSigmoid,
    HardSwish,
    Layer,
    LeakyReLU,
    LocalResponseNorm,
    MaxPool2d,
    Normalize,
    ReLU,
    ReLU6,
    Residual,
    Scale,
    Shape,
    Sigmoid,
    SiLU,
    Softmax,
    SpatialDropout,
    Tanh,
)
from zoo.model import IMAGE, Model, Node, iter_weights
from zoo.network import OnStep
from zoo.randomness import dropout_mask
from zoo.recipe import SGD, Adam, Optimizer, Recipe, RMSprop
from zoo.weights import check

# Without it JAX has no float64; what is float32 stays so.
jax.config.update("jax_enable_x64", True)

CHUNK = 500  # images at a time in inference
SLOT = "optimizer:"  # in a state; no layer's name has a colon
STEPS = f"{SLOT}steps"
Tensors = dict[str, Array]


class Place(NamedTuple):
    """What a rule may need beside its input and weights.

    shape: of the input, without the batch. training: whether BatchNorm takes the batch's statistics.
    mask: what dropout multiplies by; None: nothing. moved: where BatchNorm puts its new statistics.
    """

    path: str
    shape: Shape
    training: bool
    mask: Array | None
    moved: Tensors


@singledispatch
def apply(layer: Layer, x: Any, w: Tensors, place: Place) -> Array:
    """The output of one layer for x (N, C, H, W) or (N, features), of a join the tuple of what it joins.

    w: the layer's own weights, by their names within it.
    """
    raise UnsupportedLayer(f"the backend 'jax' has no rule for {type(layer).__name__}")


@apply.register
def normalize(layer: Normalize, x: Array, w: Tensors, place: Place) -> Array:
    mean, scale = (jnp.array(each, x.dtype).reshape(1, -1, 1, 1) for each in (layer.mean, layer.scale))
    return (x - mean) * scale


@apply.register
def conv2d(layer: Conv2d, x: Array, w: Tensors, place: Place) -> Array:
    y = lax.conv_general_dilated(
        x,
        w["weight"],
        window_strides=layer.stride,
        padding=_by_axis(layer.padding)[2:],
        rhs_dilation=layer.dilation,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        feature_group_count=layer.groups,
        precision=lax.Precision.HIGHEST,
    )
    return y + w["bias"].reshape(1, -1, 1, 1) if layer.bias else y


@apply.register
def batch_norm(layer: BatchNorm, x: Array, w: Tensors, place: Place) -> Array:
    mean, variance = w["running_mean"], w["running_var"]
    if place.training:
        axes = (0, *range(2, x.ndim))
        mean, variance = x.mean(axes), x.var(axes)
        count = x.size // x.shape[1]
        unbiased = variance * (count / max(count - 1, 1))
        for name, new in (("running_mean", mean), ("running_var", unbiased)):
            old = w[name]
            place.moved[f"{place.path}.{name}"] = (1 - layer.momentum) * old + layer.momentum * new
    mean, variance, weight, bias = (
        each.reshape(1, -1, *(1,) * (x.ndim - 2)) for each in (mean, variance, w["weight"], w["bias"])
    )
    return (x - mean) / jnp.sqrt(variance + layer.epsilon) * weight + bias


@apply.register
def local_response_norm(layer: LocalResponseNorm, x: Array, w: Tensors, place: Place) -> Array:
    around = layer.size // 2
    window, padding = (1, layer.size, 1, 1), ((0, 0), (around, around), (0, 0), (0, 0))
    total = lax.reduce_window(x**2, 0.0, lax.add, window, (1, 1, 1, 1), padding)
    return x / (layer.k + layer.alpha / layer.size * total) ** layer.beta


@apply.register
def relu(layer: ReLU, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.relu(x)


@apply.register
def relu6(layer: ReLU6, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.relu6(x)


@apply.register
def leaky_relu(layer: LeakyReLU, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.leaky_relu(x, layer.slope)


@apply.register
def elu(layer: ELU, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.elu(x, layer.alpha)


@apply.register
def sigmoid(layer: Sigmoid, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.sigmoid(x)


@apply.register
def tanh(layer: Tanh, x: Array, w: Tensors, place: Place) -> Array:
    return jnp.tanh(x)


@apply.register
def gelu(layer: GELU, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.gelu(x, approximate=layer.approximate == "tanh")


@apply.register
def silu(layer: SiLU, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.silu(x)


@apply.register
def hard_sigmoid(layer: HardSigmoid, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.hard_sigmoid(x)


@apply.register
def hard_swish(layer: HardSwish, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.hard_swish(x)


@apply.register
def max_pool2d(layer: MaxPool2d, x: Array, w: Tensors, place: Place) -> Array:
    return _pooled(x, -jnp.inf, lax.max, layer.size, layer.stride, layer.sides(place.shape))


@apply.register
def avg_pool2d(layer: AvgPool2d, x: Array, w: Tensors, place: Place) -> Array:
    total = _pooled(x, 0.0, lax.add, layer.size, layer.stride, layer.sides(place.shape))
    return total / jnp.array(np.outer(*layer.counts(place.shape)), x.dtype)


@apply.register
def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, x: Array, w: Tensors, place: Place) -> Array:
    rows, columns = layer.cells(place.shape)
    return jnp.stack(
        [
            jnp.stack([x[:, :, top:bottom, left:right].mean((2, 3)) for left, right in columns], axis=-1)
            for top, bottom in rows
        ],
        axis=-2,
    )


@apply.register
def global_avg_pool2d(layer: GlobalAvgPool2d, x: Array, w: Tensors, place: Place) -> Array:
    return x.mean((2, 3), keepdims=True)


@apply.register
def dropout(layer: Dropout, x: Array, w: Tensors, place: Place) -> Array:
    return x if place.mask is None else x * place.mask


@apply.register
def spatial_dropout(layer: SpatialDropout, x: Array, w: Tensors, place: Place) -> Array:
    return x if place.mask is None else x * place.mask


@apply.register
def flatten(layer: Flatten, x: Array, w: Tensors, place: Place) -> Array:
    return x.reshape(len(x), -1)


@apply.register
def dense(layer: Dense, x: Array, w: Tensors, place: Place) -> Array:
    y = jnp.matmul(x, w["weight"].T, precision=lax.Precision.HIGHEST)
    return y + w["bias"] if layer.bias else y


@apply.register
def softmax(layer: Softmax, x: Array, w: Tensors, place: Place) -> Array:
    return jax.nn.softmax(x, axis=1)


@apply.register
def residual(layer: Residual, x: tuple[Array, Array], w: Tensors, place: Place) -> Array:
    body, shortcut = x
    return body + shortcut


@apply.register
def concat(layer: Concat, x: tuple[Array, ...], w: Tensors, place: Place) -> Array:
    return jnp.concatenate(x, axis=1)


@apply.register
def scale(layer: Scale, x: tuple[Array, Array], w: Tensors, place: Place) -> Array:
    image, factor = x
    return image * factor


def _by_axis(sides: Sides) -> tuple[Pair, Pair, Pair, Pair]:
    """(top, left, bottom, right) as (before, after) of the four axes of (N, C, H, W)."""
    top, left, bottom, right = sides
    return (0, 0), (0, 0), (top, bottom), (left, right)


def _pooled(x: Array, start: float, reduce: Any, size: Pair, stride: Pair, sides: Sides) -> Array:
    return lax.reduce_window(x, start, reduce, (1, 1, *size), (1, 1, *stride), _by_axis(sides))


@singledispatch
def update(recipe: Optimizer, slots: tuple[Array, ...], g: Array, factors: Tensors) -> Any:
    """One step of an optimiser for one weight: what to subtract from it, and the new slots.

    g: the gradient. factors: the numbers that change from step to step, see `factors_of`.
    """
    raise UnsupportedLayer(f"the backend 'jax' has no optimizer {type(recipe).__name__}")


@update.register
def sgd(recipe: SGD, slots: tuple[Array, ...], g: Array, factors: Tensors) -> Any:
    v = recipe.momentum * slots[0] + g
    return factors["rate"] * (g + recipe.momentum * v if recipe.nesterov else v), (v,)


@update.register
def adam(recipe: Adam, slots: tuple[Array, ...], g: Array, factors: Tensors) -> Any:
    m = recipe.beta1 * slots[0] + (1 - recipe.beta1) * g
    v = recipe.beta2 * slots[1] + (1 - recipe.beta2) * g**2
    return factors["corrected rate"] * m / (jnp.sqrt(v) / factors["root"] + recipe.epsilon), (m, v)


@update.register
def rmsprop(recipe: RMSprop, slots: tuple[Array, ...], g: Array, factors: Tensors) -> Any:
    s = recipe.alpha * slots[0] + (1 - recipe.alpha) * g**2
    return factors["rate"] * g / (jnp.sqrt(s) + recipe.epsilon), (s,)


SLOTS = {SGD: 1, Adam: 2, RMSprop: 1}  # tensors per weight; all start at 0


def factors_of(recipe: Optimizer, rate: float, t: int, dtype: Any) -> Tensors:
    """The numbers of step t, computed in float64 and rounded once.

    They are arguments of the compiled step, which would otherwise be compiled anew for each of them.
    """
    factors = {"rate": rate}
    if isinstance(recipe, Adam):
        factors["corrected rate"] = rate / (1 - recipe.beta1**t)
        factors["root"] = (1 - recipe.beta2**t) ** 0.5
    return {name: np.asarray(value, dtype) for name, value in factors.items()}


class CNN(eqx.Module):
    """A model as a tree of arrays: its trained weights, and the statistics of its BatchNorms."""

    trained: Tensors
    running: Tensors
    nodes: tuple[Node, ...] = eqx.field(static=True)

    def outputs(self, images: Array, masks: Tensors | None = None) -> tuple[Tensors, Tensors]:
        """Every layer's output by path, and the statistics that have moved.

        masks: of every dropout by its path, while training; None: inference.
        """
        weights = {**self.trained, **self.running}
        tensors, moved = {IMAGE: images}, dict(self.running)
        for node in self.nodes:
            own = {
                weight.name: weights[f"{node.path}.{weight.name}"]
                for weight in node.layer.weights(node.input_shape)
            }
            mask = None if masks is None else masks.get(node.path)
            place = Place(node.path, node.input_shape, masks is not None, mask, moved)
            tensors[node.path] = apply(node.layer, node.take(tensors), own, place)
        del tensors[IMAGE]
        return tensors, moved


@eqx.filter_jit
def _predict(network: CNN, images: Array) -> Array:
    return network.outputs(images)[0][network.nodes[-1].path]


@eqx.filter_jit
def _activations(network: CNN, images: Array) -> Tensors:
    return network.outputs(images)[0]


def _loss(trained: Tensors, network: CNN, images: Array, labels: Array, masks: Tensors) -> Any:
    """The recipe's loss over a batch; how many of its images are right, and BatchNorm's new statistics."""
    network = CNN(trained, network.running, network.nodes)
    tensors, moved = network.outputs(images, masks)
    y = tensors[network.nodes[-1].path]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(y, axis=1), labels[:, None], axis=1)
    return -chosen.mean(), ((y.argmax(axis=1) == labels).sum(), moved)


_differentiated = jax.value_and_grad(_loss, has_aux=True)
_gradients = eqx.filter_jit(_differentiated)


@eqx.filter_jit
def _step(
    network: CNN,
    slots: dict[str, tuple[Array, ...]],
    images: Array,
    labels: Array,
    masks: Tensors,
    factors: Tensors,
    recipe: Optimizer,
) -> tuple[CNN, dict[str, tuple[Array, ...]], Array, Array]:
    """One step of training: the network and the optimiser after it, the loss and the hits before it."""
    (loss, (hits, moved)), gradients = _differentiated(network.trained, network, images, labels, masks)
    updates = {name: update(recipe, slots[name], g, factors) for name, g in gradients.items()}
    trained = {name: w - updates[name][0] for name, w in network.trained.items()}
    slots = {name: new for name, (_, new) in updates.items()}
    return CNN(trained, moved, network.nodes), slots, loss, hits


class JaxNetwork:
    """A model in JAX; a zoo.network.ComparableNetwork."""

    def __init__(self, model: Model, weights: Mapping[str, np.ndarray], dtype: str) -> None:
        for node in model.walk():
            if apply.dispatch(type(node.layer)) is apply.dispatch(object):
                apply(node.layer, None, {}, None)
        self.model = model
        self.dtype = np.dtype(dtype)
        self._recipe: Optimizer | None = None
        self._slots: dict[str, tuple[Array, ...]] = {}
        self._steps = 0  # that the optimiser has done
        self._restored: Mapping[str, np.ndarray] = {}  # of a state, until the recipe is known
        self._shares_masks = False
        self._take(check(model, weights))

    def _take(self, weights: Mapping[str, np.ndarray]) -> None:
        parts: tuple[Tensors, Tensors] = ({}, {})
        for name, weight in iter_weights(self.model):
            parts[not weight.trained][name] = jnp.array(weights[name], self.dtype)
        self.network = CNN(*parts, self.model.walk())

    def _chunks(self, images: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(images), CHUNK):
            yield images[start : start + CHUNK].astype(self.dtype)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in the network's dtype."""
        return np.concatenate([_predict(self.network, chunk) for chunk in self._chunks(images)])

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path."""
        parts = [_activations(self.network, chunk) for chunk in self._chunks(images)]
        return {node.path: np.concatenate([part[node.path] for part in parts]) for node in self.model.walk()}

    def weights(self) -> dict[str, np.ndarray]:
        """The current weights in canonical form."""
        arrays = {**self.network.trained, **self.network.running}
        return {name: np.array(arrays[name]) for name, _ in iter_weights(self.model)}

    def export_native(self, path: str | Path) -> None:
        """Always raises NotSupported."""
        raise NotSupported("JAX exports ONNX only with jax2onnx, which is not used here")

    def train_epoch(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: np.ndarray,
        recipe: Recipe,
        on_step: OnStep,
        seed: int = 0,
        done: int = 0,
        rates: np.ndarray | None = None,
    ) -> None:
        """One epoch of compiled steps over images[order]."""
        rule = recipe.optimizer
        self._prepare(rule)
        size = recipe.batch_size
        for step, start in enumerate(range(done * size, len(order), size), start=done + 1):
            batch = order[start : start + size]
            rate = rule.learning_rate if rates is None else float(rates[step - 1])
            self._steps += 1
            self.network, self._slots, loss, hits = _step(
                self.network,
                self._slots,
                images[batch].astype(self.dtype),
                labels[batch],
                self._masks(seed, step, len(batch)),
                factors_of(rule, rate, self._steps, self.dtype),
                rule,
            )
            on_step(step, float(loss), int(hits) / len(batch))

    def _prepare(self, recipe: Optimizer) -> None:
        """Slots for an optimiser: the present ones, those of a restored state, or zeros."""
        if self._recipe == recipe:
            return
        if type(recipe) not in SLOTS:
            update(recipe, (), None, {})
        self._recipe = recipe
        self._steps = int(self._restored.get(STEPS, 0))
        self._slots = {
            name: tuple(
                jnp.array(self._restored.get(f"{SLOT}{name}:{i}", np.zeros(w.shape)), self.dtype)
                for i in range(SLOTS[type(recipe)])
            )
            for name, w in self.network.trained.items()
        }
        self._restored = {}

    def _masks(self, seed: int, step: int, images: int) -> Tensors:
        """What every dropout multiplies by in a step: our own draws, or the zoo's where they are shared."""
        masks = {}
        for number, node in enumerate(self.model.walk()):
            if not isinstance(node.layer, (Dropout, SpatialDropout)):
                continue
            rate, shape = node.layer.rate, (images, *node.layer.mask_shape(node.input_shape))
            if self._shares_masks:
                mask = dropout_mask(seed, step, node.path, rate, shape)
            else:
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number)
                mask = jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)
            masks[node.path] = jnp.array(mask, self.dtype)
        return masks

    def gradients(
        self, images: np.ndarray, labels: np.ndarray, seed: int = 0
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss over these images and its gradients, by the names of the weights."""
        masks = self._masks(seed, 1, len(labels))
        (loss, _), found = _gradients(
            self.network.trained, self.network, images.astype(self.dtype), labels, masks
        )
        return float(loss), {name: np.array(found[name]) for name in self.network.trained}

    def share_masks(self, batch_size: int) -> None:
        """Give every dropout the zoo's own masks from now on."""
        self._shares_masks = True

    def change_layout(self) -> None:
        """Always raises NotSupported: XLA chooses its layouts itself."""
        raise NotSupported("JAX computes in the memory layout that XLA chooses")

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Weights and the optimiser's tensors ("optimizer:<weight>:<i>"); dropout has no state."""
        tensors = {**self.weights(), **self._restored}
        for name, slots in self._slots.items():
            tensors |= {f"{SLOT}{name}:{i}": np.array(slot) for i, slot in enumerate(slots)}
        return {STEPS: np.array(self._steps), **tensors}, {}

    def restore(self, tensors: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> None:
        """Take weights and the optimiser's tensors; the optimiser itself comes with the recipe."""
        self._take(tensors)
        self._recipe, self._slots, self._steps = None, {}, 0
        self._restored = {name: array for name, array in tensors.items() if name.startswith(SLOT)}


class JaxBackend:
    """JAX as a zoo.network.Backend."""

    name = "jax"

    def build(self, model: Model, weights: Mapping[str, np.ndarray], dtype: str = "float32") -> JaxNetwork:
        """The network of a model; raises UnsupportedLayer if a layer has no rule here."""
        if dtype not in ("float32", "float64"):
            raise InvalidInput(f"dtype {dtype!r} is neither float32 nor float64")
        return JaxNetwork(model, weights, dtype)

    def versions(self) -> dict[str, str]:
        """The versions of JAX, its compiler and Equinox."""
        return {name: version(name) for name in ("jax", "jaxlib", "equinox")}


def backend(engine: str | None = None) -> JaxBackend:
    """What the entry point names."""
    return JaxBackend()
