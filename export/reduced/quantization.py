"""Smaller files: int8 by static quantisation (QDQ), float16, and the gate that they have to pass.

The direct graph is rewritten by onnxruntime's own tools. int8: weights per channel and symmetric, activations
uint8 in ranges that a fixed choice of training images sets; the graph says so in QuantizeLinear and
DequantizeLinear, which a runtime fuses into integer operators. Dense layers keep their float32 output and
softmax stays in float32: on training images that did not calibrate this lost least, by far. float16: weights
and activations. Input and output stay float32, preprocessing stays inside.

Such a file does not compute what was written, only nearly, so no limit of float32 holds. It is held to what
it is for: its accuracy on the test images, paired with the float32 file's (accuracy_drop.py). Its test
vectors are its own outputs as the graph is written; a runtime may differ from them by what reduction itself
costs on calibration images. A file is written only if it passes, and its bytes follow from model, weights
and images.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

import zoo
from export import crosscheck
from export.crosscheck.graphs import expose
from export.crosscheck.inputs import LAYER_IMAGES
from export.inference import vectors
from export.inference.session import Session
from export.onnx.file import describe, serialize
from export.onnx.graph import BATCH, INPUT, IR_VERSION, tensor_name, to_layers_onnx, to_onnx
from export.reduced import accuracy_drop
from export.reduced.accuracy_drop import Drop
from export.runs import card
from export.runs.sources import Source
from zoo import data, randomness, runs, timing
from zoo.errors import CheckFailed, InvalidInput
from zoo.model import Model

Array = np.ndarray

INT8, FLOAT16 = PRECISIONS = vectors.REDUCED
CALIBRATION = "zoo.calibration"  # the metadata entry that says which images the ranges are of
CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
HEADROOM = 2.0  # what a runtime may differ, in differences between the file and the float32 one
BATCHES = (1, 32, 256)  # whose speed is told
ROUNDS, SECONDS = 21, 0.02  # blocks of each file, and how long each is
CONTROL = "float32 again"

# What is quantised; other operators compute in float32.
QUANTIZED = (
    "Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Add",
    "Concat",
)  # fmt: skip
FLOAT_OUTPUTS = ("Gemm",)
DEQUANTIZED = "_DequantizeLinear_Output"  # after the name of a tensor: what onnxruntime calls it then


@dataclass(frozen=True)
class Reduction:
    """What to make of a model's graph.

    precision: "int8" or "float16". calibration: how many training images set the ranges. most: the
    largest drop in accuracy that is accepted, in percentage points.
    """

    precision: str
    calibration: int = CALIBRATION_IMAGES
    most: float = accuracy_drop.MOST_DROP

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidInput(f"unknown precision {self.precision!r}", "", " or ".join(PRECISIONS))
        if self.calibration < 1:
            raise InvalidInput(f"{self.calibration} images to calibrate", "--calibration", "give at least 1")
        if not 0 < self.most <= 100:
            raise InvalidInput(
                f"a drop of {self.most:g} points", "--max-drop", "give more than 0, at most 100"
            )


def wish(
    int8: bool, float16: bool, exporter: str, images: int | None, most: float | None
) -> Reduction | None:
    """What a command's options ask for; None for the float32 file. Raises InvalidInput where they clash."""
    if int8 and float16:
        raise InvalidInput("two precisions", "--int8 and --float16", "give one of them")
    precision = INT8 if int8 else FLOAT16 if float16 else None
    if precision is None:
        for option, value in (("--calibration", images), ("--max-drop", most)):
            if value is not None:
                raise InvalidInput("a float32 file loses nothing", option, "add --int8 or --float16")
        return None
    if exporter != "direct":
        raise InvalidInput(f"{precision} is made of the zoo's own graph", "--exporter", "leave it out")
    if precision != INT8 and images is not None:
        raise InvalidInput(f"{precision} needs no calibration", "--calibration", "leave it out")
    allowed = accuracy_drop.MOST_DROP if most is None else most
    return Reduction(precision, CALIBRATION_IMAGES if images is None else images, allowed)


@dataclass(frozen=True)
class Calibration:
    """Training images that set ranges: float32 (N, C, H, W) in [0, 1], and what the file says of them."""

    images: Array
    told: dict[str, Any]


def calibration(dataset: data.Dataset, count: int) -> Calibration:
    """The images that calibrate: a fixed choice of so many training images, all if there are fewer."""
    chosen = randomness.permutation(0, "calibration", len(dataset.train_labels))[:count]
    images = dataset.train_images[chosen]
    sha256 = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
    return Calibration(data.to_float(images), {"data": dataset.name, "images": len(images), "sha256": sha256})


def reduce(
    model: Model, weights: Mapping[str, Array], precision: str, calibrated: Calibration
) -> tuple[bytes, dict[str, str]]:
    """The file of a model in another precision, with everything that a file of the zoo carries; and the
    tensor of each layer that its graph still shows, by path."""
    proto = _without_identities(to_onnx(model, weights))
    proto = to_float16(proto) if precision == FLOAT16 else to_int8(proto, calibrated.images)
    content = serialize(_canonical(proto, model))
    entries = {vectors.PRECISION: precision, **_vectors(model, weights, content, calibrated.images)}
    if precision == INT8:
        images = {key: value for key, value in calibrated.told.items() if key != "data"}  # wherever they lie
        entries[CALIBRATION] = json.dumps(images, sort_keys=True)
    final = _canonical(proto, model)
    describe(final, model, weights, entries)
    onnx.checker.check_model(final, full_check=True)
    return serialize(final), shown_layers(final, model)


def to_int8(proto: ModelProto, images: Array) -> ModelProto:
    """A float32 graph quantised by onnxruntime, calibrated on images float32 (N, C, H, W)."""
    quantization, _ = _tools()

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            starts = range(0, len(images), CALIBRATION_BATCH)
            self._batches: Iterator[Array] = (images[at : at + CALIBRATION_BATCH] for at in starts)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    prepared = ModelProto()
    prepared.CopyFrom(proto)
    # Without it onnxruntime advises a preparation for graphs of other exporters, and sets up logging.
    helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory(prefix="zoo-int8-") as folder:
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            reduce_range=False,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUTS)},
        )
        return onnx.load_from_string(path.read_bytes())


def to_float16(proto: ModelProto) -> ModelProto:
    """A float32 graph with weights and activations in float16; input and output stay float32."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    return _tools()[1](copy, keep_io_types=True)


@cache
def _tools() -> tuple[Any, Any]:
    """onnxruntime.quantization, and its conversion to float16, imported when first needed.

    The second adds a folder to Python's path, with modules called `models` and `float16`, which the
    first takes some from and which must not stay there. So both are imported together, once.
    """
    path = list(sys.path)
    try:
        from onnxruntime import quantization
        from onnxruntime.transformers.float16 import convert_float_to_float16
    finally:
        sys.path[:] = path
    return quantization, convert_float_to_float16


def shown_layers(proto: ModelProto, model: Model) -> dict[str, str]:
    """The tensor of each layer's output, by path: as the next layer takes it, where the graph shows it.

    A ReLU that follows a convolution becomes a part of it, and what lies between is not shown.
    """
    made = {name for node in proto.graph.node for name in node.output}
    names = {node.path: tensor_name(model, node.path) for node in model.walk()}
    taken = {path: name + DEQUANTIZED if name + DEQUANTIZED in made else name for path, name in names.items()}
    return {path: name for path, name in taken.items() if name in made}


def _without_identities(proto: ModelProto) -> ModelProto:
    """A graph without the operators that dropout left: each would get a range of its own."""
    kept = ModelProto()
    kept.CopyFrom(proto)
    del kept.graph.node[:]
    outputs = {output.name for output in proto.graph.output}
    same: dict[str, str] = {}
    for node in proto.graph.node:
        source = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = source[0]
            continue
        copy = kept.graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = source
    return kept


def _canonical(proto: ModelProto, model: Model) -> ModelProto:
    """The same graph in the form of every file of the zoo: the interface, the order, no metadata yet."""
    tensors = sorted(proto.graph.initializer, key=lambda tensor: tensor.name)
    nodes = _in_order(proto)
    for number, node in enumerate(nodes, start=1):
        node.name = node.name or f"{node.op_type}_{number}"
    image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, *model.input_shape])
    output = helper.make_tensor_value_info(model.output, TensorProto.FLOAT, [BATCH, *model.output_shape])
    return helper.make_model(
        helper.make_graph(nodes, model.name, [image], [output], tensors),
        opset_imports=[opset for opset in proto.opset_import if opset.domain == ""],
        ir_version=IR_VERSION,
        producer_name="cnn-zoo",
        producer_version=zoo.__version__,
    )


def _in_order(proto: ModelProto) -> list[NodeProto]:
    """The nodes of a graph, each behind those whose tensors it takes, otherwise as they stand."""
    nodes = list(proto.graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output}
    waits = [{maker[name] for name in node.input if name in maker} for node in nodes]
    takers: dict[int, list[int]] = {}
    for index, before in enumerate(waits):
        for source in before:
            takers.setdefault(source, []).append(index)
    ready = [index for index, before in enumerate(waits) if not before]
    ordered = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(nodes[index])
        for taker in takers.get(index, ()):
            waits[taker].discard(index)
            if not waits[taker]:
                heapq.heappush(ready, taker)
    return ordered


def _vectors(model: Model, weights: Mapping[str, Array], content: bytes, images: Array) -> dict[str, str]:
    """The test vectors of a file: what it gives itself, as the graph is written, and how far a runtime may
    be from it: by HEADROOM times what it differs from float32 on the images, larger outputs by more."""
    names, pixels = vectors.make(model)
    shape = vectors.kept_shape(model, len(names))
    written = Session(content, optimize=False)
    exact = Session(serialize(to_onnx(model, weights))).predict(images)
    apart, largest = np.abs(written.predict(images) - exact).max(), np.abs(exact).max()
    outputs = written.predict(vectors.images(model, pixels)).astype(np.float64)
    tops = np.abs(outputs).reshape(len(names), -1).max(axis=1)
    noise = HEADROOM * np.nan_to_num(float(apart)) * np.maximum(1, tops / max(largest, vectors.TINY))
    limits = [
        float(f"{vectors.limit(float(top)) + float(own):.2e}") for top, own in zip(tops, noise, strict=True)
    ]
    kept = np.stack([vectors.on_grid(output)[tuple(map(slice, shape))] for output in np.nan_to_num(outputs)])
    return vectors.encode(names, pixels, kept, limits)


def signal_to_noise(exact: Array, noisy: Array) -> float:
    """How much larger a signal is than what was added to it, in dB: 10 log10(sum x^2 / sum (x - y)^2).

    Infinite where nothing was.
    """
    x, y = exact.astype(np.float64), noisy.astype(np.float64)
    noise = np.square(x - y).sum()
    return float(10 * np.log10(np.square(x).sum() / noise)) if noise else float("inf")


def layer_noise(
    model: Model, weights: Mapping[str, Array], content: bytes, shown: Mapping[str, str], images: Array
) -> dict[str, float]:
    """The signal-to-noise ratio in dB of each layer that a file shows, by path, on images (N, C, H, W).

    The signal is what the float32 file gives.
    """
    proto = onnx.load_from_string(content)
    half = {tensor.data_type for tensor in proto.graph.initializer} == {TensorProto.FLOAT16}
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    inside = Session(expose(proto, shown.values(), kind)).run(images, list(shown.values()))
    exact = Session(serialize(to_layers_onnx(model, weights))).run(images)
    return {
        path: signal_to_noise(exact[tensor_name(model, path)], inside[name]) for path, name in shown.items()
    }


def speeds(exact: bytes, reduced: bytes, images: Array) -> list[dict[str, Any]]:
    """How long a file takes against the float32 one, by batch: ratio of times with 95 % interval, and the
    float32 file against itself. Both run in this process, in blocks that alternate."""
    files = {"float32": Session(exact), CONTROL: Session(exact), "reduced": Session(reduced)}
    found = []
    for size in BATCHES:
        batch = np.resize(images, (size, *images.shape[1:]))

        calls = {name: partial(session.predict, batch) for name, session in files.items()}
        timed = timing.race(
            {name: partial(timing.calls, call, SECONDS) for name, call in calls.items()}, ROUNDS
        )
        base = timed["float32"]
        found.append(
            {
                "batch": size,
                "time": timed["reduced"].ratio(base)._asdict(),
                "control": timed[CONTROL].ratio(base)._asdict(),
                "images_per_second": {name: size * timed[name].per_second for name in ("float32", "reduced")},
            }
        )
    return found


def export(source: Source, file: Path, wish: Reduction, dataset: data.Dataset) -> dict[str, Any]:
    """Reduce a model that agrees with the reference, judge it on the test images, write it; says what was
    written.

    Raises CheckFailed, and writes nothing, if the float32 file disagrees with the reference or the reduced
    one does not pass the gate; also where so few test images cannot show that it does.
    """
    if not file.name or file.is_dir():
        raise InvalidInput("not the name of a file", str(file), "give a file name with -o")
    model, weights = source.model, source.weights
    images, labels = data.to_float(dataset.test_images), dataset.test_labels
    if len(images) < accuracy_drop.images_needed(wish.most):
        raise CheckFailed(
            f"{len(images)} test images cannot show a drop of at most {wish.most:g} points: "
            f"at least {accuracy_drop.images_needed(wish.most)} can",
            f"--data {dataset.name}",
            "nothing was written; take --data mnist, or allow more with --max-drop",
        )
    report = crosscheck.verify(model, weights, [], images)
    for verdict in report.verdicts:
        if not verdict.passed:
            raise CheckFailed(verdict.failure, source.origin, "nothing was written")
    calibrated = calibration(dataset, wish.calibration)
    content, shown = reduce(model, weights, wish.precision, calibrated)
    drop = judge(report.onnx, content, images, labels, wish.most)
    if not drop.passed:
        raise CheckFailed(refusal(wish.precision, drop), source.origin, "nothing was written")
    noise = layer_noise(model, weights, content, shown, images[:LAYER_IMAGES])
    speed = speeds(report.onnx, content, images)
    runs.write_atomically(file, content)
    return {
        "path": str(file),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "weights": source.origin,
        "exporter": "direct",
        "precision": wish.precision,
        "calibration": calibrated.told if wish.precision == INT8 else None,
        "opset": onnx.load_from_string(content).opset_import[0].version,
        "input": f"image float32 [batch, {', '.join(map(str, model.input_shape))}], pixels in [0, 1]",
        "output": f"{model.output} float32 [batch, {', '.join(map(str, model.output_shape))}]",
        "float32_bytes": len(report.onnx),
        "gate": drop.to_dict(),
        "signal_to_noise": {
            path: round(ratio, 2) if np.isfinite(ratio) else None for path, ratio in noise.items()
        },
        "speed": speed,
        "example": card.usage(str(file), model),
    }


def judge(
    exact: bytes, reduced: bytes, images: Array, labels: Array, most: float = accuracy_drop.MOST_DROP
) -> Drop:
    """What a reduced file loses against the float32 one on test images."""
    return accuracy_drop.compare(
        Session(exact).predict(images), Session(reduced).predict(images), labels, most
    )


def refusal(precision: str, drop: Drop) -> str:
    """One sentence on a file that did not pass the gate."""
    before, after = (right / drop.images for right in drop.right)
    flips = ", ".join(map(str, drop.flips[: accuracy_drop.SHOWN]))
    more = ", ..." if len(drop.flips) > accuracy_drop.SHOWN else ""
    return (
        f"{precision} loses too much accuracy: {before:.4f} becomes {after:.4f}, a drop of {drop}; McNemar "
        f"p = {drop.p_value:.2g}; {len(drop.flips):,} of {drop.images:,} decisions flip: images {flips}{more}"
    )


def lines(exported: Mapping[str, Any]) -> list[str]:
    """What `export` says of a reduced file, as lines of a terminal."""
    gate, speed = exported["gate"], exported["speed"]
    before, after = gate["accuracy"]["float32"], gate["accuracy"]["reduced"]
    low, high = gate["interval"]
    mcnemar, flips = gate["mcnemar"], gate["flips"]
    shown = ", ".join(map(str, flips["images"][: accuracy_drop.SHOWN]))
    found = [
        f"size    {exported['bytes'] / exported['float32_bytes']:.2f} of the float32 file's "
        f"{exported['float32_bytes']:,} bytes",
        f"gate    accuracy {before:.4f} -> {after:.4f} on {gate['images']:,} test images: a drop of "
        f"{gate['drop']:.2f} points,",
        f"        95 % interval {low:.2f} to {high:.2f}, {gate['limit']:g} allowed; "
        f"McNemar p = {mcnemar['p']:.2g} ({mcnemar['lost']} lost, {mcnemar['gained']} gained)",
        f"flips   {flips['total']:,}"
        + (f": images {shown}" if shown else "")
        + (", ..." if flips["total"] > accuracy_drop.SHOWN else ""),
    ]
    for row in speed:
        ratio, control = timing.Interval(**row["time"]), timing.Interval(**row["control"])
        faster, slower = ratio.high < min(1, control.low), ratio.low > max(1, control.high)
        word = "faster" if faster else "SLOWER" if slower else "no clear difference"
        found.append(
            f"{'speed' if row is speed[0] else '':7} batch {row['batch']:<3} takes {ratio.value:.2f} "
            f"({ratio.low:.2f} to {ratio.high:.2f}) of the float32 time: {word}; float32 against itself "
            f"{control.value:.2f} ({control.low:.2f} to {control.high:.2f})"
        )
    noise = [
        f"{path} {'exact' if ratio is None else f'{ratio:.1f}'}"
        for path, ratio in exported["signal_to_noise"].items()
    ]
    found += textwrap.wrap(
        f"signal to noise in dB, by layer: {', '.join(noise)}", 100, subsequent_indent="        "
    )
    return found
