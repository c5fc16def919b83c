"""Warm workers that survive whatever the code in them does: the plain tier of the sandbox.

What this tier does: user code runs in its own process with an empty environment, an empty folder, no descriptor of
ours, limits on memory, file size and core dumps, and a deadline after which its whole process group is killed.

What this tier does NOT stop: code in a worker can read and write every file this user can, open network connections,
see other processes and signal them, start processes that leave the process group (`setsid`) and outlive the worker,
and start as many as the user's limit allows. It can change anything inside its own process, its own result included;
so each function has processes of its own, and no function can change another's result. Run only code you trust here.

When the trainer itself is killed, idle workers end at once with their group; a busy one ends 5 s after its deadline,
but processes it has started, and its empty folder, stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from reinforge.roles import CallResult
from reinforge.sandbox.process import (
    FunctionFacts,
    Limits,
    Parameter,
    SourceFault,
    UnsendableArguments,
    WorkerGone,
    WorkerProcess,
    WorkerUnavailable,
)

RECYCLE_KINDS = {"out_of_memory"}
"""Results after which the process is replaced although it answered."""

MAX_DEADLINE_S = 1e6
"""Timers of the operating system take no more."""


class Worker:
    """One source, one warm process, replaced whenever a call ends badly (implements roles.Sandbox).

    State kept in module globals survives from call to call and is lost when the process is replaced. One thread at a
    time may call; `close` may come from any thread.

    Example:
        >>> worker = Worker("def double(x):\\n    print('hi')\\n    return 2 * x", "doubles.py")
        >>> result = worker.call("double", {"x": 21}, deadline_s=10.0)
        >>> result.value, result.prints, result.kind
        (42, 'hi\\n', '')
        >>> worker.call("double", {"x": None}, deadline_s=10.0).kind
        'raised'
        >>> worker.close()
    """

    def __init__(self, source: str, file_name: str, limits: Limits | None = None) -> None:
        self._source = source
        self._file_name = file_name
        self._limits = limits or Limits()
        self._process: WorkerProcess | None = None
        self._closed = False
        self._use = threading.Lock()
        """Held while a process is started or called."""
        self._lock = threading.Lock()
        """Held while `_process` changes: a process in that field is not reaped yet, so it may be signalled."""

    def describe(self) -> tuple[FunctionFacts, ...]:
        """The functions of the source, in the order of its text. Raises SourceFault when it does not load."""
        with self._use:
            return self._ready().functions

    def call(self, function: str, arguments: dict[str, object], deadline_s: float) -> CallResult:
        """One call; see roles.Sandbox. Raises as `call_each` does, never for what the code does."""
        return self.call_each(function, {}, [arguments], deadline_s)[0]

    def call_each(
        self, function: str, shared: Mapping[str, object], each: Sequence[Mapping[str, object]], deadline_s: float
    ) -> list[CallResult]:
        """One call per entry of `each`, with its arguments and the shared ones; each call has the whole deadline.

        All travel in one message. When a call ends the process, the rest is sent to a new one. Raises WorkerUnavailable
        when there is none, SourceFault when the source loads no more, UnsendableArguments when they have no JSON form.
        """
        with self._use:
            return self._call_each(function, shared, each, min(deadline_s, MAX_DEADLINE_S))

    def _call_each(
        self, function: str, shared: Mapping[str, object], each: Sequence[Mapping[str, object]], deadline_s: float
    ) -> list[CallResult]:
        results: list[CallResult] = []
        while len(results) < len(each):
            process = self._ready()
            start = time.monotonic()
            try:
                nonce = process.begin(function, shared, each[len(results) :], deadline_s)
                for index in range(len(each) - len(results)):
                    start = time.monotonic()
                    results.append(process.next_result(nonce, index, deadline_s))
                    if results[-1].kind in RECYCLE_KINDS:
                        self._discard()
                        break
            except TimeoutError:
                text = f"no result within {deadline_s:g} s"
                results.append(CallResult(None, "timeout", text, process.unread_prints(), deadline_s))
                self._discard()
            except WorkerGone as gone:
                if self._closed:
                    raise WorkerUnavailable("the worker was closed during a call") from None
                prints, latency_s = process.unread_prints(), time.monotonic() - start
                self._discard()
                text = f"the process ended during the call: {process.kill_and_tell(gone)}"
                results.append(CallResult(None, "exited", text, prints, latency_s))
        return results

    def close(self) -> None:
        """End the process and everything in its group. A call in progress elsewhere raises WorkerUnavailable."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.end()
        with self._use:
            self._discard()

    def _ready(self) -> WorkerProcess:
        with self._lock:
            if self._closed:
                raise WorkerUnavailable("the worker is closed")
            if self._process is not None and self._process.is_idle():
                return self._process
            if self._process is not None:
                self._process.kill()
            process = self._process = WorkerProcess(self._limits)
        try:
            process.load(self._source, self._file_name)
        except BaseException:
            self._discard()
            if self._closed:
                raise WorkerUnavailable("the worker was closed while it started") from None
            raise
        return process

    def _discard(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()


__all__ = ["FunctionFacts", "Limits", "Parameter", "SourceFault", "UnsendableArguments", "Worker", "WorkerUnavailable"]
