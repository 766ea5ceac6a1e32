"""Known faults in the frameworks' lowerings, planted on purpose inside a worker: `zoo selftest`.

Each is a mistake that a backend's own code could make, in the one rule where it would be made. Nothing
plants them but a request by name, and only in a process whose results are meant to be wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import ModuleType
from typing import Any

from zoo.layers import AvgPool2d, Conv2d, Dropout, Flatten, Layer, MaxPool2d, Normalize, ReLU, Softmax

_planted = ExitStack()


def plant(fault: str, framework: str) -> None:
    """Take back what was planted, then plant a fault of FAULTS; none for ""."""
    _planted.close()
    if fault:
        kind, torch_rule, keras_rule = FAULTS[fault]
        module, rule = FRAMEWORKS[framework], torch_rule if framework == "torch" else keras_rule
        _planted.enter_context(_rule(sys.modules[module], kind, rule))


def _rule(module: ModuleType, kind: type[Layer], rule: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Another rule for one layer in a module's `lower`; it gets the honest one as its first argument."""
    honest = module.lower.dispatch(kind)
    stack = ExitStack()
    module.lower.register(kind)(lambda *arguments: rule(honest, *arguments))
    stack.callback(module.lower.register(kind), honest)
    return stack


# torch: (honest rule, layer, input shape) -> module


def _torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule whose module applies `function` to (tensor, layer, honest module)."""

    def rule(honest: Any, layer: Layer, input_shape: Any) -> Any:
        import torch

        class Faulty(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.honest = (honest(layer, input_shape),)  # in a tuple: it has no weights

            def forward(self, x: Any) -> Any:
                return function(x, layer, self.honest[0])

        return Faulty()

    return rule


def _torch_active(x: Any, layer: Any, honest: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(x.shape, generator=generator) >= layer.rate
    return x * kept.to(x.dtype) / (1 - layer.rate)


def _torch_kernel(honest: Any, layer: Any, input_shape: Any) -> Any:
    """The honest module with a forward that reads its kernel transposed."""
    import torch

    class Faulty(torch.nn.Conv2d):
        def forward(self, x: Any) -> Any:
            top, left, bottom, right = layer.padding
            x = torch.nn.functional.pad(x, (left, right, top, bottom))
            kernel = self.weight.transpose(2, 3).contiguous()
            return torch.nn.functional.conv2d(x, kernel, self.bias, layer.stride)

    return Faulty(input_shape[0], layer.filters, layer.kernel, bias=layer.bias)


# Keras: (honest rule, layer, x, path, dtype) -> symbolic output


def _keras(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule that applies `function` to (x, layer, path, dtype, honest rule)."""

    def rule(honest: Any, layer: Layer, x: Any, path: str, dtype: str) -> Any:
        return function(x, layer, path, dtype, honest)

    return rule


def _identity(x: Any, layer: Layer, path: str, dtype: str, honest: Any) -> Any:
    import keras

    return keras.layers.Identity(name=path, dtype=dtype)(x)


def _keras_active(x: Any, layer: Any, path: str, dtype: str, honest: Any) -> Any:
    import keras

    class Active(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            kept = keras.random.uniform(keras.ops.shape(x), seed=1) >= layer.rate
            return x * keras.ops.cast(kept, x.dtype) / (1 - layer.rate)

    return Active(name=path, dtype=dtype)(x)


def _keras_flatten(x: Any, layer: Layer, path: str, dtype: str, honest: Any) -> Any:
    """Flatten without the Permute before it."""
    import keras

    return keras.layers.Flatten(data_format="channels_last", name=path, dtype=dtype)(x)


def _keras_kernel(x: Any, layer: Any, path: str, dtype: str, honest: Any) -> Any:
    """A convolution that reads its kernel transposed: the same as one of the transposed image."""
    import keras

    turned = replace(layer, stride=layer.stride[::-1], padding=tuple(layer.padding[i] for i in (1, 0, 3, 2)))
    x = keras.layers.Permute((2, 1, 3), name=f"{path}.turned", dtype=dtype)(x)
    y = honest(turned, x, path, dtype)
    return keras.layers.Permute((2, 1, 3), name=f"{path}.back", dtype=dtype)(y)


def _keras_softmax(x: Any, layer: Layer, path: str, dtype: str, honest: Any) -> Any:
    import keras

    return keras.layers.Softmax(axis=0, name=path, dtype=dtype)(x)


def _other(layer: Any) -> Any:
    return (AvgPool2d if isinstance(layer, MaxPool2d) else MaxPool2d)(layer.size, layer.stride)


def _other_pool(honest: Any, layer: Any, *arguments: Any) -> Any:
    """The rule of the other pool; `honest` knows in which framework."""
    module = sys.modules[honest.__module__]
    return (module.avg_pool2d if isinstance(layer, MaxPool2d) else module.max_pool2d)(
        _other(layer), *arguments
    )


def _mirrored(honest: Any, layer: Any, *arguments: Any) -> Any:
    top, left, bottom, right = layer.padding
    shifted = (top + 1, left + 1, bottom - 1, right - 1) if min(bottom, right) else layer.padding
    return honest(replace(layer, padding=shifted), *arguments)


def _unscaled(honest: Any, layer: Any, *arguments: Any) -> Any:
    """The standard deviation taken for its inverse."""
    return honest(replace(layer, scale=tuple(1 / scale for scale in layer.scale)), *arguments)


FRAMEWORKS = {"torch": "backends.pytorch", "keras": "backends.keras3"}
FAULTS: dict[str, tuple[type[Layer], Callable[..., Any], Callable[..., Any]]] = {
    "code: dropout active": (Dropout, _torch(_torch_active), _keras(_keras_active)),
    "code: kernel read transposed": (Conv2d, _torch_kernel, _keras(_keras_kernel)),
    "code: flatten in (H, W, C) order": (
        Flatten,
        _torch(lambda x, layer, honest: x.permute(0, 2, 3, 1).flatten(1)),
        _keras(_keras_flatten),
    ),
    "code: padding on the wrong side": (Conv2d, _mirrored, _mirrored),
    "code: pool of the other kind": (MaxPool2d, _other_pool, _other_pool),
    "code: ReLU forgotten": (ReLU, _torch(lambda x, layer, honest: x), _keras(_identity)),
    "code: softmax over the batch": (
        Softmax,
        _torch(lambda x, layer, honest: x.softmax(0)),
        _keras(_keras_softmax),
    ),
    "code: division by the scale": (Normalize, _unscaled, _unscaled),
}
