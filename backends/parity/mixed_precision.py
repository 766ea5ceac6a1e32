"""The first step of a training in bf16 beside the same step in float64: same backend, weights, batch, masks.

No fixed limit holds for the gradients: where a rounding moves a value across a ReLU's zero or makes another
one the largest of a pool's window, a gradient goes another way, and how often that is depends on the network.
So the network itself says what its limit is. In float64, gradients are taken once more for weights and images
as bfloat16 holds them: by how much they change is what one rounding does. A bf16 step rounds three more times
in every layer (its outputs, their gradients, those of its weights). Four such errors, independent and of one
size, are twice one of them; WHOLE allows 3 times for the gradient of all weights together, and TENSOR 4 times
the tensor that changed most, because a tensor has fewer elements to average over. Where that is next to
nothing, as in smooth networks, the roundings themselves remain: forwards and backwards one in each of L
layers, of u = 2^-8 at most (8 bits, rounded to nearest), which is u sqrt(2 L). Both are added in quadrature.

The loss: every logit is wrong by about a rounding or two, relative, and the mean of n images averages
independent errors: 2 u / sqrt(n) of the loss.

Of 96 first steps (the five documented models, resnet-mini, cnn-tiny and lenet-5, twelve seeds each, MNIST)
none took more than 0.56 of the limit of all weights, 0.68 of the one of a tensor and 0.14 of the loss's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import backends
from backends.parity import course
from backends.parity.course import Accuracy, Bar, Options, Side
from backends.process.client import Worker
from zoo import data, precision, weights
from zoo.errors import CheckFailed, InvalidInput
from zoo.layers import Dropout
from zoo.model import Model
from zoo.precision import FLOAT32, UNIT_ROUNDOFF

WHOLE, TENSOR = 3.0, 4.0  # times what rounding weights and images changes
MOST = 0.5  # a tensor that is wrong by half is wrong, however ill-conditioned the network is
SMALLEST = 2.0**-6  # of the whole gradient's norm: what is smaller is compared with this
# A bias before a batch normalisation has the gradient 0, and in bf16 what rounding leaves of it.


class FirstStep(NamedTuple):
    """The loss of a step, and the gradients of it by weight."""

    loss: float
    gradients: dict[str, np.ndarray]


class Distance(NamedTuple):
    """How far a step is from the exact one, relative: |loss|, Euclidean norms of gradients."""

    loss: float
    whole: float  # of all weights together
    tensors: dict[str, float]  # of each

    @property
    def worst(self) -> tuple[str, float]:
        """The tensor whose gradients differ most, and by how much; NaN is the most."""
        return max(self.tensors.items(), key=lambda item: np.nan_to_num(item[1], nan=math.inf))

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return self._asdict()


class Limits(NamedTuple):
    """The largest distances allowed."""

    loss: float
    whole: float
    tensor: float


def distance(exact: FirstStep, found: FirstStep) -> Distance:
    """How far a step is from the exact one; raises CheckFailed if it has other weights."""
    shapes = [{name: array.shape for name, array in step.gradients.items()} for step in (exact, found)]
    if shapes[0] != shapes[1]:
        raise CheckFailed("the two steps have gradients of other names or shapes")
    norm = _norm(exact.gradients.values())
    differences = {
        name: found.gradients[name].astype(np.float64) - array for name, array in exact.gradients.items()
    }
    least = SMALLEST * norm or 1.0
    return Distance(
        abs(found.loss - exact.loss) / (abs(exact.loss) or 1.0),
        _norm(differences.values()) / (norm or 1.0),
        {
            name: _norm([difference]) / max(_norm([exact.gradients[name]]), least)
            for name, difference in differences.items()
        },
    )


def limits(rounded: Distance, images: int, layers: int) -> Limits:
    """What a bf16 step of so many images and layers may differ.

    rounded: the distance of the step in float64 whose weights and images are bfloat16's.
    """
    least = UNIT_ROUNDOFF * math.sqrt(2 * layers)
    return Limits(
        2 * UNIT_ROUNDOFF / math.sqrt(images),
        math.hypot(WHOLE * rounded.whole, least),
        min(math.hypot(TENSOR * rounded.worst[1], least), MOST),
    )


@dataclass
class MixedParity:
    """What `zoo parity --precision` found for one model.

    found: how far the step in this precision is from the one in float64; float32: how far one in float32.
    """

    model: str
    data: str
    batch_size: int
    backend: str
    precision: str
    stochastic: bool
    found: Distance
    float32: Distance
    limits: Limits
    accuracies: list[Accuracy] = field(default_factory=list)

    @property
    def sides(self) -> tuple[str, str]:
        """Whose accuracies are compared."""
        return f"{self.backend} {FLOAT32}", f"{self.backend} {self.precision}"

    @property
    def passed(self) -> bool:
        """Everything is within its limit, and accuracies are equivalent where that was asked."""
        return not self.findings

    @property
    def findings(self) -> list[str]:
        """What is not as it should be, one sentence each."""
        name, worst = self.found.worst
        judged = {
            "the loss of the first step": (self.found.loss, self.limits.loss),
            "the gradient of all weights": (self.found.whole, self.limits.whole),
            f"the gradient of {name}": (worst, self.limits.tensor),
        }
        found = [
            f"{self.precision}: {what} differs by {value:.1e} of its size, more than {limit:.1e}"
            for what, (value, limit) in judged.items()
            if not value <= limit
        ]
        return found + course.not_equivalent(self.accuracies)

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON data."""
        return {
            "model": self.model,
            "passed": self.passed,
            "findings": self.findings,
            "backend": self.backend,
            "precision": self.precision,
            "data": self.data,
            "batch_size": self.batch_size,
            "equal_masks": self.stochastic,
            "limits": self.limits._asdict(),
            "found": self.found.to_dict(),
            "float32": self.float32.to_dict(),
            "accuracy": [accuracy.to_dict() for accuracy in self.accuracies],
        }


def choose(names: Sequence[str], wish: str) -> str:
    """The backend named, or the first that trains in a precision.

    Raises InvalidInput unless it is one, NotSupported if it does not train so, BackendUnavailable if it is
    missing.
    """
    chosen = list(dict.fromkeys(map(backends.canonical, names))) or backends.names_with(wish)[:1]
    for name in chosen:
        backends.require_precision(name, wish)
        backends.require(name)
    if len(chosen) != 1:
        what = f"a precision is compared within one backend, not {len(chosen)}"
        raise InvalidInput(what, "--backend", f"such as -b {backends.names_with(wish)[0]}")
    return chosen[0]


def check(
    models: Sequence[Model], backend: str, options: Options, say: Callable[[str], None], bar: Bar
) -> Iterator[MixedParity]:
    """Compare the first step of each model in options.precision with the one in float64.

    say: gets lines for the user. bar: gives a progress callback for a named training. Raises
    DataError and InvalidInput if the data or a model cannot be used, Diverged if a training does.
    """
    dataset = data.load(options.data, options.data_dir, say)
    for model in models:
        data.check_fits(model, dataset)
        course.split_of(model, dataset, options.seed, options.limit)
    with ExitStack() as stack:
        start = functools.partial(Worker, backend, course.threads_each())
        workers = [stack.enter_context(start()) for _ in range(2 if options.accuracy else 1)]
        for model in models:
            result = compare(model, workers[0], dataset, options)
            if options.accuracy:
                sides = [
                    Side(worker, each)
                    for worker, each in zip(workers, (FLOAT32, options.precision), strict=True)
                ]
                masks = "equal" if result.stochastic else "none"
                result.accuracies.append(course.train_in_full(model, sides, dataset, masks, options, bar))
            yield result


def compare(model: Model, worker: Worker, dataset: data.Dataset, options: Options) -> MixedParity:
    """Compare the first step of one model, all in one worker."""
    split = course.split_of(model, dataset, options.seed, options.limit)
    worker.send_data(split)
    initial = weights.init_weights(model, options.seed)
    images = 0

    def step(
        values: Mapping[str, np.ndarray], dtype: str, wish: str = FLOAT32, rounded: bool = False
    ) -> FirstStep:
        nonlocal images
        network = worker.build(model, values, dtype, wish)
        network.share_masks()
        done, gradients = network.gradients(options.seed, rounded)
        images = len(done.batch)
        return FirstStep(done.loss, gradients)

    exact = step(initial, "float64")
    coarse = {name: precision.rounded(array) for name, array in initial.items()}
    rounded = distance(exact, step(coarse, "float64", rounded=True))
    return MixedParity(
        model.title,
        dataset.name,
        model.recipe.batch_size,
        worker.backend,
        options.precision,
        any(isinstance(node.layer, Dropout) for node in model.walk()),
        distance(exact, step(initial, "float32", options.precision)),
        distance(exact, step(initial, "float32")),
        limits(rounded, images, len(list(model.walk()))),
    )


def _norm(arrays: Any) -> float:
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays))
