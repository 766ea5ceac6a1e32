"""What a wrong layer is said to look like, and which side is suspected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from backends.reference.network import ReferenceNetwork
from backends.reference.rules import apply
from backends.testing.layer_table import model_of, rows
from export.crosscheck import (
    DIRECT,
    EVALUATOR,
    UNOPTIMIZED,
    Verdict,
    compare,
    diagnosis,
    native_name,
    probes,
    suspects,
)
from zoo.errors import ZooError
from zoo.layers import LAYERS, Flatten, HardSigmoid, Layer, Normalize, ReLU, Scale, Softmax
from zoo.model import IMAGE, Model


@pytest.mark.parametrize("model", rows())
def test_every_known_mistake_is_recognised(model: Model) -> None:
    network = ReferenceNetwork(model, zoo.init_weights(model, 1))
    tensors = {IMAGE: probes(model, 4).astype(np.float64)}
    for node, weights in network.nodes:
        x = node.take(tensors)
        honest = apply(node.layer, x, weights)
        mistakes = [
            *diagnosis._mistakes(node.layer, x, weights, model, node),
            *diagnosis._of_any_layer(honest),
        ]
        for sentence, mistaken in mistakes:
            try:
                wrong = mistaken().astype(np.float32)
            except (ZooError, ValueError, IndexError):
                continue
            if wrong.shape != honest.shape or np.allclose(wrong, honest, rtol=1e-3, atol=1e-4):
                continue  # no mistake here
            said = diagnosis.explain(model, node, weights, x, wrong, None)
            named = said.removeprefix("looks like ").rpartition(": then it differs by")[0]
            assert named == sentence or _same(dict(mistakes)[named](), wrong), (node.path, sentence, said)
        tensors[node.path] = honest


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Two mistakes may come to the same thing, such as two flips of a symmetric kernel."""
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (Scale((HardSigmoid(),)), (np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]]))),  # a gate that is shut
        (Normalize((0.5,), (0.0,)), np.ones((1, 1, 2, 2))),
        (Softmax(), np.array([[0.0, 1e3]])),  # of which 0 has no logarithm
        (ReLU(), np.array([[1e6, 0.0]])),  # beyond float16
    ],
)
def test_mistakes_that_divide_by_zero_or_overflow_do_not_warn(layer: Layer, inputs: Any) -> None:
    model = model_of((Flatten(), ReLU()), (2, 1, 1))
    node = model.walk()[-1]._replace(layer=layer)
    got = (-3 * apply(layer, inputs, {}) - 7.25).astype(np.float32)  # no mistake that is known
    assert diagnosis.explain(model, node, {}, inputs, got, None) == ""


def test_what_is_no_known_mistake_is_not_named() -> None:
    model = zoo.get("cnn-padded")
    network = ReferenceNetwork(model, zoo.init_weights(model))
    x = probes(model, 4).astype(np.float64)
    node, weights = network.nodes[0]
    noise = np.random.default_rng(0).normal(size=(len(x), *node.output_shape)).astype(np.float32)
    assert diagnosis.explain(model, node, weights, x, noise, None) == ""
    assert diagnosis.explain(model, node, weights, x, np.empty(0, np.float32), None) == ""
    assert diagnosis.explain(model, node, weights, x, np.full_like(noise, np.nan), None) == ""


def test_kinds_of_layers_with_mistakes() -> None:
    known = {name for name, kind in LAYERS.items() if _has_rule(kind)}
    assert known == set(LAYERS)


def _has_rule(kind: type) -> bool:
    return diagnosis._mistakes.dispatch(kind) is not diagnosis._mistakes.dispatch(object)


def _verdict(name: str, passed: bool, value: float = 1.0) -> Verdict:
    outputs = np.full((2, 2), 0.0 if passed else value, np.float32)
    return Verdict(name, output=compare(outputs, np.zeros((2, 2))), outputs=outputs)


NATIVE = native_name("torch")
PLAIN_NATIVE = f"{NATIVE}, unoptimized"
EVERYONE = (DIRECT, UNOPTIMIZED, EVALUATOR, "torch", NATIVE, PLAIN_NATIVE, "keras", "a.onnx")


@pytest.mark.parametrize(
    ("failed", "sides"),
    [
        ((), []),
        ((DIRECT, UNOPTIMIZED, EVALUATOR), ["export"]),
        ((DIRECT, UNOPTIMIZED), ["onnxruntime"]),
        ((DIRECT,), ["onnxruntime's optimisations"]),
        ((EVALUATOR,), [EVALUATOR]),
        (("torch",), ["torch"]),
        (("torch", NATIVE, PLAIN_NATIVE), ["torch"]),
        ((NATIVE, PLAIN_NATIVE), ["torch exporter"]),
        ((NATIVE,), ["onnxruntime's optimisations"]),
        (("a.onnx",), ["a.onnx"]),
        (("keras", "torch"), ["keras", "torch"]),
        (EVERYONE, ["reference"]),
    ],
)
def test_the_side_is_told_by_who_fails(failed: tuple[str, ...], sides: list[str]) -> None:
    assert suspects(_verdict(name, name not in failed) for name in EVERYONE) == sides


def test_witnesses_that_fail_each_in_its_own_way_do_not_outvote_the_reference() -> None:
    verdicts = [_verdict(name, False, value) for value, name in enumerate(EVERYONE, start=1)]
    assert "reference" not in suspects(verdicts)
    graph_alone = [_verdict(name, False) for name in (DIRECT, UNOPTIMIZED, EVALUATOR)]
    assert suspects(graph_alone) == ["export"]
