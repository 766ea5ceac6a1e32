"""A mutation score as text, from what `Score.to_dict` gives and nothing else."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from zoo import terminal

Data = Mapping[str, Any]
WIDTH = 80  # columns of a terminal


def terminal_lines(score: Data) -> str:
    """The tables of faults and of margins, the totals, what went wrong, and the verdict."""
    tables = [_table(score, whole=False)] if score["table"] else []
    if score["kinds"]:
        tables.append(_margins(score, whole=False))
    lines = [line for table in tables for line in (terminal.table(*table), "")]
    lines += [text for sentence in _totals(score) for text in textwrap.wrap(sentence, WIDTH)]
    lines += ["", *(f"{terminal.styled('wrong', 'red')}: {sentence}" for sentence in wrong(score))]
    word, colour = ("PASSED", "green") if score["passed"] else ("FAILED", "red")
    lines.append(f"{terminal.styled(word, colour)} {_outcome(score)}")
    return "\n".join(lines)


def _outcome(score: Data) -> str:
    if not score["table"] and score["honest"]:
        return f"{len(score['honest']['alarms'])} of {score['honest']['witnesses']} honest witnesses accused"
    return f"{_share(score['caught'], _counted(score))} caught"


def markdown(score: Data) -> str:
    """The same tables and totals as Markdown, with the comparators and with whose each margin is."""
    lines = []
    for header, rows in (_table(score, whole=True), _margins(score, whole=True)):
        lines += [_row(header), _row(["---"] + ["---:"] * (len(header) - 1)), *map(_row, rows), ""]
    lines += [f"- {sentence}" for sentence in (*_totals(score), *wrong(score))]
    return "\n".join(lines) + "\n"


def wrong(score: Data) -> list[str]:
    """What keeps a score from being perfect, a sentence each."""
    found = []
    for result in score["results"]:
        where = ", ".join(result["culprits"]) or "no layer"
        what = f"{result['model']}, {result['fault']} in {where} ({result['place']})"
        if result["state"] == "missed":
            found.append(f"missed: {what}; {_effect(result['effect'])}")
        elif result["state"] == "caught" and not result["located"]:
            blamed = ", ".join(str(path) for path in result["blamed"]) or "no layer"
            found.append(f"blamed on {blamed}: {what}")
        elif result["state"] == "caught" and not result["sided"]:
            found.append(f"laid to {', '.join(result['suspected']) or 'nobody'}: {what}")
    if score["table"] and not score["caught"] and not score["missed"]:
        found.append("nothing was tested: no mutant computes something else")
    found += [f"accused though honest: {name}" for name in score["false_alarms"]]
    if score["honest"]:
        found += [f"accused though honest: {alarm}" for alarm in score["honest"]["alarms"]]
    return found


def _effect(effect: float | None) -> str:
    """What a mutant changes in float64, in words."""
    much = "to NaN or another shape" if effect is None else f"by {effect:.1e} of the largest"
    return f"in float64 it changes the output {much}"


def _counted(score: Data) -> int:
    return int(score["caught"] + score["missed"])


def _table(score: Data, whole: bool) -> tuple[list[str], list[list[str]]]:
    """One row per fault, and one for all. whole: with how many each comparator would have caught, and with
    those that crashed or compute the same apart."""
    names = list(score["comparators"]) if whole else []
    header = ["fault", "mutants" if whole else "all", "caught", "layer", "side"]
    header += ["hidden", "crashed", "same", *names] if whole else ["other"]
    rows = []
    for row in (*score["table"], {"fault": "all", **score}):
        others = [row["hidden"], row["crashed"], row["equivalent"]]
        counts = [_counted(row), row["caught"], row["located"], row["sided"]]
        counts += [*others, *(row["comparators"][name] for name in names)] if whole else [sum(others)]
        rows.append([row["fault"], *map(str, counts)])
    return header, rows


def _margins(score: Data, whole: bool) -> tuple[list[str], list[list[str]]]:
    """One row per kind of layer. whole: also whose the honest ratio is, and the fault in full."""
    header = ["layer", "honest", "caught", "smallest fault caught", *(["honest witness"] if whole else [])]
    rows = []
    for kind in score["kinds"]:
        ratios = [_ratio(kind["honest_ratio"], kind["honest_of"]), _ratio(kind["caught_ratio"], "")]
        fault = kind["caught_by"] if whole else kind["caught_by"].partition(",")[0]
        rows.append([kind["kind"], *ratios, fault, *([kind["honest_of"]] if whole else [])])
    return header, rows


def _ratio(ratio: float | None, whose: str) -> str:
    """A ratio in few digits; "" for none, "infinite" for one that is."""
    if ratio is None:
        return "infinite" if whose else ""
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:,.0f}" if ratio < 1e5 else f"{ratio:.0e}"


def _totals(score: Data) -> list[str]:
    counted, caught = _counted(score), score["caught"]
    backends = " and ".join(score["backends"]) or "no backend"
    lines = []
    if score["table"]:
        lines += [
            f"{score['mutants']} mutants of {len(score['models'])} models by {score['faults']} faults, with "
            f"{backends}: {_share(caught, counted)} caught, {_share(score['located'], caught)} at the right "
            f"layer, {_share(score['sided'], caught)} on the right side",
            f"{score['hidden']} were not caught and are hidden by rounding: in float64 they change less than "
            "honest float32 witnesses differ",
            f"{score['crashed']} crashed or gave another shape, which anybody notices; "
            f"{score['equivalent']} compute the same in float64 and do not count",
            "comparators, and how many they would have caught: "
            + ", ".join(f"{name} {count}" for name, count in score["comparators"].items()),
        ]
    smallest, honest = score["smallest_caught"], score["honest"]
    if smallest and smallest["max_ratio"]:
        lines.append(
            f"smallest caught: {smallest['max_ratio']:.3g} times its limit ({smallest['fault']}, "
            f"{smallest['model']} {', '.join(smallest['culprits'])})"
        )
    for tally in honest["generators"] if honest else []:
        trained = f" ({tally['trained']} trained here)" if tally["trained"] else ""
        lines.append(
            f"honest, {tally['generator']}: {tally['cases']} cases{trained}, {tally['witnesses']} witnesses, "
            f"{len(tally['alarms'])} accused, at most {_ratio(tally['worst_ratio'], 'whose')} of the limit "
            f"({tally['worst_of']})"
        )
        lines += [f"crashed: {crash}" for crash in tally["crashes"]]
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part / whole:.1f} %)" if whole else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
