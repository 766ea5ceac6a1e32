"""What the programs of all languages share: Python source, laid out as `ruff format` leaves it.

What a user wrote (names, labels, the document) enters a program through `quoted`, `escaped` and
`identifiers` only, so that no text can become code. Every program defines `load_weights(path)` and
`predict(network, images)`, and ends in the same `main`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from zoo.layers import LAYERS, Shape
from zoo.model import Model

WIDTH = 88  # columns: what ruff and black use where nothing is configured


class Call(NamedTuple):
    """The source of a call: nn.Conv2d with ("1", "16", "kernel_size=5")."""

    function: str
    arguments: tuple[str, ...] = ()


def escaped(text: str) -> str:
    """The text as it may stand inside double quotes or a docstring: on one line, all of it visible."""
    return "".join(
        f"\\{c}" if c in '\\"' else c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )


def quoted(text: str) -> str:
    """The text as a Python literal in double quotes."""
    return f'"{escaped(text)}"'


def pair(values: tuple[int, int]) -> str:
    """A kernel or stride as frameworks take it: 5 for (5, 5), else (1, 4)."""
    return str(values[0] if values[0] == values[1] else values)


def shown(shape: Shape) -> str:
    """A shape in a comment: 16 x 28 x 28."""
    return " x ".join(map(str, shape))


def batch_of(shape: Shape) -> str:
    """The shape of an array of N such: (N, 16, 28, 28)."""
    return f"(N, {', '.join(map(str, shape))})"


def summary(model: Model) -> str:
    """The docstring of what builds the network: its shapes and its size."""
    shapes = f"{shown(model.input_shape)} -> {shown(model.output_shape)}"
    return f'    """{shapes}; {model.parameters:,} parameters."""'


def identifiers(model: Model) -> dict[str, str]:
    """A Python name for every layer, by path, each another.

    It is the path that the zoo gives (conv1, relu1, ...). A name of the user's own could be a keyword,
    a function of the program or a method of the framework's class, so it comes after "layer_".
    """
    kinds = "|".join(sorted({layer.kind for layer in LAYERS.values()}))
    names: dict[str, str] = {}
    for node in model.walk():
        name = node.path
        if not re.fullmatch(rf"({kinds})[0-9]+", name):
            name = "layer_" + re.sub(r"[^A-Za-z0-9]", "_", name)
        base = name
        number = 1
        while name in names.values():
            number += 1
            name = f"{base}_{number}"
        names[node.path] = name
    return names


def assignment(target: str, call: Call, *, applied_to: str = "", comment: str = "", indent: int = 4) -> str:
    """`target = call`, or `target = call(applied_to)`, broken inside the call's parentheses if it is long.

    The comment stands behind the line, or above it where it does not fit.
    """
    margin = " " * indent
    start = f"{margin}{target} = {call.function}("
    end = f"){f'({applied_to})' if applied_to else ''}"
    inside = ", ".join(call.arguments)
    line = f"{start}{inside}{end}"
    if len(line) > WIDTH and applied_to and len(f"{start}{inside})(") <= WIDTH:
        line = f"{start}{inside})(\n{margin}    {applied_to}\n{margin})"
    elif len(line) > WIDTH:
        separate = f"\n{margin}    "
        inside = inside if indent + 4 + len(inside) <= WIDTH else f",{separate}".join(call.arguments) + ","
        line = f"{start}{separate}{inside}\n{margin}{end}"
    elif len(f"{line}  # {comment}") <= WIDTH:
        return f"{line}  # {comment}" if comment else line
    return f"{margin}# {comment}\n{line}" if comment else line


def program(model: Model, framework: str, dtype: str, imports: str, *blocks: str) -> str:
    """The whole program: what it is, its imports, the blocks of its language, and `main`."""
    document = f"\n\nDocument: {escaped(model.document)}" if model.document else ""
    about = f'''"""The network {escaped(model.title)} as a {framework} program.{document}

    python net.py weights.safetensors images.npy [outputs.npy]

images.npy: float32 {batch_of(model.input_shape)}, pixels in [0, 1].
outputs.npy: {dtype} {batch_of(model.output_shape)}, {model.output}.
Prints the {"class of every image" if model.labels else "shape of the outputs"}.
"""'''
    labels = _assignment_of_list("LABELS", [quoted(label) for label in model.labels])
    return "\n\n\n".join([f"{about}\n\n{imports}{labels}", *blocks, _main(model)]) + "\n"


def _assignment_of_list(target: str, items: list[str]) -> str:
    if not items:
        return ""
    line = f"{target} = [{', '.join(items)}]"
    if len(line) > WIDTH:
        line = "\n".join([f"{target} = [", *(f"    {item}," for item in items), "]"])
    return f"\n\n{line}"


def _main(model: Model) -> str:
    shown = """\
    for row in outputs:
        print(LABELS[row.argmax()])"""
    return f"""\
def main(weights_path, images_path, outputs_path=None):
    outputs = predict(load_weights(weights_path), np.load(images_path))
    if outputs_path:
        np.save(outputs_path, outputs)
{shown if model.labels else "    print(outputs.shape)"}


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])"""
