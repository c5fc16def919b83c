"""A training run whose reward functions are nearly all attacks: it ends well, and learns from the honest ones only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import new_marker, processes_with, wait_until

from reinforge.run_store.run import Run
from reinforge.sandbox import tiers

PROGRAM = Path(__file__).with_name("hostile_run.py")
KINDS = {
    "fork_bomb": "raised",
    "doubling_forks": "raised, exited",
    "thread_bomb": "raised",
    "loud": "not_finite",
    "memory_bomb": "out_of_memory",
    "hang": "timeout",
    "leaver": "exited",
    "closer": "exited",
    "forger": "exited",
}
"""How an attack that gives no score ends, unless it meets its deadline before; the others may say what they like."""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What attacks must not reach: a file, and sockets that must hear nothing."""
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(folder.stat().st_mode | 0o055)  # not even this protects the file
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    secret.chmod(0o666)
    unix, abstract = str(tmp_path / "socket"), f"reinforge-run-{os.getpid()}"
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        named, hidden = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        named.bind(unix)
        os.chmod(unix, 0o777)
        hidden.bind(f"\0{abstract}")
        for listener in (named, hidden):
            listener.listen()
        yield {
            "marker": new_marker(),
            "secret": str(secret),
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": unix,
            "abstract": abstract,
        }
        for listener in (tcp, udp, named, hidden):
            listener.setblocking(False)
        for listener in (tcp, named, hidden):
            with pytest.raises(BlockingIOError):
                listener.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)
    assert secret.read_text() == "hunter2"


@pytest.mark.slow
def test_a_run_of_attacks_ends_well(tiny_qwen2, tmp_path, outside, isolating_tier):
    environment = {**os.environ, tiers.VARIABLE: isolating_tier.name, "CANARY": "hunter2"}
    command = [sys.executable, str(PROGRAM), str(tiny_qwen2), str(tmp_path), json.dumps(outside)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert wait_until(lambda: not processes_with(outside["marker"]), 10.0)
    assert done.returncode == 0, done.stderr
    calm, attacked = json.loads(done.stdout)
    assert attacked - calm < 50e6  # the trainer's memory is flat
    with Run.open(tmp_path / "attacked") as run:
        assert run.status() == ("succeeded", "")
        assert run.about["sandbox"]["tier"] == isolating_tier.name
        completions = run.completions(step=1)
        by_name: dict[str, list[Any]] = {}
        for scores in run.scores(completion.id for completion in completions).values():
            for score in scores:
                by_name.setdefault(score.name, []).append(score)
    assert len(completions) == 4
    for name in ("honest", "honest_group"):
        assert [score.value for score in by_name[name]] == [len(c.text) / 100 for c in completions]
    for name, kind in KINDS.items():
        assert {score.kind for score in by_name[name]} <= {*kind.split(", "), "timeout"}, (name, by_name[name])
        assert {score.value for score in by_name[name]} == {None}
    for name in ("spy", "caller"):
        assert [(score.value, score.message) for score in by_name[name]] == [(0.0, "")] * 4
    assert all(len(score.prints) < 20_100 and "[... cut: " in score.prints for score in by_name["loud"])
