"""An exported file where it is deployed: doctor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoo import terminal
from zoo.cli.options import check_packages, json_option, next_commands, print_json

if TYPE_CHECKING:
    from export.inference.doctor import Report


@click.command(
    epilog="""\b
Examples:
  zoo doctor digits.onnx
  zoo doctor runs/*/*/model.onnx
  zoo doctor digits.onnx --json"""
)
@click.argument("files", nargs=-1, required=True, metavar="FILE.onnx...", type=click.Path(path_type=Path))
@json_option
def doctor(files: Sequence[Path], as_json: bool) -> None:
    """Check each FILE.onnx by what it carries: hashes, labels, spec, and test vectors with outputs.

    Needs NumPy and onnxruntime alone, no framework and no data. The hash is compared before
    onnxruntime sees the file; whatever was altered is named, and the exit code is 4. Then onnxruntime
    computes the test vectors, optimised and not, in batches of several sizes; if it gives something
    else than the float64 reference did at export, the exit code is 1. A file in int8 or float16 is
    held to what it gave itself at export.
    """
    check_packages()
    from export.inference import doctor as examining

    reports = []
    for file in files:
        report = examining.examine(file)
        reports.append(report)
        if not as_json:
            click.echo(_lines(report))
    failed = [report for report in reports if not report.passed]
    if as_json:
        print_json([report.to_dict() for report in reports])
    elif len(reports) > 1:
        click.echo(_verdict(not failed, len(failed) or len(reports), len(reports), " files"))
    for report in failed:
        terminal.say(f"{terminal.styled('error', 'red', sys.stderr)}: {report.error}")
    sound = next((report for report in reports if report.passed), None)
    if sound and not as_json:
        judged = [["zoo", "verify", sound.file]] if sound.precision == "float32" else []
        next_commands(*judged, ["zoo", "show", sound.file])
    if failed and failed[0].error:
        sys.exit(failed[0].error.code)


def _lines(report: Report) -> str:
    """The file, a ticked line for each check, and the verdict."""
    shown = report.file.encode(errors="backslashreplace").decode()
    lines = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)]
    width = max((len(check.name) for check in report.checks), default=0)
    for check in report.checks:
        tick = terminal.styled("ok  ", "green") if check.passed else terminal.styled("FAIL", "red")
        detail = "".join(c if c.isprintable() else repr(c)[1:-1] for c in check.detail)
        lines.append(f"  {tick}  {check.name:{width}}  {detail}")
    failed = sum(not check.passed for check in report.checks)
    lines.append(_verdict(report.passed, failed or len(report.checks), len(report.checks)))
    return "\n".join(lines)


def _verdict(passed: bool, count: int, total: int, what: str = "") -> str:
    word = terminal.styled("PASSED", "green") if passed else terminal.styled("FAILED", "red")
    return f"{word} {count} of {total}{what}"
