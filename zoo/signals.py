"""A command that is asked to stop: what it is doing ends in order, the second time at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@contextmanager
def orderly(stop: Callable[[], None]) -> Iterator[list[int]]:
    """While inside, the first SIGINT or SIGTERM calls `stop`; the next one does what it did before.

    Gives the list of the exit codes of those that came. In another thread than the first, which
    gets no signals, nothing changes.
    """
    codes: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield codes
        return
    before = {number: signal.getsignal(number) for number in CODES}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        restore()
        codes.append(CODES[signal.Signals(number)])
        stop()

    for number in CODES:
        signal.signal(number, handle)
    try:
        yield codes
    finally:
        restore()
