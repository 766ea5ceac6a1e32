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

from zoo.layers import (
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    Normalize,
    ReLU,
    Residual,
    Scale,
    Sigmoid,
    Softmax,
    Tanh,
)

_planted = ExitStack()


def plant(fault: str, framework: str) -> None:
    """Take back what was planted, then plant a fault of FAULTS; none for ""."""
    _planted.close()
    if fault:
        kind, *rules = FAULTS[fault]
        rule = rules[0 if framework == "torch" else 1]
        assert rule is not None
        _planted.enter_context(_rule(sys.modules[FRAMEWORKS[framework]], kind, rule))


def planted_in(framework: str) -> list[str]:
    """The faults that the code of a framework can have."""
    return [
        fault
        for fault, (_, torch_rule, keras_rule) in FAULTS.items()
        if (torch_rule if framework == "torch" else keras_rule) is not None
    ]


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
            settings = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
            return torch.nn.functional.conv2d(x, kernel, self.bias, **settings)

    return Faulty(input_shape[0], layer.filters, layer.kernel, bias=layer.bias, groups=layer.groups)


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

    turned = replace(
        layer,
        stride=layer.stride[::-1],
        dilation=layer.dilation[::-1],
        padding=tuple(layer.padding[i] for i in (1, 0, 3, 2)),
    )
    x = keras.layers.Permute((2, 1, 3), name=f"{path}.turned", dtype=dtype)(x)
    y = honest(turned, x, path, dtype)
    return keras.layers.Permute((2, 1, 3), name=f"{path}.back", dtype=dtype)(y)


def _keras_softmax(x: Any, layer: Layer, path: str, dtype: str, honest: Any) -> Any:
    import keras

    return keras.layers.Softmax(axis=0, name=path, dtype=dtype)(x)


def _other(layer: Any) -> Any:
    kind = AvgPool2d if isinstance(layer, MaxPool2d) else MaxPool2d
    return kind(layer.size, layer.stride, layer.padding, layer.ceil)


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


# Faults of a layer's output, of its input, or both, written once for the two frameworks: `f` is torch or
# keras.ops, whose functions have the same names, and `axis` the channels' axis.

Change = Callable[[Any, Any, Any, Any, int], Any]  # (y, x, layer, f, axis) -> y


def _output(change: Change) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The rules of both frameworks whose layer gives change(honest output, input, layer, f, axis)."""

    def torch_rule(honest: Any, layer: Layer, input_shape: Any) -> Any:
        import torch

        module = honest(layer, input_shape)
        forward = module.forward
        module.forward = lambda x: change(forward(x), x, layer, torch, 1)
        return module

    def keras_rule(honest: Any, layer: Layer, x: Any, path: str, dtype: str) -> Any:
        import keras

        class Faulty(keras.layers.Layer):  # type: ignore[misc]
            def call(self, y: Any, x: Any) -> Any:
                return change(y, x, layer, keras.ops, -1)

        return Faulty(name=f"{path}.faulty", dtype=dtype)(honest(layer, x, path, dtype), x)

    return torch_rule, keras_rule


def _input(change: Callable[[Any, Any, int], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The same for rules whose layer takes change(input, f, axis)."""

    def torch_rule(honest: Any, layer: Layer, input_shape: Any) -> Any:
        import torch

        module = honest(layer, input_shape)
        forward = module.forward
        module.forward = lambda x: forward(change(x, torch, 1))
        return module

    def keras_rule(honest: Any, layer: Layer, x: Any, path: str, dtype: str) -> Any:
        import keras

        class Faulty(keras.layers.Layer):  # type: ignore[misc]
            def call(self, x: Any) -> Any:
                return change(x, keras.ops, -1)

        return honest(layer, Faulty(name=f"{path}.faulty", dtype=dtype)(x), path, dtype)

    return torch_rule, keras_rule


def _bfloat16(x: Any, f: Any, axis: int) -> Any:
    if f.__name__ == "torch":
        return x.to(f.bfloat16).to(x.dtype)
    return f.cast(f.cast(x, "bfloat16"), x.dtype)


def _last_channel(y: Any, x: Any, layer: Any, f: Any, axis: int) -> Any:
    last = f.ones_like(y) - f.clip(f.flip(f.cumsum(f.ones_like(y), axis), (axis,)) - 1, 0, 1)
    return y * (1 + 1e-3 * last)


def _last_column(y: Any, x: Any, layer: Any, f: Any, axis: int) -> Any:
    return _last_channel(y, x, layer, f, 3 if axis == 1 else 2)


def _first_image(y: Any, x: Any, layer: Any, f: Any, axis: int) -> Any:
    first = 1 - f.clip(f.cumsum(f.ones_like(y), 0) - 1, 0, 1)
    return y * (1 + 1e-3 * first)


def _in_batches_of(size: int) -> Change:
    def change(y: Any, x: Any, layer: Any, f: Any, axis: int) -> Any:
        count = f.sum(f.ones_like(y[:, 0]))
        first = 1 - f.clip(f.cumsum(f.ones_like(y), 1) - 1, 0, 1)
        return y + f.where(f.abs(count - size) < 0.5, first, f.zeros_like(y))

    return change


def _without_maximum(y: Any, x: Any, layer: Any, f: Any, axis: int) -> Any:
    powers = f.exp(x)
    return powers / f.sum(powers, 1)[:, None]


def _sigmoid(x: Any, f: Any) -> Any:
    return 1 / (1 + f.exp(-x))


def _by_fraction(y: Any, x: Any, layer: Any, f: Any, axis: int) -> Any:
    """tanh as x (27 + x^2) / (27 + 9 x^2), clipped."""
    return f.clip(x * (27 + x * x) / (27 + 9 * x * x), -1, 1)


def _shuffled(y: Any, x: Any, layer: Any, f: Any, axis: int) -> Any:
    """The channels of even number, then the others."""
    pieces = (slice(0, None, 2), slice(1, None, 2))
    parts = [y[:, piece] if axis == 1 or len(y.shape) == 2 else y[..., piece] for piece in pieces]
    return f.concatenate(parts, axis)


def _next_column(x: Any, f: Any, axis: int) -> Any:
    """Every column is the next one's; the last stays."""
    if axis == 1:
        return f.concatenate([x[..., 1:], x[..., -1:]], 3)
    return f.concatenate([x[:, :, 1:], x[:, :, -1:]], 2)


def _epsilon(honest: Any, layer: Any, *arguments: Any) -> Any:
    return honest(replace(layer, epsilon=1.1 * layer.epsilon), *arguments)


def _counted(honest: Any, layer: Any, *arguments: Any) -> Any:
    return honest(replace(layer, count_padding=not layer.count_padding), *arguments)


# What only code that keeps something between calls, or writes where it reads, can do: torch's.


def _kept(honest: Any, layer: Layer, input_shape: Any) -> Any:
    """The first image's result of the call before, where there was one of the same shape."""
    module = honest(layer, input_shape)
    forward = module.forward
    kept: list[Any] = []

    def stale(x: Any) -> Any:
        y = forward(x)
        before = [old for old in kept if old.shape == y.shape]
        kept[:] = [y.clone()]
        if before:
            y = y.clone()
            y[:1] = before[0][:1]
        return y

    module.forward = stale
    return module


def _random(y: Any, x: Any, layer: Any, f: Any, axis: int) -> Any:
    return y * (1 + 1e-4 * f.randn(y.shape, dtype=y.dtype))


def _overwriting(honest: Any, layer: Layer, input_shape: Any) -> Any:
    """A ReLU that writes over its input, which somebody else may still want."""
    module = honest(layer, input_shape)
    module.forward = lambda x: x.relu_()
    return module


FRAMEWORKS = {"torch": "backends.pytorch.lowering", "keras": "backends.keras3.lowering"}
FAULTS: dict[str, tuple[type[Layer], Callable[..., Any] | None, Callable[..., Any] | None]] = {
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
    "code: slope of 1e-3 below 0": (
        ReLU,
        *_output(lambda y, x, layer, f, axis: y + 1e-3 * f.clip(x, -99, 0)),
    ),
    "code: bend at 0.01": (
        ReLU,
        *_output(lambda y, x, layer, f, axis: f.where(x > 0.01, x, f.zeros_like(x))),
    ),
    "code: inputs above 1 off by 1e-3": (
        ReLU,
        *_output(lambda y, x, layer, f, axis: f.where(x > 1, 1.001 * x, y)),
    ),
    "code: small numbers flushed at 1e-30": (
        ReLU,
        *_output(lambda y, x, layer, f, axis: f.where(f.abs(y) < 1e-30, f.zeros_like(y), y)),
    ),
    "code: last channel off by 1e-3": (Conv2d, *_output(_last_channel)),
    "code: last column off by 1e-3": (Conv2d, *_output(_last_column)),
    "code: channels shuffled": (Conv2d, *_output(_shuffled)),
    "code: output in bfloat16": (Conv2d, *_output(lambda y, x, layer, f, axis: _bfloat16(y, f, axis))),
    "code: products of bfloat16": (Dense, *_input(_bfloat16)),
    "code: first image off by 1e-3": (Dense, *_output(_first_image)),
    "code: 1 more in a batch of 5": (Dense, *_output(_in_batches_of(5))),
    "code: 1 more in a batch of 32": (Dense, *_output(_in_batches_of(32))),
    "code: window one to the right": (MaxPool2d, *_input(_next_column)),
    "code: mean counts its padding": (AvgPool2d, _counted, _counted),
    "code: epsilon off by 10 %": (BatchNorm, _epsilon, _epsilon),
    "code: softmax without its maximum": (Softmax, *_output(_without_maximum)),
    "code: sigmoid clipped at 8": (
        Sigmoid,
        *_output(lambda y, x, layer, f, axis: _sigmoid(f.clip(x, -8, 8), f)),
    ),
    "code: tanh by a fraction": (Tanh, *_output(_by_fraction)),
    "code: sum of a residual off by 1e-3": (Residual, *_output(lambda y, x, layer, f, axis: 1.001 * y)),
    "code: gate off by 1e-3": (Scale, *_output(lambda y, x, layer, f, axis: 1.001 * y)),
    "code: joined in another order": (Concat, *_output(lambda y, x, layer, f, axis: f.flip(y, (axis,)))),
    "code: output of the call before": (Dense, _kept, None),
    "code: not the same twice": (Dense, _output(_random)[0], None),
    "code: overwrites its input": (ReLU, _overwriting, None),
}
