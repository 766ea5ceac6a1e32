"""Training parity: two backends start from the same weights, get the same batches, and stay together.

In float64 the formulas are held to each other: the gradients of the first batch, then loss and
weights after every step, under limits far above rounding and far below any difference of meaning. In
float32 paths part by rounding alone, because ReLU and max-pooling turn a last bit into another
gradient: the very first gradients of convnet-deep on MNIST differ by 0.2 % between two memory layouts
of torch. So float32 is measured, not judged, beside a noise floor: one backend against itself in another
memory layout, and from initial weights moved to a neighbouring float32. One such pair shows little. Whether
a ReLU or a maximum within a few roundings of a tie falls to the same side in two trainings is chance, so the
floor is the pair that parts most. Whether the parting matters is a question of final accuracy, over seeds
(backends.parity.equivalence). Dropout takes equal masks from zoo.randomness on both sides.

All sides go through a step at the same time, each in its worker; only the last step's weights are held.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import backends
from backends.parity import equivalence
from backends.parity.equivalence import Equivalence
from backends.process.client import RemoteNetwork, Step, Worker
from zoo import data, machine, precision, weights
from zoo.errors import CheckFailed, Diverged, InvalidInput, NotSupported
from zoo.layers import Dropout
from zoo.model import Model
from zoo.precision import FLOAT32
from zoo.randomness import uniform
from zoo.training.loop import Progress

Bar = Callable[[str], AbstractContextManager[Progress]]

STEPS = 200
QUANTITIES = ("batch", "gradients", "loss", "weights")  # of one step, in this order
ROUNDING = 32 * 2.0**-24  # of float32, relative; beyond it is more than the rounding of one step
# Trainings of the noise floor from moved weights. In lenet-dropout on MNIST an input of relu2 lies five
# roundings from 0 in step 112, and a window of pool1 near a tie in step 150. There 8 of 20 such trainings of
# torch, and 7 of 10 of Keras, parted from the unmoved one, by 0.003 to 0.011 in the loss; the others kept
# within 1e-6 of it.
MOVES = 4
NEAR = 10  # the sizes of two partings by chance differ by less

EXPECTED_DEVIATION = {"none": 0.2, "equal": 0.35, "own": 0.8}
"""Of a paired difference of accuracies, in points, by the masks of dropout; the number of seeds follows.

Measured on MNIST after one epoch, seven seeds: 0.04 for cnn-padded, which has no dropout; for lenet-dropout
0.33 with equal masks and 0.79 with each backend's own.
"""


class Limits(NamedTuple):
    """The largest differences allowed.

    gradients: max|a - b| / max|a| of each weight tensor. loss and weights: max|a - b|, or relative to
    the largest where `relative` is set. judged: the quantities that must keep to them; of the others
    they only tell from which step on two paths are apart.
    """

    gradients: float
    loss: float
    weights: float
    relative: bool
    judged: tuple[str, ...]


LIMITS = {
    "float64": Limits(1e-12, 1e-10, 1e-11, relative=False, judged=QUANTITIES),
    "float32": Limits(1e-5, ROUNDING, ROUNDING, relative=True, judged=("batch",)),
}


@dataclass
class Trace:
    """How far one quantity is apart after each step: max|a - b|, and max|a| as its size."""

    differences: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Take the values of one more step."""
        difference, size = _apart(a, b)
        self.differences.append(difference)
        self.sizes.append(size)

    @property
    def largest(self) -> float:
        """The largest difference of all steps; NaN if there is one."""
        return float(np.max(self.differences))

    @property
    def largest_step(self) -> int:
        """The first step, from 1, at which it is met."""
        return int(np.argmax(self.differences)) + 1

    def first_beyond(self, limit: float, relative: bool = False) -> int | None:
        """The first step, from 1, with a difference that is not within the limit."""
        for step, (difference, size) in enumerate(zip(self.differences, self.sizes, strict=True), start=1):
            if not difference <= (limit * size if relative else limit):
                return step
        return None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data; starts: the first step with any difference."""
        return {"largest": self.largest, "step": self.largest_step, "starts": self.first_beyond(0.0)}


class Parting(NamedTuple):
    """From which step on one of QUANTITIES is beyond its limit, in which tensor most, and in words."""

    step: int
    quantity: str
    tensor: str | None
    sentence: str


def _when(parting: Parting) -> tuple[int, int]:
    return parting.step, QUANTITIES.index(parting.quantity)


@dataclass
class Course:
    """How two trainings of one model in one dtype follow each other.

    gradients: of the first batch, by weight, relative to the tensor's largest. loss, weights: after
    every step. other_batch: the first step whose images are not the same, None as long as they are.
    """

    dtype: str
    sides: tuple[str, str]
    limits: Limits
    gradients: dict[str, float] = field(default_factory=dict)
    loss: Trace = field(default_factory=Trace)
    weights: dict[str, Trace] = field(default_factory=dict)
    other_batch: int | None = None

    @property
    def steps(self) -> int:
        """How many steps were done."""
        return len(self.loss.differences)

    @property
    def passed(self) -> bool:
        """Whether everything that is judged is within its limit."""
        return self.failure is None

    @property
    def worst_weight(self) -> tuple[str, Trace]:
        """The tensor with the largest difference, and its trace."""
        return max(self.weights.items(), key=lambda item: _or_infinite(item[1].largest))

    @property
    def worst_gradient(self) -> tuple[str, float]:
        """The tensor whose first gradients differ most, relative to its largest, and by how much."""
        return max(self.gradients.items(), key=lambda item: _or_infinite(item[1]))

    @property
    def parts(self) -> Parting | None:
        """What is first beyond its limit: of one step the batch, then gradients, loss, weights."""
        return min(self._partings(), key=_when, default=None)

    @property
    def failure(self) -> Parting | None:
        """The same among what is judged."""
        judged = (parting for parting in self._partings() if parting.quantity in self.limits.judged)
        return min(judged, key=_when, default=None)

    @property
    def loss_parts(self) -> int | None:
        """The first step whose loss is beyond its limit."""
        return self.loss.first_beyond(self.limits.loss, self.limits.relative)

    @property
    def weights_part(self) -> int | None:
        """The first step after which a weight is beyond its limit."""
        return min((step for step in self._weights_part().values() if step is not None), default=None)

    def _weights_part(self) -> dict[str, int | None]:
        limits = self.limits
        return {
            name: trace.first_beyond(limits.weights, limits.relative) for name, trace in self.weights.items()
        }

    def _partings(self) -> Iterator[Parting]:
        limits = self.limits
        if self.other_batch is not None:
            sentence = f"the batch of step {self.other_batch} holds other images, or in another order"
            yield Parting(self.other_batch, "batch", None, sentence)
        apart = [name for name, value in self.gradients.items() if not value <= limits.gradients]
        if apart:
            name, value = self.worst_gradient
            sentence = (
                f"the gradients of {_listed(apart)} differ at step 1, on the same weights, most those of "
                f"{name}, by {value:.1e} of their largest: see the layers and the loss"
            )
            yield Parting(1, "gradients", name, sentence)
        step = self.loss_parts
        if step is not None:
            difference = self.loss.differences[step - 1]
            yield Parting(step, "loss", None, f"the losses of step {step} differ by {difference:.1e}")
        step = self.weights_part
        if step is not None:
            names = [name for name, first in self._weights_part().items() if first == step]
            worst = max(names, key=lambda name: np.nan_to_num(self.weights[name].differences[step - 1]))
            difference = self.weights[worst].differences[step - 1]
            sentence = (
                f"the weights of {_listed(names)} differ after step {step}, most {worst}, by {difference:.1e}"
            )
            if not apart:
                sentence += "; the gradients of step 1 agree: see the optimizer"
            yield Parting(step, "weights", worst, sentence)

    def add(self, first: _Done, second: _Done) -> None:
        """Take what both sides did in one more step; the first must be finite."""
        if not math.isfinite(first.step.loss):
            raise Diverged(
                f"the loss is {first.step.loss}", f"{self.sides[0]}, {self.dtype}, step {self.steps + 1}"
            )
        self._compare_batches(first.step, second.step, self.steps + 1)
        self.loss.add(np.array(first.step.loss), np.array(second.step.loss))
        for name, array in _paired(first.tensors, second.tensors).items():
            self.weights.setdefault(name, Trace()).add(*array)

    def add_gradients(self, first: _Done, second: _Done) -> None:
        """Take the gradients of both sides on the first batch."""
        self._compare_batches(first.step, second.step, 1)
        for name, arrays in _paired(first.tensors, second.tensors).items():
            difference, size = _apart(*arrays)
            self.gradients[name] = difference / size if size else difference

    def _compare_batches(self, first: Step, second: Step, step: int) -> None:
        if self.other_batch is None and first.batch != second.batch:
            self.other_batch = step

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        parts, failure = self.parts, self.failure
        name, trace = self.worst_weight
        return {
            "dtype": self.dtype,
            "sides": list(self.sides),
            "steps": self.steps,
            "limits": self.limits._asdict(),
            "passed": self.passed,
            "failure": failure._asdict() if failure else None,
            "parts": parts._asdict() if parts else None,
            "gradients": self.gradients,
            "loss": self.loss.to_dict() | {"differences": self.loss.differences},
            "weight": {"tensor": name, **trace.to_dict()},
            "weights": {name: trace.to_dict() for name, trace in self.weights.items()},
        }


class Accuracy(NamedTuple):
    """Final test accuracies of both sides, as fractions, one per seed, and what they say."""

    masks: str  # "equal", "own", or "none" for a model without dropout
    epochs: int
    first: list[float]
    second: list[float]
    verdict: Equivalence

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {
            "masks": self.masks,
            "epochs": self.epochs,
            "accuracies": [self.first, self.second],
            **self.verdict.to_dict(),
        }


def not_equivalent(accuracies: Sequence[Accuracy]) -> list[str]:
    """A sentence for each comparison that does not show equivalence."""
    return [
        f"test accuracy, {accuracy.masks} masks: {accuracy.verdict.verdict}"
        for accuracy in accuracies
        if accuracy.verdict.verdict != "equivalent"
    ]


class Twin(NamedTuple):
    """A worker that trains beside another of its backend for the noise floor.

    moved: the seed by which its initial weights are moved; None: it trains in another memory layout.
    """

    worker: Worker
    moved: int | None = None

    @property
    def side(self) -> str:
        """Who trains how, in words."""
        if self.moved is None:
            return f"{self.worker.backend} in another memory layout"
        return f"{self.worker.backend} from weights moved by a last bit ({self.moved})"


class Side(NamedTuple):
    """Who trains: a worker, and the precision of its steps."""

    worker: Worker
    precision: str = FLOAT32


@dataclass
class Parity:
    """What `zoo parity` found for one model. floors: float32 of one backend against itself, several times."""

    model: str
    data: str
    batch_size: int
    sides: tuple[str, str]
    stochastic: bool
    float64: Course
    float32: Course
    floors: list[Course]
    accuracies: list[Accuracy] = field(default_factory=list)

    @property
    def floor(self) -> Course:
        """That of `floors` whose losses part most."""
        return max(self.floors, key=lambda course: _or_infinite(course.loss.largest))

    @property
    def cause(self) -> str:
        """A sentence: whether rounding alone parts as far as the two backends do in float32."""
        found, noise, backend = self.float32.loss.largest, self.floor.loss.largest, self.floor.sides[0]
        near = sum(course.loss.largest * NEAR >= found for course in self.floors)
        explains = "explains" if near or not self.float32.loss_parts else "does not explain"
        return (
            f"the losses differ by {found:.1e}; {backend}'s from its own by up to {noise:.1e}, in {near} of\n"
            f"{len(self.floors)} trainings by a tenth of the former or more: rounding alone {explains} it"
        )

    @property
    def passed(self) -> bool:
        """Everything judged is within its limit, and accuracies are equivalent where that was asked."""
        return not self.findings

    @property
    def findings(self) -> list[str]:
        """What is not as it should be, one sentence each."""
        found = []
        for course in (self.float64, self.float32):
            if course.failure:
                found.append(f"{course.dtype}: {course.failure.sentence}")
        return found + not_equivalent(self.accuracies)

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON data."""
        return {
            "model": self.model,
            "passed": self.passed,
            "findings": self.findings,
            "backends": list(self.sides),
            "data": self.data,
            "batch_size": self.batch_size,
            "equal_masks": self.stochastic,
            "float64": self.float64.to_dict(),
            "float32": self.float32.to_dict(),
            "cause": self.cause,
            "floor": self.floor.to_dict(),
            "floors": [course.to_dict() for course in self.floors],
            "accuracy": [accuracy.to_dict() for accuracy in self.accuracies],
        }


@dataclass(frozen=True)
class Options:
    """What to compare.

    steps: of training, at the recipe's batch size (None: STEPS). precision: "float32" compares two backends,
    another one a backend with its own float64 and, for accuracy, float32 (backends.parity.mixed_precision).
    data, data_dir: see zoo.data.load. limit: train on the first so many images. accuracy: also train in
    full, epochs (None: the recipe's) for each of so many seeds (None: as many as have a power of 0.9 at
    EXPECTED_DEVIATION) from `seed` on.
    """

    steps: int | None = None
    seed: int = 0
    data: str = "auto"
    data_dir: str | None = None
    limit: int | None = None
    accuracy: bool = False
    seeds: int | None = None
    epochs: int | None = None
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        least = {
            "steps": (1, "steps"),
            "limit": (1, "training images"),
            "seeds": (2, "seeds"),
            "epochs": (1, "epochs"),
        }
        for name, (smallest, what) in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InvalidInput(f"{value} {what}", f"--{name}", f"give at least {smallest}")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput(f"seed {self.seed}", "--seed", "give an integer from 0 to 2^63 - 1")
        precision.require(self.precision)
        if self.precision != FLOAT32 and self.steps is not None:
            what = f"{self.precision} is compared in its first step"
            raise InvalidInput(what, "--steps", "leave out one of the two")
        for name in ("seeds", "epochs"):
            if getattr(self, name) is not None and not self.accuracy:
                raise InvalidInput(f"--{name} is for the final accuracy", f"--{name}", "add --accuracy")


def pair(names: Sequence[str]) -> tuple[str, str]:
    """The two backends to compare: those named, or the first two that train.

    Raises InvalidInput unless two different ones that train are named, BackendUnavailable if one is missing.
    """
    known = [name for name in backends.names() if backends.trains(name)]
    chosen = list(dict.fromkeys(map(backends.canonical, names or known[:2])))
    if len(chosen) != 2:
        what = f"parity is between two backends, not {len(chosen)}"
        raise InvalidInput(what, "--backend", f"such as -b {known[0]} -b {known[1]}")
    for name in chosen:
        if not backends.trains(name):
            raise InvalidInput(
                f"the backend {name!r} does not train", "--backend", f"use {' and '.join(known)}"
            )
        backends.require(name)
    return chosen[0], chosen[1]


def check(
    models: Sequence[Model],
    names: tuple[str, str],
    options: Options,
    say: Callable[[str], None],
    bar: Bar,
) -> Iterator[Parity]:
    """Compare the training of each model in two backends, each in a process of its own.

    say: gets lines for the user. bar: gives a progress callback for a named training. Raises
    DataError and InvalidInput if the data or a model cannot be used, Diverged if a training does.
    """
    dataset = data.load(options.data, options.data_dir, say)
    for model in models:
        data.check_fits(model, dataset)
        split_of(model, dataset, options.seed, options.limit)
    with ExitStack() as stack:
        first, second = (stack.enter_context(Worker(name, threads_each())) for name in names)
        for model in models:
            yield compare(model, (first, second), dataset, options, bar)


def compare(
    model: Model, workers: tuple[Worker, Worker], dataset: data.Dataset, options: Options, bar: Bar
) -> Parity:
    """Compare the training of one model in two workers."""
    split = split_of(model, dataset, options.seed, options.limit)
    for worker in workers:
        worker.send_data(split)
    with bar(f"{model.name} float64") as progress:
        (float64,) = follow(model, workers, "float64", options, progress)
    with _twins(model, workers) as twins:
        for twin in twins:
            twin.worker.send_data(split)
        with bar(f"{model.name} float32") as progress:
            float32, *floors = follow(model, workers, "float32", options, progress, twins)
    stochastic = any(isinstance(node.layer, Dropout) for node in model.walk())
    found = Parity(
        model.title,
        dataset.name,
        model.recipe.batch_size,
        float64.sides,
        stochastic,
        float64,
        float32,
        floors,
    )
    if options.accuracy:
        for masks in ("equal", "own") if stochastic else ("none",):
            sides = [Side(worker) for worker in workers]
            found.accuracies.append(train_in_full(model, sides, dataset, masks, options, bar))
    return found


def follow(
    model: Model,
    workers: Sequence[Worker],
    dtype: str,
    options: Options,
    progress: Progress,
    twins: Sequence[Twin] = (),
) -> list[Course]:
    """Train a model in two workers at once, on the data they have: their course.

    twins: train at the same time, each beside the worker of its backend; their courses follow and are not
    judged.
    """
    names = [worker.backend for worker in workers]
    initial = weights.init_weights(model, options.seed)
    networks = [_start(worker, model, initial, dtype) for worker in workers]
    courses = [Course(dtype, (names[0], names[1]), LIMITS[dtype])]
    compared = [(0, 1)]
    for twin in twins:
        name, limits = twin.worker.backend, LIMITS[dtype]._replace(judged=())
        courses.append(Course(dtype, (name, twin.side), limits))
        compared.append((names.index(name), len(networks)))
        start = initial if twin.moved is None else moved(initial, twin.moved)
        networks.append(_start(twin.worker, model, start, dtype))
        if twin.moved is None:
            networks[-1].change_layout()

    def first_gradients(network: RemoteNetwork) -> _Done:
        return _Done(*network.gradients(options.seed))

    def next_step(network: RemoteNetwork) -> _Done:
        return _Done(*network.train_step(seed=options.seed, step=courses[0].steps + 1))

    with _together([*workers, *(twin.worker for twin in twins)]) as pool:
        done = list(pool.map(first_gradients, networks))
        for course, (a, b) in zip(courses, compared, strict=True):
            course.add_gradients(done[a], done[b])
        steps = options.steps or STEPS
        while courses[0].steps < steps:
            done = list(pool.map(next_step, networks))
            for course, (a, b) in zip(courses, compared, strict=True):
                course.add(done[a], done[b])
            progress(courses[0].steps, steps, done[0].step.loss)
    return courses


class _Done(NamedTuple):
    step: Step
    tensors: dict[str, np.ndarray]


@contextmanager
def _together(workers: Sequence[Worker]) -> Iterator[ThreadPoolExecutor]:
    """A thread for each worker. An error or an interrupt ends the workers; else it would wait for them."""
    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            yield pool
        except BaseException:
            for worker in workers:
                worker.close()
            raise


def _start(worker: Worker, model: Model, initial: weights.Weights, dtype: str) -> RemoteNetwork:
    network = worker.build(model, initial, dtype)
    network.share_masks()
    return network


def moved(initial: weights.Weights, seed: int) -> weights.Weights:
    """The weights, every one moved to the next float32 above or below it, by chance.

    A training's own rounding does more: that of one step of Adam moves a weight by 0.3 of this (root mean
    square), and by up to 15.
    """
    return {
        name: np.nextafter(
            array,
            np.where(uniform(seed, f"parity/{name}", array.size) < 0.5, -np.inf, np.inf).reshape(array.shape),
            dtype=np.float32,
        )
        for name, array in initial.items()
    }


@contextmanager
def _twins(model: Model, workers: Sequence[Worker]) -> Iterator[list[Twin]]:
    """More workers of the first backend that knows another memory layout, else of the first of all."""
    backend = workers[0].backend
    twins: list[int | None] = [*range(1, MOVES + 1)]
    for worker in workers:
        try:
            worker.build(model, weights.init_weights(model)).change_layout()
        except NotSupported:
            continue
        backend, twins = worker.backend, [None, *twins]
        break
    with ExitStack() as stack:
        yield [Twin(stack.enter_context(Worker(backend, threads_each())), seed) for seed in twins]


def train_in_full(
    model: Model,
    sides: Sequence[Side],
    dataset: data.Dataset,
    masks: str,
    options: Options,
    bar: Bar,
) -> Accuracy:
    """Train in full on both sides, once per seed, and judge the paired differences.

    masks: of dropout, "equal", "own", or "none" for a model without.
    """
    seeds = options.seeds or equivalence.seeds_for(EXPECTED_DEVIATION[masks])
    epochs = options.epochs or model.recipe.epochs_on(dataset.name)
    masks_told = "" if masks == "none" else f", {masks} masks"
    found: list[list[float]] = [[], []]
    for number, seed in enumerate(range(options.seed, options.seed + seeds), start=1):
        split = split_of(model, dataset, seed, options.limit)
        train = functools.partial(_train, model, split, masks, seed, epochs)
        with (
            bar(f"{model.name} seed {number} of {seeds}{masks_told}") as progress,
            _together([side.worker for side in sides]) as pool,
        ):
            for accuracies, value in zip(found, pool.map(train, sides, (progress, None)), strict=True):
                accuracies.append(value)
    differences = [100 * (b - a) for a, b in zip(*found, strict=True)]
    return Accuracy(masks, epochs, found[0], found[1], equivalence.judge(differences))


def _train(
    model: Model,
    split: data.Split,
    masks: str,
    seed: int,
    epochs: int,
    side: Side,
    progress: Progress | None,
) -> float:
    """The test accuracy after a training in full."""
    side.worker.send_data(split)
    network = side.worker.build(model, weights.init_weights(model, seed), precision=side.precision)
    if masks == "equal":
        network.share_masks()
    trained = network.train(seed=seed, epochs=epochs, progress=progress)
    accuracy = trained.accuracy["test"]
    if accuracy is None:
        raise RuntimeError("the data have no test images")
    return accuracy


def split_of(model: Model, dataset: data.Dataset, seed: int, limit: int | None) -> data.Split:
    """The data of a training; raises InvalidInput if they make no batch."""
    held_out = model.recipe.validation_size(len(dataset.train_labels))
    split = data.split(dataset, held_out, seed, limit)
    images = len(split.train_labels)
    if not model.recipe.steps(images):
        what = f"{images} training images make no batch of {model.recipe.batch_size}"
        raise InvalidInput(what, "--limit", "raise it")
    return split


def threads_each() -> int:
    """Of each worker: both compute at the same time."""
    return max(1, machine.threads() // 2)


def _paired(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both sides' tensors by name; names and shapes must be the same, nothing is made to fit."""
    if {name: a.shape for name, a in first.items()} != {name: b.shape for name, b in second.items()}:
        raise CheckFailed("the two sides have tensors of other names or shapes")
    return {name: (array, second[name]) for name, array in first.items()}


def _or_infinite(value: float) -> float:
    return float(np.nan_to_num(value, nan=math.inf))


def _apart(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(difference.max()), float(np.abs(a).max())


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
