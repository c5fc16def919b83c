"""A trainer killed at any system call while run.db enters or leaves WAL mode: readers and the next trainer find all."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reinforge.run_store import Event, Run
from reinforge.run_store.database import close_writer, open_writer

PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24
NUM_EVENTS = 30

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts system calls with Linux's ptrace")


@pytest.fixture
def ptrace() -> Callable[[int, int], None]:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    libc.ptrace.restype = ctypes.c_long

    def call(request: int, process: int) -> None:
        if libc.ptrace(request, process, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    return call


def killed_at_stop(number: int, work: Callable[[Callable[[], None]], None], ptrace: Callable[[int, int], None]) -> bool:
    """Run `work` in a fork and kill it when it enters or leaves a system call for the `number`-th time, counted from
    where it calls what it is given; False when it was done before."""
    child = os.fork()
    if child == 0:
        ptrace(PTRACE_TRACEME, 0)
        work(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSTOPPED(status), status
    assert os.WSTOPSIG(status) == signal.SIGUSR1
    for _ in range(number):
        ptrace(PTRACE_SYSCALL, child)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def entering(path: Path, begin: Callable[[], None]) -> None:
    begin()
    open_writer(path)


def leaving(path: Path, begin: Callable[[], None]) -> None:
    connection = open_writer(path)
    connection.execute("INSERT INTO meta VALUES ('last word', 'said')")
    begin()
    close_writer(connection)


def last_word(run: Run) -> list[tuple[str]]:
    return run._db.execute("SELECT value FROM meta WHERE key = 'last word'").fetchall()


@pytest.mark.slow
@pytest.mark.parametrize("switch", [entering, leaving])
def test_every_moment_of_the_switch(tmp_path: Path, ptrace, switch):
    with Run.create(tmp_path, "whole", {"train_steps": 1}, {}) as run:
        for number in range(NUM_EVENTS):
            run.record_event(Event("note", str(number)))
        run.finish("succeeded")
    killed, moment, leftovers = tmp_path / "killed", 1, set[str]()
    shutil.copytree(tmp_path / "whole", killed)
    while killed_at_stop(moment, lambda begin: switch(killed / "run.db", begin), ptrace):
        leftovers |= {path.name for path in killed.glob("run.db-*")}
        with Run.open(killed) as reader:
            assert len(reader.events(limit=-1)) == NUM_EVENTS
            assert reader.status() == ("succeeded", "")
            assert len(last_word(reader)) == (switch is leaving)
        with Run.open(killed, writable=True) as trainer:
            assert len(trainer.events(limit=-1)) == NUM_EVENTS
            trainer.finish("succeeded")
        assert not list(killed.glob("run.db-*"))
        shutil.rmtree(killed)
        shutil.copytree(tmp_path / "whole", killed)
        moment += 2  # to leave one call is to be about to enter the next
    assert "run.db-journal" in leftovers  # else this test has not met what it is for
