"""Plots: each figure holds what it should, legibly, and is the same bytes wherever it is drawn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import backends
import zoo
from export import plots, plotting
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.plots import canvas, textbook
from zoo import cli, data, filters, primitives, runs, weights
from zoo.cli import plotting as choices
from zoo.errors import DataError, InvalidInput, MachineError
from zoo.layers import AvgPool2d, Conv2d, Dense, Flatten, Softmax
from zoo.model import Model
from zoo.recipe import SGD, Recipe
from zoo.training.loop import EPOCHS, HISTORY, to_csv

OF_A_MODEL = [what for what in plotting.KINDS if what != "history"]
LEAST_POINTS = 7.0


def draw(what: str, text: str | None, **options: object) -> Figure:
    """A plot from initial weights and the embedded data, unless told otherwise."""
    chosen = {"data": "digits", "weights": "init"} | options
    return plotting.draw(what, text, plotting.Options(**chosen), say=lambda line: None)


def texts(figure: Figure) -> list[Text]:
    """Every text of a figure that is seen."""
    canvas_of = FigureCanvasAgg(figure)
    canvas_of.draw()
    found = []
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        if text.get_visible() and text.get_text().strip() and box.width > 0:
            found.append(text)
    ticks = {id(label) for axes in figure.axes for label in _shown_ticks(axes)}
    all_ticks = {id(label) for axes in figure.axes for label in _all_ticks(axes)}
    return [text for text in found if id(text) in ticks or id(text) not in all_ticks]


def _all_ticks(axes) -> list[Text]:
    every = [*axes.xaxis.get_major_ticks(), *axes.yaxis.get_major_ticks()]
    every += [*axes.xaxis.get_minor_ticks(), *axes.yaxis.get_minor_ticks()]
    return [label for tick in every for label in (tick.label1, tick.label2)]


def _shown_ticks(axes) -> list[Text]:
    shown = []
    for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
        for tick in axis.get_major_ticks():
            if low <= tick.get_loc() <= high:
                shown += [label for label in (tick.label1, tick.label2) if label.get_visible()]
    return shown


def check_legible(figure: Figure) -> None:
    """No text is small, cut off, or on top of another; axes with ticks have labels."""
    with canvas.style():
        seen = texts(figure)
        boxes = [text.get_window_extent() for text in seen]
    for text, box in zip(seen, boxes, strict=True):
        assert text.get_fontsize() >= LEAST_POINTS, text
        inside = figure.bbox.padded(1).containsx(box.x0) and figure.bbox.padded(1).containsx(box.x1)
        inside &= bool(figure.bbox.padded(1).containsy(box.y0) and figure.bbox.padded(1).containsy(box.y1))
        assert inside, f"{text.get_text()!r} is cut off"
    for i, box in enumerate(boxes):
        for j in range(i):
            apart = not box.padded(-0.5).overlaps(boxes[j].padded(-0.5))
            assert apart, f"{seen[i].get_text()!r} is on top of {seen[j].get_text()!r}"
    for axes in figure.axes:
        if len(axes.get_xticks()) and len(axes.get_yticks()) and axes.get_label() != "<colorbar>":
            assert axes.get_ylabel() or axes.get_title(loc="left") or axes.get_title(), "an axis has no label"


def arrays(figure: Figure) -> list[np.ndarray]:
    """What the images of a figure show, in order, colour bars left out."""
    return [
        np.ma.filled(image.get_array().astype(float), np.nan) for axes in figure.axes for image in axes.images
    ]


def untiled(table: np.ndarray, count: int, height: int, width: int) -> np.ndarray:
    """Tiled images (N, h, w) of a table."""
    rows, columns = table.shape[0] // height, table.shape[1] // width
    places = table.reshape(rows, height, columns, width).transpose(0, 2, 1, 3)
    return places.reshape(rows * columns, height, width)[:count]


def small_model(labels: tuple[str, ...], channels: int = 3, **changes: object) -> Model:
    """No ReLU, average pooling, rectangular images in colour, any classes."""
    layers = (Conv2d(5, (3, 2)), AvgPool2d(2), Flatten(), Dense(len(labels)), Softmax())
    arguments = {"labels": labels, "layers": layers, "input_shape": (channels, 9, 12)} | changes
    return Model(name="small", recipe=Recipe(SGD(learning_rate=0.1), batch_size=8, epochs=1), **arguments)


# Every kind and model


@pytest.mark.parametrize("what", OF_A_MODEL)
def test_every_kind_of_every_model_is_legible(what: str, model: Model) -> None:
    figure = draw(what, model.name)
    check_legible(figure)
    assert plots.to_png(figure).startswith(b"\x89PNG")
    if what not in choices.WITHOUT_MODEL:
        assert figure.texts[0].get_text().startswith(model.name)


def test_the_command_knows_the_kinds() -> None:
    assert list(choices.KINDS) == list(plotting.KINDS)
    free = [what for what, kind in plotting.KINDS.items() if not kind.needs_model]
    assert list(choices.WITHOUT_MODEL) == free
    assert {option for kind in plotting.KINDS.values() for option in kind.takes} == set(plotting.SPECIAL)


@pytest.mark.parametrize("what", choices.WITHOUT_MODEL)
def test_some_kinds_need_no_model(what: str) -> None:
    check_legible(draw(what, None))


@pytest.mark.parametrize("what", [what for what in plotting.KINDS if what not in choices.WITHOUT_MODEL])
def test_the_others_do(what: str) -> None:
    with pytest.raises(InvalidInput, match=f"{what} needs a model"):
        draw(what, None)


def test_legibility_is_judged() -> None:
    figure = plots.samples_figure(np.zeros((1, 1, 4, 4)), ["a"])
    check_legible(figure)
    figure.text(0.5, 0.5, "small", fontsize=5)
    with pytest.raises(AssertionError):
        check_legible(figure)
    figure = plots.samples_figure(np.zeros((1, 1, 4, 4)), ["a"])
    figure.text(0.99, 0.5, "outside")
    with pytest.raises(AssertionError, match="cut off"):
        check_legible(figure)
    figure.texts[-1].set_position((0.4, 0.5))
    figure.text(0.4, 0.5, "above")
    with pytest.raises(AssertionError, match="on top of"):
        check_legible(figure)


# Kernels


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_kernels_before_and_after_share_a_symmetric_scale(layer: str, tmp_path: Path) -> None:
    model = zoo.get("cnn-padded")
    after = {name: 3 * value for name, value in zoo.init_weights(model, 5).items()}
    (tmp_path / "w.safetensors").write_bytes(weights.to_bytes(after))
    channel = 1 if layer == "conv2" else 0
    figure = draw(
        "kernels", model.name, weights=str(tmp_path / "w.safetensors"), seed=5, layer=layer, channel=channel
    )
    left, right = (axes.images[0] for axes in figure.axes[:2])
    expected = after[f"{layer}.weight"][:, channel]
    np.testing.assert_array_equal(untiled(arrays(figure)[1], *expected.shape), expected)
    np.testing.assert_allclose(untiled(arrays(figure)[0], *expected.shape), expected / 3, rtol=1e-6)
    assert left.get_clim() == right.get_clim() == (-np.abs(expected).max(), np.abs(expected).max())
    assert [axes.get_title() for axes in figure.axes[:2]] == ["before training", "after training"]
    assert figure.axes[2].get_ylabel() == "weight"


def test_kernels_before_training_are_not_invented(tmp_path: Path) -> None:
    model = zoo.get("lenet-dropout")
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.to_bytes(zoo.init_weights(model, 7)))
    figure = draw("kernels", model.name, weights=str(path))
    assert [axes.get_title() for axes in figure.axes[:-1]] == ["after training"]
    assert "With --seed N" in figure.texts[1].get_text()
    untrained = draw("kernels", model.name, weights="init", seed=7)
    assert [axes.get_title() for axes in untrained.axes[:-1]] == ["before training"]


def test_pretrained_kernels_start_from_their_recorded_seed() -> None:
    name = zoo.pretrained.names()[0]
    seed = zoo.pretrained.record(name)["seed"]
    figure = draw("kernels", name, weights="pretrained", seed=seed + 1)
    before = zoo.init_weights(zoo.get(name), seed)["conv1.weight"][:, 0]
    np.testing.assert_array_equal(untiled(arrays(figure)[0], *before.shape), before)
    assert f"seed {seed}" in figure.texts[1].get_text()


def test_the_grid_has_outputs_as_rows_and_inputs_as_columns(model: Model) -> None:
    name = [node.path for node in model.walk() if isinstance(node.layer, Conv2d)][-1]
    weight = zoo.init_weights(model)[f"{name}.weight"]
    figure = draw("grid", model.name)
    (table,) = arrays(figure)
    outputs, inputs, height, width = weight.shape
    assert table.shape == (outputs * height, inputs * width)
    o, i = outputs - 1, inputs // 2
    tile = table[o * height : (o + 1) * height, i * width : (i + 1) * width]
    np.testing.assert_array_equal(tile, weight[o, i])
    assert len(figure.axes) == 2  # one image and its scale, however many kernels
    low, high = figure.axes[0].images[0].get_clim()
    assert -low == high == np.abs(weight).max()
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("output channel", "input channel")


def test_a_weight_of_zeros_and_a_single_kernel_are_drawn() -> None:
    check_legible(plots.kernels_figure(np.zeros((1, 1, 1)), np.zeros((1, 1, 1))))
    check_legible(plots.grid_figure(np.zeros((1, 1, 3, 3))))


def test_more_values_than_a_picture_can_show_are_refused() -> None:
    with pytest.raises(InvalidInput, match="30,000 values side by side"):
        plots.grid_figure(np.zeros((1, 10_000, 1, 3)))


# Activations


def test_activations_are_those_of_the_reference(model: Model, digits: data.Dataset) -> None:
    parameters = zoo.init_weights(model)
    image = data.to_float(digits.test_images[3:4])
    expected = backends.load("reference").build(model, parameters).activations(image)
    figure = draw("activations", model.name, image=3)
    shown = {
        axes.get_title(loc="left").split()[0]: axes for axes in figure.axes if axes.get_title(loc="left")
    }
    assert set(shown) == {"image", *expected}
    np.testing.assert_array_equal(shown["image"].images[0].get_array(), image[0, 0])
    for path, (values,) in expected.items():
        axes = shown[path]
        if values.ndim == 3:
            drawn = untiled(np.asarray(axes.images[0].get_array()), *values.shape)
        elif axes.images:
            drawn = np.ma.filled(axes.images[0].get_array(), np.nan).ravel()[: len(values)]
        else:
            drawn = np.array([bar.get_height() for bar in axes.patches])
        np.testing.assert_allclose(drawn, values, rtol=2e-5, atol=1e-5, err_msg=path)


def test_a_stage_shares_its_scale(model: Model) -> None:
    figure = draw("activations", model.name)
    axes = {axes.get_title(loc="left").split()[0]: axes for axes in figure.axes if axes.get_title(loc="left")}
    for stage in plotting.stages_of(model):
        colours = {axes[node.path].images[0].get_clim() for node in stage if axes[node.path].images}
        bars = {axes[node.path].get_ylim() for node in stage if not axes[node.path].images}
        assert len(colours) <= 1
        assert len(bars) <= 1
        assert all(-low == high for low, high in colours)
    assert any(len(stage) > 1 for stage in plotting.stages_of(model))


def test_one_layer_can_be_chosen_with_its_stage() -> None:
    figure = draw("activations", "cnn-padded", layer="relu2")
    titles = [axes.get_title(loc="left").split()[0] for axes in figure.axes if axes.get_title(loc="left")]
    assert titles == ["image", "conv2", "relu2", "pool2", "flatten1"]


def test_the_answer_stands_out_and_bears_the_labels() -> None:
    answer = np.array([0.1, 0.7, 0.2])
    figure = plots.activations_figure(
        np.zeros((1, 5, 5)), [[("dense1", answer)]], ("cat", "dog", "a very long bird")
    )
    axes = figure.axes[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "a ver…"]
    colours = [to_hex(bar.get_facecolor()).upper() for bar in axes.patches]
    assert colours == [canvas.BLUE, canvas.VERMILLION, canvas.BLUE]


def test_too_many_layers_ask_for_one() -> None:
    stages = [[(f"dense{i}", np.ones(3))] for i in range(50)]
    with pytest.raises(InvalidInput, match="50 rows of layers.*--layer"):
        plots.activations_figure(np.zeros((1, 5, 5)), stages)


@pytest.mark.parametrize(
    "labels", [("0", "1"), tuple(f"class {i} with $x_1$" for i in range(30)), ("猫", "犬", "$")]
)
def test_other_shapes_channels_and_classes(labels: tuple[str, ...], tmp_path: Path) -> None:
    model = small_model(labels)
    (tmp_path / "small.json").write_text(model.to_json())
    parameters = zoo.init_weights(model)
    images = np.random.default_rng(0).random((4, *model.input_shape), dtype=np.float32)
    outputs = backends.load("reference").build(model, parameters).activations(images)
    stages = [[(node.path, outputs[node.path][0]) for node in stage] for stage in plotting.stages_of(model)]
    assert [[path for path, _ in stage] for stage in stages] == [
        ["conv1", "pool1", "flatten1"],
        ["dense1"],
        ["softmax1"],
    ]
    probability = plots.probabilities(outputs["softmax1"], model.output)
    truths = np.arange(4) % len(labels)
    matrix = plots.confusion(probability.argmax(axis=1), truths, len(labels))
    names = [labels[truth] for truth in truths]
    for figure in (
        plots.activations_figure(images[0], stages, labels),
        plots.samples_figure(images, names),
        plots.mistakes_figure(images, range(4), names, names, [0.5] * 4, [0.5] * 4),
        plots.confusion_figure(matrix, labels),
        draw("kernels", str(tmp_path / "small.json"), channel=2),
        draw("grid", str(tmp_path / "small.json")),
    ):
        check_legible(figure)
        assert ElementTree.fromstring(plots.to_svg(figure)).tag == "{http://www.w3.org/2000/svg}svg"
        assert plots.to_png(figure).startswith(b"\x89PNG")


def test_any_text_is_drawn_as_it_stands() -> None:
    odd = "$100 $\\nothing{ \udcff \n <b>&amp;"
    figure = plots.samples_figure(np.zeros((1, 1, 4, 4)), ["$\\frac{"], title=odd, about=odd)
    assert plots.to_png(figure).startswith(b"\x89PNG")
    assert ElementTree.fromstring(plots.to_svg(figure)).tag.endswith("svg")
    assert figure.texts[0].get_text() == "$100 $\\nothing{ ?   <b>&amp;"


def test_a_model_without_convolution_has_no_kernels(tmp_path: Path) -> None:
    model = small_model(("a", "b"), layers=(Flatten(), Dense(2)))
    (tmp_path / "dense.json").write_text(model.to_json())
    with pytest.raises(InvalidInput, match="no convolution"):
        draw("kernels", str(tmp_path / "dense.json"))


# Decisions


@pytest.fixture(scope="module")
def decided() -> tuple[Model, data.Dataset, np.ndarray]:
    """A model, the data, and its probabilities by another way than the plots'."""
    model, digits = zoo.get("lenet-dropout"), data.digits()
    outputs = (
        backends.load("reference")
        .build(model, zoo.init_weights(model))
        .predict(data.to_float(digits.test_images))
    )
    exponentials = np.exp(outputs)
    return model, digits, exponentials / exponentials.sum(axis=1, keepdims=True)


def test_the_confusion_matrix_is_that_of_numpy(decided) -> None:
    model, digits, probability = decided
    expected = np.zeros((10, 10), dtype=int)
    for truth, guess in zip(digits.test_labels, probability.argmax(axis=1), strict=True):
        expected[truth, guess] += 1
    figure = draw("confusion", model.name)
    (share,) = arrays(figure)
    np.testing.assert_allclose(share, expected / expected.sum(axis=1, keepdims=True))
    axes = figure.axes[0]
    written = np.zeros((10, 10), dtype=int)
    for text in axes.texts:
        column, row = text.get_position()
        written[row, column] = int(text.get_text())
    np.testing.assert_array_equal(written, expected)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("truth", "read as")
    assert f"accuracy {expected.trace() / expected.sum():.4f}" in figure.texts[1].get_text()


def test_a_class_without_images_has_an_empty_row() -> None:
    matrix = plots.confusion(np.array([0, 1]), np.array([0, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    (share,) = arrays(plots.confusion_figure(matrix, "abc"))
    assert share.tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("worst", [False, True])
def test_mistakes_are_mistakes_in_their_order(decided, worst: bool) -> None:
    model, digits, probability = decided
    labels = digits.test_labels
    figure = draw("mistakes", model.name, count=12, worst=worst)
    guesses = probability.argmax(axis=1)
    wrong = [i for i in range(len(labels)) if guesses[i] != labels[i]]
    if worst:
        wrong.sort(key=lambda i: probability[i, labels[i]])
    assert len(figure.axes) == 12
    for axes, number in zip(figure.axes, wrong, strict=False):
        p, q = probability[number, labels[number]], probability[number, guesses[number]]
        lines = f"no. {number}\nis {labels[number]}, p = {p:.2f}\nread as {guesses[number]}, p = {q:.2f}"
        assert axes.get_title() == lines
        np.testing.assert_allclose(axes.images[0].get_array(), digits.test_images[number, 0] / 255, rtol=1e-6)
    which = "worst" if worst else "first"
    assert f"the {which} 12 of {len(wrong)} mistakes on 297 test images" in figure.texts[0].get_text()


def test_no_mistakes_are_said() -> None:
    figure = plots.mistakes_figure(np.zeros((0, 1, 4, 4)), [], [], [], [], [])
    assert figure.texts[-1].get_text() == "no mistakes"
    check_legible(figure)


def test_samples_are_the_first_training_images(digits: data.Dataset) -> None:
    figure = draw("samples", None, count=7)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"no. {i}: {label}" for i, label in enumerate(digits.train_labels[:7])]
    for axes, image in zip(figure.axes, digits.train_images[:7], strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), image[0] / 255, rtol=1e-6)
        assert axes.images[0].get_clim() == (0, 1)


# History


STEPS = [(epoch, step, 2.3 / (10 * epoch + step - 10), 0.5) for epoch in (1, 2, 3) for step in range(1, 11)]
ENDS = [(1, 0.2, 0.6, 0.7, 0.1, 0.8), (2, 0.1, 0.7, 0.75, 0.09, 0.85), (3, 0.05, 0.8, 0.78, 0.08, 0.9)]


def publish_run(folder: Path, model: Model, seed: int = 4) -> Path:
    """A finished run as `zoo build` leaves one, weights twice the initial ones."""
    path = folder / model.name / "torch"
    values = {name: 2 * value for name, value in zoo.init_weights(model, seed).items()}
    part = {"name": "digits", "train": 1500, "validation": 0, "test": 297}
    report = {"backend": "torch", "seed": seed, "epochs": 3, "data": part}
    files = {
        "spec.json": model.to_json().encode(),
        "report.json": json.dumps(report).encode(),
        "weights.safetensors": weights.to_bytes(values),
        "history.csv": to_csv(HISTORY, STEPS).encode(),
        "epochs.csv": to_csv(EPOCHS, ENDS).encode(),
    }
    run = runs.Run(path)
    with run.lock():
        run.publish(files, {})
    return path


def test_history_shows_what_the_run_holds(tmp_path: Path) -> None:
    model = zoo.get("cnn-padded")
    path = publish_run(tmp_path, model)
    figure = draw("history", str(path), weights=None)
    loss, accuracy = figure.axes
    lines = {line.get_label().split(" (")[0]: line for axes in (loss, accuracy) for line in axes.lines}
    np.testing.assert_allclose(lines["loss, each batch"].get_ydata(), [row[2] for row in STEPS])
    np.testing.assert_allclose(lines["loss, each batch"].get_xdata()[[0, 9, -1]], [0.1, 1, 3])
    for i, name in enumerate(EPOCHS[1:], start=1):
        part, quantity = name.split("_")
        np.testing.assert_allclose(lines[f"{quantity}, {part}"].get_ydata(), [row[i] for row in ENDS])
        assert lines[f"{quantity}, {part}"].axes is (loss if quantity == "loss" else accuracy)
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss (logarithmic)", "accuracy")
    assert loss.get_xlabel() == "epoch"
    about = "".join(figure.texts[1].get_text().split())  # a long path wraps anywhere
    assert about.endswith(
        "torch: trained by torch on 1,500 images of digits, 3 epochs, seed 4".replace(" ", "")
    )
    check_legible(figure)
    named = draw("history", model.name, weights=None, runs=tmp_path)
    assert named.texts[0].get_text() == figure.texts[0].get_text()
    assert named.texts[1].get_text() == figure.texts[1].get_text()


def test_the_run_says_the_seed_of_the_kernels_before(tmp_path: Path) -> None:
    model = zoo.get("cnn-padded")
    figure = draw("kernels", str(publish_run(tmp_path, model)), weights=None)
    before = zoo.init_weights(model, 4)["conv1.weight"][:, 0]
    np.testing.assert_array_equal(untiled(arrays(figure)[0], *before.shape), before)
    np.testing.assert_array_equal(untiled(arrays(figure)[1], *before.shape), 2 * before)


def test_history_on_a_linear_axis_without_validation() -> None:
    ends = [(1, 1.9, 0.6, None, 1.8, 0.8)]
    figure = plots.history_figure([(1, step, 2.3 - step / 20, 0.5) for step in range(8)], ends)
    loss, accuracy = figure.axes
    assert (loss.get_yscale(), loss.get_ylabel()) == ("linear", "loss")
    assert [line.get_label() for line in accuracy.lines] == [
        "accuracy, train (mean over the epoch)",
        "accuracy, test",
    ]
    check_legible(figure)


def test_history_without_epochs_or_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no epoch was trained"):
        plots.history_figure([], [])
    for wish in (None, "init"):
        with pytest.raises(DataError, match="only a run keeps its history.*zoo build cnn-padded"):
            draw("history", "cnn-padded", weights=wish, runs=tmp_path)


def test_csv_reads_back_what_was_written() -> None:
    rows = [(1, 0.1, None, 1 / 3), (2, 1e-300, 2.0, 3.0)]
    assert plots.read_csv(to_csv(("a", "b", "c", "d"), rows), ("a", "b", "c", "d")) == rows
    for text in ("", "a,b\n1,2\n", "a,b,c,d\n1,2,x,4\n"):
        with pytest.raises(DataError, match="not a table of a, b, c, d"):
            plots.read_csv(text, ("a", "b", "c", "d"))


# Textbook


def test_filters_hold_the_filtered_picture(digits: data.Dataset) -> None:
    figure = draw("filters", None, image=2)
    picture = data.to_float(digits.test_images[2, 0])
    shown = {axes.get_title(): axes.images[0] for axes in figure.axes if axes.get_title()}
    assert list(shown) == ["the picture", *filters.KERNELS]
    np.testing.assert_array_equal(shown["identity"].get_array(), picture)
    scales = set()
    for name, rows in filters.KERNELS.items():
        kernel = np.array(rows)
        result = primitives.convolve2d(picture, kernel, mode="same")  # MNIST's border is black
        signed = abs(kernel.sum()) < 1e-9
        largest = kernel[kernel > 0].sum() if signed else 1
        np.testing.assert_allclose(shown[name].get_array(), result / largest, atol=1e-6, err_msg=name)
        scales.add((signed, *shown[name].get_clim()))
    assert (False, 0, 1) in scales
    assert len(scales) == 2
    (signed_scale,) = (scale for scale in scales if scale[0])
    assert signed_scale[1] == -signed_scale[2]


def test_a_large_picture_is_reduced_before_it_is_filtered(tmp_path: Path) -> None:
    levels = np.zeros((800, 1000), dtype=np.uint8)
    levels[:400] = 255
    Image.fromarray(levels).save(tmp_path / "half.png")
    figure = draw("filters", None, picture=tmp_path / "half.png")
    shown = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.get_title()}
    assert shown["edges"].shape == (200, 250)
    np.testing.assert_allclose(shown["edges"][[0, 50, 99, 100, 150, 199], 7], [0, 0, 3 / 8, -3 / 8, 0, 0])
    check_legible(figure)


def test_curves_are_those_of_the_functions() -> None:
    figure = draw("activation-functions", None)
    curves = {
        line.get_label().split("  ")[0]: line
        for axes in figure.axes
        for line in axes.lines
        if "  " in line.get_label()
    }
    at = {
        name: lambda x, line=line: np.interp(x, line.get_xdata(), line.get_ydata())
        for name, line in curves.items()
    }
    for name, x, value in (
        ("ReLU", -2, 0), ("ReLU", 3, 3), ("leaky ReLU", -4, -0.4), ("sigmoid", 0, 0.5), ("tanh", 1, 0.761594),
        ("ELU", -1, -0.632121), ("GELU", 1, 0.841345), ("SiLU", 1, 0.731059), ("softplus", 0, 0.693147),
        ("softsign", 4, 0.8),
    ):  # fmt: skip
        np.testing.assert_allclose(at[name](x), value, atol=1e-5, err_msg=name)
    heights = [bar.get_height() for bar in figure.axes[2].patches]
    np.testing.assert_allclose(heights, primitives.softmax(textbook.DOCUMENTED_VECTOR))
    looks = {(line.get_color(), line.get_linestyle(), line.axes) for line in curves.values()}
    assert len(looks) == len(curves)


# Pictures of one's own


def test_a_picture_is_prepared_as_for_prediction(tmp_path: Path, digits: data.Dataset) -> None:
    from zoo.images import decoding, handwriting

    page = np.full((200, 300), 230, dtype=np.uint8)
    large = np.kron(digits.test_images[0, 0], np.ones((5, 5), dtype=np.uint8))
    page[30:170, 60:200] -= (large * 0.8).astype(np.uint8)
    Image.fromarray(page).save(tmp_path / "digit.png")
    figure = draw("activations", "convnet", picture=tmp_path / "digit.png", weights="pretrained")
    expected = handwriting.to_mnist(decoding.read(tmp_path / "digit.png"))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), expected)
    label = digits.test_labels[0]
    assert f"digit.png, read as {label}" in figure.texts[0].get_text()


def test_pictures_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(np.full((50, 50), 255, dtype=np.uint8)).save(tmp_path / "blank.png")
    for name, message in (("text.png", "not a picture"), ("none.png", "no such picture")):
        for what, model in (("filters", None), ("activations", "convnet")):
            with pytest.raises(InvalidInput, match=message):
                draw(what, model, picture=tmp_path / name)
    with pytest.raises(InvalidInput, match=r"no digit found \(.*blank.png\)"):
        draw("activations", "convnet", picture=tmp_path / "blank.png")
    (tmp_path / "small.json").write_text(small_model(("a", "b")).to_json())
    with pytest.raises(InvalidInput, match=r"takes images of \(3, 9, 12\)"):
        draw("activations", str(tmp_path / "small.json"), picture=tmp_path / "blank.png")


# Options and errors


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("kernels", {"layer": "conv9"}, "no convolution 'conv9'.*known: conv1, conv2"),
        ("kernels", {"layer": "dense1"}, "no convolution 'dense1'"),
        ("kernels", {"channel": 1}, "no input channel 1.*conv1 has 0 to 0"),
        ("kernels", {"channel": -1}, "no input channel -1"),
        ("kernels", {"seed": -1}, "seed -1"),
        ("grid", {"channel": 0}, "grid takes no --channel.*it is for kernels"),
        ("confusion", {"worst": True}, "confusion takes no --worst.*it is for mistakes"),
        ("activations", {"layer": "conv9"}, "no layer 'conv9'.*did you mean 'conv"),
        ("activations", {"image": 297}, "no test image 297.*give 0 to 296"),
        ("activations", {"image": -1}, "no test image -1"),
        ("activations", {"image": 0, "picture": Path("x.png")}, "two pictures"),
        ("mistakes", {"count": 0}, "0 images.*give 1 to 200"),
        ("samples", {"count": 10**9}, "1000000000 images"),
        ("kernel", {}, "unknown plot 'kernel'; did you mean 'kernels'"),
    ],
)
def test_options_that_cannot_be(what: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        draw(what, "cnn-padded", **options)


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(small_model(("a", "b"), channels=1).to_json())
    for what in ("activations", "mistakes", "confusion", "samples"):
        with pytest.raises(InvalidInput, match=r"takes images of \(1, 9, 12\)"):
            draw(what, str(tmp_path / "small.json"))


# Files


def test_saving(tmp_path: Path) -> None:
    figure = draw("samples", None, count=3)
    assert plots.save(figure, tmp_path / "a.PNG") == (tmp_path / "a.PNG").stat().st_size
    with Image.open(tmp_path / "a.PNG") as image:
        assert image.format == "PNG"
        assert set(image.info) <= {"dpi"}  # no software, no date
    plots.save(figure, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<svg")
    assert not {"matplotlib.org", "dc:date", "<metadata>"} & set(text.split())
    for name in ("a.pdf", "a", ".png.txt"):
        with pytest.raises(InvalidInput, match="end it in .png or .svg"):
            plots.save(figure, tmp_path / name)
    with pytest.raises(MachineError, match="cannot write"):
        plots.save(figure, tmp_path / "nowhere" / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.svg"]


def test_the_palette_changes_nothing_to_be_seen() -> None:
    figure = draw("activations", "cnn-padded")
    with canvas.style():
        figure.savefig(full := BytesIO(), format="png")
    expected, got = (
        np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)
        for content in (full.getvalue(), plots.to_png(figure))
    )
    difference = np.abs(got - expected).max(axis=2)
    assert difference.max() <= 24  # of 255: on the rim of letters
    assert np.quantile(difference, 0.99) <= 8


@pytest.mark.parametrize("what", OF_A_MODEL)
def test_bytes_are_the_same_on_every_call(what: str) -> None:
    figures = [draw(what, "lenet-dropout") for _ in range(2)]
    for form in (plots.to_png, plots.to_svg):
        assert form(figures[0]) == form(figures[0]) == form(figures[1])


HOSTILE = """
backend: qtagg
text.usetex: True
font.size: 40
font.family: cursive
image.cmap: hsv
image.origin: lower
savefig.dpi: 20
savefig.bbox: tight
svg.fonttype: none
path.sketch: 1, 100, 2
axes.facecolor: red
figure.constrained_layout.use: True
no.such.key: 1
"""


def test_the_users_matplotlibrc_changes_nothing(tmp_path: Path) -> None:
    code = """
import sys
from zoo.cli import main
try:
    main(["plot", "cnn-padded", "kernels", "--weights", "init", "-o", sys.argv[1]])
except SystemExit as done:
    assert not done.code, done.code
assert "matplotlib.pyplot" not in sys.modules
assert "matplotlib" in sys.modules
"""
    written = []
    for i, settings in enumerate(("", HOSTILE)):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "matplotlibrc").write_text(settings)
        for name in ("a.png", "a.svg"):
            done = subprocess.run(
                [sys.executable, "-c", code, name], cwd=folder, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
        written.append([(folder / name).read_bytes() for name in ("a.png", "a.svg")])
    assert written[0] == written[1]
    (folder / "matplotlibrc").write_bytes(b"font.size: \xff")
    arguments = [sys.executable, "-m", "zoo", "plot", "samples", "--data", "digits"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("error: matplotlib cannot read its settings")
    assert done.stderr.count("\n") == 1


def test_drawing_leaves_no_settings_behind() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.to_svg(draw("kernels", "cnn-padded"))
    assert dict(matplotlib.rcParams) == before


# The command


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call `zoo plot` in this process, in an empty folder, with the embedded data: code, out, err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_DATA", raising=False)

    def call(*arguments: object) -> tuple[object, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main(["plot", *map(str, arguments), "--data", "digits"])
        return done.value.code, *capfd.readouterr()

    return call


def test_the_command_writes_a_file(command, tmp_path: Path) -> None:
    code, out, err = command("cnn-padded:out_1=4", "kernels", "--weights", "init")
    path = tmp_path / "cnn-padded-kernels.png"
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"cnn-padded-kernels.png: {path.stat().st_size:,} bytes"
    assert "zoo plot cnn-padded:out_1=4 grid" in out
    code, out, _ = command("convnet", "mistakes", "-o", "m.svg", "--json", "--weights", "init")
    assert json.loads(out) == {
        "path": "m.svg", "what": "mistakes", "model": "convnet", "bytes": (tmp_path / "m.svg").stat().st_size,
    }  # fmt: skip
    code, out, _ = command("samples")
    assert (code, (tmp_path / "samples.png").is_file()) == (0, True)
    assert "zoo plot filters" in out
    assert command("samples", "-o", "other.png")[0] == 0
    assert (tmp_path / "samples.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_an_exported_file_is_a_model(command, tmp_path: Path) -> None:
    model = zoo.get("cnn-padded")
    (tmp_path / "m.onnx").write_bytes(serialize(to_onnx(model, zoo.init_weights(model, 9))))
    assert command("m.onnx", "confusion")[0] == 0
    assert command("m.onnx", "kernels")[0] == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "cnn-padded-confusion.png",
        "cnn-padded-kernels.png",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cnn-padded", "kernles"], 2, "unknown plot 'kernles'; did you mean 'kernels'?"),
        (["cnn-padded"], 2, "say what of cnn-padded to plot; known: kernels, grid"),
        (["covnet"], 2, "unknown model 'covnet'; did you mean 'convnet'"),
        (["kernels"], 2, "kernels needs a model; run: zoo plot MODEL kernels"),
        (["covnet", "kernels"], 2, "unknown model 'covnet'; did you mean 'convnet'"),
        (["covnet", "samples"], 2, "unknown model 'covnet'"),
        (["convnet", "kernels", "-o", "a.jpg"], 2, "pictures of the kind 'jpg' are not drawn (a.jpg)"),
        (["convnet", "kernels", "-o", "."], 2, "end it in .png or .svg"),
        (["convnet", "kernels", "--count", "3"], 2, "kernels takes no --count"),
        (["convnet", "grid", "--weights", "none.safetensors"], 4, "no such weights file"),
        (["convnet", "history"], 4, "only a run keeps its history, and there is none of convnet (runs)"),
        (["convnet", "history", "-b", "bogus"], 2, "unknown backend 'bogus'"),
        (["filters", "--picture", "none.png"], 2, "no such picture (none.png)"),
        (["samples", "--show"], 5, "there is no display"),
    ],
)
def test_bad_input(
    arguments: list[str], code: int, message: str, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    got, out, err = command(*arguments)
    assert got == code
    assert message in err
    assert (err.count("\n"), out) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_show_opens_the_file(command, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("click.launch", lambda path: opened.append(path) or int(len(opened) > 1))
    assert command("samples", "--show")[0] == 0
    assert opened == ["samples.png"]
    code, _, err = command("samples", "--show")
    assert code == 5
    assert "no program opens the picture (samples.png)" in err


def test_help_lists_every_kind(command) -> None:
    _, out, _ = command("--help")
    for what, line in choices.KINDS.items():
        assert f"{what:<20} {line}" in out


def test_the_shell_completes_models_and_kinds() -> None:
    code = "import zoo.cli; zoo.cli.cli.main(prog_name='zoo')"
    for words, expected in (("zoo plot cnn-padded act", "activation"), ("zoo plot lenet", "lenet-dropout")):
        environment = os.environ | {
            "_ZOO_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert expected in done.stdout, done.stderr


def test_predictions_are_those_of_onnxruntime(decided) -> None:
    model, digits, probability = decided
    outputs = Session(serialize(to_onnx(model, zoo.init_weights(model)))).predict(
        data.to_float(digits.test_images)
    )
    np.testing.assert_allclose(plots.probabilities(outputs, model.output), probability, rtol=1e-4)
    np.testing.assert_array_equal(plots.probabilities(probability, "probabilities"), probability)


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from zoo.cli import main
try:
    main(["plot", "--help"])
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "zoo.cli.plotting" in done.stderr.split()
    assert not {"numpy", "matplotlib", "export", "backends", "PIL"} & set(done.stderr.split())


# The pictures in docs/


def test_docs_show_one_of_each_kind_and_how_it_is_made() -> None:
    folder = Path(__file__).parents[2] / "docs"
    page = (folder / "pictures.md").read_text()
    commands = re.findall(r"^`zoo plot ([^`]+)`:", page, re.MULTILINE)
    made = [next(word for word in line.split() if word in plotting.KINDS) for line in commands]
    linked = re.findall(r"\]\((pictures/[^)]+)\)", page)
    assert made == list(plotting.KINDS)
    assert linked == [f"pictures/{what}.png" for what in made]
    for name in linked:
        assert (folder / name).stat().st_size < 60_000
        with Image.open(folder / name) as image:
            image.verify()
