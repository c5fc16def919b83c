"""Where the values of a JSON text stand."""

from __future__ import annotations

import re
from json.decoder import scanstring  # type: ignore[attr-defined]

KeyPath = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"[-+.\w]+")


def lines_of(text: str) -> dict[KeyPath, int]:
    """Path of every value -> the line its key or entry begins in. The text must be JSON of modest depth.

    >>> lines_of('{"a": 1,\\n "b": [2,\\n 3]}')
    {(): 1, ('a',): 1, ('b',): 2, ('b', 0): 2, ('b', 1): 3}
    """
    scan = _Scan(text)
    scan.value((), scan.skip(0))
    return scan.lines


def line_at(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """The line of a value, or of the nearest one around it.

    >>> line_at({(): 1, ("a",): 2}, ("a", "b", 0))
    2
    """
    return next(lines[path[:depth]] for depth in range(len(path), -1, -1) if path[:depth] in lines)


class _Scan:
    def __init__(self, text: str) -> None:
        self._text = text
        self._line, self._counted = 1, 0
        self.lines: dict[KeyPath, int] = {}

    def skip(self, place: int) -> int:
        match = _SPACE.match(self._text, place)
        return match.end() if match else place

    def value(self, path: KeyPath, place: int) -> int:
        """Read one value; the place after it."""
        self._note(path, place)
        opening = self._text[place]
        if opening in "{[":
            return self._entries(path, place, is_table=opening == "{")
        if opening == '"':
            return int(scanstring(self._text, place + 1)[1])
        scalar = _SCALAR.match(self._text, place)
        return scalar.end() if scalar else place + 1

    def _entries(self, path: KeyPath, place: int, *, is_table: bool) -> int:
        count, place = 0, self.skip(place + 1)
        while self._text[place] not in "}]":
            key: str | int = count
            if is_table:
                start = place
                key, place = scanstring(self._text, place + 1)
                self._note((*path, key), start)
                place = self.skip(self.skip(place) + 1)
            place = self.skip(self.value((*path, key), place))
            place = self.skip(place + 1) if self._text[place] == "," else place
            count += 1
        return place + 1

    def _note(self, path: KeyPath, place: int) -> None:
        self._line += self._text.count("\n", self._counted, place)
        self._counted = place
        self.lines.setdefault(path, self._line)
