"""What is wrong with a data set, collected over all its rows and told in one error."""

from __future__ import annotations

from dataclasses import dataclass, field

from reinforge.errors import DataError

MAX_SHOWN = 10
"""Faults told in full, and places named per fault; the rest is counted."""


_MAX_CHARACTERS = 400


@dataclass(slots=True)
class Faults:
    """Collects bad rows, so that a user sees them all at once instead of one per attempt.

    Rows with the same fault share a line.

    >>> faults = Faults()
    >>> faults.add("train.jsonl:3", 'has an empty "prompt"', "Remove the row.")
    >>> faults.add("train.jsonl:9", 'has an empty "prompt"', "Remove the row.")
    >>> faults.raise_if_any()
    Traceback (most recent call last):
    ...
    reinforge.errors.DataError: train.jsonl:3 has an empty "prompt" (the same at 9). Remove the row.
    """

    places: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(fault, hint) -> the first places it was found at."""
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """(fault, hint) -> how often it was found."""
    num_untold: int = 0
    """Bad rows with faults beyond the ones told."""

    def add(self, place: str, fault: str, hint: str) -> None:
        """Note that the row at `place` (`train.jsonl:17`) has a fault."""
        key = (_printable(fault), _printable(hint))
        if key not in self.counts and len(self.counts) == MAX_SHOWN:
            self.num_untold += 1
            return
        self.counts[key] = self.counts.get(key, 0) + 1
        named = self.places.setdefault(key, [])
        if len(named) < MAX_SHOWN:
            named.append(place)

    def raise_if_any(self) -> None:
        """Raise one DataError that tells all faults, or do nothing when there are none."""
        if not self.counts:
            return
        if len(self.counts) == 1:
            (only,) = self.counts
            raise DataError(self._line(only), hint=only[1])
        lines = [f"{self._line(key)} {key[1]}" for key in self.counts]
        if self.num_untold:
            lines.append(f"And {self.num_untold} more bad rows.")
        raise DataError("\n".join(lines))

    def _line(self, key: tuple[str, str]) -> str:
        first, *others = self.places[key]
        line = f"{first} {key[0]}"
        if others:
            num_unnamed = self.counts[key] - 1 - len(others)
            more = f" and {num_unnamed} more" if num_unnamed else ""
            same_file = first.rstrip("0123456789")
            line += f" (the same at {', '.join(other.removeprefix(same_file) for other in others)}{more})"
        return f"{line}."


def _printable(text: str) -> str:
    """Names and values come from the file: half characters are escaped, and what would fill the screen is cut."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " ..."
