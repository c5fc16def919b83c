"""Grades completions with reward functions that run in worker processes (implements roles.Grader)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reinforge.config import RewardFunctionsConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.errors import DataError
from reinforge.grading.cache import ScoreCache
from reinforge.grading.calls import Case, score_case
from reinforge.grading.failures import settle
from reinforge.grading.reward_function import RewardFunction, load_reward_functions
from reinforge.sandbox.pool import Limits, Worker
from reinforge.types import Completion, Example, Grade, Prompt, Score


class FunctionWorkers:
    """The worker processes of one reward function, each with a thread that waits for it."""

    def __init__(self, function: RewardFunction, runtime: RewardFunctionsRuntimeConfig, *, pure: bool = False) -> None:
        limits = Limits.from_config(runtime)
        self._cache = ScoreCache(by_token_ids=function.takes_token_ids) if pure else None
        self.function = function
        self._runtime = runtime
        self._workers = [Worker(function.source, function.file_name, limits) for _ in range(runtime.workers)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(runtime.workers, thread_name_prefix=f"grade-{function.name}")
        for worker in self._workers:
            self._threads.submit(worker.describe)  # warm; what goes wrong here goes wrong again in the first call

    def submit(self, case: Case) -> Future[list[Score]]:
        return self._threads.submit(self._score, case)

    def _score(self, case: Case) -> list[Score]:
        return self._call(case) if self._cache is None else self._cache.score(case, self._call)

    def _call(self, case: Case) -> list[Score]:
        worker = self._free.get()
        try:
            # Pure: what a batched function prints must not depend on which completions the cache had.
            return score_case(self.function, case, worker, self._runtime, singly=self._cache is not None)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=True)


class RewardFunctionGrader:
    """Judges completions by reward functions; each has processes of its own, all run at once, none can stop a run.

    The order of scores in a grade is the order of the functions, and grades are in the order of their completions,
    whatever finishes first.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        runtime: RewardFunctionsRuntimeConfig | None = None,
        settings: Mapping[str, RewardFunctionSettings] | None = None,
    ) -> None:
        """`settings` by display name; they hold for every version."""
        self._runtime = runtime or RewardFunctionsRuntimeConfig()
        self._settings = dict(settings or {})
        self._workers = [self._start(function) for function in functions]

    @property
    def functions(self) -> tuple[RewardFunction, ...]:
        return tuple(workers.function for workers in self._workers)

    def replace(self, functions: Sequence[RewardFunction]) -> None:
        """Judge by these functions from now on. Those that stay keep their warm workers. Only between grades."""
        kept = {workers.function.version: workers for workers in self._workers if workers.function in functions}
        for workers in self._workers:
            if workers.function.version not in kept:
                workers.close()
        self._workers = [kept.get(function.version) or self._start(function) for function in functions]

    def _start(self, function: RewardFunction) -> FunctionWorkers:
        settings = self._settings.get(function.name)
        return FunctionWorkers(function, self._runtime, pure=settings is not None and settings.pure)

    @classmethod
    def from_config(cls, config: RewardFunctionsConfig, base_dir: Path) -> RewardFunctionGrader:
        """Load and check the functions of a config (RewardError)."""
        limits = Limits.from_config(config.runtime)
        functions = load_reward_functions(config.functions, config.weights, base_dir, limits)
        return cls(functions, config.runtime, config.settings)

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[tuple[Grade, ...]]:
        """See roles.Grader."""
        case = Case(
            example=prompt.example,
            prompt_text=prompt.text,
            texts=tuple(completion.text for completion in completions),
            token_ids=tuple(completion.token_ids for completion in completions),
        )
        return self.grade_case(case)

    def grade_case(self, case: Case) -> Future[tuple[Grade, ...]]:
        """Start judging; the grades are in the order of `case.texts`."""
        return _when_all([workers.submit(case) for workers in self._workers], self._grades_of)

    def _grades_of(self, scores_per_function: list[list[Score]]) -> tuple[Grade, ...]:
        per_completion = zip(*scores_per_function, strict=True)
        return tuple(settle(Grade(tuple(scores)), self._settings) for scores in per_completion)

    def close(self) -> None:
        """End every worker process; grades under way become masked or cancelled."""
        for workers in self._workers:
            workers.close()


def grade_completions(grader: RewardFunctionGrader, rows: Sequence[Mapping[str, Any]]) -> list[Grade]:
    """Grade completions that exist already. Rows have `prompt`, `completion` and any columns; neighbours with the
    same prompt and columns are judged together, as the group they came from. No chat template is at hand here: a
    Predibase-form function sees chat messages as the text of a Python list."""
    pending: list[Future[tuple[Grade, ...]]] = []
    start = 0
    while start < len(rows):
        first = _example_of(rows[start], start)
        end = start + 1
        while end < len(rows) and _same_example(rows[end], rows[start]):
            _example_of(rows[end], end)
            end += 1
        texts = tuple(rows[i]["completion"] for i in range(start, end))
        text = first.prompt if isinstance(first.prompt, str) else str(list(first.prompt))
        pending.append(grader.grade_case(Case(first, text, texts, ((),) * len(texts))))
        start = end
    return [grade for future in pending for grade in future.result()]


def _example_of(row: Mapping[str, Any], index: int) -> Example:
    for column in ("prompt", "completion"):
        if column not in row:
            found = ", ".join(row)
            raise DataError(f'row {index + 1} has no "{column}" (found: {found}).', hint="Rename the column.")
    if not isinstance(row["completion"], str):
        raise DataError(f'row {index + 1}: "completion" is a {type(row["completion"]).__name__}, it must be text.')
    prompt = row["prompt"]
    if not isinstance(prompt, (str, list, tuple)):
        raise DataError(f'row {index + 1}: "prompt" is a {type(prompt).__name__}, it must be text or chat messages.')
    prompt = prompt if isinstance(prompt, str) else tuple(prompt)
    return Example(index, prompt, {key: row[key] for key in row if key not in ("prompt", "completion")})


def _same_example(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return {k: one[k] for k in one if k != "completion"} == {k: other[k] for k in other if k != "completion"}


def _when_all(
    futures: Sequence[Future[list[Score]]], combine: Callable[[list[list[Score]]], tuple[Grade, ...]]
) -> Future[tuple[Grade, ...]]:
    """A future of all results, without a thread that waits for them."""
    combined: Future[tuple[Grade, ...]] = Future()
    combined.set_running_or_notify_cancel()
    countdown = _Countdown(len(futures))

    def one_done(_: Future[list[Score]]) -> None:
        if not countdown.is_last():
            return
        try:
            combined.set_result(combine([future.result() for future in futures]))
        except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits for the future)
            combined.set_exception(error)

    for future in futures:
        future.add_done_callback(one_done)
    return combined


@dataclass(slots=True)
class _Countdown:
    """Counts ends of concurrent tasks; exactly one of them is told that it was the last."""

    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_last(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left == 0
