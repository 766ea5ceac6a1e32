"""Data sets: IDX files sound and damaged, the embedded digits, the split, the choice of `auto`."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from idx_files import idx

from zoo import data
from zoo.data import download, sets
from zoo.errors import DataError, InvalidInput, MachineError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small sound data set in torchvision's layout, its training images compressed."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        images = idx(rng.integers(0, 256, (count, 28, 28)))
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return tmp_path


@pytest.mark.parametrize("inside", ["", "MNIST", "MNIST/raw"])
def test_a_folder_is_found_from_every_level(folder: Path, inside: str) -> None:
    dataset = data.load(str(folder / inside))
    assert dataset.train_images.shape == (20, 1, 28, 28)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.test_labels.tolist() == list(range(10))
    assert dataset.train_labels.dtype == np.int64


def test_mnist_is_found_in_the_data_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.load("mnist", folder).name == "mnist"
    monkeypatch.setenv("ZOO_DATA", str(folder))
    assert data.load("auto").name == "mnist"
    assert data.load("mnist").sha256 == data.load(str(folder)).sha256
    (folder / "MNIST").rename(folder / "digits")
    assert data.load(str(folder / "digits")).name == "folder:digits"


SOUND = idx(np.arange(12).reshape(3, 2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"<html>", "not an IDX file"),
        (SOUND[:3], "not an IDX file"),
        (SOUND[:10], "the IDX header is cut off"),
        (SOUND[:-1], "fewer values than the 12"),
        (SOUND + b"\0", "more values than the 12"),
        (idx(np.arange(3)), "1 dimensions where 3 are expected"),
        (idx(np.zeros((3, 2, 2)), element=0xD), "element type 0xd"),
        (idx(np.zeros((0, 2, 2))), r"announces the shape \(0, 2, 2\)"),
        (b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3, "announces the shape"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_unsound_idx(content: bytes, message: str, compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("x.gz" if compressed else "x")
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(DataError, match=message):
        data.read_idx(path, dimensions=3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-12],  # cut off
        lambda raw: raw[:-8] + b"\0\0\0\0" + raw[-4:],  # wrong CRC
        lambda raw: raw[:15] + bytes([raw[15] ^ 0xFF]) + raw[16:],
        lambda raw: b"plain text",
        lambda raw: raw + b"trailing",
    ],
)
def test_damaged_gz(damage, tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(damage(gzip.compress(SOUND)))
    with pytest.raises(DataError, match="damaged|more values|fewer values|not an IDX"):
        data.read_idx(path, dimensions=3)


def test_a_gz_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(SOUND + bytes(50_000_000)))
    with pytest.raises(DataError, match="more values than the 12"):
        data.read_idx(path, dimensions=3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", idx(np.arange(19)), "20 train images and 19 labels"),
        ("t10k-labels-idx1-ubyte", idx(np.full(10, 10)), "a t10k label is 10, outside 0..9"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((10, 8, 8))), "images of"),
    ],
)
def test_files_that_do_not_fit_each_other(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.load(str(folder))


def test_paths_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder of IDX files"):
        data.load(str(tmp_path))
    with pytest.raises(InvalidInput, match="unknown data set 'minst'.*did you mean 'mnist'"):
        data.load("minst")
    with pytest.raises(InvalidInput, match="unknown data set"):
        data.load("x" * 5000)
    with pytest.raises(InvalidInput, match="unknown data set"):
        data.load("a\0b")


def test_digits_are_the_real_scans() -> None:
    dataset = data.digits()
    assert dataset.train_images.shape == (1500, 1, 28, 28)
    assert dataset.test_images.shape == (297, 1, 28, 28)
    counts = np.bincount(np.concatenate([dataset.train_labels, dataset.test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # UCI's own table
    assert dataset.sha256 == DIGITS_SHA256
    assert dataset.train_images.max() == 255
    border = np.ones((28, 28), dtype=bool)
    border[4:24, 4:24] = False
    assert not dataset.train_images[:, 0, border].any()


DIGITS_SHA256 = "2d01d7b0b3c75b4130b22c36ab2712f3f3ba11e446568a6db145491d2df782a6"


def test_enlarging_keeps_flat_areas_and_mass() -> None:
    flat = sets._enlarge(np.full((1, 8, 8), 16, dtype=np.uint8))[0]
    assert (flat[4:24, 4:24] == 255).all()
    rng = np.random.default_rng(0)
    small = rng.integers(0, 17, (5, 8, 8)).astype(np.uint8)
    large = sets._enlarge(small)
    # Each inner source pixel covers 2.5 x 2.5 target pixels; borders are repeated, which costs a little.
    np.testing.assert_allclose(large.mean((1, 2)) * 784 / 400 / 255, small.mean((1, 2)) / 16, rtol=0.1)


def test_split_holds_out_and_limits() -> None:
    dataset = data.digits()
    whole = data.split(dataset, 250, seed=0)
    assert len(whole.train_labels) == 1250
    assert len(whole.validation_labels) == 250
    limited = data.split(dataset, 250, seed=0, limit=100)
    np.testing.assert_array_equal(limited.train_images, whole.train_images[:100])
    np.testing.assert_array_equal(limited.validation_images, whole.validation_images)
    np.testing.assert_array_equal(limited.test_images, dataset.test_images)
    together = np.concatenate([whole.train_images, whole.validation_images])
    assert sorted(map(bytes, together)) == sorted(map(bytes, dataset.train_images))
    assert not np.array_equal(data.split(dataset, 250, seed=1).train_labels, whole.train_labels)
    plain = data.split(dataset, 0, seed=0)
    np.testing.assert_array_equal(plain.train_images, dataset.train_images)


def test_floats_are_those_of_a_division_by_255() -> None:
    values = np.arange(256, dtype=np.uint8)
    floats = data.to_float(values)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, (values / np.float32(255)).astype(np.float32))
    assert floats[[0, 255]].tolist() == [0.0, 1.0]


def test_auto_falls_back_to_digits_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_first_mirror", lambda: None)
    said: list[str] = []
    assert data.load("auto", tmp_path, said.append).name == "digits"
    assert len(said) == 1
    assert "embedded `digits`" in said[0]
    with pytest.raises(MachineError, match="no mirror of MNIST answered.*place train-images-idx3-ubyte.gz"):
        data.load("mnist", tmp_path, said.append)


def test_a_mirror_that_hangs_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    import time

    import requests

    stop = threading.Event()

    def hang(*_: object, **__: object) -> None:
        stop.wait(60)
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", hang)
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.3)
    started = time.monotonic()
    assert download._first_mirror() is None
    assert time.monotonic() - started < download.CONNECT_SECONDS + 1
    stop.set()


def test_the_second_mirror_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fetch(mirror: str, place: Path, _: object) -> Path:
        tried.append(mirror)
        if len(tried) == 1:
            raise MachineError("the download failed: ConnectionError", mirror)
        return place

    monkeypatch.setattr(download, "_first_mirror", lambda: download.MIRRORS[1])
    monkeypatch.setattr(download, "_download_from", fetch)
    assert download.download(tmp_path) == tmp_path / "MNIST" / "raw"
    assert tried == [download.MIRRORS[1], download.MIRRORS[0]]


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    """Takes what a server on this machine answers, and gives its address as that of the only mirror."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *arguments: object) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(download, "MIRRORS", (address,))
        monkeypatch.setattr(download, "_first_mirror", lambda: address)
        return address

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, body: bytes, length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def redirect(handler: http.server.BaseHTTPRequestHandler, to: str) -> None:
    handler.send_response(302)
    handler.send_header("Location", to)
    handler.end_headers()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda h: send(h, b"<html>not found</html>"), "the download is not MNIST"),
        (lambda h: send(h, b"x" * 10**8), "the download is not MNIST"),
        (lambda h: send(h, b"short", length=1000), "the download failed"),
        (lambda h: send(h, b""), "the download is not MNIST"),
        (lambda h: redirect(h, h.path), "the server answers 302"),  # in a circle
        (lambda h: redirect(h, "http://127.0.0.1:9/"), "the server answers 302"),
        (lambda h: h.send_error(404), "the server answers 404"),
        (lambda h: h.wfile.write(b"nonsense"), "the download failed: ConnectionError"),
        (lambda h: h.connection.close(), "the download failed: ConnectionError"),
        (lambda h: time.sleep(3), "the download failed: ReadTimeout"),
        (lambda h: send(h, b"x", length=9) or time.sleep(3), "the download failed: ConnectionError"),
    ],
    ids=[
        "page", "endless", "cut off", "empty", "circle", "redirect", "404", "nonsense", "closed",
        "silent", "stalls",
    ],
)  # fmt: skip
def test_a_download_of_something_else_is_refused(
    answer: Answer,
    message: str,
    mirror: Callable[[Answer], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within the time for a silent server, and nothing of it is stored; then it says what to do by hand."""
    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    mirror(answer)
    started = time.monotonic()
    with pytest.raises(MachineError, match=message) as error:
        data.load("mnist", tmp_path, lambda _: None)
    assert time.monotonic() - started < 2.5
    official = download.MNIST_GZ[data.FILES[0]]
    assert f"place train-images-idx3-ubyte.gz (SHA-256 {official.sha256})" in error.value.hint
    assert [path.name for path in (tmp_path / "MNIST" / "raw").iterdir()] == [".download.lock"]


def test_a_download_that_drips_ends(
    mirror: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, b"", length=10**6)
        with contextlib.suppress(OSError):
            for _ in range(15):
                handler.wfile.write(b"x" * 2**16)
                time.sleep(0.05)

    monkeypatch.setattr(download, "FETCH_SECONDS", 0.3)
    monkeypatch.setattr(download, "MNIST_GZ", {data.FILES[0]: download.Official(10**6, "0")})
    mirror(drip)
    with pytest.raises(MachineError, match=r"the download took longer than 0.3 s"):
        data.load("mnist", tmp_path, lambda _: None)


def test_a_download_arrives_verified(
    tmp_path: Path, folder: Path, mirror: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = folder / "MNIST" / "raw"
    for name in data.FILES:
        if not (raw / f"{name}.gz").exists():
            (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
    content = {f"{name}.gz": (raw / f"{name}.gz").read_bytes() for name in data.FILES}
    official = {
        name: download.Official(len(content[f"{name}.gz"]), hashlib.sha256(content[f"{name}.gz"]).hexdigest())
        for name in data.FILES
    }
    asked: list[str] = []

    def serve(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.path.strip("/"))
        send(handler, content[asked[-1]])

    address = mirror(serve)
    monkeypatch.setattr(download, "MNIST_GZ", official)
    cache = tmp_path / "cache"
    monkeypatch.setattr(sets, "cache_folder", lambda: cache)
    monkeypatch.delenv("ZOO_DATA", raising=False)
    said: list[str] = []
    assert len(data.load("mnist", None, said.append).train_labels) == 20
    assert said == [f"downloading {address}{name}.gz" for name in data.FILES]
    place = cache / "MNIST" / "raw"
    assert {path.name for path in place.iterdir()} == {*content, ".download.lock"}
    altered = place / "t10k-labels-idx1-ubyte.gz"
    altered.write_bytes(gzip.compress(idx(np.zeros(10))))
    with pytest.raises(DataError, match="altered after its download"):
        data.load("mnist", None, lambda _: None)
    altered.unlink()
    asked.clear()
    data.load("mnist", None, lambda _: None)
    assert asked == [altered.name], "only what is missing"


@pytest.mark.mnist
def test_all_images_are_those_that_torchvision_reads(
    mnist_folder: Path, tmp_path: Path, framework: str
) -> None:
    if framework != "torch":
        pytest.skip("torchvision comes with torch")
    datasets = pytest.importorskip("torchvision.datasets")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.FILES:
        with gzip.open(mnist_folder / f"{name}.gz") as packed:
            (raw / name).write_bytes(packed.read())
    ours = data.load(str(mnist_folder))
    for train, images, labels in (
        (True, ours.train_images, ours.train_labels),
        (False, ours.test_images, ours.test_labels),
    ):
        theirs = datasets.MNIST(root=tmp_path, train=train, download=False)
        np.testing.assert_array_equal(images[:, 0], theirs.data.numpy())
        np.testing.assert_array_equal(labels, theirs.targets.numpy())


@pytest.mark.mnist
def test_the_official_files_are_known(mnist_folder: Path) -> None:
    files = data.describe(data.load(str(mnist_folder)))["files"]
    assert files["t10k-images-idx3-ubyte.gz"]["official"]
    assert files["t10k-labels-idx1-ubyte.gz"]["official"]
    assert files["train-labels-idx1-ubyte.gz"]["official"]
