"""A process of its own for a file that is not known to come from here.

onnxruntime is a large program in C++ that trusts what it loads. A foreign file is looked through first
(operators.py), then run in a child process with limits on memory, time and files; whatever becomes of that
process, this one goes on.
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

from export.inference.loading import about
from zoo.errors import CheckFailed, MachineError

SECONDS = 60.0  # for one request
BYTES = 4 * 2**30  # of address space of the child
MOST_HEADER = 2**20  # bytes of what the child says beside arrays
_BOOT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from export.inference.child import serve
exec(sys.argv.pop())
serve()
"""
PRELUDE = ""  # Python that new processes run first: how tests make one run wild


class Child:
    """An ONNX model that is loaded and run in a process of its own."""

    def __init__(self, content: bytes, optimize: bool, threads: int) -> None:
        """Raises CheckFailed if it cannot be loaded, MachineError if no process can be started."""
        root = str(Path(__file__).parents[2])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, root, PRELUDE],
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
    from export.inference.loading import load

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
