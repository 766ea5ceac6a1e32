"""A model as a Keras model that infers and trains: zoo.network.Network for Keras.

Keras' own cross-entropy undoes a softmax in front of it, so the loss here follows the recipe's formula.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backends.keras3.lowering import TO_NCHW, TO_NHWC, DenseOfImage, is_depthwise, layer_name, lower
from backends.keras3.optimizers import RULES, Gradient, Rule
from backends.keras3.quiet import keras, ops, quietly
from zoo.errors import NotSupported, UnsupportedLayer
from zoo.layers import (
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Join,
    LeakyReLU,
    LocalResponseNorm,
    SpatialDropout,
)
from zoo.machine import ONE_BATCH, version
from zoo.model import IMAGE, Model, Node
from zoo.network import OnStep
from zoo.randomness import dropout_mask, raw_bits
from zoo.recipe import SGD, Recipe
from zoo.weights import check

CHUNK = 500  # images at a time in inference, where there are more than ONE_BATCH
OPSET = 18  # the newest that tf2onnx writes


def _cross_entropy(labels: Any, outputs: Any) -> Any:
    """-log_softmax(outputs)[label] per image, whatever layer gave the outputs."""
    log_softmax = ops.log_softmax(outputs, axis=-1)
    rows = ops.reshape(ops.cast(labels, "int32"), (-1, 1))  # with one class Keras has made it so already
    return -ops.take_along_axis(log_softmax, rows, axis=-1)[:, 0]


class _OfBatch(keras.metrics.Metric):  # type: ignore[misc]
    """A sum over the last batch alone, so that nothing is to be reset between two batches.

    terms: (labels, outputs) -> (N,).
    """

    def __init__(self, terms: Callable[[Any, Any], Any], name: str, dtype: str) -> None:
        super().__init__(name=name, dtype=dtype)
        self._terms = terms
        self._sum = self.add_variable((), initializer="zeros", name="sum")

    def update_state(self, labels: Any, outputs: Any, sample_weight: Any = None) -> None:
        self._sum.assign(ops.sum(ops.cast(self._terms(labels, outputs), self.dtype)))

    def result(self) -> Any:
        return ops.convert_to_tensor(self._sum)

    def reset_state(self) -> None:
        """Nothing to do: the next batch replaces the sum."""


def _hits(labels: Any, outputs: Any) -> Any:
    """Whether the largest output of an image is at its label."""
    return ops.equal(ops.argmax(outputs, axis=-1), ops.reshape(ops.cast(labels, "int32"), (-1,)))


def _compile(network: Any, rule: Rule, dtype: str, masked: bool) -> None:
    """Compile a Keras model for training by a rule, with the recipe's loss.

    `train_on_batch` then gives sums over its batch as "losses" and "hits". Keras' own running mean of the
    loss is not read, so it need not be reset either: that took up to a tenth of a small model's step.
    masked: whether dropout takes its masks from variables. They are not the model's, so what JAX compiles
    would keep the values of the first step; there every step is run as it is written.
    """
    engine = keras.backend.backend()
    network.reset_metrics = _keep_metrics
    network.compile(
        optimizer=rule,
        loss=_cross_entropy,
        metrics=[_OfBatch(_cross_entropy, "losses", dtype), _OfBatch(_hits, "hits", dtype)],
        jit_compile=False if engine == "tensorflow" else "auto",
        run_eagerly=masked and engine == "jax",
    )
    rule.build(network.trainable_variables)


def _keep_metrics() -> None:
    """In place of keras.Model.reset_metrics; see _compile."""


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """Keras' two global switches of precision, both of which must be set, and set back."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _plain_sums() -> contextlib.AbstractContextManager[None]:
    """Convolutions without cuDNN on torch: its transforms round more than sums of products can."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
    return flags


@contextlib.contextmanager
def _sound_graphs(model: Model) -> Iterator[None]:
    """TensorFlow's graphs without its remapper, where that breaks them.

    It fuses a product with what follows it, and where an addition or a leaky ReLU is taken by others as well
    (TensorFlow 2.21) it leaves nodes out that are needed. The next optimiser then gives up, with an error.
    """
    broken = any(isinstance(node.layer, (Join, LeakyReLU)) for node in model.walk())
    if not broken or keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow

    rewriting = tensorflow.config.optimizer
    rewriting.set_experimental_options({"remapping": False})
    try:
        yield
    finally:
        rewriting.set_experimental_options({"remapping": True})


class _Variable(NamedTuple):
    """One weight: its canonical name and shape, and Keras' variable with a shape and axes of its own.

    shape, axes: the canonical array takes this shape, and then its axes are transposed, for Keras.
    """

    name: str
    canonical: tuple[int, ...]
    variable: Any
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    trained: bool

    def assign(self, array: np.ndarray, dtype: str) -> None:
        """Give the variable the values of a canonical array."""
        turned = array.reshape(self.shape).transpose(self.axes)
        self.variable.assign(np.ascontiguousarray(turned).astype(dtype))

    def canonical_array(self, values: np.ndarray) -> np.ndarray:
        """Values in Keras' layout (the variable's, or a gradient) as a canonical array."""
        back = np.argsort(self.axes)
        return np.ascontiguousarray(values.transpose(back)).reshape(self.canonical)


# The axes of Keras' layout in the canonical one, by the number of dimensions.
_AXES: dict[int, tuple[int, ...]] = {
    4: (2, 3, 1, 0),  # OIHW -> HWIO
    2: (1, 0),  # (units, features) -> (features, units)
    1: (0,),
}


def _cuts_channels(node: Node) -> bool:
    """Whether a convolution is in groups and not depthwise."""
    layer = node.layer
    return isinstance(layer, Conv2d) and layer.groups > 1 and not is_depthwise(layer, node.input_shape[0])


def _at_a_time(images: np.ndarray) -> int:
    """How many of these images one batch of inference has."""
    return CHUNK if len(images) > ONE_BATCH else ONE_BATCH


def _predicted(network: Any, images: np.ndarray, one_batch: int) -> Any:
    """What Keras' `predict` gives; without its loop, which takes 40 ms, for up to `one_batch` images."""
    if len(images) <= one_batch:
        return network.predict_on_batch(images)
    return network.predict(images, batch_size=CHUNK, verbose=0)


class KerasNetwork:
    """A model in Keras; a zoo.network.Network."""

    def __init__(self, model: Model, weights: Mapping[str, np.ndarray], dtype: str) -> None:
        self.model = model
        self.dtype = dtype
        checked = check(model, weights)
        with _precision(dtype):
            image = keras.Input(model.input_shape, name="image", dtype=dtype)
            x = keras.layers.Permute(TO_NHWC, name="image.nhwc", dtype=dtype)(image)
            tensors = {IMAGE: x}
            for node in model.walk():
                x = tensors[node.path] = lower(node.layer, node.take(tensors), layer_name(node.path), dtype)
            self._outputs = {path: tensor for path, tensor in tensors.items() if path != IMAGE}
            if len(model.output_shape) == 3:
                x = keras.layers.Permute(TO_NCHW, name="features.nchw", dtype=dtype)(x)
            self.network = keras.Model(image, x, name=model.name)
            self._training = self._for_training()
        self._inner: Any = None
        self._rule: Rule | None = None
        self._pending: dict[str, np.ndarray] = {}
        self._masks: dict[str, Any] = {}
        self._load(checked)

    def _for_training(self) -> Any:
        """The network on the same layers and weights, without the Permute of its images before a dense layer.

        Only where the rest is a chain; otherwise the network itself.
        """
        nodes = list(self.model.walk())
        kinds = [type(node.layer) for node in nodes]
        for i in range(1, len(nodes) - 1):
            chain = all(node.inputs == (before.path,) for before, node in pairwise(nodes[i - 1 :]))
            image = len(nodes[i].input_shape) == 3 and nodes[i].input_shape[0] > 1  # else nothing to reorder
            if kinds[i : i + 2] == [Flatten, Dense] and image and chain:
                dense = layer_name(nodes[i + 1].path)
                x = self._outputs[nodes[i - 1].path]
                x = DenseOfImage(self.network.get_layer(dense), name=f"{dense}.image", dtype=self.dtype)(x)
                for node in nodes[i + 2 :]:
                    x = self.network.get_layer(layer_name(node.path))(x)
                return keras.Model(self.network.input, x)
        return self.network

    def _variables(self) -> Iterator[_Variable]:
        """Every weight in the model's order."""
        names = {layer.name for layer in self.network.layers}
        for node in self.model.walk():
            every = layer_name(f"{node.path}.every")  # of a convolution that is thinned out afterwards
            for weight in node.layer.weights(node.input_shape):
                layer = self.network.get_layer(every if every in names else layer_name(node.path))
                variable = layer.kernel if weight.name == "weight" else getattr(layer, weight.name)
                shape, axes = weight.shape, _AXES[len(weight.shape)]
                if isinstance(layer, keras.layers.DepthwiseConv2D) and len(shape) == 4:
                    channels = node.input_shape[0]  # C m, 1, kh, kw -> C, m, kh, kw -> kh, kw, C, m
                    shape, axes = (channels, shape[0] // channels, *shape[2:]), (2, 3, 0, 1)
                name = f"{node.path}.{weight.name}"
                yield _Variable(name, weight.shape, variable, shape, axes, weight.trained)

    def _load(self, weights: Mapping[str, np.ndarray]) -> None:
        for variable in self._variables():
            variable.assign(weights[variable.name], self.dtype)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, *model.output_shape) in the network's dtype."""
        with _precision(self.dtype), _plain_sums(), _sound_graphs(self.model):
            images = images.astype(self.dtype)
            return np.asarray(_predicted(self.network, images, ONE_BATCH))

    def call(self, images: np.ndarray) -> np.ndarray:
        """The same as `predict` by calling the network itself: eagerly, without Keras' loop over batches."""
        with _precision(self.dtype), _plain_sums():
            size = _at_a_time(images)
            chunks = (images[start : start + size] for start in range(0, len(images), size))
            called = [
                self.network(ops.convert_to_tensor(x.astype(self.dtype)), training=False) for x in chunks
            ]
            return np.concatenate([ops.convert_to_numpy(x) for x in called])

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path, 4-D ones back in NCHW."""
        with _precision(self.dtype), _plain_sums(), _sound_graphs(self.model):
            if self._inner is None:
                self._inner = keras.Model(self.network.input, self._outputs)
            images = images.astype(self.dtype)
            outputs = _predicted(self._inner, images, CHUNK)
        paths = [node.path for node in self.model.walk()]  # JAX sorts what it gives by name
        return {
            path: np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x
            for path, x in ((path, outputs[path]) for path in paths)
        }

    def weights(self) -> dict[str, np.ndarray]:
        """The current weights in canonical form."""
        return {
            each.name: each.canonical_array(ops.convert_to_numpy(each.variable)) for each in self._variables()
        }

    def export_native(self, path: str | Path) -> None:
        """Keras' own Model.export to ONNX."""
        grouped = next((node for node in self.model.walk() if _cuts_channels(node)), None)
        if grouped is not None and keras.backend.backend() == "tensorflow":  # it would write a broken file
            raise NotSupported("tf2onnx cannot export a convolution in groups", grouped.path)
        flat = (
            n for n in self.model.walk() if isinstance(n.layer, LocalResponseNorm) and n.input_shape[1] == 1
        )
        if (row := next(flat, None)) and keras.backend.backend() == "tensorflow":
            raise NotSupported("tf2onnx writes wrong shapes for this layer on images of one row", row.path)
        if keras.backend.backend() == "jax":
            raise NotSupported("Keras exports ONNX from JAX only with jax2onnx, which is not used here")
        needs = "tf2onnx" if keras.backend.backend() == "tensorflow" else "onnxscript"
        if version(needs) is None:
            raise NotSupported(f"Keras' ONNX export needs {needs}", "", f"pip install {needs}")
        self.network(np.zeros((1, *self.model.input_shape), dtype=self.dtype))  # Keras insists on a call
        with quietly():
            self.network.export(str(path), format="onnx", verbose=False, opset_version=OPSET)
        if not Path(path).is_file():
            raise NotSupported("Keras' ONNX export wrote no file")

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
        """One epoch of Keras' compiled training over images[order]."""
        with _precision(self.dtype), _sound_graphs(self.model):
            rule = self._compile(recipe)
            if rates is None:
                rule.rate.assign(recipe.optimizer.learning_rate)
            if not done:
                self._seed_dropout(seed)
            size = recipe.batch_size
            for step, start in enumerate(range(done * size, len(order), size), start=done + 1):
                batch = order[start : start + size]
                self._give_masks(seed, step, len(batch))
                if rates is not None:
                    rule.rate.assign(rates[step - 1])
                x = images[batch].astype(self.dtype, copy=False)
                sums = self._training.train_on_batch(x, labels[batch], return_dict=True)
                on_step(step, float(sums["losses"]) / len(batch), float(sums["hits"]) / len(batch))

    def _dropouts(self) -> Iterator[tuple[Node, Dropout | SpatialDropout]]:
        for node in self.model.walk():
            if isinstance(node.layer, (Dropout, SpatialDropout)):
                yield node, node.layer

    def _seed_dropout(self, seed: int) -> None:
        for path, generator in self._generators():
            draw = raw_bits(seed, path, 2) >> np.uint64(33)
            generator.state.assign(draw.astype(generator.state.dtype))

    def _generators(self) -> Iterator[tuple[str, Any]]:
        """The generators of all dropouts, by path; one that drops nothing has none."""
        for node, layer in self._dropouts():
            if layer.rate:
                yield node.path, self.network.get_layer(layer_name(node.path)).seed_generator

    def gradients(
        self, images: np.ndarray, labels: np.ndarray, seed: int = 0
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss over these images and its gradients, by the names of the weights."""
        with _precision(self.dtype), _sound_graphs(self.model):
            twin = keras.Model(self._training.input, self._training.output)  # the same layers
            rule = Gradient(SGD(0.0))
            _compile(twin, rule, self.dtype, bool(self._masks))
            self._seed_dropout(seed)
            self._give_masks(seed, 1, len(labels))
            running = [
                (each.variable, np.array(ops.convert_to_numpy(each.variable)))
                for each in self._variables()
                if not each.trained
            ]
            sums = twin.train_on_batch(images.astype(self.dtype), labels, return_dict=True)
            for variable, before in running:  # a normalisation moves its own
                variable.assign(before)
            found = {
                each.name: each.canonical_array(rule.of(each.variable))
                for each in self._variables()
                if each.trained
            }
        return float(sums["losses"]) / len(labels), found

    def share_masks(self, batch_size: int) -> None:
        """Give every dropout the zoo's own masks from now on, which must be before any training."""
        for node, rule in self._dropouts():
            layer = self.network.get_layer(layer_name(node.path))
            shape = rule.mask_shape(node.input_shape)
            shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
            zeros = np.zeros((batch_size, *shape), dtype=self.dtype)
            variable = keras.Variable(zeros, dtype=self.dtype, trainable=False)
            self._masks[node.path] = variable
            layer.mask = functools.partial(ops.convert_to_tensor, variable)

    def _give_masks(self, seed: int, step: int, images: int) -> None:
        for node, layer in self._dropouts():
            if node.path in self._masks:
                mask = dropout_mask(
                    seed, step, node.path, layer.rate, (images, *layer.mask_shape(node.input_shape))
                )
                mask = mask.transpose(0, 2, 3, 1) if mask.ndim == 4 else mask
                rows = np.zeros(self._masks[node.path].shape, dtype=self.dtype)
                rows[:images] = mask
                self._masks[node.path].assign(rows)

    def change_layout(self) -> None:
        """Always raises NotSupported: Keras computes on (N, H, W, C) here."""
        raise NotSupported("Keras computes in one memory layout")

    def _compile(self, recipe: Recipe) -> Rule:
        """Compile for a recipe unless that is done; the optimiser."""
        if self._rule is not None and self._rule.recipe == recipe.optimizer:
            return self._rule
        rule = RULES.get(type(recipe.optimizer))
        if rule is None:
            kind = type(recipe.optimizer).__name__
            raise UnsupportedLayer(f"the backend 'keras' has no optimizer {kind}")
        self._rule = rule(recipe.optimizer)
        _compile(self._training, self._rule, self.dtype, bool(self._masks))
        for variable in self._rule.variables:
            if variable.path in self._pending:
                variable.assign(self._pending[variable.path])
        self._pending = {}
        return self._rule

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Weights, the optimiser's variables ("optimizer:<path>"), dropout's ("random:<path>")."""
        tensors = self.weights()
        for path, generator in self._generators():
            tensors[f"random:{path}"] = np.array(ops.convert_to_numpy(generator.state))
        if self._rule is not None:
            for variable in self._rule.variables:
                tensors[f"optimizer:{variable.path}"] = np.array(ops.convert_to_numpy(variable))
        return tensors, {"optimizer": repr(self._rule.recipe) if self._rule else None}

    def restore(self, tensors: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> None:
        """Take weights and the optimiser's variables; the optimiser itself comes with the recipe."""
        self._load(tensors)
        for path, generator in self._generators():
            if f"random:{path}" in tensors:
                generator.state.assign(tensors[f"random:{path}"])
        self._rule = None
        prefix = "optimizer:"
        self._pending = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
