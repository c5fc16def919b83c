"""One trainer per run: an operating-system lock that ends with the process, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from reinforge.errors import UsageError

_PATIENCE_S = 1.0
"""A reader that looks whether the lock is free holds it for microseconds; a trainer waits that out."""


class RunLock:
    """The right to write into a run: an exclusive `flock` on `<run>/lock` until `release` or the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _try_lock(self._descriptor, _PATIENCE_S):
            owner = _read_owner(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
            raise UsageError(
                f"{path.parent} is being trained by process {owner['pid']} on {owner['host']}; a run has one trainer.",
                hint="Wait for it, or stop it with Ctrl-C or SIGTERM.",
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        # A forked worker would hold the lock after the trainer has died.
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Let another trainer in. Twice is fine."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether a trainer is alive on this run. Creates nothing; a copied run has no trainer."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, 0.0)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _read_owner(descriptor: int) -> dict[str, object]:
    text = os.pread(descriptor, 1000, 0)
    try:
        return dict(json.loads(text))
    except ValueError:  # The owner has the lock but has not written its name yet.
        return {"pid": "?", "host": "?"}
