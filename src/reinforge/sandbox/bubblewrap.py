"""The best tier: a worker in namespaces of its own, made by the program `bwrap` (https://github.com/containers/bubblewrap).

What this tier stops, beside what the plain one does:
- reading any file of this machine but /usr, the system libraries and this Python installation;
- writing any file but in a memory file system of bounded size that ends with the worker;
- network connections of any kind (TCP, UDP, name lookups, unix sockets, also abstract ones), but to the hosts that the
  user allowed, through a proxy of ours (proxy.py): the one thing in the worker's own network;
- seeing other processes, signalling, tracing or slowing them down;
- outliving the worker: `setsid`, double forks and daemons die with it, also when the trainer is killed;
- more processes and threads than the limit, and more memory than the limit for all of them together where a cgroup
  is writable (see cgroup.py);
- mounts, new namespaces, key rings, BPF, io_uring, userfaultfd, set-user-id programs, input faked on a terminal.

What it does NOT stop: attacks on the kernel through the calls that are left; timing and cache side channels; reading
what lies in /usr and in the Python environment; knowing the machine's name of CPU, memory size and kernel version.
Without a writable cgroup memory is limited per process only, and a worker is the first to go when it runs out. Calls
of one function share a process: what one of them leaves in its globals reaches the next.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reinforge.sandbox import seccomp
from reinforge.sandbox.launch import PROXY_PORT, anybody_may_read, confined, own_user, readable_paths
from reinforge.sandbox.limits import Limits

SHARED_MEMORY_BYTES = 16 << 20
OWN_FOLDER = "/tmp/worker"
"""Where a worker begins, empty; /tmp itself shows the first name of what is bound below it."""
DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Starts workers with `bwrap`."""

    program: str
    name: str = "bubblewrap"
    has_namespace: bool = True
    network: Literal["own"] = "own"
    uses_pipe: bool = True
    uses_cgroup: bool = True

    def user(self) -> int | None:
        return own_user()

    def command(self, runner: Sequence[str], folder: str, limits: Limits, user: int | None, pipe: int) -> list[str]:
        """The worker's folder is OWN_FOLDER in there; `folder` itself stays outside."""
        filter_known = seccomp.known_machine()
        port = PROXY_PORT if limits.allowed_hosts else None
        calls = (
            seccomp.filter_program(
                own_files_only=False, own_group_only=False, own_signals_only=False, tcp=port is not None
            )
            if filter_known
            else b""
        )
        keep_reading = user is not None and not all(map(anybody_may_read, limits.readable))
        own_namespace = user is not None and not keep_reading  # inside one, the capability would hold for nothing
        return [
            self.program,
            *_namespaces(user),
            *(["--cap-add", "CAP_DAC_READ_SEARCH"] if keep_reading else []),
            *_files(limits),
            *("--info-fd", str(pipe), "--"),
            *confined(
                runner,
                limits,
                user,
                calls,
                keep_reading=keep_reading,
                own_namespace=own_namespace,
                proxy_port=port,
            ),
        ]


def _namespaces(user: int | None) -> list[str]:
    """As root, bwrap makes no user namespace: confine.py enters one, after it became a user of its own."""
    options = ["--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
    options += ["--unshare-uts", "--hostname", "sandbox", "--unshare-cgroup-try", "--cap-drop", "ALL"]
    if user is None:
        return [*options, "--unshare-user"]
    return [*options, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


def _files(limits: Limits) -> list[str]:
    """First what is the worker's own, then the read-only paths: a Python environment may lie below /tmp."""
    options = ["--proc", "/proc", "--perms", "0755", "--dir", "/dev"]
    for device in DEVICES:
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    options += ["--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"]
    options += ["--perms", "1777", "--size", str(limits.max_disk_bytes), "--tmpfs", "/tmp"]
    bound: list[str] = []
    for path in readable_paths(limits):
        if any(path.startswith(f"{folder}/") for folder in bound):
            continue
        for parent in reversed(Path(path).parents[:-1]):  # else bwrap makes them for its own user only
            options += ["--perms", "0755", "--dir", str(parent)]
        if os.path.islink(path) and os.path.isdir(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind", path, path]
            bound.append(path)
    options += ["--perms", "0777", "--dir", OWN_FOLDER]
    return [*options, "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", OWN_FOLDER]


def find_bubblewrap() -> Bubblewrap | str:
    """The tier, or why it is missing."""
    program = shutil.which("bwrap")
    if program is None:
        return "the program bwrap is not installed (apt install bubblewrap)"
    options = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    if "--size" not in options:
        return f"{program} is older than 0.7 and cannot bound the worker's files"
    return Bubblewrap(program)
