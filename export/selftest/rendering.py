"""A mutation score as text, from what `Score.to_dict` gives and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo import terminal

Data = Mapping[str, Any]
STATES = ("caught", "missed", "crashed", "equivalent")


def terminal_lines(score: Data) -> str:
    """The table of faults, the totals, what went wrong, and the verdict."""
    header, rows = _table(score)
    lines = [terminal.table(header, rows), "", *_totals(score), ""]
    lines += [f"{terminal.styled('wrong', 'red')}: {sentence}" for sentence in wrong(score)]
    word, colour = ("PASSED", "green") if score["passed"] else ("FAILED", "red")
    lines.append(f"{terminal.styled(word, colour)} {_share(score['caught'], _counted(score))} caught")
    return "\n".join(lines)


def markdown(score: Data) -> str:
    """The same table and totals as Markdown."""
    header, rows = _table(score)
    lines = [_row(header), _row(["---"] + ["---:"] * (len(header) - 1)), *map(_row, rows), ""]
    lines += [f"- {sentence}" for sentence in (*_totals(score), *wrong(score))]
    return "\n".join(lines) + "\n"


def wrong(score: Data) -> list[str]:
    """What keeps a score from being perfect, a sentence each."""
    found = []
    for result in score["results"]:
        what = f"{result['model']}, {result['fault']} in {', '.join(result['culprits'])} ({result['place']})"
        if result["state"] == "missed":
            found.append(f"missed: {what}")
        elif result["state"] == "caught" and not result["located"]:
            blamed = ", ".join(str(path) for path in result["blamed"]) or "no layer"
            found.append(f"blamed on {blamed}: {what}")
        elif result["state"] == "caught" and not result["sided"]:
            found.append(f"laid to {', '.join(result['suspected']) or 'nobody'}: {what}")
    if not score["caught"] and not score["missed"]:
        found.append("nothing was tested: no mutant computes something else")
    found += [f"accused though honest: {name}" for name in score["false_alarms"]]
    if score["honest"]:
        found += [f"accused though honest: {alarm}" for alarm in score["honest"]["alarms"]]
    return found


def _counted(score: Data) -> int:
    return int(score["caught"] + score["missed"])


def _table(score: Data) -> tuple[list[str], list[list[str]]]:
    comparators = list(score["comparators"])
    header = ["fault", "mutants", "caught", "located", "side", *comparators]
    rows = []
    for row in (*score["table"], {"fault": "all", **score}):
        numeric = row["caught"] + row["missed"]
        if not numeric:
            outcome = ", ".join(f"{row[state]} {state}" for state in STATES if row[state])
            rows.append([row["fault"], "0", outcome, *[""] * (len(header) - 3)])
            continue
        counts = [row["caught"], row["located"], row["sided"], *row["comparators"].values()]
        rows.append([row["fault"], str(numeric), *map(str, counts)])
    return header, rows


def _totals(score: Data) -> list[str]:
    counted, caught = _counted(score), score["caught"]
    backends = " and ".join(score["backends"]) or "no backend"
    lines = [
        f"{score['mutants']} mutants of {len(score['models'])} models by {score['faults']} faults, with "
        f"{backends}: {_share(caught, counted)} caught, {_share(score['located'], caught)} at the right "
        f"layer, {_share(score['sided'], caught)} on the right side",
        f"{score['crashed']} crashed or gave another shape, which anybody notices; "
        f"{score['equivalent']} compute the same in float64 and do not count",
        "comparators: how many they would have caught",
    ]
    smallest, honest = score["smallest_caught"], score["honest"]
    if smallest and smallest["max_ratio"]:
        lines.append(
            f"smallest caught: {smallest['max_ratio']:.3g} times its limit ({smallest['fault']}, "
            f"{smallest['model']} {', '.join(smallest['culprits'])})"
        )
    if honest:
        text = (
            f"{honest['cases']} honest cases ({honest['trained']} trained), {honest['witnesses']} witnesses: "
            f"{len(honest['alarms'])} accused"
        )
        if honest["worst_ratio"]:
            text += f", at most {honest['worst_ratio']:.2f} of the limit"
            if smallest and smallest["max_ratio"]:
                text += f": a margin of {smallest['max_ratio'] / honest['worst_ratio']:.0f}x to the smallest"
        lines.append(text)
        lines += [f"crashed: {crash}" for crash in honest["crashes"]]
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part / whole:.1f} %)" if whole else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
