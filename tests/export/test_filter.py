"""Pictures through kernels: kernels and their files, every backend against SciPy, contrast, the command."""

from __future__ import annotations

import importlib.util
import io
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.signal
from PIL import Image

import export
import zoo
from backends.process.client import Worker
from export import crosscheck, filtering
from export.crosscheck import UNIT
from export.onnx.graph import to_onnx
from zoo import cli, data
from zoo.errors import BackendUnavailable, InvalidInput, InvalidSpec
from zoo.filters import ABOUT, KERNELS, filter_model, find_kernel, read_kernel
from zoo.images import decoding
from zoo.layers import Conv2d, Dense, Flatten, ReLU, Softmax
from zoo.model import Model
from zoo.primitives import MODES, PADDINGS
from zoo.recipe import SGD, Recipe
from zoo.spec.form import from_dict

LOPSIDED = ((1.0, -2.0, 0.5, 3.0), (0.0, 4.0, -1.0, 0.25), (2.0, 0.0, 0.0, -3.0))  # no symmetry, even width
RECIPE = Recipe(SGD(0.1), batch_size=1, epochs=1)


def photo(*shape: int) -> np.ndarray:
    """Levels as a picture of 8 bits has them."""
    return np.random.default_rng(shape).integers(0, 256, shape) / 255


def save(path: Path, levels: np.ndarray) -> Path:
    Image.fromarray(np.rint(levels * 255).astype(np.uint8)).save(path)
    return path


def close(got: np.ndarray, picture: np.ndarray, kernel: object, **how: object) -> None:
    """The filtered picture is SciPy's within float32 rounding, whose limit the magnitudes give."""
    kernel = np.array(kernel)
    expected = scipy.signal.convolve2d(picture, kernel, **how)
    assert got.shape == expected.shape
    scale = scipy.signal.convolve2d(np.abs(picture), np.abs(kernel), **how)
    limit = (kernel.size + 2) * UNIT * scale + 1e-30  # each product, each sum, and both inputs rounded
    assert (np.abs(got - expected) <= limit).all()


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels(name: str) -> None:
    kernel = np.array(KERNELS[name])
    assert kernel.shape in ((3, 3), (5, 5))
    keeps_brightness = name in ("identity", "sharpen", "sharpen-strong", "box-blur")
    assert kernel.sum() == pytest.approx(1 if keeps_brightness else 0, abs=1e-15)
    np.testing.assert_array_equal(kernel, kernel[::-1, ::-1])
    assert ABOUT[name].endswith(".")
    assert list(ABOUT) == list(KERNELS)


def test_the_kernels_in_the_documents_code() -> None:
    assert KERNELS["sharpen"] == ((0, -1, 0), (-1, 5, -1), (0, -1, 0))
    assert KERNELS["edges"] == ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1))
    assert KERNELS["vertical-edges"] == ((-2, 4, -2),) * 3
    np.testing.assert_array_equal(KERNELS["box-blur"], np.ones((3, 3)) / 9)


def test_the_model_holds_the_kernel_turned_and_says_everything() -> None:
    model, weights = filter_model(LOPSIDED, "same", 5, 6)
    assert model.output == "features"
    assert model.output_shape == (1, 5, 6)
    assert model.labels == ()
    assert model.parameters == 12
    np.testing.assert_array_equal(weights["conv1.weight"][0, 0], np.array(LOPSIDED)[::-1, ::-1])
    assert weights["conv1.weight"].dtype == np.float32
    assert from_dict(json.loads(model.to_json())) == model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [*KERNELS.values(), LOPSIDED], ids=[*KERNELS, "lopsided"])
@pytest.mark.parametrize("backend", ["onnx", "reference"])
def test_filtered_as_scipy_does_it(backend: str, kernel: object, mode: str) -> None:
    picture = photo(9, 8)
    close(filtering.apply(picture, kernel, mode, backend=backend), picture, kernel, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [KERNELS["laplacian-of-gaussian"], LOPSIDED], ids=["log", "lopsided"])
def test_filtered_by_every_backend(kernel: object, mode: str, worker: Worker) -> None:
    picture = photo(9, 8, 3)
    model, weights, images = filtering.prepare(picture, kernel, mode)
    outputs = worker.build(model, weights).predict(images)
    for colour in range(3):
        close(outputs[colour, 0], picture[..., colour], kernel, mode=mode)


def test_a_wrong_kernel_is_seen() -> None:
    """The comparison itself: correlation instead of convolution does not pass."""
    picture = photo(9, 8)
    turned = np.array(LOPSIDED)[::-1, ::-1].tolist()
    with pytest.raises(AssertionError):
        close(filtering.apply(picture, turned), picture, LOPSIDED, mode="same")


@pytest.mark.parametrize(("padding", "boundary"), [("wrap", "wrap"), ("symmetric", "symm")])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [KERNELS["edges"], LOPSIDED], ids=["edges", "lopsided"])
def test_borders_as_scipy_has_them(kernel: object, mode: str, padding: str, boundary: str) -> None:
    picture = photo(7, 8)
    got = filtering.apply(picture, kernel, mode, padding)
    close(got, picture, kernel, mode=mode, boundary=boundary)


@pytest.mark.parametrize("padding", PADDINGS)
def test_colours_are_filtered_one_by_one(padding: str) -> None:
    picture = photo(6, 5, 3)
    got = filtering.apply(picture, LOPSIDED, "full", padding)
    assert got.shape == (8, 8, 3)
    assert got.dtype == np.float32
    for colour in range(3):
        alone = filtering.apply(picture[..., colour], LOPSIDED, "full", padding)
        np.testing.assert_array_equal(got[..., colour], alone)


def test_edge_padding_leaves_a_plain_picture_plain() -> None:
    plain = np.full((4, 5), 0.5)
    assert np.ptp(filtering.apply(plain, KERNELS["edges"])) > 1
    np.testing.assert_array_equal(filtering.apply(plain, KERNELS["edges"], padding="edge"), np.zeros((4, 5)))


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("k.txt", "1 2\n3   -4.5\n", ((1, 2), (3, -4.5))),
        ("k.csv", "\ufeff1, 2\r\n\r\n3,1e-3\r\n", ((1, 2), (3, 0.001))),
        ("k.json", "[[1, 2.5], [0, -1]]", ((1, 2.5), (0, -1))),
        ("k", "7", ((7,),)),
    ],
)
def test_kernel_files(tmp_path: Path, name: str, text: str, rows: object) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_kernel(path) == rows
    assert find_kernel(str(path)) == ("k", rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("k.txt", b"", r"the kernel is empty \(.*k\.txt\)"),
        ("k.txt", b"1 2\n\n3\n", r"1 numbers, but line 1 has 2 \(.*k\.txt, line 3\)"),
        ("k.txt", b"1 2\n3 x\n", r"'x' is not a number \(.*k\.txt, line 2\)"),
        ("k.csv", b"1,2,\n3,4,\n", r"'' is not a number \(.*k\.csv, line 1\)"),
        ("k.csv", b"1,nan\n", r"nan is not a finite number \(.*line 1\)"),
        ("k.csv", b"1\n1e999\n", r"inf is not a finite number \(.*line 2\)"),
        ("k.csv", b"1e39\n", r"1e\+39 is beyond float32"),
        ("k.txt", b"\xff\xfe", "not UTF-8 at byte 0"),
        ("k.txt", b"1 " * 100, "a kernel of 1 x 100.*at most 99 x 99"),
        ("k.txt", b"1 " * 600_000, "larger than 1,000,000 bytes"),
        ("k.json", b"[[1, 2], [3", r"not JSON: .*k\.json, line 1"),
        ("k.json", b"[[1, 2], [3]]", r"1 numbers, but row 1 has 2 \(.*row 2\)"),
        ("k.json", b'[[1, "2"]]', r"'2' is not a finite number \(.*row 1\)"),
        ("k.json", b"[[1], [true]]", r"is not a finite number \(.*row 2\)"),
        ("k.json", b"[[NaN]]", "nan is not a finite number"),
        ("k.json", b'{"a": 1}', r"not a list of rows of numbers.*such as \[\["),
        ("k.json", b"[1, 2]", "not a list of rows of numbers"),
        ("k.json", b"[]", "the kernel is empty"),
        ("k.json", b"[[], []]", "the kernel is empty"),
        ("k.json", b"[" * 100_000, "not a list of rows of numbers"),
        ("k.json", b"[[" + b"9" * 5000 + b"]]", "not a list of rows of numbers"),
        ("k.json", b"[[" + b"9" * 400 + b"]]", "the integer is not a finite number"),
    ],
)
def test_kernel_files_that_hold_no_kernel(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        find_kernel(str(path))


def test_kernels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="unknown kernel 'sharpn'.*did you mean 'sharpen'.*or a file"):
        find_kernel("sharpn")
    with pytest.raises(InvalidInput, match=r"no such kernel file \(none\.csv\); or a name: identity"):
        find_kernel("none.csv")
    with pytest.raises(InvalidInput, match="not a regular file"):
        find_kernel(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InvalidInput, match="not a regular file"):
        find_kernel(str(tmp_path / "pipe.txt"))


def test_a_matrix_is_a_kernel() -> None:
    np.testing.assert_array_equal(
        filtering.apply(photo(4, 4), np.eye(3, dtype=int)), filtering.apply(photo(4, 4), np.eye(3).tolist())
    )
    with pytest.raises(InvalidInput, match="not a list of rows of numbers"):
        filter_model(np.ones(3), "same", 4, 4)


def test_what_cannot_be_filtered() -> None:
    with pytest.raises(InvalidSpec, match="a window of 3 does not fit into the height 2"):
        filtering.apply(photo(2, 5), KERNELS["edges"], "valid")
    with pytest.raises(InvalidInput, match="beyond float32"):
        filtering.apply(np.ones((3, 3)), ((3e38, 3e38),))
    with pytest.raises(InvalidInput, match=r"the reference would unfold 3\.4 GB.*use another one"):
        filtering.apply(np.ones((1000, 1000)), np.ones((21, 20)), backend="reference")


@pytest.mark.parametrize("contrast", filtering.CONTRASTS)
def test_contrasts_give_levels(contrast: str) -> None:
    if contrast == "adaptive" and importlib.util.find_spec("skimage") is None:
        pytest.skip("scikit-image is not installed")
    for shape in ((40, 30), (40, 30, 3), (2, 3), (1, 1)):
        for values in (5 * photo(*shape) - 2, np.zeros(shape), np.full(shape, -3.0)):
            levels = filtering.to_picture(values, contrast)
            assert levels.shape == shape
            assert levels.min() >= 0
            assert levels.max() <= 1
            assert Image.open(io.BytesIO(filtering.to_png(levels))).size == shape[1::-1]


def test_contrast_stretched_and_equalised() -> None:
    values = np.array([[-2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 2.0]])
    np.testing.assert_array_equal(filtering.to_picture(values, "none"), [[0, 0, 0, 0], [0, 1, 1, 1]])
    np.testing.assert_allclose(
        filtering.to_picture(values, "stretch"), [[0, 0.5, 0.5, 0.5], [0.5, 0.75, 0.75, 1]]
    )
    # Of the seven values above the least, four are at most 0 and six at most 1.
    np.testing.assert_allclose(
        filtering.to_picture(values, "equalize"), np.array([[0, 4, 4, 4], [4, 6, 6, 7]]) / 7
    )


def test_equalising_uses_all_levels_alike_and_no_rounding_error() -> None:
    skewed = photo(100, 100) ** 2
    shares = np.bincount((filtering.to_picture(skewed, "equalize") * 9.99).astype(int).ravel()) / 10_000
    assert shares.min() > 0.08
    noisy = np.zeros((4, 4))
    noisy[0] = 1
    noisy[2], noisy[3] = 1e-7, -1e-7
    np.testing.assert_array_equal(np.unique(filtering.to_picture(noisy, "equalize")), [0, 1])


def test_adaptive_contrast_is_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("skimage") is None:
        with pytest.raises(BackendUnavailable, match="pip install scikit-image"):
            filtering.Options("edges", contrast="adaptive")
        return
    from skimage import exposure

    values = filtering.apply(photo(64, 48), KERNELS["edges"], backend="reference")
    expected = exposure.equalize_adapthist(values / np.max(np.abs(values)), clip_limit=0.03)
    np.testing.assert_array_equal(filtering.to_picture(values, "adaptive"), expected)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="needs scikit-image, not installed; run: pip install"):
        filtering.Options("edges", contrast="adaptive")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "some"}, r"unknown mode 'some' \(--mode\); did you mean 'same'"),
        ({"padding": "mirror"}, r"unknown padding 'mirror' \(--padding\); known: zero, edge"),
        ({"contrast": "equalise"}, "unknown contrast 'equalise'.*did you mean 'equalize'"),
        ({"backend": "onx"}, "unknown backend 'onx'.*did you mean 'onnx'"),
        ({"backend": "keras:theano"}, "unknown keras engine"),
    ],
)
def test_unknown_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        filtering.Options("edges", **options)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call `zoo filter` in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[object, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main(["filter", *map(str, arguments)])
        return done.value.code, *capfd.readouterr()

    return call


def levels_of(path: str) -> np.ndarray:
    return np.asarray(Image.open(path)) / 255


def test_the_command_writes_a_picture(run) -> None:
    picture = photo(20, 30, 3)
    save(Path("photo.png"), picture)
    code, out, err = run("photo.png", "--kernel", "box-blur", "--contrast", "none")
    assert (code, err) == (0, "")
    assert "photo-box-blur.png: 20 x 30 x 3, box-blur of photo.png (20 x 30 x 3) by onnx" in out
    assert "--onnx box-blur.onnx" in out
    got = levels_of("photo-box-blur.png")
    for colour in range(3):
        expected = scipy.signal.convolve2d(picture[..., colour], np.ones((3, 3)) / 9, "same")
        np.testing.assert_allclose(got[..., colour], expected, atol=0.5 / 255 + 1e-6)
    assert sorted(os.listdir()) == ["photo-box-blur.png", "photo.png"]


def test_the_command_tells_programs_everything(run) -> None:
    save(Path("photo.png"), photo(9, 7, 3))
    Path("mine.csv").write_text("0,1\n2,-1\n")
    code, out, _ = run(
        "photo.png", "-k", "mine.csv", "--grey", "--mode", "full", "--backend", "reference", "--json"
    )
    assert code == 0
    result = json.loads(out)
    assert result["kernel"] == "mine"
    assert result["rows"] == [[0, 1], [2, -1]]
    assert (result["input_shape"], result["output_shape"]) == ([9, 7], [10, 8])
    assert result["path"] == "photo-mine.png"
    assert result["onnx"] is None
    assert result["least"] < 0 < result["largest"]
    assert levels_of(result["path"]).shape == (10, 8)


def test_identity_without_contrast_is_the_picture_itself(run) -> None:
    for name, picture in (("grey.png", photo(5, 6)), ("colour.png", photo(5, 6, 3))):
        save(Path(name), picture)
        assert run(name, "-k", "identity", "--contrast", "none", "-o", "same.png")[0] == 0
        np.testing.assert_array_equal(levels_of("same.png"), picture)


def test_the_onnx_file_runs_without_the_zoo(run) -> None:
    picture = photo(12, 10, 3)
    save(Path("photo.png"), picture)
    code, out, _ = run("photo.png", "-k", "sharpen", "--mode", "valid", "--onnx", "sharpen.onnx")
    assert code == 0
    assert "sharpen.onnx: takes image float32 [batch, 1, 12, 10], a colour an item" in out
    session = onnxruntime.InferenceSession("sharpen.onnx")
    images = picture.transpose(2, 0, 1)[:, None].astype(np.float32)
    (features,) = session.run(["features"], {"image": images})
    for colour in range(3):
        close(features[colour, 0], picture[..., colour], KERNELS["sharpen"], mode="valid")
    onnx.checker.check_model(onnx.load("sharpen.onnx"), full_check=True)


def test_the_command_with_every_backend(run, framework: str) -> None:
    picture = photo(10, 11, 3)
    save(Path("photo.png"), picture)
    for name in ("onnx", framework):
        options = ("--mode", "full", "--padding", "edge", "--contrast", "stretch", "--backend", name)
        code, out, _ = run("photo.png", "-k", "vertical-edges", *options, "-o", f"{name}.png")
        assert (code, f"by {name}" in out) == (0, True)
    got = levels_of(f"{framework}.png")
    assert got.shape == (12, 13, 3)
    np.testing.assert_allclose(got, levels_of("onnx.png"), atol=1 / 255 + 1e-9)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_list(run, as_json: bool) -> None:
    code, out, _ = run("--list", *["--json"] * as_json)
    assert code == 0
    if as_json:
        rows = json.loads(out)
        assert [row["name"] for row in rows] == list(KERNELS)
        assert rows[1]["rows"] == [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]
    else:
        assert "-1    5     -1" in out
        assert all(name in out and ABOUT[name] in out for name in KERNELS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give a PICTURE and a --kernel, or --list"),
        (["photo.png"], 2, "give a PICTURE and a --kernel"),
        (["none.png", "-k", "edges"], 2, "no such picture (none.png)"),
        (["photo.png", "-k", "edge"], 2, "unknown kernel 'edge' (--kernel); did you mean 'edges'?"),
        (["photo.png", "-k", "mine.csv"], 2, "no such kernel file (mine.csv)"),
        (["photo.png", "-k", "edges", "-o", "out.jpg"], 2, "not the name of a .png file (--out out.jpg)"),
        (["photo.png", "-k", "edges", "-o", "folder.png"], 2, "a folder of that name exists"),
        (["photo.png", "-k", "edges", "-o", "photo.png"], 2, "the picture would be overwritten"),
        (["photo.png", "-k", "edges", "-o", "no/out.png"], 5, "No such file or directory"),
        (["photo.png", "-k", "edges", "--onnx", "f"], 2, "not the name of a .onnx file (--onnx f)"),
        (
            ["photo.png", "-k", "edges", "--onnx", "f.onnx", "--padding", "wrap"],
            2,
            "pads with zeros, not wrap",
        ),
        (["photo.png", "-k", "laplacian-of-gaussian", "--mode", "valid"], 2, "a window of 5 does not fit"),
        (["text.png", "-k", "edges"], 2, "not a picture (text.png)"),
        (["photo.png", "-k", "edges", "--mode", "half"], 2, "unknown mode 'half' (--mode)"),
    ],
)
def test_what_the_command_refuses(run, arguments: list[str], code: int, message: str) -> None:
    save(Path("photo.png"), photo(4, 4))
    Path("text.png").write_text("no picture")
    Path("folder.png").mkdir()
    before = Path("photo.png").read_bytes()
    got, _, err = run(*arguments)
    assert (got, message in err) == (code, True), err
    assert len(err.splitlines()) == 1
    assert sorted(os.listdir()) == ["folder.png", "photo.png", "text.png"]
    assert Path("photo.png").read_bytes() == before


def test_a_missing_framework_is_named(run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Path("photo.png"), photo(4, 4))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    code, _, err = run("photo.png", "-k", "edges", "--backend", "torch")
    assert code == 3
    assert "needs torch, not installed" in err


def test_pictures_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colour, grey = photo(4, 5, 3), photo(4, 5)
    np.testing.assert_array_equal(decoding.read_colour(save(tmp_path / "c.png", colour)), colour)
    np.testing.assert_array_equal(decoding.read_colour(save(tmp_path / "g.png", grey)), grey)
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decoding.read_colour(tmp_path / "deep.png"), deep / 65535)
    half = np.dstack([colour, np.full((4, 5), 51 / 255)])
    np.testing.assert_allclose(decoding.read_colour(save(tmp_path / "a.png", half)), 0.2 * colour + 0.8)
    turned = Image.fromarray(np.rint(colour * 255).astype(np.uint8))
    exif = turned.getexif()
    exif[0x112] = 6  # turn clockwise to see it
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decoding.read_colour(tmp_path / "turned.png"), np.rot90(colour, -1))
    np.testing.assert_array_equal(decoding.luminance(grey), grey)
    np.testing.assert_allclose(decoding.luminance(colour), colour @ (0.299, 0.587, 0.114), atol=1e-15)
    monkeypatch.setattr(decoding, "MOST_WHOLE_PIXELS", 19)
    with pytest.raises(InvalidInput, match="5 x 4 pixels are too many .*make it smaller: at most 19"):
        decoding.read_colour(tmp_path / "c.png")


# Models without labels: what a filter is, and what else there may be. Their rows in every lowering
# stand in layer_table.py.


def unlabelled(*layers: object) -> Model:
    return Model("plain", (1, 6, 5), layers, RECIPE, labels=())


def test_a_model_without_labels_gives_what_its_last_layer_gives() -> None:
    image = unlabelled(Conv2d(2, 3), ReLU())
    assert (image.output, image.output_shape) == ("features", (2, 4, 3))
    assert unlabelled(Flatten(), Dense(3), Softmax()).output == "features"
    assert from_dict(image.to_dict()) == image
    assert image.to_dict()["labels"] == []
    with pytest.raises(InvalidSpec, match="a window of 7 does not fit into the height 6"):
        unlabelled(Conv2d(2, 7))


def test_features_is_a_name_only_where_it_does_not_clash() -> None:
    labelled = Model("m", (1, 1, 10), (Flatten(name="features"),), RECIPE)
    assert labelled.walk()[0].path == "features"
    with pytest.raises(InvalidSpec, match="'features' is reserved"):
        unlabelled(Conv2d(2, 3, name="features"))


def test_a_model_without_labels_is_not_trained(digits: data.Dataset) -> None:
    model = Model("plain", (1, 28, 28), (Conv2d(2, 3),), RECIPE, labels=())
    with pytest.raises(InvalidInput, match="plain has no labels, so there is nothing to train it for"):
        data.check_fits(model, digits)


def test_onnx_without_labels() -> None:
    model = unlabelled(Conv2d(2, 3), ReLU())
    proto = to_onnx(model, zoo.init_weights(model))
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    assert [value.name for value in proto.graph.output] == ["features"]
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 2, 4, 3]
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["zoo.labels"]) == []
    assert "ink" not in metadata["zoo.input"]


@pytest.mark.parametrize("layers", [(Conv2d(2, 3, 2), ReLU()), (Flatten(), Dense(3), Softmax())])
def test_verified_without_labels(layers: tuple[object, ...]) -> None:
    model = unlabelled(*layers)
    weights = zoo.init_weights(model)
    report = export.verify(model, weights, [])
    assert report.passed
    assert {verdict.decisions for verdict in report.verdicts} == {None}
    assert {verdict.logits for verdict in report.verdicts} == {None}
    assert report.to_dict()["witnesses"][0]["decisions"] is None
    wrong = {name: array * np.float32(1.01) for name, array in weights.items()}
    file = to_onnx(model, wrong).SerializeToString()
    failed = export.verify(model, weights, [], files={"wrong": file})
    assert not failed.passed
    assert not failed.verdict("wrong").passed


def test_verified_without_labels_by_every_backend(framework: str, worker: Worker) -> None:
    """The network and the framework's own export, which must give (N, C, H, W) too."""
    for layers in ((Conv2d(2, 3, 2), ReLU()), (Flatten(), Dense(3))):
        model = unlabelled(*layers)
        weights = zoo.init_weights(model)
        judgement = crosscheck.judge(model, weights, crosscheck.probes(model))
        report = crosscheck.check_direct(model, weights, judgement)
        crosscheck.check_network(framework, worker.build(model, weights), weights, judgement, report)
        assert report.passed, report.to_dict()
        assert not report.verdict(f"onnx native {framework}").skipped
