"""How far long work is: one line that stays in place on a terminal, a line now and then elsewhere. Short work shows
nothing. All of it goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from reinforge.cli.text import duration, is_rich_terminal, say, visible

LINE_EVERY_S = 15.0
"""A line of its own about this often."""
REDRAW_EVERY_S = 0.25
"""A line that stays in place this often at most."""


class Progress(Protocol):
    """Takes notice of how far something is. May be called often."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


class Pace:
    """Whether so much time has passed that there is something to be shown again."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """True at most once in `every_s` seconds, for the first time after these."""
        now = time.monotonic()
        if now - self._last < self._every_s:
            return False
        self._last = now
        return True


def progress_text(what: str, done: int, total: int) -> str:
    """
    >>> progress_text("held-out at step 0: completions sampled", 1200, 8000)
    'held-out at step 0: completions sampled 1,200 of 8,000'
    """
    return visible(f"{what} {done:,} of {total:,}", one_line=True)


class ProgressLines:
    """A line now and then."""

    def __init__(self) -> None:
        self._pace = Pace(LINE_EVERY_S)

    def __call__(self, what: str, done: int, total: int) -> None:
        """See Progress."""
        if self._pace.is_due():
            with suppress(BrokenPipeError):
                say(progress_text(what, done, total))


class _LineInPlace:
    """One line of a terminal, written over again and again."""

    def __init__(self) -> None:
        self._pace = Pace(REDRAW_EVERY_S)
        self._started = time.monotonic()
        self._is_shown = False

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._pace.is_due():
            self._is_shown = True
            text = f"{progress_text(what, done, total)}, {duration(time.monotonic() - self._started)}"
            self._write(f"\r{text}\x1b[K")

    def clear(self) -> None:
        if self._is_shown:
            self._write("\r\x1b[K")

    @staticmethod
    def _write(text: str) -> None:
        with suppress(BrokenPipeError):
            print(text, end="", file=sys.stderr, flush=True)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """The kind that fits where our output goes, for as long as something works."""
    if not is_rich_terminal(sys.stderr):
        yield ProgressLines()
        return
    line = _LineInPlace()
    try:
        yield line
    finally:
        line.clear()
