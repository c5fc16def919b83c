"""Requests to a run's trainer: files in `control/`, each there whole or not at all.

Whoever wants something of a run that may be training in another process writes a file; the trainer takes it between
two steps, or when it next starts. A request keeps its id wherever it is recorded, so one that was carried out is known
again when the trainer died before it could remove the file.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reinforge.run_store.files import replace_durably

REWARDS = "rewards"
"""The kind of a request that changes the reward functions."""


@dataclass(frozen=True, slots=True)
class Request:
    """One file in `control/`."""

    id: str
    """Sorts by the time of writing."""
    path: Path
    text: str
    """As it was written: not trusted to be anything."""


def write_request(run_dir: Path, kind: str, text: str, request_id: str | None = None) -> str:
    """Put a request into place; its id. The same id again replaces it."""
    request_id = request_id or f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    replace_durably(run_dir / "control" / f"{kind}-{request_id}.json", text.encode("utf-8", "surrogatepass"))
    return request_id


def pending_requests(run_dir: Path, kind: str) -> list[Request]:
    """Requests nobody has taken yet, oldest first."""
    found = []
    for path in sorted((run_dir / "control").glob(f"{kind}-*.json")):
        with suppress(FileNotFoundError, IsADirectoryError):  # withdrawn or taken while we look
            text = path.read_bytes().decode("utf-8", "replace")
            found.append(Request(path.stem.removeprefix(f"{kind}-"), path, text))
    return found


def remove_request(request: Request) -> None:
    """A request that was carried out, refused or withdrawn is used up."""
    request.path.unlink(missing_ok=True)
