"""What a started worker process consists of, and how all of it is ended: nothing of it may stay."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from reinforge.sandbox.cgroup import Cgroup
from reinforge.sandbox.proxy import WorkerProxy

NAMESPACE_END_S = 5.0
"""How long the kernel may take to end the processes of a namespace."""


@dataclass(frozen=True, slots=True)
class Remains:
    """All that a worker process leaves to be ended, closed and removed."""

    process: subprocess.Popen[bytes]
    first: int | None
    """Process descriptor of the first process of its namespace."""
    pipe: int
    """Our end: while it is open, the worker knows that we live."""
    cgroup: Cgroup | None
    channel: socket.socket
    output: int
    folder: str
    proxy: WorkerProxy | None
    """Its only way to the network."""


def make_pipe(undo: contextlib.ExitStack, *, we_read: bool) -> tuple[int, int]:
    """(our end, the worker's end)."""
    reading, writing = os.pipe()
    ours, theirs = (reading, writing) if we_read else (writing, reading)
    undo.callback(os.close, ours)
    return ours, theirs


def first_process(pipe: int) -> int | None:
    """A descriptor of the process that bwrap reports: unlike its number it cannot come to mean another process."""
    report = b""
    while part := os.read(pipe, 4096):
        report += part
    try:
        return os.pidfd_open(json.loads(report)["child-pid"])
    except (ValueError, KeyError, ProcessLookupError):  # bwrap failed: what it said is in the output
        return None


def kill(remains: Remains) -> None:
    """End all of it, reap it and remove its folder. The leader is reaped last, so that its process id cannot belong
    to anybody else while the group is signalled."""
    kill_all(remains)
    if remains.first is not None:
        # It ends after all processes of its namespace; bwrap, which reaps it, ends only then.
        select.select([remains.first], [], [], NAMESPACE_END_S)
        _kill_group(remains.process)
        os.close(remains.first)
    remains.process.wait()
    if remains.cgroup is not None:
        remains.cgroup.remove()
    if remains.proxy is not None:
        remains.proxy.close()
    remains.channel.close()
    os.close(remains.pipe)
    os.close(remains.output)
    shutil.rmtree(remains.folder, ignore_errors=True)  # user code may have left files nobody can delete


def kill_all(remains: Remains) -> None:
    if remains.first is None:
        _kill_group(remains.process)
        return
    with contextlib.suppress(OSError):  # it ended, or was closed
        signal.pidfd_send_signal(remains.first, signal.SIGKILL)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS, when only the dead leader is left in the group
        process.kill()


def start_process(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Popen, from the one thread that starts all workers."""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, **options)

    return _starter.submit(start).result()


def _new_starter() -> None:
    global _starter
    _starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-start")


_starter: ThreadPoolExecutor
"""Starts every worker: bwrap ends with the thread that started it, so that thread must live as long as we do."""
_new_starter()
os.register_at_fork(after_in_child=_new_starter)
