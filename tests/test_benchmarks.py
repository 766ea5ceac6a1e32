"""The harness of benchmarks/: what it finds, when it says nothing, what it writes. No real code is timed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import operator
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

from benchmarks import drawn, growth, paired, shares, start_up, training
from benchmarks.paired import Block, Comparison, Team
from benchmarks.process import Child
from zoo import data

SECONDS = 0.004  # of a step


class Clock:
    """A machine whose speed drifts and jitters, shared by all that run on it."""

    def __init__(self, jitter: float = 0.02, slowing: float = 1.001) -> None:
        self.random = np.random.default_rng(0)
        self.jitter = jitter
        self.slowing = slowing
        self.drift = 1.0

    def block(self, seconds: float) -> Block:
        self.drift *= self.slowing
        wall = seconds * self.drift * self.random.lognormal(0, self.jitter)
        return Block(wall, 2 * wall)


class Injected:
    """A competitor of known speed."""

    def __init__(self, clock: Clock, slowness: float = 1.0) -> None:
        self.clock = clock
        self.slowness = slowness
        self.blocks: list[int] = []

    def run(self, steps: int) -> Block:
        self.blocks.append(steps)
        return self.clock.block(SECONDS * self.slowness)


def compared(slowness: float, control: float = 1.0, jitter: float = 0.02, target: float = 1.6) -> Comparison:
    clock = Clock(jitter)
    ours, again, rival = (Injected(clock, factor) for factor in (1.0, control, slowness))
    return compare(Team(ours, again, {"rival": rival}), {"rival": target})


def compare(team: Team, targets: dict[str, float] | None = None) -> Comparison:
    return paired.compare("a model", "ours", lambda: contextlib.nullcontext(team), targets, rest=0.0)


@pytest.mark.parametrize(
    ("slowness", "verdict"), [(1.7, "met"), (1.5, "missed"), (1.6, "open"), (1.02, "missed")]
)
def test_what_is_really_slower_is_found(slowness: float, verdict: str) -> None:
    """To a few thousandths, on a machine that slows down with every block."""
    found = compared(slowness)
    (rival,) = found.rivals
    assert found.verdict(rival) == verdict
    for ratio in (rival.wall, rival.cpu):
        assert ratio.low <= ratio.median <= ratio.high
        np.testing.assert_allclose(ratio, slowness, rtol=0.02)


def test_without_a_target_the_verdict_is_about_equal_speed() -> None:
    clock = Clock()
    rivals = {
        name: Injected(clock, slowness) for name, slowness in (("slow", 1.1), ("quick", 0.9), ("same", 1.0))
    }
    found = compare(Team(Injected(clock), Injected(clock), rivals))
    assert [found.verdict(rival) for rival in found.rivals] == ["faster", "slower", "open"]


@pytest.mark.parametrize(
    ("control", "jitter"), [(1.05, 0.02), (0.95, 0.02), (1.0, 0.8)], ids=["slower", "faster", "noise"]
)
def test_a_broken_control_leaves_no_verdict(control: float, jitter: float) -> None:
    found = compared(1.7, control, jitter)
    assert not found.sound
    assert [found.verdict(rival) for rival in found.rivals] == ["inconclusive"]
    assert compared(1.7).sound


def test_blocks_come_in_abba_order_and_fill_their_time() -> None:
    order: list[str] = []

    class Named(Injected):
        def run(self, steps: int) -> Block:
            order.append(f"{self.slowness}")
            return super().run(steps)

    clock = Clock(jitter=0.0, slowing=1.0)
    subject, again, rival = Named(clock, 1.0), Named(clock, 1.5), Named(clock, 2.0)
    found = compare(Team(subject, again, {"rival": rival}))
    turns = ["1.0", "1.5", "1.5", "1.0", "1.0", "2.0", "2.0", "1.0"] * 5  # in each of four starts
    assert order[-len(turns) :] == turns
    assert len(found.control.pairs) == len(found.rivals[0].pairs) == 40
    for competitor in (subject, again, rival):
        low, high = paired.BLOCK
        assert low < competitor.blocks[-1] * SECONDS * competitor.slowness < high


def test_too_few_pairs_are_refused() -> None:
    team = Team(Injected(Clock()), Injected(Clock()), {})
    with pytest.raises(ValueError, match="39 pairs are too few, 40 at least"):
        paired.compare("a model", "ours", lambda: contextlib.nullcontext(team), pairs=39)


def test_the_json_is_complete(tmp_path: Path) -> None:
    """The ratios follow from the pairs in the file, and the file says on what machine they were measured."""
    machine = {"processor": "a processor", "threads": 2, "versions": {"python": "3"}}
    found = compared(1.7)
    paired.save(tmp_path / "pairs.json", machine, [found])
    written = json.loads((tmp_path / "pairs.json").read_text())
    assert written["machine"] == machine
    assert written["method"]["order"] == "ABBA"
    (comparison,) = written["comparisons"]
    assert comparison["control"]["passed"] is True
    (rival,) = comparison["rivals"]
    assert (rival["target"], rival["verdict"], len(rival["steps"])) == (1.6, "met", 2)
    for pairing in (comparison["control"], rival):
        pairs = np.array(pairing["pairs"])
        assert pairs.shape == (40, len(comparison["columns"]))
        for kind, index in (("wall_ratio", 0), ("cpu_ratio", 1)):
            again = paired.median_ratio(pairs[:, 2 + index] / pairs[:, index])
            assert pairing[kind] == again._asdict()


def test_the_table_has_a_row_per_rival() -> None:
    found = dataclasses.replace(compared(1.7), title="cnn-padded, torch")
    header, _, row = training.table([found]).splitlines()
    assert header.split("|")[1].strip() == "model"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    (rival,) = found.rivals
    ratios = (str(rival.wall), str(rival.cpu), "1.6", "met", str(found.control.wall))
    assert cells == ["`cnn-padded`", "torch", "rival", *ratios]


# Processes.


@pytest.fixture
def mnist(tmp_path: Path, digits: data.Dataset) -> Path:
    """The embedded digits as if they were MNIST, unpacked in torchvision's layout."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = (digits.train_images[:, 0], digits.train_labels, digits.test_images[:, 0], digits.test_labels)
    for name, array in zip(data.FILES, arrays, strict=True):
        head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes()
        (raw / name).write_bytes(head + array.astype(np.uint8).tobytes())
    return tmp_path


RIVALS = {"torch": ("torch_loops:documented", "torch_loops:in_memory"), "keras": ("keras_fit:fit",)}


@pytest.fixture
def competitors(framework: str, mnist: Path) -> Iterator[list[Child]]:
    """The zoo's own training, and the loops that use the framework without it."""
    children = []
    raw = str(mnist / "MNIST" / "raw")
    for function in ("own_training:train", *RIVALS[framework]):
        arguments = {"model": "lenet-dropout", "folder": str(mnist) if "documented" in function else raw}
        if "own" in function:
            arguments["backend"] = framework
        children.append(Child(f"benchmarks.{function}", arguments))
    yield children
    for child in children:
        child.__exit__()


def test_every_competitor_does_block_after_block(competitors: list[Child]) -> None:
    """Past the end of an epoch, too: the embedded digits are 22 steps."""
    for child in competitors:
        for steps in (1, 3, 30):
            block = child.run(steps)
            assert block.wall > 0
            assert block.cpu > 0


def test_a_competitor_that_fails_is_named() -> None:
    with (
        Child("benchmarks.process:nothing", {}) as child,
        pytest.raises(RuntimeError, match="benchmarks.process:nothing ended with exit code 1"),
    ):
        child.run(1)


@pytest.mark.parametrize(
    ("times", "verdict"), [(11.0, "met"), (13.0, "missed"), (12.0, "open")], ids=["light", "heavy", "between"]
)
def test_a_command_that_takes_too_long_is_told(times: float, verdict: str) -> None:
    """The limits of the start-up: by CPU time whatever the control says, by wall time with a sound one."""
    found = compared(times)
    (row,) = start_up.rows(found, start_up.MOST_CPU, cpu=True)
    assert row[5] == verdict
    (row,) = start_up.rows(compared(times, control=1.2), start_up.MOST_CPU, cpu=True)
    assert row[5] == verdict
    (row,) = start_up.rows(compared(times, control=1.2), start_up.MOST_CPU, cpu=False)
    assert row[5] == "inconclusive"


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_how_a_cost_grows(power: float) -> None:
    """What it costs without any is no part of it, and a cost that is lost in that is none."""
    sizes = (1, 10, 100, 1000)
    costs = tuple(growth.Cost(5 + 0.1 * size**power, 100.0 * size) for size in sizes)
    series = growth.Series("images", "torch", sizes, costs, (growth.Cost(5.0, 100.0),) * 4)
    assert series.exponent == pytest.approx(power)
    assert series.memory_exponent == pytest.approx(1)
    cheap = dataclasses.replace(series, costs=(growth.Cost(4.9, 100.0), *costs[1:]))
    assert np.isnan(cheap.own).tolist() == [True, False, False, False]


def test_shares_are_of_disjoint_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(shares.time, "perf_counter", lambda: now[0])
    watch = shares.Stopwatch()

    def takes(seconds: float) -> None:
        now[0] += seconds

    def outer() -> None:
        takes(1)
        watch.timed("inner", takes)(10)
        takes(2)
        raise ValueError("over")

    takes(100)
    with pytest.raises(ValueError, match="over"):
        watch.timed("outer", outer)()
    takes(200)
    watch.switch(None)
    assert watch.seconds == {shares.REST: 300, "outer": 3, "inner": 10}


def test_every_part_of_a_share_is_there() -> None:
    for places in shares.PARTS.values():
        for place in places:
            module, _, path = place.partition(":")
            assert callable(operator.attrgetter(path)(importlib.import_module(module))), place


def test_drawn_digits_are_counted_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten digits a hand, in every style; a model that calls everything a 3 loses nine of ten."""
    plain = drawn.outputs

    def outputs(model: str, digits: drawn.Drawn) -> np.ndarray:
        if model == "three":
            return np.tile(np.eye(10)[3], (len(digits.labels), 1))
        return plain(model, digits)

    monkeypatch.setattr(drawn, "outputs", outputs)
    result = CliRunner().invoke(drawn.main, ["cnn-tiny", "three", "--hands", "2"], catch_exceptions=False)
    assert "20 drawings; lost and gained against cnn-tiny" in result.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.output.splitlines()[4:]]
    right = int(rows[0][1])
    assert right >= 18
    assert rows[0] == ["`cnn-tiny`", f"{right}", f"{20 - right}", "0", "0", "1"]
    assert rows[1][:3] == ["`three`", "2", "18"]
    assert int(rows[1][3]) - int(rows[1][4]) == right - 2
    assert float(rows[1][5]) < 0.001


def test_every_drawing_is_another_one() -> None:
    digits = drawn.draw_all([3, 4])
    assert digits.images.shape == (20, 28, 28)
    assert digits.labels.tolist() == [*range(10), *range(10)]
    assert len(np.unique(digits.images.reshape(20, -1), axis=0)) == 20
