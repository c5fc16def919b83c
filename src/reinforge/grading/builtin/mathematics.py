"""Mathematical equality: `1/2`, `0.5` and `\\frac{1}{2}` are one answer."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from reinforge.grading.builtin.reading import Unreadable, answer_of, number_option, shown, text_of
from reinforge.grading.builtin.result import Result, refused

MAX_READ = 4000
"""Characters of an answer, from its end: what comes before is no part of it, and reading takes the square of it."""
MAX_DEPTH = 30
"""Of brackets: reading takes a power of it."""
RING_AGAIN_S = 0.05
_DELIMITED = re.compile(r"\$|\\boxed|\\\(|\\\[")


def math_equal(
    *, input: Any, reference: Any, tag: str = "", after: str = "", precision: int = 6, timeout_s: float = 5.0
) -> Result:
    """1 when the answer is mathematically equal to the reference, else 0: numbers, fractions, roots, sets, intervals,
    polynomials and the like, written as plain text or in LaTeX. The work is done by Math-Verify and SymPy.

    `reference`: the right answer, as a number or text.
    `tag`, `after`: where the answer stands, as in exact_answer. Without them it is looked for in the whole text: in a
    `\\boxed{}`, after words such as "the answer is", else the last expression.
    `precision`: decimal places to which numbers are compared.
    `timeout_s`: what takes longer scores 0. It needs the process's main thread, which a worker gives it; elsewhere, and
    where one step of SymPy cannot be interrupted, only the worker's own deadline holds.

    >>> math_equal(input="So it is $\\\\frac{1}{2}$.", reference="1/2").score
    1.0
    >>> math_equal(input="<answer>(x+1)^2</answer>", reference="x^2+2x+1", tag="answer").score
    1.0
    >>> math_equal(input="0.51", reference="1/2")
    Result(score=0.0, reason="'0.51' is not '1/2'", metrics={})
    >>> math_equal(input="I do not know", reference="1/2")
    Result(score=0.0, reason="no mathematics in 'I do not know'", metrics={})
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off: ours holds
    wanted = text_of(reference).strip()
    precision = int(number_option("precision", precision, 0, 100))
    seconds = number_option("timeout_s", timeout_s, 0.001)
    gold = parse(_as_mathematics(wanted), parsing_timeout=None) if wanted else []
    if not gold:
        raise ValueError(f"reference: no mathematics in {shown(reference)}")
    answer = answer_of(input, tag, after)
    if isinstance(answer, Unreadable):
        return refused(answer.reason)
    answer = answer[-MAX_READ:]
    if _depth(answer) > MAX_DEPTH:
        return refused(f"{shown(answer)} is nested more than {MAX_DEPTH} deep")
    try:
        with alarm(seconds):
            found = parse(_as_mathematics(answer) if tag or after else answer, parsing_timeout=None)
            equal = bool(found) and verify(gold, found, float_rounding=precision, timeout_seconds=None)
    except OutOfTime:
        return refused(f"{shown(answer)} could not be compared within {seconds:g} s")
    except (Exception, RecursionError) as error:  # noqa: BLE001  (SymPy raises anything on malformed mathematics)
        return refused(f"{shown(answer)} cannot be compared: {type(error).__name__}")
    if equal:
        return Result(1.0)
    return refused(f"{shown(answer)} is not {shown(wanted)}" if found else f"no mathematics in {shown(answer)}")


def _as_mathematics(text: str) -> str:
    """An answer that stands alone, in the signs that mark LaTeX in a text."""
    return text if _DELIMITED.search(text) else f"${text}$"


def _depth(text: str) -> int:
    """How deep brackets stand in one another; those that nothing closes count too."""
    depth = deepest = 0
    for sign in text:
        if sign in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in ")]}":
            depth = max(depth - 1, 0)
    return deepest


class OutOfTime(BaseException):
    """Raised by the alarm. No Exception: SymPy and Math-Verify swallow those."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """OutOfTime inside the block after so many seconds, where this is the main thread. A timer that was running before
    (an unguarded worker has one) goes on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: Python drops, with a line on stderr, what is raised in a __del__ or a weak reference's callback.
    said, sys.unraisablehook = sys.unraisablehook, _unless_it_rings_again(sys.unraisablehook)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, RING_AGAIN_S)
    started = time.monotonic()
    try:
        yield
    finally:
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except OutOfTime:  # it rang just now
                continue
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = said
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 0.001), interval)


_Hook = Callable[["sys.UnraisableHookArgs"], object]


def _unless_it_rings_again(said: _Hook) -> _Hook:
    """The hook that was there, for everything but a dropped alarm."""

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is not OutOfTime:
            said(dropped)

    return hook
