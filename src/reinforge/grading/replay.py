"""Scores that time decided, not the function: recorded when they happen, given again when a run is resumed.

Whether a call beats its deadline depends on the machine's mood. A resumed run that judged such a completion anew could
get another score and so another policy; with the record it gets the one the uninterrupted run has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from reinforge.grading.judges.client import PARSE_ERROR, REFUSAL_ERROR, SERVER_ERROR
from reinforge.roles import Grader, GroupGrading
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

    def begin(self, prompt: Prompt, num_completions: int, first_generation: int = 0) -> GroupGrading:
        """See roles.Grader."""
        inner = self._inner.begin(prompt, num_completions, first_generation)
        return _ReplayingGrading(prompt, inner, self._recorded)

    def close(self) -> None:
        self._inner.close()


class _ReplayingGrading:
    """A group's grading with recorded scores put in (implements roles.GroupGrading)."""

    def __init__(self, prompt: Prompt, inner: GroupGrading, recorded: Mapping[str, Score]) -> None:
        self._prompt = prompt
        self._inner = inner
        self._recorded = recorded
        self._completions: dict[int, Completion] = {}

    def add(self, completion: Completion) -> None:
        self._completions[completion.generation] = completion
        self._inner.add(completion)

    def judged(self, within_s: float) -> Mapping[int, Grade]:
        """See roles.GroupGrading."""
        judged = self._inner.judged(within_s)
        return {
            generation: self._replayed(self._completions[generation], grade) for generation, grade in judged.items()
        }

    def grades(self) -> tuple[Grade, ...]:
        completions = (self._completions[generation] for generation in sorted(self._completions))
        return tuple(map(self._replayed, completions, self._inner.grades()))

    def _replayed(self, completion: Completion, grade: Grade) -> Grade:
        keys = [_key(score.version, self._prompt, completion) for score in grade.scores]
        return replace(grade, scores=tuple(map(self._recorded.get, keys, grade.scores)))


def _key(version: str, prompt: Prompt, completion: Completion) -> str:
    """The policy version tells the steps apart, so the same text judged later is judged anew."""
    place = (version, prompt.example.index, completion.policy_version, completion.generation, completion.token_ids)
    return hashlib.sha256(repr(place).encode()).hexdigest()
