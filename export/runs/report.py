"""What a finished run holds: report.json and the files beside it, from a training that passed its checks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from export import crosscheck
from export.runs.card import model_card
from export.runs.job import Job
from zoo import machine, pretrained, weights
from zoo.errors import NotSupported
from zoo.precision import FLOAT32, Gain
from zoo.training import loop, measures
from zoo.training.loop import Trained


@dataclass(frozen=True)
class Finished:
    """A job whose network is trained and cross-checked.

    gain: by another precision than float32, where it was measured.
    """

    job: Job
    trained: Trained
    checked: crosscheck.Report
    gain: Gain | None = None

    @property
    def shipped(self) -> crosscheck.Verdict:
        """What was said of the graph that is published; raises NotSupported if there is none."""
        options, native = self.job.options, self.native
        if options.exporter == "direct":
            return self.checked.verdict(crosscheck.DIRECT)
        if native.skipped:
            raise NotSupported(native.skipped, self.job.label, "use --exporter direct")
        return native

    @property
    def outputs(self) -> np.ndarray:
        """What the published graph gives for the test images: (N, classes)."""
        outputs = self.shipped.outputs
        if outputs is None:
            raise AssertionError("a verdict that passed has outputs")
        return outputs

    @property
    def native(self) -> crosscheck.Verdict:
        """What was said of the framework's own export."""
        return self.checked.verdict(crosscheck.native_name(self.job.backend))

    @property
    def onnx(self) -> bytes:
        """The graph that is published."""
        direct = self.job.options.exporter == "direct"
        return self.checked.onnx if direct else self.checked.native[self.job.backend]

    def report(self) -> dict[str, Any]:
        """report.json."""
        job, trained, model = self.job, self.trained, self.job.model
        report = {
            "model": model.name,
            "arguments": dict(model.arguments),
            "backend": job.backend,
            "document": model.document,
            "parameters": model.parameters,
            "data": {
                "name": job.inputs["data"]["name"],
                "sha256": job.inputs["data"]["sha256"],
                "train": len(job.split.train_labels),
                "validation": len(job.split.validation_labels),
                "test": len(job.split.test_labels),
            },
            "seed": job.options.seed,
            "epochs": job.inputs["epochs"],
            "documented_epochs": model.recipe.epochs,
            "best_epoch": trained.best_epoch,
            "accuracy": trained.accuracy,
            "loss": trained.loss,
            "onnx": self._onnx(),
            "weights_sha256": weights.digest(trained.weights),
            "warnings": self._warnings(),
            "seconds": {"train": round(trained.seconds, 3)},
            "threads": job.inputs["threads"],
            "device": job.options.device,
            "precision": self._precision(),
            "versions": job.inputs["versions"],
            "checks": self.checked.to_dict(),
        }
        if job.options.pretrained:
            report["pretrained"] = pretrained.record(model.name)
        return report

    def _onnx(self) -> dict[str, Any]:
        shipped = self.shipped
        if shipped.output is None or shipped.decisions is None:
            raise AssertionError("a verdict that passed has an output and decisions")
        # A native graph shows no logits before its softmax.
        logits = shipped.logits or self.checked.verdict(crosscheck.DIRECT).logits
        if logits is None:
            raise AssertionError("the direct export always gives its logits")
        return {
            "exporter": self.job.options.exporter,
            "sha256": hashlib.sha256(self.onnx).hexdigest(),
            "bytes": len(self.onnx),
            "accuracy": measures.accuracy(self.outputs, self.job.split.test_labels),
            "max_abs_diff": shipped.output.max_abs_diff,
            "limit": shipped.output.limit,
            "flips": len(shipped.decisions.flips),
            "passed": shipped.output.passed and shipped.decisions.passed,
            "logits": {"max_ratio": logits.ratio, "passed": logits.passed},
        }

    def _warnings(self) -> list[str]:
        """What is no failure, but worth a line: a class never predicted, other data than trained on."""
        job = self.job
        predicted = np.bincount(self.outputs.argmax(axis=1), minlength=len(job.model.labels))
        never = [label for label, count in zip(job.model.labels, predicted, strict=True) if not count]
        classes = "class" if len(never) == 1 else "classes"
        warnings = [f"never predicted: {classes} {', '.join(never)}"] if never else []
        if job.options.pretrained:
            origin, here = pretrained.record(job.model.name)["data"], job.inputs["data"]
            if origin["sha256"] != here["sha256"]:
                warnings.append(f"trained on {origin['name']}, tested on {here['name']}")
        return warnings

    def _precision(self) -> dict[str, Any]:
        """What the report says of the precision of training.

        speed: times as fast a step as in float32, with the 95 % interval; None where nothing was trained.
        """
        options = self.job.options
        if options.precision == FLOAT32:
            return {"name": FLOAT32}
        return {
            "name": options.precision,
            "speed": self.gain.to_dict() if self.gain else None,
            "instructions": machine.bfloat16_instructions() if options.device == "cpu" else [],
        }

    def files(self, report: dict[str, Any]) -> dict[str, bytes]:
        """The files of the run, report.json among them, by name."""
        # matplotlib takes half a second, which verify and export need not spend
        from export.runs import gallery

        job, trained, model = self.job, self.trained, self.job.model
        pictures = gallery.pictures(model, trained, job.split, self.outputs, job.options.seed)
        about = {"model": model.title, "backend": job.backend, "seed": job.options.seed}
        files = {
            "model.onnx": self.onnx,
            "layers.onnx": self.checked.layers_onnx,
            "weights.safetensors": weights.to_bytes(trained.weights, about),
            "spec.json": model.to_json().encode(),
            "history.csv": loop.to_csv(loop.HISTORY, trained.history).encode(),
            "epochs.csv": loop.to_csv(loop.EPOCHS, trained.epochs).encode(),
            "report.json": (json.dumps(report, indent=1) + "\n").encode(),
            **pictures,
            "README.md": model_card(model, report, list(pictures)).encode(),
        }
        if job.backend in self.checked.native:
            files["native.onnx"] = self.checked.native[job.backend]
        if trained.best is not None:
            files["best.safetensors"] = weights.to_bytes(trained.best, {**about, "epoch": trained.best_epoch})
        return files
