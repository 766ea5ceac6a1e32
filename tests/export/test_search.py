"""Search finds what no fixed set of images shows, and accuses no honest witness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import export
import zoo
from export.crosscheck import GraphWitness, Verdict, examine, judge
from export.crosscheck.inputs import batch_sizes
from export.crosscheck.search import MOVES, search
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from zoo import runs, weights
from zoo.layers import Conv2d, Dense, Flatten, ReLU, Softmax
from zoo.model import Model
from zoo.recipe import SGD, Recipe

RECIPE = Recipe(SGD(0.1), batch_size=10, epochs=1)
LAYERS = (Conv2d(3, 3), ReLU(), Flatten(), Dense(4))
LOGITS = Model("small", (1, 9, 9), LAYERS, RECIPE, labels=tuple("abcd"))
PROBABILITIES = Model("small", (1, 9, 9), (*LAYERS, Softmax()), RECIPE, labels=tuple("abcd"))
TINY = "cnn-padded:out_1=2,out_2=2"


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Dim pictures: float32 (200, 1, 9, 9), of a mean below 0.2."""
    generator = np.random.default_rng(0)
    pictures = generator.uniform(0, 1, (200, 1, 9, 9)) * (generator.uniform(0, 1, (200, 1, 9, 9)) < 0.2)
    return pictures.astype(np.float32)


def _in_a_window(images: np.ndarray, outputs: np.ndarray) -> None:
    mean = images.mean(axis=(1, 2, 3))
    outputs[(mean > 0.31) & (mean < 0.36), 0] += 1


def _behind_a_bend(images: np.ndarray, outputs: np.ndarray) -> None:
    """The middle counts too much where it is brighter than in any of the pictures."""
    middle = images[:, 0, 3:6, 3:6].sum(axis=(1, 2)) - images[:, 0].sum(axis=(1, 2)) / 9
    bend = np.maximum(middle - 4.2, 0) * (images.max(axis=(1, 2, 3)) <= 1)
    outputs[:, 1] += bend.astype(np.float32)


def _no_number(images: np.ndarray, outputs: np.ndarray) -> None:
    mean = images.mean(axis=(1, 2, 3))
    outputs[(mean > 0.8) & (mean < 0.85)] = np.nan


class Faulty:
    """A model's own ONNX file, whose outputs a fault may change."""

    def __init__(self, model: Model, fault=None) -> None:
        self.witness = GraphWitness(serialize(to_onnx(model, zoo.init_weights(model))), model)
        self.fault = fault

    def predict(self, images: np.ndarray) -> np.ndarray:
        outputs = self.witness.predict(images).copy()
        if self.fault:
            self.fault(images, outputs)
        return outputs


def fixed(witness: Faulty, images: np.ndarray, model: Model = LOGITS) -> Verdict:
    """What all other checks say."""
    judgement = judge(model, zoo.init_weights(model), images)
    return examine("it", witness, judgement, batches=batch_sizes(model))


@pytest.mark.parametrize("fault", [_in_a_window, _behind_a_bend, _no_number])
@pytest.mark.parametrize("seed", range(3))
def test_a_fault_in_a_small_region(fault, seed: int, real: np.ndarray) -> None:
    witness = Faulty(LOGITS, fault)
    assert fixed(witness, real).passed
    found = search(witness, judge(LOGITS, zoo.init_weights(LOGITS), real), seconds=60, seed=seed)
    assert found is not None
    assert not found.passed
    outputs = Faulty(LOGITS).predict(found.image[None])
    wrong = witness.predict(found.image[None])
    assert not np.array_equal(outputs, wrong)
    assert found.image.dtype == np.float32
    assert (found.image.min(), found.image.max()) >= (0, 0)
    assert found.image.max() <= 1


@pytest.mark.parametrize("model", [LOGITS, PROBABILITIES], ids=lambda model: model.output)
def test_an_honest_witness_is_not_accused(model: Model, real: np.ndarray) -> None:
    found = search(Faulty(model), judge(model, zoo.init_weights(model), real), seconds=1)
    assert found is not None
    assert found.passed
    assert 0 < found.worst.ratio < 1
    assert found.evaluations >= 32


def test_the_same_seed_goes_the_same_way(real: np.ndarray) -> None:
    judgement = judge(LOGITS, zoo.init_weights(LOGITS), real)
    found = [search(Faulty(LOGITS, _in_a_window), judgement, 20, seed) for seed in (1, 1, 2)]
    assert all(found)
    np.testing.assert_array_equal(found[0].image, found[1].image)
    assert found[0].evaluations == found[1].evaluations
    assert not np.array_equal(found[0].image, found[2].image)


def test_no_time_for_a_step(real: np.ndarray) -> None:
    assert search(Faulty(LOGITS), judge(LOGITS, zoo.init_weights(LOGITS), real), seconds=1e-6) is None


def test_every_move_keeps_the_shape() -> None:
    generator = np.random.default_rng(0)
    image, other = generator.uniform(0, 1, (2, 3, 1, 7))
    for move in MOVES:
        moved = move(generator, image, other)
        assert moved.shape == image.shape
        assert not np.array_equal(moved, move(generator, image, other))


def test_verify_names_the_witness(real: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = GraphWitness.predict

    def planted(self: GraphWitness, images: np.ndarray) -> np.ndarray:
        outputs = honest(self, images).copy()
        if self.optimize:
            _in_a_window(images, outputs)
        return outputs

    values = zoo.init_weights(LOGITS)
    report = export.verify(LOGITS, values, [], real, search=2)
    assert report.passed
    assert report.to_dict()["search"]["passed"] is True
    monkeypatch.setattr(GraphWitness, "predict", planted)
    assert export.verify(LOGITS, values, [], real).passed
    assert export.verify(LOGITS, values, [], real).to_dict()["search"] is None
    report = export.verify(LOGITS, values, [], real, search=20)
    assert not report.passed
    told = report.to_dict()["search"]
    assert (told["witness"], told["passed"]) == ("onnx direct", False)
    assert told["max_ratio"] > 1


def test_the_command_keeps_the_image(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest run keeps the worst beside its report; without a run only a failure is written, where it
    can be looked at again."""
    model = zoo.get("cnn-padded", out_1=2, out_2=2)
    files = {
        "weights.safetensors": weights.to_bytes(zoo.init_weights(model)),
        "spec.json": model.to_json().encode(),
        "report.json": b'{"backend": "torch"}',
    }
    folder = runs.Run(tmp_path / "kept" / "m" / "torch")
    with folder.lock():
        folder.publish(files, {})
    result = run("verify", folder.path, "--data", "digits", "-b", "reference", "--json", "--inputs-seed", 5)
    assert result.code == 0
    told = result.json[0]["search"]
    assert told["image"] == str(folder.path / "search.npy")
    assert np.load(told["image"]).shape == (1, 1, 28, 28)
    assert result.json[0]["inputs_seed"] == 5
    assert told["again"][-6:] == ["--backend", "reference", "--images", told["image"], "--search", "0"]

    common = ("verify", TINY, "--weights", "init", "--data", "digits", "-b", "reference")
    assert run(*common).code == 0
    assert not Path("runs").exists()
    honest = GraphWitness.predict

    def planted(self: GraphWitness, images: np.ndarray) -> np.ndarray:
        outputs = honest(self, images).copy()
        mean = images.mean(axis=(1, 2, 3))
        outputs[self.optimize & (mean > 0.7) & (mean < 0.8), 0] += 1
        return outputs

    monkeypatch.setattr(GraphWitness, "predict", planted)
    assert run(*common, "--search", 0).code == 0
    result = run(*common, "--search", 30)
    assert result.code == 1
    assert "search: " in result.out
    assert "(onnx direct); runs/cnn-padded.npy" in result.out
    assert "again: zoo verify cnn-padded:out_1=2,out_2=2 --weights init" in result.out
    again = result.out.split("again: zoo ")[-1].splitlines()[0].split()
    assert again[-2:] == ["--search", "0"]
    assert run(*again).code == 1


def test_images_that_are_none(run, tmp_path: Path) -> None:
    common = ("verify", TINY, "--weights", "init", "-b", "reference", "--images")
    bad = {
        "a.npy": np.zeros((1, 1, 28, 27), np.float32),
        "b.npy": np.zeros((1, 1, 28, 28)),
        "c.npy": np.full((1, 1, 28, 28), 2, np.float32),
        "d.npy": np.full((1, 1, 28, 28), np.nan, np.float32),
        "e.npy": np.zeros((0, 1, 28, 28), np.float32),
    }
    for name, array in bad.items():
        np.save(tmp_path / name, array)
        assert run(*common, tmp_path / name).code == 4
    (tmp_path / "f.npy").write_bytes(b"none")
    assert run(*common, tmp_path / "f.npy").code == 4
    assert run(*common, tmp_path / "none.npy").code == 4
