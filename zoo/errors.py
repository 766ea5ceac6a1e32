"""Every failure a user can meet is a ZooError: one line, and the exit code of the command.

The outermost caller prints `error: what (where); what to do` and exits with `code`. Inner code
raises the class that fits and adds nothing else; a traceback is shown only on request. An
exception that is not a ZooError is a bug of ours and exits with 70.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(Exception):
    """A failure with an exit code.

    what: one sentence without a full stop. where: the path, field or option concerned.
    hint: what the user can do about it.
    """

    code = 70

    def __init__(self, what: str, where: object = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = str(where) if where != "" else ""
        self.hint = hint

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        hint = f"; {self.hint}" if self.hint else ""
        # A file name may hold a newline or a control character: the message stays one line.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.what + where + hint)

    def to_dict(self) -> dict[str, object]:
        """The same failure for programs: code, message, path and hint."""
        return {"code": self.code, "message": self.what, "path": self.where, "hint": self.hint}


class CheckFailed(ZooError):
    """A comparison or gate failed: what was built does not compute what was written."""

    code = 1


class InvalidInput(ZooError):
    """A bad option, name or value given by the user."""

    code = 2


class InvalidSpec(InvalidInput):
    """A layer, recipe or model that cannot exist: wrong type, wrong range, shapes that collapse.

    layer: where the layer stands at which a model's shapes fail: its index among the model's, or
    (index, name of the branch, index there, ...).
    """

    layer: tuple[int | str, ...] = ()


class UnsupportedLayer(InvalidInput):
    """A backend has no rule for a layer of the spec."""


class BackendUnavailable(ZooError):
    """A backend's framework is missing, broken or too old."""

    code = 3


class DataError(ZooError):
    """A data set or artifact is missing, corrupt or altered."""

    code = 4


class MachineError(ZooError):
    """The surroundings failed: disk, permission, lock, network, memory, device."""

    code = 5


class Diverged(ZooError):
    """Training met a loss that is not a finite number."""

    code = 6


class Interrupted(ZooError):
    """A command was asked to stop, by SIGINT (130) or SIGTERM (143), and left its work in order."""

    def __init__(self, what: str, where: object = "", hint: str = "", code: int = 130) -> None:
        super().__init__(what, where, hint)
        self.code = code


class NotSupported(ZooError):
    """Something that a backend cannot do, with its reason: for example a native export."""

    code = 2


class WorkerDied(ZooError):
    """A backend's process ended without an answer."""

    code = 70


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown name: the closest known one, and the whole list."""
    known = list(known)
    by_letters = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_letters, n=1, cutoff=0.5)
    guess = f"did you mean {by_letters[close[0]]!r}? " if close else ""
    return f"{guess}known: {', '.join(known)}"
