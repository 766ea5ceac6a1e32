"""The whole way of one run: train in a worker, export, cross-check, publish.

A run is published only if every check passed. The same inputs are not trained again; other
inputs train anew, after one line that says what differed. A training that was ended goes on from
its last checkpoint, with the same bits as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import backends
import zoo
from backends.process.client import RemoteNetwork, Workers
from export import crosscheck
from export.runs import tensorboard
from export.runs.card import model_card
from zoo import data, machine, precision, pretrained, runs, signals, weights
from zoo.errors import (
    CheckFailed,
    DataError,
    Diverged,
    Interrupted,
    InvalidInput,
    MachineError,
    NotSupported,
    ZooError,
)
from zoo.model import Model
from zoo.precision import FLOAT32, Gain
from zoo.training import checkpoints, loop, measures
from zoo.training.checkpoints import Checkpoint
from zoo.training.loop import Progress, Trained

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
    for name in backend_names:
        backends.require(name)
        backends.require_device(name, options.device)
        backends.require_precision(name, options.precision)
        if not options.pretrained and not backends.trains(name):
            known = [each for each in backends.names() if backends.trains(each)]
            raise InvalidInput(
                f"the backend {name!r} does not train", "--backend", f"use {' or '.join(known)}"
            )
    backend_names = list(dict.fromkeys(map(backends.canonical, backend_names)))
    twice = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    if twice:
        raise InvalidInput(
            f"two models called {twice[0]} would share a folder", str(options.out), "build them apart"
        )
    if options.tensorboard:
        tensorboard.require()
    dataset = data.load(options.data, options.data_dir, say)
    identity = dataset.sha256
    outcomes = []
    with Workers(device=options.device) as workers:
        for model in models:
            for name in backend_names:
                path = options.out / model.name / backends.folder_name(name)
                outcome = Outcome(model.name, name, path)
                outcomes.append(outcome)
                try:
                    data.check_fits(model, dataset)
                    if options.pretrained:
                        pretrained.require(model)
                    inputs = _inputs(model, name, dataset, identity, options)
                    _build_one(model, name, dataset, inputs, options, outcome, workers, say, bar)
                    if options.tensorboard:
                        tensorboard.write(path)
                except Interrupted:
                    raise
                except ZooError as error:
                    outcome.error = error
                    say(f"error: {model.name} {name}: {error}")
    return outcomes


def _inputs(
    model: Model, backend: str, dataset: data.Dataset, identity: str, options: Options
) -> dict[str, Any]:
    """Everything that a run is a function of."""
    inputs = {
        "zoo": zoo.__version__,
        "spec_sha256": hashlib.sha256(model.to_json().encode()).hexdigest(),
        "backend": backend,
        "data": {"name": dataset.name, "sha256": identity, "limit": options.limit},
        "seed": options.seed,
        "epochs": _epochs(model, dataset, options),
        "exporter": options.exporter,
        "threads": machine.threads(),
        "versions": machine.versions(backends.distributions(backend)),
    }
    if options.device != "cpu":
        inputs["device"] = options.device
    if options.precision != FLOAT32:
        inputs["precision"] = options.precision
    if options.pretrained:
        inputs["pretrained"] = pretrained.record(model.name)["weights_sha256"]
    return inputs


# What an input is where a run does not name it: those that are younger than runs which must stay up to date.
UNNAMED = {"device": "cpu", "precision": FLOAT32}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return runs.differences({**UNNAMED, **before}, {**UNNAMED, **now})


def _epochs(model: Model, dataset: data.Dataset, options: Options) -> int:
    if options.pretrained:
        return int(pretrained.record(model.name)["epochs"])
    return model.recipe.epochs_on(dataset.name) if options.epochs is None else options.epochs


def _build_one(
    model: Model,
    name: str,
    dataset: data.Dataset,
    inputs: dict[str, Any],
    options: Options,
    outcome: Outcome,
    workers: Workers,
    say: Say,
    bar: Bar | None,
) -> None:
    run = runs.Run(outcome.path)
    with run.lock(say):
        label = f"{model.name} {name}"
        reason = _why_anew(run, inputs, options)
        if reason == "":
            outcome.report = run.read_json("report.json")
            outcome.up_to_date = True
            say(f"{label}: up to date")
            run.checkpoint.discard()
            return
        if options.pretrained:
            report, files = _take_pretrained(model, name, dataset, inputs, options, workers, say)
        else:
            start, inputs = _start(run, label, inputs, options, say)
            if reason and start is None:
                say(f"{label}: {reason}: training anew")
            report, files = _train(run, start, model, name, dataset, inputs, options, workers, say, bar)
        run.publish(files, inputs)
        run.checkpoint.discard()
        outcome.report = report


def _start(
    run: runs.Run, label: str, inputs: dict[str, Any], options: Options, say: Say
) -> tuple[Checkpoint | None, dict[str, Any]]:
    """The checkpoint to go on from, if there is one of this run, and the run's inputs with it.

    They are the given ones but for the number of threads, which is the checkpoint's unless the user
    has chosen another. One that does not serve is a line for the user, and with options.resume an error.
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
        say(f"{label}: {error.what}: it is left out")
        return None, inputs
    done = start.epoch > inputs["epochs"]
    say(
        f"{label}: {'trained before' if done else f'going on in epoch {start.epoch} after step {start.step}'}"
    )
    return start, now


def _train(
    run: runs.Run,
    start: Checkpoint | None,
    model: Model,
    name: str,
    dataset: data.Dataset,
    inputs: dict[str, Any],
    options: Options,
    workers: Workers,
    say: Say,
    bar: Bar | None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Train a model in its worker and check it: report and files of its run."""
    label = f"{model.name} {name}"
    recipe = model.recipe
    held_out = recipe.validation_size(len(dataset.train_labels))
    split = data.split(dataset, held_out, options.seed, options.limit)
    if not recipe.steps(len(split.train_labels)) and inputs["epochs"]:
        raise InvalidInput(
            f"{len(split.train_labels)} training images make no batch of {recipe.batch_size}",
            "--limit",
            "the recipe drops an incomplete batch: give more images",
        )
    with workers.use(name, inputs["threads"]) as worker:
        key = (held_out, options.seed, options.limit)
        network = worker.build(model, weights.init_weights(model, options.seed), precision=options.precision)
        workers.send_data(name, key, lambda: split)
        gain = None
        if options.precision != FLOAT32 and inputs["epochs"]:
            gain = Gain(options.precision, options.device, network.time_step(options.precision, options.seed))
            say(f"{label}: {gain.sentence}")
        with signals.orderly(worker.interrupt) as codes, bar(label) if bar else nullcontext() as progress:
            try:
                trained = network.train(
                    seed=options.seed,
                    epochs=inputs["epochs"],
                    progress=progress,
                    keep=lambda checkpoint: checkpoints.save(run, checkpoint, inputs),
                    checkpoint_seconds=machine.checkpoint_seconds(),
                    start=start,
                )
            except Diverged:
                run.checkpoint.discard()  # it would diverge again
                raise
            except Interrupted as error:
                raise Interrupted(error.what, f"{label}, {error.where}", code=codes[0]) from None
        if codes:
            raise Interrupted("interrupted before the checks", label, code=codes[0])
        say(f"{label}: trained in {trained.seconds:.1f} s, checking")
        return _check(model, name, network, trained, split, inputs, options, gain)


def _take_pretrained(
    model: Model,
    name: str,
    dataset: data.Dataset,
    inputs: dict[str, Any],
    options: Options,
    workers: Workers,
    say: Say,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Give a backend the weights of the package and check it: report and files of its run."""
    say(f"{model.name} {name}: pretrained weights, checking")
    values = pretrained.weights(model)
    split = data.only_test(dataset)
    with workers.use(name) as worker:
        network = worker.build(model, values)
        outputs = network.predict(data.to_float(split.test_images))
        unknown = {"train": None, "validation": None}
        trained = Trained(
            weights=values,
            best=None,
            best_epoch=None,
            accuracy={**unknown, "test": measures.accuracy(outputs, split.test_labels)},
            loss={**unknown, "test": measures.cross_entropy(outputs, split.test_labels)},
            seconds=0.0,
        )
        return _check(model, name, network, trained, split, inputs, options)


def _why_anew(run: runs.Run, inputs: dict[str, Any], options: Options) -> str | None:
    """Why a run is trained: None if there is none yet, "" if it is up to date and need not be."""
    if not run.path.exists():
        return None
    if options.force:
        return "--force"
    if not run.is_sound():
        return "the run is damaged"
    return "; ".join(_differences((run.manifest() or {})["inputs"], inputs))


def _check(
    model: Model,
    name: str,
    network: RemoteNetwork,
    trained: Trained,
    split: data.Split,
    inputs: dict[str, Any],
    options: Options,
    gain: Gain | None = None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Cross-check a trained network; its report and the files of its run.

    gain: by another precision than float32, where it was measured.
    Raises CheckFailed if any witness disagrees, NotSupported if a native export was wished for
    and there is none.
    """
    test_images = data.to_float(split.test_images)
    judgement = crosscheck.judge(model, trained.weights, test_images)
    checked = crosscheck.check_direct(model, trained.weights, judgement)
    crosscheck.check_network(name, network, trained.weights, judgement, checked)
    for verdict in checked.verdicts:
        if not verdict.passed:
            raise CheckFailed(failure(verdict), f"{model.name} {name}", "nothing was published")
    native = checked.verdict(crosscheck.native_name(name))
    if options.exporter == "native" and native.skipped:
        raise NotSupported(native.skipped, f"{model.name} {name}", "use --exporter direct")
    direct = checked.verdict(crosscheck.DIRECT)
    shipped = direct if options.exporter == "direct" else native
    onnx_bytes = checked.onnx if options.exporter == "direct" else checked.native[name]
    if shipped.outputs is None or shipped.output is None or shipped.decisions is None:
        raise AssertionError("a verdict that passed has outputs")
    logits = shipped.logits or direct.logits  # a native graph shows no logits before its softmax
    if logits is None:
        raise AssertionError("the direct export always gives its logits")
    predicted = np.bincount(shipped.outputs.argmax(axis=1), minlength=len(model.labels))
    never = [label for label, count in zip(model.labels, predicted, strict=True) if not count]
    classes = "class" if len(never) == 1 else "classes"
    warnings = [f"never predicted: {classes} {', '.join(never)}"] if never else []
    if options.pretrained:
        origin = pretrained.record(model.name)["data"]
        if origin["sha256"] != inputs["data"]["sha256"]:
            warnings.append(f"trained on {origin['name']}, tested on {inputs['data']['name']}")
    report = {
        "model": model.name,
        "arguments": dict(model.arguments),
        "backend": name,
        "document": model.document,
        "parameters": model.parameters,
        "data": {
            "name": inputs["data"]["name"],
            "sha256": inputs["data"]["sha256"],
            "train": len(split.train_labels),
            "validation": len(split.validation_labels),
            "test": len(split.test_labels),
        },
        "seed": options.seed,
        "epochs": inputs["epochs"],
        "documented_epochs": model.recipe.epochs,
        "best_epoch": trained.best_epoch,
        "accuracy": trained.accuracy,
        "loss": trained.loss,
        "onnx": {
            "exporter": options.exporter,
            "sha256": hashlib.sha256(onnx_bytes).hexdigest(),
            "bytes": len(onnx_bytes),
            "accuracy": measures.accuracy(shipped.outputs, split.test_labels),
            "max_abs_diff": shipped.output.max_abs_diff,
            "limit": shipped.output.limit,
            "flips": len(shipped.decisions.flips),
            "passed": shipped.output.passed and shipped.decisions.passed,
            "logits": {"max_ratio": logits.ratio, "passed": logits.passed},
        },
        "weights_sha256": weights.digest(trained.weights),
        "warnings": warnings,
        "seconds": {"train": round(trained.seconds, 3)},
        "threads": inputs["threads"],
        "device": options.device,
        "precision": _precision(options, gain),
        "versions": inputs["versions"],
        "checks": checked.to_dict(),
    }
    if options.pretrained:
        report["pretrained"] = pretrained.record(model.name)
    from export.runs import gallery  # matplotlib takes half a second, which verify and export need not spend

    pictures = gallery.pictures(model, trained, split, shipped.outputs, options.seed)
    about = {"model": model.title, "backend": name, "seed": options.seed}
    files = {
        "model.onnx": onnx_bytes,
        "layers.onnx": checked.layers_onnx,
        "weights.safetensors": weights.to_bytes(trained.weights, about),
        "spec.json": model.to_json().encode(),
        "history.csv": loop.to_csv(loop.HISTORY, trained.history).encode(),
        "epochs.csv": loop.to_csv(loop.EPOCHS, trained.epochs).encode(),
        "report.json": (json.dumps(report, indent=1) + "\n").encode(),
        **pictures,
        "README.md": model_card(model, report, list(pictures)).encode(),
    }
    if name in checked.native:
        files["native.onnx"] = checked.native[name]
    if trained.best is not None:
        files["best.safetensors"] = weights.to_bytes(trained.best, {**about, "epoch": trained.best_epoch})
    return report, files


def _precision(options: Options, gain: Gain | None) -> dict[str, Any]:
    """What the report says of the precision of training.

    speed: times as fast a step as in float32, with the 95 % interval; None where nothing was trained.
    """
    if options.precision == FLOAT32:
        return {"name": FLOAT32}
    return {
        "name": options.precision,
        "speed": gain.to_dict() if gain else None,
        "instructions": machine.bfloat16_instructions() if options.device == "cpu" else [],
    }


def failure(verdict: crosscheck.Verdict) -> str:
    """One sentence on what is wrong with a witness that failed."""
    if verdict.error:
        return f"{verdict.witness} failed: {verdict.error}"
    if verdict.culprit:
        return f"{verdict.witness} disagrees from {verdict.culprit} on: {verdict.layers[verdict.culprit]}"
    if verdict.output and not verdict.output.passed:
        return f"{verdict.witness} disagrees: {verdict.output}"
    if verdict.logits and not verdict.logits.passed:
        return f"{verdict.witness} disagrees: logits {verdict.logits}"
    if verdict.probes and not verdict.probes.passed:
        return f"{verdict.witness} disagrees on probes: {verdict.probes.output}"
    forbidden = verdict.decisions.forbidden if verdict.decisions else []
    return f"{verdict.witness} decides otherwise on images {forbidden[:10]}"
