"""The parent's side of a backend: start its worker, ask it, and name it when it dies.

One framework per process: PyTorch and TensorFlow never share one, a crash of either is an error
that names it, and the user's own settings (KERAS_HOME, thread counts) do not reach it.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import backends
from backends.process import messages
from backends.process.worker import HOME_PREFIX
from zoo import data, errors, machine
from zoo.errors import InvalidInput, MachineError, NotSupported, WorkerDied, ZooError
from zoo.model import Model
from zoo.precision import FLOAT32
from zoo.timing import Interval
from zoo.training.checkpoints import Checkpoint
from zoo.training.loop import Progress, Trained
from zoo.weights import isolate

# Our own packages must win against others of their names; the framework sees the ordinary path again.
_BOOT = """
import sys
root = sys.argv.pop(1)
sys.path.insert(0, root)
from backends.process.worker import main
sys.path.remove(root)
sys.path.append(root)
exec(sys.argv.pop())
main()
"""
PRELUDE = ""  # Python that new workers run before they answer: how tests plant faults in them


def _xla_on_cuda() -> dict[str, str]:
    """The same bits every time, products in float32, and no more of the device's memory than is needed."""
    return {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip(),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def environment(backend: str, threads: int, home: str, device: str = "cpu") -> dict[str, str]:
    """The environment of a backend's process. home: a folder of its own, where frameworks leave files.

    device: "cpu" hides all others.
    """
    _, _, engine = backend.partition(":")
    return {
        # Idle threads sleep. Spinning is 10 % faster or slower on an idle machine, but beside one
        # busy process it made torch's small layers 10 to 20 times slower (measured, two cores).
        "OMP_WAIT_POLICY": "PASSIVE",
        # glibc keeps what a step frees for the next one. By default it gives the larger tensors back to the
        # system, whose clean pages then took up to two fifths of a step in PyTorch (benchmarks/training.py).
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # bytes, the most that glibc takes
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        **os.environ,
        "KERAS_HOME": home,
        "TMPDIR": home,  # TensorFlow leaves code there
        "TORCHINDUCTOR_CACHE_DIR": home,
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "MPLCONFIGDIR": home,  # keras imports matplotlib where there is one
        "KERAS_BACKEND": engine if engine in backends.ENGINES["keras"] else "tensorflow",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "JAX_ENABLE_X64": "1",  # without it JAX has no float64; what is float32 stays so
        "JAX_PLATFORMS": "cpu" if device == "cpu" else "",  # "": what there is, which the backend looks at
        "NPROC": str(threads),  # how many threads XLA starts on a CPU
        **({"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else _xla_on_cuda()),
    }


class Worker:
    """A running backend process. Use it as a context manager; leaving ends the process."""

    def __init__(self, backend: str, threads: int | None = None, device: str = "cpu") -> None:
        """Start the process, which imports its framework. Errors in that are raised by the first request.

        device: where networks are built, "cpu" or "cuda". Raises BackendUnavailable if the framework is not
        installed, MachineError if the backend has no such device.
        """
        backends.require(backend)
        backends.require_device(backend, device)
        self.backend = backend
        self.threads = threads or machine.threads()
        root = str(Path(backends.__file__).parents[1])
        self._home = ""
        try:
            self._home = tempfile.mkdtemp(prefix=HOME_PREFIX)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, root, backend, device, PRELUDE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(backend, self.threads, self._home, device),
                process_group=0,  # a terminal's interrupt is for the parent, who decides
            )
        except OSError as error:
            shutil.rmtree(self._home, ignore_errors=True)
            raise MachineError(f"cannot start the backend {backend!r}: {error.strerror}") from None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove what it kept on disk."""
        if self._process.poll() is None:
            self._process.kill()  # it holds nothing that is worth a farewell
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def ask(
        self,
        do: str,
        arrays: Mapping[str, np.ndarray] | None = None,
        progress: Progress | None = None,
        keep: Callable[[Checkpoint], None] | None = None,
        **fields: Any,
    ) -> tuple[dict[str, Any], messages.Arrays]:
        """Send one request and wait for its answer; progress and checkpoints may come before it.

        Raises the ZooError that the worker met, WorkerDied (or MachineError, if it was killed for
        memory) if the process ended, and WorkerDied with the inner error for a bug in it.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:  # both are pipes
            raise RuntimeError("the worker has no pipes")
        try:
            messages.send(stdin, {"do": do, **fields}, arrays)
            while True:
                answer, tensors = messages.receive(stdout)
                if "progress" in answer:
                    if progress:
                        progress(*answer["progress"])
                elif "checkpoint" in answer:
                    if keep:
                        keep(Checkpoint.from_dict(answer["checkpoint"], tensors))
                else:
                    break
        except (EOFError, BrokenPipeError):
            raise self._death(do) from None
        if "error" in answer:
            kind = getattr(errors, answer["error"]["class"], ZooError)
            raise kind(*answer["error"]["arguments"])
        if "bug" in answer:
            died = WorkerDied(f"the backend {self.backend!r} failed to {do}: {answer['bug']}")
            died.add_note(answer["traceback"])
            raise died
        return answer, tensors

    def _death(self, do: str) -> ZooError:
        code = self._process.wait()
        what = f"the backend {self.backend!r} died while asked to {do}"
        if code == -signal.SIGKILL:
            return MachineError(f"{what}: killed, as happens when memory runs out", "", "free some memory")
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return WorkerDied(f"{what}: {reason}")

    def interrupt(self) -> None:
        """Ask the training that is under way to stop after its step; it answers with Interrupted."""
        self._process.send_signal(signal.SIGINT)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def versions(self) -> dict[str, str]:
        """The versions of the backend's framework."""
        versions: dict[str, str] = self.ask("hello")[0]["versions"]
        return versions

    def send_data(self, split: data.Split) -> None:
        """Hand over the images of the next trainings (uint8)."""
        self.ask("data", vars(split))

    def adopt(self, name: str, file: Path | None, seed: int = 0, layered: bool = True) -> RemoteOriginal:
        """One of the framework's own models, with the weights of a file or random ones from `seed`.

        layered: whether its layers are asked for. Raises DataError if the file is none or does not fit,
        BackendUnavailable without its library.
        """
        place = None if file is None else str(file.resolve())
        fields, tensors = self.ask("adopt", name=name, file=place, seed=seed, layered=layered)
        layers: list[tuple[str, dict[str, np.ndarray]]] = [(kind, {}) for kind in fields["kinds"]]
        for key, array in tensors.items():
            number, _, weight = key.partition("/")
            layers[int(number)][1][weight] = array
        return RemoteOriginal(self, layers, fields["versions"])

    def build(
        self,
        model: Model,
        weights: Mapping[str, np.ndarray],
        dtype: str = "float32",
        precision: str = FLOAT32,
    ) -> RemoteNetwork:
        """The network of a model in the worker; it replaces the one before it.

        precision: of a step of training. Raises NotSupported if the backend does not train in it.
        """
        backends.require_precision(self.backend, precision)
        # Only a backend that knows other precisions is asked for one.
        mixed: dict[str, Any] = {} if precision == FLOAT32 else {"precision": precision}
        self.ask("build", weights, model=model.to_dict(), dtype=dtype, **mixed)
        return RemoteNetwork(self, model, weights, dtype)


class Workers:
    """One worker per backend, started when first needed, if not before, and again after its death.

    A context manager.
    """

    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        self._threads = threads
        self._device = device
        self._running: dict[str, Worker] = {}
        self._data: dict[str, object] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.ExitStack() as stack:
            for worker in self._running.values():
                stack.callback(worker.close)

    def start(self, names: Iterable[str]) -> None:
        """Let the processes of these backends import their frameworks while others work.

        Errors during start-up are raised when the backends are used.
        """
        for name in names:
            if name not in self._running:
                self._start(name, self._threads or machine.threads())

    def _start(self, name: str, threads: int) -> None:
        self._running[name] = Worker(name, threads, **self._elsewhere)

    @contextlib.contextmanager
    def use(self, name: str, threads: int | None = None) -> Iterator[Worker]:
        """The worker of a backend. An error ends it, and so does a request during which it died.

        threads: what it computes with, where that must not be left to the machine.
        """
        wanted = threads or self._threads or machine.threads()
        if name in self._running and self._running[name].threads != wanted:
            self._end(name)
        if name not in self._running:
            self._start(name, wanted)
        try:
            yield self._running[name]
        except BaseException:
            self._end(name)
            raise
        if not self._running[name].alive:
            self._end(name)

    @property
    def _elsewhere(self) -> dict[str, str]:
        return {} if self._device == "cpu" else {"device": self._device}

    def _end(self, name: str) -> None:
        self._running.pop(name).close()
        self._data.pop(name, None)

    def send_data(self, name: str, key: object, split: Callable[[], data.Split]) -> None:
        """Send a split unless the worker has it already."""
        if self._data.get(name) != key:
            self._running[name].send_data(split())
            self._data[name] = key


class Step(NamedTuple):
    """One step of training: the loss over its batch, and the indices of the images in it."""

    loss: float
    batch: list[int]


class RemoteOriginal(NamedTuple):
    """A framework's own model in a worker: see zoo.network.Original."""

    worker: Worker
    layers: list[tuple[str, dict[str, np.ndarray]]]
    versions: dict[str, str]

    def predict(self, images: np.ndarray, dtype: str = "float32") -> np.ndarray:
        """Its outputs (N, classes) for images (N, C, H, W) as it takes them."""
        return self.worker.ask("predict_original", {"images": images}, dtype=dtype)[1]["outputs"]

    def export(self) -> bytes:
        """The framework's own ONNX export; raises NotSupported."""
        return self.worker.ask("export_original")[1]["onnx"].tobytes()


class RemoteNetwork:
    """The current network of a worker: the inference side of zoo.network.Network, and training."""

    def __init__(
        self, worker: Worker, model: Model, initial: Mapping[str, np.ndarray], dtype: str = "float32"
    ) -> None:
        self.worker = worker
        self.model = model
        self.initial = initial  # the weights that it was built with
        self.dtype = dtype

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, classes) for images float32 (N, C, H, W) in [0, 1]."""
        return self.worker.ask("predict", {"images": images})[1]["outputs"]

    def call(self, images: np.ndarray) -> np.ndarray:
        """See zoo.network.CallableNetwork; raises NotSupported where the network has no such call."""
        return self.worker.ask("predict", {"images": images}, bare=True)[1]["outputs"]

    def time_predict(self, images: np.ndarray, seconds: float, bare: bool = False) -> list[float]:
        """The seconds of each call of `predict` on these images, in one block of so many seconds.

        See zoo.timing.calls; measured in the worker, so neither pipe nor messages count. bare: of `call`.
        """
        answer, _ = self.worker.ask("time_predict", {"images": images}, seconds=seconds, bare=bare)
        return [float(second) for second in answer["seconds"]]

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output by path, in the order of the model, without those that it did not run."""
        tensors = self.worker.ask("activations", {"images": images})[1]
        return {node.path: tensors[node.path] for node in self.model.walk() if node.path in tensors}

    def alone(self, path: str, *inputs: np.ndarray) -> np.ndarray | None:
        """The output of one layer for its input (N, C, H, W) or (N, features), built by itself.

        None for a join, which no model consists of. Raises InvalidInput if this network's layer takes
        inputs of another shape.
        """
        if len(inputs) > 1:
            return None
        (x,) = inputs
        model, weights = isolate(self.model, self.initial, path)
        if x[0].size != prod(model.input_shape):
            raise InvalidInput(f"{path} takes {model.input_shape}, not {x.shape[1:]}", self.worker.backend)
        images = x.reshape(len(x), *model.input_shape)
        arrays = {**weights, "images": images}
        return self.worker.ask("alone", arrays, model=model.to_dict(), dtype=self.dtype)[1]["outputs"]

    def weights(self) -> dict[str, np.ndarray]:
        """The current weights in canonical form."""
        return self.worker.ask("weights")[1]

    def export_native(self) -> bytes | NotSupported:
        """The framework's own ONNX export, or the reason why there is none."""
        try:
            return self.worker.ask("export_native")[1]["onnx"].tobytes()
        except NotSupported as reason:
            return reason

    def time_step(self, precision: str, seed: int) -> Interval:
        """How many times as fast a step in a precision is as one in float32, on the data that were sent.

        Measured in the worker in a second or two, on other networks than this one, which stays as it is.
        """
        fields, _ = self.worker.ask(
            "time_step", self.initial, model=self.model.to_dict(), precision=precision, seed=seed
        )
        return Interval(*fields["speed"])

    def gradients(self, seed: int, rounded: bool = False) -> tuple[Step, dict[str, np.ndarray]]:
        """The first batch of a training with this seed, and the gradients there, by weight.

        rounded: of the images as bfloat16 holds them.
        """
        fields, tensors = self.worker.ask("gradients", seed=seed, rounded=rounded)
        return Step(**fields), tensors

    def train_step(self, *, seed: int, step: int) -> tuple[Step, dict[str, np.ndarray]]:
        """Do one step (from 1, over all epochs) on the data sent; it, and the weights after it."""
        fields, tensors = self.worker.ask("train_step", seed=seed, step=step)
        return Step(**fields), tensors

    def share_masks(self) -> None:
        """See zoo.network.ComparableNetwork."""
        self.worker.ask("share_masks")

    def change_layout(self) -> None:
        """See zoo.network.ComparableNetwork."""
        self.worker.ask("change_layout")

    def train(
        self,
        *,
        seed: int,
        epochs: int,
        progress: Progress | None = None,
        keep: Callable[[Checkpoint], None] | None = None,
        checkpoint_seconds: float = math.inf,
        start: Checkpoint | None = None,
    ) -> Trained:
        """Train on the data that the worker was sent; see zoo.training.train.

        keep: gets a checkpoint every so many seconds at most, and at the end.
        """
        fields, tensors = self.worker.ask(
            "train",
            start.tensors if start else None,
            progress,
            keep,
            model=self.model.to_dict(),
            seed=seed,
            epochs=epochs,
            checkpoint_seconds=checkpoint_seconds,
            start=start.to_dict() if start else None,
        )
        parts: dict[str, dict[str, np.ndarray]] = {"weights": {}, "best": {}}
        for name, array in tensors.items():
            part, _, weight = name.partition("/")
            parts[part][weight] = array
        for rows in ("history", "epochs"):
            fields[rows] = [tuple(row) for row in fields[rows]]
        return Trained(weights=parts["weights"], best=parts["best"] or None, **fields)
