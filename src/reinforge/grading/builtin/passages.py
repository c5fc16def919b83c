"""Graders of passages that were to be copied out of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from reinforge.grading.builtin.reading import (
    Unreadable,
    choice_option,
    f1,
    list_of,
    number_option,
    reference_list,
    shown,
    text_option,
)
from reinforge.grading.builtin.result import Result, refused

MAX_PASSAGES = 1000
"""Of a completion: each is compared with each expected one."""
Matcher = Literal["ratio", "partial", "words", "exact"]


def span_f1(
    *,
    input: Any,
    reference: Any,
    field: str = "",
    tag: str = "",
    after: str = "",
    matcher: Matcher = "ratio",
    threshold: float = 0.0,
    source: str | None = None,
    empty_match: float = 1.0,
) -> Result:
    """Soft F1 of passages (S4-052): recall is the mean over expected passages of their best match among those found,
    precision the mean over found passages of their best match among those expected.

    `reference`: the expected passages; None is an empty list.
    `field`: dotted path to the list in the input; null there is an empty list.
    `tag`, `after`: where the JSON stands in a text, as in exact_answer.
    `matcher`: how alike two passages are, 0 to 1. "ratio": edit similarity (rapidfuzz `fuzz.ratio`); "partial": of the
    shorter one with the best-fitting part of the longer (`partial_ratio`); "words": edit similarity whatever the order
    of the words (`token_sort_ratio`); "exact": 1 when equal.
    `threshold`: less alike counts 0.
    `source`: the text the passages were to be copied from; one that does not stand in it letter by letter counts 0.
    `empty_match`: the score when both lists are empty. One empty list scores 0.

    >>> span_f1(input='["the lease ends in May"]', reference=["the lease ends in May"]).score
    1.0
    >>> span_f1(input='["the lease ends in June"]', reference=["the lease ends in May"], threshold=0.9).score
    0.0
    >>> span_f1(input='["It ends in June."]', reference=["It ends in May."], source="It ends in May. It is due.").reason
    '1 of 1 passages not in the source'
    """
    alike = _alike(matcher, number_option("threshold", threshold, 0.0, 1.0))
    empty_match = number_option("empty_match", empty_match)
    expected = _texts(reference)
    found = list_of(input, field, tag, after, MAX_PASSAGES)
    if isinstance(found, Unreadable):
        return refused(found.reason)
    if not found and not expected:
        return Result(empty_match, "nothing found, nothing expected")
    copied = [_is_copied(passage, source) for passage in found]
    usable = [passage for passage, good in zip(found, copied, strict=True) if good]
    precision = math.fsum(_best(alike, passage, expected) for passage in usable) / len(found) if found else 0.0
    recall = math.fsum(_best(alike, passage, usable) for passage in expected) / len(expected) if expected else 0.0
    missing = "" if all(copied) else f"{copied.count(False)} of {len(found)} passages not in the source"
    metrics = {"precision": precision, "recall": recall, "copied": len(usable) / len(found) if found else 1.0}
    reason = missing or f"precision {precision:.3g}, recall {recall:.3g}"
    return Result(f1(precision, recall), reason, metrics)


def _texts(reference: object) -> list[str]:
    expected = reference_list(reference)
    for passage in expected:
        if not isinstance(passage, str) or not passage:
            raise ValueError(f"reference: a list of texts that are not empty is needed, not {shown(passage)} in it")
    return expected


def _is_copied(passage: object, source: str | None) -> bool:
    if not isinstance(passage, str) or not passage.strip():
        return False
    return source is None or passage in text_option("source", source)


def _alike(matcher: Matcher, threshold: float) -> Callable[[str, Sequence[str]], Sequence[float]]:
    """Likeness of a passage to each of several."""
    from rapidfuzz import fuzz

    scorers = {"ratio": fuzz.ratio, "partial": fuzz.partial_ratio, "words": fuzz.token_sort_ratio}
    choice_option("matcher", matcher, (*scorers, "exact"))
    if matcher == "exact":
        return lambda passage, others: [float(passage == other) for other in others]
    scorer = scorers[matcher]

    def likeness(passage: str, others: Sequence[str]) -> Sequence[float]:
        each = (scorer(passage, other) / 100 for other in others)
        return [value if value >= threshold else 0.0 for value in each]

    return likeness


def _best(alike: Callable[[str, Sequence[str]], Sequence[float]], passage: str, others: Sequence[str]) -> float:
    return max(alike(passage, others), default=0.0)
