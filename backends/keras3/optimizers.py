"""The recipe's optimisers in Keras, by the recipe's formulas.

Keras' own Adam and RMSprop put epsilon elsewhere than the documents' framework does. These are ordinary Keras
classes, compiled by Keras' own training.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.keras3.quiet import keras, ops
from zoo.recipe import SGD, Adam, Optimizer, RMSprop


class Rule(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A Keras optimiser that applies one written formula of zoo.recipe.

    Hyper-parameters become constants of the variable's own dtype: a Python float that passes
    through Keras' casts is rounded to float32 on TensorFlow, even in a float64 network.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, recipe: Any) -> None:
        super().__init__(learning_rate=recipe.learning_rate, name="optimizer")
        self.recipe = recipe

    def build(self, variables: Any) -> None:
        if self.built:
            return
        super().build(variables)
        # Keras' own learning rate is float32.
        self.rate = self.add_variable((), initializer="zeros", dtype="float64", name="rate")
        self.rate.assign(np.float64(self.recipe.learning_rate))
        self._slots = {
            slot: [self.add_variable_from_reference(v, name=slot) for v in variables] for slot in self.slots
        }

    def _slot(self, name: str, variable: Any) -> Any:
        return self._slots[name][self._get_variable_index(variable)]

    def _rate(self, variable: Any) -> Any:
        return ops.cast(self.rate, keras.backend.standardize_dtype(variable.dtype))

    @staticmethod
    def _constant(value: float, variable: Any) -> Any:
        return ops.convert_to_tensor(np.asarray(value, keras.backend.standardize_dtype(variable.dtype)))


class _SGD(Rule):
    slots = ("velocity",)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        rate = self._rate(variable)
        if self.recipe.momentum:
            momentum = self._constant(self.recipe.momentum, variable)
            slot = self._slot("velocity", variable)
            velocity = momentum * slot + gradient
            self.assign(slot, velocity)
            gradient = gradient + momentum * velocity if self.recipe.nesterov else velocity
        self.assign_sub(variable, rate * gradient)


class _Adam(Rule):
    slots = ("momentum", "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        beta1, beta2 = self.recipe.beta1, self.recipe.beta2
        m, v = self._slot("momentum", variable), self._slot("velocity", variable)
        # b m + (1 - b) g as m + (1 - b) (g - m): each pass over the weights takes time.
        new_m = m + self._constant(1 - beta1, m) * (gradient - m)
        new_v = v + self._constant(1 - beta2, v) * (ops.square(gradient) - v)
        self.assign(m, new_m)
        self.assign(v, new_v)
        # The bias corrections in float64: 1 - 0.999^t loses 1e-5 of itself in float32 at t = 1.
        t = ops.cast(self.iterations, "float64") + 1
        correction1 = 1 - ops.power(ops.convert_to_tensor(np.float64(beta1)), t)
        correction2 = ops.sqrt(1 - ops.power(ops.convert_to_tensor(np.float64(beta2)), t))
        # Both sides of the fraction are multiplied by the second, for the same reason.
        dtype = keras.backend.standardize_dtype(variable.dtype)
        rate = ops.cast(ops.convert_to_tensor(self.rate) * correction2 / correction1, dtype)
        epsilon = ops.cast(self.recipe.epsilon * correction2, dtype)
        self.assign_sub(variable, rate * new_m / (ops.sqrt(new_v) + epsilon))


class _RMSprop(Rule):
    slots = ("square",)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        alpha = self.recipe.alpha
        s = self._slot("square", variable)
        new_s = self._constant(alpha, s) * s + self._constant(1 - alpha, s) * ops.square(gradient)
        self.assign(s, new_s)
        rate = self._rate(variable)
        epsilon = self._constant(self.recipe.epsilon, variable)
        self.assign_sub(variable, rate * gradient / (ops.sqrt(new_s) + epsilon))


class Gradient(Rule):
    """Updates nothing and keeps the gradient: that of Keras' own compiled training, on any engine."""

    slots = ("gradient",)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.assign(self._slot("gradient", variable), gradient)

    def of(self, variable: Any) -> np.ndarray:
        return np.array(ops.convert_to_numpy(self._slot("gradient", variable)))


RULES: dict[type[Optimizer], type[Rule]] = {SGD: _SGD, Adam: _Adam, RMSprop: _RMSprop}
