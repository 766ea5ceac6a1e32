"""Training in two backends, side by side: parity."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from zoo import terminal
from zoo.cli.options import (
    check_packages,
    complete_backend,
    complete_model,
    count,
    data_option,
    json_option,
    model_of,
    next_commands,
    print_json,
)

if TYPE_CHECKING:
    from backends.parity.course import Course, Options, Parity
    from backends.parity.mixed_precision import MixedParity
    from zoo.model import Model


@click.command(
    epilog="""\b
Examples:
  zoo parity cnn-padded
  zoo parity lenet-dropout --steps 50 --data digits
  zoo parity cnn-padded --precision bf16
  zoo parity cnn-padded --accuracy --seeds 10 --epochs 1 --limit 10000"""
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=complete_model)
@click.option(
    "--backend",
    "-b",
    "backend_names",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_backend,
    help="One of the two, given twice [default: torch and keras].",
)
@click.option("--steps", type=int, help="Of training, at the recipe's batch [default: 200].")
@click.option("--accuracy", is_flag=True, help="Also train in full over seeds and test for equivalence.")
@click.option(
    "--seeds",
    type=int,
    metavar="N",
    help="Of --accuracy [default: 7; with dropout 17 for equal masks, 79 for own].",
)
@click.option("--epochs", type=int, help="Of --accuracy [default: the recipe's].")
@click.option("--limit", type=int, metavar="N", help="Train on the first N images after the split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, batches and dropout.")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    help="bf16: the first step of one backend in bfloat16 beside its float64.",
)
@data_option
@json_option
def parity(models: Sequence[str], backend_names: Sequence[str], as_json: bool, **options: Any) -> None:
    """Train MODELs in two backends from the same weights on the same batches, and compare each step.

    In float64 gradients, losses and weights must agree to 1e-12, 1e-10 and 1e-11. In float32 paths
    part by rounding: shown are the step and by how much, beside torch against itself in another memory
    layout and from initial weights moved by a last bit. Dropout gets the same masks on both sides.
    --accuracy asks whether final accuracies are equivalent: paired by seed, within 0.3 points (two
    one-sided tests at 5 %); models with dropout are trained with equal masks and with each backend's own.
    The numbers of seeds are for a power of 0.9 at the deviations measured. With --precision bf16 the
    first step of torch in bfloat16 is held to the same step in float64, under limits of its own, and
    --accuracy compares bf16 with float32.
    Exits 1 if anything judged is not within its limit, and if equivalence is not shown.
    """
    specs = [model_of(model) for model in models]
    check_packages()
    from backends.parity import course as training_parity

    chosen = training_parity.Options(**options)
    found: list[Parity | MixedParity] = []
    for result in _results(specs, backend_names, chosen):
        found.append(result)
        if not as_json:
            click.echo(_lines(result) + "\n")
    passed = sum(result.passed for result in found)
    if as_json:
        print_json([result.to_dict() for result in found])
    else:
        colour = "green" if passed == len(found) else "red"
        click.echo(
            f"{terminal.styled('PASSED' if colour == 'green' else 'FAILED', colour)} {passed} of {len(found)}"
        )
        further = [["zoo", "verify", models[0]]]
        if not chosen.accuracy:
            where = ["--data-dir", chosen.data_dir] if chosen.data_dir else []
            how = [] if chosen.precision == "float32" else ["--precision", chosen.precision]
            again = ["zoo", "parity", models[0], *how, "--accuracy", "--data", chosen.data, *where]
            further.insert(0, again)
        next_commands(*further)
    if passed < len(found):
        sys.exit(1)


def _results(
    specs: Sequence[Model], names: Sequence[str], options: Options
) -> Iterator[Parity | MixedParity]:
    from backends.parity import course as training_parity
    from backends.parity import mixed_precision

    tell = terminal.say, terminal.progress_bar
    if options.precision == "float32":
        yield from training_parity.check(specs, training_parity.pair(names), options, *tell)
    else:
        backend = mixed_precision.choose(names, options.precision)
        yield from mixed_precision.check(specs, backend, options, *tell)


def _lines(result: Parity | MixedParity) -> str:
    """Tables and sentences of one model."""
    from backends.parity.course import Parity

    lines = _course_lines(result) if isinstance(result, Parity) else _mixed_lines(result)
    lines += [""] * bool(result.findings)
    lines += [f"{terminal.styled('differs', 'red')}: {sentence}" for sentence in result.findings]
    if result.accuracies:
        lines.append(f"\n{_accuracy_table(result)}")
    return "\n".join(lines)


def _mixed_lines(result: MixedParity) -> list[str]:
    masks = "; dropout with equal masks" if result.stochastic else ""
    name, worst = result.found.worst
    limits, float32 = result.limits, result.float32
    rows = [
        (title, f"{found:.1e}", at, f"{limit:.1e}", f"{other:.1e}")
        for title, found, at, limit, other in (
            ("loss", result.found.loss, "", limits.loss, float32.loss),
            ("gradient", result.found.whole, "all weights", limits.whole, float32.whole),
            ("", worst, name, limits.tensor, float32.worst[1]),
        )
    ]
    return [
        f"{result.model}: {result.backend} in {result.precision} and in float64, the first step of "
        f"{result.batch_size} images of {result.data}{masks}\n",
        terminal.table(("", "differs", "of", "limit", "float32"), rows),
        "\ndiffers: from float64, relative; of gradients the norm, of all weights together and of the tensor"
        "\nthat differs most. limit: by what rounding weights and images alone changes. float32: its own",
    ]


def _course_lines(result: Parity) -> list[str]:
    first, second = result.sides
    masks = "; dropout with equal masks" if result.stochastic else ""
    return [
        f"{result.model}: {first} and {second}, {count(result.float64.steps, 'step')} of "
        f"{result.batch_size} images of {result.data}{masks}\n",
        _steps_table(result),
        "\nlargest: difference; of gradients relative to the tensor's largest. starts: first step with any"
        "\ndifference. parts: the first step beyond the limit, in float32 beyond 32 * 2^-24, relative"
        f"\nnoise floor: {result.floor.sides[0]} beside itself in {len(result.floors)} trainings, in another"
        "\nmemory layout or from weights moved by a last bit; shown is the one that parts most\n",
        result.cause,
    ]


def _steps_table(result: Parity) -> str:
    header = ("", "", "largest", "at", "starts", "parts", "limit")
    rows = _rows("float64", result.float64) + _rows("float32", result.float32)
    return terminal.table(header, rows + _rows("noise floor", result.floor))


def _rows(title: str, course: Course) -> list[Sequence[str]]:
    limits = course.limits
    tensor, value = course.worst_gradient
    name, weight = course.worst_weight
    judged = limits.judged
    rows: list[Sequence[str]] = [
        (title, "gradients", f"{value:.1e}", tensor, "", "", _limit(limits.gradients, "gradients" in judged))
    ]
    traces = (("loss", "", course.loss, limits.loss), ("weights", f"{name}, ", weight, limits.weights))
    for quantity, where, trace, limit in traces:
        at = f"{where}step {trace.largest_step}"
        parts = course.loss_parts if quantity == "loss" else course.weights_part
        shown = _limit(limit, quantity in judged)
        rows.append(
            ("", quantity, f"{trace.largest:.1e}", at, _step(trace.first_beyond(0.0)), _step(parts), shown)
        )
    return rows


def _limit(limit: float, judged: bool) -> str:
    return f"{limit:.0e}" if judged else ""


def _step(step: int | None) -> str:
    return "never" if step is None else str(step)


def _accuracy_table(result: Parity | MixedParity) -> str:
    first, second = result.sides
    header = ("test accuracy", "seeds", "epochs", first, second, "difference", "90 % interval", "needs", "")
    rows = []
    for accuracy in result.accuracies:
        verdict = accuracy.verdict
        low, high = verdict.interval
        colour = "green" if verdict.verdict == "equivalent" else "red"
        rows.append(
            (
                "" if accuracy.masks == "none" else f"{accuracy.masks} masks",
                str(len(accuracy.first)),
                str(accuracy.epochs),
                *(f"{sum(side) / len(side):.4f}" for side in (accuracy.first, accuracy.second)),
                f"{verdict.mean:+.3f} +- {verdict.deviation:.3f}",
                f"{low:+.3f} to {high:+.3f}",
                str(verdict.seeds_needed),
                terminal.styled(verdict.verdict, colour),
            )
        )
    margin = result.accuracies[0].verdict.margin
    return (
        f"{terminal.table(header, rows)}\n\n"
        f"difference: {second} - {first} in percentage points, mean and standard deviation over seeds. "
        f"equivalent:\nits interval lies within +-{margin:g}. needs: the seeds that show this with a power "
        "of 0.9 at this deviation"
    )
