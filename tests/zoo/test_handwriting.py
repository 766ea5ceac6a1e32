"""Finding a digit in a picture and bringing it to MNIST's form. 60 is the number in the list of faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.drawing import HAND_COUNT, draw, grey, photographed, ruled
from zoo import data
from zoo.errors import InvalidInput
from zoo.images import handwriting
from zoo.images.handwriting import find_blobs, otsu, stroke_width, to_mnist


def mass_centre(image: np.ndarray) -> tuple[float, float]:
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return float((rows * image).sum() / image.sum()), float((columns * image).sum() / image.sum())


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("ground", ["black on white", "white on black"])
def test_the_form_of_mnist(digit: int, ground: str) -> None:
    """60: whichever is ink, wherever it is."""
    coverage = draw(digit, 1, height=0.4, centre=(0.3, 0.65))
    image = to_mnist(1 - coverage if ground == "black on white" else coverage)
    assert image.shape == (28, 28)
    assert image.dtype == np.float32
    assert image.min() == 0
    assert 0.9 < image.max() <= 1
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (20, 21)
    np.testing.assert_allclose(mass_centre(image), 14.5, atol=0.51)  # the middle of pixel 14


def test_polarity_place_and_size_do_not_matter() -> None:
    plain = to_mnist(1 - draw(4))
    np.testing.assert_allclose(to_mnist(draw(4)), plain, atol=1e-6)
    np.testing.assert_allclose(to_mnist(0.2 + 0.5 * draw(4)), plain, atol=1e-6)
    np.testing.assert_array_equal(to_mnist(np.pad(1 - draw(4), ((90, 3), (0, 40)), constant_values=1)), plain)
    np.testing.assert_allclose(to_mnist(1 - draw(4, size=(700, 700))), plain, atol=0.3)


@pytest.mark.parametrize("width", [0.008, 0.02, 0.05, 0.1, 0.2])
def test_strokes_come_to_a_usual_width(width: float) -> None:
    image = to_mnist(1 - draw(7, size=(900, 900), width=width))
    assert 1.4 < stroke_width(image > 0.5) < 3.6
    assert image.max() > 0.9  # a hairline did not become grey


NOISE = np.random.default_rng(0)
Y, X = np.mgrid[:300, :400] / 400
BLANK: dict[str, np.ndarray] = {
    "white": np.ones((50, 60)),
    "black": np.zeros((50, 60)),
    "grey": np.full((50, 60), 0.4),
    "one pixel": np.ones((1, 1)),
    "one row": np.linspace(0, 1, 50)[np.newaxis],
    "faint noise": 0.8 + NOISE.normal(0, 0.02, (300, 300)),
    "noise": np.clip(0.5 + NOISE.normal(0, 0.1, (300, 300)), 0, 1),
    "nothing but noise": NOISE.random((200, 300)),
    "grain of a dark photo": np.clip(0.05 + NOISE.normal(0, 0.04, (600, 400)), 0, 1),
    "one speck": np.where((X < 0.505) & (X > 0.5) & (Y < 0.255) & (Y > 0.25), 0.0, 1.0),
    "a slope of light": 0.3 + 0.6 * X,
    "squared paper": ruled((400, 300), 40, True).mean(axis=2),
    "ruled paper": ruled((400, 300), 40, False).mean(axis=2),
    **{f"photo of a sheet {seed}": photographed(np.zeros((600, 800)), seed) for seed in range(8)},
}


@pytest.mark.parametrize("name", BLANK)
def test_a_blank_picture_has_no_digit(name: str) -> None:
    """60."""
    with pytest.raises(InvalidInput, match="^no digit found$"):
        to_mnist(BLANK[name])


@pytest.mark.parametrize("quality", [10, 30, 90])
def test_what_jpeg_leaves_on_white_paper_is_no_digit(quality: int, tmp_path: Path) -> None:
    paper = grey(0.92 + np.random.default_rng(1).normal(0, 0.03, (600, 600)))
    paper.save(tmp_path / "blank.jpg", quality=quality)
    with pytest.raises(InvalidInput, match="no digit found"):
        to_mnist(np.asarray(Image.open(tmp_path / "blank.jpg")) / 255)


def test_the_worst_noise_takes_no_time() -> None:
    noise = np.random.default_rng(0).random((1200, 1200))
    start = time.monotonic()
    with pytest.raises(InvalidInput):
        to_mnist(noise)
    assert time.monotonic() - start < 5


def on(picture: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    return picture * (1 - 0.8 * coverage)


def specked(coverage: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    picture = on(np.ones(coverage.shape), coverage)
    for top, left in rng.integers(0, 290, (40, 2)):
        picture[top : top + 3, left : left + 3] = 0
    return picture


def framed(coverage: np.ndarray) -> np.ndarray:
    picture = on(np.ones(coverage.shape), coverage)
    for side in (np.s_[10:14, 10:290], np.s_[286:290, 10:290], np.s_[10:290, 10:14], np.s_[10:290, 286:290]):
        picture[side] = 0.1
    return picture


def edged(coverage: np.ndarray) -> np.ndarray:
    picture = np.zeros(coverage.shape)
    picture[5:-5, 5:-5] = on(np.ones(coverage.shape), coverage)[5:-5, 5:-5]
    return picture


def on_a_table(coverage: np.ndarray) -> np.ndarray:
    picture = 0.25 + np.random.default_rng(0).normal(0, 0.03, (600, 800))
    picture[150:450, 250:550] = on(np.full(coverage.shape, 0.9), coverage)
    return picture


def in_half_shadow(coverage: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[:300, :300]
    return on(np.where(columns + rows / 3 > 180, 0.5, 0.85), coverage)


def on_dark_lines(coverage: np.ndarray) -> np.ndarray:
    picture = on(np.ones(coverage.shape), 1.1 * coverage)
    picture[15::40] = np.minimum(picture[15::40], 0.5)
    return picture


def cut_closely(coverage: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero((coverage > 0.5).any(axis=axis)) for axis in (1, 0))
    return 1 - coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


SURROUNDINGS = [specked, framed, edged, on_a_table, in_half_shadow, on_dark_lines, cut_closely]


@pytest.mark.parametrize("surroundings", SURROUNDINGS, ids=lambda function: function.__name__)
def test_the_digit_alone_is_taken(surroundings: Callable[[np.ndarray], np.ndarray]) -> None:
    for digit in (0, 2, 3, 5, 8):
        coverage = draw(digit, size=(300, 300), height=0.5)
        found = to_mnist(surroundings(coverage))
        expected = to_mnist(1 - coverage)
        assert np.abs(found - expected).mean() < 0.06, digit


def test_parts_of_one_digit_stay_together() -> None:
    five = draw(5, size=(300, 300))
    five[:, 158:164] = 0  # the pen left the paper
    assert len(find_blobs(five > 0.5).areas) == 4
    assert np.abs(to_mnist(1 - five) - to_mnist(1 - draw(5, size=(300, 300)))).mean() < 0.03


def flood(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Area and box of each part, pixel by pixel: what find_blobs must give."""
    left = {tuple(map(int, point)) for point in np.argwhere(mask)}
    found = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        ys, xs = zip(*part, strict=True)
        found.append((len(part), min(ys), min(xs), max(ys) + 1, max(xs) + 1))
    return sorted(found)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.35, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (17, 23), (40, 40)])
def test_blobs(shape: tuple[int, int], density: float) -> None:
    mask = np.random.default_rng(0).random(shape) < density
    blobs = find_blobs(mask)
    assert sorted(
        (int(area), *map(int, box)) for area, box in zip(blobs.areas, blobs.boxes, strict=True)
    ) == flood(mask)
    np.testing.assert_array_equal(blobs.labels > 0, mask)
    np.testing.assert_array_equal(
        np.bincount(blobs.labels[mask], minlength=len(blobs.areas) + 1)[1:], blobs.areas
    )


def test_a_spiral_is_one_blob() -> None:
    mask = np.zeros((41, 41), dtype=bool)
    for turn in range(0, 20, 2):
        mask[turn, turn : 41 - turn] = mask[40 - turn, turn : 41 - turn] = True
        mask[turn : 41 - turn, 40 - turn] = mask[turn + 2 : 41 - turn, turn] = True
        mask[turn + 2, turn : turn + 3] = True
    assert len(find_blobs(mask).areas) == len(flood(mask)) == 1


def test_stroke_width() -> None:
    bar = np.zeros((100, 400), dtype=bool)
    bar[45:53, 20:380] = True
    assert stroke_width(bar) == pytest.approx(8 * 4 / np.pi, rel=0.05)  # straight lines count 4 / pi
    rows, columns = np.mgrid[:300, :300] - 150
    ring = np.abs(np.hypot(rows, columns) - 100) < 5
    assert stroke_width(ring) == pytest.approx(10, rel=0.05)


def test_otsu() -> None:
    levels = np.array([0.2] * 700 + [0.8] * 300)
    threshold, explained = otsu(levels)
    assert 0.2 < threshold < 0.8
    assert explained == pytest.approx(1, abs=1e-4)
    assert otsu(np.random.default_rng(0).random(10_000))[1] == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("hand", range(HAND_COUNT))
def test_hands_are_legible(hand: int) -> None:
    """Every hand draws ten different digits."""
    images = [to_mnist(1 - draw(digit, hand)) for digit in range(10)]
    distances = [np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]]
    assert min(distances) > 0.02


# On MNIST itself: what the document's preprocessing must not lose, and what it must win back.


@pytest.mark.mnist
def test_an_image_of_mnist_stays_nearly_as_it_was(mnist_folder: Path) -> None:
    images = data.read_folder(mnist_folder, "mnist").test_images[:300, 0] / 255
    differences = np.array([np.abs(to_mnist(image) - image).mean() for image in images])
    assert np.median(differences) < 0.01
    assert images.shape[1] == handwriting.SIDE
