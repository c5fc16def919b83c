"""Looks for processes on this machine, for tests that must leave none."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from pathlib import Path


def is_alive(process_id: int) -> bool:
    """Whether a process runs (a zombie that nobody has reaped yet does not)."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def new_marker() -> str:
    """An argument for `sleep` that no other process on this machine has: a worker's process ids mean nothing here."""
    return f"60.{random.SystemRandom().randrange(10**12):012d}"


def processes_with(marker: str) -> list[int]:
    """Ids of running processes with the marker among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (path / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if marker.encode() in arguments and is_alive(int(path.name)):
            found.append(int(path.name))
    return found


def wait_until(condition: Callable[[], object], limit_s: float = 5.0) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def own_memory_bytes() -> int:
    """Of this process, in main memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
