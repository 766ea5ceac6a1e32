"""A job: one run that is to be there, and everything that it is a function of."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import backends
import zoo
from backends.process.client import Workers
from export.runs.options import Bar, Options, Say
from zoo import data, machine, pretrained, runs
from zoo.errors import DataError, InvalidInput
from zoo.model import Model
from zoo.precision import FLOAT32
from zoo.training import checkpoints
from zoo.training.checkpoints import Checkpoint
from zoo.training.loop import Progress

# Defaults of inputs added later, so that older runs still count as up to date.
UNNAMED = {"device": "cpu", "precision": FLOAT32}


@dataclass
class Job:
    """A model that is to be built on a backend.

    inputs: everything that the run is a function of, as its manifest has them. say: gets lines for the user.
    bar: gives a progress callback for a named training.
    """

    model: Model
    backend: str
    dataset: data.Dataset
    options: Options
    workers: Workers
    say: Say = print
    bar: Bar | None = None
    inputs: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Raises DataError or InvalidInput if the data do not fit, or there are no weights to take."""
        data.check_fits(self.model, self.dataset)
        if self.options.pretrained:
            pretrained.require(self.model)
        self.inputs = self._inputs()

    @property
    def label(self) -> str:
        """What the user sees it called: "cnn-padded torch"."""
        return f"{self.model.name} {self.backend}"

    @cached_property
    def run(self) -> runs.Run:
        """Where the run stands, or will stand."""
        return runs.Run(self.options.out / self.model.name / backends.folder_name(self.backend))

    @cached_property
    def split(self) -> data.Split:
        """The images of this run."""
        if self.options.pretrained:
            return data.only_test(self.dataset)
        return data.split(self.dataset, self.held_out, self.options.seed, self.options.limit)

    @property
    def held_out(self) -> int:
        """How many training images are kept for validation."""
        return self.model.recipe.validation_size(len(self.dataset.train_labels))

    def tell(self, line: str) -> None:
        """A line for the user, under the job's label."""
        self.say(f"{self.label}: {line}")

    def progress(self) -> AbstractContextManager[Progress | None]:
        """The progress bar of the training."""
        return self.bar(self.label) if self.bar else nullcontext()

    def _inputs(self) -> dict[str, Any]:
        options = self.options
        inputs = {
            "zoo": zoo.__version__,
            "spec_sha256": hashlib.sha256(self.model.to_json().encode()).hexdigest(),
            "backend": self.backend,
            "data": {"name": self.dataset.name, "sha256": self.dataset.sha256, "limit": options.limit},
            "seed": options.seed,
            "epochs": self._epochs(),
            "exporter": options.exporter,
            "threads": machine.threads(),
            "versions": machine.versions(backends.distributions(self.backend)),
        }
        if options.device != "cpu":
            inputs["device"] = options.device
        if options.precision != FLOAT32:
            inputs["precision"] = options.precision
        if options.pretrained:
            inputs["pretrained"] = pretrained.record(self.model.name)["weights_sha256"]
        return inputs

    def _epochs(self) -> int:
        if self.options.pretrained:
            return int(pretrained.record(self.model.name)["epochs"])
        given = self.options.epochs
        return self.model.recipe.epochs_on(self.dataset.name) if given is None else given

    def why_anew(self) -> str | None:
        """Why the run is made: None if there is none yet, "" if it is up to date and need not be."""
        if not self.run.path.exists():
            return None
        if self.options.force:
            return "--force"
        if not self.run.is_sound():
            return "the run is damaged"
        return "; ".join(_differences((self.run.manifest() or {})["inputs"], self.inputs))

    def take_up(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one; the inputs become those of the whole training."""
        start, self.inputs = take_up(self.run, self.inputs, self.options, self.tell)
        return start


def take_up(
    run: runs.Run, inputs: dict[str, Any], options: Options, tell: Say
) -> tuple[Checkpoint | None, dict[str, Any]]:
    """The checkpoint to go on from, if there is one of this run, and the run's inputs with it.

    They are the given ones but for the number of threads, which is the checkpoint's unless the user has
    chosen another. A checkpoint that does not serve is a line for the user, and an error if it was asked for.
    """
    kept = run.checkpoint
    if options.resume is False or (options.force and options.resume is None):
        return None, inputs
    try:
        manifest = kept.manifest()
        if manifest is None:
            return None, inputs
        before, now = manifest["inputs"], dict(inputs)
        if not machine.chosen_threads() and machine.is_thread_count(before.get("threads")):
            now["threads"] = before["threads"]
        if differing := _differences(before, now):
            raise InvalidInput(
                f"the checkpoint is of another run: {'; '.join(differing)}",
                kept.path,
                "--no-resume trains anew",
            )
        start = checkpoints.load(run)
    except (DataError, InvalidInput) as error:
        if options.resume:
            raise
        tell(f"{error.what}: it is left out")
        return None, inputs
    done = start.epoch > now["epochs"]
    tell("trained before" if done else f"going on in epoch {start.epoch} after step {start.step}")
    return start, now


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return runs.differences({**UNNAMED, **before}, {**UNNAMED, **now})
