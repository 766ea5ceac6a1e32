"""The whole way of one run: train in a worker, export, cross-check, publish.

A run is published only if every check passed. The same inputs are not trained again; other
inputs train anew, after one line that says what differed. A training that was ended goes on from
its last checkpoint, with the same bits as if it had not been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backends
from backends.process.client import RemoteNetwork, Workers
from export import crosscheck
from export.runs import tensorboard
from export.runs.job import Job
from export.runs.options import Bar, Options, Say
from export.runs.report import Finished
from zoo import data, machine, pretrained, signals, weights
from zoo.errors import (
    CheckFailed,
    Diverged,
    Interrupted,
    InvalidInput,
    ZooError,
)
from zoo.model import Model
from zoo.precision import FLOAT32, Gain
from zoo.training import checkpoints, measures
from zoo.training.checkpoints import Checkpoint
from zoo.training.loop import Trained


@dataclass
class Outcome:
    """How one run ended: its report, or the error that stopped it."""

    model: str
    backend: str
    path: Path
    report: dict[str, Any] | None = None
    up_to_date: bool = False
    error: ZooError | None = None

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON data: the report with its path, or the error."""
        if self.error is not None:
            return {"model": self.model, "backend": self.backend, "error": self.error.to_dict()}
        return {**(self.report or {}), "path": str(self.path), "up_to_date": self.up_to_date}


def build(
    models: Sequence[Model],
    backend_names: Sequence[str],
    options: Options,
    say: Say = print,
    bar: Bar | None = None,
) -> list[Outcome]:
    """Build every model on every backend; one outcome each, in that order.

    A run that fails does not stop the others; its outcome holds the error. Raises
    BackendUnavailable, DataError, InvalidInput, MachineError and NotSupported where nothing can be built
    at all, Interrupted at the first SIGINT or SIGTERM in a training, after its step and a checkpoint.
    say: gets lines for the user. bar: gives a progress callback for a named training.
    """
    backend_names = _usable(backend_names, options)
    twice = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    if twice:
        raise InvalidInput(
            f"two models called {twice[0]} would share a folder", str(options.out), "build them apart"
        )
    if options.tensorboard:
        tensorboard.require()
    dataset = data.load(options.data, options.data_dir, say)
    outcomes = []
    with Workers(device=options.device) as workers:
        for model in models:
            for name in backend_names:
                path = options.out / model.name / backends.folder_name(name)
                outcome = Outcome(model.name, name, path)
                outcomes.append(outcome)
                try:
                    _carry_out(Job(model, name, dataset, options, workers, say, bar), outcome)
                    if options.tensorboard:
                        tensorboard.write(path)
                except Interrupted:
                    raise
                except ZooError as error:
                    outcome.error = error
                    say(f"error: {model.name} {name}: {error}")
    return outcomes


def _usable(names: Sequence[str], options: Options) -> list[str]:
    """The backends by their one name each; raises what is wrong with any for these options."""
    for name in names:
        backends.require(name)
        backends.require_device(name, options.device)
        backends.require_precision(name, options.precision)
        if not options.pretrained and not backends.trains(name):
            known = [each for each in backends.names() if backends.trains(each)]
            raise InvalidInput(
                f"the backend {name!r} does not train", "--backend", f"use {' or '.join(known)}"
            )
    return list(dict.fromkeys(map(backends.canonical, names)))


def _carry_out(job: Job, outcome: Outcome) -> None:
    """Make the run unless it is up to date; the outcome gets its report."""
    run = job.run
    with run.lock(job.say):
        reason = job.why_anew()
        if reason == "":
            outcome.report = run.read_json("report.json")
            outcome.up_to_date = True
            job.tell("up to date")
            run.checkpoint.discard()
            return
        if job.options.pretrained:
            finished = _take_pretrained(job)
        else:
            start = job.take_up()
            if reason and start is None:
                job.tell(f"{reason}: training anew")
            finished = _train(job, start)
        report = finished.report()
        run.publish(finished.files(report), job.inputs)
        run.checkpoint.discard()
        outcome.report = report


def _train(job: Job, start: Checkpoint | None) -> Finished:
    """Train a model in its worker, from a checkpoint if there is one, and check it."""
    options, split, epochs = job.options, job.split, job.inputs["epochs"]
    recipe = job.model.recipe
    if not recipe.steps(len(split.train_labels)) and epochs:
        raise InvalidInput(
            f"{len(split.train_labels)} training images make no batch of {recipe.batch_size}",
            "--limit",
            "the recipe drops an incomplete batch: give more images",
        )
    with job.workers.use(job.backend, job.inputs["threads"]) as worker:
        initial = weights.init_weights(job.model, options.seed)
        network = worker.build(job.model, initial, precision=options.precision)
        job.workers.send_data(job.backend, (job.held_out, options.seed, options.limit), lambda: split)
        gain = None
        if options.precision != FLOAT32 and epochs:
            gain = Gain(options.precision, options.device, network.time_step(options.precision, options.seed))
            job.tell(gain.sentence)
        with signals.orderly(worker.interrupt) as codes, job.progress() as progress:
            try:
                trained = network.train(
                    seed=options.seed,
                    epochs=epochs,
                    progress=progress,
                    keep=lambda checkpoint: checkpoints.save(job.run, checkpoint, job.inputs),
                    checkpoint_seconds=machine.checkpoint_seconds(),
                    start=start,
                )
            except Diverged:
                job.run.checkpoint.discard()  # it would diverge again
                raise
            except Interrupted as error:
                raise Interrupted(error.what, f"{job.label}, {error.where}", code=codes[0]) from None
        if codes:
            raise Interrupted("interrupted before the checks", job.label, code=codes[0])
        job.tell(f"trained in {trained.seconds:.1f} s, checking")
        return Finished(job, trained, _check(job, network, trained), gain)


def _take_pretrained(job: Job) -> Finished:
    """Give a backend the weights of the package and check it."""
    job.tell("pretrained weights, checking")
    values = pretrained.weights(job.model)
    labels = job.split.test_labels
    with job.workers.use(job.backend) as worker:
        network = worker.build(job.model, values)
        outputs = network.predict(data.to_float(job.split.test_images))
        unknown = {"train": None, "validation": None}
        trained = Trained(
            weights=values,
            best=None,
            best_epoch=None,
            accuracy={**unknown, "test": measures.accuracy(outputs, labels)},
            loss={**unknown, "test": measures.cross_entropy(outputs, labels)},
            seconds=0.0,
        )
        return Finished(job, trained, _check(job, network, trained))


def _check(job: Job, network: RemoteNetwork, trained: Trained) -> crosscheck.Report:
    """Cross-check a trained network, its own export and the direct one; raises CheckFailed if any fails."""
    judgement = crosscheck.judge(job.model, trained.weights, data.to_float(job.split.test_images))
    checked = crosscheck.check_direct(job.model, trained.weights, judgement)
    crosscheck.check_network(job.backend, network, trained.weights, judgement, checked)
    for verdict in checked.verdicts:
        if not verdict.passed:
            raise CheckFailed(verdict.failure, job.label, "nothing was published")
    return checked
