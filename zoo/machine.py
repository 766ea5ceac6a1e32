"""What the machine offers: how many threads to use, and which versions are installed."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from zoo.errors import MachineError

MOST_THREADS = 256
ONE_BATCH = 1000  # images that go to a framework in one piece; of more there may be several
CHECKPOINT_SECONDS = 5.0
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # of Intel, Intel and AMD, Arm
DISTRIBUTIONS = ("cnn-zoo", "numpy", "onnx", "onnxruntime", "safetensors")


def threads() -> int:
    """Processors that this process may use: its affinity, limited by the cgroup's quota.

    ZOO_THREADS, a positive integer, overrides it; anything else there is ignored.
    """
    if wish := chosen_threads():
        return wish
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return min(count, MOST_THREADS)


def checkpoint_seconds() -> float:
    """The least time between two checkpoints of a training: ZOO_CHECKPOINT_SECONDS, or 5 s.

    0 is a checkpoint after every step.
    """
    try:
        seconds = float(os.environ.get("ZOO_CHECKPOINT_SECONDS", ""))
    except ValueError:
        return CHECKPOINT_SECONDS
    return seconds if seconds >= 0 else CHECKPOINT_SECONDS  # not for NaN


def is_thread_count(value: object) -> bool:
    """Whether something is a number of threads that may be asked for."""
    return type(value) is int and 0 < value <= MOST_THREADS


def chosen_threads() -> int | None:
    """The number of threads that ZOO_THREADS asks for; None if it asks for none."""
    wish = os.environ.get("ZOO_THREADS", "")
    return int(wish) if wish.isdecimal() and len(wish) <= 3 and 0 < int(wish) <= MOST_THREADS else None


def version(distribution: str) -> str | None:
    """The installed version of a distribution, without importing it; None if it is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """The versions of Python, of what every run uses, and of more distributions where installed."""
    return {"python": platform.python_version(), **only((*DISTRIBUTIONS, *more))}


def only(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of these distributions, where they are installed."""
    found = {name: version(name) for name in distributions}
    return {name: number for name, number in found.items() if number}


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def bfloat16_instructions() -> list[str]:
    """What the processor has to compute in bfloat16, by the system's names; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return [name for name in BFLOAT16 if name in flags]


def check_packages() -> None:
    """Raise MachineError if another package or file hides our `backends` or `export`.

    Both are common names: a folder or file of the user's, earlier on Python's path, would be
    imported in their place.
    """
    root = Path(__file__).resolve().parents[1]
    for name in ("backends", "export"):
        spec = importlib.util.find_spec(name)
        found = spec.origin if spec else None
        if spec and not found:  # a folder without __init__.py
            found = next(iter(spec.submodule_search_locations or []), None)
        if found is None or Path(found).resolve() != root / name / "__init__.py":
            raise MachineError(
                f"the zoo's package {name!r} is hidden by another of that name",
                found or "nowhere to be found",
                "rename it, or start the zoo from another folder",
            )
