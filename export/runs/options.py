"""What a build can be told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from zoo import precision
from zoo.errors import (
    InvalidInput,
    MachineError,
)
from zoo.precision import FLOAT32
from zoo.training.loop import Progress

Say = Callable[[str], None]


Bar = Callable[[str], AbstractContextManager[Progress | None]]


EXPORTERS = ("direct", "native")


DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """What a build can be told; the defaults are those of the command line.

    data: "auto", "mnist", "digits" or a folder. epochs: None for the recipe's own. limit: the
    first so many training images after the split. exporter: which graph is published as
    model.onnx, the spec's ("direct") or the framework's own ("native"). pretrained: take the
    weights of the package instead of training. tensorboard: write event files into the run as well.
    device: where networks train and are checked, "cpu" or "cuda"; never silently another one.
    precision: of a step of training, "float32" or "bf16"; everything else is float32.
    resume: go on from a checkpoint; None: if it is of the same run, and not with force; True: or raise
    what is wrong with it; False: never.
    """

    data: str = "auto"
    data_dir: str | None = None
    epochs: int | None = None
    limit: int | None = None
    seed: int = 0
    out: Path = Path("runs")
    force: bool = False
    exporter: str = "direct"
    device: str = "cpu"
    precision: str = FLOAT32
    pretrained: bool = False
    tensorboard: bool = False
    resume: bool | None = None

    def __post_init__(self) -> None:
        trained = {"--epochs": self.epochs, "--limit": self.limit, "--seed": self.seed or None}
        for option, value in trained.items() if self.pretrained else ():
            if value is not None:
                raise InvalidInput("--pretrained does not train", option, "leave out one of the two")
        precision.require(self.precision)
        if self.pretrained and self.precision != FLOAT32:
            raise InvalidInput("--pretrained does not train", "--precision", "leave out one of the two")
        if self.pretrained and self.resume:
            raise InvalidInput("--pretrained does not train", "--resume", "leave out one of the two")
        if self.epochs is not None and self.epochs < 0:
            raise InvalidInput(f"{self.epochs} epochs", "--epochs", "give 0 (initial weights) or more")
        if self.limit is not None and self.limit < 1:
            raise InvalidInput(f"{self.limit} training images", "--limit", "give at least 1")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput(f"seed {self.seed}", "--seed", "give an integer from 0 to 2^63 - 1")
        if self.exporter not in EXPORTERS:
            raise InvalidInput(f"unknown exporter {self.exporter!r}", "--exporter", "direct or native")
        if self.device not in DEVICES:
            raise MachineError(f"the device {self.device!r} is not available", "--device", "use cpu or cuda")
