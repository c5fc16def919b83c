"""When a call to a judge may go out: rate limit, pauses the endpoint asks for, circuit breaker.

One gate serves all calls to one endpoint, so what one call learns holds for the others:

- at most `requests_per_minute`, evenly spaced;
- an answer 429 pauses every call until its Retry-After is over, and halves the number of calls that may be under way,
  which then grows by one for as many good answers (additive increase, multiplicative decrease: Jacobson 1988);
- after `breaker_failures` failures in a row the judge is *down*: one call at a time tries, with growing pauses between.
  It is given up when that has lasted too long, and then every call is refused at once.
"""

from __future__ import annotations

import datetime
import email.utils
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Patience:
    """Times of retries and of the breaker. Seconds."""

    first_backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    breaker_failures: int = 5
    """Failures in a row, of any calls, after which the judge is down."""
    probe_s: float = 5.0
    """Until the first try when it is down; doubled after each, up to `max_probe_s`."""
    max_probe_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave to make one call."""

    is_probe: bool
    """The judge is down, and this call finds out whether it still is."""


Outcome = Literal["answered", "failed"]
"""Whether the endpoint lives: refusals of a single question and 429 count as answered."""


class Gate:
    """Lets the calls of several threads out one after the other. `max_wait_s` 0 gives a judge up as soon as it is
    down."""

    def __init__(
        self,
        *,
        concurrency: int,
        requests_per_minute: float | None,
        max_wait_s: float,
        patience: Patience,
        tell: Callable[[str], None],
        tell_try: Callable[[str], None],
    ) -> None:
        """`tell` hears that the judge is down or up again, `tell_try` of every try while it is down."""
        self._most = concurrency
        self._spacing_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._max_wait_s = max_wait_s
        self._patience = patience
        self._tell = tell
        self._tell_try = tell_try
        self._changed = threading.Condition()
        self._allowed = float(concurrency)
        self._under_way = 0
        self._next_at = 0.0
        self._held_until = 0.0
        self._failures = 0
        self._down_since: float | None = None
        self._probing = False
        self._pause_s = patience.probe_s
        self._refusal: tuple[str, str] | None = None

    def enter(self) -> Pass | tuple[str, str]:
        """Wait until a call may go out; or (kind, message) of the reason why none may any more."""
        with self._changed:
            while self._refusal is None:
                now = time.monotonic()
                ready_at = max(self._next_at, self._held_until)
                if self._down_since is not None and now >= self._down_since + self._max_wait_s:
                    self._give_up("judge_down", f"the judge has not answered for {now - self._down_since:.0f} s")
                    break
                if self._under_way >= (1 if self._down_since is not None else int(self._allowed)):
                    self._changed.wait(self._until_given_up(now))
                elif now < ready_at:
                    self._changed.wait(min(ready_at - now, self._until_given_up(now) or ready_at - now))
                else:
                    self._next_at = max(now, self._next_at) + self._spacing_s
                    self._under_way += 1
                    self._probing = self._down_since is not None
                    return Pass(self._probing)
            assert self._refusal is not None
            return self._refusal

    def leave(self, passed: Pass, outcome: Outcome, reason: str = "", hold_s: float | None = None) -> None:
        """A call has ended. `hold_s`: the endpoint asked for a pause of so many seconds (429)."""
        with self._changed:
            self._under_way -= 1
            if outcome == "failed":
                self._failed(passed, reason)
            else:
                self._answered(slower=hold_s is not None)
            self._held_until = max(self._held_until, time.monotonic() + (hold_s or 0.0))
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait, unless the gate is closed meanwhile."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._refusal is None and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def give_up(self, kind: str, message: str) -> None:
        """Refuse every call from now on."""
        with self._changed:
            self._give_up(kind, message)

    def _give_up(self, kind: str, message: str) -> None:
        if self._refusal is None:
            self._refusal = (kind, message)
        self._changed.notify_all()

    def _until_given_up(self, now: float) -> float | None:
        return None if self._down_since is None else max(self._down_since + self._max_wait_s - now, 0.0)

    def _answered(self, *, slower: bool) -> None:
        self._failures = 0
        if self._down_since is not None:
            self._tell(f"the judge answers again after {time.monotonic() - self._down_since:.0f} s")
            self._down_since, self._pause_s = None, self._patience.probe_s
        if not slower:
            self._allowed = min(self._allowed + 1 / self._allowed, float(self._most))
        elif time.monotonic() >= self._held_until:  # once for all calls that were under way when the limit was met
            self._allowed = max(self._allowed / 2, 1.0)

    def _failed(self, passed: Pass, reason: str) -> None:
        now, patience = time.monotonic(), self._patience
        self._failures += 1
        if self._down_since is None and self._failures >= patience.breaker_failures:
            self._down_since = now
            self._held_until = max(self._held_until, now + self._pause_s)
            waits = f"waiting up to {self._max_wait_s:.0f} s" if self._max_wait_s else "stopping"
            self._tell(f"the judge is down ({reason}); {waits}")
            if not self._max_wait_s:
                self._give_up("judge_down", f"the judge is down: {reason}")
        elif passed.is_probe:
            self._pause_s = min(2 * self._pause_s, patience.max_probe_s)
            self._held_until = now + self._pause_s
        if self._down_since is not None and self._max_wait_s:
            next_s, left_s = self._held_until - now, self._down_since + self._max_wait_s - now
            self._tell_try(f"no answer yet ({reason}); next try in {min(next_s, left_s):.0f} s, {until(left_s)}")


def until(seconds: float) -> str:
    """When that is, by the clock on the wall."""
    return f"giving up at {datetime.datetime.now() + datetime.timedelta(seconds=seconds):%H:%M:%S}"


def backoff_s(attempt: int, patience: Patience, draw: float) -> float:
    """Seconds before the retry number `attempt` (from 1): doubling, capped, the upper half drawn (`draw` in 0..1).

    >>> [backoff_s(attempt, Patience(), 1.0) for attempt in (1, 2, 7)], backoff_s(2, Patience(), 0.0)
    ([1.0, 2.0, 60.0], 1.0)
    """
    return float(min(patience.first_backoff_s * 2 ** (attempt - 1), patience.max_backoff_s) * (0.5 + draw / 2))


def retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: seconds or an HTTP date); None when it says nothing
    that can be read. `now` are seconds since 1970.

    >>> retry_after_s("7", 0), retry_after_s("Thu, 01 Jan 1970 00:00:30 GMT", 10.0), retry_after_s("soon", 0)
    (7.0, 20.0, None)
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
