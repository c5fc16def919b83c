"""All memory that this process may have on this machine, whoever uses it now. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number above this where there is none."""


def host_bytes(root: Path = Path("/")) -> int | None:
    """The machine's, or what the control groups around this process allow it, if that is less; None where nobody says
    (Linux does). What others use at the moment plays no part, so equal machines give equal numbers."""
    return min((*_machine(root / "proc/meminfo"), *_groups(root)), default=None)


def _machine(meminfo: Path) -> Iterator[int]:
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))


def _groups(root: Path) -> Iterator[int]:
    """Limits of the groups this process is in and of those around them, in both versions of control groups."""
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = mount / path.lstrip("/")
        # In a container the path may be the host's, and the limit stands at the mount itself.
        for place in dict.fromkeys((folder, *folder.parents)):
            if place == mount or mount in place.parents:
                yield from _limit(place / file)


def _limit(path: Path) -> Iterator[int]:
    try:
        text = path.read_text().strip()
    except OSError:
        return
    if text != "max" and int(text) < NO_LIMIT:
        yield int(text)
