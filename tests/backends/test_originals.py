"""Models of torchvision and Keras: their weights under our names, held to the frameworks' own modules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import backends
from backends.process.client import Worker, Workers
from export.crosscheck.inputs import probes
from export.imports import judging, originals
from export.imports.originals import SOURCES, Wish
from zoo.errors import CheckFailed, DataError, InvalidInput

# The default sessions have these, and MobileNetV2 of both frameworks with the weights of a file; the others,
# large or of many layers, are the session `classics`.
SMALL = ("resnet18", "squeezenet1_1")
EVERY = [(source, name) for source, (_, names) in SOURCES.items() for name in names]
SOURCE = {backend: source for source, (backend, _) in SOURCES.items()}


def checks(wish: Wish, worker: Worker) -> list[judging.Check]:
    """Every witness in this worker's framework against the original, on images of 64 x 64."""
    adopted = originals.adopt(wish, worker)
    small = wish.model(size=originals.SMALL)
    images = probes(small, 1)
    single, double = adopted.expected(images, "float32"), adopted.expected(images)
    with Workers() as workers:
        workers.use = lambda name: _Shared(worker)  # type: ignore[assignment,method-assign,return-value]
        candidate = judging.Candidate(small, adopted.weights, [worker.backend], workers, print)
        answers = judging.Answers("probes", images, double, [single], small.output == "probabilities")
        return [*candidate.float32([answers]), *candidate.float64(small, images, double)]


class _Shared:
    """A worker of the whole session as a context manager that does not end it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def __enter__(self) -> Worker:
        return self.worker

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("name", SMALL)
def test_a_framework_s_own_model_computes_the_same(name: str, worker: Worker) -> None:
    source = SOURCE[worker.backend]
    if name not in SOURCES[source][1]:
        pytest.skip(f"{name} is none of {source}")
    found = checks(Wish(source, name), worker)
    assert {(check.witness, check.dtype) for check in found} == {
        ("reference", "float32"), ("onnx direct", "float32"), (worker.backend, "float32"),
        ("reference", "float64"), (worker.backend, "float64"),
    }  # fmt: skip
    judging.require(found, Wish(source, name).model())


def saved(worker: Worker, path: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """A file that the framework itself writes: random weights with every tensor changed."""
    if worker.backend == "torch":
        torch = pytest.importorskip("torch")
        models = pytest.importorskip("torchvision").models
        state = models.mobilenet_v2(weights=None).state_dict()
        for key, tensor in state.items():
            if tensor.dtype == torch.float32:
                state[key] = torch.from_numpy(change(key, tensor.numpy()))
        torch.save(state, path.with_suffix(".pth"))
        return path.with_suffix(".pth")
    import keras

    model = keras.applications.MobileNetV2(weights=None)
    for weight in model.weights:
        weight.assign(change(weight.path, np.asarray(weight)))
    model.save_weights(path.with_suffix(".weights.h5"))
    return path.with_suffix(".weights.h5")


def stirred(key: str, array: np.ndarray) -> np.ndarray:
    """Every number of batch normalisation other than what a constructor gives."""
    if array.ndim == 1:
        rng = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
        return rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
    return array * np.float32(1.5)


NAMES = {"torch": "mobilenet_v2", "keras": "MobileNetV2"}


def test_the_weights_of_a_file(worker: Worker, tmp_path: Path) -> None:
    path = saved(worker, tmp_path / "w", stirred)
    hashed = hashlib.sha256(path.read_bytes()).hexdigest()
    wish = Wish(SOURCE[worker.backend], NAMES[worker.backend], path, hashed.upper())
    adopted = originals.adopt(wish, worker)
    assert adopted.about["sha256"] == hashed
    assert adopted.about["weights"] == path.name
    norms = [name for name in adopted.weights if "batchnorm" in name]
    assert all(np.ptp(adopted.weights[name]) > 0.1 for name in norms)
    judging.require(checks(wish, worker), wish.model())
    with pytest.raises(DataError, match="the file's SHA-256 is"):
        originals.adopt(Wish(wish.source, wish.name, path, "0" * 64), worker)


def test_a_wrong_weight_is_noticed(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    true = originals._named

    def wrong(*arguments: object) -> dict[str, np.ndarray]:
        weights = true(*arguments)  # type: ignore[arg-type]
        weights["batchnorm1.weight"], weights["batchnorm1.bias"] = (
            weights["batchnorm1.bias"],
            weights["batchnorm1.weight"],
        )
        return weights

    monkeypatch.setattr(originals, "_named", wrong)
    wish = Wish(SOURCE[worker.backend], NAMES[worker.backend])
    found = checks(wish, worker)
    assert not any(check.comparison.passed for check in found)
    with pytest.raises(CheckFailed, match="reference differs from the original"):
        judging.require(found, wish.model())


def test_layers_of_another_kind_are_no_pair(worker: Worker) -> None:
    wish = Wish(SOURCE[worker.backend], NAMES[worker.backend])
    original, _ = originals.taken(wish, worker)
    with pytest.raises(CheckFailed, match="they differ from number 1 on"):
        originals._named(originals.registry.get("lenet-5"), original)


class Bomb:
    """What a pickle can do when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (open, (str(self.path), "w"))


def test_files_that_torch_must_not_trust(worker: Worker, tmp_path: Path) -> None:
    if worker.backend != "torch":
        pytest.skip("a pickle is torch's")
    torch = pytest.importorskip("torch")
    bomb, list_, other = tmp_path / "bomb.pth", tmp_path / "list.pth", tmp_path / "other.pth"
    torch.save({"conv1.weight": Bomb(tmp_path / "made")}, bomb)
    torch.save([1, 2], list_)
    torch.save({"conv1.weight": torch.zeros(3)}, other)
    numbered = tmp_path / "numbered.pth"
    torch.save({1: torch.zeros(3)}, numbered)
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    for path, message in (
        (bomb, "not a file of weights that can be read safely"),
        (list_, "holds no state dict"),
        (other, "do not fit torchvision's module"),
        (numbered, "holds no state dict"),
        (text, "not a file of weights"),
        (tmp_path / "none.pth", "no such file of weights"),
        (tmp_path, "no such file of weights"),
    ):
        with pytest.raises(DataError, match=message):
            originals.adopt(Wish("torchvision", "resnet18", path), worker)
    assert not (tmp_path / "made").exists()
    assert worker.alive


def test_a_state_dict_keeps_its_modules_versions(worker: Worker, tmp_path: Path) -> None:
    if worker.backend != "torch":
        pytest.skip("a state dict is torch's")
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    torch.save(pytest.importorskip("torchvision").models.mnasnet0_5(weights=None).state_dict(), path)
    _, about = originals.taken(Wish("torchvision", "mnasnet0_5", path), worker)
    assert about["weights"] == "w.pth"
    torch.save({"classifier.1.weight": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="do not fit torchvision's module"):
        originals.taken(Wish("torchvision", "mnasnet0_5", path), worker)


def test_damaged_hdf5(worker: Worker, tmp_path: Path) -> None:
    if worker.backend != "keras":
        pytest.skip("HDF5 is Keras'")
    h5py = pytest.importorskip("h5py")
    from backends.keras3.originals import check_hdf5

    good = tmp_path / "good.h5"
    with h5py.File(good, "w") as file:
        file.create_dataset("a/b", data=np.arange(8.0))
    check_hdf5(good)
    content, refused = good.read_bytes(), 0
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        path = tmp_path / "changed.h5"
        path.write_bytes(changed)
        try:
            check_hdf5(path)
        except DataError:
            refused += 1
    assert refused > 10
    with h5py.File(good, "a") as file:
        file["t"] = np.dtype("f4")
    with pytest.raises(DataError, match="neither a group nor data"):
        check_hdf5(good)


def test_files_that_keras_must_not_trust(worker: Worker, tmp_path: Path) -> None:
    if worker.backend != "keras":
        pytest.skip("HDF5 is Keras'")
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(b"\0" * 4000)

    def made(name: str, fill: Callable[[object], object]) -> Path:
        path = tmp_path / f"{name}.weights.h5"
        with h5py.File(path, "w") as file:
            fill(file)
        return path

    def virtual(file: object) -> None:
        layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
        layout[:] = h5py.VirtualSource("secret", "x", shape=(4,))
        file.create_virtual_dataset("v", layout)  # type: ignore[attr-defined]

    def elsewhere(file: object) -> None:
        place = [(str(tmp_path / "secret"), 0, 4000)]
        file.create_dataset("e", (1000,), "f4", external=place)  # type: ignore[attr-defined]

    def linked(kind: object) -> Callable[[object], None]:
        return lambda file: file.create_group("g").__setitem__("l", kind)  # type: ignore[attr-defined]

    text = tmp_path / "text.weights.h5"
    text.write_text("no weights")
    for path, message in (
        (made("external", linked(h5py.ExternalLink("secret", "/x"))), "holds a link, /g/l"),
        (made("soft", linked(h5py.SoftLink("/g"))), "holds a link, /g/l"),
        (made("elsewhere", elsewhere), "keeps /e outside itself"),
        (made("virtual", virtual), "keeps /v outside itself"),
        (made("empty", lambda file: None), "do not fit Keras' model"),
        (text, "not a sound HDF5 file"),
    ):
        with pytest.raises(DataError, match=message):
            originals.adopt(Wish("keras", "MobileNetV2", path), worker)
    assert worker.alive


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("torchvison", "resnet18"), "unknown source 'torchvison'; did you mean 'torchvision'"),
        (("torchvision", "../x"), "is no model of torchvision; such as alexnet"),
        (("torchvision", "resnet18", None, "0" * 64), "no file to compare it with"),
        (("torchvision", "resnet18", None, None, -1), "seed -1"),
    ],
)
def test_wishes_that_make_no_sense(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Wish(*arguments)  # type: ignore[arg-type]


def test_a_name_that_the_framework_does_not_know(worker: Worker) -> None:
    with pytest.raises(InvalidInput, match="did you mean|known"):
        originals.taken(Wish(SOURCE[worker.backend], "resnett18"), worker)


def test_the_whole_command(worker: Worker, run, tmp_path: Path, lasting_workers: None) -> None:
    name = {"torch": "torchvision:squeezenet1_1", "keras": "keras:MobileNetV2"}[worker.backend]
    result = run("import", name, "--backend", worker.backend, "--out", str(tmp_path / "runs"), "--json")
    assert result.code == 0, result.err
    folder = Path(result.json["path"])
    assert folder.name == "import"
    assert result.json["imported"]["weights"] == "random"
    assert len(result.json["checks"]) == 6
    report = json.loads((folder / "report.json").read_text())
    assert report["checks"] == result.json["checks"]
    assert "Every witness against the original" in (folder / "README.md").read_text()
    shown = run("show", str(folder), "--json")
    assert shown.json["parameters"] == report["parameters"]


def test_a_missing_framework_names_the_command(run) -> None:
    missing = [name for name in ("torch", "keras") if not backends.installed(name)]
    if not missing:
        pytest.skip("both frameworks are installed")
    source = {"torch": "torchvision:resnet18", "keras": "keras:MobileNetV2"}[missing[0]]
    result = run("import", source)
    assert result.code == 3
    assert "run: pip install" in result.err


OTHERS = [
    "torchvision:mnasnet0_5",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "keras:MobileNet",
]


@pytest.mark.classics
@pytest.mark.parametrize("source", [*(f"{source}:{name}" for source, name in EVERY), *OTHERS])
def test_every_backend_at_full_size(
    source: str, workers: dict[str, Worker], run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run("import", source, "--out", str(tmp_path), "--json")
    assert result.code == 0, result.err
    witnesses = {check["witness"] for check in result.json["checks"]}
    assert {"reference", "onnx direct", *workers} <= witnesses
    with capfd.disabled():
        for check in result.json["checks"]:
            size = "x".join(map(str, check["input_shape"]))
            figures = f"{check['max_abs_diff']:.1e} of {check['limit']:.1e}"
            print(f"\n  {source}  {check['witness']}  {check['dtype']}  {size}  {figures}", end="")
