"""Graders of records: calendar entries, list entries, rows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from reinforge.grading.builtin.answers import plain_text
from reinforge.grading.builtin.reading import (
    Unreadable,
    list_of,
    names_option,
    number_option,
    reference_list,
    shown,
    text_of,
    text_option,
)
from reinforge.grading.builtin.result import Result, refused

MAX_RECORDS = 1000
"""Of a completion."""
CHECKS = ("complete", "category", "free")

Record = Mapping[str, Any]


def record_checks(
    *,
    input: Any,
    reference: Any,
    key: Sequence[str] = ("title",),
    field: str = "",
    tag: str = "",
    after: str = "",
    required: Sequence[str] = (),
    category: str = "",
    start: str = "",
    end: str = "",
    who: str = "",
    existing: Any = None,
    weights: Mapping[str, float] | None = None,
    empty_match: float = 1.0,
) -> Result:
    """Mean correctness of records (S4-038, S4-039): the sum of their scores, divided by the number of generated or of
    expected ones, whichever is larger.

    A record is recognised by its `key` fields. One that nobody expected, or a duplicate, scores 0. Of the others the
    score is the weighted mean of the checks that are asked for:

    | check | asked for by | value |
    |---|---|---|
    | complete | `required` | share of these fields that are there and not empty |
    | category | `category` | 1 when this field is that of the expected record |
    | free | `start` | 0 when its time overlaps that of another, or of `existing`, and the expected one's does not |

    `reference`: the expected records; None is an empty list.
    `key`: fields that together name a record; case and runs of white space do not count in them.
    `field`, `tag`, `after`: where the list stands, as in set_f1.
    `required`: fields that must not be empty.
    `category`: field with the category.
    `start`, `end`: fields with the times, numbers or ISO 8601 texts (UTC unless they say otherwise). A record without a
    start overlaps nothing, one without an end takes no time.
    `who`: field naming who is needed, a text or a list: only records that need the same person can overlap (S4-041).
    `existing`: records that are in the calendar already.
    `weights`: of the checks, 1 each by default.
    `empty_match`: the score when both lists are empty. One empty list scores 0.

    >>> gold = [{"title": "Dentist", "kind": "event"}, {"title": "Milk", "kind": "list"}]
    >>> record_checks(input=gold, reference=gold, category="kind").score
    1.0
    >>> record_checks(input=[{"title": "dentist", "kind": "list"}], reference=gold, category="kind", required=["kind"])
    Result(score=0.25, reason='1 of 2 expected; 1 in a wrong category', metrics={'complete': 1.0, 'category': 0.0})
    >>> record_checks(input="Dentist on Monday", reference=gold).score
    0.0
    """
    keys = names_option("key", key, at_least=1)
    fields = _Fields(names_option("required", required), category, start, end, who)
    of_checks = _weights(weights)
    empty_match = number_option("empty_match", empty_match)
    expected, calendar = _records("reference", reference, keys), _records("existing", existing, ())
    found = list_of(input, field, tag, after, MAX_RECORDS)
    if isinstance(found, Unreadable):
        return refused(found.reason)
    if not found and not expected:
        return Result(empty_match, "nothing found, nothing expected")
    return _judged(found, expected, calendar, keys, fields, of_checks)


def _judged(
    found: Sequence[object],
    expected: Sequence[Record],
    calendar: Sequence[Record],
    keys: Sequence[str],
    fields: _Fields,
    weights: Mapping[str, float],
) -> Result:
    pairs, lone = _matched(found, expected, keys)
    values = _checked(pairs, expected, calendar, fields)
    score = _sum_of_means(values, weights, len(pairs)) / max(len(found), len(expected))
    metrics = {name: math.fsum(each) / len(each) for name, each in values.items() if each}
    return Result(score, _in_words(len(pairs), len(expected), lone, values), metrics)


def _sum_of_means(values: Mapping[str, list[float]], weights: Mapping[str, float], num_pairs: int) -> float:
    """Over the pairs, of the weighted mean of their checks; without any check a pair counts 1."""
    if not values:
        return float(num_pairs)
    total = math.fsum(weights[name] * math.fsum(each) for name, each in values.items())
    return total / math.fsum(weights[name] for name in values)


def _in_words(num_pairs: int, num_expected: int, lone: Mapping[str, int], values: Mapping[str, Sequence[float]]) -> str:
    faults = dict(lone)
    for check, what in (("complete", "incomplete"), ("category", "in a wrong category"), ("free", "in conflict")):
        faults[what] = sum(value < 1 for value in values.get(check, ()))
    return "; ".join([f"{num_pairs} of {num_expected} expected", *(f"{n} {what}" for what, n in faults.items() if n)])


@dataclass(frozen=True, slots=True)
class _Fields:
    required: tuple[str, ...]
    category: str
    start: str
    end: str
    who: str

    def __post_init__(self) -> None:
        for name in ("category", "start", "end", "who"):
            text_option(name, getattr(self, name))


def _weights(weights: object) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(CHECKS, 1.0)
    if not isinstance(weights, Mapping) or not set(weights) <= set(CHECKS):
        raise ValueError(f"weights: a table of {', '.join(CHECKS)} is needed, not {shown(weights)}")
    found = {name: number_option(f"weights.{name}", weights.get(name, 1.0), 0.0) for name in CHECKS}
    if not all(found.values()):
        raise ValueError("weights: each must be above 0")
    return found


def _records(name: str, value: object, keys: Sequence[str]) -> list[Record]:
    records = reference_list(value)
    for record in records:
        if not isinstance(record, Mapping) or "" in _identity(record, keys):
            needed = ", ".join(keys) or "fields"
            raise ValueError(f"{name}: records with {needed} are needed, not {shown(record)} in it")
    return records


def _identity(record: object, keys: Sequence[str]) -> tuple[str, ...]:
    """What a record is recognised by."""
    if not isinstance(record, Mapping):
        return ()
    return tuple(plain_text(text_of(record.get(key))) for key in keys)


def _matched(
    found: Sequence[object], expected: Sequence[Record], keys: Sequence[str]
) -> tuple[list[tuple[Record, Record]], dict[str, int]]:
    """Pairs of a generated and an expected record, and how many found no partner."""
    waiting: dict[tuple[str, ...], deque[Record]] = defaultdict(deque)
    for gold in expected:
        waiting[_identity(gold, keys)].append(gold)
    pairs: list[tuple[Record, Record]] = []
    lone: Counter[str] = Counter()
    for record in found:
        identity = _identity(record, keys)
        if isinstance(record, Mapping) and waiting.get(identity):
            pairs.append((record, waiting[identity].popleft()))
        else:
            lone["duplicate" if identity in waiting else "not expected"] += 1
    return pairs, dict(lone)


def _checked(
    pairs: Sequence[tuple[Record, Record]],
    expected: Sequence[Record],
    calendar: Sequence[Record],
    fields: _Fields,
) -> dict[str, list[float]]:
    """The value of each check that is asked for, for each pair."""
    values: dict[str, list[float]] = {}
    if fields.required:
        values["complete"] = [_filled(record, fields.required) for record, _ in pairs]
    if fields.category:
        name = (fields.category,)
        values["category"] = [float(_identity(record, name) == _identity(gold, name)) for record, gold in pairs]
    if fields.start:
        clash = _overlapping([record for record, _ in pairs], calendar, fields)
        rightly = _overlapping(expected, calendar, fields)
        values["free"] = [float(id(record) not in clash or id(gold) in rightly) for record, gold in pairs]
    return values


def _filled(record: Record, required: Sequence[str]) -> float:
    empty = sum(text_of(record.get(name)).strip() in ("", "[]", "{}") for name in required)
    return 1 - empty / len(required)


def _overlapping(records: Sequence[Record], calendar: Sequence[Record], fields: _Fields) -> set[int]:
    """The ids of the records whose time overlaps another's, or cannot be read. One pass over each person's entries in
    the order of their start, beside the one that lasts longest so far."""
    clash: set[int] = set()
    entries: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for record in (*records, *calendar):
        if text_of(record.get(fields.start)) == "":
            continue
        times = _times(record, fields)
        if times is None:
            clash.add(id(record))
            continue
        for person in _people(record, fields.who):
            entries[person].append((*times, id(record)))
    for of_person in entries.values():
        longest_end, longest = -math.inf, 0
        for begin, finish, record_id in sorted(of_person):
            if begin < longest_end:
                clash |= {record_id, longest}
            if finish > longest_end:
                longest_end, longest = finish, record_id
    return clash


def _times(record: Record, fields: _Fields) -> tuple[float, float] | None:
    begin = _time(record.get(fields.start))
    finish = begin if not fields.end or record.get(fields.end) is None else _time(record.get(fields.end))
    return (begin, finish) if begin is not None and finish is not None and begin <= finish else None


def _time(value: object) -> float | None:
    """Seconds since 1970; None for what is no time."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value) if math.isfinite(value) else None
        time = datetime.fromisoformat(text_of(value).strip())
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _people(record: Record, who: str) -> set[str]:
    """Who is needed for a record; without the field everybody is one person."""
    needed = record.get(who) if who else None
    names = needed if isinstance(needed, (list, tuple)) else [needed]
    return {plain_text(text_of(name)) for name in names}
