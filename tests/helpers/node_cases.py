"""The cases of the onnx package's backend tests, as graphs of one input with the outputs that it stores.

Of single operators, and of modules that PyTorch computed and exported. `python tests/helpers/node_cases.py` prints which of the first the language of layers expresses, operator by
operator, and why it does not express the others: the table of docs/importing.md.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests, load_node_model_tests

from export.imports import reading
from export.imports.nodes import RULES

# A case whose inputs and outputs stand with four decimals in onnx's source: half a unit of the last one, and the
# same of the nine inputs in its mean. Every other is held to TOLERANCE.
ROUNDED = {"averagepool_2d_ceil_last_window_starts_on_pad": 5e-5 + 1e-5}
TOLERANCE = 1e-6  # relative to the largest stored output, or absolute below 1


Loaded = tuple[str, ModelProto, Sequence[np.ndarray], Sequence[np.ndarray]]  # name, inputs, outputs


class Case(NamedTuple):
    """One case: the operator, the graph with all inputs but the first bound, and what it is to give."""

    name: str
    operator: str
    proto: ModelProto
    x: np.ndarray
    expected: np.ndarray


@lru_cache(maxsize=1)
def cases() -> tuple[Case, ...]:
    """Every case of one float32 operator (or of the operators that define it) and one output at least."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx makes its expected outputs while it is imported
        loaded = load_node_model_tests()
    return tuple(_cases((case.name, case.model, *case.data_sets[0]) for case in loaded))


@lru_cache(maxsize=1)
def exported_cases() -> tuple[Case, ...]:
    """Every float32 module or function that PyTorch computed and exported, by name."""
    loaded = [
        case for kind in ("pytorch-converted", "pytorch-operator") for case in load_model_tests(kind=kind)
    ]
    folders = {case.name: Path(case.model_dir) for case in loaded}
    return tuple(_cases(_stored(name, folders[name]) for name in sorted(folders)))


def _stored(name: str, folder: Path) -> Loaded:
    """A case of files: its model, and the inputs and outputs of its first data set."""
    inputs, outputs = (
        [
            numpy_helper.to_array(onnx.load_tensor(folder / "test_data_set_0" / f"{kind}_{number}.pb"))
            for number in range(len(list(folder.glob(f"test_data_set_0/{kind}_*.pb"))))
        ]
        for kind in ("input", "output")
    )
    return name, onnx.load(folder / "model.onnx"), inputs, outputs


def _cases(loaded: Iterable[Loaded]) -> Iterator[Case]:
    for name, model, inputs, outputs in loaded:
        graph = model.graph
        values = [*graph.input, *graph.output]
        if not graph.input or any(v.type.tensor_type.elem_type != TensorProto.FLOAT for v in values):
            continue
        proto = ModelProto()
        proto.CopyFrom(model)
        constants = {tensor.name for tensor in graph.initializer}
        names = [value.name for value in proto.graph.input if value.name not in constants]
        for value, array in list(zip(names, inputs, strict=True))[1:]:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value))
        del proto.graph.input[1:]
        yield Case(
            name.removeprefix("test_"),
            graph.node[0].op_type,
            proto,
            np.asarray(inputs[0]),
            np.asarray(outputs[0]),
        )


def read(case: Case) -> reading.Read:
    """The case's graph as layers; raises reading.Unsupported with the reasons."""
    return reading.read_proto(case.proto, case.name, "node", output=case.proto.graph.output[0].name)


def images(case: Case, found: reading.Read) -> np.ndarray:
    """The case's input as images (N, C, H, W)."""
    count = len(case.x) if found.input.batched else 1
    return case.x.reshape(count, *found.model.input_shape)


def difference(case: Case, outputs: np.ndarray) -> float:
    """How far outputs of any shape are from the stored ones, as a multiple of what is allowed."""
    assert outputs.size == case.expected.size
    allowed = ROUNDED.get(case.name, TOLERANCE * max(1.0, float(np.abs(case.expected).max(initial=0))))
    gap = np.abs(outputs.reshape(case.expected.shape).astype(np.float64) - case.expected)
    return float(gap.max(initial=0)) / allowed


def table() -> str:
    """What fits and why the others do not, by operator, in Markdown."""
    fits: dict[str, int] = defaultdict(int)
    reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    total: dict[str, int] = defaultdict(int)
    for case in cases():
        total[case.operator] += 1
        try:
            read(case)
        except reading.Unsupported as error:
            reasons[case.operator][general(error.reasons[0])] += 1
        else:
            fits[case.operator] += 1
    known = sorted(name for name in total if name in RULES)
    others = sorted(name for name in total if name not in RULES)
    lines = [
        f"{sum(total.values())} cases take and give float32 only; {sum(fits.values())} of them are layers. "
        f"No layer at all: {sum(total[name] for name in others)} cases of {len(others)} operators "
        f"({', '.join(others)}).",
        "",
        "| operator | cases | layers | why the others are none |",
        "|---|---|---|---|",
    ]
    for name in known:
        why = "; ".join(f"{count} x {reason}" for reason, count in sorted(reasons[name].items()))
        lines.append(f"| {name} | {total[name]} | {fits[name]} | {why} |")
    return "\n".join(lines)


def general(reason: str) -> str:
    """A reason without the name of the node and the sizes in it."""
    return reason.split("': ", 1)[-1]


if __name__ == "__main__":
    print(table())
