"""One cgroup per worker, where this user may make any: bounds memory and processes of all it starts together."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from reinforge.sandbox.limits import Limits

PREFIX = "reinforge-worker-"
REMOVE_S = 2.0
"""How long the kernel may take to let an empty cgroup go."""
OWN_TASKS = 3
"""Beside those of user code: bwrap twice, and the runner."""
_counter = itertools.count()


class Cgroup:
    """The folders of one worker's cgroup: one in version 2, one per controller in version 1."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)

    def remove(self) -> None:
        """Kill what is left in it and remove it."""
        end = time.monotonic() + REMOVE_S
        for folder in self.folders:
            while not _removed(folder) and time.monotonic() < end:
                time.sleep(0.005)


def entering(cgroup: Cgroup | None, command: Sequence[str]) -> list[str]:
    """The command line that enters the cgroup first: nothing that `command` starts can be outside. With or without
    one, these processes are the first to go when the machine runs out of memory."""
    files = [str(folder / "cgroup.procs") for folder in cgroup.folders] if cgroup else []
    script = 'echo 1000 > /proc/self/oom_score_adj; n=$1; shift; while [ $n -gt 0 ]; do echo $$ > "$1" || exit 75; '
    return ["/bin/sh", "-c", script + 'shift; n=$((n-1)); done; exec "$@"', "sh", str(len(files)), *files, *command]


def _removed(folder: Path) -> bool:
    try:
        for process in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # busy: a process is still ending
        return False
    return True


def make_cgroup(limits: Limits) -> Cgroup | None:
    """A new cgroup below our own; None where the kernel or our rights give none."""
    name = f"{PREFIX}{os.getpid()}-{next(_counter)}"
    made: list[Path] = []
    try:
        for parent, settings in _parents(limits):
            _sweep(parent)
            made.append(parent / name)
            made[-1].mkdir()
            for file, value in settings.items():
                (made[-1] / file).write_text(str(value))
    except OSError:
        Cgroup(made).remove()
        return None
    return Cgroup(made) if made else None


def _parents(limits: Limits) -> list[tuple[Path, dict[str, int]]]:
    """The cgroups that can hold a new one, with what is to be set in it."""
    try:
        own = [line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    root = Path("/sys/fs/cgroup")
    tasks, memory = limits.max_processes + OWN_TASKS, limits.max_memory_bytes
    first = {"memory": {"memory.limit_in_bytes": memory}, "pids": {"pids.max": tasks}}
    found = []
    for controllers, path in own:
        for name in set(controllers.split(",")) & set(first):
            folder = root / name / path.lstrip("/")
            if os.access(folder, os.W_OK):
                found.append((folder, first[name]))
        if not controllers:
            second = {"memory.max": memory, "memory.swap.max": 0, "pids.max": tasks}
            found += [(folder, second) for folder in _delegated(root, path)]
    return found


def _delegated(root: Path, path: str) -> list[Path]:
    """Version 2: the nearest cgroup above us that we may write and that hands both controllers on."""
    folder = root / path.lstrip("/")
    for candidate in (folder, *folder.parents):
        if not candidate.is_relative_to(root):
            break
        try:
            handed_on = (candidate / "cgroup.subtree_control").read_text().split()
        except OSError:  # no version 2 here
            continue
        if {"memory", "pids"} <= set(handed_on) and os.access(candidate / "cgroup.procs", os.W_OK):
            return [candidate]
    return []


def _sweep(parent: Path) -> None:
    """Remove the empty cgroups that killed trainers left behind."""
    for folder in parent.glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
