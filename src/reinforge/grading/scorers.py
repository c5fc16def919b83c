"""Scorers: whatever turns the completions of a prompt into the scores of one reward function."""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.grading.cache import ScoreCache
from reinforge.grading.calls import Case, score_case
from reinforge.grading.reward_function import RewardFunction
from reinforge.sandbox.launch import Tier
from reinforge.sandbox.pool import Limits, Worker
from reinforge.types import Score


class Scorer(Protocol):
    """Scores completions by one version of one reward function, in processes or threads of its own."""

    @property
    def function(self) -> RewardFunction:
        """Whose scores these are."""
        ...

    def submit(self, case: Case) -> Future[list[Score]]:
        """Start scoring; one score per completion, in their order. What goes wrong with a completion is its score's
        state; the future raises only for rows that cannot be sent (DataError)."""
        ...

    def close(self) -> None:
        """End every process and thread. Scores under way become masked or cancelled."""
        ...


class FunctionWorkers:
    """The worker processes of one reward function, each with a thread that waits for it."""

    def __init__(
        self,
        function: RewardFunction,
        runtime: RewardFunctionsRuntimeConfig,
        *,
        pure: bool = False,
        called: RewardFunction | None = None,
        tier: Tier | None = None,
    ) -> None:
        """`called` is the Python function that judges in its place, for functions that are no Python themselves."""
        self._called = called or function
        limits = replace(Limits.from_config(runtime), packages=self._called.packages)
        self._cache = ScoreCache(by_token_ids=self._called.takes_token_ids) if pure else None
        self.function = function
        self._runtime = runtime
        self._workers = [
            Worker(self._called.source, self._called.file_name, limits, tier) for _ in range(runtime.workers)
        ]
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
            return score_case(self._called, case, worker, self._runtime, singly=self._cache is not None)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=True)
