"""Files that are not known to come from here: what they may contain, and a process of their own to run in.

onnxruntime is a large program in C++ that trusts what it loads. A foreign file is therefore looked through
first, by the wire format alone: only operators that the zoo and the frameworks' exporters write, no
subgraphs (loops, branches), no functions, no operators of other domains. Then it is run in a child process
with limits on memory, time and files; whatever becomes of that process, this one goes on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from export import seal
from zoo.errors import CheckFailed, DataError, MachineError

# What the zoo's own graphs and the exporters of PyTorch and Keras consist of, and their close relatives.
OPERATORS = frozenset([
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil", "Clip",
    "Concat", "Constant", "ConstantOfShape", "Conv", "DequantizeLinear", "Div", "Dropout", "Elu",
    "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu",
    "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu",
    "Reshape", "Resize", "Round", "Selu", "Shape", "Sigmoid", "Sign", "Slice", "Softmax", "Softplus",
    "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Tile",
    "Transpose", "Unsqueeze", "Where",
])  # fmt: skip
DOMAINS = ("", "ai.onnx")
SECONDS = 60.0  # for one request
BYTES = 4 * 2**30  # of address space of the child
MOST_HEADER = 2**20  # bytes of what the child says beside arrays

# Fields of onnx.proto.
_GRAPH, _FUNCTIONS, _NODE = 7, 25, 1
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7
_SUBGRAPH, _SUBGRAPHS = 6, 11

_BOOT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from export.isolation import serve
serve()
"""


def check_operators(content: bytes) -> None:
    """Raise DataError, naming the first, if an ONNX file holds anything that no CNN here consists of."""
    try:
        for outer in seal.fields(content):
            if outer.number == _FUNCTIONS:
                raise DataError("the ONNX file holds functions of its own")
            if outer.number == _GRAPH:
                for inner in seal.fields(content, outer.start, outer.end):
                    if inner.number == _NODE:
                        _check_node(content, inner)
    except seal.Malformed as error:
        raise DataError(f"not an ONNX file, or cut short: {error}") from None


def _check_node(content: bytes, node: seal.Field) -> None:
    name, domain, nested = "", "", False
    for field in seal.fields(content, node.start, node.end):
        text = content[field.start : field.end]
        if field.number == _OPERATOR:
            name = text.decode(errors="replace")
        elif field.number == _DOMAIN:
            domain = text.decode(errors="replace")
        elif field.number == _ATTRIBUTE:
            inside = (inner.number for inner in seal.fields(content, field.start, field.end))
            nested = nested or any(number in (_SUBGRAPH, _SUBGRAPHS) for number in inside)
    if nested or domain not in DOMAINS or name not in OPERATORS:
        full = f"{domain}.{name}" if domain else name
        raise DataError(f"the ONNX file holds the operator {full[:80]!r}, of which no CNN here consists")


def looks_like_onnx(path: Path) -> bool:
    """Whether a large file starts as ONNX files do, with their version; small ones are read anyhow."""
    with path.open("rb") as file:
        return path.stat().st_size < 2**26 or file.read(1) == b"\x08"


class Child:
    """An ONNX model that is loaded and run in a process of its own."""

    def __init__(self, content: bytes, optimize: bool, threads: int) -> None:
        """Raises CheckFailed if it cannot be loaded, MachineError if no process can be started."""
        root = str(Path(__file__).parents[1])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            raise MachineError(f"cannot start a process for the file: {error.strerror}") from None
        try:
            model = np.frombuffer(content, dtype=np.uint8)
            self.about, _ = self._ask({"optimize": optimize, "threads": threads}, {"model": model})
        except CheckFailed:
            self.close()
            raise

    def run(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs; raises CheckFailed if it stops, or does not answer in time."""
        _, arrays = self._ask({"outputs": list(names)}, inputs)
        return [arrays[str(position)] for position in range(len(names))]

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def _ask(
        self, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(SECONDS, end)
        timer.daemon = True
        timer.start()
        try:
            _send(stdin, fields, arrays)
            answer, found = _receive(stdout)
        except (OSError, EOFError, ValueError, KeyError):
            raise CheckFailed(self._death(late.is_set())) from None
        finally:
            timer.cancel()
        if "error" in answer:
            raise CheckFailed(str(answer["error"]))
        return answer, found

    def _death(self, late: bool) -> str:
        if late:
            return f"onnxruntime did not answer within {SECONDS:g} s"
        self._process.kill()
        code = self._process.wait()
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"onnxruntime's process died: {reason}"


def serve() -> None:
    """The child: load the model that comes first, then answer with outputs until the input ends."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    _limit()
    from export.session import load

    session: Any = None
    while True:
        try:
            fields, arrays = _receive(source)
        except EOFError:
            return
        try:
            if session is None:
                session = load(arrays["model"].tobytes(), fields["optimize"], fields["threads"])
                _send(sink, about(session), {})
            else:
                found = session.run(fields["outputs"], arrays)
                _send(sink, {}, {str(i): np.asarray(array) for i, array in enumerate(found)})
        except (BrokenPipeError, KeyboardInterrupt):
            return
        except Exception as error:  # onnxruntime's own exceptions share no base class
            lines = str(error).splitlines() or [type(error).__name__]
            _send(sink, {"error": lines[0][:1000]}, {})


def about(session: Any) -> dict[str, Any]:
    """What an onnxruntime session says of its model: inputs and outputs (name, type, shape), metadata."""
    return {
        "inputs": [[x.name, x.type, x.shape] for x in session.get_inputs()],
        "outputs": [[x.name, x.type, x.shape] for x in session.get_outputs()],
        "metadata": session.get_modelmeta().custom_metadata_map,
    }


def _limit() -> None:
    """Take from this process what computing does not need: memory without end, files, a core dump."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    for name, most in (("RLIMIT_AS", BYTES), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(OSError, ValueError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _send(stream: IO[bytes], fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    body = io.BytesIO()
    for array in arrays.values():
        np.lib.format.write_array(body, np.asarray(array, order="C"), allow_pickle=False)
    head = json.dumps({"fields": dict(fields), "arrays": list(arrays)}).encode()
    stream.write(struct.pack("<QQ", len(head), body.tell()))
    stream.write(head)
    stream.write(body.getbuffer())
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One message; raises EOFError at the end, ValueError if it is none. Nothing is unpickled."""
    head_size, size = struct.unpack("<QQ", _exactly(stream, 16))
    if head_size > MOST_HEADER or size > BYTES:
        raise ValueError("a message of that size")
    head = json.loads(_exactly(stream, head_size))
    body = io.BytesIO(_exactly(stream, size))
    arrays = {str(name): np.lib.format.read_array(body, allow_pickle=False) for name in head["arrays"]}
    return dict(head["fields"]), arrays


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
