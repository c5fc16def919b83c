"""The four seams of the system. The loop knows these protocols and nothing behind them; fakes live in tests/fakes.py.

`cluster/` chooses the concrete classes: all in this process (`cluster/local.py`), later actors on other machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reinforge.types import Adapter, Batch, Completion, Grade, Prompt, SampleRequest, Update


class Sampler(Protocol):
    """Turns prompts into completions."""

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Completion]]:
        """Yield (place of the request, completion) as completions end, in any order; each of the G of each request
        exactly once. All of one call come from one policy version."""
        ...

    def load(self, adapter: Adapter) -> None:
        """Sample from this adapter from the next call on."""
        ...


class Grader(Protocol):
    """Judges completions. Whatever user code does, it answers."""

    def begin(self, prompt: Prompt, num_completions: int, first_generation: int = 0) -> GroupGrading:
        """Begin judging the group of completions of one prompt, or a part of it: the generations from the first on."""
        ...

    def close(self) -> None:
        """End every worker process."""
        ...


class GroupGrading(Protocol):
    """The completions of one prompt while they are judged."""

    def add(self, completion: Completion) -> None:
        """Take a completion that has ended, in any order, each of the group once. What can judge it without the others
        begins at once; what needs the group begins with the last one."""
        ...

    def judged(self, within_s: float) -> Mapping[int, Grade]:
        """Wait until all are judged, at most so many seconds -> the grades that are there, by generation."""
        ...

    def grades(self) -> tuple[Grade, ...]:
        """Wait until all are judged -> their grades, by generation. Neither the order in which completions ended nor
        the time anything took can change them. Never raises for a fault of a reward function: such a fault is a
        score with state `error`."""
        ...


class Learner(Protocol):
    """Owns the policy's weights and optimizer."""

    def update(self, batch: Batch) -> Update:
        """Take one optimizer step."""
        ...

    def publish(self) -> Adapter:
        """The policy as it is now; its version is the number of steps taken."""
        ...

    def state_hash(self) -> str:
        """Of weights and optimizer: equal hashes mean bitwise equal learners."""
        ...

    def save(self, folder: Path) -> None:
        """Write adapter, optimizer and schedule into an existing folder."""
        ...

    def restore(self, folder: Path) -> None:
        """Become exactly what `save` wrote."""
        ...


class Sandbox(Protocol):
    """Runs user code where it can hurt nobody."""

    def call(self, function: str, arguments: dict[str, object], deadline_s: float) -> CallResult:
        """Call one function of the loaded source and wait, at most `deadline_s` seconds. Never raises for what the
        code does: that is in the result."""
        ...

    def close(self) -> None:
        """End the worker process and everything it started."""
        ...


@dataclass(frozen=True, slots=True)
class CallResult:
    """What came back from user code."""

    value: object
    """JSON value returned; None when `kind` is set."""
    kind: str = ""
    """Empty when the call returned, else: raised, timeout, exited, not_serialisable, ..."""
    message: str = ""
    prints: str = ""
    latency_s: float = 0.0
    note: str = ""
    """As in Score."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The four together, as `cluster/` hands them to the loop."""

    sampler: Sampler
    grader: Grader
    learner: Learner
    figures: Callable[[], Mapping[str, float]] = dict
    """Metrics of what works behind the roles (`judge/...`), since they were last asked for."""
