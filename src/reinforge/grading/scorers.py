"""Scorers: whatever turns the completions of a prompt into the scores of one reward function."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.grading.cache import ScoreCache
from reinforge.grading.calls import Case, score_case
from reinforge.grading.reward_function import RewardFunction
from reinforge.sandbox.access import OnConnection, ignore
from reinforge.sandbox.launch import Tier
from reinforge.sandbox.pool import Limits, Worker
from reinforge.types import Score


class Scorer(Protocol):
    """Scores completions by one version of one reward function, in processes or threads of its own."""

    @property
    def function(self) -> RewardFunction:
        """Whose scores these are."""
        ...

    @property
    def judges_each_alone(self) -> bool:
        """Whether a completion's score does not depend on the others of its group: it is then submitted as soon as it
        has ended, otherwise with the whole group."""
        ...

    def submit(self, case: Case) -> Future[list[Score]]:
        """Start scoring; one score per completion, in their order. What goes wrong with a completion is its score's
        state; the future raises only for rows that cannot be sent (DataError)."""
        ...

    def close(self) -> None:
        """End every process and thread. Scores under way become masked or cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class _Request:
    """Completions that wait for a worker."""

    case: Case
    future: Future[list[Score]]


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
        limits: Limits | None = None,
        score: Callable[[Case, Worker], list[Score]] | None = None,
        on_connection: OnConnection = ignore,
    ) -> None:
        """`called` is the Python function that judges in its place, for functions that are no Python themselves;
        `limits` are those of the config unless given, and `score` takes the place of `score_case`; `on_connection` is
        told of every connection asked for."""
        self._called = called or function
        limits = replace(limits or Limits.from_config(runtime), packages=self._called.packages)
        self._cache = ScoreCache(by_token_ids=self._called.takes_token_ids) if pure else None
        self.function = function
        self._runtime = runtime
        self._score_case = score or self._call_function
        self._workers = [
            Worker(self._called.source, self._called.file_name, limits, tier, on_connection)
            for _ in range(runtime.workers)
        ]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._waiting: deque[_Request] = deque()
        self._num_busy = 0
        self._lock = threading.Lock()
        """Held while the two above change."""
        self._threads = ThreadPoolExecutor(runtime.workers, thread_name_prefix=f"grade-{function.name}")
        for worker in self._workers:
            self._threads.submit(worker.describe)  # warm; what goes wrong here goes wrong again in the first call

    @property
    def judges_each_alone(self) -> bool:
        return self._called.dialect != "trl" or self._cache is not None

    def submit(self, case: Case) -> Future[list[Score]]:
        request = _Request(case, Future())
        with self._lock:
            self._waiting.append(request)
            one_more = self._num_busy < len(self._workers)
            self._num_busy += one_more
        if one_more:
            self._threads.submit(self._serve)
        return request.future

    def _serve(self) -> None:
        """Score what waits until nothing does: with one worker, in the order it came."""
        while requests := self._take():
            first, *others = (request.case for request in requests)
            try:
                scores = iter(self._score(first.joined(others) if others else first))
                for request in requests:
                    request.future.set_result(list(islice(scores, len(request.case.texts))))
            except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits for the futures)
                for request in requests:
                    request.future.set_exception(error)

    def _take(self) -> list[_Request]:
        """What waits longest, with a fair share of what waits behind it for the same prompt: one message to the worker
        then serves them all. Nothing when nothing waits: whoever asked is then not busy any more."""
        with self._lock:
            share = max(1, len(self._waiting) // len(self._workers)) if self.judges_each_alone else 1
            taken: list[_Request] = []
            while self._waiting and len(taken) < share:
                if taken and not taken[0].case.is_of_one_prompt_with(self._waiting[0].case):
                    break
                taken.append(self._waiting.popleft())
            self._num_busy -= not taken
        return taken

    def _score(self, case: Case) -> list[Score]:
        return self._call(case) if self._cache is None else self._cache.score(case, self._call)

    def _call(self, case: Case) -> list[Score]:
        worker = self._free.get()
        try:
            return self._score_case(case, worker)
        finally:
            self._free.put(worker)

    def _call_function(self, case: Case, worker: Worker) -> list[Score]:
        # Pure: what a batched function prints must not depend on which completions the cache had.
        return score_case(self._called, case, worker, self._runtime, singly=self._cache is not None)

    def close(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.future.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=True)
