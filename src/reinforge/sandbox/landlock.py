"""The second tier: a worker without privileges, behind Landlock and seccomp. Needs no program and no root.

What this tier stops, beside what the plain one does:
- reading any file of this machine but /usr, the system libraries and this Python installation;
- writing any file but in the worker's own folder, and changing modes, owners, times or attributes of any;
- network connections of any kind (TCP, UDP, name lookups, unix sockets); to allow some hosts only is beyond it, because
  Landlock tells ports apart but not addresses, so a run that allows hosts is refused here;
- tracing other processes, reading their memory, signalling them, changing their limits or priority;
- outliving the worker: no process can leave the group that is killed (`setsid` and `setpgid` are refused), also when
  the trainer is killed;
- more processes and threads than the limit, and more memory than the limit for all of them together where a cgroup
  is writable (see cgroup.py);
- mounts, new namespaces, key rings, BPF, io_uring, userfaultfd, set-user-id programs.

What it does NOT stop: finding out whether a path exists, its size and times (Landlock lets `stat` through), and which
process ids are in use; filling the disk that holds the temporary folder with many files; what the kernel tells anyone
(CPU, memory size, version); attacks on the kernel through the calls that are left; timing and cache side channels.
Before Linux 6.12 signals are stopped by seccomp, so that user code cannot signal its own children either. Without a
writable cgroup memory is limited per process only. Calls of one function share a process: what one of them leaves in
its globals reaches the next.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reinforge.sandbox import seccomp
from reinforge.sandbox.launch import (
    PACKAGE,
    anybody_may_enter,
    anybody_may_read,
    confined,
    interpreter_paths,
    own_user,
    readable_paths,
)
from reinforge.sandbox.limits import Limits

CREATE_RULESET = 444
SIGNALS_SCOPED_FROM = 6
"""Version of Landlock that keeps signals inside."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
FACTS = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Landlock:
    """Starts workers behind Landlock and seccomp."""

    version: int
    name: str = "landlock"
    has_namespace: bool = False
    network: Literal[""] = ""
    uses_pipe: bool = True
    uses_cgroup: bool = True

    def user(self) -> int | None:
        return own_user()

    def command(self, runner: Sequence[str], folder: str, limits: Limits, user: int | None, pipe: int) -> list[str]:
        ours = (*interpreter_paths(limits), str(PACKAGE), *limits.readable)
        open_to_all = all(map(anybody_may_enter, ours)) and all(map(anybody_may_read, limits.readable))
        keep_reading = user is not None and not open_to_all
        calls = seccomp.filter_program(
            own_files_only=True, own_group_only=True, own_signals_only=self.version < SIGNALS_SCOPED_FROM
        )
        return confined(
            runner,
            limits,
            user,
            calls,
            keep_reading=keep_reading,
            own_namespace=not keep_reading,  # inside one, the capability would hold for nothing
            read=[*readable_paths(limits), *FACTS, "{self}"],
            write=[folder, *DEVICES],
            life=pipe,
            folder=folder,
        )


def find_landlock() -> Landlock | str:
    """The tier, or why it is missing."""
    if sys.platform != "linux":
        return f"Landlock is part of Linux; this is {sys.platform}"
    if not seccomp.known_machine():
        return f"no table of system calls for {os.uname().machine}"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return f"this kernel ({os.uname().release}) has Landlock switched off or is older than 5.13"
    return Landlock(int(version))
