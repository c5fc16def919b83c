"""Futures of futures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Is told what is done, how many of it are, and of how many. May be called often."""
R = TypeVar("R")


def no_progress(what: str, done: int, total: int) -> None:
    """For work that nobody watches."""


def awaited(pending: Sequence[Future[tuple[T, ...]]], total: int, what: str, tell: Progress) -> list[tuple[T, ...]]:
    """The results in this order, telling how many of `total` entries are there.

    >>> future: Future[tuple[int, ...]] = Future()
    >>> future.set_result((1, 2))
    >>> awaited([future], 2, "judged", print)
    judged 2 2
    [(1, 2)]
    """
    results: list[tuple[T, ...]] = []
    done = 0
    for future in pending:
        results.append(future.result())
        done += len(results[-1])
        tell(what, done, total)
    return results


def when_all(futures: Sequence[Future[T]], combine: Callable[[list[T]], R]) -> Future[R]:
    """A future of all results, without a thread that waits for them.

    >>> when_all([], len).result()
    0
    """
    combined: Future[R] = Future()
    combined.set_running_or_notify_cancel()
    if not futures:
        combined.set_result(combine([]))
    countdown = _Countdown(len(futures))

    def one_done(_: Future[T]) -> None:
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


def then(first: Future[T], go_on: Callable[[T], Future[R]]) -> Future[R]:
    """The future of what is started with the result of the first one."""
    outer: Future[R] = Future()
    outer.set_running_or_notify_cancel()

    def pass_on(inner: Future[R]) -> None:
        try:
            outer.set_result(inner.result())
        except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits for the future)
            outer.set_exception(error)

    def start(done: Future[T]) -> None:
        try:
            go_on(done.result()).add_done_callback(pass_on)
        except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits for the future)
            outer.set_exception(error)

    first.add_done_callback(start)
    return outer
