"""Checkpoints: a training between two steps, as files beside the run that it will become.

One is published like a run: whole or not at all, with the hashes of its files and the inputs of the
run (zoo.runs). Nothing is pickled: tensors are safetensors, everything else is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo import weights
from zoo.errors import DataError
from zoo.runs import Run
from zoo.weights import Weights

TENSORS, PROGRESS = "state.safetensors", "progress.json"
BEST = "best:"  # in front of names of tensors; no layer's name has a colon


@dataclass(frozen=True)
class Checkpoint:
    """A training between two steps: everything that it goes on from, to the same bits.

    epoch, step: where it goes on: after so many steps of that epoch (from 1). tensors: the state of
    the network, and the best epoch's weights as "best:<name>". network: the state's JSON data.
    """

    epoch: int
    step: int
    tensors: Mapping[str, np.ndarray]
    network: Mapping[str, Any]
    history: list[tuple[Any, ...]]
    epochs: list[tuple[Any, ...]]
    best_epoch: int | None
    best_accuracy: float
    seconds: float

    @property
    def best(self) -> Weights | None:
        """The weights of the best epoch so far, if any was validated."""
        named = {k.removeprefix(BEST): v for k, v in self.tensors.items() if k.startswith(BEST)}
        return named or None

    def to_dict(self) -> dict[str, Any]:
        """All but the tensors, as JSON data."""
        return {name: value for name, value in vars(self).items() if name != "tensors"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Checkpoint:
        """The checkpoint that `to_dict` and tensors describe; raises DataError if it is none."""
        try:
            rows = {name: [tuple(row) for row in data[name]] for name in ("history", "epochs")}
            whole = cls(tensors=tensors, **{**data, **rows})
            if min(whole.epoch, whole.step + 1) < 1 or not isinstance(whole.network, Mapping):
                raise ValueError
            rows_of_numbers = [*whole.history, *whole.epochs, (whole.seconds, whole.best_accuracy)]
            for value in (value for row in rows_of_numbers for value in row):
                if not isinstance(value, (int, float, type(None))):
                    raise TypeError
            return whole
        except (KeyError, TypeError, ValueError):
            raise DataError("the checkpoint is damaged", "", "train from the start: --no-resume") from None


def save(run: Run, checkpoint: Checkpoint, inputs: Mapping[str, Any]) -> None:
    """Publish the checkpoint of a run with these inputs. Call it under the run's lock.

    Raises MachineError if it cannot be written; the one before it stays.
    """
    files = {
        TENSORS: weights.to_bytes(checkpoint.tensors),
        PROGRESS: json.dumps(checkpoint.to_dict()).encode(),
    }
    run.checkpoint.publish(files, inputs)


def load(run: Run) -> Checkpoint:
    """The checkpoint of a run; raises DataError if there is none or it is damaged."""
    kept = run.checkpoint
    tensors = weights.tensors(kept.read(TENSORS), kept.path / TENSORS)
    return Checkpoint.from_dict(kept.read_json(PROGRESS), tensors)
