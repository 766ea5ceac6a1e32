"""The words of a verification, from its JSON data: what every form of it says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


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
            found.append(Check(name, outcome(witness[name]), compared(witness[name])))
    if witness["decisions"]:
        found.append(Check("decisions", outcome(witness["decisions"]), _decided(witness["decisions"])))
    if witness["untrue"]:
        found.append(Check("what it says of itself", "FAIL", plain("; ".join(witness["untrue"]))))
    for name, part in (witness["probes"] or {}).items():
        if part:
            detail = _decided(part) if name == "decisions" else compared(part)
            found.append(Check(f"{name} on probes", outcome(part), detail))
    for path, layer in witness["layers"].items():
        found.append(Check(f"layer {plain(path)}", outcome(layer), _layer(layer)))
    if witness["batches"]:
        found.append(Check("batches", outcome(witness["batches"]), batched(witness["batches"])))
    if witness["search"]:
        part = witness["search"]
        found.append(Check("search", outcome(part), f"{compared(part)}, of {part['evaluations']:,} images"))
    return found


def counts(report: Data) -> tuple[int, int]:
    """How many witnesses failed, of how many that were heard."""
    heard = [witness for witness in report["witnesses"] if status(witness) != "skipped"]
    return sum(not witness["passed"] for witness in heard), len(heard)


def outcome(part: Data) -> str:
    return "ok" if part["passed"] else "FAIL"


def shown(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.01 else f"{value:.3g}"


def compared(part: Data) -> str:
    """The difference, what is allowed, how far below or beyond; where it fails, the worst element."""
    if "problem" in part:
        return plain(part["problem"])
    text = difference(part)
    if "worst_index" in part:
        index = ", ".join(map(str, part["worst_index"]))
        got, expected = (_element(part[name]) for name in ("got", "expected"))
        text += f"; at [{index}] got {got}, expected {expected}"
    return text


def _element(value: float | None) -> str:
    return "no finite number" if value is None else f"{value:.7g}"


def difference(part: Data) -> str:
    """The difference that is furthest beyond its limit, which need not be the largest one."""
    largest, limit, ratio = part["max_abs_diff"], part["limit"], part["max_ratio"]
    if largest is None or limit is None or ratio is None:
        return "a difference that is not finite"
    worst = ratio * limit
    label = "max|d|" if abs(worst - largest) <= 1e-3 * largest else "|d|"
    text = f"{label} {shown(worst)} of {shown(limit)} allowed"
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


def batched(part: Data) -> str:
    sizes = _ranges(part["sizes"])
    if not part["passed"]:
        return f"of {sizes}: at {part['worst_size']}: {compared(part)}"
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


def parts_of(layer: Data) -> Iterator[tuple[str, Data]]:
    """What was compared of a layer, each with its name in words."""
    yield "with all before it", layer
    yield from deciding(layer)


def deciding(layer: Data) -> Iterator[tuple[str, Data]]:
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
    counting = list(deciding(layer))
    shown = [(name, part) for name, part in counting if not within(part)] or counting[:1]
    return "; ".join(f"{name}: {compared(part)}" for name, part in shown)


def within(part: Data) -> bool:
    """Whether one comparison is within its limit; a layer's own `passed` is of all its comparisons."""
    return "problem" not in part and part["max_ratio"] is not None and part["max_ratio"] <= 1


def _shares(witness: Data) -> list[tuple[float, str]]:
    """What each thing uses of its derived limit, infinity where it cannot be said."""
    found = [("logits", witness["logits"])] if witness["logits"] else []
    found += [(path, part) for path, layer in witness["layers"].items() for _, part in deciding(layer)]
    beyond = float("inf")
    ratios = [(part["max_ratio"], name) for name, part in found]
    return [(beyond if ratio is None else ratio, plain(name)) for ratio, name in ratios]


def worst_share(witness: Data) -> str:
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
        words.append(f"{shown(largest)} on outputs ({name})")
    if shares:
        share, layer, name = max(shares)
        words.append(f"{float(f'{share:.2g}'):,g} of the derived limits ({layer}, {name})")
    return ", ".join(words)


def _all_parts(witness: Data) -> list[Data]:
    parts = [witness[name] for name in ("output", "logits", "batches", "search") if witness[name]]
    parts += [part for name, part in (witness["probes"] or {}).items() if part and name != "decisions"]
    return parts + [part for layer in witness["layers"].values() for _, part in parts_of(layer)]


def _unfit(part: Data) -> bool:
    return "problem" in part or part["max_ratio"] is None or part["max_abs_diff"] is None


def _inputs(report: Data) -> str:
    data = plain(report["data"]) or f"{report['images']:,} images"
    drawn = f"half noise and probes (seed {report['inputs_seed']})"
    if report["layers"]:
        return f"{report['layer_images']:,}, half the first of {data}, {drawn}"
    return f"{data}; layers: {report['layer_images']:,}, {drawn}"


def header_lines(report: Data) -> Iterator[tuple[str, str]]:
    if report["weights"]:
        yield "weights", plain(report["weights"])
    yield "judge", plain(report["judge"])
    yield "inputs", _inputs(report)


def conclusions(report: Data) -> Iterator[tuple[str, str]]:
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
            yield "again", repeat_command(search["again"])


def last_line(report: Data) -> tuple[str, str]:
    failed, heard = counts(report)
    word = "PASSED" if report["passed"] else "FAILED"
    return word, f"{failed or heard} of {heard} in {report['seconds']:.1f} s"


Data = Mapping[str, Any]


def repeat_command(words: Sequence[str]) -> str:
    return plain(shlex.join(words))
