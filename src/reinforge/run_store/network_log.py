"""`network.jsonl`: every connection that a run's reward functions asked for, one JSON object a line.

    {"at", "function", "host", "verdict", "reason", "sent_bytes", "received_bytes", "duration_s"}

`at` is seconds since 1970 at its end, `function` a version, `host` name:port (empty when none was named), `verdict`
allowed, refused (by the rules), failed (allowed, but nobody answered) or cut (ended at a limit). Beyond MAX_BYTES the
last line says {"full": true}, and connections are only counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "network.jsonl"
MAX_BYTES = 64 << 20


class NetworkLog:
    """Appends to a run's file, which is made with the first line."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = folder / FILE_NAME
        self._left = max_bytes - (self._path.stat().st_size if self._path.exists() else 0)

    def write(self, connection: Mapping[str, Any]) -> None:
        """One line, unless the file is full; OSError when the disk takes none."""
        if self._left <= 0:
            return
        line = json.dumps(connection)
        self._left -= len(line) + 1
        if self._left <= 0:
            line = json.dumps({"full": True})
        self._append(f"{line}\n".encode("ascii"))

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # what a killed trainer had begun
                data = b"\n" + data
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def read_network_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's file, without torn ones; none where there is no file."""
    try:
        file = (folder / FILE_NAME).open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
