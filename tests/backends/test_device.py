"""Training on another device than the CPU: never silently, and held to the same results.

What needs a CUDA device is skipped by name where there is none.
"""

from __future__ import annotations

import numpy as np
import pytest

import backends
import zoo
from zoo import data
from zoo.errors import MachineError, NotSupported
from zoo.network import Backend
from zoo.recipe import SGD, Adam, Optimizer, Recipe, RMSprop, WarmupCosine
from zoo.training import order

STEPS = 20
BATCH = 64


@pytest.fixture
def cuda(backend: Backend) -> Backend:
    """torch in this process, on a machine with a CUDA device."""
    if backend.name != "torch":
        pytest.skip(f"{backend.name} trains on the CPU only")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return backend


def losses(
    backend: Backend,
    device: str,
    recipe: Recipe,
    split: data.Split,
    name: str = "lenet-dropout",
    dtype: str = "float32",
    masks: bool = False,
    epochs: int = 1,
) -> tuple[list[float], dict[str, np.ndarray]]:
    """The loss of every step of a training without validation, and the weights after it."""
    model = zoo.get(name)
    network = backend.build(model, zoo.init_weights(model), dtype, device=device)  # type: ignore[call-arg]
    if masks:
        network.share_masks(recipe.batch_size)  # type: ignore[attr-defined]
    found: list[float] = []
    for epoch in range(1, epochs + 1):
        count = len(split.train_labels)
        rows = order.batch_order(recipe, 0, epoch, count)
        network.train_epoch(
            split.train_images,
            split.train_labels,
            rows,
            recipe,
            lambda step, loss, _: found.append(loss),
            epoch,
            rates=order.learning_rates(recipe, epoch, epochs, count),
        )
    return found, network.weights()


@pytest.fixture(scope="module")
def split() -> data.Split:
    whole = data.split(data.digits(), 0, 0, STEPS * BATCH + 10).as_float()
    return whole


OPTIMIZERS = [SGD(0.05), SGD(0.05, 0.9, True), Adam(1e-3), RMSprop(1e-3)]


@pytest.mark.parametrize("rule", OPTIMIZERS, ids=repr)
def test_a_graph_of_a_step_gives_what_the_cpu_gives(
    cuda: Backend, rule: Optimizer, split: data.Split
) -> None:
    recipe = Recipe(rule, BATCH, 1)
    for name in ("cnn-padded", "convnet"):
        here, weights = losses(cuda, "cpu", recipe, split, name, "float64")
        there, others = losses(cuda, "cuda", recipe, split, name, "float64")
        assert len(here) == STEPS + 1  # the last batch is smaller
        np.testing.assert_allclose(there, here, rtol=1e-10)
        for key, array in weights.items():
            np.testing.assert_allclose(others[key], array, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rule", OPTIMIZERS, ids=repr)
def test_a_rate_that_changes(cuda: Backend, rule: Optimizer, split: data.Split) -> None:
    recipe = Recipe(rule, BATCH, 1, schedule=WarmupCosine(0.2))
    here, _ = losses(cuda, "cpu", recipe, split, "cnn-padded", "float64", epochs=2)
    there, _ = losses(cuda, "cuda", recipe, split, "cnn-padded", "float64", epochs=2)
    np.testing.assert_allclose(there, here, rtol=1e-9)


def test_the_first_steps_in_float32(cuda: Backend, split: data.Split) -> None:
    recipe = Recipe(Adam(1e-3), BATCH, 1)
    for name in zoo.names():
        if name not in ("lenet-dropout", "convnet-deep"):  # dropout draws from other generators
            here, there = (losses(cuda, device, recipe, split, name)[0] for device in ("cpu", "cuda"))
            np.testing.assert_allclose(there[:10], here[:10], rtol=2e-5)


def test_equal_masks_on_both_devices(cuda: Backend, split: data.Split) -> None:
    recipe = Recipe(SGD(0.05), BATCH, 1)
    here, there = (
        losses(cuda, device, recipe, split, dtype="float64", masks=True)[0] for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there, here, rtol=1e-10)


def test_a_graph_draws_other_masks_every_step(cuda: Backend, split: data.Split) -> None:
    """At a rate of next to nothing nothing is learned: losses of one batch differ by dropout alone."""
    model = zoo.get("lenet-dropout")
    recipe = Recipe(SGD(1e-30), BATCH, 1, shuffle=False)
    order = np.tile(np.arange(BATCH), 6)

    def epoch() -> list[float]:
        network = cuda.build(model, zoo.init_weights(model), device="cuda")  # type: ignore[call-arg]
        found: list[float] = []
        network.train_epoch(
            split.train_images, split.train_labels, order, recipe, lambda _, loss, __: found.append(loss), 1
        )
        return found

    first = epoch()
    assert len(set(first)) == 6
    assert epoch() == first


def test_the_same_bits_twice_and_after_a_checkpoint(cuda: Backend, split: data.Split) -> None:
    recipe = Recipe(Adam(1e-3), BATCH, 1)
    model = zoo.get("lenet-dropout")
    order = np.arange(len(split.train_labels))

    def trained(stop: int | None) -> dict[str, np.ndarray]:
        network = cuda.build(model, zoo.init_weights(model), device="cuda")  # type: ignore[call-arg]
        kept: list[object] = []

        def on_step(step: int, loss: float, accuracy: float) -> None:
            if step == stop:
                kept.append(network.state())

        network.train_epoch(split.train_images, split.train_labels, order, recipe, on_step, 5)
        if stop is not None:
            network = cuda.build(model, zoo.init_weights(model, 9), device="cuda")  # type: ignore[call-arg]
            network.restore(*kept[0])  # type: ignore[misc]
            network.train_epoch(
                split.train_images, split.train_labels, order, recipe, lambda *_: None, 5, stop
            )
        return network.weights()

    whole = trained(None)
    for stop in (None, 7):
        for name, array in trained(stop).items():
            np.testing.assert_array_equal(array, whole[name], err_msg=name)


def test_a_whole_build(cuda: Backend, run) -> None:
    result = run(
        "build",
        "cnn-padded",
        "lenet-dropout",
        "--backend",
        "torch",
        "--device",
        "cuda",
        "--data",
        "digits",
        "--json",
    )
    assert result.code == 0, result.err
    for report in result.json:
        assert report["device"] == "cuda"
        assert report["onnx"]["passed"]
        assert report["accuracy"]["test"] > 0.9
    again = run("build", "cnn-padded", "--backend", "torch", "--device", "cuda", "--data", "digits", "--json")
    assert again.json[0]["up_to_date"]
    other = run("build", "cnn-padded", "--backend", "torch", "--data", "digits", "--epochs", "0", "--json")
    assert "device was" in other.err


def test_a_device_that_is_not_there_is_an_error(framework: str, run) -> None:
    if framework == "torch":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    result = run(
        "build", "cnn-padded", "--backend", framework, "--device", "cuda", "--data", "digits", "--epochs", "0"
    )
    assert result.code == 5
    assert "the device 'cuda' is not available" in result.err


def test_backends_that_know_the_cpu_only() -> None:
    for name in ("reference", "keras", "keras:tensorflow", "torch:compile"):
        with pytest.raises(MachineError, match="is not available for the backend .*it trains on cpu"):
            backends.require_device(name, "cuda")
    for name in ("torch", "keras:jax", "keras:torch"):
        backends.require_device(name, "cuda")


def test_a_compiled_network_is_on_the_cpu(backend: Backend) -> None:
    if backend.name != "torch":
        pytest.skip("torch compiles")
    model = zoo.get("cnn-padded")
    with pytest.raises(NotSupported, match="runs on the CPU only"):
        backends.load("torch:compile").build(model, zoo.init_weights(model), device="cuda")  # type: ignore[call-arg]
