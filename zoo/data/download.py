"""MNIST from its mirrors: four files, compared with their SHA-256 before they are kept."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from zoo.data.idx import FILES
from zoo.errors import MachineError


class Official(NamedTuple):
    """Size in bytes and SHA-256 of one of MNIST's official .gz files."""

    size: int
    sha256: str


MNIST_GZ = {
    FILES[0]: Official(9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    FILES[1]: Official(28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    FILES[2]: Official(1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    FILES[3]: Official(4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


CONNECT_SECONDS = 5.0  # for all mirrors together
STALL_SECONDS = 15.0
FETCH_SECONDS = 900.0  # for one file


def download(root: Path, say: Callable[[str], None] = print) -> Path:
    """Download MNIST into root/MNIST/raw, verified; returns that folder.

    https only, no redirects. One process at a time downloads. Raises MachineError when no mirror
    answers within 5 seconds, or on any failure of the disk.
    """
    listed = ", ".join(f"{name}.gz (SHA-256 {official.sha256})" for name, official in MNIST_GZ.items())
    by_hand = f"place {listed} into {root / 'MNIST' / 'raw'}"
    first = _first_mirror()
    if first is None:
        raise MachineError(f"no mirror of MNIST answered within {CONNECT_SECONDS:g} s", MIRRORS[0], by_hand)
    failures: list[MachineError] = []
    for mirror in (first, *(mirror for mirror in MIRRORS if mirror != first)):
        try:
            return _download_from(mirror, root / "MNIST" / "raw", say)
        except MachineError as error:
            failures.append(error)
    raise MachineError(failures[0].what, failures[0].where, by_hand)


def _download_from(mirror: str, place: Path, say: Callable[[str], None]) -> Path:
    """Fetch what is missing of MNIST from one mirror into a folder; raises MachineError."""
    import filelock
    import requests

    from zoo.runs import write_atomically

    try:
        place.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(place / ".download.lock")):
            for name, official in MNIST_GZ.items():
                if (place / f"{name}.gz").is_file() and sha256(place / f"{name}.gz") == official.sha256:
                    continue
                say(f"downloading {mirror}{name}.gz")
                write_atomically(place / f"{name}.gz", _fetch(f"{mirror}{name}.gz", official))
    except requests.RequestException as error:
        raise MachineError(f"the download failed: {type(error).__name__}", mirror) from None
    except OSError as error:
        raise MachineError(f"cannot store MNIST: {error.strerror or error}", place) from None
    return place


def _fetch(url: str, official: Official) -> bytes:
    """The content of a file on a server, if it is the official one; raises MachineError.

    No more than its size is taken, within FETCH_SECONDS. Raises requests.RequestException where the
    connection fails or nothing comes for STALL_SECONDS.
    """
    import requests

    content = bytearray()
    started = time.monotonic()
    waits = (CONNECT_SECONDS, STALL_SECONDS)
    with requests.get(url, timeout=waits, allow_redirects=False, stream=True) as answer:
        if answer.status_code != 200:
            raise MachineError(f"the download failed: the server answers {answer.status_code}", url)
        for chunk in answer.iter_content(2**16):
            content += chunk
            if len(content) > official.size:
                break
            if time.monotonic() - started > FETCH_SECONDS:
                raise MachineError(f"the download took longer than {FETCH_SECONDS:g} s", url)
    if hashlib.sha256(content).hexdigest() != official.sha256:
        raise MachineError("the download is not MNIST: its SHA-256 differs", url)
    return bytes(content)


def _first_mirror() -> str | None:
    """The first mirror to say that it has a file, or None after CONNECT_SECONDS."""
    import requests

    answered: list[str] = []
    done = threading.Event()
    waiting = [len(MIRRORS)]
    lock = threading.Lock()

    def ask(mirror: str) -> None:
        try:
            url = f"{mirror}{FILES[3]}.gz"
            answer = requests.head(url, timeout=CONNECT_SECONDS, allow_redirects=False)
            if answer.status_code == 200:
                answered.append(mirror)
                done.set()
        except (requests.RequestException, OSError):  # OSError: certificates that are not there
            pass
        with lock:
            waiting[0] -= 1
            if not waiting[0]:
                done.set()

    for mirror in MIRRORS:  # daemons: a resolver that hangs must not hold up the process
        threading.Thread(target=ask, args=(mirror,), daemon=True).start()
    done.wait(CONNECT_SECONDS)
    return answered[0] if answered else None


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
