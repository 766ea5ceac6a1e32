"""A picture of a model as text: Mermaid for Markdown pages and notebooks, DOT for Graphviz.

One box per layer, with its path, type and output shape, and an arrow from each layer whose output it takes.
Boxes of layers that hold weights are coloured by kind, in two colours that every kind of colour vision
tells apart (Okabe and Ito, "Color Universal Design", 2008), under black text. Labels are quoted and
escaped, so that a name can never become syntax; boxes are numbered, because names may hold what
identifiers may not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zoo.errors import InvalidInput, nearest
from zoo.model import IMAGE, Model

COLOURS = {"conv": "#56B4E9", "dense": "#E69F00"}  # sky blue, orange


class _Box(NamedTuple):
    kind: str
    lines: tuple[str, ...]
    inputs: tuple[int, ...]  # the numbers of the boxes whose output it takes


def mermaid(model: Model) -> str:
    """A Mermaid flowchart, as GitHub, GitLab and Jupyter draw it in a ```mermaid block."""

    def quoted(text: str) -> str:
        # Everything but letters, digits and what a name or a shape may hold, as Mermaid's entity codes.
        return "".join(c if c.isascii() and (c.isalnum() or c in " ._-") else f"#{ord(c)};" for c in text)

    boxes = _boxes(model)
    lines = ["flowchart TD"]
    for number, box in enumerate(boxes):
        style = f":::{box.kind}" if box.kind in COLOURS else ""
        lines.append(f'    n{number}["{"<br/>".join(map(quoted, box.lines))}"]{style}')
    lines += [f"    n{before} --> n{number}" for number, box in enumerate(boxes) for before in box.inputs]
    lines += [
        f"    classDef {kind} fill:{colour},stroke:#000,color:#000"
        for kind, colour in COLOURS.items()
        if any(box.kind == kind for box in boxes)
    ]
    return "\n".join(lines) + "\n"


def dot(model: Model) -> str:
    """A directed graph in Graphviz' DOT language: `dot -Tsvg` draws it."""

    def quoted(*lines: str) -> str:
        escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
        return '"' + "\\n".join(escaped) + '"'

    boxes = _boxes(model)
    lines = [
        f"digraph {quoted(model.title)} {{",
        '    node [shape=box, style="rounded,filled", fillcolor=white, fontname=Helvetica]',
    ]
    for number, box in enumerate(boxes):
        style = f', fillcolor="{COLOURS[box.kind]}"' if box.kind in COLOURS else ""
        lines.append(f"    n{number} [label={quoted(*box.lines)}{style}]")
    lines += [f"    n{before} -> n{number}" for number, box in enumerate(boxes) for before in box.inputs]
    return "\n".join([*lines, "}"]) + "\n"


LANGUAGES: dict[str, Callable[[Model], str]] = {"mermaid": mermaid, "dot": dot}


def draw(model: Model, language: str) -> str:
    """The model's picture in a language of LANGUAGES; raises InvalidInput for another."""
    if language not in LANGUAGES:
        raise InvalidInput(f"unknown language {language!r}", "--diagram", nearest(language, LANGUAGES))
    return LANGUAGES[language](model)


def _boxes(model: Model) -> list[_Box]:
    boxes = [_Box("image", ("image", " x ".join(map(str, model.input_shape))), ())]
    numbers = {IMAGE: 0}
    for number, node in enumerate(model.walk(), start=1):
        shape = " x ".join(map(str, node.output_shape))
        inputs = tuple(numbers[path] for path in node.inputs)
        boxes.append(_Box(node.layer.kind, (node.path, type(node.layer).__name__, shape), inputs))
        numbers[node.path] = number
    return boxes
