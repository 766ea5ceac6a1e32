"""Python in a fresh process, and what it has loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def loaded(code: str, cwd: Path | None = None) -> set[str]:
    """The top-level modules that a fresh process has loaded after running some code."""
    script = (
        f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=cwd)
    return set(done.stderr.splitlines()[-1].split())


def command(*arguments: str) -> str:
    return f"""
import importlib.metadata
def scanned(*_, **__):
    raise AssertionError("entry points were scanned")
importlib.metadata.entry_points = scanned
from zoo.cli import main
try:
    main({list(arguments)!r})
except SystemExit as done:
    assert not done.code, done.code
"""
