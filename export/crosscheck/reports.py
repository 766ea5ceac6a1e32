"""A verification as text: for a terminal, as Markdown, as JUnit's XML, as JSON.

Everything here is rendered from what `crosscheck.Report.to_dict` gives (docs/report.schema.json) and from
nothing else, so the forms can disagree neither with the JSON that is kept nor with each other: which
checks a witness met, and how they ended, is said once, by `checks`. Names and messages may come from a
file that somebody sent: control characters are shown escaped everywhere, markup where there is any.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from export.crosscheck.verdict import PLAIN
from zoo import terminal
from zoo.errors import InvalidInput, nearest

Data = Mapping[str, Any]
WIDTH = 100  # of a line of layers
COLOURS = {"ok": "green", "FAIL": "red", "crashed": "red", "skipped": "yellow"}


class Check(NamedTuple):
    """One thing that a witness was asked: how it ended ("ok", "FAIL", "skipped", "crashed"), and why."""

    name: str
    status: str
    detail: str


def plain(text: str) -> str:
    """Text with every character escaped that is not to be printed, such as a terminal's commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def status(witness: Data) -> str:
    """How a witness fared: "ok", "FAIL", "skipped" or "crashed"."""
    if "skipped" in witness:
        return "skipped"
    if "error" in witness:
        return "crashed"
    return "ok" if witness["passed"] else "FAIL"


def checks(witness: Data) -> list[Check]:
    """Everything that a witness was asked, in the order in which it was."""
    word = status(witness)
    if word in ("skipped", "crashed"):
        return [Check("witness", word, plain(witness.get("skipped") or witness.get("error", "")))]
    found = []
    for name in ("output", "logits"):
        if witness[name]:
            found.append(Check(name, _word(witness[name]), _compared(witness[name])))
    if witness["decisions"]:
        found.append(Check("decisions", _word(witness["decisions"]), _decided(witness["decisions"])))
    if witness["untrue"]:
        found.append(Check("what it says of itself", "FAIL", plain("; ".join(witness["untrue"]))))
    for name, part in (witness["probes"] or {}).items():
        if part:
            detail = _decided(part) if name == "decisions" else _compared(part)
            found.append(Check(f"{name} on probes", _word(part), detail))
    for path, layer in witness["layers"].items():
        found.append(Check(f"layer {plain(path)}", _word(layer), _layer(layer)))
    if witness["batches"]:
        found.append(Check("batches", _word(witness["batches"]), _batched(witness["batches"])))
    if witness["search"]:
        part = witness["search"]
        found.append(Check("search", _word(part), f"{_compared(part)}, of {part['evaluations']:,} images"))
    return found


def counts(report: Data) -> tuple[int, int]:
    """How many witnesses failed, of how many that were heard."""
    heard = [witness for witness in report["witnesses"] if status(witness) != "skipped"]
    return sum(not witness["passed"] for witness in heard), len(heard)


# What a comparison says, in words. Figures that are null are of a tensor that cannot be compared.


def _word(part: Data) -> str:
    return "ok" if part["passed"] else "FAIL"


def _figure(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.01 else f"{value:.3g}"


def _compared(part: Data) -> str:
    """The difference, what is allowed, how far below or beyond; where it fails, the worst element."""
    if "problem" in part:
        return plain(part["problem"])
    text = _difference(part)
    if "worst_index" in part:
        index = ", ".join(map(str, part["worst_index"]))
        got, expected = (_element(part[name]) for name in ("got", "expected"))
        text += f"; at [{index}] got {got}, expected {expected}"
    return text


def _element(value: float | None) -> str:
    return "no finite number" if value is None else f"{value:.7g}"


def _difference(part: Data) -> str:
    """The difference that is furthest beyond its limit, which need not be the largest one."""
    largest, limit, ratio = part["max_abs_diff"], part["limit"], part["max_ratio"]
    if largest is None or limit is None or ratio is None:
        return "a difference that is not finite"
    worst = ratio * limit
    label = "max|d|" if abs(worst - largest) <= 1e-3 * largest else "|d|"
    text = f"{label} {_figure(worst)} of {_figure(limit)} allowed"
    if ratio > 1:
        return f"{text} ({_times(ratio)} the limit)"
    return f"{text} ({_times(1 / ratio)} below)" if ratio else text


def _times(factor: float) -> str:
    two_digits = float(f"{factor:.2g}")
    return f"{two_digits:,.0f}x" if 10 <= factor < 1e9 else f"{two_digits:g}x"


def _decided(part: Data) -> str:
    text = f"{part['flips']:,} differ" if part["flips"] else "none differs"
    if part["forbidden_images"]:
        some = ", ".join(map(str, part["forbidden_images"][:5]))
        more = ", ..." if len(part["forbidden_images"]) > 5 else ""
        text += f", where rounding cannot explain it on images {some}{more}"
    return text


def _batched(part: Data) -> str:
    sizes = _ranges(part["sizes"])
    if not part["passed"]:
        return f"of {sizes}: at {part['worst_size']}: {_compared(part)}"
    return f"{sizes} {'identical' if part['identical'] else 'within limits'}"


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers; for three and more that follow each other the first and the last: "1-9 32 65"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(f"{r[0]}-{r[-1]}" if len(r) > 2 else " ".join(map(str, r)) for r in runs)


FOLDED = "the file merged this layer into the next: only their result is checked"


def _parts(layer: Data) -> Iterator[tuple[str, Data]]:
    """What was compared of a layer, each with its name in words."""
    yield "with all before it", layer
    yield from _deciding(layer)


def _deciding(layer: Data) -> Iterator[tuple[str, Data]]:
    """What decides of a layer, each with its name in words; nothing of one that is a part of another."""
    if "problem" in layer or not (layer["local"] or layer["alone"] or layer["folded"]):
        yield "with all before it", layer
    elif not layer["folded"]:
        for name, words in (("local", "on its own input"), ("alone", "alone")):
            if layer[name]:
                yield words, layer[name]


def _layer(layer: Data) -> str:
    if layer["folded"]:
        return FOLDED
    deciding = list(_deciding(layer))
    shown = [(name, part) for name, part in deciding if not _within(part)] or deciding[:1]
    return "; ".join(f"{name}: {_compared(part)}" for name, part in shown)


def _within(part: Data) -> bool:
    """Whether one comparison is within its limit; a layer's own `passed` is of all its comparisons."""
    return "problem" not in part and part["max_ratio"] is not None and part["max_ratio"] <= 1


def _shares(witness: Data) -> list[tuple[float, str]]:
    """What each thing uses of its derived limit, infinity where it cannot be said."""
    found = [("logits", witness["logits"])] if witness["logits"] else []
    found += [(path, part) for path, layer in witness["layers"].items() for _, part in _deciding(layer)]
    beyond = float("inf")
    ratios = [(part["max_ratio"], name) for name, part in found]
    return [(beyond if ratio is None else ratio, plain(name)) for ratio, name in ratios]


def _worst_share(witness: Data) -> str:
    shares = _shares(witness)
    if not shares:
        return ""
    share, name = max(shares)
    if share > 1:
        return f"{name} beyond limit"
    return f"{name} {100 * share:.0f} % of limit" if share >= 0.005 else "layers exact"


def _suspects(report: Data) -> list[str]:
    """Who is wrong, in words, and why it is thought so."""
    witnesses = {witness["witness"]: witness for witness in report["witnesses"]}
    known = {
        "reference": "the reference: all others agree with each other, and it alone differs",
        "export": "the export: the graph that the zoo makes of spec and weights",
        "onnxruntime": "onnxruntime: onnx's own implementation runs the same graph as it should",
        "onnxruntime's optimisations": "onnxruntime's optimisations: without them the same graph is right",
        "onnx.reference": "onnx.reference: onnxruntime runs the same graph as it should",
    }
    words = []
    for suspect in report["suspects"]:
        backend = suspect.removesuffix(" exporter")
        if suspect in known:
            words.append(known[suspect])
        elif suspect in witnesses and "error" in witnesses[suspect]:
            words.append(f"{suspect}: it could not be run to the end")
        elif suspect in witnesses and f"onnx native {suspect}" in witnesses:
            words.append(f"{suspect}: what it computes itself differs from what was written")
        elif suspect in witnesses:
            words.append(f"the file {suspect}")
        else:
            words.append(f"the exporter of {backend}: {backend} itself computes as it should")
    return [plain(sentence) for sentence in words]


def _certificate(report: Data) -> str:
    """What is certain about decisions, from the witness that most images were shown to; "" if nothing is."""
    seen = [witness for witness in report["witnesses"] if witness.get("decisions")]
    if not seen:
        return ""
    witness = max(seen, key=lambda witness: witness["images"])
    decisions = witness["decisions"]
    if decisions["smallest_margin"] is None:
        return "with a single class, no decision can differ"
    margin = f"smallest margin {decisions['smallest_margin']:.1e}"
    return f"{decisions['certificate']} within the limits, on {witness['images']:,} images ({margin})"


def _tolerance(report: Data) -> str:
    """The smallest tolerances under which all witnesses pass, and who needs them; "" if none is known."""
    judged = [w for w in report["witnesses"] if status(w) in ("ok", "FAIL")]
    hopeless = [w for w in judged if any(_unfit(part) for part in _all_parts(w))]
    if hopeless:
        return f"none makes {plain(hopeless[0]['witness'])} pass"
    outputs = [(w["output"]["max_abs_diff"], plain(w["witness"])) for w in judged if w["output"]]
    shares = [(*share, plain(w["witness"])) for w in judged for share in _shares(w)]
    words = []
    if outputs:
        largest, name = max(outputs)
        words.append(f"{_figure(largest)} on outputs ({name})")
    if shares:
        share, layer, name = max(shares)
        words.append(f"{float(f'{share:.2g}'):,g} of the derived limits ({layer}, {name})")
    return ", ".join(words)


def _all_parts(witness: Data) -> list[Data]:
    parts = [witness[name] for name in ("output", "logits", "batches", "search") if witness[name]]
    parts += [part for name, part in (witness["probes"] or {}).items() if part and name != "decisions"]
    return parts + [part for layer in witness["layers"].values() for _, part in _parts(layer)]


def _unfit(part: Data) -> bool:
    return "problem" in part or part["max_ratio"] is None or part["max_abs_diff"] is None


def _inputs(report: Data) -> str:
    data = plain(report["data"]) or f"{report['images']:,} images"
    drawn = f"half noise and probes (seed {report['inputs_seed']})"
    if report["layers"]:
        return f"{report['layer_images']:,}, half the first of {data}, {drawn}"
    return f"{data}; layers: {report['layer_images']:,}, {drawn}"


def _header(report: Data) -> Iterator[tuple[str, str]]:
    if report["weights"]:
        yield "weights", plain(report["weights"])
    yield "judge", plain(report["judge"])
    yield "inputs", _inputs(report)


def _conclusions(report: Data) -> Iterator[tuple[str, str]]:
    for sentence in _suspects(report):
        yield "suspect", sentence
    certificate, tolerance = _certificate(report), _tolerance(report)
    if certificate:
        yield "decisions", certificate
    if tolerance:
        yield "smallest tolerance that passes", tolerance
    if search := report["search"]:
        ratio = search["max_ratio"]
        worst = "no finite number" if ratio is None else f"{float(f'{ratio:.2g}'):g} of the limit"
        where = f"; {plain(search['image'])}" if search["image"] else ""
        worst += f" ({plain(search['witness'])})"
        yield "search", f"worst of {search['evaluations']:,} images: {worst}{where}"
        if search["again"]:
            yield "again", _command(search["again"])


def _verdict(report: Data) -> tuple[str, str]:
    failed, heard = counts(report)
    word = "PASSED" if report["passed"] else "FAILED"
    return word, f"{failed or heard} of {heard} in {report['seconds']:.1f} s"


# For a terminal.


def terminal_lines(report: Data) -> str:
    """What a person reads: a line for each witness, more where one fails, and the conclusions."""
    header = [f"{name}: {text}" for name, text in _header(report)]
    lines = ["  ".join([plain(report["model"]), f"{report['parameters']:,} parameters", *header])]
    rows = {witness["witness"]: _columns(witness, report) for witness in report["witnesses"]}
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
    lines += [f"{name}: {text}" for name, text in _conclusions(report)]
    word, count = _verdict(report)
    return "\n".join([*lines, f"{terminal.styled(word, 'green' if report['passed'] else 'red')} {count}"])


def _short(witnesses: Sequence[Data]) -> list[str]:
    """Names as they are printed: a graph that is run once more, as it is written, stands below itself."""
    twins = [False, *(_is_twin(after, before) for before, after in pairwise(witnesses))]
    names = [plain(witness["witness"]) for witness in witnesses]
    return [f"  {PLAIN[2:]}" if twin else name for name, twin in zip(names, twins, strict=True)]


def _columns(witness: Data, report: Data) -> list[str]:
    """What a line says of a witness that was judged, part by part."""
    if status(witness) in ("skipped", "crashed"):
        return []
    if report["layers"]:
        return [_worst_share(witness)]
    decisions = witness["decisions"]
    of = "" if witness["images"] == report["images"] else f" of {witness['images']:,}"
    forbidden = ", not by rounding" if decisions and not decisions["passed"] else ""
    identical = {True: "bit-identical to direct", False: "not bit-identical to direct", None: ""}
    output = witness["output"]
    return [
        _difference_or_problem(output),
        f"flips {decisions['flips']:,}{of}{forbidden}" if decisions else "",
        _worst_share(witness),
        f"batches {_batched(witness['batches'])}"
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
        lines.append(f"again: {_command(witness['again'])}")
    return lines


def _is_twin(witness: Data, before: Data) -> bool:
    """Whether a witness is the one before it, as the graph is written."""
    return bool(witness["witness"] == f"{before['witness']}{PLAIN}")


def _difference_or_problem(part: Data) -> str:
    return plain(part["problem"]) if "problem" in part else _difference(part)


def _way_to(witness: Data) -> list[str]:
    """The layers up to the culprit, and whether it fails on its own input and alone."""
    lines, width, before = [""], 0, True
    for path, layer in witness["layers"].items():
        difference, word = layer["max_abs_diff"], _word(layer)
        text = f"{plain(path)} {'not comparable' if difference is None else _figure(difference)} "
        if width and width + len(text) > WIDTH:
            lines, width = [*lines, ""], 0
        lines[-1] += f"{' | ' if width else ''}{text}{terminal.styled(word, COLOURS[word])}"
        width += len(f" | {text}{word}")
        if path == witness["culprit"]:
            break
        before = before and layer["passed"]
    culprit = witness["layers"][witness["culprit"]]
    lines[-1] += f"  <- first divergence, {_blame(culprit, before)}"
    return lines + [f"{name}: {_compared(part)}" for name, part in _parts(culprit)]


def _blame(layer: Data, before: bool) -> str:
    return "its inputs match" if before else "by itself"


def _looked_at(witness: Data, layers: Sequence[str]) -> list[str]:
    """Everything that was compared of some layers."""
    lines = []
    for path, layer in witness["layers"].items():
        deciding = [name for name, _ in _deciding(layer)]
        for name, part in _parts(layer):
            word = "ok" if _within(part) or (layer["passed"] and name not in deciding) else "FAIL"
            shown = terminal.styled(f"{word:4}", COLOURS[word])
            lines.append(f"{plain(path)} {shown} {name}: {_compared(part)}")
    hidden = [plain(path) for path in layers if path not in witness["layers"]]
    return lines + [f"{path} is not shown by this graph" for path in hidden]


def _command(words: Sequence[str]) -> str:
    return plain(shlex.join(words))


# As Markdown.


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
    word, count = _verdict(report)
    lines = [f"## {_escaped(report['model'])}: {word} {count}\n"]
    lines.append(f"- parameters: {report['parameters']:,}")
    lines += [f"- {name}: {_escaped(text)}" for name, text in (*_header(report), *_conclusions(report))]
    if report["command"]:
        lines.append(f"- command: {_code(report['command'])}")
    lines.append("\n| witness | verdict | difference | flips | layers | batches | direct | seconds |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for witness in report["witnesses"]:
        cells = _columns(witness, report) or [checks(witness)[0].detail]
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
    text = _command(words)
    fence = "`"
    while fence in text:
        fence += "`"
    padding = " " if len(fence) > 1 else ""
    return f"{fence}{padding}{text}{padding}{fence}"


# As JUnit's XML.


def junit(reports: Sequence[Data]) -> str:
    """What continuous integration reads: a suite for each model, a case for each check of each witness."""
    root = ElementTree.Element("testsuites", name="zoo verify")
    for report in reports:
        suite = ElementTree.SubElement(root, "testsuite", name=plain(report["model"]))
        properties = ElementTree.SubElement(suite, "properties")
        for name, text in (*_header(report), *_conclusions(report), ("command", _command(report["command"]))):
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
    return lines + ([f"again: {_command(witness['again'])}"] if "again" in witness else [])


def _count(suite: ElementTree.Element) -> None:
    """Count the cases below an element, in its attributes."""
    suite.set("tests", str(len(list(suite.iter("testcase")))))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(list(suite.iter(tag)))))


# Files.


def to_json(reports: Sequence[Data]) -> str:
    """The reports themselves."""
    return json.dumps(reports, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Data]], str]] = {".json": to_json, ".md": markdown, ".xml": junit}


def check_name(path: Path) -> None:
    """Raise InvalidInput for a file whose format is unknown, or that cannot be there."""
    if path.suffix not in FORMATS:
        hint = nearest(path.suffix, FORMATS)
        raise InvalidInput(f"unknown format of a report {path.suffix!r}", str(path), hint)
    if not path.parent.is_dir():
        raise InvalidInput("no such folder", str(path.parent), "make it first")


def rendered(path: Path, reports: Sequence[Data]) -> bytes:
    """The reports in the format that the file's suffix names."""
    return FORMATS[path.suffix](reports).encode()
