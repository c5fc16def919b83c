"""Repairs what editors, chat windows and hands do to JSON: line breaks in texts, curly quotes, trailing commas."""

from __future__ import annotations

import json
from dataclasses import dataclass

OPENING = {'"': '"', "“": "”", "”": "”", "„": "“", "‟": "”", "″": "″", "'": "'", "‘": "’", "’": "’"}
"""What may begin a text, with what should end it. JSON knows the first only."""
KINDS = {"“”„‟″": "a curly quote", "'‘’": "a single quote"}
SPACES = {"\u00a0": "a no-break space", "\ufeff": "a byte-order mark", "\u200b": "a zero-width space"}
CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that JSON does not allow."""

    line: int
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def repair(text: str) -> tuple[str, list[Defect]] | None:
    """The text as JSON with all that was changed; None when that does not make JSON of it.

    >>> print(repair('{“type”: "python",\\n "source": "def f():\\n  x",}')[0])
    {"type": "python",
     "source": "def f():\\n  x"}
    """
    mender = _Mender(text)
    mended = mender.mend()
    try:
        json.loads(mended)
    except (ValueError, RecursionError):
        return None
    return mended, mender.defects


class _Mender:
    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._line = 1
        self._written: list[str] = []
        self.defects: list[Defect] = []

    def mend(self) -> str:
        while self._place < len(self._text):
            char = self._text[self._place]
            self._place += 1
            if char in OPENING:
                self._string(char)
            elif char in SPACES:
                self._found(SPACES[char], "remove it")
                self._written.append(" ")
            elif char == "," and self._next() in ("}", "]"):
                self._found(f"a comma before {self._next()}", "remove it")
            else:
                self._written.append(char)
                self._line += char == "\n"
        return "".join(self._written)

    def _string(self, opening: str) -> None:
        """A text up to the quote that ends it: one after which a key or an entry ends."""
        line, breaks = self._line, 0
        if opening != '"':
            kind = next(words for chars, words in KINDS.items() if opening in chars)
            self._found(f"{kind} around a text", 'write "')
        self._written.append('"')
        closing = {opening, OPENING[opening], '"'}
        while self._place < len(self._text):
            char = self._text[self._place]
            self._place += 1
            if char in closing and self._next() in (":", ",", "}", "]", ""):
                break
            if char == "\\":
                self._escape()
            elif char == '"':
                self._found("a quote inside a text", 'write \\"')
                self._written.append('\\"')
            elif char < " ":
                self._control(char)
                breaks += char == "\n"
            else:
                self._written.append(char)
        self._written.append('"')
        if breaks:
            self.defects.append(Defect(line, f"a text goes over {breaks + 1} lines", "write each line break as \\n"))

    def _control(self, char: str) -> None:
        """A character below the space. Line breaks are told once for the whole text."""
        self._written.append(CONTROL.get(char, f"\\u{ord(char):04x}"))
        self._line += char == "\n"
        if char not in "\r\n":
            self._found(f"the character {char!a} inside a text", f"write {self._written[-1]}")

    def _escape(self) -> None:
        """A backslash and what follows it. One that JSON does not know stands for itself."""
        char = self._text[self._place : self._place + 1]
        if char == "'":
            self._written.append(char)
            self._place += 1
        elif char and char in '"\\/bfnrtu':
            self._written.append("\\" + char)
            self._place += 1
        else:
            self._found(f"\\{char if char.isprintable() else ''}, which is no escape of JSON", "write two backslashes")
            self._written.append("\\\\")

    def _next(self) -> str:
        """The next character that is no space; empty at the end."""
        place = self._place
        while place < len(self._text) and (self._text[place].isspace() or self._text[place] in SPACES):
            place += 1
        return self._text[place : place + 1]

    def _found(self, what: str, fix: str) -> None:
        self.defects.append(Defect(self._line, what, fix))
