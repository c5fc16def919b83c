"""Text for terminals. What models and reward functions write is not trusted: it must not move the cursor, hide lines or
pose as our own words."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import IO

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that act or hide instead of showing: control, text direction, half characters, line breaks."""
_JOINERS = "\u200c\u200d"  # inside many scripts' words and emoji


_FIGURE = re.compile(r"-|-?\d+(\.\d+)?(e[-+]?\d+)?%?|\d+(:\d\d)+|\d+/\d+")
"""`-`, a number, a share, a duration, or a step of how many."""


def visible(text: str, *, one_line: bool = False) -> str:
    r"""The text with every control character written out; newlines and tabs stay unless it must be one line.

    >>> visible("a\x1b[31mb\r\u202e\n"), visible("a\nb", one_line=True)
    ('a\\x1b[31mb\\r\\u202e\n', 'a\\nb')
    """
    kept = "" if one_line else "\n\t"
    return "".join(char if char in kept or _shows(char) else ascii(char)[1:-1] for char in text)


def _shows(char: str) -> bool:
    return char in _JOINERS or unicodedata.category(char) not in _HIDDEN


def is_rich_terminal(stream: IO[str]) -> bool:
    """Whether colours and moving tables are welcome there: a terminal, and nobody said NO_COLOR, CI or TERM=dumb."""
    environ = os.environ
    plain = environ.get("NO_COLOR") or environ.get("CI") or environ.get("TERM", "") == "dumb"
    return stream.isatty() and not plain


def say(text: str) -> None:
    """A line for people: stderr, because stdout is for data."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns side by side, those that hold nothing but figures to the right; strangers' text made harmless.

    >>> print(table(["name", "mean"], [["right", "0.5"], ["2nd", "-1.25"]]))
    name    mean
    right    0.5
    2nd    -1.25
    """
    lines = [[visible(cell, one_line=True) for cell in row] for row in (header, *rows)]
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [len(column) > 1 and all(map(_FIGURE.fullmatch, column[1:])) for column in columns]
    padded = (
        [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in padded)


def fitted(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table where it fits the terminal; otherwise a paragraph for each row, which cuts no number."""
    rows = list(rows)
    text, width = table(header, rows), width_of(sys.stdout)
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    return "\n".join(_paragraph(header, row, width) for row in rows)


def width_of(stream: IO[str]) -> int | None:
    """Columns of a terminal, or those that COLUMNS says; None where nothing says how many there are."""
    return shutil.get_terminal_size().columns if stream.isatty() or os.environ.get("COLUMNS") else None


def _paragraph(header: Sequence[str], row: Sequence[str], width: int) -> str:
    """
    >>> print(_paragraph(["name", "mean", "errors"], ["right_v1", "0.5", "12"], 20))
    name right_v1
      mean 0.5
      errors 12
    """
    first, *parts = (visible(f"{title} {cell}".strip(), one_line=True) for title, cell in zip(header, row, strict=True))
    lines = [first]
    for part in parts:
        if len(lines) > 1 and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(f"  {part}")
    return "\n".join(lines)


def shortened(text: str, width: int = 100) -> str:
    """
    >>> shortened("abcdefgh", 6)
    'abc...'
    """
    return text if len(text) <= width else text[: width - 3] + "..."


def figure(value: float | None, form: str = ".3f") -> str:
    """A number, or `-` where there is none."""
    return "-" if value is None else format(value, form)


def duration(seconds: float) -> str:
    """
    >>> duration(59.6), duration(3700)
    ('1:00', '1:01:40')
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
