"""Warm workers that survive whatever the code in them does.

One worker is one process for one source: no two functions ever share one. What it may reach is up to the tier of the
sandbox (tiers.py): bubblewrap.py, landlock.py and plain.py say what each stops and what it does not. In each tier a
call that hangs is ended at its deadline with all it started, a call that leaves threads or processes behind gets the
worker replaced, and whatever the code prints or writes, it cannot pass as the result of another function.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from reinforge.roles import CallResult
from reinforge.sandbox.access import OnConnection, access_for, ignore
from reinforge.sandbox.environments import provide
from reinforge.sandbox.launch import Tier
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.process import (
    FunctionFacts,
    Parameter,
    SourceFault,
    UnsendableArguments,
    WorkerGone,
    WorkerProcess,
    WorkerUnavailable,
)
from reinforge.sandbox.tiers import tier_for

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

    def __init__(
        self,
        source: str,
        file_name: str,
        limits: Limits | None = None,
        tier: Tier | None = None,
        on_connection: OnConnection = ignore,
    ) -> None:
        """`tier` is the best one of this machine unless given; `on_connection` is told of each connection the code asks
        for. SetupError when the tier needs a consent nobody gave or cannot give the access that the limits grant, and
        when the packages it is to see cannot be installed."""
        self._source = source
        self._file_name = file_name
        self._limits = limits or Limits()
        self._tier = tier or tier_for(source, self._limits)
        self._access = access_for(self._limits, self._tier, on_connection)
        provide(self._limits.packages)
        self._process: WorkerProcess | None = None
        self._closed = False
        self._note = ""
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

        When a call ends the process, leaves something running or writes what is no reply, the rest runs in a new one.
        Raises WorkerUnavailable when there is none, SourceFault when the source loads no more, UnsendableArguments when
        they have no JSON form.
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
                process.prepare(function, shared, deadline_s)
                while len(results) < len(each) and process.is_idle():
                    start = time.monotonic()
                    results.append(self._noted(process.call(each[len(results)])))
                    if results[-1].kind in RECYCLE_KINDS or process.left:
                        self._discard()
                        break
            except TimeoutError:
                text = f"no result within {deadline_s:g} s"
                results.append(self._noted(CallResult(None, "timeout", text, process.unread_prints(), deadline_s)))
                self._discard()
            except WorkerGone as gone:
                if self._closed:
                    raise WorkerUnavailable("the worker was closed during a call") from None
                prints, latency_s = process.unread_prints(), time.monotonic() - start
                self._let_go()
                text = f"the process ended during the call: {process.kill_and_tell(gone)}"
                results.append(self._noted(CallResult(None, "exited", text, prints, latency_s)))
        return results

    def renew(self) -> None:
        """End the process: the next call finds nothing of those before it, neither in memory nor in files."""
        with self._use:
            self._discard()

    def close(self) -> None:
        """End the process and everything in its group. A call in progress elsewhere raises WorkerUnavailable."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.end()
        with self._use:
            self._discard()

    def _ready(self) -> WorkerProcess:
        size, most = len(self._source.encode("utf-8", "surrogatepass")), self._limits.max_source_bytes
        if size > most:
            raise SourceFault(f"the source has {size:,} bytes, at most {most:,} are taken")
        with self._lock:
            if self._closed:
                raise WorkerUnavailable("the worker is closed")
            if self._process is not None and self._process.is_idle():
                return self._process
            if self._process is not None:
                self._process.kill()
                self._note = "its process had ended, or written something, between two calls"
            process = self._process = WorkerProcess(self._limits, self._tier, self._access)
        try:
            process.load(self._source, self._file_name)
        except BaseException:
            self._discard()
            if self._closed:
                raise WorkerUnavailable("the worker was closed while it started") from None
            raise
        return process

    def _noted(self, result: CallResult) -> CallResult:
        """The result, with what made us replace the process before its call."""
        note, self._note = self._note, ""
        return replace(result, note=note) if note and not result.note else result

    def _discard(self) -> None:
        process = self._let_go()
        if process is not None:
            process.kill()

    def _let_go(self) -> WorkerProcess | None:
        with self._lock:
            process, self._process = self._process, None
        return process


__all__ = ["FunctionFacts", "Limits", "Parameter", "SourceFault", "UnsendableArguments", "Worker", "WorkerUnavailable"]
