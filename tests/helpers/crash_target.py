"""What the crash sweep ends at every point: a build in little, a file, a download.

    python crash_target.py FOLDER run|file|download

`run` takes the way of a build through locks, checkpoints and publication with a trainer of two
layers in NumPy; only the framework, the export and its checks are left out. Errors end it as they end a
command of the zoo: one line, and the exit code.
"""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo import data, runs, weights
from zoo.data import download as downloading
from zoo.errors import MachineError, ZooError
from zoo.layers import Dense, Flatten
from zoo.model import Model
from zoo.network import OnStep
from zoo.recipe import SGD, Recipe
from zoo.runs import Run
from zoo.training import checkpoints, loop, measures

MODEL = Model(
    "toy", (1, 4, 4), (Flatten(), Dense(3)), Recipe(SGD(0.1, momentum=0.9), batch_size=20, epochs=2),
    labels=("a", "b", "c"),
)  # fmt: skip
INPUTS = {"model": MODEL.to_dict(), "seed": 0}


class Toy:
    """Softmax regression by gradient descent with momentum and noise: a network with a state."""

    def __init__(self) -> None:
        self.values = {k: v.astype(np.float64) for k, v in weights.init_weights(MODEL).items()}
        self.velocity = {name: np.zeros_like(array) for name, array in self.values.items()}
        self.random = np.random.Generator(np.random.Philox(0))

    def predict(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) @ self.values["dense1.weight"].T + self.values["dense1.bias"]

    def weights(self) -> dict[str, np.ndarray]:
        return {name: array.astype(np.float32) for name, array in self.values.items()}

    def train_epoch(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: np.ndarray,
        recipe: Recipe,
        on_step: OnStep,
        seed: int = 0,
        done: int = 0,
        rates: np.ndarray | None = None,
    ) -> None:
        if not done:
            self.random = np.random.Generator(np.random.Philox(seed))
        for step, start in enumerate(range(done * 20, len(order), 20), start=done + 1):
            batch = order[start : start + 20]
            x, y = images[batch].reshape(len(batch), -1), labels[batch]
            outputs = self.predict(images[batch])
            loss = measures.cross_entropy(outputs, y)
            p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            d = (p / p.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(batch)
            for name, gradient in {"dense1.weight": d.T @ x, "dense1.bias": d.sum(axis=0)}.items():
                noise = 1e-3 * self.random.standard_normal(gradient.shape)
                self.velocity[name] = 0.9 * self.velocity[name] + gradient + noise
                self.values[name] = self.values[name] - 0.1 * self.velocity[name]
            on_step(step, loss, measures.accuracy(outputs, y))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        tensors = {f"value:{name}": array for name, array in self.values.items()}
        state = self.random.bit_generator.state
        plain = {
            "counter": state["state"]["counter"],
            "key": state["state"]["key"],
            "buffer": state["buffer"],
        }
        rest = {name: state[name] for name in ("buffer_pos", "has_uint32", "uinteger")}
        return tensors | {f"velocity:{n}": a for n, a in self.velocity.items()} | plain, rest

    def restore(self, tensors: Mapping[str, np.ndarray], rest: Mapping[str, Any]) -> None:
        for name in self.values:
            self.values[name] = tensors[f"value:{name}"]
            self.velocity[name] = tensors[f"velocity:{name}"]
        self.random.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {"counter": tensors["counter"], "key": tensors["key"]},
            "buffer": tensors["buffer"],
            **rest,
        }


def run(folder: Path) -> None:
    """Train and publish, going on from a checkpoint; nothing if that is done."""
    place = Run(folder / "toy" / "numpy")
    with place.lock():
        if place.is_sound() and (place.manifest() or {})["inputs"] == INPUTS:
            place.checkpoint.discard()
            return
        random = np.random.Generator(np.random.Philox(5))
        images, labels = random.random((60, 1, 4, 4)), random.integers(0, 3, 60)
        split = data.Split(images, labels, images[:9], labels[:9], images[:30], labels[:30])
        kept = place.checkpoint.manifest()
        start = checkpoints.load(place) if kept and kept["inputs"] == INPUTS else None
        keeper = loop.Keeper(lambda checkpoint: checkpoints.save(place, checkpoint, INPUTS), seconds=0)
        trained = loop.train(
            Toy(),
            MODEL.recipe,
            split,
            seed=0,
            epochs=1,
            keeper=keeper,
            start=start,  # type: ignore[arg-type]
        )
        files = {
            "weights.safetensors": weights.to_bytes(trained.weights),
            "best.safetensors": weights.to_bytes(trained.best or {}),
            "history.csv": loop.to_csv(loop.HISTORY, trained.history).encode(),
            "epochs.csv": loop.to_csv(loop.EPOCHS, trained.epochs).encode(),
        }
        place.publish(files, INPUTS)
        place.checkpoint.discard()


def file(folder: Path) -> None:
    """Write one file, as exports, pictures and reports are written."""
    runs.write_atomically(folder / "model.onnx", bytes(range(256)) * 300)


def download(folder: Path) -> None:
    """Fetch four small files in the place of MNIST from a server on this machine."""
    content = {name: name.encode() * 50 for name in data.FILES}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content[self.path.strip("/").removesuffix(".gz")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None: ...

    import hashlib

    downloading.MNIST_GZ = {
        n: downloading.Official(len(c), hashlib.sha256(c).hexdigest()) for n, c in content.items()
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        downloading._download_from(
            f"http://127.0.0.1:{server.server_port}/", folder / "MNIST" / "raw", lambda _: None
        )
        server.shutdown()


def main(folder: str, what: str) -> None:
    """Do it, and exit as the command line would."""
    try:
        {"run": run, "file": file, "download": download}[what](Path(folder))
    except OSError as error:
        _fail(MachineError(error.strerror or str(error), error.filename or ""))
    except ZooError as error:
        _fail(error)


def _fail(error: ZooError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.code)


if __name__ == "__main__":
    main(*sys.argv[1:])
