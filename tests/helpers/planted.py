"""Faults that a test plants inside a worker: in the Keras side of a training, or in any lowering.

Each is a mistake that real ports have made. A worker that was started through `boot` does as its
framework should until it is asked to `plant` one. Nothing of this is reachable from the command line.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from zoo.layers import AvgPool2d, Conv2d, Layer, MaxPool2d

_planted = ExitStack()


def boot(first: str | None = None, backend: str = "keras") -> str:
    """What a worker runs first (client.PRELUDE), so that faults can be planted in it.

    first: a fault that is there from the start, if the process is for `backend`.
    """
    return f"""
sys.path.append({str(Path(__file__).parent)!r})
from backends.process.worker import Worker
import planted
Worker.plant = planted.plant
if {first!r} and sys.argv[1] == {backend!r}:
    planted.start({first!r})
"""


def plant(worker: Any, fields: dict[str, Any], arrays: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A worker's request: remove the fault that is there, and plant another, or none."""
    _planted.close()
    if fields["fault"]:
        start(fields["fault"])
    return {}, {}


def start(fault: str) -> None:
    _planted.enter_context({**FAULTS, **LOWERINGS}[fault]())


def _rule(kind: str, update: Callable[..., None]) -> AbstractContextManager[Any]:
    """Replace the update of one optimiser."""
    from backends.keras3 import optimizers

    return mock.patch.object(getattr(optimizers, kind), "update_step", update)


def _epsilon_hat() -> AbstractContextManager[Any]:
    """Keras' own Adam: epsilon is added before the bias correction, so it is 32 times larger at first."""
    from keras import ops

    def update(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        r = self.recipe
        m, v = self._slot("momentum", variable), self._slot("velocity", variable)
        self.assign(m, r.beta1 * m + (1 - r.beta1) * gradient)
        self.assign(v, r.beta2 * v + (1 - r.beta2) * ops.square(gradient))
        t = ops.cast(self.iterations, "float64") + 1
        rate = r.learning_rate * ops.sqrt(1 - ops.power(r.beta2, t)) / (1 - ops.power(r.beta1, t))
        self.assign_sub(variable, ops.cast(rate, variable.dtype) * m / (ops.sqrt(v) + r.epsilon))

    return _rule("_Adam", update)


def _dampening() -> AbstractContextManager[Any]:
    """Momentum as a moving average: the new gradient enters with 1 - momentum, save the first."""

    def update(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        slot = self._slot("velocity", variable)
        from keras import ops

        share = ops.where(self.iterations == 0, 1.0, 1 - self.recipe.momentum)
        self.assign(slot, self.recipe.momentum * slot + ops.cast(share, gradient.dtype) * gradient)
        self.assign_sub(variable, self.recipe.learning_rate * slot)

    return _rule("_SGD", update)


def _forgotten_bias() -> AbstractContextManager[Any]:
    """The first convolution's bias is no parameter of the optimiser."""
    from backends.keras3 import optimizers

    real = optimizers._SGD.update_step

    def update(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        path = self._trainable_variables[self._get_variable_index(variable)].path
        if path != "conv1/bias":
            real(self, gradient, variable, learning_rate)

    return _rule("_SGD", update)


def _rounded_beta() -> AbstractContextManager[Any]:
    """Constants pass through float32, as TensorFlow's cast of a Python number does."""
    import numpy as np

    from backends.keras3.optimizers import Rule

    real = Rule._constant
    rounded = staticmethod(lambda value, variable: real(float(np.float32(value)), variable))
    return mock.patch.object(Rule, "_constant", rounded)


def _other_order() -> AbstractContextManager[Any]:
    """The batches of another seed."""
    from zoo.training import order

    real = order.batch_order
    return mock.patch.object(
        order, "batch_order", lambda recipe, seed, epoch, images: real(recipe, seed + 1, epoch, images)
    )


def _single_softmax() -> AbstractContextManager[Any]:
    """The loss takes the output for probabilities, as Keras' own does behind a softmax."""
    import keras

    from backends.keras3 import network

    return mock.patch.object(network, "_cross_entropy", keras.losses.sparse_categorical_crossentropy)


def _own_masks() -> AbstractContextManager[Any]:
    """Dropout goes on drawing from the framework's generator."""
    from backends.keras3.network import KerasNetwork

    return mock.patch.object(KerasNetwork, "share_masks")


FAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "epsilon before the correction": _epsilon_hat,
    "momentum with dampening": _dampening,
    "a forgotten bias": _forgotten_bias,
    "constants rounded to float32": _rounded_beta,
    "another order of batches": _other_order,
    "one softmax for two": _single_softmax,
    "masks of its own": _own_masks,
}


def _taken_for(kind: type[Layer], other: Callable[[Any], Layer]) -> Callable[[], AbstractContextManager[Any]]:
    """The lowering of this worker's backend takes a layer for another one."""

    @contextmanager
    def planted() -> Iterator[None]:
        lower = importlib.import_module(MODULES[sys.argv[1]]).lower
        rules = dict(lower.registry)

        def mistaken(layer: Any, *rest: Any) -> Any:
            wrong = other(layer)
            return rules[type(wrong)](wrong, *rest)

        lower.register(kind, mistaken)
        try:
            yield
        finally:
            lower.register(kind, rules[kind])

    return planted


def _opposite_sides(layer: Conv2d) -> Conv2d:
    top, left, bottom, right = layer.padding
    return replace(layer, padding=(bottom, right, top, left))


MODULES = {"torch": "backends.pytorch.lowering", "keras": "backends.keras3.lowering"}
LOWERINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "padding on the opposite sides": _taken_for(Conv2d, _opposite_sides),
    "the largest for the mean": _taken_for(AvgPool2d, lambda layer: MaxPool2d(layer.size, layer.stride)),
    "a stride of the size": _taken_for(MaxPool2d, lambda layer: MaxPool2d(layer.size)),
}
