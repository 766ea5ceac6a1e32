"""The model card of a run: what the network is, what it scores, how it was checked. Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from zoo.model import Model
from zoo.precision import FLOAT32

IMPORTED = "import"  # the folder of what was brought in, where a backend's name would stand
CURVES, KERNELS, CONFUSION, MISTAKES = "curves.png", "kernels.png", "confusion.png", "mistakes.png"
CAPTIONS = {
    CURVES: "loss and accuracy during training",
    KERNELS: "kernels of the first convolution before and after training",
    CONFUSION: "which class was taken for which, on the test images",
    MISTAKES: "the misread test images whose true class was held least likely",
}


def model_card(model: Model, report: dict[str, Any], pictures: Sequence[str]) -> str:
    """The text of a run's README.md. Text from the spec is escaped: it may be anybody's.

    pictures: the files of `gallery.pictures` that lie beside it.
    """
    onnx, data = report["onnx"], report["data"]
    origin = report.get("pretrained")
    trained = origin["data"] if origin else data
    how = f"pretrained, on {report['backend']}" if origin else f"trained by {report['backend']}"
    precision = report.get("precision", {}).get("name", FLOAT32)
    mixed = "" if precision == FLOAT32 else f", steps in {precision}, weights in float32"
    lines = [
        f"# {_safe(model.title)}, {how}",
        "",
        f"{model.parameters:,} parameters, {model.macs:,} multiply-accumulates an image, "
        f"after {_safe(model.document) or 'no document'}.",
        "",
        f"Trained on {_safe(trained['name'])} ({trained['train']:,} images, {report['epochs']} epochs, "
        f"seed {report['seed']}{mixed}); tested on {data['test']:,} images of {_safe(data['name'])}.",
        "",
        "| | accuracy | loss |",
        "|---|---|---|",
    ]
    for part, accuracy in report["accuracy"].items():
        if accuracy is not None:
            lines.append(f"| {part} | {accuracy:.4f} | {report['loss'][part]:.4f} |")
    lines += [
        f"| `model.onnx` in onnxruntime, test | {onnx['accuracy']:.4f} | |",
        *(f"\n**Warning:** {_safe(warning)}" for warning in report["warnings"]),
    ]
    for picture in pictures:
        caption = CAPTIONS[picture]
        lines += ["", f"![{caption}]({picture})", "", f"*{caption[0].upper()}{caption[1:]}.*"]
    lines += [
        "",
        "## Checks",
        "",
        "Every witness against the spec's float64 reference, on all test images:",
        "",
        "| witness | max abs difference | allowed | flips |",
        "|---|---|---|---|",
    ]
    for witness in report["checks"]["witnesses"]:
        if "output" not in witness:
            lines.append(f"| {witness['witness']} | {_safe(witness.get('skipped', ''))} | | |")
            continue
        output, flips = witness["output"], witness["decisions"]["flips"]
        lines.append(
            f"| {witness['witness']} | {output['max_abs_diff']:.1e} | {output['limit']:.1e} | {flips} |"
        )
    lines += [
        "",
        "## Layers",
        "",
        "| layer | output | parameters |",
        "|---|---|---|",
    ]
    lines += [
        f"| {node.path} | {' x '.join(map(str, node.output_shape))} | {node.parameters:,} |"
        for node in model.walk()
    ]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        *usage("model.onnx", model).splitlines(),
        "```",
        "",
        f"Input `image`: float32 [batch, {', '.join(map(str, model.input_shape))}], pixels in [0, 1], "
        f"white ink on black. Output `{model.output}`: float32 [batch, {len(model.labels)}].",
    ]
    if model.notes:
        lines += ["", "## Notes", "", *(f"- {_safe(note)}" for note in model.notes)]
    return "\n".join(lines) + "\n"


def usage(path: str, model: Model) -> str:
    """Four lines of Python that run the exported file."""
    return (
        "import numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({path!r})\n"
        f"image = numpy.zeros((1, {', '.join(map(str, model.input_shape))}), dtype=numpy.float32)\n"
        f"print(session.run([{model.output!r}], {{'image': image}})[0].argmax(axis=1))"
    )


def _safe(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    escaped = html.escape(text, quote=False)
    return "".join("\\" + c if c in r"\`*_[]|#!" else c for c in escaped)


def import_card(model: Model, report: dict[str, Any]) -> str:
    """The text of the README.md of a model that was brought in: where from, and how it was checked."""
    about = report["imported"]
    origin = [f"- {_safe(str(key))}: {_safe(str(value))}" for key, value in about.items()]
    checks = [
        f"| {_safe(check['witness'])} | {check['dtype']} | {' x '.join(map(str, check['input_shape']))} "
        f"| {check['max_abs_diff']:.1e} | {check['limit']:.1e} |"
        for check in report["checks"]
    ]
    return "\n".join([
        f"# {_safe(model.title)}, imported",
        "",
        f"{model.parameters:,} parameters, {model.macs:,} multiply-accumulates an image.",
        "",
        *origin,
        "",
        "## Checks",
        "",
        "Every witness against the original, with the same weights and images:",
        "",
        "| witness | dtype | image | max abs difference | allowed |",
        "|---|---|---|---|---|",
        *checks,
        "",
        "## Use",
        "",
        "```python",
        *usage("model.onnx", model).splitlines(),
        "```",
        *(["", "## Notes", "", *(f"- {_safe(note)}" for note in model.notes)] if model.notes else []),
        "",
    ])  # fmt: skip
