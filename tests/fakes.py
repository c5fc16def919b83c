"""One fake per role: enough behaviour to test the loop in milliseconds, without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reinforge.roles import Roles
from reinforge.types import Adapter, Batch, Completion, Grade, Prompt, SampleRequest, Score, Update


class FakeSampler:
    """Completions are a function of key and generation; they end in reverse order."""

    def __init__(self) -> None:
        self.version = -1
        self.calls: list[list[SampleRequest]] = []

    def load(self, adapter: Adapter) -> None:
        self.version = adapter.version

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Completion]]:
        self.calls.append(list(requests))
        for place in reversed(range(len(requests))):
            for generation in reversed(requests[place].generations):
                yield place, self.completion(requests[place], generation)

    def completion(self, request: SampleRequest, generation: int) -> Completion:
        number = _number(request.key, generation)
        ids = tuple((number >> shift) % 50 for shift in range(1 + number % 4))
        logprobs = (-1.0,) * len(ids)
        return Completion(generation, ids, f"text {number % 10}", "stop", logprobs, logprobs, self.version)


class FakeGrader:
    """The reward is the last digit of the text, or what `judge` says."""

    def __init__(self, judge: Callable[[Completion], Score] | None = None) -> None:
        self.judge = judge or (lambda completion: Score("digit", "digit_v1", float(completion.text[-1]) / 10))
        self.closed = False

    def begin(self, prompt: Prompt, num_completions: int, first_generation: int = 0) -> FakeGrading:
        return FakeGrading(self.judge)

    def close(self) -> None:
        self.closed = True


class FakeGrading:
    def __init__(self, judge: Callable[[Completion], Score]) -> None:
        self.judge = judge
        self.scores: dict[int, Score] = {}

    def add(self, completion: Completion) -> None:
        self.scores[completion.generation] = self.judge(completion)

    def judged(self, within_s: float) -> dict[int, Grade]:
        return {generation: Grade((score,)) for generation, score in self.scores.items()}

    def grades(self) -> tuple[Grade, ...]:
        return tuple(Grade((self.scores[place],)) for place in sorted(self.scores))


class FakeLearner:
    """Its whole state is what it has been given."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.batches: list[Batch] = []

    def update(self, batch: Batch) -> Update:
        self.batches.append(batch)
        self.seen.append(hashlib.sha256(repr((batch.groups, batch.updates_done)).encode()).hexdigest())
        old = tuple(tuple(c.logprobs for c in group.completions) for group in batch.groups)
        return Update({"policy/grad_norm": 1.0}, old)

    def publish(self) -> Adapter:
        return Adapter(len(self.seen), {})

    def state_hash(self) -> str:
        return hashlib.sha256("".join(self.seen).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        (folder / "learner.json").write_text(json.dumps(self.seen))

    def restore(self, folder: Path) -> None:
        self.seen = json.loads((folder / "learner.json").read_text())


def fake_roles() -> tuple[Roles, FakeSampler, FakeGrader, FakeLearner]:
    sampler, grader, learner = FakeSampler(), FakeGrader(), FakeLearner()
    return Roles(sampler, grader, learner), sampler, grader, learner


def _number(key: tuple[int, ...], generation: int) -> int:
    return int.from_bytes(hashlib.sha256(repr((key, generation)).encode()).digest()[:4], "big")
