"""The closing table of a build, as lines of a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from export.runs.build import Outcome
from zoo import terminal


def build_table(outcomes: Sequence[Outcome]) -> str:
    """One row per run: accuracies, agreement, time and size; below it what failed, and a verdict.

    The verdict names the data, and everything that a run warns of.
    """
    header = (
        "model", "backend", "test acc.", "ONNX acc.", "max|d|", "limit", "flips", "train s", "ONNX kB", "",
    )  # fmt: skip
    rows = []
    for outcome in outcomes:
        if outcome.error is not None or outcome.report is None:
            failed = terminal.styled("FAILED", "red")
            rows.append((outcome.model, outcome.backend, *[""] * 7, failed))
            continue
        report, onnx = outcome.report, outcome.report["onnx"]
        rows.append(
            (
                outcome.model,
                outcome.backend,
                f"{report['accuracy']['test']:.4f}",
                f"{onnx['accuracy']:.4f}",
                f"{onnx['max_abs_diff']:.1e}",
                f"{onnx['limit']:.1e}",
                str(onnx["flips"]),
                f"{report['seconds']['train']:.1f}",
                f"{onnx['bytes'] / 1000:,.0f}",
                terminal.styled("up to date" if outcome.up_to_date else "ok", "green"),
            )
        )
    lines = [terminal.table(header, rows)]
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    failed_runs = [outcome for outcome in outcomes if outcome.error is not None]
    lines += [f"{outcome.model} {outcome.backend}: {outcome.error}" for outcome in failed_runs]
    if reports:
        data = reports[0]["data"]
        lines.append(
            f"\ntested on {data['test']:,} images of {data['name']}; max|d|: largest difference between "
            "onnxruntime and the float64 reference;\nflips: decisions that differ from the reference's"
        )
        multiples = {r["model"]: r["epochs"] for r in reports if r["epochs"] != r["documented_epochs"]}
        if multiples:
            listed = ", ".join(f"{model} {epochs}" for model, epochs in multiples.items())
            lines.append(f"epochs other than documented: {listed}")
    passed, total = len(outcomes) - len(failed_runs), len(outcomes)
    told = _told(reports)
    word, colour = ("PASSED", "green") if passed == total else ("FAILED", "red")
    if passed == total and any(report["warnings"] for report in reports):
        colour = "yellow"
    lines.append(f"{terminal.styled(word, colour)} {passed} of {total}{': ' if told else ''}{told}")
    return "\n".join(lines)


def _told(reports: Sequence[Mapping[str, Any]]) -> str:
    """What weights were trained and measured on, and every warning, with its runs unless it is everyone's."""
    warned: dict[str, list[str]] = {}
    for report in reports:
        for warning in report["warnings"]:
            warned.setdefault(warning, []).append(f"{report['model']} {report['backend']}")
    parts = [
        warning if len(runs) == len(reports) else f"{warning} ({', '.join(runs)})"
        for warning, runs in sorted(warned.items(), key=lambda each: -len(each[1]))
    ]
    same = all(report["data"]["sha256"] == _trained_on(report)["sha256"] for report in reports)
    if reports and same:  # otherwise a warning names both
        parts.insert(0, f"trained and tested on {reports[0]['data']['name']}")
    return "; ".join(parts)


def _trained_on(report: Mapping[str, Any]) -> Mapping[str, Any]:
    data: Mapping[str, Any] = report.get("pretrained", report)["data"]
    return data
