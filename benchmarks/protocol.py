"""How a worker process talks to the benchmark: one JSON object per line out, one line "go" in for each step.

A step begins when the parent says so, so that two workers take turns on one machine.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Channel:
    """The worker's end. Whatever a library prints goes to stderr from now on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def tell(self, **facts: Any) -> None:
        self._out.write(json.dumps(facts) + "\n")

    def await_go(self) -> None:
        if sys.stdin.readline().strip() != "go":
            raise SystemExit("the benchmark that started this worker is gone")


class StepClock:
    """CPU seconds of a step and its stages, and its wall seconds. Each worker has one thread, so on a machine that does
    nothing else the two agree; on a busy one wall seconds tell how busy it is. On a GPU everything is in wall seconds,
    taken when the GPU has done what it was given."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._now = time.process_time if device == "cpu" else gpu_time
        self.start()

    def start(self) -> None:
        self._stages: dict[str, float] = {}
        self._children = children_cpu_s()
        self._wall, self._cpu = time.perf_counter(), self._now()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, adding its CPU seconds to a stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._stages[name] = self._stages.get(name, 0.0) + self._now() - began

        return call

    def times(self) -> dict[str, float]:
        """`update_s` is all that is not rollout: rewards, gradient, optimizer, handing weights on, records.
        `children_s` is what the processes used that this one started, and is in none of the others."""
        cpu, rollout = self._now() - self._cpu, self._stages.get("rollout", 0.0)
        wall = time.perf_counter() - self._wall
        children = children_cpu_s() - self._children
        return {"cpu_s": cpu, "rollout_s": rollout, "update_s": cpu - rollout, "wall_s": wall, "children_s": children}


def gpu_time() -> float:
    """Wall seconds, after the GPU has done everything it was given."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(device: str = "cpu") -> int:
    """Largest resident memory so far, of this process and the processes it started; on a GPU its memory held by
    tensors of this process."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    if not Path("/proc/self/status").exists():
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024
    return sum(_high_water(process) for process in _descendants("self"))


def children_cpu_s() -> float:
    """CPU seconds so far of the processes that this one started and that still live; 0 where /proc is missing."""
    ticks = 0
    for process in _descendants("self"):
        if process != "self":
            ticks += _cpu_ticks(process)
    return ticks / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(process: str) -> int:
    try:
        # The name, in brackets, may hold spaces; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0  # it has ended since
    return int(fields[11]) + int(fields[12])


def _descendants(process: str) -> Iterator[str]:
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _descendants(child)


def _high_water(process: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0  # it has ended since
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
