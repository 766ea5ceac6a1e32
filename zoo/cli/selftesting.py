"""Whether the cross-check is to be trusted: selftest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from zoo import terminal
from zoo.cli.options import (
    backend_option,
    check_packages,
    chosen_backends,
    complete_model,
    documented,
    json_option,
    model_of,
    next_commands,
    print_json,
)
from zoo.errors import InvalidInput, nearest


@click.command(
    epilog="""\b
Examples:
  zoo selftest
  zoo selftest cnn-padded --backend torch
  zoo selftest --honest 3000 --report score.md
  zoo selftest --no-faults --generator hard --seed 17 --honest 1"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@backend_option
@click.option(
    "--honest",
    type=int,
    default=100,
    show_default=True,
    metavar="N",
    help="Also hear the honest witnesses of N cases, of each generator in turn; none may be accused.",
)
@click.option(
    "--generator",
    "generators",
    multiple=True,
    metavar="NAME",
    help="Of honest cases: random, hard or trained; may be repeated [default: all three].",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of each generator's first case.")
@click.option("--no-faults", is_flag=True, help="Plant nothing: hear honest cases only.")
@click.option(
    "--report",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the score as well: .json or .md; may be repeated.",
)
@json_option
def selftest(
    models: Sequence[str],
    backend_names: Sequence[str],
    honest: int,
    generators: Sequence[str],
    seed: int,
    no_faults: bool,
    files: Sequence[Path],
    as_json: bool,
) -> None:
    """Plant known faults in MODELs, and see whether the cross-check finds every one.

    Without MODEL: in the five documented CNNs and in a small model with every kind of layer. Each fault
    goes, one at a time, into the ONNX file, into frameworks' own exports, into each backend and into the
    reference. Shown are how many are caught, how many at the right layer and on the right side, and what
    simpler comparisons would have caught; then how near honest witnesses come to a limit,
    and which is the smallest fault caught, by kind of layer. Exits 1 if one is missed that changes more
    than rounding does, if fewer than 95 % are located, or if an honest witness is accused.
    """
    from zoo import runs

    for file in files:
        if file.suffix not in (".json", ".md"):
            raise InvalidInput("a score is written as .json or .md", file, "choose one of the two")
        if not file.absolute().parent.is_dir():
            raise InvalidInput("no such folder", file.parent, "make it first")
    if honest < 0:
        raise InvalidInput(f"{honest} cases", "--honest", "give 0 or more")
    if not 0 <= seed < 2**63:
        raise InvalidInput(f"seed {seed}", "--seed", "give an integer from 0 to 2^63 - 1")
    if no_faults and models:
        raise InvalidInput("nothing is planted, so no model is asked for", "--no-faults", "leave out one")
    specs = [] if no_faults else [model_of(model) for model in models or documented()]
    check_packages()
    import json

    from export import selftest as testing
    from export.selftest import rendering

    for name in generators:
        if name not in testing.GENERATORS:
            raise InvalidInput(
                f"unknown generator {name!r}", "--generator", nearest(name, testing.GENERATORS)
            )
    chosen = [name for name in chosen_backends(backend_names, needed=False) if name != "reference"]
    with terminal.counter("case") as say:
        cases = [(model, testing.weights(model)) for model in specs]
        if not models and not no_faults:
            cases.append(testing.exemplar())
        score = testing.score(cases, chosen, say)
        if honest:
            score.honest = testing.sweep(honest, chosen, seed, say, generators or tuple(testing.GENERATORS))
    data = score.to_dict()
    if as_json:
        print_json(data)
    else:
        click.echo(rendering.terminal_lines(data))
        if specs:
            next_commands(["zoo", "verify", models[0] if models else specs[0].name])
    for file in files:
        text = rendering.markdown(data) if file.suffix == ".md" else json.dumps(data, indent=1) + "\n"
        runs.write_atomically(file, text.encode())
    if not data["passed"]:
        sys.exit(1)
