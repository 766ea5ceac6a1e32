"""Verifications as JUnit's XML: a suite for each model, a case for each check."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from export.crosscheck.reports.words import (
    Check,
    Data,
    checks,
    conclusions,
    header_lines,
    plain,
    repeat_command,
)


def junit(reports: Sequence[Data]) -> str:
    """What continuous integration reads: a suite for each model, a case for each check of each witness."""
    root = ElementTree.Element("testsuites", name="zoo verify")
    for report in reports:
        suite = ElementTree.SubElement(root, "testsuite", name=plain(report["model"]))
        properties = ElementTree.SubElement(suite, "properties")
        for name, text in (
            *header_lines(report),
            *conclusions(report),
            ("command", repeat_command(report["command"])),
        ):
            ElementTree.SubElement(properties, "property", name=name, value=text)
        for witness in report["witnesses"]:
            _cases(suite, report, witness)
        _count(suite)
        suite.set("time", f"{report['seconds']:.3f}")
    _count(root)
    root.set("time", f"{sum(report['seconds'] for report in reports):.3f}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _cases(suite: ElementTree.Element, report: Data, witness: Data) -> None:
    """A case for each check; the witness's time stands at the first."""
    tags = {"FAIL": "failure", "crashed": "error", "skipped": "skipped"}
    seconds = witness.get("seconds", 0.0)
    for check in checks(witness):
        names = {"classname": f"{plain(report['model'])}.{plain(witness['witness'])}", "name": check.name}
        case = ElementTree.SubElement(suite, "testcase", names, time=f"{seconds:.3f}")
        seconds = 0.0
        if check.status == "ok":
            continue
        found = ElementTree.SubElement(case, tags[check.status], message=check.detail)
        if check.status != "skipped":
            found.set("type", "disagreement" if check.status == "FAIL" else "crash")
            found.text = "\n".join([check.detail, *_hints(witness, check)])


def _hints(witness: Data, check: Check) -> list[str]:
    lines = []
    if check.name == f"layer {witness.get('culprit')}":
        lines.append("first divergence")
        lines += [plain(witness["diagnosis"])] if witness["diagnosis"] else []
    return lines + ([f"again: {repeat_command(witness['again'])}"] if "again" in witness else [])


def _count(suite: ElementTree.Element) -> None:
    """Count the cases below an element, in its attributes."""
    suite.set("tests", str(len(list(suite.iter("testcase")))))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(list(suite.iter(tag)))))
