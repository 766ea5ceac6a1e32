"""Picture files: the same pixels in every encoding, and files that are broken, hostile or no pictures.

The numbers 57 to 59 are those of the list of faults that every command must survive.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from encoded_pictures import LEVELS, LOSSLESS, LOSSY, rgba
from PIL import Image

from benchmarks.drawing import draw, grey
from zoo.errors import InvalidInput
from zoo.images import decoding

MOST_SECONDS, MOST_BYTES = 10.0, 512 * 2**20
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not tell a process its memory"
)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_encodings_give_the_same_levels(name: str, tmp_path: Path) -> None:
    LOSSLESS[name](tmp_path / name)
    np.testing.assert_array_equal(decoding.read(tmp_path / name), LEVELS / 255)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_encodings_give_nearly_the_same_levels(name: str, tmp_path: Path) -> None:
    LOSSY[name](tmp_path / name)
    found = decoding.read(tmp_path / name)
    assert found.shape == LEVELS.shape
    assert np.abs(found - LEVELS / 255).mean() < (0.15 if name == "bit.png" else 0.01)


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    levels = np.arange(60_000, 60_016, dtype=np.uint16).reshape(4, 4)  # one level in eight bits
    Image.fromarray(levels).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decoding.read(tmp_path / "deep.png"), levels / 65535)


def test_colours_become_their_luminance(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)).save(
        tmp_path / "c.png"
    )
    np.testing.assert_allclose(decoding.read(tmp_path / "c.png"), [[0.299, 0.587, 0.114]], rtol=1e-12)


@pytest.mark.parametrize(("ink", "paper"), [(0, 1.0), (255, 0.0)], ids=["black", "white"])
def test_ink_on_nothing_is_seen(ink: int, paper: float, tmp_path: Path) -> None:
    """59: every pixel has the same colour, and only opacity tells the digit."""
    coverage = draw(3)
    picture = np.full((*coverage.shape, 4), ink, dtype=np.uint8)
    picture[..., 3] = np.rint(coverage * 255)
    Image.fromarray(picture).save(tmp_path / "cut.png")
    found = decoding.read(tmp_path / "cut.png")
    np.testing.assert_allclose(found, paper + (ink / 255 - paper) * picture[..., 3] / 255, atol=1e-12)


def test_paper_with_transparent_corners_goes_on(tmp_path: Path) -> None:
    opacity = np.full(LEVELS.shape, 255, dtype=np.uint8)
    opacity[:40, :40] = opacity[-40:, -40:] = 0
    rgba(opacity).save(tmp_path / "card.png")
    np.testing.assert_allclose(decoding.read(tmp_path / "card.png"), LEVELS / 255, atol=1e-12)


def test_a_transparent_colour_is_transparent(tmp_path: Path) -> None:
    for name, levels, key in (("l.png", LEVELS, 255), ("i.png", LEVELS.astype(np.uint16) * 257, 65535)):
        Image.fromarray(np.where(levels == key, levels, 0).astype(levels.dtype)).save(
            tmp_path / name, transparency=key
        )
        np.testing.assert_array_equal(decoding.read(tmp_path / name), LEVELS == 255)


def test_a_large_picture_becomes_smaller_and_keeps_its_levels(tmp_path: Path) -> None:
    large = np.tile(np.linspace(0, 255, 3000).astype(np.uint8), (2000, 1))
    Image.fromarray(large).save(tmp_path / "large.png")
    found = decoding.read(tmp_path / "large.png")
    assert found.shape == (666, 1000)
    np.testing.assert_allclose(found[0], (large[0] / 255).reshape(1000, 3).mean(axis=1), atol=1e-12)


# 57: bombs. Each builds a file; `judged` reads it in a process of its own, which tells its memory.


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, depth: int = 1, data: bytes | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    row = 1 + (width * depth + 7) // 8
    body = zlib.compress(bytes(row * height), 1) if data is None else data
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animated(kind: str, frames: int) -> bytes:
    rng = np.random.default_rng(0)  # equal frames would be joined
    images = [Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)) for _ in range(frames)]
    file = io.BytesIO()
    images[0].save(file, kind, save_all=True, append_images=images[1:])
    return file.getvalue()


def many_scans() -> bytes:
    file = io.BytesIO()
    Image.fromarray(LEVELS).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 3000 + content[-2:]


def repeated_tags() -> bytes:
    """A TIFF of which each of 4,000 tags names the same 4 MB."""
    entries = b"".join(struct.pack("<HHII", tag, 1, 4_000_000, 60_000) for tag in range(30_000, 34_000))
    return b"II*\0" + struct.pack("<IH", 8, 4000) + entries + struct.pack("<I", 0) + bytes(4_100_000)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "20000 x 20000 pixels": (lambda: png(20_000, 20_000), "the picture is too large"),
    "a million in a row": (lambda: png(1_000_000, 1), "1000000 x 1 pixels are too many"),
    "a million in a column": (lambda: png(1, 1_000_000), "1 x 1000000 pixels are too many"),
    "2^31 pixels a side": (lambda: png(2**31 - 1, 2**31 - 1, data=b""), "the picture is too large"),
    "pixels that Pillow warns of": (lambda: png(10_000, 10_000), "10000 x 10000 pixels are too many"),
    "WebP of 16383 a side": (
        lambda: b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(5),
        "",
    ),
    "frames of PNG": (lambda: animated("PNG", 200), "too many frames"),
    "frames that PNG promises": (
        lambda: png(8, 8, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        "too many frames",
    ),
    "frames of GIF": (lambda: animated("GIF", 2000), "a GIF of several frames"),
    "frames of WebP": (lambda: animated("WEBP", 200), "too many frames"),
    "pages of TIFF": (lambda: animated("TIFF", 200), "a TIFF of several frames"),
    "packed text": (
        lambda: png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**28), 9))),
        "Decompressed data too large",
    ),
    "plain text": (
        lambda: png(8, 8, chunk(b"tEXt", b"k\0" + b"x" * 60_000_000)),
        "too much text beside the picture",
    ),
    "much text": (
        lambda: png(8, 8, *[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20 - 9), 9))] * 100),
        "Too much memory used in text",
    ),
    "tiny chunks": (lambda: png(8, 8, chunk(b"teXt", b"") * 2_000_000), "too many parts"),
    "tiny blocks": (
        lambda: animated("GIF", 1).replace(b"\x2c", b"!\xfe" + b"\1x" * 2_000_000 + b"\0\x2c", 1),
        "too many parts",
    ),
    "tiny segments": (lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000_000, "too many parts"),
    "tags that repeat a block": (repeated_tags, ""),
    "scans of JPEG": (many_scans, "a progressive JPEG of too many scans"),
    "a file of 65 MB": (lambda: bytes(65 * 2**20 + 1), "68,157,441 bytes, at most"),
}

JUDGE = """
import sys, time
from zoo.images import decoding
from zoo.errors import InvalidInput
start = time.monotonic()
try:
    said = str(decoding.read(sys.argv[1]).shape)
except InvalidInput as error:
    said = str(error)
seconds = time.monotonic() - start
# Not ru_maxrss: a process starts with its parent's.
memory = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(memory) * 1024, said)
"""


def judged(path: Path) -> str:
    """What a process says that reads one picture; fails if it took too much time or memory."""
    done = subprocess.run([sys.executable, "-c", JUDGE, path], capture_output=True, text=True, check=True)
    seconds, memory, said = done.stdout.split(" ", 2)
    assert float(seconds) < MOST_SECONDS
    assert int(memory) < MOST_BYTES
    assert done.stderr == ""
    return said


@needs_proc
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str, tmp_path: Path) -> None:
    content, message = BOMBS[name]
    (tmp_path / "bomb.png").write_bytes(content())
    said = judged(tmp_path / "bomb.png")
    assert f"({tmp_path / 'bomb.png'})" in said
    assert message in said


@needs_proc
def test_the_bounds_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "MOST_BYTES", 10 * 2**20)
    (tmp_path / "x.png").write_bytes(png(8, 8))
    with pytest.raises(AssertionError):
        judged(tmp_path / "x.png")


def large_png(path: Path) -> None:
    pack = zlib.compressobj(1)
    row = b"\0" + b"\xff\x80\x40\xff" * 8000
    body = b"".join([pack.compress(row) for _ in range(6000)]) + pack.flush()
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 8000, 6000, 8, 6, 0, 0, 0)), chunk(b"IDAT", body)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))


def large_jpeg(path: Path, **options: object) -> None:
    digit = grey(1 - draw(5, size=(400, 300))).convert("RGB")
    digit.resize((8000, 6000)).save(path, "JPEG", **options)


@needs_proc
@pytest.mark.parametrize(
    ("save", "shape"),
    [
        (large_jpeg, "(750, 1000)"),
        (lambda path: large_jpeg(path, progressive=True, subsampling=0), "(750, 1000)"),
        (large_png, "(857, 1142)"),
    ],
    ids=["JPEG", "progressive JPEG", "RGBA"],
)
def test_a_photo_of_48_megapixels_is_read(save: Callable[[Path], None], shape: str, tmp_path: Path) -> None:
    save(tmp_path / "photo")
    assert judged(tmp_path / "photo").strip() == shape


def test_a_few_frames_give_the_first(tmp_path: Path) -> None:
    for kind in ("PNG", "WEBP"):
        (tmp_path / "few").write_bytes(animated(kind, 3))
        assert decoding.read(tmp_path / "few").shape == (8, 8)


# 58: no pictures.

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9"/></svg>'
NO_PICTURES = {
    "text": b"a digit\n",
    "empty": b"",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(200),
    "SVG": SVG,
    "PDF": b"%PDF-1.4\n%%EOF\n",
    "PNG header alone": b"\x89PNG\r\n\x1a\n",
    "JPEG header alone": b"\xff\xd8\xff\xe0",
    "PNG of no data": png(9, 9, data=b""),
    "PNG of no height": png(9, 0),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "no.png"
    path.write_bytes(NO_PICTURES[name])
    with pytest.raises(InvalidInput, match="not a picture|is empty|is damaged") as caught:
        decoding.read(path)
    assert caught.value.where == str(path)


def attempt(path: Path) -> tuple[InvalidInput | None, np.ndarray]:
    try:
        return None, decoding.read(path)
    except InvalidInput as error:
        return error, np.zeros(1)


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_truncated_and_altered_pictures(name: str, tmp_path: Path) -> None:
    """A cut picture is refused; an altered one is refused or read, and nothing else happens."""
    path = tmp_path / name
    (LOSSLESS | LOSSY)[name](path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InvalidInput, match=path.name):
            decoding.read(path)
    for position in rng.integers(0, len(whole), 60):
        path.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << rng.integers(8)]) + whole[position + 1 :]
        )
        error, found = attempt(path)
        assert error is None or error.where == str(path)
        assert np.isfinite(found).all()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_what_is_no_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    start = time.monotonic()
    for path in (tmp_path / "fifo.png", tmp_path / "folder.png", Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(InvalidInput, match="not a regular file"):
            decoding.read(path)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.png", "no such picture"),
        ("a\0b.png", "cannot read"),
        ("x" * 5000, "cannot read: File name too long"),
    ],
)
def test_names_that_lead_nowhere(path: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        decoding.read(path)


def test_kinds_without_a_fixed_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((9, 9), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InvalidInput, match="'F' have no fixed white .*float.tif"):
        decoding.read(tmp_path / "float.tif")


def test_no_other_plugin_of_pillow_is_loaded() -> None:
    code = "import sys; from zoo.images import decoding; print([m for m in sys.modules if 'Plugin' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Tiff" in done.stdout
    assert not any(kind in done.stdout for kind in ("Eps", "Psd", "Pdf", "Wmf", "Fpx"))


def test_expand(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.PNG", "a.jpg", "notes.txt", "deeper/c.png"):
        (folder / name).touch()
    (tmp_path / "odd[1].png").touch()
    (tmp_path / "empty").mkdir()

    def expanded(*arguments: object) -> list[tuple[str, str]]:
        found = decoding.expand(map(str, arguments))
        return [(str(Path(file).relative_to(tmp_path)), error.what if error else "") for file, error in found]

    assert expanded(folder) == [("scans/a.jpg", ""), ("scans/b.PNG", "")]
    assert expanded(folder / "*") == [(f"scans/{name}", "") for name in ("a.jpg", "b.PNG", "notes.txt")]
    assert expanded(tmp_path / "odd[1].png") == [("odd[1].png", "")]
    assert expanded(tmp_path / "empty", tmp_path / "none*", tmp_path / "none.png") == [
        ("empty", "no picture in the folder"),
        ("none*", "no file matches"),
        ("none.png", ""),
    ]
    assert next(decoding.expand(["x" * 5000 + "*"]))[1].what.startswith(("no file", "cannot read"))


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_an_unreadable_camera_record_does_not_matter(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"odd.{suffix}"
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save(path, exif=b"Exif\0\0XX")
    np.testing.assert_allclose(decoding.read(path), 200 / 255, atol=0.02)
