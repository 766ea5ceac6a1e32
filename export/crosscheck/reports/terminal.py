"""A verification as text: for a terminal, as Markdown, as JUnit's XML, as JSON.

Everything here is rendered from what `crosscheck.Report.to_dict` gives (docs/report.schema.json) and from
nothing else, so the forms can disagree neither with the JSON that is kept nor with each other: which
checks a witness met, and how they ended, is said once, by `checks`. Names and messages may come from a
file that somebody sent: control characters are shown escaped everywhere, markup where there is any.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from export.crosscheck.reports.words import (
    FOLDED,
    Data,
    batched,
    checks,
    compared,
    conclusions,
    deciding,
    difference,
    header_lines,
    last_line,
    outcome,
    parts_of,
    plain,
    repeat_command,
    shown,
    status,
    within,
    worst_share,
)
from export.crosscheck.verdict import PLAIN
from zoo import terminal

WIDTH = 100  # of a line of layers
COLOURS = {"ok": "green", "FAIL": "red", "crashed": "red", "skipped": "yellow"}


# What a comparison says, in words. Figures that are null are of a tensor that cannot be compared.


# For a terminal.


def terminal_lines(report: Data) -> str:
    """What a person reads: a line for each witness, more where one fails, and the conclusions."""
    header = [f"{name}: {text}" for name, text in header_lines(report)]
    lines = ["  ".join([plain(report["model"]), f"{report['parameters']:,} parameters", *header])]
    rows = {witness["witness"]: columns_of(witness, report) for witness in report["witnesses"]}
    widths = [max(map(len, column)) for column in zip(*(row for row in rows.values() if row), strict=True)]
    names = _short(report["witnesses"])
    width = max(map(len, names))
    before = None
    for name, witness in zip(names, report["witnesses"], strict=True):
        word = status(witness)
        row = rows[witness["witness"]] or [checks(witness)[0].detail]
        padded = [f"{text:{size}}" for text, size in zip(row, widths or [0] * len(row), strict=False)]
        shown = terminal.styled(f"{word:7}", COLOURS[word])
        lines.append(f"  {name:{width}}  {shown}  {'  '.join(padded)}".rstrip())
        lines += [f"     {line}" for line in _details(witness, report, before)]
        before = witness
    lines += [f"{name}: {text}" for name, text in conclusions(report)]
    word, count = last_line(report)
    return "\n".join([*lines, f"{terminal.styled(word, 'green' if report['passed'] else 'red')} {count}"])


def _short(witnesses: Sequence[Data]) -> list[str]:
    """Names as they are printed: a graph that is run once more, as it is written, stands below itself."""
    twins = [False, *(_is_twin(after, before) for before, after in pairwise(witnesses))]
    names = [plain(witness["witness"]) for witness in witnesses]
    return [f"  {PLAIN[2:]}" if twin else name for name, twin in zip(names, twins, strict=True)]


def columns_of(witness: Data, report: Data) -> list[str]:
    """What a line says of a witness that was judged, part by part."""
    if status(witness) in ("skipped", "crashed"):
        return []
    if report["layers"]:
        return [worst_share(witness)]
    decisions = witness["decisions"]
    of = "" if witness["images"] == report["images"] else f" of {witness['images']:,}"
    forbidden = ", not by rounding" if decisions and not decisions["passed"] else ""
    identical = {True: "bit-identical to direct", False: "not bit-identical to direct", None: ""}
    output = witness["output"]
    return [
        _difference_or_problem(output),
        f"flips {decisions['flips']:,}{of}{forbidden}" if decisions else "",
        worst_share(witness),
        f"batches {batched(witness['batches'])}"
        if witness["batches"] and witness["batches"]["passed"]
        else "",
        identical[witness["identical_to_direct"]],
    ]


def _details(witness: Data, report: Data, before: Data | None) -> list[str]:
    """The lines below a witness: what failed, up to the culprit, and how to see it again."""
    lines = []
    if report["layers"] and status(witness) in ("ok", "FAIL"):
        lines += _looked_at(witness, report["layers"])
    folded = [plain(path) for path, layer in witness.get("layers", {}).items() if layer["folded"]]
    if folded:
        lines.append(f"{', '.join(folded)}: {FOLDED}")
    if not report["layers"] and status(witness) == "FAIL":
        culprit = witness["culprit"]
        if before and culprit and culprit == before.get("culprit") and _is_twin(witness, before):
            return [f"{plain(culprit)} as above: {_difference_or_problem(witness['layers'][culprit])}"]
        if culprit:
            lines += _way_to(witness)
            lines += [plain(sentence) for sentence in witness["untrue"]]
        else:
            lines += [f"{check.name}: {check.detail}" for check in checks(witness) if check.status == "FAIL"]
    lines += [plain(note) for note in witness.get("notes", ())]
    if witness.get("diagnosis"):
        lines.append(plain(witness["diagnosis"]))
    if "again" in witness and not (report["layers"] and witness["again"] == report["command"]):
        lines.append(f"again: {repeat_command(witness['again'])}")
    return lines


def _is_twin(witness: Data, before: Data) -> bool:
    """Whether a witness is the one before it, as the graph is written."""
    return bool(witness["witness"] == f"{before['witness']}{PLAIN}")


def _difference_or_problem(part: Data) -> str:
    return plain(part["problem"]) if "problem" in part else difference(part)


def _way_to(witness: Data) -> list[str]:
    """The layers up to the culprit, and whether it fails on its own input and alone."""
    lines, width, before = [""], 0, True
    for path, layer in witness["layers"].items():
        difference, word = layer["max_abs_diff"], outcome(layer)
        text = f"{plain(path)} {'not comparable' if difference is None else shown(difference)} "
        if width and width + len(text) > WIDTH:
            lines, width = [*lines, ""], 0
        lines[-1] += f"{' | ' if width else ''}{text}{terminal.styled(word, COLOURS[word])}"
        width += len(f" | {text}{word}")
        if path == witness["culprit"]:
            break
        before = before and layer["passed"]
    culprit = witness["layers"][witness["culprit"]]
    lines[-1] += f"  <- first divergence, {_blame(culprit, before)}"
    return lines + [f"{name}: {compared(part)}" for name, part in parts_of(culprit)]


def _blame(layer: Data, before: bool) -> str:
    return "its inputs match" if before else "by itself"


def _looked_at(witness: Data, layers: Sequence[str]) -> list[str]:
    """Everything that was compared of some layers."""
    lines = []
    for path, layer in witness["layers"].items():
        counting = [name for name, _ in deciding(layer)]
        for name, part in parts_of(layer):
            word = "ok" if within(part) or (layer["passed"] and name not in counting) else "FAIL"
            shown = terminal.styled(f"{word:4}", COLOURS[word])
            lines.append(f"{plain(path)} {shown} {name}: {compared(part)}")
    hidden = [plain(path) for path in layers if path not in witness["layers"]]
    return lines + [f"{path} is not shown by this graph" for path in hidden]


# As Markdown.


# As JUnit's XML.


# Files.
