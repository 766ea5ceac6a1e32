"""Drawn digits: which of them `zoo predict` reads right, model beside model.

    python -m benchmarks.drawn [MODEL...] [--hands 400]

Every picture is another drawing: ten digits in so many hurried hands (benchmarks/drawing.py), each saved in
one of the styles in turn, read as `zoo predict` reads a file. No model was trained on them. The models are
compared with the first one, picture by picture: McNemar's exact test. Prints Markdown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import tabulate

from benchmarks.drawing import CAREFUL, STYLES
from export import predict
from export.reduced.accuracy_drop import Drop, compare
from zoo import pretrained
from zoo.images import decoding, handwriting


class Drawn(NamedTuple):
    """Digits as a network sees them. images: float32 (N, 28, 28) in [0, 1]; labels: int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


def draw_all(hands: Sequence[int]) -> Drawn:
    """Ten digits in each of these hands, every one in the next style."""
    styles = list(STYLES.values())
    images, labels = [], []
    with tempfile.TemporaryDirectory(prefix="zoo-benchmark-") as folder:
        for hand in hands:
            for digit in range(10):
                file = styles[(digit + hand) % len(styles)](digit, hand, Path(folder) / "digit")
                images.append(handwriting.to_mnist(decoding.read(str(file))))
                labels.append(digit)
    return Drawn(np.array(images, dtype=np.float32), np.array(labels))


def outputs(model: str, drawn: Drawn) -> np.ndarray:
    """The probabilities (N, 10) that a model gives: its name, a run folder or an ONNX file."""
    predictor = predict.load(model)
    said = predictor.predict(drawn.images)
    return np.array([[each.probabilities[str(digit)] for digit in range(10)] for each in said])


def table(drops: dict[str, Drop]) -> str:
    """Right and wrong of every model, and what it lost and gained against the first."""
    rows = [
        (
            f"`{model}`",
            drop.right[1],
            drop.images - drop.right[1],
            drop.lost,
            drop.gained,
            f"{drop.p_value:.2g}",
        )
        for model, drop in drops.items()
    ]
    header = ("model", "right", "wrong", "lost", "gained", "McNemar p")
    return tabulate.tabulate(rows, header, "github", disable_numparse=True)


@click.command()
@click.argument("models", nargs=-1)
@click.option(
    "--hands",
    type=click.IntRange(min=1),
    default=400,
    show_default=True,
    help="How many; ten digits of each.",
)
def main(models: tuple[str, ...], hands: int) -> None:
    """Count the drawn digits that MODELs read right [default: all with weights, convnet-deep first]."""
    chosen = models or ("convnet-deep", *(name for name in pretrained.names() if name != "convnet-deep"))
    drawn = draw_all(range(CAREFUL, CAREFUL + hands))
    found = {model: outputs(model, drawn) for model in chosen}
    drops = {model: compare(found[chosen[0]], found[model], drawn.labels) for model in chosen}
    click.echo(f"{len(drawn.labels)} drawings; lost and gained against {chosen[0]}\n")
    click.echo(table(drops))


if __name__ == "__main__":
    main()
