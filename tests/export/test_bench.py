"""`zoo bench` and how it times: structure, verdicts and exit codes. No test is about how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_quantization import folder, write_idx  # noqa: F401 - a fixture

import zoo
from backends.process.client import Worker, Workers
from export import bench
from export.bench import CONTROL, FAILED, PASSED, SKIPPED, UNJUDGED, Bench, Competitor
from export.crosscheck.verdict import DIRECT
from export.inference import loading
from export.inference import session as sessions
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from export.reduced import quantization
from export.runs import sources
from zoo import cli, data, pretrained, timing
from zoo.errors import CheckFailed, InvalidInput, NotSupported
from zoo.timing import Interval, Timings

NAME = "cnn-padded"
FILES = [DIRECT, CONTROL, bench.INT8]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call the command line in this process, in an empty folder, without any framework of its own choice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backends.training_names", lambda: [])
    monkeypatch.setattr("backends.installed", lambda name: False)

    def call(*arguments: object) -> tuple[object, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main(["bench", *(str(argument) for argument in arguments)])
        return (done.value.code, *capfd.readouterr())

    return call


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one call."""
    monkeypatch.setattr(bench, "BLOCK", 1e-9)
    monkeypatch.setattr(bench, "SECONDS", 5e-9)
    monkeypatch.setattr(bench, "BATCHES", (1, 3))


# How it is timed.


def clock(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]):
    """A call that takes, by a clock of its own, so many seconds each time."""
    now, waiting = [0.0], iter(seconds)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += next(waiting)

    return call


def test_a_block_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is not timed; as many as begin in time, at least one."""
    assert timing.calls(clock(monkeypatch, [9, 1, 2, 3, 4]), 5) == [1, 2, 3]
    assert timing.calls(clock(monkeypatch, [9, 7, 1]), 5) == [7]
    assert timing.calls(clock(monkeypatch, [9, 7, 1]), 0) == [7]


def test_every_competitor_has_a_block_in_every_round_and_no_place_of_its_own() -> None:
    seen: list[str] = []

    def block(name: str):
        return lambda: seen.append(name) or [1.0]

    told: list[int] = []
    found = timing.race({name: block(name) for name in "abc"}, 6, told.append)
    rounds = ["".join(seen[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert all(first == second[::-1] for first, second in zip(rounds[::2], rounds[1::2], strict=True))
    assert len(set(rounds)) > 2
    assert told == [1, 2, 3, 4, 5, 6]
    assert {name: len(timed.blocks) for name, timed in found.items()} == {"a": 6, "b": 6, "c": 6}


def test_quantiles() -> None:
    timed = Timings(tuple((float(i),) for i in range(1, 101)))
    assert [timed.quantile(share).value for share in (0.5, 0.9, 0.99)] == [50, 90, 99]
    half = timed.quantile(0.5)
    assert 30 < half.low < 50 < half.high < 70
    assert timed.count == 100
    assert timed.per_second == pytest.approx(100 / 5050)
    same = Timings(((2.0, 2.0), (2.0,)))
    assert same.quantile(0.9) == (2, 2, 2)


def test_the_interval_of_a_quantile_covers_it() -> None:
    """The true median of calls whose blocks are slow or fast as a whole, in nine of ten repetitions and more."""
    random = np.random.Generator(np.random.Philox(5))
    covered = []
    for _ in range(200):
        slow = random.normal(0, 1, size=40)
        blocks = tuple(tuple(10 + s + random.normal(0, 0.1, size=20)) for s in slow)
        covered.append(Timings(blocks).quantile(0.5).contains(10))
    assert np.mean(covered) > 0.9


def test_ratios_are_of_one_round() -> None:
    """A machine that is slower by the minute slows both, and does not show in their ratio."""
    own = Timings(tuple((2.0 * k, 2.0 * k) for k in range(1, 20)))
    other = Timings(tuple((1.0 * k,) for k in range(1, 20)))
    assert own.ratio(other) == (2, 2, 2)
    assert other.ratio(own) == (0.5, 0.5, 0.5)
    mixed = Timings(tuple((1.0 + k % 2,) for k in range(20)))
    ratio = mixed.ratio(Timings(tuple((1.0,) for _ in range(20))))
    assert ratio.low < ratio.value < ratio.high
    assert Interval(2, 1, 3).times(10) == (20, 10, 30)


# The session.


def test_short_calls_stay_on_one_thread_and_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of a size's first call; whatever is decided, the outputs are the same."""
    loaded: list[int] = []
    load = loading.load
    monkeypatch.setattr(sessions, "load", lambda c, o, threads: loaded.append(threads) or load(c, o, threads))
    monkeypatch.setattr("zoo.machine.threads", lambda: 2)
    images = np.random.Generator(np.random.Philox(1)).random((600, 1, 28, 28), dtype=np.float32)
    for name in zoo.names():
        content = pretrained.onnx(name)
        expected = Session(content, threads=2).predict(images)
        monkeypatch.setattr(sessions, "SHORT", float("inf"))
        quick = Session(content)
        loaded.clear()
        for _ in range(2):
            np.testing.assert_array_equal(quick.predict(images), expected)
        assert loaded == []
        monkeypatch.setattr(sessions, "SHORT", -1.0)
        wide = Session(content)
        for size in (1, 7, 600):
            for _ in range(2):
                np.testing.assert_array_equal(wide.predict(images[:size]), expected[:size])
        assert loaded == [1, 2]  # once for all of them


def test_chosen_threads_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    load = loading.load
    monkeypatch.setattr(sessions, "load", lambda c, o, threads: loaded.append(threads) or load(c, o, threads))
    monkeypatch.setattr(sessions, "SHORT", -1.0)
    chosen = Session(pretrained.onnx(NAME), threads=2)
    for _ in range(3):
        chosen.predict(np.zeros((1, 1, 28, 28), np.float32))
    assert loaded == [2]
    monkeypatch.setattr(sessions, "SMALL", 0)
    monkeypatch.setattr("zoo.machine.threads", lambda: 2)
    Session(pretrained.onnx(NAME))
    assert loaded == [2, 2]  # a large file is not loaded twice


def test_an_output_without_a_batch_is_refused() -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("ReduceMean", ["image"], ["y"], keepdims=0)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph([node], "m", [image], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(CheckFailed, match="no batch"):
        Session(model.SerializeToString()).predict(np.zeros((3, 2), np.float32))


# The command.


def test_files_alone(run) -> None:
    """Without any framework: the direct file, its control, int8."""
    code, out, err = run(NAME, "--data", "digits")
    assert code == 0, err
    for text in (
        "p50 ms",
        "images/s",
        "accuracy",
        "max|d|",
        "onnx direct",
        "onnx int8",
        "PASSED",
        "control: the direct file",
    ):
        assert text in out
    assert "too few images: a drop of" in out  # 297 cannot show it
    assert f"zoo export {NAME} --int8" in out


def test_json_and_reports(run, tmp_path: Path) -> None:
    code, out, err = run(
        NAME,
        "--data",
        "digits",
        "--batch",
        2,
        "--batch",
        5,
        "--batch",
        2,
        "--json",
        "--report",
        "b.md",
        "--report",
        "b.json",
    )
    assert code == 0, err
    (found,) = json.loads(out)
    assert json.loads((tmp_path / "b.json").read_text()) == [found]
    assert found["model"] == NAME
    assert found["passed"] is True
    assert (found["data"], found["images"]) == ("digits", 297)
    assert set(found["machine"]) == {"processor", "threads", "versions"}
    assert [competitor["name"] for competitor in found["competitors"]] == FILES
    direct, control, int8 = found["competitors"]
    assert direct["bytes"] == len(pretrained.onnx(NAME)) > int8["bytes"]
    assert direct["verdict"] == "ok"
    assert 0 < direct["max_abs_diff"] <= direct["limit"] < int8["max_abs_diff"]
    assert direct["accuracy"] == control["accuracy"]
    assert (int8["limit"], int8["verdict"]) == (None, "too few images")
    assert int8["drop"]["images"] == 297
    for competitor in found["competitors"]:
        assert [row["batch"] for row in competitor["timings"]] == [2, 5]
        for row in competitor["timings"]:
            assert set(row["seconds"]) == {"p50", "p90", "p99"}
            for quantile in (*row["seconds"].values(), row["time_of_direct"]):
                assert 0 < quantile["low"] <= quantile["value"] <= quantile["high"]
            assert row["calls"] >= row["blocks"] >= 5
            assert row["images_per_second"] > 0
    assert [row["time_of_direct"]["value"] for row in direct["timings"]] == [1, 1]
    text = (tmp_path / "b.md").read_text()
    assert text.startswith(f"## {NAME}\n")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 * 2  # two competitors, two batches; the control is a line below
    assert "- control: " in text


def test_int8_that_loses_too_much_fails(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """1,500 images can show it; the others are measured all the same."""
    monkeypatch.setattr(quantization, "CALIBRATION_IMAGES", 64)
    code, out, err = run(NAME, "--data", folder, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["competitors"][2]["verdict"] == "ok"
    right = quantization.calibration

    def wrong(dataset: data.Dataset, count: int) -> quantization.Calibration:
        found = right(dataset, count)
        return replace(found, images=found.images / np.float32(50))

    monkeypatch.setattr(quantization, "calibration", wrong)
    code, out, _ = run(NAME, "--data", folder, "--json")
    assert code == 1
    (found,) = json.loads(out)
    assert found["passed"] is False
    assert [competitor["verdict"] for competitor in found["competitors"]] == ["ok", "ok", "FAILED"]
    assert found["competitors"][2]["timings"]
    code, out, _ = run(NAME, "--data", folder)
    assert code == 1
    assert "onnx int8 FAILED: a drop of" in out
    assert "next:" not in out


def test_a_file_that_disagrees_fails(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: zoo.Model, weights):
        return to_onnx(model, {**weights, "conv1.bias": weights["conv1.bias"] + np.float32(0.1)})

    monkeypatch.setattr(bench, "to_onnx", wrong)
    code, out, _ = run(NAME, "--data", "digits", "--json")
    assert code == 1
    (found,) = json.loads(out)
    assert found["competitors"][0]["verdict"] == "FAILED"
    assert "disagrees" in found["competitors"][0]["why"]


def test_one_model_that_cannot_be_measured_leaves_the_others(run) -> None:
    code, out, err = run("no-such-model", NAME, "--data", "digits", "--json")
    assert code == 2
    assert [found["model"] for found in json.loads(out)] == [NAME]
    assert "no-such-model" in err


def test_a_model_that_no_data_fits(run, tmp_path: Path) -> None:
    """Probes judge it, and nothing calibrates int8."""
    spec = zoo.get(NAME).to_dict() | {"name": "wide", "arguments": {}, "input_shape": [3, 28, 28]}
    (tmp_path / "wide.json").write_text(json.dumps(spec))
    code, out, err = run("wide.json", "--weights", "init", "--data-dir", tmp_path, "--json")
    assert code == 0, err
    (found,) = json.loads(out)
    assert (found["data"], found["images"]) == ("probes", bench.PROBES)
    assert [competitor["name"] for competitor in found["competitors"]] == [DIRECT, CONTROL]
    assert found["competitors"][0]["accuracy"] is None
    code, _, err = run("wide.json", "--weights", "init", "--data", "digits")
    assert code == 2
    assert "takes images of (3, 28, 28)" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch", "0"], "a batch of 0 images"),
        (["--batch", "100000"], "a batch of 100000 images"),
        (["--seconds", "0"], "0 seconds"),
        (["--seconds", "nan"], "nan seconds"),
        (["--report", "b.csv"], "unknown format of a report '.csv'"),
        (["--report", "nowhere/b.md"], "no such folder"),
        (["--backend", "reference:x"], "unknown backend"),
    ],
)
def test_options_that_make_no_sense(run, options: list[str], said: str) -> None:
    code, _, err = run(NAME, "--data", "digits", *options)
    assert code == 2
    assert said in err


def test_rounds() -> None:
    assert bench.Options((1,), 1e-12).rounds == bench.LEAST_ROUNDS
    assert bench.Options((1,), 100 * bench.BLOCK).rounds == 100
    with pytest.raises(InvalidInput, match="3601 seconds"):
        bench.Options((1,), 3601)


def test_verdicts_decide() -> None:
    def made(*verdicts: str) -> bool:
        model = zoo.get(NAME)
        return Bench(model, "", "", 0, [Competitor("x", verdict=verdict) for verdict in verdicts]).passed

    assert made(PASSED, SKIPPED, UNJUDGED)
    assert not made(PASSED, FAILED)


# With a framework.


def test_a_backend_competes(
    framework: str, digits: data.Dataset, lasting_workers: None, tmp_path: Path
) -> None:
    source = sources.find(NAME, "pretrained", tmp_path, 0, print)
    with Workers() as workers:
        measured = bench.measure(source, [framework], digits, bench.Options((1, 2), 1e-9), workers)
    found = {competitor["name"]: competitor for competitor in measured.to_dict()["competitors"]}
    call = [f"{framework} call"] if framework == "keras" else []
    assert list(found) == [*FILES, framework, *call, f"onnx native {framework}"]
    for name in (framework, *call, f"onnx native {framework}"):
        assert found[name]["verdict"] == "ok", found[name]["why"]
        assert found[name]["max_abs_diff"] <= found[name]["limit"]
        assert found[name]["accuracy"] == found[DIRECT]["accuracy"]
        assert len(found[name]["timings"]) == 2
    assert measured.passed


def test_a_backend_that_computes_wrongly_fails(
    framework: str,
    digits: data.Dataset,
    lasting_workers: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = sources.find(NAME, "pretrained", tmp_path, 0, print)
    build = Worker.build

    def wrong(self: Worker, model: zoo.Model, weights, dtype: str = "float32"):
        return build(self, model, {**weights, "conv1.bias": weights["conv1.bias"] + np.float32(0.1)}, dtype)

    monkeypatch.setattr(Worker, "build", wrong)
    with Workers() as workers:
        measured = bench.measure(source, [framework], digits, bench.Options((1,), 1e-9), workers)
    verdicts = {competitor.name: competitor.verdict for competitor in measured.competitors}
    assert verdicts[framework] == verdicts[f"onnx native {framework}"] == FAILED
    assert verdicts[DIRECT] == PASSED
    assert not measured.passed


def test_the_worker_times_itself(worker: Worker) -> None:
    model = zoo.get(NAME)
    network = worker.build(model, zoo.init_weights(model))
    images = np.zeros((2, 1, 28, 28), np.float32)
    found = network.time_predict(images, 0)
    assert len(found) == 1
    assert found[0] > 0
    if worker.backend == "keras":
        np.testing.assert_allclose(network.call(images), network.predict(images), rtol=0, atol=1e-6)
        assert len(network.time_predict(images, 0, bare=True)) == 1
    else:
        with pytest.raises(NotSupported, match="no other way"):
            network.call(images)


def test_the_bench_times_what_is_written() -> None:
    """The direct competitor is the file that `zoo export` writes."""
    model, weights = zoo.load(NAME)
    assert serialize(to_onnx(model, weights)) == pretrained.onnx(NAME)
    assert write_idx is not None


def test_a_report_is_kept_where_nothing_was_measured(run, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    report.write_text("kept")
    assert run("bench", "nope1", "nope2", "--data", "digits", "--report", str(report))[0] == 2
    assert report.read_text() == "kept"
