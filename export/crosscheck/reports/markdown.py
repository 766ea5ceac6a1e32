"""Verifications as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from export.crosscheck.reports.terminal import columns_of
from export.crosscheck.reports.words import (
    Data,
    checks,
    conclusions,
    header_lines,
    last_line,
    plain,
    repeat_command,
    status,
)


def markdown(reports: Sequence[Data]) -> str:
    """A page for people: a section for each model with a table of witnesses, and what failed."""
    failed = sum(not report["passed"] for report in reports)
    verdict = f"FAILED {failed} of {len(reports)}" if failed else f"PASSED {len(reports)} of {len(reports)}"
    return "\n".join([f"# Verification: {verdict}\n", *map(_section, reports)])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    special = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#|~&!@$"})
    return plain(text).translate(special).replace("://", "\\://")


def _section(report: Data) -> str:
    word, count = last_line(report)
    lines = [f"## {_escaped(report['model'])}: {word} {count}\n"]
    lines.append(f"- parameters: {report['parameters']:,}")
    lines += [f"- {name}: {_escaped(text)}" for name, text in (*header_lines(report), *conclusions(report))]
    if report["command"]:
        lines.append(f"- command: {_code(report['command'])}")
    lines.append("\n| witness | verdict | difference | flips | layers | batches | direct | seconds |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for witness in report["witnesses"]:
        cells = columns_of(witness, report) or [checks(witness)[0].detail]
        cells = ["", "", *cells] if report["layers"] and len(cells) == 1 and "layers" in witness else cells
        padded = [*cells, *[""] * (5 - len(cells))]
        seconds = f"{witness['seconds']:.1f}" if "seconds" in witness else ""
        row = [_escaped(cell) for cell in (witness["witness"], status(witness), *padded, seconds)]
        lines.append(f"| {' | '.join(row)} |")
    for witness in report["witnesses"]:
        if not witness["passed"]:
            lines += _failure(witness)
    return "\n".join([*lines, ""])


def _failure(witness: Data) -> list[str]:
    lines = [f"\n### {_escaped(witness['witness'])}: {status(witness)}\n"]
    for check in checks(witness):
        if check.status != "ok":
            mark = " (first divergence)" if check.name == f"layer {witness.get('culprit')}" else ""
            lines.append(f"- {_escaped(check.name)}{mark}: {_escaped(check.detail)}")
    lines += [f"- {_escaped(note)}" for note in witness.get("notes", ())]
    if witness.get("diagnosis"):
        lines.append(f"- {_escaped(witness['diagnosis'])}")
    if "again" in witness:
        lines.append(f"- again: {_code(witness['again'])}")
    return lines


def _code(words: Sequence[str]) -> str:
    """A command as code, in more backticks than it holds."""
    text = repeat_command(words)
    fence = "`"
    while fence in text:
        fence += "`"
    padding = " " if len(fence) > 1 else ""
    return f"{fence}{padding}{text}{padding}{fence}"
