"""Scores that time decided, not the function: recorded when they happen, given again when a run is resumed.

Whether a call beats its deadline depends on the machine's mood. A resumed run that judged such a completion anew could
get another score and so another policy; with the record it gets the one the uninterrupted run has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from reinforge.grading.judge_client import PARSE_ERROR, REFUSAL_ERROR, SERVER_ERROR
from reinforge.roles import Grader
from reinforge.types import STOPPING_KINDS, Completion, Grade, Group, Prompt, Score

ACCIDENTS = frozenset({"timeout", "worker_unavailable", SERVER_ERROR, REFUSAL_ERROR, PARSE_ERROR, *STOPPING_KINDS})
"""Kinds of faults that may not happen again."""


def accidents(groups: Iterable[Group]) -> dict[str, Score]:
    """The scores of these groups that time decided, by a key that names the judgement; with the other failed scores of
    the same completion, whose stand-in may be the value that is missing."""
    return {
        _key(score.version, group.prompt, completion): score
        for group in groups
        for completion, grade in zip(group.completions, group.grades, strict=True)
        if any(score.kind in ACCIDENTS for score in grade.scores)
        for score in grade.scores
        if score.state != "ok"
    }


class ReplayingGrader:
    """A grader in whose grades the recorded accidents stand (implements roles.Grader)."""

    def __init__(self, inner: Grader, recorded: Mapping[str, Score]) -> None:
        self._inner = inner
        self._recorded = recorded

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[tuple[Grade, ...]]:
        """See roles.Grader."""
        outer: Future[tuple[Grade, ...]] = Future()

        def finish(inner: Future[tuple[Grade, ...]]) -> None:
            try:
                grades = inner.result()
            except BaseException as fault:  # noqa: BLE001 - belongs to whoever waits for the result
                outer.set_exception(fault)
            else:
                outer.set_result(tuple(self._replayed(prompt, c, g) for c, g in zip(completions, grades, strict=True)))

        self._inner.grade(prompt, completions).add_done_callback(finish)
        return outer

    def close(self) -> None:
        self._inner.close()

    def _replayed(self, prompt: Prompt, completion: Completion, grade: Grade) -> Grade:
        scores = tuple(self._recorded.get(_key(score.version, prompt, completion), score) for score in grade.scores)
        return replace(grade, scores=scores)


def _key(version: str, prompt: Prompt, completion: Completion) -> str:
    """The policy version tells the steps apart, so the same text judged later is judged anew."""
    place = (version, prompt.example.index, completion.policy_version, completion.generation, completion.token_ids)
    return hashlib.sha256(repr(place).encode()).hexdigest()
