"""Reports: one JSON under a published schema, and every other form says what it says."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from onnx import ModelProto

import export
import zoo
from export import crosscheck
from export.crosscheck import Verdict, reports, verification
from export.crosscheck.reports.words import plain
from export.inference import doctor
from export.onnx.file import serialize
from export.onnx.graph import to_layers_onnx, to_onnx
from zoo import cli
from zoo.errors import InvalidInput

TINY = "cnn-padded:out_1=4,out_2=4"
SCHEMA = Path(__file__).parents[2] / "docs/report.schema.json"
COMMAND = ["zoo", "verify", TINY, "--weights", "init", "--data", "digits", "--backend", "torch"]
HOSTILE = "\x1b[31m|<b>&`x`\n# [y](http://z) *w* \ufffe"

Mistake = Callable[[dict[str, np.ndarray]], None]


def _mistaken(real: Callable[..., ModelProto], change: Mistake) -> Callable[..., ModelProto]:
    """An exporter that gets other weights than it should."""

    def exporter(model: zoo.Model, weights: dict[str, np.ndarray]) -> ModelProto:
        weights = dict(weights)
        change(weights)
        return real(model, weights)

    return exporter


def plant(monkeypatch: pytest.MonkeyPatch, change: Mistake) -> None:
    """Give the direct export other weights than it should have."""
    monkeypatch.setattr(verification, "to_onnx", _mistaken(to_onnx, change))
    monkeypatch.setattr(verification, "to_layers_onnx", _mistaken(to_layers_onnx, change))


def flipped(weights: dict[str, np.ndarray]) -> None:
    """A mistake: the second convolution's kernels are flipped."""
    weights["conv2.weight"] = np.ascontiguousarray(weights["conv2.weight"][..., ::-1, ::-1])


@pytest.fixture(scope="module")
def validator():
    """Of one report; a missing jsonschema is an error, for the session should have it."""
    import jsonschema

    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def found(images: np.ndarray) -> dict[str, dict[str, Any]]:
    """Reports of all kinds: of a sound model, of a mistake, of some layers, with witnesses of all fates."""
    model = zoo.get(TINY)
    weights = zoo.init_weights(model)
    given = {name: export.verify(model, weights, [], images) for name in ("honest", "mixed")}
    with pytest.MonkeyPatch.context() as monkeypatch:
        plant(monkeypatch, flipped)
        given["failing"] = export.verify(model, weights, [], images)
        given["layer"] = export.verify(model, weights, [], images, layers=["conv2", "relu2"])
    given["mixed"].verdicts += [
        Verdict("torch", backend="torch", error="the backend died: SIGSEGV"),
        Verdict("onnx native torch", backend="torch", skipped="no exporter"),
        replace(given["failing"].verdict(crosscheck.DIRECT), witness="file.onnx"),
    ]
    nan = Verdict("nan", images=24)
    nan.output = crosscheck.compare(np.full((24, 10), np.nan, np.float32), np.zeros((24, 10)))
    given["mixed"].verdicts.append(nan)
    unlabelled = zoo.Model("edges", (1, 28, 28), model.layers[:2], model.recipe, ())
    given["unlabelled"] = export.verify(unlabelled, zoo.init_weights(unlabelled), [], images)
    for report in given.values():
        report.origin, report.data, report.command = "initial weights, seed 0", "24 images of digits", COMMAND
    return {name: report.to_dict() for name, report in given.items()}


def _hostile(report: dict[str, Any]) -> dict[str, Any]:
    """The report with names and messages that mean something to terminals, Markdown and XML."""
    report = copy.deepcopy(report)
    for key in ("model", "weights", "data"):
        report[key] += HOSTILE
    report["command"] = [*report["command"], HOSTILE]
    for witness in report["witnesses"]:
        witness["witness"] += HOSTILE
        for key in ("error", "skipped", "diagnosis"):
            if key in witness:
                witness[key] += HOSTILE
    return report


REPORTS = ("honest", "failing", "layer", "mixed", "unlabelled")


@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_as_the_schema_says(name: str, found, validator) -> None:
    validator.validate(found[name])
    validator.validate(json.loads(reports.to_json([found[name]]))[0])


def test_what_is_not_finite_is_null(found, validator) -> None:
    report = crosscheck.Report("x", 1, 1, [Verdict("w", crosscheck.Comparison(1.0, 0.0, float("inf")))])
    data = report.to_dict()
    assert data["witnesses"][0]["output"]["max_ratio"] is None
    validator.validate(data)
    assert "not finite" in reports.terminal_lines(data)
    nan = found["mixed"]["witnesses"][-1]
    assert nan["output"]["max_abs_diff"] is None
    assert "240 values are NaN or infinite" in reports.terminal_lines(found["mixed"])
    assert "none makes nan pass" in reports.terminal_lines(found["mixed"])


MUTATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another kind": lambda r: r.update(kind="verity"),
    "no model": lambda r: r.pop("model"),
    "one word more": lambda r: r.update(comment=""),
    "a count below 0": lambda r: r.update(images=-1),
    "a verdict in words": lambda r: r.update(passed="yes"),
    "no witness": lambda r: r.update(witnesses=[]),
    "a witness without verdict": lambda r: r["witnesses"][0].pop("passed"),
    "a crash that passed": lambda r: r["witnesses"].append({"witness": "w", "passed": True, "error": "e"}),
    "a failed witness that is none": lambda r: r["witnesses"].append(
        {"witness": "w", "passed": False, "skipped": "s"}
    ),
    "nothing compared": lambda r: r["witnesses"][0].update(output=None),
    "a failure without its place": lambda r: r["witnesses"][0]["output"].update(passed=False),
    "a problem that passed": lambda r: r["witnesses"][0]["output"].update(problem="shape"),
    "a ratio of 2 that passed": lambda r: r["witnesses"][0]["output"].update(max_ratio=2),
    "an element without a place": lambda r: r["witnesses"][0]["output"].update(got=1.0),
    "forbidden flips that passed": lambda r: r["witnesses"][0]["decisions"].update(forbidden_images=[3]),
    "a layer that is none": lambda r: r["witnesses"][0]["layers"].update(conv1=True),
    "a layer with more": lambda r: r["witnesses"][0]["layers"]["conv1"].update(mean=0.0),
    "batches without sizes": lambda r: r["witnesses"][0]["batches"].pop("sizes"),
    "a command in one string": lambda r: r.update(command="zoo verify"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_another_form_is_refused(mutation: str, found, validator) -> None:
    report = copy.deepcopy(found["honest"])
    assert validator.is_valid(report)
    MUTATIONS[mutation](report)
    assert not validator.is_valid(report)


def _fates(report: dict[str, Any]) -> dict[str, str]:
    """How each witness fared, read from the JSON alone and by hand."""
    return {
        w["witness"]: "skipped" if "skipped" in w else "crashed" if "error" in w else "ok" if w["passed"] else "FAIL"
        for w in report["witnesses"]
    }  # fmt: skip


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("name", REPORTS)
def test_markdown_says_the_same(name: str, hostile: bool, found) -> None:
    report = _hostile(found[name]) if hostile else found[name]
    page = reports.markdown([report])
    assert all(line.isprintable() for line in page.split("\n"))
    table = [line for line in page.splitlines() if line.startswith("| ")][1:]
    cells = [[re.sub(r"\\(.)", r"\1", c) for c in re.split(r"(?<!\\) \| ", row[2:-2])] for row in table]
    assert {len(row) for row in cells} == {8}
    assert {row[0]: row[1] for row in cells} == {
        plain(witness): fate for witness, fate in _fates(report).items()
    }
    word = "PASSED" if report["passed"] else "FAILED"
    assert page.startswith(f"# Verification: {word} 1 of 1\n")
    assert page.count("\n### ") == sum(not witness["passed"] for witness in report["witnesses"])
    assert page.count("\n# ") == 0


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("name", REPORTS)
def test_junit_says_the_same(name: str, hostile: bool, found) -> None:
    report = _hostile(found[name]) if hostile else found[name]
    root = ElementTree.fromstring(reports.junit([report]).encode())
    (suite,) = root
    assert suite.get("name") == plain(report["model"])
    fates: dict[str, str] = {}
    tags = {"failure": "FAIL", "error": "crashed", "skipped": "skipped"}
    seconds = 0.0
    for case in suite.iter("testcase"):
        seconds += float(case.get("time", "nan"))
        fate = next((tags[child.tag] for child in case), "ok")
        assert fate == "ok" or case[0].get("message")
        before = fates.setdefault(case.get("classname", ""), fate)
        fates[case.get("classname", "")] = fate if before == "ok" else before
    assert fates == {plain(f"{report['model']}.{w}"): fate for w, fate in _fates(report).items()}
    for element in (root, suite):
        counted = {tag: len(list(suite.iter(tag))) for tag in tags}
        assert element.get("tests") == str(len(list(suite.iter("testcase"))))
        assert element.get("failures") == str(counted["failure"])
        assert element.get("errors") == str(counted["error"])
        assert element.get("skipped") == str(counted["skipped"])
    of_witnesses = sum(witness.get("seconds", 0) for witness in report["witnesses"])
    np.testing.assert_allclose(seconds, of_witnesses, atol=0.01)
    found_command = suite.find("properties/property[@name='command']")
    assert found_command is not None
    assert "zoo verify" in found_command.get("value", "")


def test_a_case_for_every_check(found) -> None:
    names = {
        case.get("name")
        for case in ElementTree.fromstring(reports.junit([found["honest"]]).encode()).iter("testcase")
    }
    layers = {f"layer {node.path}" for node in zoo.get(TINY).walk()}
    compared = {"output", "logits", "decisions"}
    assert names == compared | {f"{name} on probes" for name in compared} | {"batches"} | layers


@pytest.mark.parametrize("name", REPORTS)
def test_a_terminal_is_not_commanded(name: str, found) -> None:
    shown = reports.terminal_lines(_hostile(found[name]))
    assert "\x1b" not in shown
    assert "\\x1b[31m" in shown
    assert all(line.isprintable() for line in shown.splitlines())


def test_a_sound_model_on_a_terminal(found) -> None:
    report = found["honest"]
    lines = reports.terminal_lines(report).splitlines()
    assert lines[0] == (
        "cnn-padded:out_1=4,out_2=4  2,478 parameters  weights: initial weights, seed 0  judge: reference in "
        f"float64  inputs: 24 images of digits; layers: {report['layer_images']}, half noise and probes (seed 0)"
    )
    assert re.fullmatch(
        r"  onnx direct     ok       max\|d\| \d\.\de-0\d of \d\.\de-05 allowed \(\d+x below\)  flips 0  +"
        r"\w+ \d+ % of limit  batches 1-9 16 32 [\d ]+ (identical|within limits)",
        lines[1],
    )
    assert lines[2].startswith("    unoptimized   ok ")
    assert lines[-3].startswith("decisions: no decision can differ within the limits, on 24 images (smallest")
    assert lines[-2].startswith("smallest tolerance that passes: ")
    assert lines[-1] == f"PASSED 3 of 3 in {report['seconds']:.1f} s"


def test_a_mistake_on_a_terminal(found) -> None:
    text = reports.terminal_lines(found["failing"])
    culprit = next(line for line in text.splitlines() if "<-" in line)
    assert re.search(r"conv2 [\d.e+-]+ FAIL  <- first divergence, its inputs match$", culprit)
    assert "conv1 " in culprit
    assert "pool1 " in culprit
    assert "relu2 " not in culprit
    for part in ("with all before it", "on its own input", "alone"):
        assert re.search(rf"     {part}: .* the limit\); at \[\d+, \d, \d+, \d+\] got .*, expected ", text)
    assert "looks like kernel flipped, as a true convolution does" in text
    again = (
        "zoo verify cnn-padded:out_1=4,out_2=4 --weights init --data digits --backend reference --layer conv2"
    )
    assert f"     again: {again}\n" in text
    assert "     conv2 as above: " in text
    assert "suspect: the export: the graph that the zoo makes of spec and weights" in text
    assert re.search(r"\nFAILED 3 of 3 in \d+\.\d s$", text)


def test_all_fates_on_a_terminal(found) -> None:
    text = reports.terminal_lines(found["mixed"])
    assert re.search(r"\n  torch +crashed  the backend died: SIGSEGV\n     again: .* --backend torch\n", text)
    assert re.search(r"\n  onnx native torch +skipped  no exporter\n", text)
    assert "suspect: torch: it could not be run to the end" in text
    assert "suspect: the file file.onnx" in text
    assert "FAILED 3 of 6" in text


def test_some_layers_on_a_terminal(found) -> None:
    text = reports.terminal_lines(found["layer"])
    for line in (
        r"  onnx direct     FAIL     conv2 beyond limit",
        r"     conv2 FAIL with all before it: .* expected ",
        r"     conv2 FAIL on its own input: .* expected ",
        r"     conv2 FAIL alone: .* expected ",
        r"     relu2 ok   on its own input: .* got .*, expected ",
        r"     relu2 ok   alone: .* got .*, expected ",
    ):
        assert re.search(f"^{line}", text, re.MULTILINE)
    assert "conv1" not in text
    assert "flips" not in text


@pytest.mark.parametrize(
    ("suspect", "words"),
    [
        ("reference", "the reference: all others agree with each other"),
        ("onnxruntime", "onnxruntime: onnx's own implementation runs the same graph as it should"),
        ("onnxruntime's optimisations", "without them the same graph is right"),
        ("onnx.reference", "onnxruntime runs the same graph as it should"),
        ("torch exporter", "the exporter of torch: torch itself computes as it should"),
    ],
)
def test_suspects_in_words(suspect: str, words: str, found) -> None:
    shown = reports.terminal_lines(found["failing"] | {"suspects": [suspect]})
    assert re.search(f"\nsuspect: .*{re.escape(words)}", shown)


def test_files_by_their_suffix(found, tmp_path: Path) -> None:
    for name, start in (("r.json", b"[\n"), ("r.md", b"# Verification"), ("r.xml", b"<?xml")):
        assert reports.rendered(tmp_path / name, [found["honest"]]).startswith(start)
        reports.check_name(tmp_path / name)
    with pytest.raises(InvalidInput, match=r"unknown format of a report '.txt'.*known: .json, .md, .xml"):
        reports.check_name(tmp_path / "r.txt")
    with pytest.raises(InvalidInput, match="no such folder"):
        reports.check_name(tmp_path / "none/r.md")


def test_the_command_line_gives_the_same_in_every_form(
    validator, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plant(monkeypatch, flipped)
    arguments = ["verify", TINY, "--weights", "init", "--seed", "7", "--data", "digits"]
    arguments += ["--inputs-seed", "0", "-b", "reference"]
    files = [word for name in ("r.json", "r.md", "r.xml") for word in ("--report", name)]
    with pytest.raises(SystemExit) as done:
        cli.main([*arguments, *files, "--json"])
    assert done.value.code == 1
    printed = json.loads(capfd.readouterr().out)
    for report in printed:
        validator.validate(report)
    (report,) = printed
    assert report["command"] == ["zoo", *arguments[:-2], "--backend", "reference"]
    assert report["witnesses"][0]["again"] == [*report["command"], "--layer", "conv2"]
    assert report["data"].endswith(" test images of digits")
    assert json.loads(Path("r.json").read_text()) == printed
    assert Path("r.md").read_text() == reports.markdown(printed)
    assert Path("r.xml").read_text() == reports.junit(printed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.md", "r.xml"]
    again = report["witnesses"][0]["again"][1:]
    with pytest.raises(SystemExit) as done:
        cli.main(again)
    assert done.value.code == 1
    assert "conv2 FAIL on its own input" in capfd.readouterr().out


def test_the_doctor_keeps_to_the_schema(validator, tmp_path: Path) -> None:
    model = zoo.get(TINY)
    sound = serialize(to_onnx(model, zoo.init_weights(model)))
    files = {"sound": sound, "altered": sound.replace(b"conv1", b"conv9", 1), "junk": b"junk", "empty": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        report = doctor.examine(tmp_path / name)
        assert report.passed == (name == "sound")
        validator.validate(report.to_dict())
        assert not validator.is_valid(report.to_dict() | {"kind": "verify"})
    validator.validate(doctor.examine(tmp_path / "none").to_dict())
