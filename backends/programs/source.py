"""What the programs of all languages share: Python source, laid out as `ruff format` leaves it.

What a user wrote (names, labels, the document) enters a program through `quoted`, `escaped` and
`identifiers` only, so that no text can become code. Every program defines `load_weights(path)` and
`predict(network, images)`, and ends in the same `main`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zoo.layers import LAYERS, Join, Shape
from zoo.model import Model, Node

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
    """A Python name for every layer, and for every branch, by path, each another.

    It is the path that the zoo gives (conv1, relu1, residual1_body_conv1, ...). A name of the user's own
    could be a keyword, a function of the program or a method of the framework's class, so it comes after
    "layer_".
    """
    kinds = "|".join(sorted({layer.kind for layer in LAYERS.values()}))
    names: dict[str, str] = {}
    for path in _paths(model):
        name = re.sub(r"[^A-Za-z0-9]", "_", path)
        if not all(re.fullmatch(rf"({kinds})[0-9]+", part) for part in path.split(".")[::2]):
            name = f"layer_{name}"
        base = name
        number = 1
        while name in names.values():
            number += 1
            name = f"{base}_{number}"
        names[path] = name
    return names


def _paths(model: Model) -> Iterator[str]:
    """The paths of all layers, and behind each join's those of its branches."""
    for node in model.walk():
        yield node.path
        if isinstance(node.layer, Join):
            yield from (f"{node.path}.{branch}" for branch in node.layer.chains())


class Flow:
    """The variables of a program that computes a model layer after layer: x, and one for each branch."""

    def __init__(self, model: Model) -> None:
        self._names = identifiers(model)

    def target(self, node: Node) -> str:
        """The variable that a layer's output is assigned to."""
        return self._holds(node.path)

    def inputs(self, node: Node) -> list[str]:
        """The variables that hold what a layer takes."""
        return [self._holds(path) for path in node.inputs]

    def _holds(self, path: str) -> str:
        branch, _, _ = path.rpartition(".")
        return self._names[branch] if branch else "x"


def listed(items: Sequence[str], indent: int) -> str:
    """A list as the one argument on its line in a call at this indent: on one line, or one item on each."""
    line = f"[{', '.join(items)}]"
    margin = " " * (indent + 4)
    if len(margin) + len(line) < WIDTH:
        return line
    return "\n".join(["[", *(f"{margin}    {item}," for item in items), f"{margin}]"])


def operation(
    target: str, first: str, operator: str, second: str, *, comment: str = "", indent: int = 4
) -> str:
    """`target = first + second`, broken inside parentheses if it is long."""
    margin = " " * indent
    line = f"{margin}{target} = {first} {operator} {second}"
    if len(line) > WIDTH:
        inside = f"{margin}    {first} {operator} {second}"
        inside = inside if len(inside) <= WIDTH else f"{margin}    {first}\n{margin}    {operator} {second}"
        line = f"{margin}{target} = (\n{inside}\n{margin})"
    elif len(f"{line}  # {comment}") <= WIDTH:
        return f"{line}  # {comment}" if comment else line
    return f"{margin}# {comment}\n{line}" if comment else line


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
