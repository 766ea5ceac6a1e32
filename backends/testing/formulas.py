"""Training written out in NumPy float64: what the steps of a backend are held to.

No derivative is taken for granted: `slope` differentiates the loss by differences of the reference's
outputs, and the two dense layers of `follow`, whose gradients are written by hand, are there to
follow the optimisers' formulas over many steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from backends.reference import rules
from zoo.layers import BatchNorm, Dense, Dropout, Flatten, SpatialDropout, Tanh
from zoo.model import IMAGE, Model
from zoo.randomness import dropout_mask
from zoo.recipe import SGD, Adam, Optimizer, Recipe, RMSprop
from zoo.training import measures
from zoo.weights import Weights

STEP = 1e-6  # of a difference


def masks(model: Model, seed: int, step: int, images: int) -> Weights:
    """The zoo's own mask of every dropout in one step, by path: see zoo.network.ComparableNetwork."""
    return {
        node.path: dropout_mask(
            seed, step, node.path, node.layer.rate, (images, *node.layer.mask_shape(node.input_shape))
        )
        for node in model.walk()
        if isinstance(node.layer, (Dropout, SpatialDropout))
    }


def loss(
    model: Model,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    dropped: Mapping[str, np.ndarray],
) -> float:
    """The recipe's loss as in a step of training: BatchNorm by the batch's statistics, dropout by masks.

    dropped: the masks by path.
    """
    tensors = {IMAGE: images.astype(np.float64)}
    for node in model.walk():
        names = [weight.name for weight in node.layer.weights(node.input_shape)]
        own = {name: weights[f"{node.path}.{name}"].astype(np.float64) for name in names}
        x: Any = node.take(tensors)
        if node.path in dropped:
            tensors[node.path] = x * dropped[node.path]
            continue
        if isinstance(node.layer, BatchNorm):
            axes = (0, *range(2, x.ndim))
            own |= {"running_mean": x.mean(axis=axes), "running_var": x.var(axis=axes)}
        tensors[node.path] = rules.apply(node.layer, x, own)
    return measures.cross_entropy(tensors[model.walk()[-1].path], labels)


def slope(
    model: Model,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    dropped: Mapping[str, np.ndarray],
    name: str,
    direction: np.ndarray,
) -> float:
    """The derivative of the loss by one weight tensor along a direction, by a central difference."""
    exact = {each: array.astype(np.float64) for each, array in weights.items()}
    ahead, behind = (
        loss(model, {**exact, name: exact[name] + step * direction}, images, labels, dropped)
        for step in (STEP, -STEP)
    )
    return (ahead - behind) / (2 * STEP)


def two_layers(optimizer: Optimizer, batch_size: int = 32) -> Model:
    """The model that `follow` trains."""
    layers = (Flatten(), Dense(12), Tanh(), Dense(10))
    return Model("two-layers", (1, 28, 28), layers, Recipe(optimizer, batch_size=batch_size, epochs=1))


def follow(
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    order: np.ndarray,
    recipe: Recipe,
    rates: np.ndarray | None = None,
) -> tuple[list[tuple[int, float, float]], Weights]:
    """One epoch of `two_layers`, straight from the formulas of zoo.recipe.

    What on_step is called with, step by step, and the weights after it. See zoo.network.Network.train_epoch.
    """
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    slots = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in w.items()}
    steps = []
    for t, start in enumerate(range(0, len(order), recipe.batch_size), start=1):
        batch = order[start : start + recipe.batch_size]
        x, y = images[batch].reshape(len(batch), -1).astype(np.float64), labels[batch]
        hidden = np.tanh(x @ w["dense1.weight"].T + w["dense1.bias"])
        z = hidden @ w["dense2.weight"].T + w["dense2.bias"]
        steps.append((t, measures.cross_entropy(z, y), measures.accuracy(z, y)))
        p = np.exp(z - z.max(axis=1, keepdims=True))
        d = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(batch)
        before = d @ w["dense2.weight"] * (1 - hidden**2)
        gradients = {
            "dense1.weight": before.T @ x,
            "dense1.bias": before.sum(axis=0),
            "dense2.weight": d.T @ hidden,
            "dense2.bias": d.sum(axis=0),
        }
        rate = recipe.optimizer.learning_rate if rates is None else float(rates[t - 1])
        for name, g in gradients.items():
            change, slots[name] = _change(recipe.optimizer, slots[name], g, rate, t)
            w[name] -= change
    return steps, w


def _change(
    o: Optimizer, slots: tuple[np.ndarray, np.ndarray], g: np.ndarray, rate: float, t: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """What an optimiser subtracts from a weight with the gradient g in step t, and its slots after it."""
    a, b = slots
    if isinstance(o, SGD):
        a = o.momentum * a + g
        return rate * (g + o.momentum * a if o.nesterov else a), (a, b)
    if isinstance(o, Adam):
        a = o.beta1 * a + (1 - o.beta1) * g
        b = o.beta2 * b + (1 - o.beta2) * g**2
        root = np.sqrt(b) / np.sqrt(1 - o.beta2**t)
        return rate / (1 - o.beta1**t) * a / (root + o.epsilon), (a, b)
    if isinstance(o, RMSprop):
        a = o.alpha * a + (1 - o.alpha) * g**2
        return rate * g / (np.sqrt(a) + o.epsilon), (a, b)
    raise NotImplementedError(type(o).__name__)
