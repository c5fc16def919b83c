"""Graders of lists: how much of what is expected was found, and how much of what was found is expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from reinforge.grading.builtin.reading import (
    Unreadable,
    canonical,
    f1,
    list_of,
    names_option,
    number_option,
    reference_list,
)
from reinforge.grading.builtin.result import Result, refused


def set_f1(
    *,
    input: Any,
    reference: Any,
    keys: Sequence[str] = (),
    field: str = "",
    tag: str = "",
    after: str = "",
    empty_match: float = 1.0,
) -> Result:
    """F1 of two lists as multisets: with t entries in both, precision t / found, recall t / expected (S4-013).

    `reference`: the expected list, or its text as JSON or Python; None is an empty list.
    `keys`: entries are objects, and equal when these fields are; without keys the whole entries are compared.
    `field`: dotted path to the list in the input; null there is an empty list.
    `tag`, `after`: where the JSON stands in a text, as in exact_answer.
    `empty_match`: the score when both lists are empty (a model that rightly finds nothing). One empty list scores 0.

    The input is a JSON list, or a text that holds one, in a code fence or not. Order does not count, how often an entry
    occurs does. An entry without one of the keys is equal to none.

    >>> set_f1(input='["a", "b"]', reference=["b", "a"]).score
    1.0
    >>> set_f1(input='["a", "a", "c"]', reference=["a", "b"])
    Result(score=0.4, reason='1 of 3 found, 1 of 2 expected', metrics={'precision': 0.3333333333333333, 'recall': 0.5})
    >>> set_f1(input="I found a and b.", reference=["a", "b"])
    Result(score=0.0, reason='not JSON: Expecting value: line 1 column 1 (char 0)', metrics={})
    """
    keys = names_option("keys", keys)
    empty_match = number_option("empty_match", empty_match)
    expected_list = reference_list(reference)
    expected = Counter(_key(entry, keys) for entry in expected_list)
    if None in expected:
        raise ValueError(f"reference: an entry lacks one of the keys {', '.join(keys)}")
    found_list = list_of(input, field, tag, after)
    if isinstance(found_list, Unreadable):
        return refused(found_list.reason)
    if not found_list and not expected_list:
        return Result(empty_match, "nothing found, nothing expected")
    found = Counter(_key_of_output(entry, keys) for entry in found_list)
    return f1_result((found & expected).total(), len(found_list), len(expected_list))


def f1_result(num_right: float, num_found: int, num_expected: int) -> Result:
    """Precision, recall and F1 of `num_right` matches, as a result."""
    precision = num_right / num_found if num_found else 0.0
    recall = num_right / num_expected if num_expected else 0.0
    reason = f"{num_right:g} of {num_found} found, {num_right:g} of {num_expected} expected"
    return Result(f1(precision, recall), reason, {"precision": precision, "recall": recall})


def _key(entry: object, keys: Sequence[str]) -> str | None:
    """What an entry is compared by; None when it lacks a key."""
    if not keys:
        return canonical(entry)
    if not isinstance(entry, Mapping) or not all(key in entry for key in keys):
        return None
    return canonical([entry[key] for key in keys])


def _key_of_output(entry: object, keys: Sequence[str]) -> str | None:
    try:
        return _key(entry, keys)
    except (TypeError, ValueError, RecursionError):  # no JSON, or nested too deeply: equal to no reference
        return None
