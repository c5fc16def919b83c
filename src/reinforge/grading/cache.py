"""Scores of pure functions, kept so that the same question is not asked twice.

Kept in memory, for one version of one function: a resumed run begins with an empty cache and, the function being pure,
comes to the same scores.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from reinforge.grading.calls import Case
from reinforge.types import Score

MAX_SCORES = 20_000


class ScoreCache:
    """The latest used scores by prompt, completion and row. Several threads may use it."""

    def __init__(self, max_scores: int = MAX_SCORES, *, by_token_ids: bool = False) -> None:
        """`by_token_ids`: the same text of other tokens is another question."""
        self._max_scores = max_scores
        self._by_token_ids = by_token_ids
        self._scores: OrderedDict[bytes, Score] = OrderedDict()
        self._lock = threading.Lock()

    def score(self, case: Case, call: Callable[[Case], list[Score]]) -> list[Score]:
        """One score per completion, in order: from the cache where it has one, else of one call for all the others.
        Failed scores are not kept."""
        keys = _keys(case, self._by_token_ids)
        found: dict[bytes, Score] = {}
        with self._lock:
            for key in keys:
                if key in self._scores:
                    self._scores.move_to_end(key)
                    found[key] = replace(self._scores[key], latency_s=0.0, cached=True, note="")
        asked = {key: place for place, key in reversed(list(enumerate(keys))) if key not in found}
        places = sorted(asked.values())
        answers = dict(zip(places, call(case.only(places)), strict=True)) if places else {}
        with self._lock:
            for place, score in answers.items():
                if score.state == "ok":
                    self._scores[keys[place]] = score
            while len(self._scores) > self._max_scores:
                self._scores.popitem(last=False)
        for place, score in answers.items():
            found[keys[place]] = replace(score, latency_s=0.0, cached=True, note="")
        return [answers.get(place, found[key]) for place, key in enumerate(keys)]


def _keys(case: Case, by_token_ids: bool) -> list[bytes]:
    """A digest of all that a call is given, for each completion."""
    example = case.example
    shared = repr((case.prompt_text, example.prompt, example.columns, example.tools)).encode("utf-8", "surrogatepass")
    row = hashlib.sha256(shared)
    keys = []
    for place, (text, token_ids) in enumerate(zip(case.texts, case.token_ids, strict=True)):
        digest = row.copy()
        own = (text, token_ids if by_token_ids else (), case.finish_reason(place))
        digest.update(repr(own).encode("utf-8", "surrogatepass"))
        keys.append(digest.digest())
    return keys
