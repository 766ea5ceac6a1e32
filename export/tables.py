"""Reports as lines of a terminal: the closing table of a build, the verdicts of a verification."""

from __future__ import annotations

from collections.abc import Sequence

from export.build import Outcome
from export.crosscheck import Report, Verdict
from zoo import terminal


def build_table(outcomes: Sequence[Outcome]) -> str:
    """One row per run: accuracies, agreement, time and size; below it what failed, and a verdict."""
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
    for report in reports:
        for warning in report["warnings"]:
            lines.append(f"warning: {report['model']} {report['backend']}: {warning}")
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
    verdict = terminal.styled("PASSED", "green") if passed == total else terminal.styled("FAILED", "red")
    lines.append(f"{verdict} {passed} of {total}")
    return "\n".join(lines)


def verify_lines(report: Report, origin: str) -> str:
    """A line per witness, the layers where one disagrees, and the verdict.

    origin: where the weights come from.
    """
    lines = [
        f"{report.model}  {report.parameters:,} parameters  weights: {origin}  "
        f"judge: reference in float64  inputs: {report.images:,} images"
    ]
    width = max(len(verdict.witness) for verdict in report.verdicts)
    for verdict in report.verdicts:
        lines += _verdict_lines(verdict, width)
    failed = sum(not verdict.passed for verdict in report.verdicts)
    total = sum(not verdict.skipped for verdict in report.verdicts)
    word = terminal.styled("FAILED", "red") if failed else terminal.styled("PASSED", "green")
    lines.append(f"{word} {failed or total} of {total}")
    return "\n".join(lines)


def _verdict_lines(verdict: Verdict, width: int) -> list[str]:
    name = f"  {verdict.witness:{width}}"
    if verdict.skipped:
        return [f"{name}  skipped: {verdict.skipped}"]
    if verdict.error or verdict.output is None:
        return [f"{name}  {terminal.styled('FAIL', 'red')}  {verdict.error}"]
    word = terminal.styled("ok  ", "green") if verdict.passed else terminal.styled("FAIL", "red")
    text = f"{name}  {word}  {verdict.output}"
    if verdict.output.passed and verdict.output.ratio > 0:
        text += f" ({1 / verdict.output.ratio:.0f}x below)"
    if verdict.logits:
        text += f"  logits {verdict.logits.ratio:.2f} of 1"
    if verdict.decisions:
        text += f"  flips {len(verdict.decisions.flips)}"
        if not verdict.decisions.open:
            text += ", no decision can differ"
        else:
            text += f", open: {', '.join(map(str, verdict.decisions.open[:5]))}"
    if verdict.identical is not None:
        text += f"  {'bit-identical to direct' if verdict.identical else 'not bit-identical to direct'}"
    lines = [text]
    if verdict.culprit:
        for path, layer in verdict.layers.items():
            mark = "  <- first divergence, its inputs match" if path == verdict.culprit else ""
            lines.append(f"     {path} {layer}{mark}")
            if mark:
                break
    return lines
