"""The model card and the HTML page: what they show, and that they need nothing beside them."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import zoo
from export.plots import mistakes, probabilities
from export.runs import card, gallery, page
from export.runs.build import build
from export.runs.card import model_card
from export.runs.options import Options
from zoo import cli, data, runs
from zoo.errors import DataError
from zoo.training import measures
from zoo.training.loop import Trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of pretrained weights in a folder with a space in its name."""
    out = tmp_path_factory.mktemp("report") / "my runs"
    options = Options(data="digits", out=out, pretrained=True)
    outcomes = build(
        [zoo.get("lenet-dropout"), zoo.get("cnn-padded")], ["reference"], options, lambda _: None
    )
    assert [outcome.error for outcome in outcomes] == [None, None]
    return out


class Page(HTMLParser):
    """Tags that are open, every attribute that points somewhere, and the text."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def test_the_page_is_whole_and_stands_alone(folder: Path) -> None:
    entries, failures = page.collect(folder)
    shown = Page(page.render(entries, failures, folder))
    assert shown.stack == []
    assert not {"script", "link", "iframe"} & set(shown.tags)
    pictures = [link for link in shown.links if link.startswith("data:image/png;base64,")]
    assert len(pictures) == 2 * 3  # no curves: nothing was trained
    for picture in pictures:
        assert base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG")
    others = set(shown.links) - set(pictures)
    assert {link for link in others if ":" in link} == set()  # nothing is fetched
    for link in others:
        if not link.startswith("#"):
            assert (folder / link).is_file(), link


def test_the_page_says_what_the_reports_say(folder: Path) -> None:
    entries, failures = page.collect(folder)
    assert [entry.model.name for entry in entries] == ["cnn-padded", "lenet-dropout"]  # documented order
    shown = Page(page.render(entries, failures, folder))
    assert "2 of 2 runs passed every check." in shown.text
    for entry in entries:
        published = json.loads((entry.path / "report.json").read_text())
        assert f"{published['onnx']['accuracy']:.2%}" in shown.text
        assert f"{published['onnx']['max_abs_diff']:.1e}" in shown.text
        assert published["onnx"]["sha256"] in shown.text
        for node in entry.model.walk():
            assert node.path in shown.text
        low, high = measures.interval(published["onnx"]["accuracy"], 297)
        assert f"{low:.2%} to {high:.2%}" in shown.text
    assert "trained on mnist, tested on digits" in shown.text


def test_a_failed_check_is_seen(folder: Path) -> None:
    entries, _ = page.collect(folder)
    entries[0].report["onnx"]["passed"] = False
    shown = Page(page.render(entries, [DataError("it is damaged", "there")], folder))
    assert "1 of 3 runs passed every check." in shown.text
    assert "it is damaged (there)" in shown.text


def test_text_from_a_spec_is_escaped(folder: Path) -> None:
    entries, _ = page.collect(folder)
    spec = entries[0].model.to_dict() | {
        "name": "mine",
        "arguments": {},
        "document": "<script>alert(1)</script>",
    }
    spec["notes"] = ["<img src=x onerror=alert(1)>"]
    spec["labels"] = ["<b>", *"123456789"]
    from zoo.spec.form import from_dict

    hostile = page.Entry(entries[0].path, from_dict(spec), entries[0].report, entries[0].pictures, {})
    hostile.report["warnings"] = ["<script>"]
    shown = Page(page.render([hostile], [], folder))
    assert not {"script", "b"} & set(shown.tags)
    assert "x" not in shown.links
    assert "<script>alert(1)</script>" in shown.text


def test_the_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(folder), "--json"])
    assert done.value.code == 0
    shown = json.loads(capfd.readouterr().out)
    assert Path(shown["path"]) == folder / "report.html"
    assert [run["model"] for run in shown["runs"]] == ["cnn-padded", "lenet-dropout"]
    (folder / "report.html").unlink()


def test_damaged_runs_are_named_and_the_rest_is_shown(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "cnn-padded/reference").rename(tmp_path / "kept")
    try:
        files = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
        broken = folder / "cnn-padded/reference"
        broken.mkdir()
        for name, content in files.items():
            (broken / name).write_bytes(content)
        (broken / "report.json").write_bytes(files["report.json"].replace(b"0.", b"1.", 1))
        with pytest.raises(SystemExit) as done:
            cli.main(["report", str(folder), "-o", str(tmp_path / "page.html")])
        assert done.value.code == 4
        out, err = capfd.readouterr()
        assert "1 run," in out
        assert "report.json" in err
        assert "altered" in Page((tmp_path / "page.html").read_text()).text
    finally:
        for path in broken.iterdir():
            path.unlink()
        broken.rmdir()
        (tmp_path / "kept").rename(folder / "cnn-padded/reference")


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_no_runs(place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(tmp_path / place)])
    assert done.value.code == 4
    assert "zoo build --data digits" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_card_shows_the_pictures(folder: Path) -> None:
    run = runs.Run(folder / "cnn-padded" / "reference")
    text = run.read("README.md").decode()
    shown = re.findall(r"!\[.+\]\((.+)\)", text)
    assert shown == [card.KERNELS, card.CONFUSION, card.MISTAKES]
    for name in shown:
        assert run.read(name).startswith(b"\x89PNG")


def test_pictures_of_a_training(digits: data.Dataset) -> None:
    model = zoo.get("cnn-padded")
    loaded = zoo.load("cnn-padded")
    split = data.only_test(digits)
    outputs = loaded.predict(data.to_float(digits.test_images))
    trained = Trained(
        loaded.weights, None, None, {}, {}, 1.0, [(1, 1, 2.0, 0.5)], [(1, 2.0, 0.5, None, 1.0, 0.75)]
    )
    drawn = gallery.pictures(model, trained, split, outputs, seed=0)
    assert list(drawn) == list(card.CAPTIONS)
    assert drawn == gallery.pictures(model, trained, split, outputs, seed=0)
    wrong = mistakes(probabilities(outputs, "logits"), digits.test_labels)
    np.testing.assert_array_equal(wrong, np.flatnonzero(outputs.argmax(axis=1) != digits.test_labels))
    assert "curves.png" in model_card(model, _report(trained), list(drawn))


def _report(trained: Trained) -> dict[str, object]:
    witness = {"witness": "onnx direct", "skipped": "not run"}
    return {
        "onnx": {"accuracy": 0.5},
        "data": {"name": "digits", "train": 1, "test": 297},
        "backend": "torch",
        "epochs": 1,
        "seed": 0,
        "accuracy": {"test": 0.5},
        "loss": {"test": 1.0},
        "warnings": [],
        "checks": {"witnesses": [witness]},
    }


@pytest.mark.parametrize("change", ["checks", "seconds", "versions", "data"])
def test_a_report_of_another_version_is_named(
    change: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = runs.Run(folder / "cnn-padded" / "reference")
    files = {name: kept.read(name) for name in kept.manifest()["files"]}
    contents = json.loads(files["report.json"])
    del contents[change]
    other = runs.Run(tmp_path / "cnn-padded" / "reference")
    with other.lock():
        other.publish(files | {"report.json": json.dumps(contents).encode()}, {})
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(tmp_path), "--json"])
    assert done.value.code == 4
    out, err = capfd.readouterr()
    shown = json.loads(out)  # one document, whatever failed
    assert "not of this version" in shown["failures"][0]["message"]
    assert "not of this version" in err


def test_another_programs_manifest_is_no_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(DataError, match="no finished run here"):
        page.collect(tmp_path)
