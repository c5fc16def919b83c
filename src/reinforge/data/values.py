"""Which values a column may hold: text, numbers, booleans, null, lists and objects, as JSON knows them."""

from __future__ import annotations

import datetime
import decimal
import math
import numbers
from collections.abc import Mapping
from itertools import chain
from typing import Any

from reinforge.data.faults import Faults

MAX_DEPTH = 64
"""Of nested lists and objects."""


class NotFinite(str):
    """Stands for a NaN or Infinity literal until the row's check finds it and names its column."""


def value_fault(value: Any) -> tuple[str, str] | None:
    """What keeps a value out of a data set, with a hint: a number that is not finite, a text that no file can hold,
    a type JSON does not know.

    >>> value_fault({"scores": [1.0, float("nan")]})
    ('the number nan', 'Use null for a missing number.')
    >>> value_fault(["fine", 3, None, True])
    """
    todo = [(value, 0)]
    while todo:  # a loop, not recursion: a value may nest deeper than Python can recurse
        part, depth = todo.pop()
        if depth > MAX_DEPTH:
            return f"lists or objects nested more than {MAX_DEPTH} deep", "Store such a value as a JSON text."
        if isinstance(part, NotFinite) or (isinstance(part, float) and not math.isfinite(part)):
            return f"the number {part}", "Use null for a missing number."
        if isinstance(part, str):
            if "\0" in part:
                return "a NUL character", "Remove it: it ends the text in many programs."
            if _has_lone_surrogate(part):
                return "half a character (a lone surrogate)", "Cut texts between characters, not inside an emoji."
        elif isinstance(part, Mapping):
            todo.extend((inner, depth + 1) for inner in chain(part.keys(), part.values()))
        elif isinstance(part, list | tuple):
            todo.extend((inner, depth + 1) for inner in part)
        elif not isinstance(part, int | float | None):
            return f"a value of type {type(part).__name__}", "Store it as text, number, list or object."
    return None


def values_fit(values: Mapping[str, Any], place: str, faults: Faults) -> bool:
    """Whether a row holds only such values; if not, each bad column is noted."""
    fits = True
    for column, value in values.items():
        found = value_fault(column) or value_fault(value)
        if found:
            faults.add(place, f'has {found[0]} in "{column}"', found[1])
            fits = False
    return fits


def plain_value(value: Any) -> Any:
    """The value in JSON's types: dates become ISO text, decimals and numpy's numbers plain ones, tuples lists.

    >>> plain_value({"day": datetime.date(2024, 7, 26), "price": decimal.Decimal("1.5")})
    {'day': '2024-07-26', 'price': 1.5}
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real | decimal.Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {key: plain_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(part) for part in value]
    return value


def without_nulls(value: Any) -> Any:
    """The value without the keys of objects that are null.

    >>> without_nulls([{"role": "user", "name": None, "parts": [{"a": 1, "b": None}]}])
    [{'role': 'user', 'parts': [{'a': 1}]}]
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    return value


def _has_lone_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
